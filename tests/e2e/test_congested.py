"""A server that does not read: whoever waits at its door goes on when it reads, after a promotion, or at a deadline."""

from collections.abc import Iterator

import pytest

from pyproxy.fleet import Fleet, Server, wait_until
from tests.e2e.alone import Alone, promote
from tests.e2e.rig import PATIENCE_S, PATIENT, Keys, Talk, error

CONGESTED = 1
"""The index of the shard whose primary does not read."""

LARGE = b"x" * (20 << 20)


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with Fleet(shards=2, replicas=1) as fleet:
        yield fleet


@pytest.fixture
def old(fleet: Fleet) -> Iterator[Server]:
    server = fleet.shards[CONGESTED].primary
    yield server
    if server.running:
        server.resume()


@pytest.fixture
def new(fleet: Fleet) -> Server:
    return fleet.shards[CONGESTED].replicas[0]


def fill(worker: Alone, first: Talk, second: Talk, key: str) -> None:
    """More waits for the server than may, once both are out."""
    for talk in (first, second):
        talk.send(("SET", key, LARGE))
    wait_until("both to be out", lambda: worker.count("inflight") == 2, lambda: "", PATIENCE_S)


@pytest.mark.parametrize(("protocol", "database"), [(2, 0), (3, 0), (2, 1)])
def test_who_waits_at_the_door_of_a_replaced_primary_is_served_by_the_new_one(
    fleet: Fleet, old: Server, new: Server, protocol: int, database: int
) -> None:
    """In any protocol and database: the connections of some are made again only when somebody asks."""
    with Alone(fleet, timeouts=PATIENT, promotion={"promoter": "replicaof"}) as worker:
        key, other = Keys(worker).on(CONGESTED, 2)
        with Talk(worker.port) as first, Talk(worker.port) as second, Talk(worker.port) as waiting:
            for talk in (first, second, waiting):
                talk.ask("HELLO", protocol)
                assert talk.ask("SELECT", database) == b"OK"
            assert waiting.ask("SET", other, "v") == b"OK"
            wait_until("it to be replicated", lambda: has(new, database, other), lambda: "", PATIENCE_S)
            old.pause()
            fill(worker, first, second, key)
            waiting.send(("GET", other))
            wait_until("it to be taken in", lambda: worker.count("commands") >= 9, lambda: "", PATIENCE_S)
            promote(None, new)
            worker.close(CONGESTED)
            worker.point_at(CONGESTED, new)
            worker.open(CONGESTED)
            assert waiting.read() == b"v"


def has(server: Server, database: int, key: str) -> bool:
    keyspace = server.ask("INFO", "keyspace")
    assert isinstance(keyspace, bytes)
    return f"db{database}:".encode() in keyspace


def test_who_waits_at_the_door_waits_no_longer_than_for_a_reply(fleet: Fleet, old: Server) -> None:
    timeouts = {"reply_s": 0.4, "silence_s": PATIENCE_S, "connect_s": PATIENCE_S}
    with Alone(fleet, timeouts=timeouts) as worker:
        key, other = Keys(worker).on(CONGESTED, 2)
        with Talk(worker.port) as first, Talk(worker.port) as second, Talk(worker.port) as waiting:
            assert waiting.ask("GET", other) is None
            old.pause()
            fill(worker, first, second, key)
            said = error(waiting.ask("GET", other))
            assert said.startswith("TRYAGAIN ")
            assert "has read nothing more for 0.4 s, applied=no" in said
            assert error(waiting.ask("MGET", other, key)).startswith("TRYAGAIN "), "so does what comes after it"
            old.resume()
            wait_until("it to read on", lambda: waiting.ask("GET", other) is None, lambda: "", PATIENCE_S)
