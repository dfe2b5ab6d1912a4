"""A shard gets another primary: what was refused is withheld and replayed, reads go on."""

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Sequence

import msgspec
import pytest

from pyproxy.fleet import Fleet, Server, Table, wait_until
from pyproxy.messages import Awake, Complaint, Confirmed, Topology
from pyproxy.shard_map import Node
from tests.e2e.bare_worker import BareWorker, node, promote
from tests.e2e.rig import PATIENCE_S, Argument, Connection, Keys, error, of_a_worker, packed, wait_for_info
from tests.faults import Hop, Way

LOST = 1
"""The index of the shard whose primary is replaced."""

PATIENT: Table = {"promoter": "replicaof", "on_promotion": "hold", "hold_s": 15.0, "down_after_s": 5.0}


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    """Of one test: it is not as it was afterwards."""
    with Fleet(shards=2, replicas=2) as fleet:
        yield fleet


@pytest.fixture
def old(fleet: Fleet) -> Server:
    return fleet.shards[LOST].primary


@pytest.fixture
def new(fleet: Fleet) -> Server:
    return fleet.shards[LOST].replicas[0]


@pytest.fixture
def worker(fleet: Fleet) -> Iterator[BareWorker]:
    with BareWorker(fleet, promotion=PATIENT) as worker:
        yield worker


@pytest.fixture
def keys(worker: BareWorker) -> Keys:
    return Keys(worker)


@pytest.fixture
def conn(worker: BareWorker) -> Iterator[Connection]:
    with Connection(worker.port) as conn:
        yield conn


@pytest.fixture
def hopped(fleet: Fleet, old: Server) -> Iterator[tuple[BareWorker, Hop]]:
    """A worker that reaches the old primary through a hop."""
    hop = Hop(old.port, of_a_worker)
    timeouts = {"reply_s": PATIENCE_S, "silence_s": PATIENCE_S}
    with hop, BareWorker(fleet, {LOST: Node("127.0.0.1", hop.port)}, promotion=PATIENT, timeouts=timeouts) as worker:
        with Connection(worker.port) as conn:
            assert conn.ask("DBSIZE") == 0, "it is connected"
        yield worker, hop


def wait_applied(server: Server, key: str, value: bytes) -> None:
    wait_until(f"{key} to be {value!r}", lambda: server.ask("GET", key) == value, lambda: str(server.ask("GET", key)))


def wait_replicated(old: Server, new: Server, *keys: str) -> None:
    wait_until("the replica to have all", lambda: new.ask("EXISTS", *keys) == len(keys), lambda: "")


# --- another primary --------------------------------------------------------------------------------------------------


def test_held_writes_go_to_the_new_primary_and_nothing_to_the_old(
    worker: BareWorker, keys: Keys, conn: Connection, old: Server, new: Server
) -> None:
    key = keys.one(LOST)
    worker.close(LOST)
    conn.send(("INCR", key), ("INCR", key))
    worker.wait_held(LOST, 1)
    promote(None, new)  # the old one stays a primary, as behind a split network
    worker.switch_to(LOST, new)
    assert worker.holding(LOST).requests == 1
    worker.open(LOST)
    assert conn.reads(2) == [1, 2]
    assert (old.ask("GET", key), new.ask("GET", key)) == (None, b"2")


def test_connections_of_another_epoch_are_closed_though_the_server_is_the_same(
    worker: BareWorker, keys: Keys, conn: Connection, old: Server
) -> None:
    def ids() -> set[bytes]:
        listed = old.ask("CLIENT", "LIST", "TYPE", "normal")
        assert isinstance(listed, bytes)
        return {line.split()[0] for line in listed.splitlines() if b"cmd=client|list" not in line}

    assert conn.ask("SET", keys.one(LOST), "v") == b"OK"
    worker.switch_to(LOST, old)
    before = ids()
    worker.switch_to(LOST, old)
    assert conn.ask("SET", keys.one(LOST), "w") == b"OK"
    # the server may answer before it has read that another connection is closed
    wait_until("the connections to be closed", lambda: not before & ids(), lambda: f"before: {before}, now: {ids()}")


