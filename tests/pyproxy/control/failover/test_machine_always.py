"""What holds for the machine of a shard whatever happens: each phase meets each event; histories drawn at random."""

from collections.abc import Callable
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyproxy.control.failover.lineage import STEADY_S
from pyproxy.control.failover.machine import TABLE
from pyproxy.control.failover.promoters import Announcement
from pyproxy.control.failover.transitions import (
    Announced,
    Answer,
    Effect,
    FailoverEvent,
    HandOver,
    HealthChecked,
    Log,
    PauseAsked,
    Phase,
    Promote,
    PromoteAsked,
    Promoted,
    PromoterCapabilities,
    PromotionRefused,
    Quiesce,
    Quiesced,
    QuiesceFailed,
    ResumeAsked,
    Switch,
    Switched,
    Ticked,
)
from pyproxy.control.health import detector
from pyproxy.shard_map import Node
from tests.pyproxy.control.failover.simulated_shard import (
    CHECK_S,
    ELASTICACHE,
    ELSEWHERE,
    FOLLOWS,
    NONE,
    P1,
    P2,
    P3,
    PROMOTES,
    SENTINEL,
    SimulatedShard,
)

ASKED = (PromoteAsked, PauseAsked, ResumeAsked)
OPEN = (Phase.HEALTHY, Phase.SUSPECT)


class Watched(SimulatedShard):
    """A shard whose machine is held to its promises at every step. It also does what a coordinator and a promoter
    do."""

    def __init__(self, capabilities: PromoterCapabilities = PROMOTES, **others: Any) -> None:
        self.capabilities = capabilities
        self.asked = 0  # questions of operators without an answer
        self.out: Effect | None = None  # what the coordinator or the promoter was asked last, and has not answered
        self.masters: dict[Node, list[float]] = {}  # when each was seen to be master, since it was not
        self.by_operator = False
        self.handed: Node | None = None
        self.words: dict[Node, int] = {}
        self.promoted: list[Node] = []
        super().__init__(capabilities, **others)

    def step(self, event: FailoverEvent, after_s: float = 0.0) -> list[Effect]:
        phase, epoch, why = self.machine.phase, self.machine.epoch, self.machine.why
        rests, before = self._would_rest(event), self._state()
        if isinstance(event, HealthChecked):
            self._note(event)
        if isinstance(event, Announced):
            self.words[event.announcement.node] = max(
                event.announcement.epoch, self.words.get(event.announcement.node, 0)
            )
        self.asked += type(event) in ASKED
        if isinstance(event, PromoteAsked):
            self.by_operator = True
        effects = super().step(event, after_s)
        self._check_effects(event, effects)
        self._check_phases(phase, effects, why)
        assert not rests or (effects, self._state()) == ([], before), "the coordinator would not have told it"
        assert self.machine.epoch >= epoch
        self._check_gate()
        return effects

    def _would_rest(self, event: FailoverEvent) -> bool:
        """Whether it waits for nothing, and only the time is new."""
        if self.machine.waits or not isinstance(event, HealthChecked):
            return False
        nodes = self.machine.nodes
        return {node: detector.timeless(health) for node, health in event.nodes.items()} == {
            node: detector.timeless(health) for node, health in nodes.items()
        }

    def _state(self) -> object:
        machine = self.machine
        return machine.persistent_state, machine.gate(), dict(machine.alarms)

    def _note(self, event: HealthChecked) -> None:
        for node, health in event.nodes.items():
            seen = self.masters.setdefault(node, [])
            if not (health.reachable and health.role == "master"):
                seen.clear()
            elif health.answered_at not in seen[-1:]:
                seen.append(health.answered_at)

    def _check_effects(self, event: FailoverEvent, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Promote | HandOver | Quiesce | Switch):
                assert self.out is None, f"{effect} while {self.out} is out"
                self.out = effect
            if isinstance(effect, Promote):
                self._check_promote(effect.candidate)
            if isinstance(effect, HandOver):
                assert self.capabilities.hands_over
                self.handed = effect.candidate
            if isinstance(effect, Switch):
                self._check_switch(effect)
            if isinstance(effect, Answer):
                self.asked -= 1
        waits = self.machine.phase in (Phase.PROMOTING, Phase.VERIFYING, Phase.SWITCHING, Phase.HANDING_OVER)
        assert self.asked == 0 or (self.asked == 1 and waits)

    def _check_promote(self, candidate: Node) -> None:
        assert self.capabilities.acts and candidate != self.machine.primary
        self.promoted.append(candidate)
        if self.by_operator:
            return
        health = self.machine.nodes[candidate]  # as it was seen
        assert (
            health.role == "slave"
            and health.priority
            and health.offset >= 0
            and not health.syncing
            and not health.loading
        )
        assert self.machine.lineage in (health.replid, health.replid2)
        assert self.now - 1000.0 >= 2 * self.options.down_after_s
        if self.machine.promoted_at is not None:
            assert self.now - self.machine.promoted_at >= self.options.min_between_s

    def _check_switch(self, switch: Switch) -> None:
        assert switch.epoch > self.machine.epoch and switch.node != self.machine.primary
        assert switch.node in self.healths
        if self.handed is not None:
            assert switch.node == self.handed or self.words.get(switch.node, 0) > self.machine.epoch
            return
        seen = self.masters[switch.node]
        assert seen[-1] - seen[0] >= STEADY_S
        if self.capabilities.is_authority:
            assert switch.node in self.promoted or switch.node in self.words

    def _check_phases(self, before: Phase, effects: list[Effect], why: str) -> None:
        """Every change is said once, and the Says are a chain from the phase before to the one after."""
        phase = before
        for effect in effects:
            if isinstance(effect, Log):
                fields = effect.fields
                assert fields["was"] == phase.value
                assert {"shard", "cause", "epoch", "was_for_s", "incident_s"} <= fields.keys() and fields["cause"]
                phase = Phase(fields["phase"])
        assert phase is self.machine.phase

    def _check_gate(self) -> None:
        gate, phase = self.machine.gate(), self.machine.phase
        if self.capabilities.watches_only and phase not in (Phase.VERIFYING, Phase.SWITCHING, Phase.PAUSED):
            assert gate is None
        elif phase not in OPEN:
            assert gate is not None and gate.why and gate.since <= self.now
        if phase is Phase.HEALTHY:
            assert gate is None
        elif phase not in OPEN:
            self.machine.fallback(None, self.now)
        if phase in OPEN:
            self.by_operator, self.handed = False, None

    # --- what a coordinator and a promoter do ---

    def outcome(self, is_done: bool, is_known: bool = True) -> None:
        """What was asked is answered. It may have been done although nobody knows."""
        out, self.out = self.out, None
        if isinstance(out, Quiesce):
            self.step(Quiesced() if is_done else QuiesceFailed("busy"))
        elif isinstance(out, Switch):
            self.step(Switched())
        elif isinstance(out, Promote | HandOver):
            if is_done and self.healths[out.candidate].role == "slave":
                self.make_master(out.candidate)
                if isinstance(out, HandOver):
                    self.make_replica(self.machine.primary, out.candidate)
            self.step(Promoted() if is_done and is_known else PromotionRefused("refused", is_known))


