"""What is served at the start: the slots of the store, which the configuration seeds once."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from pyproxy import events
from pyproxy.config import Config, ConfigErrors
from pyproxy.control.growth.file_store import FileStore
from pyproxy.control.growth.opening import Opened, check_none_seen, looked_at, opened, store_of
from pyproxy.control.growth.store import StoreError
from pyproxy.control.growth.transitions import Entry, Phase
from pyproxy.moves import Move
from pyproxy.shard_map import Node, Shard


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "map.json"


@pytest.fixture
def config(path: Path) -> Config:
    return Config.parse(
        f'store = "file:{path}"\n'
        '[[shards]]\nname = "s0"\nprimary = "10.0.0.1:6379"\nslots = ["0-8191"]\n'
        '[[shards]]\nname = "s1"\nprimary = "10.0.0.2:6379"\nslots = ["8192-16383"]\n'.encode()
    )


@pytest.fixture
def stores() -> Iterator[list[FileStore]]:
    """Those that were opened."""
    stores: list[FileStore] = []
    yield stores
    for store in stores:
        store.close()


def start(config: Config, stores: list[FileStore], seen: int = 0) -> Opened:
    """As a proxy does, when the one before has ended."""
    for store in stores:
        store.close()
    store = FileStore(config.store.removeprefix("file:"))
    stores.append(store)
    return asyncio.run(opened(store, config, seen))


def test_without_a_store_there_is_none(config: Config) -> None:
    assert store_of(msgspec.structs.replace(config, store="")) is None
    assert isinstance(store_of(config), FileStore)


def test_the_first_start_writes_the_configuration_into_the_store(
    config: Config, path: Path, stores: list[FileStore]
) -> None:
    first = start(config, stores)
    assert first.config == config
    assert first.document.shards == config.shard_map().shards
    second = start(config, stores)
    assert (second.document, second.revision) == (first.document, 1)


def test_from_then_on_the_slots_of_the_store_count(
    config: Config, stores: list[FileStore], capsys: pytest.CaptureFixture[str]
) -> None:
    first = start(config, stores)
    move = Move("m1", "s0", "s2", ((0, 99),))
    added = first.document.with_moves([Entry(move=move)], 1.0, [Shard("s2", Node("10.0.0.3", 6379), (), ())])
    asyncio.run(first.store.save(added.handed_over(Entry(move=move, phase=Phase.SWITCHING), 2.0), first.revision))
    events.configure()
    second = start(config, stores)
    assert [table.slots for table in second.config.shards] == [((100, 8191),), ((8192, 16383),), ((0, 99),)]
    said = capsys.readouterr().err
    assert f"+store store=file:{config.store[5:]} generation=3 moves=1 " in said
    assert "shard s0: the store says slots 100-8191; the configuration says slots 0-8191" in said


def test_a_server_that_was_replaced_in_the_configuration_is_kept_in_the_store(
    config: Config, stores: list[FileStore]
) -> None:
    start(config, stores)
    s0 = msgspec.structs.replace(config.shards[0], primary=Node("10.9.9.9", 6379))
    start(msgspec.structs.replace(config, shards=(s0, config.shards[1])), stores)
    document = asyncio.run(looked_at(config))
    assert document is not None
    assert (document.generation, document.shards[0].primary) == (2, Node("10.9.9.9", 6379))


def test_a_store_that_is_gone_is_not_made_anew_of_the_configuration(
    config: Config, path: Path, stores: list[FileStore]
) -> None:
    start(config, stores)
    path.unlink()
    with pytest.raises(StoreError, match="got no store: bring the store back"):
        start(config, stores)
    assert not path.exists()


def test_a_store_that_was_seen_elsewhere_only_is_missed_too(
    config: Config, path: Path, stores: list[FileStore]
) -> None:
    """The whole directory may be another one, as where a disk is not mounted."""
    with pytest.raises(StoreError, match="expected generation 3 or a later one, as it was seen, got no store"):
        start(config, stores, seen=3)
    assert not path.exists()


def test_who_had_a_store_is_not_served_without() -> None:
    check_none_seen(0)
    with pytest.raises(StoreError, match="expected the store that was served last, of generation 3, got none"):
        check_none_seen(3)


def test_a_store_that_does_not_fit_the_configuration_is_left_as_it_is(
    config: Config, path: Path, stores: list[FileStore]
) -> None:
    first = start(config, stores)
    added = first.document.with_moves([], 1.0, [Shard("s2", Node("10.0.0.3", 6379), (), ())])
    asyncio.run(first.store.save(added, first.revision))
    before = path.read_bytes()
    s0 = msgspec.structs.replace(config.shards[0], primary=Node("10.0.0.3", 6379))
    with pytest.raises(ConfigErrors, match="expected a node of its own"):
        start(msgspec.structs.replace(config, shards=(s0, config.shards[1])), stores)
    assert path.read_bytes() == before


def test_who_only_looks_needs_no_lock_and_is_told_what_is_wrong_as_of_a_configuration(
    config: Config, path: Path, stores: list[FileStore]
) -> None:
    assert asyncio.run(looked_at(config)) is None
    document = start(config, stores).document
    assert asyncio.run(looked_at(config)) == document
    path.write_text("{")
    with pytest.raises(ConfigErrors) as caught:
        asyncio.run(looked_at(config))
    assert caught.value.problems == [f"store file:{path}: expected JSON, got: Input data was truncated"]
