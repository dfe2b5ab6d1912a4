"""Deleting what has moved, and nothing else; and who writes to it meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from protocol.request import encode
from pyproxy.fleet import Fleet, Server
from pyproxy.hashing import slot
from pyproxy.mover.clearing import Clearing
from pyproxy.mover.connection import Denied, Lost
from pyproxy.mover.feed import wanted_slots
from pyproxy.mover.means import Means
from pyproxy.moves import Task
from tests.pyproxy.mover.rig import HALF, order
from tests.pyproxy.mover.storm import ACCESS, TIMEOUTS, connect, names_of
from tests.servers import KINDS, servers_of
from tests.waiting import until

WANTED = wanted_slots(HALF)


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Server, Server]]:
    """A source and a destination."""
    with servers_of(request.param), Fleet(shards=2, replicas=0) as fleet:
        yield fleet.shards[0].primary, fleet.shards[1].primary


def inside(count: int, prefix: bytes = b"key") -> list[bytes]:
    """Names in the slots of the move."""
    names = (b"%b:%d" % (prefix, number) for number in range(100 * count + 100))
    return [name for name in names if WANTED[slot(name)]][:count]


async def fill(server: Server, database: int = 0) -> tuple[set[bytes], set[bytes]]:
    """The names in the slots of the move, and the others."""
    connection = await connect(server, database)
    names = [b"key:%d" % number for number in range(3000)]
    await connection.ask(*((b"SET", name, b"1") for name in names))
    connection.close()
    return {name for name in names if WANTED[slot(name)]}, {name for name in names if not WANTED[slot(name)]}


class Run:
    def __init__(self, source: Server, destination: Server, task: Task = Task.CLEAR, paused: bool = False) -> None:
        self.means = Means(ACCESS, TIMEOUTS, lambda _: None)
        if not paused:
            self.means.going.set()
        self.clearing = Clearing(order(source, destination, task, HALF), self.means)
        self.task = asyncio.create_task(self.clearing.run())

    async def began(self) -> None:
        """It hears of changes."""
        await until("a name that was found", lambda: self.clearing.progress(1, 0).keys > 0, lambda: self.clearing)

    async def end(self) -> None:
        await until("the end", self.task.done, lambda: self.clearing.progress(1, 0))
        await self.task


@asynccontextmanager
async def clearing(
    source: Server, destination: Server, task: Task = Task.CLEAR, paused: bool = False
) -> AsyncIterator[Run]:
    run = Run(source, destination, task, paused)
    try:
        yield run
    finally:
        run.task.cancel()
        await asyncio.wait([run.task])


@pytest.mark.parametrize(("task", "where"), [(Task.CLEAR, 0), (Task.UNDO, 1)])
async def test_exactly_the_keys_in_the_slots_are_deleted_in_every_database(
    pair: tuple[Server, Server], task: Task, where: int
) -> None:
    for server in pair:
        moved, others = await fill(server)
        await fill(server, 5)
    async with clearing(*pair, task) as run:
        await run.end()
        said = run.clearing.progress(1, 0)
        assert (said.done, said.strays, said.keys, said.keys_done) == (True, 0, 2 * len(moved), 2 * len(moved))
    for database in (0, 5):
        here, there = await connect(pair[where], database), await connect(pair[1 - where], database)
        assert await names_of(here) == others
        assert await names_of(there) == others | moved
        here.close()
        there.close()


@pytest.mark.parametrize(("task", "where"), [(Task.CLEAR, 0), (Task.UNDO, 1)])
async def test_it_is_done_when_a_replica_has_deleted_them_too(task: Task, where: int) -> None:
    with Fleet(shards=2, replicas=1) as fleet:
        pair = fleet.shards[0].primary, fleet.shards[1].primary
        server, replica = fleet.shards[where].servers

        def replication() -> str:
            return str(server.ask("INFO", "replication"))

        await until("a replica that follows", lambda: "state=online" in replication(), replication)
        (name,) = inside(1)
        server.ask("SET", name, "1")
        await until("the replica to have it", lambda: replica.ask("DBSIZE") == 1, replication)
        replica.pause()
        async with clearing(*pair, task) as run:
            await until("a word about the replica", lambda: "WAIT" in run.clearing.error, lambda: run.clearing.error)
            assert (run.clearing.done, server.ask("DBSIZE")) == (False, 0)
            replica.resume()
            await run.end()
            assert (replica.ask("DBSIZE"), run.clearing.error) == (0, "")


async def test_keys_whose_time_is_over_meanwhile_are_no_strays(pair: tuple[Server, Server]) -> None:
    source, destination = pair
    names = inside(1000)
    connection = await connect(source)
    await connection.ask(
        *((b"SET", name, b"1", b"PX", b"%d" % (1 + number % 200)) for number, name in enumerate(names))
    )
    source.ask("SET", inside(1, b"lasting")[0], "1")
    async with clearing(source, destination) as run:
        await run.end()
        assert run.clearing.strays == 0
    async with clearing(source, destination, paused=True) as run:
        source.ask("SET", inside(1, b"lasting")[0], "1")
        await connection.ask(*((b"SET", name, b"1", b"PX", b"1") for name in names[:100]))
        before = run.clearing.strays
        run.means.going.set()
        await run.end()
        assert run.clearing.strays - before <= 101  # all were written by this stray, at most once each
    connection.close()


WRITES = [("SET", "{}", "1"), ("INCR", "{}"), ("PEXPIRE", "{}", "100000"), ("COPY", "{}", "{}", "DB", "4")]


@pytest.mark.parametrize("command", WRITES, ids=lambda command: command[0])
async def test_a_write_to_a_key_that_has_moved_is_a_stray(
    pair: tuple[Server, Server], command: tuple[str, ...]
) -> None:
    source, destination = pair
    name = inside(1)[0]
    source.ask("SET", name, "1")
    async with clearing(source, destination, paused=True) as run:
        await run.began()
        source.ask(*(word.format(name.decode()) for word in command))
        await until("the stray", lambda: run.clearing.strays == 1, lambda: run.clearing.progress(1, 0))
        assert run.clearing.progress(1, 0).stray == name.decode()
        run.means.going.set()
        await run.end()
        assert source.ask("DBSIZE") == 0


async def test_a_key_that_somebody_deletes_is_a_stray_too(pair: tuple[Server, Server]) -> None:
    source, destination = pair
    first, second = inside(2)
    source.ask("MSET", first, "1", second, "1")
    async with clearing(source, destination, paused=True) as run:
        await run.began()
        source.ask("DEL", first)
        await until("the stray", lambda: run.clearing.strays == 1, lambda: run.clearing.progress(1, 0))
        assert run.clearing.progress(1, 0).stray == first.decode()


async def test_a_change_of_another_slots_key_is_no_stray(pair: tuple[Server, Server]) -> None:
    source, destination = pair
    _, others = await fill(source)
    async with clearing(source, destination, paused=True) as run:
        await run.began()
        source.ask("DEL", *sorted(others)[:50])
        source.ask("SET", sorted(others)[60], "2")
        run.means.going.set()
        await run.end()
        assert run.clearing.strays == 0


async def test_all_that_a_stray_writes_all_the_time_is_deleted_and_seen(pair: tuple[Server, Server]) -> None:
    source, destination = pair
    await fill(source)
    name = inside(1, b"stray")[0]
    stray = await connect(source)
    async with clearing(source, destination) as run:
        await run.began()
        for _ in range(50):
            await stray.ask((b"SET", name, b"1"))
        await run.end()
    stray.close()
    assert run.clearing.strays >= 1
    assert run.clearing.stray == name
    assert source.ask("EXISTS", name) == 0


async def test_while_paused_nothing_is_deleted(pair: tuple[Server, Server]) -> None:
    source, destination = pair
    await fill(source)
    async with clearing(source, destination, paused=True) as run:
        await run.began()
        assert source.ask("DBSIZE") == 3000
        run.means.going.set()
        await run.end()


async def test_a_replica_is_not_cleared() -> None:
    with Fleet(shards=2, replicas=1) as fleet:
        replica, destination = fleet.shards[0].replicas[0], fleet.shards[1].primary
        async with clearing(replica, destination) as run:
            with pytest.raises(Lost, match="expected a primary, got one whose role is slave"):
                await run.end()


async def test_a_server_that_refuses_to_delete_says_so() -> None:
    with Fleet(shards=2, replicas=0, options=("--rename-command", "UNLINK", "")) as fleet:
        source, destination = (shard.primary for shard in fleet.shards)
        await fill(source)
        async with clearing(source, destination) as run:
            with pytest.raises(Denied, match="refused UNLINK"):
                await run.end()
        assert not run.clearing.done


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_write_right_before_our_deletion_is_a_stray(pair: tuple[Server, Server], when: str) -> None:
    """In one turn of the server's loop, perhaps: then what both change would not be told, as ours is the last."""
    source, destination = pair
    name = inside(1)[0]
    source.ask("SET", name, "1")
    stray = await connect(source)
    writes = 0

    class Meddled(Clearing):
        async def _watch(self, names: list[bytes]) -> bool:
            nonlocal writes
            writes += 1
            if writes == 1 and when == "before":
                stray.send(encode((b"SET", name, b"2")), 1)
            watched = await super()._watch(names)
            if writes == 1 and when == "after":
                stray.send(encode((b"SET", name, b"2")), 1)
                await stray.ask((b"PING",))
            return watched

    means = Means(ACCESS, TIMEOUTS, lambda _: None)
    means.going.set()
    meddled = Meddled(order(source, destination, Task.CLEAR, HALF), means)
    await meddled.run()
    assert (meddled.done, meddled.strays, meddled.stray) == (True, 1, name)
    assert source.ask("DBSIZE") == 0
    stray.close()


async def test_a_stray_that_never_rests_does_not_keep_a_key_for_ever(pair: tuple[Server, Server]) -> None:
    source, destination = pair
    name = inside(1)[0]
    source.ask("SET", name, "1")
    stray = await connect(source)

    class Meddled(Clearing):
        async def _watch(self, names: list[bytes]) -> bool:
            watched = await super()._watch(names)
            if self.strays < 5:
                await stray.ask((b"APPEND", name, b"2"))
            return watched

    means = Means(ACCESS, TIMEOUTS, lambda _: None)
    means.going.set()
    meddled = Meddled(order(source, destination, Task.CLEAR, HALF), means)
    await meddled.run()
    assert meddled.done
    assert meddled.strays >= 4
    assert source.ask("DBSIZE") == 0
    stray.close()
