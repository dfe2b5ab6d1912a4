"""The store in a file: what was saved is there after any crash, and what cannot be used is refused, never replaced."""

import asyncio
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from pyproxy.control.growth import file_store
from pyproxy.control.growth.file_store import FileStore
from pyproxy.control.growth.store import Conflict, Document, NotSaved, StoreError, Unsure, decoded, encoded
from pyproxy.shard_map import Node, Shard

DOCUMENT = Document(1, "a", 1, (Shard("s0", Node("10.0.0.1", 6379), (), ((0, 16383),)),))


def later(generation: int) -> Document:
    return msgspec.structs.replace(DOCUMENT, generation=generation)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "map.json"


@pytest.fixture
def store(path: Path) -> Iterator[FileStore]:
    """In use."""
    store = FileStore(str(path))
    asyncio.run(store.claim())
    yield store
    store.close()


def load(store: FileStore) -> tuple[Document, int] | None:
    return asyncio.run(store.load())


def save(store: FileStore, document: Document, revision: int) -> int:
    return asyncio.run(store.save(document, revision))


def refused(store: FileStore) -> str:
    with pytest.raises(StoreError) as caught:
        load(store)
    return str(caught.value)


# --- what is saved ----------------------------------------------------------------------------------------------------


def test_what_was_saved_is_loaded_by_the_next_one(path: Path, store: FileStore) -> None:
    assert load(store) is None
    assert save(store, DOCUMENT, 0) == 1
    assert save(store, later(2), 1) == 2
    assert load(FileStore(str(path))) == (later(2), 2)


def test_of_two_who_save_at_the_same_time_one_is_told(path: Path, store: FileStore) -> None:
    save(store, DOCUMENT, 0)
    save(store, later(2), 1)
    with pytest.raises(Conflict, match="expected generation 1, got 2"):
        save(store, later(3), 1)
    with pytest.raises(Conflict, match="expected generation 0, got 2"):
        save(store, later(3), 0)
    assert load(store) == (later(2), 2)


def test_after_a_kill_at_any_time_there_is_what_was_saved_last_or_was_being_saved(path: Path) -> None:
    program = """
import asyncio, sys, msgspec
from pyproxy.control.growth.file_store import FileStore
from pyproxy.control.growth.store import decoded
store = FileStore(sys.argv[1])
asyncio.run(store.claim())
document, revision = asyncio.run(store.load())
while True:
    document = msgspec.structs.replace(document, generation=revision + 1)
    revision = asyncio.run(store.save(document, revision))
    print(revision, flush=True)
"""
    path.write_bytes(encoded(DOCUMENT))
    for saves in (1, 2, 3, 10, 50):
        process = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(saves):
            assert process.stdout.readline()
        process.kill()
        said = process.stdout.read().split("\n")[:-1]
        process.wait()
        loaded = load(FileStore(str(path)))
        assert loaded is not None
        if said:
            assert loaded[1] - int(said[-1]) in (0, 1)


def test_nothing_is_left_beside_it_but_what_it_needs(path: Path, store: FileStore) -> None:
    save(store, DOCUMENT, 0)
    assert sorted(each.name for each in path.parent.iterdir()) == ["map.json", "map.json.lock", "map.json.seen"]


# --- one proxy --------------------------------------------------------------------------------------------------------


def test_a_second_process_is_refused_with_the_first_ones_id_and_one_that_comes_later_is_not(
    path: Path, store: FileStore
) -> None:
    other = FileStore(str(path))
    with pytest.raises(StoreError) as caught:
        asyncio.run(other.claim())
    expected = f"store file:{path}: expected to be used by one pyproxy only, got another one, process {os.getpid()}"
    assert str(caught.value) == expected
    store.close()
    asyncio.run(other.claim())
    other.close()


def test_a_command_beside_the_proxy_may_look_and_changes_nothing(path: Path, store: FileStore) -> None:
    save(store, DOCUMENT, 0)
    before = {each.name: each.read_bytes() for each in path.parent.iterdir()}
    assert load(FileStore(str(path))) == (DOCUMENT, 1)
    assert {each.name: each.read_bytes() for each in path.parent.iterdir()} == before


# --- what was there once ----------------------------------------------------------------------------------------------


def test_a_store_that_was_there_and_is_no_more_is_no_first_start(path: Path, store: FileStore) -> None:
    save(store, DOCUMENT, 0)
    path.unlink()
    assert refused(store) == (
        f"store file:{path}: expected generation 1 or a later one, as it was seen, got no store: bring the store back; "
        "the configuration may not be what the servers have by now"
    )


def test_a_copy_from_before_is_refused(path: Path, store: FileStore) -> None:
    save(store, DOCUMENT, 0)
    old = path.read_bytes()
    save(store, later(2), 1)
    path.write_bytes(old)
    assert "expected generation 2 or a later one, as it was seen, got 1: an old copy" in refused(store)


