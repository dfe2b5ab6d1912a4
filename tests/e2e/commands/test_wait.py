"""WAIT and WAITAOF: how many replicas have what this client has written, whoever else uses the connections."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyproxy.fleet import HOST, VARIABLE, Fleet, Proxy, wait_until
from tests.e2e.bare_worker import BareWorker
from tests.e2e.rig import PATIENCE_S, Argument, Connection, Keys, error, wait_for_info

LONG_MS = int(PATIENCE_S * 1000)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """Two shards with a replica each."""
    with Fleet(shards=2, replicas=1) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def proxy(fleet: Fleet) -> Iterator[Proxy]:
    with Proxy(fleet, None, 1, timeouts={"reply_s": PATIENCE_S, "silence_s": PATIENCE_S}) as proxy:
        yield proxy


@pytest.fixture
def stopped(fleet: Fleet) -> Iterator[Fleet]:
    """The replica of the second shard stands still."""
    replica = fleet.shards[1].replicas[0]
    replica.pause()
    yield fleet
    replica.resume()


@pytest.mark.parametrize("proto", [2, 3])
def test_wait_counts_the_replicas_that_have_the_writes(conn: Connection, keys: Keys, proto: int) -> None:
    conn.ask("HELLO", proto)
    for shard in range(2):
        assert conn.ask("SET", keys.one(shard), "v") == b"OK"
        assert conn.ask("WAIT", 1, LONG_MS) == 1


@pytest.mark.parametrize("program", ["", "redis-server"])
def test_wait_sees_that_a_stopped_replica_has_not_the_write(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By Redis and by Valkey, whose connections remember differently what was written before them."""
    if program:
        binary = shutil.which(program)
        if binary is None:
            pytest.skip(f"no {program} on PATH")
        monkeypatch.setenv(VARIABLE, binary)
    with Fleet(shards=2, replicas=1) as fleet, Proxy(fleet) as proxy, Connection(proxy.port) as conn:
        key = Keys(proxy).one(0)
        assert conn.ask("SET", key, "v") == b"OK"
        assert conn.ask("WAIT", 1, LONG_MS) == 1
        fleet.shards[0].replicas[0].pause()
        conn.send(("SET", key, "w"), ("WAIT", 1, 50), ("WAIT", 1, 50))
        assert conn.reads(3) == [b"OK", 0, 0]
        fleet.shards[0].replicas[0].resume()
        assert conn.ask("WAIT", 1, LONG_MS) == 1


@pytest.mark.parametrize(
    "write",
    [
        [("SET", "{%s}", "v")],
        [("MSET", "{%s}", "v", "{%s}x", "v")],
        [("MSET", "{%s}", "v", "{0}", "v")],
        [("MULTI",), ("SET", "{%s}", "v"), ("EXEC",)],
        [("BITOP", "NOT", "{%s}", "{%s}x")],
        [("FLUSHDB",)],
    ],
)
def test_every_way_to_write_counts(conn: Connection, keys: Keys, stopped: Fleet, write: list[tuple[str, ...]]) -> None:
    tag = keys.one(1)
    asked = [tuple(word.replace("%s", tag).replace("{0}", keys.one(0)) for word in argv) for argv in write]
    conn.send(*asked)
    assert not any(isinstance(reply, Exception) for reply in conn.reads(len(asked)))
    assert conn.ask("WAIT", 1, 20) == 0


def test_the_least_of_the_shards_counts(conn: Connection, keys: Keys, stopped: Fleet) -> None:
    conn.send(("SET", keys.one(0), "v"), ("SET", keys.one(1), "v"), ("WAIT", 1, 20))
    assert conn.reads(3) == [b"OK", b"OK", 0]


def test_a_shard_that_the_client_never_wrote_to_spoils_nothing(conn: Connection, keys: Keys, stopped: Fleet) -> None:
    conn.send(("SET", keys.one(0), "v"), ("GET", keys.one(1)), ("WAIT", 1, LONG_MS))
    assert conn.reads(3)[2] == 1


