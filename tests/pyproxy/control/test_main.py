import os
import re
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyproxy.config import Config
from pyproxy.fleet import HOST, Fleet, ask, wait_until
from pyproxy.hashing import slot
from pyproxy.shard_map import ShardMap
from tests.processes import Identity, command_line, family, wait_until_gone


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet(shards=2, replicas=0) as fleet:
        yield fleet


class Serving:
    """`pyproxy serve` as a process, and what it says."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.process = process
        self._log = log

    def said(self) -> str:
        return self._log.read_text()

    def wait_for(self, pattern: str) -> "re.Match[str]":
        """The first place in what it said; FleetError with all it said if it does not come."""
        wait_until(f"it to say {pattern!r}", lambda: bool(re.search(pattern, self.said())), self.said, timeout=30.0)
        found = re.search(pattern, self.said())
        assert found
        return found

    def workers(self) -> list[int]:
        """Their pids, in the order of their indexes."""
        lines = {pid: command_line(pid) for pid, _ in family(self.process.pid)}
        indexed = [(line[line.index("--index") + 1], pid) for pid, line in lines.items() if "--index" in line]
        return [pid for _, pid in sorted(indexed)]


@contextmanager
def serving(config: str, directory: Path, before_exec: Callable[[], None] | None = None) -> Iterator[Serving]:
    """Runs until the block ends; then nothing of it is left, or the test fails."""
    (directory / "pyproxy.toml").write_text(config)
    log = directory / "log"
    with log.open("wb") as stderr:
        line = [sys.executable, "-m", "pyproxy", "serve", str(directory / "pyproxy.toml")]
        process = subprocess.Popen(line, stderr=stderr, stdin=subprocess.DEVNULL, preexec_fn=before_exec)
    try:
        yield Serving(process, log)
    finally:
        processes = family(process.pid)
        for pid, _ in processes:
            os.kill(pid, signal.SIGKILL)
        process.wait()
        wait_until_gone(processes)


def ended(run: Serving) -> int:
    return run.process.wait(timeout=30.0)


def swapped(config: str) -> str:
    """The same configuration with the primaries of its two shards exchanged."""
    first, second = re.findall('primary = (".*?")', config)
    return config.replace(first, "?").replace(second, first).replace("?", second)


# --- the start --------------------------------------------------------------------------------------------------------


def test_it_says_where_it_listens_and_when_every_worker_is_ready(fleet: Fleet, tmp_path: Path) -> None:
    with serving(fleet.config(workers=2), tmp_path) as run:
        listening = run.wait_for(r"pyproxy \S+ listening on (127\.0\.0\.1:[0-9]+), 2 workers, 2 shards\n")
        run.wait_for(rf"\n\+ready listen={re.escape(listening[1])} workers=2 shards=2 at=")
        assert run.said().count("+worker-ready") == 2
        assert ask(int(listening[1].rpartition(":")[2]), "PING") == b"PONG"


def test_without_a_number_there_is_a_worker_for_each_core(fleet: Fleet, tmp_path: Path) -> None:
    one = {min(os.sched_getaffinity(0))}
    with serving(fleet.config(workers=0), tmp_path, lambda: os.sched_setaffinity(0, one)) as run:
        run.wait_for(", 1 worker, 2 shards")
        run.wait_for(r"\+ready ")
        assert len(run.workers()) == 1


def test_a_port_that_is_taken_is_said_in_one_line(fleet: Fleet, tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as taken:
        listen = f"{HOST}:{taken.getsockname()[1]}"
        with serving(fleet.config(listen), tmp_path) as run:
            assert ended(run) == 69
            assert run.said() == (
                f"pyproxy: listen: expected a free address of this machine, got {listen}: address already in use\n"
            )


def test_swapped_endpoints_are_refused_with_shard_node_and_owner(fleet: Fleet, tmp_path: Path) -> None:
    config = swapped(fleet.config())
    first, second = (live.primary.address for live in fleet.shards)
    owns = ShardMap(1, Config.parse(fleet.config().encode()).shards).shards[0].owns
    for key in [key for key in map(str, range(100)) if owns(slot(key.encode()))]:
        fleet.shards[0].primary.ask("SET", key, "x")
    try:
        with serving(config, tmp_path) as run:
            assert ended(run) == 78
            said = run.said().splitlines()[-1]
            head = f"pyproxy: shards: expected keys of its own on each primary, got: shard s1 ({first}) holds "
            assert said.startswith(head)
            assert f", which belongs to shard s0 ({second}); if they are, set accept_misplaced of the shard;" in said
            assert "+worker-start" not in run.said()
        accepting = config.replace('name = "s1"', 'name = "s1"\naccept_misplaced = true')
        with serving(accepting, tmp_path) as run:
            run.wait_for(r"\+ready ")
            assert "+stray-keys shard=s1 " in run.said()
    finally:
        fleet.shards[0].primary.ask("FLUSHALL")


def test_a_key_that_a_script_did_not_declare_keeps_no_shard_from_being_served(fleet: Fleet, tmp_path: Path) -> None:
    """Neither now nor after a restart."""
    script = "for i=1,40 do redis.call('set', 'job:'..i, 1) end"
    tags = {shard: _tag(fleet, shard.name) for shard in fleet.shards}
    for shard, tag in tags.items():
        for number in range(100):
            shard.primary.ask("SET", f"{{{tag}}}{number}", "x")
    fleet.shards[0].primary.ask("EVAL", script, 0)
    try:
        for _ in range(2):
            with serving(fleet.config(), tmp_path) as run:
                port = int(run.wait_for(r"listening on 127\.0\.0\.1:([0-9]+)")[1])
                run.wait_for(r"\+ready ")
                assert [ask(port, "SET", f"{{{tag}}}", "y") for tag in tags.values()] == [b"OK"] * len(tags)
    finally:
        for shard in fleet.shards:
            shard.primary.ask("FLUSHALL")


def _tag(fleet: Fleet, name: str) -> str:
    """A hash tag of this shard."""
    shards = ShardMap(1, Config.parse(fleet.config().encode()).shards)
    return next(tag for tag in map("t{}".format, range(1000)) if shards.shard_of(tag.encode()).name == name)


def test_a_primary_that_is_down_at_the_start_keeps_nobody_from_being_served(fleet: Fleet, tmp_path: Path) -> None:
    config = fleet.config().replace(fleet.shards[0].primary.address, f"{HOST}:1")
    with serving(config, tmp_path) as run:
        port = int(run.wait_for(r"listening on 127\.0\.0\.1:([0-9]+)")[1])
        assert '+sdown shard=s0 node=127.0.0.1:1 role=master error="connection refused"' in run.said()
        assert ask(port, "PING") == b"PONG"


def test_the_limit_of_open_files_is_raised_as_far_as_it_may_be(fleet: Fleet, tmp_path: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with serving(fleet.config(), tmp_path, lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))) as run:
        run.wait_for(r"\+ready ")
        for pid in (run.process.pid, *run.workers()):
            assert re.search(rf"Max open files +{hard} +{hard}", Path(f"/proc/{pid}/limits").read_text())


def test_more_clients_than_files_may_be_open_are_refused(fleet: Fleet, tmp_path: Path) -> None:
    with serving(fleet.config(), tmp_path, lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))) as run:
        assert ended(run) == 78
        assert run.said() == (
            "pyproxy: limits.max_clients: expected at most 894, as 1024 files may be open (ulimit -Hn), got 10000\n"
        )


# --- the life ---------------------------------------------------------------------------------------------------------


def test_a_worker_that_is_killed_is_replaced_and_the_other_stays(fleet: Fleet, tmp_path: Path) -> None:
    with serving(fleet.config(workers=2), tmp_path) as run:
        run.wait_for(r"\+ready ")
        dead, stays = run.workers()
        os.kill(dead, signal.SIGKILL)
        run.wait_for(r'\+worker-death index=0 status="signal 9"')
        run.wait_for(rf"(?s)\+worker-death.*\+worker-ready index=0 pid=(?!{dead} )")
        assert run.workers()[1] == stays


def test_workers_end_when_their_parent_is_killed(fleet: Fleet, tmp_path: Path) -> None:
    with serving(fleet.config(workers=2), tmp_path) as run:
        run.wait_for(r"\+ready ")
        workers = {process for pid in run.workers() for process in family(pid)}
        run.process.kill()
        wait_until_gone(workers)


# --- the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_signal_drains_and_leaves_nothing(number: signal.Signals, fleet: Fleet, tmp_path: Path) -> None:
    with serving(fleet.config(workers=2), tmp_path) as run:
        run.wait_for(r"\+ready ")
        processes = family(run.process.pid)
        assert len(processes) == 3
        run.process.send_signal(number)
        assert ended(run) == 0
        wait_until_gone(processes)
        assert "Traceback" not in run.said()
        assert f"+drain signal={number.name} " in run.said()


def test_a_second_interrupt_ends_all_at_once(fleet: Fleet, tmp_path: Path) -> None:
    with draining(fleet, tmp_path) as (run, processes):
        run.process.send_signal(signal.SIGINT)
        run.wait_for(r"\+signal-ignored signal=SIGINT ")
        run.process.send_signal(signal.SIGINT)
        assert ended(run) == 130
        wait_until_gone(processes)


def test_no_other_second_signal_cuts_the_drain(fleet: Fleet, tmp_path: Path) -> None:
    """Whoever ends services sends SIGTERM again, and nobody means to reset clients by it."""
    with draining(fleet, tmp_path) as (run, processes):
        for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGTERM):
            run.process.send_signal(number)
            run.wait_for(rf"\+signal-ignored signal={number.name} ")
        assert family(run.process.pid) == processes
        os.kill(run.workers()[0], signal.SIGCONT)
        assert ended(run) == 0


@contextmanager
def draining(fleet: Fleet, tmp_path: Path) -> Iterator[tuple[Serving, set[Identity]]]:
    """Since a SIGTERM, and it does not come to an end; with its processes."""
    with serving(fleet.config(workers=2, timeouts={"drain_s": 3600.0}), tmp_path) as run:
        run.wait_for(r"\+ready ")
        stopped, drained = run.workers()
        os.kill(stopped, signal.SIGSTOP)  # so that it cannot drain
        run.process.send_signal(signal.SIGTERM)
        run.wait_for(r"\+drain signal=SIGTERM ")
        # what ends has no arguments any more a moment before it is dead: asked for by its number, not by its arguments
        wait_until("the other worker to end", lambda: drained not in dict(family(run.process.pid)), run.said)
        yield run, family(run.process.pid)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_signals_that_mean_a_reload_elsewhere_end_nothing(number: signal.Signals, fleet: Fleet, tmp_path: Path) -> None:
    with serving(fleet.config(workers=2), tmp_path) as run:
        listening = run.wait_for(r"pyproxy \S+ listening on 127\.0\.0\.1:([0-9]+), ")
        run.wait_for(r"\+ready ")
        processes = family(run.process.pid)
        for pid, _ in processes:
            os.kill(pid, number)
        run.wait_for(rf"\+signal-ignored signal={number.name} ")
        for index in (0, 1):
            run.wait_for(rf"\+signal-ignored index={index} signal={number.name} ")
        assert ask(int(listening[1]), "PING") == b"PONG"
        assert family(run.process.pid) == processes


def test_a_worker_ends_with_its_parent_and_not_by_a_signal_to_the_whole_service(fleet: Fleet, tmp_path: Path) -> None:
    """As systemd sends it: to every process. The parent has its workers drain."""
    with serving(fleet.config(workers=2), tmp_path) as run:
        run.wait_for(r"\+ready ")
        processes = family(run.process.pid)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            for index, pid in enumerate(run.workers()):
                os.kill(pid, number)
                run.wait_for(rf"\+signal-ignored index={index} signal={number.name} ")
        assert family(run.process.pid) == processes
        run.process.terminate()
        assert ended(run) == 0


def test_a_worker_that_does_not_drain_is_killed_and_that_is_an_orderly_end(fleet: Fleet, tmp_path: Path) -> None:
    with serving(fleet.config(timeouts={"drain_s": 0.1}), tmp_path) as run:
        run.wait_for(r"\+ready ")
        processes = family(run.process.pid)
        os.kill(run.workers()[0], signal.SIGSTOP)
        run.process.terminate()
        assert ended(run) == 0
        wait_until_gone(processes)
        assert "+worker-kill index=0 " in run.said()


def test_a_signal_during_the_first_check_ends_it(tmp_path: Path) -> None:
    with Fleet(shards=1, replicas=0) as hanging:
        hanging.shards[0].primary.pause()
        with serving(hanging.config(), tmp_path) as run:
            wait_until("it to begin", lambda: _catches_signals(run.process.pid), run.said)
            run.process.terminate()
            assert ended(run) == 0
            assert run.said().splitlines()[-1].startswith("+exit status=0 ")


def _catches_signals(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(re.findall(r"SigCgt:\s*([0-9a-f]+)", status)[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)
