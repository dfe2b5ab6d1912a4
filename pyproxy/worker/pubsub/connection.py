"""One connection on which a worker subscribes at a server, from its handshake to its end.

Bytes of the server come in. Replies and messages go to the owner, whole and in order, a bounded number in each turn of
the loop. A connection that sends what can be no message, or a message without an end, is dropped.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, cast

import hiredis

from protocol import errors, scan
from pyproxy.access import Access, Refused, why
from pyproxy.deadline import within
from pyproxy.shard_map import Node
from pyproxy.slices import BATCH, Slices
from pyproxy.worker.shard.handshake import Handshake

Delivery = int | Iterator[int]
"""How many clients a message was delivered to; or the work that delivers it in slices."""

MESSAGE_OVERHEAD = 1 << 16
"""Bytes that a message may have beside a text that is as long as clients may send one."""

HANDSHAKE_BYTES = 1 << 17
"""Bytes of an unfinished reply during the handshake."""

_BEGINNING = re.compile(rb"[+-].*|\*([2-4](\r(\n(\$.*)?)?)?)?", re.DOTALL)
"""How a frame may begin: as a message or a confirmation, whose first word is a bulk string, or as the reply to PING."""

_INCOMPLETE = object()


class Owner(Protocol):
    """The upstream of a connection."""

    slices: Slices
    partial_messages: PartialMessages

    def on_frame(self, frame: Any) -> Delivery:
        """A reply or a message, as hiredis parses it. Raises ProtocolError if it must not come here."""

    def on_writable(self) -> None:
        """The server reads again."""


class PartialMessages:
    """The bytes of incomplete messages of all servers. `charge` accounts for them.

    Above `limit` the connection that has most of them is dropped, as it may never end its message.
    """

    def __init__(self, limit: int, charge: Callable[[int], None]) -> None:
        self._limit = limit
        self._charge = charge
        self._sizes: dict[Connection, int] = {}

    def set_size(self, connection: Connection, size: int) -> None:
        change = size - self._sizes.pop(connection, 0)
        if size:
            self._sizes[connection] = size
        if change:
            self._charge(change)
        while sum(self._sizes.values()) > self._limit:
            max(self._sizes, key=self._sizes.__getitem__).drop(errors.OVER_MEMORY)  # which sets its size to 0


class Connection(asyncio.Protocol):
    """`lost`: why it ended, once it has. `generation`: of its upstream when the connection was begun."""

    def __init__(self, owner: Owner, access: Access, generation: int) -> None:
        loop = asyncio.get_running_loop()
        self.generation = generation
        self.heard_at = time.monotonic()
        self.pinged_at = 0.0
        self.ping_owed_s = 0.0  # how long this worker has looked for the reply to that PING
        self.congested = False
        self.lost: asyncio.Future[str] = loop.create_future()
        self._ready: asyncio.Future[None] = loop.create_future()
        self._owner = owner
        self._access = access
        self._handshake: Handshake | None = None
        self._replies = scan.Replies()  # finds the end of a frame, before anything is made of its header
        self._partial_s = 0.0  # how long this worker has looked for the end of the incomplete message
        self._reader = hiredis.Reader(notEnoughData=_INCOMPLETE)
        self._transport: asyncio.Transport | None = None
        self._dropped = False
        self._delivering = False
        self._paused = False

    @property
    def has_backlog(self) -> bool:
        """Whether frames have arrived that are not delivered yet. Then the silence of the server means nothing."""
        return self._delivering

    async def open(self, node: Node, timeout_s: float) -> None:
        """Connect, and do the handshake. Raises OSError, see `access.why`."""
        tls = self._access.tls()
        self._handshake = Handshake(2, 0, self._access.auths(), asks_limits=False)
        try:
            async with within(timeout_s):
                loop = asyncio.get_running_loop()
                await loop.create_connection(lambda: self, node.host, node.port, ssl=tls)
                await self._ready
        except TimeoutError:
            self.drop("")
            raise ConnectionError(f"no connection within {timeout_s:g} s") from None

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._dropped:
            self._transport.write(data)

    def drop(self, reason: str) -> None:
        """End the connection. Nothing that arrives on it is delivered any more."""
        if self._dropped:
            return
        self._dropped = True
        if self._transport is not None:
            self._transport.abort()
        self._end(reason)

    def check_partial(self, passed_s: float, limit_s: float) -> bool:
        """Drop the connection if a message has been incomplete for too long -> whether the connection is dropped."""
        self._partial_s = self._partial_s + passed_s if self._replies.unfinished else 0.0
        if self._partial_s > limit_s:
            self.drop(errors.garbled(f"sends a message that has not ended for {limit_s:g} s"))
        return self._dropped

    def _end(self, reason: str) -> None:
        self._owner.partial_messages.set_size(self, 0)
        if not self.lost.done():
            self.lost.set_result(reason)
        if not self._ready.done():
            self._ready.set_exception(ConnectionError(reason))
            self._ready.exception()  # marks it as retrieved: whoever waited for it may be gone

    # --- called by the transport ---

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
                self._shake_hands(self._handshake, data)
            else:
                self._receive(data)
        except (hiredis.ProtocolError, scan.ProtocolError) as exc:
            self.drop(errors.garbled(str(exc)))
        except Refused as exc:
            self._ready.set_exception(exc)
            self.drop("set-up refused")

    def _receive(self, data: bytes) -> None:
        whole = self._replies.whole(data)
        if whole:
            self._partial_s = 0.0
        unfinished = self._replies.unfinished
        if unfinished and not _BEGINNING.fullmatch(self._replies.begins):
            self.drop(errors.garbled("began to say what can be no message"))
            return
        if unfinished or whole is not data:
            self._owner.partial_messages.set_size(self, unfinished)
            if self._dropped:
                return
        if not whole:
            return
        self._reader.feed(whole)
        if not self._delivering:
            self._delivering = True
            self._owner.slices.run(self._deliver())
        if self._delivering and not self._paused:
            assert self._transport
            self._paused = True
            self._transport.pause_reading()

    def _shake_hands(self, handshake: Handshake, data: bytes) -> None:
        if self._ready.done():
            self.drop("")  # it was given up in this turn of the loop, by code that has not run yet
            return
        for frame in self._replies.feed(data):
            if handshake.is_done:
                raise hiredis.ProtocolError("it sent what nobody asked for")
            self.write(handshake.on_reply(frame))
        if self._replies.unfinished > HANDSHAKE_BYTES:
            raise hiredis.ProtocolError("its answer to the set-up does not end")
        if handshake.is_done:
            self._handshake = None
            self._ready.set_result(None)

    def _deliver(self) -> Iterator[int]:
        """A work that delivers the frames that have arrived. Reading is paused if one turn is not enough for them."""
        parts = 0
        try:
            while not self._dropped:
                frame = self._reader.gets()
                if frame is _INCOMPLETE:
                    break
                delivery = self._owner.on_frame(frame)
                if isinstance(delivery, int):
                    parts += delivery + 1
                else:
                    yield from delivery
                if parts >= BATCH:
                    yield parts
                    parts = 0
        except (
            hiredis.HiredisError,
            TypeError,
            ValueError,
        ) as exc:  # hiredis raises others of a map whose key is a list
            self.drop(errors.garbled(str(exc)))
        self._delivering = False
        if self._paused and self._transport is not None and not self._dropped:
            self._paused = False
            self._transport.resume_reading()
        if parts:
            yield parts

    def pause_writing(self) -> None:
        self.congested = True

    def resume_writing(self) -> None:
        self.congested = False
        self._owner.on_writable()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._dropped = True
        self._end(why(exc) if isinstance(exc, OSError) else errors.CLOSED)