# --- every phase meets every event ------------------------------------------------------------------------------------


def in_suspect(shard: Watched) -> None:
    shard.kill(P1)
    shard.check(CHECK_S)


def in_waiting(shard: Watched) -> None:
    shard.kill(P1)
    shard.until(Phase.WAITING, 5.0)


def in_promoting(shard: Watched) -> None:
    shard.kill(P1)
    shard.until(Phase.PROMOTING, 5.0)


def in_verifying(shard: Watched) -> None:
    in_promoting(shard)
    shard.outcome(True)


def in_switching(shard: Watched) -> None:
    in_verifying(shard)
    shard.until(Phase.SWITCHING, 1.0)


def in_readonly(shard: Watched) -> None:
    in_promoting(shard)
    shard.outcome(False, False)


def in_down(shard: Watched) -> None:
    shard.kill(P1, P2, P3)
    shard.until(Phase.DOWN, 5.0)


WAYS: dict[Phase, Callable[[Watched], object]] = {
    Phase.HEALTHY: lambda shard: None,
    Phase.SUSPECT: in_suspect,
    Phase.WAITING: in_waiting,
    Phase.PROMOTING: in_promoting,
    Phase.VERIFYING: in_verifying,
    Phase.SWITCHING: in_switching,
    Phase.HANDING_OVER: lambda shard: shard.step(PromoteAsked(None)),
    Phase.PAUSED: lambda shard: shard.step(PauseAsked()),
    Phase.READONLY: in_readonly,
    Phase.DOWN: in_down,
}

