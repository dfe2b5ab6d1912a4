"""What the parent knows of the shards.

There is one connection to each server, primaries and replicas. Once a second all servers are checked, in step
(node_monitor.py). What they say goes out to the workers as one FleetHealth, the whole state; while clients ask nothing
and nothing happens, that is every few seconds. When a worker complains of a shard, its servers are checked at once. The
commands that the proxy may pass are learned from the primaries' COMMAND tables (a change makes a new Topology).

    tick      tick + 0.3 s            tick + 1 s
     |-- checks -|-- FleetHealth out        |-- checks ...      a worker's copy is at most 2 s old while clients ask

It never decides what follows from what it sees, never sends on its own (it is given callables), and no request
passes here.
"""

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import msgspec

from pyproxy.access import Access
from pyproxy.control.health.busy import BusyServers
from pyproxy.control.health.node_monitor import DEADLINE_S, NodeMonitor, PrimaryMonitor
from pyproxy.deadline import Deadline
from pyproxy.events import Event, emit
from pyproxy.filling import Filling
from pyproxy.health import integer, unfenced, writable
from pyproxy.messages import FleetHealth, NodeHealth, ShardHealth, Topology
from pyproxy.moves import MoveState
from pyproxy.shard_map import Node, Shard, ShardMap

CHECK_EVERY_S = 1.0
CHECK_GAP_S = 0.1  # between the beginnings of two checks of one server, whoever complains
SEND_AFTER_S = 0.3  # from the tick: by then those that answer have answered

Learn = Callable[[list[Any]], list[Any]]
"""protocol.table.learn: the COMMAND replies of the primaries -> the rows of the commands that all of them know."""


