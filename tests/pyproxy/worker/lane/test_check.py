"""What is true of all queues between two turns: it is so while requests are in flight, and what breaks it is named."""

import time

import pytest

from bench.bare_lane import BareLane
from protocol.request import encode
from pyproxy.config import Promotion
from pyproxy.messages import GateDirective
from pyproxy.shard_map import Node
from pyproxy.worker.lane.check import Broken
from pyproxy.worker.lane.lane import Backend, Client
from pyproxy.worker.shard.gate import Gate, HoldStats

GET = encode([b"GET", b"k"])
SET = encode([b"SET", b"k", b"v"])
MGET = encode([b"MGET", *(b"k%d" % number for number in range(20))])


@pytest.fixture
def bare() -> BareLane:
    return BareLane(2)


class ShardRouter:
    """All that is looked at of the front of a shard."""

    def __init__(self, gate: Gate[Client]) -> None:
        self.link = "s0"
        self.gate = gate


@pytest.fixture
def front(gate: Gate[Client]) -> ShardRouter:
    return ShardRouter(gate)


@pytest.fixture
def gate() -> Gate[Client]:
    return Gate("s0", Node("127.0.0.1", 7000), Promotion(), HoldStats(), GateDirective("s0", 0), True)


def test_it_holds_in_each_state_of_a_request(bare: BareLane) -> None:
    first, _ = bare.client()
    second, _ = bare.client()
    bare.lane.check()
    first.data_received(GET + MGET)
    second.data_received(MGET + GET[:5])
    bare.lane.check()
    bare.turns.settle()
    bare.lane.check()
    for link in bare.links:
        link.wire.data_received(b"$1\r\nv\r\n" if link.end.take().startswith(GET) else b"")
        bare.lane.check()
    second.connection_lost(None)
    bare.lane.check()
    for link in bare.links:
        link.backends[2, 0].lost("was lost")
        bare.lane.check()


def test_a_client_that_was_forgotten_with_requests_out_is_found(bare: BareLane) -> None:
    client, _ = bare.client()
    client.data_received(GET)
    bare.lane.clients.discard(client)
    with pytest.raises(Broken, match="expected requests in flight to be 0, got 1"):
        bare.lane.check()


def test_a_conversation_that_nobody_holds_is_found(bare: BareLane) -> None:
    client, _ = bare.client()
    client.converse(object())
    bare.lane.check()
    client.conversation = None
    with pytest.raises(Broken, match="it is parked for a conversation that it does not have"):
        bare.lane.check()


def test_a_backend_that_was_forgotten_with_requests_out_is_found(bare: BareLane) -> None:
    client, _ = bare.client()
    client.data_received(GET)
    for link in bare.links:
        link.backends.clear()
    with pytest.raises(Broken, match="nobody will answer a request of it"):
        bare.lane.check()


def test_who_is_held_by_a_gate_that_does_not_know_of_it_is_found(
    bare: BareLane, gate: Gate[Client], front: ShardRouter
) -> None:
    client, _ = bare.client()
    gate.hold(client, 10, 0.0)
    client.hold(front, 0.0)
    bare.lane.check()
    gate.release(client)
    with pytest.raises(Broken, match="it is held, and by no gate"):
        bare.lane.check()


def test_a_gate_that_counts_what_is_not_kept_is_found(bare: BareLane, gate: Gate[Client], front: ShardRouter) -> None:
    bare.links[0].backends[2, 0].guard(front, False, True)
    bare.lane.check()
    gate.hold_replay(10)
    with pytest.raises(Broken, match="s0: expected writes to replay to be 0, got 1"):
        bare.lane.check()


def test_a_gate_that_holds_a_client_that_does_not_know_of_it_is_found(
    bare: BareLane, gate: Gate[Client], front: ShardRouter
) -> None:
    client, _ = bare.client()
    bare.links[0].backends[2, 0].guard(front, False, True)
    gate.hold(client, 10, 0.0)
    client.hold(front, 0.0)
    bare.lane.check()
    client.release()
    with pytest.raises(Broken, match="is held at its gate, and does not know of it"):
        bare.lane.check()


def expired(bare: BareLane, client: Client) -> Backend:
    """Its write is not answered in time -> where it is."""
    link = bare.links[bare.lane.shard_of(b"k")]
    client.data_received(SET)
    bare.turns.settle()
    link.backends[2, 0].expire(time.monotonic() + bare.lane.reply_s + 0.1, False)
    assert client.is_unresolved(link.index)
    bare.lane.check()
    return link.backends[2, 0]


def test_an_unresolved_write_that_is_nowhere_is_found(bare: BareLane) -> None:
    client, _ = bare.client()
    expired(bare, client)
    for link in bare.links:
        link.backends.clear()
    with pytest.raises(Broken, match=r"expected writes that may still be applied to be \{\}, got \{"):
        bare.lane.check()


def test_a_write_that_will_not_be_sent_any_more_is_not_unresolved(bare: BareLane) -> None:
    """Or its client would be kept from reading of a replica for as long as it is connected."""
    client, _ = bare.client()
    for link in bare.links:
        link.wire.pause_writing()
    backend = expired(bare, client)
    backend.requeue_unsent()
    bare.lane.check()
    assert not client.is_unresolved(backend.shard)
