"""Leases: those who need one for a moment get one in turn, whoever holds others for long."""

from collections.abc import Iterator

import pytest

from pyproxy.fleet import Fleet, Proxy, Server, Table, wait_until
from pyproxy.worker.shard.pool import SHORT_LIMIT
from tests.e2e.bare_worker import BareWorker
from tests.e2e.rig import PATIENCE_S, PATIENT, Connection, Keys, error, proxy_info, wait_for_info
from tests.e2e.waiters import empty, wait_blocked
from tests.waiting import readable_within

HERE = 1
"""The index of the shard whose connections are leased."""

LONG_LIMIT = 3
"""How many long leases it may have."""

MANY = 200
assert MANY > SHORT_LIMIT + LONG_LIMIT

COUNT = "return redis.call('incr', KEYS[1])"


@pytest.fixture(scope="module")
def proxy(fleet: Fleet) -> Iterator[Proxy]:
    across = {"transactions": "split", "cross_shard": "emulate"}
    with Proxy(fleet, None, 1, limits={"long_leases": LONG_LIMIT}, timeouts=PATIENT, **across) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def no_keys(fleet: Fleet) -> None:
    empty(fleet)


@pytest.fixture
def here(fleet: Fleet) -> Server:
    return fleet.shards[HERE].primary


@pytest.fixture
def key(keys: Keys) -> str:
    return keys.one(HERE)


@pytest.fixture
def clients() -> Iterator["Clients"]:
    clients = Clients()
    yield clients
    clients.close()


class Clients:
    """Many of one test."""

    def __init__(self) -> None:
        self.talks: list[Connection] = []

    def send(self, port: int, count: int, *commands: tuple[str | int, ...]) -> list[Connection]:
        """So many new ones, each of which sends this."""
        new = [Connection(port) for _ in range(count)]
        self.talks += new
        for conn in new:
            conn.send(*commands)
        return new

    def close(self) -> None:
        for conn in self.talks:
            conn.close()


@pytest.fixture
def still(here: Server) -> Iterator[Server]:
    """The server, which can be made to stand still."""
    yield here
    if not here.running:
        here.start()
    here.resume()


def stand_still(
    server: Server, proxy: Proxy | BareWorker, key: str, clients: Clients, conn: Connection, more: int
) -> list[Connection]:
    """Clients that run a script there: those who got all connections for that, and so many more, who wait for one."""
    server.pause()
    first = clients.send(proxy.port, SHORT_LIMIT, ("EVAL", COUNT, 1, key))
    wait_for_info(conn, "all to be leased", lambda info: info["leased_connections"] == str(SHORT_LIMIT))
    rest = clients.send(proxy.port, more, ("EVAL", COUNT, 1, key))
    wait_for_info(conn, "all to have begun", lambda info: info["inflight"] == str(SHORT_LIMIT + more))
    return first + rest


# --- in turn ----------------------------------------------------------------------------------------------------------


