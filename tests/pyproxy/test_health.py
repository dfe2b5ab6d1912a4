import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from pyproxy.health import (
    LEAST_BACKOFF_S,
    LEAST_RETRY_S,
    MOST_BACKOFF_S,
    backoff_s,
    integer,
    key_count,
    problem,
    remaining_s,
    state,
    usable,
    writable,
)
from pyproxy.messages import NodeHealth, ShardHealth

NOW = 1000.0
MASTER = NodeHealth("127.0.0.1:7001", True, "", answered_at=NOW, role="master")


def seen(since: float = 0.0, *, reachable: bool = True, misplaced: str = "") -> ShardHealth:
    return ShardHealth("s0", "127.0.0.1:7001", reachable, "", {}, {}, misplaced, NOW, since)


@pytest.mark.parametrize(
    ("health", "said"),
    [
        (seen(), "up"),
        (seen(reachable=False), "down"),
        (seen(misplaced="holds keys of s1"), "misplaced"),
        (seen(reachable=False, misplaced="holds keys of s1"), "down"),
    ],
)
def test_a_shard_is_writable_only_where_it_is_up(health: ShardHealth, said: str) -> None:
    assert (state(health), writable(health)) == (said, said == "up")


@pytest.mark.parametrize(
    ("primary", "said", "takes_writes", "why"),
    [
        (MASTER, "up", True, ""),
        (replace(MASTER, role="slave"), "demoted", False, "its role is slave, and it refuses writes"),
        (replace(MASTER, misconf="MISCONF Errors writing"), "misconf", False, "MISCONF Errors writing"),
        (replace(MASTER, noreplicas="it has 0 replicas"), "noreplicas", False, "it has 0 replicas"),
        (replace(MASTER, oom="it uses 9 bytes of 8"), "oom", False, "it uses 9 bytes of 8"),
        (replace(MASTER, lost_keys=1000), "restarted-empty", True, "it restarted without its 1,000 keys"),
    ],
)
def test_a_primary_that_answers_may_still_be_none(primary: NodeHealth, said: str, takes_writes: bool, why: str) -> None:
    health = replace(seen(), nodes=(primary,))
    assert (state(health), writable(health), problem(health)) == (said, takes_writes, why)
    assert usable(health)


@pytest.mark.parametrize(
    ("primary", "why"),
    [
        (
            replace(MASTER, reachable=False, error="no reply within 1 s", silent=True, at=NOW, busy_until=NOW + 20),
            "it is at work on a slow command, and answers nobody",
        ),
        (replace(MASTER, reachable=False, error="BUSY Redis is busy"), "BUSY Redis is busy"),
    ],
)
def test_a_primary_that_is_busy_is_not_down_and_takes_no_writes(primary: NodeHealth, why: str) -> None:
    health = replace(seen(reachable=False), error=primary.error, nodes=(primary,))
    assert (state(health), writable(health), usable(health), problem(health)) == ("busy", False, True, why)


def test_a_shard_that_is_down_or_misplaced_serves_nothing() -> None:
    assert not usable(seen(reachable=False))
    assert not usable(seen(misplaced="holds keys of s1"))


def test_nobody_is_told_to_stay_away_while_all_shards_are_writable() -> None:
    assert backoff_s([seen(), seen(NOW - 1)], NOW) == 0
    assert backoff_s([], NOW) == 0


@pytest.mark.parametrize(
    ("lasted_s", "seconds"), [(0.0, 1), (0.4, 1), (1.0, 1), (1.1, 2), (12.5, 13), (30.0, 30), (86400.0, 30)]
)
def test_an_outage_is_expected_to_last_as_long_again_within_bounds(lasted_s: float, seconds: int) -> None:
    assert backoff_s([seen(NOW - lasted_s, reachable=False)], NOW) == seconds


def test_the_longest_outage_counts_and_how_long_another_shard_is_up_does_not() -> None:
    healths = [seen(NOW - 5, reachable=False), seen(NOW - 3, misplaced="holds keys of s0"), seen(NOW - 20)]
    assert backoff_s(healths, NOW) == 5


@given(st.floats(-10, 1e6), st.floats(0, 1e6))
def test_the_longer_it_lasts_the_longer_the_back_off(lasted_s: float, more_s: float) -> None:
    health = [seen(NOW, reachable=False)]
    sooner, later = backoff_s(health, NOW + lasted_s), backoff_s(health, NOW + lasted_s + more_s)
    assert LEAST_BACKOFF_S <= sooner <= later <= MOST_BACKOFF_S


def test_keys_are_those_of_all_databases() -> None:
    keyspace = {0: {"keys": 3, "expires": 1}, 9: {"keys": 4}, 10: {}}
    assert key_count(ShardHealth("s0", "n:1", True, "", {}, keyspace, "")) == 7


@pytest.mark.parametrize(
    ("text", "said"),
    [("7", 7), ("-7", -7), (None, 0), ("", 0), ("1e3", 0), ("x", 0), ("9" * 19, 0), ("9" * 18, int("9" * 18))],
)
def test_a_number_that_no_server_could_mean_is_zero(text: str | None, said: int) -> None:
    assert integer(text) == said


@pytest.mark.parametrize(
    ("since", "expected_at", "left"),
    [
        (NOW - 1, NOW + 4, 4.0),
        (NOW - 5, NOW - 1, 5.0),  # overdue: as long again
        (NOW - 1, NOW + 0.01, LEAST_RETRY_S),
        (NOW - 500, NOW - 400, MOST_BACKOFF_S),
        (NOW, NOW + 500, MOST_BACKOFF_S),
    ],
)
def test_what_is_left_of_an_incident(since: float, expected_at: float, left: float) -> None:
    assert remaining_s(since, expected_at, NOW) == left
