"""The commands of operators: the server with handlers of the tests' own, and the command line as a process."""

import asyncio
import contextlib
import errno
import json
import os
import socket
import stat
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pyproxy import cli
from pyproxy.control.http import admin
from pyproxy.control.http.admin import (
    LINE_BYTES,
    Answer,
    Handlers,
    MoveCommand,
    MoveThrottle,
    Pause,
    Promote,
    Refused,
)
from tests.waiting import until

PATIENCE_S = 20.0


@dataclass
class Coordinator:
    """Does what is asked for at once, but waits with what is asked of s7 and refuses what is asked of s9."""

    asked: list[tuple[str, ...]] = field(default_factory=list)
    done: list[tuple[str, ...]] = field(default_factory=list)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)

    async def promote(self, shard: str, to: str) -> str:
        return await self._do("promote", shard, to)

    async def pause(self, shard: str) -> str:
        return await self._do("pause", shard)

    async def resume(self, shard: str) -> str:
        return await self._do("resume", shard)

    async def move(self, command: MoveCommand) -> str:
        return await self._do("move", type(command).__name__)

    async def _do(self, *what: str) -> str:
        self.asked.append(what)
        if what[1] == "s7":
            await self.go_on.wait()
        if what[1] == "s9":
            raise Refused("s9 has no replica that is fit")
        if what[1] == "s13":
            raise ZeroDivisionError
        self.done.append(what)
        return " ".join(what) + ": done"


@pytest.fixture
def path() -> Iterator[Path]:
    """Of the socket; a short one, wherever the tests' own directory is."""
    directory = Path(f"/tmp/pyproxy-admin-{os.getpid()}")
    directory.mkdir(mode=0o755)
    yield directory / "admin.sock"
    for left in directory.iterdir():
        left.unlink()
    directory.rmdir()


@contextlib.asynccontextmanager
async def served(path: Path) -> AsyncIterator[Coordinator]:
    coordinator = Coordinator()
    handlers = Handlers(coordinator.promote, coordinator.pause, coordinator.resume, coordinator.move)
    async with admin.serving(admin.bind(str(path)), handlers):
        yield coordinator


@pytest.fixture
async def coordinator(path: Path) -> AsyncIterator[Coordinator]:
    async with served(path) as coordinator:
        yield coordinator


