"""Commands that wait, for keys on several shards: refused, or, with `cross_shard = "emulate"`, asked for in turn."""

import random
import threading
import time
from collections.abc import Iterator

import pytest

from pyproxy.fleet import Fleet, Proxy, Server, wait_until
from pyproxy.worker.commands.conversation import MOMENT_S
from tests.e2e.rig import PATIENT, Connection, Keys, error, killed, packed, wait_for_info
from tests.e2e.twin.connection import Connection as Frames
from tests.e2e.waiters import MOVERS, WAITERS, Waiter, asked, blocked, empty, wait_blocked

SOON_MS = 30


@pytest.fixture(scope="module")
def proxy(fleet: Fleet) -> Iterator[Proxy]:
    with Proxy(fleet, cross_shard="emulate", timeouts=PATIENT) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def no_keys(fleet: Fleet, server: Server) -> None:
    empty(fleet)
    server.ask("FLUSHALL")


@pytest.fixture
def names(keys: Keys) -> tuple[str, str]:
    return keys.one(2, "a"), keys.one(0, "b")


@pytest.fixture(params=[b"2", b"3"], ids=["resp2", "resp3"])
def twins(request: pytest.FixtureRequest, proxy: Proxy, server: Server) -> Iterator[list[Frames]]:
    twins = [Frames(port) for port in (proxy.port, server.port)]
    for frames in twins:
        asked(frames, [b"HELLO", request.param], [b"SELECT", b"5"])
    yield twins
    for frames in twins:
        frames.close()


def both(twins: list[Frames], waiter: Waiter, names: tuple[str, str], *lines: str, timeout_ms: int = 0) -> list[bytes]:
    argvs = [waiter.words(line, *names, timeout_ms) for line in lines if line]
    ours, theirs = (asked(frames, *argvs) for frames in twins)
    assert ours == theirs
    return ours


@pytest.fixture(scope="module")
def strict(fleet: Fleet) -> Iterator[Connection]:
    with Proxy(fleet) as strict, Connection(strict.port) as conn:
        yield conn


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("waiter", [*WAITERS, *MOVERS], ids=str)
def test_by_default_it_is_refused(strict: Connection, names: tuple[str, str], waiter: Waiter) -> None:
    assert error(strict.ask(*waiter.words(waiter.wait, *names))).startswith("CROSSSLOT ")


def test_in_a_transaction_it_is_refused(conn: Connection, names: tuple[str, str]) -> None:
    conn.send(("MULTI",), ("BLPOP", *names, 0), ("EXEC",))
    _, refused, executed = conn.reads(3)
    assert error(refused).startswith("CROSSSLOT ")
    assert error(executed).startswith("EXECABORT ")


ODD = [
    *(f"BLPOP a b {word}" for word in ("0x1p99999", "1e5000", "1e-5000", "nan", "0x", "-1", "-inf", "-0x1p99999")),
    "BLMPOP 0.01 2 a b",
    "BZMPOP 0.01 2 a b",
    "BZMPOP 0.01 2 a b MIN COUNT 0",
    "BZMPOP 0.01 2 a b MIDDLE",
    "BLMPOP 0.01 2 a b LEFT COUNT",
    "LMPOP 2 a b",
    "ZMPOP 2 a b",
    "ZMPOP 2 a b MIN COUNT x",
    "BLMOVE a b LEFT DOWN 0.01",
]


@pytest.mark.parametrize("line", ODD)
def test_what_is_wrong_with_it_is_said_in_the_words_of_the_server_and_of_this_command(
    twins: list[Frames], names: tuple[str, str], line: str
) -> None:
    places = {"a": names[0], "b": names[1]}
    argv = [places.get(word, word).encode() for word in line.split()]
    ours, theirs = (asked(frames, argv) for frames in twins)
    assert ours == theirs
    assert ours[0].startswith(b"-")


@pytest.mark.parametrize("word", ["inf", "1e400", "0x1p16383", "9e18"])
def test_a_timeout_beyond_all_bounds_is_out_of_range(conn: Connection, names: tuple[str, str], word: str) -> None:
    """So Valkey says it; Redis 7.0 counts past its largest number, and calls it negative."""
    assert error(conn.ask("BLPOP", *names, word)) == "ERR timeout is out of range"


