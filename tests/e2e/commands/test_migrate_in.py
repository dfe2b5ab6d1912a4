"""MIGRATE, run at a real server with the proxy as its target: how the keys of a single Redis come to the shards."""

import random
from collections.abc import Iterator

import pytest

from pyproxy.fleet import HOST, Fleet, Proxy, Server
from tests.e2e.rig import Connection, Keys, error, killed, packed

SEED = 20_606
KEYS = 1000
BATCH = 100
TIMEOUT_MS = 20_000
DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def proxy(fleet: Fleet) -> Iterator[Proxy]:
    with Proxy(fleet) as proxy:
        yield proxy


@pytest.fixture
def source(fleet: Fleet) -> Iterator[Server]:
    """The single Redis that has had the keys so far; nobody else has any."""
    for shard in fleet.shards:
        shard.primary.ask("FLUSHALL")
    with Fleet(shards=1, replicas=0) as single:
        yield single.shards[0].primary


def migrate(source: Server, target: Proxy, *keys: str, db: int = 0) -> object:
    with Connection(source.port) as conn:
        conn.ask("SELECT", db)
        return conn.ask("MIGRATE", HOST, target.port, "", db, TIMEOUT_MS, "KEYS", *keys)


def fill(source: Server, count: int) -> list[str]:
    """Keys of every type, binary values and times to live among them."""
    chance = random.Random(SEED)
    keys = [f"key:{number}" for number in range(count)]
    commands: list[tuple[str | bytes | int, ...]] = []
    for number, key in enumerate(keys):
        member = chance.randbytes(chance.randrange(1, 40))
        commands.append(
            [
                ("SET", key, member),
                ("HSET", key, member, "v", "f", member),
                ("SADD", key, member, "m"),
                ("ZADD", key, number, member),
                ("RPUSH", key, member, member),
                ("XADD", key, f"{number}-1", "f", member),
            ][number % 6]
        )
        if number % 4 == 0:
            commands.append(("PEXPIRE", key, DAY_MS))
    with Connection(source.port) as conn:
        conn.socket.sendall(b"".join(packed(*command) for command in commands))
        conn.reads(len(commands))
    return keys


def values(port: int, keys: list[str]) -> list[object]:
    """What DUMP says of each; of a set, whose members have no order, SORT."""
    with Connection(port) as conn:
        conn.send(*[("SORT", key, "ALPHA") if number % 6 == 2 else ("DUMP", key) for number, key in enumerate(keys)])
        return conn.reads(len(keys))


def test_each_key_comes_to_its_shard_with_its_value_and_its_time_to_live_and_leaves_the_source(
    source: Server, fleet: Fleet, proxy: Proxy
) -> None:
    keys = fill(source, KEYS)
    before = values(source.port, keys)
    for first in range(0, KEYS, BATCH):
        assert migrate(source, proxy, *keys[first : first + BATCH]) == b"OK"
    assert source.ask("DBSIZE") == 0
    assert values(proxy.port, keys) == before
    shard_of = Keys(proxy).shard_of
    for index, shard in enumerate(fleet.shards):
        mine = [key for key in keys if shard_of(key) == index]
        assert mine
        assert shard.primary.ask("EXISTS", *mine) == shard.primary.ask("DBSIZE") == len(mine)
    with Connection(proxy.port) as conn:
        for number, key in enumerate(keys[:40]):
            left = conn.ask("PTTL", key)
            assert isinstance(left, int)
            assert 0 < left <= DAY_MS if number % 4 == 0 else left == -1


def test_a_database_comes_to_the_same_database(source: Server, proxy: Proxy) -> None:
    with Connection(source.port) as conn:
        conn.ask("SELECT", 4)
        conn.ask("SET", "key", "of four")
    assert migrate(source, proxy, "key", db=4) == b"OK"
    with Connection(proxy.port) as conn:
        assert conn.ask("GET", "key") is None
        conn.ask("SELECT", 4)
        assert conn.ask("GET", "key") == b"of four"


def test_a_key_that_is_there_already_is_an_error_and_stays_at_the_source(source: Server, proxy: Proxy) -> None:
    source.ask("SET", "key", "old")
    with Connection(proxy.port) as conn:
        conn.ask("SET", "key", "new")
        assert "BUSYKEY" in error(migrate(source, proxy, "key"))
        assert conn.ask("GET", "key") == b"new"
    assert source.ask("GET", "key") == b"old"


def test_keys_of_a_shard_that_is_down_are_an_error_and_stay_at_the_source(
    source: Server, fleet: Fleet, proxy: Proxy
) -> None:
    well, lost = Keys(proxy).one(0), Keys(proxy).one(1)
    source.ask("MSET", well, "a", lost, "b")
    with killed(fleet.shards[1].primary, proxy):
        with Connection(proxy.port) as conn:
            assert "applied=no" in error(conn.ask("SET", lost, "x"))  # the proxy knows
            assert "TRYAGAIN shard s1" in error(migrate(source, proxy, well, lost))
            assert conn.ask("GET", well) == b"a"
        assert (source.ask("EXISTS", well), source.ask("GET", lost)) == (0, b"b")
