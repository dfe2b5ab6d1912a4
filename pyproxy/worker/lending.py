"""Connections that one conversation has to itself, for as long as it needs one.

A command that waits (BLPOP), whose effect stays with the connection (WATCH) or that runs code (EVAL) would stall or
change a connection that clients share. It borrows one: made when no idle one is there, given back afterwards if nothing
is left of the conversation on it, else closed. They belong to an epoch like all others: when the shard gets another
primary none is left.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from protocol import errors
from pyproxy.access import Refused, why
from pyproxy.worker.lane import Backend, Lane
from pyproxy.worker.link import Link

IDLE_S = 30.0
"""How long a connection that nobody borrows is kept."""

IDLE_MOST = 8
"""And how many of one server, protocol and database."""


READS = 3
"""The protocol that is understood on all of them, as HELLO may change what is spoken on one. It has all that 2 has."""


class Loan:
    """A connection. `keep` is set where nothing of the conversation is left on it, so that the next may have it.

    `proto` and `db`: as it was made; whoever changes that does not have it kept.
    """

    def __init__(self, lane: Lane, link: Link, proto: int, db: int) -> None:
        self.link = link
        self.proto = proto
        self.db = db
        self.backend = Backend(lane, link, link.index, READS, db)
        self.keep = False
        self.id = b""  # by which the server knows it, once somebody has asked
        self.let_go: Callable[[], None] | None = None  # has a command that waits there come back without loss
        self.lost = ""  # why it is not connected any more
        self.idle_since = 0.0

    async def open(self) -> None:
        """Raises OSError, see `access.why`."""
        self.backend.queue()
        self.link.lent.add(self)
        try:
            await self.link.open_lent(self.backend, self.proto, self._on_lost)
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
            self.link.lent.discard(self)
            self.backend.lost(reason)
            self.backend.shut(errors.not_applied(self.link.name, self.link.node, reason))


class Lender:
    """All that is lent in this worker; `most`: of one shard."""

    def __init__(self, lane: Lane, most: int) -> None:
        self._lane = lane
        self._most = most
        self._idle: dict[tuple[Link, int, int], list[Loan]] = {}
        self._aside: dict[Link, asyncio.Lock] = {}

    @asynccontextmanager
    async def lend(self, shard: int, proto: int, db: int) -> AsyncIterator[Loan]:
        """As `borrow`, and given back at the end of the block."""
        loan = await self.borrow(shard, proto, db)
        try:
            yield loan
        finally:
            self.take_back(loan)

    async def borrow(self, shard: int, proto: int, db: int) -> Loan:
        """A connection to the primary of a shard. Raises Unlendable with the line to refuse the command with."""
        link: Link = self._lane.links[shard]
        return self._idle_one(link, proto, db) or await self._new(link, proto, db, self._most)

    def take_back(self, loan: Loan) -> None:
        if loan.keep and not loan.lost and not loan.backend.waiting_requests:
            loan.keep = False
            loan.idle_since = time.monotonic()
            self._idle.setdefault((loan.link, loan.proto, loan.db), []).append(loan)
        else:
            loan.drop(errors.LOST)

    @asynccontextmanager
    async def aside(self, shard: int) -> AsyncIterator[Loan]:
        """A connection for a word about another one: for one at a time of each server, and beyond the limit."""
        link: Link = self._lane.links[shard]
        async with self._aside.setdefault(link, asyncio.Lock()):
            loan = self._idle_one(link, 2, 0) or await self._new(link, 2, 0, self._most + 1)
            try:
                yield loan
            finally:
                self.take_back(loan)

    def _idle_one(self, link: Link, proto: int, db: int) -> Loan | None:
        idle = self._idle.get((link, proto, db), [])
        while idle:
            loan = idle.pop()
            if not loan.lost:
                return loan
        return None

    async def _new(self, link: Link, proto: int, db: int, most: int) -> Loan:
        if link.is_down:
            raise Unlendable(link.refusal)
        if len(link.lent) >= most and not self._drop_idle(link):
            raise Unlendable(errors.none_to_lend(link.name, link.node, self._most))
        loan = Loan(self._lane, link, proto, db)
        try:
            await loan.open()
        except OSError as exc:
            news = not link.is_down and not isinstance(exc, Refused)
            raise Unlendable(errors.shard_down(link.name, link.node, why(exc)), news) from None
        return loan

    def _drop_idle(self, link: Link) -> bool:
        """Close one that is idle, in another protocol or database -> whether there was one."""
        for key, idle in self._idle.items():
            while key[0] is link and idle:
                loan = idle.pop()
                if not loan.lost:
                    loan.drop(errors.LOST)
                    return True
        return False

    def tick(self, now: float) -> None:
        """Close what has been idle for long, or is too many."""
        for key, idle in list(self._idle.items()):
            for loan in idle[:-IDLE_MOST] + [loan for loan in idle[-IDLE_MOST:] if now - loan.idle_since > IDLE_S]:
                loan.drop(errors.LOST)
            left = [loan for loan in idle if not loan.lost]
            if left:
                self._idle[key] = left
            else:
                del self._idle[key]


class Unlendable(Exception):
    """There is no connection to be had, and nothing was sent; `line` says why.

    `news`: the worker does not count the server as down yet, so in a moment its gate may say that one should wait.
    """

    def __init__(self, line: bytes, news: bool = False) -> None:
        super().__init__(line)
        self.line = line
        self.news = news
