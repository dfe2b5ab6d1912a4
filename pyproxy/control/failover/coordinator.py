"""What is done about the shards. Health checks, outcomes and commands come in; gates, primaries and promotions go out.

    health ── checks ──▶            ┌─ machine s0 ─┐  effects ──▶ promoters      (the servers, Sentinels, AWS)
    promoters ── announcements ──▶  │  machine s1  │          ──▶ topology, gates (the workers, and their barrier)
    operators ── commands ──▶       └─ ...         ┘          ──▶ state file, log

Every decision is a machine's (machine.py, pure). This module carries its effects out, waits, and gives it the outcome
as the next event. It sends the workers one whole state, the Topology: the roles of now and a gate for each shard.

*The barrier.* A primary is replaced in two steps. The first Topology names the new primary behind a closed gate: each
worker gives up every connection of the epoch before, and reports that (Applied). When all have, or were killed, the
second Topology opens the gate. So no write reaches the old primary after any worker has written to the new one. Between
the two the coordinator waits a short time until the workers are subscribed at the new primary.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from typing import Any

import msgspec

from pyproxy.access import Access
from pyproxy.config import Config
from pyproxy.control.failover import promoters
from pyproxy.control.failover.machine import Machine
from pyproxy.control.failover.promoters import Announcement, PromotionFailed, PromotionPlan
from pyproxy.control.failover.state_file import SavedState, StateFile
from pyproxy.control.failover.transitions import (
    Announced,
    Answer,
    Effect,
    FailoverEvent,
    HandOver,
    HealthChecked,
    Log,
    PauseAsked,
    PersistentState,
    Phase,
    Promote,
    PromoteAsked,
    Promoted,
    PromoterCapabilities,
    PromotionRefused,
    Quiesce,
    Quiesced,
    QuiesceFailed,
    Reconfigure,
    ResumeAsked,
    Switch,
    Switched,
    Ticked,
)
from pyproxy.control.health.monitor import HealthMonitor
from pyproxy.control.http.admin import Refused
from pyproxy.control.process.settings import SettingsReconciler
from pyproxy.control.process.supervisor import Supervisor
from pyproxy.deadline import within
from pyproxy.events import emit
from pyproxy.messages import GateDirective, NodeHealth, Settings, ShardHealth, Topology
from pyproxy.shard_map import Node, Shard

TICK_S = 0.05
"""How exactly the machines' timers are kept while anything is wrong."""

QUIESCE_S = 1.0
"""For all workers to hold their writes and to have none in flight, before a planned hand-over; else it is given up."""

BARRIER_S = 2.0
"""For all workers to be at a new primary; one that is not is ended."""

SUBSCRIBED_S = 0.2
"""For all workers to be subscribed there, so that nobody misses what is published first; then it is opened anyway."""

MOVING_S = 0.5
"""What it is expected to take until slots have another owner."""

ENDED_S = 5.0
"""For a worker that was killed to be gone."""

ANNOUNCED_S = 2.0
"""At the start, for whoever decides to say who is primary."""

URGENT = (Phase.SUSPECT, Phase.WAITING, Phase.PROMOTING, Phase.VERIFYING, Phase.SWITCHING)
"""Phases in which the servers are checked as often as may be."""


