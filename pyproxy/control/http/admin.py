"""Commands of operators over a unix socket: promote, pause, resume, and those of moves.

A line of JSON comes in for each command; what its handler answers goes out as a line, whether done or refused:

    {"command":"promote","shard":"s3","to":"127.0.0.1:7103"}
    {"done":true,"line":"..."}

This module knows nothing of shards: the handlers know whether a command may be done, and when it is done. The file
belongs to the user who serves and has mode 0600, and that is the only lock on it. `ask` is the other end, for the
command line.
"""

import asyncio
import contextlib
import errno
import os
import socket
import stat
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

import msgspec

from pyproxy.events import Event, emit

LINE_BYTES = 1 << 20  # of a command; a plan may name each of 16384 slots
BACKLOG = 16


class Promote(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="command", tag="promote"):
    """Make a replica the primary, with both alive."""

    shard: str
    to: str = ""  # host:port; empty: the one that is fittest


class Pause(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="command", tag="pause"):
    """Hold the writes of a shard."""

    shard: str


class Resume(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="command", tag="resume"):
    """Let them go."""

    shard: str


class MoveStart(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="command", tag="move-start"):
    """Begin the moves of a plan."""

    plan: str  # the text of the file
    replace: bool = False  # the destination may have keys in these slots
    accept_eviction: bool = False  # it may evict keys


class MoveStatus(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="command", tag="move-status"):
    """How far all moves are: JSON."""


class MovePause(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="command", tag="move-pause"):
    """Copy nothing more, and hand nothing over."""


class MoveResume(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="command", tag="move-resume"):
    """Go on."""


class MoveThrottle(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="command", tag="move-throttle"):
    """Copy at most so many bytes a second; 0: as fast as the servers bear."""

    bytes_per_s: Annotated[int, msgspec.Meta(ge=0)]


class MoveAbort(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="command", tag="move-abort"):
    """Give up a move that has not handed over, or all such."""

    id: str = ""


class MoveForget(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="command", tag="move-forget"):
    """Take a shard without slots out of the store."""

    shard: str


MoveCommand = MoveStart | MoveStatus | MovePause | MoveResume | MoveThrottle | MoveAbort | MoveForget
Command = Promote | Pause | Resume | MoveCommand


class Answer(msgspec.Struct, frozen=True):
    """What an operator is told."""

    done: bool
    line: str


class Refused(Exception):
    """The command is not done, or failed; `str` tells the operator why, on one line."""


@dataclass(frozen=True, slots=True)
class Handlers:
    """Who does what is asked: each returns a line for the operator, or raises Refused.

    What several operators ask for runs side by side.
    """

    promote: Callable[[str, str], Awaitable[str]]  # shard, host:port or ""
    pause: Callable[[str], Awaitable[str]]
    resume: Callable[[str], Awaitable[str]]
    move: Callable[[MoveCommand], Awaitable[str]]


def bind(path: str) -> socket.socket:
    """A socket that listens there, for this user only; OSError if another one does, or a file is in the way.

    What a process left there that was killed is removed.
    """
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "a file that is no socket", path)
        if _answers(path):
            raise OSError(errno.EADDRINUSE, "another process listens there", path)
        os.unlink(path)
    with contextlib.ExitStack() as on_error:
        listener = on_error.enter_context(socket.socket(socket.AF_UNIX))
        before = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(before)
        listener.listen(BACKLOG)
        listener.setblocking(False)
        on_error.pop_all()
    return listener


@contextlib.asynccontextmanager
async def serving(listener: socket.socket, handlers: Handlers) -> AsyncIterator[None]:
    """Answer on this socket until the block ends; then its file is removed, and what is being done is cancelled.

    An operator who leaves cancels nothing.
    """
    conversations: set[asyncio.Task[None]] = set()
    path = listener.getsockname()
    made = os.stat(path)

    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        conversations.add(task)
        try:
            with contextlib.suppress(ConnectionError):
                await _converse(reader, writer, handlers)
        finally:
            conversations.discard(task)
            writer.close()

    server = await asyncio.start_unix_server(on_connection, sock=listener, limit=LINE_BYTES)
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), made):  # and not that of a successor
                os.unlink(path)
        server.close()
        for task in conversations:
            task.cancel()
        await asyncio.gather(*conversations, return_exceptions=True)


def ask(path: str, command: Command, timeout_s: float) -> Answer:
    """Have a proxy do this. OSError if it cannot be asked or does not answer in time; ValueError if it is no proxy."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout_s)
        connection.connect(path)
        connection.sendall(msgspec.json.encode(command) + b"\n")
        with connection.makefile("rb") as answers:
            line = answers.readline()
    if not line:
        raise ConnectionError("no answer before it closed the connection")
    return msgspec.json.decode(line, type=Answer)


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.setblocking(False)  # a full backlog is somebody too
        return connection.connect_ex(path) != errno.ECONNREFUSED


async def _converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handlers: Handlers) -> None:
    while True:
        try:
            line = await reader.readuntil(b"\n")
        except asyncio.IncompleteReadError:
            return
        except asyncio.LimitOverrunError:
            line = b""
            answer = Answer(False, f"expected a command of at most {LINE_BYTES} bytes, got more")
        else:
            answer = await _done(line, handlers)
        writer.write(msgspec.json.encode(answer) + b"\n")
        await writer.drain()
        if not line:  # where the next one would begin is not known
            return


async def _done(request: bytes, handlers: Handlers) -> Answer:
    try:
        command = msgspec.json.decode(request, type=Command)
    except (ValueError, RecursionError) as exc:  # msgspec's, or of bytes that are no UTF-8; of what is too deep
        return Answer(False, f"expected a command as JSON, got something else: {exc}")
    try:
        match command:
            case Promote():
                line = await handlers.promote(command.shard, command.to)
            case Pause():
                line = await handlers.pause(command.shard)
            case Resume():
                line = await handlers.resume(command.shard)
            case _:
                line = await handlers.move(command)
        return Answer(True, line)
    except Refused as exc:
        return Answer(False, str(exc))
    except Exception as exc:  # the operator waits for an answer, and the proxy goes on
        emit(Event.BUG, task="admin", trace="".join(traceback.format_exception(exc)))
        return Answer(False, "it failed in a way that nobody expected; the log has +bug")
