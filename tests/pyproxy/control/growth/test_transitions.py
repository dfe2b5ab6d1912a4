"""What a message of the mover means for a move."""

import pytest

from pyproxy.control.growth.transitions import Checked, Cleared, MoveEvent, ProgressMade, Synced, Undone, noticed
from pyproxy.moves import MoveProgress, Task


@pytest.mark.parametrize(
    ("progress", "outcome"),
    [
        (MoveProgress("m", Task.CHECK, 1), []),
        (MoveProgress("m", Task.CHECK, 1, checked=True), [Checked(())]),
        (MoveProgress("m", Task.CHECK, 1, checked=True, refused=["it is full"]), [Checked(("it is full",))]),
        (MoveProgress("m", Task.COPY, 1, scanned=True), []),
        (MoveProgress("m", Task.COPY, 1, scanned=True, synced=7), [Synced(7)]),
        (MoveProgress("m", Task.CLEAR, 1), []),
        (MoveProgress("m", Task.CLEAR, 1, done=True), [Cleared()]),
        (MoveProgress("m", Task.UNDO, 1), []),
        (MoveProgress("m", Task.UNDO, 1, done=True), [Undone()]),
    ],
)
def test_progress_comes_first_and_then_what_it_is_the_end_of(progress: MoveProgress, outcome: list[MoveEvent]) -> None:
    assert noticed(progress) == [ProgressMade(progress), *outcome]
