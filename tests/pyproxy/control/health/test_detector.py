from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from pyproxy.control.health import detector
from pyproxy.events import Event
from pyproxy.health import MOST_BACKOFF_S
from pyproxy.messages import NodeHealth

NEW = NodeHealth("n:1")
MASTER = NodeHealth("n:1", True, "", at=10.0, answered_at=10.0, role="master", run_id="a", offset=500, keys=100)
SLAVE = NodeHealth(
    "n:1", True, "", at=10.0, answered_at=10.0, role="slave", run_id="a", offset=500, keys=100, link="up"
)


def later(health: NodeHealth, **changed: Any) -> NodeHealth:
    """The same server, well, a second later, but for what is said here."""
    return msgspec.structs.replace(
        health, **{"reachable": True, "error": "", "at": 12.5, "answered_at": 12.5} | changed
    )


def down(health: NodeHealth) -> NodeHealth:
    return detector.failed(health, 11.5, 12.0, "connection refused")


def names(before: NodeHealth, now: NodeHealth, configured: str = "master") -> list[str]:
    return [event.value[0] for event, _ in detector.changes(before, now, configured)]


def fields(before: NodeHealth, now: NodeHealth, event: Event, configured: str = "master") -> Mapping[str, object]:
    return dict(detector.changes(before, now, configured))[event]


# --- what an answer means ---------------------------------------------------------------------------------------------


def test_a_master_is_read_in_the_words_of_info() -> None:
    said = {
        "role": "master",
        "run_id": "a",
        "master_replid": "x",
        "master_replid2": "y",
        "second_repl_offset": "7",
        "master_repl_offset": "3030",
        "min_slaves_good_slaves": "2",
        "loading": "0",
    }
    assert detector.answered(NEW, 5.0, said, {0: {"keys": 3}, 9: {"keys": 4}}) == NodeHealth(
        "n:1",
        reachable=True,
        error="",
        at=5.0,
        answered_at=5.0,
        role="master",
        run_id="a",
        replid="x",
        replid2="y",
        second_offset=7,
        offset=3030,
        good_replicas=2,
        keys=7,
    )


def test_a_slave_has_its_own_offset_its_link_its_priority_and_its_lag() -> None:
    said = {"role": "slave", "master_link_status": "up", "master_last_io_seconds_ago": "4", "slave_priority": "10"}
    said |= {"slave_repl_offset": "14", "master_repl_offset": "99", "master_sync_in_progress": "0"}
    health = detector.answered(NEW, 5.0, said, {})
    assert (health.link, health.lag_s, health.priority, health.offset, health.syncing) == ("up", 4, 10, 14, False)


def test_the_lag_of_a_slave_whose_link_is_down_is_how_long_it_has_been() -> None:
    said = {"role": "slave", "master_link_status": "down", "master_last_io_seconds_ago": "-1"}
    said |= {"master_link_down_since_seconds": "31", "slave_repl_offset": "3030", "master_sync_in_progress": "1"}
    health = detector.answered(NEW, 5.0, said, {})
    assert (health.link, health.lag_s, health.offset, health.syncing) == ("down", 31, 3030, True)


@pytest.mark.parametrize("field", ["loading", "async_loading"])
def test_a_server_that_loads_is_loading(field: str) -> None:
    assert detector.answered(NEW, 5.0, {field: "1"}, {}).loading


@pytest.mark.parametrize("number", ["", "x", "1e3", "9" * 30, "٣"])
def test_a_number_that_is_none_is_not_known(number: str) -> None:
    health = detector.answered(NEW, 5.0, {"role": "master", "master_repl_offset": number}, {})
    assert health.offset == -1


def test_a_server_that_does_not_answer_is_remembered_as_it_was() -> None:
    health = detector.failed(MASTER, 11.5, 12.0, "connection refused")
    error = "connection refused"
    assert health == msgspec.structs.replace(MASTER, reachable=False, error=error, at=12.0, unanswered_since=11.5)
    assert detector.refused(MASTER, 12.0, "LOADING Redis is loading the dataset in memory").loading


