"""One connection of the parent to one server, over TLS and with AUTH where the configuration says so.

Commands go out in one write, their replies come back as values, and all of it is bounded: in time by the caller's
deadline, in memory by REPLY_LIMIT. Framing is protocol.scan's, so nothing is allocated on a header's word; only
whole frames reach hiredis. What the server does wrong, and what the network does, is a NodeError that says so; the
connection is then of no more use.
"""

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Self, cast

from protocol import scan
from protocol.reply import BadFrame, Error, Value, decode
from protocol.request import Request
from pyproxy.access import Access, admitted, why
from pyproxy.deadline import Deadline, within
from pyproxy.shard_map import Node

REPLY_LIMIT = 16 << 20
"""Bytes of the replies to one call. COMMAND of Valkey 9 is 250 KB, INFO 10 KB; a sampled key may be longer."""

INFO_LIMIT = 128 << 10
"""Bytes of an INFO, which all workers are sent: more than ten times what a server says by default."""

READ_BYTES = 256 * 1024  # that have come and were not read; then the server waits

NO_REPLY = "not a redis server: it answered what is no reply"

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger: on, 0 s; socket(7)


class NodeError(Exception):
    """What happened instead of a reply; said to operators and, when the shard is down, to clients.

    `silent`: nothing came within the deadline, so the server may be alive.
    """

    def __init__(self, why: str, silent: bool = False) -> None:
        super().__init__(why)
        self.silent = silent


OnOutcome = Callable[["list[bytes] | NodeError"], None]
"""Is told the replies, or what happened instead."""


class Question:
    """What was asked and is not answered: so many replies, of so many bytes at most."""

    __slots__ = ("count", "frames", "most", "on_outcome", "received")

    def __init__(self, count: int, most: int, on_outcome: OnOutcome) -> None:
        self.count = count
        self.most = most
        self.on_outcome = on_outcome
        self.frames: list[bytes] = []
        self.received = 0


