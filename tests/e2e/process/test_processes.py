"""One parent, its workers, and how each of them ends: clients are closed by FIN, never by RST."""

import collections
import contextlib
import ctypes
import os
import signal
import socket
from collections.abc import Callable, Iterator

import hiredis
import pytest

from pyproxy.fleet import HOST, Fleet, Proxy, wait_until
from tests.e2e.rig import (
    PATIENCE_S,
    PATIENT,
    Connection,
    Keys,
    behind,
    error,
    of_a_worker,
    packed,
    proxy_info,
    wait_for_info,
)
from tests.faults import Hop, Way
from tests.processes import Identity, alive, command_line, family, wait_until_gone

STALLED = 1
"""The index of the shard behind the hop."""


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet(shards=2, replicas=0) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def shared(fleet: Fleet) -> Iterator[Proxy]:
    """A proxy of two workers that stays as it is."""
    with Proxy(fleet, workers=2, limits={"max_clients": 40}, timeouts=PATIENT | {"unfinished_s": 0.5}) as proxy:
        wait_until_all_are_ready(proxy)
        yield proxy


@pytest.fixture
def hop(fleet: Fleet) -> Iterator[Hop]:
    with Hop(fleet.shards[STALLED].primary.port, of_a_worker) as hop:
        yield hop


@contextlib.contextmanager
def own(fleet: Fleet, hop: Hop, drain_s: float) -> Iterator[Proxy]:
    """A proxy of two workers that a test may end."""
    with behind(fleet, {STALLED: hop}, 2, timeouts=PATIENT | {"drain_s": drain_s}) as proxy:
        wait_until_all_are_ready(proxy)
        yield proxy


def wait_until_all_are_ready(proxy: Proxy) -> None:
    """The first worker answers before the last one is there."""
    wait_until("all workers to be ready", lambda: "+ready " in proxy.log.read_text(), proxy.tail)


def workers(proxy: Proxy) -> dict[int, Identity]:
    """The workers that run, by their index."""
    found = {}
    for identity in family(proxy.pid):
        words = command_line(identity[0])
        if "pyproxy.worker" in words:
            found[int(words[words.index("--index") + 1])] = identity
    return found


def worker_of(conn: Connection) -> int:
    return int(proxy_info(conn)["worker"])


# --- workers ----------------------------------------------------------------------------------------------------------


def test_clients_are_spread_exactly_evenly(shared: Proxy) -> None:
    with contextlib.ExitStack() as stack:
        talks = [stack.enter_context(Connection(shared.port))]
        wait_for_info(talks[0], "nobody else to be there", lambda info: info["connected_clients"] == "1")
        talks += [stack.enter_context(Connection(shared.port)) for _ in range(19)]
        assert collections.Counter(map(worker_of, talks)) == {0: 10, 1: 10}


def test_numbers_of_clients_are_unique_over_all_workers(shared: Proxy) -> None:
    with contextlib.ExitStack() as stack:
        talks = [stack.enter_context(Connection(shared.port)) for _ in range(10)]
        assert len({str(conn.ask("CLIENT", "ID")) for conn in talks}) == 10


def test_a_killed_worker_is_replaced_and_nobody_else_notices(fleet: Fleet, hop: Hop) -> None:
    with own(fleet, hop, drain_s=1.0) as proxy, contextlib.ExitStack() as stack:
        talks = [stack.enter_context(Connection(proxy.port)) for _ in range(10)]
        by_worker = collections.defaultdict(list)
        for conn in talks:
            by_worker[worker_of(conn)].append(conn)
        names = [name for shard in range(2) for name in Keys(proxy).on(shard, 20)]
        before = workers(proxy)
        for conn in talks:
            conn.send(*[("INCR", name) for name in names] * 5)
        os.kill(before[1][0], signal.SIGKILL)
        for conn in by_worker[0]:
            assert all(isinstance(reply, int) for reply in conn.reads(200))

        def replaced() -> bool:
            """Whether it is back; meanwhile those who come and those who are there are served."""
            with Connection(proxy.port) as new:
                assert new.ask("PING") == b"PONG"
                index = worker_of(new)
            for conn in by_worker[0]:
                conn.send(*[("EXISTS", name) for name in names])
            for conn in by_worker[0]:
                assert conn.reads(len(names)) == [1] * len(names)
            return index == 1

        wait_until("a client to be served by the new worker", replaced, lambda: str(workers(proxy)), PATIENCE_S)
        after = workers(proxy)
        assert after[0] == before[0]
        assert after[1] != before[1]


