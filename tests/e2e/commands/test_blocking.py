"""Commands that wait, for keys on one shard: answered as by one server, and nothing is lost when somebody goes."""

import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from pyproxy.fleet import VARIABLE, Fleet, Proxy, Server, wait_until
from tests.e2e.rig import PATIENCE_S, PATIENT, Connection, Keys, error, packed, proxy_info, wait_for_info
from tests.e2e.twin.connection import Connection as Frames
from tests.e2e.waiters import MOVERS, WAITERS, Waiter, asked, blocked, wait_blocked
from tests.e2e.waiters import empty as empty_fleet

HERE = 1
"""The index of the shard on which clients wait."""

BOUND = 5
"""The quota of long leases."""

SOON_MS = 30

DATABASE = b"5"


@pytest.fixture(scope="module")
def proxy(fleet: Fleet) -> Iterator[Proxy]:
    with Proxy(fleet, limits={"long_leases": BOUND}, timeouts=PATIENT) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def empty(fleet: Fleet, server: Server) -> None:
    empty_fleet(fleet)
    server.ask("FLUSHALL")


@pytest.fixture
def here(fleet: Fleet) -> Iterator[Server]:
    """The server at which clients wait; afterwards none does."""
    yield fleet.shards[HERE].primary
    wait_blocked(fleet.shards[HERE].primary, 0)


@pytest.fixture
def key(keys: Keys) -> str:
    return keys.one(HERE)


@pytest.fixture
def other(proxy: Proxy) -> Iterator[Connection]:
    with Connection(proxy.port) as other:
        yield other


# --- as one server ----------------------------------------------------------------------------------------------------


class Twins:
    """The proxy and one plain server, of one protocol and database, and the two keys they are asked about."""

    def __init__(self, ports: tuple[int, int], proto: bytes, key: str) -> None:
        self.talks = [Frames(port) for port in ports]
        self.pushers = [Frames(port) for port in ports]
        self.names = (f"{{{key}}}a", f"{{{key}}}b")
        for frames in (*self.talks, *self.pushers):
            asked(frames, [b"HELLO", proto], [b"SELECT", DATABASE])

    def ask(self, waiter: Waiter, *lines: str, timeout_ms: int = 0) -> list[bytes]:
        """The replies to these lines of the waiter, the same of both."""
        argvs = [waiter.words(line, *self.names, timeout_ms) for line in lines if line]
        ours, theirs = (asked(frames, *argvs) for frames in self.talks)
        assert ours == theirs
        return ours


@pytest.fixture(params=[b"2", b"3"], ids=["resp2", "resp3"])
def twins(request: pytest.FixtureRequest, proxy: Proxy, server: Server, key: str) -> Iterator[Twins]:
    twins = Twins((proxy.port, server.port), request.param, key)
    yield twins
    for frames in (*twins.talks, *twins.pushers):
        frames.close()


@pytest.mark.parametrize("waiter", [*WAITERS, *MOVERS], ids=str)
def test_what_is_there_is_had_at_once(twins: Twins, waiter: Waiter) -> None:
    wait = waiter.wait.replace("$ $", "0 0")
    replies = twins.ask(waiter, *waiter.before.split(" ; "), waiter.push, wait, waiter.left, wait, timeout_ms=SOON_MS)
    assert not any(reply.startswith(b"-") for reply in replies)


@pytest.mark.parametrize("waiter", [*WAITERS, *MOVERS], ids=str)
def test_what_comes_later_is_had_then(twins: Twins, waiter: Waiter, here: Server, server: Server) -> None:
    twins.ask(waiter, *waiter.before.split(" ; "))
    wait, push = waiter.words(waiter.wait, *twins.names), waiter.words(waiter.push, *twins.names)
    heard = []
    for conn, pusher, at in zip(twins.talks, twins.pushers, (here, server), strict=True):
        conn.say([packed(*wait) + packed("ECHO", "behind")], 0)
        wait_blocked(at, 1)
        asked(pusher, push)
        heard.append(conn.say([], 2))
    assert heard[0] == heard[1]
    assert heard[0][1] == b"$6\r\nbehind\r\n"
    twins.ask(waiter, waiter.left)


