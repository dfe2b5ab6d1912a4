"""Clients that wait for keys of several shards are asked for together: is any of these keys there?

What is there for whom is asked by polling.py, which tells this module when to ask again. Each worker asks a shard once
for all of its clients that wait in a database, and not once for each of them:

    EXISTS k1 ... kn                    0: nobody is called, and that is all there is to do while nothing comes
      └─ MULTI, LLEN k1, ZCARD k2 ...   else as many as there are elements, in the order in which they came
           └─ called                    a round of their own, as if they had come just now

A shard that answers with an error, or not at all, has all called who wait for it: their own rounds find out. Only lists
and sorted sets: a stream is there all the time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from protocol import scan
from protocol.reply import BadFrame, integer
from protocol.request import Asked, Block, Request
from pyproxy.worker.commands.conversation import Conversation
from pyproxy.worker.lane.split import ask

FIRST_S, LONGEST_S = 0.01, 0.1
"""Between two questions; each time half as long again, until somebody comes or is called."""

MOST_KEYS = 512
"""In one question: a server is not to be kept from others."""

MOST_BYTES = 1 << 16


class Waiter:
    """A conversation that waits. `size`: the command that counts what it waits for (LLEN, ZCARD); `keys`: by shard."""

    def __init__(self, conversation: Conversation, size: bytes, keys: Mapping[int, Sequence[bytes]]) -> None:
        self.conversation = conversation
        self.size = size
        self.keys = keys
        self.woken = asyncio.Event()
        """There may be something for it, or its wait is to end."""


class ReadyKeys:
    """All who wait in one database."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._by_shard: dict[int, ShardWaiters] = {}
        self._pause_s = FIRST_S
        self._timer: asyncio.TimerHandle | None = None

    @contextlib.contextmanager
    def watching_for(self, waiter: Waiter) -> Iterator[None]:
        """Within the block it is called when something may have come; `hurry` when that has been looked at."""
        for shard in waiter.keys:
            self._by_shard.setdefault(shard, ShardWaiters(shard, self.check_soon)).join(waiter)
        self.check_soon()
        try:
            yield
        finally:
            for shard in waiter.keys:
                waiters = self._by_shard[shard]
                waiters.leave(waiter)
                if waiters.is_empty:
                    del self._by_shard[shard]
            if not self._by_shard and self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def check_soon(self) -> None:
        """Ask soon: something goes on."""
        if self._timer is None or self._pause_s > FIRST_S:
            self._ask_in(FIRST_S)

    def _ask_in(self, pause_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._pause_s = pause_s
        self._timer = self._loop.call_later(pause_s, self._ask)

    def _ask(self) -> None:
        self._ask_in(min(LONGEST_S, self._pause_s * 1.5))
        for waiters in list(self._by_shard.values()):
            waiters.ask()


class ShardWaiters:
    """Those who wait for keys of one shard, in the order in which they came."""

    def __init__(self, shard: int, on_woken: Callable[[], None]) -> None:
        self._shard = shard
        self._on_woken = on_woken
        self._waiters: dict[Waiter, None] = {}
        self._checks: list[tuple[Request, list[tuple[bytes, bytes]]]] = []  # EXISTS, and (size, key) of its keys
        self._requester: Waiter | None = None  # in whose name it is asked now
        self._left = 0  # answers

    @property
    def is_empty(self) -> bool:
        return not self._waiters

    def join(self, waiter: Waiter) -> None:
        self._waiters[waiter] = None
        self._checks.clear()

    def leave(self, waiter: Waiter) -> None:
        del self._waiters[waiter]
        self._checks.clear()
        if self._requester is waiter:
            self._requester = None  # its answers will not come

    def ask(self) -> None:
        """Ask whether anything is there, unless that is asked already, or all who wait are at it."""
        if self._requester is not None:
            return
        idle = (waiter for waiter in self._waiters if not waiter.woken.is_set() and not waiter.conversation.is_over)
        self._requester = next(idle, None)
        if self._requester is None:
            return
        self._checks = self._checks or list(self._cut())
        checks, self._left = list(self._checks), len(self._checks)
        for request, keys in checks:
            self._send(self._requester, request, partial(self._is_there, keys))

    def _cut(self) -> Iterator[tuple[Request, list[tuple[bytes, bytes]]]]:
        wanted = dict.fromkeys((each.size, key) for each in self._waiters for key in each.keys[self._shard])
        some: list[tuple[bytes, bytes]] = []
        size = 0
        for each in wanted:
            if some and (len(some) == MOST_KEYS or size + len(each[1]) > MOST_BYTES):
                yield Request([b"EXISTS", *(key for _, key in some)]), some
                some, size = [], 0
            some.append(each)
            size += len(each[1])
        yield Request([b"EXISTS", *(key for _, key in some)]), some

    def _send(self, requester: Waiter | None, asked: Asked, on_frame: Callable[[bytes], None]) -> None:
        """Ask in the name of this one, unless it has left meanwhile; where there is no answer all are called."""
        if requester is None or requester is not self._requester:
            return

        def on_answer(frames: list[bytes | None], _failed: object) -> None:
            if self._requester is requester:
                on_frame(frames[self._shard] or b"-")

        conversation = requester.conversation
        if ask(conversation.client, conversation.route, {self._shard: asked}, False, True, on_answer) is not None:
            self._wake_all(list(self._waiters))

    def _is_there(self, keys: Sequence[tuple[bytes, bytes]], frame: bytes) -> None:
        if frame == b":0\r\n":
            self._answered()
        elif frame.startswith(b":"):
            block = Block(Request(each) for each in keys)
            self._send(self._requester, block, partial(self._counted, keys))
        else:
            self._wake_all(list(self._waiters))

    def _counted(self, keys: Sequence[tuple[bytes, bytes]], frame: bytes) -> None:
        sizes = scan.elements(frame, True) if frame.startswith(b"*%d\r\n" % len(keys)) else [b"-"] * len(keys)
        for (size, key), reply in zip(keys, sizes, strict=True):
            try:
                left = integer(reply)
            except BadFrame:
                left = len(self._waiters)  # WRONGTYPE, which they are told
            for waiter in self._waiters:
                if left <= 0:
                    break
                if waiter.size == size and key in waiter.keys[self._shard]:
                    left -= 1
                    self._wake(waiter)
        self._answered()

    def _answered(self) -> None:
        self._left -= 1
        if not self._left:
            self._requester = None

    def _wake_all(self, called: Sequence[Waiter]) -> None:
        self._requester = None
        for waiter in called:
            self._wake(waiter)

    def _wake(self, waiter: Waiter) -> None:
        waiter.woken.set()
        self._on_woken()
