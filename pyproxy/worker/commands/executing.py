"""EXEC of a transaction with scripts: its blocks go out on borrowed connections, as scripts alone do.

A text that a server lacks cannot be brought in the middle of a block, so it is brought before: one SCRIPT EXISTS for
all digests that the block names.
"""

from collections.abc import Mapping
from contextlib import AsyncExitStack

from protocol import errors
from protocol.request import Block
from pyproxy.worker.commands.conversation import Conversation, Refusal
from pyproxy.worker.commands.scripting import bring, learn
from pyproxy.worker.commands.transaction import in_order
from pyproxy.worker.shard.pool import Lease, NoLease, Use


async def execute(conversation: Conversation) -> bytes:
    """EXEC of a client that does not watch."""
    try:
        return await _execute(conversation)
    except (Refusal, NoLease) as refusal:
        return errors.transaction_discarded(refusal.line)
    finally:
        conversation.client.end_transaction()


async def _execute(conversation: Conversation) -> bytes:
    transaction, config = conversation.client.transaction, conversation.context.setup.config
    if transaction.refused:
        return errors.exec_aborted()
    blocks: dict[int, Block] = transaction.blocks
    if len(blocks) > 1 and config.transactions != "split":
        return errors.transaction_over_shards([conversation.name(shard) for shard in sorted(blocks)])
    frames: list[bytes | None] = [None] * len(conversation.shards)
    applied: list[str] = []
    use = Use.BRIEF if len(blocks) == 1 else Use.ACROSS
    async with AsyncExitStack() as leased:
        leases = {}
        for shard, block in sorted(blocks.items()):
            write_bytes = block.size if transaction.write else 0
            leases[shard] = await leased.enter_async_context(conversation.lend(shard, use, write_bytes))
            await bring(conversation, leases[shard], transaction.scripts)
        await send(conversation, leases, blocks, frames, applied)
    if len(blocks) == 1 and not transaction.is_assembled:
        (frame,) = (frame for frame in frames if frame is not None)
        return frame
    return await in_order(conversation.lane, transaction, frames)


async def send(
    conversation: Conversation,
    leases: Mapping[int, Lease],
    blocks: Mapping[int, Block],
    frames: list[bytes | None],
    applied: list[str],
) -> None:
    """The blocks of the shards that are lent, one after another; their answers, which are arrays, into `frames`.

    Raises Refusal for any other answer, with those who have `applied` theirs before. Scripts may take their time.
    """
    transaction, deadline_s = conversation.client.transaction, conversation.context.setup.config.timeouts.silence_s
    for shard, lease in leases.items():
        try:
            reply = await conversation.ask_on(lease, blocks[shard], write=transaction.write, deadline_s=deadline_s)
        except Refusal as refusal:
            reply = refusal.line
        if not reply.startswith(b"*"):
            raise Refusal(reply if len(blocks) == 1 else errors.part_failed(conversation.name(shard), reply, applied))
        lease.keep = True
        frames[shard] = reply
        if transaction.write:
            applied.append(conversation.name(shard))
        await learn(conversation, lease, transaction.scripts)
