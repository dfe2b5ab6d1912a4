"""Clients that go, in every way and at every moment: nobody else notices, and nothing of them stays."""

import contextlib
import random
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyproxy.fleet import HOST, Fleet, Proxy, wait_until
from pyproxy.worker.shard.pool import MAX_IDLE
from tests.e2e.rig import PATIENCE_S, PATIENT, Connection, Keys, behind, of_a_worker, packed, wait_for_info
from tests.faults import Hop, Way
from tests.processes import command_line, family

STALLED = 1
"""The index of the shard behind the hop."""


@pytest.fixture(scope="module")
def hop(fleet: Fleet) -> Iterator[Hop]:
    with Hop(fleet.shards[STALLED].primary.port, of_a_worker) as hop:
        yield hop


@pytest.fixture(scope="module")
def proxy(fleet: Fleet, hop: Hop) -> Iterator[Proxy]:
    with behind(fleet, {STALLED: hop}, timeouts=PATIENT) as proxy:
        yield proxy


@pytest.fixture
def stays(proxy: Proxy, hop: Hop, keys: Keys) -> Iterator[Connection]:
    """A client that stays: it is served as before, by the same connections, and nothing of the others is left."""
    with Connection(proxy.port) as stays:
        names = [keys.one(index, "stays") for index in range(3)]
        assert stays.ask("MSET", *[word for name in names for word in (name, name)]) == b"OK"
        accepted = hop.accepted
        yield stays
        hop.heal()
        stays.send(*[("GET", name) for name in names], ("MGET", *names), ("PING",))
        expected = [name.encode() for name in names]
        assert stays.reads(5) == [*expected, expected, b"PONG"]
        assert hop.accepted == accepted, "no connection to a server was given up"
        wait_for_info(stays, "nothing to be left", nothing_is_left)


def nothing_is_left(info: dict[str, str]) -> bool:
    return (info["connected_clients"], info["inflight"], info["buffered_bytes"]) == ("1", "0", "0")


def it_is_gone(info: dict[str, str]) -> bool:
    return (info["connected_clients"], info["inflight"]) == ("1", "0")


def out(count: int) -> Callable[[dict[str, str]], bool]:
    return lambda info: info["inflight"] == str(count)


def test_by_rst_in_the_middle_of_a_fan_out(stays: Connection, proxy: Proxy, hop: Hop, keys: Keys) -> None:
    """Two of three shards have answered, and the third answers when nobody waits any more."""
    names = [name for index in range(3) for name in keys.on(index, 100, "fan")]
    hop.stall(Way.REPLIES)
    leaves = Connection(proxy.port)
    leaves.send(("MGET", *names), ("DEL", *names), ("DBSIZE",))
    wait_for_info(stays, "three to be in flight", out(3))
    leaves.reset()
    wait_for_info(stays, "it to be gone", it_is_gone)


def test_by_rst_in_mid_pipeline(stays: Connection, proxy: Proxy, hop: Hop, keys: Keys) -> None:
    """What was begun is done once, and its replies are swallowed, each by its own tombstone."""
    key = keys.one(STALLED, "pipeline")
    hop.stall(Way.REPLIES)
    leaves = Connection(proxy.port)
    leaves.send(*[("INCR", key)] * 10)
    wait_for_info(stays, "ten to be in flight", out(10))
    leaves.reset()
    wait_for_info(stays, "it to be gone", it_is_gone)
    hop.heal()
    assert stays.ask("GET", key) == b"10"


def test_by_fin_without_waiting_for_replies(stays: Connection, proxy: Proxy, hop: Hop, keys: Keys) -> None:
    """Nobody can tell this from half a close: it is answered, to a socket that is not there."""
    key = keys.one(STALLED, "closed")
    hop.stall(Way.REPLIES)
    leaves = Connection(proxy.port)
    leaves.send(*[("INCR", key), ("MGET", key, keys.one(0)), ("DBSIZE",)] * 3)
    wait_for_info(stays, "nine to be in flight", out(9))
    leaves.close()
    hop.heal()
    wait_for_info(stays, "it to be gone", it_is_gone)
    assert stays.ask("GET", key) == b"3"


