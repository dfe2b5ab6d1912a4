"""One worker's subscriptions at one shard, on one connection: names come in, confirmations and messages go out.

    want, leave ──▶ Upstream ── SUBSCRIBE, UNSUBSCRIBE ──▶ server
    Listener    ◀── confirmed, refused, unavailable ◀── message, pmessage, smessage

It is connected while anything is wanted, and a little longer. A connection that is lost is made again, with back-off,
and everything is subscribed anew; so it is on another server as soon as the shard's primary is another (`point_at`).
What was published meanwhile is gone, as on any Redis. A server that is silent is asked PING, and left when it does not
answer. Who is subscribed, and which shard a name belongs to, is not known here; nothing is ever published.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, cast

import hiredis

from protocol import errors, request, scan
from pyproxy.access import Access, Refused, why
from pyproxy.config import Timeouts
from pyproxy.events import Event, emit
from pyproxy.shardmap import Node
from pyproxy.worker.link import Greeting, Spawn
from pyproxy.worker.pubsub import MESSAGE, Sort

IDLE_S = 5.0  # a connection on which nothing is wanted any more is kept so long
PING_S = 1.0  # of silence, before the server is asked
STEADY_S = 1.0  # a connection that lived so long is made again at once
SLEPT_S = 1.0  # a worker that did not run for so long has heard nothing, whatever was said
DELIVERIES = 20_000  # of messages to clients, before others have their turn

Name = tuple[Sort, bytes]
Passed = Callable[[], None]

PING = request.encode([b"PING"])

_NOTHING = object()
_FORM = {sort: [bytes] * (4 if sort is Sort.PATTERN else 3) for sort in Sort}  # of a message
_NOT_NOW = (b"BUSY", b"LOADING", b"MASTERDOWN")  # codes of a server that will take the subscription later


class Listener(Protocol):
    """Who wants to hear."""

    def deliver(self, sort: Sort, name: bytes, words: list[bytes]) -> int:
        """A message, in the server's words; -> how many clients it was given to."""

    def confirmed(self, upstream: Upstream, name: Name) -> None: ...

    def refused(self, upstream: Upstream, name: Name, line: bytes) -> None:
        """The server does not take it, and says why."""

    def unavailable(self, upstream: Upstream) -> None:
        """Nothing will be confirmed for now."""


