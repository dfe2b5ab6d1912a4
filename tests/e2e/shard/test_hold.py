"""A gate is closed: writes wait in their order, within bounds, and are sent once or not at all."""

from collections.abc import Iterator

import pytest

from pyproxy.fleet import Fleet, Server, Table
from tests.e2e.bare_worker import BareWorker
from tests.e2e.rig import Connection, Keys, error, packed

HELD = 1
"""The index of the shard whose gate is closed."""

PROMOTION: Table = {"promoter": "replicaof", "on_promotion": "hold", "hold_s": 15.0}


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet(shards=3, replicas=1) as fleet:
        yield fleet


@pytest.fixture(autouse=True)
def empty(fleet: Fleet) -> None:
    for shard in fleet.shards:
        shard.primary.ask("FLUSHALL")


@pytest.fixture
def worker(fleet: Fleet) -> Iterator[BareWorker]:
    with BareWorker(fleet, promotion=PROMOTION) as worker:
        yield worker


@pytest.fixture
def keys(worker: BareWorker) -> Keys:
    return Keys(worker)


@pytest.fixture
def conn(worker: BareWorker) -> Iterator[Connection]:
    with Connection(worker.port) as conn:
        yield conn


def primary(fleet: Fleet) -> Server:
    return fleet.shards[HELD].primary


# --- the hold ---------------------------------------------------------------------------------------------------------


def test_a_write_waits_until_the_gate_is_opened(worker: BareWorker, fleet: Fleet, keys: Keys, conn: Connection) -> None:
    key = keys.one(HELD)
    worker.close(HELD)
    conn.send(("SET", key, "v"))
    worker.wait_held(HELD, 1)
    assert primary(fleet).ask("EXISTS", key) == 0
    worker.open(HELD)
    assert conn.read() == b"OK"
    assert primary(fleet).ask("GET", key) == b"v"
    worker.wait_count("drained", 1)
    worker.wait_held(HELD, 0)


def test_reads_and_other_shards_go_on_meanwhile(worker: BareWorker, keys: Keys, conn: Connection) -> None:
    key = keys.one(HELD)
    assert conn.ask("SET", key, "before") == b"OK"
    worker.close(HELD)
    with Connection(worker.port) as held:
        held.send(("SET", key, "after"))
        worker.wait_held(HELD, 1)
        assert conn.ask("GET", key) == b"before"
        assert conn.ask("SET", keys.one(0), "v") == b"OK"
        assert conn.ask("MGET", keys.one(0), key) == [b"v", b"before"]
        worker.open(HELD)
        assert held.read() == b"OK"


def test_held_writes_are_sent_in_the_order_in_which_they_came(worker: BareWorker, fleet: Fleet, keys: Keys) -> None:
    key = keys.one(HELD, "list")
    worker.close(HELD)
    talks = [Connection(worker.port) for _ in range(20)]
    for number, conn in enumerate(talks):
        conn.send(("RPUSH", key, number), ("RPUSH", key, f"{number} again"))
        worker.wait_held(HELD, number + 1)
    worker.open(HELD)
    for conn in talks:
        assert all(isinstance(reply, int) for reply in conn.reads(2))
        conn.close()
    listed = primary(fleet).ask("LRANGE", key, 0, -1)
    assert isinstance(listed, list)
    firsts = [each for each in listed if b"again" not in each]
    assert firsts == [b"%d" % number for number in range(20)]
    assert all(listed.index(b"%d again" % number) > listed.index(b"%d" % number) for number in range(20))


def test_what_a_client_sends_behind_a_held_write_keeps_its_order(
    worker: BareWorker, keys: Keys, conn: Connection
) -> None:
    key = keys.one(HELD, "counter")
    worker.close(HELD)
    conn.send(*[command for _ in range(50) for command in (("INCR", key), ("GET", key), ("SET", keys.one(0), "x"))])
    worker.wait_held(HELD, 1)
    worker.open(HELD)
    assert conn.reads(150) == [word for n in range(1, 51) for word in (n, b"%d" % n, b"OK")]


