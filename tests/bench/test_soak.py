"""What a soak promises: it is silent where all is well, and names each kind of wrong. By hand, then all of it."""

import asyncio
from random import Random

import pytest

from bench.soak.ledger import Ledger, State, Switch, Verdict, Write
from bench.soak.operations import Operations
from bench.soak.trial import run
from bench.soak.wire import Request, Tally, Wire

SHARD = 0
SWITCH = Switch(SHARD, 0.0, 100.0)


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(lambda key: SHARD)


def written(ledger: Ledger, kind: str, state: State = State.ACKED, key: bytes = b"k", size: int = 0) -> Write:
    """One more write of a key of that kind, answered a second later than the one before."""
    made = ledger.write(getattr(ledger, kind), key, size)
    made.state, made.at = state, float(made.number)
    return made


def wrong(ledger: Ledger, *switches: Switch) -> list[str]:
    return ledger.judge(switches, []).violations()


def verdict(ledger: Ledger, held: dict[bytes, object], *switches: Switch) -> Verdict:
    ledger.close(held, 50.0)
    return ledger.judge(switches, [])


# --- reads ------------------------------------------------------------------------------------------------------------


def test_a_read_of_the_last_write_or_of_one_of_unknown_fate_is_right(ledger: Ledger) -> None:
    first, last = written(ledger, "registers"), written(ledger, "registers", State.UNKNOWN, size=5000)
    assert ledger.read(b"k", first.value, 9.0, 2) is None
    assert wrong(ledger) == []
    other = Ledger(lambda key: SHARD)
    first, last = written(other, "registers"), written(other, "registers", State.UNKNOWN, size=5000)
    assert other.read(b"k", last.value, 9.0, 2) is None
    assert wrong(other) == []


@pytest.mark.parametrize("value", [b"other|1|", b"k|2|", b"k|1|x", 1, [b"k|1|"]])
def test_a_value_that_was_never_written_is_named(ledger: Ledger, value: object) -> None:
    written(ledger, "registers")
    assert ledger.read(b"k", value, 9.0, 1) is not None


def test_a_read_of_the_past_is_stale(ledger: Ledger) -> None:
    first, _ = written(ledger, "registers"), written(ledger, "registers")
    assert ledger.read(b"k", first.value, 9.0, 2) is None
    assert len(ledger.judge([], []).stale) == 1


def test_a_read_of_the_past_during_a_fault_of_the_shard_is_only_counted(ledger: Ledger) -> None:
    first, _ = written(ledger, "registers"), written(ledger, "registers")
    ledger.read(b"k", first.value, 9.0, 2)
    told = ledger.judge([], [(SHARD, 8.0, 10.0)])
    assert (told.stale, told.stale_by_fault) == ([], 1)


def test_nil_after_a_write_is_stale_and_after_a_deletion_right(ledger: Ledger) -> None:
    written(ledger, "registers")
    assert ledger.read(b"k", None, 9.0, 1) is None
    assert len(ledger.judge([], []).stale) == 1
    written(ledger, "registers", key=b"d")
    written(ledger, "registers", key=b"d", size=-1)
    ledger.read(b"d", None, 9.0, 2)
    assert len(ledger.doubts) == 1


def test_a_write_that_was_not_there_and_then_is_contradicts(ledger: Ledger) -> None:
    first, last = written(ledger, "registers"), written(ledger, "registers", State.UNKNOWN)
    ledger.read(b"k", first.value, 9.0, 2)
    ledger.read(b"k", last.value, 10.0, 2)
    assert len(ledger.judge([], []).contradicted) == 1


def test_a_refused_write_that_is_read_is_named(ledger: Ledger) -> None:
    refused = written(ledger, "registers", State.REFUSED)
    ledger.read(b"k", refused.value, 9.0, 1)
    assert len(ledger.judge([], []).refused_but_applied) == 1


def test_a_counter_that_does_not_grow_is_stale(ledger: Ledger) -> None:
    for said in (1, 1):
        written(ledger, "counts")
        assert ledger.counted(b"k", said, 9.0) is None
    assert len(ledger.judge([], []).stale) == 1