class CheckSchedule:
    """When one server is checked: with all others in each tick, and by a task of its own where that does not do."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.due = asyncio.Event()  # the task is to check it
        self.began = -math.inf  # its last check
        self.is_checked = False  # and it has not ended
        self._next = False  # the task is to check it when the light check that goes on has ended

    def ask(self) -> None:
        """Have the task check it."""
        if self.is_checked:
            self._next = True
        else:
            self.due.set()

    def begins(self) -> None:
        """A check begins."""
        self.is_checked, self.began = True, asyncio.get_running_loop().time()

    def ends(self) -> None:
        """It has ended."""
        self.is_checked = False
        if self._next:
            self._next = False
            self.due.set()


class LightChecks:
    """The light checks of one tick, which have one deadline."""

    def __init__(self) -> None:
        self._open: dict[CheckSchedule, tuple[Callable[[], None], Callable[[], None]]] = {}
        self._deadline = Deadline(DEADLINE_S, self._give_up)

    def add(self, schedule: CheckSchedule, give_up: Callable[[], None], failed: Callable[[], None]) -> None:
        """This check has begun. `give_up` ends it as one without an answer; `failed` is called where it does not."""
        self._open[schedule] = give_up, failed

    def remove(self, schedule: CheckSchedule) -> None:
        """It has ended."""
        self._open.pop(schedule, None)
        self.end_if_over()

    def end_if_over(self) -> None:
        """Without a check that goes on there is no deadline."""
        if not self._open:
            self._deadline.cancel()

    def _give_up(self) -> None:
        for schedule, (give_up, failed) in list(self._open.items()):
            give_up()
            if schedule in self._open:  # what it was answered could not be taken
                failed()


class ShardMonitor:
    """The monitors of the servers of one shard. `primary` and `replica` make one for a server in that role."""

    def __init__(
        self,
        shard: Shard,
        primary: Callable[[Shard], PrimaryMonitor],
        replica: Callable[[Shard, Node], NodeMonitor],
    ) -> None:
        self.name = shard.name
        self._make_primary = primary
        self._make_replica = replica
        self._assign_roles(shard)
        self.schedules = [CheckSchedule(node) for node in self._by_node]
        self._since = self._began = time.monotonic()
        self._is_writable = False
        self._filling = Filling()
        self._is_moving = False

    def _assign_roles(self, shard: Shard) -> None:
        self.primary = self._make_primary(shard)
        self.replicas = [self._make_replica(shard, node) for node in shard.replicas]
        self.nodes: list[NodeMonitor] = [self.primary, *self.replicas]  # the primary first
        self._by_node = {monitor.node: monitor for monitor in self.nodes}

    def monitor(self, node: Node) -> NodeMonitor:
        """The one of this server: another one after a promotion."""
        return self._by_node[node]

    def promoted(self, shard: Shard) -> None:
        """Another of its servers is the primary now; what was seen of each is kept."""
        before = self._by_node
        self._assign_roles(shard)
        for node, monitor in self._by_node.items():
            monitor.take_over(before[node])
        self.primary.trust()
        self._filling.begin_anew()
        self._review(time.monotonic())

    def set_moving(self, is_moving: bool) -> None:
        """Keys are on their way from or to it. How fast it fills meanwhile says nothing, nor does what was before."""
        if is_moving or self._is_moving:
            self._filling.begin_anew()
        self._is_moving = is_moving

    @property
    def health(self) -> ShardHealth:
        """What was seen last."""
        return self._seen(self.node_healths)

    def _seen(self, nodes: tuple[NodeHealth, ...]) -> ShardHealth:
        primary = self.primary
        return ShardHealth(
            self.name,
            str(primary.node),
            primary.health.reachable,
            primary.health.error,
            primary.info,
            primary.keyspace,
            primary.misplaced,
            primary.health.at or self._began,
            self._since,
            nodes,
            stray=primary.stray,
            fill_rate=self._filling.rate,
        )

    def _review(self, at: float) -> None:
        """Whether it takes writes: since then, if that is new."""
        was_writable, self._is_writable = self._is_writable, writable(self._seen((self.primary.health,)))
        if self._is_writable != was_writable:
            self._since = at

    @property
    def node_healths(self) -> tuple[NodeHealth, ...]:
        """The primary's, then those of the replicas, with the lag as the primary knows it.

        They acknowledge every second, it pings them every 10 s only.
        """
        if not self.primary.health.reachable:
            return tuple(monitor.health for monitor in self.nodes)
        lags = self.primary.lags
        return (self.primary.health, *(_lagging(monitor.health, lags) for monitor in self.replicas))

    @property
    def state(self) -> object:
        """Equal while nothing but the time is new. Who acknowledges each second has a lag of 0 or 1."""
        lags = [0 if health.lag_s == 1 else health.lag_s for health in self.node_healths[1:]]
        return self._since, [(monitor.node, monitor.full_checks, monitor.changes) for monitor in self.nodes], lags

    async def check(self, monitor: NodeMonitor) -> bool:
        """Check one of its servers -> whether anything but the time is new."""
        is_news = self._compare(monitor)
        await monitor.check_once([each.health for each in self.replicas] if monitor is self.primary else ())
        return is_news()

    def begin_light_check(
        self, monitor: NodeMonitor, on_checked: Callable[[bool | None], None]
    ) -> Callable[[], None] | None:
        """As NodeMonitor's; `on_checked` is told whether anything but the time is new, or None: to be checked."""
        is_news = self._compare(monitor)
        return monitor.begin_light_check(lambda is_checked: on_checked(is_news() if is_checked else None))

    def _compare(self, monitor: NodeMonitor) -> Callable[[], bool]:
        """To be called after a check of this server: whether anything but the time is new since now."""
        full_checks, changes = monitor.full_checks, monitor.changes
        lag_s, lags = monitor.health.lag_s, self.primary.lags

        def is_news() -> bool:
            if self._by_node[monitor.node] is not monitor:
                monitor.close()  # a promotion has replaced it meanwhile
            if monitor.changes != changes:
                self._review(self.primary.health.at)
            if monitor is self.primary and monitor.full_checks != full_checks and not self._is_moving:
                self._filling.note(monitor.health.at, integer(monitor.info.get("used_memory")))
            lags_more = self.primary.lags != lags or (monitor.health.lag_s != lag_s and monitor.health.node not in lags)
            return lags_more or (monitor.full_checks, monitor.changes) != (full_checks, changes)

        return is_news

    def complain(self, node: str = "", code: str = "") -> None:
        """Have its servers checked at once. `node` has refused something with `code`, if with any."""
        if code and node == str(self.primary.node):
            self.primary.refused(code)
        self.require_full_check()
        for schedule in self.schedules:
            schedule.ask()

    def require_full_check(self) -> None:
        """Something happens: the next checks ask for all of INFO."""
        for monitor in self.nodes:
            monitor.require_full_check()

    def __repr__(self) -> str:
        return f"<ShardMonitor {self.name} {self.nodes}>"


