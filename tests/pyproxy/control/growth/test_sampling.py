"""What is known of the keys of real servers, and `pyproxy plan`, which stands on it."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyproxy.access import Access
from pyproxy.cli import main
from pyproxy.config import BackendAccess, Config
from pyproxy.control.growth.plan_file import read_plan
from pyproxy.control.growth.sampling import CannotSample, sampled
from pyproxy.fleet import Fleet, Server
from pyproxy.hashing import SLOTS, slot
from pyproxy.shard_map import Shard

ACCESS = Access(BackendAccess())
KEYS = 20_000


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """One server with many keys of different sizes, a tenth of them with one hash tag, in two databases."""
    with Fleet(shards=1, replicas=0) as fleet:
        script = """
            for number = 1, ARGV[1] do
                if number % 100 == 0 then redis.call('select', 3) else redis.call('select', 0) end
                local name = number % 10 == 1 and '{tag}:' .. number or 'key:' .. number
                redis.call('set', name, string.rep('x', 100 * (number % 7) + 50))
            end
        """
        fleet.shards[0].primary.ask("EVAL", script, 0, KEYS)
        yield fleet


@pytest.fixture
def server(fleet: Fleet) -> Server:
    return fleet.shards[0].primary


@pytest.fixture
def config(fleet: Fleet, tmp_path: Path) -> Path:
    path = tmp_path / "pyproxy.toml"
    path.write_text(fleet.config())
    return path


@pytest.fixture
def shard(config: Path) -> Shard:
    return Config.load(config).shard_map().shards[0]


def sizes(server: Server) -> list[int]:
    """Of all keys, by slot: the truth."""
    script = """
        local found = {}
        for _, database in ipairs({0, 3}) do
            redis.call('select', database)
            for _, name in ipairs(redis.call('keys', '*')) do
                found[#found + 1] = name
                found[#found + 1] = redis.call('memory', 'usage', name)
            end
        end
        return found
    """
    found = [0] * SLOTS
    answer = server.ask("EVAL", script, 0)
    assert isinstance(answer, list) and len(answer) == 2 * KEYS
    for name, size in zip(answer[::2], answer[1::2], strict=True):
        found[slot(name)] += size
    return found


def test_a_sample_has_keys_of_every_database_and_says_how_many_there_are(server: Server, shard: Shard) -> None:
    sample = asyncio.run(sampled([shard], ACCESS, 1000))["s0"]
    assert sample.keys == KEYS
    assert len(sample.found) == 1000
    assert 0.5 * sum(sizes(server)) < sample.bytes
    truth = sizes(server)
    assert all(truth[number] >= size > 0 for number, size in sample.found)
    tagged = [number for number, _ in sample.found if number == slot(b"{tag}")]
    assert 20 < len(tagged) < 400


def test_of_few_keys_no_more_are_drawn_than_there_are() -> None:
    with Fleet(shards=2, replicas=0) as fleet:
        shards = Config.parse(fleet.config().encode()).shard_map().shards
        fleet.shards[0].primary.ask("SET", "a", "b")
        samples = asyncio.run(sampled(shards, ACCESS, 1000))
    assert (samples["s0"].keys, len(samples["s0"].found)) == (1, 1)
    assert (samples["s1"].keys, samples["s1"].found) == (0, ())


def test_a_server_that_does_not_let_itself_be_asked_is_said(server: Server, shard: Shard) -> None:
    server.ask("ACL", "SETUSER", "default", "-memory")
    try:
        with pytest.raises(CannotSample, match=rf"shard s0 \({shard.primary}\): answered MEMORY USAGE with NOPERM"):
            asyncio.run(sampled([shard], ACCESS, 10))
    finally:
        server.ask("ACL", "SETUSER", "default", "+memory")


def test_the_moves_of_a_plan_even_out_what_the_servers_really_have(
    config: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    added = [
        option for number in (1, 2, 3) for option in ("--add", f"s{number}=10.0.0.{number}:6379,10.0.1.{number}:6379")
    ]
    assert main(["plan", "--config", str(config), *added]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    plan = read_plan(said.out.encode())
    assert [len(shard.replicas) for shard in plan.added] == [1, 1, 1]
    truth = sizes(server)
    held = {move.destination: sum(sum(truth[a : b + 1]) for a, b in move.slots) for move in plan.moves}
    held["s0"] = sum(truth) - sum(held.values())
    part = sum(truth) / 4
    assert held.keys() == {"s0", "s1", "s2", "s3"}
    assert all(0.85 * part <= each <= 1.15 * part for each in held.values()), held
    assert "# To move: 3 moves, " in said.out


def test_a_shard_that_does_not_answer_is_said(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    down = tmp_path / "down.toml"
    down.write_text('[[shards]]\nname = "s0"\nprimary = "127.0.0.1:1"\nslots = ["0-16383"]\n')
    assert main(["plan", "--config", str(down)]) == 69
    assert capsys.readouterr().err == (
        "pyproxy: shard s0: expected one primary, got none; 127.0.0.1:1: connection refused\n"
    )
