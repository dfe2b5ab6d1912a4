"""Commands on several shards that do the same for each key, or for the first key that has something.

    MSETNX, MSETEX       all shards are asked for the condition first, then one after another sets its keys
    LMPOP, ZMPOP         the shards are asked in the order of the keys, until one has an element

Nothing is undone. If a shard fails, the others keep what they have set, and the error names them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from protocol import errors
from protocol.keyspecs import number
from protocol.reply import integer
from pyproxy.worker.commands.conversation import Conversation, Handler, Refusal

NONE, ONE = b":0\r\n", b":1\r\n"
NIL = (b"*-1\r\n", b"_\r\n")  # of an array, in RESP2 and RESP3


# --- set all or none --------------------------------------------------------------------------------------------------


async def _msetnx(conversation: Conversation) -> bytes:
    pairs = conversation.argv[1:]
    if len(pairs) % 2:
        return errors.wrong_arity(conversation.command.name)
    parts = _by_shard(conversation, pairs)
    return await _set(conversation, parts, {shard: [b"MSETNX", *part] for shard, part in parts.items()}, must=b"nx")


async def _msetex(conversation: Conversation) -> bytes:
    end = 2 + 2 * (number(conversation.argv[1]) or 0)
    parts, options = _by_shard(conversation, conversation.argv[2:end]), conversation.argv[end:]
    commands = {shard: [b"MSETEX", b"%d" % (len(part) // 2), *part, *options] for shard, part in parts.items()}
    conditions = [option.lower() for option in options if option.lower() in (b"nx", b"xx")]
    if len(set(conditions)) > 1:
        return errors.syntax_error()
    return await _set(conversation, parts, commands, must=conditions[-1] if conditions else b"")


def _by_shard(conversation: Conversation, pairs: Sequence[bytes]) -> dict[int, list[bytes]]:
    parts: dict[int, list[bytes]] = {}
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        parts.setdefault(conversation.shard_of(key), []).extend((key, value))
    return parts


async def _set(
    conversation: Conversation, parts: dict[int, list[bytes]], commands: dict[int, list[bytes]], must: bytes
) -> bytes:
    """`must`: nx if no key may exist, xx if all must. The command of each shard checks it again for its keys."""
    if must and not await _holds(conversation, parts, must):
        return NONE
    done: list[str] = []
    for shard, argv in commands.items():
        frame = await conversation.ask(shard, *argv, write=True)
        if frame == NONE and done:
            return errors.condition_lost(conversation.name(shard), done)
        if frame != ONE:
            if done:
                raise Refusal(conversation.error_of(frame))
            return conversation.error_of(frame)
        conversation.applied(shard)
        done.append(conversation.name(shard))
    return ONE


async def _holds(conversation: Conversation, parts: dict[int, list[bytes]], must: bytes) -> bool:
    frames = await conversation.ask_each(
        {shard: [b"EXISTS", *part[::2]] for shard, part in parts.items()}, primary=True
    )
    for shard, frame in frames.items():
        if frame.startswith(b"-"):
            raise Refusal(errors.part_failed(conversation.name(shard), frame))
        if not 0 <= integer(frame) <= len(parts[shard]) // 2:
            raise Refusal(errors.unexpected_part(conversation.command.name))
        if frame != b":%d\r\n" % (len(parts[shard]) // 2 if must == b"xx" else 0):
            return False
    return True


# --- the first that has something -------------------------------------------------------------------------------------


async def _mpop(conversation: Conversation) -> bytes:
    positions = conversation.command.keys(conversation.argv)
    name, options = conversation.argv[0], conversation.argv[positions[-1] + 1 :]
    keys = [conversation.argv[position] for position in positions]
    if not options:
        return errors.syntax_error()  # for the part of one shard a server would answer with its arity error
    frame = b""
    for shard, run in groupby(keys, conversation.shard_of):
        of_shard = list(run)
        frame = await conversation.ask(shard, name, b"%d" % len(of_shard), *of_shard, *options, write=True)
        if frame not in NIL:
            break
    return frame


HANDLERS: dict[bytes, Handler] = {
    b"msetnx": _msetnx,
    b"msetex": _msetex,
    b"lmpop": _mpop,
    b"zmpop": _mpop,
}
