"""What a client of node does all day, by each library's own methods: transaction, pub/sub, scan, script, blocking pop.
Connecting and pipelines are in test_node_connection.py.
"""

from collections.abc import Iterator

import pytest

from pyproxy.fleet import Fleet, Proxy, wait_until
from tests.e2e.clients.node import Library, NodeClient
from tests.e2e.clients.waiting_pops import blocked_at
from tests.e2e.rig import PATIENCE_S, Connection

pytestmark = [pytest.mark.usefixtures("node_modules"), pytest.mark.timeout(180)]  # the first one installs

SCRIPT = "redis.call('set', KEYS[1], ARGV[1]) return {KEYS[1], redis.call('get', KEYS[1])}"


@pytest.fixture(scope="module")
def client(library: Library, proxy10: Proxy) -> Iterator[NodeClient]:
    with NodeClient(library, proxy10.port) as client:
        yield client


def test_a_transaction_is_run_as_a_whole(client: NodeClient) -> None:
    calls = [["set", "{t}k", "1"], ["incr", "{t}k"], ["hset", "{t}h", "f", "v"], ["hget", "{t}h", "f"]]
    client.do("del", ["{t}h"])
    assert client.do("multi", calls) == ["OK", 2, 1, "v"]


def test_a_watched_key_that_changed_breaks_the_transaction(client: NodeClient, conn: Connection) -> None:
    assert client.do("call", "watch", "{t}k") == "OK"
    assert conn.ask("SET", "{t}k", "changed") == b"OK"
    assert client.do("pipeline", [["multi"], ["set", "{t}k", "x"], ["exec"]]) == ["OK", "QUEUED", None]
    assert client.do("get", "{t}k") == "changed"


@pytest.fixture
def conn(proxy10: Proxy) -> Iterator[Connection]:
    with Connection(proxy10.port) as conn:
        yield conn


def test_messages_reach_who_subscribed(client: NodeClient, library: Library, proxy10: Proxy) -> None:
    channels = [f"{library.name}:{number}" for number in range(20)]
    with NodeClient(library, proxy10.port) as subscriber:
        for each in channels:
            subscriber.do("subscribe", each)
        subscriber.do("psubscribe", f"other:{library.name}:*")
        for each in channels:
            assert client.do("publish", each, f"to {each}") == 1
        assert client.do("publish", f"other:{library.name}:1", "x") == 1
        expected = sorted([[each, f"to {each}"] for each in channels])
        expected.append([f"other:{library.name}:*", f"other:{library.name}:1", "x"])
        seen: list[list[str]] = []

        def got() -> bool:
            seen[:] = subscriber.do("received")
            return sorted(seen) == sorted(expected)

        wait_until("the messages", got, lambda: f"got {seen}", PATIENCE_S)


def test_a_scan_finds_each_key_of_all_shards(client: NodeClient, library: Library) -> None:
    keys = {f"scan:{library.name}:{number}" for number in range(100)}
    client.do("mset", dict.fromkeys([*keys, "elsewhere"], "x"))
    assert set(client.do("scan", f"scan:{library.name}:*")) == keys


def test_a_script_is_run_where_its_key_is(client: NodeClient, library: Library) -> None:
    for key in [f"script:{library.name}:{number}" for number in range(20)]:
        assert client.do("eval", SCRIPT, [key], ["v"]) == [key, "v"]


def test_a_blocking_pop_waits_until_there_is_something(
    client: NodeClient, library: Library, fleet10: Fleet, conn: Connection
) -> None:
    key = f"pop:{library.name}"
    client.begin("pop", key, 20)
    wait_until("the pop to wait", lambda: blocked_at(fleet10) == 1, lambda: f"{blocked_at(fleet10)} wait")
    assert conn.ask("RPUSH", key, "v") == 1
    assert client.answer() == [key, "v"]
