"""What the checker of histories promises: it says nothing of an honest history, and finds each kind of lie.

First by hand, then with real clients, the real proxy and real servers, and between them a hostile relay.
"""

import asyncio
import itertools
from collections.abc import Iterator

import pytest

from bench.failover.history import Fence, Incident, Op, Reply, State, Verdict, check, value_of
from bench.failover.load import NAMES_PER_PROXY, Load, Plan, Record
from bench.failover.servers import dump, place
from pyproxy.fleet import Fleet, Proxy
from tests.bench.hostile_relay import HostileRelay, LosesAWrite, SwapsReplies, WritesTwice
from tests.waiting import until

SHARD, PRIMARY, REPLICA = "s1", "primary", "replica"


class Story:
    """A history by hand: one operation a second, each answered half a second later."""

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self._numbers = itertools.count(1)

    def op(self, verb: str, key: str, reply: Reply = None, error: str = "", client: str = "c") -> Op:
        number = next(self._numbers)
        value = value_of(key, client, number) if verb in ("SET", "RPUSH", "ECHO") else ""
        self.ops.append(Op(client, number, SHARD, verb, key, value, number, number + 0.5, reply, error))
        return self.ops[-1]

    def set(self) -> Op:
        return self.op("SET", "k", "OK")

    def push(self, client: str = "c") -> Op:
        return self.op("RPUSH", "l", 1, client=client)

    def refused(self, verb: str, key: str) -> Op:
        return self.op(verb, key, error="TRYAGAIN shard s1 is being promoted, applied=no; retry later")

    def uncertain(self, verb: str, key: str) -> Op:
        return self.op(verb, key, error="UNCERTAIN shard s1 closed the connection, applied=unknown")

    def judge(self, held: dict[str, str | list[str]], *more: State, fences: tuple[Fence, ...] = ()) -> Verdict:
        return check(self.ops, [State(SHARD, PRIMARY, True, held), *more], fences)

    def after(self, held: dict[str, str | list[str]], incident: Incident, *fences: Fence) -> Verdict:
        return check(self.ops, [State(SHARD, PRIMARY, True, held)], fences, [incident])


@pytest.fixture
def story() -> Story:
    return Story()


def fence(node: str, at: float, replicas: int) -> Fence:
    return Fence(SHARD, node, at, at + 0.1, replicas)


# --- lists ---


def test_a_list_with_all_that_was_acknowledged_is_well(story: Story) -> None:
    one, two = story.push(), story.push()
    assert story.judge({"l": [one.value, two.value]}) == Verdict()


def test_an_acknowledged_value_that_is_missing_is_lost_for_no_reason(story: Story) -> None:
    one, two = story.push(), story.push()
    assert len(story.judge({"l": [two.value]}).lost_for_no_reason) == 1
    assert one.value in story.judge({"l": [two.value]}).lost_for_no_reason[0]


def test_a_value_that_is_there_twice_is_a_duplicate(story: Story) -> None:
    one = story.push()
    assert len(story.judge({"l": [one.value, one.value]}).duplicates) == 1


def test_values_of_one_client_must_stand_in_its_order(story: Story) -> None:
    one, two = story.push(), story.push()
    assert len(story.judge({"l": [two.value, one.value]}).disordered) == 1


def test_values_of_two_clients_may_stand_in_any_order(story: Story) -> None:
    one, two = story.push(client="a"), story.push(client="b")
    assert story.judge({"l": [two.value, one.value]}) == Verdict()


def test_a_refused_value_may_stand_nowhere_not_even_on_a_replica(story: Story) -> None:
    refused = story.refused("RPUSH", "l")
    replica = State(SHARD, REPLICA, False, {"l": [refused.value]})
    assert len(story.judge({}, replica).refused_but_applied) == 1


def test_an_uncertain_value_may_be_there_or_not_and_late(story: Story) -> None:
    maybe, sure = story.uncertain("RPUSH", "l"), story.push()
    for held in ([sure.value], [maybe.value, sure.value], [sure.value, maybe.value]):
        assert story.judge({"l": held}) == Verdict()


def test_a_value_that_nobody_wrote_is_misrouted(story: Story) -> None:
    one = story.push()
    assert len(story.judge({"l": [one.value, "other|c|9"]}).misrouted) == 1


# --- counters ---


def test_a_counter_that_counts_each_increment_once_is_well(story: Story) -> None:
    for number in (1, 2, 3):
        story.op("INCR", "n", number)
    assert story.judge({"n": "3"}) == Verdict()


def test_an_increment_too_many_is_a_duplicate(story: Story) -> None:
    story.op("INCR", "n", 1)
    story.op("INCR", "n", 3)
    assert len(story.judge({"n": "3"}).duplicates) == 1


def test_an_increment_too_many_at_the_end_is_a_duplicate(story: Story) -> None:
    story.op("INCR", "n", 1)
    assert len(story.judge({"n": "2"}).duplicates) == 1


