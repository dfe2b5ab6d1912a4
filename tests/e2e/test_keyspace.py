"""What is asked of the keys of all shards."""

from collections.abc import Iterator

import pytest

from pyproxy.fleet import Fleet, Proxy
from tests.e2e.rig import Keys, Talk, error


@pytest.fixture(autouse=True)
def empty(fleet: Fleet) -> None:
    for shard in fleet.shards:
        shard.primary.ask("FLUSHALL")


@pytest.fixture(scope="module")
def proxy(fleet: Fleet) -> Iterator[Proxy]:
    with Proxy(fleet) as proxy:
        yield proxy


def test_randomkey_is_nil_where_all_shards_are_empty(talk: Talk) -> None:
    assert talk.ask("RANDOMKEY") is None
    talk.ask("HELLO", "3")
    assert talk.ask("RANDOMKEY") is None


@pytest.mark.parametrize("shard", range(3))
def test_randomkey_finds_the_only_key_wherever_it_is(talk: Talk, keys: Keys, shard: int) -> None:
    key = keys.one(shard)
    talk.ask("SET", key, "v")
    assert talk.ask("RANDOMKEY") == key.encode()


def test_randomkey_names_keys_of_every_shard_in_time(talk: Talk, keys: Keys) -> None:
    for shard in range(3):
        talk.ask("SET", keys.one(shard), "v")
    talk.send(*[("RANDOMKEY",)] * 200)
    assert set(talk.reads(200)) == {keys.one(shard).encode() for shard in range(3)}


def test_a_conversation_stands_in_the_order_of_replies(talk: Talk, keys: Keys) -> None:
    key = keys.one(1)
    talk.send(("SET", key, "v"), ("RANDOMKEY",), ("GET", key), ("RANDOMKEY",), ("DEL", key), ("RANDOMKEY",))
    assert talk.reads(6) == [b"OK", key.encode(), b"v", key.encode(), 1, None]


def test_randomkey_of_a_fleet_with_a_lost_shard_is_an_error(fleet: Fleet, keys: Keys) -> None:
    with Proxy(fleet) as proxy, Talk(proxy.port) as talk:
        talk.ask("SET", keys.one(0), "v")
        fleet.shards[1].primary.kill()
        try:
            said = error(talk.ask("RANDOMKEY"))
            assert said.startswith("TRYAGAIN shard s1") and "applied=no" in said
        finally:
            fleet.shards[1].primary.start()
