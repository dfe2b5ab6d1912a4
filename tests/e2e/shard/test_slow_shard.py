"""A shard that does not answer: a deadline for each request, a tombstone for each late reply.

The server is stopped (SIGSTOP): its port still accepts, its kernel still takes bytes, nobody answers.
"""

from collections.abc import Iterator

import pytest

from pyproxy.fleet import Fleet, Proxy, Server, wait_until
from tests.e2e.rig import PATIENCE_S, PATIENT, Connection, Keys, behind, error, of_a_worker, proxy_info, wait_for_info
from tests.faults import Hop, Way

SLOW = 1
"""The index of the shard that is stopped."""

REPLY_S, SILENCE_S = 0.4, 0.6


@pytest.fixture(scope="module")
def proxy(fleet: Fleet) -> Iterator[Proxy]:
    """It drops no connection for silence, so that late replies come on the connection they were asked on."""
    with Proxy(fleet, timeouts={"reply_s": REPLY_S, "silence_s": PATIENCE_S, "connect_s": 5.0}) as proxy:
        yield proxy


@pytest.fixture
def slow(fleet: Fleet, conn: Connection, keys: Keys) -> Iterator[Server]:
    """A primary that stands still, with the proxy connected to it."""
    server = fleet.shards[SLOW].primary
    wait_until("the shard to be served", lambda: conn.ask("DEL", keys.one(SLOW)) in (0, 1), lambda: "")
    server.pause()
    yield server
    server.resume()


@pytest.mark.usefixtures("slow")
def test_a_read_is_answered_at_its_deadline_as_not_applied(conn: Connection, keys: Keys) -> None:
    said = error(conn.ask("GET", keys.one(SLOW)))
    assert said.startswith(f"TRYAGAIN shard s{SLOW} (")
    assert f"did not answer within {REPLY_S:g} s, applied=no" in said


@pytest.mark.usefixtures("slow")
def test_a_write_is_answered_at_its_deadline_as_uncertain(conn: Connection, keys: Keys) -> None:
    said = error(conn.ask("SET", keys.one(SLOW, "late-write"), "v"))
    assert said.startswith(f"UNCERTAIN shard s{SLOW} (")
    assert f"did not answer within {REPLY_S:g} s, applied=unknown" in said


def test_a_late_reply_goes_to_nobody(conn: Connection, keys: Keys, slow: Server, proxy: Proxy) -> None:
    """Each of 100 late replies would be seen: they carry numbers that none of the later requests has."""
    counter = keys.one(SLOW, "late")
    conn.send(*[("INCRBY", counter, 1000) for _ in range(100)])
    assert {error(reply).split()[0] for reply in conn.reads(100)} == {"UNCERTAIN"}
    slow.resume()
    with Connection(proxy.port) as other:
        other.send(*[("ECHO", "mine"), ("APPEND", counter, "x"), ("STRLEN", counter)] * 5)
        assert other.reads(3) == [b"mine", 7, 7], "100 times 1000 was added, by requests whose replies nobody got"
        assert other.reads(12) == [word for length in range(8, 12) for word in (b"mine", length, length)]
    assert conn.ask("STRLEN", counter) == 11
    assert conn.ask("DEL", counter) == 1


def test_a_late_reply_does_not_replace_the_error_a_client_has_not_read_yet(
    conn: Connection, keys: Keys, slow: Server, proxy: Proxy
) -> None:
    """The error waits behind replies that the client does not read, when the late reply comes."""
    big, counter = keys.one(0, "big"), keys.one(SLOW, "unread")
    assert conn.ask("SET", big, b"x" * (16 << 20)) == b"OK"
    timeouts = int(proxy_info(conn)["timeouts"])
    with Connection(proxy.port, receive_buffer=4096) as unread:
        unread.send(("GET", big), ("INCR", counter))
        wait_for_info(conn, "the deadline to pass", lambda info: int(info["timeouts"]) > timeouts)
        slow.resume()
        assert conn.ask("GET", counter) == b"1", "the late reply has come before this one, on the same connection"
        assert len(str(unread.read())) > 16 << 20
        assert error(unread.read()).startswith("UNCERTAIN ")
        assert unread.ask("GET", counter) == b"1"
    wait_for_info(
        conn, "nothing to be counted as out", lambda info: (info["inflight"], info["buffered_bytes"]) == ("0", "0")
    )
    assert conn.ask("DEL", big) == 1
    assert conn.ask("DEL", counter) == 1


