"""Slots get another owner while clients go on: what was begun ends at the old one, and all else is done by the new."""

import threading
from collections.abc import Iterator, Sequence

import pytest

from pyproxy.fleet import Fleet, Server, wait_until
from pyproxy.hashing import slot
from pyproxy.messages import Applied
from pyproxy.shard_map import Shard
from tests.e2e.bare_worker import BareWorker, node
from tests.e2e.rig import PATIENCE_S, Connection, Keys, error

SOURCE, OTHER, ADDED = 1, 0, 2

TIMEOUTS = {"reply_s": PATIENCE_S, "silence_s": PATIENCE_S}


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with Fleet(shards=2) as fleet:
        yield fleet


@pytest.fixture
def worker(fleet: Fleet) -> Iterator[BareWorker]:
    with BareWorker(fleet, top='cross_shard = "emulate"\ntransactions = "split"', timeouts=TIMEOUTS) as worker:
        yield worker


@pytest.fixture
def keys(worker: BareWorker) -> Keys:
    return Keys(worker)


@pytest.fixture
def conn(worker: BareWorker) -> Iterator[Connection]:
    with Connection(worker.port) as conn:
        yield conn


@pytest.fixture
def other(worker: BareWorker) -> Iterator[Connection]:
    with Connection(worker.port) as conn:
        yield conn


@pytest.fixture
def source(fleet: Fleet) -> Server:
    return fleet.shards[SOURCE].primary


@pytest.fixture
def destination(fleet: Fleet) -> Server:
    return fleet.shards[OTHER].primary


def copy(source: Server, destination: Server, *names: str) -> None:
    """What the mover does."""
    for name in names:
        dump = source.ask("DUMP", name)
        if isinstance(dump, bytes):
            assert destination.ask("RESTORE", name, "0", dump, "REPLACE") == b"OK"


def wait_quiet(worker: BareWorker) -> None:
    worker.wait_for("no write to be in flight", lambda: worker.busy == [])


def applied(worker: BareWorker) -> Applied:
    applied = worker.applied(worker.version)
    assert applied is not None
    return applied


def move(worker: BareWorker, source: Server, destination: Server, *names: str) -> None:
    """All steps of a hand-over, one after another."""
    worker.close(SOURCE, moving=True)
    wait_quiet(worker)
    copy(source, destination, *names)
    worker.move_slots(SOURCE, OTHER, *(slot(name.encode()) for name in names))
    worker.open(SOURCE, OTHER)


# --- plain commands ---------------------------------------------------------------------------------------------------


def test_a_held_write_goes_to_the_new_owner_and_nothing_to_the_old(
    worker: BareWorker, keys: Keys, conn: Connection, source: Server, destination: Server
) -> None:
    key = keys.one(SOURCE)
    assert conn.ask("SET", key, 1) == b"OK"
    worker.close(SOURCE, moving=True)
    wait_quiet(worker)
    conn.send(("INCR", key), ("INCR", key), ("GET", key))
    worker.wait_held(SOURCE, 1)
    copy(source, destination, key)
    worker.move_slots(SOURCE, OTHER, slot(key.encode()))
    worker.open(SOURCE, OTHER)
    assert conn.reads(3) == [2, 3, b"3"]
    assert (source.ask("GET", key), destination.ask("GET", key)) == (b"1", b"3")


def test_reads_go_on_at_the_old_owner_while_writes_are_held(worker: BareWorker, keys: Keys, conn: Connection) -> None:
    key = keys.one(SOURCE)
    assert conn.ask("SET", key, "v") == b"OK"
    worker.close(SOURCE, moving=True)
    assert conn.ask("GET", key) == b"v"


def test_slots_that_stay_are_served_as_before(
    worker: BareWorker, keys: Keys, conn: Connection, source: Server, destination: Server
) -> None:
    moved, stays = keys.on(SOURCE, 2)
    assert conn.ask("SET", stays, "v") == b"OK"
    move(worker, source, destination, moved)
    assert (conn.ask("GET", stays), conn.ask("SET", stays, "w"), source.ask("GET", stays)) == (b"v", b"OK", b"w")


def test_given_up_the_held_writes_go_to_the_old_owner(
    worker: BareWorker, keys: Keys, conn: Connection, source: Server
) -> None:
    key = keys.one(SOURCE)
    worker.close(SOURCE, moving=True)
    conn.send(("INCR", key))
    worker.wait_held(SOURCE, 1)
    worker.open(SOURCE)
    assert (conn.read(), source.ask("GET", key)) == (1, b"1")


