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
        (
            spoiled.mark_cleared_on_the_answer,
            "move-kill-worker-following",
            1000,
            "lost, though confirmed or for no reason",
        ),
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
    problems: list[str] = []
    for seed in range(1, 4):  # whether it does harm is a matter of what meets what; in nearly every run it does
        proxy = spoiled.spoiled(fault)
        problems = run(BY_NAME[made], SCALE, seed, shards=1, rate=25.0, keys=keys, proxy=proxy).problems
        if any(seen in problem for problem in problems):
            return
    raise AssertionError(f"expected that something is {seen!r}, got {problems}")