EVENTS: dict[type, FailoverEvent] = {
    HealthChecked: HealthChecked({}),
    Ticked: Ticked(),
    Announced: Announced(Announcement(P3, 9, "a test")),
    Promoted: Promoted(),
    PromotionRefused: PromotionRefused("no", True),
    Switched: Switched(),
    Quiesced: Quiesced(),
    QuiesceFailed: QuiesceFailed("busy"),
    PromoteAsked: PromoteAsked(P3),
    PauseAsked: PauseAsked(),
    ResumeAsked: ResumeAsked(),
}

LEADS_TO = {
    (Phase.HEALTHY, PromoteAsked): Phase.HANDING_OVER,
    (Phase.HEALTHY, PauseAsked): Phase.PAUSED,
    (Phase.SUSPECT, PromoteAsked): Phase.PROMOTING,
    (Phase.SUSPECT, PauseAsked): Phase.PAUSED,
    (Phase.WAITING, PromoteAsked): Phase.PROMOTING,
    (Phase.READONLY, PromoteAsked): Phase.PROMOTING,
    (Phase.PROMOTING, Promoted): Phase.VERIFYING,
    (Phase.PROMOTING, PromotionRefused): Phase.WAITING,
    (Phase.SWITCHING, Switched): Phase.HEALTHY,
    (Phase.HANDING_OVER, QuiesceFailed): Phase.HEALTHY,
    (Phase.PAUSED, ResumeAsked): Phase.HEALTHY,
}
"""By one event alone, with nothing new seen; by all others a phase stays."""


def test_the_table_has_an_entry_for_every_phase_and_every_event() -> None:
    events = set(get_args(FailoverEvent))
    assert events == EVENTS.keys()
    assert {phase: set(row) for phase, row in TABLE.items()} == dict.fromkeys(Phase, events)


@pytest.mark.parametrize("event", EVENTS.values(), ids=lambda event: type(event).__name__)
@pytest.mark.parametrize("phase", Phase, ids=lambda phase: phase.value)
def test_every_phase_meets_every_event(phase: Phase, event: FailoverEvent) -> None:
    shard = Watched()
    WAYS[phase](shard)
    assert shard.machine.phase is phase
    before = shard.asked
    shard.out = None
    shard.step(HealthChecked(dict(shard.healths)) if isinstance(event, HealthChecked) else event, 0.001)
    assert shard.machine.phase is LEADS_TO.get((phase, type(event)), phase)
    if type(event) in ASKED and shard.machine.phase is phase:
        assert shard.asked == before


# --- histories drawn at random ----------------------------------------------------------------------------------------

LATE = (Promoted(), PromotionRefused("late", True), Quiesced(), QuiesceFailed("late"))
ANSWERS: dict[type, tuple[type, ...]] = {
    Promote: (Promoted, PromotionRefused),
    HandOver: (Promoted, PromotionRefused),
    Quiesce: (Quiesced, QuiesceFailed),
}
NODES = st.sampled_from([P1, P2, P3])
ACTIONS: list[st.SearchStrategy[tuple[Any, ...]]] = [
    st.tuples(st.just("check"), st.sampled_from([0.01, 0.1, 0.25, 1.0])),
    st.tuples(st.just("check_for"), st.sampled_from([0.5, 1.0, 4.0])),
    st.tuples(st.just("tick"), st.sampled_from([0.0, 0.05, 1.0, 4.0, 30.0, 700.0])),
    st.tuples(st.sampled_from(["kill", "silence", "wake", "empty", "make_master", "load"]), NODES),
    st.tuples(st.sampled_from(["busy", "sync", "misconf"]), NODES),
    st.tuples(st.just("make_replica"), NODES, NODES),
    st.tuples(st.just("write")),
    st.tuples(st.just("announce"), st.sampled_from([P1, P2, P3, ELSEWHERE]), st.integers(-1, 3)),
    st.tuples(st.just("outcome"), st.booleans(), st.booleans()),
    st.tuples(st.just("late"), st.sampled_from(LATE)),
    st.tuples(st.just("ask"), st.sampled_from([PromoteAsked(None), PromoteAsked(P1), PromoteAsked(P3)])),
    st.tuples(st.just("ask"), st.sampled_from([PauseAsked(), ResumeAsked()])),
]
# Most of what is drawn leaves a shard well, so that the trouble is where it begins.
OPENINGS: list[list[tuple[Any, ...]]] = [
    [],
    [("silence", P1), ("check_for", 4.0)],
    [("kill", P1), ("check_for", 5.0)],
    [("kill", P1), ("check_for", 5.0), ("outcome", True, True)],
    [("kill", P1), ("check_for", 5.0), ("outcome", True, True), ("check_for", 0.5)],
    [
        ("kill", P1),
        ("check_for", 5.0),
        ("outcome", True, True),
        ("check_for", 0.5),
        ("outcome", True, True),
        ("wake", P1),
    ],
    [("kill", P1), ("check_for", 5.0), ("outcome", False, True), ("check_for", 1.0)],
    [("kill", P1), ("kill", P2), ("kill", P3), ("check_for", 5.0)],
    [("empty", P1), ("check_for", 1.0)],
    [("make_master", P2), ("announce", P2, 1), ("make_replica", P1, P2), ("check", 0.1)],
    [("make_master", P2), ("make_replica", P3, P2), ("check", 0.1), ("kill", P1)],
    [("ask", PromoteAsked(None)), ("outcome", True, True)],
]
HISTORIES = st.builds(
    lambda opening, others: opening + others, st.sampled_from(OPENINGS), st.lists(st.one_of(ACTIONS), max_size=30)
)
CAPABILITIES = st.sampled_from([PROMOTES, FOLLOWS, SENTINEL, ELASTICACHE, NONE])