def test_a_write_that_was_sent_is_uncertain_and_never_sent_to_the_new_primary(
    worker: BareWorker, keys: Keys, conn: Connection, old: Server, new: Server
) -> None:
    key = keys.one(LOST)
    assert conn.ask("SET", key, 0) == b"OK"
    wait_replicated(old, new, key)
    old.pause()
    conn.send(("INCR", key), ("INCR", key))
    with Connection(worker.port) as other:
        wait_for_info(other, "both to be in flight", lambda info: info["inflight"] == "2")
    promote(None, new)
    worker.switch_to(LOST, new)
    assert [error(reply).split()[0] for reply in conn.reads(2)] == ["UNCERTAIN", "UNCERTAIN"]
    assert conn.ask("GET", key) == b"0"


def test_a_worker_says_that_it_is_busy_until_the_last_write_is_answered(hopped: tuple[BareWorker, Hop]) -> None:
    worker, hop = hopped
    with Connection(worker.port) as conn:
        key = Keys(worker).one(LOST)
        hop.stall(Way.REPLIES)
        conn.send(("INCR", key))
        worker.wait_count("inflight", 1)
        worker.close(0)
        assert worker.busy == []
        worker.close(LOST)
        assert worker.busy == [f"s{LOST}"]
        hop.heal()
        worker.wait_for("the worker not to be busy", lambda: worker.busy == [])
        assert conn.read() == 1
        worker.open(LOST)


# --- its own eyes -----------------------------------------------------------------------------------------------------


def test_a_dead_primary_closes_the_gate_before_the_parent_says_so(
    worker: BareWorker, keys: Keys, conn: Connection, old: Server, new: Server
) -> None:
    key = keys.one(LOST)
    assert conn.ask("SET", key, "before") == b"OK"
    wait_replicated(old, new, key)
    worker.fallback(LOST, new)
    old.kill()
    conn.send(("SET", key, "after"))
    first = worker.holding(LOST).requests or 1
    worker.wait_held(LOST, first)
    with Connection(worker.port) as reader:
        assert reader.ask("GET", key) == b"before", "from the replica"
        assert reader.ask("MGET", keys.one(0), key) == [None, b"before"]
        assert reader.ask("SET", keys.one(0), "v") == b"OK"
    promote(None, new)
    worker.close(LOST)
    worker.switch_to(LOST, new)
    worker.open(LOST)
    assert conn.read() == b"OK"
    assert conn.ask("GET", key) == b"after"


def test_reads_that_were_out_when_the_primary_died_are_answered_by_the_replica(
    worker: BareWorker, keys: Keys, conn: Connection, old: Server, new: Server
) -> None:
    names = keys.on(LOST, 50)
    assert conn.ask("MSET", *[word for name in names for word in (name, name)]) == b"OK"
    wait_replicated(old, new, *names)
    worker.fallback(LOST, new)
    old.pause()
    conn.send(*[("GET", name) for name in names], ("MGET", keys.one(0), names[0]))
    old.kill()
    assert conn.reads(51) == [*[name.encode() for name in names], [None, names[0].encode()]]


def test_reads_wait_while_the_connections_of_the_replica_that_answers_them_are_killed(
    worker: BareWorker, keys: Keys, conn: Connection, old: Server, new: Server
) -> None:
    """As whoever promotes does it, and at once again: there is nobody else to ask then."""
    key = keys.one(LOST)
    assert conn.ask("SET", key, "v") == b"OK"
    wait_replicated(old, new, key)
    worker.fallback(LOST, new)
    old.kill()
    assert conn.ask("GET", key) == b"v"
    for _ in range(4):
        killed = new.ask("CLIENT", "KILL", "TYPE", "normal")
        assert isinstance(killed, int) and killed >= 1
        assert [conn.ask("GET", key) for _ in range(10)] == [b"v"] * 10


def test_reads_wait_while_there_is_nobody_to_read_from(
    worker: BareWorker, keys: Keys, conn: Connection, old: Server, new: Server
) -> None:
    """As long as the replicas copy from one another, none of them may be named."""
    key = keys.one(LOST)
    assert conn.ask("SET", key, "v") == b"OK"
    wait_replicated(old, new, key)
    with Connection(worker.port) as second, Connection(worker.port) as third:
        assert second.ask("GET", key) == b"v"
        old.pause()
        second.send(("GET", key))  # out when it is lost
        worker.wait_for("it to be in flight", lambda: worker.count("commands") >= 3)
        worker.close(LOST)
        old.kill()
        down = "closed the connection"
        worker.wait_for("it to be down", lambda: any(said.what == down for said in worker.of(Complaint)))
        conn.send(("GET", key))  # begun when there is nobody
        third.send(("MGET", keys.one(0), key))
        worker.wait_held(LOST, 2)
        worker.fallback(LOST, new)
        assert [conn.read(), second.read(), third.read()] == [b"v", b"v", [None, b"v"]]


