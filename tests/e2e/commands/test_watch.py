"""WATCH: what was changed since takes the transaction along; so does whatever takes the connection that watches."""

from collections.abc import Iterator

import pytest

from pyproxy.fleet import Fleet, Proxy, wait_until
from tests.e2e.bare_worker import BareWorker
from tests.e2e.rig import PATIENT, Connection, Keys, error, packed
from tests.e2e.waiters import empty

SHARD = 1


@pytest.fixture(scope="module")
def proxy(fleet: Fleet) -> Iterator[Proxy]:
    with Proxy(fleet, timeouts=PATIENT) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def no_keys(fleet: Fleet) -> None:
    empty(fleet)


@pytest.fixture
def key(keys: Keys) -> str:
    return keys.one(SHARD)


def watched_by(fleet: Fleet) -> int:
    """How many connections watch a key at the servers."""
    lists = [str(shard.primary.ask("CLIENT", "LIST")) for shard in fleet.shards]
    return sum(each.count(" watch=") - each.count(" watch=0") for each in lists)


def wait_for_watches(fleet: Fleet, count: int) -> None:
    wait_until(f"{count} connections to watch", lambda: watched_by(fleet) == count, lambda: str(watched_by(fleet)))


@pytest.mark.parametrize("proto", [2, 3])
def test_exec_runs_where_nothing_was_changed(conn: Connection, key: str, proto: int) -> None:
    conn.ask("HELLO", proto)
    assert conn.ask("WATCH", key) == b"OK"
    conn.send(("MULTI",), ("SET", key, "v"), ("GET", key), ("EXEC",))
    assert conn.reads(4) == [b"OK", b"QUEUED", b"QUEUED", [b"OK", b"v"]]


@pytest.mark.parametrize("proto", [2, 3])
def test_exec_is_nil_and_nothing_is_run_where_a_key_was_changed(
    conn: Connection, fleet: Fleet, key: str, proto: int
) -> None:
    conn.ask("HELLO", proto)
    assert conn.ask("WATCH", key) == b"OK"
    fleet.shards[SHARD].primary.ask("SET", key, "theirs")
    conn.send(("MULTI",), ("SET", key, "mine"), ("EXEC",))
    assert conn.reads(3) == [b"OK", b"QUEUED", None]
    assert conn.ask("GET", key) == b"theirs"


def test_a_change_by_the_client_itself_breaks_its_watch_too(conn: Connection, key: str) -> None:
    conn.send(("WATCH", key), ("SET", key, "v"), ("MULTI",), ("GET", key), ("EXEC",), ("GET", key))
    assert conn.reads(6) == [b"OK", b"OK", b"OK", b"QUEUED", None, b"v"]


def test_byte_by_byte_it_is_the_same(conn: Connection, key: str) -> None:
    for byte in packed("WATCH", key) + packed("MULTI") + packed("INCR", key) + packed("EXEC"):
        conn.socket.sendall(bytes([byte]))
    assert conn.reads(4) == [b"OK", b"OK", b"QUEUED", [1]]


@pytest.mark.parametrize("end", [("UNWATCH",), ("MULTI", "DISCARD"), ("MULTI", "EXEC"), ("RESET",)])
def test_what_ends_a_watch(conn: Connection, fleet: Fleet, key: str, end: tuple[str, ...]) -> None:
    assert conn.ask("WATCH", key) == b"OK"
    for command in end:
        conn.ask(command)
    fleet.shards[SHARD].primary.ask("SET", key, "theirs")
    conn.send(("MULTI",), ("SET", key, "mine"), ("EXEC",))
    assert conn.reads(3) == [b"OK", b"QUEUED", [b"OK"]]


def test_an_empty_transaction_is_checked_too(conn: Connection, fleet: Fleet, key: str) -> None:
    conn.send(("WATCH", key), ("MULTI",), ("EXEC",))
    assert conn.reads(3) == [b"OK", b"OK", []]
    assert conn.ask("WATCH", key) == b"OK"
    fleet.shards[SHARD].primary.ask("SET", key, "theirs")
    conn.send(("MULTI",), ("EXEC",))
    assert conn.reads(2) == [b"OK", None]


def test_several_keys_and_several_watches_of_one_shard_are_checked_together(
    conn: Connection, fleet: Fleet, keys: Keys
) -> None:
    first, second, third = keys.on(SHARD, 3)
    conn.send(("WATCH", first, second), ("WATCH", third))
    assert conn.reads(2) == [b"OK", b"OK"]
    assert "watch=3" in str(conn.ask("CLIENT", "INFO"))
    fleet.shards[SHARD].primary.ask("SET", second, "theirs")
    conn.send(("MULTI",), ("SET", first, "mine"), ("EXEC",))
    assert conn.reads(3) == [b"OK", b"QUEUED", None]


def test_keys_of_several_shards_cannot_be_watched_together(conn: Connection, keys: Keys) -> None:
    one, other = keys.one(0), keys.one(2)
    reply = error(conn.ask("WATCH", one, other))
    assert reply.startswith("CROSSSLOT the keys that are watched are on different shards (s0, s2)")
    assert conn.ask("WATCH", one) == b"OK"
    assert error(conn.ask("WATCH", other)) == reply


