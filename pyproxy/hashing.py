"""From a key to its slot.

A key comes in, a number from 0 to 16383 goes out. Which shard owns a slot is not known here: see shard_map.py.
Pure: no I/O, no state.
"""

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
