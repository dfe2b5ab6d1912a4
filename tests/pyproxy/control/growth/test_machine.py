"""What becomes of a move, step by step."""

import msgspec
import pytest

from pyproxy.control.failover.transitions import Answer, PauseAsked, ResumeAsked, Ticked
from pyproxy.control.growth.machine import FEW, HOLD_S, RETRY_S, SHOWN, YOUNG_S
from pyproxy.control.growth.transitions import (
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
    Totals,
    TurnGiven,
    Undone,
    WriteMap,
)
from pyproxy.moves import MoveProgress, Task
from tests.pyproxy.control.growth.simulated_move import MOVE, SimulatedMove

BEFORE_THE_MAP = (Phase.HOLDING, Phase.SYNCING)
TROUBLE = (SourceUnwell("suspect"), DestinationUnwell("its epoch is 5"), MoverLost())


def at(phase: Phase) -> SimulatedMove:
    """A move in this phase, on the straight way."""
    move = SimulatedMove()
    move.to(phase)
    move.forget()
    return move


# --- the straight way -------------------------------------------------------------------------------------------------


def test_a_move_is_checked_copied_followed_handed_over_and_cleared() -> None:
    move = SimulatedMove()
    move.step(Started())
    assert move.done == [Order(Task.CHECK)]
    move.step(Checked(()))
    assert move.done[1:] == [Record(move.machine.entry), Order(Task.COPY)]
    move.forget()

    move.progress(scanned=False, keys_done=10)
    assert move.is_in(Phase.COPYING)
    move.progress(dirty=FEW + 1)
    assert move.is_in(Phase.FOLLOWING)
    move.progress(dirty=FEW)
    assert (move.phase, move.done) == (Phase.READY, [])

    move.step(TurnGiven())
    assert move.done == [HoldWrites("s0"), Quiesce(1)]
    move.step(Quiesced(1))
    assert move.order == Order(Task.COPY, sync=1)
    move.forget()
    move.step(Synced(1))
    order, write = move.done
    assert order == Order(None)
    assert isinstance(write, WriteMap) and write.entry.phase is Phase.SWITCHING
    move.forget()
    move.step(MapWritten())
    assert move.done == [HoldWrites("s10"), Switch()]
    move.forget()
    move.step(Switched())
    assert move.done == [ReleaseWrites("s0"), ReleaseWrites("s10"), AwaitDrained(), Record(move.machine.entry)]
    move.forget()
    move.step(Drained())
    assert move.done == [Order(Task.CLEAR)]
    move.forget()
    move.step(Cleared())
    assert move.done == [Order(None), Record(move.machine.entry)]
    assert move.phase is Phase.DONE


def test_each_step_that_lasts_is_said_with_its_cause() -> None:
    move = SimulatedMove()
    move.to(Phase.CLEARING)
    move.step(Cleared())
    assert move.logged == [
        "+move", "+move-copy", "-move-copy", "+move-hand-over", "+move-switch", "-move-switch", "+move-clear",
        "+move-end",
    ]  # fmt: skip


def test_a_move_that_is_refused_changes_nothing_and_says_why() -> None:
    move = at(Phase.CHECKING)
    move.step(Checked(("s10 has keys in these slots", "s10 is full")))
    assert move.done == [Order(None), Record(move.machine.entry)]
    assert (move.phase, move.machine.why) == (Phase.FAILED, "s10 has keys in these slots; s10 is full")


def test_the_journal_knows_of_the_copy_before_the_first_key_is_copied() -> None:
    move = at(Phase.CHECKING)
    move.step(Checked(()))
    kinds = [type(effect) for effect in move.done]
    assert kinds.index(Record) < kinds.index(Order)


# --- when it is ready -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{"dirty": FEW + 1}, {"behind_s": YOUNG_S * 1.01}], ids=["many", "old"])
def test_a_move_is_not_ready_while_its_names_are_many_or_old(fields: dict[str, object]) -> None:
    move = at(Phase.COPYING)
    move.progress(**fields)
    assert move.is_in(Phase.FOLLOWING)
    move.progress()
    assert move.is_in(Phase.READY)
    move.progress(**fields)
    assert move.phase is Phase.FOLLOWING


def test_a_turn_that_comes_when_it_is_not_ready_any_more_is_not_taken() -> None:
    move = at(Phase.READY)
    move.progress(dirty=FEW + 1)
    assert move.step(TurnGiven()) == []
    assert move.phase is Phase.FOLLOWING


# --- given up ---------------------------------------------------------------------------------------------------------


def test_writes_that_do_not_end_give_the_hand_over_up() -> None:
    move = at(Phase.HOLDING)
    move.step(QuiesceFailed(1, "worker 1 had writes in flight"))
    assert move.done == [ReleaseWrites("s0"), Order(Task.COPY)]
    assert (move.phase, move.logged) == (Phase.FOLLOWING, ["-move-hand-over"])