def test_reads_wait_no_longer_than_a_hold_may_last(fleet: Fleet, old: Server) -> None:
    promotion: Table = {**PATIENT, "on_promotion": "auto", "auto_hold_s": 0.3}
    with BareWorker(fleet, promotion=promotion) as worker, Connection(worker.port) as conn:
        key = Keys(worker).one(LOST)
        assert conn.ask("GET", key) is None
        old.kill()
        assert error(conn.ask("GET", key)).startswith("TRYAGAIN ")
        assert error(conn.ask("GET", key)).startswith("TRYAGAIN "), "at once, as it has waited"
        assert worker.count("held") <= 1


@pytest.mark.parametrize("becomes", ["another answers", "nobody answers in time"])
def test_reads_that_are_out_to_a_replica_when_that_dies_too_are_answered(
    fleet: Fleet, old: Server, new: Server, becomes: str
) -> None:
    other = fleet.shards[LOST].replicas[1]
    in_time = becomes == "another answers"
    promotion: Table = PATIENT if in_time else {**PATIENT, "on_promotion": "auto", "auto_hold_s": 0.3}
    with (
        BareWorker(fleet, promotion=promotion) as worker,
        Connection(worker.port) as one,
        Connection(worker.port) as two,
    ):
        keys = Keys(worker)
        key = keys.one(LOST)
        assert one.ask("SET", key, "v") == b"OK"
        wait_replicated(old, new, key)
        wait_replicated(old, other, key)
        worker.close(LOST)
        worker.fallback(LOST, new)
        old.kill()
        assert [one.ask("GET", key), two.ask("GET", key)] == [b"v", b"v"]
        new.pause()
        begun = worker.count("commands")
        one.send(("GET", key), ("MGET", keys.one(0), key))
        two.send(("MULTI",), ("GET", key), ("EXEC",), ("GET", key))
        worker.wait_for("them to be in flight", lambda: worker.count("commands") >= begun + 5)
        new.kill()
        if in_time:
            promote(None, other)
            worker.switch_to(LOST, other, open_gate=True)
            assert one.reads(2) == [b"v", [None, b"v"]]
            assert two.reads(4) == [b"OK", b"QUEUED", [b"v"], b"v"]
        else:
            said = [error(reply) for reply in (*one.reads(2), *two.reads(4)[2:])]
            assert [line.split()[0] for line in said] == ["TRYAGAIN", "TRYAGAIN", "EXECABORT", "TRYAGAIN"]


def test_without_a_promoter_or_a_replica_a_dead_primary_is_down_as_ever(fleet: Fleet, old: Server) -> None:
    with BareWorker(fleet) as worker, Connection(worker.port) as conn:
        key = Keys(worker).one(LOST)
        old.kill()
        wait_until(
            "the shard to be down",
            lambda: "is down: connection refused, applied=no; retry later" in str(conn.ask("SET", key, "v")),
            lambda: str(conn.ask("SET", key, "v")),
        )


def test_a_primary_that_stands_still_costs_three_deadlines_and_no_more(fleet: Fleet, old: Server, new: Server) -> None:
    timeouts = {"reply_s": 0.2, "silence_s": PATIENCE_S, "connect_s": PATIENCE_S}
    with BareWorker(fleet, promotion=PATIENT, timeouts=timeouts) as worker, Connection(worker.port) as conn:
        key = Keys(worker).one(LOST)
        assert conn.ask("SET", key, "v") == b"OK"
        wait_replicated(old, new, key)
        worker.fallback(LOST, new)
        old.pause()
        said = [error(conn.ask("SET", key, number)) for number in range(3)]
        assert {each.split()[0] for each in said} == {"UNCERTAIN"}
        wait_until("it to be refused", lambda: "does not answer" in str(conn.ask("SET", key, "x")), lambda: "")
        with Connection(worker.port) as reader:
            assert reader.ask("GET", key) == b"v", "from the replica"
        assert "does not answer" in error(conn.ask("GET", key)), "its writes are with the primary"
        assert worker.count("timeouts") <= 6
        old.resume()
        wait_until("a late answer to open it", lambda: conn.ask("SET", key, "y") == b"OK", lambda: "")


