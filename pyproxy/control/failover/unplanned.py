"""The phases of a failover that nobody planned: from the first doubt to another primary.  Pure.

healthy ──trouble──▶ suspect ──down_after──▶ waiting ──act──▶ promoting ──▶ verifying ──▶ switching ──▶ healthy
   ▲                    │  it is well again     │  ▲                            ▲
   └────────────────────┘                       │  └── the next candidate ──────┤
                                                └── somebody else promoted ─────┘
                                               readonly: given up, for now; reads go on
                                               down: no server of the shard answers
"""

from pyproxy.control.failover import lineage
from pyproxy.control.failover.candidates import STALE_S
from pyproxy.control.failover.lineage import STEADY_S
from pyproxy.control.failover.shard_state import ShardState
from pyproxy.control.failover.transitions import (
    Effect,
    FailoverEvent,
    Phase,
    Promote,
    PromotionRefused,
    Reconfigure,
    Switch,
    Ticked,
)
from pyproxy.events import Event
from pyproxy.shard_map import Node

RETRY_S = (1.0, 5.0, 15.0)
"""Pauses after the first, second and any later attempt that failed."""

RECONFIGURE_S = 1.0
"""Between two attempts to make replicas of those that are none."""

RECENT_S = 2.0
"""A replica that was lost longer than this before the primary cannot have more than the others."""

REMEMBERED = 5
"""Promotions whose median duration is what the next one is expected to take."""

MANY = 3
MANY_S = 600.0
"""So many promotions in so many seconds: the next one is for an operator to make."""


