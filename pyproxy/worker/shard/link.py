"""This worker's connections to one shard: when there is one, when there is none, and what is said meanwhile.

    IDLE ──first command──▶ QUEUE ──set up──▶ OPEN ──lost──▶ QUEUE ──failed──▶ SHUT ──back-off, set up──▶ OPEN or IDLE

A backend (one protocol and one database) is connected when it is first needed.  A lost connection is replaced at
once; if that fails the shard is down for this worker: everything is refused at once, and one attempt at a time is
made, 50 ms to 5 s apart, until one succeeds.  No request is sent before the set-up of a connection (TLS, AUTH, HELLO,
SELECT, ECHO) has been answered as expected.

Requests, queues and deadlines are the lane's (lane.pyx); this module opens and closes doors.
"""

import asyncio
import contextlib
import os
import random
import socket
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from protocol import errors, request
from pyproxy.access import Access, Refused, admitted, why
from pyproxy.config import Timeouts
from pyproxy.deadline import within
from pyproxy.events import Event, emit
from pyproxy.shard_map import Node
from pyproxy.worker.lane.lane import Backend, Lane, Wire
from pyproxy.worker.shard.server_limits import QUESTIONS, STAY, ServerLimits

Spawn = Callable[[Coroutine[Any, Any, None], str], None]

BULK = "bulk"
"""What the key of a second connection ends with, beside protocol and database."""

STEADY_S = 1.0
"""A connection that was lost before it lived this long is not replaced at once: that would be a loop."""

SIDE_LOSSES = 5
"""So many such in a row are replaced at once all the same if the server is a replica that is read from: whoever
promotes kills its connections, perhaps more than once, and there is nobody else to read from then."""

REFUSED_S = 1.0
"""How long a backend whose set-up the server refused (a database it does not have) is not tried again."""

MOVED = "is not the primary any more, and its connections were closed"

COMPLAIN_S = 1.0
"""How long after a complaint of a refusal the same refusal by the same shard is no news."""


class Lease(Protocol):
    """A connection that one conversation has to itself; see pool.py."""

    unblock: Callable[[], None] | None

    @property
    def backend(self) -> Backend: ...
    def drop(self, why: str) -> None: ...


class LeaseWaiter(Protocol):
    """A conversation that waits for a lease; see pool.py."""

    @property
    def past_gate(self) -> bool: ...
    def refuse(self, line: bytes) -> None: ...


class ShardRouter(Protocol):
    """What a link knows of its shard; see router.py."""

    @property
    def link(self) -> "Link": ...  # to the primary
    @property
    def guarded(self) -> bool: ...
    @property
    def replicated(self) -> bool: ...
    def on_down(self, why: str) -> None: ...
    def on_up(self) -> None: ...