@pytest.mark.parametrize("phase", BEFORE_THE_MAP, ids=lambda phase: phase.value)
def test_a_hold_is_given_up_when_it_has_lasted_too_long(phase: Phase) -> None:
    move = at(phase)
    due = move.machine.due
    assert due is not None and HOLD_S - 0.1 < due - move.now <= HOLD_S
    move.step(Ticked(), due - move.now - 0.01)
    assert move.phase is phase
    move.step(Ticked(), 0.02)
    assert move.done == [ReleaseWrites("s0"), Order(Task.COPY)]
    assert move.phase is Phase.FOLLOWING


@pytest.mark.parametrize(("phase", "outcome"), [(Phase.HOLDING, Quiesced(1)), (Phase.SYNCING, Synced(1))])
def test_an_outcome_that_comes_too_late_gives_it_up_even_before_the_tick(phase: Phase, outcome: MoveEvent) -> None:
    move = at(phase)
    move.step(outcome, HOLD_S)
    assert move.of(ReleaseWrites) == [ReleaseWrites("s0")] and move.of(WriteMap) == []
    assert move.phase is Phase.FOLLOWING


def test_what_the_mover_had_trouble_with_is_the_reason_and_keeps_it_from_no_other_attempt() -> None:
    move = at(Phase.SYNCING)
    move.progress(error="s10: no replica has what was copied")
    move.step(Ticked(), HOLD_S)
    assert move.machine.why == "changes were not copied after 0.25 s: s10: no replica has what was copied"
    move.progress(error="s10: no replica has what was copied")
    move.step(Ticked(), RETRY_S[0])
    assert move.is_in(Phase.READY)


def test_it_is_tried_again_after_a_pause_that_grows() -> None:
    move = at(Phase.READY)
    for pause_s in (*RETRY_S, RETRY_S[-1]):
        move.step(TurnGiven())
        move.step(QuiesceFailed(move.machine.totals.attempts, "busy"))
        move.progress()
        assert move.phase is Phase.FOLLOWING
        due = move.machine.due
        assert due is not None and pause_s - 0.1 < due - move.now < pause_s
        move.step(Ticked(), due - move.now - 0.01)
        assert move.is_in(Phase.FOLLOWING)
        move.step(Ticked(), 0.02)
        assert move.is_in(Phase.READY)


@pytest.mark.parametrize("outcome", [Quiesced(1), QuiesceFailed(1, "busy")], ids=["quiet", "not quiet"])
def test_an_outcome_of_an_attempt_that_was_given_up_is_not_that_of_the_next(outcome: MoveEvent) -> None:
    move = at(Phase.HOLDING)
    move.step(Ticked(), HOLD_S)
    move.progress()
    move.step(Ticked(), RETRY_S[0])
    move.step(TurnGiven())
    assert move.of(Quiesce) == [Quiesce(2)]
    assert move.step(outcome) == []
    assert move.phase is Phase.HOLDING


def test_what_was_synced_for_an_attempt_that_was_given_up_says_nothing_of_the_next() -> None:
    move = at(Phase.SYNCING)
    move.step(Ticked(), HOLD_S)
    move.progress()
    move.step(Ticked(), RETRY_S[0])
    move.step(TurnGiven())
    move.step(Quiesced(2))
    assert move.order == Order(Task.COPY, sync=2)
    assert move.step(Synced(1)) == []
    assert move.phase is Phase.SYNCING


@pytest.mark.parametrize("phase", BEFORE_THE_MAP, ids=lambda phase: phase.value)
@pytest.mark.parametrize("trouble", TROUBLE, ids=lambda trouble: type(trouble).__name__)
def test_trouble_before_the_map_is_written_gives_it_up_and_the_copy_begins_anew(
    phase: Phase, trouble: MoveEvent
) -> None:
    move = at(phase)
    move.step(trouble)
    assert move.done == [ReleaseWrites("s0"), Order(Task.COPY)]
    assert (move.phase, move.machine.totals.restarts) == (Phase.COPYING, 1)


@pytest.mark.parametrize("phase", BEFORE_THE_MAP, ids=lambda phase: phase.value)
@pytest.mark.parametrize("fields", [{"scanned": False}, {"restarts": 1}], ids=["scans again", "lost its feed"])
def test_a_mover_that_begins_anew_while_writes_are_held_gives_it_up(phase: Phase, fields: dict[str, object]) -> None:
    move = at(phase)
    move.progress(**fields)
    assert move.of(ReleaseWrites) == [ReleaseWrites("s0")]
    assert move.phase is Phase.COPYING


# --- the map ----------------------------------------------------------------------------------------------------------


