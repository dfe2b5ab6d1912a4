"""What is asked of the keys of all shards."""

from collections.abc import Iterator

import pytest
import redis

from pyproxy.fleet import HOST, Fleet, Proxy
from tests.e2e.rig import Argument, Connection, Keys, error, killed


@pytest.fixture(autouse=True)
def empty(fleet: Fleet) -> None:
    for shard in fleet.shards:
        shard.primary.ask("FLUSHALL")


@pytest.fixture(scope="module")
def proxy(fleet: Fleet) -> Iterator[Proxy]:
    with Proxy(fleet) as proxy:
        yield proxy


def test_randomkey_is_nil_where_all_shards_are_empty(conn: Connection) -> None:
    assert conn.ask("RANDOMKEY") is None
    conn.ask("HELLO", "3")
    assert conn.ask("RANDOMKEY") is None


@pytest.mark.parametrize("shard", range(3))
def test_randomkey_finds_the_only_key_wherever_it_is(conn: Connection, keys: Keys, shard: int) -> None:
    key = keys.one(shard)
    conn.ask("SET", key, "v")
    assert conn.ask("RANDOMKEY") == key.encode()


def test_randomkey_names_keys_of_every_shard_in_time(conn: Connection, keys: Keys) -> None:
    for shard in range(3):
        conn.ask("SET", keys.one(shard), "v")
    conn.send(*[("RANDOMKEY",)] * 200)
    assert set(conn.reads(200)) == {keys.one(shard).encode() for shard in range(3)}


def test_a_conversation_stands_in_the_order_of_replies(conn: Connection, keys: Keys) -> None:
    key = keys.one(1)
    conn.send(("SET", key, "v"), ("RANDOMKEY",), ("GET", key), ("RANDOMKEY",), ("DEL", key), ("RANDOMKEY",))
    assert conn.reads(6) == [b"OK", key.encode(), b"v", key.encode(), 1, None]


def test_randomkey_of_a_fleet_with_a_lost_shard_is_an_error(fleet: Fleet, proxy: Proxy, keys: Keys) -> None:
    with Proxy(fleet) as own, Connection(own.port) as conn:
        conn.ask("SET", keys.one(0), "v")
        with killed(fleet.shards[1].primary, proxy):
            reply = error(conn.ask("RANDOMKEY"))
            assert reply.startswith("TRYAGAIN shard s1") and "applied=no" in reply


# --- SCAN -------------------------------------------------------------------------------------------------------------


def page(conn: Connection, cursor: Argument, *options: Argument) -> tuple[bytes, list[bytes]]:
    reply = conn.ask("SCAN", cursor, *options)
    assert isinstance(reply, list), reply
    return reply[0], reply[1]


def walk(conn: Connection, *options: Argument) -> list[bytes]:
    """The keys of all pages, in their order."""
    cursor, found = page(conn, 0, *options)
    while cursor != b"0":
        cursor, more = page(conn, cursor, *options)
        found += more
    return found


def fill(conn: Connection, keys: Keys, count: int = 50) -> set[bytes]:
    """So many keys on each of the three shards."""
    names = [name for shard in range(3) for name in keys.on(shard, count)]
    conn.send(*[("SET", name, "v") for name in names])
    assert set(conn.reads(len(names))) == {b"OK"}
    return {name.encode() for name in names}


@pytest.mark.parametrize("proto", [2, 3])
@pytest.mark.parametrize("count", [1, 7, 10, 1000])
def test_scan_returns_every_key_of_every_shard(conn: Connection, keys: Keys, proto: int, count: int) -> None:
    stored = fill(conn, keys)
    conn.ask("HELLO", proto)
    found = walk(conn, "COUNT", count)
    assert set(found) == stored
    assert len(found) == len(stored), "nothing has changed, so nothing was returned twice"


def test_scan_of_empty_shards_is_over_at_once(conn: Connection) -> None:
    assert conn.ask("SCAN", 0) == [b"0", []]


@pytest.mark.parametrize("shard", range(3))
def test_scan_passes_over_shards_without_keys(conn: Connection, keys: Keys, shard: int) -> None:
    conn.ask("SET", keys.one(shard), "v")
    assert page(conn, 0) == (b"0", [keys.one(shard).encode()])


@pytest.mark.parametrize("proto", [2, 3])
def test_a_page_goes_on_with_the_next_shard_while_it_is_short(conn: Connection, keys: Keys, proto: int) -> None:
    """There are clients that ask for one page and no more, as of a server with a few keys that is all."""
    conn.ask("HELLO", proto)
    names = {name.encode() for shard in range(3) for name in keys.on(shard, 3)}
    conn.send(*[("SET", name, "v") for name in names])
    conn.reads(len(names))
    cursor, found = page(conn, 0)
    assert (cursor, set(found)) == (b"0", names)
    cursor, found = page(conn, 0, "COUNT", 4)
    assert (cursor != b"0", len(found)) == (True, 6)
    cursor, more = page(conn, cursor, "COUNT", 4)
    assert (cursor, set(found + more)) == (b"0", names)
    cursor, found = page(conn, 0, "COUNT", 1, "COUNT", 100)
    assert (cursor, set(found)) == (b"0", names)


