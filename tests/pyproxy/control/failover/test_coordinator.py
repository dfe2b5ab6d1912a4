"""The parent's part of a promotion, with real servers and without workers: what workers would be told, and when.

What clients see of it is in tests/e2e/failover/test_promotion.py; the barrier is in test_supervisor.py.
"""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from pyproxy.access import Access
from pyproxy.config import Config
from pyproxy.control.failover.coordinator import Coordinator
from pyproxy.control.failover.state_file import StateFile
from pyproxy.control.health.monitor import HealthMonitor
from pyproxy.control.http.admin import Refused
from pyproxy.fleet import HOST, Fleet, Server
from pyproxy.messages import Settings, Topology
from pyproxy.shard_map import Node
from tests.waiting import until

QUICK = {"promoter": "replicaof", "down_after_s": 0.4, "min_between_s": 0.0}


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    """One shard of this test's own: a primary and two replicas."""
    with Fleet(shards=1, replicas=2) as fleet:
        yield fleet


@dataclasses.dataclass
class Run:
    """A coordinator, and what it sent to workers, in its order."""

    coordinator: Coordinator
    published: list[Topology]

    async def until(self, what: str, found: Callable[[Topology], bool]) -> Topology:
        """The first topology told of which this is true."""
        await until(what, lambda: any(map(found, self.published)), lambda: self.published)
        return next(each for each in self.published if found(each))


@asynccontextmanager
async def coordinating(fleet: Fleet, **promotion: object) -> AsyncIterator[Run]:
    options = {**QUICK, **promotion}
    config = Config.parse(fleet.config(promotion=options).encode())  # type: ignore[arg-type]
    access = Access(config.backend)
    published: list[Topology] = []
    monitor = HealthMonitor(
        config.shard_map(), access, lambda _replies: [], lambda _topology: None, lambda _health: None,
        on_seen=lambda shard, is_news: coordinator.on_seen(shard, is_news),
    )  # fmt: skip

    def tell(state: Topology | Settings) -> None:
        if isinstance(state, Topology):
            published.append(state)

    coordinator = Coordinator(config, access, monitor, tell, lambda: None)
    await monitor.check_health()
    async with coordinator.coordinating():
        watching = asyncio.create_task(monitor.run())
        try:
            yield Run(coordinator, published)
        finally:
            watching.cancel()
            await asyncio.wait([watching])


def node(server: Server) -> Node:
    return Node(HOST, server.port)


def is_open(topology: Topology, epoch: int) -> bool:
    return topology.gates[0].epoch == epoch and not topology.gates[0].closed


async def test_in_peace_the_gates_are_open_and_a_refuge_is_named(fleet: Fleet) -> None:
    live = fleet.shards[0]
    async with coordinating(fleet) as run:
        published = await run.until("a fallback", lambda topology: topology.gates[0].fallback is not None)
    assert published.shards[0].primary == node(live.primary)
    assert is_open(published, 0)
    assert published.gates[0].fallback in [node(each) for each in live.replicas]


async def test_a_killed_primary_is_replaced_behind_a_closed_gate(fleet: Fleet) -> None:
    live = fleet.shards[0]
    async with coordinating(fleet) as run:
        live.primary.kill()
        last = await run.until("the end", lambda topology: is_open(topology, 1))
    assert last.shards[0].primary in map(node, live.replicas)
    assert last.shards[0].replicas[-1] == node(live.primary) or node(live.primary) in last.shards[0].replicas
    steps = [(each.gates[0].epoch, bool(each.gates[0].closed), each.shards[0].primary) for each in run.published]
    closed, switched, opened = (0, True, node(live.primary)), (1, True, last.shards[0].primary), steps[-1]
    assert steps.index(closed) < steps.index(switched) < steps.index(opened)
    assert [each.version for each in run.published] == list(range(1, len(run.published) + 1))


async def test_a_planned_promotion_swaps_the_roles(fleet: Fleet) -> None:
    live = fleet.shards[0]
    wanted = live.replicas[1]
    async with coordinating(fleet) as run:
        said = await run.coordinator.promote("s0", wanted.address)
        assert said == f"s0: {wanted.address} is primary, epoch 1"
        assert is_open(run.published[-1], 1)
        assert run.published[-1].shards[0].primary == node(wanted)
    assert wanted.ask("ROLE")[0] == b"master"  # type: ignore[index]
    assert live.primary.ask("ROLE")[0] == b"slave"  # type: ignore[index]


