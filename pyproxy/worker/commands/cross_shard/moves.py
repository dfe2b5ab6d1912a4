"""Commands that take something from one key to another, where the two are on different shards.

The destination is written first, then the source is let go of: so a failure in the middle leaves a thing twice, and
never loses it. That the source is what was copied is made sure of:

    RENAME, RENAMENX  WATCH, DUMP ... MULTI, DEL, EXEC on a connection of their own; EXEC does nothing if it was changed
    LMOVE, RPOPLPUSH  LREM of one element of that value, which counts none if others have taken it
    SMOVE             SREM, likewise
    COPY              has nothing to let go of
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from protocol import errors
from protocol.keyspecs import number
from protocol.reply import BadFrame
from protocol.request import Block, Request
from pyproxy.worker.commands.conversation import Conversation, Handler, Refusal
from pyproxy.worker.commands.cross_shard.operands import OK, check_size, value
from pyproxy.worker.commands.local import DATABASES
from pyproxy.worker.shard.pool import Loan, Use

TRIES = 20
"""How often a source may be changed by others, until it is left where it is."""

NONE, ONE = b":0\r\n", b":1\r\n"
NIL = (b"$-1\r\n", b"_\r\n")  # of an element, in RESP2 and RESP3
TAKEN = b"-BUSYKEY "  # what RESTORE says where a key is there that it may not replace


def _ends(talk: Conversation) -> tuple[bytes, int, bytes, int]:
    source, destination = talk.argv[1], talk.argv[2]
    return source, talk.shard_of(source), destination, talk.shard_of(destination)


# --- whole keys -------------------------------------------------------------------------------------------------------


async def _rename(talk: Conversation) -> bytes:
    return await _renamed(talk, replace=True, done=OK)


async def _renamenx(talk: Conversation) -> bytes:
    return await _renamed(talk, replace=False, done=ONE)


async def _renamed(talk: Conversation, *, replace: bool, done: bytes) -> bytes:
    source, here, destination, there = _ends(talk)
    async with talk.lend(here, Use.ACROSS) as loan:
        for attempt in range(TRIES):
            found = await _watched(talk, loan, source)
            if found is None:
                if attempt:
                    return errors.source_taken(talk.name(here), talk.name(there))
                await _unwatch(talk, loan)
                return errors.no_such_key()
            command = restore(destination, *found, replace=replace or attempt > 0)
            written = await talk.ask(there, *command, write=True)
            if written != OK:
                if attempt:
                    raise Refusal(talk.error_of(written))
                await _unwatch(talk, loan)
                return NONE if written.startswith(TAKEN) and not replace else talk.error_of(written)
            talk.applied(there)
            if await _deleted(talk, loan, source):
                loan.keep = True
                return done
    return errors.source_changed(talk.name(here), talk.name(there))


async def _watched(talk: Conversation, loan: Loan, key: bytes) -> tuple[bytes, int] | None:
    """A key of this connection's shard, watched from now on: its value as DUMP gives it, and its PTTL. None: no key."""
    watched, size = await asyncio.gather(_ask(talk, loan, b"WATCH", key), _ask(talk, loan, b"MEMORY", b"USAGE", key))
    if watched != b"OK":
        raise BadFrame("WATCH was not answered as it is")  # so what was changed meanwhile might not be seen
    check_size(talk, size if isinstance(size, int) else 0)
    payload, left_ms = await asyncio.gather(_ask(talk, loan, b"DUMP", key), _ask(talk, loan, b"PTTL", key))
    return _found(talk, payload, left_ms)


async def _unwatch(talk: Conversation, loan: Loan) -> None:
    await _ask(talk, loan, b"UNWATCH")
    loan.keep = True


def _found(talk: Conversation, payload: object, left_ms: object) -> tuple[bytes, int] | None:
    """Of the answers to DUMP and PTTL. Raises BadFrame for any that are none."""
    if payload is None or left_ms == -2:
        return None
    if not isinstance(payload, bytes) or not isinstance(left_ms, int) or left_ms < -1:
        raise BadFrame(f"expected the answers to DUMP and PTTL, got {payload!r:.64} and {left_ms!r:.64}")
    check_size(talk, len(payload))
    return payload, left_ms


async def _ask(talk: Conversation, loan: Loan, *argv: bytes) -> object:
    """A read, or a WATCH, on a connection of its own. Raises Refusal for an error."""
    frame = await talk.ask_on(loan, Request(argv), write=False, deadline_s=talk.reply_s)
    return value(talk, loan.link.index, frame)


async def _deleted(talk: Conversation, loan: Loan, key: bytes) -> bool:
    """Whether a key that is watched was as it had been, and is gone now."""
    block = Block([Request([b"DEL", key])])
    frame = await talk.ask_on(loan, block, write=True, deadline_s=talk.reply_s)
    said = value(talk, loan.link.index, frame)
    if said not in (None, [0], [1]):
        raise BadFrame(f"expected the answer to a block with a DEL, got {frame[:64]!r}")
    return said == [1]