class Link:
    """The connections of one worker to one server of a shard; `index` is the shard's place in the map."""

    def __init__(
        self,
        lane: Lane,
        index: int,
        name: str,
        node: Node,
        timeouts: Timeouts,
        access: Access,
        spawn: Spawn,
        complain: Callable[[str, str, str], None],
        asks_limits: bool = True,
    ) -> None:
        self.name = name
        self.node = node
        self.limits = ServerLimits()  # of the server, as it said when it was connected to last
        self.router: ShardRouter | None = None  # of its shard, once that is known
        self.backends: dict[tuple[int, int] | tuple[int, int, str], Backend] = {}
        self.connections = 0
        self._lane = lane
        self.index = index
        self._timeouts = timeouts
        self._access = access
        self._spawn = spawn
        self._complain = complain
        self._asks_limits = asks_limits  # servers of ElastiCache refuse CONFIG
        self._pause_s = timeouts.reconnect_min_s
        self._down = ""  # why nothing can be sent; empty while the shard is up
        self._short_lived = 0  # connections in a row
        self._barred = ""
        self._closed = False
        self._moving = False
        self._reconnect = asyncio.Event()  # ends the pause before the next attempt
        self._turn = 0  # grows with each `switch_to`: what was begun for an earlier one comes to nothing
        self._opening: set[Wire] = set()
        self.leased: set[Lease] = set()  # also idle ones
        self.lease_waiters: dict[LeaseWaiter, None] = {}  # in the order in which they came
        self.busy_until = 0.0  # CLOCK_MONOTONIC; the server is at a request through all its keys, sent by other workers
        self.lost_at = 0.0  # CLOCK_MONOTONIC; when the last was lost, and there has been none since; 0: there is one
        self._complained: dict[str, float] = {}  # code of a refusal -> when, on the loop's clock

    @property
    def is_down(self) -> bool:
        return bool(self._down)

    def backend(self, proto: int, db: int) -> Backend:
        return self.backends.get((proto, db)) or self._new(proto, db)

    def bulk(self, first: Backend) -> Backend:
        """The second connection of a protocol and database, for what would keep the requests on the first waiting."""
        return self.backends.get((first.proto, first.db, BULK)) or self._new(first.proto, first.db, bulk=True)

    def _new(self, proto: int, db: int, *, bulk: bool = False) -> Backend:
        backend = Backend(self._lane, self, self.index, proto, db, bulk)
        self.backends[(proto, db, BULK) if bulk else (proto, db)] = backend
        backend.canary = self._lane.canary
        if self._down:
            backend.down(self.refusal)
        if self.router is not None:
            backend.guard(self.router, self.router.guarded, self.router.replicated)
        return backend

    def connect(self, backend: Backend) -> None:
        """Called by the lane for the first command to a backend."""
        backend.connecting()
        self._spawn(self._connect(backend), f"connect {self.name}")

    def close(self) -> None:
        """Give all connections up; for a server that is needed no more, and for the end."""
        self._closed = True
        self._down = "is no longer served from here"
        self._give_up()
        for backend in self.backends.values():
            backend.down(self.refusal)

    def switch_to(self, node: Node) -> None:
        """Another server, or the same in another epoch: of the connections of before none is left, nor being made."""
        self._turn += 1
        self._moving = True
        self._give_up()
        self._moving = False
        self.node = node
        self.limits = ServerLimits()
        self._down = self._barred = ""
        self._pause_s = self._timeouts.reconnect_min_s
        self.lost_at = 0.0
        self.unanswered = 0
        for backend in list(self.backends.values()):
            backend.idle()
            if backend.is_base or backend.waiting_requests:
                self.connect(backend)

    def _give_up(self) -> None:
        for lease in list(self.leased):
            lease.drop(MOVED if self._moving else errors.LOST)
        for wire in list(self._opening):
            wire.drop(MOVED)
        for backend in self.backends.values():
            if backend.wire is not None:
                backend.wire.drop(MOVED if self._moving else errors.LOST)

    @property
    def slow_since(self) -> float:
        """When the first request through all keys was sent that the server has not answered; 0.0: there is none."""
        backends = (*self.backends.values(), *(lease.backend for lease in self.leased))
        return min((each.slow_since for each in backends if each.slow_since), default=0.0)

    @property
    def unanswered(self) -> int:
        """How many requests in a row got no answer before their deadline, and none came since."""
        return max((backend.unanswered for backend in self.backends.values()), default=0)

    @unanswered.setter
    def unanswered(self, count: int) -> None:
        for backend in self.backends.values():
            backend.unanswered = count

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

    @property
    def refusal(self) -> bytes:
        """The line for what comes while it is down."""
        return errors.shard_down(self.name, self.node, self._down)

    # --- up and down ---

    async def _connect(self, backend: Backend) -> None:
        turn = self._turn
        try:
            await self._open(backend, backend.proto)
        except OSError as exc:
            if turn != self._turn:
                return
            if isinstance(exc, Refused) and not backend.is_base:
                await self._bar(backend, why(exc))
                return
            self._went_down(why(exc))
            if not backend.is_open:
                backend.down(self.refusal)

    async def _bar(self, backend: Backend, reason: str) -> None:
        """The others of this shard may be well: only this protocol and database are refused, and only for a while."""
        emit(
            Event.LINK_REFUSED, shard=self.name, node=self.node, why=reason, protocol=backend.proto, database=backend.db
        )
        backend.down(errors.shard_down(self.name, self.node, reason))
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
        self._shut(reason)
        self._spawn(self._recover(), f"recover {self.name}")

    def _shut(self, reason: str) -> None:
        self._down = reason
        self._tell_router(reason)
        for backend in list(self.backends.values()):
            if not backend.is_open:
                backend.down(self.refusal)
        for waiter in list(self.lease_waiters):
            waiter.refuse(self.refusal)

    def _tell_router(self, reason: str) -> None:
        """Of a shard's primary its gate is told that nothing can be sent to it, and why; empty: that it can."""
        if self.router is None or self.router.link is not self:
            return
        if not reason:
            self.router.on_up()
        else:
            self.router.on_down(reason)

    def reconnect_now(self) -> None:
        """The server has been seen again: where it is down, the next attempt is made without the rest of the pause."""
        self._reconnect.set()

    async def _recover(self) -> None:
        turn = self._turn
        while not self._closed and turn == self._turn:
            self._reconnect.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._reconnect.wait(), self._pause_s * random.uniform(0.5, 1.0))
            self._pause_s = min(self._pause_s * 2, self._timeouts.reconnect_max_s)
            if self._barred or turn != self._turn:
                continue
            base = self.backend(2, 0)
            try:
                if not base.is_open:
                    await self._open(base, base.proto)
            except OSError as exc:
                if turn == self._turn:
                    self._shut(why(exc))
                continue
            if turn != self._turn:
                return
            self._down = ""
            emit(Event.LINK_UP, shard=self.name, node=self.node)
            for backend in self.backends.values():
                backend.reset()
            self._tell_router("")
            return

    def _lost(self, backend: Backend, reason: str, lived_s: float) -> None:
        self.connections -= 1
        if self._moving:
            backend.lost(reason)
            return
        emit(Event.LINK_LOST, shard=self.name, node=self.node, why=reason, requests=backend.waiting_requests)
        self._complain(self.name, str(self.node), reason)
        self._short_lived = self._short_lived + 1 if lived_s < STEADY_S else 0
        if lived_s >= STEADY_S:
            self._pause_s = self._timeouts.reconnect_min_s  # not before: a server may let in and close at once
        wanted = backend.lost(reason) or backend.is_base
        if not any(other.is_open for other in self.backends.values()):
            # else it was one that its server ended for being idle, and there may never be another in its place
            self.lost_at = self.lost_at or time.monotonic()
        if self._closed:
            return
        if self._down:
            self._shut(self._down)
        elif self._short_lived > (0 if self.router is None or self.router.link is self else SIDE_LOSSES):
            self._went_down(errors.CLOSED if reason == errors.LOST else reason)
        elif wanted:
            self.connect(backend)

    # --- one connection ---

    async def open_leased(self, backend: Backend, proto: int, on_lost: Callable[[str], None]) -> None:
        """Connect and set up a backend that is not one of `backends`, in `proto`. Raises OSError, see `access.why`."""
        turn = self._turn

        def lost(_: Backend, reason: str, lived_s: float) -> None:
            self.connections -= 1
            on_lost(reason)

        await self._open(backend, proto, lost)
        if turn != self._turn or self._closed:
            raise ConnectionError(MOVED)

    async def _open(
        self, backend: Backend, proto: int, lost: Callable[[Backend, str, float], None] | None = None
    ) -> None:
        """Connect and set up; the backend is open then. Raises OSError, see `access.why`. `lost`: told, for a lease."""
        loop = asyncio.get_running_loop()
        # what went wrong, and no exception: it would know this call, which knows it, and both be left to the collector
        done: asyncio.Future[tuple[type[ConnectionError], str] | None] = loop.create_future()
        tls = self._access.tls()
        greeting = Greeting(proto, backend.db, self._access.auths(), asks_limits=lost is None and self._asks_limits)
        opened = 0.0

        def on_setup(frame: bytes) -> None:
            nonlocal opened
            if done.done():
                wire.drop(errors.LOST)  # it was given up in this turn, and who did so has not run yet
                return
            try:
                more = greeting.heard(frame)
            except Refused as exc:
                done.set_result((Refused, str(exc)))
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
                self._opening.discard(wire)
                if lost is None:
                    self._learn(backend, greeting.limits)
                wire.ready()
                done.set_result(None)
                if lost is not None:
                    return
                self.lost_at = 0.0
                if not self._down:
                    self._tell_router("")

        def on_lost(reason: str) -> None:
            self._opening.discard(wire)
            if opened:
                (lost or self._lost)(backend, reason, loop.time() - opened)
            elif not done.done():
                done.set_result((ConnectionError, reason))

        wire = Wire(backend, on_setup, on_lost)
        self._opening.add(wire)
        try:
            async with within(self._timeouts.connect_s):
                transport, _ = await loop.create_connection(lambda: wire, self.node.host, self.node.port, ssl=tls)
                if not done.done():  # else it was given up meanwhile, and has no socket any more
                    sock = transport.get_extra_info("socket")
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    if lost is not None:
                        notice_death(sock, self._timeouts.silence_s)
                    wire.send(greeting.first())
                failed = await done
            if failed is not None:
                kind, reason = failed
                raise kind(reason)
        except TimeoutError:
            reason = f"no {'tls ' if tls else ''}connection within {self._timeouts.connect_s:g} s"
            wire.drop(reason)
            raise ConnectionError(reason) from None
        finally:
            self._opening.discard(wire)
            if not opened:
                wire.drop(errors.LOST)  # nobody waits for it any more, nor for its deadline

    def _learn(self, backend: Backend, limits: ServerLimits) -> None:
        """What is sent to it is bounded by what it says that it takes; the operator is told of what cannot be."""
        backend.idle_s = limits.idle_s / 2
        if limits == self.limits:
            return
        for setting, value in set(limits.risks) - set(self.limits.risks):
            emit(Event.SERVER_LIMIT, shard=self.name, node=self.node, setting=setting, value=value)
        self.limits = limits
        if self._lane.review_limits():
            most = limits.argument
            emit(Event.SERVER_LIMIT, shard=self.name, node=self.node, setting="limits.bulk_bytes", value=most)

    def __repr__(self) -> str:
        return f"<Link {self.name} {self.node} {self._down or 'up'} {list(self.backends.values())}>"


