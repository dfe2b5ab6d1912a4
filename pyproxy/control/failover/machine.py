"""What becomes of one shard: the machine of its failovers.  Pure: events and the time go in, effects come out.

    shard_state.py   what is known of the shard, and who could be primary
    unplanned.py     the primary is in trouble: suspect, waiting, promoting, verifying, switching, readonly, down
    machine.py       an operator asks: a planned hand-over, a pause; the gate; which handler takes which event

       healthy ── promote ──▶ handing-over ──▶ switching ──▶ healthy
               ── pause ────▶ paused ── resume ──▶ healthy

The gate is what clients see of all this, and follows from the phase (`gate`). What is to be done (to ask a promoter, to
take the workers past the barrier) is in the effects, and the coordinator does it.
"""

from collections.abc import Callable

from pyproxy.control.failover.lineage import STEADY_S
from pyproxy.control.failover.transitions import (
    Announced,
    Answer,
    ClosedGate,
    Effect,
    FailoverEvent,
    HandOver,
    HealthChecked,
    PauseAsked,
    Phase,
    PromoteAsked,
    Promoted,
    PromotionRefused,
    Quiesce,
    Quiesced,
    QuiesceFailed,
    ResumeAsked,
    Switched,
    Ticked,
)
from pyproxy.control.failover.unplanned import UnplannedFailover
from pyproxy.events import Event

PLANNED_S = 0.5
"""What a planned promotion is expected to take."""


class Machine(UnplannedFailover):
    """One shard. `step` is the only way in."""

    def step(self, event: FailoverEvent, now: float) -> list[Effect]:
        """One event. The effects are to be carried out in their order."""
        if isinstance(event, HealthChecked):
            self.nodes = event.nodes
        if isinstance(event, Announced):
            self._on_announcement(event.announcement, now)
        return TABLE[self.phase][type(event)](self, event, now)

    def gate(self) -> ClosedGate | None:
        """The gate as it follows from the phase; None: open."""
        since = self._since
        if self._planned:
            return ClosedGate("is being handed over", True, since, since + PLANNED_S)
        if self.phase is Phase.PAUSED:
            return ClosedGate("is paused by an operator", True, since, since + self._options.auto_hold_s)
        hold = self._options.on_promotion != "reject" and self._may_hold()
        if self.phase in (Phase.VERIFYING, Phase.SWITCHING):
            expected_at = max(self._decided + self.usual_s, self._entered + 2 * STEADY_S)
            return ClosedGate(f"is being promoted: {self._why}", hold, since, expected_at)
        if self.phase is Phase.HEALTHY or self._capabilities.watches_only:
            return None
        if self.phase is Phase.SUSPECT:
            if not self._hard:
                return None
            expected_at = self._counted_from() + self._patience_s() + self.usual_s
            return ClosedGate(f"is in doubt: {self._why}", hold, since, expected_at)
        if self.phase in (Phase.WAITING, Phase.PROMOTING):
            return ClosedGate(f"is being promoted: {self._why}", hold, since, self._decided + self.usual_s)
        return ClosedGate(f"has no primary: {self._why}", False, since, self._retry_at)

    def _may_hold(self) -> bool:
        """Not again so soon after a promotion: a shard that flaps would hold its clients for ever."""
        return self.promoted_at is None or self._since - self.promoted_at >= self._options.hold_again_s

    # --- an operator asks ---

    def _on_promote_asked(self, event: FailoverEvent, now: float) -> list[Effect]:
        """In peace: hold, drain, hand over. Where it was given up: the operator knows better."""
        assert isinstance(event, PromoteAsked)
        self._asked = True
        if event.to is not None and event.to not in self.nodes:
            return self._answer(False, f"{event.to} is no server of {self.shard}")
        if self.phase is Phase.READONLY and event.to == self.primary and self.nodes[self.primary].lost_keys:
            self._accepted = self.nodes[self.primary].run_id
            return self._answer(True, f"{self.shard}: {self.primary} is taken as it is") + self._review(event, now)
        if event.to == self.primary:
            return self._answer(False, f"{self.primary} is the primary of {self.shard}")
        may = self._capabilities.hands_over if self.phase is Phase.HEALTHY else self._capabilities.acts
        if not may:
            return self._answer(False, f"nobody promotes {self.shard} from here")
        candidates = self._candidates(now)
        if event.to is None and not candidates:
            return self._answer(False, f"no replica of {self.shard} can be promoted")
        if event.to is not None and event.to not in candidates and self.phase is not Phase.READONLY:
            return self._answer(False, f"{event.to} cannot be promoted now")
        candidate = event.to or candidates[0]
        if self.phase is not Phase.HEALTHY:
            self._decided = now
            return self._promote(candidate, now)
        self._since = self._decided = now
        self._planned = True
        self._named = event.to is not None
        self._target, self._hand_over_sent = candidate, False
        effects = self._enter(Phase.HANDING_OVER, now, "an operator asked", Event.HAND_OVER, candidate=candidate)
        return [*effects, Quiesce()]

    def _on_quiesced(self, _event: FailoverEvent, now: float) -> list[Effect]:
        assert self._target is not None
        if self._hand_over_sent:
            return []
        self._hand_over_sent = True
        return [HandOver(self._target, self._named)]

    def _on_quiesce_failed(self, event: FailoverEvent, now: float) -> list[Effect]:
        assert isinstance(event, QuiesceFailed)
        return [] if self._hand_over_sent else self._call_off(event.why, now)

    def _on_handed_over(self, _event: FailoverEvent, now: float) -> list[Effect]:
        if not self._hand_over_sent:
            return []
        announcement = self._overruled()
        if announcement is not None and announcement.epoch:
            self._target = announcement.node  # they may have chosen another one
        return self._switch(now)

    def _on_hand_over_refused(self, event: FailoverEvent, now: float) -> list[Effect]:
        assert isinstance(event, PromotionRefused)
        return self._call_off(event.why, now) if self._hand_over_sent else []

    def _call_off(self, why: str, now: float) -> list[Effect]:
        self._planned = False
        self._target = None
        return self._enter(Phase.HEALTHY, now, why, Event.HAND_OVER_FAILED) + self._answer(False, why)

    def _on_pause_asked(self, _event: FailoverEvent, now: float) -> list[Effect]:
        self._asked = True
        self._since = now
        effects = self._enter(Phase.PAUSED, now, "an operator asked", Event.PAUSED)
        return effects + self._answer(True, f"{self.shard}: writes are held, then refused, until it is resumed")

    def _on_resume_asked(self, event: FailoverEvent, now: float) -> list[Effect]:
        self._asked = True
        effects = self._enter(Phase.HEALTHY, now, "an operator asked", Event.PAUSED_END)
        return effects + self._answer(True, f"{self.shard}: writes go on") + self._review(event, now)

    def _not_now(self, _event: FailoverEvent, now: float) -> list[Effect]:
        return [Answer(False, f"{self.shard} is {self.phase.value}: {self.why or 'not now'}")]

    def _ignore(self, _event: FailoverEvent, _now: float) -> list[Effect]:
        return []

    def __repr__(self) -> str:
        return f"<Machine {self.shard} {self.phase.value} epoch {self.epoch} primary {self.primary}>"