@pytest.mark.parametrize("waiter", [*WAITERS, *MOVERS], ids=str)
def test_what_does_not_come_is_nil_at_the_timeout(twins: Twins, waiter: Waiter) -> None:
    twins.ask(waiter, *waiter.before.split(" ; "))
    before = time.monotonic()
    assert twins.ask(waiter, waiter.wait, timeout_ms=SOON_MS)[0] in (b"*-1\r\n", b"_\r\n")
    assert time.monotonic() - before >= 2 * SOON_MS / 1000


@pytest.mark.parametrize("waiter", [*WAITERS, *MOVERS], ids=str)
def test_in_a_transaction_nothing_waits(twins: Twins, waiter: Waiter) -> None:
    lines = [*waiter.before.split(" ; "), "multi", waiter.wait, waiter.push, waiter.wait, "exec"]
    replies = twins.ask(waiter, *lines)
    assert replies[-1].startswith(b"*3\r\n")


@pytest.mark.parametrize(
    "line",
    [
        *("blpop a", "blpop a x", "blpop a -1", "blpop a 1e400", "blpop a inf", "blpop a nan"),
        *("brpop a 1_0", "blmove a b LEFT MIDDLE 0", "blmove a b LEFT RIGHT -1", "brpoplpush a b x"),
        *("blmpop 0 0 a LEFT", "blmpop x 0 a LEFT", "blmpop 0 1 a MIDDLE", "blmpop 0 1 a LEFT COUNT 0"),
        *("bzmpop 0 5 a MIN", "bzmpop 0 x a MIN", "bzmpop -1 1 a MIN", "bzpopmin a b -0.5", "bzpopmax a 1e18"),
        *("xread BLOCK x STREAMS a 0", "xread BLOCK -1 STREAMS a 0", "xread BLOCK 0 a 0"),
        *("xread BLOCK 0 STREAMS a b 0", "xread BLOCK 9223372036854775807 STREAMS a 0", "xread BLOCK 0 STREAMS a x"),
        *("xreadgroup GROUP nosuch c BLOCK 0 STREAMS a >", "xreadgroup GROUP g c BLOCK 0 STREAMS a $"),
    ],
)
@pytest.mark.parametrize("words", [WAITERS[0]])
def test_what_cannot_be_run_is_refused_in_the_words_of_redis(twins: Twins, words: Waiter, line: str) -> None:
    assert twins.ask(words, line)[0].startswith(b"-")


@pytest.mark.parametrize("waiter", [*WAITERS, *MOVERS], ids=str)
def test_a_key_of_another_type_is_refused_in_the_words_of_redis(twins: Twins, waiter: Waiter) -> None:
    replies = twins.ask(waiter, "set a v", waiter.wait, timeout_ms=SOON_MS)
    assert replies[-1].startswith(b"-")