class ShardControl:
    """One shard: its machine, its promoter, and what was published of it."""

    def __init__(self, shard: Shard, machine: Machine, promoter: promoters.Promoter) -> None:
        self.shard = shard  # with the roles of now
        self.epoch = machine.epoch
        self.machine = machine
        self.promoter = promoter
        self.announced = asyncio.Event()
        self.fallback: Node | None = None
        self.reconfiguring = False
        self.published: tuple[Shard, GateDirective] | None = None  # to the workers
        self.saved: PersistentState | None = None
        self.asked: asyncio.Future[Answer] | None = None
        self.moving_since = 0.0  # its writes are held as slots move (CLOCK_MONOTONIC, s); 0: they are not

    def switch(self, node: Node, epoch: int) -> None:
        """Another one of its servers is the primary."""
        nodes = (self.shard.primary, *self.shard.replicas)
        others = tuple(each for each in nodes if each != node)
        self.shard = msgspec.structs.replace(self.shard, primary=node, replicas=others)
        self.epoch = epoch

    def plan(self, candidate: Node, named: bool = False) -> PromotionPlan:
        healths = self.machine.nodes
        primary = self.machine.primary
        others = tuple(health for node, health in healths.items() if node not in (primary, candidate))
        return PromotionPlan(
            self.shard.name, self.machine.epoch + 1, healths[primary], healths[candidate], others, named
        )

    def gate(self, readers: Callable[[NodeHealth], bool], now: float) -> GateDirective:
        """`readers`: whether a replica may serve reads while the primary is well."""
        machine = self.machine
        self.fallback = machine.fallback(self.fallback, now)
        closed_gate = machine.gate()
        healths = machine.nodes
        gate = GateDirective(
            self.shard.name,
            self.epoch,
            usual_s=machine.usual_s,
            fallback=self.fallback,
            readers=tuple(node for node in self.shard.replicas if node in healths and readers(healths[node])),
        )
        if closed_gate is None and self.moving_since:
            since, expected_at = self.moving_since, self.moving_since + MOVING_S
            why = "is handing over slots"
            return msgspec.structs.replace(
                gate, closed=why, hold=True, since=since, expected_at=expected_at, moving=True
            )
        if closed_gate is None:
            return gate
        return msgspec.structs.replace(
            gate,
            closed=closed_gate.why,
            hold=closed_gate.hold,
            since=closed_gate.since,
            expected_at=closed_gate.expected_at,
        )

    def __repr__(self) -> str:
        return f"<ShardControl {self.machine}>"


