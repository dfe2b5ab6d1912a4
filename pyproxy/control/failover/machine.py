"""What becomes of one shard whose primary is in trouble.  Pure: events and the time go in, effects come out.

    healthy ──trouble──▶ suspect ──down_after──▶ waiting ──act──▶ promoting ──▶ verifying ──▶ switching ──▶ healthy
       │  ▲                 │  it is well again     │  ▲                            ▲
       │  └─────────────────┘                       │  └── the next candidate ──────┤
       │                                            └── somebody else promoted ─────┘
       ├── promote ──▶ handing-over ──▶ switching          readonly: given up, for now; reads alive
       └── pause ────▶ paused                              down: no server of the shard answers

The gate, what clients see of all this, follows from the phase (`gate`). What is done about it (asking a promoter, the
barrier over the workers) is in the effects, and the conductor does it.

A server is believed to be the primary by epoch and lineage, not because it says role:master: whoever decides has
announced it, or it was promoted from here, or its history goes on from that of the primary and the primary is gone.
"""

import enum
import statistics
from collections.abc import Callable, Mapping

from pyproxy.config import Promotion
from pyproxy.control.failover import lineage
from pyproxy.control.failover.candidates import STALE_S, ranked, readable
from pyproxy.control.failover.lineage import STEADY_S
from pyproxy.control.failover.promoters import Announcement
from pyproxy.control.failover.transitions import (
    Announced,
    Answer,
    AwaitQuiet,
    Effect,
    FailoverEvent,
    HandOver,
    HealthChecked,
    Known,
    NotQuiet,
    PauseAsked,
    Powers,
    Promote,
    PromoteAsked,
    Promoted,
    PromotionRefused,
    Quiet,
    ResumeAsked,
    Say,
    Shut,
    Switch,
    Switched,
    Ticked,
    Tidy,
)
from pyproxy.events import Event
from pyproxy.messages import NodeHealth
from pyproxy.shard_map import Node

RETRY_S = (1.0, 5.0, 15.0)
"""Pauses after the first, second and any later attempt that failed."""

TIDY_S = 1.0
"""Between two attempts to make replicas of those that are none."""

RECENT_S = 2.0
"""A replica that was lost longer than this before the primary cannot have more than the others."""

REMEMBERED = 5
"""Promotions whose median duration is what the next one is expected to take."""

MANY = 3
MANY_S = 600.0
"""So many promotions in so many seconds: the next one is for an operator to make."""

PLANNED_S = 0.5
"""What a planned promotion is expected to take."""


class Phase(enum.Enum):
    HEALTHY = "healthy"
    SUSPECT = "suspect"
    WAITING = "waiting"
    PROMOTING = "promoting"
    VERIFYING = "verifying"
    SWITCHING = "switching"
    HANDING_OVER = "handing-over"
    PAUSED = "paused"
    READONLY = "readonly"
    DOWN = "down"


