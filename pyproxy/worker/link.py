"""This worker's connections to one shard: when there is one, when there is none, and what is said meanwhile.

    IDLE ──first command──▶ QUEUE ──set up──▶ OPEN ──lost──▶ QUEUE ──failed──▶ SHUT ──back-off, set up──▶ OPEN or IDLE

A backend (one protocol and one database) is connected when it is first needed.  A lost connection is replaced at
once; if that fails the shard is down for this worker: everything is refused at once, and one attempt at a time is
made, 50 ms to 5 s apart, until one succeeds.  No request is sent before the set-up of a connection (TLS, AUTH, HELLO,
SELECT, ECHO) has been answered as expected.

Requests, queues and deadlines are the lane's (lane.pyx); this module opens and closes doors.
"""

import asyncio
import os
import random
import socket
from collections.abc import Callable, Coroutine
from typing import Any

from protocol import errors, request
from pyproxy.access import Access, Refused, admitted, why
from pyproxy.config import Timeouts
from pyproxy.events import Event, emit
from pyproxy.shardmap import Node, Shard
from pyproxy.worker.lane import Backend, Lane, Wire

Spawn = Callable[[Coroutine[Any, Any, None], str], None]

STEADY_S = 1.0
"""A connection that was lost before it lived this long is not replaced at once: that would be a loop."""

REFUSED_S = 1.0
"""How long a backend whose set-up the server refused (a database it does not have) is not tried again."""

COMPLAIN_S = 1.0
"""How long after a complaint of a refusal the same refusal by the same shard is no news."""