def test_redis_py_gets_all_of_a_few_keys_by_one_call(proxy: Proxy, conn: Connection, keys: Keys) -> None:
    for shard in range(3):
        conn.ask("SET", keys.one(shard, "one"), "v")
    with redis.Redis(HOST, proxy.port) as client:
        cursor, found = client.scan(match="one*", count=1000)
    assert (cursor, len(found)) == (0, 3)


def test_scan_passes_match_count_and_type_on(conn: Connection, keys: Keys) -> None:
    fill(conn, keys)
    lists = {name for shard in range(3) for name in keys.on(shard, 3, "list")}
    for name in lists:
        conn.ask("RPUSH", name, "v")
    expected = {name.encode() for name in lists}
    assert set(walk(conn, "MATCH", "list*")) == expected
    assert set(walk(conn, "TYPE", "list", "COUNT", 100)) == expected
    assert walk(conn, "MATCH", "list*", "TYPE", "string") == []


def test_scan_is_of_the_database_of_the_client(conn: Connection, keys: Keys) -> None:
    fill(conn, keys)
    conn.ask("SELECT", 4)
    assert conn.ask("SCAN", 0) == [b"0", []]
    conn.ask("SET", keys.one(2), "v")
    assert walk(conn) == [keys.one(2).encode()]


@pytest.mark.parametrize(
    ("argv", "reply"),
    [
        (("SCAN", "x"), "ERR invalid cursor"),
        (("SCAN", "1x"), "ERR invalid cursor"),
        (("SCAN", " 1"), "ERR invalid cursor"),
        (("SCAN", "18446744073709551616"), "ERR invalid cursor"),
        (("SCAN", str(1 << 53)), "ERR invalid cursor"),
        (("SCAN", "x", "BLA"), "ERR invalid cursor"),
        (("SCAN", "0", "COUNT", "0"), "ERR syntax error"),
        (("SCAN", "0", "COUNT", "x"), "ERR value is not an integer or out of range"),
        (("SCAN", "0", "MATCH"), "ERR syntax error"),
        (("SCAN",), "ERR wrong number of arguments for 'scan' command"),
    ],
)
def test_scan_refuses_what_redis_refuses_in_its_words(conn: Connection, argv: tuple[str, ...], reply: str) -> None:
    assert error(conn.ask(*argv)) == reply
    conn.ask("HELLO", 3)
    assert error(conn.ask(*argv)) == reply


def test_scan_stands_in_the_order_of_replies(conn: Connection, keys: Keys) -> None:
    key = keys.one(2)
    conn.send(("SET", key, "v"), ("SCAN", 0), ("GET", key), ("DEL", key), ("SCAN", 0), ("PING",))
    assert conn.reads(6) == [b"OK", [b"0", [key.encode()]], b"v", 1, [b"0", []], b"PONG"]


def test_redis_py_walks_all_keys(proxy: Proxy, conn: Connection, keys: Keys) -> None:
    stored = fill(conn, keys)
    for protocol in (2, 3):
        with redis.Redis(HOST, proxy.port, protocol=protocol) as client:
            assert set(client.scan_iter(count=7)) == stored


# --- all shards at once -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("proto", [2, 3])
def test_keys_dbsize_and_flushes_are_about_all_shards(conn: Connection, keys: Keys, proto: int) -> None:
    conn.ask("HELLO", proto)
    stored = fill(conn, keys)
    found = conn.ask("KEYS", "*")
    assert isinstance(found, list) and sorted(found) == sorted(stored)
    assert conn.ask("DBSIZE") == len(stored)
    conn.send(("SELECT", 1), ("SET", keys.one(1), "v"), ("DBSIZE",), ("FLUSHDB",), ("DBSIZE",))
    assert conn.reads(5) == [b"OK", b"OK", 1, b"OK", 0]
    conn.send(("SELECT", 0), ("DBSIZE",))
    assert conn.reads(2) == [b"OK", len(stored)]
    conn.send(("FLUSHALL", "SYNC"), ("DBSIZE",), ("KEYS", "*"))
    assert conn.reads(3) == [b"OK", 0, []]


@pytest.mark.parametrize("argv", [("SCAN", "0"), ("KEYS", "*"), ("DBSIZE",), ("FLUSHDB",), ("FLUSHALL",)])
def test_of_a_fleet_with_a_lost_shard_nothing_is_left_out(
    fleet: Fleet, proxy: Proxy, keys: Keys, argv: tuple[str, ...]
) -> None:
    with Proxy(fleet) as own, Connection(own.port) as conn:
        conn.ask("SET", keys.one(0), "v")
        with killed(fleet.shards[1].primary, proxy):
            for proto in (2, 3):
                conn.ask("HELLO", proto)
                reply = conn.ask(*argv)
                if argv[0] == "SCAN":
                    assert isinstance(reply, list) and reply[1] == [keys.one(0).encode()], "a page of the first shard"
                    reply = conn.ask("SCAN", reply[0])
                message = error(reply)
                assert message.startswith("TRYAGAIN shard s1") and "applied=no" in message
