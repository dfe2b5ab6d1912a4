import itertools
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyproxy.control.failover.candidates import STALE_S, descends, ranked, readable, unfit
from pyproxy.messages import NodeHealth

NOW = 100.0
SEEN = NodeHealth("n:1", True, "", at=99.5, answered_at=99.5, role="slave", run_id="m", priority=100)
FIT = msgspec.structs.replace(SEEN, replid="a", replid2="z", offset=500)


def replica(**changed: Any) -> NodeHealth:
    return msgspec.structs.replace(FIT, **changed)


def first(*healths: NodeHealth) -> str:
    return ranked(healths, "a", NOW)[0].run_id


# --- which ------------------------------------------------------------------------------------------------------------


def test_a_replica_in_step_is_fit() -> None:
    assert unfit(FIT, "a", NOW) == ""


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"reachable": False, "error": "connection refused"}, "connection refused"),
        ({"answered_at": NOW - STALE_S - 0.1}, "its last answer is 5.1 s old"),
        ({"role": "master"}, "its role is master"),
        ({"role": ""}, "its role is unknown"),
        ({"loading": True}, "it is loading its data"),
        ({"syncing": True}, "it is being sent the data"),
        ({"priority": 0}, "its replica-priority is 0"),
        ({"offset": -1}, "it has never had the data"),
        ({"replid": "b"}, "its data are of another history"),
    ],
)
def test_one_that_must_not_be_primary_says_why(changed: dict[str, Any], why: str) -> None:
    health = replica(**changed)
    assert unfit(health, "a", NOW) == why
    assert ranked([health], "a", NOW) == []


def test_a_greater_offset_of_another_history_makes_no_candidate() -> None:
    other = replica(run_id="other", replid="b", offset=1_000_000)
    assert ranked([other, FIT], "a", NOW) == [FIT]


def test_a_history_that_goes_on_from_the_one_that_is_lost_will_do() -> None:
    assert unfit(replica(replid="b", replid2="a"), "a", NOW) == ""


def test_nobody_is_fit_while_the_history_is_not_known() -> None:
    assert not descends(replica(replid="", replid2=""), "")
    assert ranked([FIT], "", NOW) == []


def test_a_replica_of_which_the_priority_is_not_known_is_fit() -> None:
    assert unfit(replica(priority=-1), "a", NOW) == ""


# --- which first ------------------------------------------------------------------------------------------------------


def test_data_come_before_preference() -> None:
    assert first(replica(run_id="preferred", priority=1), replica(run_id="complete", offset=501)) == "complete"


def test_among_equals_the_smallest_priority_comes_first() -> None:
    assert first(replica(run_id="a"), replica(run_id="preferred", priority=1)) == "preferred"


def test_else_the_smallest_run_id_so_that_all_proxies_choose_the_same() -> None:
    assert first(replica(run_id="b"), replica(run_id="a"), replica(run_id="c")) == "a"


OFFSETS_AND_PRIORITIES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=6)


@given(OFFSETS_AND_PRIORITIES, st.randoms(use_true_random=False))
def test_the_order_of_the_looks_does_not_matter(drawn: list[tuple[int, int]], shuffle: random.Random) -> None:
    healths = [replica(run_id=f"r{n}", offset=offset, priority=priority) for n, (offset, priority) in enumerate(drawn)]
    best = ranked(healths, "a", NOW)
    assert all(a.offset >= b.offset for a, b in itertools.pairwise(best))
    assert all(health.priority for health in best)
    shuffle.shuffle(healths)
    assert ranked(healths, "a", NOW) == best


# --- who may be read --------------------------------------------------------------------------------------------------


def test_a_replica_that_must_not_be_primary_may_still_be_read() -> None:
    assert readable(replica(priority=0), "a", NOW)


def test_a_replica_is_read_where_the_history_is_not_known() -> None:
    assert readable(FIT, "", NOW)


@pytest.mark.parametrize(
    "changed",
    [
        {"reachable": False},
        {"answered_at": NOW - STALE_S - 0.1},
        {"loading": True},
        {"syncing": True},
        {"offset": -1},
        {"replid": "b"},
    ],
)
def test_one_without_the_data_of_now_is_not_read(changed: dict[str, Any]) -> None:
    assert readable(FIT, "a", NOW)
    assert not readable(replica(**changed), "a", NOW)
