"""The copy against the truth: what two real servers have after random writes of all kinds."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import hiredis
import msgspec
import pytest

from pyproxy.access import Access
from pyproxy.config import BackendAccess
from pyproxy.fleet import HOST, Fleet, Server, ask
from pyproxy.hashing import slot
from pyproxy.mover import copier, copying, server_info
from pyproxy.mover.connection import fence
from pyproxy.mover.copier import Batch, Copier
from pyproxy.mover.copying import Copying
from pyproxy.mover.dirty import Mark
from pyproxy.mover.feed import Feed
from pyproxy.mover.means import Means
from pyproxy.moves import Order
from pyproxy.shard_map import Node
from tests.certificates import Authority
from tests.faults import Hop
from tests.pyproxy.mover.rig import HALF, order
from tests.pyproxy.mover.storm import ACCESS, TIMEOUTS, Storm, connect, differences, names_of
from tests.servers import KINDS, servers_of
from tests.waiting import until


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Server, Server]]:
    """A source and a destination."""
    with servers_of(request.param), Fleet(shards=2, replicas=0) as fleet:
        yield fleet.shards[0].primary, fleet.shards[1].primary


@pytest.fixture
def two() -> Iterator[tuple[Server, Server]]:
    """The same, of one kind only."""
    with Fleet(shards=2, replicas=0) as fleet:
        yield fleet.shards[0].primary, fleet.shards[1].primary


class Run:
    """A copy that goes on beside the test."""

    def __init__(self, one: Order, means: Means | None = None) -> None:
        if means is None:
            means = Means(ACCESS, TIMEOUTS, lambda _: None)
            means.going.set()
        self.means = means
        self.copy = Copying(one, means)
        self.task = asyncio.create_task(self.copy.run())

    async def until(self, what: str, done: Callable[[], bool]) -> None:
        """AssertionError if the copy ends before."""
        await until(what, lambda: done() or self.task.done(), lambda: self.copy.progress(1, 0), 60.0)
        assert not self.task.done(), f"the copy ended: {self.task.exception()}"

    async def scanned(self) -> None:
        await self.until("the scan", lambda: self.copy.scanned)

    async def synced(self, token: int) -> None:
        self.copy.set_sync(token)
        await self.until(f"sync {token}", lambda: self.copy.synced == token)

    async def ended(self) -> BaseException | None:
        await until("the end of the copy", self.task.done, lambda: self.copy.progress(1, 0))
        return self.task.exception()


@asynccontextmanager
async def copying_of(one: Order, means: Means | None = None) -> AsyncIterator[Run]:
    run = Run(one, means)
    try:
        yield run
    finally:
        run.task.cancel()
        await asyncio.wait([run.task])


async def fill(server: Server, count: int) -> None:
    connection = await connect(server)
    for start in range(0, count, 1000):
        await connection.ask(*((b"SET", b"wide:%d" % number, b"first") for number in range(start, start + 1000)))
    connection.close()


async def caught(source: Server, destination: Server, seed: int, rounds: int, one: Order | None = None) -> list[str]:
    """Writes go on while the copy is made and for a while after; then they stop, and what differs is said.

    Up to so many times, until something differs.
    """
    one = one or order(source, destination)
    await fill(source, 20_000)
    storm = Storm(source, seed)
    storm.begin()
    await storm.wrote(2000)
    found: list[str] = []
    async with copying_of(one) as run:
        await run.scanned()
        for number in range(1, rounds + 1):
            await storm.wrote(8000)
            await storm.stop()
            await run.synced(number)
            found = await differences(source, destination, owns(one))
            if found:
                break
            run.copy.set_sync(0)
            storm.begin()
        await storm.stop()
    return found


def owns(one: Order) -> Callable[[int], bool]:
    return lambda number: any(first <= number <= last for first, last in one.move.slots)


async def test_after_writes_of_all_kinds_both_have_the_same(pair: tuple[Server, Server]) -> None:
    assert await caught(*pair, seed=1, rounds=4) == []


async def test_so_they_have_where_names_are_copied_without_a_pause(
    two: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "FOLLOW_S", 0.0)
    assert await caught(*two, seed=2, rounds=4) == []


class Forgetful(Feed):
    """Drops one push in a thousand."""

    count = 0

    def on_push(self, frame: bytes) -> None:
        self.count += 1
        if self.count % 1000:
            super().on_push(frame)


async def test_a_feed_that_drops_one_push_in_a_thousand_is_caught(
    two: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "Feed", Forgetful)
    assert await caught(*two, seed=3, rounds=20)


class Late(Copier):
    """A name leaves the dirty set when its RESTORE is answered, not when its DUMP is sent."""

    def _on_sent(self, batch: Batch) -> Mapping[bytes, Mark]:
        return {}

    async def _finish(
        self, number: int, batch: Batch, marks: Mapping[bytes, Mark], dumped: "list[asyncio.Future[list[bytes]]]"
    ) -> None:
        await super()._finish(number, batch, marks, dumped)
        self._dirty.sent(batch.names)


async def test_a_mark_that_is_cleared_on_the_answer_is_caught(
    two: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "FOLLOW_S", 0.0)
    monkeypatch.setattr(copying, "Copier", Late)
    assert await caught(*two, seed=2, rounds=20)


async def test_only_the_slots_of_the_move_are_copied_and_nothing_else_is_touched(two: tuple[Server, Server]) -> None:
    source, destination = two
    one = order(source, destination, slots=HALF)
    inside = owns(one)
    own = [b"own:%d" % number for number in range(300)]
    target = await connect(destination)
    await target.ask(*((b"SET", name, b"theirs") for name in own if not inside(slot(name))))
    before = await names_of(target)
    assert len(before) > 50
    assert await caught(source, destination, seed=4, rounds=2, one=one) == []
    assert {name for name in await names_of(target) if not inside(slot(name))} == before
    target.close()


async def test_what_an_earlier_copy_left_and_the_source_has_not_is_deleted(two: tuple[Server, Server]) -> None:
    source, destination = two
    for server in two:
        server.ask("SET", "kept", "1")
        server.ask("SET", "volatile", "1", "PX", "3600000")
    destination.ask("SET", "left", "1")
    other = await connect(destination, 5)
    await other.ask((b"SET", b"left", b"1"), (b"SET", b"left too", b"1"))
    async with copying_of(order(source, destination)) as run:
        await run.scanned()
        await run.synced(1)
        assert await names_of(other) == set()
        assert await differences(source, destination, databases=(0, 5)) == []
    other.close()


@pytest.mark.parametrize("command", [b"FLUSHALL", b"FLUSHDB"])
async def test_a_source_that_is_emptied_empties_the_copy(two: tuple[Server, Server], command: bytes) -> None:
    source, destination = two
    await fill(source, 3000)
    async with copying_of(order(source, destination)) as run:
        await run.scanned()
        source.ask(command)
        source.ask("SET", "after", "1")
        await run.synced(1)
        assert await differences(source, destination) == []
        assert destination.ask("DBSIZE") == 1


@pytest.mark.parametrize("command", [b"FLUSHALL", b"FLUSHDB"])
async def test_a_destination_that_is_emptied_is_copied_to_anew(two: tuple[Server, Server], command: bytes) -> None:
    source, destination = two
    await fill(source, 3000)
    async with copying_of(order(source, destination)) as run:
        await run.scanned()
        destination.ask(command)
        run.copy.set_sync(1)
        assert "was emptied" in str(await run.ended())
        assert run.copy.synced == 0


async def test_a_database_that_appears_is_copied(two: tuple[Server, Server]) -> None:
    source, destination = two
    async with copying_of(order(source, destination)) as run:
        await run.scanned()
        late = await connect(source, 7)
        await late.ask((b"SET", b"a", b"1"), (b"RPUSH", b"b", b"1"))
        await run.synced(1)
        assert await differences(source, destination, databases=(0, 7)) == []
        assert len(await names_of(late)) == 2
        late.close()


async def test_after_swapdb_the_copy_begins_anew(two: tuple[Server, Server]) -> None:
    source, destination = two
    source.ask("SET", "a", "1")
    async with copying_of(order(source, destination)) as run:
        await run.scanned()
        source.ask("SWAPDB", "0", "1")
        run.copy.set_sync(1)
        assert "SWAPDB" in str(await run.ended())
        assert run.copy.synced == 0


async def test_functions_are_loaded_and_those_that_are_there_stay(two: tuple[Server, Server]) -> None:
    source, destination = two
    library = "#!lua name={}\nredis.register_function('f_{}', function() return {} end)"
    source.ask("FUNCTION", "LOAD", library.format("one", "one", 1))
    source.ask("FUNCTION", "LOAD", library.format("both", "both", 1))
    destination.ask("FUNCTION", "LOAD", library.format("both", "both", 2))
    async with copying_of(order(source, destination)) as run:
        await run.scanned()
    assert destination.ask("FCALL", "f_one", "0") == 1
    assert destination.ask("FCALL", "f_both", "0") == 2


async def test_times_to_live_are_kept_where_there_is_no_pexpiretime(
    two: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_info, "version", lambda _: (6, 2, 0))
    source, destination = two
    for number in range(500):
        source.ask("SET", f"a{number}", "1", "PX", 3_600_000 + number)
    source.ask("SET", "for ever", "1")
    async with copying_of(order(source, destination)) as run:
        await run.scanned()
    assert destination.ask("DBSIZE") == 501
    assert destination.ask("PTTL", "for ever") == -1
    off = [
        int(str(destination.ask("PEXPIRETIME", f"a{number}"))) - int(str(source.ask("PEXPIRETIME", f"a{number}")))
        for number in range(500)
    ]
    assert all(-1000 < each < 1000 for each in off), sorted(off)


async def test_a_refused_name_stays_dirty_and_is_copied_later(two: tuple[Server, Server]) -> None:
    source, destination = two
    await fill(source, 2000)
    destination.ask("CONFIG", "SET", "maxmemory", "1")
    async with copying_of(order(source, destination)) as run:
        await run.until("the refusal", lambda: "OOM" in run.copy.error)
        said = run.copy.progress(1, 0)
        assert said.dirty > 0
        assert said.error.startswith(f"{destination.address}: refused RESTORE: OOM")
        assert "maxmemory" in said.error
        run.copy.set_sync(1)
        destination.ask("CONFIG", "SET", "maxmemory", "0")
        await run.synced(1)
        assert run.copy.error == ""
        assert await differences(source, destination) == []


async def test_while_paused_nothing_is_copied_and_changes_are_followed(two: tuple[Server, Server]) -> None:
    source, destination = two
    async with copying_of(order(source, destination)) as run:
        await run.scanned()
        run.means.going.clear()
        source.ask("SET", "a", "1")
        source.ask("SET", "b", "1")
        await run.until("the changes", lambda: run.copy.progress(1, 0).dirty == 2)
        assert destination.ask("DBSIZE") == 0
        run.means.going.set()
        await run.synced(1)
        assert destination.ask("DBSIZE") == 2


async def test_a_large_value_is_copied_whole(two: tuple[Server, Server]) -> None:
    source, destination = two
    async with copying_of(order(source, destination)) as run:
        await run.scanned()
        source.ask("SETRANGE", "large", 100_000_000, "end")
        source.ask("SET", "small", "1")
        await run.synced(1)
        assert destination.ask("STRLEN", "large") == 100_000_003
        assert destination.ask("GETRANGE", "large", -3, -1) == b"end"
        assert destination.ask("GET", "small") == b"1"


async def test_once_a_sync_is_answered_nothing_is_sent_until_none_is_asked_for(two: tuple[Server, Server]) -> None:
    """The destination may own the slots by then, and have newer values."""
    source, destination = two
    async with copying_of(order(source, destination)) as run:
        await run.scanned()
        source.ask("MSET", "a", "old", "b", "old", "c", "old")
        source.ask("PEXPIRE", "c", "60")
        await run.synced(1)
        destination.ask("MSET", "a", "new", "c", "new")
        source.ask("DEL", "a")
        source.ask("SET", "d", "late")
        await run.until("the changes", lambda: {b"a", b"c", b"d"} <= set(run.copy._dirty.oldest(9, 1e9, ())))
        assert destination.ask("MGET", "a", "b", "c", "d") == [b"new", b"old", b"new", None]
        run.copy.set_sync(0)
        await run.until("the copy to go on", lambda: not len(run.copy._dirty))
        await run.synced(2)
        assert destination.ask("MGET", "a", "b", "c", "d") == [None, b"old", None, b"late"]


async def test_what_waits_for_a_low_rate_goes_on_when_it_is_raised(two: tuple[Server, Server]) -> None:
    source, destination = two
    connection = await connect(source)
    await connection.ask(*((b"SET", b"key:%d" % number, b"1") for number in range(2000)))
    connection.close()
    means = Means(ACCESS, TIMEOUTS, lambda _: None)
    means.going.set()
    means.bucket.bound(1)
    async with copying_of(order(source, destination), means) as run:
        await run.until("the first keys to be copied", lambda: destination.ask("DBSIZE") != 0)
        means.bucket.bound(0)
        await run.scanned()
    assert destination.ask("DBSIZE") == 2000


async def test_a_replica_of_the_destination_has_all_that_was_synced() -> None:
    with Fleet(shards=2, replicas=1) as fleet:
        source, destination, replica = fleet.shards[0].primary, *fleet.shards[1].servers

        def replication() -> str:
            return str(destination.ask("INFO", "replication"))

        await until("a replica that follows", lambda: "state=online" in replication(), replication)
        async with copying_of(order(source, destination)) as run:
            await run.scanned()
            replica.pause()
            source.ask("SET", "a", "1")
            run.copy.set_sync(1)
            await run.until("a word about the replica", lambda: "WAIT" in run.copy.error)
            assert run.copy.synced == 0
            replica.resume()
            await run.synced(1)
            assert replica.ask("DBSIZE") == 1


async def test_what_an_earlier_writer_of_the_move_has_sent_does_not_come_later(two: tuple[Server, Server]) -> None:
    """It stands in a socket of a server that does not run."""
    source, destination = two
    old = await connect(destination)
    await fence([old], "m")
    source.ask("SET", "a", "new")
    async with copying_of(order(source, destination)) as run:
        await run.scanned()
        await until("the end of the old one", lambda: old.lost is not None, lambda: old)
    assert destination.ask("GET", "a") == b"new"


async def test_what_happens_to_groups_of_streams_is_copied_though_it_is_not_told(pair: tuple[Server, Server]) -> None:
    source, destination = pair
    for name in ("new group", "old group", "no group", "destroyed"):
        source.ask("XADD", name, "1-1", "x", "y")
        source.ask("XADD", name, "2-1", "x", "y")
    source.ask("XGROUP", "CREATE", "old group", "g", "0")
    source.ask("XGROUP", "CREATE", "destroyed", "g", "0")
    async with copying_of(order(source, destination)) as run:
        await run.scanned()
        assert run.copy.progress(1, 0).untold == 2
        source.ask("XGROUP", "CREATE", "new group", "g", "0")
        source.ask("XGROUP", "DESTROY", "destroyed", "g")
        source.ask("XREADGROUP", "GROUP", "g", "me", "STREAMS", "old group", ">")
        source.ask("XACK", "old group", "g", "1-1")
        await run.synced(1)
        assert await differences(source, destination) == []
        assert destination.ask("XPENDING", "old group", "g")[:2] == [1, b"2-1"]  # type: ignore[index]
        run.copy.set_sync(0)
        source.ask("XACK", "old group", "g", "2-1")
        source.ask("XREADGROUP", "GROUP", "g", "me", "STREAMS", "new group", ">")
        await run.synced(2)
        assert await differences(source, destination) == []


async def test_times_to_live_of_the_fields_of_a_hash_are_kept(two: tuple[Server, Server]) -> None:
    """Their end is told by nobody, so it must come at the destination by itself."""
    source, destination = two
    source.ask("HSET", "a", "lasting", "1", "short", "1", "for ever", "1")
    try:
        source.ask("HPEXPIRE", "a", 3_600_000, "FIELDS", 1, "lasting")
    except hiredis.ReplyError:
        pytest.skip("fields of hashes do not expire at this server")
    source.ask("HPEXPIRE", "a", 300, "FIELDS", 1, "short")
    async with copying_of(order(source, destination)) as run:
        await run.scanned()
        fields = ("HPEXPIRETIME", "a", "FIELDS", 2, "lasting", "for ever")
        assert destination.ask(*fields) == source.ask(*fields)
        await until("the end of it", lambda: destination.ask("HLEN", "a") == 2, lambda: destination.ask("HGETALL", "a"))


async def test_with_more_changes_than_fit_into_memory_it_begins_anew(
    two: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "DIRTY_BYTES", 10_000)
    source, destination = two
    async with copying_of(order(source, destination)) as run:
        await run.scanned()
        run.means.going.clear()
        await fill(source, 1000)
        assert "names have changed and are not copied yet" in str(await run.ended())


async def test_values_in_flight_are_bounded(two: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copier, "WINDOW_BYTES", 3_000_000)
    most = 0

    class Watched(Copier):
        def send(self, batch: Batch) -> None:
            nonlocal most
            super().send(batch)
            most = max(most, self._size)

    monkeypatch.setattr(copying, "Copier", Watched)
    source, destination = two
    for number in range(40):
        source.ask("SETRANGE", f"large {number}", 900_000, "x")
    source.ask("SETRANGE", "larger than all", 5_000_000, "x")
    await fill(source, 2000)
    async with copying_of(order(source, destination)) as run:
        await run.scanned()
        await run.synced(1)
        assert await differences(source, destination) == []
    assert 5_000_000 < most < 5_500_000  # which was alone


async def test_over_tls_and_with_a_password(two: tuple[Server, Server], tmp_path: Path) -> None:
    source, destination = two
    authority = Authority(tmp_path)
    secret = tmp_path / "password"
    secret.write_text("secret")
    secret.chmod(0o600)
    access = Access(BackendAccess(tls=True, tls_ca=str(authority.file), password_file=str(secret)))
    source.ask("SET", "a", "1")
    for server in two:
        server.ask("CONFIG", "SET", "requirepass", "secret")
    with (
        Hop(source.port, tls=authority.server(HOST)) as one,
        Hop(destination.port, tls=authority.server(HOST)) as other,
    ):
        means = Means(access, TIMEOUTS, lambda _: None)
        means.going.set()
        ordered = msgspec.structs.replace(
            order(source, destination), source=Node(HOST, one.port), destination=Node(HOST, other.port)
        )
        async with copying_of(ordered, means) as run:
            await run.scanned()
    assert ask(destination.port, "GET", "a", password="secret") == b"1"


class Withheld(Feed):
    """What the source tells is heard no earlier than a PING that was sent after it is answered."""

    async def open(self, *where: Any, own: bool = False, names: bool = True) -> Self:
        self.withheld: list[bytes] = []
        return await super().open(*where, own=own, names=names)

    def on_push(self, frame: bytes) -> None:
        self.withheld.append(frame)

    async def sync(self) -> None:
        await super().sync()
        withheld, self.withheld = self.withheld, []
        for frame in withheld:
            super().on_push(frame)

    async def latency(self) -> float:
        return 0.0


async def test_a_sync_waits_for_all_that_the_source_has_to_tell(
    two: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "Feed", Withheld)
    source, destination = two
    async with copying_of(order(source, destination)) as run:
        await run.scanned()
        await fill(source, 1000)
        await run.synced(1)
        assert await differences(source, destination) == []
        assert destination.ask("DBSIZE") == 1000


async def test_what_is_in_flight_when_the_source_is_emptied_is_looked_at_again(two: tuple[Server, Server]) -> None:
    """It may come to the destination after that was swept."""
    source, destination = two
    async with copying_of(order(source, destination)) as run:
        await run.scanned()
        destination.pause()
        source.ask("SET", "a", "1")
        await run.until("the copy in flight", lambda: run.copy._copier is not None and b"a" in run.copy._copier.busy)
        source.ask("FLUSHALL")
        await run.until("the flush", lambda: run.copy._flushes == 2)
        assert b"a" in run.copy._dirty
        destination.resume()
        await run.synced(1)
        assert destination.ask("DBSIZE") == 0
