import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from pyproxy.config import Config
from pyproxy.fleet import HOST, VARIABLE, ask, find_backend
from pyproxy.shard_map import Node
from tests.processes import Identity, command_line, family, session, wait_until_gone

SHARDS, REPLICAS, WORKERS, SENTINELS = 3, 1, 2, 3


@dataclass
class Demo:
    """A demo that runs: what it said, the port it named, and every process of it."""

    process: subprocess.Popen[str]
    lines: list[str]
    port: int
    processes: set[Identity]

    def pid_of(self, is_it: Callable[[list[str]], bool]) -> int:
        """The one of its processes whose command line is meant."""
        (found,) = [pid for pid, _ in self.processes if is_it(command_line(pid))]
        return found

    def config(self) -> Config:
        return Config.load(self.logs() / f"proxy-{self.port}.toml")

    def pid_of_server(self, node: Node) -> int:
        # a server shows its address in place of its arguments
        return self.pid_of(lambda command: str(node) in " ".join(command))

    def pid_of_the_first_primary(self) -> int:
        return self.pid_of_server(self.config().shards[0].primary)

    def pid_of_the_proxys_parent(self) -> int:
        return self.pid_of(lambda command: "serve" in command)

    def line(self, begin: str) -> str:
        """What stands behind those words at the beginning of a line."""
        return next(each.strip()[len(begin) :].strip() for each in self.lines if each.strip().startswith(begin))

    def says_next(self) -> str:
        """The line that it says after all those that came before."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def logs(self) -> Path:
        return Path(self.line("logs").split(",")[0])


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "pyproxy", "demo", *options]


@contextmanager
def demo(*more: str) -> Iterator[Demo]:
    options = ["--port", "0", "--shards", str(SHARDS), "--replicas", str(REPLICAS), "--workers", str(WORKERS)]
    options += more
    with subprocess.Popen(command(*options), stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            lines = []
            for line in process.stdout:
                lines.append(line.rstrip("\n"))
                if line.startswith("Ctrl-C"):
                    break
            listening = re.search(rf"listening +{re.escape(HOST)}:(\d+)", "\n".join(lines))
            assert listening, f"no address in {lines}"
            yield Demo(process, lines, int(listening[1]), family(process.pid))
        finally:
            process.kill()


@pytest.fixture(scope="module")
def running() -> Iterator[Demo]:
    with demo() as started:
        yield started
    wait_until_gone(started.processes)
    shutil.rmtree(started.logs())


def test_it_says_what_runs_in_at_most_ten_lines(running: Demo) -> None:
    assert len(running.lines) <= 10
    begins = [each.split()[0] for each in running.lines]
    assert begins == ["pyproxy", "backends", "binary", "listening", "talk", "or,", "try", "logs", "left", "Ctrl-C"]
    assert running.line("backends") == f"{SHARDS} primaries, {SHARDS * REPLICAS} replicas"
    assert find_backend().version in running.line("binary")


def test_it_runs_its_servers_the_parent_and_the_workers_and_nothing_else(running: Demo) -> None:
    servers = SHARDS * (1 + REPLICAS)
    assert len(running.processes) == 1 + servers + 1 + WORKERS


def test_a_client_talks_through_the_port_it_names(running: Demo) -> None:
    with redis.Redis(port=running.port) as client:
        assert client.ping()
        keys = {f"key{number}": f"value{number}".encode() for number in range(30)}
        client.mset(keys)
        assert client.mget(list(keys)) == list(keys.values())


def test_without_redis_cli_the_line_it_prints_for_bash_works(running: Demo) -> None:
    said = subprocess.run(["bash", "-c", running.line("or, bash")], capture_output=True, timeout=10, check=True).stdout
    assert said == b"+OK\r\n$1\r\n1\r\n"


def test_the_status_is_at_the_url_it_names(running: Demo) -> None:
    with urllib.request.urlopen(running.line("listening").split("status: ")[1], timeout=10) as answer:
        assert len(json.load(answer)["shards"]) == SHARDS


def test_the_logs_are_where_it_says(running: Demo) -> None:
    logs = {each.name for each in running.logs().glob("*.log")}
    assert f"proxy-{running.port}.log" in logs
    assert {f"s{index}-primary.log" for index in range(SHARDS)} <= logs


@pytest.fixture(scope="module")
def after_kills() -> Iterator[tuple[Config, set[str]]]:
    """The servers of a demo where a primary was replaced, and where all of a shard were killed; what it said then."""
    with demo() as started:
        config = started.config()
        replaced, dead = config.shards[:2]
        kill = re.search(r"kill -9 (\d+), the primary of s0:", started.line("try"))
        assert kill
        os.kill(int(kill[1]), signal.SIGKILL)
        for node in (dead.primary, *dead.replicas):
            os.kill(started.pid_of_server(node), signal.SIGKILL)
        ask(replaced.replicas[0].port, "REPLICAOF", "NO", "ONE")
        yield config, {started.says_next() for _ in range(3)}
    wait_until_gone(started.processes)
    shutil.rmtree(started.logs())


def test_a_killed_primary_comes_back_as_a_replica_of_its_successor(after_kills: tuple[Config, set[str]]) -> None:
    config, lines = after_kills
    old, new = config.shards[0].primary, config.shards[0].replicas[0]
    assert f"s0: {old} was killed; back as a replica of {new}" in lines
    assert ask(old.port, "ROLE")[:3] == [b"slave", new.host.encode(), new.port]  # type: ignore[index]


def test_where_no_server_of_a_shard_is_left_nobody_comes_back(after_kills: tuple[Config, set[str]]) -> None:
    config, lines = after_kills
    away = "it stays away, as no server of its shard is left to copy"
    killed = (config.shards[1].primary, *config.shards[1].replicas)
    assert {f"s1: {node} was killed; {away}" for node in killed} < lines


def test_with_sentinels_they_choose_the_successor() -> None:
    with demo("--sentinel") as started:
        assert started.line("backends").endswith(f", {SENTINELS} sentinels")
        assert len(started.processes) == 1 + SHARDS * (1 + REPLICAS) + SENTINELS + 1 + WORKERS
        assert len(started.config().sentinel.nodes) == SENTINELS
        shard = started.config().shards[0]
        os.kill(started.pid_of_server(shard.primary), signal.SIGKILL)
        assert started.says_next() == f"s0: {shard.primary} was killed; back as a replica of {shard.replicas[0]}"
    wait_until_gone(started.processes)
    shutil.rmtree(started.logs())


def test_asked_to_split_transactions_it_runs_them_over_all_shards() -> None:
    with demo("--transactions", "split") as started:
        with redis.Redis(port=started.port) as client, client.pipeline(transaction=True) as pipeline:
            for number in range(30):
                pipeline.set(f"key{number}", number, ex=60)
            assert pipeline.execute() == [True] * 30
        os.killpg(started.process.pid, signal.SIGINT)
        assert started.process.wait(20) == 0


def test_asked_to_emulate_it_serves_commands_over_several_shards() -> None:
    with demo("--cross-shard", "emulate") as started:
        with redis.Redis(port=started.port) as client:
            for number in range(30):
                client.sadd(f"key{number}", number)
            assert len(client.sunion([f"key{number}" for number in range(30)])) == 30
        os.killpg(started.process.pid, signal.SIGINT)
        assert started.process.wait(20) == 0


def test_without_replicas_it_serves_and_nobody_is_promoted() -> None:
    with demo("--replicas", "0") as started:
        assert started.line("backends") == f"{SHARDS} primaries, 0 replicas"
        with redis.Redis(port=started.port) as client:
            assert client.set("key", "value")
        os.killpg(started.process.pid, signal.SIGINT)
        assert started.process.wait(20) == 0


def test_ctrl_c_leaves_no_process_and_no_file_behind() -> None:
    with demo() as started:
        os.kill(started.pid_of_the_first_primary(), signal.SIGSTOP)
        os.killpg(started.process.pid, signal.SIGINT)  # as the terminal does
        assert started.process.wait(20) == 0
        wait_until_gone(started.processes)
        assert not started.logs().exists()


def test_ctrl_c_ends_it_at_once_although_a_client_is_connected() -> None:
    with demo() as started, socket.create_connection((HOST, started.port)) as idle:
        os.killpg(started.process.pid, signal.SIGINT)
        assert started.process.wait(20) == 0
        assert idle.recv(1) == b""  # closed by FIN; a reset would raise
        wait_until_gone(started.processes)


def test_a_killed_launcher_leaves_no_process_behind_even_where_a_server_is_stopped() -> None:
    with demo() as started:
        os.kill(started.pid_of_the_first_primary(), signal.SIGSTOP)
        started.process.kill()
        wait_until_gone(started.processes)
    shutil.rmtree(started.logs())


AT_A_FORK = """if True:
    import os, signal, sys
    from pyproxy.cli import main
    number, nth = signal.Signals[sys.argv.pop(1)], int(sys.argv.pop(1))
    forks = 0
    def at_fork():
        global forks
        forks += 1
        if forks == nth:
            signal.raise_signal(number)
    os.register_at_fork(after_in_parent=at_fork)
    sys.exit(main())