@dataclass
class Operator:
    """One connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def read(self) -> object:
        return json.loads(await asyncio.wait_for(self.reader.readline(), PATIENCE_S))

    async def send(self, line: bytes) -> object:
        self.writer.write(line)
        return await self.read()

    async def ends(self) -> bool:
        """Whether the other end closes without another word; what it did not read is lost, hence the reset."""
        with contextlib.suppress(ConnectionResetError):
            return await asyncio.wait_for(self.reader.read(), PATIENCE_S) == b""
        return True

    async def leave(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


@contextlib.asynccontextmanager
async def operator(path: Path) -> AsyncIterator[Operator]:
    it = Operator(*await asyncio.open_unix_connection(path))
    try:
        yield it
    finally:
        await it.leave()


def done(line: str) -> object:
    return {"done": True, "line": line}


def refused(answer: object, why: str) -> bool:
    assert isinstance(answer, dict)
    return answer["done"] is False and why in answer["line"]


# --- the socket -------------------------------------------------------------------------------------------------------


async def test_each_command_goes_to_its_handler_and_its_line_comes_back(path: Path, coordinator: Coordinator) -> None:
    async with operator(path) as it:
        to = b'{"command": "promote", "shard": "s0", "to": "127.0.0.1:7100"}\n'
        assert await it.send(to) == done("promote s0 127.0.0.1:7100: done")
        assert await it.send(b'{"command":"promote","shard":"s1"}\n') == done("promote s1 : done")
        assert await it.send(b'{"command":"pause","shard":"s2"}\n') == done("pause s2: done")
        assert await it.send(b'{"command":"resume","shard":"s2"}\n') == done("resume s2: done")
    assert [each[0] for each in coordinator.done] == ["promote", "promote", "pause", "resume"]


async def test_what_is_refused_comes_back_with_the_reason(path: Path, coordinator: Coordinator) -> None:
    async with operator(path) as it:
        assert refused(await it.send(b'{"command":"pause","shard":"s9"}\n'), "s9 has no replica that is fit")
        assert await it.send(b'{"command":"pause","shard":"s1"}\n') == done("pause s1: done")


async def test_two_operators_do_not_wait_for_each_other(path: Path, coordinator: Coordinator) -> None:
    async with operator(path) as first, operator(path) as second:
        first.writer.write(b'{"command":"promote","shard":"s7"}\n')
        await until("the first to be asked for", lambda: bool(coordinator.asked), lambda: coordinator)
        assert await second.send(b'{"command":"pause","shard":"s1"}\n') == done("pause s1: done")
        coordinator.go_on.set()
        assert await first.read() == done("promote s7 : done")


async def test_an_operator_who_leaves_cancels_nothing(path: Path, coordinator: Coordinator) -> None:
    async with operator(path) as it:
        it.writer.write(b'{"command":"promote","shard":"s7"}\n')
        await until("the promotion to be asked for", lambda: bool(coordinator.asked), lambda: coordinator)
    async with operator(path) as it:  # its answer shows that the leaving of the first has been seen
        await it.send(b'{"command":"pause","shard":"s1"}\n')
    coordinator.go_on.set()
    await until("the promotion", lambda: ("promote", "s7", "") in coordinator.done, lambda: coordinator)


@pytest.mark.parametrize(
    "garbage",
    [
        b"promote s0\n",
        b"\n",
        b"[]\n",
        b'{"shard":"s0"}\n',
        b'{"command":"flushall","shard":"s0"}\n',
        b'{"command":"pause"}\n',
        b'{"command":"pause","shard":5}\n',
        b'{"command":"pause","shard":"s0","to":"127.0.0.1:7100"}\n',
        b'{"command":"pause","shard":"\xff"}\n',
        b"\0" * 100 + b"\n",
        b'{"other":' + b"[" * 3000 + b"\n",
    ],
)
async def test_garbage_is_refused_and_the_next_command_is_done(
    garbage: bytes, path: Path, coordinator: Coordinator
) -> None:
    async with operator(path) as it:
        assert refused(await it.send(garbage), "expected a command as JSON")
        assert coordinator.asked == []
        assert await it.send(b'{"command":"pause","shard":"s1"}\n') == done("pause s1: done")


@pytest.mark.parametrize("end", [b"\n", b""])
async def test_a_line_that_is_too_long_is_refused_and_ends_the_connection(
    end: bytes, path: Path, coordinator: Coordinator
) -> None:
    async with operator(path) as it:
        line = b'{"command":"pause","shard":"' + b"x" * (1 << 20) + b'"}' + end
        assert refused(await it.send(line), f"expected a command of at most {LINE_BYTES} bytes")
        assert await it.ends()
    assert coordinator.asked == []


async def test_half_a_command_is_none(path: Path, coordinator: Coordinator) -> None:
    async with operator(path) as it:
        it.writer.write(b'{"command":"pause","shard":"s0"}')
        it.writer.write_eof()
        assert await it.ends()
    assert coordinator.asked == []


async def test_a_handler_with_a_bug_is_told_and_logged_and_the_next_command_is_done(
    path: Path, coordinator: Coordinator, caplog: pytest.LogCaptureFixture
) -> None:
    async with operator(path) as it:
        assert refused(await it.send(b'{"command":"pause","shard":"s13"}\n'), "+bug")
        assert await it.send(b'{"command":"pause","shard":"s1"}\n') == done("pause s1: done")
    assert "+bug" in caplog.text and "ZeroDivisionError" in caplog.text


# --- its file ---------------------------------------------------------------------------------------------------------


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def is_socket(path: Path) -> bool:
    return path.is_socket()


async def test_only_the_user_who_serves_may_connect(path: Path, coordinator: Coordinator) -> None:
    assert mode(path) == 0o600


async def test_files_made_later_have_the_mode_they_always_have(path: Path) -> None:
    before = os.umask(0o022)
    try:
        admin.bind(str(path)).close()
        os.close(os.open(path.with_name("later"), os.O_CREAT, 0o666))
    finally:
        os.umask(before)
    assert mode(path.with_name("later")) == 0o644


async def test_at_the_end_the_file_is_gone_and_who_waits_is_let_go(path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with served(path) as coordinator:
            it = await stack.enter_async_context(operator(path))
            it.writer.write(b'{"command":"promote","shard":"s7"}\n')
            await until("the promotion to be asked for", lambda: bool(coordinator.asked), lambda: coordinator)
        assert not is_socket(path)
        assert await it.ends()
    assert coordinator.done == []


async def test_what_a_killed_proxy_left_is_replaced(path: Path) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.listen()
    left.close()
    assert is_socket(path)
    async with served(path), operator(path) as it:
        assert await it.send(b'{"command":"pause","shard":"s1"}\n') == done("pause s1: done")


async def test_the_socket_of_a_proxy_that_runs_is_left_to_it(path: Path, coordinator: Coordinator) -> None:
    with pytest.raises(OSError, match="another process listens there") as caught:
        admin.bind(str(path))
    assert caught.value.errno == errno.EADDRINUSE
    async with operator(path) as it:
        assert await it.send(b'{"command":"pause","shard":"s1"}\n') == done("pause s1: done")


async def test_a_file_that_is_no_socket_is_left_alone(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT))
    with pytest.raises(FileExistsError, match="a file that is no socket"):
        admin.bind(str(path))
    assert not is_socket(path)  # it was not replaced


async def test_a_directory_that_is_not_there_is_said(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        admin.bind(str(path / "none" / "admin.sock"))


async def test_the_socket_of_a_successor_is_not_removed(path: Path) -> None:
    async with served(path):
        os.unlink(path)
        successor = admin.bind(str(path))
    assert is_socket(path)
    successor.close()


async def test_the_longest_path_that_the_configuration_takes_can_be_bound(path: Path) -> None:
    longest = path.with_name("x" * (107 - len(str(path.parent)) - 1))
    assert len(str(longest)) == 107
    async with served(longest), operator(longest) as it:
        assert await it.send(b'{"command":"pause","shard":"s1"}\n') == done("pause s1: done")


# --- the other end ----------------------------------------------------------------------------------------------------


async def test_ask_tells_what_was_answered(path: Path, coordinator: Coordinator) -> None:
    def asks() -> list[Answer]:
        return [admin.ask(str(path), Promote("s0"), PATIENCE_S), admin.ask(str(path), Pause("s9"), PATIENCE_S)]

    answers = await asyncio.to_thread(asks)
    assert answers == [Answer(True, "promote s0 : done"), Answer(False, "s9 has no replica that is fit")]


async def test_ask_waits_no_longer_than_it_is_told(path: Path, coordinator: Coordinator) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.to_thread(admin.ask, str(path), Pause("s7"), 0.05)


# --- the command line -------------------------------------------------------------------------------------------------


@dataclass
class Shell:
    """Runs pyproxy with a configuration that names the socket."""

    config: Path

    async def run(self, *command: str) -> tuple[int | None, str, str]:
        """The exit status, what it said, and what was wrong."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "pyproxy", *command, "--config", str(self.config),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
        return process.returncode, out.decode(), err.decode()