def restore(key: bytes, payload: bytes, left_ms: int, *, replace: bool) -> list[bytes]:
    """`left_ms`: as PTTL says it, where 0 is less than one; to RESTORE it would mean forever."""
    ttl = 0 if left_ms == -1 else max(left_ms, 1)
    return [b"RESTORE", key, b"%d" % ttl, payload, *([b"REPLACE"] if replace else [])]


async def _copy(talk: Conversation) -> bytes:
    source, here, destination, there = _ends(talk)
    replace, db = copy_options(talk.argv)
    (size,) = (await talk.ask_blocks({here: [[b"MEMORY", b"USAGE", source]]}, primary=True))[here]
    measured = value(talk, here, size)
    check_size(talk, measured if isinstance(measured, int) else 0)
    frames = (await talk.ask_blocks({here: [[b"DUMP", source], [b"PTTL", source]]}, primary=True))[here]
    found = _found(talk, *(value(talk, here, frame) for frame in frames))
    if found is None:
        return NONE
    command = restore(destination, *found, replace=replace)
    if db is None:
        written = await talk.ask(there, *command, write=True)
    else:
        async with talk.lend(there, Use.BRIEF, db=db) as loan:
            written = await talk.ask_on(loan, Request(command), write=True, deadline_s=talk.reply_s)
            loan.keep = True
    if written.startswith(TAKEN):
        return NONE
    return ONE if written == OK else talk.error_of(written)


def copy_options(argv: Sequence[bytes]) -> tuple[bool, int | None]:
    """Whether it may replace, and the other database; checked as db.c does (copyCommand)."""
    replace, db = False, None
    rest = iter(argv[3:])
    for option in rest:
        match option.lower():
            case b"replace":
                replace = True
            case b"db" if (said := next(rest, None)) is not None:
                db = number(said)
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


async def _smove(talk: Conversation) -> bytes:
    source, here, destination, there = _ends(talk)
    member = talk.argv[3]
    frame = await talk.ask(here, b"SISMEMBER", source, member, primary=True)
    if frame == NONE:
        return await _not_a_member(talk)
    if frame != ONE:
        return talk.error_of(frame)
    added = await talk.ask(there, b"SADD", destination, member, write=True)
    if added not in (NONE, ONE):
        return talk.error_of(added)
    if added == ONE:
        talk.applied(there)
    removed = await talk.ask(here, b"SREM", source, member, write=True)
    if removed == NONE and added == ONE:
        return errors.source_taken(talk.name(here), talk.name(there))
    if removed not in (NONE, ONE):
        raise Refusal(talk.error_of(removed))
    return removed


async def _not_a_member(talk: Conversation) -> bytes:
    """Nothing to move; where there is a source, a destination that is no set is an error all the same."""
    source, here, destination, there = _ends(talk)
    if await talk.ask(here, b"EXISTS", source, primary=True) == NONE:
        return NONE
    frame = await talk.ask(there, b"SISMEMBER", destination, talk.argv[3], primary=True)
    return NONE if frame in (NONE, ONE) else talk.error_of(frame)


async def _rpoplpush(talk: Conversation) -> bytes:
    return await _moved(talk, b"right", b"left")


async def _lmove(talk: Conversation) -> bytes:
    sides = [word.lower() for word in talk.argv[3:5]]
    if not {b"left", b"right"}.issuperset(sides):
        return errors.syntax_error()
    return await _moved(talk, *sides)


async def _moved(talk: Conversation, from_side: bytes, to_side: bytes) -> bytes:
    """An element from the end of one list to an end of another.

    Where somebody else takes it from the source first, it is taken back from the destination, and the next one moved,
    for as long as a reply may take.
    """
    source, here, destination, there = _ends(talk)
    place, one_from = (b"0", b"1") if from_side == b"left" else (b"-1", b"-1")
    push, one_to = (b"LPUSH", b"1") if to_side == b"left" else (b"RPUSH", b"-1")
    until = talk.lane.loop.time() + talk.reply_s
    while True:
        frame = await talk.ask(here, b"LINDEX", source, place, primary=True)
        if frame in NIL:
            return frame
        element = _element(frame)
        if element is None:
            return talk.error_of(frame)
        if talk.lane.loop.time() >= until:
            return errors.not_applied(talk.name(here), talk.lane.links[here].node, errors.TAKEN_AWAY)
        pushed = await talk.ask(there, push, destination, element, write=True)
        if not pushed.startswith(b":"):
            return talk.error_of(pushed)
        talk.applied(there)
        removed = await talk.ask(here, b"LREM", source, one_from, element, write=True)
        if removed == ONE:
            return frame
        if removed != NONE:
            raise Refusal(talk.error_of(removed))
        if await talk.ask(there, b"LREM", destination, one_to, element, write=True) != ONE:
            return errors.source_taken(talk.name(here), talk.name(there))
        talk.undone(there)


def _element(frame: bytes) -> bytes | None:
    """The value of a bulk string's frame."""
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