class Upstream:
    """All that one worker is subscribed to at one shard."""

    def __init__(
        self, shard: str, node: Node, timeouts: Timeouts, access: Access, spawn: Spawn, listener: Listener
    ) -> None:
        self.shard = shard
        self.node = node
        self._timeouts = timeouts
        self._access = access
        self._spawn = spawn
        self._listener = listener
        self._wanted: dict[Name, None] = {}
        self._asked: dict[Name, int] = {}  # -> which SUBSCRIBE it was
        self._confirmed: set[Name] = set()
        self._changed: dict[Name, None] = {}  # perhaps to be asked, or taken back
        self._fences: list[Passed] = []  # wait for the next PING
        self._answers: deque[tuple[Name, int] | list[Passed]] = deque()  # those that are due; a list: to a PING
        self._count = 0
        self._scheduled = False
        self._connection: Connection | None = None
        self._turn = 0  # grows with each `point_at`: what was begun before comes to nothing
        self._keeping = False
        self._closed = False
        self._down = ""
        self._silent = False
        self._slow = False
        self._troubled = False  # said so in the log
        self._ticked = 0.0
        self._idle_since = 0.0

    # --- what is wanted ---

    @property
    def wanted(self) -> list[Name]:
        return list(self._wanted)

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
        if not self._wanted or not self.is_available:
            return False
        return self._connection is None or bool(self._changed) or len(self._confirmed) < len(self._asked)

    def is_confirmed(self, name: Name) -> bool:
        return name in self._confirmed

    def want(self, name: Name) -> None:
        if name not in self._wanted:
            self._wanted[name] = None
            self._change(name)
            self._begin()

    def leave(self, name: Name) -> None:
        if name in self._wanted:
            del self._wanted[name]
            self._change(name)
            self._idle_since = time.monotonic()

    def doubt(self) -> None:
        """What was asked is not answered in time: until anything is heard, nobody waits for it."""
        self._silent = True

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

    def point_at(self, node: Node) -> None:
        """Another server, or the same in another epoch."""
        self.node = node
        self._turn += 1
        self._keeping = False
        self._down = ""
        self._silent = False
        if self._connection is not None:
            self._connection.drop("")
            self._lost()
        self._begin()

    def close(self) -> None:
        self._closed = True
        if self._connection is not None:
            self._connection.drop("")

    def tick(self, now: float) -> None:
        """Every few milliseconds: whether the server is still there, and still needed."""
        connection, slept = self._connection, now - self._ticked > SLEPT_S
        self._ticked = now
        if connection is None:
            return
        if slept:
            connection.heard_at = now
        if not self._wanted and now - self._idle_since > IDLE_S:
            connection.drop("")
        elif connection.pinged_at > connection.heard_at:
            if now - connection.pinged_at > self._timeouts.silence_s:
                connection.drop(errors.no_reply(now - connection.pinged_at))
        elif now - connection.heard_at > PING_S:
            connection.pinged_at = now
            self._answers.append([])
            connection.write(PING)

    # --- asking ---

    def _change(self, name: Name) -> None:
        self._changed[name] = None
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled and self._connection is not None:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._ask)

    def _ask(self) -> None:
        """A command for each name, so that each answer, an error too, is the answer to one."""
        self._scheduled = False
        if self._connection is None or self._connection.choked:
            return  # it will be asked for again
        changed, self._changed = self._changed, {}
        out = []
        for name in changed:
            sort, text = name
            if name in self._wanted and name not in self._asked:
                self._count += 1
                self._asked[name] = self._count
                self._answers.append((name, self._count))
                out.append(request.encode([sort.prefix + b"subscribe", text]))
            elif name not in self._wanted and name in self._asked:
                del self._asked[name]
                self._confirmed.discard(name)
                self._answers.append((name, 0))
                out.append(request.encode([sort.prefix + b"unsubscribe", text]))
        if self._fences:  # one PING for all of them
            self._answers.append(self._fences)
            self._fences = []
            out.append(PING)
        if out:
            self._connection.write(b"".join(out))

    def reads(self) -> None:
        """The server reads again."""
        if self._changed or self._fences:
            self._schedule()

    # --- what comes ---

    def heard(self, frame: Any) -> int:
        """A reply or a message of the connection -> to how many clients it was given. Raises ProtocolError."""
        self._silent = self._slow = False
        if type(frame) is list and frame and type(frame[0]) is bytes:
            sort = MESSAGE.get(frame[0])
            if sort is not None:
                if [type(word) for word in frame] != _FORM[sort]:
                    raise hiredis.ProtocolError("a message of another form")
                return self._listener.deliver(sort, frame[1], frame)
        if not self._answers:
            raise hiredis.ProtocolError("it sent what nobody asked for")
        due = self._answers.popleft()
        if isinstance(due, list):
            for passed in due:
                passed()
            return 0
        name, which = due
        if self._asked.get(name) != which:
            return 0  # it was taken back since
        if isinstance(frame, hiredis.ReplyError):
            self._refused(name, str(frame).encode())
        else:
            self._confirmed.add(name)
            self._listener.confirmed(self, name)
        return 0

    def _refused(self, name: Name, line: bytes) -> None:
        if line.split(b" ", 1)[0] in _NOT_NOW and self._connection is not None:
            self._connection.drop(f"answered -{line.decode(errors='replace')}")
            return
        del self._asked[name]
        emit(Event.PUBSUB_REFUSED, shard=self.shard, node=self.node, why=line.decode(errors="replace"))
        self._listener.refused(self, name, b"-%b\r\n" % line)

    # --- the connection ---

    def _begin(self) -> None:
        if self._wanted and not self._keeping and not self._closed:
            self._keeping = True
            self._spawn(self._keep(self._turn), f"subscribe {self.shard}")

    async def _keep(self, turn: int) -> None:
        """A connection, as long as anything is wanted here."""
        pause_s = self._timeouts.reconnect_min_s
        while self._wanted and not self._closed:
            connection = Connection(self, self._access)
            try:
                await connection.open(self.node, self._timeouts.connect_s)
            except OSError as exc:
                reason, lived_s = why(exc), 0.0
            else:
                if turn == self._turn and not self._closed:
                    opened = time.monotonic()
                    self._opened(connection)
                    reason = await connection.lost
                    lived_s = time.monotonic() - opened
            if turn != self._turn or self._closed:
                connection.drop("")
                return
            if self._connection is not None:
                self._lost()
            if not self._wanted:
                break
            self._say_lost(reason)
            if lived_s >= STEADY_S:
                pause_s = self._timeouts.reconnect_min_s
            else:
                self._down = reason
                self._listener.unavailable(self)
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
                if turn != self._turn:
                    return
                pause_s = min(pause_s * 2, self._timeouts.reconnect_max_s)
        self._keeping = False

    def _opened(self, connection: Connection) -> None:
        self._connection = connection
        self._silent = False
        self._down = ""
        if self._troubled:
            self._troubled = False
            emit(Event.PUBSUB_BACK, shard=self.shard, node=self.node, names=len(self._wanted))
        self._changed = dict(self._wanted)
        self._schedule()

    def _lost(self) -> None:
        self._connection = None
        self._asked.clear()
        self._confirmed.clear()
        self._changed.clear()
        fences = [self._fences, *(due for due in self._answers if isinstance(due, list))]
        self._fences = []
        self._answers.clear()
        for passed in [each for those in fences for each in those]:
            passed()

    def _say_lost(self, reason: str) -> None:
        """Once, until it is back; without a reason it was closed from here."""
        if reason and not self._troubled:
            self._troubled = True
            emit(Event.PUBSUB_LOST, shard=self.shard, node=self.node, why=reason, names=len(self._wanted))

    def __repr__(self) -> str:
        return f"<Upstream {self.shard} {self.node} {self._down or 'up'} {len(self._wanted)} names>"