def test_a_map_that_could_not_be_written_opens_the_gate_and_the_copy_begins_anew() -> None:
    move = at(Phase.WRITING)
    move.step(MapNotWritten("no space left on device"))
    assert move.done == [ReleaseWrites("s0"), Order(Task.COPY), Record(move.machine.entry)]
    assert (move.phase, move.machine.totals.restarts) == (Phase.COPYING, 1)


@pytest.mark.parametrize("phase", [Phase.WRITING, Phase.SWITCHING, Phase.DRAINING], ids=lambda phase: phase.value)
@pytest.mark.parametrize("trouble", TROUBLE, ids=lambda trouble: type(trouble).__name__)
def test_trouble_after_the_map_may_be_written_stops_nothing_and_orders_no_copy(
    phase: Phase, trouble: MoveEvent
) -> None:
    move = at(phase)
    assert move.step(trouble) == []
    assert move.step(Ticked(), 3600.0) == []
    assert move.phase is phase


def test_the_order_to_copy_is_withdrawn_before_the_map_is_written() -> None:
    move = at(Phase.SYNCING)
    move.step(Synced(1))
    assert [type(effect) for effect in move.done] == [Order, WriteMap]
    assert move.order == Order(None)


def test_nothing_is_recorded_while_a_gate_is_closed_as_it_could_not_open_before_the_disk_answers() -> None:
    move = at(Phase.READY)
    move.to(Phase.SWITCHING)
    move.step(PauseAsked())
    assert move.of(Record) == []
    move.step(Switched())
    assert move.recorded == [Phase.DRAINING]
    assert move.of(Record)[0].entry.paused


# --- an operator asks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", [Phase.QUEUED, Phase.CHECKING], ids=lambda phase: phase.value)
def test_an_abort_before_the_copy_is_the_end_at_once(phase: Phase) -> None:
    move = at(phase)
    move.step(AbortAsked())
    assert move.done[:2] == [Order(None), Record(move.machine.entry)]
    assert (move.phase, [answer.done for answer in move.answers]) == (Phase.ABORTED, [True])


def test_an_abort_of_a_copy_deletes_what_was_copied() -> None:
    move = at(Phase.FOLLOWING)
    move.step(AbortAsked())
    assert move.done[:2] == [Record(move.machine.entry), Order(Task.UNDO)]
    move.step(Undone())
    assert (move.phase, move.order) == (Phase.ABORTED, Order(None))


@pytest.mark.parametrize("phase", BEFORE_THE_MAP, ids=lambda phase: phase.value)
def test_an_abort_while_writes_are_held_opens_the_gate_first(phase: Phase) -> None:
    move = at(phase)
    move.step(AbortAsked())
    assert move.done[:3] == [ReleaseWrites("s0"), Record(move.machine.entry), Order(Task.UNDO)]
    assert move.phase is Phase.UNDOING


@pytest.mark.parametrize(
    "phase", [Phase.WRITING, Phase.SWITCHING, Phase.DRAINING, Phase.CLEARING], ids=lambda phase: phase.value
)
def test_an_abort_after_that_is_refused_with_the_way_out(phase: Phase) -> None:
    move = at(phase)
    move.step(AbortAsked())
    text = f"m1 is {phase.value}: s10 owns the slots, or is about to; a move the other way brings them back"
    assert move.done == [Answer(False, text)]
    assert move.phase is phase


def test_a_paused_move_follows_and_is_not_handed_over_until_it_is_resumed() -> None:
    move = at(Phase.READY)
    move.step(PauseAsked())
    move.progress()
    assert move.is_in(Phase.FOLLOWING)
    move.step(ResumeAsked())
    assert move.is_in(Phase.READY)
    assert [answer.text for answer in move.answers] == ["m1 is paused", "m1 goes on"]


@pytest.mark.parametrize("phase", BEFORE_THE_MAP, ids=lambda phase: phase.value)
def test_a_pause_while_writes_are_held_gives_the_hand_over_up(phase: Phase) -> None:
    move = at(phase)
    move.step(PauseAsked())
    assert move.done[:3] == [ReleaseWrites("s0"), Order(Task.COPY), Record(move.machine.entry)]
    assert move.phase is Phase.FOLLOWING


def test_a_pause_while_the_map_is_written_waits_for_the_end_of_the_hand_over() -> None:
    move = at(Phase.WRITING)
    move.step(PauseAsked())
    assert move.done == [Answer(True, "m1 is paused")]
    move.to(Phase.CLEARING)
    assert move.machine.paused


def test_nothing_can_be_resumed_that_is_not_paused() -> None:
    move = at(Phase.COPYING)
    move.step(ResumeAsked())
    assert move.done == [Answer(False, "m1 is not paused: it is copying")]


# --- clearing ---------------------------------------------------------------------------------------------------------


