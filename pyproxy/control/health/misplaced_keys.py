"""Keys that lie on a shard which does not own their slot: found, and moved to their owner.

A checked configuration comes in; `MisplacedKey`s go out, one after the other, by SCAN of the primary of each shard in
all its databases, at a bounded rate. Primaries are found by asking the servers of a shard for their role, as any of
them may have been promoted.

A key is moved by RESTORE at its owner, never in the place of one that is there, and is then deleted where it was only
if nobody has changed it in between: else the copy is taken back. So no value is lost; what cannot be moved stays, and
why is said.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Self

from protocol.reply import Error, Value
from pyproxy.access import Access
from pyproxy.control.health import detector
from pyproxy.control.health.key_sample import shown
from pyproxy.control.health.node_connection import NodeConnection, NodeError
from pyproxy.control.health.primary import NoPrimary, primary_of
from pyproxy.hashing import slot
from pyproxy.shard_map import Node, Shard, ShardMap

DEADLINE_S = 5.0  # of one question
SCAN_COUNT = 500

NOT_THERE = -2  # of PEXPIRETIME


class CannotVerify(Exception):
    """A shard cannot be scanned; the line says which, and why."""


@dataclass(frozen=True, slots=True)
class MisplacedKey:
    shard: Shard  # where it lies
    owner: Shard  # where it belongs
    database: int
    key: bytes

    def __str__(self) -> str:
        where = f"{self.shard.name} database {self.database} key {shown(self.key)}"
        return f"{where} slot {slot(self.key)} belongs to {self.owner.name}"


class MisplacedKeys:
    """Of one fleet. A context manager; `per_s`: how many keys of one server are scanned in a second."""

    def __init__(self, shard_map: ShardMap, access: Access, per_s: float) -> None:
        self._shard_map = shard_map
        self._access = access
        self._per_s = per_s
        self._primaries: dict[str, Node] = {}
        self._open: dict[str, NodeConnection] = {}

    async def __aenter__(self) -> Self:
        """Raises CannotVerify, unless each shard has one primary that answers."""
        try:
            for shard in self._shard_map.shards:
                self._primaries[shard.name] = await primary_of(shard, self._access)
        except NoPrimary as exc:
            raise CannotVerify(str(exc)) from None
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in self._open.values():
            connection.close()
        self._open.clear()

    # --- finding ---

    async def find(self) -> AsyncIterator[MisplacedKey]:
        """All of them, in the order of the shards. Raises CannotVerify."""
        for shard in self._shard_map.shards:
            try:
                for database in await self._databases(shard):
                    async for misplaced in self._scan(shard, database):
                        yield misplaced
            except NodeError as exc:
                raise CannotVerify(f"shard {shard.name} ({self._primaries[shard.name]}): {exc}") from None

    async def _databases(self, shard: Shard) -> list[int]:
        (info,) = await self._ask(shard, (b"INFO", b"keyspace"))
        _, keyspace = detector.parse_info(info.decode(errors="replace") if isinstance(info, bytes) else "")
        return sorted(keyspace)

    async def _scan(self, shard: Shard, database: int) -> AsyncIterator[MisplacedKey]:
        """A key that SCAN gives twice is yielded once for each page."""
        cursor: Value = b"0"
        while True:
            _, page = await self._ask(
                shard, (b"SELECT", b"%d" % database), (b"SCAN", _bytes(cursor), b"COUNT", b"%d" % SCAN_COUNT)
            )
            if not isinstance(page, list) or len(page) != 2 or not isinstance(page[1], list):
                raise NodeError(f"answered SCAN with {_shown_reply(page)}")
            cursor, keys = page
            for key in dict.fromkeys(key for key in keys if isinstance(key, bytes)):
                if not shard.owns(slot(key)):
                    yield MisplacedKey(shard, self._shard_map.shard_of(key), database, key)
            if cursor == b"0":
                return
            await asyncio.sleep(SCAN_COUNT / self._per_s)

    # --- moving ---

    async def move(self, misplaced: MisplacedKey) -> str:
        """Have it where it belongs -> why it is not; empty: it is."""
        select, key = (b"SELECT", b"%d" % misplaced.database), misplaced.key
        source, target = misplaced.shard, misplaced.owner
        try:
            _, _, value, expires_at = await self._ask(
                source, select, (b"WATCH", key), (b"DUMP", key), (b"PEXPIRETIME", key)
            )
            if value is None or expires_at == NOT_THERE:
                await self._ask(source, (b"UNWATCH",))
                return ""  # it has gone by itself
            if not isinstance(value, bytes) or not isinstance(expires_at, int):
                return f"DUMP was answered with {_shown_reply(value)}, PEXPIRETIME with {_shown_reply(expires_at)}"
            at = b"%d" % max(0, expires_at)
            _, restored = await self._ask(target, select, (b"RESTORE", key, at, value, b"ABSTTL"))
            if isinstance(restored, Error):
                await self._ask(source, (b"UNWATCH",))
                if restored.code == b"BUSYKEY":
                    return f"both {source.name} and {target.name} have it; nothing was done"
                return f"{target.name} refused it: {_shown_reply(restored)}"
            *_, deleted = await self._ask(source, (b"MULTI",), (b"DEL", key), (b"EXEC",))
            if isinstance(deleted, list):
                return ""
            return await self._take_back(misplaced, value, expires_at)
        except NodeError as exc:
            self._forget(source)
            self._forget(target)
            return f"{exc}; {source.name} and {target.name} may both have it"

    async def _take_back(self, misplaced: MisplacedKey, value: bytes, expires_at: int) -> str:
        """It was changed where it lay while it was copied: the copy goes, unless somebody has changed that too."""
        key, target = misplaced.key, misplaced.owner
        _, _, copy, its = await self._ask(
            target, (b"SELECT", b"%d" % misplaced.database), (b"WATCH", key), (b"DUMP", key), (b"PEXPIRETIME", key)
        )
        if copy == value and its == expires_at:
            *_, deleted = await self._ask(target, (b"MULTI",), (b"DEL", key), (b"EXEC",))
            if isinstance(deleted, list):
                return "it was changed meanwhile; nothing was done"
        else:
            await self._ask(target, (b"UNWATCH",))
        return f"it was changed meanwhile at {misplaced.shard.name} and at {target.name}, and both have it"

    # --- asking ---

    async def _ask(self, shard: Shard, *questions: tuple[bytes, ...]) -> list[Value]:
        """On one connection for each shard. Raises NodeError."""
        connection = self._open.get(shard.name)
        if connection is None:
            node = self._primaries[shard.name]
            connection = self._open[shard.name] = await NodeConnection.open(node, self._access, DEADLINE_S)
        return await connection.ask(*questions, deadline_s=DEADLINE_S)

    def _forget(self, shard: Shard) -> None:
        connection = self._open.pop(shard.name, None)
        if connection is not None:
            connection.close()


def _bytes(cursor: Value) -> bytes:
    if not isinstance(cursor, bytes):
        raise NodeError(f"answered SCAN with the cursor {_shown_reply(cursor)}")
    return cursor


def _shown_reply(value: Value) -> str:
    return value.line.decode(errors="replace") if isinstance(value, Error) else f"{value!r:.60}"
