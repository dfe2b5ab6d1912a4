"""Finds out for all clients that wait for keys of several shards whether one of their keys is ready.

Each worker asks a shard once for all of its waiting clients of a database, and not once for each client:

    EXISTS k1 ... kn                    0: no client is woken; while nothing comes, this is the only request
      └─ MULTI, LLEN k1, ZCARD k2 ...   else as many clients are woken as there are elements, in the order they came
           └─ woken                     each makes a round of its own over its shards (polling.py)

    XREAD COUNT 1 STREAMS s1 ... id1 ... nil: no client is woken. The ids are the lowest of those who wait
      └─ woken                          else those who wait for a stream that has a new entry

What is new to a consumer group only the group knows. Of the clients that ask the same of the same group, the first in
line makes its rounds at the same times, and the others rest. When it leaves the next one is the first.

If a shard returns an error or no reply, all clients that wait for it are woken, and find that out in their own rounds.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from protocol import scan
from protocol.reply import NILS, BadFrame, decode, integer
from protocol.request import Asked, Block, Request
from pyproxy.slices import BATCH, batches
from pyproxy.worker.commands.conversation import Conversation
from pyproxy.worker.lane.split import ask

FIRST_S, LONGEST_S = 0.01, 0.1
"""The time between two checks. It grows by half each time, until a client comes or is woken."""

MOST_KEYS = 512
"""The most keys in one EXISTS, so that other clients of the server do not wait long."""

MOST_BYTES = 1 << 16

KEYS_OF_PART = 16
"""So many keys are looked at in the time of a part, see slices.py."""

CHECK_PARTS = 8
"""To send a check takes the time of so many."""

"""The replies of servers that have nothing: for arrays, for elements, in RESP3."""

Part = TypeVar("Part")

Check = tuple[Request, Callable[[bytes], None]]
"""A request about keys, and what takes its reply."""


Id = tuple[int, int]
"""Of an entry of a stream."""


class Waiter:
    """A conversation that waits. What for does not change any more while it is watched.

    `keys`: by shard. `size`: the command that counts its elements (LLEN, ZCARD). `after`: of a reader of streams, the
    last id that it knows of each. `line`: of a reader of a group, what is equal for those who ask the same.
    """

    def __init__(self, conversation: Conversation) -> None:
        self.conversation = conversation
        self.keys: dict[int, dict[bytes, None]] = {}
        self.size = b""
        self.after: dict[bytes, Id] = {}
        self.line = b""
        self.woken = asyncio.Event()
        """Set when a key may be ready, or the wait is to end."""


class ReadyKeys:
    """The waiting clients of one database. `on_checked` is called when none of its checks is in flight any more."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_checked: Callable[[], None]) -> None:
        self._loop = loop
        self._on_checked = on_checked
        self._by_shard: dict[int, ShardWaiters] = {}
        self._lines: dict[bytes, dict[Waiter, None]] = {}  # in the order in which they came
        self._pause_s = FIRST_S
        self._timer: asyncio.TimerHandle | None = None

    @contextlib.contextmanager
    def watching_for(self, waiter: Waiter) -> Iterator[None]:
        """Within the block the waiter is woken when a key may be ready. If none was, it calls `waits_again`."""
        with self._in_line(waiter) if waiter.line else self._at_shards(waiter):
            self.check_soon()
            yield
        if not self._by_shard and not self._lines and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @contextlib.contextmanager
    def _at_shards(self, waiter: Waiter) -> Iterator[None]:
        for shard in waiter.keys:
            self._by_shard.setdefault(shard, ShardWaiters(shard, self.check_soon, self._on_answered)).join(waiter)
        try:
            yield
        finally:
            for shard in waiter.keys:
                waiters = self._by_shard[shard]
                waiters.leave(waiter)
                if waiters.is_empty:
                    del self._by_shard[shard]

    @contextlib.contextmanager
    def _in_line(self, waiter: Waiter) -> Iterator[None]:
        line = self._lines.setdefault(waiter.line, {})
        line[waiter] = None
        try:
            yield
        finally:
            was_first = next(iter(line)) is waiter
            del line[waiter]
            if not line:
                del self._lines[waiter.line]
            elif was_first:
                next(iter(line)).woken.set()

    def waits_again(self, waiter: Waiter) -> None:
        """It was woken, and has found nothing: another client was faster."""
        if waiter.line:
            return  # nobody was
        for shard in waiter.keys:
            self._by_shard[shard].changed(waiter)
        self.check_soon()

    def wake_all(self) -> None:
        """Have all waiters look for themselves."""
        for waiters in list(self._by_shard.values()):
            waiters.wake_all()
        for line in self._lines.values():
            for waiter in line:
                waiter.woken.set()

    @property
    def in_flight(self) -> int:
        """How many checks have no answer yet."""
        return sum(waiters.in_flight for waiters in self._by_shard.values())

    def _on_answered(self) -> None:
        if not self.in_flight:
            self._on_checked()

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
        for line in self._lines.values():
            next(iter(line)).woken.set()


