"""`pyproxy verify --misplaced`, with real servers: keys on a wrong shard are listed, and moved without losing any."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyproxy.access import Access
from pyproxy.cli import main
from pyproxy.config import BackendAccess, Config
from pyproxy.control.health.misplaced_keys import MisplacedKey, MisplacedKeys
from pyproxy.fleet import Fleet, Server
from pyproxy.hashing import slot
from pyproxy.shard_map import ShardMap


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with Fleet(shards=2, replicas=0) as fleet:
        yield fleet


@pytest.fixture
def config(fleet: Fleet, tmp_path: Path) -> Path:
    path = tmp_path / "pyproxy.toml"
    path.write_text(fleet.config())
    return path


@pytest.fixture
def shard_map(config: Path) -> ShardMap:
    return Config.load(config).shard_map()


@pytest.fixture
def servers(fleet: Fleet) -> tuple[Server, Server]:
    return fleet.shards[0].primary, fleet.shards[1].primary


def keys_of(shard_map: ShardMap, index: int, count: int) -> list[str]:
    shard = shard_map.shards[index]
    return [key for key in map("k{}".format, range(10_000)) if shard.owns(slot(key.encode()))][:count]


def verify(config: Path, *options: str) -> int:
    return main(["verify", "--misplaced", "--config", str(config), *options])


def in_database(server: Server, database: int, *argv: str | int) -> object:
    """Asked in that database, in one script."""
    words = "".join(f",ARGV[{number}]" for number in range(2, len(argv) + 1))
    script = f"redis.call('select', {database}) return redis.call(ARGV[1]{words})"
    return server.ask("EVAL", script, 0, *argv)


def test_keys_at_home_are_none_that_is_listed(
    config: Path, shard_map: ShardMap, servers: tuple[Server, Server], capsys: pytest.CaptureFixture[str]
) -> None:
    for index in (0, 1):
        for key in keys_of(shard_map, index, 30):
            servers[index].ask("SET", key, "v")
    assert verify(config) == 0
    assert capsys.readouterr().out == "0 misplaced keys\n"


def test_every_key_on_a_wrong_shard_is_listed_and_none_is_touched(
    config: Path, shard_map: ShardMap, servers: tuple[Server, Server], capsys: pytest.CaptureFixture[str]
) -> None:
    astray = keys_of(shard_map, 0, 600)  # more than a page of SCAN
    for key in astray:
        servers[1].ask("SET", key, "v")
    in_database(servers[1], 3, "set", astray[0], "v")
    servers[1].ask("SET", keys_of(shard_map, 1, 1)[0], "v")
    assert verify(config, "--rate", "10000000") == 1
    *lines, summary = capsys.readouterr().out.splitlines()
    found = [re.fullmatch(r"s1 database (\d+) key '(.*)' slot \d+ belongs to s0", line) for line in lines]
    assert {(each[1], each[2]) for each in found if each} == {*(("0", key) for key in astray), ("3", astray[0])}
    assert summary == f"{len(lines)} misplaced keys"
    assert servers[1].ask("DBSIZE") == 601
    assert servers[0].ask("DBSIZE") == 0


def test_they_are_moved_with_their_values_types_times_and_databases(
    config: Path, shard_map: ShardMap, servers: tuple[Server, Server], capsys: pytest.CaptureFixture[str]
) -> None:
    text, hash_, dies, elsewhere = keys_of(shard_map, 0, 4)
    servers[1].ask("SET", text, "v\r\n")
    servers[1].ask("HSET", hash_, "f", "1", "g", "2")
    servers[1].ask("SET", dies, "v", "PXAT", 4_000_000_000_000)
    in_database(servers[1], 5, "rpush", elsewhere, "a", "b")
    assert verify(config, "--move") == 0
    assert "4 misplaced keys, 4 moved, 0 left" in capsys.readouterr().out
    assert servers[0].ask("GET", text) == b"v\r\n"
    assert servers[0].ask("HGETALL", hash_) == [b"f", b"1", b"g", b"2"]
    assert servers[0].ask("PEXPIRETIME", dies) == 4_000_000_000_000
    assert in_database(servers[0], 5, "lrange", elsewhere, 0, -1) == [b"a", b"b"]
    assert (servers[1].ask("DBSIZE"), in_database(servers[1], 5, "dbsize")) == (0, 0)
    assert verify(config) == 0


def test_a_key_that_is_there_too_is_said_and_neither_is_lost(
    config: Path, shard_map: ShardMap, servers: tuple[Server, Server], capsys: pytest.CaptureFixture[str]
) -> None:
    (key,) = keys_of(shard_map, 0, 1)
    servers[0].ask("SET", key, "right")
    servers[1].ask("SET", key, "stray")
    assert verify(config, "--move") == 1
    said = capsys.readouterr().out
    assert "both s1 and s0 have it; nothing was done" in said
    assert "1 misplaced keys, 0 moved, 1 left" in said
    assert (servers[0].ask("GET", key), servers[1].ask("GET", key)) == (b"right", b"stray")


class Interfering(MisplacedKeys):
    """Somebody writes to the key at the moment when it has been copied."""

    write: tuple[Server, str] | None = None

    async def _ask(self, shard, *questions):  # type: ignore[no-untyped-def]
        if questions[0] == (b"MULTI",) and self.write is not None:
            (server, key), self.write = self.write, None
            server.ask("APPEND", key, "!")
        return await super()._ask(shard, *questions)


@pytest.mark.parametrize(("where", "left"), [(1, (None, b"v!")), (0, (b"v!", None))])
async def test_what_is_changed_while_it_is_moved_is_not_lost(
    where: int, left: tuple[object, object], shard_map: ShardMap, servers: tuple[Server, Server]
) -> None:
    """Where it lay: the copy goes. Where it belongs, already: that is what its clients want."""
    (key,) = keys_of(shard_map, 0, 1)
    servers[1].ask("SET", key, "v")
    s0, s1 = shard_map.shards
    async with Interfering(shard_map, Access(BackendAccess()), 1e6) as misplaced_keys:
        misplaced_keys.write = servers[where], key
        said = await misplaced_keys.move(MisplacedKey(s1, s0, 0, key.encode()))
    assert said == ("it was changed meanwhile; nothing was done" if where == 1 else "")
    assert (servers[0].ask("GET", key), servers[1].ask("GET", key)) == left


def test_a_shard_whose_servers_do_not_answer_is_said(
    config: Path, servers: tuple[Server, Server], capsys: pytest.CaptureFixture[str]
) -> None:
    servers[1].kill()
    assert verify(config) == 69
    assert "shard s1: expected one primary, got none; " in capsys.readouterr().err


async def test_the_present_primary_is_sampled_whatever_the_configuration_says(tmp_path: Path) -> None:
    with Fleet(shards=1, replicas=1) as fleet:
        old, new = fleet.shards[0].primary, fleet.shards[0].replicas[0]
        new.ask("REPLICAOF", "NO", "ONE")
        old.ask("REPLICAOF", "127.0.0.1", new.port)
        (tmp_path / "c.toml").write_text(fleet.config())
        async with MisplacedKeys(
            Config.load(tmp_path / "c.toml").shard_map(), Access(BackendAccess()), 1e6
        ) as misplaced_keys:
            assert str(misplaced_keys._primaries["s0"]) == new.address
