"""A shard gets another primary while clients wait there: they wait on at the new one, and nothing is lost."""

import time
from collections.abc import Iterator

import pytest

from pyproxy.fleet import Fleet, Server, wait_until
from tests.e2e.bare_worker import BareWorker
from tests.e2e.bare_worker import promote as replicaof
from tests.e2e.failover.test_promotion import PATIENT, promote, started
from tests.e2e.rig import Connection, Keys, error, wait_for_info
from tests.e2e.waiters import MOVERS, WAITERS, wait_blocked

SHARD = 0
LONG: dict[str, str | float] = {"promoter": "replicaof", "on_promotion": "hold", "hold_s": 15.0}


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    """Of one test: it is not as it was afterwards."""
    with Fleet(shards=2, replicas=1) as fleet:
        yield fleet


@pytest.fixture
def old(fleet: Fleet) -> Server:
    return fleet.shards[SHARD].primary


@pytest.fixture
def new(fleet: Fleet) -> Server:
    return fleet.shards[SHARD].replicas[0]


@pytest.fixture
def worker(fleet: Fleet) -> Iterator[BareWorker]:
    with BareWorker(fleet, promotion=LONG, timeouts={"reply_s": 20.0, "silence_s": 20.0}) as worker:
        yield worker


@pytest.fixture
def key(worker: BareWorker) -> str:
    return Keys(worker).one(SHARD)


def test_a_planned_promotion_is_not_seen_by_those_who_wait(fleet: Fleet, old: Server, new: Server) -> None:
    with started(fleet, PATIENT, workers=2) as proxy, Connection(proxy.port) as other:
        key = Keys(proxy).one(SHARD)
        names = [f"{{{key}}}{waiter}" for waiter in (*WAITERS, *MOVERS)]
        talks = [Connection(proxy.port) for _ in names]
        for waiter, name, conn in zip((*WAITERS, *MOVERS), names, talks, strict=True):
            for line in waiter.before.split(" ; "):
                if line:
                    other.ask(*waiter.words(line, f"{name}a", f"{name}b"))
            conn.send(waiter.words(waiter.wait, f"{name}a", f"{name}b"))
        wait_blocked(old, len(talks))
        wait_until("a fit candidate", lambda: promote(fleet, f"s{SHARD}").done, proxy.tail)
        wait_blocked(new, len(talks))
        for waiter, name, conn in zip((*WAITERS, *MOVERS), names, talks, strict=True):
            other.ask(*waiter.words(waiter.push, f"{name}a", f"{name}b"))
            assert conn.read(), waiter
            conn.close()


def test_at_a_closed_gate_a_command_comes_back_and_goes_on_with_what_is_left(
    worker: BareWorker, old: Server, new: Server, key: str
) -> None:
    with Connection(worker.port) as ever, Connection(worker.port) as short, Connection(worker.port) as other:
        ever.send(("BLPOP", key, 0))
        short.send(("BLPOP", key, "0.2"))
        wait_blocked(old, 2)
        worker.close(SHARD)
        worker.wait_held(SHARD, 2)
        wait_blocked(old, 0)
        assert worker.busy == []
        replicaof(old, new)
        worker.switch_to(SHARD, new, open_gate=True)
        wait_blocked(new, 1)
        assert short.read() is None
        other.ask("RPUSH", key, "x")
        assert ever.read() == [key.encode(), b"x"]


def test_a_command_that_comes_while_the_gate_is_closed_waits_there(worker: BareWorker, old: Server, key: str) -> None:
    with Connection(worker.port) as conn, Connection(worker.port) as other:
        worker.close(SHARD)
        conn.send(("BLPOP", key, 0))
        worker.wait_held(SHARD, 1)
        worker.open(SHARD)
        wait_blocked(old, 1)
        other.ask("RPUSH", key, "x")
        assert conn.read() == [key.encode(), b"x"]


def test_one_whose_time_passes_at_the_gate_is_nil_and_not_uncertain(fleet: Fleet) -> None:
    """What it waited at the gate it does not wait at the server."""
    with BareWorker(fleet, promotion=LONG, timeouts={"reply_s": 0.5}) as worker, Connection(worker.port) as conn:
        key, began = Keys(worker).one(SHARD), time.monotonic()
        worker.close(SHARD)
        conn.send(("BLPOP", key, 1))
        worker.wait_for("its time to pass", lambda: time.monotonic() - began > 1.2)
        worker.open(SHARD)
        assert conn.read() is None


