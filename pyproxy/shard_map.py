"""Which shard owns a key.

Shards with their written slots come in; for a key its shard goes out. Nobody else knows how a key finds its shard;
only the hot path keeps a copy of `owners()` to index by slot. Values only: nothing here connects, and nothing here
checks that every slot has exactly one owner (config.py does, before a map is made).
"""

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Self

import msgspec

from pyproxy.hashing import SLOTS, slot

SlotRange = tuple[int, int]
"""First and last slot, both included."""


class Node(msgspec.Struct, frozen=True):
    """The address of one server."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """`host:port`, or `[host]:port` for IPv6; else ValueError. Port 0 is taken: a listener may ask for any."""
        found = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9_.-]+)):([0-9]{1,5})", text)
        if found is None or int(found[3]) > 65535:
            raise ValueError(f"expected host:port, got {text!r}")
        return cls(found[1] or found[2], int(found[3]))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Shard(msgspec.Struct, frozen=True):
    """One primary, its replicas, and the slots that are theirs."""

    name: str
    primary: Node
    replicas: tuple[Node, ...]
    slots: tuple[SlotRange, ...]

    def owns(self, number: int) -> bool:
        return any(first <= number <= last for first, last in self.slots)


class ShardMap(msgspec.Struct, frozen=True):
    """All shards, with a version that grows whenever one of them changes."""

    version: int
    shards: tuple[Shard, ...]

    def owners(self) -> list[int]:
        """For each of the 16384 slots the index of its shard in `shards`; -1 where nobody owns it."""
        owners = [-1] * SLOTS
        for index, shard in enumerate(self.shards):
            for first, last in shard.slots:
                owners[first : last + 1] = [index] * (last + 1 - first)
        return owners

    def shard_of(self, key: bytes) -> Shard:
        """The shard that owns the key; KeyError where no shard does."""
        number = slot(key)
        for shard in self.shards:
            if shard.owns(number):
                return shard
        raise KeyError(f"no shard owns slot {number}")


def parse_slots(text: str) -> SlotRange:
    """`"0-1638"` or `"5"`, both ends included; else ValueError, as for slots past 16383 and ranges backwards."""
    found = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", text)
    if found is not None:
        first, last = int(found[1]), int(found[2] or found[1])
        if first <= last < SLOTS:
            return first, last
    raise ValueError(f"expected slots such as 0-1638, got {text!r}")


def format_slots(slots: SlotRange) -> str:
    first, last = slots
    return str(first) if first == last else f"{first}-{last}"


def split_slots(shards: int) -> list[SlotRange]:
    """The 16384 slots in `shards` neighbouring ranges of equal size; where it does not divide, the first are longer."""
    if not 1 <= shards <= SLOTS:
        raise ValueError(f"expected 1 to {SLOTS} shards, got {shards}")
    size, longer = divmod(SLOTS, shards)
    starts = [index * size + min(index, longer) for index in range(shards + 1)]
    return [(start, end - 1) for start, end in itertools.pairwise(starts)]


def expanded(ranges: Iterable[SlotRange]) -> Iterator[int]:
    """The single slots of these ranges."""
    for first, last in ranges:
        yield from range(first, last + 1)


def join_slots(slots: Iterable[int]) -> list[SlotRange]:
    """Single slots, ascending, as the fewest ranges."""
    ranges: list[SlotRange] = []
    for number in slots:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return ranges
