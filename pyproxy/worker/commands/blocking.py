"""Blocking commands: BLPOP and others of its kind, XREAD and XREADGROUP with BLOCK.

With all keys on one shard, the command goes unchanged to the primary, on a leased connection, and the server keeps the
order of the clients that wait. With keys on several shards, polling.py serves it, or it is refused.

The wait ends in one of these ways:

    the server answers                 the client gets the answer
    the client resets its connection   the leased connection is closed at once, so the server forgets the command
    the client closes its half,        the server is asked to end the command as at its timeout (CLIENT UNBLOCK); an
      or the worker drains             element that came before still goes to the client
    the gate of the shard closes       the same; then the command waits at the gate, and goes with what is left of its
                                       timeout to the primary of that moment
    the connection is lost             -UNCERTAIN, as an element may have been taken; for XREAD, which takes none,
                                       -TRYAGAIN
    no reply after the timeout         the same
"""

from __future__ import annotations

import asyncio
import contextlib

from protocol import errors
from protocol.reply import NIL_ARRAY, NILS, Error, decode, fields, text_of
from protocol.request import Request, size_of
from pyproxy.deadline import within
from pyproxy.worker.commands.block_timeout import BlockTimeout
from pyproxy.worker.commands.conversation import Conversation, Handler, NotSent, Refusal
from pyproxy.worker.commands.cross_shard.polling import POLLED, poll
from pyproxy.worker.commands.placing import shards_of
from pyproxy.worker.shard.link import MOVED
from pyproxy.worker.shard.pool import Lease, LeaseKind, NoLease

DEMOTED = b"-UNBLOCKED force unblock from blocking operation, instance state changed "
"""The reply of a primary that becomes a replica, before it closes the connection (blocked.c of Redis and Valkey).

Other -UNBLOCKED replies go to the client: its stream is gone (Redis 7.0), or an operator has unblocked it.
"""

UNBLOCK_AGAIN_S = 0.01


async def wait(conversation: Conversation) -> bytes:
    shards = shards_of(conversation.lane, conversation.argv, conversation.command.keys(conversation.argv))
    block_timeout: BlockTimeout | None = conversation.kept
    if block_timeout is None:
        block_timeout = BlockTimeout(conversation.command.name, conversation.argv)
        if conversation.command.name == b"xread":
            await _resolve_last_ids(conversation, block_timeout)
        conversation.kept = block_timeout
    if len(shards) == 1:
        (shard,) = shards
        return await _at_server(conversation, shard, block_timeout)
    if conversation.context.setup.config.cross_shard != "emulate" or conversation.command.name not in POLLED:
        raise Refusal(errors.crossslot())
    if block_timeout.refusal:
        raise Refusal(block_timeout.refusal)
    return await poll(conversation, block_timeout)


async def _resolve_last_ids(conversation: Conversation, block_timeout: BlockTimeout) -> None:
    """Replace `$` by the last id of the stream now, as the command may be sent a second time."""
    keys = conversation.command.keys(conversation.argv)
    last = range(keys[-1] + 1, len(conversation.argv))
    async for some in conversation.in_turns(zip(keys, last, strict=False)):  # else the server refuses it
        for place, of_id in some:
            if conversation.argv[of_id] == b"$":
                await _resolve_last_id(conversation, block_timeout, conversation.argv[place], of_id)


async def _resolve_last_id(conversation: Conversation, block_timeout: BlockTimeout, key: bytes, place: int) -> None:
    """`place`: of the `$` of this stream."""
    reply = decode(await conversation.ask(conversation.shard_of(key), b"XINFO", b"STREAM", key, primary=True))
    if reply == Error(b"ERR no such key"):
        block_timeout.replace_word(place, b"0-0")
    elif not isinstance(reply, Error):
        block_timeout.replace_word(place, text_of(fields(reply), b"last-generated-id"))


