import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
from msgspec.structs import replace

from protocol import table
from pyproxy import events, filling
from pyproxy.access import Access
from pyproxy.config import BackendAccess
from pyproxy.control.health import node_monitor
from pyproxy.control.health.busy import BusyServers
from pyproxy.control.health.detector import parse_info
from pyproxy.control.health.monitor import CHECK_EVERY_S, CHECK_GAP_S, HealthMonitor, ShardMonitor
from pyproxy.control.health.node_monitor import NodeMonitor, PrimaryMonitor
from pyproxy.fleet import HOST, Fleet
from pyproxy.hashing import slot
from pyproxy.health import state, writable
from pyproxy.messages import AtWork, FleetHealth, NodeHealth, ShardHealth, Topology, Work
from pyproxy.moves import MoveState
from pyproxy.shard_map import Node, Shard, ShardMap, parse_slots
from tests.faults import Hop
from tests.waiting import until

PLAIN = Access(BackendAccess())


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    """Two primaries of this test's own, which may be stopped and killed."""
    with Fleet(shards=2, replicas=0) as fleet:
        yield fleet


def shard_map(fleet: Fleet, order: tuple[int, ...] = (0, 1)) -> ShardMap:
    """The fleet's shards; with another order their primaries are swapped."""
    slots = [tuple(parse_slots(text) for text in live.slots) for live in fleet.shards]
    nodes = [Node(HOST, fleet.shards[index].primary.port) for index in order]
    return ShardMap(1, tuple(Shard(f"s{i}", nodes[i], (), slots[i]) for i in range(len(nodes))))


@pytest.fixture
def replicated() -> Iterator[Fleet]:
    """One primary with two replicas, of this test's own."""
    with Fleet(shards=1, replicas=2) as fleet:
        yield fleet


def replicated_map(fleet: Fleet) -> ShardMap:
    live = fleet.shards[0]
    replicas = tuple(Node(HOST, each.port) for each in live.replicas)
    return ShardMap(1, (Shard("s0", Node(HOST, live.primary.port), replicas, ((0, 16383),)),))


def key_of(index: int, fleet: Fleet) -> str:
    """A key of that shard."""
    shard = shard_map(fleet).shards[index]
    return next(key for key in map(str, range(10_000)) if shard.owns(slot(key.encode())))


class Seen:
    """A health monitor, and what it sent."""

    def __init__(self, shards: ShardMap, every_s: float = CHECK_EVERY_S, work: BusyServers | None = None) -> None:
        self.topologies: list[Topology] = []
        self.healths: list[FleetHealth] = []
        self.learned_from: list[int] = []
        self.monitor = HealthMonitor(
            shards, PLAIN, self.learn, self.topologies.append, self.healths.append, every_s, work=work
        )

    def learn(self, replies: list[Any]) -> list[Any]:
        self.learned_from.append(len(replies))
        return table.learn(replies)

    def told(self, index: int) -> ShardHealth:
        """A shard as the last check that was told has it; before that, as the first check saw it."""
        return (self.healths[-1] if self.healths else self.monitor.fleet_health).shards[index]

    def now(self, index: int) -> ShardHealth:
        """A shard as it was seen last, told or not."""
        return self.monitor.fleet_health.shards[index]

    def __repr__(self) -> str:
        return repr([(shard.reachable, shard.error, shard.misplaced) for shard in self.monitor.fleet_health.shards])


@asynccontextmanager
async def monitoring(
    shards: ShardMap, every_s: float = CHECK_EVERY_S, work: BusyServers | None = None
) -> AsyncIterator[Seen]:
    """A health monitor that has checked once, and goes on."""
    seen = Seen(shards, every_s, work)
    await seen.monitor.check_health()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(seen.monitor.run())
        yield seen
        task.cancel()


async def checked_once(shards: ShardMap) -> HealthMonitor:
    monitor = Seen(shards).monitor
    await monitor.check_health()
    monitor.close()
    return monitor


