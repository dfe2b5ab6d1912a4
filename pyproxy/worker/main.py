"""A worker process: the listening socket, the channel to the parent and the page come in; clients are served.

    parent ── Setup, Settings, Settled, Scripts, Script, ScriptKnown, Topology, FleetHealth, AtWork, Subscribers,
              SubscribersKnown, Confirmed, Drain ──▶ worker
    parent ◀── Ready, Applied, Awake, Holding, AtWork, Configured, Script, ScriptsFlushed, Subscribers,
               SubscribersKnown, Complaint ── worker

The parent's messages are whole states.  A worker whose parent is gone begins nothing more, flushes, closes and exits:
an orphan with an old map could write to a server that has been replaced. For the same reason a worker that did not run
for a second writes nothing before the parent has said what is true now.
"""

import asyncio
import ctypes
import gc
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, NoReturn, ParamSpec, cast

import msgspec
import uvloop

from protocol import errors, table
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
    Gate,
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
from pyproxy.metrics import BEAT_S, INDEX, Page
from pyproxy.shard_map import Node, Shard, ShardMap
from pyproxy.slices import Line, Slices
from pyproxy.worker.commands.context import Context
from pyproxy.worker.commands.dispatch import Session
from pyproxy.worker.lane import split
from pyproxy.worker.lane.lane import Client, Lane, Route
from pyproxy.worker.lane.outcome import Outcome
from pyproxy.worker.pubsub.hub import Hub
from pyproxy.worker.pubsub.registry import BATCH_NAMES
from pyproxy.worker.shard.gate import Gate as ShardGate
from pyproxy.worker.shard.gate import HoldStats
from pyproxy.worker.shard.link import Link
from pyproxy.worker.shard.pool import LeasePool
from pyproxy.worker.shard.router import ShardRouter, has_closed

TICK_S = 0.02  # how exactly deadlines are kept
REST_S = BEAT_S  # between two ticks while nothing is out: each is a beat, and tells the lane that it has not slept
WHOLE_S = 0.9  # at least between two ticks that look at all, while nothing has begun; the others are beats
HOLDING_S = 0.1  # how often at most the parent is told what is held
AT_WORK_S = 0.3  # a request through all keys that takes longer is told to the parent, which may think its server down
SELDOM_S = 1.0  # unfinished requests, memory
TRIM_BYTES = 32 << 20  # so much must have been freed before the heap is asked to give it back: that takes milliseconds
ACCEPT_AGAIN_S = 0.002  # a worker with more clients than another one looks again after this
ORPHAN_FLUSH_S = 1.0
KEPT_BYTES = 16 << 20  # free memory at the end of the heap that is not given back at once
TURNED_AWAY_S = 2.0  # then the connection is closed, whatever the client does

IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

_LIBC = ctypes.CDLL(None)


