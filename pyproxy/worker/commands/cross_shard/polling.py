"""Blocking commands whose keys are on several shards: the shards are asked in turn, again and again.

No server can wait for the keys of others. If two servers waited at the same time, both could give an element where one
was asked for. So the proxy sends the variant that does not block, to one shard at a time, in the order of the keys. The
first answer that is not nil is the client's. An element that is there already is found in the order of the keys, as by
one server. One that comes later is found within about `LONGEST_S`.

ready_keys.py watches the keys of all clients of the worker together, and wakes those for whom there may be something.
Used only with `cross_shard = "emulate"`.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from hashlib import blake2b
from itertools import chain

from protocol import errors, scan
from protocol.keyspecs import timeout_place
from protocol.reply import NIL_ARRAY, NILS, BadFrame
from pyproxy.worker.commands.block_timeout import BlockTimeout
from pyproxy.worker.commands.conversation import Conversation, Handler, Refusal
from pyproxy.worker.commands.cross_shard.keys import Groups
from pyproxy.worker.commands.cross_shard.moves import HANDLERS as MOVES
from pyproxy.worker.commands.cross_shard.ready_keys import Id, ReadyKeys, Waiter
from pyproxy.worker.commands.streams import in_order, part

"""The answer at the timeout, by protocol."""

_ID = re.compile(rb"([0-9]{1,20})(?:-([0-9]{1,20}))?")

KEY_BYTES = 512
"""The memory for a key that is waited for: in the keys of the client, and in the checks of its shard."""

Round = Callable[[Conversation, Sequence[bytes], Groups], Awaitable[bytes | None]]


async def poll(conversation: Conversation, block_timeout: BlockTimeout) -> bytes:
    """The answer. The command is `block_timeout.argv`, in which `$` is replaced; the client's argv still has it."""
    argv, name = block_timeout.argv, conversation.command.name
    positions = conversation.command.keys(argv)
    groups = await Groups.of(conversation, positions)
    ask = POLLED[name]
    waiter, ready_keys = Waiter(conversation), None
    with contextlib.ExitStack() as blocks:
        blocks.enter_context(conversation.waiting(waiter.woken.set))
        while (reply := await ask(conversation, argv, groups)) is None:
            conversation.has_written_nothing()
            if ready_keys is None:
                blocks.enter_context(conversation.charged(KEY_BYTES * len(positions)))
                await _fill(waiter, argv, positions)
            conversation.check_not_stopped()
            left_s = block_timeout.left_s
            if left_s == 0.0:
                return NIL_ARRAY[conversation.client.proto]
            if ready_keys is None:
                context = conversation.context
                ready_keys = context.ready_keys.setdefault(
                    conversation.client.db, ReadyKeys(conversation.lane.loop, context.on_checked)
                )
                blocks.enter_context(ready_keys.watching_for(waiter))
            else:
                ready_keys.waits_again(waiter)
            waiter.woken.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await waiter.woken.wait()
            conversation.check_not_stopped()
        return reply


async def _fill(waiter: Waiter, argv: Sequence[bytes], positions: Sequence[int]) -> None:
    """Tell the waiter what it waits for."""
    conversation, name = waiter.conversation, waiter.conversation.command.name
    waited_for = positions[:1] if name in MOVES_FROM else positions
    async for some in conversation.in_turns(waited_for):
        for place in some:
            waiter.keys.setdefault(conversation.shard_of(argv[place]), {})[argv[place]] = None
    if name == b"xreadgroup":
        waiter.line = await _line(conversation, argv)
    elif name == b"xread":
        places = zip(positions, range(positions[-1] + 1, len(argv)), strict=False)  # else the server refuses it
        async for pairs in conversation.in_turns(places):
            for key, word in ((argv[place], argv[of_id]) for place, of_id in pairs):
                waiter.after[key] = min(_id(word), waiter.after.get(key, _id(word)))
    else:
        waiter.size = SIZES[name]


async def _line(conversation: Conversation, argv: Sequence[bytes]) -> bytes:
    """A digest of an XREADGROUP without its consumer and its timeout: whoever asks the same finds the same."""
    first = conversation.command.keys(argv)[0]
    head = _without_block(b"xreadgroup", argv[:first])
    options = [word.lower() for word in head]
    if b"group" in options:
        del head[options.index(b"group") + 2]
    digest = blake2b()
    async for some in conversation.in_turns(chain(head, (argv[place] for place in range(first, len(argv))))):
        digest.update(b"".join([b"%d:%b" % (len(word), word) for word in some]))
    return digest.digest()


def _without_block(name: bytes, head: Sequence[bytes]) -> list[bytes]:
    """`head`: the words up to STREAMS."""
    words = list(head)
    while place := timeout_place(name, words):
        del words[place - 1 : place + 1]
    return words


def _id(word: bytes) -> Id:
    """As the server reads it. Of what is none, as `+` for the last entry, the first entry is news."""
    found = _ID.fullmatch(word)
    return (int(found[1]), int(found[2] or 0)) if found else (0, 0)


def _elements(frame: bytes) -> list[bytes]:
    """The elements of an array, or the keys and values of a map."""
    head, _, body = frame.partition(b"\r\n")
    if head[:1] not in (b"*", b"%"):
        raise BadFrame(f"expected an array, got {frame[:64]!r}")
    count = int(head[1:]) * (2 if head.startswith(b"%") else 1)
    return scan.elements(b"*%d\r\n%b" % (max(count, 0), body), True)


