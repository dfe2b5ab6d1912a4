"""EXEC on leased connections: of a client that watches keys, and of a transaction with scripts.

Any other EXEC goes out on the shared connections (transaction.py).

Each shard gets one block. The block of the watched shard goes first, and the others only if no watched key was changed.
A server cannot be given the text of a script in the middle of a block. So each server is asked before (SCRIPT EXISTS)
which of the named texts it lacks, and gets those.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack

from protocol import errors
from protocol.reply import NIL_ARRAY
from protocol.request import Block
from pyproxy.worker.commands import watch
from pyproxy.worker.commands.conversation import Conversation, NotSent, Refusal, SlotsMoved
from pyproxy.worker.commands.script_texts import cache_texts, load_missing
from pyproxy.worker.commands.transaction import in_order
from pyproxy.worker.commands.watch import Watched
from pyproxy.worker.lane.lane import Client
from pyproxy.worker.shard.pool import Lease, LeaseKind, NoLease


async def execute(conversation: Conversation) -> bytes:
    """EXEC. It ends the transaction and the watch, whatever the answer is."""
    client = conversation.client
    client.transaction.follow_moves(client)
    try:
        reply = await _execute(conversation, client.watched)
    except SlotsMoved:
        raise  # it is begun anew, with its transaction and its watch
    except (Refusal, NoLease) as refusal:
        reply = errors.transaction_discarded(refusal.line)
    except BaseException:
        _end(client)
        raise
    _end(client)
    return reply


def _end(client: Client) -> None:
    client.end_transaction()
    client.end_watch()


async def _execute(conversation: Conversation, watched: Watched | None) -> bytes:
    transaction = conversation.client.transaction
    if transaction.refused:
        return errors.exec_aborted()
    blocks: dict[int, Block] = transaction.blocks
    # a lost watch has no shard any more: slots that moved took its keys elsewhere
    shards = blocks.keys() | (set() if watched is None or watched.is_lost else {watched.shard})
    if len(shards) > 1 and conversation.context.setup.config.transactions != "split":
        return errors.transaction_over_shards([conversation.name(shard) for shard in sorted(shards)])
    try:
        return await _run_blocks(conversation, watched, blocks)
    except NotSent:
        if watched is None or not watched.is_lost:
            raise
        return await watch.answer_lost(conversation, watched)


async def _run_blocks(conversation: Conversation, watched: Watched | None, blocks: Mapping[int, Block]) -> bytes:
    """Raises NotSent where a connection was lost before anything was sent on it."""
    transaction = conversation.client.transaction
    frames: list[bytes | None] = [None] * len(conversation.shards)
    applied: list[str] = []
    async with AsyncExitStack() as leased:
        leases = await _lease(conversation, leased, watched, blocks)
        if watched is not None:
            answer = await watch.run_watched(conversation, watched, blocks.get(watched.shard))
            alone = not leases and not transaction.is_assembled
            if alone or not answer.startswith(b"*") or answer == NIL_ARRAY[2]:
                return answer
            if watched.shard in blocks:
                frames[watched.shard] = answer
                if transaction.write:
                    applied.append(conversation.name(watched.shard))
        await _send(conversation, leases, blocks, frames, applied)
    if len(blocks) == 1 and not transaction.is_assembled:
        (frame,) = (frame for frame in frames if frame is not None)
        return frame
    return await in_order(conversation.lane, transaction, frames)


async def _lease(
    conversation: Conversation, leased: AsyncExitStack, watched: Watched | None, blocks: Mapping[int, Block]
) -> dict[int, Lease]:
    """Lease a connection for each block but the watched shard's.

    When it returns, all gates have let the blocks pass, and all servers have the texts of the scripts.
    """
    transaction = conversation.client.transaction
    if watched is not None and watched.is_lost:
        raise NotSent(errors.not_applied(watched.lease.link.name, watched.lease.link.node, watched.lease.lost))
    kind = LeaseKind.SHORT if watched is None and len(blocks) == 1 else LeaseKind.CROSS_SHARD
    leases: dict[int, Lease] = {}
    for shard, block in sorted(blocks.items()):
        write_bytes = block.size if transaction.write else 0
        if watched is None or shard != watched.shard:
            leases[shard] = await leased.enter_async_context(conversation.lease(shard, kind, write_bytes))
        elif write_bytes:
            await conversation.pass_gate(shard, write_bytes)
    for lease in (*([] if watched is None else [watched.lease]), *leases.values()):
        await load_missing(conversation, lease, transaction.scripts)
    return leases


async def _send(
    conversation: Conversation,
    leases: Mapping[int, Lease],
    blocks: Mapping[int, Block],
    frames: list[bytes | None],
    applied: list[str],
) -> None:
    """Send the blocks on their leases, one after another, and put each answer, an array, into `frames`.

    Raises Refusal for any other answer, with the shards that have `applied` theirs before. A script may take as long
    as a server may be silent.
    """
    transaction, deadline_s = conversation.client.transaction, conversation.context.setup.config.timeouts.silence_s
    for shard, lease in leases.items():
        try:
            reply = await conversation.ask_on(lease, blocks[shard], write=transaction.write, deadline_s=deadline_s)
        except Refusal as refusal:
            reply = refusal.line
        if not reply.startswith(b"*"):
            raise Refusal(reply if len(blocks) == 1 else errors.part_failed(conversation.name(shard), reply, applied))
        lease.reusable = True
        frames[shard] = reply
        if transaction.write:
            applied.append(conversation.name(shard))
        await cache_texts(conversation, lease, transaction.scripts)