class Machine:
    """One shard. `step` is the only way in.

    `promoted_at`: of the last promotion by this proxy on the clock of `now` (CLOCK_MONOTONIC, s), if there was one.
    """

    def __init__(
        self, shard: str, options: Promotion, known: Known, now: float, powers: Powers, promoted_at: float | None = None
    ) -> None:
        self.shard = shard
        self.epoch = known.epoch
        self.primary = known.primary
        self.lineage = known.lineage
        self.phase = Phase.HEALTHY
        self.alarms: dict[str, str] = {}  # what an operator must know of: name -> text
        self.nodes: Mapping[Node, NodeHealth] = {}
        self._switched_at = 0.0  # what was seen before says nothing of the roles of now
        self.promoted_at = promoted_at
        self._options = options
        self._powers = powers
        self._started = now
        self._entered = now  # the phase
        self._since = now  # the incident began
        self._decided = now  # the primary was judged down
        self._troubled_at = now  # when this kind of trouble began
        self._answers = False  # the kind: it does answer
        self._hard = False  # suspect: writes cannot succeed
        self._why = ""
        self._well_at = 0.0  # a first look found the primary well again
        self._target: Node | None = None  # promoting, verifying, switching, handing over: who is to be primary
        self._target_epoch = 0
        self._seen_at = 0.0  # verifying: the first look that found it primary
        self._said: Announcement | None = None  # the newest word of whoever decides
        self._said_at = 0.0
        self._said_last: Node | None = None  # newest or not
        self._life = lineage.LifeSigns()
        self._anew = 0.0  # nothing is promoted on looks older than this
        self._strangers: set[Node] = set()  # were masters while the primary was well
        self._tried: list[Node] = []  # in this round
        self._rounds = 0  # in which all candidates refused, in this incident
        self._retry_at = 0.0
        self._durations: list[float] = []
        self._promotions: list[float] = []
        self._accepted = ""  # run_id of a server that lost its keys and was taken as it is by an operator
        self._asked = False  # an operator waits for an answer
        self._planned = False
        self._named = False
        self._out = False  # handing over: the promoter was asked, and has not answered
        self._tidied_at = 0.0
        self._waits = True

    # --- what the others want to know ---

    @property
    def usual_s(self) -> float:
        """What a promotion takes from the decision on: the median of the last ones."""
        return statistics.median(self._durations) if self._durations else self._powers.usual_s

    @property
    def watches_only(self) -> bool:
        """Whether nobody is expected to promote."""
        return self._powers.watches_only

    @property
    def waits(self) -> bool:
        """Whether a look with nothing new in it may have something done, as the time passes."""
        return self.phase is not Phase.HEALTHY or self._waits

    @property
    def known(self) -> Known:
        return Known(self.epoch, self.primary, self.lineage)

    @property
    def why(self) -> str:
        """What is wrong, or being done; empty while it is well."""
        return "" if self.phase is Phase.HEALTHY else self._why

    def gate(self) -> Shut | None:
        """The gate as it follows from the phase; None: open."""
        since = self._since
        if self._planned:
            return Shut("is being handed over", True, since, since + PLANNED_S)
        if self.phase is Phase.PAUSED:
            return Shut("is paused by an operator", True, since, since + self._options.auto_hold_s)
        hold = self._options.on_promotion != "reject" and self._may_hold()
        if self.phase in (Phase.VERIFYING, Phase.SWITCHING):
            expected_at = max(self._decided + self.usual_s, self._entered + 2 * STEADY_S)
            return Shut(f"is being promoted: {self._why}", hold, since, expected_at)
        if self.phase is Phase.HEALTHY or self._powers.watches_only:
            return None
        if self.phase is Phase.SUSPECT:
            if not self._hard:
                return None
            expected_at = self._counted_from() + self._patience_s() + self.usual_s
            return Shut(f"is in doubt: {self._why}", hold, since, expected_at)
        if self.phase in (Phase.WAITING, Phase.PROMOTING):
            return Shut(f"is being promoted: {self._why}", hold, since, self._decided + self.usual_s)
        return Shut(f"has no primary: {self._why}", False, since, self._retry_at)

    def refuge(self, present: Node | None, now: float) -> Node | None:
        """The one replica to read from while the primary cannot be used: the candidate, else the most complete.

        The `present` one stays as long as it can be read, or readers would go back and forth in time.
        """
        for node in (self._target, present):
            if node is not None and node != self.primary and self._readable(node, now):
                return node
        others = [node for node in self.nodes if node != self.primary and self._readable(node, now)]
        return min(others, key=lambda node: (-self.nodes[node].offset, str(node)), default=None)

    def _readable(self, node: Node, now: float) -> bool:
        health = self.nodes.get(node)
        if health is None or not (health.role == "slave" or node == self._target):
            return False
        return readable(health, self.lineage, now)

    def step(self, event: FailoverEvent, now: float) -> list[Effect]:
        """One event. The effects are to be carried out in their order."""
        if isinstance(event, HealthChecked):
            self.nodes = event.nodes
        if isinstance(event, Announced):
            self._heard(event.said, now)
        return TABLE[self.phase][type(event)](self, event, now)

    # --- what is seen ---

    def _heard(self, said: Announcement, now: float) -> None:
        """The newest word counts: that of the greatest epoch or, without epochs, the last that is another one.

        Who has no epochs goes on saying for a while what was true before (DescribeReplicationGroups does).
        """
        known = self._said.epoch if self._said else 0
        is_news = said.epoch > known if said.epoch else said.node != self._said_last
        self._said_last = said.node
        if is_news:
            self._said, self._said_at = said, now
        if said.node == self.primary and self.epoch == 0 and said.epoch and self.phase is not Phase.SWITCHING:
            self.epoch = said.epoch

    def _overruled(self) -> Announcement | None:
        """What whoever decides says, if it is not what we believe, and nothing that was seen since is against it."""
        said = self._said
        if not self._powers.is_authority or said is None or said.node == self.primary:
            return None
        health = self.nodes.get(said.node)
        if health is None or (said.epoch and said.epoch <= self.epoch):
            return None
        is_replica = health.reachable and health.role == "slave" and health.answered_at > self._said_at
        return None if is_replica else said

    def _trouble(self) -> tuple[str, bool]:
        """What is wrong with the primary, and whether writes to it cannot succeed; ("", False): nothing."""
        health = self.nodes[self.primary]
        if overruled := self._overruled():
            return f"{overruled.by} says that {overruled.node} is primary", True
        if health.busy:
            return "", False  # whoever were primary would run that too, and clients hear of it from the server itself
        if not health.reachable:
            return health.error, not health.silent
        if health.role == "slave":
            return f"its role is slave (of {health.master})", True
        if health.lost_keys and health.run_id != self._accepted and not self._powers.watches_only:
            return f"it restarted without its {health.lost_keys:,} keys", True
        if health.misconf and self._options.misconf_after_s and not self._powers.watches_only:
            return "it answers -MISCONF", True
        return "", False

    def _patience_s(self) -> float:
        """How long this trouble may last until the primary counts as down."""
        health = self.nodes.get(self.primary)
        if health is not None:
            if health.loading:
                return max(self._options.down_after_s, self._options.loading_s)
            if health.reachable and health.misconf:
                return self._options.misconf_after_s
            if health.reachable and health.lost_keys:
                return 0.0  # its replicas copy the emptiness within a second: whoever still has the keys must be first
        return self._options.down_after_s

    def _counted_from(self) -> float:
        """Since when that has been so: a primary that answered, if with an error, has been silent only since then."""
        health = self.nodes.get(self.primary)
        return max(self._troubled_at, health.unanswered_since if health is not None else 0.0)

    def _began_at(self, now: float) -> float:
        """When a primary that does not answer was asked first; now, for any other trouble."""
        return self.nodes[self.primary].unanswered_since or now

    def _successor(self, now: float) -> Node | None:
        """Who is the primary by now, if it is another one than we believe and there is reason to believe it."""
        if self._powers.is_authority:
            said = self._overruled()
            return said.node if said and self._could_be(said.node) else None
        masters = [node for node in self.nodes if node != self.primary and self._could_be(node)]
        old = self.nodes[self.primary]
        if old.reachable and old.role == "slave":
            for node in masters:
                if str(node) == old.master:
                    return node
        is_down = self.phase not in (Phase.HEALTHY, Phase.SUSPECT)
        for node in masters:
            replid2 = self.nodes[node].replid2
            # Of the history before: at the start, without a state file, nobody has told us which one that is.
            is_heir = replid2 == self.lineage if self.lineage else bool(replid2.strip("0"))
            if lineage.have_gone_over(self.nodes, self.primary, node) and (is_heir or is_down or not self.lineage):
                return node
            if node in self._strangers:  # it was put aside in peace, not promoted in need
                is_needed = is_down and not self._candidates(now)
            else:
                is_needed = is_down or self._trouble()[1]
            if is_heir and is_needed:
                return node
        return None

    def _could_be(self, node: Node) -> bool:
        return lineage.is_primary(self.nodes.get(node), self._accepted)

    def _candidates(self, now: float) -> list[Node]:
        others = {node: health for node, health in self.nodes.items() if node != self.primary}
        by_check = {id(health): node for node, health in others.items()}
        return [by_check[id(health)] for health in ranked(others.values(), self.lineage, now)]

    def _learn(self, now: float) -> None:
        """The primary is well: its history is the one to go on from."""
        self.lineage = self.nodes[self.primary].replid or self.lineage
        self.alarms.clear()
        self._strangers = {n for n, health in self.nodes.items() if n != self.primary and health.role == "master"}
        strangers = [str(node) for node in self._strangers if self.nodes[node].reachable]
        if strangers:
            self.alarms["two-masters"] = f"{', '.join(strangers)} says that it is a master too; nothing is sent there"
        if self._powers.is_authority and self._said and self._said.node not in self.nodes:
            text = f"{self._said.by} says that {self._said.node} is primary, which is no server of {self.shard}"
            self.alarms["unknown-primary"] = text

    # --- while nothing is under way: healthy, suspect, waiting, readonly, down ---

    def _review(self, _event: FailoverEvent, now: float) -> list[Effect]:
        self._waits = True
        health = self.nodes.get(self.primary)
        if (
            health is None
            or now - health.at > STALE_S
            or any(each.at <= self._switched_at for each in self.nodes.values())
        ):
            return []  # not looked at yet, or this proxy has slept: what was seen before is not what is
        self.lineage = self.lineage or lineage.guessed(self.nodes)
        successor = self._successor(now)
        if successor is not None:
            return self._verify(successor, now, f"{successor} is primary by now")
        why, hard = self._trouble()
        if not why:
            return self._well(now)
        self._well_at = 0.0
        if self.phase is Phase.HEALTHY:
            self._since = self._began_at(now)
            self._tried, self._rounds = [], 0
            self._target = None
            self._life.begin(now + STEADY_S)  # what was on its way to them has arrived by then
        if self.phase is Phase.HEALTHY or health.reachable != self._answers:
            self._troubled_at, self._answers = self._began_at(now), health.reachable
        self._life.note(self.nodes, self.primary)
        if self.phase in (Phase.HEALTHY, Phase.SUSPECT):
            effects = self._doubt(why, hard, now)
            if now - self._counted_from() < self._patience_s():
                return effects
            return effects + self._judged_down(why, now)
        return self._act(why, now)

    def _well(self, now: float) -> list[Effect]:
        if self.phase is Phase.HEALTHY:
            self._learn(now)
            effects = self._strays(now)
            is_said = self._said is not None and self._said.node != self.primary
            may_go = any(not health.reachable for health in self.nodes.values()) or lineage.strays(
                self.nodes, self.primary
            )
            self._waits = bool(effects or self.alarms or is_said or may_go)
            return effects
        health = self.nodes[self.primary]
        if not self._well_at:
            self._well_at = health.at
        if health.at - self._well_at < STEADY_S and self._hard:
            return []
        self._hard = False
        self._target = None
        return self._enter(Phase.HEALTHY, now, "it is well again", Event.SUSPECT_END)

    def _doubt(self, why: str, hard: bool, now: float) -> list[Effect]:
        self._why = why
        if self.phase is Phase.SUSPECT and self._hard >= hard:
            return []
        self._hard = hard
        return self._enter(Phase.SUSPECT, now, why, Event.SUSPECT, hard=hard)

    def _judged_down(self, why: str, now: float) -> list[Effect]:
        self._hard = True
        self._decided = self._anew = now
        self._retry_at = now
        effects = self._enter(Phase.WAITING, now, why, Event.ODOWN)
        return effects + self._act(why, now)

    def _act(self, why: str, now: float) -> list[Effect]:
        """The primary is down: promote, or wait for those who do, or give up for now."""
        if not any(health.reachable for health in self.nodes.values()):
            return self._settle(Phase.DOWN, "no server of it answers", now)
        if self.phase is Phase.DOWN:
            self._life.begin(now)
            return self._judged_down(why, now)
        if not self._powers.acts or self._overruled():
            waited = now - self._decided
            return self._settle(Phase.READONLY, why, now) if waited > self._options.deadline_s else []
        # One that has just started may be the one that sees least.
        if now < max(self._retry_at, self._started + 2 * self._options.down_after_s):
            return []
        if witness := self._life.found(self.nodes, self.primary, self.lineage):
            alive = f"its replica {witness} still hears of it, so nothing is promoted: is the network to it well?"
            self.alarms["asymmetric"] = alive
            self._life.begin(now)
            self._retry_at = now + self._options.down_after_s  # no sign of life for so long, as at first
            return self._settle(Phase.READONLY, alive, now)
        if not self._life.are_complete(self.nodes, self.primary, self._anew):
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
        """The next candidate, or all of them once more after a pause; but first a look: it may have been done."""
        assert isinstance(event, PromotionRefused)
        self._target = None
        self._anew = self._retry_at = now
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
        if self._powers.is_authority:
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
            self._decided = self._anew = now
            self._life.begin(now)
            why = f"{health.node if health else 'it'} was not seen to be primary in time"
            return self._enter(Phase.WAITING, now, why, Event.TRY_FAILED) + self._answer(False, why)
        return []

    def _switch(self, now: float) -> list[Effect]:
        assert self._target is not None
        said = self._said
        is_announced = said is not None and said.node == self._target and said.epoch > self.epoch
        self._target_epoch = said.epoch if said is not None and is_announced else self.epoch + 1
        effects = self._enter(
            Phase.SWITCHING, now, self._why, Event.SWITCH_MASTER, old=self.primary, new=self._target,
            new_epoch=self._target_epoch,
        )  # fmt: skip
        return [*effects, Switch(self._target, self._target_epoch)]

    def _on_switched(self, _event: FailoverEvent, now: float) -> list[Effect]:
        assert self._target is not None
        old, self.primary, self.epoch = self.primary, self._target, self._target_epoch
        if self._said and self._said.node == old and not self._said.epoch:
            self._said = None  # it was true before
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

    def _strays(self, now: float) -> list[Effect]:
        """Those that do not follow the primary, once it is well; the promoter makes them."""
        if not self._powers.acts or self._powers.is_authority or now - self._tidied_at < TIDY_S:
            return []
        strays = lineage.strays(self.nodes, self.primary)
        # One that was never primary here and was put aside by an operator is not ours to take back.
        if not strays or (self.epoch == 0 and not self._promotions):
            return []
        self._tidied_at = now
        return [Tidy(strays)]

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
        may = self._powers.hands_over if self.phase is Phase.HEALTHY else self._powers.acts
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
        self._target, self._out = candidate, False
        effects = self._enter(Phase.HANDING_OVER, now, "an operator asked", Event.HAND_OVER, candidate=candidate)
        return [*effects, AwaitQuiet()]

    def _on_quiet(self, _event: FailoverEvent, now: float) -> list[Effect]:
        assert self._target is not None
        if self._out:
            return []
        self._out = True
        return [HandOver(self._target, self._named)]

    def _on_not_quiet(self, event: FailoverEvent, now: float) -> list[Effect]:
        assert isinstance(event, NotQuiet)
        return [] if self._out else self._call_off(event.why, now)

    def _on_handed_over(self, _event: FailoverEvent, now: float) -> list[Effect]:
        if not self._out:
            return []
        said = self._overruled()
        if said is not None and said.epoch:
            self._target = said.node  # they may have chosen another one
        return self._switch(now)

    def _on_hand_over_refused(self, event: FailoverEvent, now: float) -> list[Effect]:
        assert isinstance(event, PromotionRefused)
        return self._call_off(event.why, now) if self._out else []

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

    def _answer(self, done: bool, text: str) -> list[Effect]:
        if not self._asked:
            return []
        self._asked = False
        return [Answer(done, text)]

    # --- phases ---

    def _may_hold(self) -> bool:
        """Not again so soon after a promotion: a shard that flaps would hold its clients for ever."""
        return self.promoted_at is None or self._since - self.promoted_at >= self._options.hold_again_s

    def _enter(self, phase: Phase, now: float, cause: str, event: Event, **fields: object) -> list[Effect]:
        """The one place where a phase begins: said once, with its cause, the epoch and the ages."""
        was, lasted = self.phase, now - self._entered
        self.phase, self._entered, self._why, self._well_at = phase, now, cause, 0.0
        said = {
            "shard": self.shard, "phase": phase.value, "was": was.value, "epoch": self.epoch, "cause": cause,
            "was_for_s": f"{lasted:.1f}", "incident_s": f"{now - self._since:.1f}", **fields,
        }  # fmt: skip
        return [Say(event, said)]

    def _ignore(self, _event: FailoverEvent, _now: float) -> list[Effect]:
        return []

    def __repr__(self) -> str:
        return f"<Machine {self.shard} {self.phase.value} epoch {self.epoch} primary {self.primary}>"


Handler = Callable[[Machine, FailoverEvent, float], list[Effect]]

_REVIEW: dict[type, Handler] = {HealthChecked: Machine._review, Ticked: Machine._review, Announced: Machine._review}
_IDLE: dict[type, Handler] = {HealthChecked: Machine._ignore, Ticked: Machine._ignore, Announced: Machine._ignore}
_LATE: dict[type, Handler] = dict.fromkeys((Promoted, PromotionRefused, Switched, Quiet, NotQuiet), Machine._ignore)
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
        Quiet: Machine._on_quiet, NotQuiet: Machine._on_not_quiet,
        Promoted: Machine._on_handed_over, PromotionRefused: Machine._on_hand_over_refused,
    },
    Phase.PAUSED: {**_IDLE, **_LATE, **_BUSY, ResumeAsked: Machine._on_resume_asked},
}  # fmt: skip
"""What each phase does with each event."""
