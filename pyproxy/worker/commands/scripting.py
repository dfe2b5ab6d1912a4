"""Calls of scripts and functions: they are run on the shard of their keys, on a leased connection.

The client gets the reply unchanged, also an error. No script is sent twice: it may have written before it returned an
error. The exception is EVALSHA of a text that the server does not have, as after a promotion or on a new shard. Nothing
was run then, so the server gets the text, if it is known here, and the call is sent again. A script may itself return
an error that begins with NOSCRIPT, so the server is asked whether it has the text.

A call without keys is run on the shard of the empty key, on all shards, or refused: see keyless.py.

A script never runs on a connection that clients share, and is never loaded there. Servers quote words of the client in
their errors. An error with a line break in it would be two replies, and the second would go to another client.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from protocol import errors
from protocol.request import Request, size_of
from pyproxy.scripts import digest_of
from pyproxy.worker.commands.conversation import Conversation, Handler, NotSent, Refusal
from pyproxy.worker.commands.keyless import AUTO, MERGES, REFUSE, UNKNOWN, merged
from pyproxy.worker.commands.script_texts import ask_server, check_keyless_functions
from pyproxy.worker.shard.pool import Lease, LeaseKind

RunOn = Callable[[Lease], Awaitable[bytes]]
"""Runs the call on a leased connection -> the reply."""


class Text(enum.Enum):
    """Whether a server has the text of a script."""

    PRESENT = enum.auto()
    MISSING = enum.auto()
    UNKNOWN = enum.auto()  # it did not answer, or something else


_EXISTS = {b"*1\r\n:1\r\n": Text.PRESENT, b"*1\r\n:0\r\n": Text.MISSING}  # the reply to SCRIPT EXISTS of one digest
NO_SCRIPT = b"-NOSCRIPT "


async def _eval(conversation: Conversation) -> bytes:
    """EVAL and EVAL_RO. All workers get a text that the server has accepted."""
    digest = digest_of(conversation.argv[1])
    accepted = False

    async def run_on(lease: Lease) -> bytes:
        nonlocal accepted
        reply = await _run(conversation, lease)
        found = await _find_text(conversation, lease, reply, digest)
        accepted = accepted or found is Text.PRESENT
        return reply

    reply = await _on_its_shards(conversation, run_on)
    if accepted:
        await conversation.context.cache_script(conversation.argv[1])
    return reply


async def _evalsha(conversation: Conversation) -> bytes:
    """EVALSHA and EVALSHA_RO."""
    digest = conversation.argv[1]

    async def run_on(lease: Lease) -> bytes:
        reply = await _run(conversation, lease)
        text = conversation.context.scripts.text(digest)
        found = await _find_text(conversation, lease, reply, digest)
        if found is not Text.MISSING or text is None or not reply.startswith(NO_SCRIPT):
            return reply
        lease.reusable = False
        loaded = await ask_server(conversation, lease, b"SCRIPT", b"LOAD", text)
        if loaded.startswith(b"-"):
            return reply
        reply = await _run(conversation, lease)
        await _find_text(conversation, lease, reply, digest)
        return reply

    return await _on_its_shards(conversation, run_on)


async def _fcall(conversation: Conversation) -> bytes:
    """FCALL and FCALL_RO."""

    async def run_on(lease: Lease) -> bytes:
        reply = await _run(conversation, lease)
        lease.reusable = not reply.startswith(b"-")
        return reply

    return await _on_its_shards(conversation, run_on)


async def _on_its_shards(conversation: Conversation, run_on: RunOn) -> bytes:
    """Run the call on the shard of its keys; without keys, on one shard or on all."""
    if conversation.command.keys(conversation.argv):
        return await _on_primary(conversation, conversation.shard_of_keys(), run_on)
    way = conversation.context.keyless.way(conversation.argv, len(conversation.shards))
    if way == UNKNOWN:
        raise Refusal(errors.no_script())  # the client then sends the text, which can be searched
    if way == REFUSE:
        raise Refusal(conversation.context.keyless.refusal(conversation.argv))
    if way in MERGES:
        return await _on_all(conversation, run_on, way)

    async def checked_run_on(lease: Lease) -> bytes:
        await check_keyless_functions(conversation, lease, [conversation.argv])
        return await run_on(lease)

    return await _on_primary(conversation, conversation.shard_of(b""), checked_run_on if way == AUTO else run_on)


async def _on_all(conversation: Conversation, run_on: RunOn, way: str) -> bytes:
    """Run the call on one shard after another, until one returns an error. All are leased first."""
    write_bytes = 0 if conversation.command.is_read else size_of(conversation.argv)
    frames: dict[str, bytes] = {}
    async with AsyncExitStack() as leased:
        leases = [
            await leased.enter_async_context(conversation.lease(each, LeaseKind.CROSS_SHARD, write_bytes))
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
        async with conversation.lease(shard, LeaseKind.SHORT, write_bytes) as lease:
            return await run_on(lease)
    except NotSent:
        if not write_bytes:
            raise
    # The lease was lost as the gate closed. Now there may be another primary.
    async with conversation.lease(shard, LeaseKind.SHORT, write_bytes) as lease:
        return await run_on(lease)


async def _run(conversation: Conversation, lease: Lease) -> bytes:
    """Send the call. It may run for `silence_s`, as no other client waits on this connection."""
    write, deadline_s = not conversation.command.is_read, conversation.context.setup.config.timeouts.silence_s
    return await conversation.ask_on(lease, Request(conversation.argv), write=write, deadline_s=deadline_s)


async def _find_text(conversation: Conversation, lease: Lease, reply: bytes, digest: bytes) -> Text:
    """Whether the server has the text, after a call of it got `reply`.

    The server is asked only after an error. Its answer also shows that the call got exactly one reply, so that the
    connection may be used again: only with an error could a script make a second reply.
    """
    if not reply.startswith(b"-"):
        lease.reusable = True
        return Text.PRESENT
    try:
        answer = await ask_server(conversation, lease, b"SCRIPT", b"EXISTS", digest)
    except Refusal:
        return Text.UNKNOWN
    found = _EXISTS.get(answer, Text.UNKNOWN)
    lease.reusable = found is not Text.UNKNOWN
    return found


HANDLERS: dict[bytes, Handler] = {
    b"eval": _eval,
    b"eval_ro": _eval,
    b"evalsha": _evalsha,
    b"evalsha_ro": _evalsha,
    b"fcall": _fcall,
    b"fcall_ro": _fcall,
}
