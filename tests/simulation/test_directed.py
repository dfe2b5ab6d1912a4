"""Histories that are written, not drawn: faults that were found, here or elsewhere, each by its shortest way."""

import gc
from collections.abc import Callable

import pytest

from tests.simulation.client import Asked, Client
from tests.simulation.rest import rest
from tests.simulation.server import Connection, Server
from tests.simulation.setting import Setting, keys
from tests.simulation.world import World, history

S0, S1 = "s0", "s1"


def key(shard: str, number: int = 0) -> bytes:
    return keys()[shard][number]


def client_of(world: World, proto: int = 2) -> Client:
    """One whose connections to all shards are there."""
    client = world.open()
    client.hello(proto)
    for shard in keys():
        client.get(shard, key(shard))
    world.flow(10)
    assert not client.waiting
    return client


def run_until(world: World, word: bytes) -> list[Connection]:
    """Everything goes on until servers have answered this, and the proxy has not heard it -> on which connections."""
    for _ in range(50):
        world.loop.settle()
        while world.network.connecting:
            world.answer_connecting(0)
        for connection in world.connections:
            connection.server.serve(connection, 1)
        if found := [each for each in world.connections if each.last == word and each.outbox]:
            return found
        for connection in world.connections:
            while world.deliver(connection):
                pass
    raise AssertionError(f"expected {word!r} at a server, got {[each.last for each in world.connections]}")


def verdicts(*asked: Asked) -> list[str]:
    return [each.verdict for each in asked]


@pytest.mark.parametrize("aof", [False, True], ids=["WAIT", "WAITAOF"])
def test_a_client_that_leaves_while_it_waits_for_replicas_harms_nobody(aof: bool) -> None:
    """Its servers answer in the turn in which it leaves, and what is asked then is answered at once, and nobody's."""
    with history(Setting()) as world:
        other, client = client_of(world), client_of(world)
        client.set(S0, key(S0))
        client.set(S1, key(S1))
        world.flow()
        client.wait(1, 300, aof)
        world.send(client)
        fenced = run_until(world, b"SPUBLISH")
        for connection in fenced:
            world.deliver(connection)
        world.leave(client, "reset")
        world.send(client)
        world.loop.turn()
        other.ping()
        world.send(other)  # so what is asked in the next turn leaves in the same
        world.loop.turn()
        catch_up(world)
        for connection in fenced:
            connection.server.serve(connection, 10)
            world.deliver(connection)
        world.loop.settle()
        world.check()
        asked = other.get(S0, key(S0))
        rest(world)
        assert verdicts(asked) == ["done"]


def test_a_client_and_the_connection_that_it_leased_may_go_in_the_same_turn() -> None:
    """Nobody is left to be told, and nothing is said of it in the log."""
    with history(Setting()) as world:
        client = client_of(world)
        client.block(S0, [key(S0)], watch=True)
        world.send(client)
        for connection in run_until(world, b"WATCH"):
            connection.reset()
            connection.outbox.clear()
            world.deliver(connection)
        world.leave(client, "reset")
        world.send(client)
        world.loop.settle()
        gc.collect()
        world.check()
        rest(world)


def test_a_connection_that_is_set_up_in_the_turn_in_which_its_deadline_passes_is_no_bug() -> None:
    with history(Setting()) as world:
        client = world.open()
        asked = client.get(S0, key(S0))
        world.send(client)
        world.loop.settle()
        while world.network.connecting:
            world.answer_connecting(0)
        world.loop.settle()
        for connection in world.connections:
            connection.server.serve(connection, 10)
        world.loop.sleep(0.5)
        world.loop.turn()
        for connection in world.connections:
            world.deliver(connection)
        world.loop.settle()
        world.check()
        rest(world)
        assert verdicts(asked) != [""]


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 5, 6])
def test_a_header_within_an_array_may_come_in_two_pieces(cut: int) -> None:
    """What was searched of it in vain is not left out of the number behind it, nor is the next reply taken for that."""
    with history(Setting()) as world:
        client, other = client_of(world), client_of(world)
        client.set(S0, key(S0), 50)
        world.flow()
        block, read = client.block(S0, [key(S0), key(S0, 1)]), other.get(S0, key(S0))
        world.send(client)
        world.send(other)
        world.loop.settle()
        (connection,) = [each for each in world.nodes["s0", 1].connections if each.last == b"SET"]
        connection.server.serve(connection, 100)
        header = connection.outbox.index(b"$", connection.outbox.index(b"*4"))
        world.deliver(connection, header + cut)
        rest(world)
        assert verdicts(block, read) == ["done", "done"]


