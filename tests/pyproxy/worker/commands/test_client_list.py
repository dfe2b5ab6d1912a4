"""CLIENT LIST of very many clients."""

import re
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from pyproxy.fleet import Proxy
from pyproxy.slices import BATCH
from pyproxy.worker.commands import local_client
from pyproxy.worker.commands.client_list import MANY
from tests.e2e.rig import Connection, error
from tests.pyproxy.worker.commands.stand_ins import StandInClient


@pytest.fixture
def conns(proxy10: Proxy) -> Iterator[list[Connection]]:
    """More than are listed at once."""
    with ExitStack() as stack:
        yield [stack.enter_context(Connection(proxy10.port)) for _ in range(MANY + 1)]


def listed(conn: Connection, *words: str | bytes | int) -> list[bytes]:
    """The names of those that are listed."""
    text = conn.ask("CLIENT", "LIST", *words)
    assert isinstance(text, bytes)
    return re.findall(rb" name=(\w+) ", text)


def named(conns: list[Connection]) -> list[bytes]:
    names = [b"n%d" % number for number in range(len(conns))]
    for conn, name in zip(conns, names, strict=True):
        assert conn.ask("CLIENT", "SETNAME", name) == b"OK"
    return names


def test_each_is_listed_once(conns: list[Connection]) -> None:
    names = named(conns)
    assert sorted(listed(conns[0])) == sorted(names)
    assert sorted(listed(conns[0], "TYPE", "normal")) == sorted(names)
    assert listed(conns[0], "ID", conns[5].ask("CLIENT", "ID"), 999_999_999) == names[5:6]  # type: ignore[arg-type]


def test_it_is_answered_in_its_order(conns: list[Connection]) -> None:
    named(conns)
    conns[0].send(["SET", "k", "v"], ["CLIENT", "LIST"], ["GET", "k"])
    first, text, last = conns[0].reads(3)
    assert (first, last) == (b"OK", b"v")
    assert isinstance(text, bytes)
    assert text.count(b"\n") > MANY


def test_what_is_wrong_with_it_is_said_as_with_few(conns: list[Connection]) -> None:
    for words, line in (
        (["FOO"], "ERR syntax error"),
        (["TYPE", "bad"], "ERR Unknown client type 'bad'"),
        (["ID", "x"], "ERR Invalid client ID"),
    ):
        assert error(conns[0].ask("CLIENT", "LIST", *words)) == line


def test_no_step_has_more_than_its_share() -> None:
    lines: list[bytes] = []
    steps = list(local_client.described([StandInClient(id=number) for number in range(10_000)], 110.0, lines))
    assert max(steps) <= BATCH
    assert sum(steps) == len(lines) == 10_000