class HealthMonitor:
    """All shards. `topology` and `fleet_health` are the states that a new worker needs."""

    def __init__(
        self,
        shard_map: ShardMap,
        access: Access,
        learn: Learn,
        on_topology: Callable[[Topology], None],
        on_health: Callable[[FleetHealth], None],
        every_s: float = CHECK_EVERY_S,
        *,
        work: BusyServers | None = None,
        accepts: Collection[str] = (),
        moving: Collection[str] = (),
        commands: Callable[[], int] | None = None,
        on_seen: Callable[[str, bool], None] = lambda _shard, _is_news: None,
        complete: Callable[[ShardHealth], ShardHealth] = lambda health: health,
        moves: Callable[[], list[MoveState]] = list,
    ) -> None:
        """`accepts`: the shards whose keys are theirs, whatever their slots; `moving`: as for `follow`.

        `work`: which servers are busy, as the workers report. `commands`: how many commands clients have sent so far
        (None: some each time); while they send none, less is asked. `on_seen` is called after each check of a server,
        with the shard's name and whether anything but the time is new. `complete` adds to the health of a shard what is
        known of its failover. `moves`: those that are under way."""
        self.topology = Topology(shard_map.version, list(shard_map.shards), [])
        self._shard_map = shard_map
        self._access = access
        self._accepts = frozenset(accepts)
        self._moving = frozenset(moving)
        self._work = work or BusyServers()
        self._group: asyncio.TaskGroup | None = None  # while it runs
        self._learn = learn
        self._on_topology = on_topology
        self._on_health = on_health
        self._commands = commands or itertools.count().__next__
        self._commands_before = 0
        self._on_seen = on_seen
        self._complete = complete
        self._moves = moves
        self._every_s = every_s
        self._version = 0
        self._sent: object = None
        self._monitors: dict[str, ShardMonitor] = {}
        self._blanks: dict[str, ShardHealth] = {}
        for shard in shard_map.shards:
            self._add(shard)

    def _add(self, shard: Shard) -> None:
        monitor = self._monitors[shard.name] = ShardMonitor(
            shard,
            lambda shard: PrimaryMonitor(
                shard,
                self._shard_map,
                self._access,
                self._work,
                self._relearn,
                shard.name in self._accepts,
                shard.name in self._moving,
            ),
            lambda shard, node: NodeMonitor(shard.name, node, self._access, self._work, "slave", b""),
        )
        monitor.set_moving(shard.name in self._moving)
        self._blanks[shard.name] = ShardHealth(shard.name, "", False, "", {}, {}, "")
        if self._group is not None:
            self._start(self._group, monitor)

    def _start(self, group: asyncio.TaskGroup, shard: ShardMonitor) -> None:
        for schedule in shard.schedules:
            group.create_task(self._keep_checking(shard, schedule), name=f"monitor {schedule.node}")

    def follow(self, shard_map: ShardMap, moving: Collection[str]) -> None:
        """Slots have other owners, or shards were added. `moving`: shards that have keys of slots on their way from or
        to them, so that their keys are not judged."""
        self._shard_map, self._moving = shard_map, frozenset(moving)
        for shard in shard_map.shards:
            if shard.name not in self._monitors:
                self._add(shard)
            else:
                self._monitors[shard.name].primary.follow(shard, shard_map, shard.name in self._moving)
                self._monitors[shard.name].set_moving(shard.name in self._moving)

    @property
    def fleet_health(self) -> FleetHealth:
        healths = [self._complete(monitor.health) for monitor in self._monitors.values()]
        return FleetHealth(self._version, time.monotonic(), healths, self._moves())

    def nodes(self, shard: str) -> dict[Node, NodeHealth]:
        """The last checks of the servers of this shard, the primary first."""
        monitor = self._monitors[shard]
        return {each.node: health for each, health in zip(monitor.nodes, monitor.node_healths, strict=True)}

    def promoted(self, shard: Shard) -> None:
        """The primary of this shard is another one now."""
        self._monitors[shard.name].promoted(shard)

    @property
    def misplaced(self) -> list[str]:
        """For each shard whose primary holds mostly keys of others: which, and whose."""
        return [monitor.primary.misplaced for monitor in self._monitors.values() if monitor.primary.misplaced]

    @property
    def unfenced(self) -> dict[str, list[str]]:
        """For each shard with replicas, its servers that would take writes without any replica, if there are some."""
        found = {name: unfenced(monitor.health) for name, monitor in self._monitors.items()}
        return {name: nodes for name, nodes in found.items() if nodes}

    async def check_health(self) -> None:
        """Check all servers once, at the same time; returns within the deadlines, whatever they do."""
        async with asyncio.TaskGroup() as group:
            for shard in self._monitors.values():
                for monitor in shard.nodes:
                    group.create_task(self._check(shard, monitor.node), name=f"check {monitor.node}")

    async def run(self) -> None:
        """Check and send, until cancelled. A server that keeps us waiting delays no other check, nor the sending."""
        try:
            async with asyncio.TaskGroup() as group:
                for shard in self._monitors.values():
                    self._start(group, shard)
                self._group = group
                group.create_task(self._keep_ticking(), name="ticks")
                while True:
                    await asyncio.sleep(self._until_tick(SEND_AFTER_S))
                    self._notice_commands()
                    self._send()
        finally:
            self._group = None
            self.close()

    def _notice_commands(self) -> None:
        """Clients send commands: whatever they do, the next checks ask for all of INFO."""
        commands = self._commands()
        if commands != self._commands_before:
            self._commands_before = commands
            for monitor in self._monitors.values():
                monitor.require_full_check()

    def _send(self) -> None:
        """Send what was seen, unless nothing but the time is new."""
        shards = [(monitor.state, self._complete(self._blanks[name])) for name, monitor in self._monitors.items()]
        news = shards, self._moves()
        if news != self._sent:
            self._sent = news
            self._version += 1
            self._on_health(self.fleet_health)

    def complain(self, shard: str, node: str = "", code: str = "") -> None:
        """A worker complains of this shard: check its servers now, or as soon as CHECK_GAP_S has passed.

        `node` and `code`: which server has refused something, and with which code, if that is the reason.
        """
        if shard in self._monitors:
            self._monitors[shard].complain(node, code)

    async def _keep_ticking(self) -> None:
        """Check all servers in each tick. A light check wakes no task."""
        while True:
            await asyncio.sleep(self._until_tick())
            checks = LightChecks()
            for shard in self._monitors.values():
                for schedule in shard.schedules:
                    if not (
                        schedule.is_checked or schedule.due.is_set() or self._begin_light_check(shard, schedule, checks)
                    ):
                        schedule.ask()
            checks.end_if_over()

    def _begin_light_check(self, shard: ShardMonitor, schedule: CheckSchedule, checks: LightChecks) -> bool:
        def on_checked(is_news: bool | None) -> None:
            checks.remove(schedule)
            schedule.ends()
            if is_news is None:
                schedule.began = -math.inf  # the task goes on with the same check
                schedule.ask()
            else:
                self._on_seen(shard.name, is_news)

        give_up = shard.begin_light_check(shard.monitor(schedule.node), on_checked)
        if give_up is None:
            return False
        schedule.begins()
        checks.add(schedule, give_up, lambda: on_checked(None))
        return True

    async def _keep_checking(self, shard: ShardMonitor, schedule: CheckSchedule) -> None:
        while True:
            await schedule.due.wait()
            if (gap_s := schedule.began + CHECK_GAP_S - asyncio.get_running_loop().time()) > 0:
                await asyncio.sleep(gap_s)
            schedule.due.clear()
            schedule.begins()
            await self._check(shard, schedule.node)
            schedule.ends()

    async def _check(self, shard: ShardMonitor, node: Node) -> None:
        monitor = shard.monitor(node)
        is_news = await shard.check(monitor)
        self._on_seen(shard.name, is_news)

    def _until_tick(self, after_s: float = 0.0) -> float:
        """Seconds until the next tick of the loop's clock, and `after_s`: all that wait by it are in step."""
        now = asyncio.get_running_loop().time()
        return (math.floor((now - after_s) / self._every_s) + 1) * self._every_s + after_s - now

    def _relearn(self) -> None:
        """A primary's commands changed: what follows from all that answered goes out if it is something else."""
        primaries = [monitor.primary for monitor in self._monitors.values()]
        learned = self._learn([primary.commands for primary in primaries if primary.commands is not None])
        if learned != self.topology.learned:
            self.topology = Topology(self.topology.version + 1, self.topology.shards, learned)
            emit(Event.TOPOLOGY, version=self.topology.version, learned=len(learned))
            self._on_topology(self.topology)

    def close(self) -> None:
        for shard in self._monitors.values():
            for monitor in shard.nodes:
                monitor.close()

    def __repr__(self) -> str:
        up = sum(monitor.primary.health.reachable for monitor in self._monitors.values())
        return f"<HealthMonitor {up} of {len(self._monitors)} shards up>"


def _lagging(health: NodeHealth, lags: Mapping[str, int]) -> NodeHealth:
    lag_s = lags.get(health.node, health.lag_s)
    return health if lag_s == health.lag_s else msgspec.structs.replace(health, lag_s=lag_s)