def test_a_counter_that_went_back_has_lost(story: Story) -> None:
    for number in (1, 2, 2, 3):
        story.op("INCR", "n", number)
    assert len(story.judge({"n": "3"}).lost_for_no_reason) == 1


def test_a_counter_that_is_less_in_the_end_has_lost(story: Story) -> None:
    for number in (1, 2, 3):
        story.op("INCR", "n", number)
    assert len(story.judge({"n": "1"}).lost_for_no_reason) == 2


def test_an_uncertain_increment_may_count_once_and_late_but_not_twice(story: Story) -> None:
    story.op("INCR", "n", 1)
    story.uncertain("INCR", "n")
    story.op("INCR", "n", 2)
    for held, duplicates in (("2", 0), ("3", 0), ("4", 1)):
        assert len(story.judge({"n": held}).duplicates) == duplicates


def test_a_refused_increment_may_not_count(story: Story) -> None:
    story.op("INCR", "n", 1)
    story.refused("INCR", "n")
    story.op("INCR", "n", 3)
    assert len(story.judge({"n": "3"}).duplicates) == 1


# --- registers ---


def test_a_read_that_shows_the_newest_write_is_well(story: Story) -> None:
    one = story.set()
    story.op("GET", "k", one.value)
    two = story.set()
    story.op("GET", "k", two.value, client="other")
    assert story.judge({"k": two.value}) == Verdict()


def test_a_read_older_than_a_write_that_was_acknowledged_before_is_out_of_order(story: Story) -> None:
    one, two = story.set(), story.set()
    story.op("GET", "k", one.value, client="other")
    assert len(story.judge({"k": two.value}).disordered) == 1


def test_a_read_of_nothing_after_a_write_is_out_of_order(story: Story) -> None:
    one = story.set()
    story.op("GET", "k", None)
    assert len(story.judge({"k": one.value}).disordered) == 1


def test_a_client_sees_its_own_write_also_where_it_did_not_wait_for_the_answer(story: Story) -> None:
    one, two = story.set(), story.set()
    read = story.op("GET", "k", one.value)
    two.sent_at = read.sent_at
    two.answered_at = read.answered_at
    assert len(story.judge({"k": two.value}).disordered) == 1


def test_an_old_read_in_an_incident_is_counted_not_held_against_anybody(story: Story) -> None:
    one, two = story.set(), story.set()
    story.op("GET", "k", one.value)
    seen = story.after({"k": two.value}, Incident(SHARD, 2.9, 3.6))
    assert (seen.stale, seen.violations) == (1, [])


def test_a_read_of_a_refused_write_is_found(story: Story) -> None:
    refused = story.refused("SET", "k")
    story.op("GET", "k", refused.value)
    last = story.set()
    assert len(story.judge({"k": last.value}).refused_but_applied) == 1


def test_the_last_acknowledged_write_must_be_there_in_the_end(story: Story) -> None:
    one = story.set()
    story.set()
    assert len(story.judge({"k": one.value}).lost_for_no_reason) == 1


# --- answers ---


@pytest.mark.parametrize(
    ("verb", "key", "reply"),
    [
        ("GET", "k", "other|c|1"),
        ("GET", "k", 1),
        ("SET", "k", 1),
        ("INCR", "k", "OK"),
        ("RPUSH", "k", None),
        ("ECHO", "", "another echo"),
        ("MGET", "a b", ["a|c|1"]),
        ("MGET", "a b", ["b|c|1", "a|c|1"]),
    ],
)
def test_an_answer_to_something_else_is_misrouted(story: Story, verb: str, key: str, reply: Reply) -> None:
    story.op(verb, key, reply)
    assert story.judge({}).misrouted


def test_answers_that_fit_are_not(story: Story) -> None:
    story.op("GET", "k", None)
    story.op("MGET", "a b", ["a|c|1", None])
    echo = story.op("ECHO", "")
    echo.reply = echo.value
    assert story.judge({}) == Verdict()


def test_a_key_on_the_wrong_shard_is_misrouted(story: Story) -> None:
    one = story.set()
    elsewhere = State("s2", "other", True, {"k": one.value})
    assert len(story.judge({"k": one.value}, elsewhere).misrouted) == 1


# --- what was confirmed ---


INCIDENT = Incident(SHARD, 2.0, 5.0)


def test_in_an_incident_an_unconfirmed_write_may_be_lost(story: Story) -> None:
    story.push()
    seen = story.after({}, INCIDENT)
    assert (len(seen.lost), seen.confirmed, seen.violations) == (1, 0, [])


def test_a_confirmed_one_may_not(story: Story) -> None:
    story.push()
    seen = story.after({}, INCIDENT, fence(PRIMARY, 1.6, 1), fence(REPLICA, 0.5, -1), fence(REPLICA, 1.6, -1))
    assert (len(seen.lost), seen.confirmed, len(seen.lost_for_no_reason)) == (0, 1, 1)


