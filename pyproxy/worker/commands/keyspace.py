"""What is asked of the keys of all shards, one shard after another."""

import random
import re
from collections.abc import Sequence

from protocol import errors
from protocol.keyspecs import number
from protocol.reply import BadFrame, decode, integer
from protocol.scan import elements
from pyproxy.worker.commands import cursor
from pyproxy.worker.commands.conversation import Conversation, Handler, Refusal
from pyproxy.worker.commands.cursor import Position
from pyproxy.worker.lane.lane import Wire

ATTEMPTS = 4
"""A page is asked for again where its connection was another than before; the first one may have to be made."""

COUNT = 10
"""Keys of a page, if its client does not say (server.c, scanGenericCommand)."""

_CURSOR = re.compile(rb"[0-9]{1,20}")

_RUN_ID = re.compile(rb"^run_id:(\w+)", re.MULTILINE)


async def _randomkey(conversation: Conversation) -> bytes:
    """A key of a shard that is chosen by how many keys it has; nil only if every shard is empty."""
    sizes = await conversation.ask_all(b"DBSIZE")
    counts = {}
    for shard, frame in sizes.items():
        if frame.startswith(b"-"):
            raise Refusal(errors.part_failed(conversation.name(shard), frame))
        counts[shard] = max(integer(frame), 0)
    nil = b"_\r\n" if conversation.client.proto == 3 else b"$-1\r\n"
    while any(counts.values()):
        (shard,) = random.choices(list(counts), list(counts.values()))
        key = await conversation.ask(shard, b"RANDOMKEY")
        if key != nil:
            return key
        counts[shard] = 0  # its last key is gone since it was counted
    return nil


async def _scan(conversation: Conversation) -> bytes:
    """A page. Where a shard ends before it is full it goes on with the next, so each shard is asked once at most.

    A server that has as many keys in all ends with the first page, and there are clients that ask for no other. So it
    goes on while it is short, unless a request's time is over; where a shard fails, what was found before is a page.
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
        reached, more, keys = _found(frame, conversation.client.proto)
        count, found = count + more, found + keys
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
    """The answer to a SCAN: the server's cursor, how many keys, their frames. Raises BadFrame, ProtocolError."""
    words = elements(frame, proto == 3)
    next_cursor = decode(words[0]) if len(words) == 2 else None
    if not isinstance(next_cursor, bytes) or not _CURSOR.fullmatch(next_cursor) or not words[1].startswith(b"*"):
        raise BadFrame(f"expected a cursor and keys, got {frame[:64]!r}")
    head, _, keys = words[1].partition(b"\r\n")
    return int(next_cursor), max(int(head[1:]), 0), keys


def _count(argv: Sequence[bytes]) -> int:
    """How many keys a page is to have, by the last COUNT; what is wrong with it, the server says."""
    wanted = COUNT
    for word, value in zip(argv[2::2], argv[3::2], strict=False):
        if word.lower() == b"count":
            wanted = number(value) or COUNT
    return wanted


def _reply(position: bytes | None, count: int, keys: bytes) -> bytes:
    assert position is not None  # the beginning of a shard can always be written
    return b"*2\r\n$%d\r\n%b\r\n*%d\r\n%b" % (len(position), position, count, keys)


async def _page(conversation: Conversation, position: Position) -> tuple[int, bytes]:
    """The generation of the process that answered, and its answer: from the beginning, if another gave the cursor.

    A connection leads to one process for as long as it lives: if it is the same before and after, so is the process.
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
    """To the primary of a shard, now; None: there is none."""
    wire: Wire | None = conversation.lane.links[shard].backend(conversation.client.proto, conversation.client.db).wire
    return wire


async def _run_id(conversation: Conversation, shard: int) -> bytes:
    frame = await conversation.ask(shard, b"INFO", b"server", primary=True)
    found = _RUN_ID.search(frame)
    if found is None:
        raise Refusal(frame if frame.startswith(b"-") else errors.unexpected_part(b"info"))
    return found[1]


HANDLERS: dict[bytes, Handler] = {b"randomkey": _randomkey, b"scan": _scan}