def test_another_store_in_its_place_is_refused(path: Path, store: FileStore) -> None:
    save(store, DOCUMENT, 0)
    path.write_bytes(encoded(msgspec.structs.replace(later(9), id="b")))
    assert refused(store) == f"store file:{path}: expected the store a, as it was seen, got b"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b'{"id": 7}', b"[" * 100_000])
def test_a_mark_that_cannot_be_read_still_says_that_there_was_a_store(
    path: Path, store: FileStore, content: bytes
) -> None:
    save(store, DOCUMENT, 0)
    (path.parent / "map.json.seen").write_bytes(content)
    assert load(store) == (DOCUMENT, 1)
    (path.parent / "map.json.seen").write_bytes(content)
    path.unlink()
    assert "got no store" in refused(store)


def test_a_store_that_was_brought_back_by_hand_is_marked_when_it_is_used(path: Path, store: FileStore) -> None:
    path.write_bytes(encoded(later(7)))
    assert load(store) == (later(7), 7)
    path.unlink()
    assert "expected generation 7" in refused(store)


# --- what cannot be used ----------------------------------------------------------------------------------------------


def test_a_directory_that_is_missing_is_not_made(tmp_path: Path) -> None:
    path = tmp_path / "disk" / "map.json"
    store = FileStore(str(path))
    expected = f"store file:{path}: expected a directory {path.parent}, got none (is a disk not mounted?)"
    assert refused(store) == expected
    with pytest.raises(StoreError, match="is a disk not mounted"):
        asyncio.run(store.claim())
    with pytest.raises(NotSaved, match="is a disk not mounted"):
        save(store, DOCUMENT, 0)
    (tmp_path / "disk").touch()
    assert refused(store) == f"store file:{path}: expected a directory {path.parent}, got a file"


def test_a_directory_in_its_place_is_said(path: Path) -> None:
    path.mkdir()
    assert refused(FileStore(str(path))) == f"store file:{path}: expected a file that can be read, got: is a directory"


def test_a_file_that_may_not_be_read_is_said(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(_path: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    expected = f"store file:{path}: expected a file that can be read, got: permission denied"
    assert refused(FileStore(str(path))) == expected


def test_a_lock_that_may_not_be_written_is_said(path: Path) -> None:
    (path.parent / "map.json.lock").mkdir()
    with pytest.raises(StoreError) as caught:
        asyncio.run(FileStore(str(path)).claim())
    expected = f"store file:{path}: expected a file map.json.lock that can be written beside it, got: is a directory"
    assert str(caught.value) == expected


def test_what_is_no_document_is_said_and_never_replaced(path: Path, store: FileStore) -> None:
    path.write_bytes(b'{"format": 1, "shards": ')
    assert refused(store) == f"store file:{path}: expected JSON, got: Input data was truncated"
    with pytest.raises(NotSaved, match="expected JSON"):
        save(store, DOCUMENT, 0)
    assert path.read_bytes() == b'{"format": 1, "shards": '


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_disk_that_refuses_leaves_what_was_there_and_says_so(
    path: Path, store: FileStore, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    save(store, DOCUMENT, 0)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os if step == "fsync" else Path, step, full)
    with pytest.raises(NotSaved, match="expected a file that can be written, got: no space left on device"):
        save(store, later(2), 1)
    monkeypatch.undo()
    assert load(store) == (DOCUMENT, 1)
    assert not (path.parent / "map.json.new").exists()


def test_where_nobody_knows_whether_it_is_on_the_disk_the_same_is_saved_again(
    path: Path, store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(store, DOCUMENT, 0)

    def fails(_path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(file_store, "_sync_directory", fails)
    for _ in range(2):
        with pytest.raises(Unsure, match="expected the directory to be written to disk, got: input/output error"):
            save(store, later(2), 1)
    monkeypatch.undo()
    assert save(store, later(2), 1) == 2
    assert decoded(path.read_bytes(), "it") == later(2)


@pytest.mark.parametrize("then", ["the disk is full", "the file cannot be read", "the directory is gone"])
def test_what_may_have_been_saved_is_never_said_to_be_not_saved(
    path: Path, store: FileStore, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    """Who believes that goes on with the map of before, and after a restart finds the other one."""
    save(store, DOCUMENT, 0)

    def fails(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(file_store, "_sync_directory", fails)
    with pytest.raises(Unsure):
        save(store, later(2), 1)
    if then == "the disk is full":
        monkeypatch.setattr(os, "fsync", fails)
    elif then == "the file cannot be read":
        monkeypatch.setattr(Path, "read_bytes", fails)
    else:
        monkeypatch.setattr(Path, "is_dir", lambda _path: False)
    with pytest.raises(Unsure):
        save(store, later(2), 1)
    monkeypatch.undo()
    assert save(store, later(2), 1) == 2
