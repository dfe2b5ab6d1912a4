"""A connection to a server is lost with requests out: each gets its one verdict, and no write goes out twice."""

import contextlib
from collections.abc import Iterator

import pytest

from pyproxy.fleet import Fleet, Proxy, wait_until
from tests.e2e.rig import PATIENCE_S, PATIENT, Connection, Keys, behind, error, of_a_worker, wait_for_info
from tests.faults import End, Hop, Way

LOST = 1
"""The index of the shard behind the hop."""

MANY = 1000


@pytest.fixture(scope="module")
def hop(fleet: Fleet) -> Iterator[Hop]:
    with Hop(fleet.shards[LOST].primary.port, of_a_worker) as hop:
        yield hop


@pytest.fixture(scope="module")
def proxy(fleet: Fleet, hop: Hop) -> Iterator[Proxy]:
    timeouts = PATIENT | {"reconnect_max_s": 0.2}
    with behind(fleet, {LOST: hop}, limits={"inflight": 2 * MANY}, timeouts=timeouts) as proxy:
        yield proxy


@pytest.fixture
def conn(proxy: Proxy, keys: Keys) -> Iterator[Connection]:
    with Connection(proxy.port) as conn:
        serve_again(conn, keys)
        assert conn.ask("FLUSHALL") == b"OK"
        # how many requests of a client may be in flight grows with what is known of the size of its answers
        conn.send(*[("EXISTS", keys.one(LOST))] * 100)
        conn.reads(100)
        yield conn


@pytest.fixture(autouse=True)
def healed(hop: Hop) -> Iterator[None]:
    yield
    hop.heal()


def serve_again(conn: Connection, keys: Keys) -> None:
    key = keys.one(LOST)
    wait_until("the shard to be served", lambda: not isinstance(conn.ask("GET", key), Exception), lambda: "")


@pytest.fixture
def steady(conn: Connection, fleet: Fleet) -> None:
    """The proxy's connections are old enough to be replaced at once when they are lost: more than a second."""

    def ages() -> list[int]:
        clients = fleet.shards[LOST].primary.ask("CLIENT", "LIST")
        assert isinstance(clients, bytes)
        lines = [line for line in clients.decode().splitlines() if "cmd=client|list" not in line]
        return [int(line.split(" age=")[1].split()[0]) for line in lines]

    wait_until("connections older than a second", lambda: min(ages()) >= 2, lambda: f"ages {ages()}")


def wait_until_out(proxy: Proxy, count: int) -> None:
    with Connection(proxy.port) as looking:
        wait_for_info(looking, f"{count} requests to be in flight", lambda info: info["inflight"] == str(count))


def wait_until_applied(fleet: Fleet, key: str, value: int) -> None:
    server = fleet.shards[LOST].primary
    wait_until(
        f"{key} to be {value}", lambda: server.ask("GET", key) == b"%d" % value, lambda: str(server.ask("GET", key))
    )


# --- writes -----------------------------------------------------------------------------------------------------------


def test_a_killed_server_costs_each_of_1000_requests_one_verdict_in_order(
    fleet: Fleet, proxy: Proxy, keys: Keys, conn: Connection
) -> None:
    server = fleet.shards[LOST].primary
    key = keys.one(LOST, "killed")
    server.pause()
    conn.send(*[command for number in range(MANY) for command in (("INCR", key), ("ECHO", number))])
    wait_until_out(proxy, MANY)
    server.kill()
    replies = conn.reads(2 * MANY)
    assert replies[1::2] == [b"%d" % number for number in range(MANY)]
    assert {error(reply).split(" (")[0] for reply in replies[::2]} == {f"UNCERTAIN shard s{LOST}"}
    server.start()
    serve_again(conn, keys)
    assert conn.ask("GET", key) is None, "none of them is sent to the server that came back"


@pytest.mark.usefixtures("steady")
@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
def test_writes_whose_replies_are_lost_are_uncertain_and_never_sent_twice(
    fleet: Fleet, hop: Hop, keys: Keys, conn: Connection, reset: bool
) -> None:
    key = keys.one(LOST, "counter")
    hop.stall(Way.REPLIES)
    conn.send(*[("INCR", key)] * MANY)
    wait_until_applied(fleet, key, MANY)
    hop.cut(reset=reset)
    hop.heal()
    assert {error(reply).split(" (")[0] for reply in conn.reads(MANY)} == {f"UNCERTAIN shard s{LOST}"}
    serve_again(conn, keys)
    assert conn.ask("GET", key) == b"%d" % MANY


