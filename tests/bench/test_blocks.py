"""The load of whole transactions, sent to a real server."""

from collections.abc import Iterator

import pytest

from bench import blocks, measure
from bench.scenarios import SCENARIOS, Scenario
from pyproxy.fleet import Fleet, Server

(MULTI,) = [scenario for scenario in SCENARIOS if scenario.is_block]
SMALL = Scenario(MULTI.name, MULTI.command, 1, keys=100, each=MULTI.each)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Fleet(shards=1, replicas=0) as fleet:
        yield fleet.shards[0].primary


def commands(server: Server, name: str) -> int:
    stats = str(server.ask("INFO", "commandstats"))
    return int(stats.partition(f"cmdstat_{name}:calls=")[2].partition(",")[0] or 0)


def test_as_many_blocks_are_sent_as_are_asked_for(server: Server) -> None:
    measure.preload(server.port, SMALL.keys, 32)
    before = commands(server, "exec"), commands(server, "expire")
    rate, median, slowest = blocks.run(server.port, SMALL, 500)
    after = commands(server, "exec"), commands(server, "expire")
    assert (after[0] - before[0], after[1] - before[1]) == (500, 500 * SMALL.each)
    assert rate > 0 and 0 < median <= slowest


def test_an_answer_that_is_not_the_expected_one_ends_the_run(server: Server) -> None:
    server.ask("FLUSHALL")  # EXPIRE of a key that is not there answers 0
    with pytest.raises(blocks.BlockFailed, match="expected"):
        blocks.run(server.port, SMALL, 500)
