"""What is counted of an incident, and what the page of faults may say of it."""

import re

import msgspec
import pytest

from bench.failover.catalogue import ALL
from bench.failover.figures import figures, longest_gap, timeline
from bench.failover.history import Op
from bench.failover.load import Record
from bench.failover.report import failover
from bench.failover.trial import Fault, Result

SHARD = "s1"
BY_NAME = {fault.name: fault for fault in ALL}


def op(verb: str, sent: float, took: float = 0.001, error: str = "", shard: str = SHARD, client: str = "c") -> Op:
    return Op(client, 1, shard, verb, "k", "", sent, sent + took if took else 0.0, "OK", error)


def record(*ops: Op, lost: tuple[float, ...] = ()) -> Record:
    return Record(list(ops), [], [("c", at) for at in lost])


def test_the_gap_is_the_longest_time_without_an_acknowledged_write() -> None:
    writes = [op("SET", at, 0.5) for at in (1.0, 2.0, 6.0, 6.5)] + [op("SET", 3.0, 0.5, "TRYAGAIN ...")]
    assert longest_gap(writes, since=2.2, until=7.0) == 4.0


def test_a_gap_that_does_not_end_lasts_to_the_end() -> None:
    assert longest_gap([op("SET", 1.0, 0.5)], since=2.0, until=9.0) == 7.5


def test_a_gap_before_the_incident_is_none_of_its() -> None:
    assert longest_gap([op("SET", at, 0.5) for at in (1.0, 5.0, 5.5)], since=5.6, until=6.0) == 0.5


@pytest.mark.parametrize(
    ("error", "took", "counted"),
    [
        ("TRYAGAIN shard s1 is being promoted", 0.001, (1, 0, {})),
        ("UNCERTAIN shard s1 closed the connection", 0.001, (0, 1, {})),
        ("ERR Connection refused", 0.001, (0, 0, {"ERR": 1})),
        ("connection lost: closed", 0.0, (0, 0, {"": 1})),
    ],
)
def test_what_was_not_acknowledged_is_counted_by_its_word(
    error: str, took: float, counted: tuple[int, int, dict[str, int]]
) -> None:
    seen = figures(record(op("SET", 5.0, took, error)), SHARD, 4.0, 6.0)
    assert (seen.rejected, seen.uncertain, seen.errors) == counted


def test_an_acknowledged_write_that_took_long_was_held() -> None:
    seen = figures(record(op("SET", 4.5, 0.8), op("SET", 5.3, 0.001), op("GET", 4.5, 0.8)), SHARD, 4.0, 6.0)
    assert (seen.held, round(seen.hold_max, 3)) == (1, 0.8)


def test_the_longest_wait_is_for_any_answer_of_the_shard() -> None:
    seen = figures(record(op("SET", 4.5, 0.8), op("SET", 4.1, 1.2, "TRYAGAIN ..."), op("GET", 5.0)), SHARD, 4.0, 6.0)
    assert round(seen.longest, 3) == 1.2


def test_a_client_that_asks_the_shard_that_suffers_says_nothing_of_the_others() -> None:
    both = [op("SET", 5.0, 0.9, client="mixed"), op("SET", 5.0, 0.9, shard="s2", client="mixed")]
    seen = figures(record(*both, op("GET", 5.0, 0.002, shard="s2", client="other")), SHARD, 4.0, 6.0)
    assert (seen.others, round(seen.others_max, 3), seen.elsewhere_failed) == (1, 0.002, 0)


def test_connections_that_were_lost_in_the_incident_are_counted() -> None:
    assert figures(record(op("SET", 5.0), lost=(3.0, 4.5, 6.5)), SHARD, 4.0, 6.0).disconnects == 1


def test_the_timeline_tells_the_shard_from_the_others_and_errors_from_answers() -> None:
    ops = [op("SET", at) for at in (0.0, 1.01, 2.0)]
    ops += [op("SET", 1.02, error="TRYAGAIN ..."), op("GET", 1.03, shard="s2")]
    (moment,) = [each for each in timeline(ops, SHARD, since=1.0) if each.at == 0.0]
    assert (moment.served, moment.failed, moment.others_served, moment.others_failed) == (4.0, 4.0, 4.0, 0.0)


# --- the page ---


def result(fault: str, **numbers: object) -> Result:
    """A run of which all is well, but for these numbers: of the Result, or of its figures."""
    ops = [op("SET", 4.5, 0.01), op("GET", 4.5, 0.01), op("GET", 5.0, 0.01, shard="s2", client="other")]
    seen = figures(record(*ops), SHARD, 4.0, 4.6)
    own = {name: numbers.pop(name) for name in list(numbers) if name in Result.__struct_fields__}
    base = Result(fault, 1, msgspec.structs.replace(seen, **numbers), 100, 10, 0, 0.0, 0, 0, 0, 0, 0, True, [], [])
    return msgspec.structs.replace(base, **own)


def page(*results: Result, failed: dict[str, list[str]] | None = None) -> str:
    faults: list[Fault] = [BY_NAME[each.fault] for each in results] + [BY_NAME[name] for name in failed or {}]
    return failover(faults, {each.fault: [each] for each in results}, failed or {}, ["commit: abc"])


def line_of(text: str, beginning: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(beginning))


@pytest.mark.parametrize(
    ("goal", "well", "ill"),
    [
        ("| planned: writes lost", result("planned"), result("planned", uncertain=1)),
        ("| planned: no write for", result("planned", gap=0.3), result("planned", gap=0.31)),
        ("| kill: no write for", result("kill", gap=4.0), result("kill", gap=4.1)),
        ("| unplanned: confirmed writes lost", result("kill"), result("kill", lost_for_no_reason=1)),
        ("| unplanned: writes applied twice", result("kill"), result("kill", duplicates=1)),
        ("| unplanned: replies misrouted", result("kill"), result("kill", misrouted=1)),
        ("| reads of the shard served", result("kill"), result("kill", reads=100, reads_served=99)),
        ("| requests to other shards that failed", result("kill"), result("kill", others_failed=1)),
        ("| and took longer than 250 ms", result("kill", others_max=0.25), result("kill", others_max=0.251)),
        ("| cut-kill: unconfirmed writes lost", result("cut-kill", lost=1), result("cut-kill", lost=0)),
    ],
)
def test_a_goal_is_reached_or_missed(goal: str, well: Result, ill: Result) -> None:
    assert line_of(page(well), goal).endswith("| reached |")
    assert line_of(page(ill), goal).endswith("| **missed** |")


def test_the_page_names_each_fault_that_is_left_out_of_a_goal() -> None:
    note = page(result("kill")).partition("## The goals")[2].partition("\n## ")[0]
    own = [fault for fault in ALL if fault.needs.peer == "pyproxy"]
    left_out = [fault.name for fault in own if fault.expect.wiped or fault.expect.proxy_dies or not fault.expect.reads]
    assert left_out
    assert [name for name in left_out if not re.search(rf"^- .*\b{name}\b", note, re.MULTILINE)] == []


def test_what_was_not_as_expected_is_said_and_so_is_a_run_that_ended_early() -> None:
    text = page(result("kill", problems=["a thing"]), failed={"flap": ["FleetError: waited\nand more"]})
    assert line_of(text, "- kill, ") == "- kill, 1 times: a thing"
    assert line_of(text, "- flap, ") == "- flap, 1 times: FleetError: waited"


def test_nutcracker_is_held_to_no_goal_and_stands_beside() -> None:
    text = page(result("kill"), result("nutcracker", others_failed=7, duplicates=7))
    assert "**missed**" not in text
    assert line_of(text, "| nutcracker | 1 |")
