"""The rules of a gate, without sockets: the time is an argument."""

from dataclasses import dataclass
from typing import Any

import pytest

from pyproxy import messages
from pyproxy.config import Promotion
from pyproxy.messages import NodeHealth, ShardHealth
from pyproxy.shard_map import Node
from pyproxy.worker.shard.gate import CONFIRM_S, Gate, HoldStats

NOW = 1000.0
PRIMARY = Node("127.0.0.1", 7001)


@dataclass(eq=False)
class Waiting:
    """All that a gate knows of a client."""

    id: int


def gate(directive: messages.GateDirective | None = None, replicated: bool = True, **promotion: Any) -> Gate[Waiting]:
    options = Promotion(**{"promoter": "replicaof", "on_promotion": "hold", **promotion})
    return Gate("s1", PRIMARY, options, HoldStats(), directive or messages.GateDirective("s1", 0), replicated)


def closed(hold: bool = True, in_s: float = 0.5, since: float = NOW) -> messages.GateDirective:
    return messages.GateDirective("s1", 0, "is being promoted", hold, since, NOW + in_s)


def holds(gate: Gate[Waiting], now: float = NOW, client: int = 1, size: int = 100, start: float | None = None) -> bool:
    """Whether a write would be held; AssertionError if it may pass."""
    reason = gate.closure(now)
    assert reason is not None
    return gate.may_hold(reason, client, size, now if start is None else start, now)


def why(gate: Gate[Waiting], now: float = NOW) -> str | None:
    reason = gate.closure(now)
    return reason.why if reason else None


def answered(at: float) -> ShardHealth:
    node = NodeHealth(str(PRIMARY), True, "", at=at, answered_at=at, role="master")
    return ShardHealth("s1", str(PRIMARY), True, "", {}, {}, "", at, nodes=(node,))


# --- what closes it ---------------------------------------------------------------------------------------------------


def test_in_peace_it_is_open() -> None:
    assert why(gate()) is None


def test_the_directive_comes_before_what_is_observed_here() -> None:
    it = gate(closed())
    it.observed.stalled_at = it.observed.lost_at = NOW
    assert why(it) == "is being promoted"
    assert holds(it)


def test_a_lost_primary_closes_it_and_is_expected_back_after_detection_and_a_promotion() -> None:
    it = gate(down_after_s=3.0)
    it.observed.lost_at, it.observed.lost = NOW - 1, "connection refused"
    reason = it.closure(NOW)
    assert reason is not None
    assert (reason.why, reason.since, reason.expected_at) == ("is down: connection refused", NOW - 1, NOW + 3.0)


@pytest.mark.parametrize(("replicated", "promoter"), [(False, "replicaof"), (True, "none")])
def test_without_a_promoter_or_a_replica_nothing_observed_here_closes_it(replicated: bool, promoter: str) -> None:
    it = gate(replicated=replicated, promoter=promoter)
    it.observed.lost_at = it.observed.stalled_at = it.observed.refused_at = NOW
    assert why(it) is None
    assert not it.withholds("READONLY")


def test_while_the_server_does_not_answer_nothing_is_held_until_a_later_health_check_is_answered() -> None:
    it = gate()
    it.observed.stalled_at = NOW
    assert not holds(it)
    it.on_health(answered(NOW - 0.1))
    assert why(it, NOW + 1) == "does not answer"
    it.on_health(answered(NOW + 0.1))
    assert why(it, NOW + 1) is None


def test_a_refusal_closes_it_for_as_long_as_a_promotion_takes_unless_the_parent_knows_better() -> None:
    it = gate(messages.GateDirective("s1", 0, usual_s=2.0))
    it.on_refusal("READONLY", NOW)
    assert why(it, NOW + 1.9) == "answered -READONLY"
    assert why(it, NOW + 2.0) is None
    it.on_refusal("READONLY", NOW)
    it.on_health(answered(NOW - 0.1))
    assert why(it) == "answered -READONLY"
    it.on_health(answered(NOW + 0.1))
    assert why(it) is None
    it.on_refusal("READONLY", NOW)
    it.apply(messages.GateDirective("s1", 1), Node("127.0.0.1", 7002), True, NOW)
    assert why(it) is None


