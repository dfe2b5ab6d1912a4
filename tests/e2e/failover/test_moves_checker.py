"""Does the checker see what goes wrong in a move? The proxy has one fault of its own, and the run must be red."""

from collections.abc import Callable

import pytest

from bench.failover.move_catalogue import MOVES
from bench.failover.move_trial import run
from tests.e2e.failover import spoiled
from tests.e2e.failover.test_scenarios_moves import SCALE

BY_NAME = {each.name: each for each in MOVES}


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("fault", "made", "keys", "seen"),
    [
        (spoiled.mark_cleared_on_the_answer, "move-growth", 1000, "lost, though confirmed or for no reason"),
        (spoiled.push_dropped, "move-touch", 5000, "keys of the ballast are not as they were written"),
        (spoiled.last_worker_not_waited_for, "move-one-to-many", 1000, "lost, though confirmed or for no reason"),
        (
            spoiled.map_written_after_the_switch,
            "move-kill-parent-switched",
            1000,
            "lost, though confirmed or for no reason",
        ),
    ],
)
def test_a_proxy_with_this_fault_is_found_out(fault: Callable[[], None], made: str, keys: int, seen: str) -> None:
    problems = run(BY_NAME[made], SCALE, shards=1, rate=25.0, keys=keys, proxy=spoiled.spoiled(fault)).problems
    assert any(seen in problem for problem in problems), problems
