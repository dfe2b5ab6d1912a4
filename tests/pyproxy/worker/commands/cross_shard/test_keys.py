"""Where the keys of a command belong, in its order. That it is found in slices: test_slices.py."""

import asyncio
from collections.abc import Sequence
from itertools import groupby

import pytest

from protocol.keyspecs import Places
from pyproxy.worker.commands.cross_shard.keys import Groups, by_shard, shards_of_each, words_at
from tests.pyproxy.worker.commands.cross_shard.test_slices import NAMES, asking, owner

ARGV = [b"BLPOP", *NAMES[:2000], b"0"]
POSITIONS: dict[str, Sequence[int]] = {
    "a range": range(1, 2001),
    "a list": list(range(1, 2001, 3)),
    "several ranges": Places([range(5, 6), range(10, 1000, 2)]),
    "none": range(1, 1),
}


@pytest.mark.parametrize("positions", POSITIONS.values(), ids=POSITIONS.keys())
def test_each_key_is_with_its_shard_and_in_its_order(positions: Sequence[int]) -> None:
    async def found() -> None:
        conversation = await asking()
        conversation.argv = ARGV
        owners = [owner(ARGV[position]) for position in positions]
        assert list(await shards_of_each(conversation, positions)) == owners
        assert list(words_at(conversation, positions)) == [ARGV[position] for position in positions]
        of_shards = {shard: list(each) for shard, each in (await by_shard(conversation, positions)).items()}
        assert sorted(place for each in of_shards.values() for place in each) == list(positions)
        assert all(owner(ARGV[place]) == shard for shard, each in of_shards.items() for place in each)
        assert all(each == sorted(each) for each in of_shards.values())
        runs = [(shard, list(run)) for shard, run in groupby(positions, lambda place: owner(ARGV[place]))]
        groups = await Groups.of(conversation, positions)
        assert [(shard, list(group)) for shard, group in groups] == runs
        assert len(groups) == len(runs)
        if runs:
            assert list(groups[-1][1]) == runs[-1][1]

    asyncio.run(found())
