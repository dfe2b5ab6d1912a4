"""One server at a time, checked when the test says so."""

import asyncio
import re
import time
from collections.abc import Iterator

import pytest

from pyproxy import events
from pyproxy.access import Access
from pyproxy.config import BackendAccess
from pyproxy.control.health import detector, node_monitor
from pyproxy.control.health.busy import BusyServers
from pyproxy.control.health.node_monitor import NodeMonitor, PrimaryMonitor
from pyproxy.fleet import HOST, Fleet, Server
from pyproxy.messages import NodeHealth
from pyproxy.shard_map import Node, Shard, ShardMap
from tests.waiting import until

PLAIN = Access(BackendAccess())


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    """A primary and a replica of this test's own."""
    with Fleet(shards=1, replicas=1) as fleet:
        yield fleet


@pytest.fixture
def primary(fleet: Fleet) -> Server:
    return fleet.shards[0].primary


@pytest.fixture
def replica(fleet: Fleet) -> Server:
    return fleet.shards[0].replicas[0]


def monitor_primary(server: Server) -> PrimaryMonitor:
    shard = Shard("s0", Node(HOST, server.port), (), ((0, 16383),))
    return PrimaryMonitor(shard, ShardMap(1, (shard,)), PLAIN, BusyServers(), lambda: None)


def monitor_replica(server: Server) -> NodeMonitor:
    return NodeMonitor("s0", Node(HOST, server.port), PLAIN, BusyServers(), "slave", b"")


async def checked(monitor: NodeMonitor) -> NodeHealth:
    await monitor.check_once()
    return monitor.health


async def check_until(monitor: NodeMonitor, what: str, pattern: str) -> NodeHealth:
    """Check until the health, as text, matches; AssertionError with the last one otherwise."""
    deadline = time.monotonic() + 20.0
    while not re.search(pattern, repr(await checked(monitor))):
        assert time.monotonic() < deadline, f"waited for {what}; seen: {monitor.health}"
        await asyncio.sleep(0.01)
    return monitor.health


