"""One worker's subscriptions at one shard, on one connection: names come in, confirmations and messages go out.

    Rolls    ── names ──▶ Upstream ── SUBSCRIBE, UNSUBSCRIBE ──▶ server
    Listener ◀── confirmed, refused ◀── message, pmessage, smessage

It is connected from the worker's first client on, as a SUBSCRIBE must not take longer than a PUBLISH that is sent
behind it on another connection. A connection that is lost is made again, with back-off, and everything is subscribed
anew; so it is on another server as soon as the shard's primary is another (`switch_to`). What was published meanwhile
is gone, as on any Redis. A server that is silent is asked PING, and left when it does not answer. Who is subscribed,
and which shard a name belongs to, is not known here; nothing is ever published.

The server answers in order, so what it has confirmed is a place in the roll, as is what it was asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import random
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol, cast

import hiredis

from protocol import errors, request, scan
from pyproxy.access import Access, Refused, why
from pyproxy.config import Timeouts
from pyproxy.deadline import within
from pyproxy.events import Event, emit
from pyproxy.shard_map import Node
from pyproxy.slices import BATCH, Slices
from pyproxy.worker.pubsub.registry import MESSAGE, Sort
from pyproxy.worker.pubsub.wanted import Roll, Wanted
from pyproxy.worker.shard.handshake import Handshake
from pyproxy.worker.shard.link import Spawn

PING_S = 1.0  # of silence, before the server is asked
UNUSED_PING_S = 5.0  # the same where nobody is subscribed, so that nothing is missed; still in time for its `timeout`
STEADY_S = 1.0  # a connection that lived so long is made again at once
SLEPT_S = 1.0  # a worker that did not run for so long has heard nothing, whatever was said
LATE_S = 0.05  # a turn that was longer counts as so long: what came meanwhile was not looked at
HEAR_OUT_S = 1.0  # a server that is left is heard so long at most
SLOW_S = 0.2
"""A server that owes an answer and has said nothing for so long: only who is at home there waits for it any longer."""

Passed = Callable[[], None]
Delivery = int | Iterator[int]  # to how many clients, or the work that it is

PING = request.encode([b"PING"])

MESSAGE_ROOM = 1 << 16
"""What a message may have beside a text that is as long as clients may send one."""

MESSAGE_TIMES = 10
"""Of `silence_s`: so long a message may take from its beginning to its end."""

SETUP_BYTES = 1 << 17

_BEGINNING = re.compile(rb"[+-].*|\*([2-4](\r(\n(\$.*)?)?)?)?", re.DOTALL)
"""Of what may come: a message or a confirmation, whose first word is a bulk string, or the answer to a PING."""

_NOTHING = object()
_TAKEN_BACK = object()  # the answer to an UNSUBSCRIBE is due
_FORM = {sort: [bytes] * (4 if sort is Sort.PATTERN else 3) for sort in Sort}  # of a message
_NOT_NOW = (b"BUSY", b"LOADING", b"MASTERDOWN")  # codes of a server that will take the subscription later


class Listener(Protocol):
    """Who wants to hear."""

    def deliver(self, sort: Sort, name: bytes, words: list[bytes]) -> Delivery:
        """A message, in the server's words."""

    def confirmed(self, upstream: Upstream, waiting: Any) -> None:
        """What `waiting` was announced for is confirmed, or nobody can say when it will be."""

    def refused(self, upstream: Upstream, wanted: Wanted, line: bytes) -> None:
        """The server does not take it, and says why."""


class Unfinished:
    """What has come of messages whose end has not, of all servers: so many bytes at most, and `charge` is told.

    Above that the connection with the most of them is ended, as it may never end its message.
    """

    def __init__(self, most: int, charge: Callable[[int], None]) -> None:
        self._most = most
        self._charge = charge
        self._sizes: dict[Connection, int] = {}

    def keep(self, connection: Connection, size: int) -> None:
        """So much is of this one now."""
        change = size - self._sizes.pop(connection, 0)
        if size:
            self._sizes[connection] = size
        if change:
            self._charge(change)
        while sum(self._sizes.values()) > self._most:
            max(self._sizes, key=self._sizes.__getitem__).drop(errors.OVER_MEMORY)  # which keeps nothing of it


