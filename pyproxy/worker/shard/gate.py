"""The gate of one shard: whether its writes may pass in this worker, and how long those that may not are held.

Inputs are the parent's directive (`messages.GateDirective`), what this worker observes itself, and each write that
meets a closed gate. Such a write passes, is held, or is refused with an error line.

    closed because                  its writes are
    the parent says so              as its directive says: `hold`, `since` and `expected_at`
    slots are being moved           held in any mode, for `hold_s`, however many and large they are
    this worker has slept           held in any mode, until the parent says what is true now
    the server does not answer      refused at once, until a health check or a request is answered
    the server refuses writes       held or refused for `usual_s`, or until the parent says otherwise
    no connection can be made       held or refused while that is so

The last three close it only if somebody may promote: the shard has replicas, and a promoter is configured.

Held clients are kept in the order in which they came. A client that was held for as long as it may be is not held again
before the gate has been open. Pure: no socket, no timer; the time is an argument (CLOCK_MONOTONIC, s). While all is
well nothing here is called.
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
"""How long a write waits for the parent after this worker has slept."""

QUIET_S = 1.0
"""An incident of refusals is over when there was none for this time and `usual_s`."""

JITTER = 0.2
"""Of retry_after_ms. Without it all clients that were refused would come back at once."""


class HasId(Protocol):
    """A held client. In the worker it is a compiled class."""

    id: int


Client = TypeVar("Client", bound=HasId)


@dataclass(slots=True)
class HoldStats:
    """What all gates of this worker hold now, and how often what became of a write. INFO has the same names."""

    requests: int = 0
    bytes: int = 0
    held: int = 0
    drained: int = 0
    refused_held: int = 0
    dropped_client_gone: int = 0
    refused_at_once: int = 0
    withheld_writes: int = 0

    def count(self, outcome: str) -> None:
        setattr(self, outcome, getattr(self, outcome) + 1)


@dataclass(frozen=True, slots=True)
class Closure:
    """Why the gate is closed, since when, and when it is expected to open."""

    why: str
    since: float
    expected_at: float
    hold: bool  # writes may be held, within the bounds
    any_mode: bool = False  # whatever `on_promotion` says: only the parent's word is waited for
    by_parent: bool = False  # in mode reject the parent sets `hold` for planned promotions alone
    moving: bool = False  # slots get another owner, in a moment: no bounds but the worker's memory


@dataclass(slots=True)
class HeldClient:
    start: float  # of the hold of its request
    bytes: int


@dataclass(slots=True)
class Observed:
    """What this worker has observed itself. A time of 0 means that it has not."""

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
    stats: HoldStats
    directive: messages.GateDirective
    replicated: bool
    observed: Observed = field(default_factory=Observed)
    held_clients: dict[Client, HeldClient] = field(default_factory=dict)
    replay_requests: int = 0  # writes in the replay queues of the shard's backends
    replay_bytes: int = 0
    _client_bytes: int = 0  # of the held clients
    _incident_since: float = 0.0  # 0: the gate was open when it was last asked
    _promoted_at: float = 0.0
    _last_closed_at: float = 0.0
    _last_refusal_at: float = 0.0
    _exhausted: set[int] = field(default_factory=set)  # ids of clients that are not held again in this incident

    # --- what is known ---

    def apply(self, directive: messages.GateDirective, node: Node, replicated: bool, now: float) -> None:
        """Follow the parent's directive. The parent knows of the refusals that were seen here before."""
        if node != self.node:
            self._promoted_at = now
            self.observed.stalled_at = 0.0
            self._last_refusal_at = 0.0
        self.directive = directive
        self.node = node
        self.replicated = replicated
        self.observed.refused_at = 0.0

    def on_health(self, health: messages.ShardHealth) -> None:
        """A health check may find that trouble is over which was observed here before the check."""
        primary = health.nodes[0] if health.nodes else None
        if primary is None or primary.node != str(self.node):
            return
        if primary.reachable and primary.answered_at > self.observed.stalled_at:
            self.observed.stalled_at = 0.0
        if primary.at > self.observed.refused_at and state(health) == "up":
            self.observed.refused_at = 0.0

    def on_refusal(self, code: str, now: float) -> None:
        """The server refused a write for a reason that a promotion would end."""
        self._last_refusal_at = now
        if not self.observed.refused_at:
            self.observed.refused_at = now
            self.observed.refusal = code

    @property
    def promotable(self) -> bool:
        return self.replicated and self.promotion.promoter != "none"

    def withholds(self, code: str) -> bool:
        """Whether a refusal with this code is withheld from its client, as the write may be replayed."""
        may_open = self.promotable or bool(self.directive.closed)
        return may_open and (code != "MISCONF" or self.promotion.misconf_after_s > 0)

    def closure(self, now: float) -> Closure | None:
        """Why the gate is closed. None: it is open."""
        if self.directive.closed and self.directive.moving:  # no incident, however often it is tried
            directive = self.directive
            return Closure(
                directive.closed, directive.since, directive.expected_at, hold=True, by_parent=True, moving=True
            )
        # writes that are tried again, to see whether the server takes them, do not end the incident
        retry_s = self.directive.usual_s + QUIET_S
        if now >= max(self._last_closed_at, self._last_refusal_at) + retry_s:
            self._end_incident()  # while all was well, nobody asked
        closure = self._find_closure(now)
        if closure is not None:
            self._last_closed_at = now
            self._incident_since = self._incident_since or min(now, closure.since)
        elif now >= self._last_refusal_at + retry_s:
            self._end_incident()
        return closure

    def _end_incident(self) -> None:
        self._incident_since = 0.0
        self._exhausted.clear()

    def _find_closure(self, now: float) -> Closure | None:
        directive, observed = self.directive, self.observed
        if directive.closed:
            return Closure(directive.closed, directive.since, directive.expected_at, directive.hold, by_parent=True)
        if not self.replicated:
            return None
        if observed.slept_at:
            expected_at = observed.slept_at + CONFIRM_S
            return Closure("is being confirmed", observed.slept_at, expected_at, hold=True, any_mode=True)
        if self.promotion.promoter == "none":
            return None
        hold = now - self._promoted_at >= self.promotion.hold_again_s or not self._promoted_at
        until_up_s = self.promotion.down_after_s + directive.usual_s
        if observed.stalled_at:
            return Closure("does not answer", observed.stalled_at, observed.stalled_at + until_up_s, hold=False)
        if observed.refused_at and now < observed.refused_at + directive.usual_s:
            since = self._incident_since or observed.refused_at
            return Closure(f"answered -{observed.refusal}", since, since + directive.usual_s, hold)
        observed.refused_at = 0.0
        if observed.lost_at:
            return Closure(f"is down: {observed.lost}", observed.lost_at, observed.lost_at + until_up_s, hold)
        return None

    # --- what becomes of a write ---

    def refusal(self, closure: Closure, now: float) -> bytes:
        """The error line for a write that is not held."""
        seconds = remaining_s(closure.since, closure.expected_at, now) * random.uniform(1 - JITTER, 1 + JITTER)
        return errors.gate_closed(self.shard, self.node, closure.why, int(seconds * 1000))

    def may_hold(
        self, closure: Closure, client: int, size: int, start: float, now: float, requests: int = 1, again: bool = False
    ) -> bool:
        """Whether these writes of a client may be held.

        `size`: their bytes; `start`: since when they are held, or when they were sent; `again`: they were held before.
        """
        bounds = self.promotion
        if closure.moving:
            return start > self.hold_cutoff(closure, now)
        if not closure.hold or client in self._exhausted or start <= self.hold_cutoff(closure, now):
            return False
        if not closure.any_mode:
            if bounds.on_promotion == "reject" and not closure.by_parent:
                return False
            opens_soon = now < closure.expected_at <= now + bounds.auto_hold_s
            if bounds.on_promotion == "auto" and not again and not opens_soon:
                return False
        return (
            len(self.held_clients) + self.replay_requests + requests <= bounds.hold_requests
            and size <= bounds.hold_client_bytes
            and self._client_bytes + self.replay_bytes + size <= bounds.hold_bytes
            and self.stats.bytes + size <= bounds.hold_process_bytes
        )

    def hold_cutoff(self, closure: Closure, now: float) -> float:
        """What has been held since this time, or longer, must not be held any more."""
        bounds = self.promotion
        if closure.moving:
            return now - bounds.hold_s
        if not closure.hold or (bounds.on_promotion == "reject" and not closure.any_mode and not closure.by_parent):
            return now
        if now >= min(self._incident_since or now, closure.since or now) + bounds.hold_incident_s:
            return now
        if closure.any_mode:
            return now - CONFIRM_S
        return now - (bounds.auto_hold_s if bounds.on_promotion == "auto" else bounds.hold_s)

    # --- what is held ---

    def hold(self, client: Client, size: int, start: float) -> None:
        self.held_clients[client] = HeldClient(start, size)
        self._client_bytes += size
        self._account(1, size)
        self.stats.held += 1

    def resize(self, client: Client, size: int) -> bool:
        """A held client has sent `size` bytes in all by now -> whether they may be held."""
        held = self.held_clients[client]
        more, held.bytes = size - held.bytes, size
        self._client_bytes += more
        self.stats.bytes += more
        bounds = self.promotion
        return (self.directive.moving and bool(self.directive.closed)) or (
            size <= bounds.hold_client_bytes
            and self._client_bytes + self.replay_bytes <= bounds.hold_bytes
            and self.stats.bytes <= bounds.hold_process_bytes
        )

    def release(self, client: Client) -> None:
        held = self.held_clients.pop(client)
        self._client_bytes -= held.bytes
        self._account(-1, -held.bytes)

    def exhaust(self, client: int) -> None:
        """It was held for as long as it may be: it is not held again before the gate has been open."""
        self._exhausted.add(client)

    def expired(self, now: float) -> Iterator[Client]:
        """The clients that must not be held any longer."""
        closure = self.closure(now)
        if closure is not None and self.held_clients:
            cutoff = self.hold_cutoff(closure, now)
            yield from [client for client, held in self.held_clients.items() if held.start <= cutoff]

    def hold_replay(self, size: int) -> None:
        """A write that was begun joins the replay queue."""
        self.replay_requests += 1
        self.replay_bytes += size
        self._account(1, size)
        self.stats.held += 1

    def release_replay(self, size: int) -> None:
        """It leaves the replay queue."""
        self.replay_requests -= 1
        self.replay_bytes -= size
        self._account(-1, -size)

    def _account(self, requests: int, size: int) -> None:
        self.stats.requests += requests
        self.stats.bytes += size

    @property
    def held(self) -> messages.Held:
        return messages.Held(len(self.held_clients) + self.replay_requests, self._client_bytes + self.replay_bytes)