def test_a_planned_promotion_may_lose_nothing(story: Story) -> None:
    story.push()
    assert len(story.after({}, Incident(SHARD, 0.0, 5.0, may_lose=False)).lost_for_no_reason) == 1


def test_a_write_after_the_incident_may_not_be_lost(story: Story) -> None:
    story.push()
    assert len(story.after({}, Incident(SHARD, 0.0, 1.2)).lost_for_no_reason) == 1


@pytest.mark.parametrize(
    ("fences", "confirmed"),
    [
        ([], 0),
        ([fence(PRIMARY, 0.5, 1)], 0),  # nothing after it
        ([fence(PRIMARY, 1.2, 1)], 0),  # asked before it was acknowledged
        ([fence(PRIMARY, 1.6, 1)], 1),
        ([fence(PRIMARY, 1.6, 0), fence(PRIMARY, 2.6, 2)], 1),  # a replica had it in the end
        ([fence(PRIMARY, 1.6, -1), fence(PRIMARY, 2.6, 1)], 0),  # it was no primary in between
        # either may have executed it
        ([fence(PRIMARY, 1.6, 1), fence(REPLICA, 0.5, 0), fence(REPLICA, 1.6, -1)], 0),
        ([fence(PRIMARY, 1.6, 1), fence(REPLICA, 0.5, 1), fence(REPLICA, 1.6, 1)], 1),
        # it was a replica when it was asked before and afterwards
        ([fence(PRIMARY, 1.6, 1), fence(REPLICA, 0.5, -1), fence(REPLICA, 1.6, -1)], 1),
    ],
)
def test_a_write_is_confirmed_by_whoever_may_have_executed_it(
    story: Story, fences: list[Fence], confirmed: int
) -> None:
    one = story.push()
    assert story.after({"l": [one.value]}, INCIDENT, *fences).confirmed == confirmed


# --- with real clients and servers ---


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet(shards=3, replicas=0) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def proxy(fleet: Fleet) -> Iterator[Proxy]:
    with Proxy(fleet) as proxy:
        yield proxy


async def history(fleet: Fleet, proxy: Proxy, relay: HostileRelay) -> Verdict:
    """Of clients behind this relay, until it has lied, or 500 operations are done if it does not."""
    for server in fleet.servers:
        server.ask("FLUSHALL")
    names = place(proxy.port, fleet, NAMES_PER_PROXY)
    async with relay:
        load = Load(Plan([relay.port], names, {}, "", rate=100, batches=20, echo=True, patience_s=20, seed=1))
        running = asyncio.create_task(load.run())
        lies = type(relay) is not HostileRelay
        await until(
            "the load to be done",
            lambda: len(load.record.ops) > 500 and (relay.told or not lies),
            lambda: f"{len(load.record.ops)} operations; {running}",
        )
        load.end()
        await running
    return judged(fleet, load.record)


def judged(fleet: Fleet, record: Record) -> Verdict:
    states = [State(s.name, s.primary.address, True, dump(s.primary.port)) for s in fleet.shards]
    return check(record.ops, states)


async def test_an_honest_history_is_well(fleet: Fleet, proxy: Proxy) -> None:
    assert await history(fleet, proxy, HostileRelay(proxy.port)) == Verdict()


async def test_one_lost_value_of_a_list_is_found(fleet: Fleet, proxy: Proxy) -> None:
    seen = await history(fleet, proxy, LosesAWrite(proxy.port, b"RPUSH", b"", b":1\r\n"))
    assert seen == Verdict(lost_for_no_reason=seen.lost_for_no_reason)
    assert len(seen.lost_for_no_reason) == 1


async def test_one_lost_value_of_a_register_is_found_by_the_next_read(fleet: Fleet, proxy: Proxy) -> None:
    seen = await history(fleet, proxy, LosesAWrite(proxy.port, b"SET", b"-writer|", b"+OK\r\n"))
    assert seen.disordered
    assert seen == Verdict(disordered=seen.disordered)


@pytest.mark.parametrize("command", [b"RPUSH", b"INCR"])
async def test_one_write_sent_twice_is_found(fleet: Fleet, proxy: Proxy, command: bytes) -> None:
    seen = await history(fleet, proxy, WritesTwice(proxy.port, command))
    assert len(seen.duplicates) == 1
    assert not seen.lost_for_no_reason


@pytest.mark.parametrize("kind", [b"$", b":"], ids=["values", "numbers"])
async def test_two_swapped_replies_are_found(fleet: Fleet, proxy: Proxy, kind: bytes) -> None:
    seen = await history(fleet, proxy, SwapsReplies(proxy.port, kind))
    assert seen.misrouted if kind == b"$" else seen.violations
