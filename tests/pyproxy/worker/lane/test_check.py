"""What is true of all queues between two turns: it is so while requests are out, and what breaks it is named."""

import time

import pytest

from bench.lane_alone import LaneAlone
from protocol.request import encode
from pyproxy.config import Promotion
from pyproxy.messages import Gate
from pyproxy.shard_map import Node
from pyproxy.worker.lane.lane import Backend, Broken, Client
from pyproxy.worker.shard.gate import Gate as ShardGate
from pyproxy.worker.shard.gate import Holds

GET = encode([b"GET", b"k"])
SET = encode([b"SET", b"k", b"v"])
MGET = encode([b"MGET", *(b"k%d" % number for number in range(20))])


@pytest.fixture
def alone() -> LaneAlone:
    return LaneAlone(2)


class ShardRouter:
    """All that is looked at of the front of a shard."""

    def __init__(self, gate: ShardGate[Client]) -> None:
        self.link = "s0"
        self.gate = gate


@pytest.fixture
def front(gate: ShardGate[Client]) -> ShardRouter:
    return ShardRouter(gate)


@pytest.fixture
def gate() -> ShardGate[Client]:
    return ShardGate("s0", Node("127.0.0.1", 7000), Promotion(), Holds(), Gate("s0", 0), True)


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
    client.conversation = None
    with pytest.raises(Broken, match="it is parked for a conversation that it does not have"):
        alone.lane.check()


def test_a_backend_that_was_forgotten_with_requests_out_is_found(alone: LaneAlone) -> None:
    client, _ = alone.client()
    client.data_received(GET)
    for link in alone.links:
        link.backends.clear()
    with pytest.raises(Broken, match="nobody will answer a request of it"):
        alone.lane.check()


def test_who_is_held_by_a_gate_that_does_not_know_of_it_is_found(
    alone: LaneAlone, gate: ShardGate[Client], front: ShardRouter
) -> None:
    client, _ = alone.client()
    gate.park(client, 10, 0.0)
    client.hold(front, 0.0)
    alone.lane.check()
    gate.unpark(client)
    with pytest.raises(Broken, match="it is held, and by no gate"):
        alone.lane.check()


def test_a_gate_that_counts_what_is_not_kept_is_found(
    alone: LaneAlone, gate: ShardGate[Client], front: ShardRouter
) -> None:
    alone.links[0].backends[2, 0].guard(front, False, True)
    alone.lane.check()
    gate.keep(10)
    with pytest.raises(Broken, match="s0: expected writes that are kept to be 0, got 1"):
        alone.lane.check()


def test_a_gate_that_holds_a_client_that_does_not_know_of_it_is_found(
    alone: LaneAlone, gate: ShardGate[Client], front: ShardRouter
) -> None:
    client, _ = alone.client()
    alone.links[0].backends[2, 0].guard(front, False, True)
    gate.park(client, 10, 0.0)
    client.hold(front, 0.0)
    alone.lane.check()
    client.let_go()
    with pytest.raises(Broken, match="is held at its gate, and does not know of it"):
        alone.lane.check()


def expired(alone: LaneAlone, client: Client) -> Backend:
    """Its write is not answered in time -> where it is."""
    link = alone.links[alone.lane.shard_of(b"k")]
    client.data_received(SET)
    alone.turns.settle()
    link.backends[2, 0].expire(time.monotonic() + alone.lane.reply_s + 0.1, False)
    assert client.is_unresolved(link.index)
    alone.lane.check()
    return link.backends[2, 0]


def test_an_unresolved_write_that_is_nowhere_is_found(alone: LaneAlone) -> None:
    client, _ = alone.client()
    expired(alone, client)
    for link in alone.links:
        link.backends.clear()
    with pytest.raises(Broken, match=r"expected writes that may still be applied to be \{\}, got \{"):
        alone.lane.check()


def test_a_write_that_will_not_be_sent_any_more_is_not_unresolved(alone: LaneAlone) -> None:
    """Or its client would be kept from reading of a replica for as long as it is connected."""
    client, _ = alone.client()
    for link in alone.links:
        link.wire.pause_writing()
    backend = expired(alone, client)
    backend.keep_unsent()
    alone.lane.check()
    assert not client.is_unresolved(backend.shard)
