"""Commands that leave the hot path, asked of a running proxy over ten shards."""

from collections.abc import Iterator

import pytest

from pyproxy.fleet import Fleet, Proxy
from tests.e2e.rig import Connection, Keys, error


@pytest.fixture
def conn(proxy10: Proxy) -> Iterator[Connection]:
    with Connection(proxy10.port) as conn:
        conn.ask("FLUSHALL")
        yield conn


def test_a_command_with_keys_of_one_shard_goes_there(conn: Connection) -> None:
    conn.ask("SADD", "{t}a", "1", "2")
    conn.ask("SADD", "{t}b", "2", "3")
    assert conn.ask("SINTERCARD", 2, "{t}a", "{t}b") == 1


def test_a_command_with_keys_of_several_shards_is_crossslot_and_changes_nothing(
    conn: Connection, proxy10: Proxy
) -> None:
    key, other_key = Keys(proxy10).one(0), Keys(proxy10).one(1)
    conn.ask("SET", key, "v")
    assert error(conn.ask("RENAME", key, other_key)).startswith("CROSSSLOT ")
    assert conn.ask("MGET", key, other_key) == [b"v", None]


def test_a_subcommand_is_routed_by_its_own_keys(conn: Connection) -> None:
    conn.ask("SET", "k", "12")
    assert conn.ask("object", "ENCODING", "k") == b"int"


def test_an_unknown_subcommand_is_said_as_redis_says_it(conn: Connection) -> None:
    assert error(conn.ask("OBJECT", "foo", "k")) == "ERR unknown subcommand 'foo'. Try OBJECT HELP."


def test_a_wrong_arity_is_said_before_anything_is_sent(conn: Connection) -> None:
    assert error(conn.ask("MSET", "a", "1", "b")) == "ERR wrong number of arguments for 'mset' command"
    assert conn.ask("DBSIZE") == 0


def test_a_refusal_says_why_and_the_connection_stays(conn: Connection) -> None:
    assert error(conn.ask("SHUTDOWN")).startswith("ERR command 'shutdown' is not served by this proxy: ")
    assert conn.ask("PING") == b"PONG"


def test_nothing_of_a_transaction_with_an_unknown_command_is_run(conn: Connection) -> None:
    conn.send(["MULTI"], ["SET", "k", "v"], ["nonsense"], ["MSET", "a", "1", "b", "2"], ["EXEC"], ["DBSIZE"])
    begun, first, unknown, second, executed, size = conn.reads(6)
    assert (begun, first, second, size) == (b"OK", b"QUEUED", b"QUEUED", 0)
    assert [error(each).split()[0] for each in (unknown, executed)] == ["ERR", "EXECABORT"]


@pytest.mark.parametrize("way_out", ["DISCARD", "RESET", "EXEC"])
def test_behind_a_transaction_commands_are_run_again(conn: Connection, way_out: str) -> None:
    conn.send(["MULTI"], ["nonsense"], [way_out], ["SET", "k", "w"])
    assert conn.reads(4)[3] == b"OK"


def test_keys_of_all_shards_are_counted_listed_and_flushed(conn: Connection, fleet10: Fleet) -> None:
    names = [b"key:%d" % number for number in range(100)]
    conn.ask("MSET", *(word for name in names for word in (name, b"v")))
    assert conn.ask("DBSIZE") == 100
    listed = conn.ask("KEYS", "key:*")
    assert isinstance(listed, list) and sorted(listed) == sorted(names)
    assert conn.ask("FLUSHDB") == b"OK"
    assert [shard.primary.ask("DBSIZE") for shard in fleet10.shards] == [0] * 10


def test_http_is_closed_without_a_word(proxy10: Proxy) -> None:
    with Connection(proxy10.port) as browser:
        browser.socket.sendall(b"POST / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert browser.until_end() == b""
