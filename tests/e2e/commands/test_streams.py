"""XREAD and XREADGROUP of streams on several shards, beside one server that has them all."""

from collections.abc import Iterator

import pytest

from pyproxy.fleet import Fleet, Proxy, Server
from tests.e2e.rig import Argument, Connection, Keys, error, killed, packed


@pytest.fixture(scope="module")
def proxy(fleet: Fleet) -> Iterator[Proxy]:
    with Proxy(fleet) as proxy:
        yield proxy


class Twins:
    """The same asked of the proxy and of one plain server; the replies must be the same bytes."""

    def __init__(self, proxy: Proxy, server: Server, proto: int) -> None:
        self.ours, self.theirs = Connection(proxy.port), Connection(server.port)
        for conn in (self.ours, self.theirs):
            conn.ask("FLUSHALL")
            conn.ask("HELLO", proto)

    def ask(self, *argv: Argument) -> bytes:
        """The reply as it came, ended by the one to a PING behind it."""
        reply = []
        for conn in (self.ours, self.theirs):
            conn.socket.sendall(packed(*argv) + packed("PING"))
            frame = b""
            while not frame.endswith(b"+PONG\r\n"):
                frame += conn.socket.recv(1 << 20)
            reply.append(frame.removesuffix(b"+PONG\r\n"))
        assert reply[0] == reply[1], argv
        return reply[0]

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


@pytest.fixture(params=[2, 3], ids=["RESP2", "RESP3"])
def twins(request: pytest.FixtureRequest, proxy: Proxy, server: Server) -> Iterator[Twins]:
    twins = Twins(proxy, server, request.param)
    yield twins
    twins.close()


@pytest.fixture(scope="module")
def names(keys: Keys) -> list[str]:
    """Two streams on each shard, the shards in turn."""
    return [keys.on(shard, 2, "stream")[each] for each in range(2) for shard in range(3)]


def add(twins: Twins, names: list[str], entries: int = 3) -> None:
    for name in names:
        for number in range(1, entries + 1):
            twins.ask("XADD", name, f"{number}-1", "field", f"{name}={number}")


def test_xread_of_several_shards_is_in_the_order_of_the_request(twins: Twins, names: list[str]) -> None:
    add(twins, names)
    assert b"stream" in twins.ask("XREAD", "STREAMS", *names, *["0"] * 6)
    twins.ask("XREAD", "STREAMS", *reversed(names), *["2"] * 6)
    twins.ask("XREAD", "COUNT", 1, "STREAMS", *names, *["0", "1-1", "3-1", "2-1", "9", "1"])
    twins.ask("xread", "count", 2, "streams", names[4], names[0], names[1], "1-1", "0", "2")


def test_xread_leaves_out_streams_without_news_and_is_nil_if_all_are(twins: Twins, names: list[str]) -> None:
    assert twins.ask("XREAD", "STREAMS", *names, *["0"] * 6) in (b"*-1\r\n", b"_\r\n")
    add(twins, names[1:3])
    twins.ask("XREAD", "STREAMS", *names, *["0"] * 6)
    twins.ask("XREAD", "STREAMS", *names, *["$"] * 6)
    twins.ask("XREAD", "STREAMS", *names, *["3-1"] * 6)


def test_xread_of_a_stream_named_twice(twins: Twins, names: list[str]) -> None:
    add(twins, names[:2])
    twins.ask("XREAD", "STREAMS", names[0], names[1], names[0], "0", "0", "2-1")


def test_xread_with_errors_has_the_words_of_the_server(twins: Twins, names: list[str]) -> None:
    add(twins, names[:2])
    twins.ask("SET", names[2], "no stream")
    assert twins.ask("XREAD", "STREAMS", *names[:2], "0").startswith(b"-ERR Unbalanced")
    assert twins.ask("XREAD", "STREAMS", *names[:2], "0", "x").startswith(b"-ERR Invalid stream ID")
    assert twins.ask("XREAD", "STREAMS", *names[:3], "0", "0", "0").startswith(b"-WRONGTYPE")
    assert twins.ask("XREAD", "COUNT", "x", "STREAMS", *names[:2], "0", "0").startswith(b"-ERR value")


