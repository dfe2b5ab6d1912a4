"""A primary dies, or is replaced: what clients see, with real servers and the promoter that needs nobody else."""

import os
import signal
import threading
from collections.abc import Iterator, Mapping

import pytest

from pyproxy.control.http import admin
from pyproxy.fleet import Fleet, Proxy, wait_until
from tests.e2e.rig import PATIENCE_S, Connection, Keys, error, wait_for_info, wait_for_line
from tests.processes import command_line, family

QUICK: dict[str, str | float] = {
    "promoter": "replicaof",
    "down_after_s": 0.5,
    "min_between_s": 0.0,
    "hold_again_s": 0.0,
}
PATIENT = QUICK | {"on_promotion": "hold", "hold_s": PATIENCE_S, "hold_incident_s": PATIENCE_S}


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    """Two shards of this test's own, with two replicas each."""
    with Fleet(shards=2, replicas=2) as fleet:
        yield fleet


def started(fleet: Fleet, promotion: Mapping[str, str | float] = QUICK, workers: int = 1) -> Proxy:
    return Proxy(fleet, None, workers, promotion=promotion, http={"admin": str(fleet.directory / "admin.sock")})


def promote(fleet: Fleet, shard: str = "s0", to: str = "") -> admin.Answer:
    return admin.ask(str(fleet.directory / "admin.sock"), admin.Promote(shard, to), PATIENCE_S)


def test_a_write_to_a_shard_whose_primary_was_killed_is_held_and_then_done(fleet: Fleet) -> None:
    with started(fleet, PATIENT) as proxy, Connection(proxy.port) as conn:
        key = Keys(proxy).one(0)
        assert conn.ask("INCR", key) == 1
        wait_until("the replicas", lambda: in_step(fleet, key), lambda: str(fleet.shards[0].replicas))
        fleet.shards[0].primary.kill()
        wait_for_line(proxy, r"\+link-lost ")  # one that is in flight when it dies is -UNCERTAIN
        assert [conn.ask("INCR", key) for _ in range(3)] == [2, 3, 4]
        wait_for_info(conn, "the epoch", lambda info: int(info["held_requests"]) == 0)


def in_step(fleet: Fleet, key: str) -> bool:
    return all(replica.ask("GET", key) is not None for replica in fleet.shards[0].replicas)


def test_meanwhile_reads_of_it_are_answered_and_the_other_shards_know_nothing_of_it(fleet: Fleet) -> None:
    with (
        started(fleet, PATIENT | {"down_after_s": 2.0}) as proxy,
        Connection(proxy.port) as conn,
        Connection(proxy.port) as held,
    ):
        keys = Keys(proxy)
        here, there = keys.one(0), keys.one(1)
        assert conn.ask("MSET", here, "a", there, "b") == b"OK"
        wait_until("the replicas", lambda: in_step(fleet, here), lambda: str(fleet.shards[0].replicas))
        fleet.shards[0].primary.kill()
        wait_for_line(proxy, r"\+link-lost ")  # one that is in flight when it dies is -UNCERTAIN
        held.send(("SET", here, "c"))
        wait_for_info(conn, "the write to be held", lambda info: int(info["held_requests"]) == 1)
        for _ in range(100):
            assert conn.ask("GET", here) == b"a"
            assert conn.ask("MGET", there, here) == [b"b", b"a"]
            assert conn.ask("SET", there, "b") == b"OK"
        assert held.read() == b"OK"
        assert conn.ask("GET", here) == b"c"


def test_reject_refuses_at_once_and_says_when_to_come_back(fleet: Fleet) -> None:
    with (
        started(fleet, QUICK | {"on_promotion": "reject", "down_after_s": 2.0}) as proxy,
        Connection(proxy.port) as conn,
    ):
        key = Keys(proxy).one(0)
        fleet.shards[0].primary.kill()
        refused: list[str] = []

        def said_so() -> bool:
            refused.append(error(conn.ask("SET", key, "v")))
            return "is in doubt" in refused[-1]

        wait_until("the parent's word", said_so, lambda: str(refused[-1:]))
        assert all(each.startswith("TRYAGAIN shard s0 ") and "applied=no" in each for each in refused)
        assert 0 < int(refused[-1].partition("retry_after_ms=")[2].partition(";")[0]) <= 4000


def test_a_planned_promotion_under_load_costs_no_error_and_no_write(fleet: Fleet) -> None:
    with started(fleet, workers=2) as proxy, Connection(proxy.port) as first, Connection(proxy.port) as second:
        keys, ended = Keys(proxy).on(0, 2), threading.Event()
        seen: dict[str, list[object]] = {key: [] for key in keys}

        def count(conn: Connection, key: str) -> None:
            while not ended.is_set():
                seen[key].append(conn.ask("INCR", key))

        threads = [threading.Thread(target=count, args=each) for each in zip((first, second), keys, strict=True)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(3):
                wait_until("a fit candidate", lambda: promote(fleet).done, proxy.tail)
        finally:
            ended.set()
            for thread in threads:
                thread.join(PATIENCE_S)
        for key in keys:
            assert seen[key] == list(range(1, len(seen[key]) + 1))
            assert first.ask("GET", key) == str(len(seen[key])).encode()


def test_a_planned_promotion_is_given_up_where_a_worker_does_not_hold(fleet: Fleet) -> None:
    with started(fleet, workers=2) as proxy, Connection(proxy.port) as conn:
        workers = [pid for pid, _ in family(proxy.pid) if "pyproxy.worker" in command_line(pid)]
        mine = int(_field(conn, "worker"))
        index = {int(_argument(pid, "--index")): pid for pid in workers}
        os.kill(index[1 - mine], signal.SIGSTOP)
        try:
            answer = promote(fleet)
        finally:
            os.kill(index[1 - mine], signal.SIGCONT)
        assert not answer.done
        assert f"worker {1 - mine} did not hold" in answer.line
        assert conn.ask("SET", Keys(proxy).one(0), "v") == b"OK"
        assert fleet.shards[0].primary.ask("ROLE")[0] == b"master"  # type: ignore[index]


def test_a_worker_that_stands_still_is_ended_before_anybody_writes_to_the_new_primary(fleet: Fleet) -> None:
    with started(fleet, PATIENT, 2) as proxy, Connection(proxy.port) as conn:
        key, mine = Keys(proxy).one(0), int(_field(conn, "worker"))
        workers = [pid for pid, _ in family(proxy.pid) if "pyproxy.worker" in command_line(pid)]
        stopped = next(pid for pid in workers if int(_argument(pid, "--index")) != mine)
        os.kill(stopped, signal.SIGSTOP)
        fleet.shards[0].primary.kill()
        wait_for_line(proxy, r"\+link-lost ")  # one that is in flight when it dies is -UNCERTAIN
        assert conn.ask("SET", key, "v") == b"OK"
        assert not os.path.exists(f"/proc/{stopped}")
        assert "not at the new primary of s0" in proxy.log.read_text()


def _field(conn: Connection, name: str) -> str:
    text = conn.ask("INFO", "proxy")
    assert isinstance(text, bytes)
    return dict(line.split(":", 1) for line in text.decode().splitlines() if ":" in line)[name]


def _argument(pid: int, name: str) -> str:
    line = command_line(pid)
    return line[line.index(name) + 1]