def notice_death(sock: socket.socket, silence_s: float) -> None:
    """Have the kernel close a connection whose other end is gone without a word (tcp(7)).

    For those on which a command may wait for ever: of them silence says nothing, but a machine that lives acknowledges.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):  # Linux; macOS has another name for it, and its default is two hours
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, int(silence_s)))
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # also of what was sent and not acknowledged
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(2000 * silence_s))


class Greeting:
    """What is said first on a connection, and whether the answers are right.

    AUTH, alone, until a password is accepted; then HELLO, SELECT and an ECHO of random bytes in one go: whoever does
    not answer that is no Redis, or answers somebody else.  On a connection that clients share the server is asked
    before that what it limits; it may refuse to say.
    """

    def __init__(self, proto: int, db: int, auths: list[list[bytes]], asks_limits: bool) -> None:
        nonce = os.urandom(8).hex().encode()
        self.limits = ServerLimits()
        asked = [([b"ECHO", nonce], b"$16\r\n" + nonce)]
        if asks_limits:
            asked[:0] = [(question, b"") for question in QUESTIONS]
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
        if asked == "CONFIG":
            evicted, self.limits = self.limits.evicts, self.limits.heard(frame)
            if self.limits.evicts and not evicted:
                self._expected.append((STAY[0].decode(), b""))
                return request.encode(STAY)
        elif asked == "CLIENT" and frame.startswith(b"-"):
            self.limits = self.limits.may_be_evicted(frame)
        if frame.startswith(wanted):
            return b""
        if frame.startswith(b"-NOAUTH"):
            raise Refused("asks for a password, and backend.password_file names none")
        said = frame.split(b"\r\n", 1)[0][:100].decode("utf-8", "replace")
        raise Refused(f"answered {asked} with {said}")
