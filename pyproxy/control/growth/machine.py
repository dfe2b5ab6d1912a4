"""What becomes of one move of slots, from its check to the last key that is cleared.  Pure: events and the time go in,
effects come out.

    queued ─▶ checking ─▶ copying ─▶ following ◀─▶ ready ─▶ holding ─▶ syncing ─▶ writing ─┬─▶ switching ─▶ draining
                 │           ▲           ▲                     │          │          │     │                   │
                 ▼           └───────────┴──── given up ───────┴──────────┴──────────┘     │       clearing ◀──┘
               failed                                                                      │           │
                             undoing ─▶ aborted     until here an operator may abort ◀─────┘           ▼
                                                                                                      done

From *holding* to *switching* the gate of the source is closed. Until the map is written everything can be given up, and
nothing has happened for clients. After it there is no way back: only the next step.

The mover copies nothing more once it has said that it is in step (`Synced`), and its order is withdrawn before the map
is written. A key that it copied later, or a deletion because the source's copy expired, would undo what clients have
written at the destination since. So whatever happens to servers or mover then, no order to copy goes out again unless
the map was surely not written.
"""

from collections.abc import Callable

import msgspec

from pyproxy.control.failover.transitions import Answer, Log, PauseAsked, ResumeAsked, Ticked
from pyproxy.control.growth.transitions import (
    HANDED_OVER,
    AbortAsked,
    AwaitDrained,
    Checked,
    Cleared,
    DestinationUnwell,
    Drained,
    Entry,
    Hold,
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
)
from pyproxy.events import Event
from pyproxy.moves import MoveProgress, Task

HOLD_S = 0.25
"""From the closing of the gate until all is quiet and copied; else it is given up."""

FEW = 5000
"""So many names that changed since they were copied may be left when the gate closes: some ten milliseconds of work."""

YOUNG_S = 0.2
"""And for so long the oldest of them may have waited. The mover lets each wait a little, as it may change again."""