def test_replies_of_other_shards_do_not_wait_for_it(fleet: Fleet, keys: Keys, slow: Server) -> None:
    """No deadline passes here: whatever waits for the slow one gets its answer from it, after all others."""
    with Proxy(fleet, timeouts=PATIENT) as proxy, Connection(proxy.port) as waiting, Connection(proxy.port) as other:
        slow.resume()
        assert waiting.ask("SET", keys.one(SLOW), "v") == b"OK"
        slow.pause()
        waiting.send(("GET", keys.one(SLOW)))
        wait_for_info(other, "one request to be in flight", lambda info: info["inflight"] == "1")
        assert other.ask("SET", keys.one(0), "v") == b"OK"
        assert other.ask("MGET", keys.one(0), keys.one(2)) == [b"v", None]
        assert proxy_info(other)["timeouts"] == "0"
        slow.resume()
        assert waiting.read() == b"v"
        assert waiting.ask("DEL", keys.one(SLOW)) == 1


@pytest.mark.usefixtures("slow")
def test_behind_a_slow_request_the_same_clients_replies_keep_their_order(conn: Connection, keys: Keys) -> None:
    conn.send(("SET", keys.one(0), "first"), ("GET", keys.one(SLOW)), ("GET", keys.one(0)), ("ECHO", "last"))
    replies = conn.reads(4)
    assert (replies[0], replies[2], replies[3]) == (b"OK", b"first", b"last")
    assert error(replies[1]).startswith("TRYAGAIN ")


@pytest.mark.usefixtures("slow")
def test_a_split_read_is_an_error_that_names_the_slow_shard(conn: Connection, keys: Keys) -> None:
    said = error(conn.ask("MGET", keys.one(0), keys.one(SLOW), keys.one(2)))
    assert said.startswith(f"TRYAGAIN shard s{SLOW}: ")


@pytest.mark.usefixtures("slow")
def test_a_split_write_is_uncertain_and_names_the_shards_that_applied_theirs(conn: Connection, keys: Keys) -> None:
    split = [keys.one(index, "mset") for index in (0, SLOW, 2)]
    said = error(conn.ask("MSET", *[word for key in split for word in (key, "v")]))
    assert said.startswith(f"UNCERTAIN shard s{SLOW}: ")
    assert said.endswith("; other shards may have applied their part: s0, s2")
    assert conn.ask("GET", split[0]) == b"v"


# --- silent for too long ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hop(fleet: Fleet) -> Iterator[Hop]:
    with Hop(fleet.shards[SLOW].primary.port, of_a_worker) as hop:
        yield hop


@pytest.fixture(scope="module")
def strict(fleet: Fleet, hop: Hop) -> Iterator[Proxy]:
    """A proxy that drops a silent connection."""
    with behind(fleet, {SLOW: hop}, timeouts={"reply_s": REPLY_S, "silence_s": SILENCE_S, "connect_s": 5.0}) as proxy:
        yield proxy


def test_a_connection_that_is_silent_too_long_is_dropped_and_its_late_replies_with_it(
    hop: Hop, strict: Proxy, keys: Keys
) -> None:
    key = keys.one(SLOW, "silent")
    with Connection(strict.port) as conn:
        assert conn.ask("SET", key, "v") == b"OK"
        accepted = hop.accepted
        hop.stall(Way.REPLIES)
        assert error(conn.ask("GET", key)).startswith("TRYAGAIN ")
        wait_until("the connection to be dropped", lambda: hop.accepted > accepted, lambda: "", PATIENCE_S)
        hop.heal()
        wait_until("the shard to be served", lambda: conn.ask("APPEND", key, "w") == 2, lambda: "", PATIENCE_S)
        assert conn.ask("DEL", key) == 1


def test_a_reply_that_trickles_in_without_end_is_given_up(hop: Hop, strict: Proxy, keys: Keys) -> None:
    """Bytes that come keep a connection, but not for ever."""
    key = keys.one(SLOW, "trickle")
    with Connection(strict.port) as conn:
        assert conn.ask("SET", key, b"x" * 100_000) == b"OK"
        accepted = hop.accepted
        hop.drip(0.1, Way.REPLIES)
        assert error(conn.ask("GET", key)).startswith("TRYAGAIN ")
        wait_until("it to be given up", lambda: hop.accepted > accepted, lambda: "", 10 * SILENCE_S + PATIENCE_S)
        hop.heal()
        wait_until("the shard to be served", lambda: conn.ask("STRLEN", key) == 100_000, lambda: "", PATIENCE_S)