def test_only_a_server_that_was_seen_without_a_minimum_of_replicas_is_unfenced() -> None:
    assert MASTER.unfenced
    assert not msgspec.structs.replace(MASTER, good_replicas=0).unfenced
    assert not NEW.unfenced


def test_acknowledgements_are_read_of_replicas_that_are_online() -> None:
    said = {
        "slave0": "ip=127.0.0.1,port=7100,state=online,offset=14,lag=3",
        "slave1": "ip=::1,port=7101,state=online,offset=14,lag=0",
        "slave2": "ip=127.0.0.1,port=7102,state=wait_bgsave,offset=0,lag=0",
        "slave_priority": "100",
        "slave3": "odd",
    }
    assert detector.acknowledged(said) == {"127.0.0.1:7100": 3, "[::1]:7101": 0}


# --- what has changed -------------------------------------------------------------------------------------------------


def test_a_server_that_stays_as_it_is_is_no_news() -> None:
    assert names(MASTER, later(MASTER, offset=600, keys=101)) == []
    assert names(SLAVE, later(SLAVE, lag_s=3, link="down"), "slave") == []
    assert names(down(MASTER), down(down(MASTER))) == []


def test_the_first_check_of_a_server_that_is_well_is_no_news() -> None:
    assert names(NEW, MASTER) == []
    assert names(NEW, SLAVE, "slave") == []


def test_the_first_check_of_a_server_that_is_down_says_so() -> None:
    assert names(NEW, down(NEW)) == ["+sdown"]
    assert fields(NEW, down(NEW), Event.NODE_DOWN) == {"role": "master", "error": "connection refused"}


def test_a_server_that_went_down_is_told_with_its_cause_and_its_silence() -> None:
    assert names(MASTER, down(MASTER)) == ["+sdown"]
    assert fields(MASTER, down(MASTER), Event.NODE_DOWN) == {
        "role": "master",
        "error": "connection refused",
        "silent_s": "2.0",
    }


def test_a_server_that_is_back_is_told_with_how_long_it_was_away() -> None:
    assert names(down(MASTER), later(MASTER)) == ["-sdown"]
    assert fields(down(MASTER), later(MASTER), Event.NODE_UP) == {"role": "master", "down_s": "2.5"}


def test_another_process_at_the_address_is_told() -> None:
    assert names(MASTER, later(MASTER, run_id="b")) == ["+reboot"]
    assert names(down(MASTER), later(MASTER, run_id="b")) == ["-sdown", "+reboot"]


def test_another_role_is_told_with_the_one_before_and_the_one_configured() -> None:
    assert names(MASTER, later(SLAVE)) == ["+role-change"]
    assert names(SLAVE, later(MASTER), "slave") == ["+role-change"]
    expected = {"was": "slave", "now": "master", "configured": "slave"}
    assert fields(SLAVE, later(MASTER), Event.ROLE_CHANGE, "slave") == expected


def test_at_first_sight_a_role_that_is_not_the_configured_one_is_told() -> None:
    assert names(NEW, SLAVE) == ["+role-change"]


@pytest.mark.parametrize("kind", ["misconf", "noreplicas", "oom"])
def test_refused_writes_are_told_when_they_begin_and_when_they_end(kind: str) -> None:
    broken = later(MASTER, **{kind: "the reason"})
    assert names(MASTER, broken) == [f"+{kind}"]
    assert names(broken, broken) == []
    assert names(broken, later(MASTER)) == [f"-{kind}"]


# --- whether a primary refuses writes ---------------------------------------------------------------------------------

AT = 100.0
FENCED = {"role": "master", "min_slaves_good_slaves": "0"}
MIB = 1 << 20
FULL = {
    "role": "master",
    "maxmemory": str(100 * MIB),
    "maxmemory_policy": "noeviction",
    "used_memory": str(101 * MIB),
    "mem_not_counted_for_evict": "0",
}
KEYS = {0: {"keys": 5, "expires": 0}}


