"""The cursors of SCAN over all shards: which shard is being walked, on which server, and how far that server has come.

    cursor = (server's cursor * GENERATIONS + generation) * shards + shard

The server's own cursor is below the size of its hash table. The generation stands for the process that gave it: a hash
table is laid out by a seed that each process draws for itself, so a cursor means nothing to another one. It comes from
`run_id`, so all workers and proxies read each other's cursors, and nobody has to remember any.

Cursors stay below 2^53, as clients in JavaScript keep them as numbers. Pure.
"""

import hashlib
import re
from dataclasses import dataclass

GENERATIONS = 1 << 13
"""A process is taken for another one, and keys may be missed, once in so many promotions in the middle of a scan."""

LIMIT = 1 << 53

_NUMBER = re.compile(rb"[0-9]{1,16}")


@dataclass(frozen=True, slots=True)
class Position:
    """Where a scan is. At 0 of a shard the generation means nothing, and is 0."""

    shard: int
    generation: int = 0
    cursor: int = 0  # the server's


def read(text: bytes, shards: int) -> Position | None:
    """What a client sent; None if it is no cursor of ours."""
    number = int(text) if _NUMBER.fullmatch(text) else LIMIT
    if number >= LIMIT:
        return None
    rest, shard = divmod(number, shards)
    cursor, generation = divmod(rest, GENERATIONS)
    return Position(shard, generation, cursor)


def write(position: Position, shards: int) -> bytes | None:
    """None where the server's cursor is too large to be carried: beyond 2^40 divided by the number of shards."""
    number = (position.cursor * GENERATIONS + position.generation) * shards + position.shard
    return b"%d" % number if number < LIMIT else None


def generation(run_id: bytes) -> int:
    """Of the process with this `run_id`."""
    return int.from_bytes(hashlib.blake2b(run_id, digest_size=4).digest()) % GENERATIONS