# --- what the servers hold --------------------------------------------------------------------------------------------


def test_what_all_have_acknowledged_and_hold_is_right(ledger: Ledger) -> None:
    register, pile = written(ledger, "registers"), written(ledger, "piles", key=b"p")
    text = [written(ledger, "piles", key=b"t").value + b";" for _ in range(2)]
    written(ledger, "counts", key=b"n")
    held: dict[bytes, object] = {b"k": register.value, b"p": [pile.value], b"t": b"".join(text), b"n": b"1"}
    assert verdict(ledger, held).violations() == []


def test_an_acknowledged_write_that_is_gone_is_lost_unless_its_primary_was_replaced(ledger: Ledger) -> None:
    written(ledger, "piles")
    written(ledger, "registers", key=b"r")
    written(ledger, "counts", key=b"n")
    ledger.close({}, 50.0)
    doubted = len(ledger.doubts)
    assert doubted == 2
    told = ledger.judge([SWITCH], [])
    assert (told.lost, told.lost_to_switches) == ([], 3)
    ledger.verdict = Verdict()
    assert len(ledger.judge([], []).lost) == 3


def test_what_wait_has_confirmed_is_lost_whatever_was_replaced(ledger: Ledger) -> None:
    written(ledger, "piles").waited = True
    assert verdict(ledger, {}, SWITCH).lost[0].startswith("in spite of WAIT")


def test_a_value_that_is_there_twice_is_doubled(ledger: Ledger) -> None:
    value = written(ledger, "piles", State.UNKNOWN).value
    assert len(verdict(ledger, {b"k": [value, value]}).duplicates) == 1


def test_a_counter_above_its_requests_is_doubled(ledger: Ledger) -> None:
    written(ledger, "counts", State.UNKNOWN)
    written(ledger, "counts", State.REFUSED)
    assert len(verdict(ledger, {b"k": b"2"}).duplicates) == 1


def test_a_refused_value_that_is_there_is_named(ledger: Ledger) -> None:
    value = written(ledger, "piles", State.REFUSED).value
    assert len(verdict(ledger, {b"k": [value]}).refused_but_applied) == 1


def test_values_in_another_order_than_acknowledged_are_named(ledger: Ledger) -> None:
    values = [written(ledger, "piles").value for _ in range(2)]
    assert len(verdict(ledger, {b"k": values[::-1]}).disordered) == 1


@pytest.mark.parametrize("held", [{b"k": [b"other|1|"]}, {b"nobody's": b"x"}])
def test_what_nobody_wrote_there_is_misrouted(ledger: Ledger, held: dict[bytes, object]) -> None:
    written(ledger, "piles", State.UNKNOWN)
    assert len(verdict(ledger, held).misrouted) == 1


def test_an_element_that_is_popped_twice_or_is_still_there_is_named(ledger: Ledger) -> None:
    value = written(ledger, "piles").value
    assert ledger.popped(b"k", value, 9.0) is None
    assert ledger.popped(b"k", value, 9.5) is None
    assert len(verdict(ledger, {b"k": [value]}).lost) == 2


def test_an_element_that_an_unanswered_pop_may_have_taken_is_not_missed(ledger: Ledger) -> None:
    written(ledger, "piles")
    ledger.unknown_pops[b"k"] += 1
    assert verdict(ledger, {}).violations() == []


def test_a_list_that_is_empty_after_a_push_is_stale(ledger: Ledger) -> None:
    written(ledger, "piles")
    ledger.found_empty(b"k", 9.0)
    assert len(ledger.judge([], []).stale) == 1


def test_a_list_is_empty_by_right_where_an_unanswered_pop_may_have_emptied_it(ledger: Ledger) -> None:
    written(ledger, "piles")
    ledger.unknown_pops[b"k"] += 1
    ledger.found_empty(b"k", 9.0)
    assert wrong(ledger) == []


# --- replies ----------------------------------------------------------------------------------------------------------