class ShardWaiters:
    """The waiters for keys of one shard, in the order in which they came."""

    def __init__(self, shard: int, on_woken: Callable[[], None], on_answered: Callable[[], None]) -> None:
        self._shard = shard
        self._on_woken = on_woken
        self._on_answered = on_answered
        self._waiters: dict[Waiter, None] = {}
        self._checks: list[Check] = []
        self._requester: Waiter | None = None  # the waiter whose connection the checks in flight use
        self._round: object = None  # of checks: the last one that was begun
        self._left = 0  # checks without an answer

    @property
    def is_empty(self) -> bool:
        return not self._waiters

    @property
    def in_flight(self) -> int:
        """How many checks have no answer yet, of those whose answer is not lost."""
        return self._left if self._requester is not None else 0

    def join(self, waiter: Waiter) -> None:
        self._waiters[waiter] = None
        self._checks = []

    def leave(self, waiter: Waiter) -> None:
        del self._waiters[waiter]
        self._checks = []
        if self._requester is waiter:
            self._requester = None  # the answers to its checks are lost

    def changed(self, waiter: Waiter) -> None:
        """It is woken, or waits again: the streams of those who are woken are not asked for."""
        if waiter.after:
            self._checks = []

    def ask(self) -> None:
        """Check the keys, unless a check is in flight or all waiters are woken."""
        if self._requester is not None:
            return
        idle = (waiter for waiter in self._waiters if not waiter.woken.is_set() and not waiter.conversation.is_over)
        self._requester = next(idle, None)
        if self._requester is None:
            return
        self._round = object()
        self._requester.conversation.lane.slices.run(self._ask_all(self._requester, self._round))

    def _ask_all(self, requester: Waiter, this_round: object) -> Iterator[int]:
        """Send all checks in the name of this waiter, until it leaves; work for slices.py."""
        known = checks = self._checks
        if not checks:
            checks = []
            yield from self._cut(checks)
            if self._checks is known:  # nobody has come, left or been woken meanwhile
                self._checks = checks
        if self._requester is requester and self._round is this_round:
            self._left = len(checks)
            if not checks:
                self._requester = None
        for request, on_frame in checks:
            if self._requester is not requester or self._round is not this_round:
                return
            self._send(requester, request, on_frame)
            yield CHECK_PARTS

    def _cut(self, checks: list[Check]) -> Iterator[int]:
        """Make the checks of all waiters that there are now; work for slices.py."""
        sizes: dict[tuple[bytes, bytes], None] = {}
        after: dict[bytes, Id] = {}
        for waiter in list(self._waiters):
            for keys in batches(waiter.keys[self._shard], BATCH * KEYS_OF_PART):
                if waiter.size:
                    sizes.update(dict.fromkeys((waiter.size, key) for key in keys))
                elif waiter.after and not waiter.woken.is_set():
                    for key in keys:
                        after[key] = min(waiter.after[key], after.get(key, waiter.after[key]))
                yield max(1, len(keys) // KEYS_OF_PART)
        for some in _chunks(sizes, lambda each: len(each[1])):
            checks.append((Request([b"EXISTS", *(key for _, key in some)]), partial(self._is_there, some)))
            yield max(1, len(some) // KEYS_OF_PART)
        for streams in _chunks(after, len):
            ids = [b"%d-%d" % after[key] for key in streams]
            checks.append((Request([b"XREAD", b"COUNT", b"1", b"STREAMS", *streams, *ids]), self._are_new))
            yield max(1, len(streams) // KEYS_OF_PART)

    def _send(self, requester: Waiter | None, asked: Asked, on_frame: Callable[[bytes], None]) -> None:
        """Send a check for this waiter, unless it has left. If it cannot be sent, wake all waiters."""
        if requester is None or requester is not self._requester:
            return
        if requester.conversation.is_over:
            self._requester = None  # it will leave
            return

        def on_answer(frames: list[bytes | None], _failed: object) -> None:
            if self._requester is requester:
                on_frame(frames[self._shard] or b"-")

        conversation = requester.conversation
        if ask(conversation.client, conversation.route, {self._shard: asked}, False, True, on_answer) is not None:
            self.wake_all()

    def _is_there(self, keys: Sequence[tuple[bytes, bytes]], frame: bytes) -> None:
        if frame == b":0\r\n":
            self._answered()
        elif frame.startswith(b":"):
            block = Block(Request(each) for each in keys)
            self._send(self._requester, block, partial(self._counted, keys))
        else:
            self.wake_all()

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

    def _are_new(self, frame: bytes) -> None:
        if frame not in NILS:
            try:
                found = _names(frame)
            except (BadFrame, scan.ProtocolError):
                self.wake_all()
                return
            for waiter in self._waiters:
                if waiter.after and not waiter.keys[self._shard].keys().isdisjoint(found):
                    self._wake(waiter)
        self._answered()

    def _answered(self) -> None:
        self._left -= 1
        if not self._left:
            self._requester = None
            self._on_answered()

    def wake_all(self) -> None:
        self._requester = None
        for waiter in list(self._waiters):
            self._wake(waiter)

    def _wake(self, waiter: Waiter) -> None:
        waiter.woken.set()
        self.changed(waiter)
        self._on_woken()


def _chunks(parts: Iterable[Part], size: Callable[[Part], int]) -> Iterator[list[Part]]:
    """Of MOST_KEYS and MOST_BYTES at most, or of one part."""
    some: list[Part] = []
    left = MOST_BYTES
    for each in parts:
        if some and (len(some) == MOST_KEYS or size(each) > left):
            yield some
            some, left = [], MOST_BYTES
        some.append(each)
        left -= size(each)
    if some:
        yield some


def _names(frame: bytes) -> set[bytes]:
    """Of the streams in a reply to XREAD: in elements of an array, or as keys of a map (RESP3).

    Raises BadFrame or ProtocolError for what is no such reply.
    """
    head, _, body = frame.partition(b"\r\n")
    try:
        if head.startswith(b"%"):
            frames = scan.elements(b"*%d\r\n%b" % (2 * int(head[1:]), body), True)[::2]
        else:
            frames = [scan.elements(stream)[0] for stream in scan.elements(frame)]
    except (IndexError, ValueError):
        raise BadFrame(f"expected streams, got {frame[:64]!r}") from None
    names = set()
    for each in frames:
        name = decode(each)
        if not isinstance(name, bytes):
            raise BadFrame(f"expected the name of a stream, got {each[:64]!r}")
        names.add(name)
    return names
