"""Leases: connections that one conversation has to itself, for as long as it needs one.

A command that blocks (BLPOP), whose effect stays with the connection (WATCH) or that runs code (EVAL) would stall or
change a connection that clients share. It acquires a connection of its own and releases it afterwards. A released
connection is kept idle for the next conversation if it is reusable; else it is closed. Leases belong to an epoch like
all other connections: when the shard gets another primary, all of them are closed.

Each kind of lease has a quota for each server, so no kind can take the connections that another needs. Beyond the
quota a long lease is refused, and a short one waits for its turn. All kinds share the idle connections.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import Enum, auto

from protocol import errors
from pyproxy.access import Refused, why
from pyproxy.deadline import within
from pyproxy.worker.lane.lane import Backend, Lane
from pyproxy.worker.shard.link import Link

IDLE_TIMEOUT_S = 30.0
"""An idle connection is closed after this time."""

MAX_IDLE = 8
"""The most idle connections of one server, protocol and database."""

SHORT_LIMIT = 32
"""The quota of one server for each of the kinds SHORT and CROSS_SHARD.

A server runs one script after another: with more connections they would wait there instead of here, and none would be
done sooner. While the answer of one and the request of the next are on their way, the server has those of the others to
do: 31 scripts of 20 us, which is a short one, are 0.6 ms, more than the way there and back within a network.
"""

REPLY_PROTO = 3
"""The protocol in which replies are parsed. HELLO may change the protocol of a lease, and 3 has all that 2 has."""


class LeaseKind(Enum):
    """How long a lease lasts."""

    LONG = auto()  # as long as its client likes, or a timeout says: commands that block, WATCH, WAIT
    SHORT = auto()  # until its server has answered: scripts, functions
    CROSS_SHARD = auto()  # until another shard has answered too: a shard that hangs exhausts this quota of others only


class Lease:
    """A connection. Its user sets `reusable` once nothing of the conversation is left on it.

    `proto` and `db`: as the connection was made. Whoever changes them must not set `reusable`. `quota`: where the lease
    is counted; None: it is idle, or out of band.
    """

    def __init__(self, lane: Lane, link: Link, proto: int, db: int, quota: "Quota | None") -> None:
        self.link = link
        self.proto = proto
        self.db = db
        self.quota = quota
        self.backend = Backend(lane, link, link.index, REPLY_PROTO, db)
        self.reusable = False
        self.client_id = b""  # the server's CLIENT ID of the connection, once somebody has asked for it
        self.unblock: Callable[[], None] | None = None  # ends the command that blocks there, without a loss
        self.lost = ""  # why it is not connected any more
        self.idle_since = 0.0

    async def open(self) -> None:
        """Raises OSError, see `access.why`."""
        self.backend.connecting()
        self.link.leased.add(self)
        try:
            await self.link.open_leased(self.backend, self.proto, self._on_lost)
        except BaseException:
            self.drop(errors.LOST)
            raise

    def drop(self, reason: str) -> None:
        """Close the connection. Requests that were sent on it are answered as for any lost connection."""
        if self.backend.wire is not None:
            self.backend.wire.drop(reason)
        else:
            self._on_lost(reason)

    def _on_lost(self, reason: str) -> None:
        if not self.lost:
            self.lost = reason
            self.link.leased.discard(self)
            self.release_quota()
            self.backend.lost(reason)
            self.backend.down(errors.not_applied(self.link.name, self.link.node, reason))

    def release_quota(self) -> None:
        quota, self.quota = self.quota, None
        if quota is not None:
            quota.release()


class LeaseWaiter:
    """A conversation that waits for a lease.

    `past_gate`: it has a write that has passed the gate of the shard, and waits there again if the gate closes.
    """

    def __init__(self, past_gate: bool) -> None:
        self.past_gate = past_gate
        self.result: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        """Empty: it is its turn. Else the error line that ends the wait."""

    @property
    def is_granted(self) -> bool:
        return self.result.done() and not self.result.result()

    def refuse(self, line: bytes) -> None:
        if not self.result.done():
            self.result.set_result(line)


class Quota:
    """How many leases of one kind one server may have at a time. Waiters are served in the order in which they came."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._free = limit
        self._waiters: deque[LeaseWaiter] = deque()

    @property
    def acquired(self) -> int:
        return self.limit - self._free

    def try_acquire(self) -> bool:
        if not self._free:
            return False
        self._free -= 1
        return True

    async def acquire(self, waiter: LeaseWaiter, timeout_s: float) -> bool:
        """Wait for a turn. False: none came in time. Raises NoLease if the waiter is refused."""
        self._waiters.append(waiter)
        try:
            with contextlib.suppress(TimeoutError):
                async with within(timeout_s):
                    await asyncio.wait([waiter.result])
        except asyncio.CancelledError:
            if waiter.is_granted:
                self.release()
            raise
        finally:
            if not waiter.is_granted and waiter in self._waiters:
                self._waiters.remove(waiter)
        if waiter.is_granted:
            return True
        if waiter.result.done():
            raise NoLease(waiter.result.result(), transient=True)
        return False

    def release(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.result.done():
                waiter.result.set_result(b"")
                return
        self._free += 1


class LeasePool:
    """All leases of this worker.

    `long_limit`: the quota of one server for long leases; `timeout_s`: how long the other kinds wait for a turn.
    """

    def __init__(self, lane: Lane, long_limit: int, timeout_s: float) -> None:
        self._lane = lane
        self._limits = {
            LeaseKind.LONG: long_limit,
            LeaseKind.SHORT: SHORT_LIMIT,
            LeaseKind.CROSS_SHARD: SHORT_LIMIT,
        }
        self._timeout_s = timeout_s
        self.quotas: dict[tuple[Link, LeaseKind], Quota] = {}
        self._idle: dict[tuple[Link, int, int], list[Lease]] = {}
        self._out_of_band: dict[Link, asyncio.Lock] = {}

    @property
    def idle(self) -> int:
        return sum(map(len, self._idle.values()))

    @asynccontextmanager
    async def lease(
        self, shard: int, kind: LeaseKind, proto: int, db: int, *, past_gate: bool = False
    ) -> AsyncIterator[Lease]:
        """Acquire a lease, and release it at the end of the block. Raises NoLease."""
        lease = await self.acquire(shard, kind, proto, db, past_gate=past_gate)
        try:
            yield lease
        finally:
            self.release(lease)

    async def acquire(self, shard: int, kind: LeaseKind, proto: int, db: int, *, past_gate: bool = False) -> Lease:
        """A connection to the primary of a shard. Raises NoLease with the line to refuse the command with.

        A conversation that needs several leases acquires them in the order of the shards, or two might wait for each
        other. `past_gate`: the lease is for a write that has passed the gate of the shard. The gate may close while it
        waits here.
        """
        link: Link = self._lane.links[shard]
        quota = await self._acquire_quota(link, kind, past_gate)
        lease = self._pop_idle(link, proto, db)
        if lease is None:
            return await self._connect(link, proto, db, quota)
        lease.quota = quota
        # its server may have sent an earlier user one reply too many, which must not pass for an answer to this one
        lease.backend.canary = self._lane.canary and kind is LeaseKind.SHORT
        return lease

    def release(self, lease: Lease) -> None:
        if lease.reusable and not lease.lost and not lease.backend.waiting_requests:
            lease.reusable = False
            lease.idle_since = time.monotonic()
            self._idle.setdefault((lease.link, lease.proto, lease.db), []).append(lease)
        else:
            lease.drop(errors.LOST)
        lease.release_quota()

    @asynccontextmanager
    async def out_of_band(self, shard: int) -> AsyncIterator[Lease]:
        """A connection for a request about another connection. It has no quota: each server has one at a time."""
        link: Link = self._lane.links[shard]
        async with self._out_of_band.setdefault(link, asyncio.Lock()):
            lease = self._pop_idle(link, 2, 0) or await self._connect(link, 2, 0, None)
            try:
                yield lease
            finally:
                self.release(lease)

    async def _acquire_quota(self, link: Link, kind: LeaseKind, past_gate: bool) -> Quota:
        """Raises NoLease."""
        quota = self.quotas.get((link, kind))
        if quota is None:
            quota = self.quotas[link, kind] = Quota(self._limits[kind])
        if quota.try_acquire():
            return quota
        if link.is_down:
            raise NoLease(link.refusal)
        if kind is LeaseKind.LONG:
            raise NoLease(errors.no_lease(link.name, link.node, quota.limit))
        waiter = LeaseWaiter(past_gate)
        link.lease_waiters[waiter] = None
        try:
            if not await quota.acquire(waiter, self._timeout_s):
                raise NoLease(errors.lease_timeout(link.name, link.node, quota.limit, self._timeout_s))
        finally:
            del link.lease_waiters[waiter]
        return quota

    def _pop_idle(self, link: Link, proto: int, db: int) -> Lease | None:
        idle = self._idle.get((link, proto, db), [])
        while idle:
            lease = idle.pop()
            if not lease.lost:
                return lease
        return None

    async def _connect(self, link: Link, proto: int, db: int, quota: Quota | None) -> Lease:
        """Make a connection, counted in this quota. Releases the quota where that fails."""
        lease = Lease(self._lane, link, proto, db, quota)
        if link.is_down:
            lease.release_quota()
            raise NoLease(link.refusal)
        if len(link.leased) >= sum(self._limits.values()):
            self._close_one_idle(link)
        try:
            await lease.open()
        except OSError as exc:
            transient = not link.is_down and not isinstance(exc, Refused)
            raise NoLease(errors.shard_down(link.name, link.node, why(exc)), transient) from None
        return lease

    def _close_one_idle(self, link: Link) -> None:
        """Close one idle connection to this server, of any protocol and database."""
        for key, idle in self._idle.items():
            while key[0] is link and idle:
                lease = idle.pop()
                if not lease.lost:
                    lease.drop(errors.LOST)
                    return

    def tick(self, now: float) -> None:
        """Close connections that have been idle for long, and those beyond MAX_IDLE."""
        for key, idle in list(self._idle.items()):
            expired = [lease for lease in idle[-MAX_IDLE:] if now - lease.idle_since > IDLE_TIMEOUT_S]
            for lease in idle[:-MAX_IDLE] + expired:
                lease.drop(errors.LOST)
            left = [lease for lease in idle if not lease.lost]
            if left:
                self._idle[key] = left
            else:
                del self._idle[key]


class NoLease(Exception):
    """No lease can be had, and nothing was sent. `line` is the error line that says why.

    `transient`: the state of the shard has just changed. The worker may not count the server as down yet, and its gate
    may close in a moment.
    """

    def __init__(self, line: bytes, transient: bool = False) -> None:
        super().__init__(line)
        self.line = line
        self.transient = transient
