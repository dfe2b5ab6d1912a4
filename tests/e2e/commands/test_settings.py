"""CONFIG SET notify-keyspace-events through the proxy: all servers get it, and a client waits but a moment for them."""

import os
import signal
from collections.abc import Iterator

import hiredis
import pytest

from pyproxy.fleet import Fleet, Proxy, Server, Table, reserve_port, wait_until
from tests.e2e.process.test_status import Status
from tests.e2e.rig import PATIENCE_S, PATIENT, Connection, Keys, error, proxy_info, wait_for_line
from tests.processes import command_line, family

NAME = "notify-keyspace-events"
PROMOTION: Table = {
    "promoter": "replicaof", "down_after_s": 0.5, "on_promotion": "hold", "hold_s": PATIENCE_S,
    "hold_incident_s": PATIENCE_S,
}  # fmt: skip


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    """Two shards of this test's own, with two replicas each."""
    with Fleet(shards=2, replicas=2) as fleet:
        yield fleet


def shown(server: Server) -> object:
    reply = server.ask("CONFIG", "GET", NAME)
    return reply[1] if isinstance(reply, list) else reply


def wait_set(servers: list[Server], value: bytes, proxy: Proxy) -> None:
    def done() -> bool:
        return all(shown(each) == value for each in servers)

    wait_until(f"{value!r} on all", done, lambda: f"{list(map(shown, servers))}\n{proxy.tail(20)}", PATIENCE_S)


def test_it_is_set_on_primaries_and_replicas_and_every_worker_says_so(fleet: Fleet) -> None:
    with Proxy(fleet, None, 2) as proxy:
        wait_until("both workers", lambda: "+ready " in proxy.log.read_text(), proxy.tail)
        with Connection(proxy.port) as one, Connection(proxy.port) as other:
            assert {proxy_info(each)["worker"] for each in (one, other)} == {"0", "1"}
            for setter, reader, flags, shown_as in ((one, other, "Ex", b"xE"), (other, one, "KEA", b"AKE")):
                reply = [NAME.encode(), shown_as]
                assert setter.ask("config", "set", NAME, flags) == b"OK"
                assert setter.ask("config", "get", NAME) == reply
                wait_until("the other worker", lambda: reader.ask("CONFIG", "GET", NAME) == reply, proxy.tail)  # noqa: B023
                wait_set(fleet.servers, shown_as, proxy)


def test_what_is_written_after_the_answer_is_an_event(fleet: Fleet) -> None:
    with Proxy(fleet) as proxy, Connection(proxy.port) as conn, Connection(proxy.port) as subscriber:
        keys = [key for shard in range(2) for key in Keys(proxy).on(shard, 20)]
        subscriber.ask("PSUBSCRIBE", "__keyevent@*__:set")
        for number in range(5):
            assert conn.ask("CONFIG", "SET", NAME, "KEA") == b"OK"
            conn.send(*[("SET", key, number) for key in keys])
            heard = [each[3] for each in subscriber.reads(len(keys)) if isinstance(each, list)]
            assert sorted(heard) == sorted(key.encode() for key in keys)
            assert conn.reads(len(keys)) == [b"OK"] * len(keys)
            assert conn.ask("CONFIG", "SET", NAME, "") == b"OK"


def test_a_client_is_answered_within_the_bound_though_servers_stand_still(fleet: Fleet) -> None:
    """All of them, then one alone."""
    with Proxy(fleet, timeouts=PATIENT) as proxy, Connection(proxy.port) as conn:
        for stopped, flags, shown_as in ((fleet.servers, "Ex", b"xE"), (fleet.servers[:1], "KEA", b"AKE")):
            for server in stopped:
                server.pause()
            try:
                assert conn.ask("CONFIG", "SET", NAME, flags) == b"OK"
                assert conn.ask("CONFIG", "GET", NAME) == [NAME.encode(), shown_as]
            finally:
                for server in stopped:
                    server.resume()
            wait_set(fleet.servers, shown_as, proxy)


