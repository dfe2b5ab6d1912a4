"""The status over HTTP, as probes and operators see it: real servers die and come back."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import pytest

from pyproxy.fleet import HOST, Fleet, Proxy, reserve_port, wait_until
from tests.e2e.rig import PATIENCE_S, Connection, Keys, proxy_info, wait_for_info, wait_for_line
from tests.processes import command_line, family

PROCESS = ("/livez", "/__lbheartbeat__")
SHARDS = ("/__heartbeat__", "/shards")


@dataclass(frozen=True)
class Got:
    status: int
    headers: dict[str, str]
    body: Any


@dataclass
class Status:
    """Asks one proxy."""

    proxy: Proxy
    port: int

    def get(self, path: str, method: str = "GET") -> Got:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=PATIENCE_S)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            text = answer.read()
            is_json = answer.getheader("Content-Type", "").startswith("application/json")
            return Got(answer.status, dict(answer.getheaders()), json.loads(text) if is_json and text else None)
        finally:
            connection.close()

    def statuses(self, *paths: str) -> list[int]:
        return [self.get(path).status for path in paths]

    def wait_for(self, path: str, status: int) -> Got:
        """The first answer with that status; FleetError with the last one if it does not come."""
        got: list[Got] = []

        def there() -> bool:
            got[:] = [self.get(path)]
            return got[0].status == status

        wait_until(f"{path} to say {status}", there, lambda: f"it says {got}\n{self.proxy.tail()}", PATIENCE_S)
        return got[0]

    def wait_until_it_answers(self) -> None:
        def answers() -> bool:
            try:
                return self.get("/livez").status == 200
            except OSError:
                return False

        wait_until("the status to be told", answers, self.proxy.tail, PATIENCE_S)


@contextmanager
def status_of(fleet: Fleet, workers: int = 1, **timeouts: float) -> Iterator[Status]:
    """Of a proxy that was launched, and is not yet known to serve."""
    with reserve_port() as keeper:
        port: int = keeper.getsockname()[1]
        proxy = Proxy(fleet, None, workers, http={"listen": f"{HOST}:{port}"}, timeouts=timeouts)
        try:
            proxy.launch()
            status = Status(proxy, port)
            status.wait_until_it_answers()
            yield status
        finally:
            proxy.__exit__()


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet(shards=2, replicas=0) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def status(fleet: Fleet) -> Iterator[Status]:
    with status_of(fleet) as status:
        status.wait_for("/readyz", 200)
        yield status


@pytest.fixture
def healed(fleet: Fleet, status: Status) -> Iterator[Fleet]:
    """The fleet, for a test that kills: all of it is back afterwards."""
    yield fleet
    for server in fleet.servers:
        if not server.running:
            server.start()
    status.wait_for("/shards", 200)
    with Connection(status.proxy.port) as conn:
        wait_for_info(conn, "its shards to be back", lambda info: info["shards_down"] == "0")


def seconds(got: Got) -> int:
    """What both headers say."""
    assert re.fullmatch("[1-9][0-9]?", got.headers["Retry-After"])
    assert got.headers["Backoff"] == got.headers["Retry-After"]
    return int(got.headers["Backoff"])


def test_all_is_well_while_all_shards_are_up(status: Status) -> None:
    assert status.statuses(*PROCESS, "/readyz", *SHARDS) == [200] * 5
    assert "Retry-After" not in status.get("/shards").headers


def test_the_shards_are_told_as_the_servers_tell_them(fleet: Fleet, status: Status) -> None:
    said = status.get("/shards").body["shards"]
    assert [(each["name"], each["node"]) for each in said] == [(s.name, s.primary.address) for s in fleet.shards]
    assert [each["slots"] for each in said] == [["0-8191"], ["8192-16383"]]
    assert {(each["role"], each["state"]) for each in said} == {("master", "up")}
    assert all(each["used_memory"] > 100_000 for each in said)
    assert {each["memory_limit_of"] for each in said} == {"total_system_memory"}, "a fleet's servers have no maxmemory"
    assert all(each["memory_limit"] > each["used_memory"] for each in said)
    assert all(each["look_age_s"] < PATIENCE_S for each in said)


def test_a_dead_primary_is_503_with_both_headers_and_the_proxy_stays_in_service(healed: Fleet, status: Status) -> None:
    healed.shards[1].primary.kill()
    for path in SHARDS:
        assert 1 <= seconds(status.wait_for(path, 503)) <= 30
    assert status.get("/__heartbeat__").body["checks"] == {"s0": "ok", "s1": "error"}
    assert status.statuses(*PROCESS, "/readyz") == [200] * 3
    healed.shards[1].primary.start()
    for path in SHARDS:
        assert "Backoff" not in status.wait_for(path, 200).headers


def test_clients_are_told_the_same_number_by_info(healed: Fleet, status: Status) -> None:
    with Connection(status.proxy.port) as conn:
        wait_for_info(conn, "INFO to know that all is well", lambda info: info["proxy_backoff_seconds"] == "0")
        healed.shards[1].primary.kill()
        status.wait_for("/shards", 503)
        wait_for_info(conn, "INFO to say it", lambda info: info["proxy_backoff_seconds"] != "0")
        before = seconds(status.get("/shards"))
        told = int(proxy_info(conn)["proxy_backoff_seconds"])
        assert before <= told <= seconds(status.get("/shards"))


def test_with_all_shards_dead_it_is_not_ready_but_alive(healed: Fleet, status: Status) -> None:
    for shard in healed.shards:
        shard.primary.kill()
    assert status.wait_for("/readyz", 503).body == {"status": "no shard can be used"}
    assert status.statuses(*PROCESS) == [200, 200]
    healed.shards[0].primary.start()
    status.wait_for("/readyz", 200)  # one is enough
    assert status.get("/shards").status == 503


def test_while_it_starts_it_is_alive_and_not_ready() -> None:
    with Fleet(shards=1, replicas=0) as hanging:
        hanging.shards[0].primary.pause()
        with status_of(hanging) as status:
            assert "+ready" not in status.proxy.tail()
            got = status.get("/readyz")
            assert (got.status, got.body) == (503, {"status": "starting"})
            assert status.statuses(*PROCESS) == [200, 200]
            hanging.shards[0].primary.resume()
            status.wait_for("/readyz", 200)


def test_while_it_drains_it_is_alive_and_not_ready(fleet: Fleet) -> None:
    with status_of(fleet, drain_s=3600.0) as status:
        status.wait_for("/readyz", 200)
        (worker,) = [pid for pid, _ in family(status.proxy.pid) if "--index" in command_line(pid)]
        os.kill(worker, signal.SIGSTOP)  # so that it cannot end
        os.kill(status.proxy.pid, signal.SIGTERM)
        assert status.wait_for("/readyz", 503).body == {"status": "draining"}
        assert status.statuses(*PROCESS) == [200, 200]
        os.kill(worker, signal.SIGCONT)
        assert status.proxy.wait() == 0
        with pytest.raises(ConnectionRefusedError):
            status.get("/livez")


def test_a_connection_that_stays_open_does_not_keep_it_from_ending(fleet: Fleet) -> None:
    with status_of(fleet) as status, socket.create_connection((HOST, status.port)) as idle:
        status.wait_for("/readyz", 200)
        idle.sendall(b"GET /livez HTTP/1.1\r\n")  # and never the rest
        os.kill(status.proxy.pid, signal.SIGTERM)
        assert status.proxy.wait() == 0


def test_what_is_not_there_is_404_and_what_would_change_something_405(status: Status) -> None:
    assert status.statuses("/", "/shards/s0") == [404, 404]
    assert status.get("/shards", "POST").status == 405
    assert status.get("/readyz", "HEAD").status == 200


def test_a_port_that_is_taken_is_said_in_one_line(fleet: Fleet) -> None:
    with socket.create_server((HOST, 0)) as taken:
        listen = f"{HOST}:{taken.getsockname()[1]}"
        with reserve_port() as keeper:
            proxy = Proxy(fleet, keeper, http={"listen": listen})
            proxy.launch()
            assert proxy.wait() == 69
    assert proxy.tail() == (
        f"pyproxy: http.listen: expected a free address of this machine, got {listen}: address already in use"
    )


# --- pyproxy status ---------------------------------------------------------------------------------------------------


def shown(*options: str) -> "subprocess.CompletedProcess[str]":
    line = [sys.executable, "-m", "pyproxy", "status", *options]
    surroundings = os.environ | {"http_proxy": f"http://{HOST}:1"}
    return subprocess.run(line, capture_output=True, text=True, timeout=30, check=False, env=surroundings)


def test_the_command_shows_a_table_of_the_shards(fleet: Fleet, status: Status) -> None:
    ended = shown("--config", str(status.proxy.config))
    assert (ended.returncode, ended.stderr) == (0, "")
    head, *rows = ended.stdout.splitlines()
    assert head.startswith("SHARD ")
    assert [row.split()[:3] for row in rows] == [[s.name, s.primary.address, "up"] for s in fleet.shards]


def test_the_command_shows_an_alarm_for_a_dead_shard_and_says_so_by_its_status(healed: Fleet, status: Status) -> None:
    healed.shards[1].primary.kill()
    status.wait_for("/shards", 503)
    ended = shown("--url", f"http://{HOST}:{status.port}/")
    assert ended.returncode == 1
    assert ended.stdout.splitlines()[-1].startswith("ALARM s1: down: ")


def test_the_command_says_in_one_line_that_nobody_answers() -> None:
    with reserve_port() as silent:
        url = urllib.parse.urlunsplit(("http", f"{HOST}:{silent.getsockname()[1]}", "", "", ""))
        ended = shown("--url", url)
    assert (ended.returncode, ended.stdout) == (69, "")
    assert ended.stderr.startswith(f"pyproxy: {url}: expected a pyproxy with [http] listen, got: ")
    assert len(ended.stderr.splitlines()) == 1


# --- a primary that answers, and refuses writes -----------------------------------------------------------------------


def refusing(status: Status, index: int, state: str) -> dict[str, Any]:
    """What /shards says of this shard once it says that, after all that must go with it."""
    name = f"s{index}"
    wait_for_line(status.proxy, rf"\+{state} shard={name} ")
    for path in SHARDS:
        assert 1 <= seconds(status.wait_for(path, 503)) <= 30
    assert list(status.get("/__heartbeat__").body["details"][name]["messages"]) == [state]
    shard: dict[str, Any] = next(each for each in status.get("/shards").body["shards"] if each["name"] == name)
    assert shard["state"] == state
    assert shard["alarms"][0] == f"{state}: {shard['error']}"
    assert status.statuses(*PROCESS, "/readyz") == [200] * 3  # its reads are served
    return shard


def test_a_primary_that_refuses_writes_for_want_of_replicas_is_503_until_it_takes_them(
    fleet: Fleet, status: Status
) -> None:
    primary = fleet.shards[1].primary
    primary.ask("CONFIG", "SET", "min-replicas-to-write", "1")
    try:
        said = refusing(status, 1, "noreplicas")
        assert said["error"] == "it has 0 replicas in step, and min-replicas-to-write wants more"
    finally:
        primary.ask("CONFIG", "SET", "min-replicas-to-write", "0")
    assert "Retry-After" not in status.wait_for("/__heartbeat__", 200).headers
    wait_for_line(status.proxy, r"-noreplicas shard=s1 ")


def test_so_is_one_with_some_replicas_that_needs_more_once_a_write_was_refused() -> None:
    with Fleet(shards=1, replicas=1) as fleet, status_of(fleet) as status:
        status.wait_for("/__heartbeat__", 200)
        primary = fleet.shards[0].primary
        primary.ask("CONFIG", "SET", "min-replicas-to-write", "2")
        with Connection(status.proxy.port) as conn:
            wait_until(
                "the refusal",
                lambda: str(conn.ask("SET", "k", "v")).startswith("NOREPLICAS"),
                lambda: str(conn.ask("SET", "k", "v")),
            )
            refusing(status, 0, "noreplicas")
            primary.ask("CONFIG", "SET", "min-replicas-to-write", "0")
            status.wait_for("/__heartbeat__", 200)
            assert conn.ask("SET", "k", "v") == b"OK"


def test_a_primary_that_is_full_is_503_until_it_has_room_again(fleet: Fleet, status: Status) -> None:
    """It refuses values of 100 KB before all of its memory is in use, so INFO alone does not show it."""
    primary = fleet.shards[1].primary
    used = re.search(rb"used_memory:([0-9]+)", cast(bytes, primary.ask("INFO", "memory")))
    assert used is not None
    primary.ask("CONFIG", "SET", "maxmemory", int(used[1]) + (2 << 20))
    try:
        with Connection(status.proxy.port) as conn:
            keys = Keys(status.proxy).on(1, 40)
            answers = [conn.ask("SET", key, "x" * 100_000) for key in keys]
            assert str(answers[-1]).startswith("OOM ")
            said = refusing(status, 1, "oom")
            assert "and noeviction leaves nothing to evict" in said["error"]
            conn.ask("DEL", *keys)
            assert "Retry-After" not in status.wait_for("/__heartbeat__", 200).headers
            wait_for_line(status.proxy, r"-oom shard=s1 ")
    finally:
        primary.ask("CONFIG", "SET", "maxmemory", "0")
