"""Task.COPY: the destination gets every key in the slots of a move, and then whatever changes.

    feed     the source tells which names change; they are dirty from then on
    sweep    what the destination has in these slots, of an earlier copy say, and the source has not, is made dirty
    scan     every name in these slots is copied once, database by database
    follow   dirty names are copied again; those that are gone at the source are deleted at the destination
    sync     all that had changed when it was asked for is copied, and a replica of the destination has it; what may
             have changed without a word, as the groups of streams, is copied once more. From then on nothing is sent:
             the destination may be about to own the slots, and what it has would be overwritten

One `Copying` is one attempt. When a connection is lost, or something happens that the feed does not tell, it ends with
an exception, and another begins anew. RESTORE ... REPLACE and the sweep make that harmless.
"""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any

from protocol.reply import Error
from pyproxy.events import Event, emit
from pyproxy.hashing import in_slots
from pyproxy.mover import server_info
from pyproxy.mover.connection import REPLY_LIMIT, VALUE_LIMIT, Connection, Lost, fence, refusal
from pyproxy.mover.copier import BATCH_BYTES, BATCH_NAMES, Batch, Copier, Lines, Refused
from pyproxy.mover.dirty import Dirty, Mark
from pyproxy.mover.feed import Feed, wanted_slots
from pyproxy.mover.means import Anew, Means, News, first_of
from pyproxy.mover.pace import Throttle
from pyproxy.mover.pages import pages
from pyproxy.moves import MoveProgress, Order
from pyproxy.shard_map import Node

FOLLOW_S = 0.05
"""A name that has changed is not copied before so long: it may change again at once."""

LOOK_S = 1.0  # between two questions about what the feed does not tell
PROBE_S = 0.1  # between two measurements of latency; each is also the sign of life that is asked of the feed
RETRY_S = 0.1  # after a refusal, doubled up to
RETRY_MOST_S = 5.0
RETURNED_LIMIT = 1000
"""Names that were refused. With more the scan waits: they are kept in memory, and the others will fare no better."""

DIRTY_BYTES = 512 << 20
DIRTY_NAMES = 20_000
"""With so many dirty names the sweep, which makes more of them, waits."""

WAIT_MS = 100


