"""One pipelined connection of the mover to a server, over TLS and with AUTH where the configuration says so.

Requests go out as bytes, each batch with the number of its replies; the frames of these come back, in their order.
Framing is protocol.scan's, so nothing is allocated on a header's word. A connection that owes replies and sends no byte
for `silence_s` is lost. What was asked and is not answered then raises Lost, as does all that is asked later.
"""

import asyncio
import re
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import Self, cast

from protocol import scan
from protocol.reply import BadFrame, Error, Value, decode
from protocol.request import encode
from pyproxy.access import Access, admitted, why
from pyproxy.config import Timeouts
from pyproxy.deadline import Deadline, within
from pyproxy.shard_map import Node

REPLY_LIMIT = 64 << 20
"""Bytes of a reply whose end has not come, where no values are asked for. A page of SCAN may have long names."""

VALUE_LIMIT = (512 << 20) + (1 << 16)
"""The same where values are: the longest that a server makes by default, and what DUMP adds to it."""

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger: on, 0 s; socket(7)


class Lost(Exception):
    """A connection ended, or never came to be; `str` says to whom and why, and may be shown to anybody."""


class Denied(Lost):
    """The server answers, and refuses what is needed. As long as nobody changes that, it is of no use to ask again."""


class Connection(asyncio.Protocol):
    """`on_push` is given what RESP3 pushes; with it the connection speaks RESP3. `on_lost` is called once, at an end
    that is not our own."""

    def __init__(
        self,
        node: Node,
        silence_s: float,
        limit: int,
        on_push: Callable[[bytes], None] | None,
        on_lost: Callable[[], None] | None,
    ) -> None:
        self.node = node
        self.heard = 0  # how often anything has come
        self._silence_s = silence_s
        self._limit = limit
        self._on_push = on_push
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._replies = scan.Replies(resp3=on_push is not None, pushes=on_push is not None)
        self._owed: deque[tuple[int, asyncio.Future[list[bytes]]]] = deque()
        self._frames: list[bytes] = []  # of the first that is owed
        self._lost: Lost | None = None
        self._deadline: Deadline | None = None
        self._heard_then = 0  # when the deadline began

    @classmethod
    async def open(
        cls,
        node: Node,
        access: Access,
        timeouts: Timeouts,
        *,
        database: int = 0,
        limit: int = REPLY_LIMIT,
        on_push: Callable[[bytes], None] | None = None,
        on_lost: Callable[[], None] | None = None,
    ) -> Self:
        """Connected, let in, and in this database for good. Raises Lost."""
        connection = cls(node, timeouts.slow_reply_s, limit, on_push, on_lost)
        try:
            loop = asyncio.get_running_loop()
            async with within(timeouts.connect_s):
                await loop.create_connection(lambda: connection, node.host, node.port, ssl=access.tls())
        except TimeoutError:
            raise Lost(f"{node}: not connected within {timeouts.connect_s:g} s") from None
        except OSError as exc:
            raise Lost(f"{node}: {why(exc)}") from None
        try:
            await connection._be_let_in(access)
            await connection._select(database)
        except BaseException:
            connection.close()
            raise
        return connection

    async def _be_let_in(self, access: Access) -> None:
        try:
            auths = access.auths()
            while auths:
                (answer,) = await self.ask(tuple(auths.pop(0)))
                error = answer.line if isinstance(answer, Error) else b"" if answer == b"OK" else b"?"
                if admitted(error, auths):
                    break
        except OSError as exc:
            raise Lost(f"{self.node}: {why(exc)}") from None
        if self._on_push is not None:
            (hello,) = await self.ask((b"HELLO", b"3"))
            if isinstance(hello, Error):
                raise Denied(f"{self.node}: {refusal(b'HELLO 3', hello)}; it takes a server of 6.0 or newer")

    async def _select(self, database: int) -> None:
        (selected,) = await self.ask((b"SELECT", b"%d" % database)) if database else (b"OK",)
        if selected != b"OK":
            why_not = refusal(b"SELECT %d" % database, selected) if isinstance(selected, Error) else "answered SELECT"
            raise Denied(f"{self.node}: {why_not}; it must have as many `databases` as the other server")

    def send(self, data: bytes | Sequence[bytes], count: int) -> "asyncio.Future[list[bytes]]":
        """The frames of the next `count` replies, of which there must be at least one; an error reply is a frame."""
        answered: asyncio.Future[list[bytes]] = asyncio.get_running_loop().create_future()
        if self._lost is not None or self._transport is None:
            answered.set_exception(self._lost or Lost(f"{self.node}: not connected"))
            answered.exception()  # marks it as retrieved: who sent it may be ended before it looks
            return answered
        self._owed.append((count, answered))
        if self._deadline is None:
            self._watch()
        if isinstance(data, bytes):
            self._transport.write(data)
        else:
            self._transport.writelines(data)
        return answered

    async def ask(self, *commands: Sequence[bytes]) -> list[Value]:
        """The replies to these commands, in their order; an error reply is an `Error` value. Raises Lost."""
        frames = await self.send(b"".join(map(encode, commands)), len(commands))
        try:
            return [decode(frame) for frame in frames]
        except BadFrame:
            raise Lost(f"{self.node}: answered {commands[0][0].decode()} with what is no reply to it") from None

    def _watch(self) -> None:
        self._heard_then = self.heard
        self._deadline = Deadline(self._silence_s, self._on_silence)

    def _on_silence(self) -> None:
        self._deadline = None
        if not self._owed:
            return
        if self.heard != self._heard_then:
            self._watch()
        else:
            self._end(f"owes an answer, and has said nothing for {self._silence_s:g} s")

    def drop(self, reason: str) -> None:
        """It does what it must not: it is lost."""
        self._end(reason)

    def close(self) -> None:
        """End it without a word to `on_lost`. What is unsent is not sent any more."""
        self._on_lost = None
        self._end("closed by the mover")

    def _end(self, reason: str) -> None:
        if self._lost is not None:
            return
        self._lost = Lost(f"{self.node}: {reason}")
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if self._transport is not None:
            sock = self._transport.get_extra_info("socket")
            if sock is not None and self._owed:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self._transport.abort()
            self._transport = None
        for _, answered in self._owed:
            if not answered.done():
                answered.set_exception(self._lost)
                answered.exception()
        self._owed.clear()
        if self._on_lost is not None:
            self._on_lost()

    @property
    def lost(self) -> Lost | None:
        """Why it ended; None: it has not."""
        return self._lost

    # --- the transport's calls ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._lost is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._lost is not None:
            return
        self.heard += 1
        try:
            frames = self._replies.feed(data)
        except scan.ProtocolError:
            self._end("not a redis server: it answered what is no reply")
            return
        if self._replies.unfinished > self._limit:
            self._end(f"began a reply of more than {self._limit} bytes")
            return
        if self._on_push is not None:
            self._sort_out(frames)
        elif frames:
            self._settle(frames)

    def _sort_out(self, frames: list[bytes]) -> None:
        """Pushes and replies in the order in which they came."""
        for frame in frames:
            if frame[:1] != b">":
                self._settle([frame])
            elif self._on_push is not None:
                self._on_push(frame)
            if self._lost is not None:
                return

    def _settle(self, frames: list[bytes]) -> None:
        self._frames += frames
        while self._owed and len(self._frames) >= self._owed[0][0]:
            count, answered = self._owed.popleft()
            found, self._frames = self._frames[:count], self._frames[count:]
            if not answered.done():
                answered.set_result(found)
        if self._frames and not self._owed:
            self._end("sent a reply that nobody asked for")

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._end(why(exc) if isinstance(exc, OSError) else "closed the connection")

    def __repr__(self) -> str:
        return f"<Connection {self.node} {self._lost or f'owes {len(self._owed)}'}>"


