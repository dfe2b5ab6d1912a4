import fcntl
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator

import pytest

from pyproxy.fleet import HOST, Fleet, Proxy
from tests.waiting import readable_within

pytestmark = pytest.mark.skipif(shutil.which("redis-cli") is None, reason="redis-cli is not installed")

PATIENCE_S = 15.0


def cli(port: int, *words: str, stdin: bytes = b"") -> str:
    """What redis-cli prints; it must end with 0."""
    command = ["redis-cli", "-h", HOST, "-p", str(port), *words]
    ended = subprocess.run(command, input=stdin, capture_output=True, timeout=30, check=False)
    assert (ended.returncode, ended.stderr) == (0, b""), ended
    return ended.stdout.decode()


# --- scripted ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def port(proxy10: Proxy) -> int:
    assert cli(proxy10.port, "flushall") == "OK\n"
    return proxy10.port


def test_a_command_on_its_command_line_is_answered(port: int) -> None:
    assert cli(port, "set", "a", "1") == "OK\n"
    assert cli(port, "get", "a") == "1\n"


def test_keys_of_all_shards_are_one_answer(port: int) -> None:
    pairs = [word for number in range(20) for word in (f"k{number}", str(number))]
    assert cli(port, "mset", *pairs) == "OK\n"
    assert cli(port, "mget", *pairs[::2]).split() == pairs[1::2]
    assert cli(port, "del", *pairs[::2]) == "20\n"


def test_an_error_is_printed_and_the_commands_behind_it_run(port: int) -> None:
    said = cli(port, stdin=b"set a 1\nlpush a x\nget a\n").splitlines()
    assert said[0] == "OK"
    assert said[1].startswith("WRONGTYPE ")
    assert said[-1] == "1"


def test_the_last_argument_is_read_from_standard_input(port: int) -> None:
    value = "every byte \t but NUL " * 5000
    assert cli(port, "-x", "set", "a", stdin=value.encode()) == "OK\n"
    assert cli(port, "get", "a") == value + "\n"


def test_the_option_for_a_database_works_in_that_database(port: int, fleet10: Fleet) -> None:
    assert cli(port, "-n", "5", "set", "a", "five") == "OK\n"
    assert cli(port, "get", "a") == "\n"
    assert cli(port, "-n", "5", "get", "a") == "five\n"
    held = [cli(shard.primary.port, "-n", "5", "get", "a") for shard in fleet10.shards]
    assert sorted(held) == ["\n"] * 9 + ["five\n"]


def test_the_option_for_resp3_gets_maps_and_doubles(port: int) -> None:
    cli(port, "hset", "h", "f", "v")
    cli(port, "zadd", "z", "1.5", "m")
    assert cli(port, "-3", "--no-raw", "hgetall", "h") == '1# "f" => "v"\n'
    assert cli(port, "-3", "--no-raw", "zscore", "z", "m") == "(double) 1.5\n"
    assert cli(port, "--no-raw", "hgetall", "h") == '1) "f"\n2) "v"\n'


def test_a_pipe_of_raw_commands_is_loaded_whole(port: int) -> None:
    count = 5000
    commands = (b"*3\r\n$3\r\nSET\r\n$%d\r\nk%d\r\n$1\r\nx\r\n" % (len(str(i)) + 1, i) for i in range(count))
    assert f"errors: 0, replies: {count}\n" in cli(port, "--pipe", stdin=b"".join(commands))
    assert cli(port, "dbsize") == f"{count}\n"


def test_a_pipe_counts_the_errors_of_its_commands(port: int) -> None:
    commands = b"SET a 1\r\nLPUSH a x\r\nSET b 1\r\n"
    command = ["redis-cli", "-h", HOST, "-p", str(port), "--pipe"]
    ended = subprocess.run(command, input=commands, capture_output=True, timeout=30, check=False)
    assert ended.returncode == 1
    assert b"errors: 1, replies: 3\n" in ended.stdout
    assert cli(port, "get", "b") == "1\n"


def test_stat_shows_the_keys_of_all_shards(port: int) -> None:
    keys = [word for number in range(40) for word in (f"k{number}", "x")]
    cli(port, "mset", *keys)
    with Terminal(["redis-cli", "-h", HOST, "-p", str(port), "--stat", "-i", "0.05"]) as stat:
        stat.wait_for(r"(?m)^40 +\d+(\.\d+)?[KMG] +\d+ +0 +\d+ \(\+\d+\) +\d+")


