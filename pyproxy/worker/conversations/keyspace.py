"""What is asked of the keys of all shards, one shard after another."""

import random
import re

from protocol import errors
from protocol.scan import elements
from pyproxy.worker import cursor
from pyproxy.worker.conversation import Conversation, Handler, Refusal
from pyproxy.worker.cursor import Position
from pyproxy.worker.lane import Wire

ATTEMPTS = 4
"""A page is asked for again where its connection was another than before; the first one may have to be made."""

_RUN_ID = re.compile(rb"^run_id:(\w+)", re.MULTILINE)


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


async def _scan(talk: Conversation) -> bytes:
    """A page of one shard. Empty ones at the end of a shard are passed over, so it asks each shard once at most."""
    shards = len(talk.shards)
    at = cursor.read(talk.argv[1], shards)
    if at is None:
        return errors.invalid_cursor()
    while True:
        generation, frame = await _page(talk, at)
        if frame.startswith(b"-"):
            return frame
        said, keys = elements(frame, talk.client.proto == 3)
        reached = int(said.split(b"\r\n")[1])
        if not reached and at.shard + 1 == shards:
            return _reply(b"0", keys)
        to = Position(at.shard, generation, reached) if reached else Position(at.shard + 1)
        if reached or keys != b"*0\r\n":
            written = cursor.write(to, shards)
            return _reply(written, keys) if written else errors.cursor_too_large(talk.name(at.shard), reached)
        at = to


def _reply(at: bytes, keys: bytes) -> bytes:
    return b"*2\r\n$%d\r\n%b\r\n%b" % (len(at), at, keys)


async def _page(talk: Conversation, at: Position) -> tuple[int, bytes]:
    """The generation of the process that answered, and its answer: from the beginning, if another gave the cursor.

    A connection leads to one process for as long as it lives: if it is the same before and after, so is the process.
    """
    for _ in range(ATTEMPTS):
        wire = _connection(talk, at.shard)
        if wire is None or wire.run_id is None:
            run_id = await _run_id(talk, at.shard)
            if wire is None or _connection(talk, at.shard) is not wire:
                continue
            wire.run_id = run_id
        generation = cursor.generation(wire.run_id)
        start = at.cursor if at.generation == generation else 0
        frame = await talk.ask(at.shard, b"SCAN", b"%d" % start, *talk.argv[2:], primary=True)
        if _connection(talk, at.shard) is wire:
            return generation, frame
    link = talk.lane.links[at.shard]
    raise Refusal(errors.not_applied(link.name, link.node, errors.LOST))


def _connection(talk: Conversation, shard: int) -> Wire | None:
    """To the primary of a shard, now; None: there is none."""
    wire: Wire | None = talk.lane.links[shard].backend(talk.client.proto, talk.client.db).wire
    return wire


async def _run_id(talk: Conversation, shard: int) -> bytes:
    frame = await talk.ask(shard, b"INFO", b"server", primary=True)
    found = _RUN_ID.search(frame)
    if found is None:
        raise Refusal(frame if frame.startswith(b"-") else errors.unexpected_part(b"info"))
    return found[1]


HANDLERS: dict[bytes, Handler] = {b"randomkey": _randomkey, b"scan": _scan}