def test_while_refused_writes_are_tried_again_the_incident_is_the_same() -> None:
    it = gate(on_promotion="auto")
    it.on_refusal("NOREPLICAS", NOW)
    assert holds(it)
    it.exhaust(1)
    assert why(it, NOW + 1) is None
    it.on_refusal("NOREPLICAS", NOW + 1)
    assert not holds(it, NOW + 1), "it has waited"
    assert not holds(it, NOW + 1, client=2), "it is overdue"
    assert why(it, NOW + 4) is None
    it.on_refusal("NOREPLICAS", NOW + 5)
    assert holds(it, NOW + 5)


def test_an_incident_of_refusals_is_over_though_nobody_asks_while_all_is_well() -> None:
    it = gate(on_promotion="hold")
    it.on_refusal("READONLY", NOW)
    assert holds(it)
    it.exhaust(1)
    assert why(it, NOW + 1) is None  # and is not asked again, for a night
    it.observed.lost_at = NOW + 30_000
    assert holds(it, NOW + 30_000), "what went before is another incident"


@pytest.mark.parametrize(("mode", "expected"), [("hold", True), ("auto", False), ("reject", False)])
def test_a_gate_that_closes_by_itself_follows_the_mode(mode: str, expected: bool) -> None:
    it = gate(on_promotion=mode, down_after_s=3.0)
    it.observed.lost_at = NOW
    assert holds(it) is expected


def test_a_worker_that_slept_holds_briefly_whatever_the_mode() -> None:
    it = gate(promoter="none", on_promotion="reject")
    it.observed.slept_at = NOW
    assert holds(it)
    assert holds(it, NOW + 0.9, start=NOW)
    assert not holds(it, NOW + CONFIRM_S, start=NOW)


@pytest.mark.parametrize(
    ("code", "misconf_after_s", "expected"),
    [("READONLY", 0.0, True), ("NOREPLICAS", 0.0, True), ("MISCONF", 5.0, True), ("MISCONF", 0.0, False)],
)
def test_misconf_is_withheld_only_where_it_is_a_reason_to_promote(
    code: str, misconf_after_s: float, expected: bool
) -> None:
    assert gate(misconf_after_s=misconf_after_s).withholds(code) is expected


# --- how long ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "in_s", "expected"),
    [
        ("auto", 0.9, True),
        ("auto", 1.0, True),
        ("auto", 1.1, False),
        ("auto", -0.1, False),  # overdue
        ("hold", 60.0, True),
        ("hold", -60.0, True),
        ("reject", 60.0, True),  # the parent says so of hand-overs only
    ],
)
def test_what_is_held_in_each_mode(mode: str, in_s: float, expected: bool) -> None:
    assert holds(gate(closed(in_s=in_s), on_promotion=mode)) is expected


@pytest.mark.parametrize(("mode", "limit"), [("auto", 1.0), ("hold", 4.0)])
def test_a_request_is_held_for_so_long_and_what_is_held_already_waits_on_when_it_is_overdue(
    mode: str, limit: float
) -> None:
    it = gate(closed(in_s=0.5), on_promotion=mode)
    client = Waiting(1)
    it.hold(client, 100, NOW)
    assert list(it.expired(NOW + limit - 0.01)) == []
    assert list(it.expired(NOW + limit)) == [client]


def test_in_one_incident_nothing_is_held_for_longer_than_its_bound() -> None:
    it = gate(closed(since=NOW - 14.9))
    client = Waiting(1)
    assert holds(it)
    it.hold(client, 100, NOW)
    assert list(it.expired(NOW + 0.2)) == [client]
    assert not holds(it, NOW + 0.2)


def test_who_has_waited_is_not_held_again_before_it_has_been_open() -> None:
    it = gate(closed())
    assert holds(it)
    it.exhaust(1)
    assert not holds(it)
    assert holds(it, client=2)
    it.apply(messages.GateDirective("s1", 0), PRIMARY, True, NOW)
    assert why(it) is None
    it.apply(closed(), PRIMARY, True, NOW)
    assert holds(it)


