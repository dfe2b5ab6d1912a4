"""RANDOMKEY and SCAN, over the keys of all shards; and KEYS, while some of these have keys of others.

That is so while slots are moved: the destination has copies, then the source has what is not deleted yet.
"""

import random
import re
from collections.abc import Sequence

from protocol import errors
from protocol.keyspecs import number
from protocol.reply import NIL_BULK, BadFrame, decode, integer
from protocol.scan import elements
from pyproxy.worker.commands import cursor
from pyproxy.worker.commands.conversation import Conversation, Handler, Refusal
from pyproxy.worker.commands.cursor import Position
from pyproxy.worker.lane.lane import Wire

ATTEMPTS = 4
"""How often a page is asked for, if its connection changes. The first connection may have to be made."""

COUNT = 10
"""Keys of a page without COUNT (db.c, scanGenericCommand)."""

_CURSOR = re.compile(rb"[0-9]{1,20}")

_RUN_ID = re.compile(rb"^run_id:(\w+)", re.MULTILINE)


async def _randomkey(conversation: Conversation) -> bytes:
    """A random key of a random shard, weighted by the numbers of keys; nil only if all shards are empty."""
    sizes = await conversation.ask_all(b"DBSIZE")
    counts = {}
    for shard, frame in sizes.items():
        if frame.startswith(b"-"):
            raise Refusal(errors.part_failed(conversation.name(shard), frame))
        counts[shard] = max(integer(frame), 0)
    nil = NIL_BULK[conversation.client.proto]
    while any(counts.values()):
        (shard,) = random.choices(list(counts), list(counts.values()))
        for _ in range(ATTEMPTS if shard in conversation.context.foreign else 1):
            key = await conversation.ask(shard, b"RANDOMKEY")
            if key == nil or shard not in conversation.context.foreign or await _own(conversation, shard, [key]):
                break
        if key != nil:
            return key
        counts[shard] = 0  # its last key is gone since it was counted
    return nil


async def keys(conversation: Conversation) -> bytes:
    """KEYS, each of its owner alone. If slots move meanwhile, anew: the new owner may not have had a key when asked."""
    while True:
        links, foreign = conversation.lane.links, conversation.context.foreign
        found = []
        for shard, frame in (await conversation.ask_all(*conversation.argv)).items():
            if frame.startswith(b"-"):
                raise Refusal(errors.part_failed(conversation.name(shard), frame))
            keys = elements(frame, conversation.client.proto == 3)
            # what was foreign when it was asked is in the reply, though it may have been deleted since
            is_mixed = shard in foreign or shard in conversation.context.foreign
            found += await _own(conversation, shard, keys) if is_mixed else keys
        if conversation.lane.links is links:
            return b"*%d\r\n" % len(found) + b"".join(found)


async def _own(conversation: Conversation, shard: int, frames: Sequence[bytes]) -> list[bytes]:
    """Those of these keys of a shard, as its replies name them, that are its own."""
    own: list[bytes] = []
    async for some in conversation.in_turns(frames):
        for frame in some:
            key = decode(frame)
            if not isinstance(key, bytes) or conversation.shard_of(key) == shard:
                own.append(frame)
    return own


async def _scan(conversation: Conversation) -> bytes:
    """A page. If a shard ends before the page is full, the next shard is asked, so each is asked at most once.

    A single server with so few keys would end with the first page, and some clients ask for no second one. So the page
    is filled until `reply_s` is over. If a shard fails, the keys of the shards before it are the page.
    """
    shards = len(conversation.shards)
    position = cursor.read(conversation.argv[1], shards)
    if position is None:
        return errors.invalid_cursor()
    wanted, until = _count(conversation.argv), conversation.lane.loop.time() + conversation.reply_s
    count, found = 0, b""
    while True:
        try:
            generation, frame = await _page(conversation, position)
        except Refusal as refusal:
            frame = refusal.line
        if frame.startswith(b"-"):
            return _reply(cursor.write(position, shards), count, found) if count else frame
        reached, more, page = _found(frame, conversation.client.proto)
        if position.shard in conversation.context.foreign:
            own = await _own(conversation, position.shard, elements(b"*%d\r\n%b" % (more, page)))
            more, page = len(own), b"".join(own)
        count, found = count + more, found + page
        if reached:
            written = cursor.write(Position(position.shard, generation, reached), shards)
            return (
                _reply(written, count, found)
                if written
                else errors.cursor_too_large(conversation.name(position.shard), reached)
            )
        if position.shard + 1 == shards:
            return _reply(b"0", count, found)
        position = Position(position.shard + 1)
        if count >= wanted or (count and conversation.lane.loop.time() >= until):
            return _reply(cursor.write(position, shards), count, found)


def _found(frame: bytes, proto: int) -> tuple[int, int, bytes]:
    """A reply to SCAN -> the server's cursor, the number of keys, their frames. Raises BadFrame, ProtocolError."""
    words = elements(frame, proto == 3)
    next_cursor = decode(words[0]) if len(words) == 2 else None
    if not isinstance(next_cursor, bytes) or not _CURSOR.fullmatch(next_cursor) or not words[1].startswith(b"*"):
        raise BadFrame(f"expected a cursor and keys, got {frame[:64]!r}")
    head, _, keys = words[1].partition(b"\r\n")
    return int(next_cursor), max(int(head[1:]), 0), keys


def _count(argv: Sequence[bytes]) -> int:
    """How many keys a page should have, by the last COUNT. The server checks it."""
    wanted = COUNT
    for word, value in zip(argv[2::2], argv[3::2], strict=False):
        if word.lower() == b"count":
            wanted = number(value) or COUNT
    return wanted


def _reply(position: bytes | None, count: int, keys: bytes) -> bytes:
    assert position is not None  # the beginning of a shard can always be written
    return b"*2\r\n$%d\r\n%b\r\n*%d\r\n%b" % (len(position), position, count, keys)


async def _page(conversation: Conversation, position: Position) -> tuple[int, bytes]:
    """A page of one shard -> the generation of the server process, its reply.

    If another process gave the cursor, the shard is scanned from its beginning. A connection belongs to one process: if
    it is the same before and after, so is the process.
    """
    for _ in range(ATTEMPTS):
        wire = _connection(conversation, position.shard)
        if wire is None or wire.run_id is None:
            run_id = await _run_id(conversation, position.shard)
            if wire is None or _connection(conversation, position.shard) is not wire:
                continue
            wire.run_id = run_id
        generation = cursor.generation(wire.run_id)
        start = position.cursor if position.generation == generation else 0
        frame = await conversation.ask(position.shard, b"SCAN", b"%d" % start, *conversation.argv[2:], primary=True)
        if _connection(conversation, position.shard) is wire:
            return generation, frame
    link = conversation.lane.links[position.shard]
    raise Refusal(errors.not_applied(link.name, link.node, errors.LOST))


def _connection(conversation: Conversation, shard: int) -> Wire | None:
    """The connection to the primary of a shard; None if there is none now."""
    wire: Wire | None = conversation.lane.links[shard].backend(conversation.client.proto, conversation.client.db).wire
    return wire


async def _run_id(conversation: Conversation, shard: int) -> bytes:
    frame = await conversation.ask(shard, b"INFO", b"server", primary=True)
    found = _RUN_ID.search(frame)
    if found is None:
        raise Refusal(frame if frame.startswith(b"-") else errors.unexpected_part(b"info"))
    return found[1]


HANDLERS: dict[bytes, Handler] = {b"randomkey": _randomkey, b"scan": _scan}
