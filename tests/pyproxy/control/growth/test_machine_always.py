"""What holds for the machine of a move whatever happens: each phase meets each event; walks drawn from a seed."""

import random
from collections import deque
from typing import get_args

import pytest

from pyproxy.control.failover.transitions import Answer, PauseAsked, ResumeAsked, Ticked
from pyproxy.control.growth.machine import HOLD_S, RETRY_S, TABLE, MoveMachine
from pyproxy.control.growth.transitions import (
    HANDING_OVER,
    OVER,
    AbortAsked,
    AwaitDrained,
    Checked,
    Cleared,
    DestinationUnwell,
    Drained,
    Entry,
    HoldWrites,
    MapNotWritten,
    MapWritten,
    MoveEffect,
    MoveEvent,
    MoverLost,
    Order,
    Phase,
    ProgressMade,
    Quiesce,
    Quiesced,
    QuiesceFailed,
    Record,
    ReleaseWrites,
    SourceUnwell,
    Started,
    Switch,
    Switched,
    Synced,
    TurnGiven,
    Undone,
    WriteMap,
    noticed,
)
from pyproxy.moves import MoveProgress, Task
from tests.pyproxy.control.growth.simulated_move import MOVE, SimulatedMove

# --- every phase meets every event ------------------------------------------------------------------------------------

EVENTS: dict[type, MoveEvent] = {
    Started: Started(),
    ProgressMade: ProgressMade(MoveProgress("m1", Task.COPY, 1, scanned=True)),
    Checked: Checked(()),
    TurnGiven: TurnGiven(),
    Quiesced: Quiesced(1),
    QuiesceFailed: QuiesceFailed(1, "busy"),
    Synced: Synced(1),
    MapWritten: MapWritten(),
    MapNotWritten: MapNotWritten("full"),
    Switched: Switched(),
    Drained: Drained(),
    Cleared: Cleared(),
    Undone: Undone(),
    Ticked: Ticked(),
    PauseAsked: PauseAsked(),
    ResumeAsked: ResumeAsked(),
    AbortAsked: AbortAsked(),
    SourceUnwell: SourceUnwell("suspect"),
    DestinationUnwell: DestinationUnwell("suspect"),
    MoverLost: MoverLost(),
}

COPIES = (Phase.COPYING, Phase.FOLLOWING, Phase.READY, Phase.HOLDING, Phase.SYNCING)
TROUBLE = (SourceUnwell, DestinationUnwell, MoverLost)

LEADS_TO: dict[tuple[Phase, type], Phase] = {
    (Phase.QUEUED, Started): Phase.CHECKING,
    (Phase.QUEUED, AbortAsked): Phase.ABORTED,
    (Phase.CHECKING, Checked): Phase.COPYING,
    (Phase.CHECKING, AbortAsked): Phase.ABORTED,
    (Phase.COPYING, ProgressMade): Phase.READY,
    (Phase.FOLLOWING, ProgressMade): Phase.READY,
    (Phase.READY, TurnGiven): Phase.HOLDING,
    (Phase.READY, PauseAsked): Phase.FOLLOWING,
    (Phase.HOLDING, Quiesced): Phase.SYNCING,
    (Phase.HOLDING, QuiesceFailed): Phase.FOLLOWING,
    (Phase.HOLDING, PauseAsked): Phase.FOLLOWING,
    (Phase.SYNCING, Synced): Phase.WRITING,
    (Phase.SYNCING, PauseAsked): Phase.FOLLOWING,
    (Phase.WRITING, MapWritten): Phase.SWITCHING,
    (Phase.WRITING, MapNotWritten): Phase.COPYING,
    (Phase.SWITCHING, Switched): Phase.DRAINING,
    (Phase.DRAINING, Drained): Phase.CLEARING,
    (Phase.CLEARING, Cleared): Phase.DONE,
    (Phase.UNDOING, Undone): Phase.ABORTED,
    **{(phase, AbortAsked): Phase.UNDOING for phase in COPIES},
    **{(phase, trouble): Phase.COPYING for phase in COPIES for trouble in TROUBLE},
}
"""By one event alone; by all others a phase stays."""