@pytest.mark.parametrize("how", ["SET", "DEL", "CLIENT UNBLOCK"])
@pytest.mark.parametrize("program", ["", "redis-server"], ids=["valkey", "redis"])
def test_what_a_server_ends_by_itself_is_said_in_its_words(
    program: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that is gone, of which Redis 7.0 says -UNBLOCKED; an operator who unblocks clients."""
    if program:
        binary = shutil.which(program)
        if binary is None:
            pytest.skip(f"no {program} on PATH")
        monkeypatch.setenv(VARIABLE, binary)
    with Fleet(shards=1, replicas=0) as fleet, Proxy(fleet, timeouts=PATIENT) as proxy:
        (server,) = (shard.primary for shard in fleet.shards)
        server.ask("XGROUP", "CREATE", "st", "g", "$", "MKSTREAM")
        with Connection(proxy.port) as ours, Connection(server.port) as theirs:
            for conn in (ours, theirs):
                conn.send(("XREADGROUP", "GROUP", "g", "c", "BLOCK", 0, "STREAMS", "st", ">"))
            wait_blocked(server, 2)
            match how:
                case "SET":
                    server.ask("SET", "st", 1)
                case "DEL":
                    server.ask("DEL", "st")
                case _:
                    unblock_all(server)
            assert error(ours.read()) == error(theirs.read())


def unblock_all(server: Server) -> None:
    """As an operator may do it."""
    text = server.ask("CLIENT", "LIST")
    assert isinstance(text, bytes)
    for line in text.decode().splitlines():
        if " flags=b " in line:
            server.ask("CLIENT", "UNBLOCK", line.partition("id=")[2].split()[0], "ERROR")


# --- who waits --------------------------------------------------------------------------------------------------------


def test_those_who_wait_get_it_in_the_order_in_which_they_came(
    proxy: Proxy, here: Server, other: Connection, key: str
) -> None:
    waiters = [Connection(proxy.port) for _ in range(3)]
    for count, waiter in enumerate(waiters):
        waiter.send(("BLPOP", key, 0))
        wait_blocked(here, count + 1)
    other.ask("RPUSH", key, "first", "second", "third")
    assert [waiter.read() for waiter in waiters] == [[key.encode(), each] for each in (b"first", b"second", b"third")]
    for waiter in waiters:
        waiter.close()


def test_what_is_pipelined_behind_it_is_answered_after_it(
    conn: Connection, other: Connection, here: Server, key: str
) -> None:
    conn.send(("SET", "s", "v"), ("BLPOP", key, 0), ("GET", "s"), ("LLEN", key), ("BRPOP", key, 0), ("PING",))
    wait_blocked(here, 1)
    assert conn.read() == b"OK"
    other.ask("RPUSH", key, "x", "y")
    assert conn.reads(5) == [[key.encode(), b"x"], b"v", 1, [key.encode(), b"y"], b"PONG"]


def test_it_is_seen_in_client_list_and_in_info(conn: Connection, other: Connection, here: Server, key: str) -> None:
    conn.send(("BLPOP", key, 0))
    wait_for_info(other, "a blocked client", lambda info: info["blocked_clients"] == "1")
    assert int(proxy_info(other)["leased_connections"]) >= 1
    listed = other.ask("CLIENT", "LIST")
    assert isinstance(listed, bytes)
    assert b" flags=b " in listed and b" cmd=blpop " in listed
    other.ask("RPUSH", key, "x")
    conn.read()
    wait_for_info(other, "none", lambda info: info["blocked_clients"] == "0")


def test_no_more_wait_at_a_shard_than_connections_may_be_leased(proxy: Proxy, here: Server, keys: Keys) -> None:
    key = keys.one(HERE)
    with ExitStack() as stack:
        waiters = [stack.enter_context(Connection(proxy.port)) for _ in range(BOUND)]
        late = stack.enter_context(Connection(proxy.port))
        for waiter in waiters:
            waiter.send(("BLPOP", key, 0))
        wait_blocked(here, BOUND)
        reply = error(late.ask("BLPOP", key, 0))
        assert reply.startswith(f"TRYAGAIN shard s{HERE} ") and f"leased all {BOUND} connections" in reply
        assert late.ask("BLPOP", keys.one(0), "0.01") is None, "on other shards clients may wait"
        waiters[0].close()
        wait_until("a place", lambda: late.ask("BLPOP", key, "0.01") is None, proxy.tail)
        late.send(("BLPOP", key, 0))
        wait_blocked(here, BOUND)


def test_a_connection_is_used_again(conn: Connection, other: Connection, here: Server, key: str) -> None:
    other.ask("RPUSH", key, *range(20))
    before = clients(here)
    assert [conn.ask("BLPOP", key, 0) for _ in range(20)] == [[key.encode(), b"%d" % each] for each in range(20)]
    assert clients(here) <= before + 1


def clients(server: Server) -> int:
    text = server.ask("INFO", "clients")
    assert isinstance(text, bytes)
    return int(text.partition(b"connected_clients:")[2].split(b"\r\n")[0])


# --- who leaves -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["close", "reset", "half"])
@pytest.mark.parametrize("behind", [0, 100_000], ids=["alone", "behind-it-more-than-is-read"])
def test_for_a_client_that_left_nothing_is_taken(
    proxy: Proxy, here: Server, other: Connection, key: str, way: str, behind: int
) -> None:
    conn = Connection(proxy.port)
    conn.send(("BLPOP", key, 0), *([("ECHO", "x" * behind)] if behind else []))
    wait_blocked(here, 1)
    if way == "close":
        conn.close()
    elif way == "reset":
        conn.reset()
    else:
        conn.socket.shutdown(1)
        assert conn.until_end() == b"", "as a server has it"
        conn.close()
    wait_blocked(here, 0)
    other.ask("RPUSH", key, "x")
    assert other.ask("BLPOP", key, 0) == [key.encode(), b"x"]
    wait_for_info(other, "it to be gone", lambda info: info["connected_clients"] == "1")


def test_a_worker_that_goes_lets_all_go_and_nothing_is_taken(fleet: Fleet, keys: Keys, here: Server) -> None:
    key = keys.one(HERE)
    with Proxy(fleet, cross_shard="emulate") as proxy:
        talks = [Connection(proxy.port) for _ in range(3)]
        for conn in talks:
            conn.send(("BLPOP", key, 0) if conn is not talks[2] else ("BLPOP", key, keys.one(0), 0))
        wait_blocked(here, 2)
        wait_for_info(Connection(proxy.port), "three to wait", lambda info: info["blocked_clients"] == "3")
        proxy.terminate()
        assert [conn.until_end().split()[0] for conn in talks] == [b"-UNBLOCKED"] * 3
        for conn in talks:
            conn.close()
    assert here.ask("RPUSH", key, "x") == 1
    assert here.ask("LLEN", key) == 1


# --- servers that fail ------------------------------------------------------------------------------------------------


def test_where_the_server_dies_it_is_uncertain_and_a_read_is_not(fleet: Fleet, keys: Keys) -> None:
    here, key = fleet.shards[HERE].primary, keys.one(HERE)
    with (
        Proxy(fleet) as proxy,
        Connection(proxy.port) as pops,
        Connection(proxy.port) as reads,
        Connection(proxy.port) as other,
    ):
        pops.send(("BLPOP", key, 0))
        reads.send(("XREAD", "BLOCK", 0, "STREAMS", f"{{{key}}}s", "$"))
        wait_blocked(here, 2)
        here.kill()
        try:
            assert error(pops.read()).startswith(f"UNCERTAIN shard s{HERE} ")
            assert error(reads.read()).startswith(f"TRYAGAIN shard s{HERE} ")
            wait_until("the shard to be down", lambda: "is down" in error(other.ask("GET", key)), lambda: "")
            assert error(other.ask("BLPOP", key, 0)).startswith(f"TRYAGAIN shard s{HERE} ")
        finally:
            here.start()


def test_a_server_that_stands_still_past_the_timeout_is_waited_for_no_longer(fleet: Fleet, keys: Keys) -> None:
    here, key = fleet.shards[HERE].primary, keys.one(HERE)
    with Proxy(fleet, timeouts={"reply_s": 0.3}) as proxy, Connection(proxy.port) as conn:
        assert conn.ask("BLPOP", key, "0.01") is None
        here.pause()
        try:
            assert error(conn.ask("BLPOP", key, "0.1")).startswith(f"UNCERTAIN shard s{HERE} ")
        finally:
            here.resume()
        wait_until("nobody to wait", lambda: blocked(here) == 0, lambda: "", PATIENCE_S)