def test_a_write_that_was_begun_is_waited_for_and_done_once(
    worker: BareWorker, keys: Keys, conn: Connection, source: Server
) -> None:
    key = keys.one(SOURCE)
    assert conn.ask("SET", key, 0) == b"OK"
    source.pause()
    conn.send(("INCR", key), ("INCR", key))
    with Connection(worker.port) as asker:
        wait_until("both to be in flight", lambda: b"\ninflight:2" in _info(asker), lambda: _info(asker).decode())
    worker.close(SOURCE, moving=True)
    assert worker.busy == ["s1"]
    source.resume()
    wait_quiet(worker)
    assert (conn.reads(2), source.ask("GET", key)) == ([1, 2], b"2")


def _info(conn: Connection) -> bytes:
    said = conn.ask("INFO", "stats", "proxy")
    assert isinstance(said, bytes)
    return said


def test_a_read_from_before_is_reported_until_it_is_answered(
    worker: BareWorker, keys: Keys, conn: Connection, source: Server
) -> None:
    """The keys must not be deleted at the old owner before."""
    key = keys.one(SOURCE)
    assert conn.ask("SET", key, "v") == b"OK"
    source.pause()
    conn.send(("GET", key))
    with Connection(worker.port) as asker:
        wait_until("it to be in flight", lambda: b"\ninflight:1" in _info(asker), lambda: _info(asker).decode())
    worker.close(SOURCE, moving=True)
    worker.move_slots(SOURCE, OTHER, slot(key.encode()))
    worker.open(SOURCE, OTHER)
    assert applied(worker).outdated == ["s1"]
    source.resume()
    assert conn.read() == b"v"
    worker.wait_for("nothing to be outdated", lambda: applied(worker).outdated == [])


def test_a_split_command_follows_the_new_owners(
    worker: BareWorker, keys: Keys, conn: Connection, source: Server, destination: Server
) -> None:
    moved, stays, there = keys.on(SOURCE, 2) + keys.on(OTHER)
    assert conn.ask("MSET", moved, 1, stays, 1, there, 1) == b"OK"
    worker.close(SOURCE, moving=True)
    wait_quiet(worker)
    conn.send(("MSET", moved, 2, stays, 2, there, 2))
    worker.wait_held(SOURCE, 1)
    copy(source, destination, moved)
    worker.move_slots(SOURCE, OTHER, slot(moved.encode()))
    worker.open(SOURCE, OTHER)
    assert conn.read() == b"OK"
    assert conn.ask("MGET", moved, stays, there) == [b"2"] * 3
    assert [source.ask("GET", key) for key in (moved, stays)] == [b"1", b"2"]


def test_a_shard_is_added_and_gets_slots_and_no_client_is_disconnected(
    worker: BareWorker, keys: Keys, conn: Connection, source: Server
) -> None:
    key = keys.one(SOURCE)
    assert conn.ask("SET", key, "v") == b"OK"
    number = slot(key.encode())
    with Fleet(shards=1) as added:
        server = added.shards[0].primary
        worker.add_shard(Shard("s2", node(server), (), ()))
        assert conn.ask("GET", key) == b"v"
        worker.close(SOURCE, moving=True)
        wait_quiet(worker)
        copy(source, server, key)
        worker.move_slots(SOURCE, ADDED, number)
        worker.open(SOURCE, ADDED)
        assert (conn.ask("APPEND", key, "w"), server.ask("GET", key)) == (2, b"vw")


# --- transactions -----------------------------------------------------------------------------------------------------


def test_commands_that_were_queued_before_are_done_by_the_new_owner(
    worker: BareWorker, keys: Keys, conn: Connection, source: Server, destination: Server
) -> None:
    moved, stays = keys.on(SOURCE, 2)
    assert [conn.ask(*words) for words in (("MULTI",), ("INCR", moved), ("MSET", moved, 5, stays, 5), ("INCR", stays))]
    move(worker, source, destination, moved)
    assert conn.ask("EXEC") == [1, b"OK", 6]
    assert (destination.ask("GET", moved), source.ask("GET", moved), source.ask("GET", stays)) == (b"5", None, b"6")


def test_exec_that_is_held_is_done_by_the_new_owner(
    worker: BareWorker, keys: Keys, conn: Connection, source: Server, destination: Server
) -> None:
    key = keys.one(SOURCE)
    assert [conn.ask(*words) for words in (("MULTI",), ("INCR", key), ("INCR", key))]
    worker.close(SOURCE, moving=True)
    conn.send(("EXEC",))
    worker.wait_held(SOURCE, 1)
    worker.move_slots(SOURCE, OTHER, slot(key.encode()))
    worker.open(SOURCE, OTHER)
    assert (conn.read(), destination.ask("GET", key), source.ask("GET", key)) == ([1, 2], b"2", None)


