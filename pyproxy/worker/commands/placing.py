"""The shards of the keys of a request. For a large request the lane has found them already: see words.pyx."""

from collections.abc import Sequence

from protocol.scan import Words
from pyproxy.worker.lane.lane import Lane


def shards_of(lane: Lane, argv: Sequence[bytes], keys: Sequence[int]) -> set[int] | frozenset[int]:
    """The shards of these keys. `keys`: all positions of keys in `argv`, as `Command.keys` gives them."""
    if isinstance(argv, Words):
        placed = argv.placed
        if placed is not None and placed.links is lane.links and placed.count == len(keys):
            known: frozenset[int] = placed.shards
            return known
    return {lane.shard_of(argv[position]) for position in keys}