def test_byte_by_byte_a_held_pipeline_is_the_same(worker: BareWorker, keys: Keys, conn: Connection) -> None:
    key = keys.one(HELD, "slow")
    worker.close(HELD)
    for byte in packed("INCR", key) + packed("INCR", key) + packed("GET", key):
        conn.socket.sendall(bytes([byte]))
    worker.wait_held(HELD, 1)
    worker.open(HELD)
    assert conn.reads(3) == [1, 2, b"2"]


def test_a_topology_that_only_closes_gates_touches_no_connection(
    worker: BareWorker, fleet: Fleet, keys: Keys, conn: Connection
) -> None:
    def ids() -> set[bytes]:
        listed = primary(fleet).ask("CLIENT", "LIST")
        assert isinstance(listed, bytes)
        return {line.split()[0] for line in listed.splitlines() if b"cmd=client|list" not in line}

    assert conn.ask("SET", keys.one(HELD), "v") == b"OK"
    before = ids()
    worker.close(HELD)
    worker.open(HELD)
    assert conn.ask("SET", keys.one(HELD), "v") == b"OK"
    assert ids() == before


# --- bounds -----------------------------------------------------------------------------------------------------------


def test_a_gate_that_may_not_hold_refuses_at_once_and_says_when_to_come_again(
    worker: BareWorker, keys: Keys, conn: Connection
) -> None:
    worker.close(HELD, hold=False, in_s=10.0)
    said = error(conn.ask("SET", keys.one(HELD), "v"))
    assert said.startswith(f"TRYAGAIN shard s{HELD} (127.0.0.1:")
    before, _, after = said.partition(", applied=no retry_after_ms=")
    assert before.endswith(") is being promoted")
    assert 7500 <= int(after.removesuffix("; retry later")) <= 12_500


def test_when_the_parent_gives_the_hold_up_all_that_is_held_is_refused(
    worker: BareWorker, fleet: Fleet, keys: Keys, conn: Connection
) -> None:
    key = keys.one(HELD)
    worker.close(HELD)
    conn.send(("SET", key, "v"), ("SET", key, "w"), ("GET", key))
    worker.wait_held(HELD, 1)
    worker.close(HELD, hold=False)
    assert [error(reply).split()[0] for reply in conn.reads(2)] == ["TRYAGAIN", "TRYAGAIN"]
    assert conn.read() is None
    assert primary(fleet).ask("EXISTS", key) == 0


@pytest.mark.parametrize(
    ("mode", "in_s", "held"), [("auto", 0.5, True), ("auto", 3.0, False), ("reject", 9.0, True), ("hold", 9.0, True)]
)
def test_what_is_held_follows_the_mode(fleet: Fleet, mode: str, in_s: float, held: bool) -> None:
    with BareWorker(fleet, promotion={**PROMOTION, "on_promotion": mode}) as worker, Connection(worker.port) as conn:
        worker.close(HELD, in_s=in_s)
        conn.send(("SET", Keys(worker).one(HELD), "v"))
        if held:
            worker.wait_held(HELD, 1)
            worker.open(HELD)
            assert conn.read() == b"OK"
        else:
            assert error(conn.read()).startswith("TRYAGAIN ")


@pytest.mark.parametrize(
    "bounds", [{"hold_s": 0.3}, {"on_promotion": "auto", "auto_hold_s": 0.3}], ids=["hold", "auto"]
)
def test_a_hold_ends_at_its_deadline_and_the_client_is_not_held_again(
    fleet: Fleet, bounds: dict[str, float | str]
) -> None:
    with BareWorker(fleet, promotion={**PROMOTION, **bounds}) as worker, Connection(worker.port) as conn:
        key = Keys(worker).one(HELD)
        worker.close(HELD, in_s=0.25)
        conn.send(("SET", key, "v"), ("SET", key, "w"))
        assert [error(reply).split()[0] for reply in conn.reads(2)] == ["TRYAGAIN", "TRYAGAIN"]
        assert error(conn.ask("SET", key, "x")).startswith("TRYAGAIN ")
        worker.wait_count("held", 1)
        worker.wait_count("refused_held", 1)
        worker.open(HELD)
        assert conn.ask("GET", key) is None
        assert conn.ask("SET", key, "y") == b"OK"