def test_what_was_waited_for_is_not_waited_for_again_but_by_more(conn: Connection, keys: Keys, fleet: Fleet) -> None:
    replica = fleet.shards[1].replicas[0]
    conn.send(("SET", keys.one(1), "v"), ("WAIT", 1, LONG_MS))
    assert conn.reads(2) == [b"OK", 1]
    replica.pause()
    try:
        conn.send(("SET", keys.one(0), "v"), ("WAIT", 1, LONG_MS), ("WAIT", 2, 20))
        assert conn.reads(3) == [b"OK", 1, 0]
    finally:
        replica.resume()


def test_who_has_written_nothing_is_told_how_many_replicas_there_are(conn: Connection) -> None:
    wanted: list[Argument] = ["WAIT", 1, LONG_MS]
    assert conn.ask(*wanted) == 1
    conn.ask("HELLO", 3)
    assert conn.ask("WAIT", 0, 0) in (0, 1)
    assert conn.ask("WAIT", 5, 20) == 1


def test_without_a_timeout_it_waits_for_as_long_as_it_takes(conn: Connection, keys: Keys, stopped: Fleet) -> None:
    conn.send(("SET", keys.one(1), "v"), ("WAIT", 1, 0), ("PING",))
    assert conn.read() == b"OK"
    wait_for_waiting(stopped, 1)
    stopped.shards[1].replicas[0].resume()
    assert conn.reads(2) == [1, b"PONG"]


def wait_for_waiting(fleet: Fleet, count: int) -> None:
    """Until so many connections to the second shard's primary wait, as the server sees it."""
    seen = ""

    def waiting() -> bool:
        nonlocal seen
        text = fleet.shards[1].primary.ask("INFO", "clients")
        assert isinstance(text, bytes)
        seen = text.decode()
        return f"blocked_clients:{count}\r\n" in seen

    wait_until(f"{count} blocked clients", waiting, lambda: seen)


def test_a_client_that_leaves_waits_no_longer(proxy: Proxy, keys: Keys, stopped: Fleet) -> None:
    with Connection(proxy.port) as conn:
        conn.send(("SET", keys.one(1), "v"), ("WAIT", 1, 0))
        assert conn.read() == b"OK"
        wait_for_waiting(stopped, 1)
    wait_for_waiting(stopped, 0)


def test_others_are_served_meanwhile(proxy: Proxy, conn: Connection, keys: Keys, stopped: Fleet) -> None:
    conn.send(("SET", keys.one(1), "v"), ("WAIT", 1, 0))
    assert conn.read() == b"OK"
    with Connection(proxy.port) as other:
        for shard in range(2):
            assert other.ask("SET", keys.one(shard), "w") == b"OK"
        assert other.ask("GET", keys.one(1)) == b"w"


@pytest.mark.parametrize(
    ("argv", "reply"),
    [
        (("WAIT", "x", "1"), "ERR value is not an integer or out of range"),
        (("WAIT", "1", "-1"), "ERR timeout is negative"),
        (("WAIT", "1", "x"), "ERR timeout is not an integer or out of range"),
        (("WAIT", "x", "-1"), "ERR value is not an integer or out of range"),
        (("WAIT", "1"), "ERR wrong number of arguments for 'wait' command"),
    ],
)
def test_wait_refuses_what_redis_refuses_in_its_words(conn: Connection, argv: tuple[str, ...], reply: str) -> None:
    assert error(conn.ask(*argv)) == reply


def test_wait_is_not_served_in_a_transaction(conn: Connection) -> None:
    conn.send(("MULTI",), ("WAIT", 1, 0), ("EXEC",))
    assert conn.read() == b"OK"
    assert error(conn.read()).startswith("ERR command 'wait' is not served in a transaction")
    assert error(conn.read()).startswith("EXECABORT")


def test_nobody_who_listens_hears_of_it(conn: Connection, keys: Keys, fleet: Fleet) -> None:
    with Connection(fleet.shards[0].primary.port) as listener:
        assert listener.ask("PSUBSCRIBE", "*") == [b"psubscribe", b"*", 1]
        conn.send(("SET", keys.one(0), "v"), ("WAIT", 1, LONG_MS))
        assert conn.reads(2) == [b"OK", 1]
        fleet.shards[0].primary.ask("PUBLISH", "theirs", "word")
        assert listener.read() == [b"pmessage", b"*", b"theirs", b"word"]