class TurnedAway(asyncio.Protocol):
    """One client too many: told so, then FIN; what it sends is read, or the kernel would reset the connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = cast(asyncio.Transport, transport)
        stream.write(errors.too_many_clients())
        stream.write_eof()
        asyncio.get_running_loop().call_later(TURNED_AWAY_S, stream.abort)


class Worker:
    """One worker, from the parent's first message to the last client's FIN."""

    def __init__(self, index: int, listener: socket.socket, channel: socket.socket, page: Page) -> None:
        self._index = index
        self._listener = listener
        self._channel_socket = channel
        self._page = page
        self._row = page.row(index)
        self._ended = asyncio.Event()
        self._begun = asyncio.Event()  # something, while nothing was out; or its rest is over
        self._stirred = True  # something has begun since it was looked at whether anything is out
        self._whole_at = 0.0  # the next tick is one that looks at all
        self._slices = Slices()
        self._heard = Line(self._slices)  # what the others' clients are subscribed to, in the order in which it came
        self._telling = False  # what its own are
        self._tasks: set[asyncio.Task[None]] = set()
        self._routers: list[ShardRouter] = []
        self._hold_stats = HoldStats()
        self._applied = Applied(0)  # as the parent was told last
        self._holding: dict[str, Held] = {}
        self._at_work: dict[str, Work] = {}
        self._awake_at = 0.0  # since when the parent's word is waited for; 0: it is not
        self._accepting = False
        self._turning_away = False
        self._channel: Channel | None = None
        self._setup: Setup | None = None
        self._access: Access | None = None
        self._lane: Lane | None = None
        self._here: Context | None = None
        self._lease_pool: LeasePool | None = None
        self._hub: Hub | None = None
        self._session: Session | None = None

    async def run(self) -> None:
        """Serve until drained, or until the parent is gone."""
        asyncio.get_running_loop().set_exception_handler(events.on_loop_error)
        for number in IGNORED:
            asyncio.get_running_loop().add_signal_handler(number, self._ignore, number)
        heard, gone = or_end(self._on_message), or_end(self._on_parent_gone)
        self._channel = await Channel.open(self._channel_socket, heard, gone)
        await self._ended.wait()
        for router in self._routers:
            router.close()
            router.link.close()
        if self._hub is not None:
            self._hub.close()
        self._channel.close()

    def _ignore(self, number: int) -> None:
        """Whoever ends a service tells all its processes (systemd does); a worker drains when its parent says so."""
        name = signal.Signals(number).name
        emit(Event.SIGNAL_IGNORED, index=self._index, signal=name, why="a worker ends with its parent, or by SIGKILL")

    # --- the parent's messages ---

    def _on_message(self, message: Message) -> None:
        if isinstance(message, FleetHealth):
            self._stirred, self._whole_at = True, 0.0  # what follows from it has time until then
        else:
            self._stir()
        match message:
            case Setup():
                self._begin(message)
            case Settings():
                self._set(message)
            case Settled(number=number) if self._here:
                self._here.settled(number)
            case Scripts() | Script():
                self._learn(message)
            case ScriptKnown(digest=digest) if self._here:
                self._here.script_is_known(digest)
            case Topology():
                self._apply(message)
            case FleetHealth():
                self._health(message)
            case AtWork(nodes=nodes):
                for link in (link for router in self._routers for link in router.links):
                    work = nodes.get(str(link.node))
                    link.busy_until = work.until if work else 0.0
            case Subscribers():
                self._heard.run(self._hear(message))
            case SubscribersKnown(number=number) if self._hub:
                self._hub.on_acknowledged(number)
            case Confirmed(at=at):
                self._confirmed(at)
            case Drain(deadline_s=deadline_s):
                self._drain(deadline_s)

    def _begin(self, setup: Setup) -> None:
        loop = asyncio.get_running_loop()
        self._setup = setup
        self._access = Access(setup.config.backend)
        self._here = Context(
            setup,
            self._page,
            Topology(0, [], []),
            None,
            table.TABLE,
            lambda: self._lane.clients if self._lane else (),
            self._tell,
        )
        # the session needs the lane, and the lane what takes the commands that it leaves
        self._lane = Lane(loop, self._take, self._row, setup.config, setup.index, setup.workers)
        self._lease_pool = LeasePool(self._lane, setup.config.limits.borrowed, setup.config.timeouts.reply_s)
        registry = self._here.registry
        self._hub = Hub(
            self._lane,
            setup.config,
            self._access,
            self._spawn,
            self._slices,
            registry,
            setup.workers == 1,
            self._tell_subscribers,
        )
        self._session = Session(self._here, self._lease_pool, self._hub)
        self._lane.on_slept = self._slept
        self._lane.on_begun = self._stir
        split.install(self._lane, self._slices)
        self._lane.set_table(table.TABLE)
        self._row[INDEX["started_us"]] = int(time.time() * 1e6)
        self._lane.publish()  # a beat, or the others would take this worker for one that hangs
        self._row[INDEX["pid"]] = os.getpid()
        self._spawn(self._tick(self._lane), "tick")

    def _take(self, client: Client, route: Route | None, argv: Sequence[bytes]) -> Outcome:
        assert self._session
        return self._session.dispatch(client, route, argv)

    def _set(self, settings: Settings) -> None:
        assert self._here
        if settings.version > self._here.settings.version:
            self._here.settings = settings

    def _learn(self, told: Scripts | Script) -> None:
        assert self._here
        self._here.scripts.take(told.flushes, told.texts if isinstance(told, Scripts) else [told.text])

    def _apply(self, topology: Topology) -> None:
        assert self._here and self._lane and self._setup and self._channel
        if topology.version <= self._here.topology.version:
            return
        if (topology.shards, topology.gates) != (self._here.topology.shards, self._here.topology.gates):
            self._face(topology)
        self._learn_commands(topology.learned)
        self._here.topology = topology
        self._applied = self._state()
        self._channel.send(self._applied)
        if not self._accepting:
            self._accepting = True
            self._accept_on_ready()
            self._channel.send(Ready(os.getpid()))

    def _learn_commands(self, rows: Sequence[Any]) -> None:
        """Nothing that a server says of its commands ends a worker: the next one would end by it too, and so on."""
        assert self._here and self._lane
        try:
            learned = table.extend(table.TABLE, rows)
            self._lane.set_table(learned)
            self._here.table = learned
        except Exception:
            emit(Event.BUG, where="commands that were learned", trace=traceback.format_exc())

    def _face(self, topology: Topology) -> None:
        """A router for each shard; one whose slots are as they were stays, and is told what is new."""
        assert self._lane and self._here
        gates = topology.gates or [Gate(shard.name, 0) for shard in topology.shards]
        before = zip(self._routers, self._here.topology.shards, strict=True)
        old = {shard.name: (router, shard) for router, shard in before}
        routers = []
        for index, (shard, gate) in enumerate(zip(topology.shards, gates, strict=True)):
            router, was = old.get(shard.name, (None, None))
            if router is None or was is None or router.link.index != index or was.slots != shard.slots:
                router = self._router(index, shard, gate)
            routers.append(router)
        gone, self._routers = [router for router in self._routers if router not in routers], routers
        for router, shard, gate in zip(routers, topology.shards, gates, strict=True):
            router.apply(gate, shard)
        if gone or self._lane.links != [router.link for router in routers]:
            owners = ShardMap(topology.version, tuple(topology.shards)).owners()
            self._lane.set_shards([router.link for router in routers], owners)
        for router in gone:
            router.close()
            router.link.close()
        for router in routers:
            if not router.link.backends:
                router.link.connect(router.link.backend(2, 0))
        if self._hub is not None:
            self._hub.apply_topology(topology.shards, gates)

    def _router(self, index: int, shard: Shard, gate: Gate) -> ShardRouter:
        assert self._lane and self._setup and self._access
        lane, config, access = self._lane, self._setup.config, self._access

        def link(node: Node) -> Link:
            return Link(
                lane, index, shard.name, node, config.timeouts, access, self._spawn, self._complain,
                asks_limits=config.promoter_of(shard) != "elasticache",
            )  # fmt: skip

        rules: ShardGate[Client]
        promotion = msgspec.structs.replace(config.promotion, promoter=config.promoter_of(shard))
        rules = ShardGate(shard.name, shard.primary, promotion, self._hold_stats, gate, bool(shard.replicas))
        return ShardRouter(lane, link(shard.primary), rules, config, self._setup.index, link)

    def _state(self) -> Applied:
        assert self._here and self._hub
        busy, unconfirmed = [router.link.name for router in self._routers if router.busy], self._hub.unconfirmed
        closed = [router.link.name for router in self._routers if router.gate.directive.closed]
        return Applied(self._here.topology.version, busy, [name for name in closed if name in unconfirmed])

    def _health(self, health: FleetHealth) -> None:
        assert self._here
        self._here.health = health
        by_name = {router.link.name: router for router in self._routers}
        for shard in health.shards:
            router = by_name.get(shard.name)
            if router is not None:
                router.on_health(shard)
                if shard.node == str(router.link.node):
                    router.link.on_misplaced(shard.misplaced)

    def _slept(self, now: float) -> None:
        """The parent may have given shards other primaries meanwhile, without waiting for this worker."""
        assert self._channel
        self._awake_at = now
        for router in self._routers:
            router.on_slept(now)
        self._channel.send(Awake(now))

    def _confirmed(self, at: float) -> None:
        if at == self._awake_at:
            self._awake_at = 0.0
            for router in self._routers:
                router.on_confirmed()

    def _complain(self, shard: str, node: str, what: str) -> None:
        self._stir()
        self._tell(Complaint(shard, node, what))

    def _tell(self, message: Message) -> None:
        if self._channel is not None:
            self._channel.send(message)

    # --- clients ---

    def _accept_on_ready(self) -> None:
        if self._accepting:
            asyncio.get_running_loop().add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        """Accept one client, if no worker has fewer; so clients are spread evenly and no queue is a worker's own."""
        assert self._lane and self._setup
        loop = asyncio.get_running_loop()
        if self._row[INDEX["clients"]] > self._page.fewest_clients(int(time.monotonic() * 1e6)):
            loop.remove_reader(self._listener.fileno())
            loop.call_later(ACCEPT_AGAIN_S, self._accept_on_ready)
            return
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionError):
            return  # another worker was faster, or the client has left already
        except OSError as exc:  # no descriptor to be had: those who are here are served, and some will go
            emit(Event.ACCEPT, why=exc.strerror)
            loop.remove_reader(self._listener.fileno())
            loop.call_later(0.1, self._accept_on_ready)
            return
        sock.setblocking(False)
        if self._page.total("clients") >= self._setup.config.limits.max_clients:
            if not self._turning_away:
                emit(Event.MAX_CLIENTS, limit=self._setup.config.limits.max_clients)
            self._turning_away = True  # said once, until somebody is let in again
            self._row[INDEX["rejected"]] += 1
            self._spawn(self._take_over(sock, TurnedAway), "turn away")
            return
        self._turning_away = False
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._row[INDEX["accepted"]] += 1
        self._adopt(self._lane, sock)

    def _adopt(self, lane: Lane, sock: socket.socket) -> None:
        if self._hub is not None:
            self._hub.open()
        lane.count_coming(1)  # at once: the other workers look at it before they accept
        self._spawn(self._take_over(sock, lambda: Client(lane)), "client")

    async def _take_over(self, sock: socket.socket, protocol: Callable[[], asyncio.Protocol]) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(protocol, sock)
        except OSError:
            sock.close()
            if self._lane is not None and protocol is not TurnedAway:
                self._lane.count_coming(-1)

    # --- time ---

    async def _tick(self, lane: Lane) -> None:
        assert self._setup
        unfinished_s = self._setup.config.timeouts.unfinished_s
        check_at = tell_at = 0.0
        peak = 0
        while True:
            await self._until_tick(lane)
            now = time.monotonic()
            if not self._stirred and now < self._whole_at:
                lane.beat()
                if self._hub is not None:
                    self._hub.tick(now)
                continue
            self._stirred, self._whole_at = True, now + WHOLE_S
            lane.tick()
            for router in self._routers:
                router.tick(now)
            if self._hub is not None:
                self._hub.tick(now)
                self._row[INDEX["subscribers"]] = self._hub.subscribers
            self._tell_subscribers()
            self._report()
            if now >= tell_at:
                tell_at = now + HOLDING_S
                self._tell_holding()
                self._tell_work(now)
            if now >= check_at:
                check_at = now + SELDOM_S
                lane.check_unfinished(unfinished_s)
                self._look_for_gone()
                if self._lease_pool:
                    self._lease_pool.tick(now)
                peak = give_back(lane.buffered, peak)

    async def _until_tick(self, lane: Lane) -> None:
        """Soon while anything is out or waits; else seldom. What is over by then never was its business."""
        loop = asyncio.get_running_loop()
        rest_until = loop.time() + REST_S
        is_busy = self._is_busy(lane)
        while True:
            if not is_busy:
                self._begun.clear()
                lane.at_rest = True
                timer = loop.call_at(rest_until, self._begun.set)
                await self._begun.wait()
                timer.cancel()
                lane.at_rest = False
                if loop.time() >= rest_until - TICK_S:
                    return
            await asyncio.sleep(TICK_S)
            is_busy = self._is_busy(lane)
            if is_busy:
                return

    def _stir(self) -> None:
        """Something begins, or may have."""
        self._stirred, self._whole_at = True, 0.0
        self._begun.set()

    def _is_busy(self, lane: Lane) -> bool:
        assert self._here
        if not self._stirred:  # it was not before, and what the hub does by itself is all that can be new
            return self._hub is not None and not self._hub.at_rest
        self._stirred = busy = self._is_anything_out(lane)
        return busy

    def _is_anything_out(self, lane: Lane) -> bool:
        assert self._here
        return (
            lane.has_deadlines
            or bool(self._applied.busy or self._applied.unconfirmed or self._at_work or self._here.registry.has_changes)
            or any(not router.at_rest for router in self._routers)
            or (self._hub is not None and not self._hub.at_rest)
        )

    def _report(self) -> None:
        assert self._lane and self._here and self._channel
        links: list[Link] = self._lane.links + self._lane.replica_links
        listening = self._hub.connections if self._hub is not None else 0
        self._row[INDEX["backend_connections"]] = sum(link.connections for link in links) + listening
        self._row[INDEX["borrowed_connections"]] = sum(len(link.leased) for link in links)
        self._row[INDEX["blocked_clients"]] = len(self._here.waiting)
        self._row[INDEX["held_requests"]] = self._hold_stats.requests
        for name in ("held", "drained", "refused_held", "dropped_client_gone", "refused_at_once", "taken_back"):
            self._row[INDEX[name]] = getattr(self._hold_stats, name)
        if (self._applied.busy or self._applied.unconfirmed) and (state := self._state()) != self._applied:
            self._applied = state
            self._channel.send(state)

    def _tell_subscribers(self) -> None:
        """What changed, as soon as the parent can take it."""
        assert self._here
        if self._here.registry.has_changes and not self._telling:
            self._telling = True
            self._slices.run(self._tell_news())

    def _tell_news(self) -> Iterator[int]:
        assert self._here and self._channel
        while self._here.registry.has_changes and not self._channel.congested:
            self._channel.send(self._here.registry.next_update())
            yield BATCH_NAMES // 2  # they only have to be looked up
        self._telling = False

    def _hear(self, said: Subscribers) -> Iterator[int]:
        assert self._here
        yield from self._here.registry.apply(said)
        self._tell(SubscribersKnown(said.number))

    def _look_for_gone(self) -> None:
        """Of a client that has sent so much that it is not read, the loop does not tell that it has closed."""
        assert self._here
        for conversation in list(self._here.waiting):
            if not conversation.stopped and has_closed(conversation.client):
                conversation.half_closed()

    def _tell_holding(self) -> None:
        assert self._channel
        holding = {router.link.name: held for router in self._routers if (held := router.gate.held).requests}
        if holding != self._holding:
            self._holding = holding
            self._channel.send(Holding(holding))

    def _tell_work(self, now: float) -> None:
        """Which servers have been at work on what was sent from here so long that others may take them for silent."""
        assert self._setup and self._channel
        patience_s = self._setup.config.timeouts.slow_reply_s
        found = {}
        for link in (link for router in self._routers for link in router.links):
            since = link.slow_since
            if since and now - since >= AT_WORK_S:
                found[str(link.node)] = Work(link.name, since, since + patience_s)
        if found != self._at_work:
            self._at_work = found
            self._channel.send(AtWork(found))

    # --- the end ---

    def _drain(self, deadline_s: float, orphan: bool = False) -> None:
        if self._lane is None:
            self._ended.set()
        elif not self._lane.draining:
            for router in self._routers:
                router.drain(orphan)
            self._lane.drain()
            self._stop_accepting()
            self._spawn(self._until_drained(self._lane, deadline_s), "drain")

    def _on_parent_gone(self) -> None:
        if self._ended.is_set() or (self._lane is not None and self._lane.draining):
            return  # this end was closed by ourselves, or the parent has gone first at the end of both
        emit(Event.WORKER_ORPHAN, index=self._index)
        self._drain(ORPHAN_FLUSH_S, orphan=True)

    async def _until_drained(self, lane: Lane, deadline_s: float) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + deadline_s
        await asyncio.sleep(TICK_S)  # those who came last are not among the clients before the next turn
        while lane.clients and loop.time() < end:  # noqa: ASYNC110 - they end in compiled callbacks
            await asyncio.sleep(TICK_S)
        for client in list(lane.clients):
            client.abandon()
        self._ended.set()

    def _stop_accepting(self) -> None:
        if self._accepting:
            self._accepting = False
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._empty_backlog()
        self._listener.close()

    def _empty_backlog(self) -> None:
        """Whoever has connected already gets a FIN; at the end of the socket the kernel would send RST."""
        assert self._lane
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setblocking(False)
            self._adopt(self._lane, sock)

    def _spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        """A task whose failure is the worker's end: nothing in it is expected to fail."""
        self._stir()
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            end(task.get_name(), exc)


