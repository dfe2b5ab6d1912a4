"""A shard that is down answers for itself, and only for itself."""

from collections.abc import Iterator

import pytest

from pyproxy.fleet import Fleet, Proxy, Server, wait_until
from tests.e2e.rig import Connection, Keys, error, killed, wait_for_info

DOWN = 1
"""The index of the shard that is killed."""


@pytest.fixture(scope="module")
def proxy(fleet: Fleet) -> Iterator[Proxy]:
    with Proxy(fleet, timeouts={"connect_s": 5.0, "reply_s": 5.0, "silence_s": 5.0, "reconnect_max_s": 0.2}) as proxy:
        yield proxy


@pytest.fixture
def dead(fleet: Fleet, conn: Connection, keys: Keys) -> Iterator[Server]:
    """A primary that is down, known to be so; up and served again afterwards."""
    server = fleet.shards[DOWN].primary
    server.kill()
    key = keys.one(DOWN)
    wait_until("the shard to be down", lambda: "is down" in str(conn.ask("GET", key)), lambda: "")
    yield server
    if not server.running:
        server.start()
    wait_until("the shard to be served again", lambda: conn.ask("GET", key) is None, lambda: str(conn.ask("GET", key)))


def test_its_error_names_the_shard_the_node_and_the_way_out(conn: Connection, keys: Keys, dead: Server) -> None:
    line = f"TRYAGAIN shard s{DOWN} ({dead.address}) is down: connection refused, applied=no; retry later"
    key = keys.one(DOWN)
    # at first it may say how the connection was lost, but soon what the attempts since then were told
    wait_until(f"{line!r}", lambda: error(conn.ask("GET", key)) == line, lambda: str(conn.ask("GET", key)))


def test_a_write_to_it_is_refused_as_not_applied(conn: Connection, keys: Keys, dead: Server) -> None:
    key = keys.one(DOWN, "refused")
    assert error(conn.ask("SET", key, "v")).startswith(f"TRYAGAIN shard s{DOWN} ")
    dead.start()
    wait_until("the shard to be served", lambda: not isinstance(conn.ask("GET", key), Exception), lambda: "")
    assert conn.ask("GET", key) is None


@pytest.mark.usefixtures("dead")
def test_only_its_own_requests_fail_and_all_keep_their_order(conn: Connection, keys: Keys) -> None:
    here, there, down = keys.one(0), keys.one(2), keys.one(DOWN)
    conn.send(("SET", here, 1), ("GET", down), ("SET", there, 2), ("SET", down, 3), ("GET", here), ("GET", there))
    replies = conn.reads(6)
    assert (replies[0], replies[2], replies[4], replies[5]) == (b"OK", b"OK", b"1", b"2")
    assert error(replies[1]).startswith("TRYAGAIN ")
    assert error(replies[3]).startswith("TRYAGAIN ")


@pytest.mark.usefixtures("dead")
def test_a_split_write_with_a_dead_shard_is_refused_before_anything_is_sent(
    fleet: Fleet, conn: Connection, keys: Keys
) -> None:
    split = [keys.one(0, "whole"), keys.one(DOWN, "whole"), keys.one(2, "whole")]
    assert error(conn.ask("MSET", *[word for key in split for word in (key, "v")])).startswith(
        f"TRYAGAIN shard s{DOWN}: "
    )
    assert conn.ask("GET", split[0]) is None
    assert conn.ask("GET", split[2]) is None
    for index, key in ((0, split[0]), (2, split[2])):
        assert fleet.shards[index].primary.ask("EXISTS", key) == 0


def test_a_split_write_whose_shard_dies_meanwhile_is_uncertain_and_names_the_shards(
    fleet: Fleet, conn: Connection, keys: Keys
) -> None:
    server = fleet.shards[DOWN].primary
    split = [keys.one(index, "dying") for index in (0, DOWN, 2)]
    assert conn.ask("MGET", *split) == [None, None, None]
    server.pause()
    conn.send(("MSET", *[word for key in split for word in (key, "v")]), ("MGET", *split))
    wait_for_two_applied(fleet, split)
    server.kill()
    said = error(conn.read())
    assert said.startswith(f"UNCERTAIN shard s{DOWN}: ")
    assert said.endswith("; other shards may have applied their part: s0, s2")
    assert error(conn.read()).startswith(f"TRYAGAIN shard s{DOWN}: "), "never a nil"
    server.start()
    wait_until("the shard to be served", lambda: conn.ask("MGET", *split) == [b"v", None, b"v"], lambda: "")
    assert conn.ask("DEL", *split) == 2


