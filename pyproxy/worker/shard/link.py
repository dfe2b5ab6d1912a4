"""The connections of one worker to one server.

    IDLE ──first command──▶ CONNECTING ──handshake done──▶ OPEN ──lost──▶ CONNECTING ──failed──▶ DOWN
    DOWN ──back-off, handshake done──▶ OPEN; other backends of the link: IDLE

A backend (one protocol and one database) is connected when it is first needed. A lost connection is replaced at once.
If that fails the server is down for this worker: every request is refused at once, and one attempt to connect is made
at a time, 50 ms to 5 s apart, until one succeeds. No request is sent before the handshake is done.

Requests, queues and deadlines are the lane's (lane.pyx). This module opens and closes the doors of backends.
"""

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from protocol import errors
from pyproxy.access import Access, Refused, why
from pyproxy.config import Timeouts
from pyproxy.deadline import within
from pyproxy.events import Event, emit
from pyproxy.messages import Work
from pyproxy.shard_map import Node
from pyproxy.worker.lane.lane import Backend, Lane, Wire
from pyproxy.worker.shard.handshake import Handshake
from pyproxy.worker.shard.server_limits import ServerLimits

Spawn = Callable[[Coroutine[Any, Any, None], str], None]

BULK = "bulk"
"""Marks the key of a second connection of the same protocol and database."""

STABLE_S = 1.0
"""A connection that was lost before it lived this long is not replaced at once, as that would be a loop."""

REPLICA_LOSSES = 5
"""How many such connections in a row are replaced at once all the same if the server is a replica that is read from. A
promoter kills the connections of a replica, perhaps more than once, and there is no other server to read from then."""

SETUP_RETRY_S = 1.0
"""How long a backend is suspended whose handshake the server refused, for a database that it does not have."""

MOVED = "is not the primary any more, and its connections were closed"

COMPLAINT_INTERVAL_S = 1.0
"""The least time between two complaints of the same refusal by the same server."""


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
    """The router of a shard, as its links need it; see router.py."""

    @property
    def link(self) -> "Link": ...  # to the primary
    @property
    def guarded(self) -> bool: ...
    @property
    def replicated(self) -> bool: ...
    def on_down(self, why: str) -> None: ...
    def on_up(self) -> None: ...