def refusal(what: bytes, error: Error) -> str:
    """A server's refusal, for operators."""
    return f"refused {what.decode()}: {error.line[:200].decode(errors='replace')}"


async def fence(connections: Sequence[Connection], move: str) -> None:
    """Make sure that nothing is still to come from whoever wrote to this server for this move before. Raises Lost.

    What an earlier connection has sent may be in a socket of a server that stands still, and would be done after what
    is sent now. So connections that write have the name of their move, and all others with this name are ended before
    these write. `connections`: all of ours, to one server.
    """
    name = b"pyproxy-mover-" + re.sub(rb"[^!-~]", b"_", move.encode())
    ours = set()
    for connection in connections:
        named, own = await connection.ask((b"CLIENT", b"SETNAME", name), (b"CLIENT", b"ID"))
        _expect_allowed(connection, b"CLIENT SETNAME", named)
        ours.add(own)
    connection = connections[0]
    (clients,) = await connection.ask((b"CLIENT", b"LIST"))
    _expect_allowed(connection, b"CLIENT LIST", clients)
    text = clients if isinstance(clients, bytes) else b""
    for number in re.findall(rb"^id=(\d+) .* name=" + re.escape(name) + rb" ", text, re.MULTILINE):
        if int(number) not in ours:
            (killed,) = await connection.ask((b"CLIENT", b"KILL", b"ID", number))
            _expect_allowed(connection, b"CLIENT KILL", killed)


def _expect_allowed(connection: Connection, what: bytes, answer: Value) -> None:
    if isinstance(answer, Error):
        raise Denied(f"{connection.node}: {refusal(what, answer)}; the user of `[backend]` must be allowed to")
