"""Commands that move or copy from one key to another, where the two are on different shards.

The destination is written first, then the value is removed from the source. So a failure in between leaves the value on
both shards, and never loses it. Only what was copied is removed:

    RENAME, RENAMENX  WATCH, DUMP ... MULTI, DEL, EXEC on a leased connection; EXEC does nothing if the source changed
    LMOVE, RPOPLPUSH  LREM of one element with that value; its answer is 0 if another client has taken the element
    SMOVE             SREM, in the same way
    COPY              removes nothing
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from protocol import errors
from protocol.keyspecs import number
from protocol.reply import NIL_BULK, BadFrame
from protocol.request import Block, Request
from pyproxy.worker.commands.conversation import Conversation, Handler, Refusal
from pyproxy.worker.commands.cross_shard.operands import OK, check_size, value
from pyproxy.worker.commands.local_connection import DATABASES
from pyproxy.worker.shard.pool import Lease, LeaseKind

TRIES = 20
"""How often RENAME tries again after another client has changed the source."""

NONE, ONE = b":0\r\n", b":1\r\n"
TAKEN = b"-BUSYKEY "  # RESTORE: the key exists and may not be replaced


def _ends(conversation: Conversation) -> tuple[bytes, int, bytes, int]:
    source, destination = conversation.argv[1], conversation.argv[2]
    return source, conversation.shard_of(source), destination, conversation.shard_of(destination)


# --- whole keys -------------------------------------------------------------------------------------------------------


async def _rename(conversation: Conversation) -> bytes:
    return await _renamed(conversation, replace=True, done=OK)


async def _renamenx(conversation: Conversation) -> bytes:
    return await _renamed(conversation, replace=False, done=ONE)


async def _renamed(conversation: Conversation, *, replace: bool, done: bytes) -> bytes:
    source, source_shard, destination, destination_shard = _ends(conversation)
    async with conversation.lease(source_shard, LeaseKind.CROSS_SHARD) as lease:
        for attempt in range(TRIES):
            found = await _watched(conversation, lease, source)
            if found is None:
                if attempt:
                    return errors.source_taken(conversation.name(source_shard), conversation.name(destination_shard))
                await _unwatch(conversation, lease)
                return errors.no_such_key()
            command = restore(destination, *found, replace=replace or attempt > 0)
            written = await conversation.ask(destination_shard, *command, write=True)
            if written != OK:
                if attempt:
                    raise Refusal(conversation.error_of(written))
                await _unwatch(conversation, lease)
                return NONE if written.startswith(TAKEN) and not replace else conversation.error_of(written)
            conversation.applied(destination_shard)
            if await _deleted(conversation, lease, source):
                lease.reusable = True
                return done
    return errors.source_changed(conversation.name(source_shard), conversation.name(destination_shard))


async def _watched(conversation: Conversation, lease: Lease, key: bytes) -> tuple[bytes, int] | None:
    """Watch a key and read it -> its value as DUMP gives it, and its PTTL; None: the key does not exist."""
    watched, size = await asyncio.gather(
        _ask(conversation, lease, b"WATCH", key), _ask(conversation, lease, b"MEMORY", b"USAGE", key)
    )
    if watched != b"OK":
        raise BadFrame("WATCH was not answered as it is")  # so a change might not be noticed
    check_size(conversation, size if isinstance(size, int) else 0)
    payload, left_ms = await asyncio.gather(
        _ask(conversation, lease, b"DUMP", key), _ask(conversation, lease, b"PTTL", key)
    )
    return _found(conversation, payload, left_ms)


async def _unwatch(conversation: Conversation, lease: Lease) -> None:
    await _ask(conversation, lease, b"UNWATCH")
    lease.reusable = True


def _found(conversation: Conversation, payload: object, left_ms: object) -> tuple[bytes, int] | None:
    """Value and PTTL from the replies to DUMP and PTTL; None: no key. Raises BadFrame if one is malformed."""
    if payload is None or left_ms == -2:
        return None
    if not isinstance(payload, bytes) or not isinstance(left_ms, int) or left_ms < -1:
        raise BadFrame(f"expected the answers to DUMP and PTTL, got {payload!r:.64} and {left_ms!r:.64}")
    check_size(conversation, len(payload))
    return payload, left_ms


async def _ask(conversation: Conversation, lease: Lease, *argv: bytes) -> object:
    """The reply to a read, or to WATCH, on the lease. Raises Refusal for an error."""
    frame = await conversation.ask_on(lease, Request(argv), write=False, deadline_s=conversation.reply_s)
    return value(conversation, lease.link.index, frame)


async def _deleted(conversation: Conversation, lease: Lease, key: bytes) -> bool:
    """Delete the watched key unless it has changed -> whether it is deleted."""
    block = Block([Request([b"DEL", key])])
    frame = await conversation.ask_on(lease, block, write=True, deadline_s=conversation.reply_s)
    reply = value(conversation, lease.link.index, frame)
    if reply not in (None, [0], [1]):
        raise BadFrame(f"expected the answer to a block with a DEL, got {frame[:64]!r}")
    return reply == [1]


def restore(key: bytes, payload: bytes, left_ms: int, *, replace: bool) -> list[bytes]:
    """A RESTORE command. `left_ms`: of PTTL, where 0 is less than 1 ms; for RESTORE 0 would be no expiry."""
    ttl = 0 if left_ms == -1 else max(left_ms, 1)
    return [b"RESTORE", key, b"%d" % ttl, payload, *([b"REPLACE"] if replace else [])]


async def _copy(conversation: Conversation) -> bytes:
    source, source_shard, destination, destination_shard = _ends(conversation)
    replace, db = copy_options(conversation.argv)
    (size,) = (await conversation.ask_blocks({source_shard: [[b"MEMORY", b"USAGE", source]]}, primary=True))[
        source_shard
    ]
    measured = value(conversation, source_shard, size)
    check_size(conversation, measured if isinstance(measured, int) else 0)
    frames = (await conversation.ask_blocks({source_shard: [[b"DUMP", source], [b"PTTL", source]]}, primary=True))[
        source_shard
    ]
    found = _found(conversation, *(value(conversation, source_shard, frame) for frame in frames))
    if found is None:
        return NONE
    command = restore(destination, *found, replace=replace)
    if db is None:
        written = await conversation.ask(destination_shard, *command, write=True)
    else:
        async with conversation.lease(destination_shard, LeaseKind.SHORT, db=db) as lease:
            written = await conversation.ask_on(lease, Request(command), write=True, deadline_s=conversation.reply_s)
            lease.reusable = True
    if written.startswith(TAKEN):
        return NONE
    return ONE if written == OK else conversation.error_of(written)


def copy_options(argv: Sequence[bytes]) -> tuple[bool, int | None]:
    """Whether COPY may replace, and its DB; checked as by copyCommand (db.c). Raises Refusal."""
    replace, db = False, None
    rest = iter(argv[3:])
    for option in rest:
        match option.lower():
            case b"replace":
                replace = True
            case b"db" if (word := next(rest, None)) is not None:
                db = number(word)
                if db is None:
                    raise Refusal(errors.not_an_integer())
                if not -(1 << 31) <= db < 1 << 31:
                    raise Refusal(errors.not_a_c_int())
                if not 0 <= db < DATABASES:
                    raise Refusal(errors.db_index_out_of_range())
            case _:
                raise Refusal(errors.syntax_error())
    return replace, db


# --- one element ------------------------------------------------------------------------------------------------------


async def _smove(conversation: Conversation) -> bytes:
    source, source_shard, destination, destination_shard = _ends(conversation)
    member = conversation.argv[3]
    frame = await conversation.ask(source_shard, b"SISMEMBER", source, member, primary=True)
    if frame == NONE:
        return await _not_a_member(conversation)
    if frame != ONE:
        return conversation.error_of(frame)
    added = await conversation.ask(destination_shard, b"SADD", destination, member, write=True)
    if added not in (NONE, ONE):
        return conversation.error_of(added)
    if added == ONE:
        conversation.applied(destination_shard)
    removed = await conversation.ask(source_shard, b"SREM", source, member, write=True)
    if removed == NONE and added == ONE:
        return errors.source_taken(conversation.name(source_shard), conversation.name(destination_shard))
    if removed not in (NONE, ONE):
        raise Refusal(conversation.error_of(removed))
    return removed


async def _not_a_member(conversation: Conversation) -> bytes:
    """The answer where nothing is to be moved. If the source exists, a destination that is no set is an error."""
    source, source_shard, destination, destination_shard = _ends(conversation)
    if await conversation.ask(source_shard, b"EXISTS", source, primary=True) == NONE:
        return NONE
    frame = await conversation.ask(destination_shard, b"SISMEMBER", destination, conversation.argv[3], primary=True)
    return NONE if frame in (NONE, ONE) else conversation.error_of(frame)


async def _rpoplpush(conversation: Conversation) -> bytes:
    return await _moved(conversation, b"right", b"left")


async def _lmove(conversation: Conversation) -> bytes:
    sides = [word.lower() for word in conversation.argv[3:5]]
    if not {b"left", b"right"}.issuperset(sides):
        return errors.syntax_error()
    return await _moved(conversation, *sides)


async def _moved(conversation: Conversation, from_side: bytes, to_side: bytes) -> bytes:
    """Move an element from an end of one list to an end of another.

    If another client takes the element from the source first, it is removed from the destination, and the next element
    is tried, until `reply_s` is over.
    """
    source, source_shard, destination, destination_shard = _ends(conversation)
    place, one_from = (b"0", b"1") if from_side == b"left" else (b"-1", b"-1")
    push, one_to = (b"LPUSH", b"1") if to_side == b"left" else (b"RPUSH", b"-1")
    until = conversation.lane.loop.time() + conversation.reply_s
    while True:
        frame = await conversation.ask(source_shard, b"LINDEX", source, place, primary=True)
        if frame in NIL_BULK.values():
            return frame
        element = _element(frame)
        if element is None:
            return conversation.error_of(frame)
        if conversation.lane.loop.time() >= until:
            return errors.not_applied(
                conversation.name(source_shard), conversation.lane.links[source_shard].node, errors.TAKEN_AWAY
            )
        pushed = await conversation.ask(destination_shard, push, destination, element, write=True)
        if not pushed.startswith(b":"):
            return conversation.error_of(pushed)
        conversation.applied(destination_shard)
        removed = await conversation.ask(source_shard, b"LREM", source, one_from, element, write=True)
        if removed == ONE:
            return frame
        if removed != NONE:
            raise Refusal(conversation.error_of(removed))
        if await conversation.ask(destination_shard, b"LREM", destination, one_to, element, write=True) != ONE:
            return errors.source_taken(conversation.name(source_shard), conversation.name(destination_shard))
        conversation.undone(destination_shard)


def _element(frame: bytes) -> bytes | None:
    """The value in the frame of a bulk string; None for any other frame."""
    if not frame.startswith(b"$") or frame.startswith(b"$-"):
        return None
    return frame[frame.index(b"\n") + 1 : -2]


HANDLERS: dict[bytes, Handler] = {
    b"rename": _rename,
    b"renamenx": _renamenx,
    b"copy": _copy,
    b"smove": _smove,
    b"rpoplpush": _rpoplpush,
    b"lmove": _lmove,
}
