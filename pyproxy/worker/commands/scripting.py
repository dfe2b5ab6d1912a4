"""Scripts and functions: run on the shard of their keys, on a borrowed connection; loaded on all shards.

Whatever a script answers is the client's as it came, errors too, and no script is sent twice: it may have written, and
then returned what looks like a refusal. The one exception is an EVALSHA of a text that the server does not have, as
after a promotion or on a new shard: nothing was run then, so it is given the text, if that is known here, and asked
again. A script may return an error that begins with NOSCRIPT, so the server is asked whether it has the text.

A call that names no key is run where keyless.py says: on the shard of the empty key, on all, or nowhere.

Scripts and functions never run on a connection that clients share. Nor is one loaded there, or asked for in words of
the client's own: servers quote those in their errors as they stand, and an error with a line break in it is two
replies, of which the second would be another client's.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack

from protocol import errors
from protocol.keyspecs import number
from protocol.lua import may_use_keys
from protocol.reply import BadFrame, Error, Value, decode, encode, fields, listed, text_of
from protocol.request import Request, size_of
from pyproxy.scripts import digest_of
from pyproxy.worker.commands.conversation import Conversation, Handler, NotSent, Refusal
from pyproxy.worker.commands.keyless import AUTO, MERGES, REFUSE, UNKNOWN, merged
from pyproxy.worker.shard.pool import Lease, NoLease, Use

SaidOn = Callable[[Lease], Awaitable[bytes]]
"""Runs the script on a connection -> what the server says."""

OK = b"+OK\r\n"
HAS_IT, LACKS_IT = b"*1\r\n:1\r\n", b"*1\r\n:0\r\n"  # of SCRIPT EXISTS with one digest
NO_SCRIPT = b"-NOSCRIPT "
NOT_BUSY = b"-NOTBUSY "
NOTHING_RUNS = (b"\r\nrunning_script\r\n$-1\r\n", b"\r\nrunning_script\r\n_\r\n")  # in FUNCTION STATS


# --- run on one shard -------------------------------------------------------------------------------------------------


async def _eval(conversation: Conversation) -> bytes:
    """EVAL and EVAL_RO. A server that took the text has it now, so all workers learn it."""
    digest = digest_of(conversation.argv[1])
    taken: bool | None = False

    async def said_on(lease: Lease) -> bytes:
        nonlocal taken
        reply = await _run(conversation, lease)
        taken = await _has(conversation, lease, reply, digest) or taken
        return reply

    reply = await _on_its_shards(conversation, said_on)
    if taken:
        await conversation.context.learn_script(conversation.argv[1])
    return reply


async def _evalsha(conversation: Conversation) -> bytes:
    """EVALSHA and EVALSHA_RO."""
    digest = conversation.argv[1]

    async def said_on(lease: Lease) -> bytes:
        reply = await _run(conversation, lease)
        text = conversation.context.scripts.text(digest)
        if (
            await _has(conversation, lease, reply, digest) is not False
            or text is None
            or not reply.startswith(NO_SCRIPT)
        ):
            return reply
        lease.keep = False
        loaded = await _ask(conversation, lease, b"SCRIPT", b"LOAD", text)
        if loaded.startswith(b"-"):
            return reply
        reply = await _run(conversation, lease)
        await _has(conversation, lease, reply, digest)
        return reply

    return await _on_its_shards(conversation, said_on)


async def _fcall(conversation: Conversation) -> bytes:
    """FCALL and FCALL_RO."""

    async def said_on(lease: Lease) -> bytes:
        reply = await _run(conversation, lease)
        lease.keep = not reply.startswith(b"-")
        return reply

    return await _on_its_shards(conversation, said_on)


async def _on_its_shards(conversation: Conversation, said_on: SaidOn) -> bytes:
    """What is said on a connection to the shard of the keys; without keys, to one shard or to all."""
    if conversation.command.keys(conversation.argv):
        return await _on_primary(conversation, conversation.shard_of_keys(), said_on)
    way = conversation.context.keyless.way(conversation.argv, len(conversation.shards))
    if way == UNKNOWN:
        raise Refusal(errors.no_script())  # the client sends it then, and it can be looked at
    if way == REFUSE:
        raise Refusal(conversation.context.keyless.refusal(conversation.argv))
    if way in MERGES:
        return await _on_all(conversation, said_on, way)

    async def vouched_on(lease: Lease) -> bytes:
        await vouch(conversation, lease, [conversation.argv])
        return await said_on(lease)

    return await _on_primary(conversation, conversation.shard_of(b""), vouched_on if way == AUTO else said_on)


async def _on_all(conversation: Conversation, said_on: SaidOn, way: str) -> bytes:
    """On one shard after another, until one says an error; all of them can be had before the first one is asked."""
    write_bytes = 0 if conversation.command.is_read else size_of(conversation.argv)
    frames: dict[str, bytes] = {}
    async with AsyncExitStack() as leased:
        leases = [
            await leased.enter_async_context(conversation.lend(each, Use.ACROSS, write_bytes))
            for each in conversation.shards
        ]
        for lease in leases:
            frame = await said_on(lease)
            if frame.startswith(b"-"):
                return errors.part_failed(lease.link.name, frame, frames) if frames and write_bytes else frame
            frames[lease.link.name] = frame
            if write_bytes:
                conversation.applied(lease.link.index)
    return merged(conversation.command.name, way, frames, write_bytes > 0)


async def _on_primary(conversation: Conversation, shard: int, said_on: SaidOn) -> bytes:
    write_bytes = 0 if conversation.command.is_read else size_of(conversation.argv)
    try:
        async with conversation.lend(shard, Use.BRIEF, write_bytes) as lease:
            return await said_on(lease)
    except NotSent:
        if not write_bytes:
            raise
    # Another one, as the gate was closed for another primary.
    async with conversation.lend(shard, Use.BRIEF, write_bytes) as lease:
        return await said_on(lease)


async def _run(conversation: Conversation, lease: Lease) -> bytes:
    """It may take its time, as nobody else waits for it on this connection; but not for ever."""
    write, deadline_s = not conversation.command.is_read, conversation.context.setup.config.timeouts.silence_s
    return await conversation.ask_on(lease, Request(conversation.argv), write=write, deadline_s=deadline_s)


async def _ask(conversation: Conversation, lease: Lease, *argv: bytes) -> bytes:
    deadline_s = conversation.context.setup.config.timeouts.silence_s
    return await conversation.ask_on(lease, Request(argv), write=False, deadline_s=deadline_s)


async def _has(conversation: Conversation, lease: Lease, reply: bytes, digest: bytes) -> bool | None:
    """Whether the server has the text of which a run was answered by `reply`; None: it does not say.

    It is only asked after an error. Its answer then also shows that there was no more than one reply to the script, so
    that the next client may have the connection: an error is what a script writes past its reply with, if it can.
    """
    if not reply.startswith(b"-"):
        lease.keep = True
        return True
    try:
        said = await _ask(conversation, lease, b"SCRIPT", b"EXISTS", digest)
    except Refusal:
        return None
    lease.keep = said in (HAS_IT, LACKS_IT)
    return said == HAS_IT if lease.keep else None


# --- functions without keys -------------------------------------------------------------------------------------------


async def vouch(conversation: Conversation, lease: Lease, calls: Iterable[Sequence[bytes]]) -> None:
    """Raises Refusal where one of these calls without keys is of a function whose library may use keys.

    The server is asked for its code each time: another client may have loaded another library. One that it does not
    have is left to the server to say.
    """
    for argv in calls:
        if any(may_use_keys(code) for code in await _code_of(conversation, lease, argv[1])):
            lease.keep = True
            raise Refusal(conversation.context.keyless.refusal(argv))


async def _code_of(conversation: Conversation, lease: Lease, function: bytes) -> list[bytes]:
    """Of the library that has this function, and of those whose names differ from its own in case alone; empty: none.

    Raises Refusal where the server does not say.
    """
    for library in _libraries(await _ask(conversation, lease, b"FUNCTION", b"LIST")):
        functions = [fields(each) for each in listed(library.get(b"functions"))]
        if function.lower() in [text_of(each, b"name").lower() for each in functions]:
            name = text_of(library, b"library_name")
            shown = _libraries(await _ask(conversation, lease, b"FUNCTION", b"LIST", b"LIBRARYNAME", name, b"WITHCODE"))
            return [text_of(each, b"library_code") for each in shown]
    return []


def _libraries(frame: bytes) -> list[dict[bytes, Value]]:
    """Of an answer to FUNCTION LIST: maps, or flat lists. Raises Refusal for an error, BadFrame for anything else."""
    said = decode(frame)
    if isinstance(said, Error):
        raise Refusal(frame)
    return [fields(each) for each in listed(said)]


# --- in a transaction -------------------------------------------------------------------------------------------------


async def bring(conversation: Conversation, lease: Lease, scripts: Sequence[Sequence[bytes]]) -> None:
    """Give the server the texts that it lacks, of those that these calls name by their digests and that are known.

    Raises Refusal where a function may not be called as one of them does.
    """
    if lease.link.index == conversation.shard_of(b""):
        await vouch(conversation, lease, [argv for argv in scripts if _is_to_vouch_for(conversation, argv)])
    named = {argv[1].lower() for argv in scripts if argv[0].lower().startswith(b"evalsha")}
    known = [digest for digest in named if digest in conversation.context.scripts]
    has = await _which(conversation, lease, known)
    for digest in known:
        text = conversation.context.scripts.text(digest)
        if digest not in has and text is not None:
            await _ask(conversation, lease, b"SCRIPT", b"LOAD", text)


def _is_to_vouch_for(conversation: Conversation, argv: Sequence[bytes]) -> bool:
    """Whether it is a function without keys that runs on one shard only if its library uses none."""
    is_without = argv[0].lower().startswith(b"fcall") and number(argv[2]) == 0
    return is_without and conversation.context.keyless.way(argv, len(conversation.shards)) == AUTO


async def learn(conversation: Conversation, lease: Lease, scripts: Sequence[Sequence[bytes]]) -> None:
    """These were run there: their texts are known now, if the server took them."""
    texts = {digest_of(argv[1]): argv[1] for argv in scripts if argv[0].lower() in (b"eval", b"eval_ro")}
    unknown = [digest for digest in texts if digest not in conversation.context.scripts]
    for digest in await _which(conversation, lease, unknown):
        await conversation.context.learn_script(texts[digest])


async def _which(conversation: Conversation, lease: Lease, digests: Sequence[bytes]) -> list[bytes]:
    """Those that the server has; none where it does not say."""
    if not digests:
        return []
    try:
        has = _said_to_exist(await _ask(conversation, lease, b"SCRIPT", b"EXISTS", *digests), len(digests))
    except (Refusal, BadFrame):
        return []
    return [digest for digest, there in zip(digests, has, strict=True) if there]


def _said_to_exist(frame: bytes, count: int) -> list[bool]:
    """The answer to SCRIPT EXISTS of so many digests. Raises BadFrame."""
    said = listed(decode(frame))
    if len(said) != count or any(each not in (0, 1) for each in said):
        raise BadFrame(f"expected {count} times 0 or 1, got {frame[:64]!r}")
    return [each == 1 for each in said]


# --- asked of all shards ----------------------------------------------------------------------------------------------


def _agreed(conversation: Conversation, frames: Mapping[int, bytes], write: bool) -> bytes:
    """The one answer of all shards; where they do not agree, the error of one, and which others did their part."""
    if len(set(frames.values())) == 1:
        return next(iter(frames.values()))
    failed = next((shard for shard, frame in frames.items() if frame.startswith(b"-")), None)
    if failed is None:
        return errors.unexpected_part(conversation.command.name)
    done = [conversation.name(shard) for shard, frame in frames.items() if not frame.startswith(b"-")]
    return errors.part_failed(conversation.name(failed), frames[failed], done if write else ())


async def _alone(conversation: Conversation, shard: int, write: bool) -> bytes:
    """What a shard says to the command, on a connection that no other client shares. Raises Refusal, NoLease."""
    asked = Request(conversation.argv)
    async with conversation.lend(shard, Use.BRIEF, asked.size if write else 0) as lease:
        reply = await conversation.ask_on(lease, asked, write=write, deadline_s=conversation.deadline_s(asked))
        lease.keep = not reply.startswith(b"-")
        return reply


async def _each_alone(conversation: Conversation, write: bool) -> dict[int, bytes]:
    """So of each shard, one after the other; one that fails keeps it from no other. Raises Refusal where one did."""
    frames: dict[int, bytes] = {}
    failed: dict[int, bytes] = {}
    for shard in conversation.shards:
        link = conversation.lane.links[shard]
        if write and link.is_down and not link.router.closed:  # before any other has done it
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
        # one shard's trouble must not keep it from the others: EVALSHA brings it there
        await conversation.context.learn_script(text)
        raise
    reply = _agreed(conversation, frames, write=False)
    if not reply.startswith(b"-"):
        await conversation.context.learn_script(text)
    return reply


async def _script_exists(conversation: Conversation) -> bytes:
    """A text exists that is known here, as it is brought to the servers that lack it; else if all shards have it."""
    digests = conversation.argv[2:]
    unknown = [digest for digest in digests if digest not in conversation.context.scripts]
    lacking: set[bytes] = set()
    if unknown:
        frames = await conversation.ask_all(b"SCRIPT", b"EXISTS", *unknown, primary=True)
        for shard, frame in frames.items():
            if frame.startswith(b"-"):
                return errors.part_failed(conversation.name(shard), frame)
            has = _said_to_exist(frame, len(unknown))
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
    """SCRIPT KILL and FUNCTION KILL: whatever runs on any shard. One that cannot be asked hinders no other."""
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
    """FUNCTION LIST and DUMP: all shards have the same libraries, so the first that answers is as good as any."""
    lines: list[bytes] = []
    for shard in conversation.shards:
        try:
            return await _alone(conversation, shard, write=False)
        except (Refusal, NoLease) as refusal:
            lines.append(refusal.line)
    raise Refusal(lines[0])


async def _function_stats(conversation: Conversation) -> bytes:
    """Of a shard where something runs, if there is one."""
    frames = await conversation.ask_all(*conversation.argv, primary=True)
    idle = [frame for frame in frames.values() if any(said in frame for said in NOTHING_RUNS)]
    return next((frame for frame in frames.values() if frame not in idle), frames[0])


HANDLERS: dict[bytes, Handler] = {
    b"eval": _eval,
    b"eval_ro": _eval,
    b"evalsha": _evalsha,
    b"evalsha_ro": _evalsha,
    b"fcall": _fcall,
    b"fcall_ro": _fcall,
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
