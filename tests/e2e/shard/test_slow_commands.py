"""What takes a server or the wire long, commands, replies and requests: waited for, and not asked twice."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from pyproxy.fleet import HOST, Fleet, Server, wait_until
from pyproxy.messages import Awake, Confirmed
from pyproxy.shard_map import Node
from tests.e2e.bare_worker import BareWorker
from tests.e2e.rig import PATIENCE_S, Connection, Keys, error, of_a_worker, packed
from tests.faults import Hop, Way

SLOW, ALSO = 1, 2
"""The indexes of the shards whose primaries stand still: the one that is looked at, and the one that tells the time."""

REPLY_S = 0.3


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet(shards=3, replicas=1) as fleet:
        yield fleet


@pytest.fixture
def stopped(fleet: Fleet) -> Iterator[list[Server]]:
    """To be filled with servers that are to run again at the end."""
    servers: list[Server] = []
    yield servers
    for server in servers:
        server.resume()


def worker_of(fleet: Fleet, slow_reply_s: float) -> BareWorker:
    silence_s = 2 * REPLY_S if slow_reply_s == PATIENCE_S else slow_reply_s
    timeouts = {"reply_s": REPLY_S, "slow_reply_s": slow_reply_s, "silence_s": silence_s, "connect_s": PATIENCE_S}
    return BareWorker(fleet, timeouts=timeouts, promotion={"promoter": "replicaof"})


def stop(fleet: Fleet, stopped: list[Server], index: int) -> Server:
    server = fleet.shards[index].primary
    stopped.append(server)
    server.pause()
    return server


def deadlines_pass(port: int, keys: Keys, times: int) -> None:
    """So many deadlines of other requests, one after the other, at a shard that stands still for no reason."""
    for _ in range(times):
        with Connection(port) as conn:
            assert error(conn.ask("GET", keys.one(ALSO))).startswith("TRYAGAIN ")


def test_what_is_behind_a_command_through_all_keys_waits_for_it(fleet: Fleet, stopped: list[Server]) -> None:
    """For KEYS the server stands still: nobody is told that it does not answer, and the connection stays."""
    with worker_of(fleet, PATIENCE_S) as worker:
        keys = Keys(worker)
        key = keys.one(SLOW, "behind")
        with Connection(worker.port) as asking, Connection(worker.port) as behind, Connection(worker.port) as resp3:
            assert behind.ask("SET", key, "before") == b"OK"
            resp3.ask("HELLO", 3)
            assert resp3.ask("GET", key) == b"before"
            slow = stop(fleet, stopped, SLOW)
            stop(fleet, stopped, ALSO)
            asking.send(("SORT", key))
            behind.send(("SET", key, "after"), ("GET", key))
            resp3.send(("APPEND", key, "wards"))
            deadlines_pass(worker.port, keys, 4)
            slow.resume()
            assert error(asking.read()).startswith("WRONGTYPE ")
            assert behind.reads(2)[0] == b"OK"
            assert resp3.read() in (11, 10)
            assert worker.count("uncertain") == 0


def test_a_slow_command_has_a_deadline_of_its_own(fleet: Fleet, stopped: list[Server]) -> None:
    """Those beside it have theirs: one of its kind is out too often to be waited for by all."""
    with worker_of(fleet, 4 * REPLY_S) as worker:
        keys = Keys(worker)
        key = keys.one(SLOW, "list")
        with Connection(worker.port) as asking, Connection(worker.port) as beside:
            assert asking.ask("RPUSH", key, "a") == 1
            stop(fleet, stopped, SLOW)
            asking.send(("LRANGE", key, 0, -1))
            for _ in range(2):
                assert f"within {REPLY_S:g} s" in error(beside.ask("LLEN", key))
            assert f"within {4 * REPLY_S:g} s" in error(asking.read())
        fleet.shards[SLOW].primary.resume()
        with Connection(worker.port) as later:
            wait_until("it to be served", lambda: later.ask("DEL", key) == 1, lambda: "", PATIENCE_S)


@pytest.mark.parametrize("block", [False, True], ids=["alone", "in a transaction"])
def test_no_other_server_is_asked_what_takes_long(fleet: Fleet, stopped: list[Server], block: bool) -> None:
    replica = fleet.shards[SLOW].replicas[0]
    with worker_of(fleet, 2 * REPLY_S) as worker:
        keys = Keys(worker)
        key = keys.one(SLOW, "set")
        worker.fallback(SLOW, replica)
        with Connection(worker.port) as asking, Connection(worker.port) as cheap:
            assert asking.ask("SADD", key, "a") == 1
            wait_until("it to be replicated", lambda: replica.ask("SCARD", key) == 1, lambda: "", PATIENCE_S)
            replica.ask("CONFIG", "RESETSTAT")
            stop(fleet, stopped, SLOW)
            asking.send(*([("MULTI",), ("SMEMBERS", key), ("EXEC",)] if block else [("SMEMBERS", key)]))
            assert cheap.ask("SCARD", key) == 1, "what is cheap the replica answers"
            assert "did not answer within" in error(asking.reads(3 if block else 1)[-1])
            stats = replica.ask("INFO", "commandstats")
            assert isinstance(stats, bytes)
            assert b"cmdstat_scard" in stats
            assert b"cmdstat_smembers" not in stats
        fleet.shards[SLOW].primary.resume()
        with Connection(worker.port) as later:
            wait_until("it to be served", lambda: later.ask("DEL", key) == 1, lambda: "", PATIENCE_S)


# --- the wire ---------------------------------------------------------------------------------------------------------


WIRE_REPLY_S, GAP_S, PIECES = 1.0, 0.05, 60
"""A value takes three deadlines to cross the wire, and its pieces come twenty times as often as they must."""


@pytest.fixture
def hop(fleet: Fleet) -> Iterator[Hop]:
    with Hop(fleet.shards[SLOW].primary.port, of_a_worker) as hop:
        yield hop


@pytest.fixture
def over_the_wire(fleet: Fleet, hop: Hop) -> Iterator[BareWorker]:
    timeouts = {"reply_s": WIRE_REPLY_S, "silence_s": WIRE_REPLY_S, "connect_s": PATIENCE_S}
    with BareWorker(fleet, {SLOW: Node(HOST, hop.port)}, timeouts=timeouts) as worker:
        yield worker


SIZE = 600_000


def test_a_long_reply_is_waited_for_while_it_comes_and_those_behind_it_too(over_the_wire: BareWorker, hop: Hop) -> None:
    key, other = Keys(over_the_wire).on(SLOW, 2)
    with Connection(over_the_wire.port) as asking, Connection(over_the_wire.port) as behind:
        assert asking.ask("SET", key, b"x" * SIZE) == b"OK"
        hop.drip(GAP_S, Way.REPLIES, piece=SIZE // PIECES)
        asking.send(("GET", key))
        wait_until("it to be in flight", lambda: over_the_wire.count("inflight") == 1, lambda: "", PATIENCE_S)
        behind.send(("SET", other, "v"), ("GET", other))
        assert asking.read() == b"x" * SIZE
        assert behind.reads(2) == [b"OK", b"v"]
        assert over_the_wire.count("timeouts") == 0


def test_a_long_request_is_waited_for_while_it_leaves_and_those_behind_it_too(fleet: Fleet, hop: Hop) -> None:
    """It is longer than what the kernel's buffers take at once, and leaves for longer than a deadline."""
    size, reply_s = 24 << 20, 5.0
    timeouts = {"reply_s": reply_s, "silence_s": reply_s, "connect_s": PATIENCE_S}
    with BareWorker(fleet, {SLOW: Node(HOST, hop.port)}, timeouts=timeouts) as worker:
        key, other = Keys(worker).on(SLOW, 2)
        # the hop alone takes ten seconds for it, and more where it is not given its time
        long_s = 6 * PATIENCE_S
        with Connection(worker.port, patience_s=long_s) as asking, Connection(worker.port, patience_s=long_s) as behind:
            assert behind.ask("DEL", other) in (0, 1)
            hop.drip(GAP_S / 2, Way.REQUESTS, piece=65536)
            asking.send(("SET", key, b"x" * size))
            wait_until("it to be in flight", lambda: worker.count("inflight") == 1, lambda: "", PATIENCE_S)
            behind.send(("SET", other, "v"), ("GET", other))
            assert asking.read() == b"OK"
            assert behind.reads(2) == [b"OK", b"v"]
            assert worker.count("timeouts") == 0


