"""Connections that one conversation has to itself, for as long as it needs one.

A command that waits (BLPOP), whose effect stays with the connection (WATCH) or that runs code (EVAL) would stall or
change a connection that clients share. It borrows one: made when no idle one is there, given back afterwards if nothing
is left of the conversation on it, else closed. They belong to an epoch like all others: when the shard gets another
primary none is left.

Of each server so many are lent for each use, and no use can take what another needs. Beyond that, who would hold one
for long is refused, and who needs one briefly waits for its turn. Idle ones serve all uses.
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

IDLE_S = 30.0
"""How long a connection that nobody borrows is kept."""

IDLE_MOST = 8
"""And how many of one server, protocol and database."""

BRIEF_MOST = 32
"""How many of one server are lent at a time for each use that is brief.

A server runs one script after another: with more connections they would wait there instead of here, and none would be
done sooner. While the answer of one and the request of the next are on their way, the server has those of the others to
do: 31 scripts of 20 us, which is a short one, are 0.6 ms, more than the way there and back within a network.
"""

READS = 3
"""The protocol that is understood on all of them, as HELLO may change what is spoken on one. It has all that 2 has."""


class Use(Enum):
    """What a connection is lent for."""

    HELD = auto()  # for as long as its client likes, or a timeout says: commands that wait, WATCH, WAIT
    BRIEF = auto()  # until its server has answered: scripts, functions
    ACROSS = auto()  # until another shard has answered too: one that stands still takes these of others and no more


class Lease:
    """A connection. `keep` is set where nothing of the conversation is left on it, so that the next may have it.

    `proto` and `db`: as it was made; whoever changes that does not have it kept. `share`: where it has its place; None:
    it is idle, or beyond all shares.
    """

    def __init__(self, lane: Lane, link: Link, proto: int, db: int, share: "Share | None") -> None:
        self.link = link
        self.proto = proto
        self.db = db
        self.share = share
        self.backend = Backend(lane, link, link.index, READS, db)
        self.keep = False
        self.id = b""  # by which the server knows it, once somebody has asked
        self.let_go: Callable[[], None] | None = None  # has a command that waits there come back without loss
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
        """Close it: what was sent gets its verdict."""
        if self.backend.wire is not None:
            self.backend.wire.drop(reason)
        else:
            self._on_lost(reason)

    def _on_lost(self, reason: str) -> None:
        if not self.lost:
            self.lost = reason
            self.link.leased.discard(self)
            self.leave()
            self.backend.lost(reason)
            self.backend.down(errors.not_applied(self.link.name, self.link.node, reason))

    def leave(self) -> None:
        """Its place is for the next."""
        share, self.share = self.share, None
        if share is not None:
            share.give()


class Turn:
    """Somebody waits for a place. `gated`: who has passed the gate of the shard, and goes back when that closes."""

    def __init__(self, gated: bool) -> None:
        self.gated = gated
        self.come: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        """Empty: it has the place; else why it shall not wait any longer."""

    @property
    def is_served(self) -> bool:
        return self.come.done() and not self.come.result()

    def call_off(self, line: bytes) -> None:
        if not self.come.done():
            self.come.set_result(line)


class Share:
    """The places of one use at one server. Who finds none may wait: they are given in the order of coming."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._free = most
        self._turns: deque[Turn] = deque()

    def take(self) -> bool:
        """Whether there was a place."""
        if not self._free:
            return False
        self._free -= 1
        return True

    async def wait(self, turn: Turn, wait_s: float) -> bool:
        """Whether a place came in time. Raises NoLease where the turn is called off."""
        self._turns.append(turn)
        try:
            with contextlib.suppress(TimeoutError):
                async with within(wait_s):
                    await asyncio.wait([turn.come])
        except asyncio.CancelledError:
            if turn.is_served:
                self.give()
            raise
        finally:
            if not turn.is_served and turn in self._turns:
                self._turns.remove(turn)
        if turn.is_served:
            return True
        if turn.come.done():
            raise NoLease(turn.come.result(), news=True)
        return False

    def give(self) -> None:
        """A place is free, or rather the next one's."""
        while self._turns:
            turn = self._turns.popleft()
            if not turn.come.done():
                turn.come.set_result(b"")
                return
        self._free += 1