def test_keys_of_one_command_that_are_parted_by_a_move_abort_the_transaction(
    worker: BareWorker, keys: Keys, conn: Connection, source: Server, destination: Server
) -> None:
    moved, stays = keys.on(SOURCE, 2)
    assert [conn.ask(*words) for words in (("MULTI",), ("RENAME", moved, stays))]
    move(worker, source, destination, moved)
    assert error(conn.ask("EXEC")).startswith("EXECABORT")


@pytest.mark.parametrize("with_script", [False, True])
def test_a_watch_does_not_outlive_a_move(
    worker: BareWorker, keys: Keys, conn: Connection, source: Server, destination: Server, with_script: bool
) -> None:
    key = keys.one(SOURCE)
    assert conn.ask("WATCH", key) == b"OK"
    move(worker, source, destination, key)
    assert conn.ask("MULTI") == b"OK"
    command = ("EVAL", "return redis.call('set', KEYS[1], 1)", 1, key) if with_script else ("SET", key, 1)
    assert conn.ask(*command) == b"QUEUED"
    assert conn.ask("EXEC") is None
    assert (source.ask("GET", key), destination.ask("GET", key)) == (None, None)


def test_a_watch_is_broken_by_a_move_where_a_transaction_has_one_shard(
    fleet: Fleet, source: Server, destination: Server
) -> None:
    with BareWorker(fleet, timeouts=TIMEOUTS) as worker, Connection(worker.port) as conn:
        key = Keys(worker).one(SOURCE)
        assert conn.ask("WATCH", key) == b"OK"
        move(worker, source, destination, key)
        assert [conn.ask(*words) for words in (("MULTI",), ("SET", key, 1), ("EXEC",))] == [b"OK", b"QUEUED", None]
        assert (source.ask("GET", key), destination.ask("GET", key)) == (None, None)


def test_a_key_that_has_moved_is_watched_again_by_who_watched_it_before(
    worker: BareWorker, keys: Keys, conn: Connection, source: Server, destination: Server
) -> None:
    key = keys.one(SOURCE)
    assert conn.ask("WATCH", key) == b"OK"
    move(worker, source, destination, key)
    assert [conn.ask(*words) for words in (("WATCH", key), ("MULTI",), ("EXEC",))] == [b"OK", b"OK", None]


def test_a_watched_exec_that_is_held_answers_nil(
    worker: BareWorker, keys: Keys, conn: Connection, source: Server, destination: Server
) -> None:
    key = keys.one(SOURCE)
    assert [conn.ask(*words) for words in (("WATCH", key), ("MULTI",), ("SET", key, 1))]
    worker.close(SOURCE, moving=True)
    conn.send(("EXEC",))
    worker.wait_held(SOURCE, 1)
    worker.move_slots(SOURCE, OTHER, slot(key.encode()))
    worker.open(SOURCE, OTHER)
    assert (conn.read(), source.ask("GET", key), destination.ask("GET", key)) == (None, None, None)


def test_a_script_that_is_held_runs_at_the_new_owner(
    worker: BareWorker, keys: Keys, conn: Connection, source: Server, destination: Server
) -> None:
    key = keys.one(SOURCE)
    worker.close(SOURCE, moving=True)
    conn.send(("EVAL", "return redis.call('incr', KEYS[1])", 1, key))
    worker.wait_held(SOURCE, 1)
    worker.move_slots(SOURCE, OTHER, slot(key.encode()))
    worker.open(SOURCE, OTHER)
    assert (conn.read(), destination.ask("GET", key), source.ask("GET", key)) == (1, b"1", None)


# --- keys of all shards ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("handed_over", [False, True])
def test_keys_that_lie_at_both_owners_are_told_once_whatever_becomes_of_the_move_meanwhile(
    worker: BareWorker, keys: Keys, conn: Connection, source: Server, destination: Server, handed_over: bool
) -> None:
    key = keys.one(SOURCE)
    assert conn.ask("SET", key, "v") == b"OK"
    copy(source, destination, key)
    worker.foreign = [shard.name for shard in worker.shards]
    worker.tell()
    source.pause()
    conn.send(("KEYS", "*"))
    with Connection(worker.port) as asker:
        wait_until("it to be asked", lambda: b"\ninflight:1" in _info(asker), lambda: _info(asker).decode())
    if handed_over:
        worker.move_slots(SOURCE, OTHER, slot(key.encode()))
        worker.open(SOURCE, OTHER)
    else:
        worker.foreign = []
        worker.tell()
    source.resume()
    assert conn.read() == [key.encode()]


