"""EXEC of a client whose watched shard is in trouble: nil once the shard can be had, before that one line about it."""

import socket
from collections.abc import Iterator

import pytest

from pyproxy.fleet import Fleet, Proxy, Server, Table, wait_until
from pyproxy.messages import Complaint
from tests.e2e.bare_worker import BareWorker
from tests.e2e.rig import PATIENCE_S, PATIENT, Connection, Keys, behind, error, of_a_worker
from tests.faults import Hop

SHARD = 1
OTHER = 0

PROMOTION: Table = {"promoter": "replicaof", "on_promotion": "hold", "hold_s": 15.0}

DISCARDED = f"EXECABORT Transaction discarded because of: shard s{SHARD} "

# What is between MULTI and EXEC: a key of the watched shard is `{0}`, one of another shard `{1}`.
BLOCKS = {"reads": ["GET {0}"], "writes": ["SET {0} v"], "is empty": [], "writes elsewhere": ["SET {1} v"]}


@pytest.fixture
def key(keys: Keys) -> str:
    return keys.one(SHARD)


@pytest.fixture(params=list(BLOCKS.values()), ids=list(BLOCKS))
def block(request: pytest.FixtureRequest, keys: Keys) -> list[list[str]]:
    """A transaction of a client that watches."""
    lines: list[str] = request.param
    words = [line.format(keys.one(SHARD), keys.one(OTHER)).split() for line in lines]
    return [["MULTI"], *words, ["EXEC"]]


@pytest.fixture(scope="module")
def proxy(split: Proxy) -> Proxy:
    return split


@pytest.fixture(autouse=True)
def empty(fleet: Fleet) -> None:
    for server in fleet.servers:
        if not server.running:
            server.start()
        server.ask("FLUSHALL")


@pytest.fixture
def conn(proxy: Proxy, key: str) -> Iterator[Connection]:
    with Connection(proxy.port) as conn:
        wait_up(conn, key)  # it may have been down before
        yield conn


def lose(server: Server) -> None:
    """Close the connection that watches."""
    (watching,) = [line for line in str(server.ask("CLIENT", "LIST")).split("\\n") if " watch=1 " in line]
    assert server.ask("CLIENT", "KILL", "ID", watching.partition("id=")[2].split()[0]) == 1


def wait_up(conn: Connection, key: str) -> None:
    wait_until("the shard to be up", lambda: conn.ask("GET", key) is None, lambda: "", PATIENCE_S)


def wait_down(conn: Connection, key: str) -> None:
    """Until the worker knows; then the connection that watched is lost as well."""
    wait_until("the shard to be down", lambda: "is down" in str(conn.ask("GET", key)), lambda: "", PATIENCE_S)


def wait_lost(worker: BareWorker) -> None:
    """The same where a read would wait."""
    worker.wait_for("the shard to be down", lambda: any("closed" in reply.what for reply in worker.of(Complaint)))


def executed(conn: Connection, block: list[list[str]]) -> object:
    """What EXEC answers."""
    conn.send(*block)
    return conn.reads(len(block))[-1]


# --- nobody is promoted -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("proto", [2, 3])
def test_of_a_shard_that_was_killed_it_says_so_and_applies_nothing(
    fleet: Fleet, keys: Keys, conn: Connection, key: str, block: list[list[str]], proto: int
) -> None:
    conn.ask("HELLO", proto)
    assert conn.ask("WATCH", key) == b"OK"
    fleet.shards[SHARD].primary.kill()
    wait_down(conn, key)
    reply = error(executed(conn, block))
    assert reply.startswith(DISCARDED) and " is down: " in reply and "applied=no" in reply
    assert conn.ask("GET", keys.one(OTHER)) is None


def test_after_it_the_watch_is_over(fleet: Fleet, conn: Connection, key: str) -> None:
    primary = fleet.shards[SHARD].primary
    assert conn.ask("WATCH", key) == b"OK"
    primary.kill()
    wait_down(conn, key)
    assert error(executed(conn, [["MULTI"], ["EXEC"]])).startswith(DISCARDED)
    primary.start()
    wait_up(conn, key)
    primary.ask("SET", key, "theirs")
    assert executed(conn, [["MULTI"], ["GET", key], ["EXEC"]]) == [b"theirs"]


def test_of_a_shard_that_is_back_it_is_nil(fleet: Fleet, conn: Connection, key: str, block: list[list[str]]) -> None:
    primary = fleet.shards[SHARD].primary
    assert conn.ask("WATCH", key) == b"OK"
    primary.kill()
    wait_down(conn, key)
    primary.start()
    wait_up(conn, key)
    assert executed(conn, block) is None