def test_no_more_requests_are_held_than_may_be(fleet: Fleet) -> None:
    with BareWorker(fleet, promotion={**PROMOTION, "hold_requests": 3}) as worker:
        key = Keys(worker).one(HELD)
        worker.close(HELD)
        talks = [Connection(worker.port) for _ in range(4)]
        for number, conn in enumerate(talks[:3]):
            conn.send(("INCR", key))
            worker.wait_held(HELD, number + 1)
        assert error(talks[3].ask("INCR", key)).startswith("TRYAGAIN ")
        worker.open(HELD)
        assert [conn.read() for conn in talks[:3]] == [1, 2, 3]
        for conn in talks:
            conn.close()


def test_a_client_whose_bytes_are_too_many_is_refused(fleet: Fleet) -> None:
    with (
        BareWorker(fleet, promotion={**PROMOTION, "hold_client_bytes": 1000}) as worker,
        Connection(worker.port) as conn,
    ):
        key = Keys(worker).one(HELD)
        worker.close(HELD)
        conn.send(("SET", key, "small"))
        worker.wait_held(HELD, 1)
        conn.send(("SET", key, "x" * 2000))
        assert [error(reply).split()[0] for reply in conn.reads(2)] == ["TRYAGAIN", "TRYAGAIN"]
        worker.open(HELD)
        assert conn.ask("GET", key) is None


# --- who leaves -------------------------------------------------------------------------------------------------------


def test_a_held_write_whose_client_leaves_is_never_sent(worker: BareWorker, fleet: Fleet, keys: Keys) -> None:
    names = keys.on(HELD, 3, "gone")
    worker.close(HELD)
    by_fin, by_rst, half = talks = [Connection(worker.port) for _ in range(3)]
    for name, conn in zip(names, talks, strict=True):
        conn.send(("SET", name, "v"), ("SET", name, "w"))
    worker.wait_held(HELD, 3)
    by_fin.close()
    by_rst.reset()
    half.socket.shutdown(1)
    assert half.until_end().startswith(b"-TRYAGAIN "), "it may still read"
    half.close()
    worker.wait_held(HELD, 0)
    worker.wait_count("dropped_client_gone", 3)
    worker.open(HELD)
    with Connection(worker.port) as conn:
        assert conn.ask("EXISTS", *names) == 0
        assert conn.ask("SET", names[0], "x") == b"OK"


def test_a_half_close_without_a_hold_is_answered(worker: BareWorker, keys: Keys, conn: Connection) -> None:
    conn.send(("SET", keys.one(HELD), "v"), ("GET", keys.one(HELD)))
    conn.socket.shutdown(1)
    assert conn.until_end() == b"+OK\r\n$1\r\nv\r\n"


# --- split writes -----------------------------------------------------------------------------------------------------


def test_a_split_write_over_an_open_and_a_closed_gate_waits_whole(
    worker: BareWorker, fleet: Fleet, keys: Keys, conn: Connection
) -> None:
    split = [keys.one(0, "split"), keys.one(HELD, "split")]
    worker.close(HELD)
    conn.send(("MSET", split[0], 1, split[1], 2))
    worker.wait_held(HELD, 1)
    assert fleet.shards[0].primary.ask("EXISTS", split[0]) == 0
    worker.open(HELD)
    assert conn.read() == b"OK"
    assert conn.ask("MGET", *split) == [b"1", b"2"]


def test_a_split_write_that_one_gate_refuses_is_applied_nowhere(
    worker: BareWorker, fleet: Fleet, keys: Keys, conn: Connection
) -> None:
    split = [keys.one(index, "split") for index in range(3)]
    worker.close(0)
    worker.close(HELD, hold=False)
    said = error(conn.ask("MSET", *[word for key in split for word in (key, 1)]))
    assert said.startswith(f"TRYAGAIN shard s{HELD}: 127.0.0.1:")
    assert ", applied=no retry_after_ms=" in said
    assert error(conn.ask("FLUSHALL")).startswith(f"TRYAGAIN shard s{HELD}: ")
    assert [fleet.shards[index].primary.ask("DBSIZE") for index in range(3)] == [0, 0, 0]