# --- commands that wait -----------------------------------------------------------------------------------------------


def _wait_blocked(conn: Connection, count: int = 1) -> None:
    wait_until(
        f"{count} to be blocked",
        lambda: f"blocked_clients:{count}".encode() in _clients(conn),
        lambda: _clients(conn).decode(),
    )


def _clients(conn: Connection) -> bytes:
    said = conn.ask("INFO", "clients")
    assert isinstance(said, bytes)
    return said


def test_who_waits_at_another_shard_holds_no_move_up(
    worker: BareWorker, keys: Keys, conn: Connection, other: Connection, source: Server, destination: Server
) -> None:
    key, moved = keys.one(OTHER), keys.one(SOURCE)
    conn.send(("BLPOP", key, 0))
    _wait_blocked(other)
    move(worker, source, destination, moved)
    assert other.ask("RPUSH", key, "element") == 1
    assert conn.read() == [key.encode(), b"element"]


@pytest.mark.parametrize("over_shards", [False, True])
@pytest.mark.parametrize("command", ["BLPOP", "XREAD"])
def test_who_waits_for_a_key_waits_at_its_new_owner(
    worker: BareWorker,
    keys: Keys,
    conn: Connection,
    other: Connection,
    source: Server,
    destination: Server,
    command: str,
    over_shards: bool,
) -> None:
    key = keys.one(SOURCE)
    waited_for: Sequence[str] = (key, keys.one(OTHER)) if over_shards else (key,)
    if command == "BLPOP":
        conn.send(("BLPOP", *waited_for, 0))
    else:
        conn.send(("XREAD", "BLOCK", 0, "STREAMS", *waited_for, *("$" for _ in waited_for)))
    _wait_blocked(other)
    move(worker, source, destination, key)
    _wait_blocked(other)
    if command == "BLPOP":
        assert other.ask("RPUSH", key, "v") == 1
        assert conn.read() == [key.encode(), b"v"]
    else:
        number = other.ask("XADD", key, "1-1", "f", "v")
        assert (number, conn.read()) == (b"1-1", [[key.encode(), [[b"1-1", [b"f", b"v"]]]]])
    assert source.ask("EXISTS", key) == 0


def test_who_cannot_be_unblocked_before_the_slots_have_moved_is_unblocked_then(
    worker: BareWorker, keys: Keys, conn: Connection, other: Connection, source: Server
) -> None:
    key = keys.one(SOURCE)
    conn.send(("XREAD", "BLOCK", 0, "STREAMS", key, 0))
    _wait_blocked(other)
    source.pause()
    worker.close(SOURCE, moving=True)
    worker.move_slots(SOURCE, OTHER, slot(key.encode()))
    worker.open(SOURCE, OTHER)
    source.resume()
    assert other.ask("XADD", key, "1-1", "f", "v") == b"1-1"
    assert conn.read() == [[key.encode(), [[b"1-1", [b"f", b"v"]]]]]


def test_who_begins_to_wait_while_the_gate_closes_does_not_stay_at_the_old_owner(
    worker: BareWorker, keys: Keys, conn: Connection, other: Connection, source: Server
) -> None:
    """Its connection was being made when the gate closed."""
    key = keys.one(SOURCE)
    source.pause()
    conn.send(("XREAD", "BLOCK", 0, "STREAMS", key, 0))
    worker.wait_count("leased_connections", 1)
    worker.close(SOURCE, moving=True)
    source.resume()

    def waits() -> bool:
        return worker.holding(SOURCE).requests == 1 or "cmd=xread" in str(source.ask("CLIENT", "LIST"))

    wait_until("it to wait at the gate, or at the server", waits, worker.tail)
    worker.move_slots(SOURCE, OTHER, slot(key.encode()))
    worker.open(SOURCE, OTHER)
    assert other.ask("XADD", key, "1-1", "f", "v") == b"1-1"
    assert conn.read() == [[key.encode(), [[b"1-1", [b"f", b"v"]]]]]


def test_one_who_waits_over_shards_does_not_keep_a_move_waiting(
    worker: BareWorker, keys: Keys, conn: Connection, other: Connection
) -> None:
    conn.send(("BLPOP", keys.one(SOURCE), keys.one(OTHER), 0))
    _wait_blocked(other)
    worker.close(SOURCE, moving=True)
    wait_quiet(worker)