def act(shard: Watched, action: tuple[Any, ...]) -> None:
    match action:
        case "check" | "check_for" as name, for_s:
            getattr(shard, name)(for_s)
        case "tick", for_s:
            shard.step(Ticked(), for_s)
        case "load", node:
            shard.change(node, reachable=False, silent=False, error="LOADING Redis is loading", loading=True)
        case "busy", node:
            shard.change(node, reachable=False, silent=False, error="BUSY Redis is busy running a script.")
        case "sync", node:
            shard.change(node, syncing=not shard.healths[node].syncing)
        case "misconf", node:
            shard.change(node, misconf="" if shard.healths[node].misconf else "-MISCONF")
        case "make_replica", node, of:
            if node != of:
                shard.make_replica(node, of)
        case "announce", node, more:
            has_epochs = shard.capabilities is not ELASTICACHE
            shard.announce(node, max(1, shard.machine.epoch + more) if has_epochs else 0)
        case "outcome", is_done, is_known:
            shard.outcome(is_done, is_known)
        case "late", event:
            if not isinstance(event, ANSWERS.get(type(shard.out), ())):  # that one could not be told from the other
                shard.step(event)
        case "ask", event:
            if not shard.asked:  # the coordinator takes one at a time
                shard.step(event)
        case [name, *arguments]:
            getattr(shard, name)(*arguments)


@settings(max_examples=300)
@given(CAPABILITIES, st.booleans(), HISTORIES)
def test_whatever_happens_the_promises_hold(
    capabilities: PromoterCapabilities, seasoned: bool, history: list[tuple[Any, ...]]
) -> None:
    shard = Watched(capabilities, seasoned=seasoned, min_between_s=20.0)
    for action in history:
        act(shard, action)


@settings(max_examples=150)
@given(CAPABILITIES, HISTORIES)
def test_when_all_is_well_for_a_while_the_gate_is_open(
    capabilities: PromoterCapabilities, history: list[tuple[Any, ...]]
) -> None:
    shard = Watched(capabilities, min_between_s=20.0)
    for action in history:
        act(shard, action)
    for _ in range(3):  # as many questions may follow from one another
        shard.outcome(True)
    # The world comes to rest: the one who was switched to is primary, and all copy it.
    primary = shard.machine.primary
    if shard.healths[primary].lost_keys:
        shard.change(primary, lost_keys=0)
    shard.wake(*shard.healths, misconf="", syncing=False)
    if shard.healths[primary].role != "master":
        shard.make_master(primary)
    for node in shard.healths.keys() - {primary}:
        shard.make_replica(node, primary)
    if capabilities.is_authority:
        shard.announce(primary, 0 if capabilities is ELASTICACHE else 10_000)
    for _ in range(60):
        shard.check(1.0)
        shard.outcome(True)
    if shard.machine.phase is Phase.PAUSED:
        shard.step(ResumeAsked())
    shard.check_for(2.0)
    assert shard.machine.phase is Phase.HEALTHY, shard.machine.why
    assert not shard.is_closed and not shard.asked