class NodeConnection(asyncio.Protocol):
    """An open connection: RESP2, database 0. One question at a time; what comes in between is read with the next."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None  # None: not connected yet, or the connection is gone
        self._machine = scan.Replies()
        self._question: Question | None = None
        self._received: list[bytes] = []  # while nothing was asked, and not read yet
        self._unread = 0  # bytes of these
        self._paused = False
        self._ended = False
        self._lost: OSError | None = None  # why it ended, if the network says so
        self._reader: asyncio.Future[None] | None = None  # waits for more
        self._is_late = False
        self._owed = False  # something was asked and is not answered
        self.arrives_late = False  # what is asked is to be done even after this is closed, when the server goes on

    @classmethod
    async def open(cls, node: Node, access: Access, deadline_s: float) -> Self:
        """Connected, and let in. Raises NodeError."""
        tls = None
        connection = cls(node)
        try:
            tls = access.tls()
            async with within(deadline_s):
                await connection._loop.create_connection(lambda: connection, node.host, node.port, ssl=tls)
        except TimeoutError:
            why_not = f"not connected{' over tls' if tls else ''} within {deadline_s:g} s"
            raise NodeError(why_not, silent=True) from None
        except OSError as exc:  # ConnectionRefusedError, gaierror, SSLError ...
            raise NodeError(why(exc)) from None
        try:
            await connection._authenticate(access, deadline_s)
        except BaseException:
            connection.close()
            raise
        return connection

    async def _authenticate(self, access: Access, deadline_s: float) -> None:
        try:
            auths = access.auths()
            while auths:
                (answer,) = await self.ask(tuple(auths.pop(0)), deadline_s=deadline_s)
                error = answer.line if isinstance(answer, Error) else b"" if answer == b"OK" else b"?"
                if admitted(error, auths):
                    return
        except OSError as exc:
            raise NodeError(why(exc)) from None

    async def ask(self, *commands: tuple[bytes, ...], deadline_s: float, most: int = 0) -> list[Value]:
        """The replies to these commands, in their order; an error reply is an `Error` value. Raises NodeError.

        `most`: bytes of all replies together; 0: REPLY_LIMIT.
        """
        asked = b"".join(Request(argv).frame for argv in commands)
        try:
            frames = await self.frames(asked, len(commands), deadline_s=deadline_s, most=most)
            return [decode(frame) for frame in frames]
        except BadFrame:
            raise NodeError(NO_REPLY) from None

    async def frames(self, asked: bytes, count: int, *, deadline_s: float, most: int = 0) -> list[bytes]:
        """As `ask`, of so many requests as they are sent; the replies as they came."""
        answered: asyncio.Future[list[bytes]] = self._loop.create_future()

        def on_outcome(outcome: list[bytes] | NodeError) -> None:
            if answered.done():
                return
            if isinstance(outcome, NodeError):
                answered.set_exception(outcome)
            else:
                answered.set_result(outcome)

        question = self.begin(asked, count, on_outcome, most)
        deadline = Deadline(deadline_s, lambda: self.give_up(question, deadline_s))
        try:
            return await answered
        finally:
            deadline.cancel()
            if self._question is question:
                self._question = None

    def begin(self, asked: bytes, count: int, on_outcome: OnOutcome, most: int = 0) -> "Question":
        """As `frames`, for whoever has a deadline of its own, and then calls `give_up`. It is called back once."""
        self._question = question = Question(count, most or REPLY_LIMIT, on_outcome)
        self._owed = True
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(asked)
        if self._received:
            self._answer(question, self._take_received())
        elif self._ended:
            self._finish(question, self._end())
        return question

    def give_up(self, question: "Question", deadline_s: float) -> None:
        """Nothing more of the answer is waited for, if it is not whole."""
        if self._question is question:
            self._finish(question, NodeError(f"no reply within {deadline_s:g} s", silent=True))

    def _answer(self, question: "Question", data: bytes) -> None:
        """More of the answer has come."""
        question.received += len(data)
        if question.received > question.most:
            self._finish(question, NodeError(f"reply of more than {question.most} bytes"))
            return
        try:
            question.frames += self._machine.feed(data)
        except scan.ProtocolError:
            self._finish(question, NodeError(NO_REPLY))
            return
        if len(question.frames) < question.count:
            return
        self._owed = False
        is_more = len(question.frames) > question.count
        self._finish(question, NodeError("reply that nobody asked for") if is_more else question.frames)

    def _finish(self, question: "Question", outcome: list[bytes] | NodeError) -> None:
        self._question = None
        question.on_outcome(outcome)

    @property
    def is_idle(self) -> bool:
        """It is open, and says nothing that it was not asked."""
        return self._transport is not None and not (self._ended or self._received or self._question)

    async def receives(self, within_s: float) -> bool:
        """Whether a server that was subscribed to sends anything within so many seconds; what it sends is dropped.

        Raises NodeError.
        """
        self._is_late = False
        deadline = Deadline(within_s, self._expire)
        try:
            await self._read()
        except TimeoutError:
            return False
        finally:
            deadline.cancel()
        return True

    def _expire(self) -> None:
        self._is_late = True
        self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def _read(self) -> bytes:
        """What has come, at least a byte. Raises NodeError, and TimeoutError when it is late and nothing has."""
        while not self._received:
            if self._ended:
                raise self._end()
            if self._is_late:
                raise TimeoutError
            self._reader = self._loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        return self._take_received()

    def _end(self) -> NodeError:
        return NodeError(why(self._lost) if self._lost else "connection closed by the server")

    def _take_received(self) -> bytes:
        data = b"".join(self._received) if len(self._received) > 1 else self._received[0]
        self._received.clear()
        self._unread = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return data

    def close(self) -> None:
        if self._transport is None:
            return
        if self._owed and not self.arrives_late:
            # What the kernel still has of it must not arrive later, a REPLICAOF that nobody counts on any more, say.
            sock = self._transport.get_extra_info("socket")
            if sock is not None:  # else it is closed already
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._transport.abort()  # at once: a goodbye, as TLS has one, may wait for a server that hangs

    # --- the transport's calls ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._question is not None:
            self._answer(self._question, data)
            return
        self._received.append(data)
        self._unread += len(data)
        if self._unread > READ_BYTES and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        self._ended = True
        self._wake()
        if self._question is not None:
            self._finish(self._question, self._end())

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._ended = True
        self._lost = exc if isinstance(exc, OSError) else None
        self._wake()
        if self._question is not None:
            self._finish(self._question, self._end())

    def __repr__(self) -> str:
        return f"<NodeConnection {self._node}{' closed' if self._ended else ''}>"
