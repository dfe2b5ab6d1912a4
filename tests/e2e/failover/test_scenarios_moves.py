"""Faults that are made while slots move, with real servers and clients: one server becomes two, or three.

Each is made under load, and then everything is held against the history of what clients were told: see the checker
(bench/failover/history.py), and `MoveExpect` for what each fault may show. `./run faults 'move-*'` makes all of them,
in each phase, with more shards and more keys.
"""

import pytest

from bench.failover.move_catalogue import MOVES
from bench.failover.move_trial import MoveFault, run

SCALE = 0.1
KEYS = 1000

MADE = (
    "move-one-to-many", "move-kill-parent-handing-over", "move-kill-destination-handing-over",
    "move-promote-source-clearing", "move-flush-destination-handing-over",
)  # fmt: skip


@pytest.mark.timeout(180)
@pytest.mark.parametrize("fault", [each for each in MOVES if each.name in MADE], ids=lambda fault: fault.name)
def test_clients_see_no_more_of_it_than_they_may(fault: MoveFault) -> None:
    assert run(fault, SCALE, shards=1, rate=25.0, keys=KEYS).problems == []