def test_when_the_parent_is_killed_the_workers_end_in_order(fleet: Fleet, hop: Hop) -> None:
    with own(fleet, hop, drain_s=1.0) as proxy, contextlib.ExitStack() as stack:
        talks = [stack.enter_context(Connection(proxy.port)) for _ in range(4)]
        assert [conn.ask("PING") for conn in talks] == [b"PONG"] * 4
        running = family(proxy.pid)
        proxy.kill()
        assert [conn.until_end() for conn in talks] == [b""] * 4, "closed by FIN"
        for conn in talks:
            conn.close()
        wait_until_gone(running)


# --- the end ----------------------------------------------------------------------------------------------------------


def test_sigterm_drains(fleet: Fleet, hop: Hop) -> None:
    """Idle clients are closed, what is in flight is answered, nobody is let in, and the exit status is 0."""
    with own(fleet, hop, drain_s=PATIENCE_S) as proxy, Connection(proxy.port) as idle, Connection(proxy.port) as busy:
        key = Keys(proxy).one(STALLED)
        assert (idle.ask("PING"), busy.ask("SET", key, "v")) == (b"PONG", b"OK")
        running = family(proxy.pid)
        hop.stall(Way.REPLIES)
        busy.send(("GET", key), ("ECHO", "behind it"))
        with Connection(proxy.port) as looking:
            wait_for_info(looking, "a request to be in flight", lambda info: info["inflight"] == "1")
        proxy.terminate()
        assert idle.until_end() == b"", "closed by FIN"
        idle.close()

        def refused() -> bool:
            try:
                socket.create_connection((HOST, proxy.port), timeout=PATIENCE_S).close()
            except ConnectionRefusedError:
                return True
            except ConnectionResetError:
                return False  # it was in the listener's queue when that was closed
            return False

        wait_until("nobody to be let in", refused, lambda: "", PATIENCE_S)
        hop.heal()
        assert busy.reads(2) == [b"v", b"behind it"]
        assert busy.until_end() == b"", "closed by FIN"
        busy.close()
        assert proxy.wait() == 0
        wait_until_gone(running)


def test_a_drain_ends_at_its_deadline_by_fin(fleet: Fleet, hop: Hop) -> None:
    with own(fleet, hop, drain_s=0.3) as proxy, Connection(proxy.port) as busy:
        key = Keys(proxy).one(STALLED)
        assert busy.ask("SET", key, "v") == b"OK"
        hop.stall(Way.REPLIES)
        busy.send(("GET", key))
        wait_until("it to be asked", lambda: packed("GET", key) in hop.requests, lambda: "", PATIENCE_S)
        proxy.terminate()
        assert busy.until_end() == b""
        assert proxy.wait() == 0


def test_a_second_sigint_ends_it_at_once_and_a_second_sigterm_does_not(fleet: Fleet, hop: Hop) -> None:
    with own(fleet, hop, drain_s=3600.0) as proxy, Connection(proxy.port) as busy, Connection(proxy.port) as idle:
        key = Keys(proxy).one(STALLED)
        assert (idle.ask("PING"), busy.ask("SET", key, "v")) == (b"PONG", b"OK")
        running = family(proxy.pid)
        hop.stall(Way.REPLIES)
        busy.send(("GET", key))
        wait_until("it to be asked", lambda: packed("GET", key) in hop.requests, lambda: "", PATIENCE_S)
        proxy.terminate()
        assert idle.until_end() == b"", "it drains"
        proxy.terminate()
        wait_until("it to go on", lambda: "+signal-ignored signal=SIGTERM" in proxy.tail(), proxy.tail, PATIENCE_S)
        assert family(proxy.pid) == running
        os.kill(proxy.pid, signal.SIGINT)
        wait_until("it to go on", lambda: "+signal-ignored signal=SIGINT" in proxy.tail(), proxy.tail, PATIENCE_S)
        os.kill(proxy.pid, signal.SIGINT)
        assert proxy.wait() == 128 + signal.SIGINT
        wait_until_gone(running)


# --- closing is FIN ---------------------------------------------------------------------------------------------------

REST = b"*1\r\n$4\r\nPING\r\n" * 100_000
"""1.4 MB that the client sends behind what closes it: unread bytes would turn the FIN into an RST."""

CLOSING: dict[str, tuple[bytes, Callable[[bytes], bool]]] = {
    "QUIT": (b"QUIT\r\n", lambda said: said == b"+OK\r\n"),
    "a protocol error": (b"*1\r\nfoo\r\n", lambda said: said == b"-ERR Protocol error: expected '$', got 'f'\r\n"),
    "unbalanced quotes": (b'GET "a\r\n', lambda said: said.startswith(b"-ERR Protocol error: unbalanced quotes")),
    "too large a bulk": (
        b"*1\r\n$999999999999\r\n",
        lambda said: said.startswith(b"-ERR Protocol error: invalid bulk"),
    ),
    "a web browser": (b"POST / HTTP/1.1\r\n", lambda said: said == b""),
    "replies, then QUIT": (b"PING\r\n" * 1000 + b"QUIT\r\n", lambda said: said == b"+PONG\r\n" * 1000 + b"+OK\r\n"),
}


