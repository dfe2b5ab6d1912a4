"""The mover as its parent sees it: a process with a channel, in front of real servers."""

import asyncio
import signal
from collections.abc import Iterator

import pytest

from pyproxy.config import Timeouts
from pyproxy.fleet import Fleet, Server
from pyproxy.moves import Task
from tests.pyproxy.mover.rig import HALF, OTHER_HALF, mover, order
from tests.pyproxy.mover.storm import DATABASES, Storm, connect, differences, names_of
from tests.waiting import until


@pytest.fixture
def three() -> Iterator[tuple[Server, Server, Server]]:
    with Fleet(shards=3, replicas=0) as fleet:
        one, two, three = (shard.primary for shard in fleet.shards)
        yield one, two, three


async def fill(server: Server, count: int) -> None:
    connection = await connect(server)
    await connection.ask(*((b"SET", b"key:%d" % number, b"first") for number in range(count)))
    connection.close()


async def test_a_whole_move(three: tuple[Server, Server, Server]) -> None:
    source, destination, _other = three
    await fill(source, 5000)
    storm = Storm(source, 1)
    storm.begin()
    await storm.wrote(2000)
    async with mover() as parent:
        parent.send(order(source, destination, Task.CHECK))
        said = await parent.until("the check", lambda said: said.checked)
        assert said.refused == []
        parent.send(order(source, destination))
        await parent.until("the scan", lambda said: said.scanned)
        await storm.wrote(5000)
        await storm.stop()
        parent.send(order(source, destination, sync=7))
        said = await parent.until("the sync", lambda said: said.synced == 7)
        assert (said.error, said.restarts) == ("", 0)
        assert said.keys_done >= 5000
        assert said.bytes_done > 5000 * 10
        assert await differences(source, destination) == []
        connections = [await connect(destination, database) for database in DATABASES]
        before = [await names_of(connection) for connection in connections]
        parent.send(order(source, destination, Task.CLEAR))
        said = await parent.until("the end", lambda said: said.done)
        assert said.strays == 0
        assert source.ask("DBSIZE") == 0
        assert sum(map(len, before)) > 5000
        for connection, names in zip(connections, before, strict=True):
            now = await names_of(connection)
            assert names - now <= {name for name in names if name.startswith((b"hot:", b"wide:"))}
            connection.close()
        parent.send()
        await until("nothing to say", lambda: parent.said[-1].moves == [], lambda: parent.said[-1])
    assert parent.process.returncode == 0


async def test_two_moves_of_one_source_at_once(three: tuple[Server, Server, Server]) -> None:
    source, left, right = three
    await fill(source, 5000)
    storm = Storm(source, 2)
    storm.begin()
    async with mover() as parent:
        one, other = order(source, left, slots=HALF, move="one"), order(source, right, slots=OTHER_HALF, move="other")
        parent.send(one, other)
        for move in ("one", "other"):
            await parent.until("the scan", lambda said: said.scanned, move)
        await storm.wrote(5000)
        await storm.stop()
        parent.send(
            order(source, left, slots=HALF, move="one", sync=1),
            order(source, right, slots=OTHER_HALF, move="other", sync=2),
        )
        await parent.until("a sync", lambda said: said.synced == 1, "one")
        await parent.until("a sync", lambda said: said.synced == 2, "other")
        assert await differences(source, left, lambda number: any(a <= number <= b for a, b in HALF)) == []
        assert await differences(source, right, lambda number: any(a <= number <= b for a, b in OTHER_HALF)) == []
        connection = await connect(source)
        count = len(await names_of(connection))
        connection.close()
        assert abs(int(str(left.ask("DBSIZE"))) + int(str(right.ask("DBSIZE"))) - count) < count / 10


@pytest.mark.parametrize("victim", [0, 1], ids=["source", "destination"])
@pytest.mark.parametrize("scanned", [False, True], ids=["while it is scanned", "while it is followed"])
async def test_a_server_that_is_killed_and_comes_back(
    three: tuple[Server, Server, Server], victim: int, scanned: bool
) -> None:
    source, destination, _ = three
    await fill(source, 20_000)
    async with mover() as parent:
        parent.send(order(source, destination), bytes_per_s=0 if scanned else 2_000_000)
        if scanned:
            await parent.until("the scan", lambda said: said.scanned)
        else:
            await parent.until("the first keys", lambda said: said.keys_done > 100)
        three[victim].kill()
        said = await parent.until("an error", lambda said: bool(said.error))
        assert three[victim].address in said.error
        three[victim].start()
        if victim == 0:
            await fill(source, 3000)
        storm = Storm(source, 3)
        storm.begin()
        parent.send(order(source, destination))
        said = await parent.until("the scan", lambda said: said.scanned)
        assert said.restarts >= 1
        await storm.wrote(3000)
        await storm.stop()
        parent.send(order(source, destination, sync=1))
        await parent.until("the sync", lambda said: said.synced == 1)
        assert await differences(source, destination) == []
        assert (await parent.until("no error", lambda said: not said.error)).restarts >= 1


