"""XREAD and XREADGROUP of streams on several shards: each shard is asked for its streams, and the answers are merged.

XREADGROUP writes. First the proxy checks that every stream has the group, then it asks one shard after another. The
whole is not atomic. If a shard fails, the entries that other shards have given stay pending for the consumer, as after
a lost reply.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from protocol import errors
from protocol.reply import RESP3, Error, decode, fields, listed, text_of
from protocol.scan import ProtocolError, elements
from pyproxy.worker.commands.conversation import Conversation, Handler, Refusal

NIL = (b"*-1\r\n", b"_\r\n")  # of an array, in RESP2 and RESP3


async def _xread(conversation: Conversation) -> bytes:
    """The name and the entries of each stream that has new entries."""
    positions = conversation.command.keys(conversation.argv)
    head, count = conversation.argv[: positions[0]], len(positions)
    if len(conversation.argv) != positions[-1] + 1 + count:
        return await conversation.ask(
            conversation.shard_of(conversation.argv[positions[0]]), *conversation.argv
        )  # the server refuses it
    keys: list[bytes] = []
    ids: list[bytes] = []
    shards: list[int] = []
    async for some in conversation.in_turns(positions):
        keys += [conversation.argv[position] for position in some]
        ids += [conversation.argv[position + count] for position in some]
        shards += [conversation.shard_of(key) for key in keys[len(shards) :]]
    if conversation.command.name == b"xread":
        frames = await conversation.ask_each(await _of_shards(conversation, head, keys, ids, shards), primary=True)
    elif (place := await _without_group(conversation, head, keys, shards)) is not None:
        return await conversation.ask(
            shards[place], *head, keys[place], ids[place], write=True
        )  # the server refuses it
    else:
        frames = await _one_by_one(conversation, await _of_shards(conversation, head, keys, ids, shards))
    for frame in frames.values():
        if frame.startswith(b"-"):
            raise Refusal(frame)
    try:
        answer = InOrder(frames, conversation.client.proto)
        async for streams in conversation.in_turns(zip(keys, shards, strict=True)):
            answer.take(streams)
        return answer.frame
    except ProtocolError:
        raise Refusal(errors.unexpected_part(conversation.command.name)) from None


async def _of_shards(
    conversation: Conversation,
    head: Sequence[bytes],
    keys: Sequence[bytes],
    ids: Sequence[bytes],
    shards: Sequence[int],
) -> dict[int, list[bytes]]:
    """Shard -> its command, in the order of the first keys."""
    commands: dict[int, list[bytes]] = {}
    behind: dict[int, list[bytes]] = {}
    async for some in conversation.in_turns(zip(shards, keys, ids, strict=True)):
        for shard, key, last in some:
            if shard not in commands:
                commands[shard], behind[shard] = list(head), []
            commands[shard].append(key)
            behind[shard].append(last)
    for shard, command in commands.items():
        command += behind[shard]
    return commands


async def _without_group(
    conversation: Conversation, head: Sequence[bytes], keys: Sequence[bytes], shards: Sequence[int]
) -> int | None:
    """The index of the first key that is no stream with the group; None if all are. XREADGROUP needs all of them."""
    options = [word.lower() for word in head]
    if b"group" not in options:
        return 0
    group = head[options.index(b"group") + 1]
    blocks: dict[int, list[list[bytes]]] = {}
    for key, shard in zip(keys, shards, strict=True):
        blocks.setdefault(shard, []).append([b"XINFO", b"GROUPS", key])
    answers = await conversation.ask_blocks(blocks, primary=True)
    for place, shard in enumerate(shards):
        if not _has_group(next(answers[shard]), group):
            return place
    return None


def _has_group(frame: bytes, group: bytes) -> bool:
    """Whether a reply to XINFO GROUPS has the group."""
    reply = decode(frame)
    if isinstance(reply, Error):
        return False
    return group in [text_of(fields(each), b"name") for each in listed(reply)]


async def _one_by_one(conversation: Conversation, commands: Mapping[int, Sequence[bytes]]) -> dict[int, bytes]:
    """Send a write to one shard after another, until one replies with an error."""
    frames: dict[int, bytes] = {}
    for shard, argv in commands.items():
        frames[shard] = await conversation.ask(shard, *argv, write=True)
        if frames[shard].startswith(b"-"):
            break
        conversation.applied(shard)
    return frames


class InOrder:
    """Merges the answers of shards, in the order of the request. Raises ProtocolError if one is malformed."""

    def __init__(self, frames: Mapping[int, bytes], proto: int) -> None:
        self._proto = proto
        self._before = b"" if proto == RESP3 else b"*2\r\n"
        self._left = {shard: _of_streams(frame, proto)[::-1] for shard, frame in frames.items()}
        self._found: list[bytes] = []

    def take(self, streams: Iterable[tuple[bytes, int]]) -> None:
        """Append the next streams of the request. `streams`: (key, shard) of each."""
        for key, shard in streams:
            left = self._left[shard]
            if left and left[-1].startswith(b"%b$%d\r\n%b\r\n" % (self._before, len(key), key)):
                self._found.append(left.pop())

    @property
    def frame(self) -> bytes:
        if any(self._left.values()):
            raise ProtocolError("a stream that was not asked for")
        if not self._found:
            return NIL[self._proto == RESP3]
        return b"%b%d\r\n%b" % (b"%" if self._proto == RESP3 else b"*", len(self._found), b"".join(self._found))


def _of_streams(frame: bytes, proto: int) -> list[bytes]:
    """The frames of the streams in a reply, name and entries: an element of an array, or two of a map (RESP3)."""
    if frame in NIL:
        return []
    if proto != RESP3:
        return elements(frame)
    header, _, rest = frame.partition(b"\r\n")
    if not header.startswith(b"%"):
        raise ProtocolError("expected a map")
    words = elements(b"*%d\r\n%b" % (2 * int(header[1:]), rest), True)
    return [name + entries for name, entries in zip(words[::2], words[1::2], strict=True)]


ACROSS: dict[bytes, Handler] = {b"xread": _xread, b"xreadgroup": _xread}
