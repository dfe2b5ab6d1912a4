"""Commands on several shards that do the same for each key, or for the first key that has something.

    MSETNX, MSETEX       all shards are asked for the condition first, then one after another sets its keys
    LMPOP, ZMPOP         the shards are asked in the order of the keys, until one has an element

Nothing is undone. If a shard fails, the others keep what they have set, and the error names them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain

from protocol import errors
from protocol.keyspecs import number
from protocol.reply import NIL_ARRAY, integer
from pyproxy.worker.commands.conversation import Conversation, Handler, Refusal
from pyproxy.worker.commands.cross_shard.keys import Groups, by_shard, words_at

NONE, ONE = b":0\r\n", b":1\r\n"


# --- set all or none --------------------------------------------------------------------------------------------------


async def _msetnx(conversation: Conversation) -> bytes:
    if not len(conversation.argv) % 2:
        return errors.wrong_arity(conversation.command.name)
    parts = await by_shard(conversation, range(1, len(conversation.argv), 2))
    return await _set(conversation, parts, lambda count: [b"MSETNX"], [], must=b"nx")


async def _msetex(conversation: Conversation) -> bytes:
    end = 2 + 2 * (number(conversation.argv[1]) or 0)
    parts, options = await by_shard(conversation, range(2, end, 2)), conversation.argv[end:]
    conditions = [option.lower() for option in options if option.lower() in (b"nx", b"xx")]
    if len(set(conditions)) > 1:
        return errors.syntax_error()
    must = conditions[-1] if conditions else b""
    return await _set(conversation, parts, lambda count: [b"MSETEX", b"%d" % count], options, must)


async def _set(
    conversation: Conversation,
    parts: Mapping[int, Sequence[int]],
    head: Callable[[int], list[bytes]],
    options: Sequence[bytes],
    must: bytes,
) -> bytes:
    """Set the pairs at these positions. `head`: what comes before so many of them; `options`: what comes after them.

    `must`: nx if no key may exist, xx if all must. The command of each shard checks it again for its keys.
    """
    if must and not await _holds(conversation, parts, must):
        return NONE
    done: list[str] = []
    for shard, positions in parts.items():
        before = head(len(positions))
        pairs = (conversation.argv[place] for key in positions for place in (key, key + 1))
        count = len(before) + 2 * len(positions) + len(options)
        request = await conversation.request(count, chain(before, pairs, options))
        frame = await conversation.ask_request(shard, request, write=True)
        if frame == NONE and done:
            return errors.condition_lost(conversation.name(shard), done)
        if frame != ONE:
            if done:
                raise Refusal(conversation.error_of(frame))
            return conversation.error_of(frame)
        conversation.applied(shard)
        done.append(conversation.name(shard))
    return ONE


async def _holds(conversation: Conversation, parts: Mapping[int, Sequence[int]], must: bytes) -> bool:
    frames = await conversation.ask_each(
        {
            shard: await conversation.request(1 + len(positions), chain([b"EXISTS"], words_at(conversation, positions)))
            for shard, positions in parts.items()
        },
        primary=True,
    )
    for shard, frame in frames.items():
        if frame.startswith(b"-"):
            raise Refusal(errors.part_failed(conversation.name(shard), frame))
        if not 0 <= integer(frame) <= len(parts[shard]):
            raise Refusal(conversation.unexpected())
        if frame != b":%d\r\n" % (len(parts[shard]) if must == b"xx" else 0):
            return False
    return True


# --- the first that has something -------------------------------------------------------------------------------------


async def _mpop(conversation: Conversation) -> bytes:
    positions = conversation.command.keys(conversation.argv)
    name, options = conversation.argv[0], conversation.argv[positions[-1] + 1 :]
    if not options:
        return errors.syntax_error()  # for the part of one shard a server would answer with its arity error
    frame = b""
    for shard, group in await Groups.of(conversation, positions):
        words = chain([name, b"%d" % len(group)], words_at(conversation, group), options)
        request = await conversation.request(2 + len(group) + len(options), words)
        frame = await conversation.ask_request(shard, request, write=True)
        if frame not in NIL_ARRAY.values():
            break
    return frame


HANDLERS: dict[bytes, Handler] = {
    b"msetnx": _msetnx,
    b"msetex": _msetex,
    b"lmpop": _mpop,
    b"zmpop": _mpop,
}
