from pathlib import Path

import pytest

from pyproxy.control.failover.state_file import SavedState, StateFile
from pyproxy.control.failover.transitions import PersistentState
from pyproxy.shard_map import Node

KNOWN = SavedState(
    {"s0": PersistentState(3, Node("127.0.0.1", 7001), "abc", 17.0), "s1": PersistentState(0, Node("::1", 7002))},
    {"notify-keyspace-events": "xE"},
)


def test_what_was_saved_is_loaded_by_the_next_one(tmp_path: Path) -> None:
    path = str(tmp_path / "state.json")
    StateFile(path).save(KNOWN)
    assert StateFile(path).load() == KNOWN


def test_without_a_path_nothing_is_kept(tmp_path: Path) -> None:
    StateFile("").save(KNOWN)
    assert StateFile("").load() == SavedState()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_there_yet_is_no_trouble(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert StateFile(str(tmp_path / "state.json")).load() == SavedState()
    assert capsys.readouterr().err == ""


DEEP = b'{"shards":' * 100_000


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"s0": 1}', b"\xff\xfe", b'{"shards": {"s0": {"epoch": 3}}}', DEEP]
)
def test_a_file_that_is_no_state_counts_as_none_and_is_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(content)
    file = StateFile(str(path))
    assert file.load() == SavedState()
    file.save(KNOWN)
    assert StateFile(str(path)).load() == KNOWN


def test_what_cannot_be_written_leaves_the_old_state_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    file = StateFile(str(path))
    file.save(KNOWN)
    (tmp_path / "state.json.new").mkdir()  # in the way
    file.save(SavedState())
    assert StateFile(str(path)).load() == KNOWN


def test_what_is_known_already_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    file = StateFile(str(path))
    file.save(KNOWN)
    path.unlink()
    file.save(SavedState(dict(KNOWN.shards), dict(KNOWN.settings)))
    assert not path.exists()
