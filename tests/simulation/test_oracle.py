"""That the oracle sees it: histories in which a server, or the proxy, does what it must not."""

import pytest

from pyproxy.worker.lane.lane import BUILD
from tests.simulation.client import Client
from tests.simulation.oracle import Broken
from tests.simulation.rest import rest
from tests.simulation.server import Connection, Server
from tests.simulation.setting import Setting
from tests.simulation.test_directed import S0, client_of, key
from tests.simulation.world import World, history


def connection_of(world: World, shard: str = S0) -> Connection:
    """To its primary, shared by all clients in RESP2."""
    (found,) = [each for each in world.nodes[shard, 1].connections if each.last == b"GETRANGE"]
    return found


def test_an_answer_of_another_request_is_seen() -> None:
    with history(Setting()) as world:
        client = client_of(world)
        client.append(S0, key(S0))
        client.get(S0, key(S0))
        world.send(client)
        world.loop.settle()
        connection = connection_of(world)
        connection.server.serve(connection, 10)
        first, second = b":5\r\n", b"$5\r\nc0.4;\r\n"
        assert connection.outbox == first + second
        connection.outbox[:] = second + first
        with pytest.raises(Broken, match="is not its answer"):
            rest(world)


def test_a_write_that_is_done_twice_is_seen() -> None:
    with history(Setting()) as world:
        client = client_of(world)
        client.append(S0, key(S0))
        world.send(client)
        world.loop.settle()
        connection_of(world).inbox *= 2
        with pytest.raises(Broken, match="done \\[2\\] times"):
            world.flow()
            rest(world)


def test_a_refusal_of_what_was_done_is_seen() -> None:
    """It is looked at again when all is at rest."""
    with history(Setting()) as world:
        client = client_of(world)
        connection, server = connection_of(world, "s2"), world.nodes["s2", 1]
        server.refuses = "NOREPLICAS"
        refused = client.append("s2", key("s2"))
        world.send(client)
        world.loop.settle()
        sent = bytes(connection.inbox)
        world.flow()
        assert refused.verdict == "no"
        server.refuses = ""
        connection.inbox += sent  # it arrives once more
        server.serve(connection, 10)
        connection.outbox.clear()
        with pytest.raises(Broken, match="done \\[1\\] times, and was told b'-NOREPLICAS"):
            rest(world)


def test_a_read_that_lacks_what_its_client_was_told_is_done_is_seen() -> None:
    with history(Setting()) as world:
        client = client_of(world)
        client.append(S0, key(S0))
        world.flow()
        world.nodes["s0", 1].data.clear()
        client.get(S0, key(S0))
        with pytest.raises(Broken, match=r"lacks b'c0\.4'"):
            world.flow()


def test_a_write_that_appears_after_another_server_has_denied_it_is_seen() -> None:
    with history(Setting()) as world:
        client = client_of(world)
        server = world.nodes["s0", 1]
        server.stalled = True
        client.append(S0, key(S0))
        world.send(client)
        world.advance(0.7)
        server.stalled = False
        server.name, name = "another", server.name
        read = client.get(S0, key(S0))
        connection = connection_of(world)
        world.send(client)
        world.loop.settle()
        held = bytes(connection.inbox)
        write, _, asked = held.partition(b"*4\r\n")
        connection.inbox[:] = b"*4\r\n" + asked
        server.serve(connection, 10)
        server.name = name
        connection.outbox[:0] = b":1\r\n"  # an answer in the place of that to the write
        while world.deliver(connection):
            pass
        world.loop.settle()
        world.read(client)
        assert read.verdict == "done"
        connection.inbox += write
        server.serve(connection, 10)
        connection.outbox.clear()
        with pytest.raises(Broken, match="which was not there when another was asked"):
            rest(world)


def test_a_client_that_is_never_answered_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    with history(Setting()) as world:
        client = client_of(world)
        monkeypatch.setattr(Server, "serve", lambda *_: 0)
        client.get(S0, key(S0))
        monkeypatch.setattr(Client, "read", lambda *_: [])
        with pytest.raises(Broken, match="expected that everybody has all answers"):
            rest(world)


def test_a_client_that_waits_for_too_long_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    with history(Setting()) as world:
        client = client_of(world)
        monkeypatch.setattr(Client, "read", lambda *_: [])
        client.get(S0, key(S0))
        world.send(client)
        with pytest.raises(Broken, match=r"c0 waits for get 4 since [89]\.\d s"):
            world.advance(10.0)


@pytest.mark.skipif(
    BUILD == "checked", reason="that build ends the process at such a count, before the oracle is asked"
)
def test_what_is_left_over_is_seen() -> None:
    with history(Setting()) as world:
        world.worker._routers[0].gate.hold_replay(10)
        with pytest.raises(Broken, match=r"nothing is in flight.*hold requests: 1, hold bytes: 10, s0 replays: 1"):
            rest(world)


def test_a_count_of_replicas_that_is_too_high_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    with history(Setting()) as world:
        client = client_of(world)
        client.append(S0, key(S0))
        world.flow()
        client.wait(1, 50)
        monkeypatch.setattr(Server, "_wait", lambda *_: b":1\r\n")
        with pytest.raises(Broken, match="WAIT says 1, and 0 replicas"):
            world.flow(10)