async def test_a_server_that_stands_still_and_goes_on(three: tuple[Server, Server, Server]) -> None:
    source, destination, _ = three
    await fill(source, 20_000)
    async with mover(Timeouts(slow_reply_s=0.5)) as parent:
        parent.send(order(source, destination), bytes_per_s=1_000_000)
        await parent.until("the first keys", lambda said: said.keys_done > 100)
        destination.pause()
        await parent.until("an error", lambda said: bool(said.error))
        source.ask("SET", "key:1", "later")
        destination.resume()
        parent.send(order(source, destination))
        await parent.until("the scan", lambda said: said.scanned)
        parent.send(order(source, destination, sync=1))
        await parent.until("the sync", lambda said: said.synced == 1)
        assert await differences(source, destination) == []


async def test_a_mover_that_is_killed_leaves_a_move_that_the_next_one_ends(
    three: tuple[Server, Server, Server],
) -> None:
    source, destination, _ = three
    await fill(source, 20_000)
    async with mover() as parent:
        parent.send(order(source, destination), bytes_per_s=1_000_000)
        await parent.until("the first keys", lambda said: said.keys_done > 100)
        parent.process.kill()
        await until("its end", lambda: parent.closed, lambda: parent.said[-1:])
    source.ask("DEL", *(f"key:{number}" for number in range(2000)))
    async with mover() as parent:
        parent.send(order(source, destination))
        await parent.until("the scan", lambda said: said.scanned)
        parent.send(order(source, destination, sync=1))
        await parent.until("the sync", lambda said: said.synced == 1)
        assert await differences(source, destination) == []
        assert destination.ask("DBSIZE") == 18_000


async def test_strays_are_counted_over_the_attempts_to_clear(three: tuple[Server, Server, Server]) -> None:
    source, destination, _ = three
    await fill(source, 1000)
    async with mover() as parent:
        parent.send(order(source, destination, Task.CLEAR), paused=True)
        await parent.until("the first names", lambda said: said.keys > 0)
        source.ask("SET", "key:1", "2")
        await parent.until("a stray", lambda said: said.strays == 1)
        source.kill()
        said = await parent.until("an error", lambda said: bool(said.error))
        assert (said.strays, said.stray) == (1, "key:1")
        source.start()
        await fill(source, 1000)
        parent.send(order(source, destination, Task.CLEAR))
        said = await parent.until("the end", lambda said: said.done)
        assert (said.strays >= 1, said.error) == (True, "")
        assert source.ask("DBSIZE") == 0


async def test_nothing_is_copied_by_a_mover_that_finds_a_sync_already_asked_for(
    three: tuple[Server, Server, Server],
) -> None:
    """Another one may have answered it, and the destination own the slots."""
    source, destination, _ = three
    source.ask("SET", "a", "old")
    destination.ask("SET", "a", "new")
    async with mover() as parent:
        parent.send(order(source, destination, sync=1))
        await parent.until("a word", lambda said: True)
        for _ in range(3):
            parent.send(order(source, destination, sync=1))
            said = await parent.until("a word", lambda said: True)
        assert (said.synced, said.scanned) == (0, False)
        assert destination.ask("GET", "a") == b"new"
        parent.send(order(source, destination))
        await parent.until("the scan", lambda said: said.scanned)
        assert destination.ask("GET", "a") == b"old"


async def test_with_another_epoch_the_copy_begins_anew(three: tuple[Server, Server, Server]) -> None:
    source, destination, other = three
    await fill(source, 1000)
    async with mover() as parent:
        parent.send(order(source, destination))
        await parent.until("the scan", lambda said: said.scanned)
        parent.send(order(source, other))
        await parent.until("the scan", lambda said: said.scanned)
        assert other.ask("DBSIZE") == 1000


async def test_it_keeps_to_the_rate(three: tuple[Server, Server, Server]) -> None:
    """Of 4 MB at 2 MB/s a half is not copied before a second has passed."""
    source, destination, _ = three
    connection = await connect(source)
    await connection.ask(*((b"SETRANGE", b"key:%d" % number, b"9999", b"x") for number in range(400)))
    connection.close()
    loop = asyncio.get_running_loop()
    async with mover() as parent:
        began = loop.time()
        parent.send(order(source, destination), bytes_per_s=2_000_000)
        await parent.until("the scan", lambda said: said.scanned)
        assert loop.time() - began > 1.0


async def test_what_it_is_sent_that_is_no_end_does_not_end_it(three: tuple[Server, Server, Server]) -> None:
    source, destination, _ = three
    async with mover() as parent:
        parent.send(order(source, destination))
        await parent.until("the scan", lambda said: said.scanned)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            parent.process.send_signal(number)
        parent.send(order(source, destination, sync=1))
        await parent.until("the sync", lambda said: said.synced == 1)


async def test_it_ends_with_its_parent(three: tuple[Server, Server, Server]) -> None:
    source, destination, _ = three
    async with mover() as parent:
        parent.send(order(source, destination))
        await parent.until("the scan", lambda said: said.scanned)
        parent.close()
        assert await asyncio.wait_for(parent.process.wait(), 20.0) == 0