# --- at a terminal ----------------------------------------------------------------------------------------------------

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


class Terminal:
    """A program at a pseudo-terminal of 200 columns; what it shows is kept without escapes and carriage returns."""

    def __init__(self, command: list[str]) -> None:
        self._seen = ""
        self._shown_before = 0
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
            os.environ.update(TERM="xterm", REDISCLI_HISTFILE="/dev/null", REDISCLI_RCFILE="/dev/null")
            os.execvp(command[0], command)

    def type(self, text: str) -> None:
        """Keys, as they are; what is shown from now on is looked at afresh."""
        self._shown_before = len(self._seen)
        os.write(self._fd, text.encode())

    def wait_for_answer(self, pattern: str) -> None:
        """Return once the pattern and the next prompt are shown; keys typed before the prompt would be lost."""
        self.wait_for(rf"(?s){pattern}.*:\d+(\[\d+\])?> $")

    def wait_for(self, pattern: str) -> None:
        """Return once the pattern stands in what was shown since the last keys."""
        deadline = time.monotonic() + PATIENCE_S
        while not re.search(pattern, self.shown):
            readable = readable_within(self._fd, deadline - time.monotonic())
            assert readable, f"waited {PATIENCE_S:g} s for {pattern!r}; shown: {self.shown!r}"
            self._seen += os.read(self._fd, 65536).decode(errors="replace")

    @property
    def shown(self) -> str:
        return _ESCAPES.sub("", self._seen[self._shown_before :])

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._fd)


def version() -> tuple[int, ...]:
    said = subprocess.run(["redis-cli", "--version"], capture_output=True, text=True, timeout=30, check=True).stdout
    return tuple(map(int, re.findall(r"\d+", said)[:2]))  # redis-cli 7.0.15


@pytest.fixture
def terminal(port: int) -> Iterator[Terminal]:
    with Terminal(["redis-cli", "-h", HOST, "-p", str(port)]) as started:
        started.wait_for(rf"{re.escape(HOST)}:{port}> $")
        yield started


def test_at_a_terminal_commands_are_answered(terminal: Terminal) -> None:
    terminal.type("set greeting hello\r")
    terminal.wait_for_answer(r"\nOK\n")
    terminal.type("get greeting\r")
    terminal.wait_for_answer(r'\n"hello"\n')


def test_at_a_terminal_select_shows_in_the_prompt(terminal: Terminal, port: int) -> None:
    terminal.type("select 5\r")
    terminal.wait_for(rf":{port}\[5\]> $")


def test_at_a_terminal_hello_3_shows_maps(terminal: Terminal) -> None:
    terminal.type("hset h f v\r")
    terminal.wait_for_answer(r"\(integer\) 1\n")
    terminal.type("hello 3\r")
    terminal.wait_for_answer(r'"proto" => \(integer\) 3')
    terminal.type("hgetall h\r")
    terminal.wait_for_answer(r'1# "f" => "v"\n')


def test_at_a_terminal_a_refused_command_is_an_error_and_the_next_is_answered(terminal: Terminal) -> None:
    terminal.type("debug sleep 0\r")
    terminal.wait_for_answer(r"\(error\) ERR command 'debug' is not served by this proxy: ")
    terminal.type("ping\r")
    terminal.wait_for_answer(r"\nPONG\n")


needs_command_docs = pytest.mark.skipif(
    shutil.which("redis-cli") is not None and version() < (7, 0), reason="redis-cli asks for COMMAND DOCS since 7.0"
)


@needs_command_docs
def test_at_a_terminal_the_hints_are_those_of_the_proxys_commands(terminal: Terminal) -> None:
    # DELIFEQ is of Valkey 9: a redis-cli of Redis knows it from COMMAND DOCS only
    terminal.type("delifeq ")
    terminal.wait_for("delifeq key value")


@needs_command_docs
def test_at_a_terminal_help_comes_from_command_docs(terminal: Terminal) -> None:
    terminal.type("help delifeq\r")
    terminal.wait_for(r"(?s)DELIFEQ key value\n +summary: .*since: 9\.")