def test_after_a_promotion_a_gate_that_closes_by_itself_holds_nothing_for_a_while() -> None:
    it = gate(hold_again_s=60.0)
    it.apply(messages.GateDirective("s1", 1), Node("127.0.0.1", 7002), True, NOW)
    it.observed.lost_at = NOW
    assert not holds(it, NOW + 59)
    it.observed.lost_at = 0.0
    assert why(it, NOW + 60) is None
    it.observed.lost_at = NOW + 60
    assert holds(it, NOW + 61)


# --- how many ---------------------------------------------------------------------------------------------------------


def test_held_clients_and_the_replay_queue_count_together() -> None:
    it = gate(closed(), hold_requests=2)
    it.hold(Waiting(1), 100, NOW)
    assert holds(it)
    it.hold_replay(100)
    assert not holds(it)
    assert it.held == messages.Held(2, 200)
    it.release_replay(100)
    assert holds(it)


@pytest.mark.parametrize("bound", ["hold_bytes", "hold_client_bytes", "hold_process_bytes"])
def test_bytes_are_bounded_when_they_come_and_when_they_grow(bound: str) -> None:
    bounds: dict[str, Any] = {bound: 1000}
    it = gate(closed(), **bounds)
    assert not holds(it, size=1001)
    client = Waiting(1)
    it.hold(client, 500, NOW)
    assert it.resize(client, 1000)
    assert not it.resize(client, 1001)
    it.release(client)
    assert it.held == messages.Held(0, 0)


def test_the_bytes_of_a_process_are_those_of_all_its_gates() -> None:
    it, other = gate(closed(), hold_process_bytes=1000), gate(closed())
    other.stats = it.stats
    other.hold(Waiting(2), 950, NOW)
    assert not holds(it, size=100)


# --- what is said -----------------------------------------------------------------------------------------------------


def test_the_line_says_why_and_about_how_much_is_left() -> None:
    it = gate(closed(in_s=10.0))
    reason = it.closure(NOW)
    assert reason is not None
    said = {it.refusal(reason, NOW) for _ in range(100)}
    assert len(said) > 10
    for line in said:
        before, _, after = line.partition(b", applied=no retry_after_ms=")
        assert before == b"-TRYAGAIN shard s1 (127.0.0.1:7001) is being promoted"
        assert 8000 <= int(after.removesuffix(b"; retry later\r\n")) <= 12_000


# --- slots are moved --------------------------------------------------------------------------------------------------


def moving(since: float = NOW) -> messages.GateDirective:
    return messages.GateDirective("s1", 0, "is handing over slots", True, since, since + 0.5, moving=True)


@pytest.mark.parametrize("mode", ["auto", "hold", "reject"])
def test_while_slots_move_writes_are_held_in_any_mode(mode: str) -> None:
    assert holds(gate(moving(), on_promotion=mode, auto_hold_s=0.1))


def test_while_slots_move_as_many_and_as_large_writes_are_held_as_come() -> None:
    """It is over in a moment, and no client is to see an error of it."""
    it = gate(moving(), hold_requests=1, hold_client_bytes=10, hold_bytes=10, hold_process_bytes=10)
    clients = [Waiting(number) for number in range(3)]
    for client in clients:
        assert holds(it, client=client.id, size=1000)
        it.hold(client, 1000, NOW)
    assert it.resize(clients[0], 5000)


def test_a_write_that_slots_keep_waiting_is_refused_after_the_longest_hold() -> None:
    it = gate(moving(), hold_s=4.0)
    assert holds(it, NOW + 3.9, start=NOW)
    assert not holds(it, NOW + 4.0, start=NOW)


def test_moves_that_are_tried_again_and_again_are_no_incident() -> None:
    it = gate(hold_incident_s=15.0)
    for second in range(60):
        it.apply(moving(NOW + second), PRIMARY, True, NOW + second)
        assert holds(it, NOW + second)
        it.exhaust(1)
        it.apply(messages.GateDirective("s1", 0), PRIMARY, True, NOW + second + 0.25)
        assert why(it, NOW + second + 0.25) is None
