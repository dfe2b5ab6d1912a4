"""What a client may read while a write of it is unresolved: out, past its deadline, or lost with its connection.

Such a write may still be applied by the primary. A replica does not know of it, and its answer would be the past.
"""

import socket
from collections.abc import Iterator

import pytest

from pyproxy.fleet import HOST, Fleet, Server, wait_until
from pyproxy.shard_map import Node
from tests.e2e.bare_worker import BareWorker
from tests.e2e.rig import PATIENCE_S, Connection, Keys, error, of_a_worker
from tests.faults import Hop, Way

SLOW = 1
"""The index of the shard whose primary stands still."""

TIMEOUTS = {"reply_s": 0.4, "silence_s": PATIENCE_S, "connect_s": PATIENCE_S}


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with Fleet(shards=2, replicas=1) as fleet:
        yield fleet


@pytest.fixture
def worker(fleet: Fleet) -> Iterator[BareWorker]:
    """A worker that has been told which replica answers reads where the primary does not."""
    with BareWorker(fleet, timeouts=TIMEOUTS, promotion={"promoter": "replicaof"}) as worker:
        worker.fallback(SLOW, fleet.shards[SLOW].replicas[0])
        yield worker


@pytest.fixture
def conn(worker: BareWorker) -> Iterator[Connection]:
    with Connection(worker.port) as conn:
        yield conn


@pytest.fixture
def key(worker: BareWorker) -> str:
    return Keys(worker).one(SLOW)


def primary(fleet: Fleet) -> Server:
    return fleet.shards[SLOW].primary


def wait_replicated(fleet: Fleet, key: str, value: bytes) -> None:
    replica = fleet.shards[SLOW].replicas[0]
    wait_until("the replica to have it", lambda: replica.ask("GET", key) == value, lambda: "", PATIENCE_S)


@pytest.fixture
def uncertain(fleet: Fleet, worker: BareWorker, conn: Connection, key: str) -> None:
    """The counter is 5 everywhere; the client's INCR is with the primary, which stands still."""
    assert conn.ask("SET", key, 5) == b"OK"
    wait_replicated(fleet, key, b"5")
    primary(fleet).pause()
    assert error(conn.ask("INCR", key)).startswith("UNCERTAIN ")


@pytest.mark.usefixtures("uncertain")
def test_after_an_uncertain_write_the_client_is_not_answered_by_a_replica(
    fleet: Fleet, conn: Connection, key: str
) -> None:
    try:
        assert [error(conn.ask("GET", key)).split()[0] for _ in range(5)] == ["TRYAGAIN"] * 5
    finally:
        primary(fleet).resume()
    wait_until("the primary to answer", lambda: conn.ask("GET", key) == b"6", lambda: "", PATIENCE_S)
    wait_until("writes to pass again", lambda: conn.ask("INCR", key) == 7, lambda: "", PATIENCE_S)


@pytest.mark.usefixtures("uncertain")
def test_another_client_is_answered_by_the_replica_meanwhile(
    fleet: Fleet, worker: BareWorker, conn: Connection, key: str
) -> None:
    with Connection(worker.port) as reader:
        assert reader.ask("GET", key) == b"5"
        assert error(conn.ask("GET", key)).startswith("TRYAGAIN ")
        assert reader.ask("GET", key) == b"5"
    primary(fleet).resume()


@pytest.mark.usefixtures("uncertain")
def test_once_the_late_answer_has_come_the_replica_may_answer_again(fleet: Fleet, conn: Connection, key: str) -> None:
    primary(fleet).resume()
    wait_until("the primary to answer", lambda: conn.ask("GET", key) == b"6", lambda: "", PATIENCE_S)
    wait_replicated(fleet, key, b"6")
    primary(fleet).pause()
    try:
        assert conn.ask("GET", key) == b"6"
    finally:
        primary(fleet).resume()


def test_a_write_that_was_lost_with_its_connection_counts_until_there_is_a_primary(fleet: Fleet) -> None:
    """The connection is cut with the INCR on it, and no other can be made; another client reads from the replica."""
    replica = fleet.shards[SLOW].replicas[0]
    with Hop(primary(fleet).port, of_a_worker) as hop:
        behind = {SLOW: Node(HOST, hop.port)}
        timeouts = {"reply_s": PATIENCE_S, "silence_s": PATIENCE_S, "connect_s": 0.3, "slow_reply_s": PATIENCE_S}
        with BareWorker(fleet, behind, timeouts=timeouts, promotion={"promoter": "replicaof"}) as worker:
            key = Keys(worker).one(SLOW)
            worker.fallback(SLOW, replica)
            with Connection(worker.port) as conn, Connection(worker.port) as reader:
                assert conn.ask("SET", key, 5) == b"OK"
                wait_replicated(fleet, key, b"5")
                hop.stall(Way.REQUESTS)
                conn.send(("INCR", key))
                wait_until("it to be with the hop", lambda: b"INCR" in hop.requests, lambda: "", PATIENCE_S)
                hop.part()
                hop.cut(reset=True)
                assert error(conn.read()).startswith("UNCERTAIN ")
                wait_until("the replica to answer", lambda: reader.ask("GET", key) == b"5", lambda: "", PATIENCE_S)
                assert error(conn.ask("GET", key)).startswith("TRYAGAIN ")
                hop.heal()
                wait_until(
                    "the primary to answer", lambda: conn.ask("GET", key) in (b"5", b"6"), lambda: "", PATIENCE_S
                )


def test_what_a_connection_still_had_to_send_is_forgotten_when_it_is_given_up(fleet: Fleet) -> None:
    """Its socket is reset, or the kernel would go on sending what clients were told is uncertain."""
    with socket.create_server((HOST, 0)) as stalled:
        port: int = stalled.getsockname()[1]
        timeouts = {"connect_s": 0.3, "reply_s": 0.3}
        with BareWorker(fleet, {SLOW: Node(HOST, port)}, timeouts=timeouts):
            stalled.settimeout(PATIENCE_S)
            connection, _ = stalled.accept()
            connection.settimeout(PATIENCE_S)
            assert connection.recv(65536)
            with pytest.raises(ConnectionResetError):
                assert connection.recv(65536) == b"", "it was closed as if all were well"