def test_a_client_is_answered_within_the_bound_though_nobody_sets_anything(fleet: Fleet) -> None:
    with Proxy(fleet) as proxy, Connection(proxy.port) as conn:
        os.kill(proxy.pid, signal.SIGSTOP)  # the parent, whose word a worker waits for
        try:
            assert conn.ask("CONFIG", "SET", NAME, "Ex") == b"OK"
        finally:
            os.kill(proxy.pid, signal.SIGCONT)
        wait_set(fleet.servers, b"xE", proxy)


def test_several_settings_at_once_are_all_set_or_none(fleet: Fleet) -> None:
    name = "hash-max-listpack-entries"
    before = fleet.servers[0].ask("CONFIG", "GET", name)
    assert isinstance(before, list)
    with Proxy(fleet, config_set=[name]) as proxy, Connection(proxy.port) as conn:
        reply = conn.ask("CONFIG", "SET", name, "many", NAME, "Ex")
        assert error(reply).startswith("ERR shard s0: CONFIG SET failed")
        for more, words in (
            (("maxmemory", "1"), "is not served"), ((name.upper(), "5"), "duplicate"), ((NAME, "Eq"), "Invalid")
        ):  # fmt: skip
            assert words in error(conn.ask("CONFIG", "SET", name, "66", *more))
        assert conn.ask("CONFIG", "GET", name, NAME) == [*before, NAME.encode(), b""]
        assert conn.ask("CONFIG", "SET", name, "66", NAME.upper(), "Ex") == b"OK"
        assert conn.ask("CONFIG", "GET", name) == [name.encode(), b"66"]
        wait_set(fleet.servers, b"xE", proxy)
        assert [server.ask("CONFIG", "GET", name) for server in fleet.servers] == [[name.encode(), b"66"]] * 6


def test_invalid_flags_and_other_settings_are_refused_and_change_nothing(fleet: Fleet) -> None:
    with Proxy(fleet) as proxy, Connection(proxy.port) as conn:
        with pytest.raises(hiredis.ReplyError) as redis_says:
            fleet.servers[0].ask("CONFIG", "SET", NAME, "Eq")
        assert error(conn.ask("CONFIG", "SET", NAME, "Eq")) == str(redis_says.value)
        for refused in (("SET", "maxmemory", "1"), ("REWRITE",)):
            name = f"config|{refused[0].lower()}"
            assert error(conn.ask("CONFIG", *refused)).startswith(f"ERR command '{name}' is not served by this proxy: ")
        assert conn.ask("CONFIG", "GET", NAME) == [NAME.encode(), b""]


def test_a_setting_that_the_operator_allows_reaches_all_servers_and_those_that_come_back(fleet: Fleet) -> None:
    name = "hash-max-listpack-entries"

    def seen() -> list[object]:
        return [server.ask("CONFIG", "GET", name) for server in fleet.servers]

    with Proxy(fleet, config_set=[name]) as proxy, Connection(proxy.port) as conn:
        assert conn.ask("CONFIG", "SET", name.upper(), "77") == b"OK"
        assert conn.ask("CONFIG", "GET", name) == [name.encode(), b"77"]
        all_have_it = [[name.encode(), b"77"]] * len(fleet.servers)
        wait_until("all to have it", lambda: seen() == all_have_it, lambda: f"{seen()}\n{proxy.tail(20)}")
        fleet.servers[0].kill()
        fleet.servers[0].start()
        wait_until("it to have it again", lambda: seen() == all_have_it, lambda: f"{seen()}\n{proxy.tail(20)}")


def test_what_the_servers_say_of_a_value_is_the_answer_and_nothing_is_kept(fleet: Fleet) -> None:
    name = "hash-max-listpack-entries"
    with Proxy(fleet, config_set=[name]) as proxy, Connection(proxy.port) as conn:
        with pytest.raises(hiredis.ReplyError) as refused:
            fleet.servers[0].ask("CONFIG", "SET", name, "many")
        plain = str(refused.value)
        reply = error(conn.ask("CONFIG", "SET", name, "many"))
        assert reply.startswith("ERR shard s0: CONFIG SET failed") and plain.partition(" ")[2] in reply
        assert conn.ask("CONFIG", "GET", name) == fleet.servers[0].ask("CONFIG", "GET", name)
        assert "is not served" in error(conn.ask("CONFIG", "SET", "maxmemory", "1mb"))