def test_of_many_who_run_scripts_at_the_same_moment_all_are_answered(
    proxy: Proxy, here: Server, key: str, clients: Clients
) -> None:
    made = connections_made(here)
    for db in (0, 5):
        clients.send(proxy.port, MANY // 2, ("SELECT", db), *[("EVAL", COUNT, 1, key)] * 3)
    said = [str(number) for conn in clients.talks for number in conn.reads(4)[1:]]
    assert sorted(said) == sorted([str(each + 1) for each in range(3 * MANY // 2)] * 2)
    assert connections_made(here) - made < MANY, "they use the same ones, in turn"
    with Connection(proxy.port) as conn:
        assert int(proxy_info(conn)["leased_connections"]) <= LONG_LIMIT + 2 * SHORT_LIMIT


def connections_made(server: Server) -> int:
    text = server.ask("INFO", "stats")
    assert isinstance(text, bytes)
    return int(text.partition(b"total_connections_received:")[2].split()[0])


def test_transactions_with_scripts_over_the_same_shards_never_wait_for_each_other(
    proxy: Proxy, still: Server, keys: Keys, clients: Clients
) -> None:
    """Whatever the order of their commands: each needs a connection of every shard."""
    names = [keys.one(0), keys.one(HERE), keys.one(2)]
    with Connection(proxy.port) as conn:
        still.pause()
        for number in range(MANY):
            evals = [("EVAL", COUNT, 1, name) for name in (names if number % 2 else names[::-1])]
            clients.send(proxy.port, 1, ("MULTI",), *evals, ("EXEC",))
        wait_for_info(conn, "all to have begun", lambda info: info["inflight"] == str(MANY))
        still.resume()
        for client in clients.talks:
            answer = client.reads(5)[4]
            assert isinstance(answer, list) and {type(each) for each in answer} == {int}, answer
        assert conn.ask("MGET", *names) == [str(MANY).encode()] * 3


def test_who_waits_longer_than_a_reply_may_take_is_refused_and_nothing_was_done(
    fleet: Fleet, still: Server, clients: Clients
) -> None:
    with Proxy(fleet, timeouts={**PATIENT, "reply_s": 0.2}) as proxy, Connection(proxy.port) as conn:
        key = Keys(proxy).one(HERE)
        first = stand_still(still, proxy, key, clients, conn, 0)
        (late,) = clients.send(proxy.port, 1, ("EVAL", COUNT, 1, key))
        assert error(late.read()) == (
            f"TRYAGAIN shard s{HERE} ({still.address}) has all {SHORT_LIMIT} connections for commands like this in use,"
            " and none came back within 0.2 s, applied=no; retry later"
        )
        still.resume()
        assert sorted(str(each.read()) for each in first) == sorted(map(str, range(1, SHORT_LIMIT + 1)))
        assert conn.ask("EVAL", COUNT, 1, key) == SHORT_LIMIT + 1


def test_who_leaves_while_it_waits_is_passed_over(fleet: Fleet, still: Server, clients: Clients) -> None:
    with Proxy(fleet, timeouts=PATIENT) as proxy, Connection(proxy.port) as conn:
        key = Keys(proxy).one(HERE)
        talks = stand_still(still, proxy, key, clients, conn, 2 * SHORT_LIMIT)
        stay, leave = talks[:SHORT_LIMIT] + talks[-1:], talks[SHORT_LIMIT:-1]
        for each in leave:
            each.reset()
        wait_for_info(conn, "them to be gone", lambda info: info["connected_clients"] == str(1 + len(stay)))
        still.resume()
        assert sorted(str(each.read()) for each in stay) == sorted(map(str, range(1, len(stay) + 1)))
        again = clients.send(proxy.port, 2 * SHORT_LIMIT, ("EVAL", "return 'x'", 1, key))
        assert [each.read() for each in again] == [b"x"] * len(again), "all connections can be had"


# --- beside those who hold others -------------------------------------------------------------------------------------


def test_who_holds_connections_for_long_does_not_hinder_those_who_need_one_briefly(
    proxy: Proxy, here: Server, key: str, keys: Keys, clients: Clients
) -> None:
    holders = clients.send(proxy.port, LONG_LIMIT, ("BLPOP", f"{{{key}}}list", 0))
    wait_blocked(here, LONG_LIMIT)
    with Connection(proxy.port) as conn, Connection(proxy.port) as other:
        for held in (("BLPOP", f"{{{key}}}list", 0), ("WATCH", key)):
            assert error(conn.ask(*held)).startswith(f"TRYAGAIN shard s{HERE} "), held
        assert conn.ask("EVAL", COUNT, 1, key) == 1
        conn.send(("MULTI",), ("EVAL", COUNT, 1, key), ("EXEC",))
        assert conn.reads(3)[2] == [2]
        assert conn.ask("COPY", key, keys.one(0, "copy"), "DB", 5) == 1
        assert conn.ask("RENAME", key, keys.one(0)) == b"OK"
        assert other.ask("RPUSH", f"{{{key}}}list", *range(LONG_LIMIT)) == LONG_LIMIT
    assert [len(each.read()) for each in holders] == [2] * LONG_LIMIT  # type: ignore[arg-type]
    wait_blocked(here, 0)


def test_scripts_that_come_at_once_do_not_hinder_those_who_wait(fleet: Fleet, still: Server, clients: Clients) -> None:
    with Proxy(fleet, limits={"long_leases": LONG_LIMIT}, timeouts=PATIENT) as proxy, Connection(proxy.port) as conn:
        key = Keys(proxy).one(HERE)
        scripts = stand_still(still, proxy, key, clients, conn, 1)
        waiters = clients.send(proxy.port, LONG_LIMIT, ("BLPOP", f"{{{key}}}list", 0))
        wait_for_info(conn, "theirs, too", lambda info: info["leased_connections"] == str(SHORT_LIMIT + LONG_LIMIT))
        still.resume()
        wait_blocked(still, LONG_LIMIT)
        assert {type(each.read()) for each in scripts} == {int}
        assert conn.ask("RPUSH", f"{{{key}}}list", *range(LONG_LIMIT)) == LONG_LIMIT
        assert all(isinstance(each.read(), list) for each in waiters)


def test_a_shard_that_stands_still_does_not_hinder_scripts_of_others(
    fleet: Fleet, still: Server, clients: Clients
) -> None:
    """RENAME has a connection of the one shard while it waits for the other."""
    with Proxy(fleet, cross_shard="emulate", timeouts=PATIENT) as proxy, Connection(proxy.port) as conn:
        keys = Keys(proxy)
        source, destination = keys.one(0), keys.one(HERE)
        assert conn.ask("SET", source, "v") == b"OK"
        assert conn.ask("EXISTS", destination) == 0
        still.pause()
        renaming = clients.send(proxy.port, SHORT_LIMIT + 1, ("RENAME", source, destination))
        wait_for_info(conn, "all to have begun", lambda info: info["inflight"] == str(SHORT_LIMIT + 1))
        wait_for_info(conn, "all to be leased", lambda info: info["leased_connections"] == str(SHORT_LIMIT))
        assert conn.ask("EVAL", COUNT, 1, keys.one(0, "n")) == 1
        assert not any(readable_within(each.socket, 0.0) for each in renaming), "none of them was answered before"


# --- a server that is lost --------------------------------------------------------------------------------------------


def test_who_waits_when_the_server_dies_is_refused_at_once(fleet: Fleet, still: Server, clients: Clients) -> None:
    with Proxy(fleet, timeouts=PATIENT) as proxy, Connection(proxy.port) as conn:
        key = Keys(proxy).one(HERE)
        talks = stand_still(still, proxy, key, clients, conn, 2 * SHORT_LIMIT)
        still.kill()
        said = [error(each.read()) for each in talks]
        assert {each.split()[0] for each in said[:SHORT_LIMIT]} <= {"UNCERTAIN", "TRYAGAIN"}
        for line in said[SHORT_LIMIT:]:
            assert line.startswith(f"TRYAGAIN shard s{HERE} ") and "in use" not in line and "applied=no" in line
        still.start()
        wait_until("the shard", lambda: conn.ask("EVAL", COUNT, 1, key) == 1, proxy.tail, PATIENCE_S)


def test_who_waits_when_nothing_may_be_sent_to_the_server_any_more_is_refused_at_once(
    fleet: Fleet, still: Server, clients: Clients
) -> None:
    with BareWorker(fleet, timeouts=PATIENT) as worker, Connection(worker.port) as conn:
        key = Keys(worker).one(HERE)
        talks = stand_still(still, worker, key, clients, conn, 2)
        worker.health(HERE, misplaced="holds keys of s0")
        for late in talks[SHORT_LIMIT:]:
            assert error(late.read()).startswith(f"TRYAGAIN shard s{HERE} ({still.address}) is down: holds keys of s0")
        wait_for_info(conn, "the others to wait on", lambda info: info["inflight"] == str(SHORT_LIMIT))


def test_who_waits_when_the_gate_closes_waits_there_and_goes_on_at_the_next_primary(clients: Clients) -> None:
    promotion: Table = {
        "promoter": "replicaof", "on_promotion": "hold", "hold_s": PATIENCE_S, "hold_incident_s": PATIENCE_S,
    }  # fmt: skip
    with Fleet(shards=2, replicas=1) as fleet, BareWorker(fleet, promotion=promotion, timeouts=PATIENT) as worker:
        old, new = fleet.shards[0].primary, fleet.shards[0].replicas[0]
        with Connection(worker.port) as conn, Connection(worker.port) as reader:
            key = Keys(worker).one(0)
            *first, one, other = stand_still(old, worker, key, clients, conn, 2)
            reader.send(("EVAL_RO", "return 'read'", 1, key))
            wait_for_info(conn, "it to have begun", lambda info: info["inflight"] == str(SHORT_LIMIT + 3))
            worker.close(0)
            worker.wait_held(0, 2)
            new.ask("REPLICAOF", "NO", "ONE")
            worker.switch_to(0, new, open_gate=True)
            numbers = [one.read(), other.read()]
            assert reader.read() == b"read"
            said = [each.read() for each in first]
            numbers += [each for each in said if isinstance(each, int)]  # their connection was only being made
            assert sorted(map(str, numbers)) == sorted(str(each + 1) for each in range(len(numbers)))
            assert {str(each).split()[0] for each in said if each not in numbers} <= {"UNCERTAIN"}
        old.resume()
