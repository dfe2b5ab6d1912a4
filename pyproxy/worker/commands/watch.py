"""WATCH, and what EXEC asks of the watched shard: on a leased connection, as a watch belongs to a connection.

All watched keys must be on one shard, as keys on several could not be checked at one moment. If the connection is
lost, so is the watch, and EXEC answers nil, as if a watched key was changed. So a promotion in between looks like a
change. EXEC answers nil only after the primary has answered: for a shard that is down it answers an error.

The client may use another database or protocol after WATCH. The leased connection follows it.
"""

from __future__ import annotations

from protocol import errors
from protocol.reply import NIL_ARRAY
from protocol.request import Asked, Block, Request
from pyproxy.worker.commands.conversation import Conversation, Handler, Refusal
from pyproxy.worker.shard.pool import Lease, LeaseKind, LeasePool

MULTI, EXEC = Request([b"MULTI"]), Request([b"EXEC"])


class Watched:
    """The watch of a client. `keys`: how many keys it has, for CLIENT LIST."""

    def __init__(self, lease_pool: LeasePool, lease: Lease) -> None:
        self.lease = lease
        self.keys = 0
        self.proto, self.db = lease.proto, lease.db  # of the connection, now
        self._lease_pool = lease_pool
        self._links = lease.backend.lane.links  # the map of slots; another list after each change

    @property
    def is_lost(self) -> bool:
        """Whether its connection is lost, or slots have moved: somebody else may be told of what changes now."""
        return bool(self.lease.lost) or self.lease.backend.lane.links is not self._links

    @property
    def shard(self) -> int:
        return self.lease.link.index

    def end(self) -> None:
        """Give the connection back if it has no watch any more and is as it was leased. Else close it."""
        self.lease.reusable = self.lease.reusable and (self.proto, self.db) == (self.lease.proto, self.lease.db)
        self._lease_pool.release(self.lease)


async def _watch(conversation: Conversation) -> bytes:
    client, shard = conversation.client, conversation.shard_of_keys(errors.watch_over_shards)
    watched: Watched | None = client.watched
    if watched is None:
        watched = Watched(
            conversation.lease_pool,
            await conversation.lease_pool.acquire(shard, LeaseKind.LONG, client.proto, client.db),
        )
    elif watched.is_lost:
        return b"+OK\r\n"  # the watch stays lost until EXEC, wherever the keys are by now
    elif watched.shard != shard:
        raise Refusal(errors.watch_over_shards([watched.lease.link.name, conversation.name(shard)]))
    client.watched = watched
    reply = await _ask_on_watched(conversation, watched, Request(conversation.argv))
    watched.keys += len(conversation.argv) - 1
    return reply


async def answer_lost(conversation: Conversation, watched: Watched) -> bytes:
    """Answer EXEC where the watch was lost with its connection: nil, once the primary answers.

    It waits at the gate as a block of writes would, even where the block only reads: the incident may end in a moment.
    """
    shard = watched.shard
    block = conversation.client.transaction.blocks.get(shard)
    async with conversation.lease(shard, LeaseKind.SHORT, block.size if block else EXEC.size) as lease:
        # any read of a key: a server that is loading, or a replica without its primary, refuses it
        reply = await conversation.ask_on(
            lease, Request([b"EXISTS", b""]), write=False, deadline_s=conversation.reply_s
        )
        lease.reusable = True
    return errors.exec_rejected(reply) if reply.startswith(b"-") else NIL_ARRAY[conversation.client.proto]


async def run_watched(conversation: Conversation, watched: Watched, block: Block | None) -> bytes:
    """Run the block of the watched shard -> its answer: nil where a watched key was changed.

    Without a block an empty one is run, as only EXEC says whether the watch held.
    """
    if block is not None:
        reply = await _ask_on_watched(conversation, watched, block)
    else:
        await _ask_on_watched(conversation, watched, MULTI)
        reply = await _ask_on_watched(conversation, watched, EXEC)
    watched.lease.reusable = True  # whatever EXEC answers, it has ended the watch
    return reply


async def _ask_on_watched(conversation: Conversation, watched: Watched, asked: Asked) -> bytes:
    """Ask on the connection with the watch, in the client's protocol and database."""
    client = conversation.client
    if watched.proto != client.proto:
        await _change(conversation, watched, b"HELLO", client.proto)
        watched.proto = client.proto
    if watched.db != client.db:
        await _change(conversation, watched, b"SELECT", client.db)
        watched.db = client.db
    write = isinstance(asked, Block) and client.transaction.write
    return await conversation.ask_on(watched.lease, asked, write=write, deadline_s=conversation.deadline_s(asked))


async def _change(conversation: Conversation, watched: Watched, name: bytes, number: int) -> None:
    reply = await conversation.ask_on(
        watched.lease, Request([name, b"%d" % number]), write=False, deadline_s=conversation.reply_s
    )
    if reply.startswith(b"-"):
        raise Refusal(reply)


HANDLERS: dict[bytes, Handler] = {b"watch": _watch}
