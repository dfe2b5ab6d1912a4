"""Whether the writes of one shard may pass in this worker, and how long those that may not are held.

What the parent says comes in (`messages.Gate`), what this worker notices by itself, and each write that meets a gate
that is not open; out goes for each: it passes, it is held, or the line to refuse it with.

    closed by       the parent's word              its `hold`, `since` and `expected_at`
                    this worker has slept          held until the parent says what is true now, whatever the mode
                    nobody answers (stalled)       refused at once, until a probe or a request is answered
                    the server refuses writes      for `usual_s`, or until the parent says otherwise
                    no connection can be made      while that is so
    the last three only where somebody may promote: the shard has replicas, and a promoter is configured

Who is held stands here, in the order of coming; a client that waited out its time is not held again before the gate has
been open. Pure rules and numbers: no socket, no timer; the time is an argument (CLOCK_MONOTONIC, s). Never called while
all is well.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from protocol import errors
from pyproxy import messages
from pyproxy.config import Promotion
from pyproxy.health import remaining_s, state
from pyproxy.shard_map import Node

CONFIRM_S = 1.0
"""How long a write waits for the parent's word after this worker has slept."""

QUIET_S = 1.0
"""Longer than this and `usual_s` without a refusal, and an incident of refusals is over."""

JITTER = 0.2
"""Of retry_after_ms, or all who were refused would come back at once."""


class Holder(Protocol):
    """A client that is held; in the worker it is a compiled class."""

    id: int


Client = TypeVar("Client", bound=Holder)


@dataclass(slots=True)
class Holds:
    """What is held by all gates of this worker, and what became of the writes that met one that was not open."""

    requests: int = 0
    bytes: int = 0
    held: int = 0
    drained: int = 0
    refused_held: int = 0
    dropped_client_gone: int = 0
    refused_at_once: int = 0
    taken_back: int = 0


@dataclass(frozen=True, slots=True)
class Closed:
    """Why writes may not pass, since when, and what is expected."""

    why: str
    since: float
    expected_at: float
    hold: bool  # they may be held, within the bounds
    brief: bool = False  # held in any mode: nothing but the parent's word is waited for
    by_parent: bool = False  # who has looked at the mode: where it is reject, `hold` is true for hand-overs alone


@dataclass(slots=True)
class Parked:
    """What a held client has here."""

    start: float  # of the hold of its request
    bytes: int


@dataclass(slots=True)
class Own:
    """What this worker has noticed by itself; 0: it has not."""

    slept_at: float = 0.0
    stalled_at: float = 0.0
    refused_at: float = 0.0
    refusal: str = ""
    lost_at: float = 0.0
    lost: str = ""


