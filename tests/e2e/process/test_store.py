"""A proxy with a store: it serves the slots that the store says, alone, and not at all where the store is lost."""

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyproxy.control.growth.file_store import FileStore
from pyproxy.control.growth.transitions import Entry, Phase
from pyproxy.fleet import Fleet, Proxy
from pyproxy.hashing import slot
from pyproxy.moves import Move
from tests.e2e.rig import Connection

KEY = "foo"  # of s0, as the configuration says


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet(shards=2, replicas=0) as fleet:
        yield fleet


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "map.json"


def proxy(fleet: Fleet, path: Path) -> Proxy:
    return Proxy(fleet, store=f"file:{path}")


def hand_over(path: Path) -> None:
    """The slot of KEY to the other shard, as a proxy does."""

    async def save() -> None:
        store = FileStore(str(path))
        loaded = await store.load()
        assert loaded is not None
        document, revision = loaded
        number = slot(KEY.encode())
        move = Move("m1", "s0", "s1", ((number, number),))
        queued = document.with_moves([Entry(move=move)], 1.0)
        await store.save(queued.handed_over(Entry(move=move, phase=Phase.SWITCHING), 2.0), revision)

    asyncio.run(save())


def owner(fleet: Fleet, served: Proxy) -> int:
    """The shard to which a write of KEY goes."""
    with Connection(served.port) as conn:
        assert conn.ask("SET", KEY, "value") == b"OK"
        found = []
        for index, shard in enumerate(fleet.shards):
            with Connection(shard.primary.port) as direct:
                if direct.ask("DEL", KEY) == 1:
                    found.append(index)
    (index,) = found
    return index


def said_in_vain(served: Proxy) -> str:
    """What a proxy says that does not serve."""
    done = subprocess.run(served.command(), capture_output=True, text=True, timeout=60.0)
    assert done.returncode == 78
    return done.stderr


def test_after_a_restart_the_slots_are_those_of_the_store(fleet: Fleet, path: Path) -> None:
    with proxy(fleet, path) as served:
        assert owner(fleet, served) == 0
    hand_over(path)
    with proxy(fleet, path) as served:
        assert owner(fleet, served) == 1


def test_a_second_proxy_with_the_same_store_does_not_serve(fleet: Fleet, path: Path) -> None:
    with proxy(fleet, path) as served:
        assert "expected to be used by one pyproxy only, got another one, process" in said_in_vain(proxy(fleet, path))
        assert owner(fleet, served) == 0


def test_a_proxy_that_was_killed_leaves_no_lock_behind(fleet: Fleet, path: Path) -> None:
    with proxy(fleet, path) as served:
        served.kill()
        served.wait()
    with proxy(fleet, path) as served:
        assert owner(fleet, served) == 0


def test_a_proxy_whose_store_is_lost_does_not_serve_the_configuration(fleet: Fleet, path: Path) -> None:
    with proxy(fleet, path) as served:
        assert owner(fleet, served) == 0
    path.unlink()
    assert "expected generation 1 or a later one, as it was seen, got no store" in said_in_vain(proxy(fleet, path))


def test_the_state_file_misses_a_store_whose_directory_is_another_one(fleet: Fleet, path: Path, tmp_path: Path) -> None:
    """As where a disk is not mounted: nothing beside the store is there either."""
    state = {"state_file": str(tmp_path / "state.json")}
    disk, bare = tmp_path / "disk", tmp_path / "bare"
    disk.mkdir()
    bare.mkdir()
    with Proxy(fleet, store=f"file:{disk}/map.json", promotion=state) as served:
        assert owner(fleet, served) == 0
    missing = "expected generation 1 or a later one, as it was seen, got no store"
    assert missing in said_in_vain(Proxy(fleet, store=f"file:{bare}/map.json", promotion=state))
    assert "expected the store that was served last, of generation 1" in said_in_vain(Proxy(fleet, promotion=state))
    with Proxy(fleet, store=f"file:{disk}/map.json", promotion=state) as served:
        assert owner(fleet, served) == 0