@pytest.mark.parametrize(("sent", "is_right"), CLOSING.values(), ids=CLOSING.keys())
def test_a_client_that_is_closed_gets_its_last_words_and_a_fin(
    shared: Proxy, sent: bytes, is_right: Callable[[bytes], bool]
) -> None:
    with Connection(shared.port) as conn:
        conn.socket.sendall(sent + REST)
        said = conn.until_end()
        assert is_right(said), said[-200:]


def test_a_command_that_does_not_end_is_closed_by_fin(shared: Proxy) -> None:
    with Connection(shared.port) as conn:
        conn.socket.sendall(b"*2\r\n$3\r\nGET\r\n$5\r\nab")
        assert conn.until_end() == b""


def test_above_max_clients_the_error_comes_and_a_fin_although_something_was_sent(shared: Proxy) -> None:
    """The worker is stopped meanwhile, so that the first command has come when it accepts."""
    with contextlib.ExitStack() as stack:
        talks = [stack.enter_context(Connection(shared.port)) for _ in range(40)]
        assert [conn.ask("PING") for conn in talks] == [b"PONG"] * 40
        running = workers(shared).values()
        with stopped(running):
            late = stack.enter_context(Connection(shared.port))
            late.send(("HELLO", 3), *[("PING",)] * 1000)
        assert late.until_end() == b"-ERR max number of clients reached\r\n"
        assert [conn.ask("PING") for conn in talks] == [b"PONG"] * 40
        assert all(alive(each) for each in running)
        talks[0].close()

        def let_in() -> bool:
            with Connection(shared.port) as again:
                reply: object = None
                with contextlib.suppress(AssertionError, OSError):
                    reply = again.ask("PING")
                return reply == b"PONG"

        wait_until("somebody to be let in where one has left", let_in, lambda: "", PATIENCE_S)


@contextlib.contextmanager
def stopped(processes: "collections.abc.Iterable[Identity]") -> Iterator[None]:
    for pid, _ in processes:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid, _ in processes:
            os.kill(pid, signal.SIGCONT)


def test_an_unknown_or_refused_command_does_not_close(shared: Proxy) -> None:
    with Connection(shared.port) as conn:
        for argv in (("NOSUCH", "a"), ("DEBUG", "SLEEP", "1"), ("GET",), ("CLIENT", "NOSUCH"), ("SHUTDOWN",)):
            assert isinstance(conn.ask(*argv), hiredis.ReplyError), argv
        assert conn.ask("PING") == b"PONG"


# --- sockets ----------------------------------------------------------------------------------------------------------

_PIDFD_GETFD = 438  # <asm-generic/unistd.h>, the same on all architectures
_libc = ctypes.CDLL(None, use_errno=True)


def tcp_sockets(pid: int) -> Iterator[socket.socket]:
    """Copies of another process' TCP connections. Skips the test where the system forbids it."""
    process = os.pidfd_open(pid)
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            if not os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:"):
                continue
            fd = _libc.syscall(_PIDFD_GETFD, process, int(name), 0)
            if fd < 0:
                pytest.skip(f"pidfd_getfd: {os.strerror(ctypes.get_errno())}")
            with socket.socket(fileno=fd) as copy:
                if copy.family == socket.AF_INET and not copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    yield copy
    finally:
        os.close(process)


def test_no_segment_waits_for_another_on_either_side(shared: Proxy, fleet: Fleet) -> None:
    with Connection(shared.port) as conn:
        keys = Keys(shared)
        assert conn.ask("TOUCH", keys.one(0, "x"), keys.one(1, "x")) == 0
        pid = workers(shared)[worker_of(conn)][0]
        without_delay = {
            each.getpeername()[1]: each.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for each in tcp_sockets(pid)
        }
        mine = conn.socket.getsockname()[1]
        servers = {shard.primary.port for shard in fleet.shards}
        assert {mine} | servers <= without_delay.keys()
        assert all(without_delay.values())


def test_what_one_client_breaks_is_no_others(shared: Proxy) -> None:
    with Connection(shared.port) as well, Connection(shared.port) as broken:
        broken.socket.sendall(b"*1\r\n$-1\r\n")
        assert error(well.ask("NOSUCH")).startswith("ERR unknown command")
        assert broken.until_end().startswith(b"-ERR Protocol error")
        assert well.ask("PING") == b"PONG"