@pytest.mark.parametrize("proto", [2, 3])
def test_a_read_that_a_silent_primary_does_not_answer_is_asked_of_the_replica(
    fleet: Fleet, old: Server, new: Server, proto: int
) -> None:
    timeouts = {"reply_s": 0.3, "silence_s": PATIENCE_S, "connect_s": PATIENCE_S}
    with BareWorker(fleet, promotion=PATIENT, timeouts=timeouts) as worker, Connection(worker.port) as conn:
        keys = Keys(worker)
        first, second = keys.on(LOST, 2)
        conn.ask("HELLO", proto)
        conn.send(("SET", first, "v"), ("SET", second, "w"))
        conn.reads(2)
        wait_replicated(old, new, first, second)
        worker.fallback(LOST, new)
        old.pause()
        conn.send(("GET", first), ("MGET", keys.one(0), second), ("GET", second))
        assert conn.reads(3) == [b"v", [None, b"w"], b"w"]
        old.resume()
        wait_until("it to be as before", lambda: conn.ask("SET", first, "x") == b"OK", lambda: "")
        assert [conn.ask("GET", each) for each in (first, second)] == [b"x", b"w"], "no late reply is taken for these"


def test_a_read_before_a_write_of_the_same_client_is_not_asked_elsewhere(
    fleet: Fleet, old: Server, new: Server
) -> None:
    timeouts = {"reply_s": 0.3, "silence_s": PATIENCE_S, "connect_s": PATIENCE_S}
    with BareWorker(fleet, promotion=PATIENT, timeouts=timeouts) as worker, Connection(worker.port) as conn:
        key = Keys(worker).one(LOST)
        assert conn.ask("SET", key, "v") == b"OK"
        wait_replicated(old, new, key)
        worker.fallback(LOST, new)
        old.pause()
        conn.send(("GET", key), ("SET", key, "w"))
        assert [error(reply).split()[0] for reply in conn.reads(2)] == ["TRYAGAIN", "UNCERTAIN"]


def gets(server: Server) -> int:
    """How many GETs it was ever asked."""
    text = server.ask("INFO", "commandstats")
    assert isinstance(text, bytes)
    found = re.search(rb"cmdstat_get:calls=(\d+)", text)
    return int(found[1]) if found else 0


def test_of_the_reads_that_a_silent_primary_does_not_answer_few_are_asked_of_the_replica(
    fleet: Fleet, old: Server, new: Server
) -> None:
    """It may be busy rather than silent, and what is asked twice would make the replica so too."""
    timeouts = {"reply_s": 0.3, "silence_s": PATIENCE_S, "connect_s": PATIENCE_S}
    with (
        BareWorker(fleet, promotion=PATIENT, timeouts=timeouts) as worker,
        contextlib.ExitStack() as open_talks,
    ):
        talks = [open_talks.enter_context(Connection(worker.port)) for _ in range(60)]
        key = Keys(worker).one(LOST)
        assert talks[0].ask("SET", key, "v") == b"OK"
        wait_replicated(old, new, key)
        worker.fallback(LOST, new)
        asked = gets(new)
        old.pause()
        new.pause()
        begun = worker.count("commands")
        for each in talks:
            each.send(("GET", key))
        worker.wait_for("all to be in flight", lambda: worker.count("commands") >= begun + 60)
        worker.wait_for("all deadlines to have passed", lambda: worker.count("timeouts") >= 60)
        new.resume()
        for each in talks:
            reply = each.read()
            assert reply == b"v" or error(reply).startswith("TRYAGAIN ")
        assert gets(new) - asked <= 16