def test_one_that_leaves_while_it_waits_at_the_gate_waits_nowhere(worker: BareWorker, old: Server, key: str) -> None:
    with Connection(worker.port) as conn:
        conn.send(("BLPOP", key, 0))
        wait_blocked(old, 1)
        worker.close(SHARD)
        worker.wait_held(SHARD, 1)
    worker.wait_held(SHARD, 0)
    worker.open(SHARD)
    with Connection(worker.port) as other:
        assert other.ask("RPUSH", key, "x") == 1
        assert other.ask("LLEN", key) == 1


def test_where_the_server_lets_itself_not_be_asked_it_is_uncertain_and_the_promotion_goes_on(
    worker: BareWorker, old: Server, key: str
) -> None:
    old.ask("ACL", "SETUSER", "default", "-client|unblock")
    with Connection(worker.port) as conn:
        conn.send(("BLPOP", key, 0))
        wait_blocked(old, 1)
        worker.close(SHARD)
        assert error(conn.read()).startswith(f"UNCERTAIN shard s{SHARD} ")
        wait_blocked(old, 0)
        worker.wait_for("it to be no longer busy", lambda: worker.busy == [])


def test_where_another_promotes_those_who_wait_go_over_to_the_new_primary(
    worker: BareWorker, old: Server, new: Server, key: str
) -> None:
    """The old primary becomes a replica and says so to those who wait; the proxy is told only then."""
    with Connection(worker.port) as conn, Connection(worker.port) as other:
        conn.send(("BLPOP", key, 0))
        wait_blocked(old, 1)
        replicaof(old, new)
        worker.wait_held(SHARD, 1)
        worker.switch_to(SHARD, new, open_gate=True)
        wait_blocked(new, 1)
        other.ask("RPUSH", key, "x")
        assert conn.read() == [key.encode(), b"x"]


def test_a_read_of_streams_misses_nothing_between_two_primaries(
    worker: BareWorker, old: Server, new: Server, key: str
) -> None:
    with Connection(worker.port) as conn:
        old.ask("XADD", key, "1-1", "f", "before")
        conn.send(("XREAD", "BLOCK", 0, "STREAMS", key, "$"))
        wait_blocked(old, 1)
        wait_until("the replica", lambda: new.ask("XLEN", key) == 1, lambda: "")
        worker.close(SHARD)
        worker.wait_held(SHARD, 1)
        replicaof(old, new)
        new.ask("XADD", key, "2-1", "f", "between")
        worker.switch_to(SHARD, new, open_gate=True)
        assert conn.read() == [[key.encode(), [[b"2-1", [b"f", b"between"]]]]]


def test_a_primary_that_is_killed_leaves_it_uncertain_and_the_next_one_is_served(
    fleet: Fleet, old: Server, new: Server
) -> None:
    with started(fleet, PATIENT) as proxy, Connection(proxy.port) as conn, Connection(proxy.port) as other:
        key = Keys(proxy).one(SHARD)
        conn.send(("BLPOP", key, 0))
        wait_blocked(old, 1)
        old.kill()
        assert error(conn.read()).startswith(f"UNCERTAIN shard s{SHARD} ")
        conn.send(("BLPOP", key, 0))
        wait_blocked(new, 1)
        other.ask("RPUSH", key, "x")
        assert conn.read() == [key.encode(), b"x"]
        wait_for_info(other, "nobody", lambda info: info["blocked_clients"] == "0")


def test_each_time_that_a_gate_closes_it_may_wait_there_as_long_as_any(fleet: Fleet, old: Server) -> None:
    hold_s = 3.0
    with BareWorker(fleet, promotion={**LONG, "hold_s": hold_s}) as worker, Connection(worker.port) as conn:
        key = Keys(worker).one(SHARD)
        conn.send(("BLPOP", key, 0))
        wait_blocked(old, 1)
        for _ in range(2):
            worker.close(SHARD)
            worker.wait_held(SHARD, 1)
            since = time.monotonic()
            worker.open(SHARD)
            wait_blocked(old, 1)
            wait_until("a hold's time to pass", lambda: time.monotonic() > since + hold_s, lambda: "")  # noqa: B023
        old.ask("RPUSH", key, "x")
        assert conn.read() == [key.encode(), b"x"]