async def _at_server(conversation: Conversation, shard: int, block_timeout: BlockTimeout) -> bytes:
    """Send it to the shard of its keys, on a leased connection. After a closed gate, on another one."""
    is_write = "write" in conversation.command.flags
    while True:
        router = conversation.lane.links[shard].router
        try:
            async with conversation.lease(shard, LeaseKind.LONG, size_of(conversation.argv)) as lease:
                attempt = _Attempt(conversation, lease)
                request = await conversation.request_of(block_timeout.to_send())
                reply = await attempt.ask(request, is_write, block_timeout.left_s)
                lease.reusable = not attempt.unblock_requested and not reply.startswith(DEMOTED)
        except NotSent:
            continue
        if reply.startswith(DEMOTED) or (attempt.unblock_requested and reply in NILS):
            if conversation.stopped:
                raise Refusal(errors.unblocked())
            if block_timeout.is_over:
                return NIL_ARRAY[conversation.client.proto]
            conversation.has_written_nothing()
        elif not router.withholds(reply):
            return reply


class _Attempt:
    """The command on one server, on one leased connection."""

    def __init__(self, conversation: Conversation, lease: Lease) -> None:
        self._conversation = conversation
        self._lease = lease
        self._unblocking: asyncio.Task[None] | None = None

    @property
    def unblock_requested(self) -> bool:
        """Whether the server was asked to end the command."""
        return self._unblocking is not None

    async def ask(self, request: Request, is_write: bool, left_s: float | None) -> bytes:
        """The reply. Raises Refusal if none comes, NotSent if the command may be sent to another server."""
        conversation, lease = self._conversation, self._lease
        try:
            await self._ask_connection_id()
            # it may have closed while the lease was made ready, and what is sent later is not unblocked by that
            await conversation.pass_gate(lease.link.index, request.size)
            lease.unblock = self._start_unblocking
            with conversation.waiting(self._start_unblocking):
                deadline_s = None if left_s is None else left_s + conversation.deadline_s(request)
                return await conversation.ask_on(lease, request, write=is_write, deadline_s=deadline_s)
        except Refusal as refusal:
            if lease.lost == MOVED and not is_write:
                raise NotSent(refusal.line) from None
            raise
        finally:
            lease.unblock = None
            if self._unblocking is not None:
                self._unblocking.cancel()

    async def _ask_connection_id(self) -> None:
        """Ask for the server's id of this connection. Without an id the command cannot be unblocked."""
        if not self._lease.client_id:
            asked = Request([b"CLIENT", b"ID"])
            try:
                reply = await self._conversation.ask_on(
                    self._lease, asked, write=False, deadline_s=self._conversation.reply_s
                )
            except Refusal as refusal:
                raise NotSent(refusal.line) if self._lease.lost == MOVED else refusal from None
            self._lease.client_id = reply[1:-2] if reply.startswith(b":") else b""

    def _start_unblocking(self) -> None:
        if self._unblocking is None:
            self._unblocking = self._conversation.lane.loop.create_task(self._unblock())

    async def _unblock(self) -> None:
        """Send CLIENT UNBLOCK until the command ends. On another connection, the first one may overtake the command.

        This has no time limit of its own: a hand-over that waits for it has one. Once the client has left, or the
        worker drains, it has `reply_s`.
        """
        with contextlib.suppress(TimeoutError):
            async with within(self._conversation.reply_s if self._conversation.stopped else None):
                while await self._send_unblock():  # noqa: ASYNC110 - the server gives no sign
                    await asyncio.sleep(UNBLOCK_AGAIN_S)
        self._lease.drop(errors.NOT_UNBLOCKED)

    async def _send_unblock(self) -> bool:
        """Send it once. False: it cannot be sent, or the server refuses it, so that sending it again is of no use."""
        conversation = self._conversation
        with contextlib.suppress(Refusal, NoLease):
            async with conversation.lease_pool.out_of_band(self._lease.link.index) as other:
                if not self._lease.client_id:
                    return False
                asked = Request([b"CLIENT", b"UNBLOCK", self._lease.client_id, b"TIMEOUT"])
                reply = await conversation.ask_on(
                    other, asked, write=False, deadline_s=conversation.reply_s, of_keys=False
                )
                other.reusable = True
                return bool(reply.startswith(b":"))
        return True


_WAIT = (b"blpop", b"brpop", b"blmove", b"brpoplpush", b"blmpop", b"bzpopmin", b"bzpopmax", b"bzmpop")

HANDLERS: dict[bytes, Handler] = dict.fromkeys(_WAIT, wait)
"""Without XREAD and XREADGROUP, which block only with BLOCK; dispatch.py looks for it."""
