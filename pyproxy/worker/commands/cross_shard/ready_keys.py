"""Finds out for all clients that wait for keys of several shards whether one of their keys is ready.

Each worker asks a shard once for all of its waiting clients of a database, and not once for each client:

    EXISTS k1 ... kn                    0: no client is woken; while nothing comes, this is the only request
      └─ MULTI, LLEN k1, ZCARD k2 ...   else as many clients are woken as there are elements, in the order they came
           └─ woken                     each makes a round of its own over its shards (polling.py)

If a shard returns an error or no reply, all clients that wait for it are woken, and find that out in their own rounds.
Only lists and sorted sets are watched, as a stream exists all the time.
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
"""The time between two checks. It grows by half each time, until a client comes or is woken."""

MOST_KEYS = 512
"""The most keys in one EXISTS, so that other clients of the server do not wait long."""

MOST_BYTES = 1 << 16


class Waiter:
    """A conversation that waits. `size`: the command that counts its elements (LLEN, ZCARD). `keys`: by shard."""

    def __init__(self, conversation: Conversation, size: bytes, keys: Mapping[int, Sequence[bytes]]) -> None:
        self.conversation = conversation
        self.size = size
        self.keys = keys
        self.woken = asyncio.Event()
        """Set when a key may be ready, or the wait is to end."""


class ReadyKeys:
    """The waiting clients of one database."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._by_shard: dict[int, ShardWaiters] = {}
        self._pause_s = FIRST_S
        self._timer: asyncio.TimerHandle | None = None

    @contextlib.contextmanager
    def watching_for(self, waiter: Waiter) -> Iterator[None]:
        """Within the block the waiter is woken when a key may be ready. If none was, it calls `check_soon`."""
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
        """Check in FIRST_S, as keys are changing."""
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
    """The waiters for keys of one shard, in the order in which they came."""

    def __init__(self, shard: int, on_woken: Callable[[], None]) -> None:
        self._shard = shard
        self._on_woken = on_woken
        self._waiters: dict[Waiter, None] = {}
        self._checks: list[tuple[Request, list[tuple[bytes, bytes]]]] = []  # EXISTS, and (size, key) of its keys
        self._requester: Waiter | None = None  # the waiter whose connection the checks in flight use
        self._left = 0  # checks without an answer

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
            self._requester = None  # the answers to its checks are lost

    def ask(self) -> None:
        """Check the keys, unless a check is in flight or all waiters are woken."""
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
        """Send a check for this waiter, unless it has left. If it cannot be sent, wake all waiters."""
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
                left = len(self._waiters)  # WRONGTYPE: each waiter finds that out itself
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