# --- a shard is lost --------------------------------------------------------------------------------------------------


def test_a_shard_whose_connection_was_lost_is_said_to_be_uncertain_once() -> None:
    with Fleet(shards=2, replicas=0) as fleet, Proxy(fleet) as proxy, Connection(proxy.port) as conn:
        keys = Keys(proxy)
        conn.ask("MSET", keys.one(0), "v", keys.one(1), "v")
        fleet.shards[0].primary.kill()
        fleet.shards[0].primary.start()
        wait_until("the shard", lambda: conn.ask("EXISTS", keys.one(0)) == 0, proxy.tail)
        reply = error(conn.ask("WAIT", 0, 50))
        assert reply.startswith("UNCERTAIN shard s0 ") and "lost its connection" in reply
        assert conn.ask("WAIT", 0, 50) == 0


def test_a_shard_that_is_down_is_an_error_and_one_that_is_not_concerned_is_not_asked() -> None:
    with Fleet(shards=2, replicas=0) as fleet, Proxy(fleet) as proxy, Connection(proxy.port) as conn:
        key = Keys(proxy).one(1)
        fleet.shards[0].primary.kill()
        wait_for_info(conn, "the shard to be down", lambda info: info["shards_down"] == "1")
        assert error(conn.ask("WAIT", 0, 50)).startswith("TRYAGAIN shard s0")
        conn.send(("SET", key, "v"), ("WAIT", 0, 50))
        assert conn.reads(2) == [b"OK", 0]


# --- WAITAOF ----------------------------------------------------------------------------------------------------------


def test_waitaof_is_the_least_of_the_shards_too(tmp_path: Path) -> None:
    with Fleet(shards=2, replicas=1, options=("--enable-protected-configs", "yes")) as fleet, Proxy(fleet) as proxy:
        if not fleet.backend.version.startswith("valkey"):
            pytest.skip(f"WAITAOF is not known to {fleet.backend.version}")
        for each in fleet.servers:  # each has a directory of its own, as their files have the same names
            (tmp_path / each.name).mkdir()
            each.ask("CONFIG", "SET", "dir", str(tmp_path / each.name), "appendonly", "yes")
        keys = Keys(proxy)
        with Connection(proxy.port) as conn:
            conn.send(("SET", keys.one(0), "v"), ("SET", keys.one(1), "v"), ("WAITAOF", 1, 1, LONG_MS))
            assert conn.reads(3) == [b"OK", b"OK", [1, 1]]
            fleet.shards[1].replicas[0].pause()
            conn.send(("SET", keys.one(0), "v"), ("SET", keys.one(1), "v"), ("WAITAOF", 1, 1, 2000))
            assert conn.reads(3) == [b"OK", b"OK", [1, 0]]


def test_waitaof_is_refused_in_the_words_of_the_server(conn: Connection, keys: Keys, fleet: Fleet) -> None:
    conn.ask("SET", keys.one(0), "v")
    with Connection(fleet.shards[0].primary.port) as direct:
        for argv in (("WAITAOF", 1, 0, 10), ("WAITAOF", 2, 0, 10), ("WAITAOF", 0, 0, -1), ("WAITAOF", 0, 0, "x")):
            assert error(conn.ask(*argv)) == error(direct.ask(*argv))


def test_a_primary_that_has_become_a_replica_is_said_to_be_uncertain_once_or_not_to_be_asked() -> None:
    with Fleet(shards=2, replicas=0) as fleet, BareWorker(fleet) as worker:
        keys = Keys(worker)
        with Connection(worker.port) as writer, Connection(worker.port) as other:
            assert writer.ask("SET", keys.one(0), "v") == b"OK"
            fleet.shards[0].primary.ask("REPLICAOF", HOST, fleet.shards[1].primary.port)
            reply = error(writer.ask("WAIT", 0, 50))
            assert reply.startswith("UNCERTAIN shard s0 ") and "was replaced" in reply
            reply = error(other.ask("WAIT", 0, 50))
            assert reply.startswith("TRYAGAIN shard s0 ") and "applied=no" in reply