Handler = Callable[[Machine, FailoverEvent, float], list[Effect]]

_REVIEW: dict[type, Handler] = {HealthChecked: Machine._review, Ticked: Machine._review, Announced: Machine._review}
_IDLE: dict[type, Handler] = {HealthChecked: Machine._ignore, Ticked: Machine._ignore, Announced: Machine._ignore}
_LATE: dict[type, Handler] = dict.fromkeys(
    (Promoted, PromotionRefused, Switched, Quiesced, QuiesceFailed), Machine._ignore
)
"""Outcomes that nobody waits for any more."""
_BUSY: dict[type, Handler] = dict.fromkeys((PromoteAsked, PauseAsked, ResumeAsked), Machine._not_now)
_MAY_PROMOTE: dict[type, Handler] = {**_BUSY, PromoteAsked: Machine._on_promote_asked}
_MAY_PAUSE: dict[type, Handler] = {**_MAY_PROMOTE, PauseAsked: Machine._on_pause_asked}

TABLE: dict[Phase, dict[type, Handler]] = {
    Phase.HEALTHY: {**_REVIEW, **_LATE, **_MAY_PAUSE},
    Phase.SUSPECT: {**_REVIEW, **_LATE, **_MAY_PAUSE},
    Phase.WAITING: {**_REVIEW, **_LATE, **_MAY_PROMOTE},
    Phase.READONLY: {**_REVIEW, **_LATE, **_MAY_PROMOTE},
    Phase.DOWN: {**_REVIEW, **_LATE, **_MAY_PROMOTE},
    Phase.PROMOTING: {
        **_IDLE, **_LATE, **_BUSY, Promoted: Machine._on_promoted, PromotionRefused: Machine._on_refused
    },
    Phase.VERIFYING: {
        **_LATE, **_BUSY, HealthChecked: Machine._confirm, Ticked: Machine._confirm, Announced: Machine._confirm
    },
    Phase.SWITCHING: {**_IDLE, **_LATE, **_BUSY, Switched: Machine._on_switched},
    Phase.HANDING_OVER: {
        **_IDLE, **_LATE, **_BUSY,
        Quiesced: Machine._on_quiesced, QuiesceFailed: Machine._on_quiesce_failed,
        Promoted: Machine._on_handed_over, PromotionRefused: Machine._on_hand_over_refused,
    },
    Phase.PAUSED: {**_IDLE, **_LATE, **_BUSY, ResumeAsked: Machine._on_resume_asked},
}  # fmt: skip
"""What each phase does with each event."""
