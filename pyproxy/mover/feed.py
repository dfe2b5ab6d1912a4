"""The change feed of one source: the name of every key in some slots that changes, by whatever does it.

A connection with CLIENT TRACKING ON BCAST is pushed each name after the change and before whoever made the change has
its reply. So once writers have their replies, a PING that is answered here has all their changes before it. A push
without names says that a database was emptied. A feed that was lost has missed something, and cannot be taken up again.
"""

import asyncio
from collections.abc import Callable
from typing import Self

from protocol.reply import BadFrame, Error, decode
from pyproxy.access import Access
from pyproxy.config import Timeouts
from pyproxy.hashing import SLOTS, in_slots
from pyproxy.mover.connection import Connection, Denied, refusal
from pyproxy.shard_map import Node, SlotRange

PUSH_LIMIT = 256 << 20
"""Bytes of one push: it has all names that one turn of the server's loop has changed, however long a script ran."""

NO_NAME = b"\0pyproxy: no key begins like this\0"
"""The prefix of a feed that is there to tell of emptied databases, as it does whatever its prefix."""

NO_EVICT = (b"CLIENT", b"NO-EVICT", b"ON")
"""A server short of memory for its clients (7.0) may close those with most of it, as a feed is under load."""


def wanted_slots(slots: tuple[SlotRange, ...]) -> bytes:
    """For each slot 1 or 0: it is one of these."""
    wanted = bytearray(SLOTS)
    for first, last in slots:
        wanted[first : last + 1] = b"\1" * (last + 1 - first)
    return bytes(wanted)


class Feed:
    """`on_names` is given the names in the slots, in the order of their changes; `on_flush` called for a database that
    was emptied, `on_lost` at the end."""

    def __init__(
        self,
        wanted: bytes,
        on_names: Callable[[list[bytes]], None],
        on_flush: Callable[[], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._wanted = wanted
        self._on_names = on_names
        self._on_flush = on_flush
        self._on_lost = on_lost
        self._connection: Connection | None = None

    async def open(
        self, node: Node, access: Access, timeouts: Timeouts, *, own: bool = False, names: bool = True
    ) -> Self:
        """Everything that changes from now on is told. Raises Lost. `own`: but what its own connection does. Without
        `names`: only that a database was emptied."""
        self._connection = await Connection.open(
            node, access, timeouts, limit=PUSH_LIMIT, on_push=self.on_push, on_lost=self._on_lost
        )
        options = (*((b"NOLOOP",) if own else ()), *(() if names else (b"PREFIX", NO_NAME)))
        _, tracking = await self._connection.ask(NO_EVICT, (b"CLIENT", b"TRACKING", b"ON", b"BCAST", *options))
        if isinstance(tracking, Error):
            self.close()
            raise Denied(f"{node}: {refusal(b'CLIENT TRACKING', tracking)}; it is what tells the mover of changes")
        return self

    @property
    def connection(self) -> Connection:
        assert self._connection is not None
        return self._connection

    async def sync(self) -> None:
        """Returns when all that was changed, and answered, before it was called has been told. Raises Lost."""
        await self.connection.ask((b"PING",))

    async def latency(self) -> float:
        """In seconds, of the server: of several questions the fastest, as this process may be late itself."""
        clock = asyncio.get_running_loop().time
        took = []
        for _ in range(3):
            began = clock()
            await self.sync()
            took.append(clock() - began)
        return min(took)

    def on_push(self, frame: bytes) -> None:
        try:
            push = decode(frame)
        except BadFrame:
            push = None
        match push:
            case [b"invalidate", None]:
                self._on_flush()
            case [b"invalidate", list(names)]:
                found = in_slots((name for name in names if isinstance(name, bytes)), self._wanted)
                if found:
                    self._on_names(found)
            case [b"tracking-redir-broken", *_] | None:
                self.connection.drop("sent a push that cannot be understood")

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
