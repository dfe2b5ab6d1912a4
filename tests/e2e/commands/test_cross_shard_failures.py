"""What an emulated command leaves where something fails in the middle, or others are at work on the same keys.

docs/cross-shard.md says it in words: nothing is lost, a thing may be there twice, and the answer says where.
"""

import shutil
import threading
from collections.abc import Iterator

import pytest

from pyproxy.fleet import Fleet, Proxy, Server, wait_until
from tests.e2e.rig import PATIENCE_S, PATIENT, Connection, Keys, behind, error, of_a_worker
from tests.faults import End, Hop


@pytest.fixture(autouse=True)
def empty(fleet: Fleet, conn: Connection, keys: Keys) -> None:
    """No keys, and every shard can be asked: one that lost two connections in a second counts as down for a while."""
    for index, shard in enumerate(fleet.shards):
        shard.primary.ask("FLUSHALL")
        again(conn, "EXISTS", keys.one(index))


def again(conn: Connection, *argv: str) -> object:
    """What is answered once the shards can be asked."""
    answers: list[object] = []

    def asked() -> bool:
        answers.append(conn.ask(*argv))
        return not str(answers[-1]).startswith("TRYAGAIN")

    wait_until("the shards to be up", asked, lambda: f"the answer was {answers[-1]}", PATIENCE_S)
    return answers[-1]


@pytest.fixture(scope="module")
def hop(fleet: Fleet) -> Iterator[Hop]:
    """In front of shard 1."""
    with Hop(fleet.shards[1].primary.port, of_a_worker) as hop:
        yield hop


@pytest.fixture(scope="module")
def proxy(fleet: Fleet, hop: Hop) -> Iterator[Proxy]:
    with behind(fleet, {1: hop}, timeouts=PATIENT, cross_shard="emulate") as proxy:
        yield proxy


def left(fleet: Fleet) -> list[list[bytes]]:
    """The keys of each shard."""
    found = []
    for shard in fleet.shards:
        names = shard.primary.ask("KEYS", "*")
        assert isinstance(names, list)
        found.append(sorted(names))
    return found


# --- the connection of shard 1 is lost before it has run the command with this word -----------------------------------


def test_rename_whose_destination_fails_leaves_the_source(conn: Connection, keys: Keys, hop: Hop, fleet: Fleet) -> None:
    source, destination = keys.one(0), keys.one(1)
    conn.ask("SET", source, "v")
    hop.answer(b"RESTORE", b"", End.RST)
    assert error(conn.ask("RENAME", source, destination)).startswith("UNCERTAIN shard s1 (")
    assert left(fleet) == [[source.encode()], [], []]


def test_rename_whose_source_fails_leaves_both_and_names_them(
    conn: Connection, keys: Keys, hop: Hop, fleet: Fleet
) -> None:
    source, destination = keys.one(1), keys.one(0)
    conn.ask("SET", source, "v")
    hop.answer(b"EXEC", b"", End.RST)
    message = error(conn.ask("RENAME", source, destination))
    assert message.startswith("UNCERTAIN shard s1: ") and message.endswith(
        "other shards may have applied their part: s0"
    )
    assert left(fleet) == [[destination.encode()], [source.encode()], []]


def test_copy_that_fails_leaves_the_source(conn: Connection, keys: Keys, hop: Hop, fleet: Fleet) -> None:
    source, destination = keys.one(0), keys.one(1)
    conn.ask("SET", source, "v")
    hop.answer(b"RESTORE", b"", End.RST)
    assert error(conn.ask("COPY", source, destination)).startswith("UNCERTAIN shard s1 (")
    assert left(fleet) == [[source.encode()], [], []]


def test_lmove_whose_source_fails_leaves_the_element_on_both(
    conn: Connection, keys: Keys, hop: Hop, fleet: Fleet
) -> None:
    source, destination = keys.one(1), keys.one(0)
    conn.ask("RPUSH", source, "x", "y")
    hop.answer(b"LREM", b"", End.RST)
    message = error(conn.ask("LMOVE", source, destination, "LEFT", "LEFT"))
    assert message.startswith("UNCERTAIN shard s1: ") and message.endswith(
        "other shards may have applied their part: s0"
    )
    assert fleet.shards[1].primary.ask("LRANGE", source, "0", "-1") == [b"x", b"y"]
    assert fleet.shards[0].primary.ask("LRANGE", destination, "0", "-1") == [b"x"]


