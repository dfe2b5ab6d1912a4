"""SCRIPT and FUNCTION: sent to all shards, and the answers are merged."""

from __future__ import annotations

from collections.abc import Mapping

from protocol import errors
from protocol.reply import OK, encode
from protocol.request import Request, size_of
from pyproxy.worker.commands.conversation import Conversation, Handler, Refusal
from pyproxy.worker.commands.script_texts import parse_exists
from pyproxy.worker.shard.pool import LeaseKind, NoLease

NO_SCRIPT = b"-NOSCRIPT "
NOT_BUSY = b"-NOTBUSY "
NOTHING_RUNS = (b"\r\nrunning_script\r\n$-1\r\n", b"\r\nrunning_script\r\n_\r\n")  # in FUNCTION STATS


def _agreed(conversation: Conversation, frames: Mapping[int, bytes], write: bool) -> bytes:
    """The answer if all shards gave the same. Else the error of one, with the shards that have done their part."""
    if len(set(frames.values())) == 1:
        return next(iter(frames.values()))
    failed = next((shard for shard, frame in frames.items() if frame.startswith(b"-")), None)
    if failed is None:
        return errors.unexpected_part(conversation.command.name)
    done = [conversation.name(shard) for shard, frame in frames.items() if not frame.startswith(b"-")]
    return errors.part_failed(conversation.name(failed), frames[failed], done if write else ())


async def _alone(conversation: Conversation, shard: int, write: bool) -> bytes:
    """The reply of one shard, on a leased connection. Raises Refusal, NoLease."""
    asked = Request(conversation.argv)
    async with conversation.lease(shard, LeaseKind.SHORT, asked.size if write else 0) as lease:
        reply = await conversation.ask_on(lease, asked, write=write, deadline_s=conversation.deadline_s(asked))
        lease.reusable = not reply.startswith(b"-")
        return reply


async def _each_alone(conversation: Conversation, write: bool) -> dict[int, bytes]:
    """The reply of each shard. All are asked, also if one fails. Raises Refusal if one has failed."""
    frames: dict[int, bytes] = {}
    failed: dict[int, bytes] = {}
    for shard in conversation.shards:
        link = conversation.lane.links[shard]
        if write and link.is_down and not link.router.is_closed:  # before any other shard has applied it
            raise Refusal(errors.part_failed(link.name, link.refusal))
        await conversation.pass_gate(shard, size_of(conversation.argv))
    for shard in conversation.shards:
        try:
            frames[shard] = await _alone(conversation, shard, write)
        except (Refusal, NoLease) as refusal:
            failed[shard] = refusal.line
    for shard, line in failed.items():
        others = [*frames, *(each for each in failed if each != shard and failed[each].startswith(b"-UNCERTAIN"))]
        raise Refusal(
            errors.part_failed(
                conversation.name(shard), line, [conversation.name(each) for each in others] if write else ()
            )
        )
    return frames


async def _script_load(conversation: Conversation) -> bytes:
    text = conversation.argv[2]
    try:
        frames = await _each_alone(conversation, write=False)
    except Refusal:
        # EVALSHA loads it on the shard that has failed
        await conversation.context.cache_script(text)
        raise
    reply = _agreed(conversation, frames, write=False)
    if not reply.startswith(b"-"):
        await conversation.context.cache_script(text)
    return reply


async def _script_exists(conversation: Conversation) -> bytes:
    """A text exists if it is known here, as EVALSHA then loads it where it is missing, or if all shards have it."""
    digests = conversation.argv[2:]
    unknown = [digest for digest in digests if digest not in conversation.context.scripts]
    lacking: set[bytes] = set()
    if unknown:
        frames = await conversation.ask_all(b"SCRIPT", b"EXISTS", *unknown, primary=True)
        for shard, frame in frames.items():
            if frame.startswith(b"-"):
                return errors.part_failed(conversation.name(shard), frame)
            has = parse_exists(frame, len(unknown))
            lacking |= {digest for digest, there in zip(unknown, has, strict=True) if not there}
    return encode([int(digest not in lacking) for digest in digests], conversation.client.proto)


async def _script_flush(conversation: Conversation) -> bytes:
    reply = _agreed(conversation, await conversation.ask_all(*conversation.argv, write=True), write=True)
    if reply == OK:
        conversation.context.flush_scripts()
    return reply


async def _script_show(conversation: Conversation) -> bytes:
    text = conversation.context.scripts.text(conversation.argv[2])
    frames = await conversation.ask_all(*conversation.argv, primary=True)
    shown = next((frame for frame in frames.values() if not frame.startswith(b"-")), None)
    reply = shown or frames[0]
    return encode(text, conversation.client.proto) if text is not None and reply.startswith(NO_SCRIPT) else reply


async def _kill(conversation: Conversation) -> bytes:
    """SCRIPT KILL and FUNCTION KILL, on all shards. All are asked, also if one fails."""
    replies: list[bytes] = []
    for shard in conversation.shards:
        try:
            replies.append(await conversation.ask(shard, *conversation.argv, primary=True))
        except Refusal as refusal:
            replies.append(refusal.line)
    told = [reply for reply in replies if not reply.startswith(NOT_BUSY)]
    return OK if OK in told else next(iter(told), replies[0])


# --- functions --------------------------------------------------------------------------------------------------------


async def _function_write(conversation: Conversation) -> bytes:
    """FUNCTION DELETE and FLUSH."""
    return _agreed(conversation, await conversation.ask_all(*conversation.argv, write=True), write=True)


async def _function_load(conversation: Conversation) -> bytes:
    """FUNCTION LOAD and RESTORE."""
    return _agreed(conversation, await _each_alone(conversation, write=True), write=True)


async def _function_read(conversation: Conversation) -> bytes:
    """FUNCTION LIST and DUMP. All shards have the same libraries, so the first reply is the answer."""
    lines: list[bytes] = []
    for shard in conversation.shards:
        try:
            return await _alone(conversation, shard, write=False)
        except (Refusal, NoLease) as refusal:
            lines.append(refusal.line)
    raise Refusal(lines[0])


async def _function_stats(conversation: Conversation) -> bytes:
    """The reply of a shard that runs a script now, if there is one."""
    frames = await conversation.ask_all(*conversation.argv, primary=True)
    idle = [frame for frame in frames.values() if any(marker in frame for marker in NOTHING_RUNS)]
    return next((frame for frame in frames.values() if frame not in idle), frames[0])


HANDLERS: dict[bytes, Handler] = {
    b"script|load": _script_load,
    b"script|exists": _script_exists,
    b"script|flush": _script_flush,
    b"script|show": _script_show,
    b"script|kill": _kill,
    b"function|load": _function_load,
    b"function|delete": _function_write,
    b"function|flush": _function_write,
    b"function|restore": _function_load,
    b"function|list": _function_read,
    b"function|dump": _function_read,
    b"function|stats": _function_stats,
    b"function|kill": _kill,
}