"""
"""The demo, which gets a signal while its nth process is being started, where Python drops what a handler raises."""

WHILE_IT_IMPORTS = """if True:
    import runpy, signal, sys
    class Interrupts:
        def find_spec(self, name, path=None, target=None):
            if name == "pyproxy.config":
                signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background may be started without
    sys.meta_path.insert(0, Interrupts())
    runpy.run_module("pyproxy", run_name="__main__", alter_sys=True)
"""

NEVER_ANSWERS = """#!/bin/sh
[ "$1" != --version ] || { echo "Valkey server v=9.9.9 sha=0"; exit; }
kill -INT $PPID
exec sleep 1000
"""


def outcome(script: str, directory: Path, *arguments: str, server: str = "") -> tuple[int, str]:
    """How a demo ended that was started by this script, and what it said. It must leave no process and no file."""
    small = ("demo", "--port", "0", "--shards", "1", "--replicas", "1", "--workers", "1")
    environment = os.environ | {"TMPDIR": str(directory)} | ({VARIABLE: server} if server else {})
    line = [sys.executable, "-c", script, *arguments, *small]
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, env=environment
    ) as process:
        try:
            output, _ = process.communicate(timeout=30)
        finally:
            process.kill()
    wait_until_gone(session(process.pid))
    assert list(directory.iterdir()) == []
    return process.returncode, output


@pytest.mark.parametrize(
    ("number", "nth"), [("SIGINT", 1), ("SIGINT", 2), ("SIGINT", 3), ("SIGTERM", 2), ("SIGHUP", 2)]
)
def test_a_signal_while_a_process_is_being_started_ends_it(tmp_path: Path, number: str, nth: int) -> None:
    assert outcome(AT_A_FORK, tmp_path, number, str(nth)) == (0, "")


def test_ctrl_c_ends_it_although_a_server_never_answers(tmp_path: Path) -> None:
    server = tmp_path / "server"
    server.write_text(NEVER_ANSWERS)
    server.chmod(0o755)
    (tmp_path / "temporary").mkdir()
    program = "import sys; from pyproxy.cli import main; sys.exit(main())"
    assert outcome(program, tmp_path / "temporary", server=str(server)) == (0, "")


def test_ctrl_c_before_it_has_begun_ends_it_without_a_traceback(tmp_path: Path) -> None:
    assert outcome(WHILE_IT_IMPORTS, tmp_path) == (-signal.SIGINT, "")


def test_it_ends_with_an_error_when_the_proxy_ends_by_itself() -> None:
    with demo() as started:
        os.kill(started.pid_of_the_proxys_parent(), signal.SIGKILL)
        assert started.process.wait(20) == 1
        wait_until_gone(started.processes)
    shutil.rmtree(started.logs())


def test_a_busy_port_is_one_line_and_no_process() -> None:
    with socket.create_server((HOST, 0)) as busy:
        port = busy.getsockname()[1]
        ended = subprocess.run(command("--port", str(port)), capture_output=True, text=True, timeout=20, check=False)
    assert ended.returncode == 1
    assert ended.stdout == ""
    problem = f"cannot listen on {HOST}:{port}: Address already in use; try another --port, or --port 0"
    assert ended.stderr == f"pyproxy demo: {problem}\n"


@pytest.mark.parametrize("options", [("--shards", "0"), ("--port", "65536"), ("--replicas", "-1"), ("--workers", "x")])
def test_a_number_out_of_range_is_refused_with_the_range(options: tuple[str, str]) -> None:
    ended = subprocess.run(command(*options), capture_output=True, text=True, timeout=20, check=False)
    assert ended.returncode == 2
    assert re.search(rf"{options[0]}: expected a number from \d+ to \d+, got '{re.escape(options[1])}'", ended.stderr)
