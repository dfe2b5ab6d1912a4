"""Slots are moved to other shards while clients go on: the whole program, real servers, its own commands."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyproxy.fleet import HOST, Fleet, Proxy, reserve_port, wait_until
from pyproxy.hashing import SLOTS
from tests.e2e.rig import PATIENCE_S, Connection, proxy_info, wait_for_info
from tests.processes import command_line, family

LONG_S = 60.0
"""How long a move of a few thousand keys may take on a machine that does much else."""


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with Fleet(shards=1, replicas=1) as fleet:
        yield fleet


@pytest.fixture
def added() -> Iterator[Fleet]:
    """Servers of shards that are not in the configuration."""
    with Fleet(shards=2, replicas=0) as added:
        yield added


@pytest.fixture
def proxy(fleet: Fleet, tmp_path: Path) -> Iterator[Proxy]:
    admin = Path(f"/tmp/pyproxy-moves-{os.getpid()}.sock")
    store = f"file:{tmp_path}/map.json"
    with reserve_port() as keeper:
        http = {"admin": str(admin), "listen": f"{HOST}:{keeper.getsockname()[1]}"}
        with Proxy(fleet, workers=2, store=store, http=http) as proxy:
            yield proxy


class Operator:
    """Types `pyproxy move ...`."""

    def __init__(self, proxy: Proxy, directory: Path) -> None:
        self._proxy, self._directory = proxy, directory

    def says(self, *words: str) -> tuple[int, str]:
        line = [sys.executable, "-m", "pyproxy", "move", *words, "--config", str(self._proxy.config)]
        done = subprocess.run(line, capture_output=True, text=True, timeout=LONG_S)
        return done.returncode, done.stdout + done.stderr

    def starts(self, added: Fleet, *words: str) -> None:
        """All slots of s0 are shared between it and the shards that are added."""
        plan = self._directory / "plan.toml"
        names = [f"n{index}" for index in range(len(added.shards))]
        share = SLOTS // (len(names) + 1)
        lines = []
        for name, shard in zip(names, added.shards, strict=True):
            lines += ["[[shards]]", f'name = "{name}"', f'primary = "127.0.0.1:{shard.primary.port}"']
        for index, name in enumerate(names, 1):
            slots = f"{index * share}-{(index + 1) * share - 1}"
            lines += ["[[moves]]", 'source = "s0"', f'destination = "{name}"', f'slots = ["{slots}"]']
        plan.write_text("\n".join(lines))
        status, text = self.says("start", str(plan), *words)
        assert status == 0, text

    def moves(self) -> list[dict[str, Any]]:
        _, text = self.says("status", "--json")
        found: list[dict[str, Any]] = json.loads(text)
        return found

    def waits_for(self, phase: str) -> None:
        def shown() -> str:
            return f"{self.moves()}, and in the log:\n{self._proxy.tail()}"

        wait_until(
            f"all moves to be {phase}", lambda: all(each["phase"] == phase for each in self.moves()), shown, LONG_S
        )


@pytest.fixture
def operator(proxy: Proxy, tmp_path: Path) -> Operator:
    return Operator(proxy, tmp_path)


class Counting:
    """Clients that count keys up, and note whatever is not as it must be."""

    def __init__(self, port: int, clients: int = 4, keys: int = 50) -> None:
        self._port, self._clients, self._keys = port, clients, keys
        self._ended = threading.Event()
        self.counts: dict[str, int] = {}
        self.wrong: list[object] = []

    def _count(self, client: int) -> None:
        names = [f"count:{client}:{number}" for number in range(self._keys)]
        self.counts.update(dict.fromkeys(names, 0))
        try:
            with Connection(self._port) as conn:
                while not self._ended.is_set():
                    conn.send(*(("INCR", name) for name in names), ("MGET", *names))
                    said = conn.reads(len(names) + 1)
                    for name, got in zip(names, said, strict=False):
                        self.counts[name] += 1
                        if got != self.counts[name]:
                            self.wrong.append((name, self.counts[name], got))
                            return
                    expected = [b"%d" % self.counts[name] for name in names]
                    if said[-1] != expected:
                        self.wrong.append((expected, said[-1]))
                        return
        except (AssertionError, OSError) as exc:
            self.wrong.append(exc)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._count, args=(client,)) for client in range(self._clients)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._ended.set()
            for thread in threads:
                thread.join(PATIENCE_S)

    def check(self, port: int) -> None:
        assert self.wrong == []
        with Connection(port) as conn:
            conn.send(*(("GET", name) for name in self.counts))
            found = dict(zip(self.counts, conn.reads(len(self.counts)), strict=True))
        assert found == {name: b"%d" % count for name, count in self.counts.items()}


def fill(port: int, keys: int) -> None:
    with Connection(port) as conn:
        conn.send(*(("SET", f"key:{number}", f"value {number}") for number in range(keys)))
        assert set(conn.reads(keys)) == {b"OK"}


def all_keys(*fleets: Fleet) -> list[int]:
    """How many each server has."""
    found = []
    for fleet in fleets:
        for shard in fleet.shards:
            count = shard.primary.ask("DBSIZE")
            assert isinstance(count, int)
            found.append(count)
    return found


def workers_and_mover(proxy: Proxy) -> dict[str, int]:
    """The pid of each process of the proxy, by the module that it runs."""
    return {words[words.index("-m") + 1]: pid for pid, _ in family(proxy.pid) if "-m" in (words := command_line(pid))}


def test_one_server_is_shared_out_while_clients_count(
    fleet: Fleet, added: Fleet, proxy: Proxy, operator: Operator
) -> None:
    fill(proxy.port, 5000)
    counting = Counting(proxy.port)
    with counting.running():
        operator.starts(added)
        operator.waits_for("done")
    counting.check(proxy.port)
    with Connection(proxy.port) as conn:
        conn.send(*(("GET", f"key:{number}") for number in range(5000)))
        assert conn.reads(5000) == [b"value %d" % number for number in range(5000)]
    found = all_keys(fleet, added)
    assert sum(found) == 5000 + len(counting.counts) and min(found) > 1000
    assert all(each["longest_hold_ms"] > 0 and not each["alarm"] for each in operator.moves())


def test_the_status_and_info_say_how_far_moves_are_while_they_are_under_way(
    fleet: Fleet, added: Fleet, proxy: Proxy, operator: Operator
) -> None:
    fill(proxy.port, 5000)
    operator.says("throttle", "1KB/s")
    operator.starts(added)
    operator.waits_for("copying")
    operator.says("pause")
    with Connection(proxy.port) as conn:
        wait_for_info(conn, "the pause", lambda info: ",paused=1," in info.get("move_m2", ""))
        assert proxy_info(conn)["moves"] == "2"
        assert proxy_info(conn)["move_m1"].startswith("source=s0,destination=n0,phase=copying,share=0")
        line = [sys.executable, "-m", "pyproxy", "status", "--config", str(proxy.config)]
        shown = subprocess.run(line, capture_output=True, text=True, timeout=LONG_S, check=False).stdout
        assert re.search(r"^MOVE m1: s0 -> n0, copying \([0-9]+%\), paused$", shown, re.MULTILINE), shown
        operator.says("abort")
        operator.says("resume")
        operator.waits_for("aborted")
        wait_for_info(conn, "no moves", lambda info: info["moves"] == "0")
        assert "move_m1" not in proxy_info(conn)


def test_no_process_is_left_when_the_moves_are_done(proxy: Proxy, added: Fleet, operator: Operator) -> None:
    operator.starts(added)
    operator.waits_for("done")
    wait_until(
        "the mover to end",
        lambda: "pyproxy.mover" not in workers_and_mover(proxy),
        lambda: str(workers_and_mover(proxy)),
    )
    assert "+mover-orphan" not in proxy.log.read_text(), "it was not needed any more, and its parent is there"


def test_a_shard_without_slots_is_taken_out(
    fleet: Fleet, added: Fleet, proxy: Proxy, operator: Operator, tmp_path: Path
) -> None:
    fill(proxy.port, 500)
    status, text = operator.says("forget", "s0")
    assert (status, "expected s0 to have no slots" in text) == (1, True)
    plan = tmp_path / "all.toml"
    shard = added.shards[0].primary
    plan.write_text(
        f'remove = ["s0"]\n[[shards]]\nname = "n0"\nprimary = "127.0.0.1:{shard.port}"\n'
        f'[[moves]]\nsource = "s0"\ndestination = "n0"\nslots = ["0-{SLOTS - 1}"]\n'
    )
    status, text = operator.says("start", str(plan))
    assert (status, "`pyproxy move forget s0`" in text) == (0, True), text
    operator.waits_for("done")
    assert operator.says("forget", "s0")[0] == 0
    assert all_keys(fleet, added) == [0, 500, 0]
    assert [each["name"] for each in json.loads((tmp_path / "map.json").read_text())["shards"]] == ["n0"]
    with Connection(proxy.port) as conn:
        assert conn.ask("GET", "key:1") == b"value 1"


def test_an_aborted_move_leaves_nothing_behind(fleet: Fleet, added: Fleet, proxy: Proxy, operator: Operator) -> None:
    fill(proxy.port, 3000)
    status, _ = operator.says("throttle", "1KB/s")
    assert status == 0
    operator.starts(added)
    operator.waits_for("copying")
    status, text = operator.says("abort")
    assert status == 0, text
    operator.waits_for("aborted")
    assert all_keys(fleet, added) == [3000, 0, 0]


@pytest.mark.parametrize("victim", ["pyproxy.mover", "pyproxy.worker"])
def test_a_process_that_is_killed_on_the_way_loses_nothing(
    fleet: Fleet, added: Fleet, proxy: Proxy, operator: Operator, victim: str
) -> None:
    fill(proxy.port, 5000)
    operator.says("throttle", "20KB/s")
    operator.starts(added)
    operator.waits_for("copying")
    os.kill(workers_and_mover(proxy)[victim], signal.SIGKILL)
    operator.says("throttle", "0")
    operator.waits_for("done")
    with Connection(proxy.port) as conn:
        conn.send(*(("GET", f"key:{number}") for number in range(5000)))
        assert conn.reads(5000) == [b"value %d" % number for number in range(5000)]
    assert sum(all_keys(fleet, added)) == 5000


def test_moves_go_on_after_the_proxy_was_killed(
    fleet: Fleet, added: Fleet, proxy: Proxy, operator: Operator, tmp_path: Path
) -> None:
    fill(proxy.port, 5000)
    operator.says("throttle", "20KB/s")
    operator.starts(added)
    operator.waits_for("copying")
    proxy.kill()
    proxy.wait()
    admin = Path(f"/tmp/pyproxy-moves-{os.getpid()}.sock")
    with Proxy(fleet, workers=2, store=f"file:{tmp_path}/map.json", http={"admin": str(admin)}) as successor:
        Operator(successor, tmp_path).waits_for("done")
        with Connection(successor.port) as conn:
            conn.send(*(("GET", f"key:{number}") for number in range(5000)))
            assert conn.reads(5000) == [b"value %d" % number for number in range(5000)]
    assert sum(all_keys(fleet, added)) == 5000


def test_a_new_shard_that_cannot_be_reached_is_refused_before_it_is_added(
    fleet: Fleet, added: Fleet, proxy: Proxy, operator: Operator, tmp_path: Path
) -> None:
    added.shards[1].primary.kill()
    with pytest.raises(AssertionError, match=r"expected a new shard that can be used, got: shard n1"):
        operator.starts(added)
    assert operator.moves() == []
    with Connection(proxy.port) as conn:
        assert conn.ask("DBSIZE") == 0


def test_a_destination_with_keys_is_refused_before_anything_is_copied(
    fleet: Fleet, added: Fleet, proxy: Proxy, operator: Operator
) -> None:
    fill(proxy.port, 1000)
    for shard in added.shards:
        for number in range(200):
            shard.primary.ask("SET", f"key:{number}", "another")
    operator.starts(added)
    operator.waits_for("failed")
    assert all_keys(fleet, added) == [1000, 200, 200]
    assert all("has keys" in each["why"] or "keys" in each["why"] for each in operator.moves())