def test_smove_whose_source_fails_leaves_the_member_in_both(
    conn: Connection, keys: Keys, hop: Hop, fleet: Fleet
) -> None:
    source, destination = keys.one(1), keys.one(0)
    conn.ask("SADD", source, "x")
    hop.answer(b"SREM", b"", End.RST)
    message = error(conn.ask("SMOVE", source, destination, "x"))
    assert message.startswith("UNCERTAIN shard s1: ") and message.endswith(
        "other shards may have applied their part: s0"
    )
    assert fleet.shards[1].primary.ask("SISMEMBER", source, "x") == 1
    assert fleet.shards[0].primary.ask("SISMEMBER", destination, "x") == 1


def test_msetnx_that_fails_on_the_second_shard_leaves_the_first(
    conn: Connection, keys: Keys, hop: Hop, fleet: Fleet
) -> None:
    first, second, third = (keys.one(shard) for shard in range(3))
    hop.answer(b"MSETNX", b"", End.RST)
    message = error(conn.ask("MSETNX", first, "1", second, "2", third, "3"))
    assert message.startswith("UNCERTAIN shard s1: ") and message.endswith(
        "other shards may have applied their part: s0"
    )
    assert left(fleet) == [[first.encode()], [], []]


def test_a_store_whose_block_is_lost_is_uncertain_and_leaves_no_copies(
    conn: Connection, keys: Keys, hop: Hop, fleet: Fleet
) -> None:
    operand, destination = keys.one(0), keys.one(1)
    conn.ask("SADD", operand, "x")
    hop.answer(b"SUNIONSTORE", b"", End.RST)
    assert error(conn.ask("SUNIONSTORE", destination, operand)).startswith("UNCERTAIN shard s1: ")
    assert left(fleet) == [[operand.encode()], [], []]


def test_a_read_whose_block_is_lost_may_be_tried_again(conn: Connection, keys: Keys, hop: Hop, fleet: Fleet) -> None:
    here, there = keys.one(1), keys.one(0)
    conn.ask("SADD", here, "x")
    conn.ask("SADD", there, "y")
    hop.answer(b"SUNION", b"", End.RST)
    message = error(conn.ask("SUNION", here, there))
    assert message.startswith("TRYAGAIN shard s1: ") and "applied=no" in message
    assert sorted(left(fleet)[0] + left(fleet)[1]) == sorted([here.encode(), there.encode()])
    reply = again(conn, "SUNION", here, there)
    assert isinstance(reply, list) and sorted(reply) == [b"x", b"y"]


# --- a shard that is down ---------------------------------------------------------------------------------------------


@pytest.fixture
def lost(fleet: Fleet) -> Iterator[Fleet]:
    """Shard 2 is dead."""
    fleet.shards[2].primary.kill()
    yield fleet
    fleet.shards[2].primary.start()


ON_A_LOST_SHARD = [
    "SUNION here there",
    "SINTERSTORE here there",
    "SINTERSTORE there here",
    "RENAME here there",
    "RENAME there here",
    "COPY there here",
    "SMOVE here there x",
    "SMOVE there here x",
    "LMOVE there here LEFT LEFT",
    "MSETNX here 1 there 2",
    "LMPOP 2 nothing there LEFT",
    "PFCOUNT here there",
    "XREAD STREAMS stream there 0 0",
]


def test_with_a_lost_shard_nothing_is_done_and_the_error_names_it(conn: Connection, keys: Keys, lost: Fleet) -> None:
    here, there = keys.one(0), keys.one(2)
    names = {"here": here, "there": there, "nothing": keys.one(0, "none"), "stream": keys.one(0, "stream")}
    conn.ask("SADD", here, "x")
    conn.ask("XADD", names["stream"], "1", "f", "v")
    for line in ON_A_LOST_SHARD:
        message = error(conn.ask(*(names.get(word, word) for word in line.split())))
        assert message.startswith("TRYAGAIN shard s2") and "applied=no" in message, (line, message)
    assert conn.ask("SMEMBERS", here) == [b"x"]


# --- servers of two versions ------------------------------------------------------------------------------------------


