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
from pyproxy.worker.shard.pool import Loan, Unlendable, Use


async def execute(talk: Conversation) -> bytes:
    """EXEC of a client that does not watch."""
    try:
        return await _execute(talk)
    except (Refusal, Unlendable) as refusal:
        return errors.transaction_discarded(refusal.line)
    finally:
        talk.client.end_transaction()


async def _execute(talk: Conversation) -> bytes:
    transaction, config = talk.client.transaction, talk.here.setup.config
    if transaction.refused:
        return errors.exec_aborted()
    blocks: dict[int, Block] = transaction.blocks
    if len(blocks) > 1 and config.transactions != "split":
        return errors.transaction_over_shards([talk.name(shard) for shard in sorted(blocks)])
    frames: list[bytes | None] = [None] * len(talk.shards)
    applied: list[str] = []
    use = Use.BRIEF if len(blocks) == 1 else Use.ACROSS
    async with AsyncExitStack() as lent:
        loans = {}
        for shard, block in sorted(blocks.items()):
            write_bytes = block.size if transaction.write else 0
            loans[shard] = await lent.enter_async_context(talk.lend(shard, use, write_bytes))
            await bring(talk, loans[shard], transaction.scripts)
        await send(talk, loans, blocks, frames, applied)
    if len(blocks) == 1 and not transaction.is_assembled:
        (frame,) = (frame for frame in frames if frame is not None)
        return frame
    return await in_order(talk.lane, transaction, frames)


async def send(
    talk: Conversation,
    loans: Mapping[int, Loan],
    blocks: Mapping[int, Block],
    frames: list[bytes | None],
    applied: list[str],
) -> None:
    """The blocks of the shards that are lent, one after another; their answers, which are arrays, into `frames`.

    Raises Refusal for any other answer, with those who have `applied` theirs before. Scripts may take their time.
    """
    transaction, deadline_s = talk.client.transaction, talk.here.setup.config.timeouts.silence_s
    for shard, loan in loans.items():
        try:
            reply = await talk.ask_on(loan, blocks[shard], write=transaction.write, deadline_s=deadline_s)
        except Refusal as refusal:
            reply = refusal.line
        if not reply.startswith(b"*"):
            raise Refusal(reply if len(blocks) == 1 else errors.part_failed(talk.name(shard), reply, applied))
        loan.keep = True
        frames[shard] = reply
        if transaction.write:
            applied.append(talk.name(shard))
        await learn(talk, loan, transaction.scripts)
