"""A TCP hop in front of a server, which does on command what networks and broken servers do.

    client ──▶ Hop.port ──▶ the server's port
           ◀── stall, part, swallow, delay, drip, let; cut (FIN or RST); say something else than the server ──

Real sockets on both sides, so what is tested runs unchanged.  A hop starts as a plain wire; a fault holds for all
affected connections, the present and the future ones, until `heal()`.  `affects` sees the first bytes of a connection
and decides whether it is one of those; the others pass unharmed (those of the health checks, say, beside a worker's).

The hop lives in a thread with an event loop of its own: its methods may be called from any test, and return when the
fault is in force.
"""

import asyncio
import contextlib
import enum
import re
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

from protocol.scan import ProtocolError, Replies
from pyproxy.fleet import HOST

Result = TypeVar("Result")

CANARY_REPLY = re.compile(rb"\$47\r\npyproxy-canary-\w{32}\r\n")
CANARY = re.compile(rb"ECHO\r\n(%b)" % CANARY_REPLY.pattern)

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger: on, 0 s; close() then sends RST


class Way(enum.Enum):
    """Which way the bytes go."""

    REQUESTS = "to the server"
    REPLIES = "to the client"


class End(enum.Enum):
    """How a connection goes on after the hop has said something of its own."""

    STAY = "stay"
    SILENCE = "open, and nobody answers any more"
    FIN = "fin"
    RST = "rst"


@dataclass
class Rule:
    """What happens to the bytes of one way."""

    kind: str = "pass"  # pass, stall, part, swallow, delay, drip, let
    pause_s: float = 0.0
    piece: int = 1  # bytes of a drip
    left: int = 0  # bytes that are still let through


@dataclass
class Script:
    """`reply` in place of the server's, to the next `times` pieces of requests that contain `asked`."""

    asked: bytes
    reply: bytes
    end: End
    times: int