def test_where_no_promoter_is_configured_it_does_not_wait_for_one(replicated: Fleet, key: str) -> None:
    with BareWorker(replicated, timeouts=PATIENT) as worker, Connection(worker.port) as conn:
        assert conn.ask("WATCH", key) == b"OK"
        replicated.shards[SHARD].primary.kill()
        wait_down(conn, key)
        assert error(executed(conn, [["MULTI"], ["SET", key, "v"], ["EXEC"]])).startswith(DISCARDED)


@pytest.mark.parametrize("watching", ["connected", "lost"])
@pytest.mark.parametrize("command", ["GET", ""], ids=["reads", "is empty"])
def test_of_a_shard_that_was_stopped_it_says_so(fleet: Fleet, key: str, command: str, watching: str) -> None:
    """A block that writes was sent if the connection is there, so of that nobody knows."""
    primary = fleet.shards[SHARD].primary
    timeouts = {"reply_s": 0.4, "connect_s": 0.4, "silence_s": PATIENCE_S}
    with Proxy(fleet, transactions="split", timeouts=timeouts) as hasty, Connection(hasty.port) as conn:
        assert conn.ask("WATCH", key) == b"OK"
        if watching == "lost":
            lose(primary)
        primary.pause()
        try:
            reply = error(executed(conn, [["MULTI"], *([[command, key]] if command else []), ["EXEC"]]))
        finally:
            primary.resume()
        assert reply.startswith(DISCARDED) and "applied=no" in reply


def test_of_a_shard_that_loads_its_data_it_says_so(fleet: Fleet, key: str) -> None:
    primary = fleet.shards[SHARD].primary
    with (
        Hop(primary.port, of_a_worker) as hop,
        behind(fleet, {SHARD: hop}, timeouts=PATIENT) as proxy,
        Connection(proxy.port) as conn,
    ):
        assert conn.ask("WATCH", key) == b"OK"
        lose(primary)
        assert conn.ask("GET", key) is None  # by the same way, so the worker knows by now
        hop.answer(b"EXISTS", b"-LOADING Redis is loading the dataset in memory\r\n")
        reply = error(executed(conn, [["MULTI"], ["GET", key], ["EXEC"]]))
        assert reply == "EXECABORT Transaction discarded because of: LOADING Redis is loading the dataset in memory"


# --- somebody is promoted ---------------------------------------------------------------------------------------------


@pytest.fixture
def replicated() -> Iterator[Fleet]:
    with Fleet(shards=3, replicas=1) as fleet:
        yield fleet


@pytest.fixture
def worker(replicated: Fleet) -> Iterator[BareWorker]:
    with BareWorker(replicated, promotion=PROMOTION, transactions="split") as worker:
        yield worker


def test_in_an_incident_it_waits_and_is_nil_when_another_is_promoted(
    worker: BareWorker, replicated: Fleet, key: str, block: list[list[str]]
) -> None:
    primary, replica = replicated.shards[SHARD].servers
    with Connection(worker.port) as conn:
        assert conn.ask("WATCH", key) == b"OK"
        worker.close(SHARD)
        primary.kill()
        wait_lost(worker)
        conn.send(*block)
        worker.wait_held(SHARD, 1)
        replica.ask("REPLICAOF", "NO", "ONE")
        worker.switch_to(SHARD, replica, open_gate=True)
        assert conn.reads(len(block))[-1] is None
        assert executed(conn, [["MULTI"], ["SET", key, "mine"], ["EXEC"]]) == [b"OK"]


def test_where_nothing_may_wait_it_says_when_to_come_again(
    worker: BareWorker, replicated: Fleet, key: str, block: list[list[str]]
) -> None:
    with Connection(worker.port) as conn:
        assert conn.ask("WATCH", key) == b"OK"
        worker.close(SHARD, hold=False, in_s=10.0)
        replicated.shards[SHARD].primary.kill()
        wait_lost(worker)
        reply = error(executed(conn, block))
        assert reply.startswith(DISCARDED) and "applied=no retry_after_ms=" in reply


def test_a_client_that_closes_its_half_while_it_waits_is_told_that_its_transaction_is_discarded(
    worker: BareWorker, key: str
) -> None:
    worker.close(SHARD)
    with Connection(worker.port) as conn:
        conn.send(["WATCH", key], ["MULTI"], ["SET", key, "v"], ["EXEC"])
        assert conn.reads(3) == [b"OK", b"OK", b"QUEUED"]
        worker.wait_held(SHARD, 1)
        conn.socket.shutdown(socket.SHUT_WR)
        assert conn.until_end().startswith(b"-" + DISCARDED.encode())