async def test_the_first_check_knows_info_and_keyspace_of_each_primary(fleet: Fleet) -> None:
    fleet.shards[0].primary.ask("SET", key_of(0, fleet), "x")
    health = (await checked_once(shard_map(fleet))).fleet_health
    assert [shard.name for shard in health.shards] == ["s0", "s1"]
    assert all(shard.reachable and not shard.error and not shard.misplaced for shard in health.shards)
    assert health.shards[0].node == fleet.shards[0].primary.address
    assert health.shards[0].info["tcp_port"] == str(fleet.shards[0].primary.port)
    assert int(health.shards[0].info["used_memory"]) > 0
    assert {"cmdstat_ping", "errorstat_ERR"} & health.shards[0].info.keys()  # everything, and not only the default
    assert health.shards[0].keyspace[0]["keys"] == 1
    assert health.shards[1].keyspace == {}


async def test_a_primary_that_is_down_is_said_to_be_and_the_others_are_seen(fleet: Fleet) -> None:
    fleet.shards[0].primary.kill()
    down, up = (await checked_once(shard_map(fleet))).fleet_health.shards
    assert (down.reachable, down.error) == (False, "connection refused")
    assert up.reachable


async def test_a_primary_that_hangs_holds_the_check_no_longer_than_its_deadlines(fleet: Fleet) -> None:
    fleet.shards[0].primary.pause()
    hangs, up = (await checked_once(shard_map(fleet))).fleet_health.shards
    assert (hangs.reachable, hangs.error) == (False, "no reply within 1 s")
    assert up.reachable


async def test_a_primary_that_asks_for_a_password_is_down_in_its_own_words(fleet: Fleet) -> None:
    fleet.shards[0].primary.ask("CONFIG", "SET", "requirepass", "secret")
    health = (await checked_once(shard_map(fleet))).fleet_health.shards[0]
    assert not health.reachable
    assert health.error.startswith("NOAUTH")


# --- keys that belong elsewhere ---------------------------------------------------------------------------------------


def keys_of(index: int, fleet: Fleet, count: int) -> list[str]:
    """So many of that shard."""
    shard = shard_map(fleet).shards[index]
    return [key for key in map(str, range(10_000)) if shard.owns(slot(key.encode()))][:count]


def fill(fleet: Fleet, index: int, count: int = 10, at: int | None = None) -> None:
    """Keys of the one shard, there or at another."""
    for key in keys_of(index, fleet, count):
        fleet.shards[index if at is None else at].primary.ask("SET", key, "x")


async def test_swapped_endpoints_are_found_and_named_with_the_owner(fleet: Fleet) -> None:
    fill(fleet, 0)
    monitor = await checked_once(shard_map(fleet, order=(1, 0)))
    here, there = fleet.shards[0].primary.address, fleet.shards[1].primary.address
    (misplaced,) = monitor.misplaced
    assert misplaced.startswith(f"shard s1 ({here}) holds ")
    assert misplaced.endswith(f", which belongs to shard s0 ({there})")


async def test_keys_of_every_database_are_sampled(fleet: Fleet) -> None:
    fill(fleet, 0, at=1)
    for key in keys_of(0, fleet, 10):
        fleet.shards[1].primary.ask("MOVE", key, "9")
    (misplaced,) = (await checked_once(shard_map(fleet))).misplaced
    assert "in database 9" in misplaced


async def test_a_shard_that_an_operator_accepts_is_used_whatever_its_keys(fleet: Fleet) -> None:
    fill(fleet, 0)
    monitor = HealthMonitor(shard_map(fleet, order=(1, 0)), PLAIN, table.learn, print, print, accepts=["s1"])
    await monitor.check_health()
    monitor.close()
    assert monitor.misplaced == []
    assert "keys of other shards" in monitor.fleet_health.shards[1].stray