def wait_for_two_applied(fleet: Fleet, split: list[str]) -> None:
    for index in (0, 2):
        server, key = fleet.shards[index].primary, split[index]
        wait_until(f"{key} to be set", lambda server=server, key=key: server.ask("GET", key) == b"v", lambda: "")  # type: ignore[misc]


@pytest.mark.usefixtures("dead")
@pytest.mark.parametrize("command", ["MGET", "EXISTS", "TOUCH", "DEL", "UNLINK"])
def test_a_split_command_with_a_dead_shard_is_an_error_that_names_it(
    conn: Connection, keys: Keys, command: str
) -> None:
    said = error(conn.ask(command, keys.one(0), keys.one(DOWN), keys.one(2)))
    assert said.startswith(f"TRYAGAIN shard s{DOWN}: ")
    assert "applied=no" in said


@pytest.mark.usefixtures("dead")
@pytest.mark.parametrize("argv", [("DBSIZE",), ("KEYS", "*"), ("FLUSHDB",), ("FLUSHALL",)])
def test_a_command_to_all_shards_is_an_error_that_names_it(conn: Connection, argv: tuple[str, ...]) -> None:
    assert error(conn.ask(*argv)).startswith(f"TRYAGAIN shard s{DOWN}: ")


@pytest.mark.usefixtures("dead")
def test_what_is_answered_here_needs_no_shard(conn: Connection) -> None:
    assert conn.ask("PING") == b"PONG"
    wait_for_info(conn, "INFO to count the shard as down", lambda info: info["shards_down"] == "1")


def test_a_worker_that_pauses_before_it_connects_again_does_so_when_the_health_check_sees_the_server(
    fleet: Fleet,
) -> None:
    pause = {"reconnect_min_s": 600.0, "reconnect_max_s": 600.0}
    with Proxy(fleet, timeouts=pause) as proxy, Connection(proxy.port) as conn:
        key = Keys(proxy).one(0)
        with killed(fleet.shards[0].primary, proxy):
            assert error(conn.ask("SET", key, "v")).startswith("TRYAGAIN shard s0 ")
        assert conn.ask("SET", key, "v") == b"OK"


def test_it_is_served_again_when_it_is_back(conn: Connection, keys: Keys, dead: Server) -> None:
    dead.start()
    key = keys.one(DOWN)
    wait_until("the shard to be served", lambda: conn.ask("SET", key, "again") == b"OK", lambda: "")
    assert conn.ask("GET", key) == b"again"
    assert conn.ask("DEL", key) == 1


def test_in_every_protocol_and_database_that_was_in_use(
    proxy: Proxy, keys: Keys, conn: Connection, dead: Server
) -> None:
    with Connection(proxy.port) as other:
        other.send(("HELLO", 3), ("SELECT", 5), ("GET", keys.one(DOWN)))
        other.reads(2)
        assert error(other.read()).startswith(f"TRYAGAIN shard s{DOWN} ")
        dead.start()
        wait_until("the shard to be served", lambda: conn.ask("GET", keys.one(DOWN)) is None, lambda: "")
        assert other.ask("GET", keys.one(DOWN)) is None


def test_a_server_that_restarts_between_requests_costs_no_request(
    fleet: Fleet, conn: Connection, keys: Keys, proxy: Proxy
) -> None:
    """An idle connection that is lost is replaced at once, not when the next request finds it gone."""
    key = keys.one(DOWN, "restart")
    assert conn.ask("SET", key, "before") == b"OK"
    server = fleet.shards[DOWN].primary
    server.kill()
    server.start()
    wait_for_info(conn, "all connections to be there", lambda info: int(info["backend_connections"]) >= 3)
    wait_until("the shard to be served", lambda: conn.ask("GET", key) is None, lambda: str(conn.ask("GET", key)))
    assert conn.ask("SET", key, "after") == b"OK"
