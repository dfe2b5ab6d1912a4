"""XREAD and XREADGROUP of streams on several shards: each shard is asked for its streams, and the answers are merged.

XREADGROUP writes. First the proxy checks that every stream has the group, then it asks one shard after another. The
whole is not atomic. If a shard fails, the entries that other shards have given stay pending for the consumer, as after
a lost reply.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain

from protocol.reply import NIL_ARRAY, RESP3, Error, decode, fields, listed, text_of
from protocol.request import Request
from protocol.scan import Elements, ProtocolError
from pyproxy.worker.commands.conversation import Conversation, Handler, Refusal
from pyproxy.worker.commands.cross_shard.keys import grouped, shards_of_each, words_at


async def _xread(conversation: Conversation) -> bytes:
    """The name and the entries of each stream that has new entries."""
    argv, positions = conversation.argv, conversation.command.keys(conversation.argv)
    head, count = argv[: positions[0]], len(positions)
    if len(argv) != positions[-1] + 1 + count:
        request = await conversation.request_of(argv)
        return await conversation.ask_request(
            conversation.shard_of(argv[positions[0]]), request
        )  # the server refuses it
    shards = await shards_of_each(conversation, positions)
    parts = await grouped(conversation, positions, shards)
    if conversation.command.name == b"xread":
        requests = {shard: await part(conversation, argv, head, each, count) for shard, each in parts.items()}
        frames = await conversation.ask_each(requests, primary=True)
    elif (place := await _without_group(conversation, head, parts, shards)) is not None:
        key, last = argv[positions[place]], argv[positions[place] + count]
        return await conversation.ask(shards[place], *head, key, last, write=True)  # the server refuses it
    else:
        frames = await _one_by_one(conversation, head, parts, count)
    for frame in frames.values():
        if frame.startswith(b"-"):
            raise Refusal(frame)
    return await in_order(conversation, frames, zip(words_at(conversation, positions), shards, strict=True))


async def part(
    conversation: Conversation, argv: Sequence[bytes], head: Sequence[bytes], positions: Sequence[int], count: int
) -> Request:
    """What one shard is asked for the streams at these positions. The id of each stands `count` words behind it."""
    names = (argv[position] for position in positions)
    ids = (argv[position + count] for position in positions)
    return await conversation.request(len(head) + 2 * len(positions), chain(head, names, ids))


async def _without_group(
    conversation: Conversation, head: Sequence[bytes], parts: Mapping[int, Sequence[int]], shards: Sequence[int]
) -> int | None:
    """The index of the first key that is no stream with the group; None if all are. XREADGROUP needs all of them."""
    options = [word.lower() for word in head]
    if b"group" not in options:
        return 0
    group = head[options.index(b"group") + 1]
    blocks = {
        shard: ([b"XINFO", b"GROUPS", key] for key in words_at(conversation, each)) for shard, each in parts.items()
    }
    answers = await conversation.ask_blocks(blocks, primary=True)
    async for some in conversation.in_turns(enumerate(shards)):
        for place, shard in some:
            if not _has_group(next(answers[shard]), group):
                return place
    return None


def _has_group(frame: bytes, group: bytes) -> bool:
    """Whether a reply to XINFO GROUPS has the group."""
    reply = decode(frame)
    if isinstance(reply, Error):
        return False
    return group in [text_of(fields(each), b"name") for each in listed(reply)]


async def _one_by_one(
    conversation: Conversation, head: Sequence[bytes], parts: Mapping[int, Sequence[int]], count: int
) -> dict[int, bytes]:
    """Send a write to one shard after another, until one replies with an error."""
    frames: dict[int, bytes] = {}
    for shard, positions in parts.items():
        request = await part(conversation, conversation.argv, head, positions, count)
        frames[shard] = await conversation.ask_request(shard, request, write=True)
        if frames[shard].startswith(b"-"):
            break
        conversation.applied(shard)
    return frames


async def in_order(
    conversation: Conversation, frames: Mapping[int, bytes], streams: Iterable[tuple[bytes, int]]
) -> bytes:
    """The answers of shards as one, in the order of the request. `streams`: (key, shard) of each.

    Raises ProtocolError if one is malformed.
    """
    answer = InOrder(frames, conversation.client.proto)
    async for some in conversation.in_turns(streams):
        answer.take(some)
    return answer.frame


class InOrder:
    """Merges the answers of shards, in the order of the request. Raises ProtocolError if one is malformed."""

    def __init__(self, frames: Mapping[int, bytes], proto: int) -> None:
        self._proto = proto
        self._before = b"" if proto == RESP3 else b"*2\r\n"
        self._left = {shard: _of_streams(frame, proto) for shard, frame in frames.items()}
        self._next = {shard: next(left, None) for shard, left in self._left.items()}
        self._count = 0
        self._found: list[bytes] = []

    def take(self, streams: Iterable[tuple[bytes, int]]) -> None:
        """Append the next streams of the request. `streams`: (key, shard) of each, also where the shard has none."""
        found: list[bytes] = []
        for key, shard in streams:
            stream = self._next.get(shard)
            if stream is not None and stream.startswith(b"%b$%d\r\n%b\r\n" % (self._before, len(key), key)):
                found.append(stream)
                self._next[shard] = next(self._left[shard], None)
        self._count += len(found)
        self._found.append(b"".join(found))

    @property
    def frame(self) -> bytes:
        if any(stream is not None for stream in self._next.values()):
            raise ProtocolError("a stream that was not asked for")
        if not self._count:
            return NIL_ARRAY[self._proto]
        return b"%b%d\r\n%b" % (b"%" if self._proto == RESP3 else b"*", self._count, b"".join(self._found))


def _of_streams(frame: bytes, proto: int) -> Iterator[bytes]:
    """The frames of the streams in a reply, name and entries: an element of an array, or two of a map (RESP3)."""
    if frame in NIL_ARRAY.values():
        return iter(())
    if proto != RESP3:
        return Elements(frame)
    header, _, rest = frame.partition(b"\r\n")
    if not header.startswith(b"%"):
        raise ProtocolError("expected a map")
    words = Elements(b"*%d\r\n%b" % (2 * int(header[1:]), rest), True)
    return (name + entries for name, entries in zip(words, words, strict=True))


ACROSS: dict[bytes, Handler] = {b"xread": _xread, b"xreadgroup": _xread}
