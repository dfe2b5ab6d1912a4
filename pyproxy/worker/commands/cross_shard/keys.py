"""Where the keys of a command over shards belong, found a slice at a time and kept in a few bytes each: there may be a
million."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

from pyproxy.worker.commands.conversation import Conversation


async def shards_of_each(conversation: Conversation, positions: Sequence[int]) -> array[int]:
    """The shard of the key at each of these positions of argv."""
    shards = array("H")
    async for some in conversation.in_turns(positions):
        shards.extend([conversation.shard_of(conversation.argv[position]) for position in some])
    return shards


async def by_shard(conversation: Conversation, positions: Sequence[int]) -> dict[int, array[int]]:
    """Shard -> the positions of its keys, in their order."""
    return await grouped(conversation, positions, await shards_of_each(conversation, positions))


async def grouped(conversation: Conversation, positions: Sequence[int], shards: Sequence[int]) -> dict[int, array[int]]:
    """As `by_shard`. `shards`: of each position."""
    found: dict[int, array[int]] = {}
    async for some in conversation.in_turns(zip(shards, positions, strict=True)):
        for shard, position in some:
            if shard not in found:
                found[shard] = array("I")
            found[shard].append(position)
    return found


class Groups(Sequence[tuple[int, Sequence[int]]]):
    """The positions of keys in their order, as groups: neighbours on the same shard."""

    def __init__(self, positions: Sequence[int], shards: Sequence[int], starts: Sequence[int]) -> None:
        """`shards`: of each position. `starts`: the indexes in both at which a group begins."""
        self._positions = positions
        self._shards = shards
        self._starts = starts

    @classmethod
    async def of(cls, conversation: Conversation, positions: Sequence[int]) -> Groups:
        kept, starts, last = array("I"), array("I"), -1
        shards = await shards_of_each(conversation, positions)
        async for some in conversation.in_turns(zip(positions, shards, strict=True)):
            for position, shard in some:
                if shard != last:
                    starts.append(len(kept))
                    last = shard
                kept.append(position)
        return cls(kept, shards, starts)

    async def by_shard(self, conversation: Conversation) -> dict[int, array[int]]:
        """Shard -> the positions of its keys, in their order."""
        return await grouped(conversation, self._positions, self._shards)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> tuple[int, Sequence[int]]:  # type: ignore[override]  # nobody asks for a slice
        place = range(len(self._starts))[index]
        begin = self._starts[place]
        end = self._starts[place + 1] if place + 1 < len(self._starts) else len(self._positions)
        return self._shards[begin], self._positions[begin:end]


def words_at(conversation: Conversation, positions: Sequence[int]) -> Iterator[bytes]:
    return (conversation.argv[position] for position in positions)