class UnplannedFailover(ShardState):
    """Each handler takes an event and the time, and returns the effects."""

    # --- while nothing is under way: healthy, suspect, waiting, readonly, down ---

    def _review(self, _event: FailoverEvent, now: float) -> list[Effect]:
        self._waits = True
        health = self.nodes.get(self.primary)
        if (
            health is None
            or now - health.at > STALE_S
            or any(each.at <= self._switched_at for each in self.nodes.values())
        ):
            return []  # not checked yet, or this proxy has slept: what was seen before may not be so any more
        self.lineage = self.lineage or lineage.guessed(self.nodes)
        successor = self._successor(now)
        if successor is not None:
            return self._verify(successor, now, f"{successor} is primary by now")
        why, hard = self._primary_failure()
        if not why:
            return self._primary_is_well(now)
        self._recovered_at = 0.0
        if self.phase is Phase.HEALTHY:
            self._since = self._began_at(now)
            self._tried, self._rounds = [], 0
            self._target = None
            self._progress.begin(now + STEADY_S)  # what was on its way to them has arrived by then
        if self.phase is Phase.HEALTHY or health.reachable != self._answers:
            self._failing_since, self._answers = self._began_at(now), health.reachable
        self._progress.note(self.nodes, self.primary)
        if self.phase in (Phase.HEALTHY, Phase.SUSPECT):
            effects = self._suspect(why, hard, now)
            if now - self._counted_from() < self._patience_s():
                return effects
            return effects + self._mark_down(why, now)
        return self._act(why, now)

    def _primary_is_well(self, now: float) -> list[Effect]:
        if self.phase is Phase.HEALTHY:
            self._learn(now)
            effects = self._reconfigure(now)
            is_contradicted = self._announcement is not None and self._announcement.node != self.primary
            may_go = any(not health.reachable for health in self.nodes.values()) or lineage.not_following(
                self.nodes, self.primary
            )
            self._waits = bool(effects or self.alarms or is_contradicted or may_go)
            return effects
        health = self.nodes[self.primary]
        if not self._recovered_at:
            self._recovered_at = health.at
        if health.at - self._recovered_at < STEADY_S and self._hard:
            return []
        self._hard = False
        self._target = None
        return self._enter(Phase.HEALTHY, now, "it is well again", Event.SUSPECT_END)

    def _suspect(self, why: str, hard: bool, now: float) -> list[Effect]:
        self._why = why
        if self.phase is Phase.SUSPECT and self._hard >= hard:
            return []
        self._hard = hard
        return self._enter(Phase.SUSPECT, now, why, Event.SUSPECT, hard=hard)

    def _mark_down(self, why: str, now: float) -> list[Effect]:
        self._hard = True
        self._decided = self._fresh_after = now
        self._retry_at = now
        effects = self._enter(Phase.WAITING, now, why, Event.ODOWN)
        return effects + self._act(why, now)

    def _act(self, why: str, now: float) -> list[Effect]:
        """The primary is down: promote, or wait for those who do, or give up for now."""
        if not any(health.reachable for health in self.nodes.values()):
            return self._settle(Phase.DOWN, "no server of it answers", now)
        if self.phase is Phase.DOWN:
            self._progress.begin(now)
            return self._mark_down(why, now)
        if not self._capabilities.acts or self._overruled():
            waited = now - self._decided
            return self._settle(Phase.READONLY, why, now) if waited > self._options.deadline_s else []
        # One that has just started may be the one that sees least.
        if now < max(self._retry_at, self._started + 2 * self._options.down_after_s):
            return []
        if witness := self._progress.found(self.nodes, self.primary, self.lineage):
            alive = f"its replica {witness} still hears of it, so nothing is promoted: is the network to it well?"
            self.alarms["asymmetric"] = alive
            self._progress.begin(now)
            self._retry_at = now + self._options.down_after_s  # no sign of life for so long, as at first
            return self._settle(Phase.READONLY, alive, now)
        if not self._progress.are_complete(self.nodes, self.primary, self._fresh_after):
            return []
        self.alarms.pop("asymmetric", None)
        if reason := self._guard(now):
            return self._settle(Phase.READONLY, reason, now)
        candidates = [node for node in self._candidates(now) if node not in self._tried]
        if not candidates:
            return self._no_candidate(why, now)
        if self._missing() and now - self._decided < self._options.down_after_s and not self._tried:
            return []  # the best one may be the one that is silent
        return self._promote(candidates[0], now)

    def _missing(self) -> bool:
        """Whether a replica is silent that was there when the primary was."""
        others = [health for node, health in self.nodes.items() if node != self.primary]
        return any(not health.reachable and health.answered_at >= self._since - RECENT_S for health in others)

    def _guard(self, now: float) -> str:
        """Why nothing may be promoted now; empty: it may."""
        if self.promoted_at is not None and now - self.promoted_at < self._options.min_between_s:
            return f"the last promotion was {now - self.promoted_at:.0f} s ago, less than min_between_s"
        if sum(now - at < MANY_S for at in self._promotions) >= MANY:
            return f"it was promoted {MANY} times within {MANY_S:.0f} s"
        return ""

    def _no_candidate(self, why: str, now: float) -> list[Effect]:
        self._tried = []  # all of them once more, later
        self._retry_at = now + RETRY_S[1]
        return self._settle(Phase.READONLY, f"{why}; no replica can be promoted", now)

    def _settle(self, phase: Phase, why: str, now: float) -> list[Effect]:
        self._why = why
        health = self.nodes.get(self.primary)
        if health is not None and health.lost_keys:
            self.alarms["data-loss"] = f"{why}; `pyproxy promote` takes a server as it is"
        if self.phase is phase:
            return []
        self._retry_at = max(self._retry_at, now)
        return self._enter(phase, now, why, Event.SHARD_DOWN if phase is Phase.DOWN else Event.FAILOVER_ABORT)

    # --- promoting ---

    def _promote(self, candidate: Node, now: float) -> list[Effect]:
        self._target = candidate
        self._tried.append(candidate)
        offset = self.nodes[candidate].offset
        effects = self._enter(
            Phase.PROMOTING, now, self._why, Event.TRY_FAILOVER, candidate=candidate, offset=offset
        )  # fmt: skip
        return [*effects, Promote(candidate)]

    def _on_promoted(self, _event: FailoverEvent, now: float) -> list[Effect]:
        assert self._target is not None
        self._promotions = [at for at in self._promotions if now - at < MANY_S] + [now]
        return self._verify(self._target, now, f"{self._target} was promoted")

    def _on_refused(self, event: FailoverEvent, now: float) -> list[Effect]:
        """The next candidate, or all once more after a pause; but first a health check: it may have been done."""
        assert isinstance(event, PromotionRefused)
        self._target = None
        self._fresh_after = self._retry_at = now
        answer = self._answer(False, event.why)
        attempt = len(self._tried)
        if event.again and attempt < len(RETRY_S) and any(n not in self._tried for n in self._candidates(now)):
            return self._enter(Phase.WAITING, now, event.why, Event.TRY_FAILED, attempt=attempt) + answer
        self._retry_at += RETRY_S[min(self._rounds, len(RETRY_S) - 1)]
        self._tried, self._rounds = [], self._rounds + 1
        return self._settle(Phase.READONLY, event.why, now) + answer

    # --- verifying, switching ---

    def _verify(self, node: Node, now: float, cause: str) -> list[Effect]:
        if self.phase in (Phase.HEALTHY, Phase.SUSPECT):
            self._since = self._since if self.phase is Phase.SUSPECT else now
            self._decided = now
        self._target = node
        self._seen_at = 0.0
        effects = self._enter(Phase.VERIFYING, now, cause, Event.VERIFYING, node=node)
        return effects + self._confirm(Ticked(), now)

    def _confirm(self, _event: FailoverEvent, now: float) -> list[Effect]:
        """Whether the target is seen to be the primary, twice."""
        if self._capabilities.is_authority:
            successor = self._successor(now)
            if successor is not None and successor != self._target:
                return self._verify(successor, now, f"{successor} is primary by now")
        assert self._target is not None
        health = self.nodes.get(self._target)
        if health is not None and self._could_be(self._target):
            if not self._seen_at:
                self._seen_at = health.answered_at
            if health.answered_at - self._seen_at >= STEADY_S:
                return self._switch(now)
        else:
            self._seen_at = 0.0
        if now - self._entered > self._options.verify_s:
            self._target = None
            self._decided = self._fresh_after = now
            self._progress.begin(now)
            why = f"{health.node if health else 'it'} was not seen to be primary in time"
            return self._enter(Phase.WAITING, now, why, Event.TRY_FAILED) + self._answer(False, why)
        return []

    def _switch(self, now: float) -> list[Effect]:
        assert self._target is not None
        announcement = self._announcement
        is_announced = (
            announcement is not None and announcement.node == self._target and announcement.epoch > self.epoch
        )
        self._target_epoch = announcement.epoch if announcement is not None and is_announced else self.epoch + 1
        effects = self._enter(
            Phase.SWITCHING, now, self._why, Event.SWITCH_MASTER, old=self.primary, new=self._target,
            new_epoch=self._target_epoch,
        )  # fmt: skip
        return [*effects, Switch(self._target, self._target_epoch)]

    def _on_switched(self, _event: FailoverEvent, now: float) -> list[Effect]:
        assert self._target is not None
        old, self.primary, self.epoch = self.primary, self._target, self._target_epoch
        if self._announcement and self._announcement.node == old and not self._announcement.epoch:
            self._announcement = None  # it was true before
        health = self.nodes.get(self.primary)
        self.lineage = (health.replid if health is not None and health.role == "master" else "") or self.lineage
        if not self._planned:
            self.promoted_at = now
            self._durations = [*self._durations, now - self._decided][-REMEMBERED:]
        self._planned = self._hard = False
        self._target = None
        self._tried = []
        self._switched_at = now
        self.alarms.clear()
        done = f"{self.shard}: {self.primary} is primary, epoch {self.epoch}"
        cause = f"{self.primary} is primary"
        effects = self._enter(Phase.HEALTHY, now, cause, Event.FAILOVER_END, old=old)
        return effects + self._answer(True, done)

    def _reconfigure(self, now: float) -> list[Effect]:
        """Those that do not follow the primary, once it is well; the promoter makes them."""
        if (
            not self._capabilities.acts
            or self._capabilities.is_authority
            or now - self._reconfigured_at < RECONFIGURE_S
        ):
            return []
        not_following = lineage.not_following(self.nodes, self.primary)
        # One that was never primary here and was put aside by an operator is not ours to take back.
        if not not_following or (self.epoch == 0 and not self._promotions):
            return []
        self._reconfigured_at = now
        return [Reconfigure(not_following)]