class Progress:
    """How far the names of a roll are subscribed at a server."""

    def __init__(self, roll: Roll) -> None:
        self.roll = roll
        self.awaited: list[tuple[int, int, Any, bool]] = []  # a heap: number, tie-break, who waits, whether at home
        self.begin_anew()

    def begin_anew(self) -> None:
        self.at = self.roll.start  # the last one that was asked for and is still wanted
        self.asked = 0  # the number of the last one that was asked for
        self.confirmed = 0


class Upstream:
    """All that one worker is subscribed to at one shard: what is on the `shared` roll, and on its `own`."""

    def __init__(
        self,
        shard: str,
        node: Node,
        timeouts: Timeouts,
        access: Access,
        spawn: Spawn,
        slices: Slices,
        shared: Roll,
        listener: Listener,
        unfinished: Unfinished,
    ) -> None:
        self.shard = shard
        self.node = node
        self.own = Roll()
        self.slices = slices
        self.unfinished = unfinished
        self._timeouts = timeouts
        self._access = access
        self._spawn = spawn
        self._listener = listener
        self._shared_progress, self._own_progress = self._progress = Progress(shared), Progress(self.own)
        self._announced = 0
        self._taken_back: deque[bytes] = deque()  # UNSUBSCRIBEs to be sent
        self._fences: list[Passed] = []  # wait for the next PING
        self._answers: deque[object] = deque()  # those that are due: a Wanted, _TAKEN_BACK, or a list: to a PING
        self._scheduled = self._asking = False
        self._connection: Connection | None = None
        self._turn = 0  # grows with each `switch_to`: what was begun before comes to nothing
        self._opened = False
        self._keeping = False
        self._closed = False
        self._hurry = asyncio.Event()
        self._idles = False  # it waits before it connects again, and nothing was wanted when it began to
        self._down = ""
        self._silent = False
        self._slow = False
        self._quiet_s = 0.0  # that it has been silent, and owed an answer
        self._troubled = False  # said so in the log
        self._ticked = time.monotonic()

    # --- what is wanted ---

    @property
    def names(self) -> int:
        """How many are wanted here."""
        return sum(each.roll.size for each in self._progress)

    @property
    def is_available(self) -> bool:
        """Whether a confirmation may be expected soon."""
        return not self._down and not self._silent

    @property
    def is_connected(self) -> bool:
        return self._connection is not None

    @property
    def is_deaf(self) -> bool:
        """Whether something is still to be confirmed, and may be expected soon."""
        if not self.names or not self.is_available:
            return False
        if self._connection is None or self._connection.turn != self._turn:
            return True
        return any(each.confirmed < each.roll.last.number for each in self._progress)

    def expect(self, roll: Roll, number: int, waiting: Any, at_home: bool) -> bool:
        """Have `waiting` told when all names of this roll up to this number are confirmed; False: they are, or it is
        not waited for. A server that is slow is only waited for by who is at home there."""
        progress = self._progress_of(roll)
        if progress.confirmed >= number or not self.is_available or (self._slow and not at_home):
            return False
        self._announced += 1
        heapq.heappush(progress.awaited, (number, self._announced, waiting, at_home))
        return True

    def ask_soon(self) -> None:
        """There are names more."""
        if self._idles:
            self._idles = False
            self._down = ""
            self._hurry.set()
        self._schedule()

    def ask_now(self) -> None:
        """As `ask_soon`, in this turn of the loop."""
        if not self._asking and self._connection is not None:
            self._begin_to_ask()

    def leave(self, wanted: Wanted, frame: bytes) -> None:
        """It is about to leave its roll; `frame` is the UNSUBSCRIBE."""
        progress = self._progress_of(wanted.roll)
        if progress.at is wanted:
            assert wanted.before is not None  # it is not the start
            progress.at = wanted.before
        if wanted.number <= progress.asked:
            self._taken_back.append(frame)
            self._schedule()

    def fence(self, passed: Passed) -> bool:
        """`passed` is called when all has come that the server has sent by now; False: there is nothing to wait for."""
        if self._connection is None or self._slow or not self.is_available:
            return False
        self._fences.append(passed)
        self._schedule()
        return True

    def miss(self) -> None:
        """A fence is not passed in time: until anything is heard, there is none."""
        self._slow = True

    def _progress_of(self, roll: Roll) -> Progress:
        return self._own_progress if roll is self.own else self._shared_progress

    # --- the server ---

    def open(self) -> None:
        """Be connected from now on."""
        self._opened = True
        self._begin()

    def switch_to(self, node: Node) -> None:
        """Another server, or the same in another epoch."""
        self.node = node
        self._turn += 1
        self._keeping = self._idles = False
        self._down = ""
        self._hurry.set()
        self._begin()

    def close(self) -> None:
        self._closed = True
        self._hurry.set()
        if self._connection is not None:
            self._connection.drop("")
        self._release()

    @property
    def at_rest(self) -> bool:
        """Whether no answer is due, and nobody waits for one."""
        return not (self._answers or self._fences or any(each.awaited for each in self._progress))

    def tick(self, now: float) -> None:
        """Every few milliseconds, or seldom at rest: is the server still there, and is it waited for?"""
        connection, passed = self._connection, now - self._ticked
        self._ticked = now
        self._wait(min(passed, LATE_S))
        if connection is None:
            return
        if passed > SLEPT_S or connection.is_behind:
            connection.heard_at = now
        endless_s = MESSAGE_TIMES * self._timeouts.silence_s
        if not connection.is_behind and connection.is_endless(min(passed, LATE_S), endless_s):
            return
        if connection.pinged_at > connection.heard_at:
            connection.owing_s += min(passed, LATE_S)
            if passed <= LATE_S and connection.owing_s > self._timeouts.silence_s:  # else it is read first
                connection.drop(errors.no_reply(now - connection.pinged_at))
        elif now - connection.heard_at > (PING_S if self.names else UNUSED_PING_S):
            connection.pinged_at = now
            connection.owing_s = 0.0
            self._answers.append([])
            connection.write(PING)

    def _wait(self, passed_s: float) -> None:
        if self._connection is not None and self._connection.is_behind:
            self._quiet_s = 0.0
        elif self._answers or any(each.awaited for each in self._progress):
            self._quiet_s += passed_s
            if self._quiet_s >= SLOW_S and self._connection is not None and not self._slow:
                self._slow = True
                self._release(at_home=False)
            if self._quiet_s >= self._timeouts.reply_s and not self._silent:
                self._silent = True
                self._release()

    def _heard(self) -> None:
        self._silent = self._slow = False
        self._quiet_s = 0.0

    def _release(self, at_home: bool = True) -> None:
        """Nobody waits for the server any more, or only who is at home here."""
        for progress in self._progress:
            released = [each for each in progress.awaited if at_home or not each[3]]
            progress.awaited = [] if at_home else [each for each in progress.awaited if each[3]]
            heapq.heapify(progress.awaited)
            for _, _, waiting, _ in released:
                self._listener.confirmed(self, waiting)

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
        """What is to be asked, as much at a time as the server reads."""
        connection = self._connection
        while connection is not None and connection is self._connection and not connection.choked:
            if self._fences:  # one PING for all of them
                self._answers.append(self._fences)
                self._fences = []
                connection.write(PING)
                yield 1
            elif self._taken_back:  # before the names more, as one of them may have been wanted before
                frames = [self._taken_back.popleft() for _ in range(min(BATCH, len(self._taken_back)))]
                self._answers.extend([_TAKEN_BACK] * len(frames))
                connection.write(b"".join(frames))
                yield max(len(frames) // 5, 1)
            elif (cost := self._ask_for_more(connection)) > 0:
                yield cost
            else:
                break
        self._asking = False
        if connection is not self._connection:
            self._schedule()

    def _ask_for_more(self, connection: Connection) -> int:
        """The next names of a roll -> how many parts that was."""
        for progress in self._progress:
            if progress.at is not progress.roll.last:
                frames, names, at_hand = progress.roll.after(progress.at, BATCH)
                self._answers.extend(names)
                progress.at = names[-1]
                progress.asked = progress.at.number
                connection.write(frames)
                return max(len(names) // 5, 1) if at_hand else len(names)
        return 0

    def reads(self) -> None:
        """The server reads again."""
        self._schedule()

    # --- what comes ---

    def heard(self, frame: Any) -> Delivery:
        """A reply or a message of the connection -> what it is to deliver. Raises ProtocolError."""
        self._heard()
        if type(frame) is list and frame and type(frame[0]) is bytes:
            sort = MESSAGE.get(frame[0])
            if sort is not None:
                if [type(word) for word in frame] != _FORM[sort]:
                    raise hiredis.ProtocolError("a message of another form")
                return self._listener.deliver(sort, frame[1], frame)
        if not self._answers:
            raise hiredis.ProtocolError("it sent what nobody asked for")
        due = self._answers.popleft()
        if not isinstance(frame, hiredis.ReplyError) and not _answers(due, frame):
            raise hiredis.ProtocolError("it answered with something else than was asked")
        if type(due) is Wanted:
            self._answered(due, frame)
        elif type(due) is list:
            for passed in due:
                passed()
        return 0

    def _answered(self, wanted: Wanted, frame: Any) -> None:
        if isinstance(frame, hiredis.ReplyError):
            line = str(frame).encode()
            if line.split(b" ", 1)[0] in _NOT_NOW and self._connection is not None:
                self._connection.drop(f"answered -{line.decode(errors='replace')}")
                return
            if wanted.clients:
                emit(Event.PUBSUB_REFUSED, shard=self.shard, node=self.node, why=line.decode(errors="replace"))
                self._listener.refused(self, wanted, b"-%b\r\n" % line)
        progress = self._own_progress if wanted.roll is self.own else self._shared_progress
        progress.confirmed = wanted.number
        while progress.awaited and progress.awaited[0][0] <= wanted.number:
            self._listener.confirmed(self, heapq.heappop(progress.awaited)[2])

    # --- the connection ---

    def _begin(self) -> None:
        if self._opened and not self._keeping and not self._closed:
            self._keeping = True
            self._spawn(self._keep(self._turn), f"subscribe {self.shard}")

    async def _keep(self, turn: int) -> None:
        """A connection, from now on."""
        pause_s = self._timeouts.reconnect_min_s
        if self._connection is not None:
            await self._hear_out(self._connection)
            if turn != self._turn or self._closed:
                return
            self._connection.drop("")
            self._lost()
        self._heard()
        while not self._closed:
            connection = Connection(self, self._access, turn)
            try:
                await connection.open(self.node, self._timeouts.connect_s)
            except OSError as exc:
                reason, lived_s = why(exc), 0.0
            else:
                if turn == self._turn and not self._closed:
                    opened = time.monotonic()
                    self._use(connection)
                    reason = await connection.lost
                    lived_s = time.monotonic() - opened
            if turn != self._turn or self._closed:
                connection.drop("")
                return
            if self._connection is not None:
                self._lost()
            self._say_lost(reason)
            if lived_s >= STEADY_S:
                pause_s = self._timeouts.reconnect_min_s
            else:
                self._down = reason
                self._release()
                await self._pause(pause_s * random.uniform(0.5, 1.0))
                if turn != self._turn:
                    return
                pause_s = min(pause_s * 2, self._timeouts.reconnect_max_s)

    async def _hear_out(self, connection: Connection) -> None:
        """What a server had sent before another takes its place is not lost because this worker is late.

        Only then the other one is asked: what is published there comes from here too, as a replica has it.
        """
        passed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.fence(lambda: None if passed.done() else passed.set_result(None)):
            ends: list[asyncio.Future[Any]] = [passed, connection.lost]
            with contextlib.suppress(TimeoutError):
                async with within(HEAR_OUT_S):
                    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)

    async def _pause(self, pause_s: float) -> None:
        """Before the next attempt; who is the first to want something does not wait for it."""
        self._hurry.clear()
        self._idles = not self.names
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._hurry.wait(), pause_s)
        self._idles = False

    def _use(self, connection: Connection) -> None:
        self._connection = connection
        self._heard()
        self._down = ""
        if self._troubled:
            self._troubled = False
            emit(Event.PUBSUB_BACK, shard=self.shard, node=self.node, names=self.names)
        self._schedule()

    def _lost(self) -> None:
        self._connection = None
        for progress in self._progress:
            progress.begin_anew()
        self._taken_back.clear()
        fences = [self._fences, *(due for due in self._answers if isinstance(due, list))]
        self._fences = []
        self._answers.clear()
        for passed in [each for those in fences for each in those]:
            passed()

    def _say_lost(self, reason: str) -> None:
        """Once, until it is back; without a reason it was closed from here, and nobody misses what nobody wants."""
        if reason and self.names and not self._troubled:
            self._troubled = True
            emit(Event.PUBSUB_LOST, shard=self.shard, node=self.node, why=reason, names=self.names)

    def __repr__(self) -> str:
        return f"<Upstream {self.shard} {self.node} {self._down or 'up'} {self.names} names>"


