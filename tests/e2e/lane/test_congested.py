"""A server that does not read: whoever waits at its door goes on when it reads, after a promotion, or at a deadline."""

import contextlib
from collections.abc import Callable, Iterator

import pytest

from pyproxy.fleet import Fleet, Server, wait_until
from tests.e2e.bare_worker import BareWorker, promote
from tests.e2e.rig import PATIENCE_S, PATIENT, Connection, Keys, error

CONGESTED = 1
"""The index of the shard whose primary does not read."""

BLOCK, CLIENTS = b"x" * 900_000, 40
"""Not so large that they would go on a connection of their own; and more of them than may wait for a server."""


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


@pytest.fixture
def crowd() -> Iterator[Callable[..., None]]:
    """Has so many clients ask a server that does not read for so much that the last of them wait at its door."""
    with contextlib.ExitStack() as clients:

        def ask(worker: BareWorker, key: str, protocol: int = 2, database: int = 0) -> None:
            for _ in range(CLIENTS):
                conn = clients.enter_context(Connection(worker.port))
                conn.send(("HELLO", protocol), ("SELECT", database), ("SET", key, BLOCK))

        yield ask


@pytest.mark.parametrize(("protocol", "database"), [(2, 0), (3, 0), (2, 1)])
def test_who_waits_at_the_door_of_a_replaced_primary_is_served_by_the_new_one(
    fleet: Fleet, old: Server, new: Server, crowd: Callable[..., None], protocol: int, database: int
) -> None:
    """In any protocol and database: the connections of some are made again only when somebody asks."""
    with BareWorker(fleet, timeouts=PATIENT, promotion={"promoter": "replicaof"}) as worker:
        key, other = Keys(worker).on(CONGESTED, 2)
        with Connection(worker.port) as waiting:
            waiting.ask("HELLO", protocol)
            assert waiting.ask("SELECT", database) == b"OK"
            assert waiting.ask("SET", other, "v") == b"OK"
            wait_until("it to be replicated", lambda: has(new, database, other), lambda: "", PATIENCE_S)
            old.pause()
            crowd(worker, key, protocol, database)
            seen = [0] * 20

            def no_more_are_taken() -> bool:
                seen.append(worker.count("inflight"))
                return 0 < seen[-1] < CLIENTS and len(set(seen[-20:])) == 1

            wait_until("the door to be congested", no_more_are_taken, lambda: f"{seen[-20:]} are out", PATIENCE_S)
            waiting.send(("GET", other))
            promote(None, new)
            worker.close(CONGESTED)
            worker.switch_to(CONGESTED, new)
            worker.open(CONGESTED)
            assert waiting.read() == b"v"


def has(server: Server, database: int, key: str) -> bool:
    keyspace = server.ask("INFO", "keyspace")
    assert isinstance(keyspace, bytes)
    return f"db{database}:".encode() in keyspace


def test_who_waits_at_the_door_waits_no_longer_than_for_a_reply(
    fleet: Fleet, old: Server, crowd: Callable[..., None]
) -> None:
    timeouts = {"reply_s": 0.4, "silence_s": PATIENCE_S, "connect_s": PATIENCE_S}
    with BareWorker(fleet, timeouts=timeouts) as worker:
        key, other = Keys(worker).on(CONGESTED, 2)
        with Connection(worker.port) as waiting:
            assert waiting.ask("GET", other) is None
            old.pause()
            crowd(worker, key)
            said = [""]

            def is_refused() -> bool:
                said[0] = error(waiting.ask("GET", other))
                return "has read nothing more for 0.4 s, applied=no" in said[0]

            wait_until("the door to be congested", is_refused, lambda: said[0], PATIENCE_S)
            assert said[0].startswith("TRYAGAIN ")
            assert error(waiting.ask("MGET", other, key)).startswith("TRYAGAIN "), "so does what comes after it"
            old.resume()
            wait_until("it to read on", lambda: waiting.ask("GET", other) is None, lambda: "", PATIENCE_S)