def test_a_block_of_another_shard_is_refused_and_ends_the_watch(conn: Connection, key: str, keys: Keys) -> None:
    other = keys.one(0)
    conn.send(("WATCH", key), ("MULTI",), ("SET", other, "v"), ("EXEC",))
    assert error(conn.reads(4)[3]).startswith("CROSSSLOT ")
    conn.send(("MULTI",), ("SET", other, "v"), ("EXEC",))
    assert conn.reads(3) == [b"OK", b"QUEUED", [b"OK"]]


def test_watch_is_refused_in_a_transaction_which_goes_on(conn: Connection, key: str) -> None:
    conn.send(("MULTI",), ("WATCH", key), ("SET", key, "v"), ("EXEC",))
    reply = conn.reads(4)
    assert error(reply[1]) == "ERR WATCH inside MULTI is not allowed"
    assert reply[3] == [b"OK"]


def test_a_refused_command_aborts_the_transaction_and_ends_the_watch(conn: Connection, fleet: Fleet, key: str) -> None:
    conn.send(("WATCH", key), ("MULTI",), ("SET", key), ("EXEC",))
    assert error(conn.reads(4)[3]).startswith("EXECABORT ")
    fleet.shards[SHARD].primary.ask("SET", key, "theirs")
    conn.send(("MULTI",), ("SET", key, "mine"), ("EXEC",))
    assert conn.reads(3)[2] == [b"OK"]


def test_it_watches_in_the_database_of_the_client(conn: Connection, fleet: Fleet, key: str) -> None:
    conn.send(("SELECT", 5), ("WATCH", key), ("SELECT", 4), ("MULTI",), ("SET", key, "in 4"), ("EXEC",))
    assert conn.reads(6) == [b"OK", b"OK", b"OK", b"OK", b"QUEUED", [b"OK"]]
    assert conn.ask("GET", key) == b"in 4"
    conn.send(("SELECT", 5), ("GET", key), ("WATCH", key))
    assert conn.reads(3) == [b"OK", None, b"OK"]
    with Connection(fleet.shards[SHARD].primary.port) as direct:
        direct.send(("SELECT", 5), ("SET", key, "theirs"))
        direct.reads(2)
    conn.send(("MULTI",), ("SET", key, "mine"), ("EXEC",))
    assert conn.reads(3) == [b"OK", b"QUEUED", None]


@pytest.mark.parametrize("lines", ["HELLO 3", "HELLO 2", "HELLO 3|HELLO 2", "HELLO 3|SELECT 2", "HELLO 3|WATCH {0}x"])
@pytest.mark.parametrize("before", [2, 3])
def test_a_client_that_changes_its_protocol_watches_on(
    proxy: Proxy, fleet: Fleet, key: str, before: int, lines: str
) -> None:
    """As a single server does it, byte for byte."""
    tagged = f"{{{key}}}"
    reply = []
    for port in (proxy.port, fleet.shards[SHARD].primary.port):
        fleet.shards[SHARD].primary.ask("FLUSHALL")
        with Connection(port) as conn:
            conn.ask("HELLO", before)
            conn.ask("WATCH", tagged)
            for line in lines.split("|"):
                conn.ask(*line.format(tagged).split())
            rest = "MULTI|HSET {0} f 1|HGETALL {0}|GET {0}none|EXEC|WATCH {0}|DEL {0}|MULTI|EXEC|QUIT"
            conn.send(*[line.format(tagged).split() for line in rest.split("|")])
            reply.append(conn.until_end())
    assert reply[0] == reply[1]


def test_a_watch_that_was_broken_stays_so_in_another_protocol(conn: Connection, fleet: Fleet, key: str) -> None:
    assert conn.ask("WATCH", key) == b"OK"
    fleet.shards[SHARD].primary.ask("SET", key, "theirs")
    conn.ask("HELLO", 3)
    conn.send(("MULTI",), ("SET", key, "mine"), ("EXEC",), ("GET", key))
    assert conn.reads(4) == [b"OK", b"QUEUED", None, b"theirs"]


def test_a_connection_whose_protocol_was_changed_serves_no_other_client(proxy: Proxy, fleet: Fleet, key: str) -> None:
    with Connection(proxy.port) as first, Connection(proxy.port) as second:
        first.send(("WATCH", key), ("HELLO", 3), ("MULTI",), ("HGETALL", key), ("EXEC",))
        assert first.reads(5)[4] == [{}]
        second.send(("WATCH", key), ("MULTI",), ("HGETALL", key), ("EXEC",))
        assert second.reads(4)[3] == [[]]
        first.send(("WATCH", key), ("MULTI",), ("HGETALL", key), ("EXEC",))
        assert first.reads(4)[3] == [{}]


def test_a_client_that_leaves_watches_no_longer(proxy: Proxy, fleet: Fleet, key: str) -> None:
    with Connection(proxy.port) as conn:
        assert conn.ask("WATCH", key) == b"OK"
        wait_for_watches(fleet, 1)
    wait_for_watches(fleet, 0)


