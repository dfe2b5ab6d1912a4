"""A worker process. It gets the listening socket, the channel to the parent and the shared page, and serves clients.

    parent ── Setup, Settings, Settled, Scripts, Script, ScriptKnown, Topology, FleetHealth, AtWork, Subscribers,
              SubscribersKnown, Confirmed, Drain ──▶ worker
    parent ◀── Ready, Applied, Awake, Holding, AtWork, Configured, Script, ScriptsFlushed, Subscribers,
               SubscribersKnown, Complaint ── worker

The parent's messages are whole states. A worker whose parent is gone begins nothing more, flushes, closes and exits: an
orphan with an old map could write to a server that has been replaced. For the same reason a worker that did not run for
a second writes nothing before the parent has said what is true now.
"""

import asyncio
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, NoReturn, ParamSpec

import msgspec
import uvloop

from protocol import table
from pyproxy import events
from pyproxy.access import Access
from pyproxy.channel import Channel
from pyproxy.events import Event, emit
from pyproxy.messages import (
    Applied,
    AtWork,
    Awake,
    Complaint,
    Confirmed,
    Drain,
    FleetHealth,
    GateDirective,
    Held,
    Holding,
    Message,
    Ready,
    Script,
    ScriptKnown,
    Scripts,
    Settings,
    Settled,
    Setup,
    Subscribers,
    SubscribersKnown,
    Topology,
    Work,
)
from pyproxy.metrics import HEARTBEAT_S, INDEX, Page
from pyproxy.shard_map import Node, Shard, ShardMap
from pyproxy.slices import Line, Slices
from pyproxy.worker import heap
from pyproxy.worker.acceptor import Acceptor
from pyproxy.worker.commands.context import Context
from pyproxy.worker.commands.dispatch import Session
from pyproxy.worker.lane import split
from pyproxy.worker.lane.lane import Client, Lane, Route
from pyproxy.worker.lane.outcome import Outcome
from pyproxy.worker.pubsub.hub import Hub
from pyproxy.worker.pubsub.registry import BATCH_NAMES
from pyproxy.worker.shard.gate import Gate, HoldStats
from pyproxy.worker.shard.link import Link
from pyproxy.worker.shard.pool import LeasePool
from pyproxy.worker.shard.router import ShardRouter, those_closed

TICK_S = 0.02  # how exactly deadlines are kept
REST_S = HEARTBEAT_S  # between two ticks at rest; each is a heartbeat, and tells the lane that the worker has not slept
FULL_TICK_S = 0.9  # between two full ticks at rest; the ticks between them are beats alone
CHECKED_S = 0.1  # a check for waiting clients that takes longer counts as any other request in flight
HOLDING_S = 0.1  # between two reports to the parent of what is held
AT_WORK_S = 0.3  # a request through all keys that takes longer is reported: the parent may think its server down
SLOW_TICK_S = 1.0  # between two checks of unfinished requests, idle connections and the heap
ORPHAN_FLUSH_S = 1.0

IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Worker:
    """One worker, from the parent's first message to the last client's FIN."""

    def __init__(self, index: int, listener: socket.socket, channel: socket.socket, page: Page) -> None:
        self._index = index
        self._listener = listener
        self._channel_socket = channel
        self._page = page
        self._row = page.row(index)
        self._ended = asyncio.Event()
        self._woken = asyncio.Event()  # something has begun at rest, or the rest is over
        self._rest: asyncio.TimerHandle | None = None  # the end of it
        self._rest_until = 0.0
        self._checking: asyncio.TimerHandle | None = None  # while only checks for waiting clients are in flight
        self._maybe_busy = True  # something has begun since `_has_work` was last called
        self._full_tick_at = 0.0  # when the next full tick is due
        self._slices = Slices()
        self._updates = Line(self._slices)  # the numbers of other workers' subscribers, applied in order
        self._sending_updates = False  # the numbers of its own subscribers
        self._tasks: set[asyncio.Task[None]] = set()
        self._routers: list[ShardRouter] = []
        self._hold_stats = HoldStats()
        self._applied = Applied(0)  # the last one that was sent
        self._holding: dict[str, Held] = {}
        self._at_work: dict[str, list[Work]] = {}
        self._slept_at = 0.0  # of the Awake that is not confirmed yet; 0: there is none
        self._channel: Channel | None = None
        self._setup: Setup | None = None
        self._access: Access | None = None
        self._lane: Lane | None = None
        self._context: Context | None = None
        self._lease_pool: LeasePool | None = None
        self._hub: Hub | None = None
        self._acceptor: Acceptor | None = None
        self._session: Session | None = None

    async def run(self) -> None:
        """Serve until drained, or until the parent is gone."""
        asyncio.get_running_loop().set_exception_handler(events.on_loop_error)
        for number in IGNORED:
            asyncio.get_running_loop().add_signal_handler(number, self._on_ignored_signal, number)
        heard, gone = or_end(self._on_message), or_end(self._on_parent_gone)
        self._channel = await Channel.open(self._channel_socket, heard, gone)
        await self._ended.wait()
        for router in self._routers:
            router.close()
            router.link.close()
        if self._hub is not None:
            self._hub.close()
        self._channel.close()

    def _on_ignored_signal(self, number: int) -> None:
        """systemd sends a signal to all processes of a service. A worker drains when its parent says so."""
        name = signal.Signals(number).name
        emit(Event.SIGNAL_IGNORED, index=self._index, signal=name, why="a worker ends with its parent, or by SIGKILL")

    # --- the parent's messages ---

    def _on_message(self, message: Message) -> None:
        if isinstance(message, FleetHealth):
            # nothing that follows is urgent: it has time until the next tick
            self._maybe_busy, self._full_tick_at = True, 0.0
        else:
            self._wake()
        match message:
            case Setup():
                self._set_up(message)
            case Settings():
                self._apply_settings(message)
            case Settled(number=number) if self._context:
                self._context.settled(number)
            case Scripts() | Script():
                self._apply_scripts(message)
            case ScriptKnown(digest=digest) if self._context:
                self._context.script_is_known(digest)
            case Topology():
                self._apply_topology(message)
            case FleetHealth():
                self._apply_health(message)
            case AtWork(nodes=nodes):
                for link in (link for router in self._routers for link in router.links):
                    link.busy_until = max((work.until for work in nodes.get(str(link.node), ())), default=0.0)
            case Subscribers():
                self._updates.run(self._apply_update(message))
            case SubscribersKnown(number=number) if self._hub:
                self._hub.on_acknowledged(number)
            case Confirmed(at=at):
                self._on_confirmed(at)
            case Drain(deadline_s=deadline_s):
                self._drain(deadline_s)

    def _set_up(self, setup: Setup) -> None:
        loop = asyncio.get_running_loop()
        self._setup = setup
        self._access = Access(setup.config.backend)
        self._context = Context(
            setup,
            self._page,
            Topology(0, [], []),
            None,
            table.TABLE,
            lambda: self._lane.clients if self._lane else (),
            self._send,
        )
        # the session needs the lane, and the lane needs a function that dispatches to the session
        self._lane = Lane(loop, self._dispatch, self._row, setup.config, setup.index, setup.workers)
        self._lease_pool = LeasePool(self._lane, setup.config.limits.long_leases, setup.config.timeouts.reply_s)
        registry = self._context.registry
        self._hub = Hub(
            self._lane,
            setup.config,
            self._access,
            self._spawn,
            self._slices,
            registry,
            setup.workers == 1,
            self._send_updates_soon,
        )
        self._session = Session(self._context, self._lease_pool, self._hub)
        max_clients = setup.config.limits.max_clients
        self._acceptor = Acceptor(
            self._listener, self._lane, self._page, self._row, max_clients, self._spawn, self._hub.open
        )
        self._lane.on_slept = self._on_slept
        self._lane.on_begun = self._on_begun
        self._context.on_checked = self._on_checked
        split.install(self._lane, self._slices)
        self._lane.set_table(table.TABLE)
        self._row[INDEX["started_us"]] = int(time.time() * 1e6)
        self._lane.publish()  # a heartbeat, or the other workers would think that this one hangs
        self._row[INDEX["pid"]] = os.getpid()
        self._spawn(self._tick(self._lane), "tick")

    def _dispatch(self, client: Client, route: Route | None, argv: Sequence[bytes]) -> Outcome:
        assert self._session
        return self._session.dispatch(client, route, argv)

    def _apply_settings(self, settings: Settings) -> None:
        assert self._context
        if settings.version > self._context.settings.version:
            self._context.settings = settings

    def _apply_scripts(self, scripts: Scripts | Script) -> None:
        assert self._context
        self._context.scripts.take(scripts.flushes, scripts.texts if isinstance(scripts, Scripts) else [scripts.text])

    def _apply_topology(self, topology: Topology) -> None:
        assert self._context and self._acceptor and self._channel
        if topology.version <= self._context.topology.version:
            return
        if (topology.shards, topology.gates) != (self._context.topology.shards, self._context.topology.gates):
            self._apply_shards(topology)
        self._context.foreign = {index for index, each in enumerate(topology.shards) if each.name in topology.foreign}
        self._learn_commands(topology.learned)
        self._context.topology = topology
        self._applied = self._present_state()
        self._channel.send(self._applied)
        if not self._acceptor.is_started:
            self._acceptor.start()
            self._channel.send(Ready(os.getpid()))

    def _learn_commands(self, rows: Sequence[Any]) -> None:
        """Whatever a server says of its commands, it must not end the worker: it would end the next one, too."""
        assert self._context and self._lane
        try:
            learned = table.extend(table.TABLE, rows)
            self._lane.set_table(learned)
            self._context.table = learned
        except Exception:
            emit(Event.BUG, where="commands that were learned", trace=traceback.format_exc())

    def _apply_shards(self, topology: Topology) -> None:
        """Have a router for each shard. One that is known by its name and place stays, whatever slots it has."""
        assert self._lane and self._context
        directives = topology.gates or [GateDirective(shard.name, 0) for shard in topology.shards]
        old = {router.link.name: router for router in self._routers}
        routers = []
        for index, (shard, directive) in enumerate(zip(topology.shards, directives, strict=True)):
            router = old.get(shard.name)
            if router is None or router.link.index != index:
                router = self._new_router(index, shard, directive)
            routers.append(router)
        gone, self._routers = [router for router in self._routers if router not in routers], routers
        self._context.moving = {index for index, each in enumerate(directives) if each.closed and each.moving}
        owned = [shard.slots for shard in self._context.topology.shards]
        if self._lane.links != [router.link for router in routers] or owned != [each.slots for each in topology.shards]:
            owners = ShardMap(topology.version, tuple(topology.shards)).owners()
            self._lane.set_shards([router.link for router in routers], owners)
            for waiting in self._context.ready_keys.values():
                waiting.wake_all()  # what they wait for may be elsewhere by now
        # after the owners, as a gate that opens has its clients offer their commands again
        for router, shard, directive in zip(routers, topology.shards, directives, strict=True):
            router.apply(directive, shard)
        for router in gone:
            router.close()
            router.link.close()
        for router in routers:
            if not router.link.backends:
                router.link.connect(router.link.backend(2, 0))
        if self._hub is not None:
            self._hub.apply_topology(topology.shards, directives)

    def _new_router(self, index: int, shard: Shard, directive: GateDirective) -> ShardRouter:
        assert self._lane and self._setup and self._access
        lane, config, access = self._lane, self._setup.config, self._access

        def link(node: Node) -> Link:
            return Link(
                lane, index, shard.name, node, config.timeouts, access, self._spawn, self._complain,
                asks_limits=config.promoter_of(shard) != "elasticache",
            )  # fmt: skip

        promotion = msgspec.structs.replace(config.promotion, promoter=config.promoter_of(shard))
        gate: Gate[Client] = Gate(
            shard.name, shard.primary, promotion, self._hold_stats, directive, bool(shard.replicas)
        )
        return ShardRouter(lane, link(shard.primary), gate, config, self._setup.index, link)

    def _present_state(self) -> Applied:
        assert self._context and self._hub
        writing = {
            self._routers[index].link.name
            for index in self._context.moving
            if any(conversation.writes_to(index) for conversation in self._context.writing)
        }
        busy = [router.link.name for router in self._routers if router.busy or router.link.name in writing]
        closed = [router.link.name for router in self._routers if router.gate.directive.closed]
        unconfirmed = [name for name in closed if name in self._hub.unconfirmed]
        outdated = [router.link.name for router in self._routers if router.is_outdated]
        return Applied(self._context.topology.version, busy, unconfirmed, outdated)

    def _apply_health(self, health: FleetHealth) -> None:
        assert self._context
        self._context.health = health
        by_name = {router.link.name: router for router in self._routers}
        for shard in health.shards:
            router = by_name.get(shard.name)
            if router is not None:
                router.on_health(shard)
                if shard.node == str(router.link.node):
                    router.link.on_misplaced(shard.misplaced)

    def _on_slept(self, now: float) -> None:
        """The parent may have promoted replicas meanwhile, without waiting for this worker."""
        assert self._channel
        self._slept_at = now
        for router in self._routers:
            router.on_slept(now)
        self._channel.send(Awake(now))

    def _on_confirmed(self, at: float) -> None:
        if at == self._slept_at:
            self._slept_at = 0.0
            for router in self._routers:
                router.on_confirmed()

    def _complain(self, shard: str, node: str, what: str) -> None:
        self._wake()
        self._send(Complaint(shard, node, what))

    def _send(self, message: Message) -> None:
        if self._channel is not None:
            self._channel.send(message)

    # --- time ---

    async def _tick(self, lane: Lane) -> None:
        assert self._setup
        unfinished_s = self._setup.config.timeouts.unfinished_s
        check_at = tell_at = 0.0
        peak = 0
        while True:
            await self._until_tick(lane)
            now = time.monotonic()
            if not self._maybe_busy and now < self._full_tick_at:
                self._heartbeat(lane, now)
                continue
            self._maybe_busy, self._full_tick_at = True, now + FULL_TICK_S
            lane.tick()
            for router in self._routers:
                router.tick(now)
            if self._hub is not None:
                self._hub.tick(now)
                self._row[INDEX["subscribers"]] = self._hub.subscribers
            self._send_updates_soon()
            self._publish_counts()
            if now >= tell_at:
                tell_at = now + HOLDING_S
                self._send_holding()
                self._send_work(now)
            if now >= check_at:
                check_at = now + SLOW_TICK_S
                lane.check_unfinished(unfinished_s)
                self._check_waiting_clients()
                if self._lease_pool:
                    self._lease_pool.tick(now)
                peak = heap.trim(lane.buffered, peak)

    async def _until_tick(self, lane: Lane) -> None:
        """Wait for the next tick: TICK_S while the worker is busy, REST_S at rest. Brief work does not end a rest."""
        loop = asyncio.get_running_loop()
        self._rest_until = loop.time() + REST_S
        is_busy = self._is_busy(lane)
        while True:
            if not is_busy:
                self._woken.clear()
                lane.at_rest = True
                self._rest = loop.call_at(self._rest_until, self._on_rested)
                await self._woken.wait()
                self._rest.cancel()
                lane.at_rest = False
                if loop.time() >= self._rest_until - TICK_S:
                    return
            await asyncio.sleep(TICK_S)
            is_busy = self._is_busy(lane)
            if is_busy:
                return

    def _heartbeat(self, lane: Lane, now: float) -> None:
        lane.heartbeat()
        if self._hub is not None:
            self._hub.tick(now)

    def _on_rested(self) -> None:
        """The rest is over. Where it goes on after a heartbeat, no task is woken for that."""
        assert self._lane
        now = time.monotonic()
        if not self._maybe_busy and now < self._full_tick_at:
            self._heartbeat(self._lane, now)
            if not self._is_busy(self._lane):
                loop = asyncio.get_running_loop()
                self._rest_until = loop.time() + REST_S
                self._rest = loop.call_at(self._rest_until, self._on_rested)
                return
        self._woken.set()

    def _on_begun(self) -> None:
        """Something has begun, or may have, in a turn of the lane.

        While nothing is in flight but checks for clients that wait (ready_keys.py), ten times a second, the worker is
        at rest. Whether anything else is, it finds when the checks are answered, or when they take long.
        """
        assert self._lane and self._context
        checks = sum(each.in_flight for each in self._context.ready_keys.values())
        if not checks or self._lane.unanswered_requests != checks:
            self._wake()
            return
        self._lane.at_rest = True
        if self._checking is None:
            self._checking = asyncio.get_running_loop().call_later(CHECKED_S, self._wake)

    def _on_checked(self) -> None:
        """No check for clients that wait is in flight any more."""
        assert self._lane
        if self._checking is not None:
            self._end_checking()
            if self._has_work(self._lane):
                self._wake()

    def _end_checking(self) -> None:
        if self._checking is not None:
            self._checking.cancel()
            self._checking = None

    def _wake(self) -> None:
        """Something has begun, or may have."""
        self._end_checking()
        self._maybe_busy, self._full_tick_at = True, 0.0
        self._woken.set()

    def _is_busy(self, lane: Lane) -> bool:
        assert self._context
        if not self._maybe_busy:  # nothing has begun, unless the hub has begun something by itself
            return self._hub is not None and not self._hub.at_rest
        self._maybe_busy = busy = self._has_work(lane)
        return busy

    def _has_work(self, lane: Lane) -> bool:
        assert self._context
        return (
            lane.has_deadlines
            or bool(self._has_more_to_apply or self._at_work or self._context.registry.has_changes)
            or any(not router.at_rest for router in self._routers)
            or (self._hub is not None and not self._hub.at_rest)
        )

    @property
    def _has_more_to_apply(self) -> bool:
        return bool(self._applied.busy or self._applied.unconfirmed or self._applied.outdated)

    def _publish_counts(self) -> None:
        assert self._lane and self._context and self._channel
        links: list[Link] = self._lane.links + self._lane.replica_links
        listening = self._hub.connections if self._hub is not None else 0
        self._row[INDEX["backend_connections"]] = sum(link.connections for link in links) + listening
        self._row[INDEX["leased_connections"]] = sum(len(link.leased) for link in links)
        self._row[INDEX["blocked_clients"]] = len(self._context.waiting)
        self._row[INDEX["held_requests"]] = self._hold_stats.requests
        for name in ("held", "drained", "refused_held", "dropped_client_gone", "refused_at_once", "withheld_writes"):
            self._row[INDEX[name]] = getattr(self._hold_stats, name)
        if self._has_more_to_apply and (state := self._present_state()) != self._applied:
            self._applied = state
            self._channel.send(state)

    def _send_updates_soon(self) -> None:
        """Send the changed numbers of subscribers, as soon as the parent can take them."""
        assert self._context
        if self._context.registry.has_changes and not self._sending_updates:
            self._sending_updates = True
            self._slices.run(self._send_updates())

    def _send_updates(self) -> Iterator[int]:
        assert self._context and self._channel
        while self._context.registry.has_changes and not self._channel.congested:
            self._channel.send(self._context.registry.next_update())
            yield BATCH_NAMES // 2  # a name that is only looked up costs half a part
        self._sending_updates = False

    def _apply_update(self, update: Subscribers) -> Iterator[int]:
        assert self._context
        yield from self._context.registry.apply(update)
        self._send(SubscribersKnown(update.number))

    def _check_waiting_clients(self) -> None:
        """Notice waiting clients that have closed. The loop does not report that of a client that is not read."""
        assert self._context
        waiting = {each.client: each for each in self._context.waiting if not each.stopped}
        for closed in those_closed(waiting):
            waiting[closed].half_closed()

    def _send_holding(self) -> None:
        assert self._channel
        holding = {router.link.name: held for router in self._routers if (held := router.gate.held).requests}
        if holding != self._holding:
            self._holding = holding
            self._channel.send(Holding(holding))

    def _send_work(self, now: float) -> None:
        """Report the servers that have been at work on a request for so long that the parent may think them silent."""
        assert self._channel
        found = {}
        for link in (link for router in self._routers for link in router.links):
            work = link.slow_work(now)
            if work and now - work[0].since >= AT_WORK_S:
                found[str(link.node)] = work
        if found != self._at_work:
            self._at_work = found
            self._channel.send(AtWork(found))

    # --- the end ---

    def _drain(self, deadline_s: float, orphan: bool = False) -> None:
        if self._lane is None:
            self._ended.set()
        elif not self._lane.draining:
            assert self._acceptor
            for router in self._routers:
                router.drain(orphan)
            self._lane.drain()
            self._acceptor.stop()
            self._spawn(self._until_drained(self._lane, deadline_s), "drain")

    def _on_parent_gone(self) -> None:
        if self._ended.is_set() or (self._lane is not None and self._lane.draining):
            return  # the worker has closed the channel itself, or both processes are ending
        emit(Event.WORKER_ORPHAN, index=self._index)
        self._drain(ORPHAN_FLUSH_S, orphan=True)

    async def _until_drained(self, lane: Lane, deadline_s: float) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + deadline_s
        await asyncio.sleep(TICK_S)  # the last clients are not in `lane.clients` before the next turn of the loop
        while lane.clients and loop.time() < end:  # noqa: ASYNC110 - they end in compiled callbacks
            await asyncio.sleep(TICK_S)
        for client in list(lane.clients):
            client.abandon()
        self._ended.set()

    def _spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        """Start a task. Nothing in it is expected to fail: if it does, the worker ends."""
        self._wake()
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            end(task.get_name(), exc)


Heard = ParamSpec("Heard")


def or_end(callback: Callable[Heard, None]) -> Callable[Heard, None]:
    """The callback. If it fails, the worker ends: without a state of its parent it would serve wrongly."""

    def called(*args: Heard.args, **kwargs: Heard.kwargs) -> None:
        try:
            callback(*args, **kwargs)
        except Exception as exc:
            end(callback.__name__, exc)

    return called


def end(what: str, exc: BaseException) -> NoReturn:
    """End this process after a bug, as its state may be wrong. The parent starts another worker."""
    emit(Event.BUG, task=what, trace="".join(traceback.format_exception(exc)))
    os._exit(70)  # EX_SOFTWARE


def serve(index: int, listen_fd: int, channel_fd: int, page_fd: int) -> None:
    """Run one worker on the descriptors it inherited."""
    events.configure()
    heap.tune()
    listener = socket.socket(fileno=listen_fd)
    listener.setblocking(False)
    uvloop.run(Worker(index, listener, socket.socket(fileno=channel_fd), Page.attach(page_fd)).run())