@dataclass(slots=True)
class Gate(Generic[Client]):
    shard: str
    node: Node
    promotion: Promotion
    holds: Holds
    said: messages.Gate
    replicated: bool
    own: Own = field(default_factory=Own)
    parked: dict[Client, Parked] = field(default_factory=dict)
    kept_requests: int = 0  # begun, and not sent; see Backend
    kept_bytes: int = 0
    _parked_bytes: int = 0
    _began: float = 0.0  # the incident; 0: the gate was open when it was asked last
    _promoted_at: float = 0.0
    _closed_at: float = 0.0  # when it was last asked and closed
    _refused_at: float = 0.0  # when the server refused a write last
    _waited: set[int] = field(default_factory=set)

    # --- what is known ---

    def tell(self, said: messages.Gate, node: Node, replicated: bool, now: float) -> None:
        """The parent's word: it knows of the refusals by now."""
        if node != self.node:
            self._promoted_at = now
            self.own.stalled_at = 0.0
            self._refused_at = 0.0
        self.said = said
        self.node = node
        self.replicated = replicated
        self.own.refused_at = 0.0

    def observe(self, health: messages.ShardHealth) -> None:
        """What the parent's watcher saw: trouble that was noticed here before that may be over."""
        primary = health.nodes[0] if health.nodes else None
        if primary is None or primary.node != str(self.node):
            return
        if primary.reachable and primary.answered_at > self.own.stalled_at:
            self.own.stalled_at = 0.0
        if primary.at > self.own.refused_at and state(health) == "up":
            self.own.refused_at = 0.0

    def refused(self, code: str, now: float) -> None:
        """The server refused a write for a reason that a promotion would end."""
        self._refused_at = now
        if not self.own.refused_at:
            self.own.refused_at = now
            self.own.refusal = code

    @property
    def promotable(self) -> bool:
        """Whether anything may follow from what this worker notices by itself."""
        return self.replicated and self.promotion.promoter != "none"

    def takes_back(self, code: str) -> bool:
        """Whether a write that was refused with this code may be tried again later."""
        return (self.promotable or bool(self.said.closed)) and (code != "MISCONF" or self.promotion.misconf_after_s > 0)

    def closed(self, now: float) -> Closed | None:
        """Why writes may not pass; None: they may."""
        # while writes are only tried again, to see whether the server takes them, the incident is the same
        again_s = self.said.usual_s + QUIET_S
        if now >= max(self._closed_at, self._refused_at) + again_s:
            self._is_over()  # nobody asks while all is well
        closed = self._closed(now)
        if closed is not None:
            self._closed_at = now
            self._began = self._began or min(now, closed.since)
        elif now >= self._refused_at + again_s:
            self._is_over()
        return closed

    def _is_over(self) -> None:
        """The incident."""
        self._began = 0.0
        self._waited.clear()

    def _closed(self, now: float) -> Closed | None:
        said, own = self.said, self.own
        if said.closed:
            return Closed(said.closed, said.since, said.expected_at, said.hold, by_parent=True)
        if not self.replicated:
            return None
        if own.slept_at:
            return Closed("is being confirmed", own.slept_at, own.slept_at + CONFIRM_S, hold=True, brief=True)
        if self.promotion.promoter == "none":
            return None
        hold = now - self._promoted_at >= self.promotion.hold_again_s or not self._promoted_at
        until_down = self.promotion.down_after_s + said.usual_s
        if own.stalled_at:
            return Closed("does not answer", own.stalled_at, own.stalled_at + until_down, hold=False)
        if own.refused_at and now < own.refused_at + said.usual_s:
            began = self._began or own.refused_at
            return Closed(f"answered -{own.refusal}", began, began + said.usual_s, hold)
        own.refused_at = 0.0
        if own.lost_at:
            return Closed(f"is down: {own.lost}", own.lost_at, own.lost_at + until_down, hold)
        return None

    # --- what becomes of a write ---

    def line(self, closed: Closed, now: float) -> bytes:
        """The refusal."""
        seconds = remaining_s(closed.since, closed.expected_at, now) * random.uniform(1 - JITTER, 1 + JITTER)
        return errors.gate_closed(self.shard, self.node, closed.why, int(seconds * 1000))

    def may_be_held(
        self, closed: Closed, client: int, size: int, start: float, now: float, requests: int = 1, again: bool = False
    ) -> bool:
        """Whether these writes of a client may wait.

        `size`: their bytes; `start`: since when they wait, or were sent; `again`: they were held before, and go on.
        """
        bounds = self.promotion
        if not closed.hold or client in self._waited or start <= self.overdue(closed, now):
            return False
        if not closed.brief:
            if bounds.on_promotion == "reject" and not closed.by_parent:
                return False
            near = now < closed.expected_at <= now + bounds.auto_hold_s
            if bounds.on_promotion == "auto" and not again and not near:
                return False
        return (
            len(self.parked) + self.kept_requests + requests <= bounds.hold_requests
            and size <= bounds.hold_client_bytes
            and self._parked_bytes + self.kept_bytes + size <= bounds.hold_bytes
            and self.holds.bytes + size <= bounds.hold_process_bytes
        )

    def overdue(self, closed: Closed, now: float) -> float:
        """What has been held since this time, or longer, must not be held any more."""
        bounds = self.promotion
        if not closed.hold or (bounds.on_promotion == "reject" and not closed.brief and not closed.by_parent):
            return now
        if now >= min(self._began or now, closed.since or now) + bounds.hold_incident_s:
            return now
        if closed.brief:
            return now - CONFIRM_S
        return now - (bounds.auto_hold_s if bounds.on_promotion == "auto" else bounds.hold_s)

    # --- who is held ---

    def park(self, client: Client, size: int, start: float) -> None:
        self.parked[client] = Parked(start, size)
        self._parked_bytes += size
        self._count(1, size)
        self.holds.held += 1

    def grew(self, client: Client, size: int) -> bool:
        """What a held client has sent by now, all bytes -> whether that is within the bounds."""
        parked = self.parked[client]
        more, parked.bytes = size - parked.bytes, size
        self._parked_bytes += more
        self.holds.bytes += more
        bounds = self.promotion
        return (
            size <= bounds.hold_client_bytes
            and self._parked_bytes + self.kept_bytes <= bounds.hold_bytes
            and self.holds.bytes <= bounds.hold_process_bytes
        )

    def unpark(self, client: Client) -> None:
        parked = self.parked.pop(client)
        self._parked_bytes -= parked.bytes
        self._count(-1, -parked.bytes)

    def give_up(self, client: int) -> None:
        """It has waited: nothing more of it is held before the gate has been open."""
        self._waited.add(client)

    def due(self, now: float) -> Iterator[Client]:
        """Those who must not be held any longer."""
        closed = self.closed(now)
        if closed is not None and self.parked:
            before = self.overdue(closed, now)
            yield from [client for client, parked in self.parked.items() if parked.start <= before]

    def keep(self, size: int) -> None:
        """A write that was begun and not sent is held."""
        self.kept_requests += 1
        self.kept_bytes += size
        self._count(1, size)
        self.holds.held += 1

    def unkeep(self, size: int) -> None:
        self.kept_requests -= 1
        self.kept_bytes -= size
        self._count(-1, -size)

    def _count(self, requests: int, size: int) -> None:
        self.holds.requests += requests
        self.holds.bytes += size

    @property
    def held(self) -> messages.Held:
        return messages.Held(len(self.parked) + self.kept_requests, self._parked_bytes + self.kept_bytes)