class Connection(asyncio.Protocol):
    """One connection, from its greeting to its end. `lost` is why it ended."""

    def __init__(self, upstream: Upstream, access: Access) -> None:
        loop = asyncio.get_running_loop()
        self.heard_at = time.monotonic()
        self.pinged_at = 0.0
        self.choked = False
        self.lost: asyncio.Future[str] = loop.create_future()
        self._greeted: asyncio.Future[None] = loop.create_future()
        self._upstream = upstream
        self._access = access
        self._greeting: Greeting | None = None
        self._replies = scan.Replies()  # to the greeting
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._transport: asyncio.Transport | None = None
        self._dropped = False

    async def open(self, node: Node, deadline_s: float) -> None:
        """Connect, and be let in. Raises OSError, see `access.why`."""
        tls = self._access.tls()
        self._greeting = Greeting(2, 0, self._access.auths(), is_shared=False)
        try:
            async with asyncio.timeout(deadline_s):
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

    def _end(self, reason: str) -> None:
        if not self.lost.done():
            self.lost.set_result(reason)
        if not self._greeted.done():
            self._greeted.set_exception(ConnectionError(reason))
            self._greeted.exception()  # looked at: who waited may be gone

    # --- the transport's calls ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        assert self._greeting
        if self._dropped:
            self._transport.abort()
        else:
            self._transport.write(self._greeting.first())

    def data_received(self, data: bytes) -> None:
        self.heard_at = time.monotonic()
        if self._dropped:
            return
        try:
            if self._greeting is not None:
                self._greet(data)
            else:
                self._reader.feed(data)
                self._take()
        except (hiredis.ProtocolError, scan.ProtocolError) as exc:
            self.drop(errors.garbled(str(exc)))
        except Refused as exc:
            self._greeted.set_exception(exc)
            self.drop("set-up refused")

    def _greet(self, data: bytes) -> None:
        assert self._greeting
        for frame in self._replies.feed(data):
            self.write(self._greeting.heard(frame))
        if self._greeting.is_over:
            self._greeting = None
            self._greeted.set_result(None)

    def _take(self) -> None:
        left = DELIVERIES
        while not self._dropped:
            frame = self._reader.gets()
            if frame is _NOTHING:
                return
            left -= 1 + self._upstream.heard(frame)
            if left <= 0:
                assert self._transport
                self._transport.pause_reading()
                asyncio.get_running_loop().call_soon(self._go_on)
                return

    def _go_on(self) -> None:
        """Others had their turn."""
        if self._dropped or self._transport is None:
            return
        self._transport.resume_reading()
        self.data_received(b"")

    def pause_writing(self) -> None:
        self.choked = True

    def resume_writing(self) -> None:
        self.choked = False
        self._upstream.reads()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._dropped = True
        self._end(why(exc) if isinstance(exc, OSError) else errors.CLOSED)