async def test_keys_of_a_shard_that_slots_move_to_are_judged_when_the_moves_are_over(fleet: Fleet) -> None:
    fill(fleet, 0, at=1)
    placed = shard_map(fleet)
    monitor = HealthMonitor(placed, PLAIN, table.learn, print, print, moving=["s1"])
    await monitor.check_health()
    assert (monitor.misplaced, monitor.fleet_health.shards[1].stray) == ([], "")
    monitor.follow(placed, ())
    await monitor.check_health()
    monitor.close()
    assert "keys of other shards" in monitor.fleet_health.shards[1].stray


async def test_keys_at_home_are_no_misplacement(fleet: Fleet) -> None:
    for index in (0, 1):
        fill(fleet, index)
    monitor = await checked_once(shard_map(fleet))
    assert monitor.misplaced == []
    assert [shard.stray for shard in monitor.fleet_health.shards] == ["", ""]


@pytest.mark.parametrize("at_home", [0, 100])
async def test_a_few_keys_of_another_shard_are_an_alarm_and_take_none_out_of_service(
    at_home: int, fleet: Fleet
) -> None:
    """A script wrote them, without declaring them."""
    fill(fleet, 1, at_home)
    fill(fleet, 0, 2, at=1)
    health = (await checked_once(shard_map(fleet))).fleet_health.shards[1]
    if at_home == 0:  # else they may not be among those that were sampled
        assert "such as" in health.stray and "belongs to shard s0" in health.stray
    assert (health.misplaced, writable(health)) == ("", True)