class Copying:
    """It answers no sync that was asked for before: its order has none. `set_sync` asks for one, 0: for none any more.

    `synced`: the last one that was answered. Until another is asked for, or none, nothing is sent to the destination.
    """

    def __init__(self, order: Order, means: Means) -> None:
        self.error = ""  # also that of the attempt before, until this one is at work
        self.begun = False
        self.synced = 0
        self.scanned = False
        self._order = order
        self._means = means
        self._sync = 0
        self._news = News()
        self._wanted = wanted_slots(order.move.slots)
        self._dirty = Dirty()
        self._throttle = Throttle()
        self._hurry = False
        self._frozen = False  # nothing may be sent to the destination
        self._lines: dict[int, Lines] = {}
        self._to_scan: list[int] = []
        self._flushes = 1  # how often a database of the source was emptied, and once for the beginning
        self._swept = 0  # the flushes that the last whole sweep began after
        self._swaps = 0
        self._retry_s = RETRY_S
        self._retry_at = 0.0
        self._seen = 0  # names that SCAN has given
        self._found = 0  # of these in our slots
        self._dbsize = 0
        self._feed = Feed(self._wanted, self._on_names, self._on_flush, self._on_lost)
        self._there = Feed(self._wanted, lambda _: None, self._on_emptied, self._on_nothing_heard)
        self._gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()  # a feed is, or the copy
        self._control: list[Connection] = []  # one to the source, one to the destination
        self._opened: list[Connection] = []  # all of them
        self._adding = asyncio.Lock()
        self._copier: Copier | None = None

    def set_sync(self, token: int) -> None:
        self._sync = token
        self._news.tell()

    def progress(self, version: int, restarts: int) -> MoveProgress:
        since, copier = self._dirty.since(), self._copier
        now = asyncio.get_running_loop().time()
        keys = self._found if self.scanned else self._dbsize * self._found // max(1, self._seen)
        return MoveProgress(
            id=self._order.move.id,
            task=self._order.task,
            of=version,
            keys=keys,
            keys_done=copier.keys_done if copier else 0,
            bytes_done=copier.bytes_done if copier else 0,
            scanned=self.scanned,
            dirty=len(self._dirty),
            behind_s=max(0.0, now - since) if since is not None else 0.0,
            synced=self.synced,
            untold=len(copier.untold) if copier else 0,
            restarts=restarts,
            error=self.error,
        )

    # --- the attempt ---

    async def run(self) -> None:
        """Copies until it is cancelled. Raises Lost and Anew."""
        try:
            await self._begin()
            async with asyncio.TaskGroup() as tasks:
                assert self._copier is not None
                self._copier.run = lambda work: tasks.create_task(work)
                for work in (self._guard, self._probe, self._walk, self._follow, self._answer_syncs):
                    tasks.create_task(work())
        except BaseExceptionGroup as group:
            raise first_of(group) from None
        finally:
            self._close()

    async def _begin(self) -> None:
        source, destination = self._order.source, self._order.destination
        await self._feed.open(source, self._means.access, self._means.timeouts)
        await self._there.open(destination, self._means.access, self._means.timeouts, names=False)
        self._control = [await self._open(source), await self._open(destination)]
        said = await server_info.info(self._control[0], b"server", b"commandstats")
        self._swaps = server_info.calls(said, "swapdb")
        self._copier = Copier(
            self._lines,
            self._dirty,
            server_info.version(said) >= (7,),
            self._on_refused,
            self._on_copied,
        )
        await self._add_databases([0])
        await self._look()
        self.begun = True
        self._at_work()

    def _at_work(self) -> None:
        if self.error:
            emit(Event.MOVE_TROUBLE_END, move=self._order.move.id, task=self._order.task.value)
            self.error = ""

    async def _open(self, node: Node, database: int = 0, limit: int = REPLY_LIMIT) -> Connection:
        access, timeouts = self._means.access, self._means.timeouts
        connection = await Connection.open(node, access, timeouts, database=database, limit=limit)
        self._opened.append(connection)
        return connection

    def _close(self) -> None:
        self._news.close()
        self._feed.close()
        self._there.close()
        for connection in self._opened:
            connection.close()

    async def _guard(self) -> None:
        """Ends the attempt when the feed does."""
        await self._gone

    def _on_lost(self) -> None:
        if not self._gone.done():
            lost = self._feed.connection.lost
            emit(Event.FEED_LOST, move=self._order.move.id, node=self._order.source, reason=lost)
            self._end(lost or Lost(f"{self._order.source}: the change feed is lost"))

    def _on_nothing_heard(self) -> None:
        self._end(self._there.connection.lost or Lost(f"{self._order.destination}: the connection is lost"))

    def _on_emptied(self) -> None:
        self._end(Anew(f"{self._order.destination}: a database was emptied, and with it what was copied"))

    def _end(self, why: Lost | Anew) -> None:
        """The attempt, at the next turn."""
        if not self._gone.done():
            self._gone.set_exception(why)
            self._gone.exception()

    # --- what the feed tells ---

    def _on_names(self, names: list[bytes]) -> None:
        self._dirty.mark(names, asyncio.get_running_loop().time())
        if self._dirty.bytes > DIRTY_BYTES:
            self._end(
                Anew(
                    f"{self._order.source}: {len(self._dirty)} names have changed and are not copied yet, more than "
                    "the mover keeps in memory: let it copy faster (rate, pause), or move fewer slots at once"
                )
            )
        self._news.tell()

    def _on_flush(self) -> None:
        """What has been copied may be gone at the source, and the names are not told."""
        self._flushes += 1
        if self._copier is not None:
            self._dirty.mark(self._copier.busy, asyncio.get_running_loop().time())
        self._news.tell()

    # --- what the feed does not tell ---

    async def _look(self) -> None:
        """Databases that have appeared are scanned. Raises Lost where the source is no primary, Anew after SWAPDB."""
        source = self._control[0]
        said = await server_info.info(source, b"keyspace", b"replication", b"commandstats")
        if said.get("role") != "master":
            raise Lost(f"{source.node}: expected a primary, got one whose role is {said.get('role')}")
        if server_info.calls(said, "swapdb") != self._swaps:
            raise Anew(f"{source.node}: SWAPDB exchanged databases, which no change feed tells")
        found = server_info.databases(said)
        self._dbsize = sum(found.values())
        await self._add_databases(found)

    async def _add_databases(self, databases: Iterable[int]) -> None:
        """Those that are new have connections from now on, and will be scanned."""
        async with self._adding:
            new = sorted(database for database in databases if database not in self._lines)
            if not new:
                return
            opened = {database: await self._open_lines(database) for database in new}
            writers = [lines.destination for lines in (*self._lines.values(), *opened.values())]
            await fence(writers, self._order.move.id)
            self._lines.update(opened)
            self._to_scan += new
            self._news.tell()

    async def _open_lines(self, database: int) -> Lines:
        source, destination = self._order.source, self._order.destination
        lines = Lines(
            await self._open(source, database),
            await self._open(source, database, VALUE_LIMIT),
            await self._open(destination, database),
        )
        await lines.source.ask((b"CLIENT", b"NO-TOUCH", b"ON"))  # since 7.2: what is copied counts as used by nobody
        return lines

    async def _load_functions(self) -> None:
        """The destination gets the libraries that it has not. One that it has is not replaced: it may be the newer."""
        source, destination = self._control
        code, there = await server_info.functions(source), await server_info.functions(destination)
        for name in code.keys() - there.keys():
            (answer,) = await destination.ask((b"FUNCTION", b"LOAD", code[name]))
            if isinstance(answer, Error) and b"already exists" not in answer.line:
                raise Lost(f"{destination.node}: {refusal(b'FUNCTION LOAD of ' + name, answer)}")

    async def _probe(self) -> None:
        """Measures what the servers bear, and looks at what the feed does not tell, now and then."""
        clock = asyncio.get_running_loop().time
        looked = clock()
        while True:
            source = await self._feed.latency()
            destination = min([await self._latency_of_destination() for _ in range(3)])
            self._throttle.measured({"source": source, "destination": destination})
            if clock() - looked > LOOK_S:
                await self._look()
                looked = clock()
            self._means.notify(False)
            self._news.tell()
            await asyncio.sleep(PROBE_S)

    async def _latency_of_destination(self) -> float:
        clock = asyncio.get_running_loop().time
        began = clock()
        await self._control[1].ask((b"PING",))
        return clock() - began

    # --- sweep and scan ---

    async def _walk(self) -> None:
        await self._load_functions()
        while True:
            if self._swept != self._flushes:
                flushes = self._flushes
                await self._sweep(flushes)
                if flushes == self._flushes:
                    self._swept = flushes
            elif self._to_scan:
                await self._scan(self._to_scan[0])
                del self._to_scan[0]
            else:
                await self._until_answered()
                if not self.scanned and self._settled():
                    self.scanned = True
                    self._means.notify(True)
                self._news.tell()
                await self._news.until(lambda: not self._settled())

    async def _until_answered(self) -> None:
        """All that has been sent."""
        copier = self._copier
        assert copier is not None
        last = copier.last
        await self._news.until(lambda: copier.answered_up_to(last))

    def _settled(self) -> bool:
        """Every name that is known to nobody but the servers has been looked at."""
        return self._swept == self._flushes and not self._to_scan

    async def _sweep(self, flushes: int) -> None:
        node = self._order.destination
        found = server_info.databases(await server_info.info(self._control[1], b"keyspace"))
        await self._add_databases(found)
        for database in found:
            connection = await self._open(node, database)
            try:
                async for page in pages(connection):
                    await self._means.going.wait()
                    names = in_slots(page, self._wanted)
                    if flushes != self._flushes:
                        return
                    if names:
                        await self._sweep_page(database, names)
            finally:
                connection.close()

    async def _sweep_page(self, database: int, names: list[bytes]) -> None:
        asked = b"".join([b"*2\r\n$6\r\nEXISTS\r\n$%d\r\n%b\r\n" % (len(name), name) for name in names])
        answers = await self._lines[database].look.send(asked, len(names))
        gone = [name for name, answer in zip(names, answers, strict=True) if answer != b":1\r\n"]
        if gone:
            self._dirty.mark(gone, asyncio.get_running_loop().time())
            self._news.tell()
            await self._news.until(lambda: len(self._dirty) < DIRTY_NAMES)

    async def _scan(self, database: int) -> None:
        assert self._copier is not None
        async for page in pages(self._lines[database].look):
            names = in_slots(page, self._wanted)
            self._seen += len(page)
            self._found += len(names)
            await self._news.until(lambda: self._dirty.returned <= RETURNED_LIMIT)
            await self._copy([name for name in names if name not in self._dirty], database)

    # --- copying ---

    async def _copy(self, names: list[bytes], database: int | None = None) -> None:
        """Send these, as there is room for them: as they were found in one database, or as dirty ones in all."""
        assert self._copier is not None
        if not names:
            return
        sizes = await self._copier.sizes(names, tuple(self._lines) if database is None else (database,))
        batch: list[bytes] = []
        size = 0
        for name, more in zip(names, sizes, strict=True):
            if batch and (size + more > BATCH_BYTES or len(batch) >= BATCH_NAMES):
                await self._send(batch, size, database)
                batch, size = [], 0
            batch.append(name)
            size += more
        await self._send(batch, size, database)

    async def _send(self, names: list[bytes], size: int, database: int | None) -> None:
        copier, dirty = self._copier, self._dirty
        assert copier is not None
        await self._until_room(copier, size)
        # Nothing is awaited from here on: what is dirty, busy and a database now is so when the DUMPs are sent.
        busy = [name for name in names if name in copier.busy]
        if busy:
            dirty.mark(busy, asyncio.get_running_loop().time())
        if database is None:
            free, databases = [name for name in names if name not in copier.busy], tuple(self._lines)
        else:  # one that is dirty will be copied in all databases; its mark must not be taken for the copy of one
            free, databases = [name for name in names if name not in copier.busy and name not in dirty], (database,)
        if free:
            copier.send(Batch(free, databases, size))

    async def _until_room(self, copier: Copier, size: int) -> None:
        """Until a batch may be sent: not paused, within the rate and what the servers bear, and there is memory."""
        bucket = self._means.bucket
        wait = 0.0 if self._hurry else bucket.take(size, asyncio.get_running_loop().time())
        bound = bucket.bytes_per_s
        while wait > 0 and not self._hurry and bucket.bytes_per_s == bound:
            await asyncio.sleep(min(wait, FOLLOW_S))
            wait -= FOLLOW_S
        while True:
            if not self._means.going.is_set():
                await self._means.going.wait()
            elif not self._frozen and copier.has_room(size, 1.0 if self._hurry else self._throttle.level):
                return
            else:
                await self._news.next()

    async def _follow(self) -> None:
        assert self._copier is not None
        clock = asyncio.get_running_loop().time
        while True:
            now = clock()
            until = now if self._hurry else now - FOLLOW_S
            names = self._dirty.oldest(4 * BATCH_NAMES, until, self._copier.busy, returned=now >= self._retry_at)
            if names:
                await self._copy(names)
            else:
                if len(self._dirty):
                    self._news.tell_in(FOLLOW_S / 2)
                await self._news.next()

    def _on_copied(self) -> None:
        if self.error and not self._dirty.returned:
            self._at_work()
            self._retry_s = RETRY_S
        self._means.notify(False)
        self._news.tell()

    def _on_refused(self, refused: Refused, mark: Mark) -> None:
        self._dirty.put_back(refused.name, mark)
        now = asyncio.get_running_loop().time()
        if now >= self._retry_at:
            self._retry_at = now + self._retry_s
            self._retry_s = min(RETRY_MOST_S, 2 * self._retry_s)
        error = f"{refused.connection.node}: {refusal(refused.command, Error(refused.line))}; {_way_out(refused)}"
        if error != self.error:
            self.error = error
            emit(Event.MOVE_TROUBLE, move=self._order.move.id, task=self._order.task.value, error=error)
            self._means.notify(False)

    # --- sync ---

    async def _answer_syncs(self) -> None:
        while True:
            await self._news.until(lambda: self._sync not in (0, self.synced) and self.scanned)
            token = self._sync
            self._hurry = True
            self._news.tell()
            if await self._synchronize(token):
                self.synced = token
                self._means.notify(True)
                await self._news.until(lambda: self._sync != self.synced)
            self._frozen = self._hurry = False
            self._news.tell()

    async def _synchronize(self, token: int) -> bool:
        """Whether all that had changed before now is copied; False: nobody asks any more."""
        said, *_ = await _all(
            server_info.info(self._control[1], b"replication"),
            self._feed.sync(),
            self._look(),
            self._load_functions(),
        )
        # A sweep, and the scan of another database, make names dirty that were not before; and what is being copied
        # may be of a type that the feed does not tell of.
        await self._news.until(lambda: self._sync != token or self._settled())
        await self._until_answered()
        assert self._copier is not None
        await self._copier.find_groups()
        self._dirty.mark(self._copier.untold, asyncio.get_running_loop().time())
        marked = self._dirty.marked

        def is_through() -> bool:
            return self._settled() and self._dirty.clean_up_to(marked)

        while True:
            await self._news.until(lambda: self._sync != token or is_through())
            if self._sync != token:
                return False
            self._frozen = True
            await self._until_answered()
            if is_through():
                break
            self._frozen = False  # something was refused
        if server_info.online_replicas(said) and not await self._replicated(token):
            return False
        await self._there.sync()  # that it was not emptied meanwhile
        return not self._gone.done()

    async def _replicated(self, token: int) -> bool:
        """Whether a replica of the destination has all that was copied; False: nobody asks any more."""
        while self._sync == token:
            wait = (b"WAIT", b"1", b"%d" % WAIT_MS)
            answers = await _all(*(lines.destination.ask(wait) for lines in self._lines.values()))
            if all(isinstance(count, int) and count > 0 for (count,) in answers):
                self.error = ""
                return True
            self.error = f"{self._order.destination}: no replica has what was copied (WAIT 1); see to its replication"
            self._means.notify(False)
        return False


async def _all(*work: Coroutine[Any, Any, Any]) -> list[Any]:
    """All of it, side by side; with the first that fails the others end."""
    try:
        async with asyncio.TaskGroup() as tasks:
            begun = [tasks.create_task(each) for each in work]
    except BaseExceptionGroup as group:
        raise first_of(group) from None
    return [each.result() for each in begun]


def _way_out(refused: Refused) -> str:
    """What to do about it."""
    code = refused.line.split(b" ", 1)[0]
    if code == b"OOM":
        return "give it more memory (maxmemory), or abort the move"
    if code == b"READONLY":
        return "it is no primary any more; the move goes on at the one that is"
    if code == b"NOPERM":
        return "allow the user of `[backend]` DUMP, RESTORE and UNLINK on these keys"
    if b"DUMP payload" in refused.line:
        return "it must be as new a server as the source, or newer"
    return "it is tried again"
