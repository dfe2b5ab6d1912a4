"""A shard gets another primary while clients wait there: they wait on at the new one, and nothing is lost."""

import time
from collections.abc import Iterator

import pytest

from pyproxy.fleet import Fleet, Server, wait_until
from tests.e2e.bare_worker import Alone
from tests.e2e.bare_worker import promote as replicaof
from tests.e2e.failover.test_promotion import PATIENT, promote, started
from tests.e2e.rig import Keys, Talk, error, wait_for_info
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
def alone(fleet: Fleet) -> Iterator[Alone]:
    with Alone(fleet, promotion=LONG, timeouts={"reply_s": 20.0, "silence_s": 20.0}) as alone:
        yield alone


@pytest.fixture
def key(alone: Alone) -> str:
    return Keys(alone).one(SHARD)


def test_a_planned_promotion_is_not_seen_by_those_who_wait(fleet: Fleet, old: Server, new: Server) -> None:
    with started(fleet, PATIENT, workers=2) as proxy, Talk(proxy.port) as other:
        key = Keys(proxy).one(SHARD)
        names = [f"{{{key}}}{waiter}" for waiter in (*WAITERS, *MOVERS)]
        talks = [Talk(proxy.port) for _ in names]
        for waiter, name, talk in zip((*WAITERS, *MOVERS), names, talks, strict=True):
            for line in waiter.before.split(" ; "):
                if line:
                    other.ask(*waiter.words(line, f"{name}a", f"{name}b"))
            talk.send(waiter.words(waiter.wait, f"{name}a", f"{name}b"))
        wait_blocked(old, len(talks))
        wait_until("a fit candidate", lambda: promote(fleet, f"s{SHARD}").done, proxy.tail)
        wait_blocked(new, len(talks))
        for waiter, name, talk in zip((*WAITERS, *MOVERS), names, talks, strict=True):
            other.ask(*waiter.words(waiter.push, f"{name}a", f"{name}b"))
            assert talk.read(), waiter
            talk.close()


def test_at_a_closed_gate_a_command_comes_back_and_goes_on_with_what_is_left(
    alone: Alone, old: Server, new: Server, key: str
) -> None:
    with Talk(alone.port) as ever, Talk(alone.port) as short, Talk(alone.port) as other:
        ever.send(("BLPOP", key, 0))
        short.send(("BLPOP", key, "0.2"))
        wait_blocked(old, 2)
        alone.close(SHARD)
        alone.wait_held(SHARD, 2)
        wait_blocked(old, 0)
        assert alone.busy == []
        replicaof(old, new)
        alone.point_at(SHARD, new, open_gate=True)
        wait_blocked(new, 1)
        assert short.read() is None
        other.ask("RPUSH", key, "x")
        assert ever.read() == [key.encode(), b"x"]


def test_a_command_that_comes_while_the_gate_is_closed_waits_there(alone: Alone, old: Server, key: str) -> None:
    with Talk(alone.port) as talk, Talk(alone.port) as other:
        alone.close(SHARD)
        talk.send(("BLPOP", key, 0))
        alone.wait_held(SHARD, 1)
        alone.open(SHARD)
        wait_blocked(old, 1)
        other.ask("RPUSH", key, "x")
        assert talk.read() == [key.encode(), b"x"]


def test_one_whose_time_passes_at_the_gate_is_nil_and_not_uncertain(fleet: Fleet) -> None:
    """What it waited at the gate it does not wait at the server."""
    with Alone(fleet, promotion=LONG, timeouts={"reply_s": 0.5}) as alone, Talk(alone.port) as talk:
        key, began = Keys(alone).one(SHARD), time.monotonic()
        alone.close(SHARD)
        talk.send(("BLPOP", key, 1))
        alone.wait_for("its time to pass", lambda: time.monotonic() - began > 1.2)
        alone.open(SHARD)
        assert talk.read() is None


