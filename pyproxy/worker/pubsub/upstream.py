"""The subscriptions of one worker at one shard, on one connection. Names come in; confirmations and messages go out.

    WantedNames ── names ──▶ Upstream ── SUBSCRIBE, UNSUBSCRIBE ──▶ server
    Listener    ◀── confirmed, refused, deliver ◀── replies, messages

An upstream is connected from the worker's first client on, as a SUBSCRIBE must not take longer than a PUBLISH that is
sent after it on another connection. A lost connection is made again, with back-off, and all names are subscribed anew.
The same is done at another server as soon as the shard has another primary (`switch_to`). Messages that are published
meanwhile are lost, as with any Redis. A silent server is sent PING, and is left if it does not answer. The upstream
does not know who is subscribed, or which shard a name belongs to. It publishes nothing.

The server answers in order. So what it was asked for is one position in the list of names, and so is what it has
confirmed.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import hiredis

from protocol import errors, request
from pyproxy.access import Access, why
from pyproxy.config import Timeouts
from pyproxy.deadline import within
from pyproxy.events import Event, emit
from pyproxy.shard_map import Node
from pyproxy.slices import BATCH, Slices
from pyproxy.worker.pubsub.connection import Connection, Delivery, PartialMessages
from pyproxy.worker.pubsub.registry import MESSAGE, ChannelKind
from pyproxy.worker.pubsub.wanted import WantedName, WantedNames
from pyproxy.worker.shard.link import Spawn

PING_S = 1.0  # of silence, before the server is sent PING
UNUSED_PING_S = 5.0  # the same where nothing is subscribed; still in time for the server's `timeout`
STABLE_S = 1.0  # a connection that lived so long is made again at once
SLEPT_S = 1.0  # a worker that did not run for so long has heard nothing, whatever was sent
LATE_S = 0.05  # a longer turn counts as so long, as the worker did not look at what came meanwhile
DRAIN_S = 1.0  # how long an old primary is heard at most
SLOW_S = 0.2
"""A server that owes a reply and has sent nothing for so long is slow: only subscribers whose names have their home
there wait for it any longer."""

MESSAGE_SILENCES = 10
"""How long one message may take, in multiples of `silence_s`."""

OnSynced = Callable[[], None]

PING = request.encode([b"PING"])

_UNSUBSCRIBE = object()  # stands for the reply to an UNSUBSCRIBE
_FORM = {kind: [bytes] * (4 if kind is ChannelKind.PATTERN else 3) for kind in ChannelKind}  # of a message
_TRY_AGAIN = (b"BUSY", b"LOADING", b"MASTERDOWN")  # codes of a server that will take the subscription later


class Listener(Protocol):
    """The hub."""

    def deliver(self, kind: ChannelKind, name: bytes, words: list[bytes]) -> Delivery:
        """Deliver a message, in the server's words."""

    def confirmed(self, upstream: Upstream, waiter: Any) -> None:
        """What `waiter` waited for is confirmed, or nobody can say when it will be."""

    def refused(self, upstream: Upstream, name: WantedName, line: bytes) -> None:
        """The server refuses to subscribe the name, with this error line."""


class Progress:
    """How many of these names are subscribed at the server."""

    def __init__(self, names: WantedNames) -> None:
        self.names = names
        self.waiters: list[tuple[int, int, Any, bool]] = []  # a heap: number, tie-break, waiter, whether at its home
        self.restart()

    def restart(self) -> None:
        self.position = self.names.start  # the last name that was asked for and is still wanted
        self.asked = 0  # the number of the last name that was asked for
        self.confirmed = 0