@dataclass(eq=False)
class Connection:
    """One client's connection through the hop."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    affected: bool = False
    silent: bool = False
    requests: bytearray = field(default_factory=bytearray)  # all that the client sent
    canaries: list[bytes] = field(default_factory=list)  # the answers to those that are not answered yet
    canaries_answered: set[bytes] = field(default_factory=set)  # those that the hop gave in the place of the server
    _searched: int = 0
    _spoken: Replies = field(default_factory=Replies)
    _begun: bool = False  # an answer of the hop's own

    def asks(self, data: bytes) -> None:
        self.requests += data
        for found in CANARY.finditer(self.requests, self._searched):
            self.canaries.append(found[1])
            self._searched = found.end()

    def answers(self, data: bytes) -> bytes:
        """What the server said, without what the hop has said already."""
        for reply in CANARY_REPLY.findall(data):
            if reply in self.canaries:
                self.canaries.remove(reply)
            if reply in self.canaries_answered:
                data = data.replace(reply, b"")
        return data

    def with_canaries(self, data: bytes) -> bytes:
        """Said in the place of the server, which would answer the canary in front of each request."""
        said = bytearray()
        for line in re.finditer(rb"[^\n]*\n|[^\n]+", data):  # no answer ends elsewhere
            if not self._begun and self.canaries:
                said += self.canaries[0]
                self.canaries_answered.add(self.canaries.pop(0))
            try:
                self._begun = not self._spoken.feed(line[0])
            except ProtocolError:
                return bytes(said + data[line.start() :])
            said += line[0]
        return bytes(said)

    def close(self, reset: bool) -> None:
        for writer in (self.client, self.server):
            if reset and not writer.transport.is_closing():
                sock: socket.socket = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            if not reset:
                writer.close()
                continue
            with contextlib.suppress(AttributeError):  # Python 3.11.2: of a TLS transport that has ended already
                writer.transport.abort()


class Hop:
    """A context manager; `port` is where it listens, on the same host as the server.

    With `tls` clients speak TLS to it, and it plain text to the server.
    """

    def __init__(
        self,
        server_port: int,
        affects: Callable[[bytes], bool] = lambda first: True,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.port = 0
        self.accepted = 0
        """Affected connections so far; one more for each that replaced another."""
        self._server_port = server_port
        self._affects = affects
        self._tls = tls
        self._connections: list[Connection] = []
        self._open: set[Connection] = set()
        self._rules = {way: Rule() for way in Way}
        self._scripts: list[Script] = []
        self._greeting: tuple[bytes, End] | None = None
        self._loop = asyncio.new_event_loop()
        self._changed = asyncio.Event()
        self._pumps: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="hop", daemon=True)

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    # --- faults ---

    def stall(self, *ways: Way) -> None:
        """Bytes wait in the hop until `heal()`; of both ways if none is named."""
        self._rule(ways, Rule("stall"))

    def part(self, *ways: Way) -> None:
        """As a network that is cut silently: bytes wait until `heal()`, ends too, and nobody is refused."""
        self._rule(ways, Rule("part"))

    def swallow(self, *ways: Way) -> None:
        """Bytes disappear, and nobody is told."""
        self._rule(ways, Rule("swallow"))

    def delay(self, pause_s: float, *ways: Way) -> None:
        """Each piece is late by so much."""
        self._rule(ways, Rule("delay", pause_s))

    def drip(self, pause_s: float, *ways: Way, piece: int = 1) -> None:
        """So many bytes at a time, so far apart."""
        self._rule(ways, Rule("drip", pause_s, piece))

    def let(self, count: int, *ways: Way) -> None:
        """So many bytes pass, of all connections together; then it stands still until `heal()`."""
        self._rule(ways, Rule("let", left=count))

    def heal(self) -> None:
        """A plain wire again; what was stalled goes on."""
        self._do(self._heal)

    def cut(self, *, reset: bool = False) -> None:
        """End every affected connection on both sides, by FIN or by RST."""

        def act() -> None:
            for each in [each for each in self._open if each.affected]:
                each.close(reset)

        self._do(act)

    def inject(self, data: bytes) -> None:
        """Say this to the client of every affected connection, now, in the place of the server."""

        def act() -> None:
            for each in self._open:
                if each.affected:
                    each.client.write(each.with_canaries(data))

        self._do(act)

    def answer(self, asked: bytes, reply: bytes, end: End = End.STAY, times: int = 1) -> None:
        """In place of the server: the next `times` pieces of requests that contain `asked` do not reach it."""
        self._do(lambda: self._scripts.append(Script(asked, reply, end, times)))

    def greet(self, data: bytes, end: End = End.STAY) -> None:
        """Say this on every connection as soon as it is accepted, before it is known whether it is affected."""
        self._do(lambda: setattr(self, "_greeting", (data, end)))

    # --- what was seen ---

    @property
    def open(self) -> int:
        """Affected connections that are open."""
        return self._do(lambda: sum(each.affected for each in self._open))

    @property
    def requests(self) -> bytes:
        """All that affected connections sent, one connection after the other."""
        return self._do(lambda: b"".join(bytes(each.requests) for each in self._connections if each.affected))

    # --- life ---

    def __enter__(self) -> Self:
        self._thread.start()
        self.port = self._run(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> int:
        self._listener = await asyncio.start_server(self._accept, HOST, 0, ssl=self._tls)
        port: int = self._listener.sockets[0].getsockname()[1]
        return port

    async def _close(self) -> None:
        self._listener.close()
        for each in list(self._open):
            each.close(reset=True)
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    def _run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    def _do(self, action: Callable[[], Result]) -> Result:
        async def act() -> Result:
            result = action()
            self._changed.set()
            self._changed.clear()
            return result

        return self._run(act())

    def _rule(self, ways: tuple[Way, ...], rule: Rule) -> None:
        self._do(lambda: self._rules.update(dict.fromkeys(ways or Way, rule)))

    def _heal(self) -> None:
        self._rules = {way: Rule() for way in Way}
        self._scripts.clear()
        self._greeting = None

    # --- one connection ---

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            from_server, to_server = await asyncio.open_connection(HOST, self._server_port)
        except OSError:
            await self._as_pumps([self._healed(way) for way in Way])
            writer.transport.abort()
            return
        connection = Connection(writer, to_server)
        self._connections.append(connection)
        self._open.add(connection)
        self._affect(connection, b"")
        if self._greeting is not None:
            self._say(connection, *self._greeting)
        await self._as_pumps([self._requests(connection, reader), self._replies(connection, from_server)])
        self._open.discard(connection)
        connection.close(reset=False)

    async def _as_pumps(self, pumps: list[Coroutine[Any, Any, None]]) -> None:
        tasks = [self._loop.create_task(pump) for pump in pumps]
        self._pumps.update(tasks)
        await asyncio.gather(*tasks, return_exceptions=True)
        self._pumps.difference_update(tasks)

    def _affect(self, connection: Connection, first: bytes) -> None:
        if not connection.affected and self._affects(first):
            connection.affected = True
            self.accepted += 1

    async def _requests(self, connection: Connection, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if not connection.requests:
                    self._affect(connection, data)
                connection.asks(data)
                if connection.affected and self._scripted(connection, data):
                    continue
                await self._pass(Way.REQUESTS, connection, data, connection.server)
        if connection.affected:
            await self._healed(Way.REQUESTS)
        connection.server.close()

    async def _replies(self, connection: Connection, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self._pass(Way.REPLIES, connection, data, connection.client)
        if connection.affected:
            await self._healed(Way.REPLIES)
        connection.client.close()

    async def _healed(self, way: Way) -> None:
        while self._rules[way].kind == "part":
            await self._changed.wait()

    async def _pass(self, way: Way, connection: Connection, data: bytes, to: asyncio.StreamWriter) -> None:
        whole = data
        while data and connection.affected and (rule := self._rules[way]).kind != "pass":
            if rule.kind == "swallow":
                return
            if rule.kind in ("stall", "part"):
                await self._changed.wait()
                continue
            if rule.kind == "let":
                piece, data = data[: rule.left], data[rule.left :]
                rule.left -= len(piece)
                to.write(piece)
                await (to.drain() if piece else self._changed.wait())
                continue
            await asyncio.sleep(rule.pause_s)
            if rule.kind == "delay":
                break
            to.write(data[: rule.piece])
            data = data[rule.piece :]
            await to.drain()
        if way is Way.REPLIES:
            data = connection.answers(whole)[len(whole) - len(data) :]
        if data and not connection.silent:
            to.write(data)
            await to.drain()

    def _scripted(self, connection: Connection, data: bytes) -> bool:
        """Whether the hop has answered these bytes itself."""
        for script in self._scripts:
            if script.asked in data:
                script.times -= 1
                if script.times == 0:
                    self._scripts.remove(script)
                self._say(connection, connection.with_canaries(script.reply), script.end)
                return True
        return connection.silent

    def _say(self, connection: Connection, data: bytes, end: End) -> None:
        if not connection.client.transport.is_closing():
            connection.client.write(data)
        connection.silent = end is End.SILENCE
        if end in (End.FIN, End.RST):
            connection.close(reset=end is End.RST)
