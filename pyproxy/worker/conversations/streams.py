"""XREAD and XREADGROUP of streams on several shards: each shard is asked for its own, and the answers become one.

XREADGROUP writes: each shard does its part or does not, and the whole is not atomic. Where one fails, what others have
handed out stays pending for the consumer, as after a reply that was lost.
"""

from collections.abc import Sequence

from protocol import errors
from protocol.scan import ProtocolError, elements
from pyproxy.worker.conversation import Conversation, Handler

NIL = {2: b"*-1\r\n", 3: b"_\r\n"}


async def _read(talk: Conversation) -> bytes:
    """The streams that have something, in the order in which they were named; nil if none has."""
    argv, names = talk.argv, talk.command.keys(talk.argv)
    shards = [talk.shard_of(argv[name]) for name in names]
    first, count = names[0], len(names)
    if len(argv) - first != 2 * count:
        return await talk.ask(shards[0], *argv)  # a stream without an id: it has no effect but the server's words
    parts = {
        shard: [
            *argv[:first],
            *(argv[name] for name, owner in zip(names, shards, strict=True) if owner == shard),
            *(argv[name + count] for name, owner in zip(names, shards, strict=True) if owner == shard),
        ]
        for shard in dict.fromkeys(shards)
    }
    write = "write" in talk.command.flags
    frames = await talk.ask_each(parts, write=write)
    wrong = [shard for shard, frame in frames.items() if frame.startswith(b"-")]
    if wrong:
        applied = [talk.name(shard) for shard in frames if shard not in wrong] if write else []
        return errors.part_failed(talk.name(wrong[0]), frames[wrong[0]], applied) if applied else frames[wrong[0]]
    return _merged(talk, [(argv[name], shard) for name, shard in zip(names, shards, strict=True)], frames)


def _merged(talk: Conversation, keys: Sequence[tuple[bytes, int]], frames: dict[int, bytes]) -> bytes:
    """The streams of all parts; each part has its own in the order of the request."""
    proto = talk.client.proto
    try:
        left = {shard: _streams(frame, proto) for shard, frame in frames.items()}
        found = []
        for key, shard in keys:
            if left[shard] and left[shard][0][0] == b"$%d\r\n%b\r\n" % (len(key), key):
                found.append(left[shard].pop(0)[1])
        if any(left.values()):
            raise ProtocolError("expected streams that were asked for")
    except ProtocolError:
        return errors.unexpected_part(talk.command.name)
    return b"%b%d\r\n" % (b"%" if proto == 3 else b"*", len(found)) + b"".join(found) if found else NIL[proto]


def _streams(frame: bytes, proto: int) -> list[tuple[bytes, bytes]]:
    """The key of each stream, and all that is said of it: in RESP2 an array of two, in RESP3 a pair of a map."""
    if frame == NIL[proto]:
        return []
    if proto == 2:
        return [(elements(each)[0], each) for each in elements(frame)]
    count, _, body = frame.removeprefix(b"%").partition(b"\r\n")
    words = iter(elements(b"*%d\r\n%b" % (2 * int(count), body), True))
    return [(key, key + entries) for key, entries in zip(words, words, strict=True)]


ACROSS: dict[bytes, Handler] = {b"xread": _read, b"xreadgroup": _read}