def way_to(phase: Phase) -> SimulatedMove:
    """A move that is in this phase."""
    move = SimulatedMove()
    match phase:
        case Phase.FAILED:
            move.to(Phase.CHECKING)
            move.step(Checked(("it is full",)))
        case Phase.UNDOING | Phase.ABORTED:
            move.to(Phase.COPYING)
            move.step(AbortAsked())
            if phase is Phase.ABORTED:
                move.step(Undone())
        case Phase.DONE:
            move.to(Phase.CLEARING)
            move.step(Cleared())
        case _:
            move.to(phase)
    assert move.phase is phase
    return move


def test_the_table_has_an_entry_for_every_phase_and_every_event() -> None:
    events = set(get_args(MoveEvent))
    assert events == EVENTS.keys()
    assert {phase: set(row) for phase, row in TABLE.items()} == dict.fromkeys(Phase, events)


@pytest.mark.parametrize("event", EVENTS.values(), ids=lambda event: type(event).__name__)
@pytest.mark.parametrize("phase", Phase, ids=lambda phase: phase.value)
def test_every_phase_meets_every_event(phase: Phase, event: MoveEvent) -> None:
    move = way_to(phase)
    effects = move.step(event)
    assert move.phase is LEADS_TO.get((phase, type(event)), phase)
    answers = [effect for effect in effects if isinstance(effect, Answer)]
    assert len(answers) == (type(event) in (PauseAsked, ResumeAsked, AbortAsked)), "who asks is answered, once"


@pytest.mark.parametrize("phase", Phase, ids=lambda phase: phase.value)
def test_a_gate_that_was_closed_is_opened_when_a_hand_over_ends_and_never_else(phase: Phase) -> None:
    for event in EVENTS.values():
        move = way_to(phase)
        effects = move.step(event)
        ends = phase in HANDING_OVER and move.phase not in HANDING_OVER
        assert (ReleaseWrites("s0") in effects) == ends, event
        assert (HoldWrites("s0") in effects) == (phase is Phase.READY and move.phase is Phase.HOLDING), event


# --- walks drawn from a seed ------------------------------------------------------------------------------------------