def test_a_reply_that_stops_coming_is_given_up(over_the_wire: BareWorker, hop: Hop) -> None:
    key = Keys(over_the_wire).one(SLOW)
    with Connection(over_the_wire.port) as asking:
        assert asking.ask("SET", key, b"x" * SIZE) == b"OK"
        hop.drip(PATIENCE_S, Way.REPLIES, piece=SIZE // PIECES)
        assert "did not answer" in error(asking.ask("GET", key))


@contextlib.contextmanager
def at_work(port: int, key: str) -> Iterator[None]:
    """The worker is nearly always in the middle of a request of one client, and comes to others between two of them."""
    ends = threading.Event()
    with Connection(port) as conn:
        block = packed("EXISTS", *[key] * 4000) * 20

        def ask() -> None:
            with contextlib.suppress(OSError):
                while not ends.is_set():
                    conn.socket.sendall(block)

        def read() -> None:
            with contextlib.suppress(OSError):
                while conn.socket.recv(1 << 20):
                    pass

        threads = [threading.Thread(target=target) for target in (ask, read)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            ends.set()
            conn.socket.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()


def is_sent(worker: BareWorker, hop: Hop, increments: int) -> bool:
    """Whether so many are. On a loaded machine the worker may stand still for so long that it asks before it writes."""
    for awake in worker.of(Awake)[-1:]:
        worker.send(Confirmed(awake.at))
    return hop.requests.count(b"INCR") == increments


def test_an_answer_that_is_in_the_socket_is_read_before_its_deadline_is_said_to_have_passed(
    fleet: Fleet, hop: Hop
) -> None:
    """The worker is late, as if what it was at had taken so long; the replies come meanwhile."""
    timeouts = {"reply_s": 0.4, "silence_s": PATIENCE_S, "connect_s": PATIENCE_S}
    with BareWorker(fleet, {SLOW: Node(HOST, hop.port)}, timeouts=timeouts) as worker:
        key = Keys(worker).one(SLOW, "late")
        with Connection(worker.port) as conn, at_work(worker.port, Keys(worker).one(0)):
            assert conn.ask("DEL", key) in (0, 1)
            for number in range(1, 6):
                hop.stall(Way.REPLIES)
                asked = hop.requests.count(b"INCR") + 1
                conn.send(("INCR", key))
                wait_until("it to be sent", lambda: is_sent(worker, hop, asked), worker.tail)  # noqa: B023
                os.kill(worker.pid, signal.SIGSTOP)
                try:
                    until = time.monotonic() + 0.6  # less than what a worker takes for a sleep of its machine
                    hop.heal()
                    wait_until("the deadline to be over", lambda: time.monotonic() > until, lambda: "")  # noqa: B023
                finally:
                    os.kill(worker.pid, signal.SIGCONT)
                assert conn.read() == number
            assert worker.count("timeouts") == 0


def test_a_connection_whose_answer_is_in_the_socket_is_not_lost_by_a_late_worker(fleet: Fleet, hop: Hop) -> None:
    """Its request was answered by an error long ago; that the server was silent too long since would be said next."""
    timeouts = {"reply_s": 0.2, "silence_s": 2.0, "connect_s": PATIENCE_S}
    with BareWorker(fleet, {SLOW: Node(HOST, hop.port)}, timeouts=timeouts) as worker, Connection(worker.port) as conn:
        key = Keys(worker).one(SLOW, "silent")
        assert conn.ask("DEL", key) in (0, 1)
        connections = hop.accepted
        hop.stall(Way.REPLIES)
        assert error(conn.ask("INCR", key)).startswith("UNCERTAIN")
        with paused(worker, 2.2):
            hop.heal()
        assert conn.ask("GET", key) == b"1"
        assert hop.accepted == connections


def test_what_a_worker_is_late_by_is_not_taken_off_the_time_of_a_server(fleet: Fleet, hop: Hop) -> None:
    """The answer comes after the worker goes on, and long after its deadline by the clock."""
    timeouts = {"reply_s": 2.0, "silence_s": PATIENCE_S, "connect_s": PATIENCE_S}
    with BareWorker(fleet, {SLOW: Node(HOST, hop.port)}, timeouts=timeouts) as worker, Connection(worker.port) as conn:
        key = Keys(worker).one(SLOW, "late")
        assert conn.ask("DEL", key) in (0, 1)
        hop.stall(Way.REPLIES)
        asked = hop.requests.count(b"INCR") + 1
        conn.send(("INCR", key))
        wait_until("it to be sent", lambda: hop.requests.count(b"INCR") == asked, lambda: "")
        heartbeats = worker.count("heartbeat_us")
        with paused(worker, 2.2):
            pass
        wait_until("the worker to go on", lambda: worker.count("heartbeat_us") > heartbeats + 2_000_000, lambda: "")
        hop.heal()
        assert conn.read() == 1
        assert worker.count("timeouts") == 0


@contextlib.contextmanager
def paused(worker: BareWorker, seconds: float) -> Iterator[None]:
    """Stopped by a signal for so long, as if what it was at had taken that."""
    os.kill(worker.pid, signal.SIGSTOP)
    try:
        until = time.monotonic() + seconds
        yield
        wait_until("the pause to be over", lambda: time.monotonic() > until, lambda: "")
    finally:
        os.kill(worker.pid, signal.SIGCONT)