@pytest.fixture
def mixed(fleet: Fleet) -> Iterator[Proxy]:
    """A proxy whose shard 2 is a Redis 7.0, which does not know what Valkey 9 dumps."""
    binary = shutil.which("redis-server")
    if binary is None or "valkey" not in fleet.backend.version:
        pytest.skip(f"needs a redis-server on PATH beside {fleet.backend.version}")
    older = Server("older", binary, fleet.directory)
    older.start()
    proxy = Proxy(fleet, cross_shard="emulate")
    proxy.config.write_text(proxy.config.read_text().replace(fleet.shards[2].primary.address, older.address))
    with proxy:
        yield proxy
    older.stop()
    older.release()


def test_a_value_that_a_shard_does_not_know_is_an_error_and_nothing_is_done(mixed: Proxy, keys: Keys) -> None:
    newer, older = keys.one(0), keys.one(2)
    with Connection(mixed.port) as conn:
        conn.ask("SADD", newer, "x")
        conn.ask("SADD", older, "y")
        for argv in (["SUNIONSTORE", older, newer], ["SUNION", older, newer]):
            assert error(conn.ask(*argv)).startswith("ERR shard s2 does not take a value of another shard: ")
        assert error(conn.ask("RENAME", newer, older)) == "ERR DUMP payload version or checksum are wrong"
        assert [conn.ask("SMEMBERS", key) for key in (newer, older)] == [[b"x"], [b"y"]]
        assert conn.ask("SUNIONSTORE", newer, newer, older) == 2


# --- others at work on the same keys ----------------------------------------------------------------------------------


class Busy(threading.Thread):
    """Asks the same again and again on a connection of its own; `answers`: what came."""

    def __init__(self, port: int, requests: list[tuple[str, ...]]) -> None:
        super().__init__()
        self.requests = requests
        self.answers: list[object] = []
        self._talk = Connection(port)

    def run(self) -> None:
        with self._talk:
            self.answers += [self._talk.ask(*argv) for argv in self.requests]


def run_at_once(*busy: Busy) -> None:
    for each in busy:
        each.start()
    for each in busy:
        each.join()


@pytest.mark.parametrize("sides", [("RIGHT", "LEFT"), ("LEFT", "RIGHT"), ("LEFT", "LEFT")])
def test_lmoves_at_once_with_pushes_lose_no_element_and_double_none(
    proxy: Proxy, keys: Keys, sides: tuple[str, str]
) -> None:
    source, destination = keys.one(0), keys.one(2)
    pushed = [b"e%d" % number for number in range(300)]
    pushes = Busy(proxy.port, [("LPUSH", source, each.decode()) for each in pushed])
    movers = [Busy(proxy.port, [("LMOVE", source, destination, *sides)] * 150) for _ in range(3)]
    run_at_once(pushes, *movers)
    with Connection(proxy.port) as conn:
        lists = [conn.ask("LRANGE", key, 0, -1) for key in (source, destination)]
    assert sorted(lists[0] + lists[1]) == sorted(pushed)  # type: ignore[operator]
    answers = [answer for mover in movers for answer in mover.answers]
    assert [error(answer) for answer in answers if isinstance(answer, Exception)] == []
    assert sorted(answer for answer in answers if isinstance(answer, bytes)) == sorted(lists[1])  # type: ignore[call-overload]


def test_rename_of_a_list_that_others_push_to_loses_no_element(proxy: Proxy, conn: Connection, keys: Keys) -> None:
    source, destination = keys.one(0), keys.one(2)
    pushed = [b"e%d" % number for number in range(400)]
    pushes = Busy(proxy.port, [("RPUSH", source, each.decode()) for each in pushed])
    kept: list[bytes] = []
    pushes.start()
    while pushes.is_alive() or conn.ask("EXISTS", source):
        if conn.ask("RENAME", source, destination) == b"OK":
            kept += conn.ask("LRANGE", destination, 0, -1)  # type: ignore[arg-type]
    pushes.join()
    assert kept == pushed


def test_of_many_who_move_a_member_one_succeeds(proxy: Proxy, conn: Connection, keys: Keys) -> None:
    source, destination = keys.one(0), keys.one(2)
    members = [str(number) for number in range(100)]
    conn.ask("SADD", source, *members)
    movers = [Busy(proxy.port, [("SMOVE", source, destination, each) for each in members]) for _ in range(3)]
    run_at_once(*movers)
    for answers in zip(*(mover.answers for mover in movers), strict=True):
        assert answers.count(1) == 1, answers
    assert conn.ask("SCARD", source) == 0
    assert conn.ask("SCARD", destination) == len(members)