# --- as one server ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("waiter", [*WAITERS, *MOVERS], ids=str)
def test_what_is_there_is_had_at_once(twins: list[Frames], waiter: Waiter, names: tuple[str, str]) -> None:
    wait = waiter.wait.replace("$ $", "0 0")
    lines = [*waiter.before.split(" ; "), waiter.push, wait, waiter.left, wait]
    replies = both(twins, waiter, names, *lines, timeout_ms=SOON_MS)
    assert not any(reply.startswith(b"-") for reply in replies)


@pytest.mark.parametrize("waiter", WAITERS, ids=str)
def test_where_all_have_something_the_order_of_the_keys_counts(
    twins: list[Frames], waiter: Waiter, names: tuple[str, str]
) -> None:
    pushes = [waiter.push, waiter.push.replace(" b ", " a ")]
    lines = [*waiter.before.split(" ; "), *pushes, waiter.wait.replace("$ $", "0 0"), waiter.left]
    both(twins, waiter, names, *lines, timeout_ms=SOON_MS)


@pytest.mark.parametrize("waiter", [*WAITERS, *MOVERS], ids=str)
def test_what_comes_later_is_had_then(
    twins: list[Frames], waiter: Waiter, names: tuple[str, str], conn: Connection, server: Server
) -> None:
    both(twins, waiter, names, *waiter.before.split(" ; "))
    wait_for_info(conn, "nobody of before to wait", lambda info: info["blocked_clients"] == "0")
    for frames in twins:
        frames.say([packed(*waiter.words(waiter.wait, *names)) + packed("ECHO", "behind")], 0)
    wait_for_info(conn, "it to wait", lambda info: info["blocked_clients"] == "1")
    wait_blocked(server, 1)
    push = waiter.words(waiter.push, *names)
    conn.send(("SELECT", 5), push)
    conn.reads(2)
    with Frames(server.port) as pusher:
        asked(pusher, [b"SELECT", b"5"], push)
    ours, theirs = (frames.say([], 2) for frames in twins)
    assert ours == theirs
    assert ours[1] == b"$6\r\nbehind\r\n"
    both(twins, waiter, names, waiter.left)


@pytest.mark.parametrize("waiter", [*WAITERS, *MOVERS], ids=str)
def test_what_does_not_come_is_nil_at_the_timeout(twins: list[Frames], waiter: Waiter, names: tuple[str, str]) -> None:
    lines = [*waiter.before.split(" ; "), waiter.wait]
    assert both(twins, waiter, names, *lines, timeout_ms=SOON_MS)[-1] in (b"*-1\r\n", b"_\r\n")


@pytest.mark.parametrize(
    "line",
    [
        *("blpop a b x", "blpop a b -1", "brpop a b inf", "bzpopmin a b nan", "blmpop x 2 a b LEFT"),
        "set b v ; blpop a b 0",
        *("blmpop 0 2 a b MIDDLE", "bzmpop 0 2 a b MIN COUNT x", "xread BLOCK x STREAMS a b 0 0"),
        *("xread BLOCK 0 STREAMS a b 0", "xread BLOCK 0 STREAMS a b 0 x", "set b v ; xread BLOCK 0 STREAMS a b $ $"),
        "xreadgroup GROUP nosuch c BLOCK 0 STREAMS a b > >",
        *("blmove a b LEFT MIDDLE 0", "blmove a b LEFT LEFT x", "brpoplpush a b -1"),
        *("set a v ; blmove a b LEFT LEFT 0", "set b v ; rpush a x ; brpoplpush a b 0"),
    ],
)
def test_what_cannot_be_run_is_refused_in_the_words_of_redis(
    twins: list[Frames], names: tuple[str, str], line: str
) -> None:
    assert both(twins, WAITERS[0], names, *line.split(" ; "))[-1].startswith(b"-")


# --- nothing is lost --------------------------------------------------------------------------------------------------


def test_each_element_is_had_by_one_client_and_none_is_lost(proxy: Proxy, keys: Keys) -> None:
    names = [keys.one(shard) for shard in range(3)]
    pushed = [b"%d" % number for number in range(300)]
    taken: list[list[object]] = [[] for _ in range(4)]

    def take(mine: list[object], queues: list[str]) -> None:
        with Connection(proxy.port) as conn:
            while (reply := conn.ask("BLPOP", *queues, 0)) and reply[1] != b"end":  # type: ignore[index]
                mine.append(reply[1])  # type: ignore[index]

    order = random.Random(4)
    threads = [threading.Thread(target=take, args=(mine, order.sample(names, 3))) for mine in taken]
    for thread in threads:
        thread.start()
    with Connection(proxy.port) as conn:
        for element in pushed:
            conn.ask("RPUSH", order.choice(names), element)
        wait_for_info(conn, "all to be taken", lambda _: all(conn.ask("LLEN", name) == 0 for name in names))
        for _ in threads:
            conn.ask("RPUSH", names[0], "end")
    for thread in threads:
        thread.join()
    assert sorted(each for mine in taken for each in mine) == sorted(pushed)  # type: ignore[type-var]


