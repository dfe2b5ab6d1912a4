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

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from protocol import errors
from protocol.request import Request, size_of
from pyproxy.scripts import digest_of
from pyproxy.worker.commands.conversation import Conversation, Handler, NotSent, Refusal
from pyproxy.worker.commands.keyless import AUTO, MERGES, REFUSE, UNKNOWN, merged
from pyproxy.worker.commands.script_texts import ask_server, check_keyless_functions
from pyproxy.worker.shard.pool import Lease, Use

RunOn = Callable[[Lease], Awaitable[bytes]]
"""Runs the script on a connection -> what the server says."""

HAS_IT, LACKS_IT = b"*1\r\n:1\r\n", b"*1\r\n:0\r\n"  # of SCRIPT EXISTS with one digest
NO_SCRIPT = b"-NOSCRIPT "


# --- run on one shard -------------------------------------------------------------------------------------------------


async def _eval(conversation: Conversation) -> bytes:
    """EVAL and EVAL_RO. A server that took the text has it now, so all workers learn it."""
    digest = digest_of(conversation.argv[1])
    taken: bool | None = False

    async def run_on(lease: Lease) -> bytes:
        nonlocal taken
        reply = await _run(conversation, lease)
        taken = await _has_text(conversation, lease, reply, digest) or taken
        return reply

    reply = await _on_its_shards(conversation, run_on)
    if taken:
        await conversation.context.cache_script(conversation.argv[1])
    return reply


async def _evalsha(conversation: Conversation) -> bytes:
    """EVALSHA and EVALSHA_RO."""
    digest = conversation.argv[1]

    async def run_on(lease: Lease) -> bytes:
        reply = await _run(conversation, lease)
        text = conversation.context.scripts.text(digest)
        if (
            await _has_text(conversation, lease, reply, digest) is not False
            or text is None
            or not reply.startswith(NO_SCRIPT)
        ):
            return reply
        lease.keep = False
        loaded = await ask_server(conversation, lease, b"SCRIPT", b"LOAD", text)
        if loaded.startswith(b"-"):
            return reply
        reply = await _run(conversation, lease)
        await _has_text(conversation, lease, reply, digest)
        return reply

    return await _on_its_shards(conversation, run_on)


async def _fcall(conversation: Conversation) -> bytes:
    """FCALL and FCALL_RO."""

    async def run_on(lease: Lease) -> bytes:
        reply = await _run(conversation, lease)
        lease.keep = not reply.startswith(b"-")
        return reply

    return await _on_its_shards(conversation, run_on)


async def _on_its_shards(conversation: Conversation, run_on: RunOn) -> bytes:
    """What is said on a connection to the shard of the keys; without keys, to one shard or to all."""
    if conversation.command.keys(conversation.argv):
        return await _on_primary(conversation, conversation.shard_of_keys(), run_on)
    way = conversation.context.keyless.way(conversation.argv, len(conversation.shards))
    if way == UNKNOWN:
        raise Refusal(errors.no_script())  # the client sends it then, and it can be looked at
    if way == REFUSE:
        raise Refusal(conversation.context.keyless.refusal(conversation.argv))
    if way in MERGES:
        return await _on_all(conversation, run_on, way)

    async def checked_run_on(lease: Lease) -> bytes:
        await check_keyless_functions(conversation, lease, [conversation.argv])
        return await run_on(lease)

    return await _on_primary(conversation, conversation.shard_of(b""), checked_run_on if way == AUTO else run_on)


async def _on_all(conversation: Conversation, run_on: RunOn, way: str) -> bytes:
    """On one shard after another, until one says an error; all of them can be had before the first one is asked."""
    write_bytes = 0 if conversation.command.is_read else size_of(conversation.argv)
    frames: dict[str, bytes] = {}
    async with AsyncExitStack() as leased:
        leases = [
            await leased.enter_async_context(conversation.lend(each, Use.ACROSS, write_bytes))
            for each in conversation.shards
        ]
        for lease in leases:
            frame = await run_on(lease)
            if frame.startswith(b"-"):
                return errors.part_failed(lease.link.name, frame, frames) if frames and write_bytes else frame
            frames[lease.link.name] = frame
            if write_bytes:
                conversation.applied(lease.link.index)
    return merged(conversation.command.name, way, frames, write_bytes > 0)


async def _on_primary(conversation: Conversation, shard: int, run_on: RunOn) -> bytes:
    write_bytes = 0 if conversation.command.is_read else size_of(conversation.argv)
    try:
        async with conversation.lend(shard, Use.BRIEF, write_bytes) as lease:
            return await run_on(lease)
    except NotSent:
        if not write_bytes:
            raise
    # Another one, as the gate was closed for another primary.
    async with conversation.lend(shard, Use.BRIEF, write_bytes) as lease:
        return await run_on(lease)


async def _run(conversation: Conversation, lease: Lease) -> bytes:
    """It may take its time, as nobody else waits for it on this connection; but not for ever."""
    write, deadline_s = not conversation.command.is_read, conversation.context.setup.config.timeouts.silence_s
    return await conversation.ask_on(lease, Request(conversation.argv), write=write, deadline_s=deadline_s)


async def _has_text(conversation: Conversation, lease: Lease, reply: bytes, digest: bytes) -> bool | None:
    """Whether the server has the text of which a run was answered by `reply`; None: it does not say.

    It is only asked after an error. Its answer then also shows that there was no more than one reply to the script, so
    that the next client may have the connection: an error is what a script writes past its reply with, if it can.
    """
    if not reply.startswith(b"-"):
        lease.keep = True
        return True
    try:
        said = await ask_server(conversation, lease, b"SCRIPT", b"EXISTS", digest)
    except Refusal:
        return None
    lease.keep = said in (HAS_IT, LACKS_IT)
    return said == HAS_IT if lease.keep else None


HANDLERS: dict[bytes, Handler] = {
    b"eval": _eval,
    b"eval_ro": _eval,
    b"evalsha": _evalsha,
    b"evalsha_ro": _evalsha,
    b"fcall": _fcall,
    b"fcall_ro": _fcall,
}
