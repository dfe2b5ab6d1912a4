"""`pyproxy demo --import` tells the truth, ends by itself or by Ctrl-C, and leaves nothing."""

import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyproxy.demo_load import CLIENTS, COUNTERS, Load, different, fill
from pyproxy.fleet import Fleet, ask, wait_until
from tests.processes import session, wait_until_gone

KEYS, ADDED = 10_000, 3
LONG_S = 90.0
"""How long all of it may take on a machine that does much else."""


@contextmanager
def demo(directory: Path, stdout: int = subprocess.PIPE, keys: int = KEYS) -> Iterator[subprocess.Popen[str]]:
    """It must leave no process and no file."""
    line = [sys.executable, "-m", "pyproxy", "demo", "--import", "--port", "0", "--workers", "2"]
    line += ["--keys", str(keys), "--shards", str(ADDED)]
    environment = os.environ | {"TMPDIR": str(directory)}
    with subprocess.Popen(
        line, stdout=stdout, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.kill()
    wait_until_gone(session(process.pid))
    assert list(directory.iterdir()) == []


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The lines of a demo that has ended by itself."""
    with demo(tmp_path_factory.mktemp("told")) as process:
        output, wrong = process.communicate(timeout=LONG_S)
    assert (process.returncode, wrong) == (0, ""), output
    return output.splitlines()


def words(told: list[str], begin: str) -> list[str]:
    """What stands behind that word, of each line that begins with it."""
    return [line.strip()[len(begin) :].strip() for line in told if line.strip().startswith(begin)]


def test_it_tells_the_story_in_its_order(told: list[str]) -> None:
    begins = [line.split()[0] for line in told if not line.startswith(" " * 4)]
    parts = ["server", "filled", "proxy", "clients", "added", "plan", "start", "reading"]
    assert begins == ["pyproxy", *parts, "moved", "clients", "held", "errors", "keys"]


def test_no_client_gets_a_wrong_answer_and_no_key_another_value(told: list[str]) -> None:
    (errors,) = words(told, "errors")
    assert re.fullmatch(r"0 in [\d,]+ answers; 0 of all keys are not as they were written", errors)


def test_every_key_is_on_one_server(told: list[str]) -> None:
    (keys,) = words(told, "keys")
    counts = dict(zip(*[iter(keys.replace(",", "").split())] * 2, strict=True))
    assert list(counts) == ["s0", *(f"n{index}" for index in range(ADDED))]
    assert KEYS < sum(map(int, counts.values())) <= KEYS + CLIENTS * COUNTERS
    assert min(map(int, counts.values())) > KEYS / (ADDED + 1) / 2


def test_the_clients_are_measured_before_and_during(told: list[str]) -> None:
    _, before = words(told, "clients")
    (during,) = words(told, "during:")
    for figures in (before.removeprefix("before: "), during):
        found = re.fullmatch(r"([\d,]+) requests/s, p99 ([\d.]+) ms, longest ([\d,]+) ms", figures)
        assert found and int(found[1].replace(",", "")) > 0 and float(found[2]) > 0, figures


def test_where_there_is_no_terminal_each_line_of_the_moves_says_something_new(told: list[str]) -> None:
    shown = words(told, "copied")
    assert len(shown) == len(set(shown)) > 1
    assert shown[-1] == f"100%, handed over {ADDED} of {ADDED}, cleared {ADDED} of {ADDED}"


def test_in_a_terminal_the_bars_of_the_moves_are_drawn_in_place(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    try:
        with demo(tmp_path, theirs, keys=2000) as process:
            os.close(theirs)
            seen = b""
            while b"reading" not in seen:
                seen += os.read(ours, 1 << 16)
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(LONG_S) == 0
    finally:
        os.close(ours)
    assert f"\x1b[{ADDED + 1}A".encode() in seen  # back to the first line of the bars
    assert re.search(rb"m1  s0 -> n\d  \[#{20}\]  done", seen)


@pytest.mark.parametrize("after", ["pyproxy", "server", "filled", "proxy", "clients", "start", "reading"])
def test_ctrl_c_ends_it_wherever_it_is(tmp_path: Path, after: str) -> None:
    with demo(tmp_path) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.split()[0] == after:
                break
        os.killpg(process.pid, signal.SIGINT)  # as the terminal does
        output, wrong = process.communicate(timeout=LONG_S)
        assert (process.returncode, wrong) == (0, ""), output


# --- its witnesses ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet(1, 0) as fleet:
        yield fleet


@pytest.fixture
def port(fleet: Fleet) -> int:
    """Of a server without keys."""
    port = fleet.shards[0].primary.port
    ask(port, "FLUSHALL")
    return port


@pytest.mark.parametrize("lie", [("SET", "count:0:7", "1000000"), ("FLUSHALL",)])
def test_a_client_that_gets_a_wrong_answer_says_so(port: int, lie: tuple[str, ...]) -> None:
    fill(port, 100)
    with Load(port, 100).running() as load:
        wait_until("answers", lambda: load.answers > 200, lambda: f"{load.answers}", LONG_S)
        assert load.wrong == []
        ask(port, *lie)
        wait_until("a complaint", lambda: bool(load.wrong), lambda: f"{load.answers} answers, nothing wrong")
    assert "was answered with" in load.wrong[0]


def test_a_counter_that_went_back_is_counted(port: int) -> None:
    fill(port, 100)
    with Load(port, 100).running() as load:
        wait_until("answers", lambda: load.answers > 200, lambda: f"{load.answers}", LONG_S)
    assert load.counted_wrong() == 0
    ask(port, "FLUSHALL")
    assert load.counted_wrong() > CLIENTS


def test_keys_that_are_gone_or_changed_are_counted(port: int) -> None:
    fill(port, 1000)
    assert different(port, 1000) == 0
    ask(port, "SET", "key:17", "another")
    ask(port, "DEL", "key:999")
    assert different(port, 1000) == 2
