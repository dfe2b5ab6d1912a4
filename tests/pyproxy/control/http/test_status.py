"""Every path in every state, without a server: what is said follows from the state alone."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from pyproxy.control.http.status import ANSWERS, Phase, State, table
from pyproxy.messages import FillRate, ShardHealth
from pyproxy.moves import MoveState
from pyproxy.shard_map import Node, Shard

NOW = 500.0
WALL = 1_796_083_200.0  # 2026-12-01T00:00:00Z

INFO = {
    "role": "master",
    "connected_slaves": "1",
    "used_memory": "700",
    "maxmemory": "1000",
    "evicted_keys": "3",
    "instantaneous_ops_per_sec": "42",
}


def shard(index: int) -> Shard:
    first = index * 8192
    primary, replica = Node("127.0.0.1", 7000 + index), Node("127.0.0.1", 7100 + index)
    return Shard(f"s{index}", primary, (replica,), ((first, first + 8191),))


def health(index: int, **changes: Any) -> ShardHealth:
    """Of a shard that is up, but for these fields."""
    fields: dict[str, Any] = {
        "name": f"s{index}",
        "node": f"127.0.0.1:{7000 + index}",
        "reachable": True,
        "error": "",
        "info": INFO,
        "keyspace": {0: {"keys": 5}, 3: {"keys": 2}},
        "misplaced": "",
        "at": NOW - 0.5,
        "since": NOW - 100,
    }
    return ShardHealth(**(fields | changes))


UP = (health(0), health(1))
DOWN = health(1, reachable=False, error="connection refused", since=NOW - 6.5)
MISPLACED = health(1, misplaced="shard s1 holds a key of slot 1", since=NOW - 2)
ALL_DOWN = (health(0, reachable=False, error="no reply within 1 s", since=NOW - 3), DOWN)
ONE_DOWN, ONE_MISPLACED = (health(0), DOWN), (health(0), MISPLACED)


def state(healths: tuple[ShardHealth, ...], phase: Phase = Phase.SERVING) -> State:
    return State(phase, (shard(0), shard(1)), healths, NOW, WALL)


STATES = {
    "starting": state(UP, Phase.STARTING),
    "starting, none looked at": state(ALL_DOWN, Phase.STARTING),
    "all up": state(UP),
    "one down": state(ONE_DOWN),
    "one misplaced": state(ONE_MISPLACED),
    "all down": state(ALL_DOWN),
    "draining": state(UP, Phase.DRAINING),
    "draining, one down": state(ONE_DOWN, Phase.DRAINING),
}

EXPECTED = {
    # state: (status of /readyz, seconds that /__heartbeat__ and /shards say with 503; 0: they say 200)
    "starting": (503, 0),
    "starting, none looked at": (503, 7),
    "all up": (200, 0),
    "one down": (200, 7),
    "one misplaced": (200, 2),
    "all down": (503, 7),
    "draining": (503, 0),
    "draining, one down": (503, 7),
}


@pytest.mark.parametrize("name", STATES)
def test_it_is_ready_only_while_it_serves_and_a_shard_can_be_used(name: str) -> None:
    assert ANSWERS["/readyz"](STATES[name]).status == EXPECTED[name][0]


@pytest.mark.parametrize("path", ["/__heartbeat__", "/shards"])
@pytest.mark.parametrize("name", STATES)
def test_a_shard_that_cannot_be_written_to_is_503_with_the_seconds_to_stay_away(name: str, path: str) -> None:
    answer, seconds = ANSWERS[path](STATES[name]), EXPECTED[name][1]
    if seconds:
        assert (answer.status, answer.headers) == (503, {"Retry-After": str(seconds), "Backoff": str(seconds)})
    else:
        assert (answer.status, answer.headers) == (200, {})


@pytest.mark.parametrize("path", ["/livez", "/__lbheartbeat__"])
@pytest.mark.parametrize("name", STATES)
def test_the_process_lives_whatever_the_shards_do(name: str, path: str) -> None:
    answer = ANSWERS[path](STATES[name])
    assert (answer.status, answer.headers) == (200, {})


@pytest.mark.parametrize(
    ("name", "said"),
    [("starting", "starting"), ("all up", "ok"), ("all down", "no shard can be used"), ("draining", "draining")],
)
def test_readiness_says_why(name: str, said: str) -> None:
    assert ANSWERS["/readyz"](STATES[name]).body == {"status": said}


def test_the_heartbeat_has_a_check_for_each_shard_and_details_of_the_bad_one() -> None:
    assert ANSWERS["/__heartbeat__"](STATES["one down"]).body == {
        "status": "error",
        "checks": {"s0": "ok", "s1": "error"},
        "details": {"s1": {"status": "error", "level": 40, "messages": {"down": "connection refused"}}},
    }
    assert ANSWERS["/__heartbeat__"](STATES["all up"]).body == {
        "status": "ok",
        "checks": {"s0": "ok", "s1": "ok"},
        "details": {},
    }


def test_shards_are_told_with_all_that_is_known_of_them() -> None:
    body = ANSWERS["/shards"](STATES["one down"]).body
    assert (body["status"], body["proxy_backoff_seconds"], body["moves"]) == ("error", 7, [])
    up, down = body["shards"]
    assert up == {
        "name": "s0",
        "node": "127.0.0.1:7000",
        "replicas": ["127.0.0.1:7100"],
        "slots": ["0-8191"],
        "state": "up",
        "error": "",
        "backoff_s": 0,
        "look_age_s": 0.5,
        "epoch": 0,
        "phase": "",
        "held": 0,
        "role": "master",
        "connected_replicas": 1,
        "keys": 7,
        "used_memory": 700,
        "maxmemory": 1000,
        "memory_limit": 1000,
        "memory_limit_of": "maxmemory",
        "memory_share": 0.7,
        "fill_bytes_per_day": None,
        "full_on": "",
        "evicted_keys": 3,
        "ops_per_sec": 42,
        "nodes": [],
        "unfenced": [],
        "alarms": [],
    }
    assert (down["state"], down["error"], down["backoff_s"]) == ("down", "connection refused", 7)
    assert down["alarms"] == ["down: connection refused"]


def test_a_closed_gate_is_told_with_its_phase_and_the_seconds_until_it_is_expected_to_open() -> None:
    shut = "is being promoted: refused"
    promoting = health(0, closed=shut, phase="waiting", since=NOW - 9, expected_at=NOW + 4, epoch=3, held=12)
    answer = ANSWERS["/shards"](state((promoting, health(1))))
    assert (answer.status, answer.headers["Retry-After"], answer.headers["Backoff"]) == (503, "4", "4")
    said = answer.body["shards"][0]
    assert (said["state"], said["epoch"], said["held"]) == ("waiting", 3, 12)
    assert said["alarms"] == ["waiting: it is being promoted: refused"]


def test_what_the_machine_of_a_shard_must_be_known_of_is_an_alarm() -> None:
    alarmed = health(0, alarms=("no replica has its keys",))
    assert ANSWERS["/shards"](state((alarmed, health(1)))).body["shards"][0]["alarms"] == ["no replica has its keys"]


MOVE = MoveState("m1", "s0", "s1", "copying", 0.421, True, 12.5)


def test_moves_that_are_under_way_are_told_with_the_shards() -> None:
    assert ANSWERS["/shards"](replace(STATES["all up"], moves=[MOVE])).body["moves"] == [
        {
            "id": "m1",
            "source": "s0",
            "destination": "s1",
            "phase": "copying",
            "share": 0.421,
            "paused": True,
            "longest_hold_ms": 12.5,
        }
    ]


def test_a_misplaced_shard_says_whose_keys_it_holds() -> None:
    said = ANSWERS["/shards"](STATES["one misplaced"]).body["shards"][1]
    assert (said["state"], said["error"]) == ("misplaced", "shard s1 holds a key of slot 1")


@pytest.mark.parametrize(
    ("used", "limit", "alarms"),
    [
        ("801", "1000", ["memory: 801 bytes are 80% of maxmemory (1,000)"]),
        ("800", "1000", []),
        ("1500", "1000", ["memory: 1,500 bytes are 150% of maxmemory (1,000)"]),
        ("1500", "0", []),  # no limit
    ],
)
def test_there_is_an_alarm_above_four_fifths_of_maxmemory(used: str, limit: str, alarms: list[str]) -> None:
    full = health(0, info=INFO | {"used_memory": used, "maxmemory": limit})
    assert ANSWERS["/shards"](state((full, health(1)))).body["shards"][0]["alarms"] == alarms


def test_it_is_told_how_fast_a_shard_fills_and_on_which_day_it_is_full() -> None:
    filling = health(0, fill_rate=FillRate(10, 86_400.0))
    said = ANSWERS["/shards"](state((filling, health(1)))).body["shards"][0]
    assert (said["fill_bytes_per_day"], said["full_on"], said["alarms"]) == (10, "2026-12-31", [])


def test_it_is_an_alarm_that_a_shard_is_full_within_two_weeks() -> None:
    filling = health(0, fill_rate=FillRate(30, 86_400.0))
    said = ANSWERS["/shards"](state((filling, health(1)))).body["shards"][0]
    assert said["alarms"] == ["memory: full on 2026-12-11, in 10 days, at the rate of the last 24 h (30 bytes a day)"]


def test_without_maxmemory_it_is_told_how_much_of_the_machine_is_used() -> None:
    unlimited = health(0, info=INFO | {"maxmemory": "0", "total_system_memory": "7000"})
    said = ANSWERS["/shards"](state((unlimited, health(1)))).body["shards"][0]
    assert (said["memory_limit"], said["memory_limit_of"], said["memory_share"]) == (7000, "total_system_memory", 0.1)


@pytest.mark.parametrize("path", ANSWERS)
@pytest.mark.parametrize("odd", ["\udcff", "x" * 1000, "-1", "1e3", "9" * 40])
def test_whatever_a_server_said_is_told_as_json(path: str, odd: str) -> None:
    seen = state((health(0, info=dict.fromkeys(INFO, odd), error=odd), health(1, info={}, keyspace={})))
    assert json.loads(json.dumps(ANSWERS[path](seen).body))


# --- for a terminal ---------------------------------------------------------------------------------------------------


def test_the_table_has_a_row_for_each_shard_and_the_alarms_below() -> None:
    full = health(0, info=INFO | {"used_memory": str(900 << 20), "maxmemory": str(1000 << 20)})
    lines = table(ANSWERS["/shards"](state((full, DOWN))).body)
    assert [re.sub(" +", " ", line) for line in lines[:3]] == [
        "SHARD NODE STATE ROLE EPOCH REPLICAS LAG S HELD KEYS MEMORY OF MAX A DAY FULL ON EVICTED OPS/S AGE S",
        "s0 127.0.0.1:7000 up master 0 1/1 - 0 7 900.0M 90% - - 3 42 0.5",
        "s1 127.0.0.1:7001 down master 0 1/1 - 0 7 0.0M 70% - - 3 42 0.5",
    ]
    assert len({line.rindex(" ") for line in lines[1:3]}) == 1, "columns are in line"
    assert lines[3:] == [
        "ALARM s0: memory: 943,718,400 bytes are 90% of maxmemory (1,048,576,000)",
        "ALARM s1: down: connection refused",
    ]


def test_the_table_of_shards_of_which_nothing_was_seen_has_its_columns() -> None:
    lines = table(ANSWERS["/shards"](state((health(0, info={}, keyspace={}), health(1, info={}, keyspace={})))).body)
    assert lines[1].split() == [
        *(
            "s0",
            "127.0.0.1:7000",
            "up",
            "-",
            "0",
            "0/1",
            "-",
            "0",
            "0",
            "0.0M",
            "no",
            "limit",
            "-",
            "-",
            "0",
            "0",
            "0.5",
        )
    ]


def test_the_table_says_how_fast_each_shard_fills_and_on_which_day_it_is_full() -> None:
    info = INFO | {"used_memory": str(600 << 20), "maxmemory": str(1000 << 20)}
    filling = health(0, info=info, fill_rate=FillRate((25 << 20) // 2, 86_400.0))
    shrinking = health(1, info=info, fill_rate=FillRate(-(3 << 20), 86_400.0))
    rows = [line.split() for line in table(ANSWERS["/shards"](state((filling, shrinking))).body)[1:]]
    assert [row[9:13] for row in rows] == [["600.0M", "60%", "+12.5M", "2027-01-02"], ["600.0M", "60%", "-3.0M", "-"]]


def test_the_table_says_where_a_share_is_of_the_machine() -> None:
    info = INFO | {"used_memory": "300", "maxmemory": "0", "total_system_memory": "1000"}
    row = table(ANSWERS["/shards"](state((health(0, info=info), health(1)))).body)[1]
    assert "30% of machine" in row


def test_the_table_has_a_line_for_each_move_before_the_alarms() -> None:
    quiet = MoveState("m2", "s0", "s1", "checking", 0.0, False, 0.0)
    lines = table(ANSWERS["/shards"](replace(state(ONE_DOWN), moves=[MOVE, quiet])).body)
    assert lines[3:5] == [
        "MOVE m1: s0 -> s1, copying (42%), paused; longest hold 12.5 ms",
        "MOVE m2: s0 -> s1, checking (0%)",
    ]
    assert lines[5].startswith("ALARM s1: ")
