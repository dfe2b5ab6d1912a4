"""Task.CHECK: may the destination take these slots? Nothing is changed.

Each reason against it is one sentence: which server, what was expected, what is there, and the way out.
"""

from collections.abc import Mapping

from protocol.reply import Error
from pyproxy.events import Event, emit
from pyproxy.hashing import in_slots
from pyproxy.mover import server_info
from pyproxy.mover.connection import Connection, Denied, fence
from pyproxy.mover.feed import Feed, wanted_slots
from pyproxy.mover.means import Means
from pyproxy.mover.pages import pages
from pyproxy.moves import MoveProgress, Order
from pyproxy.shard_map import Node

SAMPLE = 20_000
"""Names of each database that say which part of the source's memory moves."""

MARGIN = 1.1
"""What moves may need so much more memory than it has at the source."""

FOREIGN = range(12, 80)
"""Versions of DUMP of Redis from 7.4 on. Valkey, whose own go on at 80, refuses them."""


class Check:
    """One attempt."""

    def __init__(self, order: Order, means: Means) -> None:
        self.error = ""  # of the attempt before
        self.checked = False
        self.refused: list[str] = []
        self._order = order
        self._means = means
        self._wanted = wanted_slots(order.move.slots)
        self._keys = 0
        self._opened: list[Connection] = []

    def progress(self, version: int, restarts: int) -> MoveProgress:
        return MoveProgress(
            id=self._order.move.id,
            task=self._order.task,
            of=version,
            checked=self.checked,
            refused=self.refused,
            keys=self._keys,
            error=self.error,
        )

    async def run(self) -> None:
        """Returns when it is known. Raises Lost."""
        try:
            await self._check()
        except Denied as exc:
            self.refused.append(str(exc))
        finally:
            for connection in self._opened:
                connection.close()
        if self.error:
            emit(Event.MOVE_TROUBLE_END, move=self._order.move.id, task=self._order.task.value)
            self.error = ""
        self.checked = True
        self._means.notify(True)

    async def _check(self) -> None:
        source, destination = await self._open(self._order.source), await self._open(self._order.destination)
        sections = (b"server", b"replication", b"memory", b"keyspace")
        here, there = await server_info.info(source, *sections), await server_info.info(destination, *sections)
        if here.get("run_id") == there.get("run_id"):
            self._refuse(destination, "another server than the source", "the same", "name another destination")
            return
        for connection, said in ((source, here), (destination, there)):
            if (role := said.get("role")) != "master":
                self._refuse(connection, "a primary", f"role {role}", "wait until the proxy knows its primary")
        await self._check_rights()
        await self._check_versions(source, destination, here, there)
        await self._check_functions(source, destination)
        for database in server_info.databases(here):
            (await self._open(destination.node, database)).close()  # raises Denied where it has not as many
        self._check_policy(destination, there)
        await self._check_memory(destination, here, there)
        if not self._order.replace:
            await self._check_empty(destination, there)

    async def _open(self, node: Node, database: int = 0) -> Connection:
        connection = await Connection.open(node, self._means.access, self._means.timeouts, database=database)
        self._opened.append(connection)
        return connection

    def _refuse(self, connection: Connection, expected: str, got: str, way_out: str) -> None:
        self.refused.append(f"{connection.node}: expected {expected}, got {got}; {way_out}")

    async def _check_rights(self) -> None:
        """Raises Denied where the mover may not do what it has to."""
        for node in (self._order.source, self._order.destination):
            feed = Feed(self._wanted, lambda _: None, lambda: None, lambda: None)
            try:
                await feed.open(node, self._means.access, self._means.timeouts)
            finally:
                feed.close()
        await fence([await self._open(self._order.destination)], self._order.move.id)

    async def _check_versions(
        self, source: Connection, destination: Connection, here: Mapping[str, str], there: Mapping[str, str]
    ) -> None:
        """Whether the destination takes the values of the source: it is as new, by the version that is in a DUMP."""
        way_out = "upgrade it first"
        ours, theirs = await _dump_version(source), await _dump_version(destination)
        if ours and theirs:
            if ours > theirs or (ours in FOREIGN and theirs >= FOREIGN.stop):
                self._refuse(destination, f"a server that takes values of version {ours}", f"{theirs}", way_out)
        elif server_info.version(there)[:2] < server_info.version(here)[:2]:
            expected, got = f"version {here.get('redis_version')} or newer", f"{there.get('redis_version')}"
            self._refuse(destination, expected, got, way_out)

    async def _check_functions(self, source: Connection, destination: Connection) -> None:
        ours, theirs = await server_info.functions(source), await server_info.functions(destination)
        if ours and server_info.version(await server_info.info(destination, b"server")) < (7,):
            self._refuse(destination, "a server with functions (7.0)", "an older one", "upgrade it first")
        for name in sorted(ours.keys() & theirs.keys()):
            if ours[name] != theirs[name]:
                library = name.decode(errors="replace")
                self._refuse(
                    destination,
                    f"the library of functions {library} as the source has it",
                    "another of that name",
                    "load the same one at both (FUNCTION LOAD REPLACE)",
                )

    def _check_policy(self, destination: Connection, there: Mapping[str, str]) -> None:
        policy = there.get("maxmemory_policy", "noeviction")
        if policy != "noeviction" and server_info.number(there, "maxmemory") and not self._order.accept_eviction:
            self._refuse(
                destination,
                "maxmemory-policy noeviction",
                policy,
                "set it, or accept that what was copied may be evicted",
            )

    async def _check_memory(self, destination: Connection, here: Mapping[str, str], there: Mapping[str, str]) -> None:
        seen = found = 0
        databases = server_info.databases(here)
        for database in databases:
            here_seen = 0
            connection = await self._open(self._order.source, database)
            async for page in pages(connection):
                here_seen += len(page)
                found += len(in_slots(page, self._wanted))
                if here_seen >= SAMPLE:
                    break
            connection.close()
            seen += here_seen
        share = found / seen if seen else 0.0
        self._keys = int(share * sum(databases.values()))
        most = server_info.number(there, "maxmemory")
        if not most:
            return
        needed = int(MARGIN * share * server_info.number(here, "used_memory"))
        free = most - server_info.number(there, "used_memory")
        if needed > free:
            self._refuse(
                destination,
                f"{_mib(needed)} free below maxmemory",
                _mib(max(0, free)),
                "give it more memory, or move fewer slots",
            )

    async def _check_empty(self, destination: Connection, there: Mapping[str, str]) -> None:
        count, example, where = 0, b"", 0
        for database in server_info.databases(there):
            connection = await self._open(self._order.destination, database)
            async for page in pages(connection):
                for name in in_slots(page, self._wanted):
                    count += 1
                    example, where = name, database
            connection.close()
        if count:
            shown = example[:64].decode("utf-8", "backslashreplace")
            got = f"{count}, such as {shown} in database {where}"
            self._refuse(destination, "no keys in these slots", got, "delete them, or let the move replace them")


async def _dump_version(connection: Connection) -> int:
    """Which is in the last ten bytes of a DUMP, before its checksum; 0: a server before 7.0, or it is refused."""
    (dump,) = await connection.ask((b"FUNCTION", b"DUMP"))
    if isinstance(dump, Error) or not isinstance(dump, bytes) or len(dump) < 10:
        return 0
    return int.from_bytes(dump[-10:-8], "little")


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"
