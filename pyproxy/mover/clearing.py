"""Task.CLEAR and Task.UNDO: the keys in the slots of a move are deleted at the shard that must not have them.

CLEAR is at the source, after the destination has got the slots; UNDO at the destination, of a move that is aborted.
All names are gone through by SCAN, and those in the slots deleted in small batches, until a whole pass finds none: a
later pass than the first finds what was written meanwhile.

While CLEAR is at work, a change at the source that is not its own is a stray writer, who does not know yet, or never
will, that the slots have moved. The feed tells all changes but those of its own connection (NOLOOP), which is the one
that deletes. What is told may also be the end of a key by its time, or by eviction. So: a name that is told and is
there was written by a stray. One that is gone was deleted by one only if more are gone than the server says that it
has let expire and evicted.
"""

import asyncio

from protocol.reply import Error, Value, decode
from pyproxy.events import Event, emit
from pyproxy.hashing import in_slots
from pyproxy.mover import server_info
from pyproxy.mover.connection import Connection, Denied, Lost, fence, refusal
from pyproxy.mover.feed import Feed, wanted_slots
from pyproxy.mover.means import Means, News, first_of
from pyproxy.mover.pace import Throttle
from pyproxy.mover.pages import pages
from pyproxy.moves import MoveProgress, Order, Task

BATCH = 200
LEAST_BATCH = 10
TRIES = 5  # to delete a batch while nobody changes any of it
PROBE_S = 0.1
WAIT_MS = 100
REST_S = 0.05  # after each batch, while the server is slow
NAMES_TO_JUDGE = 1000  # at once


