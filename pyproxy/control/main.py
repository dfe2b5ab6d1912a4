"""The parent process: a checked configuration comes in, an exit status goes out.

It has the one listening socket and never accepts on it, makes the page of metrics, checks every server, and refuses to
serve if a primary holds keys of another shard. Then it keeps the workers alive and sends them what the health monitor
sees, until SIGTERM, SIGINT or SIGQUIT drains them; a second SIGINT ends them at once. Where the configuration asks for
it, the status is served over HTTP all that time, from before the first check on.
"""

import asyncio
import contextlib
import os
import resource
import signal
import socket
import sys
import time

import uvloop

from protocol import table
from pyproxy import __version__, events, scripts
from pyproxy.access import Access
from pyproxy.config import Config
from pyproxy.control.failover.coordinator import Coordinator
from pyproxy.control.failover.state_file import StateFile
from pyproxy.control.growth.coordinator import GrowthCoordinator
from pyproxy.control.growth.opening import Opened, check_none_seen, opened, store_of
from pyproxy.control.growth.store import StoreError
from pyproxy.control.health.busy import BusyServers
from pyproxy.control.health.monitor import HealthMonitor
from pyproxy.control.http import admin
from pyproxy.control.http.status import Phase, State
from pyproxy.control.process import listener
from pyproxy.control.process.supervisor import Supervisor
from pyproxy.events import Event, emit
from pyproxy.messages import AtWork, Message, Script, Scripts, ScriptsFlushed, Setup, ShardHealth
from pyproxy.metrics import Page

WORKER = (sys.executable, "-m", "pyproxy.worker")

ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
IGNORED = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)  # others reload, or reopen their logs: nobody is to end of it

EX_UNAVAILABLE = 69  # <sysexits.h>
EX_CONFIG = 78

DATABASES = 16
PROTOCOLS = 2
LISTENING = 1  # for what clients are subscribed to
OTHER_FILES = 64  # of a worker: the loop's, the log, the channel, the page, libraries


class StartError(Exception):
    """Why the proxy does not start: one line for the operator, and the exit status."""

    def __init__(self, line: str, status: int) -> None:
        super().__init__(line)
        self.status = status


def serve(config: Config) -> int:
    """Serve until a signal says otherwise: 0 if drained, 130 after a second SIGINT.

    Raises StartError, and ConfigErrors where AWS or the store knows better than the configuration.
    """
    events.configure()
    if config.undiscovered():
        # Here, and not above: boto3 takes half a second, and is only there where it is asked for.
        from pyproxy.control.failover.promoters.replication_groups import discover

        config = config.with_nodes(discover(config))
    seen, of_store = StateFile(config.promotion.state_file).load().store_generation, None
    try:
        if (store := store_of(config)) is None:
            check_none_seen(seen)
        else:
            of_store = asyncio.run(opened(store, config, seen))
            config = of_store.config
    except StoreError as exc:
        raise StartError(str(exc), EX_CONFIG) from None
    raise_file_limit(config)
    try:
        parent = Parent(config, of_store)
    except listener.CannotListen as exc:
        raise StartError(str(exc), EX_UNAVAILABLE) from None
    return uvloop.run(parent.run())


