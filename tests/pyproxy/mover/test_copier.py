"""What is sent to the destination for what the source answers. With servers: test_copying.py."""

import pytest

from pyproxy.mover.connection import Connection
from pyproxy.mover.copier import LARGE, Copier, Refused
from pyproxy.mover.dirty import Dirty
from pyproxy.shard_map import Node

NODE = Node("127.0.0.1", 1)


@pytest.fixture
async def source() -> Connection:
    return Connection(NODE, 1.0, 1, None, None)


def copier(has_pexpiretime: bool = True) -> Copier:
    return Copier({}, Dirty(), has_pexpiretime, lambda *_: None, lambda: None)


def bulk(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


def command(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(map(bulk, words))


def restores(names: list[bytes], frames: list[bytes], source: Connection, has_pexpiretime: bool = True) -> bytes:
    refused: list[Refused] = []
    done, pieces = copier(has_pexpiretime)._restores(names, frames, source, refused)
    assert (done, refused) == (names, [])
    return b"".join(pieces)


async def test_a_value_is_restored_as_it_came_with_the_time_of_its_end(source: Connection) -> None:
    frames = [bulk(b"\0one"), b":-1\r\n", bulk(b"\0two"), b":1800000000123\r\n"]
    assert restores([b"a", b"bb"], frames, source) == (
        command(b"RESTORE", b"a", b"0", b"\0one", b"ABSTTL", b"REPLACE")
        + command(b"RESTORE", b"bb", b"1800000000123", b"\0two", b"ABSTTL", b"REPLACE")
    )


async def test_without_pexpiretime_it_is_the_time_of_the_source_and_what_is_left(source: Connection) -> None:
    frames = [b"*2\r\n" + bulk(b"1800000000") + bulk(b"5999"), bulk(b"\0one"), b":7\r\n"]
    expected = command(b"RESTORE", b"a", b"1800000000012", b"\0one", b"ABSTTL", b"REPLACE")
    assert restores([b"a"], frames, source, has_pexpiretime=False) == expected


@pytest.mark.parametrize(
    "frames",
    [[b"$-1\r\n", b":-2\r\n"], [bulk(b"\0one"), b":-2\r\n"], [b"$-1\r\n", b":-1\r\n"]],
    ids=["it was not there", "its time was over in between", "it was made in between"],
)
async def test_what_is_gone_is_deleted(source: Connection, frames: list[bytes]) -> None:
    """What was made in between has been told, and is copied after this."""
    assert restores([b"a"], frames, source) == command(b"UNLINK", b"a")


async def test_a_large_value_is_not_copied_to_be_sent(source: Connection) -> None:
    value = bulk(b"\0" + b"x" * LARGE)
    refused: list[Refused] = []
    _, pieces = copier()._restores([b"a"], [value, b":-1\r\n"], source, refused)
    assert any(piece is value for piece in pieces)


@pytest.mark.parametrize("frames", [[b"-ERR no\r\n", b":-1\r\n"], [bulk(b"\0one"), b"-ERR no\r\n"]])
async def test_what_the_source_refuses_is_said_and_leaves_the_destination_as_it_is(
    source: Connection, frames: list[bytes]
) -> None:
    refused: list[Refused] = []
    done, pieces = copier()._restores([b"a"], frames, source, refused)
    assert (done, b"".join(pieces)) == ([], b"")
    assert refused == [Refused(b"a", source, b"DUMP", b"ERR no")]
