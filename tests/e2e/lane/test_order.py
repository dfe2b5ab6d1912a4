"""Reply i belongs to request i, always; and a client sees its own writes, whatever connections they take."""

import random
from collections.abc import Iterator

import hiredis
import pytest

from pyproxy.fleet import Fleet, Proxy
from tests.e2e.rig import Argument, Connection, Keys, error

SHARDS = 4


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet(shards=SHARDS, replicas=0) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def proxy(fleet: Fleet) -> Iterator[Proxy]:
    with Proxy(fleet, timeouts={"reply_s": 20.0, "silence_s": 20.0, "connect_s": 20.0}) as proxy:
        yield proxy


@pytest.fixture
def conn(proxy: Proxy) -> Iterator[Connection]:
    with Connection(proxy.port) as conn:
        assert conn.ask("FLUSHALL") == b"OK"
        yield conn


Asked = tuple[tuple[Argument, ...], object]
"""A command and its reply; for an error the code it begins with."""


def stream(chance: random.Random, names: list[str], count: int) -> list[Asked]:
    """Commands of every way through the proxy, in random order, each with the reply that only it can have."""
    model: dict[str, bytes] = {}
    asked: list[Asked] = []
    for number in range(count):
        some = chance.sample(names, 6)
        unique = b"%d" % number
        match chance.randrange(8):
            case 0:
                model[some[0]] = unique
                asked.append((("SET", some[0], unique), b"OK"))
            case 1:
                asked.append((("GET", some[0]), model.get(some[0])))
            case 2:
                model.update(dict.fromkeys(some, unique))
                asked.append((("MSET", *[word for name in some for word in (name, unique)]), b"OK"))
            case 3:
                asked.append((("MGET", *some), [model.get(name) for name in some]))
            case 4:
                asked.append((("DEL", *some), sum(model.pop(name, None) is not None for name in some)))
            case 5:
                asked.append((("ECHO", unique), unique))
            case 6:
                asked.append((("NOSUCHCOMMAND", unique), "ERR"))
            case 7:
                asked.append((("LPUSH", some[0], "x"), "WRONGTYPE") if some[0] in model else (("PING",), b"PONG"))
    return asked


def check(replies: list[object], asked: list[Asked]) -> None:
    for number, (reply, (argv, expected)) in enumerate(zip(replies, asked, strict=True)):
        got = error(reply).split()[0] if isinstance(reply, hiredis.ReplyError) else reply
        assert got == expected, f"reply {number}, to {argv}"


@pytest.mark.parametrize("seed", range(3))
def test_splits_local_replies_and_errors_come_in_the_order_of_requests(conn: Connection, keys: Keys, seed: int) -> None:
    names = [name for shard in range(SHARDS) for name in keys.on(shard, 6)]
    asked = stream(random.Random(seed), names, 2000)
    conn.send(*[argv for argv, _ in asked])
    check(conn.reads(len(asked)), asked)


def test_many_clients_that_pipeline_at_once_get_each_their_own(proxy: Proxy, conn: Connection, keys: Keys) -> None:
    assert conn.ask("DBSIZE") == 0
    streams = []
    for number in range(20):
        names = [name for shard in range(SHARDS) for name in keys.on(shard, 2, f"c{number}-")]
        streams.append((Connection(proxy.port), stream(random.Random(number), names, 300)))
    for client, asked in streams:
        client.send(*[argv for argv, _ in asked])
    for client, asked in streams:
        with client:
            check(client.reads(len(asked)), asked)


# --- one connection per shard at a time -------------------------------------------------------------------------------


@pytest.fixture
def load(proxy: Proxy, conn: Connection, keys: Keys) -> Iterator[None]:
    """Large writes of others are under way on the connection of RESP2 and database 0, so it is the slower one."""
    assert conn.ask("PING") == b"PONG"
    others = [Connection(proxy.port) for _ in range(4)]
    blob = b"x" * 500_000
    for other in others:
        for shard in range(SHARDS):
            other.send(*[("SET", keys.one(shard, "load"), blob)] * 2)
    yield
    for other in others:
        with other:
            assert set(map(bytes, other.reads(2 * SHARDS))) == {b"OK"}  # type: ignore[arg-type]


@pytest.mark.usefixtures("load")
@pytest.mark.parametrize("round_", range(5))
def test_after_hello_a_client_sees_its_own_write(proxy: Proxy, keys: Keys, round_: int) -> None:
    for shard in range(SHARDS):
        with Connection(proxy.port) as conn:
            key = keys.one(shard, f"hello{round_}-")
            conn.send(
                ("SET", key, "mine"), ("HELLO", 3), ("GET", key), ("SET", key, "next"), ("HELLO", 2), ("GET", key)
            )
            replies = conn.reads(6)
            assert (replies[0], replies[2], replies[3], replies[5]) == (b"OK", b"mine", b"OK", b"next")


@pytest.mark.usefixtures("load")
@pytest.mark.parametrize("round_", range(5))
def test_after_select_and_back_a_client_sees_its_own_write(proxy: Proxy, keys: Keys, round_: int) -> None:
    for shard in range(SHARDS):
        with Connection(proxy.port) as conn:
            key = keys.one(shard, f"select{round_}-")
            conn.send(
                ("SET", key, "in 0"), ("SELECT", 1), ("GET", key), ("SET", key, "in 1"), ("SELECT", 0), ("GET", key),
                ("MOVE", key, 2), ("SELECT", 2), ("GET", key),
            )  # fmt: skip
            expected = [b"OK", b"OK", None, b"OK", b"OK", b"in 0", 1, b"OK", b"in 0"]
            assert conn.reads(len(expected)) == expected


@pytest.mark.usefixtures("load")
def test_after_a_split_write_and_hello_a_client_sees_all_its_parts(proxy: Proxy, keys: Keys) -> None:
    names = [keys.one(shard, "split") for shard in range(SHARDS)]
    with Connection(proxy.port) as conn:
        for number in range(20):
            value = b"%d" % number
            conn.send(
                ("MSET", *[word for name in names for word in (name, value)]),
                ("HELLO", 3 - number % 2),
                ("MGET", *names),
            )
            assert conn.reads(3)[2] == [value] * SHARDS


def test_each_reply_is_in_the_protocol_that_its_request_was_made_in(conn: Connection, keys: Keys) -> None:
    key = keys.one(0, "hash")
    conn.send(("HSET", key, "f", "v"), ("HGETALL", key), ("HELLO", 3), ("HGETALL", key), ("RESET",), ("HGETALL", key))
    replies = conn.reads(6)
    assert replies[1] == [b"f", b"v"]
    assert replies[3] == {b"f": b"v"}
    assert (replies[4], replies[5]) == (b"RESET", [b"f", b"v"])