class World:
    """One move with everything around it, the parent that may crash included: it does what the effects say, in any
    order and after any time that is allowed, and holds the machine to its promises all the while."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 1000.0
        self.stored = Entry(move=MOVE)  # what the store has
        self.owner = "s0"  # of the slots, as the store says
        self.cleared = self.drained = False
        self.written = 0
        self.begin()

    def begin(self) -> None:
        """The parent is started: nothing of the one before is left but the store."""
        self.machine = MoveMachine(self.stored, self.now)
        self.queue: deque[MoveEffect] = deque()  # not carried out
        self.workers = [self.owner] * 3  # whom each takes for the owner
        self.closed: set[str] = set()
        self.closed_at = 0.0
        self.quiet = False  # since the gate closed no write can be in flight
        self.out: list[MoveEvent | str] = []  # outcomes that are on their way
        self.order = Order(None)
        self.begin_mover()
        self.step(Started())

    def begin_mover(self) -> None:
        """Whatever its order is, it begins anew."""
        self.out = [event for event in self.out if not isinstance(event, Synced)]
        self.scanned = False
        self.synced = 0  # and frozen: it copies nothing more while the order is that one
        self.keys = 0

    # --- events ---

    def step(self, event: MoveEvent) -> None:
        before = self.machine.phase
        effects = self.machine.step(event, self.now)
        if self.machine.phase is Phase.SYNCING and before is not Phase.SYNCING:
            assert self.quiet, "what is written now is not copied"
        if self.machine.phase is Phase.WRITING and before is not Phase.WRITING:
            assert "s0" in self.closed and self.quiet and self.synced == self.machine.totals.attempts
        if isinstance(event, AbortAsked) and before in (Phase.WRITING, Phase.SWITCHING, Phase.DRAINING, Phase.CLEARING):
            assert self.machine.phase is before
        self.queue += effects
        self.carry_out()
        self.check()

    def carry_out(self) -> None:
        """In their order; a Record may take its time, and nothing overtakes it."""
        while self.queue:
            if isinstance(self.queue[0], Record) and "recorded" not in self.out:
                assert not self.closed, "a gate would wait for the journal"
                self.out.append("recorded")
            if isinstance(self.queue[0], Record):
                return
            self.do(self.queue.popleft())

    def do(self, effect: MoveEffect) -> None:
        match effect:
            case Order(task, sync):
                if task is not self.order.task:
                    self.begin_mover()
                if task is Task.COPY:
                    assert self.owner == "s0" and self.stored.phase in COPIES, "the next check would refuse it"
                if task is Task.CLEAR:
                    assert self.owner == "s10" and self.drained
                if task is Task.UNDO:
                    assert self.owner == "s0" and self.stored.phase is Phase.UNDOING
                if not sync:
                    self.synced = 0
                self.order = effect
            case HoldWrites(shard):
                assert shard not in self.closed
                self.closed.add(shard)
                if shard == "s0":
                    self.quiet, self.closed_at = False, self.now
            case ReleaseWrites(shard):
                assert len(set(self.workers)) == 1 and self.workers[0] == self.owner, "two owners"
                self.closed.remove(shard)
            case Quiesce(attempt):
                self.out.append(Quiesced(attempt) if self.random.random() < 0.7 else QuiesceFailed(attempt, "busy"))
            case WriteMap(entry):
                assert self.closed == {"s0"} and self.order.task is None
                self.written += 1
                assert self.written == 1
                if self.random.random() < 0.7:
                    self.stored, self.owner = entry, "s10"
                    self.out.append(MapWritten())
                else:
                    self.written = 0
                    self.out.append(MapNotWritten("no space left on device"))
            case Switch():
                assert self.closed == {"s0", "s10"} and self.owner == "s10"
                self.out.append("switch")
            case AwaitDrained():
                assert set(self.workers) == {"s10"}
                self.out.append(Drained())

    # --- what must never be ---

    def check(self) -> None:
        phase = self.machine.phase
        assert self.machine.due is None or phase in (Phase.HOLDING, Phase.SYNCING, Phase.FOLLOWING)
        takes_writes = {owner for owner in self.workers if owner not in self.closed}
        assert len(takes_writes) < 2, "two shards take writes of the same slots"
        if self.copies():
            assert "s10" not in takes_writes, "what is copied now may undo what clients have written"
        if len(set(self.workers)) == 2:
            assert self.closed == {"s0", "s10"}
        if self.order.task is Task.CLEAR:
            assert self.drained
        if phase in OVER:
            assert not self.closed

    def copies(self) -> bool:
        return self.order.task is Task.COPY and not (self.order.sync and self.synced == self.order.sync)

    # --- what may happen ---

    def act(self) -> None:
        self.now += self.random.choice((0.0, 0.001, 0.01, 0.05, 0.2, 1.0))
        happens = self.random.choices(
            (self.outcome, self.mover, self.turn, self.tick, self.ask, self.trouble, self.crash),
            (40, 40, 20, 10, 2, 2, 1),
        )
        happens[0]()

    def outcome(self) -> None:
        if not self.out:
            return
        event = self.out.pop(self.random.randrange(len(self.out)))
        if isinstance(event, Quiesced | QuiesceFailed | Synced) and self.random.random() < 0.6:
            self.out.append(event)  # it comes late, often after the attempt was given up
            return
        if event == "recorded":
            record = self.queue.popleft()
            assert isinstance(record, Record)
            self.keep(record.entry)
            self.carry_out()
            self.check()
        elif event == "switch":
            behind = [index for index, owner in enumerate(self.workers) if owner != self.owner]
            if behind:
                self.workers[self.random.choice(behind)] = self.owner
                self.out.append("switch")
                self.check()
            else:
                self.step(Switched())
        else:
            assert not isinstance(event, str)
            if isinstance(event, Quiesced) and event.attempt == self.machine.totals.attempts:
                self.quiet = "s0" in self.closed
            self.drained = self.drained or isinstance(event, Drained)
            self.step(event)

    def keep(self, entry: Entry) -> None:
        handed_over = (Phase.SWITCHING, Phase.DRAINING, Phase.CLEARING, Phase.DONE)
        assert (entry.phase in handed_over) == (self.owner == "s10"), "the journal would say another owner than the map"
        self.stored = entry

    def mover(self) -> None:
        task, draw = self.order.task, self.random.random()
        self.keys += self.random.randrange(100)
        if task is Task.CHECK:
            progress = MoveProgress("m1", task, 1, checked=draw < 0.5, refused=["it is full"] if draw < 0.02 else [])
        elif task is Task.COPY:
            self.scanned = self.scanned or draw < 0.3
            if self.scanned and self.order.sync and draw < 0.6:
                self.synced = self.order.sync
            dirty = self.random.choice((0, 0, 500, 5000))
            progress = MoveProgress(
                "m1", task, 1, scanned=self.scanned, synced=self.synced, dirty=dirty, keys_done=self.keys
            )
        elif task is None:
            return
        else:
            progress = MoveProgress("m1", task, 1, done=draw < 0.3, strays=int(draw < 0.1), stray="'a'")
        for event in noticed(progress):
            if isinstance(event, Synced) and self.random.random() < 0.5:
                self.out.append(event)
            else:
                self.step(event)

    def turn(self) -> None:
        """The coordinator gives it when it is ready, and sometimes when it is not any more."""
        if self.machine.phase is Phase.READY or self.random.random() < 0.1:
            self.step(TurnGiven())

    def tick(self) -> None:
        self.step(Ticked())

    def ask(self) -> None:
        self.step(self.random.choice((*(PauseAsked(), ResumeAsked(), ResumeAsked()) * 8, AbortAsked())))

    def trouble(self) -> None:
        event = self.random.choice((SourceUnwell("suspect"), DestinationUnwell("its epoch is 5"), MoverLost()))
        if not isinstance(event, MoverLost):
            self.step(event)
            self.scanned = False
            return
        self.begin_mover()
        self.step(event)

    def crash(self) -> None:
        """kill -9 of the parent. What was being stored may be stored, or not."""
        if self.queue and isinstance(self.queue[0], Record) and self.random.random() < 0.5:
            self.keep(self.queue[0].entry)
        self.begin()

    # --- the end of it ---

    def settle(self) -> None:
        """Nothing goes wrong any more, and nobody asks: it comes to an end."""
        if self.machine.paused:
            self.step(ResumeAsked())
        for _ in range(2000):
            waits_until = self.machine.due if self.machine.phase is Phase.FOLLOWING else None
            self.now = max(self.now + 0.01, waits_until or 0.0)
            if self.machine.phase in OVER and not self.queue:
                return
            self.outcome()
            self.mover()
            self.turn()
            self.tick()
            assert not self.closed or self.machine.phase in HANDING_OVER or self.queue
        pytest.fail(f"{self.machine} did not end; {self.out} {self.order} {self.queue}")


@pytest.mark.parametrize("seed", range(300))
def test_whatever_happens_the_promises_hold_and_the_move_comes_to_an_end(seed: int) -> None:
    world = World(seed)
    for _ in range(250):
        world.act()
    world.settle()
    assert not world.closed
    assert set(world.workers) == {world.owner}
    if world.machine.phase is Phase.DONE:
        assert world.owner == "s10" and world.stored.phase is Phase.DONE
    else:
        assert world.owner == "s0"


def test_the_walks_come_to_every_phase_and_end_in_every_way() -> None:
    seen: set[Phase] = set()
    ends: set[Phase] = set()
    for seed in range(60):
        world = World(seed)
        for _ in range(250):
            world.act()
            seen.add(world.machine.phase)
        ends.add(world.machine.phase)
    assert seen == set(Phase) - {Phase.QUEUED}
    assert {Phase.DONE, Phase.ABORTED} <= ends


@pytest.mark.parametrize("seed", range(100))
def test_no_hold_before_the_map_is_written_is_longer_than_it_may_be(seed: int) -> None:
    world = World(seed)
    for _ in range(250):
        world.act()
        due = world.machine.due
        if world.machine.phase in (Phase.HOLDING, Phase.SYNCING):
            assert due is not None
            world.now = max(world.now, due)
            world.step(Ticked())
            assert world.machine.phase not in (Phase.HOLDING, Phase.SYNCING)
    assert all(hold.lasted_s <= HOLD_S + 1.0 for hold in world.machine.holds)
    assert len(RETRY_S) > 1
