"""What a proxy notices of its servers besides their death, and what it says of it."""

import re
from collections.abc import Iterator

import pytest

from pyproxy.fleet import HOST, Fleet, Proxy, Server, wait_until
from tests.e2e.rig import Connection, Keys, error, proxy_info, wait_for_info, wait_for_line


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    """Two shards with a replica each, of this test's own."""
    with Fleet(shards=2, replicas=1) as fleet:
        yield fleet


@pytest.fixture
def proxy(fleet: Fleet) -> Iterator[Proxy]:
    with Proxy(fleet) as proxy:
        yield proxy


@pytest.fixture
def conn(proxy: Proxy) -> Iterator[Connection]:
    with Connection(proxy.port) as conn:
        yield conn


def demote(primary: Server, to: Server) -> None:
    """To a replica of a server that is none of its shard, so there is nobody to go on with."""
    primary.ask("REPLICAOF", HOST, to.port)


def test_a_primary_that_became_a_replica_is_said_to_be_demoted(fleet: Fleet, proxy: Proxy, conn: Connection) -> None:
    live = fleet.shards[0]
    demote(live.primary, fleet.shards[1].primary)
    wait_for_line(proxy, rf"\+role-change shard=s0 node={live.primary.address} was=master now=slave configured=master")
    wait_for_info(conn, "the state", lambda info: ",state=demoted," in info["shard_s0"])
    assert ",state=up," in proxy_info(conn)["shard_s1"]


def test_a_primary_that_others_have_replaced_is_followed(fleet: Fleet, proxy: Proxy, conn: Connection) -> None:
    live, key = fleet.shards[0], Keys(proxy).one(0)
    live.replicas[0].ask("REPLICAOF", "NO", "ONE")
    live.primary.ask("REPLICAOF", HOST, live.replicas[0].port)
    wait_for_line(proxy, rf"\+switch-master shard=s0 .*new={live.replicas[0].address} new_epoch=1")
    wait_until("a write to pass", lambda: conn.ask("SET", key, "new") == b"OK", proxy.tail)
    assert live.replicas[0].ask("GET", key) == b"new"
    wait_for_info(conn, "the node", lambda info: f"node={live.replicas[0].address},state=up," in info["shard_s0"])


@pytest.mark.parametrize("code", ["READONLY", "NOREPLICAS", "MASTERDOWN"])
def test_a_refusal_of_the_server_goes_to_the_client_as_it_came_and_to_the_parent_as_a_complaint(
    fleet: Fleet, proxy: Proxy, conn: Connection, code: str
) -> None:
    live, key = fleet.shards[0], Keys(proxy).one(0)
    match code:
        case "READONLY":
            demote(live.primary, fleet.shards[1].primary)
        case "NOREPLICAS":
            live.primary.ask("CONFIG", "SET", "min-replicas-to-write", "2")
        case "MASTERDOWN":
            live.primary.ask("CONFIG", "SET", "replica-serve-stale-data", "no")
            live.replicas[0].kill()
            live.primary.ask("REPLICAOF", HOST, live.replicas[0].port)
    asked = ("GET", key) if code == "MASTERDOWN" else ("SET", key, "x")
    with Connection(live.primary.port) as direct:
        wait_until("the refusal", lambda: code in str(direct.ask(*asked)), lambda: str(direct.ask(*asked)))
        expected = error(direct.ask(*asked))
    assert [error(conn.ask(*asked)) for _ in range(100)] == [expected] * 100
    line = rf'\+complaint index=0 shard=s0 node={live.primary.address} what="answered -{code}"'
    wait_for_line(proxy, line)


def test_the_same_refusal_is_complained_of_once_a_second_and_not_for_each_request(
    fleet: Fleet, proxy: Proxy, conn: Connection
) -> None:
    live, keys = fleet.shards[0], Keys(proxy)
    live.primary.ask("CONFIG", "SET", "min-replicas-to-write", "2")
    conn.send(*[("SET", key, "x") for key in keys.on(0, 1000)])
    assert {error(reply)[:10] for reply in conn.reads(1000)} == {"NOREPLICAS"}
    wait_for_line(proxy, r"\+complaint ")
    assert proxy.log.read_text().count("+complaint ") <= 10  # a machine may take a while for them


def test_an_error_about_the_request_is_no_complaint(proxy: Proxy, fleet: Fleet, conn: Connection) -> None:
    first, second = Keys(proxy).on(0, 2)
    assert conn.ask("SET", first, "x") == b"OK"
    assert error(conn.ask("INCR", first)).startswith("ERR ")
    assert error(conn.ask("LPUSH", first, "x")).startswith("WRONGTYPE ")
    fleet.shards[0].primary.ask("CONFIG", "SET", "min-replicas-to-write", "2")
    assert error(conn.ask("SET", second, "x")).startswith("NOREPLICAS ")
    wait_for_line(proxy, r"\+complaint ")
    assert set(re.findall(r'\+complaint .* what="(.*)"', proxy.log.read_text())) == {"answered -NOREPLICAS"}


def test_at_the_start_it_says_which_servers_are_unfenced(fleet: Fleet, proxy: Proxy, conn: Connection) -> None:
    assert re.search(r"\+unfenced shards=s0,s1 nodes=4 expected=", proxy.log.read_text())
    for server in (fleet.shards[0].primary, *fleet.shards[0].replicas):
        server.ask("CONFIG", "SET", "min-replicas-to-write", "1")
    wait_for_info(conn, "the fence", lambda info: info["shard_s0"].endswith(",replicas=1,unfenced=0"))
    assert proxy_info(conn)["shard_s1"].endswith(",replicas=1,unfenced=2")


def test_a_shard_that_is_complained_of_is_looked_at_more_often(fleet: Fleet, proxy: Proxy, conn: Connection) -> None:
    key, primaries = Keys(proxy).one(0), [shard.primary for shard in fleet.shards]
    primaries[0].ask("CONFIG", "SET", "min-replicas-to-write", "2")
    for primary in primaries:
        primary.ask("CONFIG", "RESETSTAT")

    def healths(primary: Server) -> int:
        said = primary.ask("INFO", "commandstats")
        assert isinstance(said, bytes)
        found = re.search("cmdstat_ping:calls=([0-9]+)", said.decode())
        return int(found[1]) if found else 0

    def oftener() -> bool:
        assert error(conn.ask("SET", key, "x")).startswith("NOREPLICAS ")
        return healths(primaries[0]) >= healths(primaries[1]) + 3

    wait_until("more looks at it", oftener, lambda: str([healths(each) for each in primaries]))