def test_what_was_sent_before_memory_failed_is_not_sent_again() -> None:
    """A turn's requests leave in two pieces, as one of them is large; the second piece cannot be made."""
    with history(Setting(faulty=True)) as world:
        client = client_of(world)
        (connection,) = [each for each in world.nodes["s0", 1].connections if each.last == b"GETRANGE"]
        assert connection.transport is not None
        connection.transport.fails = 2
        asked = [client.set(S0, key(S0), 20_000), client.append(S0, key(S0)), client.append(S0, key(S0, 1))]
        world.send(client)
        world.loop.settle()
        connection.server.serve(connection, 10)  # it has the first piece, though the connection is gone
        rest(world)
        assert "" not in verdicts(*asked)


def test_no_answer_goes_to_another_request_when_memory_fails() -> None:
    """The connection was found unfit while some of a turn's requests were on it: none of the answers is believed."""
    with history(Setting(faulty=True)) as world:
        client, other = client_of(world), client_of(world)
        (connection,) = [each for each in world.nodes["s0", 1].connections if each.last == b"GETRANGE"]
        assert connection.transport is not None
        connection.transport.fails = 2
        client.set(S0, key(S0), 20_000)
        client.get(S0, key(S0, 1))
        world.send(client)
        world.flow()
        other.append(S0, key(S0, 1))
        other.get(S0, key(S0))
        world.flow()
        rest(world)


def test_who_waits_at_a_congested_door_is_served_after_the_failover() -> None:
    """RESP3, so that nobody else has a reason to connect to the new primary."""
    with history(Setting(high=4000, window=300, congested_at=20_000)) as world:
        first, second, third = (client_of(world, 3) for _ in range(3))
        world.nodes["s0", 1].stalled = True
        first.set(S0, key(S0), 300_000)
        world.send(first)
        world.loop.settle()
        second.set(S0, key(S0, 1), 300_000)
        world.send(second)
        world.loop.settle()
        asked = third.get(S0, key(S0))
        world.send(third)
        world.loop.settle()
        world.parent.promote(0, zombie=True)
        world.loop.settle()
        world.parent.open(0)
        rest(world)
        assert verdicts(asked) != [""]


def test_who_waits_at_a_congested_door_waits_no_longer_than_a_request_may() -> None:
    """The server stands still for ever, and nothing else happens."""
    with history(Setting(high=4000, window=300, congested_at=20_000)) as world:
        first, second, third = (client_of(world, 3) for _ in range(3))
        world.nodes["s0", 1].stalled = True
        for client in (first, second):
            client.set(S0, key(S0), 300_000)
            world.send(client)
            world.loop.settle()
        asked = third.get(S0, key(S0))
        world.send(third)
        world.advance(10.0)  # and looks whether anybody waits for too long
        assert verdicts(asked) != [""]
        rest(world)


@pytest.mark.parametrize("reads", ["primary", "prefer-replica"])
def test_a_write_that_may_still_arrive_is_not_denied_by_a_replica(reads: str) -> None:
    """-UNCERTAIN says: read the key before writing again. What is read then must hold."""
    with history(Setting(reads=reads)) as world:
        client = client_of(world)
        client.append(S0, key(S0))
        world.flow()
        catch_up(world)
        primary = world.nodes["s0", 1]
        primary.stalled = True
        write = client.append(S0, key(S0))
        world.send(client)
        world.advance(0.7)
        assert verdicts(write) == ["uncertain"]
        read = client.get(S0, key(S0))
        elsewhere(world, lambda server: server is not primary, 1.2)
        primary.stalled = False
        world.flow()
        rest(world)
        assert verdicts(read) != [""]


def catch_up(world: World) -> None:
    for server in world.nodes.values():
        server.copy(1 << 30)


def elsewhere(world: World, whom: Callable[[Server], bool], seconds: float) -> None:
    """Time passes, and those servers serve."""
    until = world.loop.now + seconds
    while world.loop.now < until:
        world.flow(3, whom)
        world.advance(0.05)