class Link:
    """The connections of one worker to one shard; `index` is the shard's place in the map."""

    def __init__(
        self,
        lane: Lane,
        index: int,
        shard: Shard,
        timeouts: Timeouts,
        access: Access,
        spawn: Spawn,
        complain: Callable[[str, str, str], None],
    ) -> None:
        self.name = shard.name
        self.shard = shard
        self.node: Node = shard.primary
        self.backends: dict[tuple[int, int], Backend] = {}
        self.connections = 0
        self._lane = lane
        self.index = index
        self._timeouts = timeouts
        self._access = access
        self._spawn = spawn
        self._complain = complain
        self._pause_s = timeouts.reconnect_min_s
        self._down = ""  # why nothing can be sent; empty while the shard is up
        self._barred = ""
        self._closed = False
        self._complained: dict[str, float] = {}  # code of a refusal -> when, on the loop's clock

    @property
    def is_down(self) -> bool:
        return bool(self._down)

    def backend(self, proto: int, db: int) -> Backend:
        backend = self.backends.get((proto, db))
        if backend is None:
            backend = self.backends[proto, db] = Backend(self._lane, self, self.index, proto, db)
            if self._down:
                backend.shut(self._refusal())
        return backend

    def connect(self, backend: Backend) -> None:
        """Called by the lane for the first command to a backend."""
        backend.queue()
        self._spawn(self._connect(backend), f"connect {self.name}")

    def close(self) -> None:
        """Give all connections up; for a shard that has another primary now, and for the end."""
        self._closed = True
        self._down = "is no longer served from here"
        for backend in self.backends.values():
            if backend.wire is not None:
                backend.wire.drop(errors.LOST)
            backend.shut(self._refusal())

    def misplaced(self, what: str) -> None:
        """The node holds keys of another shard (`what`), so nothing may be sent to it; empty: it does not."""
        self._barred = what
        if what and not self._down:
            self._went_down(what)
            for backend in self.backends.values():
                if backend.wire is not None:
                    backend.wire.drop(what)

    def refused(self, code: str) -> None:
        """The server refused a request for a reason of its own: READONLY, MISCONF ... The client gets its words."""
        now = asyncio.get_running_loop().time()
        if now - self._complained.get(code, -COMPLAIN_S) >= COMPLAIN_S:
            self._complained[code] = now
            self._complain(self.name, str(self.node), f"answered -{code}")

    def _refusal(self) -> bytes:
        return errors.shard_down(self.name, self.node, self._down)

    # --- up and down ---

    async def _connect(self, backend: Backend) -> None:
        try:
            await self._open(backend)
        except OSError as exc:
            if isinstance(exc, Refused) and not backend.is_base:
                await self._bar(backend, why(exc))
                return
            self._went_down(why(exc))
            if not backend.is_open:
                backend.shut(self._refusal())

    async def _bar(self, backend: Backend, reason: str) -> None:
        """The others of this shard may be well: only this protocol and database are refused, and only for a while."""
        emit(
            Event.LINK_REFUSED, shard=self.name, node=self.node, why=reason, protocol=backend.proto, database=backend.db
        )
        backend.shut(errors.shard_down(self.name, self.node, reason))
        await asyncio.sleep(REFUSED_S)
        if not self._down:
            backend.reset()

    def _went_down(self, reason: str) -> None:
        """Refuse what comes on all connections that are not up, and try again with back-off."""
        if self._down or self._closed:
            return
        self._down = reason
        emit(Event.LINK_DOWN, shard=self.name, node=self.node, why=reason)
        self._complain(self.name, str(self.node), reason)
        for backend in self.backends.values():
            if not backend.is_open:
                backend.shut(self._refusal())
        self._spawn(self._recover(), f"recover {self.name}")

    async def _recover(self) -> None:
        while not self._closed:
            await asyncio.sleep(self._pause_s * random.uniform(0.5, 1.0))
            self._pause_s = min(self._pause_s * 2, self._timeouts.reconnect_max_s)
            if self._barred:
                continue
            base = self.backend(2, 0)
            try:
                if not base.is_open:
                    await self._open(base)
            except OSError as exc:
                self._down = why(exc)
                for backend in self.backends.values():
                    if not backend.is_open:
                        backend.shut(self._refusal())
                continue
            self._down = ""
            emit(Event.LINK_UP, shard=self.name, node=self.node)
            for backend in self.backends.values():
                backend.reset()
            return

    def _lost(self, backend: Backend, reason: str, lived_s: float) -> None:
        self.connections -= 1
        emit(Event.LINK_LOST, shard=self.name, node=self.node, why=reason, requests=backend.waiting_requests)
        self._complain(self.name, str(self.node), reason)
        if lived_s >= STEADY_S:
            self._pause_s = self._timeouts.reconnect_min_s  # not before: a server may let in and close at once
        wanted = backend.lost(reason) or backend.is_base
        if self._closed:
            return
        if self._down:
            backend.shut(self._refusal())
        elif lived_s < STEADY_S:
            self._went_down(errors.CLOSED if reason == errors.LOST else reason)
        elif wanted:
            self.connect(backend)

    # --- one connection ---

    async def _open(self, backend: Backend) -> None:
        """Connect and set up; the backend is open then. Raises OSError, see `access.why`."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        tls = self._access.tls()
        greeting = Greeting(backend.proto, backend.db, self._access.auths())
        opened = 0.0

        def on_setup(frame: bytes) -> None:
            nonlocal opened
            try:
                more = greeting.heard(frame)
            except Refused as exc:
                if not done.done():
                    done.set_exception(exc)
                wire.drop("set-up refused")
                return
            if more:
                wire.send(more)
            elif greeting.is_over and backend.is_open:
                # another attempt was faster; two connections on one queue would mix up its replies
                done.set_result(None)
                wire.drop("not needed")
            elif greeting.is_over:
                opened = loop.time()
                self.connections += 1
                wire.ready()
                done.set_result(None)

        def on_lost(reason: str) -> None:
            if opened:
                self._lost(backend, reason, loop.time() - opened)
            elif not done.done():
                done.set_exception(ConnectionError(reason))

        wire = Wire(backend, on_setup, on_lost)
        try:
            async with asyncio.timeout(self._timeouts.connect_s):
                transport, _ = await loop.create_connection(
                    lambda: wire, self.node.host, self.node.port, ssl=tls
                )
                transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                wire.send(greeting.first())
                await done
        except TimeoutError:
            reason = f"no {'tls ' if tls else ''}connection within {self._timeouts.connect_s:g} s"
            wire.drop(reason)
            raise ConnectionError(reason) from None

    def __repr__(self) -> str:
        return f"<Link {self.name} {self.node} {self._down or 'up'} {list(self.backends.values())}>"


class Greeting:
    """What is said first on a connection, and whether the answers are right.

    AUTH, alone, until a password is accepted; then HELLO, SELECT and an ECHO of random bytes in one go: whoever does
    not answer that is no Redis, or answers somebody else.
    """

    def __init__(self, proto: int, db: int, auths: list[list[bytes]]) -> None:
        nonce = os.urandom(8).hex().encode()
        asked = [([b"ECHO", nonce], b"$16\r\n" + nonce)]
        if db:
            asked.insert(0, ([b"SELECT", b"%d" % db], b"+OK"))
        if proto == 3:
            asked.insert(0, ([b"HELLO", b"3"], b"%"))
        self._auths = list(auths)
        self._admitted = not auths
        self._rest = b"".join(request.encode(argv) for argv, _ in asked)
        self._expected = [(argv[0].decode(), wanted) for argv, wanted in asked]

    @property
    def is_over(self) -> bool:
        return not self._expected

    def first(self) -> bytes:
        """The first bytes of the connection."""
        return self._rest if self._admitted else request.encode(self._auths.pop(0))

    def heard(self, frame: bytes) -> bytes:
        """Takes the next reply -> the bytes to send then; empty: none. Raises Refused for one that is not right."""
        if not self._admitted:
            # whatever it is but +OK, it is not shown: it may repeat the password
            error = b"" if frame == b"+OK\r\n" else frame[1:].split(b"\r\n", 1)[0] or b"?"
            self._admitted = admitted(error, self._auths)
            return self.first()
        asked, wanted = self._expected.pop(0)
        if frame.startswith(wanted):
            return b""
        if frame.startswith(b"-NOAUTH"):
            raise Refused("asks for a password, and backend.password_file names none")
        said = frame.split(b"\r\n", 1)[0][:100].decode("utf-8", "replace")
        raise Refused(f"answered {asked} with {said}")