Heard = ParamSpec("Heard")


def or_end(callback: Callable[Heard, None]) -> Callable[Heard, None]:
    """The callback; where it fails the worker ends, as one that missed a state of its parent's would serve wrongly."""

    def called(*args: Heard.args, **kwargs: Heard.kwargs) -> None:
        try:
            callback(*args, **kwargs)
        except Exception as exc:
            end(callback.__name__, exc)

    return called


def end(what: str, exc: BaseException) -> NoReturn:
    """Nobody expected this, so nothing here is sure any more. The parent starts another worker."""
    emit(Event.BUG, task=what, trace="".join(traceback.format_exception(exc)))
    os._exit(70)  # EX_SOFTWARE


def give_back(held: int, peak: int) -> int:
    """Have the C library return freed memory to the system, once it is worth it -> the new peak of what is held.

    glibc keeps what was freed for the next time; after a burst of large replies that would be hundreds of megabytes.
    """
    if peak - held < TRIM_BYTES:
        return max(peak, held)
    if hasattr(_LIBC, "malloc_trim"):  # musl has none, and keeps less
        _LIBC.malloc_trim(0)
    return held


def keep_the_heap() -> None:
    """Have the C library keep what is freed of middling size for the next request or reply, until `give_back`.

    By default glibc returns every freed buffer of 128 KiB to the system at once, and each page of the next one is a
    fault, which values of 100 KB pay for each time. Larger ones than a read brings (256 KiB) are still returned at
    once, or the budget would not bound the process. (mallopt(3), <malloc.h>: M_TRIM_THRESHOLD is -1, M_MMAP_THRESHOLD
    is -3.)
    """
    if hasattr(_LIBC, "mallopt"):
        _LIBC.mallopt(-1, KEPT_BYTES)
        _LIBC.mallopt(-3, 256 << 10)


def serve(index: int, listen_fd: int, channel_fd: int, page_fd: int) -> None:
    """Run one worker on the descriptors it inherited."""
    events.configure()
    keep_the_heap()
    # Requests make no cycles; full collections would only add to the tail latency.
    gc.freeze()
    gc.set_threshold(20_000, 250, 100)  # what is young is looked at in 2 ms
    listener = socket.socket(fileno=listen_fd)
    listener.setblocking(False)
    uvloop.run(Worker(index, listener, socket.socket(fileno=channel_fd), Page.attach(page_fd)).run())