def test_a_promoted_primary_has_it_and_publishes(fleet: Fleet) -> None:
    """Even where somebody had switched it off at the replicas."""
    live = fleet.shards[0]
    with Proxy(fleet, promotion=PROMOTION) as proxy, Connection(proxy.port) as conn:
        key = Keys(proxy).one(0)
        assert conn.ask("CONFIG", "SET", NAME, "E$") == b"OK"
        wait_set(fleet.servers, b"$E", proxy)
        assert conn.ask("SET", key, "before") == b"OK"
        for replica in live.replicas:
            replica.ask("CONFIG", "SET", NAME, "")
        live.primary.kill()
        wait_for_line(proxy, r"\+link-lost ")  # one that is in flight when it dies is -UNCERTAIN
        assert conn.ask("SET", key, "after") == b"OK"
        promoted = next(each for each in live.replicas if each.says_master())
        wait_set([promoted], b"$E", proxy)
        with Connection(promoted.port) as subscriber:
            assert subscriber.ask("SUBSCRIBE", "__keyevent@0__:set") == [b"subscribe", b"__keyevent@0__:set", 1]
            assert conn.ask("SET", key, "once more") == b"OK"
            assert subscriber.read() == [b"message", b"__keyevent@0__:set", key.encode()]
        live.primary.revive(promoted)
        wait_set([live.primary], b"$E", proxy)


def test_it_outlives_a_restart_of_the_proxy_that_has_a_state_file(fleet: Fleet) -> None:
    options: Table = {"state_file": str(fleet.directory / "state.json")}
    with Proxy(fleet, promotion=options) as proxy, Connection(proxy.port) as conn:
        assert conn.ask("CONFIG", "SET", NAME, "Ex") == b"OK"
        wait_set(fleet.servers, b"xE", proxy)
    for server in fleet.servers:
        server.ask("CONFIG", "SET", NAME, "")
    with Proxy(fleet, promotion=options) as proxy, Connection(proxy.port) as conn:
        assert conn.ask("CONFIG", "GET", NAME) == [NAME.encode(), b"xE"]
        wait_set(fleet.servers, b"xE", proxy)


def test_a_worker_that_is_started_again_knows_it(fleet: Fleet) -> None:
    with Proxy(fleet) as proxy:
        with Connection(proxy.port) as conn:
            assert conn.ask("CONFIG", "SET", NAME, "Ex") == b"OK"
            wait_set(fleet.servers, b"xE", proxy)
        worker = next(pid for pid, _ in family(proxy.pid) if "pyproxy.worker" in command_line(pid))
        os.kill(worker, signal.SIGKILL)
        proxy.wait_for_pong(proxy.port)
        with Connection(proxy.port) as conn:
            assert conn.ask("CONFIG", "GET", NAME) == [NAME.encode(), b"xE"]


def test_a_server_that_forbids_it_is_an_alarm_and_all_else_goes_on(fleet: Fleet) -> None:
    first, *others = fleet.servers
    first.ask("ACL", "SETUSER", "default", "-config")
    with reserve_port() as keeper:
        port: int = keeper.getsockname()[1]
        with Proxy(fleet, http={"listen": f"127.0.0.1:{port}"}) as proxy, Connection(proxy.port) as conn:
            status = Status(proxy, port)
            assert conn.ask("CONFIG", "SET", NAME, "Ex") == b"OK"
            wait_set(others, b"xE", proxy)
            alarm = f"{NAME} of {first.address} is not set to 'xE': NOPERM "

            def alarms() -> list[list[str]]:
                return [shard["alarms"] for shard in status.get("/shards").body["shards"]]

            wait_until("the alarm", lambda: alarm in str(alarms()[0]), lambda: f"{alarms()}\n{proxy.tail()}")
            assert alarms()[1] == []
            assert conn.ask("SET", Keys(proxy).one(0), "v") == b"OK"
            assert status.get("/shards").status == 200