def logged(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The names of the events since it was asked last."""
    return [line.split(" ")[0] for line in capsys.readouterr().err.splitlines()]


async def test_a_primary_and_its_replica_are_seen_with_one_history(primary: Server, replica: Server) -> None:
    primary.ask("SET", "key", "value")
    first, second = monitor_primary(primary), monitor_replica(replica)
    await checked(first)
    await check_until(second, "the key", "keys=1")
    assert (first.health.role, second.health.role) == ("master", "slave")
    assert first.health.replid == second.health.replid != ""
    assert len(first.health.run_id) == 40
    assert first.health.offset > 0
    assert (second.health.link, second.health.priority, second.health.syncing) == ("up", 100, False)
    assert first.health.keys == 1


async def test_a_primary_made_a_replica_from_outside_is_noticed(
    primary: Server, replica: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    events.configure()
    monitor = monitor_primary(primary)
    await checked(monitor)
    assert logged(capsys) == []
    replica.ask("REPLICAOF", "NO", "ONE")
    primary.ask("REPLICAOF", HOST, replica.port)
    assert (await checked(monitor)).role == "slave"
    assert logged(capsys) == ["+role-change"]


async def test_a_primary_that_restarted_empty_is_an_alarm_until_it_is_a_replica_in_step(
    primary: Server, replica: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    events.configure()
    for number in range(10):
        primary.ask("SET", f"key{number}", "value")
    first, second = monitor_primary(primary), monitor_replica(replica)
    await checked(first)
    await check_until(second, "the keys", "keys=10")
    replica.ask("REPLICAOF", "NO", "ONE")  # or it would throw its keys away as well
    primary.kill()
    await checked(first)
    primary.start()
    await first.check_once([second.health])
    assert first.health.reachable
    assert first.health.lost_keys == 10
    assert logged(capsys) == ["+sdown", "+reboot", "+restarted-empty"]
    primary.ask("REPLICAOF", HOST, replica.port)
    await check_until(first, "the link", "link='up'")
    assert (first.health.lost_keys, first.health.keys) == (0, 10)
    assert sorted(logged(capsys)) == ["+role-change", "-restarted-empty"]


async def test_a_replica_that_is_stopped_is_seen_down_and_back(
    replica: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    events.configure()
    monitor = monitor_replica(replica)
    await checked(monitor)
    replica.pause()
    health = await checked(monitor)
    assert (health.reachable, health.error, health.role) == (False, "no reply within 1 s", "slave")
    replica.resume()
    await check_until(monitor, "its return", "reachable=True")
    assert logged(capsys) == ["+sdown", "-sdown"]


async def test_a_minimum_of_replicas_is_seen(primary: Server) -> None:
    monitor = monitor_primary(primary)
    assert (await checked(monitor)).unfenced
    primary.ask("CONFIG", "SET", "min-replicas-to-write", "1")
    await check_until(monitor, "the count of good replicas, made once a second", "good_replicas=1")
    assert not monitor.health.unfenced


async def test_a_primary_that_cannot_save_and_refuses_writes_is_noticed_and_its_recovery_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    events.configure()
    with Fleet(shards=1, replicas=0) as fleet:  # a replica would have it save for the first copy
        primary = fleet.shards[0].primary
        in_the_way = fleet.directory / f"{primary.name}.rdb" / "in the way"
        in_the_way.mkdir(parents=True)
        monitor = monitor_primary(primary)
        primary.ask("BGSAVE")

        def failed() -> bool:
            said = primary.ask("INFO", "persistence")
            return isinstance(said, bytes) and b"rdb_last_bgsave_status:err" in said

        await until("the failure", failed, primary.tail)
        await checked(monitor)
        assert monitor.health.reachable
        assert monitor.health.misconf == ""  # there are no save points, so nothing is refused
        primary.ask("CONFIG", "SET", "save", "3600 1")
        health = await checked(monitor)
        assert health.reachable  # reads are served
        assert health.misconf.startswith("MISCONF ")
        in_the_way.rmdir()
        in_the_way.parent.rmdir()
        primary.ask("BGSAVE")
        await check_until(monitor, "the end", "misconf=''")
        assert logged(capsys) == ["+misconf", "-misconf"]


# --- what is asked ----------------------------------------------------------------------------------------------------


async def full_checks(monitor: NodeMonitor, checks: int) -> int:
    """How many of so many checks are full."""
    before = monitor.full_checks
    for _ in range(checks):
        assert (await checked(monitor)).reachable
    return monitor.full_checks - before


async def test_while_nothing_goes_on_little_is_asked(replica: Server) -> None:
    monitor = monitor_replica(replica)
    await check_until(monitor, "the link", "link='up'")
    await checked(monitor)
    await checked(monitor)
    assert await full_checks(monitor, 5) <= 1  # that one as FULL_CHECK_EVERY_S had passed, on a machine that was slow


async def test_a_check_with_nothing_new_is_the_one_before_at_another_time(primary: Server, replica: Server) -> None:
    for monitor in (monitor_primary(primary), monitor_replica(replica)):
        await checked(monitor)
        changes, before = monitor.changes, monitor.health
        for _ in range(5):
            await checked(monitor)
        assert monitor.changes == changes
        assert monitor.health.at > before.at and monitor.health.answered_at > before.answered_at
        assert detector.timeless(monitor.health) == detector.timeless(before)


async def test_what_only_the_replication_tells_is_seen_at_the_next_check(primary: Server, replica: Server) -> None:
    monitor = monitor_replica(replica)
    for _ in range(3):
        await checked(monitor)
    changes = monitor.changes
    for priority in (7, 100, 7):
        replica.ask("CONFIG", "SET", "replica-priority", priority)
        assert (await checked(monitor)).priority == priority
    assert monitor.changes == changes + 3


async def test_what_is_not_asked_for_is_checked_seldom(primary: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_monitor, "FULL_CHECK_EVERY_S", 0.05)
    monitor = monitor_primary(primary)
    await checked(monitor)
    primary.ask("CONFIG", "SET", "maxmemory", "1gb")
    deadline = time.monotonic() + 20.0
    while monitor.info["maxmemory"] != str(1 << 30):
        assert time.monotonic() < deadline, f"waited for maxmemory; seen: {monitor.info['maxmemory']}"
        await checked(monitor)


@pytest.mark.parametrize("checks", [1, 5])
async def test_keys_that_are_written_are_counted_at_the_next_check(primary: Server, checks: int) -> None:
    monitor = monitor_primary(primary)
    for _ in range(checks):
        await checked(monitor)
    primary.ask("SET", "key", "value")
    assert (await checked(monitor)).keys == 1


async def test_a_server_of_which_somebody_complains_is_asked_for_all(primary: Server) -> None:
    monitor = monitor_primary(primary)
    for _ in range(3):
        await checked(monitor)
    before = monitor.full_checks
    monitor.refused("OOM")
    await checked(monitor)
    assert monitor.full_checks == before + 1


async def test_a_replica_that_has_gone_is_gone_from_what_is_known_of_its_primary(
    primary: Server, replica: Server
) -> None:
    monitor = monitor_primary(primary)
    for _ in range(3):
        await checked(monitor)
    assert "slave0" in monitor.info
    replica.ask("REPLICAOF", "NO", "ONE")
    await until("it to leave", lambda: b"connected_slaves:0" in str(primary.ask("INFO", "replication")).encode(), str)
    await checked(monitor)
    assert "slave0" not in monitor.info


async def test_nothing_is_written_by_checking(primary: Server) -> None:
    monitor = monitor_primary(primary)
    primary.ask("CONFIG", "RESETSTAT")
    for _ in range(3):
        await checked(monitor)
    said = primary.ask("INFO", "commandstats")
    assert isinstance(said, bytes)
    asked = set(re.findall("cmdstat_([a-z|]+):", said.decode()))
    assert asked - {"config|resetstat", "replconf"} == {"ping", "info", "command"}
