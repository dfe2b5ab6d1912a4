"""The page of the faults that are made while slots move."""

import msgspec
import pytest

from bench.failover.growth_report import growth
from bench.failover.move_catalogue import MOVES
from bench.failover.move_trial import MoveResult

BY_NAME = {each.name: each for each in MOVES}

WELL = MoveResult(
    fault="move-growth", seed=1, shards=3, added=3, hit=[], length=4.0, keys=100, bytes=1000, restarts=0, attempts=3,
    moves=3, longest_hold=0.05, acknowledged=500, confirmed=400, lost=0, lost_for_no_reason=0, duplicates=0,
    misrouted=0, disordered=0, refused_but_applied=0, errors={}, disconnects=0, p99_before=0.002, p99=0.003,
    longest=0.1, problems=[],
)  # fmt: skip


def page(*results: MoveResult, failed: dict[str, list[str]] | None = None) -> str:
    faults = [BY_NAME[each.fault] for each in results] + [BY_NAME[name] for name in failed or {}]
    return growth(faults, {each.fault: [each] for each in results}, failed or {}, ["commit: abc"])


@pytest.mark.parametrize(
    ("goal", "ill"),
    [
        ("| confirmed writes", {"lost_for_no_reason": 1}),
        ("| writes applied twice", {"duplicates": 1}),
        ("| replies misrouted", {"misrouted": 1}),
        ("| out of order", {"disordered": 1}),
        ("| refused, but applied", {"refused_but_applied": 1}),
        ("| errors, lost connections", {"errors": {"TRYAGAIN": 1}}),
        ("| errors, lost connections", {"disconnects": 1}),
        ("| all moves come to their end", {"problems": ["expected the move m1 to be done, got copying: because"]}),
    ],
)
def test_a_goal_is_reached_or_missed(goal: str, ill: dict[str, object]) -> None:
    def line(result: MoveResult) -> str:
        return next(line for line in page(result).splitlines() if line.startswith(goal))

    assert line(WELL).endswith("| reached |")
    assert line(msgspec.structs.replace(WELL, **ill)).endswith("| **missed** |")


def test_errors_count_for_no_goal_where_a_server_dies() -> None:
    assert "**missed**" not in page(msgspec.structs.replace(WELL, fault="move-kill-source-copying", errors={"": 5}))


def test_a_run_that_ended_early_is_told() -> None:
    assert "- move-growth, 1 times: FleetError: waited" in page(
        WELL, failed={"move-growth": ["FleetError: waited\nlog"]}
    )