@pytest.mark.parametrize(
    "asked",
    [("HGETALL", "h"), ("KEYS", "*"), ("DBSIZE",), ("EVAL_RO", "return 1", 1, "{}"), "a block", "a large answer"],
    ids=lambda asked: asked if isinstance(asked, str) else asked[0],
)
def test_what_may_be_a_burden_is_not_asked_of_the_replica_as_well(
    fleet: Fleet, old: Server, new: Server, asked: Sequence[Argument] | str
) -> None:
    timeouts = {"reply_s": 0.3, "slow_reply_s": 0.3, "silence_s": PATIENCE_S, "connect_s": PATIENCE_S}
    if asked[0] == "EVAL_RO":
        timeouts |= {"silence_s": 1.0, "connect_s": 1.0}  # its deadlines: it has a connection of its own
    with BareWorker(fleet, promotion=PATIENT, timeouts=timeouts) as worker, Connection(worker.port) as conn:
        key = Keys(worker).one(LOST)
        assert conn.ask("SET", key, b"x" * 100_000) == b"OK"
        wait_replicated(old, new, key)
        if asked == "a large answer":
            assert conn.ask("STRLEN", key) == conn.ask("STRLEN", key) == 100_000
            assert [len(bytes(conn.ask("GET", key))) for _ in range(3)] == [100_000] * 3  # type: ignore[call-overload]
        worker.fallback(LOST, new)
        old.pause()
        if asked == "a block":
            conn.send(("MULTI",), ("GET", key), ("EXEC",))
            conn.reads(2)
        elif asked == "a large answer":
            conn.send(("GET", key))
        else:
            conn.send([key if word in ("h", "{}") else word for word in asked])
        assert error(conn.read()).split()[0] in ("TRYAGAIN", "EXECABORT")


def test_a_probe_that_is_answered_opens_a_gate_that_stood_still(fleet: Fleet, old: Server) -> None:
    timeouts = {"reply_s": 0.2, "silence_s": PATIENCE_S, "connect_s": PATIENCE_S}
    with Hop(old.port, of_a_worker) as hop:
        where = {LOST: Node("127.0.0.1", hop.port)}
        with BareWorker(fleet, where, promotion=PATIENT, timeouts=timeouts) as worker, Connection(worker.port) as conn:
            key = Keys(worker).one(LOST)
            assert conn.ask("SET", key, "v") == b"OK"
            hop.swallow(Way.REPLIES)
            conn.send(*[("GET", key)] * 3)
            conn.reads(3)
            wait_until("it to be refused", lambda: "does not answer" in str(conn.ask("SET", key, "x")), lambda: "")
            worker.health(LOST)
            wait_until("it to be tried", lambda: "UNCERTAIN" in str(conn.ask("SET", key, "x")), lambda: "")


# --- withheld, and replayed -------------------------------------------------------------------------------------------


def test_what_a_demoted_primary_refuses_is_applied_once_by_the_new_one(
    worker: BareWorker, keys: Keys, old: Server, new: Server
) -> None:
    counter, listed = keys.one(LOST, "counter"), keys.one(LOST, "list")
    talks = [Connection(worker.port) for _ in range(5)]
    assert talks[0].ask("INCR", counter) == 1
    wait_replicated(old, new, counter)
    promote(old, new)
    for number, conn in enumerate(talks):
        for step in range(20):
            conn.send(("INCR", counter), ("RPUSH", listed, f"{number}:{step}"), ("GET", counter))
    worker.wait_for("all to be withheld", lambda: worker.count("withheld_writes") >= 200)
    worker.close(LOST)
    worker.switch_to(LOST, new)
    worker.open(LOST)
    seen: list[int] = []
    for conn in talks:
        said = [int(str(value, "ascii") if isinstance(value, bytes) else str(value)) for value in conn.reads(60)]
        seen += said[0::3]
        assert all(read >= wrote for wrote, read in zip(said[0::3], said[2::3], strict=True)), "no read sees the past"
        conn.close()
    assert sorted(seen) == list(range(2, 102))
    assert new.ask("GET", counter) == b"101"
    values = new.ask("LRANGE", listed, 0, -1)
    assert isinstance(values, list)
    assert len(values) == 100
    for number in range(5):
        assert [each for each in values if each.startswith(b"%d:" % number)] == [
            b"%d:%d" % (number, step) for step in range(20)
        ]


