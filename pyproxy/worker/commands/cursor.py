"""The cursors of SCAN over all shards: the shard that is scanned, the server process, and the server's own cursor.

    cursor = (server's cursor * GENERATIONS + generation) * places + shard

There are 64 places, or 128, 256 ... with more shards: so a cursor from before shards were added means the same after.

The server's own cursor is below the size of its hash table. The generation identifies the process that gave it: each
process lays its hash table out by a seed of its own, so its cursors are useless to another process. The generation is
made from `run_id`. So every worker and every proxy can read each cursor, and none is stored.

Cursors are below 2^53, as clients in JavaScript keep them as numbers. Pure.
"""

import hashlib
import re
from dataclasses import dataclass

GENERATIONS = 1 << 13
"""Once in so many promotions during a scan, a process is taken for another one, and keys may be missed."""

LIMIT = 1 << 53

_NUMBER = re.compile(rb"[0-9]{1,16}")


@dataclass(frozen=True, slots=True)
class Position:
    """How far a scan is. At the beginning of a shard the generation is 0."""

    shard: int
    generation: int = 0
    cursor: int = 0  # the server's


PLACES = 64
"""For shards, as long as these are no more."""


def places(shards: int) -> int:
    return max(PLACES, 1 << (shards - 1).bit_length())


def read(text: bytes, shards: int) -> Position | None:
    """The position of a client's cursor; None if it is none of the proxy's.

    Of a shard that is not there any more: the beginning, as its keys are in others by now.
    """
    number = int(text) if _NUMBER.fullmatch(text) else LIMIT
    if number >= LIMIT:
        return None
    rest, shard = divmod(number, places(shards))
    cursor, generation = divmod(rest, GENERATIONS)
    return Position(shard, generation, cursor) if shard < shards else Position(0)


def write(position: Position, shards: int) -> bytes | None:
    """The cursor for a client; None if the server's cursor is above 2^40 divided by the number of places."""
    number = (position.cursor * GENERATIONS + position.generation) * places(shards) + position.shard
    return b"%d" % number if number < LIMIT else None


def generation(run_id: bytes) -> int:
    """The generation of the process with this `run_id`."""
    return int.from_bytes(hashlib.blake2b(run_id, digest_size=4).digest()) % GENERATIONS