def shell_of(path: Path, promotion: str = "") -> Shell:
    config = path.with_name("pyproxy.toml")
    shard = '[[shards]]\nname = "s0"\nprimary = "127.0.0.1:1"\nslots = ["0-16383"]\n'
    config.write_text(f'[http]\nadmin = "{path}"\n[promotion]\n{promotion}\n{shard}')
    return Shell(config)


@pytest.fixture
def shell(path: Path) -> Shell:
    return shell_of(path)


async def test_each_command_prints_what_the_proxy_says(shell: Shell, coordinator: Coordinator) -> None:
    assert await shell.run("promote", "s0", "--to", "127.0.0.1:7100") == (0, "promote s0 127.0.0.1:7100: done\n", "")
    assert await shell.run("promote", "s0") == (0, "promote s0 : done\n", "")
    assert await shell.run("pause", "s1") == (0, "pause s1: done\n", "")
    assert await shell.run("resume", "s1") == (0, "resume s1: done\n", "")


async def test_a_refusal_goes_to_stderr_with_status_1(shell: Shell, coordinator: Coordinator) -> None:
    assert await shell.run("promote", "s9") == (1, "", "pyproxy: s9 has no replica that is fit\n")


async def test_nobody_there_is_69(shell: Shell, path: Path) -> None:
    wrong = f"pyproxy: {path}: expected a pyproxy with [http] admin, got: no such file or directory\n"
    assert await shell.run("pause", "s0") == (69, "", wrong)


async def test_another_process_there_is_69(shell: Shell, path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"-ERR unknown command\r\n")
        writer.close()

    async with await asyncio.start_unix_server(answer, path):
        wrong = f"pyproxy: {path}: expected the answer of a pyproxy, got something else\n"
        assert await shell.run("pause", "s0") == (69, "", wrong)


async def test_a_promotion_is_waited_for_as_long_as_it_may_take(
    path: Path, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "ANSWER_S", 0.5)
    shell = shell_of(path, "deadline_s = 0.1\nverify_s = 0.2")
    argv = ["promote", "s7", "--config", str(shell.config)]
    assert await asyncio.to_thread(cli.main, argv) == 69
    said = capsys.readouterr()
    assert said.out == ""
    assert "expected an answer within 0.8 s, got none; `pyproxy status` tells what became of it" in said.err


async def test_a_configuration_without_the_socket_names_the_option(shell: Shell) -> None:
    shell.config.write_text(shell.config.read_text().replace("admin", "# admin"))
    status, _, wrong = await shell.run("pause", "s0")
    assert (status, wrong.splitlines()[1:]) == (
        78, ['http.admin: expected the path of the socket for commands, got ""']
    )  # fmt: skip


@pytest.mark.parametrize("to", ["nowhere", "127.0.0.1:99999", ":7100"])
async def test_an_impossible_address_is_refused_before_anybody_is_asked(
    to: str, shell: Shell, coordinator: Coordinator
) -> None:
    status, _, wrong = await shell.run("promote", "s0", "--to", to)
    assert (status, coordinator.asked) == (2, [])
    assert "argument --to: expected host:port, got" in wrong


async def test_a_name_of_any_bytes_reaches_the_proxy_as_text(shell: Shell, coordinator: Coordinator) -> None:
    assert (await shell.run("pause", os.fsdecode(b"\xff")))[0] == 0
    assert coordinator.asked == [("pause", "\\xff")]


async def test_a_command_about_moves_reaches_the_one_who_does_them(path: Path) -> None:
    async with served(path) as coordinator:
        answer = await asyncio.to_thread(admin.ask, str(path), MoveThrottle(20_000_000), PATIENCE_S)
    assert (answer.done, coordinator.done) == (True, [("move", "MoveThrottle")])
