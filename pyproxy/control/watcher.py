"""What the parent knows of the shards.

One connection to each server, primaries and replicas. Once a second, all in step, each is looked at (nodewatch.py);
what they say goes out to the workers as one FleetLook, the whole state. A worker that complains of a shard has its
servers looked at at once. From the primaries' COMMAND tables the commands that the proxy may pass are learned (a new
Topology where that changes them).

    tick      tick + 0.3 s            tick + 1 s
     |-- looks --|-- FleetLook out        |-- looks ...       a worker's copy is at most 2 s old while servers answer

It never decides what follows from what it sees, never sends on its own (it is given callables), and no request
passes here.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable
from typing import Any

import msgspec

from pyproxy.access import Access
from pyproxy.control import judge
from pyproxy.control.nodewatch import NodeWatch, PrimaryWatch
from pyproxy.events import Event, emit
from pyproxy.looks import unfenced, writable
from pyproxy.messages import FleetLook, NodeLook, ShardLook, Topology
from pyproxy.shardmap import Shard, ShardMap

LOOK_EVERY_S = 1.0
LOOK_GAP_S = 0.2  # between the beginnings of two looks at one server, whoever complains
SEND_AFTER_S = 0.3  # from the tick: by then those that answer have answered

Learn = Callable[[list[Any]], list[Any]]
"""protocol.table.learn: the COMMAND replies of the primaries -> the rows of the commands that all of them know."""


class ShardWatch:
    """The servers of one shard, seen from here."""

    def __init__(self, shard: Shard, shard_map: ShardMap, access: Access, on_commands: Callable[[], None]) -> None:
        self.name = shard.name
        self.primary = PrimaryWatch(shard, shard_map, access, on_commands)
        self.replicas = [NodeWatch(shard.name, node, access, "slave", b"") for node in shard.replicas]
        self.complaints = {watch: asyncio.Event() for watch in self.nodes}
        self._since = self._began = time.monotonic()

    @property
    def nodes(self) -> list[NodeWatch]:
        """The configured primary first."""
        return [self.primary, *self.replicas]

    @property
    def look(self) -> ShardLook:
        """What was seen last."""
        primary = self.primary
        return ShardLook(
            self.name,
            str(primary.node),
            primary.look.reachable,
            primary.look.error,
            primary.info,
            primary.keyspace,
            primary.misplaced,
            primary.look.at or self._began,
            self._since,
            (primary.look, *self._replica_looks()),
        )

    def _replica_looks(self) -> list[NodeLook]:
        """With the lag as the primary knows it: they acknowledge every second, it pings them every 10 s only."""
        if not self.primary.look.reachable:
            return [watch.look for watch in self.replicas]
        lags = judge.acknowledged(self.primary.info)
        return [
            msgspec.structs.replace(watch.look, lag_s=lags.get(str(watch.node), watch.look.lag_s))
            for watch in self.replicas
        ]

    async def look_at(self, watch: NodeWatch) -> None:
        """Look at one of its servers."""
        before = writable(self.look)
        await watch.look_once([each.look for each in self.replicas] if watch is self.primary else ())
        if writable(self.look) != before:
            self._since = self.primary.look.at

    def complain(self) -> None:
        """Have its servers looked at at once."""
        for complaint in self.complaints.values():
            complaint.set()

    def __repr__(self) -> str:
        return f"<ShardWatch {self.name} {self.nodes}>"


class Watcher:
    """All shards. `topology` and `fleet_look` are the states that a new worker needs."""

    def __init__(
        self,
        shard_map: ShardMap,
        access: Access,
        learn: Learn,
        on_topology: Callable[[Topology], None],
        on_look: Callable[[FleetLook], None],
        every_s: float = LOOK_EVERY_S,
    ) -> None:
        self.topology = Topology(shard_map.version, list(shard_map.shards), [])
        self._learn = learn
        self._on_topology = on_topology
        self._on_look = on_look
        self._every_s = every_s
        self._looks = 0
        self._watches = {shard.name: ShardWatch(shard, shard_map, access, self._relearn) for shard in shard_map.shards}

    @property
    def fleet_look(self) -> FleetLook:
        return FleetLook(self._looks, time.monotonic(), [watch.look for watch in self._watches.values()])

    @property
    def misplaced(self) -> list[str]:
        """For each shard whose primary holds keys of another: which, and whose."""
        return [watch.primary.misplaced for watch in self._watches.values() if watch.primary.misplaced]

    @property
    def unfenced(self) -> dict[str, list[str]]:
        """For each shard with replicas, its servers that would take writes without any replica, if there are some."""
        found = {name: unfenced(watch.look) for name, watch in self._watches.items()}
        return {name: nodes for name, nodes in found.items() if nodes}

    async def look(self) -> None:
        """Look at all servers once, at the same time; returns within the deadlines, whatever they do."""
        async with asyncio.TaskGroup() as group:
            for shard in self._watches.values():
                for watch in shard.nodes:
                    group.create_task(shard.look_at(watch), name=f"look at {watch.node}")

    async def run(self) -> None:
        """Look and tell, until cancelled. A server that keeps us waiting delays no other's look, nor the telling."""
        try:
            async with asyncio.TaskGroup() as group:
                for shard in self._watches.values():
                    for watch in shard.nodes:
                        group.create_task(self._keep_looking(shard, watch), name=f"watch {watch.node}")
                while True:
                    await asyncio.sleep(self._until_tick(SEND_AFTER_S))
                    self._looks += 1
                    self._on_look(self.fleet_look)
        finally:
            self.close()

    def complain(self, shard: str) -> None:
        """A worker has trouble with this shard: look at its servers now, or as soon as LOOK_GAP_S has passed."""
        if shard in self._watches:
            self._watches[shard].complain()

    async def _keep_looking(self, shard: ShardWatch, watch: NodeWatch) -> None:
        loop = asyncio.get_running_loop()
        complaint = shard.complaints[watch]
        began = -math.inf
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._until_tick()):
                    await complaint.wait()
            await asyncio.sleep(max(0.0, began + LOOK_GAP_S - loop.time()))
            complaint.clear()
            began = loop.time()
            await shard.look_at(watch)

    def _until_tick(self, after_s: float = 0.0) -> float:
        """Seconds until the next tick of the loop's clock, and `after_s`: all that wait by it are in step."""
        now = asyncio.get_running_loop().time()
        return (math.floor((now - after_s) / self._every_s) + 1) * self._every_s + after_s - now

    def _relearn(self) -> None:
        """A primary's commands changed: what follows from all that answered goes out if it is something else."""
        primaries = [watch.primary for watch in self._watches.values()]
        learned = self._learn([primary.commands for primary in primaries if primary.commands is not None])
        if learned != self.topology.learned:
            self.topology = Topology(self.topology.version + 1, self.topology.shards, learned)
            emit(Event.TOPOLOGY, version=self.topology.version, learned=len(learned))
            self._on_topology(self.topology)

    def close(self) -> None:
        for shard in self._watches.values():
            for watch in shard.nodes:
                watch.close()

    def __repr__(self) -> str:
        up = sum(watch.primary.look.reachable for watch in self._watches.values())
        return f"<Watcher {up} of {len(self._watches)} shards up>"
