"""What follows from the last look at a shard, said in the same words and numbers by INFO and over HTTP.

Looks come in; states, numbers and the seconds to stay away go out. Pure: the time is an argument.
"""

import math
from collections.abc import Iterable

from pyproxy.messages import ShardLook

LEAST_BACKOFF_S = 1
"""The watcher looks once a second: nobody is told any sooner that a shard is back."""

MOST_BACKOFF_S = 30


def state(look: ShardLook) -> str:
    """``up``, ``down`` (its primary cannot be reached) or ``misplaced`` (it holds keys of another shard)."""
    return "down" if not look.reachable else "misplaced" if look.misplaced else "up"


def writable(look: ShardLook) -> bool:
    return state(look) == "up"


def backoff_s(looks: Iterable[ShardLook], now: float) -> int:
    """Whole seconds for which a client had better not come again; 0 while all of these shards are writable.

    An outage is expected to last as long again as it has lasted. The longest one counts: nobody knows which shard the
    next request needs. `now` is CLOCK_MONOTONIC, s.
    """
    outages = [now - look.since for look in looks if not writable(look)]
    return min(max(LEAST_BACKOFF_S, math.ceil(max(outages))), MOST_BACKOFF_S) if outages else 0


def key_count(look: ShardLook) -> int:
    """Keys of all databases."""
    return sum(count.get("keys", 0) for count in look.keyspace.values())


def integer(text: str | None) -> int:
    """The 64-bit integer a server said; 0 for anything else."""
    try:
        said = int(text or 0)
    except ValueError:
        return 0
    return said if -(1 << 63) <= said < 1 << 63 else 0