def test_a_part_of_a_split_write_is_withheld_too(
    worker: BareWorker, fleet: Fleet, keys: Keys, conn: Connection, old: Server, new: Server
) -> None:
    split = [keys.one(0), keys.one(LOST)]
    promote(old, new)
    conn.send(("MSET", split[0], 1, split[1], 2), ("MGET", *split))
    wait_applied(fleet.shards[0].primary, split[0], b"1")
    worker.wait_count("withheld_writes", 1)
    worker.close(LOST)
    worker.switch_to(LOST, new, open_gate=True)
    assert conn.reads(2) == [b"OK", [b"1", b"2"]]


def test_a_refused_write_is_not_replayed_past_a_later_one_that_was_applied(hopped: tuple[BareWorker, Hop]) -> None:
    worker, hop = hopped
    with Connection(worker.port) as conn:
        key = Keys(worker).one(LOST)
        hop.stall(Way.REQUESTS)
        conn.send(("SET", key, "first"), ("GET", key), ("SET", key, "second"), ("GET", key))
        worker.wait_for("all to have reached the hop", lambda: hop.requests.count(packed("GET", key)) == 2)
        hop.inject(b"-READONLY You can't write against a read only replica.\r\n$-1\r\n+OK\r\n$6\r\nsecond\r\n")
        replies = conn.reads(4)
        assert error(replies[0]).startswith("READONLY ")
        assert replies[1:] == [None, b"OK", b"second"]


def test_the_answer_is_decided_byte_by_byte_as_well(hopped: tuple[BareWorker, Hop]) -> None:
    worker, hop = hopped
    with Connection(worker.port) as conn:
        key = Keys(worker).one(LOST)
        hop.stall(Way.REQUESTS)
        conn.send(("SET", key, "first"), ("SET", key, "second"))
        worker.wait_for("all to have reached the hop", lambda: packed("SET", key, "second") in hop.requests)
        for byte in b"-READONLY no.\r\n-LOADING Redis is loading\r\n":
            hop.inject(bytes([byte]))
        worker.wait_count("withheld_writes", 2)
        assert worker.count("held_requests") in (0, 2)


def test_a_connection_that_ends_while_it_is_decided_gives_each_the_verdict_that_is_sure(
    hopped: tuple[BareWorker, Hop],
) -> None:
    worker, hop = hopped
    with Connection(worker.port) as conn:
        key = Keys(worker).one(LOST)
        hop.stall()
        conn.send(("SET", key, "first"), ("SET", key, "second"))
        worker.wait_for("all to have reached the hop", lambda: packed("SET", key, "second") in hop.requests)
        hop.inject(b"-READONLY no.\r\n")
        hop.cut()
        assert [error(reply).split()[0] for reply in conn.reads(2)] == ["READONLY", "UNCERTAIN"]


@pytest.mark.parametrize("mode", ["reject", "hold"])
def test_where_the_gate_refuses_a_refused_write_is_not_applied(
    fleet: Fleet, old: Server, new: Server, mode: str
) -> None:
    with (
        BareWorker(fleet, promotion={**PATIENT, "on_promotion": mode, "hold_s": 0.2}) as worker,
        Connection(worker.port) as conn,
    ):
        key = Keys(worker).one(LOST)
        promote(old, new)
        conn.send(("SET", key, "v"), ("SET", key, "w"), ("GET", key))
        replies = conn.reads(3)
        assert [error(reply).split()[0] for reply in replies[:2]] == ["TRYAGAIN", "TRYAGAIN"]
        assert replies[2] is None, "a read goes on"
        assert "applied=no retry_after_ms=" in error(replies[0])
        assert new.ask("EXISTS", key) == 0


def test_without_a_promoter_the_servers_refusal_is_the_clients(fleet: Fleet, old: Server, new: Server) -> None:
    with BareWorker(fleet) as worker, Connection(worker.port) as conn:
        promote(old, new)
        assert error(conn.ask("SET", Keys(worker).one(LOST), "v")).startswith("READONLY ")