@pytest.mark.parametrize(
    ("changed", "refuses"),
    [
        ({}, True),
        ({"min_slaves_good_slaves": "1"}, False),
        ({"role": "slave"}, False),  # it refuses for another reason
        ({"min_slaves_good_slaves": "x"}, False),
    ],
)
def test_a_primary_that_needs_replicas_and_has_none_in_step_refuses_writes(
    changed: dict[str, str], refuses: bool
) -> None:
    assert bool(detector.noreplicas(FENCED | changed, None, AT)) is refuses


def test_one_that_needs_more_replicas_than_it_has_is_known_by_what_the_workers_were_refused_until_it_has_more() -> None:
    refused = detector.Refused(AT)
    two, three = FENCED | {"min_slaves_good_slaves": "2"}, FENCED | {"min_slaves_good_slaves": "3"}
    assert (
        detector.noreplicas(two, refused, AT + 0.1) == "it has 2 replicas in step, and min-replicas-to-write wants more"
    )
    assert detector.noreplicas(two, refused, AT + MOST_BACKOFF_S)
    assert not detector.noreplicas(three, refused, AT + 1)


@pytest.mark.parametrize(
    ("changed", "keyspace", "refuses"),
    [
        ({}, KEYS, True),
        ({"used_memory": str(100 * MIB)}, KEYS, False),
        ({"mem_not_counted_for_evict": str(2 * MIB)}, KEYS, False),
        ({"maxmemory": "0"}, KEYS, False),
        ({"role": "slave"}, KEYS, False),
        ({"maxmemory_policy": "volatile-lru"}, KEYS, True),
        ({"maxmemory_policy": "volatile-ttl"}, {0: {"keys": 5, "expires": 1}}, False),
        ({"maxmemory_policy": "allkeys-lfu"}, KEYS, False),
        ({"maxmemory_policy": "allkeys-lfu"}, {}, True),
    ],
)
def test_a_primary_that_is_full_and_has_nothing_to_evict_refuses_writes(
    changed: dict[str, str], keyspace: detector.Keyspace, refuses: bool
) -> None:
    assert bool(detector.out_of_memory(FULL | changed, keyspace, None, AT)) is refuses


def test_one_that_is_nearly_full_is_known_by_what_the_workers_were_refused_until_it_uses_less() -> None:
    refused = detector.Refused(AT)
    near, less = FULL | {"used_memory": str(99 * MIB)}, FULL | {"used_memory": str(97 * MIB)}
    assert not detector.out_of_memory(near, KEYS, None, AT)
    assert "it uses 103,809,024 bytes of maxmemory (104,857,600)" in detector.out_of_memory(
        near, KEYS, refused, AT + 0.1
    )
    assert detector.out_of_memory(near, KEYS, refused, AT + MOST_BACKOFF_S)
    assert not detector.out_of_memory(less, KEYS, refused, AT + 1)


def test_a_single_value_that_is_too_large_for_a_primary_with_room_says_nothing_of_it() -> None:
    assert not detector.out_of_memory(FULL | {"used_memory": str(70 * MIB)}, KEYS, detector.Refused(AT), AT)


def test_what_the_workers_were_refused_counts_until_whoever_stayed_away_must_have_come_again() -> None:
    over = AT + MOST_BACKOFF_S + detector.AGAIN_S
    assert not detector.noreplicas(FENCED | {"min_slaves_good_slaves": "1"}, detector.Refused(AT), over)
    assert not detector.out_of_memory(FULL | {"used_memory": str(99 * MIB)}, KEYS, detector.Refused(AT), over)


# --- back without its keys --------------------------------------------------------------------------------------------


def restarted(before: NodeHealth, *replicas: NodeHealth, **changed: Any) -> NodeHealth:
    now = later(before, **({"run_id": "b", "offset": 0, "keys": 0, "role": "master"} | changed))
    return msgspec.structs.replace(now, lost_keys=detector.lost_keys(before, now, replicas))