class Clearing:
    """One attempt. Repeating it is harmless."""

    def __init__(self, order: Order, means: Means, before: "Clearing | None" = None) -> None:
        self.error = ""  # also that of the attempt before, until this one is at work
        self.done = False
        self.strays: int = before.strays if before is not None else 0  # of all attempts
        self.stray: bytes = before.stray if before is not None else b""
        self._order = order
        self._means = means
        self._looks_for_strays = order.task is Task.CLEAR
        self._node = order.source if order.task is Task.CLEAR else order.destination
        self._wanted = wanted_slots(order.move.slots)
        self._news = News()
        self._throttle = Throttle()
        self._feed = Feed(self._wanted, self._on_names, lambda: None, self._on_lost)
        self._gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()  # the feed is
        self._look: dict[int, Connection] = {}
        self._found = 0
        self._deleted = 0
        self._judged: dict[bytes, None] = {}  # told, and not looked at yet
        self._ended = 0  # names that were told and were gone
        self._ended_by_server = 0  # as the server said at the beginning
        self._deleted_by_strays = 0

    def progress(self, version: int, restarts: int) -> MoveProgress:
        return MoveProgress(
            id=self._order.move.id,
            task=self._order.task,
            of=version,
            keys=self._found,
            keys_done=self._deleted,
            done=self.done,
            strays=self.strays,
            stray=_shown(self.stray),
            error=self.error,
        )

    async def run(self) -> None:
        """Returns when nothing is left. Raises Lost."""
        try:
            await self._begin()
            async with asyncio.TaskGroup() as tasks:
                others = [tasks.create_task(work()) for work in (self._guard, self._probe, self._judge)]
                await self._clear()
                await self._replicate()
                await self._feed.sync()
                await self._news.until(lambda: not self._judged)
                for each in others:
                    each.cancel()
            self.done = True
        except BaseExceptionGroup as group:
            raise first_of(group) from None
        finally:
            self._news.close()
            self._feed.close()
            for connection in self._look.values():
                connection.close()
            self._means.notify(True)

    async def _begin(self) -> None:
        await self._add_database(0)
        said = await server_info.info(self._look[0], b"stats", b"replication")
        if said.get("role") != "master":
            raise Lost(f"{self._node}: expected a primary, got one whose role is {said.get('role')}")
        self._ended_by_server = _expired_and_evicted(said)
        await self._feed.open(self._node, self._means.access, self._means.timeouts, own=True)
        await fence([self._feed.connection], self._order.move.id)
        if self.error:
            emit(Event.MOVE_TROUBLE_END, move=self._order.move.id, task=self._order.task.value)
            self.error = ""

    async def _add_database(self, database: int) -> Connection:
        if database not in self._look:
            opened = await Connection.open(self._node, self._means.access, self._means.timeouts, database=database)
            self._look[database] = opened
        return self._look[database]

    async def _guard(self) -> None:
        """Ends the attempt when the feed does."""
        await self._gone

    def _on_lost(self) -> None:
        if not self._gone.done():
            self._gone.set_exception(self._feed.connection.lost or Lost(f"{self._node}: the change feed is lost"))
            self._gone.exception()

    async def _probe(self) -> None:
        while True:
            self._throttle.measured({"": await self._feed.latency()})
            self._means.notify(False)
            await asyncio.sleep(PROBE_S)

    # --- deleting ---

    async def _clear(self) -> None:
        first = True
        while True:
            found = 0
            for database in sorted(server_info.databases(await server_info.info(self._look[0], b"keyspace"))):
                found += await self._clear_database(database, first)
            if not found:
                return
            first = False

    async def _replicate(self) -> None:
        """Until a replica that follows has deleted them, too: promoted before, it would have them again for good."""
        while server_info.online_replicas(await server_info.info(self._look[0], b"replication")):
            (count,) = await self._feed.connection.ask((b"WAIT", b"1", b"%d" % WAIT_MS))
            if isinstance(count, int) and count > 0:
                break
            self.error = f"{self._node}: no replica has deleted what was cleared (WAIT 1); see to its replication"
            self._means.notify(False)
        self.error = ""

    async def _clear_database(self, database: int, first: bool) -> int:
        """How many names were found."""
        look = await self._add_database(database)
        # The answer is awaited: behind a SELECT that is refused the names would be deleted in another database.
        (selected,) = await self._feed.connection.ask((b"SELECT", b"%d" % database))
        if isinstance(selected, Error):
            raise Denied(f"{self._node}: {refusal(b'SELECT', selected)}")
        found = 0
        async for page in pages(look):
            names = in_slots(page, self._wanted)
            found += len(names)
            self._found += len(names) if first else 0
            while names:
                size = max(LEAST_BATCH, int(BATCH * self._throttle.level))
                await self._means.going.wait()
                await self._delete(names[:size])
                names = names[size:]
                if self._throttle.level < 1.0:
                    await asyncio.sleep(REST_S)
        return found

    async def _delete(self, names: list[bytes]) -> None:
        """These, without hiding what somebody else does to them.

        Of all changes of a name in one turn of its loop the server tells the last one only, and not if it was ours. So
        names are watched, and after that deleted only if nobody has changed them. Then that is told, and looked at.
        """
        unlinks = b"".join([b"*2\r\n$6\r\nUNLINK\r\n$%d\r\n%b\r\n" % (len(name), name) for name in names])
        for _ in range(TRIES if self._looks_for_strays else 0):
            if not await self._watch(names):
                continue
            *queued, executed = await self._feed.connection.send(
                b"*1\r\n$5\r\nMULTI\r\n" + unlinks + b"*1\r\n$4\r\nEXEC\r\n", len(names) + 2
            )
            answers = decode(executed)
            if answers is not None:
                refused = next((frame for frame in queued if frame[:1] == b"-"), b"")
                self._count(answers if not refused else [Error(refused[1:-2])])
                return
        # Somebody writes to them all the time, and was seen to.
        self._count([decode(frame) for frame in await self._feed.connection.send(unlinks, len(names))])

    async def _watch(self, names: list[bytes]) -> bool:
        """Whether they are watched, and none of them is one that was told and not looked at yet."""
        await self._news.until(lambda: self._judged.keys().isdisjoint(names))
        (watched,) = await self._feed.connection.ask((b"WATCH", *names))
        if isinstance(watched, Error):
            raise Denied(f"{self._node}: {refusal(b'WATCH', watched)}")
        await self._feed.sync()  # what was changed before is told by now
        if self._judged.keys().isdisjoint(names):
            return True
        await self._feed.connection.ask((b"UNWATCH",))
        return False

    def _count(self, answers: Value) -> None:
        for answer in answers if isinstance(answers, list) else [answers]:
            if isinstance(answer, Error):
                raise Denied(f"{self._node}: {refusal(b'UNLINK', answer)}")
            self._deleted += answer == 1
        self._means.notify(False)

    # --- strays ---

    def _on_names(self, names: list[bytes]) -> None:
        if not self._looks_for_strays:
            return
        self._judged.update(dict.fromkeys(names))
        self._news.tell()

    async def _judge(self) -> None:
        """Look at what has changed: is it there? Then somebody has written it."""
        while True:
            await self._news.until(lambda: bool(self._judged))
            names = list(self._judged)[:NAMES_TO_JUDGE]
            there = [0] * len(names)
            asked = b"".join([b"*2\r\n$6\r\nEXISTS\r\n$%d\r\n%b\r\n" % (len(name), name) for name in names])
            said = await server_info.info(self._look[0], b"keyspace")
            for database in server_info.databases(said):
                look = await self._add_database(database)
                for index, answer in enumerate(await look.send(asked, len(names))):
                    there[index] += answer == b":1\r\n"
            for name, count in zip(names, there, strict=True):
                if count:
                    self._on_stray(name, 1)
            self._ended += there.count(0)
            if there.count(0):
                said = await server_info.info(self._look[0], b"stats")
                more = self._ended - (_expired_and_evicted(said) - self._ended_by_server) - self._deleted_by_strays
                if more > 0:
                    self._deleted_by_strays += more
                    self._on_stray(names[there.index(0)], more)
            for name in names:
                del self._judged[name]
            self._news.tell()

    def _on_stray(self, name: bytes, count: int) -> None:
        self.strays += count
        self.stray = name
        self._means.notify(False)


def _expired_and_evicted(said: dict[str, str]) -> int:
    return server_info.number(said, "expired_keys") + server_info.number(said, "evicted_keys")


def _shown(name: bytes) -> str:
    return name[:64].decode("utf-8", "backslashreplace")