RETRY_S = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Pauses after the first, second ... attempt in a row that was given up; the last one for all further ones."""

SHOWN = 20
"""Holds that are kept to be shown, the latest ones."""

AFTER_RESTART = {
    Phase.CHECKING: Phase.QUEUED,
    Phase.FOLLOWING: Phase.COPYING,
    Phase.READY: Phase.COPYING,
    Phase.HOLDING: Phase.COPYING,
    Phase.SYNCING: Phase.COPYING,
    Phase.WRITING: Phase.COPYING,  # the map and `switching` are written in one step: so it was not
    Phase.SWITCHING: Phase.DRAINING,  # all workers begin with the new map
}
"""Where a move goes on of which the journal says another phase."""


class MoveMachine:
    """One move. `step` is the only way in. Its first event is Started."""

    def __init__(self, entry: Entry, now: float) -> None:
        self.move = entry.move
        self.phase = AFTER_RESTART.get(entry.phase, entry.phase)
        self.why = entry.why
        self.paused = entry.paused
        self.progress: MoveProgress | None = None  # of the present task
        self.holds: list[Hold] = []
        self.alarm = ""  # what an operator must know of
        self._entry = entry  # as it was at the beginning
        self._entered = now  # the phase
        self._started = now
        self._counted = (0, 0)  # keys and bytes, as the mover said last
        self.totals = entry.totals
        self._failures = 0  # in a row
        self._retry_at = now
        self._held_since = 0.0

    def step(self, event: MoveEvent, now: float) -> list[MoveEffect]:
        """One event. The effects are to be carried out in their order."""
        return TABLE[self.phase][type(event)](self, event, now)

    @property
    def due(self) -> float | None:
        """When the time alone changes something: Ticked is to come then, or soon after."""
        if self.phase in (Phase.HOLDING, Phase.SYNCING):
            return self._held_since + HOLD_S
        return self._retry_at if self.phase is Phase.FOLLOWING and self._failures else None

    @property
    def entry(self) -> Entry:
        """What the journal is to keep; its times are those of the journal."""
        return msgspec.structs.replace(
            self._entry, phase=self.phase, why=self.why, paused=self.paused, totals=self.totals
        )

    # --- it begins, or goes on ---

    def _on_started(self, _event: MoveEvent, now: float) -> list[MoveEffect]:
        match self.phase:
            case Phase.QUEUED:
                return self._check("an operator asked", now)
            case Phase.COPYING:
                return [Order(Task.COPY), *self._enter(Phase.COPYING, now, "the proxy was restarted", Event.MOVE)]
            case Phase.DRAINING:
                return [AwaitDrained(), *self._enter(Phase.DRAINING, now, "the proxy was restarted", Event.MOVE)]
        return self._order_again(_event, now)

    def _check(self, cause: str, now: float) -> list[MoveEffect]:
        self.progress = None
        return [Order(Task.CHECK), *self._enter(Phase.CHECKING, now, cause, Event.MOVE)]

    def _on_checked(self, event: MoveEvent, now: float) -> list[MoveEffect]:
        assert isinstance(event, Checked)
        if event.refusals:
            log = self._enter(Phase.FAILED, now, "; ".join(event.refusals), Event.MOVE_REFUSED)
            return [Order(None), Record(self.entry), *log]
        log = self._enter(Phase.COPYING, now, "the check found nothing against it", Event.MOVE_COPY)
        self.progress = None
        # The journal first: what was copied is found at the destination by the next check, which would refuse it.
        return [Record(self.entry), Order(Task.COPY), *log]

    # --- the mover goes on ---

    def _on_progress(self, event: MoveEvent, now: float) -> list[MoveEffect]:
        """Of a copy."""
        assert isinstance(event, ProgressMade)
        before, progress = self.progress, event.progress
        if progress.task is not Task.COPY:
            return []
        self._count(progress)
        self.progress = progress
        if before is not None and progress.restarts > before.restarts:
            return self._copy_anew("the change feed was lost", now)
        if not progress.scanned:
            return [] if self.phase is Phase.COPYING else self._copy_anew("the copy began anew", now)
        if self.phase is Phase.COPYING:
            log = self._enter(Phase.FOLLOWING, now, "every key has been copied once", Event.MOVE_COPIED)
            return [*log, *self._review(event, now)]
        return self._review(event, now)

    def _count(self, progress: MoveProgress) -> None:
        """Another mover counts from the beginning."""
        counted = progress.keys_done, progress.bytes_done
        keys, size = self._counted if counted >= self._counted else (0, 0)
        self._counted = counted
        self.totals = msgspec.structs.replace(
            self.totals, keys=self.totals.keys + counted[0] - keys, bytes=self.totals.bytes + counted[1] - size
        )

    def _review(self, _event: MoveEvent, now: float) -> list[MoveEffect]:
        """Following, or ready: as few names are left, or many."""
        progress = self.progress
        may = (
            progress is not None
            and progress.scanned
            and progress.dirty <= FEW
            and progress.behind_s <= YOUNG_S
            and not self.paused
            and now >= self._retry_at
        )
        if self.phase is Phase.FOLLOWING and may:
            return self._enter(Phase.READY, now, "few names are left")
        if self.phase is Phase.READY and not may:
            return self._enter(Phase.FOLLOWING, now, "more names are left again")
        return []

    def _note_progress(self, event: MoveEvent, _now: float) -> list[MoveEffect]:
        """Of another task than a copy."""
        assert isinstance(event, ProgressMade)
        progress = event.progress
        if progress.task is not TASKS.get(self.phase):
            return []
        is_news = progress.strays > (self.progress.strays if self.progress is not None else 0)
        self.progress = progress
        if not is_news:
            return []
        self.alarm = (
            f"{progress.strays} changes of keys that {self.move.destination} owns were made at {self.move.source}, "
            f"past the proxy, such as of {progress.stray}"
        )
        return [Log(Event.MOVE_STRAY, {"move": self.move.id, "count": progress.strays, "key": progress.stray})]

    # --- handing over ---

    def _on_turn(self, _event: MoveEvent, now: float) -> list[MoveEffect]:
        self._held_since = now
        self.totals = msgspec.structs.replace(self.totals, attempts=self.totals.attempts + 1)
        attempt = self.totals.attempts
        log = self._enter(Phase.HOLDING, now, "its turn has come", Event.MOVE_HAND_OVER, attempt=attempt)
        return [HoldWrites(self.move.source), Quiesce(attempt), *log]

    def _on_quiesced(self, event: MoveEvent, now: float) -> list[MoveEffect]:
        assert isinstance(event, Quiesced)
        if event.attempt != self.totals.attempts:
            return []
        if now >= self._held_since + HOLD_S:
            return self._on_late(event, now)
        return [Order(Task.COPY, event.attempt), *self._enter(Phase.SYNCING, now, "no write is in flight")]

    def _on_quiesce_failed(self, event: MoveEvent, now: float) -> list[MoveEffect]:
        assert isinstance(event, QuiesceFailed)
        return self._give_up(event.why, now) if event.attempt == self.totals.attempts else []

    def _on_synced(self, event: MoveEvent, now: float) -> list[MoveEffect]:
        assert isinstance(event, Synced)
        if event.token != self.totals.attempts:
            return []
        if now >= self._held_since + HOLD_S:
            return self._on_late(event, now)
        log = self._enter(Phase.WRITING, now, "everything is copied")
        entry = msgspec.structs.replace(self.entry, phase=Phase.SWITCHING, why="the map is written")
        return [Order(None), WriteMap(entry), *log]

    def _on_late(self, event: MoveEvent, now: float) -> list[MoveEffect]:
        if now < self._held_since + HOLD_S:
            return []
        what = "writes were in flight" if self.phase is Phase.HOLDING else "changes were not copied"
        trouble = f": {self.progress.error}" if self.progress is not None and self.progress.error else ""
        return self._give_up(f"{what} after {HOLD_S:g} s{trouble}", now)

    def _give_up(self, why: str, now: float, phase: Phase = Phase.FOLLOWING) -> list[MoveEffect]:
        """All is as it was before the gate closed."""
        self._end_hold(now, why)
        pause_s = RETRY_S[min(self._failures, len(RETRY_S) - 1)]
        self._failures += 1
        self._retry_at = now + pause_s
        log = self._enter(phase, now, why, Event.MOVE_HAND_OVER_FAILED, retry_in_s=pause_s)
        return [ReleaseWrites(self.move.source), Order(Task.COPY), *log]

    def _end_hold(self, now: float, given_up: str = "") -> None:
        hold = Hold(self._held_since, now - self._held_since, given_up)
        self.holds = [*self.holds, hold][-SHOWN:]
        longest_s = max(self.totals.longest_hold_s, hold.lasted_s)
        self.totals = msgspec.structs.replace(self.totals, longest_hold_s=longest_s)

    def _on_map_written(self, _event: MoveEvent, now: float) -> list[MoveEffect]:
        # The destination's gate too, for this one step: a worker that has the new map would write there while another
        # one, that has the old map, still reads at the source.
        log = self._enter(Phase.SWITCHING, now, "the map is written", Event.MOVE_SWITCH)
        return [HoldWrites(self.move.destination), Switch(), *log]

    def _on_map_not_written(self, event: MoveEvent, now: float) -> list[MoveEffect]:
        """The mover has had no order since it was in step, so that it begins anew."""
        assert isinstance(event, MapNotWritten)
        self._forget_copy()
        return [*self._give_up(f"the map could not be written: {event.why}", now, Phase.COPYING), Record(self.entry)]

    def _on_switched(self, _event: MoveEvent, now: float) -> list[MoveEffect]:
        self._end_hold(now)
        log = self._enter(
            Phase.DRAINING, now, "all workers have the new map", Event.MOVE_SWITCHED,
            hold_ms=f"{self.holds[-1].lasted_s * 1000:.1f}",
        )  # fmt: skip
        gates = [ReleaseWrites(self.move.source), ReleaseWrites(self.move.destination)]
        return [*gates, *log, AwaitDrained(), Record(self.entry)]

    # --- clearing, undoing ---

    def _on_drained(self, _event: MoveEvent, now: float) -> list[MoveEffect]:
        self.progress = None
        log = self._enter(Phase.CLEARING, now, "no request from before the switch is left", Event.MOVE_CLEAR)
        return [Order(Task.CLEAR), *log]

    def _on_cleared(self, _event: MoveEvent, now: float) -> list[MoveEffect]:
        log = self._enter(Phase.DONE, now, "nothing is left at the source", Event.MOVE_END)
        return [Order(None), Record(self.entry), *log]

    def _on_undone(self, _event: MoveEvent, now: float) -> list[MoveEffect]:
        log = self._enter(Phase.ABORTED, now, "nothing is left at the destination", Event.MOVE_ABORTED)
        return [Order(None), Record(self.entry), *log]

    # --- trouble ---

    def _on_trouble(self, event: MoveEvent, now: float) -> list[MoveEffect]:
        return self._copy_anew(self._what(event), now)

    def _order_again(self, _event: MoveEvent, _now: float) -> list[MoveEffect]:
        """The same task, at the servers of now, by the mover of now."""
        return [Order(TASKS[self.phase])]

    def _copy_anew(self, why: str, now: float) -> list[MoveEffect]:
        self._forget_copy()
        if self.phase in (Phase.HOLDING, Phase.SYNCING):
            return self._give_up(why, now, Phase.COPYING)
        return [Order(Task.COPY), *self._enter(Phase.COPYING, now, why, Event.MOVE_COPY)]

    def _forget_copy(self) -> None:
        self.progress = None
        self.totals = msgspec.structs.replace(self.totals, restarts=self.totals.restarts + 1)

    def _what(self, event: MoveEvent) -> str:
        match event:
            case SourceUnwell(why):
                return f"{self.move.source}: {why}"
            case DestinationUnwell(why):
                return f"{self.move.destination}: {why}"
        return "the mover has ended"

    # --- an operator asks ---

    def _on_pause_asked(self, _event: MoveEvent, now: float) -> list[MoveEffect]:
        """Once the map is written, or may be, nothing stops before the gate is open again."""
        effects: list[MoveEffect] = []
        self.paused = True
        if self.phase in (Phase.HOLDING, Phase.SYNCING):
            effects = self._give_up("an operator asked for a pause", now)
        elif self.phase is Phase.READY:
            effects = self._enter(Phase.FOLLOWING, now, "an operator asked for a pause")
        return [*effects, *self._record(), Answer(True, f"{self.move.id} is paused")]

    def _on_resume_asked(self, event: MoveEvent, now: float) -> list[MoveEffect]:
        if not self.paused:
            return [Answer(False, f"{self.move.id} is not paused: it is {self.phase.value}")]
        self.paused = False
        effects = self._review(event, now)
        return [*effects, *self._record(), Answer(True, f"{self.move.id} goes on")]

    def _record(self) -> list[MoveEffect]:
        """Not while a gate is closed: nothing may wait for the store then but the map. It is recorded afterwards."""
        return [] if self.phase in (Phase.WRITING, Phase.SWITCHING) else [Record(self.entry)]

    def _on_abort_asked(self, _event: MoveEvent, now: float) -> list[MoveEffect]:
        """Something may have been copied."""
        release: list[MoveEffect] = []
        if self.phase in (Phase.HOLDING, Phase.SYNCING):
            self._end_hold(now, "an operator asked for the end of the move")
            release = [ReleaseWrites(self.move.source)]
        self.progress = None
        log = self._enter(Phase.UNDOING, now, "an operator asked", Event.MOVE_ABORT)
        when = ", when the moves are resumed," if self.paused else ""
        text = f"{self.move.id} is aborted: what was copied is deleted{when} at {self.move.destination}"
        return [*release, Record(self.entry), Order(Task.UNDO), *log, Answer(True, text)]

    def _on_abort_at_once(self, _event: MoveEvent, now: float) -> list[MoveEffect]:
        """Nothing was copied."""
        log = self._enter(Phase.ABORTED, now, "an operator asked", Event.MOVE_ABORTED)
        return [Order(None), Record(self.entry), *log, Answer(True, f"{self.move.id} is aborted; nothing was copied")]

    def _not_now(self, _event: MoveEvent, _now: float) -> list[MoveEffect]:
        text = f"{self.move.id} is {self.phase.value}"
        if self.phase in (Phase.WRITING, *HANDED_OVER):
            text += f": {self.move.destination} owns the slots, or is about to; a move the other way brings them back"
        return [Answer(False, text)]

    # --- what follows ---

    def _enter(
        self, phase: Phase, now: float, cause: str, event: Event | None = None, **fields: object
    ) -> list[MoveEffect]:
        """The one place where a phase begins. Without an event it is not said: it lasts a moment, or comes and goes."""
        was, lasted = self.phase, now - self._entered
        self.phase, self._entered, self.why = phase, now, cause
        if event is None:
            return []
        said = {
            "move": self.move.id, "phase": phase.value, "was": was.value, "source": self.move.source,
            "destination": self.move.destination, "cause": cause, "was_for_s": f"{lasted:.1f}",
            "move_s": f"{now - self._started:.1f}", **fields,
        }  # fmt: skip
        return [Log(event, said)]

    def _ignore(self, _event: MoveEvent, _now: float) -> list[MoveEffect]:
        return []

    def __repr__(self) -> str:
        return f"<MoveMachine {self.move.id} {self.phase.value} {self.move.source} -> {self.move.destination}>"


TASKS = {
    Phase.CHECKING: Task.CHECK,
    Phase.COPYING: Task.COPY,
    Phase.FOLLOWING: Task.COPY,
    Phase.READY: Task.COPY,
    Phase.HOLDING: Task.COPY,
    Phase.SYNCING: Task.COPY,
    Phase.CLEARING: Task.CLEAR,
    Phase.UNDOING: Task.UNDO,
}
"""What the mover has to do in each phase; in all others nothing."""

Handler = Callable[[MoveMachine, MoveEvent, float], list[MoveEffect]]

_OUTCOMES = (
    Checked,
    TurnGiven,
    Quiesced,
    QuiesceFailed,
    Synced,
    MapWritten,
    MapNotWritten,
    Switched,
    Drained,
    Cleared,
    Undone,
)
_TROUBLE = (SourceUnwell, DestinationUnwell, MoverLost)

_IDLE: dict[type, Handler] = dict.fromkeys((Started, Ticked, ProgressMade, *_OUTCOMES, *_TROUBLE), MoveMachine._ignore)
"""Nothing of this phase; outcomes that nobody waits for any more."""

_PAUSES: dict[type, Handler] = {
    PauseAsked: MoveMachine._on_pause_asked, ResumeAsked: MoveMachine._on_resume_asked
}  # fmt: skip
_NO_WAY_BACK: dict[type, Handler] = {**_PAUSES, AbortAsked: MoveMachine._not_now}
_OVER: dict[type, Handler] = dict.fromkeys((PauseAsked, ResumeAsked, AbortAsked), MoveMachine._not_now)
_BEFORE: dict[type, Handler] = {**_PAUSES, AbortAsked: MoveMachine._on_abort_at_once}
_COPY: dict[type, Handler] = {
    **_PAUSES, AbortAsked: MoveMachine._on_abort_asked, ProgressMade: MoveMachine._on_progress,
    **dict.fromkeys(_TROUBLE, MoveMachine._on_trouble),
}  # fmt: skip
_AGAIN: dict[type, Handler] = dict.fromkeys(_TROUBLE, MoveMachine._order_again)
_NOTE: dict[type, Handler] = {ProgressMade: MoveMachine._note_progress}

TABLE: dict[Phase, dict[type, Handler]] = {
    Phase.QUEUED: {**_IDLE, **_BEFORE, Started: MoveMachine._on_started},
    Phase.CHECKING: {**_IDLE, **_BEFORE, **_AGAIN, **_NOTE, Checked: MoveMachine._on_checked},
    Phase.COPYING: {**_IDLE, **_COPY, Started: MoveMachine._on_started},
    Phase.FOLLOWING: {**_IDLE, **_COPY, Ticked: MoveMachine._review},
    Phase.READY: {**_IDLE, **_COPY, Ticked: MoveMachine._review, TurnGiven: MoveMachine._on_turn},
    Phase.HOLDING: {
        **_IDLE, **_COPY,
        Ticked: MoveMachine._on_late, Quiesced: MoveMachine._on_quiesced, QuiesceFailed: MoveMachine._on_quiesce_failed,
    },
    Phase.SYNCING: {**_IDLE, **_COPY, Ticked: MoveMachine._on_late, Synced: MoveMachine._on_synced},
    Phase.WRITING: {
        **_IDLE, **_NO_WAY_BACK,
        MapWritten: MoveMachine._on_map_written, MapNotWritten: MoveMachine._on_map_not_written,
    },
    Phase.SWITCHING: {**_IDLE, **_NO_WAY_BACK, Switched: MoveMachine._on_switched},
    Phase.DRAINING: {**_IDLE, **_NO_WAY_BACK, Started: MoveMachine._on_started, Drained: MoveMachine._on_drained},
    Phase.CLEARING: {
        **_IDLE, **_NO_WAY_BACK, **_AGAIN, **_NOTE, Started: MoveMachine._on_started, Cleared: MoveMachine._on_cleared
    },
    Phase.UNDOING: {
        **_IDLE, **_NO_WAY_BACK, **_AGAIN, **_NOTE, Started: MoveMachine._on_started, Undone: MoveMachine._on_undone
    },
    Phase.DONE: {**_IDLE, **_OVER},
    Phase.ABORTED: {**_IDLE, **_OVER},
    Phase.FAILED: {**_IDLE, **_OVER},
}  # fmt: skip
"""What each phase does with each event."""
