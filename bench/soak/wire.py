"""One connection of a client, and the requests on it: every reply goes to the one whose turn it is, and is judged."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import hiredis

from bench.soak.ledger import State, Write

NOT_APPLIED = (
    "TRYAGAIN",
    "EXECABORT",
    "NOREPLICAS",
    "READONLY",
    "LOADING",
    "MASTERDOWN",
    "NOSCRIPT",
    "UNBLOCKED",
    "BUSY",
)
"""First words of errors that promise that nothing was, or will be, applied."""

_NOTHING = object()
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)

Judge = Callable[[object, float], "str | None"]
"""The reply, and when it came; says what is wrong with it."""


@dataclass(slots=True)
class Request:
    """`parts`: of an EXEC, what was queued; its own judge sees all but their answers. `unsure`: its fate is unknown."""

    argv: tuple[bytes, ...]
    judge: Judge
    writes: Sequence[Write] = ()
    parts: Sequence[Request] = ()
    unsure: Callable[[], None] | None = None
    sent_at: float = 0.0

    @property
    def kind(self) -> str:
        return self.argv[0].decode()


@dataclass(slots=True)
class Tally:
    """What all connections saw."""

    requests: Counter[str] = field(default_factory=Counter)
    replies: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)  # requests whose connection ended first
    misrouted: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)  # errors that no fault explains
    longest: tuple[float, str] = (0.0, "none")


class Wire(asyncio.Protocol):
    """`pushed` gets what nobody asked for: messages. `since_wait`: the writes that WAIT would speak of."""

    def __init__(self, name: str, tally: Tally, pushed: Callable[[list[object]], str | None] | None = None) -> None:
        self.name = name
        self.tally = tally
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.out: deque[Request] = deque()
        self.since_wait: list[Write] = []
        self._pushed = pushed
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._idle = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not _NOTHING:
                self._take(reply, now)
        except hiredis.ProtocolError as error:
            self.tally.misrouted.append(f"{self.name}: what came is no RESP: {error}")
            self._transport.abort()
        if not self.out:
            self._idle.set()

    def connection_lost(self, exc: Exception | None) -> None:
        for request in self.out:
            self.tally.lost[request.kind] += 1
            _settle(request, State.UNKNOWN, 0.0)
        self.out.clear()
        self._idle.set()
        if not self.closed.done():
            self.closed.set_result(None)

    def send(self, requests: Sequence[Request], cuts: Sequence[int] = ()) -> None:
        """All at once, or the bytes in pieces that end at `cuts`."""
        if self.closed.done():
            for request in requests:
                _settle(request, State.REFUSED, 0.0)
            return
        now = time.monotonic()
        for request in requests:
            request.sent_at = now
            self.tally.requests[request.kind] += 1
        self.out.extend(requests)
        self._idle.clear()
        data = b"".join(hiredis.pack_command(each.argv) for each in requests)  # type: ignore[arg-type]  # its stub: one
        for begin, end in zip((0, *cuts), (*cuts, len(data)), strict=True):
            self._transport.write(data[begin:end])

    async def answered(self, patience_s: float) -> bool:
        """Whether all that is in flight is answered within that, or the connection lost."""
        try:
            async with asyncio.timeout(patience_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def leave(self, reset: bool) -> None:
        """By RST or FIN, whatever is still out."""
        if reset and not self.closed.done():
            sock = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self._transport.abort()
        else:
            self._transport.close()

    def _take(self, reply: object, now: float) -> None:
        if self._pushed and isinstance(reply, list) and reply[:1] == [b"message"]:
            if said := self._pushed(reply):
                self.tally.misrouted.append(f"{self.name}: {said}")
            return
        if not self.out:
            self.tally.misrouted.append(f"{self.name} got {str(reply)[:100]} and had asked nothing")
            return
        request = self.out.popleft()
        waited = now - request.sent_at
        if waited > self.tally.longest[0]:
            self.tally.longest = (waited, f"{self.name} {request.kind}")
        self._judge(request, reply, now)
        if request.kind == "WAIT":
            self._waited(reply)
        self.since_wait += [write for write in request.writes if write.state is State.ACKED]

    def _waited(self, reply: object) -> None:
        """An uncertain one is said once: what it was about is not known by the next one either."""
        for write in self.since_wait if isinstance(reply, int) and reply >= 1 else ():
            write.waited = True
        if isinstance(reply, int) or str(reply).startswith("UNCERTAIN"):
            self.since_wait.clear()

    def _judge(self, request: Request, reply: object, now: float) -> None:
        if isinstance(reply, hiredis.ReplyError):
            self._error(request, str(reply), now)
            return
        self.tally.replies[f"{request.kind} {_type(reply)}"] += 1
        if request.parts and isinstance(reply, list) and len(reply) == len(request.parts):
            for part, answer in zip(request.parts, reply, strict=True):
                self._judge(part, answer, now)
                self.since_wait += [write for write in part.writes if write.state is State.ACKED]
            return
        if said := request.judge(reply, now):
            self.tally.misrouted.append(f"{self.name} {b' '.join(request.argv)[:80]!r}: {said}")
            _settle(request, State.UNKNOWN, now)
        else:
            _settle(request, State.REFUSED if request.parts else State.ACKED, now)  # nil: a watched key has changed

    def _error(self, request: Request, text: str, now: float) -> None:
        code = text.partition(" ")[0]
        self.tally.errors[code] += 1
        self.tally.replies[f"{request.kind} error"] += 1
        if code == "UNCERTAIN":
            _settle(request, State.UNKNOWN, now)
            return
        _settle(request, State.REFUSED if code in NOT_APPLIED else State.UNKNOWN, now)
        if code not in NOT_APPLIED or (code == "TRYAGAIN" and "applied=no" not in text):
            self.tally.unexpected.append(f"{self.name} {b' '.join(request.argv)[:80]!r}: {text}")


def _settle(request: Request, state: State, now: float) -> None:
    for write in request.writes:
        write.state, write.at = state, now
    for part in request.parts:
        _settle(part, state, now)
    if state is State.UNKNOWN and request.unsure:
        request.unsure()


def _type(reply: object) -> str:
    if reply is None or reply == b"QUEUED":
        return "nil" if reply is None else "queued"
    return type(reply).__name__