def test_a_command_of_several_shards_that_has_begun_to_write_comes_to_its_end_by_the_old_map(
    worker: BareWorker, keys: Keys, conn: Connection, source: Server, destination: Server
) -> None:
    """RENAME writes to the shard of the new name first, and deletes at that of the old one then."""
    old, new = keys.one(SOURCE), keys.one(OTHER)
    assert conn.ask("SET", old, "v") == b"OK"
    destination.pause()
    conn.send(("RENAME", old, new))
    with Connection(worker.port) as asker:
        wait_until("it to be in flight", lambda: b"\ninflight:1" in _info(asker), lambda: _info(asker).decode())
    worker.close(SOURCE, moving=True)
    destination.resume()
    assert conn.read() == b"OK"
    wait_quiet(worker)
    assert (source.ask("GET", old), destination.ask("GET", new)) == (None, b"v")


def test_a_command_of_several_shards_that_has_not_begun_to_write_is_done_by_the_new_map(
    worker: BareWorker, keys: Keys, conn: Connection, source: Server, destination: Server
) -> None:
    old, new = keys.one(SOURCE), keys.one(OTHER)
    assert conn.ask("SET", old, "v") == b"OK"
    worker.close(SOURCE, moving=True)
    wait_quiet(worker)
    conn.send(("RENAME", old, new))
    worker.wait_held(SOURCE, 1)
    copy(source, destination, old)
    worker.move_slots(SOURCE, OTHER, slot(old.encode()))
    worker.open(SOURCE, OTHER)
    assert conn.read() == b"OK"
    assert (destination.ask("GET", old), destination.ask("GET", new)) == (None, b"v")


# --- publish and subscribe --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("subscribe", "publish"), [("SUBSCRIBE", "PUBLISH"), ("SSUBSCRIBE", "SPUBLISH")])
def test_who_is_subscribed_to_a_channel_in_a_moved_slot_goes_on_hearing_it(
    worker: BareWorker,
    keys: Keys,
    conn: Connection,
    other: Connection,
    source: Server,
    destination: Server,
    subscribe: str,
    publish: str,
) -> None:
    channel = keys.one(SOURCE)
    kind = b"message" if publish == "PUBLISH" else b"smessage"
    assert conn.ask(subscribe, channel) == [subscribe.lower().encode(), channel.encode(), 1]
    other.ask(publish, channel, "before")
    worker.close(SOURCE, moving=True)
    worker.move_slots(SOURCE, OTHER, slot(channel.encode()))
    worker.wait_for("it to be subscribed", lambda: applied(worker).unconfirmed == [])
    worker.open(SOURCE, OTHER)
    other.ask(publish, channel, "after")
    said = conn.reads(2)
    assert said == [[kind, channel.encode(), b"before"], [kind, channel.encode(), b"after"]]


# --- all at once ------------------------------------------------------------------------------------------------------


def test_many_clients_count_on_while_slots_go_back_and_forth(
    worker: BareWorker, keys: Keys, fleet: Fleet, source: Server, destination: Server
) -> None:
    """Each counts its key up by pipelines of plain commands, blocks and scripts, and must never see a step missing."""
    names = keys.on(SOURCE, 6)
    slots = sorted({slot(name.encode()) for name in names})
    ended = threading.Event()
    wrong: list[object] = []
    counts = dict.fromkeys(names, 0)

    def count(name: str) -> None:
        with Connection(worker.port) as conn:
            while not ended.is_set():
                at = counts[name]
                conn.send(
                    ("INCR", name), ("GET", name), ("MULTI",), ("INCR", name), ("EXEC",),
                    ("EVAL", "return redis.call('incr', KEYS[1])", 1, name), ("MGET", name, names[0], names[-1]),
                )  # fmt: skip
                said = conn.reads(7)
                got = said[0], said[1], said[4], said[5], said[6][0] if isinstance(said[6], list) else said[6]
                expected = at + 1, b"%d" % (at + 1), [at + 2], at + 3, b"%d" % (at + 3)
                if got != expected:
                    wrong.append((name, expected, said))
                    return
                counts[name] = at + 3

    threads = [threading.Thread(target=count, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    try:
        here, there = (SOURCE, source), (OTHER, destination)
        for _ in range(12):
            least = min(counts.values())
            wait_until("all to count", lambda: min(counts.values()) > least or bool(wrong), lambda: f"{counts}")  # noqa: B023
            worker.close(here[0], moving=True)
            wait_quiet(worker)
            copy(here[1], there[1], *names)
            worker.move_slots(here[0], there[0], *slots)
            worker.open(here[0], there[0])
            worker.wait_for("nothing to be outdated", lambda: applied(worker).outdated == [])
            here[1].ask("DEL", *names)
            here, there = there, here
    finally:
        ended.set()
        for thread in threads:
            thread.join(30)
    assert wrong == []
    assert [here[1].ask("GET", name) for name in names] == [b"%d" % counts[name] for name in names]
