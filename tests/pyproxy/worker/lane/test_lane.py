"""When requests leave: the turns of a lane, in this process."""

import time

import pytest

from bench.lane_alone import End, LaneAlone
from protocol.request import encode
from pyproxy.worker.lane.lane import Client

GET = encode([b"GET", b"k"])
SLOW = 200
"""So often a machine may take longer over a few calls than a request waits for others."""


@pytest.fixture
def alone() -> LaneAlone:
    return LaneAlone(1)


@pytest.fixture
def clients(alone: LaneAlone) -> list[tuple[Client, End]]:
    return [alone.client() for _ in range(3)]


def sent(alone: LaneAlone) -> bytes:
    return alone.links[0].end.take()


def answer_all(alone: LaneAlone, requests: bytes) -> None:
    alone.links[0].wire.data_received(b"$-1\r\n" * requests.count(GET))
    alone.turns.settle()


def test_a_request_that_is_alone_leaves_in_the_next_turn(alone: LaneAlone, clients: list[tuple[Client, End]]) -> None:
    clients[0][0].data_received(GET)
    assert sent(alone) == b""
    alone.turns.turn()
    assert sent(alone) == GET


def test_requests_that_come_one_after_another_leave_in_one_write(
    alone: LaneAlone, clients: list[tuple[Client, End]]
) -> None:
    (first, _), (second, _), (third, end) = clients
    for _ in range(SLOW):
        first.data_received(GET)
        second.data_received(GET)
        alone.turns.turn()
        early = sent(alone)
        third.data_received(GET)
        alone.turns.settle()
        last = sent(alone)
        answer_all(alone, early + last)
        assert end.take() == b"$-1\r\n"
        if not early:
            assert last == GET * 3
            return
    raise AssertionError(f"in each of {SLOW} attempts the first ones left at once")


def test_requests_leave_though_more_and_more_comes(alone: LaneAlone, clients: list[tuple[Client, End]]) -> None:
    deadline = time.monotonic() + 10
    waiting = b""
    while not waiting and time.monotonic() < deadline:
        for client, _ in clients:
            client.data_received(GET)
        alone.turns.turn()
        waiting = sent(alone)
    assert waiting.count(GET) >= 3