class Upstream:
    """`shared`: the names that are subscribed at all shards. `own`: those that are subscribed at this one alone."""

    def __init__(
        self,
        shard: str,
        node: Node,
        timeouts: Timeouts,
        access: Access,
        spawn: Spawn,
        slices: Slices,
        shared: WantedNames,
        listener: Listener,
        partial_messages: PartialMessages,
    ) -> None:
        self.shard = shard
        self.node = node
        self.own = WantedNames()
        self.slices = slices
        self.partial_messages = partial_messages
        self._timeouts = timeouts
        self._access = access
        self._spawn = spawn
        self._listener = listener
        self._shared_progress, self._own_progress = self._progress = Progress(shared), Progress(self.own)
        self._waits_begun = 0
        self._unsubscribes: deque[bytes] = deque()  # to be sent
        self._syncs: list[OnSynced] = []  # wait for the next PING
        self._expected: deque[object] = deque()  # for each reply: a WantedName, _UNSUBSCRIBE, or the syncs of a PING
        self._scheduled = self._asking = False
        self._connection: Connection | None = None
        self._generation = 0  # grows with each `switch_to`: attempts of an earlier one are given up
        self._opened = False
        self._running = False
        self._closed = False
        self._retry_now = asyncio.Event()
        self._idle_pause = False  # it pauses before it connects again, and nothing was wanted when the pause began
        self._down = ""
        self._silent = False
        self._slow = False
        self._silence_s = 0.0  # how long it has been silent and owed a reply
        self._loss_logged = False
        self._ticked_at = time.monotonic()

    # --- what is wanted ---

    @property
    def names(self) -> int:
        return sum(each.names.size for each in self._progress)

    @property
    def is_available(self) -> bool:
        """Whether a confirmation may be expected soon."""
        return not self._down and not self._silent

    @property
    def is_connected(self) -> bool:
        return self._connection is not None

    @property
    def has_unconfirmed(self) -> bool:
        """Whether some name is not confirmed, and may be soon."""
        if not self.names or not self.is_available:
            return False
        if self._connection is None or self._connection.generation != self._generation:
            return True
        return any(each.confirmed < each.names.last.number for each in self._progress)

    def wait_until_confirmed(self, names: WantedNames, number: int, waiter: Any, at_home: bool) -> bool:
        """Tell the listener when all of these names up to this number are confirmed.

        False: there is nothing to wait for, as they are confirmed, or the server is down or silent. For a slow server
        only those wait that are `at_home` there.
        """
        progress = self._progress_of(names)
        if progress.confirmed >= number or not self.is_available or (self._slow and not at_home):
            return False
        self._waits_begun += 1
        heapq.heappush(progress.waiters, (number, self._waits_begun, waiter, at_home))
        return True

    def ask_soon(self) -> None:
        """Names were added: subscribe them in the next turn of the loop."""
        if self._idle_pause:
            self._idle_pause = False
            self._down = ""
            self._retry_now.set()
        self._schedule()

    def ask_now(self) -> None:
        """As `ask_soon`, in this turn of the loop."""
        if not self._asking and self._connection is not None:
            self._begin_to_ask()

    def unsubscribe(self, name: WantedName, frame: bytes) -> None:
        """The name is about to be removed from its list. `frame` is the UNSUBSCRIBE."""
        progress = self._progress_of(name.owner)
        if progress.position is name:
            assert name.before is not None  # it is not the start
            progress.position = name.before
        if name.number <= progress.asked:
            self._unsubscribes.append(frame)
            self._schedule()

    def sync(self, on_synced: OnSynced) -> bool:
        """Call `on_synced` once all has come that the server has sent by now. False: there is nothing to wait for."""
        if self._connection is None or self._slow or not self.is_available:
            return False
        self._syncs.append(on_synced)
        self._schedule()
        return True

    def on_sync_timeout(self) -> None:
        """A sync took too long. There are no more of them until the server sends something."""
        self._slow = True

    def _progress_of(self, names: WantedNames) -> Progress:
        return self._own_progress if names is self.own else self._shared_progress

    # --- the server ---

    def open(self) -> None:
        """Be connected from now on."""
        self._opened = True
        self._begin()

    def switch_to(self, node: Node) -> None:
        """Subscribe at another server, or at the same in another epoch."""
        self.node = node
        self._generation += 1
        self._running = self._idle_pause = False
        self._down = ""
        self._retry_now.set()
        self._begin()

    def close(self) -> None:
        self._closed = True
        self._retry_now.set()
        if self._connection is not None:
            self._connection.drop("")
        self._release()

    @property
    def at_rest(self) -> bool:
        """Whether no reply is expected, and nobody waits for one."""
        return not (self._expected or self._syncs or any(each.waiters for each in self._progress))

    def tick(self, now: float) -> None:
        """Called every few milliseconds, or seldom at rest: ask whether the server is alive; end waits for it."""
        connection, passed = self._connection, now - self._ticked_at
        self._ticked_at = now
        self._count_silence(min(passed, LATE_S))
        if connection is None:
            return
        if passed > SLEPT_S or connection.has_backlog:
            connection.heard_at = now
        limit_s = MESSAGE_SILENCES * self._timeouts.silence_s
        if not connection.has_backlog and connection.check_partial(min(passed, LATE_S), limit_s):
            return
        if connection.pinged_at > connection.heard_at:
            connection.ping_owed_s += min(passed, LATE_S)
            # after a late turn the socket is read first
            if passed <= LATE_S and connection.ping_owed_s > self._timeouts.silence_s:
                connection.drop(errors.no_reply(now - connection.pinged_at))
        elif now - connection.heard_at > (PING_S if self.names else UNUSED_PING_S):
            connection.pinged_at = now
            connection.ping_owed_s = 0.0
            self._expected.append([])
            connection.write(PING)

    def _count_silence(self, passed_s: float) -> None:
        if self._connection is not None and self._connection.has_backlog:
            self._silence_s = 0.0
        elif self._expected or any(each.waiters for each in self._progress):
            self._silence_s += passed_s
            if self._silence_s >= SLOW_S and self._connection is not None and not self._slow:
                self._slow = True
                self._release(at_home=False)
            if self._silence_s >= self._timeouts.reply_s and not self._silent:
                self._silent = True
                self._release()

    def _on_heard(self) -> None:
        self._silent = self._slow = False
        self._silence_s = 0.0

    def _release(self, at_home: bool = True) -> None:
        """End all waits for the server, or only those of waiters that are not at home here."""
        for progress in self._progress:
            released = [each for each in progress.waiters if at_home or not each[3]]
            progress.waiters = [] if at_home else [each for each in progress.waiters if each[3]]
            heapq.heapify(progress.waiters)
            for _, _, waiter, _ in released:
                self._listener.confirmed(self, waiter)

    # --- asking ---

    def _schedule(self) -> None:
        if not self._scheduled and self._connection is not None:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._begin_to_ask)

    def _begin_to_ask(self) -> None:
        self._scheduled = False
        if not self._asking:
            self._asking = True
            self.slices.run(self._ask())

    def _ask(self) -> Iterator[int]:
        """A work that sends all that is to be asked, as much at a time as the server reads."""
        connection = self._connection
        while connection is not None and connection is self._connection and not connection.congested:
            if self._syncs:  # one PING for all of them
                self._expected.append(self._syncs)
                self._syncs = []
                connection.write(PING)
                yield 1
            elif self._unsubscribes:  # before more names, as one of those may have been wanted before
                frames = [self._unsubscribes.popleft() for _ in range(min(BATCH, len(self._unsubscribes)))]
                self._expected.extend([_UNSUBSCRIBE] * len(frames))
                connection.write(b"".join(frames))
                yield max(len(frames) // 5, 1)
            elif (parts := self._ask_for_names(connection)) > 0:
                yield parts
            else:
                break
        self._asking = False
        if connection is not self._connection:
            self._schedule()

    def _ask_for_names(self, connection: Connection) -> int:
        """Subscribe the next names -> how many parts that cost; 0: there are none."""
        for progress in self._progress:
            if progress.position is not progress.names.last:
                frames, names, cached = progress.names.after(progress.position, BATCH)
                self._expected.extend(names)
                progress.position = names[-1]
                progress.asked = progress.position.number
                connection.write(frames)
                return max(len(names) // 5, 1) if cached else len(names)
        return 0

    # --- called by the connection ---

    def on_writable(self) -> None:
        self._schedule()

    def on_frame(self, frame: Any) -> Delivery:
        self._on_heard()
        if type(frame) is list and frame and type(frame[0]) is bytes:
            kind = MESSAGE.get(frame[0])
            if kind is not None:
                if [type(word) for word in frame] != _FORM[kind]:
                    raise hiredis.ProtocolError("a message of another form")
                return self._listener.deliver(kind, frame[1], frame)
        if not self._expected:
            raise hiredis.ProtocolError("it sent what nobody asked for")
        expected = self._expected.popleft()
        if not isinstance(frame, hiredis.ReplyError) and not _is_reply(expected, frame):
            raise hiredis.ProtocolError("it answered with something else than was asked")
        if type(expected) is WantedName:
            self._on_reply(expected, frame)
        elif type(expected) is list:
            for on_synced in expected:
                on_synced()
        return 0

    def _on_reply(self, name: WantedName, frame: Any) -> None:
        if isinstance(frame, hiredis.ReplyError):
            line = str(frame).encode()
            if line.split(b" ", 1)[0] in _TRY_AGAIN and self._connection is not None:
                self._connection.drop(f"answered -{line.decode(errors='replace')}")
                return
            if name.clients:
                emit(Event.PUBSUB_REFUSED, shard=self.shard, node=self.node, why=line.decode(errors="replace"))
                self._listener.refused(self, name, b"-%b\r\n" % line)
        progress = self._progress_of(name.owner)
        progress.confirmed = name.number
        while progress.waiters and progress.waiters[0][0] <= name.number:
            self._listener.confirmed(self, heapq.heappop(progress.waiters)[2])

    # --- the life of the connection ---

    def _begin(self) -> None:
        if self._opened and not self._running and not self._closed:
            self._running = True
            self._spawn(self._run(self._generation), f"subscribe {self.shard}")

    async def _run(self, generation: int) -> None:
        """Keep a connection to the server of this generation."""
        pause_s = self._timeouts.reconnect_min_s
        if self._connection is not None:
            await self._drain(self._connection)
            if generation != self._generation or self._closed:
                return
            self._connection.drop("")
            self._on_lost()
        self._on_heard()
        while not self._closed:
            connection = Connection(self, self._access, generation)
            try:
                await connection.open(self.node, self._timeouts.connect_s)
            except OSError as exc:
                reason, lived_s = why(exc), 0.0
            else:
                if generation == self._generation and not self._closed:
                    opened = time.monotonic()
                    self._on_connected(connection)
                    reason = await connection.lost
                    lived_s = time.monotonic() - opened
            if generation != self._generation or self._closed:
                connection.drop("")
                return
            if self._connection is not None:
                self._on_lost()
            self._log_loss(reason)
            if lived_s >= STABLE_S:
                pause_s = self._timeouts.reconnect_min_s
            else:
                self._down = reason
                self._release()
                await self._pause(pause_s * random.uniform(0.5, 1.0))
                if generation != self._generation:
                    return
                pause_s = min(pause_s * 2, self._timeouts.reconnect_max_s)

    async def _drain(self, connection: Connection) -> None:
        """Receive what the old primary had sent before, so that it is not lost because this worker is late.

        Only then the new primary is asked. As a replica it has what is published at the old one, so that comes from it
        too.
        """
        synced: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.sync(lambda: None if synced.done() else synced.set_result(None)):
            ends: list[asyncio.Future[Any]] = [synced, connection.lost]
            with contextlib.suppress(TimeoutError):
                async with within(DRAIN_S):
                    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)

    async def _pause(self, pause_s: float) -> None:
        """Before the next attempt. The first client that wants a name ends the pause."""
        self._retry_now.clear()
        self._idle_pause = not self.names
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._retry_now.wait(), pause_s)
        self._idle_pause = False

    def _on_connected(self, connection: Connection) -> None:
        self._connection = connection
        self._on_heard()
        self._down = ""
        if self._loss_logged:
            self._loss_logged = False
            emit(Event.PUBSUB_BACK, shard=self.shard, node=self.node, names=self.names)
        self._schedule()

    def _on_lost(self) -> None:
        self._connection = None
        for progress in self._progress:
            progress.restart()
        self._unsubscribes.clear()
        syncs = [self._syncs, *(expected for expected in self._expected if isinstance(expected, list))]
        self._syncs = []
        self._expected.clear()
        for on_synced in [each for some in syncs for each in some]:
            on_synced()

    def _log_loss(self, reason: str) -> None:
        """Once, until the connection is back. Without a reason it was closed here; without names nobody misses it."""
        if reason and self.names and not self._loss_logged:
            self._loss_logged = True
            emit(Event.PUBSUB_LOST, shard=self.shard, node=self.node, why=reason, names=self.names)

    def __repr__(self) -> str:
        return f"<Upstream {self.shard} {self.node} {self._down or 'up'} {self.names} names>"


def _is_reply(expected: object, frame: Any) -> bool:
    """Whether a frame can be the reply that is expected."""
    if type(expected) is list:
        return bool(frame in (b"PONG", [b"pong", b""]))
    if type(frame) is not list or len(frame) != 3:
        return False
    return type(expected) is not WantedName or bool(frame[1] == expected.text)
