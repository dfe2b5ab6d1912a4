"""Which tests `./run test --fast` leaves out: those that start real servers, each of them, and no others."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from pyproxy import fleet
from pyproxy.fleet import Fleet
from tests.selection import NO_SERVER, reaches_a_server


def _in_its_body() -> None:
    Fleet(shards=1, replicas=0)


def _by_the_name_of_its_module() -> None:
    fleet.Fleet(shards=1, replicas=0)


def _in_an_inner_function() -> Callable[[], Fleet]:
    return lambda: Fleet(shards=1, replicas=0)


def _by_another_function() -> None:
    _in_its_body()


@contextmanager
def _in_a_context() -> Iterator[None]:
    with Fleet(shards=1, replicas=0):
        yield


class _Rig:
    def start(self) -> None:
        _in_its_body()


class _Derived(_Rig):
    pass


def _by_a_method() -> None:
    _Derived().start()


def _by_annotation_alone(fleet: Fleet) -> Fleet:
    return fleet


def _by_itself_again() -> None:
    _by_itself_again()


@pytest.mark.parametrize(
    "starts",
    [
        _in_its_body,
        _by_the_name_of_its_module,
        _in_an_inner_function,
        _by_another_function,
        _in_a_context,
        _by_a_method,
    ],
)
def test_what_starts_a_server_is_seen_however_it_does(starts: Callable[[], None]) -> None:
    assert reaches_a_server(starts)


@pytest.mark.parametrize("starts_none", [_by_annotation_alone, _by_itself_again, sys.exit])
def test_what_starts_none_is_left_in(starts_none: Callable[[], None]) -> None:
    assert not reaches_a_server(starts_none)


def test_who_is_given_a_server_by_a_fixture_is_marked(request: pytest.FixtureRequest, server: fleet.Server) -> None:
    assert server.ask("PING") == b"PONG"
    assert request.node.get_closest_marker("servers") is not None


def test_who_is_given_none_is_not_marked(request: pytest.FixtureRequest) -> None:
    assert request.node.get_closest_marker("servers") is None


def test_a_test_that_is_not_marked_can_start_none() -> None:
    """However it goes about it: here in a program whose text nobody reads."""
    program = "from pyproxy.fleet import Fleet\nwith Fleet(shards=1, replicas=0): pass"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False)
    assert ended.returncode == 1
    assert f"expected a server binary, got '{NO_SERVER}'" in ended.stderr
