"""Why a move must not begin, by real servers."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from pyproxy.fleet import Fleet, Server
from pyproxy.hashing import slot
from pyproxy.mover import check
from pyproxy.mover.check import Check
from pyproxy.mover.connection import Lost
from pyproxy.mover.feed import wanted_slots
from pyproxy.mover.means import Means
from pyproxy.moves import Task
from pyproxy.shard_map import SlotRange
from tests.pyproxy.mover.rig import ALL, HALF, order
from tests.pyproxy.mover.storm import ACCESS, TIMEOUTS, connect
from tests.servers import KINDS, servers_of

LIBRARY = "#!lua name=lib\nredis.register_function('f', function() return {} end)"


@pytest.fixture
def pair() -> Iterator[tuple[Server, Server]]:
    """A source and a destination."""
    with Fleet(shards=2, replicas=0) as fleet:
        yield fleet.shards[0].primary, fleet.shards[1].primary


async def refusals(
    source: Server,
    destination: Server,
    slots: tuple[SlotRange, ...] = ALL,
    replace: bool = False,
    accept_eviction: bool = False,
) -> list[str]:
    ordered = order(source, destination, Task.CHECK, slots, replace=replace, accept_eviction=accept_eviction)
    one = Check(ordered, Means(ACCESS, TIMEOUTS, lambda _: None))
    await one.run()
    said = one.progress(1, 0)
    assert said.checked
    return said.refused


@pytest.mark.parametrize("kind", KINDS)
async def test_an_empty_server_of_the_same_kind_is_good(kind: str) -> None:
    with servers_of(kind), Fleet(shards=2, replicas=0) as fleet:
        source, destination = (shard.primary for shard in fleet.shards)
        source.ask("SET", "a", "1")
        source.ask("FUNCTION", "LOAD", LIBRARY.format(1))
        destination.ask("CONFIG", "SET", "maxmemory", "1gb")
        assert await refusals(source, destination) == []


async def test_keys_in_the_slots_are_counted_unless_they_may_be_replaced(pair: tuple[Server, Server]) -> None:
    source, destination = pair
    other = await connect(destination, 3)
    names = [b"key:%d" % number for number in range(2000)]
    await other.ask(*((b"SET", name, b"1") for name in names))
    other.close()
    wanted = wanted_slots(HALF)
    count = sum(wanted[slot(name)] for name in names)
    (said,) = await refusals(source, destination, HALF)
    assert said.startswith(f"{destination.address}: expected no keys in these slots, got {count}, such as key:")
    assert said.endswith("in database 3; delete them, or let the move replace them")
    assert await refusals(source, destination, HALF, replace=True) == []


async def test_keys_in_other_slots_do_not_count(pair: tuple[Server, Server]) -> None:
    source, destination = pair
    wanted = wanted_slots(HALF)
    destination.ask("SET", next(f"k{n}" for n in range(9999) if not wanted[slot(b"k%d" % n)]), "1")
    assert await refusals(source, destination, HALF) == []


async def test_a_destination_that_evicts_is_refused_unless_that_is_accepted(pair: tuple[Server, Server]) -> None:
    source, destination = pair
    destination.ask("CONFIG", "SET", "maxmemory", "1gb", "maxmemory-policy", "allkeys-lru")
    (said,) = await refusals(source, destination)
    assert "expected maxmemory-policy noeviction, got allkeys-lru; " in said
    assert await refusals(source, destination, accept_eviction=True) == []


async def test_memory_must_suffice_for_the_part_that_moves(pair: tuple[Server, Server]) -> None:
    source, destination = pair
    source.ask("EVAL", "for i=1,2000 do redis.call('SET', 'key:' .. i, string.rep('x', 10000)) end", "0")
    used = int(str(destination.ask("INFO", "memory")).split("used_memory:")[1].split("\\r")[0])
    destination.ask("CONFIG", "SET", "maxmemory", used + 15_000_000)
    (said,) = await refusals(source, destination)
    assert "MiB free below maxmemory, got " in said
    assert "give it more memory" in said
    assert await refusals(source, destination, HALF) == []


@contextmanager
def new_and_old() -> Iterator[tuple[Server, Server]]:
    """The backend and this machine's Redis."""
    with ExitStack() as running:
        running.enter_context(servers_of("redis-server"))
        old = running.enter_context(Fleet(shards=1, replicas=0))
        running.enter_context(servers_of("the backend"))
        new = running.enter_context(Fleet(shards=1, replicas=0))
        yield new.shards[0].primary, old.shards[0].primary


async def test_an_older_destination_is_refused() -> None:
    with new_and_old() as (source, destination):
        (said,) = await refusals(source, destination)
        assert said.startswith(f"{destination.address}: expected a server that takes values of version ")
        assert await refusals(destination, source) == []


async def test_where_no_dump_says_it_the_version_of_the_server_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    async def unknown(_: object) -> int:
        return 0

    monkeypatch.setattr(check, "_dump_version", unknown)
    with new_and_old() as (source, destination):
        (said,) = await refusals(source, destination)
        assert "or newer, got 7.0." in said


async def test_a_library_that_is_another_there_is_refused(pair: tuple[Server, Server]) -> None:
    source, destination = pair
    source.ask("FUNCTION", "LOAD", LIBRARY.format(1))
    destination.ask("FUNCTION", "LOAD", LIBRARY.format(2))
    (said,) = await refusals(source, destination)
    assert "the library of functions lib" in said


async def test_a_replica_is_refused() -> None:
    with Fleet(shards=2, replicas=1) as fleet:
        (said,) = await refusals(fleet.shards[0].primary, fleet.shards[1].replicas[0])
        assert "expected a primary, got role slave" in said


async def test_the_same_server_is_refused(pair: tuple[Server, Server]) -> None:
    (said,) = await refusals(pair[0], pair[0])
    assert "expected another server than the source" in said


async def test_a_destination_with_fewer_databases_is_refused() -> None:
    with Fleet(shards=1, replicas=0) as many, Fleet(shards=1, replicas=0, options=("--databases", "4")) as few:
        source, destination = many.shards[0].primary, few.shards[0].primary
        connection = await connect(source, 5)
        await connection.ask((b"SET", b"a", b"1"))
        connection.close()
        (said,) = await refusals(source, destination)
        assert "refused SELECT 5" in said
        assert "`databases`" in said


async def test_a_source_that_tells_no_changes_is_refused() -> None:
    with Fleet(shards=2, replicas=0, options=("--rename-command", "CLIENT", "")) as fleet:
        (said,) = await refusals(fleet.shards[0].primary, fleet.shards[1].primary)
        assert "refused CLIENT TRACKING" in said


async def test_nothing_is_known_of_a_server_that_does_not_answer(pair: tuple[Server, Server]) -> None:
    pair[1].kill()
    with pytest.raises(Lost, match=pair[1].address):
        await refusals(*pair)