def test_what_was_withheld_of_a_client_that_left_is_never_sent(
    worker: BareWorker, keys: Keys, conn: Connection, old: Server, new: Server
) -> None:
    names = keys.on(LOST, 3, "gone")
    promote(old, new)
    leave: list[Callable[[Connection], None]] = [
        Connection.close,
        Connection.reset,
        lambda conn: conn.socket.shutdown(1),
    ]
    for name, how in zip(names, leave, strict=True):
        going = Connection(worker.port)
        going.send(("SET", name, "v"))
        worker.wait_for("it to be withheld", lambda name=name: worker.count("withheld_writes") > names.index(name))  # type: ignore[misc]
        how(going)
    worker.close(LOST)
    worker.wait_for("all to be dropped", lambda: worker.count("held_requests") == 0)
    worker.switch_to(LOST, new, open_gate=True)
    assert conn.ask("EXISTS", *names) == 0


def test_a_client_that_left_while_it_was_not_read_is_found_out_when_the_gate_opens(
    worker: BareWorker, keys: Keys, old: Server, new: Server
) -> None:
    key = keys.one(LOST, "unread")
    promote(old, new)
    with Connection(worker.port) as going:
        going.send(("SET", key, "v"))
        worker.wait_for("it to be withheld", lambda: worker.count("withheld_writes") > 0)
        # more than is read of a client that waits, and no more than the kernel takes: the end must arrive
        going.send(*[("SET", key, "x" * 1000)] * 80)
    worker.close(LOST)
    worker.wait_for("it to be held", lambda: worker.holding(LOST).requests == 1)
    worker.switch_to(LOST, new, open_gate=True)
    worker.wait_count("dropped_client_gone", 1)
    assert new.ask("EXISTS", key) == 0


# --- a worker that slept ----------------------------------------------------------------------------------------------


def test_a_worker_that_slept_writes_nothing_before_it_has_asked(
    worker: BareWorker, keys: Keys, conn: Connection, old: Server
) -> None:
    key = keys.one(LOST)
    assert conn.ask("SET", key, 0) == b"OK"
    worker.pause()
    conn.send(("INCR", key))
    asleep = time.monotonic() + 1.2
    wait_until("more than a second to pass", lambda: time.monotonic() > asleep, lambda: "")
    worker.resume()
    worker.wait_for("it to ask", lambda: bool(worker.of(Awake)))
    worker.wait_held(LOST, 1)
    assert old.ask("GET", key) == b"0"
    worker.send(Confirmed(worker.of(Awake)[-1].at))
    assert conn.read() == 1


# --- reads in peace ---------------------------------------------------------------------------------------------------


def test_reads_may_go_to_a_replica_in_peace_but_not_of_a_client_that_has_just_written(
    fleet: Fleet, old: Server, new: Server
) -> None:
    with (
        BareWorker(fleet, top='reads = "prefer-replica"\nreads_max_lag_s = 0.5') as worker,
        Connection(worker.port) as conn,
    ):
        key = Keys(worker).one(LOST)
        old.ask("SET", key, "v")
        wait_replicated(old, new, key)
        worker.gates[LOST] = msgspec.structs.replace(worker.gates[LOST], readers=(node(new),))
        worker.tell()
        calls = reads_of(new)
        assert conn.ask("GET", key) == b"v"
        wait_until("the connection", lambda: conn.ask("GET", key) == b"v" and reads_of(new) > calls, lambda: "")
        conn.send(("SET", key, "w"), ("GET", key))
        assert conn.reads(2) == [b"OK", b"w"]
        new.kill()
        wait_until("the primary to be read", lambda: conn.ask("GET", key) == b"w", lambda: "")


def test_where_only_replicas_are_read_there_must_be_one(fleet: Fleet) -> None:
    with BareWorker(fleet, top='reads = "replica"') as worker, Connection(worker.port) as conn:
        key = Keys(worker).one(LOST)
        assert error(conn.ask("GET", key)).startswith(f"TRYAGAIN shard s{LOST} (")


def reads_of(server: Server) -> int:
    said = server.ask("INFO", "commandstats")
    assert isinstance(said, bytes)
    return next((int(line.split(b"calls=")[1].split(b",")[0]) for line in said.splitlines() if b"_get:" in line), 0)


def test_a_worker_that_cannot_take_a_state_of_its_parent_ends_itself(
    worker: BareWorker, keys: Keys, conn: Connection
) -> None:
    assert conn.ask("SET", keys.one(0), "v") == b"OK"
    worker.send(Topology(99, list(worker.shards), [], worker.gates[:1]))
    assert worker.wait() == 70
    assert "+bug task=_on_message" in worker.log.read_text()