def test_a_stray_writer_at_the_source_is_an_alarm_that_names_a_key() -> None:
    move = at(Phase.CLEARING)
    for strays in (0, 2, 2, 3):
        move.step(ProgressMade(MoveProgress("m1", Task.CLEAR, 1, strays=strays, stray="'user:7'")))
    assert move.logged == ["+move-stray", "+move-stray"]
    assert move.machine.alarm == (
        "3 changes of keys that s10 owns were made at s0, past the proxy, such as of 'user:7'"
    )


@pytest.mark.parametrize(("phase", "task"), [(Phase.CLEARING, Task.CLEAR), (Phase.UNDOING, Task.UNDO)])
@pytest.mark.parametrize("trouble", TROUBLE, ids=lambda trouble: type(trouble).__name__)
def test_what_is_deleted_is_ordered_again_at_the_servers_of_now(phase: Phase, task: Task, trouble: MoveEvent) -> None:
    move = SimulatedMove(Entry(move=MOVE, phase=phase))
    assert move.step(trouble) == [Order(task)]
    assert move.phase is phase


# --- what is shown, and what outlives a restart -----------------------------------------------------------------------


def test_every_hold_is_shown_with_how_it_ended_and_the_longest_is_kept() -> None:
    move = at(Phase.HOLDING)
    move.step(QuiesceFailed(1, "busy"), 0.2)
    move.progress()
    move.step(Ticked(), RETRY_S[0])
    move.step(TurnGiven())
    move.to(Phase.SWITCHING)
    move.step(Switched(), 0.05)
    assert [hold.given_up for hold in move.machine.holds] == ["busy", ""]
    assert [round(hold.lasted_s, 1) for hold in move.machine.holds] == [0.2, 0.1]
    assert move.machine.totals.longest_hold_s == move.machine.holds[0].lasted_s
    assert move.machine.totals.attempts == 2


def test_of_very_many_holds_the_last_ones_are_shown() -> None:
    move = at(Phase.READY)
    for _ in range(SHOWN + 5):
        move.step(TurnGiven())
        move.step(QuiesceFailed(move.machine.totals.attempts, "busy"))
        move.progress()
        move.step(Ticked(), RETRY_S[-1])
    assert len(move.machine.holds) == SHOWN
    assert move.machine.totals.attempts == SHOWN + 5


def test_keys_are_counted_over_movers_and_restarts() -> None:
    move = SimulatedMove(Entry(move=MOVE, phase=Phase.COPYING, totals=Totals(keys=1000, bytes=9000)))
    move.step(Started())
    for keys, size in ((10, 100), (50, 700)):
        move.progress(scanned=False, keys_done=keys, bytes_done=size)
    move.step(MoverLost())
    move.progress(scanned=False, keys_done=20, bytes_done=300)
    totals = move.machine.totals
    assert (totals.keys, totals.bytes, totals.restarts) == (1070, 10_000, 1)


@pytest.mark.parametrize(
    ("phase", "goes_on", "order"),
    [
        (Phase.QUEUED, Phase.CHECKING, [Order(Task.CHECK)]),
        (Phase.CHECKING, Phase.CHECKING, [Order(Task.CHECK)]),
        (Phase.COPYING, Phase.COPYING, [Order(Task.COPY)]),
        (Phase.FOLLOWING, Phase.COPYING, [Order(Task.COPY)]),
        (Phase.READY, Phase.COPYING, [Order(Task.COPY)]),
        (Phase.HOLDING, Phase.COPYING, [Order(Task.COPY)]),
        (Phase.SYNCING, Phase.COPYING, [Order(Task.COPY)]),
        (Phase.WRITING, Phase.COPYING, [Order(Task.COPY)]),
        (Phase.SWITCHING, Phase.DRAINING, [AwaitDrained()]),
        (Phase.DRAINING, Phase.DRAINING, [AwaitDrained()]),
        (Phase.CLEARING, Phase.CLEARING, [Order(Task.CLEAR)]),
        (Phase.UNDOING, Phase.UNDOING, [Order(Task.UNDO)]),
        (Phase.DONE, Phase.DONE, []),
        (Phase.ABORTED, Phase.ABORTED, []),
        (Phase.FAILED, Phase.FAILED, []),
    ],
)
def test_after_a_restart_a_move_goes_on_from_what_the_journal_says(
    phase: Phase, goes_on: Phase, order: list[object]
) -> None:
    move = SimulatedMove(Entry(move=MOVE, phase=phase))
    move.step(Started())
    assert (move.phase, move.done) == (goes_on, order)


def test_an_entry_says_what_it_began_with_and_what_has_become_of_it() -> None:
    entry = Entry(move=MOVE, replace=True, accept_eviction=True, times={"queued": 17.0})
    move = SimulatedMove(entry)
    move.to(Phase.COPYING)
    assert move.of(Record)[-1].entry == msgspec.structs.replace(
        entry, phase=Phase.COPYING, why="the check found nothing against it"
    )
