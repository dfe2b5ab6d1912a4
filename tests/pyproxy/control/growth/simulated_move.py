"""A move that exists as events only, and its machine: for the tests of the machine. Time passes only when a test says
so."""

from typing import Any

import msgspec

from pyproxy.control.failover.transitions import Answer, Log
from pyproxy.control.growth.machine import MoveMachine
from pyproxy.control.growth.transitions import (
    Checked,
    Drained,
    Entry,
    MapWritten,
    MoveEffect,
    MoveEvent,
    Order,
    Phase,
    ProgressMade,
    Quiesced,
    Record,
    Started,
    Switched,
    Synced,
    TurnGiven,
)
from pyproxy.moves import Move, MoveProgress, Task

MOVE = Move("m1", "s0", "s10", ((0, 99), (200, 299)))


class SimulatedMove:
    def __init__(self, entry: Entry | None = None) -> None:
        self.now = 1000.0
        self.machine = MoveMachine(entry or Entry(move=MOVE), self.now)
        self.effects: list[MoveEffect] = []  # since `forget`

    def step(self, event: MoveEvent, after_s: float = 0.001) -> list[MoveEffect]:
        self.now += after_s
        effects = self.machine.step(event, self.now)
        self.effects += effects
        return effects

    def progress(self, **fields: Any) -> list[MoveEffect]:
        """As the mover says of a copy that is through, with nothing left."""
        return self.step(ProgressMade(MoveProgress("m1", Task.COPY, 1, **{"scanned": True, **fields})))

    # --- on the way, as far as one test needs it ---

    def to(self, phase: Phase) -> None:
        """The straight way to this phase."""
        while self.phase is not phase:
            self.step(self._next())

    def _next(self) -> MoveEvent:
        attempt = self.machine.totals.attempts
        progress = MoveProgress("m1", Task.COPY, 1, scanned=True)
        following: dict[Phase, MoveEvent] = {
            Phase.QUEUED: Started(),
            Phase.CHECKING: Checked(()),
            Phase.COPYING: ProgressMade(msgspec.structs.replace(progress, behind_s=5.0)),
            Phase.FOLLOWING: ProgressMade(progress),
            Phase.READY: TurnGiven(),
            Phase.HOLDING: Quiesced(attempt),
            Phase.SYNCING: Synced(attempt),
            Phase.WRITING: MapWritten(),
            Phase.SWITCHING: Switched(),
            Phase.DRAINING: Drained(),
        }
        return following[self.phase]

    # --- what came of it ---

    def forget(self) -> None:
        self.effects = []

    def of(self, kind: type) -> list[Any]:
        """The effects of this kind."""
        return [effect for effect in self.effects if type(effect) is kind]

    @property
    def done(self) -> list[MoveEffect]:
        """All effects but what is said."""
        return [effect for effect in self.effects if not isinstance(effect, Log)]

    @property
    def phase(self) -> Phase:
        return self.machine.phase

    def is_in(self, phase: Phase) -> bool:
        """For mypy, which takes a phase that was seen for the one that is."""
        return self.machine.phase is phase

    @property
    def logged(self) -> list[str]:
        return [effect.event.value[0] for effect in self.of(Log)]

    @property
    def answers(self) -> list[Answer]:
        return self.of(Answer)

    @property
    def order(self) -> Order:
        """The last one."""
        order: Order = self.of(Order)[-1]
        return order

    @property
    def recorded(self) -> list[Phase]:
        return [record.entry.phase for record in self.of(Record)]