class Coordinator:
    """All shards. `topology` and `settings.state` are states that a new worker needs.

    `broadcast` sends a state to all workers; `supervisor` is None until there are any.
    """

    def __init__(
        self,
        config: Config,
        access: Access,
        monitor: HealthMonitor,
        broadcast: Callable[[Topology | Settings], None],
        supervisor: Callable[[], Supervisor | None],
        store_generation: int = 0,
    ) -> None:
        self._config = config
        self._access = access
        self.store_generation = store_generation  # kept with the rest: a store that is lost is missed at the next start
        self._monitor = monitor
        self._broadcast = broadcast
        self._supervisor = supervisor
        self._file = StateFile(config.promotion.state_file)
        self._tasks: set[asyncio.Task[None]] = set()
        self._begun = False
        self._unwell = asyncio.Event()  # a shard is not healthy: its timers are kept
        self.foreign: list[str] = []  # shards that have keys of slots that are being moved
        self.on_changed: Callable[[str], None] = lambda _shard: None  # its phase or its epoch has changed
        kept = self._file.load()
        shards = config.shard_map().shards
        self._shards = {shard.name: self._shard_control(shard, access, kept.shards.get(shard.name)) for shard in shards}
        fixed_by = {name: control.promoter.setting for name, control in self._shards.items()}
        self.settings = SettingsReconciler(
            access, fixed_by, monitor.nodes, kept.settings, self._settings_changed, self._start
        )
        self.topology = Topology(0, [], [])

    def _shard_control(self, shard: Shard, access: Access, persistent: PersistentState | None) -> ShardControl:
        options, now = self._config.promotion, time.monotonic()
        promoter = promoters.make(
            shard, self._config, access, lambda announcement: self._announced(shard.name, announcement)
        )
        watches_only = self._config.promoter_of(shard) == "none"
        capabilities = PromoterCapabilities(
            promoter.acts, promoter.hands_over, promoter.is_authority, promoter.usual_s, watches_only
        )
        if persistent is None or persistent.primary not in (shard.primary, *shard.replicas):
            persistent = PersistentState(0, shard.primary)
        promoted_at = now - (time.time() - persistent.promoted_at) if persistent.promoted_at else None
        machine = Machine(shard.name, options, persistent, now, capabilities, promoted_at)
        control = ShardControl(shard, machine, promoter)
        if persistent.primary != shard.primary:
            control.switch(persistent.primary, persistent.epoch)
            self._monitor.promoted(control.shard)
        return control

    # --- the life of it ---

    @contextlib.asynccontextmanager
    async def coordinating(self) -> AsyncIterator[None]:
        """Coordinate until the block ends. The block begins when it is known who is primary, as far as can be seen."""
        async with asyncio.TaskGroup() as group:
            self._spawn = group.create_task
            for control in self._shards.values():
                self._start(control.promoter.run(), f"follow {control.shard.name}")
            self.settings.begin()
            await self._first_announcements()
            self._begun = True
            for name in self._shards:
                self._step(name, HealthChecked(self._monitor.nodes(name)))
            self._start(self._tick(), "tick")
            try:
                yield
            finally:
                for task in self._tasks:
                    task.cancel()

    async def _first_announcements(self) -> None:
        """Wait for the announcements of whoever decides, before anything is done."""
        authorities = [control for control in self._shards.values() if control.promoter.is_authority]
        with contextlib.suppress(TimeoutError):
            async with within(ANNOUNCED_S):
                for control in authorities:
                    await control.announced.wait()

    async def _tick(self) -> None:
        while True:
            await self._unwell.wait()
            await asyncio.sleep(TICK_S)
            self._unwell.clear()  # a shard that is not well sets it again
            for name, control in self._shards.items():
                if control.machine.phase in URGENT and not control.machine.watches_only:
                    self._monitor.complain(name)
                if control.machine.phase is not Phase.HEALTHY:
                    self._step(name, Ticked())

    def _start(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        task = self._spawn(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- what comes in, and what is asked ---

    @property
    def shards(self) -> list[Shard]:
        """With the roles of now."""
        return [control.shard for control in self._shards.values()]

    def on_seen(self, shard: str, is_news: bool) -> None:
        """One of its servers was checked. Where only the time is new, nothing need come of it."""
        if self._begun:
            if is_news or self._shards[shard].machine.waits:
                self._step(shard, HealthChecked(self._monitor.nodes(shard)))
            self.settings.on_seen(shard)

    def on_learned(self) -> None:
        """The primaries know other commands than before."""
        if self._begun:
            self._publish()

    def complete(self, health: ShardHealth) -> ShardHealth:
        """The health of a shard, with what is known of its failover."""
        control, supervisor = self._shards[health.name], self._supervisor()
        machine, closed_gate = control.machine, control.machine.gate()
        return msgspec.structs.replace(
            health,
            since=closed_gate.since if closed_gate else health.since,
            epoch=control.epoch,
            phase=machine.phase.value,
            closed=closed_gate.why if closed_gate else "",
            expected_at=closed_gate.expected_at if closed_gate else 0.0,
            held=supervisor.held(health.name) if supervisor else 0,
            alarms=(*machine.alarms.values(), *self.settings.alarms(health.name)),
        )

    async def promote(self, shard: str, to: str) -> str:
        """An operator's command -> what was done. Raises Refused."""
        try:
            node = Node.parse(to) if to else None
        except ValueError as exc:
            raise Refused(str(exc)) from None
        return await self._ask(shard, PromoteAsked(node))

    async def pause(self, shard: str) -> str:
        """Hold the writes of a shard. Raises Refused."""
        return await self._ask(shard, PauseAsked())

    async def resume(self, shard: str) -> str:
        """The end of `pause`. Raises Refused."""
        return await self._ask(shard, ResumeAsked())

    async def _ask(self, shard: str, event: FailoverEvent) -> str:
        control = self._shards.get(shard)
        if control is None:
            raise Refused(f"expected one of the shards {', '.join(self._shards)}, got {shard}")
        if control.asked is not None:
            raise Refused(f"{shard} is busy with another command")
        control.asked = asyncio.get_running_loop().create_future()
        try:
            self._step(shard, event)
            answer = await control.asked
        finally:
            control.asked = None
        if not answer.done:
            raise Refused(answer.text)
        return answer.text

    def _announced(self, shard: str, announcement: Announcement) -> None:
        self._shards[shard].announced.set()
        self._step(shard, Announced(announcement))

    # --- what follows ---

    def _step(self, shard: str, event: FailoverEvent) -> None:
        control = self._shards[shard]
        before = control.machine.phase, control.machine.epoch
        if self._begun:
            control.machine.nodes = self._monitor.nodes(shard)  # where only the time was new, there was no event
        for effect in control.machine.step(event, time.monotonic()):
            self._carry_out(control, effect)
        if control.machine.phase is not Phase.HEALTHY:
            self._unwell.set()
        if self._begun:
            self._publish(control)
            if self._persistent_state(control) != control.saved:
                self._save()
        if before != (control.machine.phase, control.machine.epoch):
            self.on_changed(shard)

    def _carry_out(self, control: ShardControl, effect: Effect) -> None:
        name = control.shard.name
        match effect:
            case Log(event, fields):
                emit(event, **fields)
            case Promote(candidate):
                self._start(
                    self._promote(control, control.promoter.promote(control.plan(candidate))), f"promote {name}"
                )
            case HandOver(candidate, named):
                attempt = control.promoter.hand_over(control.plan(candidate, named))
                self._start(self._promote(control, attempt), f"hand over {name}")
            case Quiesce():
                self._start(self._quiesce(name), f"quiesce {name}")
            case Switch(node, epoch):
                control.switch(node, epoch)
                self._start(self._switch(control), f"switch {name}")
            case Reconfigure(nodes):
                self._start(self._reconfigure(control, nodes), f"reconfigure {name}")
            case Answer() if control.asked is not None and not control.asked.done():
                control.asked.set_result(effect)

    async def _promote(self, control: ShardControl, attempt: Coroutine[Any, Any, None]) -> None:
        # AWS takes its time; what was asked of it is not undone by giving up
        deadline_s = max(self._config.promotion.deadline_s, 4 * control.promoter.usual_s)
        outcome: FailoverEvent
        try:
            async with within(deadline_s):
                await attempt
            outcome = Promoted()
        except PromotionFailed as exc:
            outcome = PromotionRefused(str(exc), exc.again)
        except TimeoutError:
            outcome = PromotionRefused(f"no outcome within {deadline_s:g} s", True)
        self._step(control.shard.name, outcome)

    async def _quiesce(self, shard: str) -> None:
        why = await self.until_quiesced(shard, QUIESCE_S)
        self._step(shard, QuiesceFailed(f"{why} after {QUIESCE_S:g} s") if why else Quiesced())

    async def _switch(self, control: ShardControl) -> None:
        await self._pass_barrier(f"not at the new primary of {control.shard.name}")
        self._monitor.promoted(control.shard)
        supervisor = self._supervisor()
        if supervisor is not None:
            await supervisor.all_subscribed(control.shard.name, SUBSCRIBED_S)
        self._step(control.shard.name, Switched())

    async def _pass_barrier(self, otherwise: str) -> None:
        """Return when all workers have the topology of now. One that does not have it in time is killed."""
        supervisor, version = self._supervisor(), self.topology.version
        if supervisor is not None:
            late = await supervisor.all_applied(version, BARRIER_S)
            while late:
                for index in late:
                    supervisor.kill_worker(index, f"{otherwise} within {BARRIER_S:g} s")
                late = await supervisor.all_applied(version, ENDED_S)

    # --- slots that move (control/growth/) ---

    def add(self, shard: Shard) -> None:
        """A shard without slots, of which nothing is known yet."""
        control = self._shards[shard.name] = self._shard_control(shard, self._access, None)
        self.settings.add(shard.name, control.promoter.setting)
        self._start(control.promoter.run(), f"follow {shard.name}")
        self._publish(control)

    def hold_writes(self, shard: str) -> None:
        """Until `release_writes`; the gate says that slots are moving, unless it is closed for another reason."""
        self._shards[shard].moving_since = time.monotonic()
        self._publish(self._shards[shard])

    def release_writes(self, *shards: str) -> None:
        for shard in shards:
            self._shards[shard].moving_since = 0.0
        self._publish(*map(self._shards.__getitem__, shards))

    def have_foreign(self, shards: Iterable[str]) -> None:
        """These have keys of slots of others: the workers leave them out of what they say of all keys."""
        self.foreign = sorted(shards)
        self._publish()

    def trouble(self, shard: str) -> str:
        """Why nothing can be moved from or to this shard now; empty: it is healthy."""
        machine = self._shards[shard].machine
        return "" if machine.phase is Phase.HEALTHY else f"is {machine.phase.value}: {machine.why}"

    def primary(self, shard: str) -> tuple[Node, int]:
        """Its primary, and the epoch of it."""
        control = self._shards[shard]
        return control.shard.primary, control.epoch

    async def until_quiesced(self, shard: str, deadline_s: float) -> str:
        """Wait until all workers hold the writes of a shard and have none in flight. Empty, or who does not in time."""
        supervisor = self._supervisor()
        late = await supervisor.all_applied(self.topology.version, deadline_s, shard) if supervisor else []
        return f"worker {', '.join(map(str, late))} did not hold, or had writes in flight" if late else ""

    async def give_slots(self, shards: Iterable[Shard], to: str) -> None:
        """These own the slots from now on, by their names. Returns when every worker knows, and has subscribed anew."""
        slots = {shard.name: shard.slots for shard in shards}
        for control in self._shards.values():
            control.shard = msgspec.structs.replace(control.shard, slots=slots.get(control.shard.name, ()))
        self._publish()
        await self._pass_barrier("without the new owners of slots")
        supervisor = self._supervisor()
        if supervisor is not None:
            await supervisor.all_subscribed(to, SUBSCRIBED_S)

    async def until_drained(self, shard: str) -> None:
        """Return when no worker has a request in flight to this shard from before it lost slots."""
        supervisor = self._supervisor()
        if supervisor is not None:
            await supervisor.all_drained(self.topology.version, shard)

    async def _reconfigure(self, control: ShardControl, not_following: Sequence[Node]) -> None:
        if control.reconfiguring:
            return
        control.reconfiguring = True
        healths = control.machine.nodes
        try:
            await control.promoter.reconfigure(
                healths[control.machine.primary], [healths[node] for node in not_following]
            )
        finally:
            control.reconfiguring = False

    def _publish(self, *changed: ShardControl) -> None:
        """Send the workers a Topology, if it differs from the last one. Shards that are not given have not changed."""
        now, learned = time.monotonic(), self._monitor.topology.learned
        is_news = learned is not self.topology.learned and learned != self.topology.learned
        for control in changed or self._shards.values():
            published = control.shard, control.gate(self._may_be_read, now)
            if published != control.published:
                control.published, is_news = published, True
        is_news = is_news or self.foreign != self.topology.foreign
        if is_news:
            gates = [control.published[1] for control in self._shards.values() if control.published]
            self.topology = Topology(self.topology.version + 1, self.shards, learned, gates, self.foreign)
            self._broadcast(self.topology)

    def _may_be_read(self, health: NodeHealth) -> bool:
        """Whether it may serve reads while the primary is well: a replica that is in step."""
        if self._config.reads == "primary" or not health.reachable or health.role != "slave":
            return False
        in_step = health.link == "up" and not health.syncing and not health.loading
        return in_step and 0 <= health.lag_s <= self._config.reads_max_lag_s

    def _persistent_state(self, control: ShardControl) -> PersistentState:
        """As it is kept over a restart."""
        at = control.machine.promoted_at
        # whole seconds, or the clocks' drift would be a change
        promoted_at = float(round(time.time() - time.monotonic() + at)) if at else 0.0
        return msgspec.structs.replace(control.machine.persistent_state, promoted_at=promoted_at)

    def _save(self) -> None:
        for control in self._shards.values():
            control.saved = self._persistent_state(control)
        persistent = {name: control.saved for name, control in self._shards.items() if control.saved}
        self._file.save(SavedState(persistent, dict(self.settings.state.told), self.store_generation))

    def _settings_changed(self) -> None:
        self._broadcast(self.settings.state)
        self._save()

    def __repr__(self) -> str:
        return f"<Coordinator {list(self._shards.values())}>"