def told(answer: bytes, *requests: Request) -> Tally:
    """What a connection notes of that answer to these requests."""

    class Sink(asyncio.Transport):
        def write(self, data: object) -> None:
            pass

        def abort(self) -> None:
            pass

    async def hear() -> Tally:
        wire = Wire("c", Tally())
        wire.connection_made(Sink())
        wire.send(requests)
        wire.data_received(answer)
        return wire.tally

    return asyncio.run(hear())


def echo(words: bytes) -> Request:
    return Request((b"ECHO", words), lambda reply, _: None if reply == words else f"got {reply!r}")


def test_replies_that_are_swapped_are_misrouted() -> None:
    assert told(b"+a\r\n+b\r\n", echo(b"a"), echo(b"b")).misrouted == []
    assert len(told(b"+b\r\n+a\r\n", echo(b"a"), echo(b"b")).misrouted) == 2


def test_a_reply_too_many_is_misrouted() -> None:
    assert len(told(b"+a\r\n+a\r\n", echo(b"a")).misrouted) == 1


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (b"-TRYAGAIN shard s0 (h:1) is down, applied=no; retry later\r\n", State.REFUSED),
        (b"-UNCERTAIN shard s0 (h:1) closed, applied=unknown; read\r\n", State.UNKNOWN),
        (b"-EXECABORT Transaction discarded because of: shard s0 (h:1) is down, applied=no\r\n", State.REFUSED),
        (b"*1\r\n-UNCERTAIN shard s0 (h:1) closed, applied=unknown; read\r\n", State.UNKNOWN),
        (b"*1\r\n:1\r\n", State.ACKED),
    ],
)
def test_a_write_of_a_transaction_has_the_fate_that_its_answer_says(error: bytes, state: State, ledger: Ledger) -> None:
    write = ledger.write(ledger.piles, b"k")
    part = Request((b"RPUSH", b"k", write.value), lambda reply, _: None, [write])
    assert told(error, Request((b"EXEC",), lambda reply, _: "odd", parts=[part])).misrouted == []
    assert write.state is state


@pytest.mark.parametrize(("watched", "misrouted"), [(True, 0), (False, 1)])
def test_nil_is_an_answer_to_a_transaction_that_watches_alone(watched: bool, misrouted: int, ledger: Ledger) -> None:
    operations = Operations(b"c", ledger, Random(1))
    block = (operations.watched() if watched else operations.transaction())[-1]
    assert len(told(b"*-1\r\n", block).misrouted) == misrouted
    fate = State.REFUSED if watched else State.UNKNOWN
    assert {write.state for part in block.parts for write in part.writes} == {fate}


@pytest.mark.parametrize(
    ("answers", "sure"),
    [
        (b":1\r\n:0\r\n", True),
        (b":0\r\n:1\r\n", False),
        (b"-UNCERTAIN shard s0: lost\r\n:1\r\n", False),
        (b"-TRYAGAIN shard s0: down, applied=no\r\n:1\r\n", True),
    ],
)
def test_wait_makes_sure_what_was_acknowledged_before_it_and_an_uncertain_one_nothing(
    answers: bytes, sure: bool, ledger: Ledger
) -> None:
    write = ledger.write(ledger.piles, b"k")
    push = Request((b"RPUSH", b"k", write.value), lambda reply, _: None, [write])
    waits = [Request((b"WAIT", b"1", b"0"), lambda reply, _: None) for _ in range(2)]
    told(b":1\r\n" + answers, push, *waits)
    assert write.waited is sure


def test_an_error_that_no_fault_explains_is_unexpected() -> None:
    assert len(told(b"-ERR something\r\n", echo(b"a")).unexpected) == 1
    assert len(told(b"-TRYAGAIN shard s0 is down\r\n", echo(b"a")).unexpected) == 1


# --- and all of it ----------------------------------------------------------------------------------------------------


@pytest.mark.timeout(400)
@pytest.mark.parametrize("reads", ["primary", "prefer-replica"])
def test_through_twenty_seconds_of_faults_each_answer_belongs_to_its_request_and_each_write_is_applied_once_at_most(
    reads: str,
) -> None:
    result = run(reads, 10.0, clients=16, seed=7)
    assert result.violations == []
    assert result.injected.total() > 0
    assert result.tally.replies.total() > 0
