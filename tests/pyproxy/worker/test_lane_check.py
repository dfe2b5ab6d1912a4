"""What is true of all queues between two turns: it is so while requests are out, and what breaks it is named."""

import pytest

from bench.lane_alone import LaneAlone
from protocol.request import encode
from pyproxy.worker.lane import Broken

GET = encode([b"GET", b"k"])
MGET = encode([b"MGET", *(b"k%d" % number for number in range(20))])


@pytest.fixture
def alone() -> LaneAlone:
    return LaneAlone(2)


def test_it_holds_in_each_state_of_a_request(alone: LaneAlone) -> None:
    first, _ = alone.client()
    second, _ = alone.client()
    alone.lane.check()
    first.data_received(GET + MGET)
    second.data_received(MGET + GET[:5])
    alone.lane.check()
    alone.turns.settle()
    alone.lane.check()
    for link in alone.links:
        link.wire.data_received(b"$1\r\nv\r\n" if link.end.take().startswith(GET) else b"")
        alone.lane.check()
    second.connection_lost(None)
    alone.lane.check()
    for link in alone.links:
        link.backends[2, 0].lost("was lost")
        alone.lane.check()


def test_a_client_that_was_forgotten_with_requests_out_is_found(alone: LaneAlone) -> None:
    client, _ = alone.client()
    client.data_received(GET)
    alone.lane.clients.discard(client)
    with pytest.raises(Broken, match="expected requests in flight to be 0, got 1"):
        alone.lane.check()


def test_a_conversation_that_nobody_holds_is_found(alone: LaneAlone) -> None:
    client, _ = alone.client()
    client.converse(object())
    alone.lane.check()
    client.talk = None
    with pytest.raises(Broken, match="it is parked for a conversation that it does not have"):
        alone.lane.check()


def test_a_backend_that_was_forgotten_with_requests_out_is_found(alone: LaneAlone) -> None:
    client, _ = alone.client()
    client.data_received(GET)
    for link in alone.links:
        link.backends.clear()
    with pytest.raises(Broken, match="nobody will answer a request of it"):
        alone.lane.check()
