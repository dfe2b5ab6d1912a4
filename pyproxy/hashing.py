"""From a key to its slot.

A key comes in, a number from 0 to 16383 goes out. Which shard owns a slot is not known here: see shard_map.py.
Pure: no I/O, no state.
"""

from collections.abc import Iterable

import mmh3

SLOTS = 16384


def hash_tag(key: bytes) -> bytes:
    """The part of a key that is hashed: what is between its first `{` and the first `}` after it, else the whole key.

    An empty tag (`{}`) counts as none, as in Redis Cluster:
    https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#hash-tags
    """
    start = key.find(b"{") + 1
    if start == 0:
        return key
    end = key.find(b"}", start)
    if end <= start:
        return key
    return key[start:end]


def slot(key: bytes) -> int:
    """The slot of a key: murmur3 (x86, 32 bit, seed 0, unsigned) of its hash tag, modulo 16384."""
    return mmh3.hash(hash_tag(key), 0, False) % SLOTS


def in_slots(keys: Iterable[bytes], wanted: bytes) -> list[bytes]:
    """Those of many keys whose slot is wanted: for each slot, `wanted` has a byte that is not 0."""
    hashed = mmh3.hash
    return [key for key in keys if wanted[hashed(key, 0, False) % SLOTS if b"{" not in key else slot(key)]]