def test_in_the_middle_of_a_command_which_is_not_done(stays: Connection, proxy: Proxy, keys: Keys) -> None:
    key = keys.one(0, "half")
    with Connection(proxy.port) as leaves:
        leaves.socket.sendall(packed("SET", key, "whole") + packed("SET", key, "half a command")[:-5])
        leaves.socket.shutdown(socket.SHUT_WR)
        assert leaves.until_end() == b"+OK\r\n"
    assert stays.ask("GET", key) == b"whole"


def test_without_reading_replies_that_are_large(stays: Connection, proxy: Proxy, keys: Keys) -> None:
    key = keys.one(0, "large")
    assert stays.ask("SET", key, b"x" * (8 << 20)) == b"OK"
    leaves = Connection(proxy.port, receive_buffer=4096)
    leaves.send(("GET", key), ("GET", key), ("GET", key))
    wait_for_info(stays, "the replies to be buffered", lambda info: int(info["buffered_bytes"]) > 4 << 20)
    leaves.reset()
    wait_for_info(stays, "it to be gone", nothing_is_left)


@pytest.mark.usefixtures("stays")
def test_half_a_close_is_finished_and_answered(proxy: Proxy, hop: Hop, keys: Keys) -> None:
    """What was sent before the FIN is done and answered, what is slow too; then comes the proxy's own FIN."""
    key = keys.one(STALLED, "half-close")
    hop.stall(Way.REPLIES)
    with Connection(proxy.port) as half, Connection(proxy.port) as looking:
        half.send(("SET", key, "v"), *[("GET", key)] * 200, ("MGET", key, keys.one(0, "nothing")), ("ECHO", "last"))
        half.socket.shutdown(socket.SHUT_WR)
        wait_for_info(looking, "requests to be in flight", lambda info: int(info["inflight"]) > 0)
        hop.heal()
        assert half.reads(203) == [b"OK", *[b"v"] * 200, [b"v", None], b"last"]
        assert half.until_end() == b""


@pytest.mark.usefixtures("stays")
def test_a_script_that_pipes_into_netcat_gets_its_answers(proxy: Proxy) -> None:
    nc = shutil.which("nc")
    if nc is None:
        pytest.skip("there is no nc on this machine")
    said = subprocess.run(
        [nc, "-N", "127.0.0.1", str(proxy.port)],
        input=b"SET netcat 1\r\nINCR netcat\r\nDEL netcat\r\n",
        capture_output=True,
        timeout=PATIENCE_S,
        check=True,
    ).stdout
    assert said == b"+OK\r\n:2\r\n:1\r\n"


def test_all_at_once_and_at_random(stays: Connection, proxy: Proxy, keys: Keys) -> None:
    """200 clients, each of which leaves somewhere in its pipeline; those that read to the end got what they asked."""
    chance = random.Random(7)
    names = [name for index in range(3) for name in keys.on(index, 10, "random")]
    assert stays.ask("MSET", *[word for name in names for word in (name, name)]) == b"OK"
    for _ in range(10):
        with contextlib.ExitStack() as rest:
            clients = [rest.enter_context(Connection(proxy.port)) for _ in range(20)]
            asked = [[chance.sample(names, 5) for _ in range(20)] for _ in clients]
            for client, lists in zip(clients, asked, strict=True):
                client.send(*[("MGET", *each) for each in lists])
            for client, lists in zip(clients, asked, strict=True):
                for each in lists[: chance.choice((0, 1, 10, 20))]:
                    assert client.read() == [name.encode() for name in each]
                chance.choice((Connection.close, Connection.reset))(client)


