"""Clients that wait for keys of several shards (`cross_shard = "emulate"`) are asked for together."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from pyproxy.fleet import Fleet, Proxy, Server, wait_until
from pyproxy.worker.commands.cross_shard.ready_keys import LONGEST_S, MOST_KEYS
from tests.e2e.rig import PATIENCE_S, PATIENT, Connection, Keys, error, wait_for_info
from tests.e2e.waiters import empty

MANY = 50
COUNTED_S = 1.0


@pytest.fixture(scope="module")
def proxy(fleet: Fleet) -> Iterator[Proxy]:
    with Proxy(fleet, cross_shard="emulate", timeouts=PATIENT) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def no_keys(fleet: Fleet) -> None:
    empty(fleet)


@pytest.fixture
def names(keys: Keys) -> tuple[str, str]:
    return keys.one(2, "a"), keys.one(0, "b")


@pytest.fixture
def waiting(proxy: Proxy) -> Iterator[list[Connection]]:
    """Clients of one worker, and room for more; see `wait`."""
    with ExitStack() as opened:
        yield [opened.enter_context(Connection(proxy.port)) for _ in range(3)]


def wait(talks: list[Connection], *argv: str | int) -> None:
    """They wait, in this order."""
    for number, conn in enumerate(talks, 1):
        conn.send(argv)
        wait_for_waiting(conn, number)


def wait_for_waiting(conn: Connection, count: int) -> None:
    """Wait until so many wait at the proxy of this client."""
    with Connection(conn.socket.getpeername()[1]) as other:
        wait_for_info(other, "them to wait", lambda info: info["blocked_clients"] == str(count))


def calls(server: Server, name: str) -> int:
    """How often this server has run a command."""
    reply = server.ask("INFO", "commandstats")
    assert isinstance(reply, bytes)
    return int(reply.partition(b"cmdstat_%b:calls=" % name.encode())[2].split(b",")[0] or 0)


@contextmanager
def many_waiting(proxy: Proxy, line: Callable[[int], tuple[str | int, ...]]) -> Iterator[None]:
    """Within the block so many clients wait. `line`: what each of them asks, by its number."""
    with ExitStack() as opened:
        for number in range(MANY):
            conn = opened.enter_context(Connection(proxy.port))
            conn.send(line(number))
        wait_for_waiting(conn, MANY)
        yield


def asked(server: Server, name: str) -> float:
    """How often beyond one time in each interval, while COUNTED_S passed."""
    began, before = time.monotonic(), calls(server, name)
    wait_until("time to pass", lambda: time.monotonic() - began > COUNTED_S, str, PATIENCE_S)
    return calls(server, name) - before - (time.monotonic() - began) / LONGEST_S - 1


def test_while_nothing_comes_many_who_wait_cost_a_shard_one_question_each_time(
    proxy: Proxy, fleet: Fleet, names: tuple[str, str]
) -> None:
    server = fleet.shards[0].primary

    def is_asked_once_each_time() -> bool:
        rounds = calls(server, "lmpop")
        return asked(server, "exists") <= 0 and calls(server, "lmpop") == rounds

    with many_waiting(proxy, lambda number: ("BLPOP", *(f"{name}{{{name}}}{number}" for name in names), 0)):
        wait_until("the questions to be few", is_asked_once_each_time, str, PATIENCE_S * 2)


def test_those_who_wait_at_one_worker_for_one_key_are_served_in_the_order_in_which_they_came(
    fleet: Fleet, waiting: list[Connection], names: tuple[str, str]
) -> None:
    wait(waiting, "BLPOP", *names, 0)
    for conn in waiting:
        fleet.shards[0].primary.ask("RPUSH", names[1], "x")
        assert conn.read() == [names[1].encode(), b"x"]


def test_as_many_look_as_there_are_elements(fleet: Fleet, waiting: list[Connection], names: tuple[str, str]) -> None:
    server = fleet.shards[0].primary
    wait(waiting, "BZPOPMIN", *names, 0)
    before = calls(server, "zmpop")
    server.ask("ZADD", names[1], "1", "x", "2", "y")
    assert [conn.read() for conn in waiting[:2]] == [[names[1].encode(), b"x", b"1"], [names[1].encode(), b"y", b"2"]]
    assert calls(server, "zmpop") - before == 2


def test_a_key_of_another_kind_that_comes_is_an_error(
    fleet: Fleet, waiting: list[Connection], names: tuple[str, str]
) -> None:
    wait(waiting[:1], "BLPOP", *names, 0)
    fleet.shards[0].primary.ask("SET", names[1], "x")
    assert error(waiting[0].read()).startswith("WRONGTYPE ")


def test_a_list_that_an_element_would_be_moved_to_wakes_nobody(
    fleet: Fleet, waiting: list[Connection], names: tuple[str, str]
) -> None:
    servers = [fleet.shards[index].primary for index in (2, 0)]
    servers[1].ask("RPUSH", names[1], "y")
    wait(waiting[:1], "BLMOVE", *names, "LEFT", "RIGHT", 0)
    wait_until("it to be asked", lambda: calls(servers[0], "exists") > 2, str, PATIENCE_S)
    before = calls(servers[0], "exists"), calls(servers[1], "exists")
    wait_until("more", lambda: calls(servers[0], "exists") > before[0] + 2, str, PATIENCE_S)
    assert calls(servers[1], "exists") == before[1]
    servers[0].ask("RPUSH", names[0], "x")
    assert waiting[0].read() == b"x"


def test_when_one_in_whose_name_all_are_asked_for_has_left_the_others_are_served(
    fleet: Fleet, waiting: list[Connection], names: tuple[str, str]
) -> None:
    """The question of the first is out when it leaves: its server stands still."""
    server = fleet.shards[0].primary
    wait(waiting, "BLPOP", *names, 0)
    server.pause()
    try:
        waiting[0].reset()
        wait_for_waiting(waiting[1], 2)
    finally:
        server.resume()
    server.ask("RPUSH", names[1], "x")
    assert waiting[1].read() == [names[1].encode(), b"x"]


def test_a_shard_that_stands_still_delays_nobody_who_waits_at_others(
    fleet: Fleet, keys: Keys, waiting: list[Connection], names: tuple[str, str]
) -> None:
    still, there = fleet.shards[2].primary, keys.one(1)
    wait(waiting[:1], "BLPOP", *names, 0)
    waiting[1].send(("BLPOP", names[1], there, 0))
    wait_for_waiting(waiting[1], 2)
    still.pause()
    try:
        fleet.shards[1].primary.ask("RPUSH", there, "x")
        assert waiting[1].read() == [there.encode(), b"x"]
    finally:
        still.resume()


def test_whoever_waits_for_more_keys_than_are_asked_for_at_once_gets_the_last(
    fleet: Fleet, keys: Keys, waiting: list[Connection], names: tuple[str, str]
) -> None:
    there = keys.on(0, MOST_KEYS + 1)
    wait(waiting[:1], "BLPOP", names[0], *there, 0)
    fleet.shards[0].primary.ask("RPUSH", there[-1], "x")
    assert waiting[0].read() == [there[-1].encode(), b"x"]


def test_elements_of_another_database_are_not_taken(
    fleet: Fleet, waiting: list[Connection], names: tuple[str, str]
) -> None:
    assert waiting[1].ask("SELECT", 3) == b"OK"
    wait(waiting[:2], "BLPOP", *names, 0)
    fleet.shards[0].primary.ask("EVAL", "redis.call('SELECT', 3) return redis.call('RPUSH', KEYS[1], 'x')", 1, names[1])
    assert waiting[1].read() == [names[1].encode(), b"x"]


# --- streams ----------------------------------------------------------------------------------------------------------


def test_while_nothing_comes_many_who_read_streams_cost_a_shard_one_question_each_time(
    proxy: Proxy, fleet: Fleet, names: tuple[str, str]
) -> None:
    """Each of streams of its own."""
    server = fleet.shards[0].primary

    def line(number: int) -> tuple[str | int, ...]:
        return ("XREAD", "BLOCK", 0, "STREAMS", *(f"{name}{{{name}}}{number}" for name in names), "$", "$")

    with many_waiting(proxy, line):
        wait_until("the questions to be few", lambda: asked(server, "xread") <= 0, str, PATIENCE_S * 2)


def test_while_nothing_comes_many_who_read_as_one_group_cost_a_shard_one_question_each_time(
    proxy: Proxy, fleet: Fleet, waiting: list[Connection], names: tuple[str, str]
) -> None:
    server = fleet.shards[0].primary
    grouped(waiting[0], names)
    with many_waiting(proxy, lambda number: group_read(names, f"c{number}")):
        wait_until("the questions to be few", lambda: asked(server, "xreadgroup") <= 0, str, PATIENCE_S * 2)


def grouped(conn: Connection, names: tuple[str, str], group: str = "g") -> None:
    for name in names:
        conn.ask("XGROUP", "CREATE", name, group, "$", "MKSTREAM")


def group_read(names: tuple[str, str], consumer: str, *options: str | int, group: str = "g") -> tuple[str | int, ...]:
    return ("XREADGROUP", "GROUP", group, consumer, *options, "BLOCK", 0, "STREAMS", *names, ">", ">")


def wait_as_group(talks: list[Connection], names: tuple[str, str], *options: str | int) -> None:
    """They wait in this order, each as a consumer of its own of one group."""
    grouped(talks[0], names)
    for number, conn in enumerate(talks, 1):
        conn.send(group_read(names, f"c{number}", *options))
        wait_for_waiting(conn, number)


def entry(name: str, number: int) -> list[object]:
    """What a reader of a stream is answered that has this one new entry."""
    return [[name.encode(), [[f"{number}-1".encode(), [b"f", b"v"]]]]]


def add(fleet: Fleet, name: str, number: int) -> None:
    """To a stream on the first shard."""
    fleet.shards[0].primary.ask("XADD", name, f"{number}-1", "f", "v")


@pytest.mark.parametrize("proto", [2, 3])
def test_all_who_read_a_stream_get_its_new_entry(
    proxy: Proxy, fleet: Fleet, waiting: list[Connection], names: tuple[str, str], proto: int
) -> None:
    """Those who speak another protocol, too."""
    waiting[0].ask("HELLO", proto)
    add(fleet, names[1], 1)
    wait(waiting, "XREAD", "BLOCK", 0, "STREAMS", *names, "$", "$")
    add(fleet, names[1], 2)
    expected = entry(names[1], 2)
    assert [conn.read() for conn in waiting[1:]] == [expected, expected]
    first = waiting[0].read()
    assert first == (expected if proto == 2 else {expected[0][0]: expected[0][1]})  # type: ignore[index]


def test_who_waits_for_a_later_entry_is_not_answered_with_an_earlier_one(
    fleet: Fleet, waiting: list[Connection], names: tuple[str, str]
) -> None:
    """And costs nothing while the others have gone on."""
    waiting[0].send(("XREAD", "BLOCK", 0, "STREAMS", *names, "0", "0"))
    wait_for_waiting(waiting[0], 1)
    waiting[1].send(("XREAD", "BLOCK", 0, "STREAMS", *names, "0", "5-1"))
    wait_for_waiting(waiting[1], 2)
    for number in range(1, 6):
        add(fleet, names[1], number)
        reply = waiting[0].read()
        assert reply == entry(names[1], number)
        waiting[0].send(("XREAD", "BLOCK", 0, "STREAMS", *names, "0", f"{number}-1"))
    server = fleet.shards[0].primary
    wait_until("the questions to be few", lambda: asked(server, "xread") <= 0, str, PATIENCE_S * 2)
    add(fleet, names[1], 6)
    assert [conn.read() for conn in waiting[:2]] == [entry(names[1], 6)] * 2


def test_one_entry_after_another_is_read_without_a_gap(
    fleet: Fleet, waiting: list[Connection], names: tuple[str, str]
) -> None:
    """What comes between two reads, or while the streams are asked for, is not missed."""
    reader, seen, last = waiting[0], 0, "0"
    for number in range(1, 101):
        add(fleet, names[1], number)
        if number % 3 == 0:
            reply = reader.ask("XREAD", "BLOCK", 0, "STREAMS", *names, "0", last)
            entries = reply[0][1]  # type: ignore[index]
            seen, last = seen + len(entries), entries[-1][0].decode()
    assert (seen, last) == (99, "99-1")


def test_a_stream_that_becomes_another_kind_of_key_is_an_error_for_those_who_read_it(
    fleet: Fleet, keys: Keys, waiting: list[Connection], names: tuple[str, str]
) -> None:
    other = keys.on(0, 2, "other")[1]
    wait(waiting[:1], "XREAD", "BLOCK", 0, "STREAMS", *names, "0", "0")
    waiting[1].send(("XREAD", "BLOCK", 0, "STREAMS", names[0], other, "0", "0"))
    wait_for_waiting(waiting[1], 2)
    fleet.shards[0].primary.ask("SET", names[1], "x")
    assert error(waiting[0].read()).startswith("WRONGTYPE ")
    add(fleet, other, 1)
    assert waiting[1].read() == entry(other, 1)


def test_those_who_read_as_one_group_are_served_in_the_order_in_which_they_came(
    fleet: Fleet, waiting: list[Connection], names: tuple[str, str]
) -> None:
    wait_as_group(waiting, names)
    for number, conn in enumerate(waiting, 1):
        add(fleet, names[1], number)
        assert conn.read() == entry(names[1], number)


def test_entries_that_come_at_once_are_handed_out_one_to_each_who_asks_for_one(
    fleet: Fleet, waiting: list[Connection], names: tuple[str, str]
) -> None:
    wait_as_group(waiting, names, "COUNT", 1)
    fleet.shards[0].primary.ask(
        "EVAL", "for i = 1, 3 do redis.call('XADD', KEYS[1], i .. '-1', 'f', 'v') end", 1, names[1]
    )
    assert [conn.read() for conn in waiting] == [entry(names[1], number) for number in (1, 2, 3)]


def test_when_the_first_who_reads_as_a_group_has_left_the_others_are_served(
    fleet: Fleet, waiting: list[Connection], names: tuple[str, str]
) -> None:
    wait_as_group(waiting, names)
    waiting[0].reset()
    wait_for_waiting(waiting[1], 2)
    add(fleet, names[1], 1)
    assert waiting[1].read() == entry(names[1], 1)


def test_two_groups_wait_each_for_itself(fleet: Fleet, waiting: list[Connection], names: tuple[str, str]) -> None:
    for number, group in enumerate("gh"):
        grouped(waiting[number], names, group)
        waiting[number].send(group_read(names, "c", group=group))
        wait_for_waiting(waiting[number], number + 1)
    add(fleet, names[1], 1)
    assert [conn.read() for conn in waiting[:2]] == [entry(names[1], 1)] * 2


def test_a_group_that_is_destroyed_is_an_error_for_all_who_read_as_it(
    fleet: Fleet, waiting: list[Connection], names: tuple[str, str]
) -> None:
    wait_as_group(waiting, names)
    fleet.shards[0].primary.ask("XGROUP", "DESTROY", names[1], "g")
    assert [error(conn.read()).split()[0] for conn in waiting] == ["NOGROUP"] * 3