class Link:
    """`index`: of the shard in the map. `complain` tells the parent: shard, node, what."""

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
        self.limits = ServerLimits()  # as the server told them when it was last connected to
        self.router: ShardRouter | None = None  # None until the router is made
        self.backends: dict[tuple[int, int] | tuple[int, int, str], Backend] = {}
        self.connections = 0
        self._lane = lane
        self.index = index
        self._timeouts = timeouts
        self._access = access
        self._spawn = spawn
        self._complain = complain
        self._asks_limits = asks_limits  # not of ElastiCache, whose servers refuse CONFIG
        self._pause_s = timeouts.reconnect_min_s
        self._down = ""  # why nothing can be sent; empty while the server is up
        self._short_lived = 0  # connections in a row that were lost before STABLE_S
        self._misplaced = ""  # not empty: the server holds keys of another shard
        self._closed = False
        self._switching = False
        self._retry_now = asyncio.Event()  # ends the pause before the next attempt
        self._generation = 0  # grows with each `switch_to`: attempts of an earlier one are given up
        self._opening: set[Wire] = set()
        self.leased: set[Lease] = set()  # also idle ones
        self.lease_waiters: dict[LeaseWaiter, None] = {}  # in the order in which they came
        self.busy_until = 0.0  # CLOCK_MONOTONIC; other workers have sent the server a request through all its keys
        self.lost_at = 0.0  # CLOCK_MONOTONIC; since when there has been no connection; 0: there is one
        self._slow: dict[Backend, Work] = {}  # see slow_work
        self._complained_at: dict[str, float] = {}  # by code of a refusal, on the loop's clock

    @property
    def is_down(self) -> bool:
        return bool(self._down)

    def backend(self, proto: int, db: int) -> Backend:
        return self.backends.get((proto, db)) or self._new(proto, db)

    def bulk(self, first: Backend) -> Backend:
        """The second connection of a protocol and database, for requests that would keep those on the first waiting."""
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
        """Drop all connections, for good."""
        self._closed = True
        self._down = "is no longer served from here"
        self._drop_all()
        for backend in self.backends.values():
            backend.down(self.refusal)

    def switch_to(self, node: Node) -> None:
        """Connect to another server, or to the same in another epoch. All old connections and attempts are dropped."""
        self._generation += 1
        self._switching = True
        self._drop_all()
        self._switching = False
        self.node = node
        self.limits = ServerLimits()
        self._down = self._misplaced = ""
        self._pause_s = self._timeouts.reconnect_min_s
        self.lost_at = 0.0
        self.unanswered = 0
        for backend in list(self.backends.values()):
            backend.idle()
            if backend.is_base or backend.waiting_requests:
                self.connect(backend)

    def _drop_all(self) -> None:
        for lease in list(self.leased):
            lease.drop(MOVED if self._switching else errors.LOST)
        for wire in list(self._opening):
            wire.drop(MOVED)
        for backend in self.backends.values():
            if backend.wire is not None:
                backend.wire.drop(MOVED if self._switching else errors.LOST)

    def slow_work(self, now: float) -> list[Work]:
        """Requests that take long and that the server has not answered: of each connection the first one, oldest first.

        Without those that nobody waits for any more as work: a BLPOP may wait for ever.
        """
        patience_s, before, self._slow = self._timeouts.slow_reply_s, self._slow, {}
        for backend in (*self.backends.values(), *(lease.backend for lease in self.leased)):
            since = backend.slow_since
            if since and now - since < patience_s:
                known = before.get(backend)
                if known is None or known.since != since or not known.taken_at:
                    known = Work(self.name, since, since + patience_s, now if backend.is_acknowledged else 0.0)
                self._slow[backend] = known
        return sorted(self._slow.values(), key=lambda work: work.since)

    @property
    def unanswered(self) -> int:
        """How many requests in a row were not answered before their deadline."""
        return max((backend.unanswered for backend in self.backends.values()), default=0)

    @unanswered.setter
    def unanswered(self, count: int) -> None:
        for backend in self.backends.values():
            backend.unanswered = count

    def on_misplaced(self, what: str) -> None:
        """The health check found keys of another shard (`what`), so nothing may be sent; empty: it found none."""
        self._misplaced = what
        if what and not self._down:
            self._mark_down(what)
            for backend in self.backends.values():
                if backend.wire is not None:
                    backend.wire.drop(what)

    def on_refusal(self, code: str) -> None:
        """The server refused a request for a reason of its own, such as READONLY or MISCONF. The parent is told."""
        now = asyncio.get_running_loop().time()
        if now - self._complained_at.get(code, -COMPLAINT_INTERVAL_S) >= COMPLAINT_INTERVAL_S:
            self._complained_at[code] = now
            self._complain(self.name, str(self.node), f"answered -{code}")

    @property
    def refusal(self) -> bytes:
        """The error line for requests that come while the server is down."""
        return errors.shard_down(self.name, self.node, self._down)

    # --- up and down ---

    async def _connect(self, backend: Backend) -> None:
        generation = self._generation
        try:
            await self._open(backend, backend.proto)
        except OSError as exc:
            if generation != self._generation:
                return
            if isinstance(exc, Refused) and not backend.is_base:
                await self._suspend(backend, why(exc))
                return
            self._mark_down(why(exc))
            if not backend.is_open:
                backend.down(self.refusal)

    async def _suspend(self, backend: Backend, reason: str) -> None:
        """Refuse requests to this backend alone, for a while: other protocols and databases may be well."""
        emit(
            Event.LINK_REFUSED, shard=self.name, node=self.node, why=reason, protocol=backend.proto, database=backend.db
        )
        backend.down(errors.shard_down(self.name, self.node, reason))
        await asyncio.sleep(SETUP_RETRY_S)
        if not self._down:
            backend.reset()

    def _mark_down(self, reason: str) -> None:
        """Refuse all requests, and connect again with back-off."""
        if self._down or self._closed:
            return
        self._down = reason
        emit(Event.LINK_DOWN, shard=self.name, node=self.node, why=reason)
        self._complain(self.name, str(self.node), reason)
        self._refuse_all(reason)
        self._retry_now.clear()
        self._spawn(self._reconnect_loop(), f"recover {self.name}")

    def _refuse_all(self, reason: str) -> None:
        self._down = reason
        self._notify_router(reason)
        for backend in list(self.backends.values()):
            if not backend.is_open:
                backend.down(self.refusal)
        for waiter in list(self.lease_waiters):
            waiter.refuse(self.refusal)

    def _notify_router(self, reason: str) -> None:
        """Tell the router why nothing can be sent to the primary; empty: something can."""
        if self.router is None or self.router.link is not self:
            return
        if not reason:
            self.router.on_up()
        else:
            self.router.on_down(reason)

    def reconnect_now(self) -> None:
        """A health check has reached the server again: end the pause before the next attempt."""
        self._retry_now.set()

    async def _reconnect_loop(self) -> None:
        generation = self._generation
        while not self._closed and generation == self._generation:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._retry_now.wait(), self._pause_s * random.uniform(0.5, 1.0))
            self._retry_now.clear()  # not before the wait: it may have been set during the last attempt
            self._pause_s = min(self._pause_s * 2, self._timeouts.reconnect_max_s)
            if self._misplaced or generation != self._generation:
                continue
            base = self.backend(2, 0)
            try:
                if not base.is_open:
                    await self._open(base, base.proto)
            except OSError as exc:
                if generation == self._generation:
                    self._refuse_all(why(exc))
                continue
            if generation != self._generation:
                return
            self._down = ""
            emit(Event.LINK_UP, shard=self.name, node=self.node)
            for backend in self.backends.values():
                backend.reset()
            self._notify_router("")
            return

    def _on_lost(self, backend: Backend, reason: str, lived_s: float) -> None:
        self.connections -= 1
        if self._switching:
            backend.lost(reason)
            return
        emit(Event.LINK_LOST, shard=self.name, node=self.node, why=reason, requests=backend.waiting_requests)
        self._complain(self.name, str(self.node), reason)
        self._short_lived = self._short_lived + 1 if lived_s < STABLE_S else 0
        if lived_s >= STABLE_S:
            # not earlier, as a server may accept a connection and close it at once
            self._pause_s = self._timeouts.reconnect_min_s
        wanted = backend.lost(reason) or backend.is_base
        if not any(other.is_open for other in self.backends.values()):
            # else the server may have closed it for being idle, and it may never be replaced
            self.lost_at = self.lost_at or time.monotonic()
        if self._closed:
            return
        if self._down:
            self._refuse_all(self._down)
        elif self._short_lived > (0 if self.router is None or self.router.link is self else REPLICA_LOSSES):
            self._mark_down(errors.CLOSED if reason == errors.LOST else reason)
        elif wanted:
            self.connect(backend)

    # --- one connection ---

    async def open_leased(self, backend: Backend, proto: int, on_lost: Callable[[str], None]) -> None:
        """Connect the backend of a lease, which is none of `backends`, in `proto`. Raises OSError, see `access.why`."""
        generation = self._generation

        def lost(_: Backend, reason: str, lived_s: float) -> None:
            self.connections -= 1
            on_lost(reason)

        await self._open(backend, proto, lost)
        if generation != self._generation or self._closed:
            raise ConnectionError(MOVED)

    async def _open(
        self, backend: Backend, proto: int, lost: Callable[[Backend, str, float], None] | None = None
    ) -> None:
        """Connect, and open the backend. Raises OSError, see `access.why`. `lost`: called instead of `_on_lost`."""
        loop = asyncio.get_running_loop()
        # no exception: it would refer to this frame, and the frame to it, and only the collector would free both
        done: asyncio.Future[tuple[type[ConnectionError], str] | None] = loop.create_future()
        tls = self._access.tls()
        handshake = Handshake(proto, backend.db, self._access.auths(), asks_limits=lost is None and self._asks_limits)
        opened = 0.0

        def on_setup(frame: bytes) -> None:
            nonlocal opened
            if done.done():
                wire.drop(errors.LOST)  # it was given up in this turn of the loop, by code that has not run yet
                return
            try:
                more = handshake.on_reply(frame)
            except Refused as exc:
                done.set_result((Refused, str(exc)))
                wire.drop("set-up refused")
                return
            if more:
                wire.send(more)
            elif handshake.is_done and backend.is_open:
                # another attempt was faster, and two connections on one queue would mix up their replies
                done.set_result(None)
                wire.drop("not needed")
            elif handshake.is_done:
                opened = loop.time()
                self.connections += 1
                self._opening.discard(wire)
                if lost is None:
                    self._apply_limits(backend, handshake.limits)
                wire.ready()
                done.set_result(None)
                if lost is not None:
                    return
                self.lost_at = 0.0
                if not self._down:
                    self._notify_router("")

        def on_lost(reason: str) -> None:
            self._opening.discard(wire)
            if opened:
                (lost or self._on_lost)(backend, reason, loop.time() - opened)
            elif not done.done():
                done.set_result((ConnectionError, reason))

        wire = Wire(backend, on_setup, on_lost)
        self._opening.add(wire)
        try:
            async with within(self._timeouts.connect_s):
                transport, _ = await loop.create_connection(lambda: wire, self.node.host, self.node.port, ssl=tls)
                if not done.done():  # else it was given up meanwhile, and its socket is closed
                    sock = transport.get_extra_info("socket")
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    if lost is not None:
                        enable_keepalive(sock, self._timeouts.silence_s)
                    wire.send(handshake.next_bytes())
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
                wire.drop(errors.LOST)  # it was given up

    def _apply_limits(self, backend: Backend, limits: ServerLimits) -> None:
        """Keep within the limits that the server has told. Limits that cannot be kept are logged."""
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


def enable_keepalive(sock: socket.socket, silence_s: float) -> None:
    """Have the kernel close a connection whose other end has gone without a FIN (tcp(7)).

    This is for connections on which a command may block for ever. Their silence says nothing, but the kernel of a
    server that is alive acknowledges.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):  # Linux; macOS has another name for it, and its default is two hours
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, int(silence_s)))
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # also of what was sent and not acknowledged
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(2000 * silence_s))