def test_one_that_leaves_while_it_waits_at_the_gate_waits_nowhere(alone: Alone, old: Server, key: str) -> None:
    with Talk(alone.port) as talk:
        talk.send(("BLPOP", key, 0))
        wait_blocked(old, 1)
        alone.close(SHARD)
        alone.wait_held(SHARD, 1)
    alone.wait_held(SHARD, 0)
    alone.open(SHARD)
    with Talk(alone.port) as other:
        assert other.ask("RPUSH", key, "x") == 1
        assert other.ask("LLEN", key) == 1


def test_where_the_server_lets_itself_not_be_asked_it_is_uncertain_and_the_promotion_goes_on(
    alone: Alone, old: Server, key: str
) -> None:
    old.ask("ACL", "SETUSER", "default", "-client|unblock")
    with Talk(alone.port) as talk:
        talk.send(("BLPOP", key, 0))
        wait_blocked(old, 1)
        alone.close(SHARD)
        assert error(talk.read()).startswith(f"UNCERTAIN shard s{SHARD} ")
        wait_blocked(old, 0)
        alone.wait_for("it to be no longer busy", lambda: alone.busy == [])


def test_where_another_promotes_those_who_wait_go_over_to_the_new_primary(
    alone: Alone, old: Server, new: Server, key: str
) -> None:
    """The old primary becomes a replica and says so to those who wait; the proxy is told only then."""
    with Talk(alone.port) as talk, Talk(alone.port) as other:
        talk.send(("BLPOP", key, 0))
        wait_blocked(old, 1)
        replicaof(old, new)
        alone.wait_held(SHARD, 1)
        alone.point_at(SHARD, new, open_gate=True)
        wait_blocked(new, 1)
        other.ask("RPUSH", key, "x")
        assert talk.read() == [key.encode(), b"x"]


def test_a_read_of_streams_misses_nothing_between_two_primaries(
    alone: Alone, old: Server, new: Server, key: str
) -> None:
    with Talk(alone.port) as talk:
        old.ask("XADD", key, "1-1", "f", "before")
        talk.send(("XREAD", "BLOCK", 0, "STREAMS", key, "$"))
        wait_blocked(old, 1)
        wait_until("the replica", lambda: new.ask("XLEN", key) == 1, lambda: "")
        alone.close(SHARD)
        alone.wait_held(SHARD, 1)
        replicaof(old, new)
        new.ask("XADD", key, "2-1", "f", "between")
        alone.point_at(SHARD, new, open_gate=True)
        assert talk.read() == [[key.encode(), [[b"2-1", [b"f", b"between"]]]]]


def test_a_primary_that_is_killed_leaves_it_uncertain_and_the_next_one_is_served(
    fleet: Fleet, old: Server, new: Server
) -> None:
    with started(fleet, PATIENT) as proxy, Talk(proxy.port) as talk, Talk(proxy.port) as other:
        key = Keys(proxy).one(SHARD)
        talk.send(("BLPOP", key, 0))
        wait_blocked(old, 1)
        old.kill()
        assert error(talk.read()).startswith(f"UNCERTAIN shard s{SHARD} ")
        talk.send(("BLPOP", key, 0))
        wait_blocked(new, 1)
        other.ask("RPUSH", key, "x")
        assert talk.read() == [key.encode(), b"x"]
        wait_for_info(other, "nobody", lambda info: info["blocked_clients"] == "0")


def test_each_time_that_a_gate_closes_it_may_wait_there_as_long_as_any(fleet: Fleet, old: Server) -> None:
    hold_s = 3.0
    with Alone(fleet, promotion={**LONG, "hold_s": hold_s}) as alone, Talk(alone.port) as talk:
        key = Keys(alone).one(SHARD)
        talk.send(("BLPOP", key, 0))
        wait_blocked(old, 1)
        for _ in range(2):
            alone.close(SHARD)
            alone.wait_held(SHARD, 1)
            since = time.monotonic()
            alone.open(SHARD)
            wait_blocked(old, 1)
            wait_until("a hold's time to pass", lambda: time.monotonic() > since + hold_s, lambda: "")  # noqa: B023
        old.ask("RPUSH", key, "x")
        assert talk.read() == [key.encode(), b"x"]