def _only(count: int, words: list[bytes]) -> list[bytes]:
    """These elements. Raises BadFrame if there are not `count` of them."""
    if len(words) != count:
        raise BadFrame(f"expected {count} elements, got {len(words)}")
    return words


# --- lists and sorted sets --------------------------------------------------------------------------------------------


def _popping(name: bytes, where: bytes) -> Round:
    """BLPOP, BZPOPMIN and others of their kind: the answer is a key and one element of it."""

    async def ask(conversation: Conversation, argv: Sequence[bytes], groups: Groups) -> bytes | None:
        reply = await _pop(conversation, argv, groups, name, [where])
        if reply is None or reply.startswith(b"-"):
            return reply
        key, popped = _only(2, _elements(reply))
        (element,) = _only(1, _elements(popped))
        words = [key, element] if name == b"LMPOP" else [key, *_only(2, _elements(element))]
        return b"*%d\r\n" % len(words) + b"".join(words)

    return ask


def _popping_many(name: bytes) -> Round:
    """BLMPOP and BZMPOP, which have a variant that does not block."""

    async def ask(conversation: Conversation, argv: Sequence[bytes], groups: Groups) -> bytes | None:
        return await _pop(conversation, argv, groups, name, argv[groups[-1][1][-1] + 1 :])

    return ask


async def _pop(
    conversation: Conversation, argv: Sequence[bytes], groups: Groups, name: bytes, rest: Sequence[bytes]
) -> bytes | None:
    """The reply of the first shard that has an element, or that returns an error."""
    if not rest:
        return errors.syntax_error()  # BLMPOP's own error; its variant that does not block has another one
    for number, (shard, positions) in enumerate(groups):
        if number:  # the shards before may have taken long
            conversation.check_not_stopped()
        words = chain([name, b"%d" % len(positions)], (argv[position] for position in positions), rest)
        request = await conversation.request(2 + len(positions) + len(rest), words)
        reply = await conversation.ask_request(shard, request, write=True)
        if reply not in NILS:
            return errors.for_command(conversation.command.name, name, reply) if reply.startswith(b"-") else reply
    return None


# --- from a list to another -------------------------------------------------------------------------------------------


def _moving(move: Handler) -> Round:
    """BLMOVE and BRPOPLPUSH: run as the variant that does not block. Its arguments have the same positions."""

    async def ask(conversation: Conversation, argv: Sequence[bytes], groups: Groups) -> bytes | None:
        reply = await move(conversation)
        return None if reply in NILS else reply

    return ask


# --- streams ----------------------------------------------------------------------------------------------------------


async def _read(conversation: Conversation, argv: Sequence[bytes], groups: Groups) -> bytes | None:
    """The new entries of all streams. If a shard fails, entries that a group got on other shards are the answer."""
    is_write = "write" in conversation.command.flags
    positions = conversation.command.keys(argv)
    first, count = positions[0], len(positions)
    head = _without_block(conversation.command.name, argv[:first])
    if len(argv) != first + 2 * count:  # the server refuses it
        request = await conversation.request(
            len(head) + len(argv) - first, chain(head, (argv[place] for place in range(first, len(argv))))
        )
        return await conversation.ask_request(groups[0][0], request, write=is_write)
    found: dict[int, bytes] = {}
    for number, (shard, of_shard) in enumerate((await groups.by_shard(conversation)).items()):
        try:
            if number and is_write:  # the shards before may have taken long
                conversation.check_not_stopped()
            request = await part(conversation, argv, head, of_shard, count)
            reply = await conversation.ask_request(shard, request, write=is_write)
        except Refusal:
            if is_write and found:
                break
            raise
        if reply.startswith(b"-"):
            if is_write and found:
                break
            return reply
        if reply not in NILS:
            found[shard] = reply
    if not found:
        return None
    return await in_order(
        conversation, found, ((argv[place], shard) for shard, of_group in groups for place in of_group)
    )


POLLED: Mapping[bytes, Round] = {
    b"blpop": _popping(b"LMPOP", b"LEFT"),
    b"brpop": _popping(b"LMPOP", b"RIGHT"),
    b"bzpopmin": _popping(b"ZMPOP", b"MIN"),
    b"bzpopmax": _popping(b"ZMPOP", b"MAX"),
    b"blmpop": _popping_many(b"LMPOP"),
    b"bzmpop": _popping_many(b"ZMPOP"),
    b"blmove": _moving(MOVES[b"lmove"]),
    b"brpoplpush": _moving(MOVES[b"rpoplpush"]),
    b"xread": _read,
    b"xreadgroup": _read,
}
"""Command -> one round over its shards, which returns None if nothing is there yet."""

MOVES_FROM = (b"blmove", b"brpoplpush")
"""Commands that wait for their first key only."""

SIZES: Mapping[bytes, bytes] = {
    **dict.fromkeys((b"blpop", b"brpop", b"blmpop", *MOVES_FROM), b"LLEN"),
    **dict.fromkeys((b"bzpopmin", b"bzpopmax", b"bzmpop"), b"ZCARD"),
}
"""Command -> the one that counts its elements."""