async def test_a_primary_that_was_well_is_not_refused_at_a_reconnect_whatever_was_written_to_it(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    """`for i=1,40 do redis.call('set', 'job:'..i, 1) end` on a shard that had none: it is the same server."""
    events.configure()
    server = fleet.shards[1].primary
    async with monitoring(shard_map(fleet)) as seen:
        fill(fleet, 0, 40, at=1)
        server.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await until("the alarm", lambda: seen.told(1).stray != "", lambda: seen)
        assert seen.told(1).misplaced == ""
        server.ask("FLUSHALL")
        await until("its end", lambda: seen.told(1).stray == "", lambda: seen)
    said = [line.split()[0] for line in capsys.readouterr().err.splitlines()]
    assert [event for event in said if "stray" in event or "misplaced" in event] == ["+stray-keys", "-stray-keys"]


async def test_a_primary_that_comes_back_with_the_keys_of_another_shard_is_marked_until_they_are_gone(
    fleet: Fleet,
) -> None:
    server = fleet.shards[1].primary
    fill(fleet, 0, 40, at=1)
    server.pause()
    async with monitoring(shard_map(fleet)) as seen:
        assert seen.monitor.misplaced == []
        server.resume()
        await until("the misplacement", lambda: seen.told(1).misplaced != "", lambda: seen)
        server.ask("FLUSHALL")
        await until("its end", lambda: seen.told(1).misplaced == "", lambda: seen)


# --- going on checking ------------------------------------------------------------------------------------------------


async def test_full_states_with_growing_versions_are_told(fleet: Fleet) -> None:
    async with monitoring(shard_map(fleet)) as seen:
        await until("three checks", lambda: len(seen.healths) >= 3, lambda: seen.healths)
    assert all(later.version > earlier.version and later.at > earlier.at for earlier, later in pairwise(seen.healths))
    uptimes = [health.shards[0].info["total_commands_processed"] for health in seen.healths]
    assert len(set(uptimes)) == len(uptimes)  # each was checked anew
    assert all(len(health.shards) == 2 for health in seen.healths)


async def test_while_clients_ask_nothing_what_has_not_changed_is_told_seldom(fleet: Fleet) -> None:
    told: list[FleetHealth] = []
    healths: list[bool] = []
    monitor = HealthMonitor(
        shard_map(fleet),
        PLAIN,
        table.learn,
        print,
        told.append,
        0.1,
        commands=lambda: 0,
        on_seen=lambda _shard, is_news: healths.append(is_news),
    )
    every_s = node_monitor.FULL_CHECK_EVERY_S
    async with asyncio.TaskGroup() as group:
        began = time.monotonic()
        task = group.create_task(monitor.run())
        await until("many checks", lambda: len(healths) > 2 * 30, lambda: healths)
        # at first, when both were seen to be up, and for each server each time that all was asked
        seldom = 3 + 2 * ((time.monotonic() - began) // every_s + 1)
        assert len(told) <= seldom
        assert healths.count(True) <= seldom  # of the others nothing need come
        fleet.shards[0].primary.kill()
        await until("its end to be told", lambda: not told[-1].shards[0].reachable, lambda: told[-1])
        task.cancel()


async def test_a_primary_that_hangs_does_not_delay_what_is_told_of_the_others(fleet: Fleet) -> None:
    async with monitoring(shard_map(fleet)) as seen:
        fleet.shards[0].primary.pause()
        await until("the hang", lambda: not seen.told(0).reachable, lambda: seen)
        times = {health.shards[1].at for health in seen.healths}
        assert len(times) == len(seen.healths)
        fleet.shards[0].primary.resume()
        await until("its end", lambda: seen.told(0).reachable, lambda: seen)


async def test_each_check_says_when_it_was_and_since_when_it_has_been_so(fleet: Fleet) -> None:
    async with monitoring(shard_map(fleet)) as seen:
        up = seen.monitor.fleet_health.shards[0].since
        fleet.shards[0].primary.kill()
        await until("its end", lambda: not seen.told(0).reachable, lambda: seen)
        down = seen.told(0)
        assert up < down.since == down.at
        await until("a later check", lambda: seen.told(0).at > down.at, lambda: seen)
        assert seen.told(0).since == down.since
        assert seen.told(1).since < down.since
        fleet.shards[0].primary.launch()
        await until("its return", lambda: seen.told(0).reachable, lambda: seen)
        assert seen.told(0).since > down.since


async def test_what_was_seen_last_stays_while_a_primary_is_down(fleet: Fleet) -> None:
    async with monitoring(shard_map(fleet)) as seen:
        fleet.shards[0].primary.kill()
        await until("the end of it", lambda: seen.told(0).error == "connection refused", lambda: seen)
        assert not seen.told(0).reachable
        assert seen.told(0).info["tcp_port"] == str(fleet.shards[0].primary.port)


async def test_what_changes_is_logged_once(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    events.configure()
    server = fleet.shards[0].primary
    async with monitoring(shard_map(fleet)) as seen:
        server.kill()
        await until("its end", lambda: not seen.monitor.fleet_health.shards[0].reachable, lambda: seen)
        told = len(seen.healths)
        await until("two more checks", lambda: len(seen.healths) >= told + 2, lambda: seen)
        server.launch()
        await until("its return", lambda: seen.monitor.fleet_health.shards[0].reachable, lambda: seen)
    lines = [line.split(" at=")[0] for line in capsys.readouterr().err.splitlines()]
    where = f"shard=s0 node={server.address}"
    assert lines[0].startswith(f"+sdown {where} role=master error=")
    assert lines[1].startswith(f"-sdown {where} role=master down_s=")
    assert lines[2].startswith(f"+reboot {where} run_id=")
    assert len(lines) == 3


async def test_a_primary_that_stands_still_for_what_a_worker_has_sent_is_busy_and_not_down(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    events.configure()
    server, work = fleet.shards[0].primary, BusyServers()
    async with monitoring(shard_map(fleet), work=work) as seen:
        since = time.monotonic()
        server.pause()
        work.update(0, AtWork({server.address: [Work("s0", since, since + 600)]}))
        await until("the silence", lambda: not seen.told(0).reachable, lambda: seen)
        assert state(seen.told(0)) == "busy"
        server.resume()
        await until("its end", lambda: seen.told(0).reachable, lambda: seen)
    lines = [line.split()[0] for line in capsys.readouterr().err.splitlines()]
    assert lines == ["+busy", "-busy"]


# --- replicas ---------------------------------------------------------------------------------------------------------


async def test_replicas_are_checked_beside_their_primary(replicated: Fleet) -> None:
    (health,) = (await checked_once(replicated_map(replicated))).fleet_health.shards
    live = replicated.shards[0]
    assert [node.node for node in health.nodes] == [live.primary.address, *(each.address for each in live.replicas)]
    assert [node.role for node in health.nodes] == ["master", "slave", "slave"]
    assert all(node.reachable and node.unfenced for node in health.nodes)
    assert len({node.replid for node in health.nodes}) == 1


async def test_servers_without_a_minimum_of_replicas_are_named(replicated: Fleet) -> None:
    live = replicated.shards[0]
    live.replicas[0].ask("CONFIG", "SET", "min-replicas-to-write", "1")
    monitor = await checked_once(replicated_map(replicated))
    assert monitor.unfenced == {"s0": [live.primary.address, live.replicas[1].address]}


async def test_a_shard_without_replicas_has_nobody_to_be_fenced_from(fleet: Fleet) -> None:
    assert (await checked_once(shard_map(fleet))).unfenced == {}


async def test_a_replica_that_hangs_delays_nothing_and_is_seen_down_and_back(replicated: Fleet) -> None:
    async with monitoring(replicated_map(replicated)) as seen:
        replicated.shards[0].replicas[1].pause()
        await until("the hang", lambda: not seen.told(0).nodes[2].reachable, lambda: seen.told(0).nodes)
        assert seen.told(0).reachable
        assert seen.told(0).nodes[1].reachable
        replicated.shards[0].replicas[1].resume()
        await until("its return", lambda: seen.told(0).nodes[2].reachable, lambda: seen.told(0).nodes)


async def test_the_lag_of_a_replica_grows_while_its_link_is_cut_silently(replicated: Fleet) -> None:
    primary, replica = replicated.shards[0].primary, replicated.shards[0].replicas[0]
    with Hop(primary.port) as hop:
        replica.ask("REPLICAOF", HOST, hop.port)
        async with monitoring(replicated_map(replicated)) as seen:

            def lagging(least: int, most: int) -> bool:
                _, cut, other = seen.told(0).nodes
                return cut.link == "up" and least <= cut.lag_s <= most and 0 <= other.lag_s <= 2

            await until("both links", lambda: lagging(0, 1), lambda: seen.told(0).nodes)
            hop.stall()
            await until("the lag, while the link is said to be up", lambda: lagging(3, 50), lambda: seen.told(0).nodes)
            hop.heal()
            await until("its end", lambda: lagging(0, 1), lambda: seen.told(0).nodes)


def shard_monitor(shard: Shard) -> ShardMonitor:
    busy = BusyServers()
    return ShardMonitor(
        shard,
        lambda shard: PrimaryMonitor(shard, ShardMap(1, (shard,)), PLAIN, busy, lambda: None),
        lambda shard, node: NodeMonitor(shard.name, node, PLAIN, busy, "slave", b""),
    )


def test_the_lag_is_what_the_primary_says_while_it_answers_and_else_the_replicas_own_word() -> None:
    replicas = Node(HOST, 7101), Node(HOST, 7102)
    shard = Shard("s0", Node(HOST, 7001), replicas, ((0, 16383),))
    monitor = shard_monitor(shard)
    for replica in monitor.replicas:
        replica.health = NodeHealth(str(replica.node), True, "", role="slave", link="up", lag_s=9)
    monitor.primary.info = {"slave0": "ip=127.0.0.1,port=7102,state=online,offset=14,lag=1"}
    monitor.primary.health = NodeHealth(str(shard.primary), True, "", role="master")
    assert [node.lag_s for node in monitor.health.nodes] == [-1, 9, 1]
    monitor.primary.health = NodeHealth(str(shard.primary), False, "connection refused", role="master")
    assert [node.lag_s for node in monitor.health.nodes] == [-1, 9, 9]


def test_a_shard_is_writable_since_its_new_primary_took_over() -> None:
    """And not since the old one ceased to be."""
    old, new = Node(HOST, 7001), Node(HOST, 7101)
    shard = Shard("s0", old, (new,), ((0, 16383),))
    monitor = shard_monitor(shard)
    monitor.primary.health = NodeHealth(str(old), False, "connection refused")
    monitor.replicas[0].health = NodeHealth(str(new), True, "", role="master")
    lost_since = monitor.health.since
    monitor.promoted(Shard("s0", new, (old,), ((0, 16383),)))
    assert writable(monitor.health)
    assert monitor.health.since > lost_since


# --- how fast a shard fills -------------------------------------------------------------------------------------------


@pytest.fixture
def sampled_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each full check is a sample, and any rate is said."""
    monkeypatch.setattr(filling, "SAMPLE_EVERY_S", 0.0)
    monkeypatch.setattr(filling, "CLEAR", 0.0)


async def seen_so_often(monitor: HealthMonitor, checks: int) -> list[bool]:
    """After so many full checks: whether it says of each shard how fast it fills."""
    for _ in range(checks):
        monitor.complain("s0")
        monitor.complain("s1")
        await monitor.check_health()
    return [shard.fill_rate is not None for shard in monitor.fleet_health.shards]


@pytest.mark.usefixtures("sampled_at_once")
async def test_how_fast_a_shard_fills_is_known_after_some_full_checks(fleet: Fleet) -> None:
    monitor = Seen(shard_map(fleet)).monitor
    assert await seen_so_often(monitor, filling.LEAST_SAMPLES - 1) == [False, False]
    await monitor.check_health()
    assert [shard.fill_rate for shard in monitor.fleet_health.shards] == [None, None], "a light check says nothing"
    assert await seen_so_often(monitor, 1) == [True, True]
    monitor.close()


@pytest.mark.usefixtures("sampled_at_once")
async def test_it_is_not_known_while_slots_move_and_seen_anew_afterwards(fleet: Fleet) -> None:
    monitor = Seen(shard_map(fleet)).monitor
    await seen_so_often(monitor, filling.LEAST_SAMPLES)
    monitor.follow(shard_map(fleet), {"s0"})
    assert await seen_so_often(monitor, filling.LEAST_SAMPLES) == [False, True]
    monitor.follow(shard_map(fleet), ())
    assert await seen_so_often(monitor, filling.LEAST_SAMPLES - 1) == [False, True]
    assert await seen_so_often(monitor, 1) == [True, True]
    monitor.close()


@pytest.mark.usefixtures("sampled_at_once")
async def test_it_is_seen_anew_after_a_promotion(replicated: Fleet) -> None:
    (shard,) = replicated_map(replicated).shards
    monitor = Seen(replicated_map(replicated)).monitor
    assert await seen_so_often(monitor, filling.LEAST_SAMPLES) == [True]
    primary, *others = shard.replicas
    monitor.promoted(Shard("s0", primary, (shard.primary, *others), shard.slots))
    assert await seen_so_often(monitor, 0) == [False]
    assert await seen_so_often(monitor, filling.LEAST_SAMPLES) == [True]
    monitor.close()


# --- moves of slots ---------------------------------------------------------------------------------------------------


async def test_what_becomes_of_a_move_is_told_though_nothing_is_new_of_the_shards(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_monitor, "FULL_CHECK_EVERY_S", 3600.0)
    move = MoveState("m1", "s0", "s1", "copying", 0.0, False, 0.0)
    moves: list[MoveState] = []
    told: list[FleetHealth] = []
    monitor = HealthMonitor(
        shard_map(fleet),
        PLAIN,
        table.learn,
        lambda _: None,
        told.append,
        0.05,
        commands=lambda: 0,
        moves=lambda: list(moves),
    )
    await monitor.check_health()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(monitor.run())
        for now in ([move], [replace(move, share=0.5)], []):
            moves[:] = now
            await until(f"{now} to be told", lambda: bool(told) and told[-1].moves == moves, lambda: told[-1:])
        task.cancel()


# --- complaints -------------------------------------------------------------------------------------------------------


async def test_a_complaint_has_every_server_of_the_shard_checked_before_its_time(replicated: Fleet) -> None:
    primary, replica = replicated.shards[0].primary, replicated.shards[0].replicas[0]
    async with monitoring(replicated_map(replicated), every_s=3600) as seen:
        replica.ask("REPLICAOF", "NO", "ONE")
        primary.ask("REPLICAOF", HOST, replica.port)
        assert [node.role for node in seen.now(0).nodes] == ["master", "slave", "slave"]
        seen.monitor.complain("s0")
        expected = ["slave", "master", "slave"]
        await until("the check", lambda: [n.role for n in seen.now(0).nodes] == expected, lambda: seen.now(0).nodes)


async def test_many_complaints_make_no_more_than_five_checks_a_second(fleet: Fleet) -> None:
    """And only at the shard that is complained of."""

    def healths(index: int) -> int:
        said = fleet.shards[index].primary.ask("INFO", "commandstats")
        assert isinstance(said, bytes)
        found = re.search("cmdstat_ping:calls=([0-9]+)", said.decode())
        return int(found[1]) if found else 0

    loop = asyncio.get_running_loop()
    async with monitoring(shard_map(fleet), every_s=3600) as seen:
        before, other, began = healths(0), healths(1), loop.time()

        def complained_enough() -> bool:
            seen.monitor.complain("s0")
            return healths(0) - before >= 5

        await until("five checks", complained_enough, lambda: healths(0))
        assert healths(0) - before <= (loop.time() - began) / CHECK_GAP_S + 1
        assert healths(1) == other


async def test_a_complaint_of_a_shard_that_is_none_is_passed_over(fleet: Fleet) -> None:
    (await checked_once(shard_map(fleet))).complain("s9")


# --- commands ---------------------------------------------------------------------------------------------------------


async def test_commands_are_learned_from_all_primaries_that_answer(fleet: Fleet) -> None:
    fleet.shards[1].primary.kill()
    async with monitoring(shard_map(fleet)) as seen:
        assert seen.learned_from == [1]
        fleet.shards[1].primary.launch()
        await until("the second", lambda: seen.learned_from[-1] == 2, lambda: seen.learned_from)


async def test_a_new_topology_is_told_when_what_was_learned_changes_and_only_then(fleet: Fleet) -> None:
    healths: list[FleetHealth] = []
    topologies: list[Topology] = []
    monitor = HealthMonitor(
        shard_map(fleet), PLAIN, lambda replies: [["cmd", len(replies)]], topologies.append, healths.append
    )
    fleet.shards[1].primary.kill()
    await monitor.check_health()
    assert monitor.topology == Topology(2, list(shard_map(fleet).shards), [["cmd", 1]])
    fleet.shards[1].primary.start()
    await monitor.check_health()
    assert [topology.version for topology in topologies] == [2, 3]
    assert topologies[-1].learned == [["cmd", 2]]
    fleet.shards[1].primary.kill()
    fleet.shards[1].primary.start()
    await monitor.check_health()  # finds the old connection lost
    await monitor.check_health()  # connects again, and is told the same commands
    assert monitor.fleet_health.shards[1].reachable
    assert len(topologies) == 2
    monitor.close()


async def test_a_monitor_that_is_cancelled_leaves_no_connection(fleet: Fleet) -> None:
    def connections() -> str:
        info = fleet.shards[0].primary.ask("INFO", "clients")
        assert isinstance(info, bytes)
        return parse_info(info.decode())[0]["connected_clients"]

    async with monitoring(shard_map(fleet)) as seen:
        await until("a check", lambda: bool(seen.healths), lambda: seen)
        assert connections() == "2"
    await until("nobody but who asks", lambda: connections() == "1", connections)