async def test_what_was_seen_before_a_promotion_undoes_nothing(fleet: Fleet) -> None:
    """The roles that the last looks show are those of before, until each server was looked at again."""
    async with coordinating(fleet) as run:
        for epoch in range(1, 6):
            await run.coordinator.promote("s0", "")
            assert is_open(run.published[-1], epoch)
            before = len(run.published)
            await until("looks at all", lambda: run.published[-1].gates[0].fallback is not None, lambda: run.published)
            assert not any(each.gates[0].closed for each in run.published[before:])


async def test_a_planned_promotion_that_is_refused_leaves_all_as_it_was(fleet: Fleet) -> None:
    live = fleet.shards[0]
    live.replicas[0].ask("REPLICAOF", HOST, live.replicas[1].port)  # in step, but not of the primary's own
    live.replicas[0].ask("CONFIG", "SET", "replica-priority", "0")
    async with coordinating(fleet) as run:
        with pytest.raises(Refused, match="cannot be promoted"):
            await run.coordinator.promote("s0", live.replicas[0].address)
        assert is_open(run.coordinator.topology, 0)
    assert live.primary.ask("ROLE")[0] == b"master"  # type: ignore[index]


@pytest.mark.parametrize(
    ("shard", "to", "why"),
    [
        ("s9", "", "expected one of the shards s0"),
        ("s0", "nonsense", "expected host:port"),
        ("s0", "127.0.0.1:1", "is no server of s0"),
    ],
)
async def test_a_command_that_makes_no_sense_is_refused(fleet: Fleet, shard: str, to: str, why: str) -> None:
    async with coordinating(fleet) as run:
        with pytest.raises(Refused, match=why):
            await run.coordinator.promote(shard, to)


async def test_a_pause_closes_the_gate_until_it_is_resumed(fleet: Fleet) -> None:
    async with coordinating(fleet) as run:
        await run.coordinator.pause("s0")
        gate = run.published[-1].gates[0]
        assert gate.closed == "is paused by an operator"
        assert gate.hold
        with pytest.raises(Refused, match="paused"):
            await run.coordinator.promote("s0", "")
        await run.coordinator.resume("s0")
        assert is_open(run.published[-1], 0)
        with pytest.raises(Refused):
            await run.coordinator.resume("s0")


async def test_a_restarted_proxy_goes_on_with_the_primary_of_its_state_file(fleet: Fleet, tmp_path: Path) -> None:
    wanted, state = fleet.shards[0].replicas[0], str(tmp_path / "state.json")
    async with coordinating(fleet, state_file=state) as run:
        await run.coordinator.promote("s0", wanted.address)
    async with coordinating(fleet, state_file=state) as run:
        assert run.published[0].shards[0].primary == node(wanted)
        assert is_open(run.published[0], 1)


async def test_what_a_client_has_set_is_in_the_state_file_at_once(fleet: Fleet, tmp_path: Path) -> None:
    state = str(tmp_path / "state.json")
    async with coordinating(fleet, state_file=state) as run:
        run.coordinator.settings.configure("notify-keyspace-events", "xE", lambda: None)
        assert StateFile(state).load().settings == {"notify-keyspace-events": "xE"}


async def test_a_restarted_proxy_finishes_what_its_predecessor_began(fleet: Fleet) -> None:
    """It died after REPLICAOF NO ONE, before anything else was done, and it kept no state."""
    live = fleet.shards[0]
    live.primary.kill()
    live.replicas[0].ask("REPLICAOF", "NO", "ONE")
    async with coordinating(fleet) as run:
        last = await run.until("the end", lambda topology: is_open(topology, 1))
        assert last.shards[0].primary == node(live.replicas[0])
        await until(
            "the other replica to be taken along",
            lambda: b"%d" % live.replicas[0].port in str(live.replicas[1].ask("ROLE")).encode(),
            lambda: live.replicas[1].ask("ROLE"),
        )


async def test_a_primary_that_comes_back_is_made_a_replica(fleet: Fleet) -> None:
    live = fleet.shards[0]
    async with coordinating(fleet) as run:
        live.primary.kill()
        await run.until("the end", lambda topology: is_open(topology, 1))
        live.primary.start()
        await until(
            "the old primary to follow",
            lambda: live.primary.ask("ROLE")[0] == b"slave",  # type: ignore[index]
            lambda: live.primary.ask("ROLE"),
        )