class Parent:
    """One life of the proxy. `of_store`: what it has of its store; None: there is none."""

    def __init__(self, config: Config, of_store: Opened | None = None) -> None:
        self._config = config
        self._started = time.time()
        self._workers = config.workers or len(os.sched_getaffinity(0))
        self._page: Page | None = None
        self._supervisor: Supervisor | None = None  # until the shards were checked
        self._listener = listener.listener(config.listen)
        self._http_listener = listener.bind(config.http.listen, "http.listen") if config.http.listen else None
        self._admin_listener = _bind_admin(config.http.admin) if config.http.admin else None
        access = Access(config.backend)
        self._work = BusyServers(lambda _shard: self._send_work())
        self._monitor = HealthMonitor(
            config.shard_map(),
            access,
            table.learn,
            lambda _learned: self._coordinator.on_learned(),
            self._broadcast,
            work=self._work,
            accepts=[each.name for each in config.shards if each.accept_misplaced],
            moving=GrowthCoordinator.moving(of_store.document) if of_store is not None else (),
            commands=lambda: self._page.total("commands") if self._page is not None else 0,
            on_seen=lambda shard, is_news: self._coordinator.on_seen(shard, is_news),
            complete=self._complete,
            moves=lambda: self._growth.states if self._growth is not None else [],
        )
        generation = of_store.document.generation if of_store is not None else 0
        self._coordinator = Coordinator(
            config, access, self._monitor, self._broadcast, lambda: self._supervisor, generation
        )
        self._growth = GrowthCoordinator(of_store, self._coordinator, self._monitor) if of_store is not None else None
        self._scripts = scripts.Scripts(config.limits.scripts_bytes)
        self._signals: list[int] = []  # those that end it
        self._cut = False

    async def run(self) -> int:
        """Serve. The exit status; raises StartError."""
        loop = asyncio.get_running_loop()
        main = asyncio.current_task()
        assert main is not None
        loop.set_exception_handler(events.on_loop_error)
        for number in ENDS + IGNORED:
            loop.add_signal_handler(number, self._on_signal, number, main)
        try:
            async with self._http():
                await self._monitor.check_health()
                if self._monitor.misplaced:
                    lines = "; ".join(self._monitor.misplaced)
                    out = "if they are, set accept_misplaced of the shard; `pyproxy verify --misplaced` lists such keys"
                    expected = "shards: expected keys of its own on each primary"
                    raise StartError(f"{expected}, got: {lines}; {out}", EX_CONFIG)
                if unfenced := self._monitor.unfenced:
                    nodes, expected = sum(map(len, unfenced.values())), "min-replicas-to-write of 1 or more"
                    emit(Event.UNFENCED, shards=",".join(unfenced), nodes=nodes, expected=expected)
                with self._listener, contextlib.closing(Page.create(self._workers)) as page:
                    growing = self._growth.coordinating() if self._growth is not None else contextlib.nullcontext()
                    async with self._coordinator.coordinating(), growing, self._admin():
                        await self._serve(page)
        except asyncio.CancelledError:
            if not self._signals:
                raise
        finally:
            self._listener.close()
            self._monitor.close()
        status = 128 + signal.SIGINT if self._cut else 0
        emit(Event.EXIT, status=status)
        return status

    def _http(self) -> contextlib.AbstractAsyncContextManager[None]:
        if self._http_listener is None:
            return contextlib.nullcontext()
        # Here, and not above: aiohttp takes a third of a second and 14 MB, for nothing where it is not asked for.
        from pyproxy.control.http import server

        emit(Event.LISTEN, http=listener.address(self._http_listener))
        return server.serving(self._http_listener, self._state)

    def _admin(self) -> contextlib.AbstractAsyncContextManager[None]:
        if self._admin_listener is None:
            return contextlib.nullcontext()
        emit(Event.LISTEN, admin=self._config.http.admin)
        failover = self._coordinator
        handlers = admin.Handlers(failover.promote, failover.pause, failover.resume, self._move)
        return admin.serving(self._admin_listener, handlers)

    async def _move(self, command: admin.MoveCommand) -> str:
        if self._growth is None:
            raise admin.Refused('store: expected file:/path in the configuration, as slots move only with one, got ""')
        return await self._growth.do(command)

    def _complete(self, health: ShardHealth) -> ShardHealth:
        health = self._coordinator.complete(health)
        return self._growth.complete(health) if self._growth is not None else health

    def _state(self) -> State:
        ready = self._supervisor is not None and self._supervisor.all_ready.is_set()
        phase = Phase.DRAINING if self._signals else Phase.SERVING if ready else Phase.STARTING
        seen = self._monitor.fleet_health
        return State(phase, self._coordinator.shards, seen.shards, time.monotonic(), time.time(), seen.moves)

    async def _serve(self, page: Page) -> None:
        self._page = page
        listen = listener.address(self._listener)
        supervisor = self._supervisor = Supervisor(
            WORKER,
            self._listener,
            page,
            lambda index: Setup(index, self._workers, self._config, listen, __version__, self._started),
            self._states,
            lambda complaint: self._monitor.complain(complaint.shard, complaint.node, complaint.code),
            self._on_work,
            lambda message, settled: self._coordinator.settings.configure(message.name, message.value, settled),
            self._on_script,
        )
        many = _count(self._workers, "worker"), _count(len(self._config.shards), "shard")
        print(f"pyproxy {__version__} listening on {listen}, {', '.join(many)}", file=sys.stderr, flush=True)
        async with asyncio.TaskGroup() as group:
            beside = [
                group.create_task(self._monitor.run(), name="health"),
                group.create_task(self._log_ready(supervisor, listen), name="ready"),
            ]
            await supervisor.run()
            for task in beside:
                task.cancel()

    async def _log_ready(self, supervisor: Supervisor, listen: str) -> None:
        await supervisor.all_ready.wait()
        emit(Event.READY, listen=listen, workers=self._workers, shards=len(self._config.shards))

    def _states(self) -> list[Message]:
        """What a worker must know before it serves."""
        known = Scripts(self._scripts.flushes, self._scripts.texts)
        return [self._coordinator.settings.state, known, self._coordinator.topology, self._monitor.fleet_health]

    def _on_work(self, index: int, message: AtWork | None) -> None:
        """A worker reports which servers are busy with what it has sent; None: it has ended."""
        if message is None:
            self._work.worker_ended(index)
            return
        for shard in self._work.update(index, message):
            self._monitor.complain(shard)  # what was silent answers now, or has no excuse any more
        self._send_work()

    def _send_work(self) -> None:
        if self._supervisor is not None:
            self._supervisor.send_each(self._work.others)

    def _on_script(self, message: Script | ScriptsFlushed) -> None:
        """A client has loaded or flushed scripts: all workers learn that."""
        if isinstance(message, ScriptsFlushed):
            self._scripts.flush()
            self._broadcast(Scripts(self._scripts.flushes))
        elif message.flushes == self._scripts.flushes and self._scripts.learn(message.text):
            self._broadcast(message)

    def _broadcast(self, state: Message) -> None:
        if self._supervisor is not None:
            self._supervisor.broadcast(state)

    def _on_signal(self, number: int, main: "asyncio.Task[int]") -> None:
        name = signal.Signals(number).name
        if number in IGNORED:
            emit(Event.SIGNAL_IGNORED, signal=name, why="nothing is read again while it runs; restart it for that")
            return
        is_first, again = not self._signals, number == signal.SIGINT and number in self._signals
        self._signals.append(number)
        if self._supervisor is None:
            emit(Event.DRAIN, signal=name, again=not is_first)
            main.cancel()
        elif is_first:
            emit(Event.DRAIN, signal=name, again=False)
            # Whoever connects from now on is refused by the kernel as soon as the workers have closed theirs too.
            self._listener.close()
            self._supervisor.drain(self._config.timeouts.drain_s)
        elif again:
            emit(Event.DRAIN, signal=name, again=True)
            self._cut = True
            self._supervisor.kill()
        else:
            emit(Event.SIGNAL_IGNORED, signal=name, why="it drains; SIGINT twice, or SIGKILL, ends it at once")

    def __repr__(self) -> str:
        return f"<Parent {self._supervisor or 'starting'} {self._monitor}>"


def raise_file_limit(config: Config) -> None:
    """Raise the limit of open files as far as it goes; StartError where the clients would not fit.

    All of them may have to fit into one worker, while others are being restarted. A worker has a connection to each
    shard for each database and protocol in use, and one for publish/subscribe.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    room = hard - len(config.shards) * (DATABASES * PROTOCOLS + LISTENING) - OTHER_FILES
    if hard != resource.RLIM_INFINITY and config.limits.max_clients > room:
        raise StartError(
            f"limits.max_clients: expected at most {max(room, 0)}, as {hard} files may be open (ulimit -Hn), "
            f"got {config.limits.max_clients}",
            EX_CONFIG,
        )


def _bind_admin(path: str) -> socket.socket:
    try:
        return admin.bind(path)
    except OSError as exc:
        line = f"http.admin: expected a path where a socket can be, got {path}: {(exc.strerror or str(exc)).lower()}"
        raise StartError(line, EX_UNAVAILABLE) from None


def _count(number: int, of: str) -> str:
    return f"{number} {of}" if number == 1 else f"{number} {of}s"
