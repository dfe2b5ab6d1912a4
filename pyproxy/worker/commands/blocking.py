"""Commands that wait for something to come to a key: BLPOP and its kin, XREAD and XREADGROUP with BLOCK.

Keys on one shard: the command goes as it is to the primary, on a connection that this client has alone, and the server
keeps the order of those who wait. Keys on several shards: polling.py, or refused.

Waiting ends in one of these ways:

    the server answers                the client gets the answer
    the client is reset               the connection is closed at once: the server forgets the command
    the client closes (its half),     the server is asked to give the command up, as at its timeout (CLIENT UNBLOCK):
      or the worker goes              what came before is still the client's
    the gate of the shard closes      likewise; then the command waits at the gate, and goes to the primary of then
                                      with what is left of its time
    the connection is lost            -UNCERTAIN: something may have been taken; of XREAD, which takes nothing,
                                      -TRYAGAIN
    nothing comes, past the timeout   likewise
"""

from __future__ import annotations

import asyncio
import contextlib

from protocol import errors
from protocol.reply import Error, decode, fields, text_of
from protocol.request import Request, size_of
from pyproxy.deadline import within
from pyproxy.worker.commands.block_timeout import BlockTimeout
from pyproxy.worker.commands.conversation import Conversation, Handler, NotSent, Refusal
from pyproxy.worker.commands.cross_shard.polling import NIL, NOTHING, POLLED, poll
from pyproxy.worker.commands.placing import shards_of
from pyproxy.worker.shard.link import MOVED
from pyproxy.worker.shard.pool import Lease, NoLease, Use

DEMOTED = b"-UNBLOCKED force unblock from blocking operation, instance state changed "
"""From a primary that became a replica, which then closes the connection (blocked.c of Redis and Valkey).

Other -UNBLOCKED are the client's: its stream is gone (Redis 7.0), or an operator has unblocked it.
"""

UNBLOCK_AGAIN_S = 0.01


async def wait(conversation: Conversation) -> bytes:
    shards = shards_of(conversation.lane, conversation.argv, conversation.command.keys(conversation.argv))
    block_timeout = BlockTimeout(conversation.command.name, conversation.argv)
    if conversation.command.name == b"xread":
        await _resolve_last_ids(conversation, block_timeout)
    if len(shards) == 1:
        (shard,) = shards
        return await _at_server(conversation, shard, block_timeout)
    if conversation.context.setup.config.cross_shard != "emulate" or conversation.command.name not in POLLED:
        raise Refusal(errors.crossslot())
    if block_timeout.refusal:
        raise Refusal(block_timeout.refusal)
    return await poll(conversation, block_timeout)


async def _resolve_last_ids(conversation: Conversation, block_timeout: BlockTimeout) -> None:
    """`$` means the last entry of now, also where the command is sent a second time."""
    keys = conversation.command.keys(conversation.argv)
    for key in keys:
        place = key + len(keys)
        if block_timeout.argv[place : place + 1] != [b"$"]:
            continue
        reply = decode(
            await conversation.ask(
                conversation.shard_of(conversation.argv[key]), b"XINFO", b"STREAM", conversation.argv[key], primary=True
            )
        )
        if reply == Error(b"ERR no such key"):
            block_timeout.replace_word(place, b"0-0")
        elif not isinstance(reply, Error):
            block_timeout.replace_word(place, text_of(fields(reply), b"last-generated-id"))


async def _at_server(conversation: Conversation, shard: int, block_timeout: BlockTimeout) -> bytes:
    """On connections of its own, one after another, to the one shard of its keys."""
    is_write = "write" in conversation.command.flags
    while True:
        router = conversation.lane.links[shard].router
        try:
            async with conversation.lend(shard, Use.HELD, size_of(conversation.argv)) as lease:
                attempt = _Attempt(conversation, lease)
                reply = await attempt.ask(block_timeout.request(), is_write, block_timeout.left_s)
                lease.keep = not attempt.let_go and not reply.startswith(DEMOTED)
        except NotSent:
            continue
        if reply.startswith(DEMOTED) or (attempt.let_go and reply in NOTHING):
            if conversation.stopped:
                raise Refusal(errors.unblocked())
            if block_timeout.is_over:
                return NIL[conversation.client.proto]
        elif not router.takes_back(reply):
            return reply


class _Attempt:
    """The command at one server, on one connection."""

    def __init__(self, conversation: Conversation, lease: Lease) -> None:
        self._conversation = conversation
        self._lease = lease
        self._unblocking: asyncio.Task[None] | None = None

    @property
    def let_go(self) -> bool:
        """The server was asked to give it up."""
        return self._unblocking is not None

    async def ask(self, request: Request, is_write: bool, left_s: float | None) -> bytes:
        """Its answer. Raises Refusal where none comes; NotSent where it may be sent to another server."""
        conversation, lease = self._conversation, self._lease
        try:
            await self._ask_connection_id()
            lease.let_go = self._start_unblocking
            with conversation.waiting(self._start_unblocking):
                deadline_s = None if left_s is None else left_s + conversation.reply_s
                return await conversation.ask_on(lease, request, write=is_write, deadline_s=deadline_s)
        except Refusal as refusal:
            if lease.lost == MOVED and not is_write:
                raise NotSent(refusal.line) from None
            raise
        finally:
            lease.let_go = None
            if self._unblocking is not None:
                self._unblocking.cancel()

    async def _ask_connection_id(self) -> None:
        """By what the server knows this connection; one that does not say is asked to give nothing up."""
        if not self._lease.id:
            asked = Request([b"CLIENT", b"ID"])
            try:
                reply = await self._conversation.ask_on(
                    self._lease, asked, write=False, deadline_s=self._conversation.reply_s
                )
            except Refusal as refusal:
                raise NotSent(refusal.line) if self._lease.lost == MOVED else refusal from None
            self._lease.id = reply[1:-2] if reply.startswith(b":") else b""

    def _start_unblocking(self) -> None:
        if self._unblocking is None:
            self._unblocking = self._conversation.lane.loop.create_task(self._unblock())

    async def _unblock(self) -> None:
        """Asked more than once: it may be there before the command, on its other connection.

        A hand-over that waits for it in vain is given up. A client that has left is not waited for long.
        """
        with contextlib.suppress(TimeoutError):
            async with within(self._conversation.reply_s if self._conversation.stopped else None):
                while await self._send_unblock():  # noqa: ASYNC110 - the server says nothing by itself
                    await asyncio.sleep(UNBLOCK_AGAIN_S)
        self._lease.drop(errors.NOT_UNBLOCKED)

    async def _send_unblock(self) -> bool:
        """Asked once; False: the server does not let itself be asked."""
        conversation = self._conversation
        with contextlib.suppress(Refusal, NoLease):
            async with conversation.lease_pool.aside(self._lease.link.index) as other:
                if not self._lease.id:
                    return False
                asked = Request([b"CLIENT", b"UNBLOCK", self._lease.id, b"TIMEOUT"])
                reply = await conversation.ask_on(other, asked, write=False, deadline_s=conversation.reply_s)
                other.keep = True
                return bool(reply.startswith(b":"))
        return True


_WAIT = (b"blpop", b"brpop", b"blmove", b"brpoplpush", b"blmpop", b"bzpopmin", b"bzpopmax", b"bzmpop")

HANDLERS: dict[bytes, Handler] = dict.fromkeys(_WAIT, wait)
"""XREAD and XREADGROUP wait only if they are asked to; see dispatch.py."""
