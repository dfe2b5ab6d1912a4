"""When requests leave: the turns of a lane, in this process."""

import time

import pytest

from bench.bare_lane import BareLane, End
from protocol.request import encode
from pyproxy.worker.lane.lane import Client

GET = encode([b"GET", b"k"])
SLOW = 200
"""So often a machine may take longer over a few calls than a request waits for others."""


@pytest.fixture
def bare() -> BareLane:
    return BareLane(1)


@pytest.fixture
def clients(bare: BareLane) -> list[tuple[Client, End]]:
    return [bare.client() for _ in range(3)]


def sent(bare: BareLane) -> bytes:
    return bare.links[0].end.take()


def answer_all(bare: BareLane, requests: bytes) -> None:
    bare.links[0].wire.data_received(b"$-1\r\n" * requests.count(GET))
    bare.turns.settle()


def test_a_request_that_is_alone_leaves_in_the_next_turn(bare: BareLane, clients: list[tuple[Client, End]]) -> None:
    clients[0][0].data_received(GET)
    assert sent(bare) == b""
    bare.turns.turn()
    assert sent(bare) == GET


def test_requests_that_come_one_after_another_leave_in_one_write(
    bare: BareLane, clients: list[tuple[Client, End]]
) -> None:
    (first, _), (second, _), (third, end) = clients
    for _ in range(SLOW):
        first.data_received(GET)
        second.data_received(GET)
        bare.turns.turn()
        early = sent(bare)
        third.data_received(GET)
        bare.turns.settle()
        last = sent(bare)
        answer_all(bare, early + last)
        assert end.take() == b"$-1\r\n"
        if not early:
            assert last == GET * 3
            return
    raise AssertionError(f"in each of {SLOW} attempts the first ones left at once")


def test_requests_leave_though_more_and_more_comes(bare: BareLane, clients: list[tuple[Client, End]]) -> None:
    deadline = time.monotonic() + 10
    waiting = b""
    while not waiting and time.monotonic() < deadline:
        for client, _ in clients:
            client.data_received(GET)
        bare.turns.turn()
        waiting = sent(bare)
    assert waiting.count(GET) >= 3