@pytest.mark.usefixtures("steady")
def test_a_write_that_was_never_sent_goes_out_on_the_next_connection_once(
    hop: Hop, proxy: Proxy, keys: Keys, conn: Connection
) -> None:
    """Large writes fill the connection, so the one behind them is still here when the connection ends."""
    large, counter = keys.one(LOST, "large"), keys.one(LOST, "unsent")
    hop.stall(Way.REQUESTS)
    with contextlib.ExitStack() as clients:
        fill = [clients.enter_context(Connection(proxy.port)) for _ in range(10)]
        for each in fill:
            each.send(("SET", large, b"x" * 900_000))
        wait_until_out(proxy, len(fill))
        conn.send(("INCR", counter))
        wait_until_out(proxy, len(fill) + 1)
        hop.cut()
        hop.heal()
        assert error(fill[0].read()).startswith("UNCERTAIN ")
        assert conn.read() == 1
    assert conn.ask("GET", counter) == b"1"


def test_requests_wait_while_a_connection_is_made(hop: Hop, proxy: Proxy, keys: Keys, conn: Connection) -> None:
    hop.stall()
    with Connection(proxy.port) as other:
        assert other.ask("SELECT", 3) == b"OK"
        other.send(("SET", keys.one(LOST), "waited"), ("GET", keys.one(LOST)))
        wait_until_out(proxy, 2)
        hop.heal()
        assert other.reads(2) == [b"OK", b"waited"]


# --- reads ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("steady")
def test_reads_are_asked_again_on_the_next_connection(hop: Hop, proxy: Proxy, keys: Keys, conn: Connection) -> None:
    names = keys.on(LOST, 100, "read")
    assert conn.ask("MSET", *[word for name in names for word in (name, f"value of {name}")]) == b"OK"
    hop.stall(Way.REPLIES)
    conn.send(*[("GET", name) for name in names], ("MGET", keys.one(0), *names[:3]))
    wait_until_out(proxy, len(names) + 1)
    hop.cut()
    hop.heal()
    assert conn.reads(len(names)) == [f"value of {name}".encode() for name in names]
    assert conn.read() == [None, *(f"value of {name}".encode() for name in names[:3])]


@pytest.mark.usefixtures("steady")
def test_a_read_is_asked_again_only_once(hop: Hop, keys: Keys, conn: Connection) -> None:
    hop.answer(b"GET", b"", End.FIN, times=2)
    assert error(conn.ask("GET", keys.one(LOST))).startswith(f"TRYAGAIN shard s{LOST} (")


@pytest.mark.usefixtures("steady")
def test_what_was_answered_with_garbage_is_not_asked_again_and_the_reads_of_others_are(
    hop: Hop, proxy: Proxy, keys: Keys, conn: Connection
) -> None:
    """It would be answered so again, and each time the requests of all clients are lost with the connection."""
    culprit, others = keys.on(LOST, 2, "garbage")
    hop.stall(Way.REPLIES)
    asked = hop.requests.count(culprit.encode())
    with Connection(proxy.port) as victim:
        victim.send(("STRLEN", culprit))
        wait_until_out(proxy, 1)
        conn.send(("STRLEN", others))
        wait_until_out(proxy, 2)
        hop.inject(b"@")
        hop.heal()
        assert "bytes that are not a reply" in error(victim.read())
        assert conn.read() == 0, "which it would not be if the connection had been lost once more"
        assert victim.ask("PING") == b"PONG"
    assert hop.requests.count(culprit.encode()) == asked + 1


@pytest.mark.usefixtures("steady")
def test_a_read_before_a_write_of_the_same_client_does_not_see_the_future(
    fleet: Fleet, hop: Hop, keys: Keys, conn: Connection
) -> None:
    key = keys.one(LOST, "future")
    assert conn.ask("SET", key, 0) == b"OK"
    hop.stall(Way.REPLIES)
    conn.send(("GET", key), ("INCR", key), ("GET", key))
    wait_until_applied(fleet, key, 1)
    hop.cut()
    hop.heal()
    assert error(conn.read()).startswith("TRYAGAIN ")
    assert error(conn.read()).startswith("UNCERTAIN ")
    assert conn.read() == b"1", "the read behind it may be asked again"


# --- one connection to a queue ----------------------------------------------------------------------------------------


def test_a_second_connection_to_a_shard_that_is_lost_leaves_the_first_as_it_is(
    hop: Hop, proxy: Proxy, keys: Keys, conn: Connection
) -> None:
    """Two connections for one queue of requests would answer each other's."""
    key = keys.one(LOST)
    opened = hop.open
    with Connection(proxy.port) as other:
        assert other.ask("SELECT", 11) == b"OK"
        hop.answer(b"STRLEN", b"", End.FIN)
        assert error(other.ask("STRLEN", key)).startswith("TRYAGAIN ")
        wait_until("that database to be served again", lambda: other.ask("STRLEN", key) == 0, lambda: "", PATIENCE_S)
    assert conn.ask("SET", key, "v") == b"OK"
    wait_until("one connection more", lambda: hop.open == opened + 1, lambda: f"{hop.open} are open, not {opened} + 1")
