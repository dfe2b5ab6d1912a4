"""Which server of a shard is its primary, by what the servers say."""

import asyncio
from collections.abc import Iterator

import msgspec
import pytest

from pyproxy.access import Access
from pyproxy.config import BackendAccess, Config
from pyproxy.control.health.primary import NoPrimary, primary_of
from pyproxy.fleet import Fleet
from pyproxy.shard_map import Node, Shard

ACCESS = Access(BackendAccess())


@pytest.fixture(scope="module")
def shard() -> Iterator[Shard]:
    """A primary and a replica."""
    with Fleet(shards=1, replicas=1) as fleet:
        yield Config.parse(fleet.config().encode()).shard_map().shards[0]


def test_it_is_the_one_that_says_so_whatever_the_configuration_says(shard: Shard) -> None:
    turned = msgspec.structs.replace(shard, primary=shard.replicas[0], replicas=(shard.primary,))
    for each in (shard, turned):
        assert asyncio.run(primary_of(each, ACCESS)) == shard.primary


def test_where_there_is_none_each_server_is_named_with_what_it_said(shard: Shard) -> None:
    lost = msgspec.structs.replace(shard, primary=Node("127.0.0.1", 1))
    with pytest.raises(NoPrimary) as caught:
        asyncio.run(primary_of(lost, ACCESS))
    assert str(caught.value) == "shard s0: expected one primary, got none; 127.0.0.1:1: connection refused"


def test_two_are_none(shard: Shard) -> None:
    with Fleet(shards=1, replicas=0) as other:
        beside = Node("127.0.0.1", other.shards[0].primary.port)
        both = msgspec.structs.replace(shard, replicas=(beside,))
        with pytest.raises(NoPrimary, match=f"expected one primary, got {shard.primary}, {beside}"):
            asyncio.run(primary_of(both, ACCESS))