def test_a_primary_that_restarted_without_its_keys_is_an_alarm_and_no_recovery() -> None:
    empty = restarted(down(MASTER))
    assert empty.lost_keys == 100
    assert names(down(MASTER), empty) == ["+reboot", "+restarted-empty"]
    expected = {"keys": 0, "had_keys": 100, "offset": 0, "had_offset": 500}
    assert fields(down(MASTER), empty, Event.RESTARTED_EMPTY) == expected


def test_one_that_restarted_between_two_checks_is_an_alarm_too() -> None:
    assert names(MASTER, restarted(MASTER)) == ["+reboot", "+restarted-empty"]


def test_one_that_is_written_to_before_it_is_checked_is_an_alarm_by_its_offset() -> None:
    assert restarted(MASTER, keys=30, offset=40).lost_keys == 100


def test_one_that_loaded_its_keys_is_none() -> None:
    assert restarted(MASTER, keys=100).lost_keys == 0
    assert names(down(MASTER), restarted(down(MASTER), keys=100)) == ["-sdown", "+reboot"]


def test_keys_that_ran_out_while_it_was_down_are_no_loss() -> None:
    assert restarted(MASTER, keys=60).lost_keys == 0


def test_one_whose_history_goes_on_is_none() -> None:
    assert restarted(MASTER, keys=30, offset=900).lost_keys == 0


def test_one_that_never_held_anything_is_none() -> None:
    assert restarted(later(MASTER, keys=0)).lost_keys == 0


def test_what_its_replicas_hold_counts_as_its_own() -> None:
    assert restarted(later(MASTER, keys=0), SLAVE).lost_keys == 100


def test_the_same_process_that_was_flushed_is_none() -> None:
    assert restarted(MASTER, run_id="a").lost_keys == 0


def test_new_keys_do_not_end_the_alarm() -> None:
    empty = restarted(MASTER)
    grown = restarted(empty, keys=1000, offset=9000)
    assert grown.lost_keys == 100
    assert names(empty, grown) == []


def test_a_slave_in_step_ends_the_alarm_and_one_that_is_not_does_not() -> None:
    empty = restarted(MASTER)
    waiting = restarted(empty, role="slave", link="down")
    assert waiting.lost_keys == 100
    level = restarted(waiting, role="slave", link="up", keys=100)
    assert names(waiting, level) == ["-restarted-empty"]


def test_a_restart_with_the_keys_ends_the_alarm_and_one_without_does_not() -> None:
    empty = restarted(MASTER)
    assert names(empty, restarted(empty, run_id="c", keys=100)) == ["+reboot", "-restarted-empty"]
    assert names(empty, restarted(empty, run_id="c", keys=5)) == ["+reboot", "+restarted-empty"]


def test_one_that_goes_down_and_comes_back_the_same_is_still_no_recovery() -> None:
    empty = restarted(MASTER)
    assert names(down(empty), later(empty)) == ["+restarted-empty"]


# --- reading INFO -----------------------------------------------------------------------------------------------------


def test_the_keyspace_is_read_with_fields_of_today_and_tomorrow() -> None:
    found, keyspace = detector.parse_info(
        "# Server\r\nredis_version:7.0.15\r\nexecutable:/a:b\r\n\r\n# Keyspace\r\n"
        "db0:keys=3,expires=1,avg_ttl=5\r\ndb15:keys=1,expires=0,avg_ttl=0,subexpiry=2\r\n"
    )
    assert found == {"redis_version": "7.0.15", "executable": "/a:b"}
    assert keyspace == {
        0: {"keys": 3, "expires": 1, "avg_ttl": 5},
        15: {"keys": 1, "expires": 0, "avg_ttl": 0, "subexpiry": 2},
    }


def test_numbers_that_no_message_can_carry_are_not_read() -> None:
    _, keyspace = detector.parse_info(f"db0:keys={'9' * 30},expires=1\r\ndb{'9' * 30}:keys=1\r\n")
    assert keyspace == {0: {"expires": 1}}
