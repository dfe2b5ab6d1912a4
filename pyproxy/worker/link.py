"""This worker's connections to one shard: when there is one, when there is none, and what is said meanwhile.

    IDLE ──first command──▶ QUEUE ──set up──▶ OPEN ──lost──▶ QUEUE ──failed──▶ SHUT ──back-off, set up──▶ OPEN or IDLE

A backend (one protocol and one database) is connected when it is first needed.  A lost connection is replaced at
once; if that fails the shard is down for this worker: everything is refused at once, and one attempt at a time is
made, 50 ms to 5 s apart, until one succeeds.  No request is sent before the set-up of a connection has been answered
as expected.

Requests, queues and deadlines are the lane's (lane.pyx); this module opens and closes doors.
"""

import asyncio
import os
import random
import socket
from collections.abc import Callable, Coroutine
from typing import Any

from protocol import errors, request
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


class SetupRefused(ConnectionError):
    """The server is there, and answered the set-up with something else than was expected."""


class Link:
    """The connections of one worker to one shard; `index` is the shard's place in the map."""

    def __init__(
        self,
        lane: Lane,
        index: int,
        shard: Shard,
        timeouts: Timeouts,
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
        except SetupRefused as exc:
            if backend.is_base:
                self._went_down(str(exc))
                return
            # the others of this shard may be well: only this protocol and database are refused
            backend.shut(errors.shard_down(self.name, self.node, str(exc)))
            await asyncio.sleep(REFUSED_S)
            if not self._down:
                backend.reset()
        except OSError as exc:
            self._went_down(_reason(exc))
            if not backend.is_open:
                backend.shut(self._refusal())

    def _went_down(self, why: str) -> None:
        """Refuse what comes on all connections that are not up, and try again with back-off."""
        if self._down or self._closed:
            return
        self._down = why
        emit(Event.LINK_DOWN, shard=self.name, node=self.node, why=why)
        self._complain(self.name, str(self.node), why)
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
                self._down = _reason(exc)
                for backend in self.backends.values():
                    if not backend.is_open:
                        backend.shut(self._refusal())
                continue
            self._down = ""
            emit(Event.LINK_UP, shard=self.name, node=self.node)
            for backend in self.backends.values():
                backend.reset()
            return

    def _lost(self, backend: Backend, why: str, lived_s: float) -> None:
        self.connections -= 1
        emit(Event.LINK_LOST, shard=self.name, node=self.node, why=why, requests=backend.waiting_requests)
        self._complain(self.name, str(self.node), why)
        if lived_s >= STEADY_S:
            self._pause_s = self._timeouts.reconnect_min_s  # not before: a server may let in and close at once
        wanted = backend.lost(why) or backend.is_base
        if self._closed:
            return
        if self._down:
            backend.shut(self._refusal())
        elif lived_s < STEADY_S:
            self._went_down(errors.CLOSED if why == errors.LOST else why)
        elif wanted:
            self.connect(backend)

    # --- one connection ---

    async def _open(self, backend: Backend) -> None:
        """Connect and set up; the backend is open then. Raises OSError with the reason."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        commands, expected = greeting(backend.proto, backend.db)
        opened = 0.0

        def on_setup(frame: bytes) -> None:
            nonlocal opened
            asked, wanted = expected.pop(0)
            if not frame.startswith(wanted):
                said = frame.split(b"\r\n", 1)[0][:100].decode("utf-8", "replace")
                if not done.done():
                    done.set_exception(SetupRefused(f"answered {asked} with {said}"))
                wire.drop("set-up refused")
            elif not expected and backend.is_open:
                # another attempt was faster; two connections on one queue would mix up its replies
                done.set_result(None)
                wire.drop("not needed")
            elif not expected:
                opened = loop.time()
                self.connections += 1
                wire.ready()
                done.set_result(None)

        def on_lost(why: str) -> None:
            if opened:
                self._lost(backend, why, loop.time() - opened)
            elif not done.done():
                done.set_exception(ConnectionError(why))

        wire = Wire(backend, on_setup, on_lost)
        try:
            async with asyncio.timeout(self._timeouts.connect_s):
                transport, _ = await loop.create_connection(lambda: wire, self.node.host, self.node.port)
                transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                wire.send(commands)
                await done
        except TimeoutError:
            wire.drop(f"no connection within {self._timeouts.connect_s:g} s")
            raise ConnectionError(f"no connection within {self._timeouts.connect_s:g} s") from None

    def __repr__(self) -> str:
        return f"<Link {self.name} {self.node} {self._down or 'up'} {list(self.backends.values())}>"


def greeting(proto: int, db: int) -> tuple[bytes, list[tuple[str, bytes]]]:
    """The first bytes of a connection, and for each of its replies what was asked and how the reply must begin.

    It ends with an ECHO of random bytes: whoever does not answer that is no Redis, or answers somebody else.
    """
    nonce = os.urandom(8).hex().encode()
    asked = [([b"ECHO", nonce], b"$16\r\n" + nonce)]
    if db:
        asked.insert(0, ([b"SELECT", b"%d" % db], b"+OK"))
    if proto == 3:
        asked.insert(0, ([b"HELLO", b"3"], b"%"))
    commands = b"".join(request.encode(argv) for argv, _ in asked)
    return commands, [(argv[0].decode(), wanted) for argv, wanted in asked]


def _reason(exc: OSError) -> str:
    """`[Errno 111] Connect call failed ('127.0.0.1', 1)` -> `connection refused`."""
    if exc.errno:
        return os.strerror(exc.errno).lower()
    return str(exc).lower()