def test_a_connection_serves_one_watch_after_another(conn: Connection, fleet: Fleet, key: str) -> None:
    with Connection(fleet.shards[SHARD].primary.port) as direct:
        before = None
        for number in range(50):
            conn.send(("WATCH", key), ("MULTI",), ("INCR", key), ("EXEC",))
            assert conn.reads(4)[3] == [number + 1]
            made = str(direct.ask("INFO", "stats")).partition("total_connections_received:")[2].partition("\\r")[0]
            before = before or made
            assert made == before


def test_two_clients_that_race_never_lose_an_increment(proxy: Proxy, fleet: Fleet, key: str) -> None:
    with Connection(proxy.port) as one, Connection(proxy.port) as other:
        done = 0
        while done < 40:
            for conn in (one, other):
                conn.send(("WATCH", key), ("GET", key))
            for conn in (one, other):
                _, value = conn.reads(2)
                conn.send(("MULTI",), ("SET", key, int(value or 0) + 1), ("EXEC",))  # type: ignore[call-overload]
            done += sum(conn.reads(3)[2] is not None for conn in (one, other))
    assert fleet.shards[SHARD].primary.ask("GET", key) == str(done).encode()


def test_a_lost_connection_is_a_broken_watch(conn: Connection, fleet: Fleet, key: str) -> None:
    assert conn.ask("WATCH", key) == b"OK"
    primary = fleet.shards[SHARD].primary
    lines = str(primary.ask("CLIENT", "LIST")).split("\\n")
    (watching,) = [line for line in lines if " watch=1 " in line]
    assert primary.ask("CLIENT", "KILL", "ID", watching.partition("id=")[2].split()[0]) == 1
    conn.send(("MULTI",), ("SET", key, "mine"), ("EXEC",))
    assert conn.reads(3) == [b"OK", b"QUEUED", None]
    assert conn.ask("GET", key) is None


def test_a_promotion_is_a_broken_watch() -> None:
    with Fleet(shards=2, replicas=1) as fleet, BareWorker(fleet, promotion={"promoter": "replicaof"}) as worker:
        key = Keys(worker).one(SHARD)
        with Connection(worker.port) as conn:
            assert conn.ask("WATCH", key) == b"OK"
            new = fleet.shards[SHARD].replicas[0]
            new.ask("REPLICAOF", "NO", "ONE")
            worker.switch_to(SHARD, new)
            conn.send(("MULTI",), ("SET", key, "mine"), ("EXEC",), ("SET", key, "after"))
            assert conn.reads(4) == [b"OK", b"QUEUED", None, b"OK"]
            assert new.ask("GET", key) == b"after"


def test_a_shard_that_is_down_cannot_be_watched(fleet: Fleet, keys: Keys) -> None:
    with Proxy(fleet) as proxy, Connection(proxy.port) as conn:
        primary = fleet.shards[SHARD].primary
        primary.kill()
        try:
            assert error(conn.ask("WATCH", keys.one(SHARD))).startswith("TRYAGAIN shard s1 ")
        finally:
            primary.start()


# --- over shards ------------------------------------------------------------------------------------------------------


def test_split_the_answers_of_all_shards_stand_in_their_order(split: Proxy, keys: Keys) -> None:
    a, b, c = keys.one(0), keys.one(1), keys.one(2)
    with Connection(split.port) as conn:
        conn.send(("WATCH", b), ("MULTI",), ("SET", a, 1), ("SET", b, 2), ("MGET", a, b, c), ("INCR", c), ("EXEC",))
        assert conn.reads(7)[6] == [b"OK", b"OK", [b"1", b"2", None], 1]


def test_split_no_shard_runs_its_block_where_the_watch_was_broken(split: Proxy, fleet: Fleet, keys: Keys) -> None:
    a, b = keys.one(0), keys.one(1)
    with Connection(split.port) as conn:
        assert conn.ask("WATCH", b) == b"OK"
        fleet.shards[1].primary.ask("SET", b, "theirs")
        conn.send(("MULTI",), ("SET", a, 1), ("EXEC",))
        assert conn.reads(3)[2] is None
        assert conn.ask("GET", a) is None
        conn.send(("WATCH", b), ("MULTI",), ("SET", a, 1), ("EXEC",))
        assert conn.reads(4)[3] == [b"OK"]


def test_split_a_shard_that_is_down_discards_the_whole(fleet: Fleet, keys: Keys) -> None:
    with Proxy(fleet, transactions="split") as proxy, Connection(proxy.port) as conn:
        primary = fleet.shards[0].primary
        assert conn.ask("WATCH", keys.one(1)) == b"OK"
        primary.kill()
        try:
            conn.send(("MULTI",), ("SET", keys.one(1), 1), ("SET", keys.one(0), 1), ("EXEC",))
            reply = error(conn.reads(4)[3])
            assert reply.startswith("EXECABORT Transaction discarded because of: shard s0 ") and "applied=no" in reply
            assert conn.ask("GET", keys.one(1)) is None
        finally:
            primary.start()