class LeasePool:
    """All that is lent in this worker.

    `held`: how many of one server may be held; `wait_s`: how long others wait for one.
    """

    def __init__(self, lane: Lane, held: int, wait_s: float) -> None:
        self._lane = lane
        self._most = {Use.HELD: held, Use.BRIEF: BRIEF_MOST, Use.ACROSS: BRIEF_MOST}
        self._wait_s = wait_s
        self._shares: dict[tuple[Link, Use], Share] = {}
        self._idle: dict[tuple[Link, int, int], list[Lease]] = {}
        self._aside: dict[Link, asyncio.Lock] = {}

    @asynccontextmanager
    async def lend(self, shard: int, use: Use, proto: int, db: int, *, gated: bool = False) -> AsyncIterator[Lease]:
        """As `borrow`, and given back at the end of the block."""
        lease = await self.borrow(shard, use, proto, db, gated=gated)
        try:
            yield lease
        finally:
            self.take_back(lease)

    async def borrow(self, shard: int, use: Use, proto: int, db: int, *, gated: bool = False) -> Lease:
        """A connection to the primary of a shard. Raises NoLease with the line to refuse the command with.

        Who needs several at once takes them in the order of the shards, or two might wait for each other. `gated`: it
        is for a write that has passed the gate of the shard, and while it waits here that may close.
        """
        link: Link = self._lane.links[shard]
        share = await self._place(link, use, gated)
        lease = self._idle_one(link, proto, db)
        if lease is None:
            return await self._new(link, proto, db, share)
        lease.share = share
        # it has served others: what it may have said too much must not be taken for an answer to this one
        lease.backend.canary = self._lane.canary and use is Use.BRIEF
        return lease

    def take_back(self, lease: Lease) -> None:
        if lease.keep and not lease.lost and not lease.backend.waiting_requests:
            lease.keep = False
            lease.idle_since = time.monotonic()
            self._idle.setdefault((lease.link, lease.proto, lease.db), []).append(lease)
        else:
            lease.drop(errors.LOST)
        lease.leave()

    @asynccontextmanager
    async def aside(self, shard: int) -> AsyncIterator[Lease]:
        """A connection for a word about another one: for one at a time of each server, and beyond all shares."""
        link: Link = self._lane.links[shard]
        async with self._aside.setdefault(link, asyncio.Lock()):
            lease = self._idle_one(link, 2, 0) or await self._new(link, 2, 0, None)
            try:
                yield lease
            finally:
                self.take_back(lease)

    async def _place(self, link: Link, use: Use, gated: bool) -> Share:
        """Where a place was taken. Raises NoLease."""
        share = self._shares.get((link, use))
        if share is None:
            share = self._shares[link, use] = Share(self._most[use])
        if share.take():
            return share
        if link.is_down:
            raise NoLease(link.refusal)
        if use is Use.HELD:
            raise NoLease(errors.none_to_lend(link.name, link.node, share.most))
        turn = Turn(gated)
        link.turns[turn] = None
        try:
            if not await share.wait(turn, self._wait_s):
                raise NoLease(errors.none_came_back(link.name, link.node, share.most, self._wait_s))
        finally:
            del link.turns[turn]
        return share

    def _idle_one(self, link: Link, proto: int, db: int) -> Lease | None:
        idle = self._idle.get((link, proto, db), [])
        while idle:
            lease = idle.pop()
            if not lease.lost:
                return lease
        return None

    async def _new(self, link: Link, proto: int, db: int, share: Share | None) -> Lease:
        """In this place of a share; where it cannot be had, the place is free again."""
        lease = Lease(self._lane, link, proto, db, share)
        if link.is_down:
            lease.leave()
            raise NoLease(link.refusal)
        if len(link.leased) >= sum(self._most.values()):
            self._drop_idle(link)
        try:
            await lease.open()
        except OSError as exc:
            news = not link.is_down and not isinstance(exc, Refused)
            raise NoLease(errors.shard_down(link.name, link.node, why(exc)), news) from None
        return lease

    def _drop_idle(self, link: Link) -> None:
        """Close one that is idle, in another protocol or database."""
        for key, idle in self._idle.items():
            while key[0] is link and idle:
                lease = idle.pop()
                if not lease.lost:
                    lease.drop(errors.LOST)
                    return

    def tick(self, now: float) -> None:
        """Close what has been idle for long, or is too many."""
        for key, idle in list(self._idle.items()):
            for lease in idle[:-IDLE_MOST] + [lease for lease in idle[-IDLE_MOST:] if now - lease.idle_since > IDLE_S]:
                lease.drop(errors.LOST)
            left = [lease for lease in idle if not lease.lost]
            if left:
                self._idle[key] = left
            else:
                del self._idle[key]


class NoLease(Exception):
    """There is no connection to be had, and nothing was sent; `line` says why.

    `news`: something has just become otherwise. The worker may not count the server as down yet, and in a moment its
    gate may say that one should wait.
    """

    def __init__(self, line: bytes, news: bool = False) -> None:
        super().__init__(line)
        self.line = line
        self.news = news