def test_a_server_and_a_client_that_go_together(proxy: Proxy, hop: Hop, keys: Keys) -> None:
    """In either order, within one turn or two: no reply is left, and the shard is served again."""
    key = keys.one(STALLED, "both")
    with Connection(proxy.port) as looking:
        for leave in (Connection.close, Connection.reset) * 3:
            wait_until("the shard to be served", lambda: looking.ask("DEL", key) in (0, 1), lambda: "", PATIENCE_S)
            leaves = Connection(proxy.port)
            hop.stall(Way.REPLIES)
            leaves.send(("GET", key), ("INCR", key), ("MGET", key, keys.one(0)), ("DEL", key, keys.one(2)))
            wait_for_info(looking, "four to be in flight", out(4))
            hop.cut(reset=leave is Connection.reset)
            leave(leaves)
            hop.heal()
            wait_for_info(looking, "nothing to be left", nothing_is_left)


# --- while something is done for them beside their connection ---------------------------------------------------------

STORM = 3000
"""Connections, one after another; without the rule that is tested a worker lives through some hundreds."""


def worker_of(proxy: Proxy) -> int:
    return next(pid for pid, _ in family(proxy.pid) if "pyproxy.worker" in command_line(pid))


def descriptors(pid: int) -> int:
    """How many files and sockets a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@pytest.mark.parametrize("last", [("WAIT", 0, 100), ("WAITAOF", 0, 0, 100), ("WAIT", 1, 1)])
def test_a_storm_of_clients_that_leave_while_shards_are_asked_for_them_ends_nobody_else(
    fleet: Fleet, keys: Keys, last: tuple[str | int, ...]
) -> None:
    """A conversation that is over asks nothing, whatever it had begun beside itself."""
    rng = random.Random(5)
    with Proxy(fleet, None, 1, timeouts=PATIENT) as proxy, Connection(proxy.port) as stays:
        worker = worker_of(proxy)
        stays.ask("PING")
        before = descriptors(worker)
        storm = b"".join(packed("SET", keys.one(shard), 1) for shard in range(3)) + packed(*last)
        for _ in range(STORM):
            with socket.create_connection((HOST, proxy.port), timeout=PATIENCE_S) as leaves:
                leaves.sendall(storm)
                received = 0
                while received < 3 * len(b"+OK\r\n"):
                    received += len(leaves.recv(100))
                for _ in range(rng.randrange(4)):  # some turns of the loop later
                    assert stays.ask("PING") == b"PONG"
                if rng.random() < 0.5:
                    leaves.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        assert worker_of(proxy) == worker
        wait_for_info(stays, "nothing to be left", nothing_is_left)
        wait_until("all connections to be given back", lambda: descriptors(worker) <= before + 3 * MAX_IDLE, proxy.tail)
        log = proxy.log.read_text()
        assert "+bug" not in log and "Traceback" not in log


def test_a_connection_that_is_being_made_for_a_client_goes_with_it(
    proxy: Proxy, hop: Hop, keys: Keys, stays: Connection
) -> None:
    """Nobody waits for it any more, so it has no deadline either."""
    key, worker = keys.one(STALLED, "queue"), worker_of(proxy)
    before, accepted = descriptors(worker), hop.accepted
    hop.stall(Way.REPLIES)
    leaving = [Connection(proxy.port) for _ in range(20)]
    for each in leaving:
        each.send(("BLPOP", key, 0))
    wait_until("twenty to be made", lambda: hop.accepted == accepted + 20, lambda: f"{hop.accepted - accepted}")
    assert descriptors(worker) >= before + 40
    for each in leaving:
        each.reset()
    wait_until("them to be gone", lambda: descriptors(worker) == before, lambda: f"{descriptors(worker)} of {before}")
    hop.heal()
    hop.accepted = accepted  # those were not the shared ones
    assert stays.ask("RPUSH", key, "v") == 1
    assert stays.ask("BLPOP", key, 0) == [key.encode(), b"v"]
    hop.accepted = accepted
    assert "Traceback" not in proxy.log.read_text()
