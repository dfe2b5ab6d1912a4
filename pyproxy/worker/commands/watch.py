"""WATCH, and the EXEC after it: on a connection that this client has alone, as what is watched belongs to a connection.

All watched keys are on one shard: keys of several could not be checked at one moment. A connection that is lost takes
the watch along, and EXEC answers nil as for any other watch that was broken: a promotion in between looks like a
change. But only once the shard can be had, whatever is in the block: one that is down is an error, and never a nil.
With `transactions = "split"` the block of the watched shard goes first, and the others only if its watch held.

The client may have gone to another database since, or to the other protocol: the connection follows it.
"""

from __future__ import annotations

from contextlib import AsyncExitStack

from protocol import errors
from protocol.request import Asked, Block, Request
from pyproxy.worker.commands.conversation import Conversation, Handler, NotSent, Refusal
from pyproxy.worker.commands.executing import send
from pyproxy.worker.commands.scripting import bring
from pyproxy.worker.commands.transaction import in_order
from pyproxy.worker.shard.pool import Lender, Loan, Unlendable, Use

NIL = {2: b"*-1\r\n", 3: b"_\r\n"}
MULTI, EXEC = Request([b"MULTI"]), Request([b"EXEC"])


class Watched:
    """The keys that a client watches; `keys`: how many, as CLIENT LIST shows it."""

    def __init__(self, lender: Lender, loan: Loan) -> None:
        self.loan = loan
        self.keys = 0
        self.proto, self.db = loan.proto, loan.db  # of the connection, by now
        self._lender = lender

    def end(self) -> None:
        """The connection is given back if nothing is watched on it any more, else closed."""
        self.loan.keep = self.loan.keep and (self.proto, self.db) == (self.loan.proto, self.loan.db)
        self._lender.take_back(self.loan)


async def _watch(talk: Conversation) -> bytes:
    client, shard = talk.client, talk.shard_of_keys(errors.watch_over_shards)
    watched: Watched | None = client.watched
    if watched is None:
        watched = Watched(talk.lender, await talk.lender.borrow(shard, Use.HELD, client.proto, client.db))
    elif watched.loan.link.index != shard:
        raise Refusal(errors.watch_over_shards([watched.loan.link.name, talk.name(shard)]))
    elif watched.loan.lost:
        return b"+OK\r\n"  # and so it stays until EXEC
    client.watched = watched
    reply = await _on_it(talk, watched, Request(talk.argv))
    watched.keys += len(talk.argv) - 1
    return reply


async def execute(talk: Conversation) -> bytes:
    """EXEC of a client that watches."""
    client = talk.client
    try:
        return await _run(talk, client.watched)
    except (Refusal, Unlendable) as refusal:
        return errors.transaction_discarded(refusal.line)
    finally:
        client.end_transaction()
        client.end_watch()


async def _run(talk: Conversation, watched: Watched) -> bytes:
    try:
        return await _execute(talk, watched)
    except NotSent:
        if not watched.loan.lost:
            raise
        return await _lost(talk, watched.loan.link.index)


async def _lost(talk: Conversation, shard: int) -> bytes:
    """EXEC where the watch was lost with its connection: nil, if the shard can be had.

    So it waits at the gate as the block would, even where that only reads: an incident may end in a moment.
    """
    block = talk.client.transaction.blocks.get(shard)
    async with talk.lend(shard, Use.BRIEF, block.size if block else EXEC.size) as loan:
        # any read of a key: a server that loads its data, or has lost its primary, refuses it
        reply = await talk.ask_on(loan, Request([b"EXISTS", b""]), write=False, deadline_s=talk.reply_s)
        loan.keep = True
    return errors.exec_rejected(reply) if reply.startswith(b"-") else NIL[talk.client.proto]


async def _execute(talk: Conversation, watched: Watched) -> bytes:
    """Raises NotSent where a connection was lost before anything was sent on it."""
    transaction, own = talk.client.transaction, watched.loan.link.index
    if transaction.refused:
        return errors.exec_aborted()
    blocks: dict[int, Block] = transaction.blocks
    others = sorted(blocks.keys() - {own})
    if others and talk.here.setup.config.transactions != "split":
        return errors.transaction_over_shards([talk.name(shard) for shard in sorted({own, *others})])
    if watched.loan.lost:
        raise NotSent(errors.not_applied(watched.loan.link.name, watched.loan.link.node, watched.loan.lost))
    async with AsyncExitStack() as lent:
        loans = {shard: await lent.enter_async_context(talk.lend(shard, Use.ACROSS)) for shard in others}
        if transaction.write:  # all gates before anything is sent
            for shard, block in blocks.items():
                await talk.pass_gate(shard, block.size)
        for loan in (watched.loan, *loans.values()):
            await bring(talk, loan, transaction.scripts)
        checked = await _checked(talk, watched, blocks.get(own))
        if not checked.startswith(b"*") or checked == NIL[2] or not (others or transaction.is_assembled):
            return checked
        frames: list[bytes | None] = [None] * len(talk.shards)
        frames[own] = checked if own in blocks else None
        await send(talk, loans, blocks, frames, [talk.name(own)] if own in blocks and transaction.write else [])
    return await in_order(talk.lane, transaction, frames)


async def _checked(talk: Conversation, watched: Watched, block: Block | None) -> bytes:
    """The answer to the block of the watched shard, an empty array if it has none: nil where something was changed."""
    if block is not None:
        reply = await _on_it(talk, watched, block)
    else:
        await _on_it(talk, watched, MULTI)
        reply = await _on_it(talk, watched, EXEC)
    watched.loan.keep = True  # whatever EXEC answers, it has ended the watch
    return reply


async def _on_it(talk: Conversation, watched: Watched, asked: Asked) -> bytes:
    """A reply on the connection that watches, in the protocol and database of the client."""
    client = talk.client
    if watched.proto != client.proto:
        await _change(talk, watched, b"HELLO", client.proto)
        watched.proto = client.proto
    if watched.db != client.db:
        await _change(talk, watched, b"SELECT", client.db)
        watched.db = client.db
    write = isinstance(asked, Block) and client.transaction.write
    return await talk.ask_on(watched.loan, asked, write=write, deadline_s=talk.deadline_s(asked))


async def _change(talk: Conversation, watched: Watched, name: bytes, number: int) -> None:
    reply = await talk.ask_on(watched.loan, Request([name, b"%d" % number]), write=False, deadline_s=talk.reply_s)
    if reply.startswith(b"-"):
        raise Refusal(reply)


HANDLERS: dict[bytes, Handler] = {b"watch": _watch}