def test_each_element_is_moved_once_by_whoever_waits(proxy: Proxy, conn: Connection, names: tuple[str, str]) -> None:
    a, b = names
    moved: list[list[object]] = [[] for _ in range(3)]

    def move(mine: list[object]) -> None:
        with Connection(proxy.port) as conn:
            while (element := conn.ask("BLMOVE", a, b, "LEFT", "RIGHT", 0)) != b"end":
                mine.append(element)

    threads = [threading.Thread(target=move, args=(mine,)) for mine in moved]
    for thread in threads:
        thread.start()
    wait_for_info(conn, "all to wait", lambda info: info["blocked_clients"] == "3")
    pushed = [b"%d" % number for number in range(60)]
    for element in pushed:
        conn.ask("RPUSH", a, element)
    wait_for_info(conn, "all to be moved", lambda _: conn.ask("LLEN", a) == 0 and conn.ask("LLEN", b) == 60)
    for _ in threads:
        conn.ask("RPUSH", a, "end")
    for thread in threads:
        thread.join()
    assert sorted(each for mine in moved for each in mine) == sorted(pushed)  # type: ignore[type-var]
    assert sorted(conn.ask("LRANGE", b, 0, -1)) == sorted([*pushed, *[b"end"] * 3])  # type: ignore[call-overload]


@pytest.mark.parametrize("way", ["close", "reset", "half"])
def test_for_a_client_that_left_nothing_is_taken(
    proxy: Proxy, conn: Connection, names: tuple[str, str], way: str
) -> None:
    leaves = Connection(proxy.port)
    leaves.send(("BLPOP", *names, 0))
    wait_for_info(conn, "it to wait", lambda info: info["blocked_clients"] == "1")
    if way == "half":
        leaves.socket.shutdown(1)
        assert leaves.until_end() == b""
    leaves.reset() if way == "reset" else leaves.close()
    wait_for_info(conn, "nobody to wait", lambda info: info["blocked_clients"] == "0")
    conn.ask("RPUSH", names[1], "x")
    assert conn.ask("LLEN", names[1]) == 1


@pytest.mark.parametrize("way", ["close", "half"])
def test_for_a_client_that_left_nothing_is_taken_though_a_shard_stands_still(
    fleet: Fleet, proxy: Proxy, conn: Connection, names: tuple[str, str], way: str
) -> None:
    still, other = fleet.shards[2].primary, fleet.shards[0].primary
    leaves = Connection(proxy.port)
    leaves.send(("BLPOP", *names, 0))
    begun = time.monotonic()
    wait_for_info(conn, "it to wait", lambda info: info["blocked_clients"] == "1")
    wait_until(
        "the moment of a command that need not wait to pass", lambda: time.monotonic() > begun + 2 * MOMENT_S, str
    )
    still.pause()
    try:
        leaves.socket.shutdown(1) if way == "half" else leaves.close()
        other.ask("RPUSH", names[1], "x")
    finally:
        still.resume()
    wait_for_info(conn, "nobody to wait", lambda info: info["blocked_clients"] == "0")
    if way == "half":
        assert leaves.until_end() == b""
        leaves.close()
    wait_for_info(conn, "it to be gone", lambda info: info["connected_clients"] == "1")
    assert conn.ask("LLEN", names[1]) == 1


def test_a_shard_that_is_down_is_an_error_and_not_nil(fleet: Fleet, proxy: Proxy, names: tuple[str, str]) -> None:
    with Proxy(fleet, cross_shard="emulate") as own, Connection(own.port) as conn:
        assert conn.ask("BLPOP", *names, "0.01") is None
        with killed(fleet.shards[0].primary, proxy):
            assert error(conn.ask("BLPOP", *names, 5)).split()[0] in ("TRYAGAIN", "UNCERTAIN")
            assert error(conn.ask("BLPOP", *names, 5)).startswith("TRYAGAIN shard s0 ")
    assert blocked(fleet.shards[2].primary) == 0
