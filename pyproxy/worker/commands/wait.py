"""WAIT and WAITAOF: how many replicas have what this client has written.

Clients share the connections for writes, so a server does not know which client sent a write. So each shard that the
client has written to is asked on a leased connection, when all earlier requests of the client are answered. First a
message without a subscriber is published there (the fence). It comes after the client's writes in the replication
stream, and WAIT on the same connection waits for it. The answer is the smallest number of all shards.

If the connection of a write was lost (the server restarted, or another was promoted), the write may be lost, too. No
number would be right then, so the client gets one error.
"""

import asyncio
from collections.abc import Iterable
from contextlib import nullcontext

from protocol import errors
from protocol.keyspecs import number
from protocol.reply import BadFrame
from protocol.request import Request
from pyproxy.worker.commands.conversation import Conversation, Handler, Refusal
from pyproxy.worker.shard.pool import LeaseKind

FENCE = Request([b"SPUBLISH", b"__pyproxy:fence", b""])
"""Sharded, as no pattern matches a shard channel. PING would be enough on Redis 7, but not on Valkey 9."""

_OF_A_REPLICA = b" cannot be used with replica instances"


async def _wait(conversation: Conversation) -> bytes:
    wanted, timeout_ms = (number(word) for word in conversation.argv[1:])
    if wanted is None or timeout_ms is None or timeout_ms < 0:
        return await _reply_of(conversation, 0, 0, fenced=False)  # the server refuses it
    client = conversation.client
    waited = client.waited = client.waited or {}
    wrote = _wrote(conversation)
    if not wrote and not waited:
        counts = await _ask(conversation, conversation.shards, timeout_ms, fenced=False)
        return b":%d\r\n" % min(each for (each,) in counts.values())
    asked = [shard for shard in conversation.shards if shard in wrote or waited.get(shard, wanted) < wanted]
    for shard, (count,) in (await _ask(conversation, asked, timeout_ms)).items():
        waited[shard] = count
        client.written_shards &= ~_bit(shard)
    return b":%d\r\n" % min(waited.values())


async def _waitaof(conversation: Conversation) -> bytes:
    timeout_ms = number(conversation.argv[3])
    if timeout_ms is None or timeout_ms < 0:
        return await _reply_of(conversation, 0, 0, fenced=False)  # the server refuses it
    wrote = _wrote(conversation) | (conversation.client.waited or {}).keys()
    counts = await _ask(conversation, wrote or conversation.shards, timeout_ms)
    return b"*2\r\n" + b"".join(b":%d\r\n" % min(each) for each in zip(*counts.values(), strict=True))


async def _ask(
    conversation: Conversation, shards: Iterable[int], timeout_ms: int, fenced: bool = True
) -> dict[int, list[int]]:
    """Ask these shards at once -> shard -> its numbers. Raises Refusal. Timeout 0: until the client leaves."""
    with conversation.waiting() if timeout_ms == 0 else nullcontext():
        try:
            async with asyncio.TaskGroup() as group:
                asking = {
                    shard: group.create_task(_reply_of(conversation, shard, timeout_ms, fenced)) for shard in shards
                }
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
    counts = {}
    for shard, task in asking.items():
        frame = task.result()
        if frame.startswith(b"-"):
            raise Refusal(_demoted(conversation, shard) if _OF_A_REPLICA in frame else frame)
        counts[shard] = _numbers(frame, 1 if conversation.command.name == b"wait" else 2)
    _wrote(conversation)  # raises for a connection that was lost meanwhile
    return counts


def _demoted(conversation: Conversation, shard: int) -> bytes:
    """The error line for a primary that became a replica. It may have dropped writes of this client: one error, too."""
    client, name, node = conversation.client, conversation.name(shard), conversation.lane.links[shard].node
    if not client.written_shards & _bit(shard):
        return errors.not_applied(name, node, "is a replica by now")
    client.lost_shards &= ~_bit(shard)
    client.written_shards &= ~_bit(shard)
    return errors.uncertain(name, node, errors.OUT_OF_SIGHT)


async def _reply_of(conversation: Conversation, shard: int, timeout_ms: int, fenced: bool) -> bytes:
    """The reply of a shard. It has the timeout of the command, and `reply_s` more."""
    reply_s = conversation.context.setup.config.timeouts.reply_s
    async with conversation.lease(shard, LeaseKind.LONG) as lease:
        reply = await conversation.ask_on(lease, FENCE, write=False, deadline_s=reply_s) if fenced else b""
        if not reply.startswith(b"-"):
            deadline_s = timeout_ms / 1000 + reply_s if timeout_ms else None
            reply = await conversation.ask_on(lease, Request(conversation.argv), write=False, deadline_s=deadline_s)
        lease.reusable = True
    return reply


def _numbers(frame: bytes, count: int) -> list[int]:
    """The numbers in a reply. Raises BadFrame if it does not have `count` of them."""
    found = [each[1:] for each in frame.split(b"\r\n") if each.startswith(b":")]
    if len(found) != count or not all(each.isdigit() for each in found):
        raise BadFrame
    return list(map(int, found))


def _wrote(conversation: Conversation) -> set[int]:
    """The shards with writes of the client after its last WAIT. Raises Refusal once for each lost connection."""
    client = conversation.client
    for shard in conversation.shards:
        if client.lost_shards & _bit(shard):
            client.lost_shards &= ~_bit(shard)
            client.written_shards &= ~_bit(shard)
            raise Refusal(
                errors.uncertain(conversation.name(shard), conversation.lane.links[shard].node, errors.OUT_OF_SIGHT)
            )
    return {shard for shard in conversation.shards if client.written_shards & _bit(shard)}


def _bit(shard: int) -> int:
    return 1 << shard % 64


HANDLERS: dict[bytes, Handler] = {b"wait": _wait, b"waitaof": _waitaof}
