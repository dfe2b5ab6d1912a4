"""Clients that wait for keys of several shards (`cross_shard = "emulate"`) are asked for together."""

import time
from collections.abc import Iterator
from contextlib import ExitStack

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


def test_while_nothing_comes_many_who_wait_cost_a_shard_one_question_each_time(
    proxy: Proxy, fleet: Fleet, names: tuple[str, str]
) -> None:
    server = fleet.shards[0].primary
    with ExitStack() as opened:
        for number in range(MANY):
            conn = opened.enter_context(Connection(proxy.port))
            conn.send(("BLPOP", *(f"{name}{{{name}}}{number}" for name in names), 0))
        wait_for_waiting(conn, MANY)

        def asked() -> tuple[float, int]:
            """Questions beyond one each time, and rounds, while that much time passed."""
            began, questions, rounds = time.monotonic(), calls(server, "exists"), calls(server, "lmpop")
            wait_until("time to pass", lambda: time.monotonic() - began > COUNTED_S, str, PATIENCE_S)
            most = (time.monotonic() - began) / LONGEST_S + 1
            return calls(server, "exists") - questions - most, calls(server, "lmpop") - rounds

        wait_until("the questions to be few", lambda: asked() <= (0, 0), lambda: str(asked()), PATIENCE_S * 2)


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
