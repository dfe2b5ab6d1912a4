"""Clients that write all before they read, that close when they have written, or never read: as Redis serves them."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence

import pytest
import redis

from pyproxy.fleet import HOST, Fleet, Proxy, wait_until
from tests.e2e.rig import PATIENCE_S, PATIENT, Connection, Keys, packed, proxy_info, wait_for_info
from tests.processes import command_line, family

MIB = 1 << 20


@pytest.fixture(scope="module")
def proxy(fleet: Fleet) -> Iterator[Proxy]:
    with Proxy(fleet, timeouts=PATIENT) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def empty(fleet: Fleet) -> None:
    for shard in fleet.shards:
        shard.primary.ask("FLUSHALL")


# --- writes before it reads -------------------------------------------------------------------------------------------


def test_redis_py_writes_a_pipeline_of_50_mb_before_it_reads(proxy: Proxy) -> None:
    """5,000 pairs of a SET of 10 KB and its GET, in one write; nothing is read before all is written."""
    value = b"x" * 10_000
    with redis.Redis(HOST, proxy.port, socket_timeout=PATIENCE_S) as client:
        pipeline = client.pipeline(transaction=False)
        for number in range(5000):
            pipeline.set(f"key:{number}", value)
            pipeline.get(f"key:{number}")
        assert pipeline.execute() == [True, value] * 5000


def test_half_a_million_small_reads_are_written_before_the_first_answer_is_read(proxy: Proxy, conn: Connection) -> None:
    assert conn.ask("SET", "small", b"x" * 10) == b"OK"
    request = packed("GET", "small") * 500_000
    conn.socket.sendall(request)
    received = 0
    while received < 500_000 * len(b"$10\r\nxxxxxxxxxx\r\n"):
        more = conn.socket.recv(MIB)
        assert more
        received += len(more)
    assert received == 500_000 * len(b"$10\r\nxxxxxxxxxx\r\n")


@pytest.mark.parametrize("command", [("SELECT", 0), ("SCAN", 0), ("EVAL", "return 1", 1, "k")], ids=lambda c: str(c[0]))
def test_so_it_is_where_a_command_waits_for_all_before_it(
    proxy: Proxy, conn: Connection, command: tuple[str | int]
) -> None:
    value = b"x" * 10_000
    pairs = (packed("SET", "k", value) + packed("GET", "k")) * 20 + packed(*command)
    conn.socket.sendall(pairs * 60)
    replies = [conn.reads(41) for _ in range(60)]
    assert all(each[:40] == [b"OK", value] * 20 for each in replies)


def test_one_that_never_reads_is_closed_at_its_limit_with_a_word_in_the_log(fleet: Fleet) -> None:
    with Proxy(fleet, limits={"client_output_bytes": 4 * MIB}) as proxy, Connection(proxy.port) as other:
        assert other.ask("SET", "k", b"x" * 1000) == b"OK"
        with Connection(proxy.port, receive_buffer=4096) as stalled:
            closed: list[Exception] = []

            def write() -> None:
                try:
                    while True:
                        stalled.socket.sendall(packed("GET", "k") * 10_000)
                except OSError as error:
                    closed.append(error)

            writer = threading.Thread(target=write)
            writer.start()
            wait_until("it to be closed", lambda: bool(closed), proxy.tail, PATIENCE_S)
            writer.join()
        line = next(line for line in proxy.log.read_text().splitlines() if "+client-output-limit" in line)
        assert f"limit={4 * MIB}" in line
        assert int(proxy_info(other)["buffered_bytes"]) < 8 * MIB
        assert other.ask("GET", "k") == b"x" * 1000


def test_one_that_reads_slowly_is_served_however_much_it_asked_for(fleet: Fleet) -> None:
    """200 values of 1 MB, of which a few fit into the memory of the proxy at a time."""
    limits = {"memory_bytes": 64 * MIB, "client_output_bytes": 4 * MIB}
    with Proxy(fleet, limits=limits, timeouts=PATIENT) as proxy, Connection(proxy.port) as other:
        names = [Keys(proxy).one(shard, "large") for shard in range(3)]
        for name in names:
            assert other.ask("SET", name, b"x" * MIB) == b"OK"
        readers = [Connection(proxy.port, receive_buffer=4096) for _ in range(8)]
        for reader in readers:
            reader.send(*[("GET", names[number % 3]) for number in range(25)])
        for _ in range(25):
            for reader in readers:
                assert reader.read() == b"x" * MIB
        assert proxy_info(other)["shed"] == "0"
        for reader in readers:
            reader.close()


# --- writes, and closes -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def standing_still(proxy: Proxy) -> Iterator[None]:
    """The worker reads nothing meanwhile: what is sent and the close behind it are there when it goes on."""
    (worker,) = [pid for pid, _ in family(proxy.pid) if "pyproxy.worker" in command_line(pid)]
    os.kill(worker, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(worker, signal.SIGCONT)


def send_and_close(proxy: Proxy, *commands: Sequence[str | int]) -> None:
    with Connection(proxy.port) as leaver:
        assert leaver.ask("PING") == b"PONG"
        with standing_still(proxy):
            leaver.send(*commands)
            leaver.close()


def test_all_that_was_sent_before_a_close_is_done(proxy: Proxy, conn: Connection) -> None:
    """The answers meet a closed socket, and a reset comes back for the first of them."""
    send_and_close(proxy, *[("SET", f"key:{number}", number) for number in range(1000)])
    wait_until("all of it to be done", lambda: conn.ask("DBSIZE") == 1000, lambda: str(conn.ask("DBSIZE")), PATIENCE_S)
    wait_for_info(
        conn, "nothing to be left of it", lambda info: (info["inflight"], info["buffered_bytes"]) == ("0", "0")
    )
    wait_for_info(conn, "the client to be gone", lambda info: info["connected_clients"] == "1")


def test_so_it_is_with_all_kinds_of_commands(proxy: Proxy, conn: Connection) -> None:
    """Over shards, in a transaction, a script: they wait for what is before them, and nobody reads any answer."""
    send_and_close(
        proxy,
        *[
            ("INCR", "a"), ("MSET", "x", 1, "y", 2, "z", 3), ("EVAL", "return redis.call('incr', KEYS[1])", 1, "b"),
            ("MULTI",), ("INCR", "c"), ("EXEC",), ("SELECT", 1), ("INCR", "d"), ("SELECT", 0),
        ] * 50,
    )  # fmt: skip
    wait_until("all of it to be done", lambda: done(conn) == [b"50"] * 4, lambda: str(done(conn)), PATIENCE_S)


def done(conn: Connection) -> list[object]:
    counts = [conn.ask("GET", key) for key in ("a", "b", "c")]
    conn.send(("SELECT", 1), ("GET", "d"), ("SELECT", 0))
    return [*counts, conn.reads(3)[1]]


def test_after_a_reset_nothing_more_is_begun(fleet: Fleet, proxy: Proxy, conn: Connection) -> None:
    """As on a server: what it had not come to is dropped. What waits for a shard that stands still is that."""
    stopped, other = fleet.shards[1].primary, Keys(proxy).one(0, "other")
    key = Keys(proxy).one(1)
    assert conn.ask("GET", key) is None
    stopped.pause()
    try:
        with Connection(proxy.port) as leaver:
            leaver.send(("GET", key), ("SELECT", 1), ("SET", other, "v"))
            wait_for_info(conn, "it to be in flight", lambda info: info["inflight"] == "1")
            leaver.reset()
        wait_for_info(conn, "it to be gone", lambda info: info["connected_clients"] == "1")
    finally:
        stopped.resume()
    conn.send(("SELECT", 1), ("GET", other))
    assert conn.reads(2) == [b"OK", None]


@pytest.mark.parametrize(
    "waiting",
    [("WAIT", 0, 0), ("BLPOP", "there", 5), ("XREAD", "BLOCK", 5000, "STREAMS", "stream", 0)],
    ids=lambda waiting: str(waiting[0]),
)
def test_what_stands_behind_a_command_that_could_wait_and_need_not_is_done(
    proxy: Proxy, conn: Connection, waiting: tuple[str | int, ...]
) -> None:
    for number in range(1, 11):
        conn.send(("RPUSH", "there", "x"), ("XADD", "stream", "*", "f", "v"))
        conn.reads(2)
        with Connection(proxy.port) as leaver:
            leaver.send(waiting, ("RPUSH", "log", number))
            leaver.socket.shutdown(socket.SHUT_WR)
            wait_until("it to be done", lambda: conn.ask("LLEN", "log") == number, lambda: "", PATIENCE_S)  # noqa: B023


def test_one_that_closed_its_half_and_never_reads_is_closed(proxy: Proxy, conn: Connection) -> None:
    assert conn.ask("SET", "large", b"x" * 900_000) == b"OK"
    with Connection(proxy.port, receive_buffer=4096) as stalled:
        stalled.send(*[("GET", "large")] * 30)
        stalled.socket.shutdown(socket.SHUT_WR)
        wait_for_info(conn, "it to be closed", lambda info: info["connected_clients"] == "1")
        assert "+client-output-limit" in proxy.log.read_text()
