"""What is asked of the keys of all shards, one shard after another."""

import random

from pyproxy.worker.conversation import Conversation, Handler


async def _randomkey(talk: Conversation) -> bytes:
    """A key of a shard that is chosen by how many keys it has; nil only if every shard is empty."""
    sizes = await talk.ask_all(b"DBSIZE")
    counts = {shard: int(frame[1:-2]) for shard, frame in sizes.items() if frame.startswith(b":")}
    nil = b"_\r\n" if talk.client.proto == 3 else b"$-1\r\n"
    while any(counts.values()):
        (shard,) = random.choices(list(counts), list(counts.values()))
        key = await talk.ask(shard, b"RANDOMKEY")
        if key != nil:
            return key
        counts[shard] = 0  # its last key is gone since it was counted
    return nil


HANDLERS: dict[bytes, Handler] = {b"randomkey": _randomkey}