def test_xreadgroup_of_several_shards_delivers_each_entry_once(twins: Twins, names: list[str]) -> None:
    add(twins, names)
    for name in names:
        twins.ask("XGROUP", "CREATE", name, "group", "0")
    group = ("XREADGROUP", "GROUP", "group", "consumer", "COUNT", 2, "STREAMS")
    twins.ask(*group, *names, *[">"] * 6)
    twins.ask(*group, *names, *[">"] * 6)
    assert twins.ask(*group, *names, *[">"] * 6) in (b"*-1\r\n", b"_\r\n")
    twins.ask("XACK", names[0], "group", "1-1")
    twins.ask("XDEL", names[1], "1-1")
    twins.ask(*group, *names, *["0"] * 6)
    for name in names:
        twins.ask("XPENDING", name, "group")
        twins.ask("XINFO", "GROUPS", name)


def test_xgroup_and_xinfo_are_of_the_shard_of_their_key(twins: Twins, names: list[str]) -> None:
    add(twins, names)
    for name in names:
        twins.ask("XGROUP", "CREATE", name, "group", "$")
        twins.ask("XGROUP", "CREATECONSUMER", name, "group", "consumer")
        twins.ask("XGROUP", "SETID", name, "group", "1-1")
        twins.ask("XINFO", "STREAM", name)
        twins.ask("XINFO", "GROUPS", name)
        twins.ask("XGROUP", "DELCONSUMER", name, "group", "consumer")
        twins.ask("XGROUP", "DESTROY", name, "group")
    assert twins.ask("XGROUP", "CREATE", "nothing", "group", "$").startswith(b"-ERR The XGROUP subcommand requires")


def test_a_group_that_one_shard_lacks_is_an_error_and_nothing_is_handed_out(conn: Connection, names: list[str]) -> None:
    here, there = names[:2]
    conn.send(("FLUSHALL",), ("XADD", here, "1-1", "f", "v"), ("XADD", there, "1-1", "f", "v"))
    conn.send(("XGROUP", "CREATE", here, "group", "0"))
    assert conn.reads(4) == [b"OK", b"1-1", b"1-1", b"OK"]
    ask = ("XREADGROUP", "GROUP", "group", "consumer", "STREAMS", here, there)
    reply = error(conn.ask(*ask, ">", ">"))
    assert reply.startswith(f"NOGROUP No such key '{there}'")
    conn.ask("XGROUP", "CREATE", there, "group", "0")
    entry = [b"1-1", [b"f", b"v"]]
    assert conn.ask(*ask, ">", ">") == [[here.encode(), [entry]], [there.encode(), [entry]]]


def test_streams_over_shards_stand_in_the_order_of_replies(conn: Connection, names: list[str]) -> None:
    here, there = names[:2]
    conn.send(
        ("FLUSHALL",),
        ("XADD", here, "1-1", "f", "v"),
        ("XADD", there, "1-1", "f", "v"),
        ("XREAD", "STREAMS", there, here, "0", "0"),
        ("XLEN", here),
        ("XREAD", "STREAMS", there, here, "1", "1-1"),
    )
    entry = [b"1-1", [b"f", b"v"]]
    both = [[there.encode(), [entry]], [here.encode(), [entry]]]
    assert conn.reads(6) == [b"OK", b"1-1", b"1-1", both, 1, [[there.encode(), [entry]]]]


def test_streams_over_shards_are_refused_in_a_transaction(conn: Connection, names: list[str]) -> None:
    conn.send(("MULTI",), ("XREAD", "STREAMS", *names[:2], "0", "0"), ("DISCARD",))
    assert error(conn.reads(3)[1]).startswith("CROSSSLOT")


def test_a_stream_of_a_lost_shard_is_an_error(fleet: Fleet, proxy: Proxy, names: list[str]) -> None:
    with Proxy(fleet) as own, Connection(own.port) as conn:
        conn.ask("XADD", names[0], "1-1", "f", "v")
        with killed(fleet.shards[1].primary, proxy):
            reply = error(conn.ask("XREAD", "STREAMS", *names[:2], "0", "0"))
            assert "TRYAGAIN shard s1" in reply and "applied=no" in reply