def _answers(due: object, frame: Any) -> bool:
    """Whether a frame can be the answer that is due."""
    if type(due) is list:
        return bool(frame in (b"PONG", [b"pong", b""]))
    if type(frame) is not list or len(frame) != 3:
        return False
    return type(due) is not Wanted or bool(frame[1] == due.text)


class Connection(asyncio.Protocol):
    """One connection, from its handshake to its end. `lost` is why it ended."""

    def __init__(self, upstream: Upstream, access: Access, turn: int) -> None:
        loop = asyncio.get_running_loop()
        self.turn = turn  # of its upstream
        self.heard_at = time.monotonic()
        self.pinged_at = 0.0
        self.owing_s = 0.0  # an answer to that, as far as this worker has looked for it
        self.choked = False
        self.lost: asyncio.Future[str] = loop.create_future()
        self._greeted: asyncio.Future[None] = loop.create_future()
        self._upstream = upstream
        self._access = access
        self._handshake: Handshake | None = None
        self._replies = scan.Replies()  # cuts what comes: nothing is made of a header whose elements may never come
        self._endless_s = 0.0  # how long it has been at the message whose end has not come, as far as was looked
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._transport: asyncio.Transport | None = None
        self._dropped = False
        self._taking = False  # of what has come, not all is taken yet
        self._paused = False

    @property
    def is_behind(self) -> bool:
        """The server has said more than this worker has taken: its silence means nothing."""
        return self._taking

    async def open(self, node: Node, deadline_s: float) -> None:
        """Connect, and be let in. Raises OSError, see `access.why`."""
        tls = self._access.tls()
        self._handshake = Handshake(2, 0, self._access.auths(), asks_limits=False)
        try:
            async with within(deadline_s):
                loop = asyncio.get_running_loop()
                await loop.create_connection(lambda: self, node.host, node.port, ssl=tls)
                await self._greeted
        except TimeoutError:
            self.drop("")
            raise ConnectionError(f"no connection within {deadline_s:g} s") from None

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._dropped:
            self._transport.write(data)

    def drop(self, reason: str) -> None:
        """End it: nothing is heard on it any more."""
        if self._dropped:
            return
        self._dropped = True
        if self._transport is not None:
            self._transport.abort()
        self._end(reason)

    def is_endless(self, passed_s: float, most_s: float) -> bool:
        """So much time has passed more. Whether it was ended, as what it says has no end for so long."""
        self._endless_s = self._endless_s + passed_s if self._replies.unfinished else 0.0
        if self._endless_s > most_s:
            self.drop(errors.garbled(f"sends a message that has not ended for {most_s:g} s"))
        return self._dropped

    def _end(self, reason: str) -> None:
        self._upstream.unfinished.keep(self, 0)
        if not self.lost.done():
            self.lost.set_result(reason)
        if not self._greeted.done():
            self._greeted.set_exception(ConnectionError(reason))
            self._greeted.exception()  # looked at: who waited may be gone

    # --- the transport's calls ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        assert self._handshake
        if self._dropped:
            self._transport.abort()
        else:
            self._transport.write(self._handshake.next_bytes())

    def data_received(self, data: bytes) -> None:
        self.heard_at = time.monotonic()
        if self._dropped:
            return
        try:
            if self._handshake is not None:
                self._greet(data)
            else:
                self._hear(data)
        except (hiredis.ProtocolError, scan.ProtocolError) as exc:
            self.drop(errors.garbled(str(exc)))
        except Refused as exc:
            self._greeted.set_exception(exc)
            self.drop("set-up refused")

    def _hear(self, data: bytes) -> None:
        whole = self._replies.whole(data)
        if whole:
            self._endless_s = 0.0
        unfinished = self._replies.unfinished
        if unfinished and not _BEGINNING.fullmatch(self._replies.begins):
            self.drop(errors.garbled("began to say what can be no message"))
            return
        if unfinished or whole is not data:
            self._upstream.unfinished.keep(self, unfinished)
            if self._dropped:
                return
        if not whole:
            return
        self._reader.feed(whole)
        if not self._taking:
            self._taking = True
            self._upstream.slices.run(self._take())
        if self._taking and not self._paused:
            assert self._transport
            self._paused = True
            self._transport.pause_reading()

    def _greet(self, data: bytes) -> None:
        assert self._handshake
        if self._greeted.done():
            self.drop("")  # it was given up in this turn, and who did so has not run yet
            return
        for frame in self._replies.feed(data):
            if self._handshake.is_done:
                raise hiredis.ProtocolError("it sent what nobody asked for")
            self.write(self._handshake.on_reply(frame))
        if self._replies.unfinished > SETUP_BYTES:
            raise hiredis.ProtocolError("its answer to the set-up does not end")
        if self._handshake.is_done:
            self._handshake = None
            self._greeted.set_result(None)

    def _take(self) -> Iterator[int]:
        """What has come, in order. The server is not read while it has said more than is done in a turn."""
        parts = 0
        try:
            while not self._dropped:
                frame = self._reader.gets()
                if frame is _NOTHING:
                    break
                delivery = self._upstream.heard(frame)
                if isinstance(delivery, int):
                    parts += delivery + 1
                else:
                    yield from delivery
                if parts >= BATCH:
                    yield parts
                    parts = 0
        except (hiredis.HiredisError, TypeError, ValueError) as exc:  # hiredis' own too, of a map whose key is a list
            self.drop(errors.garbled(str(exc)))
        self._taking = False
        if self._paused and self._transport is not None and not self._dropped:
            self._paused = False
            self._transport.resume_reading()
        if parts:
            yield parts

    def pause_writing(self) -> None:
        self.choked = True

    def resume_writing(self) -> None:
        self.choked = False
        self._upstream.reads()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._dropped = True
        self._end(why(exc) if isinstance(exc, OSError) else errors.CLOSED)
