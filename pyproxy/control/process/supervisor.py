"""The life of the workers.

Each worker is a process that inherits the listening socket, its end of a channel and the page of metrics, and is
told the setup and the present states as its first messages. One that dies is counted out of the page and started
again, after 0.1 s at first, then twice as long each time up to 5 s; one that has lived 10 s starts over at 0.1 s.
The others notice nothing.

    keep(i):  start -> Setup, states -> Ready -> ... -> exit -> clear its row -> back-off -> start
    drain():  Drain to all -> they exit -> those that have not after the deadline and a second are killed

The parent's copy of the worker's end of the channel is closed as soon as the worker has it: so each side sees the
end of the other as the end of the stream.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from pyproxy.channel import Channel, encoded
from pyproxy.control.process.subscriptions import BATCH_NAMES, SubscriptionCounts
from pyproxy.deadline import within
from pyproxy.events import Event, emit
from pyproxy.messages import (
    Applied,
    AtWork,
    Awake,
    Complaint,
    Configured,
    Confirmed,
    Drain,
    Holding,
    Message,
    Ready,
    Script,
    ScriptKnown,
    ScriptsFlushed,
    Settled,
    Setup,
    Subscribers,
    SubscribersKnown,
)
from pyproxy.metrics import Page
from pyproxy.scripts import digest_of
from pyproxy.slices import Line, Slices

RESTART_MIN_S = 0.1
RESTART_MAX_S = 5.0
STEADY_S = 10.0  # a worker that lived so long did not fail at its start
READY_S = 30.0  # from the start of the process; a loaded machine takes seconds to import
CLOSED_S = 2.0  # from the end of its channel to the end of its process
DRAIN_SLACK_S = 1.0
DRAINED_S = 60.0  # between two looks at who has requests in flight from before slots moved; none is to be missed
SHARE_S = 0.02  # until a worker that does not read is sent the numbers of subscribers again


class Worker:
    """One process and the channel to it."""

    def __init__(self, index: int, process: asyncio.subprocess.Process) -> None:
        self.index = index
        self.process = process
        self.channel: Channel | None = None
        self.ready = asyncio.Event()
        self.applied = Applied(0)
        self.holding = Holding({})
        self.counted = False  # with its subscribers
        self.closed = asyncio.Event()  # the channel's end; `ready` is then set too, to wake who waits for it

    def on_closed(self) -> None:
        self.closed.set()
        self.ready.set()

    def kill(self, reason: str) -> None:
        if self.process.returncode is None:
            emit(Event.WORKER_KILL, index=self.index, pid=self.process.pid, reason=reason)
            self.process.kill()

    def __repr__(self) -> str:
        state = "ended" if self.process.returncode is not None else "ready" if self.ready.is_set() else "starting"
        return f"<Worker {self.index} pid {self.process.pid} {state}>"


class Supervisor:
    """All workers. `command` starts one, and gets --index and the three file descriptors as arguments.

    `setup` makes the first message for a worker of this index, `states` the messages that follow it. `on_complaint`
    gets what the workers have to say of the servers, `on_work` by index what they have them work on (None: the worker
    has ended), `on_configured` what their clients have set and what to call when the primaries have it, `on_script`
    what scripts they have loaded or flushed.
    """

    def __init__(
        self,
        command: Sequence[str],
        listener: socket.socket,
        page: Page,
        setup: Callable[[int], Setup],
        states: Callable[[], Sequence[Message]],
        on_complaint: Callable[[Complaint], None],
        on_work: Callable[[int, AtWork | None], None],
        on_configured: Callable[[Configured, Callable[[], None]], None],
        on_script: Callable[[Script | ScriptsFlushed], None],
    ) -> None:
        self.all_ready = asyncio.Event()
        self._command = command
        self._listener = listener
        self._page = page
        self._setup = setup
        self._states = states
        self._on_complaint = on_complaint
        self._on_work = on_work
        self._on_configured = on_configured
        self._on_script = on_script
        self._waiting: set[asyncio.Event] = set()  # for an Applied, or the end of a worker
        self._workers: dict[int, Worker] = {}
        self._were_ready: set[int] = set()
        self._stopping = asyncio.Event()
        self._killing = False
        self._drain_s = 0.0
        self._subscriptions = SubscriptionCounts()
        self._slices = Slices()
        self._counting = Line(self._slices)  # of numbers, and of workers that begin and end, in order
        self._sharing = False

    async def run(self) -> None:
        """Keep all workers alive until `drain` or `kill`; returns when none is left. Cancelled, it kills them."""
        async with asyncio.TaskGroup() as group:
            enforcer = group.create_task(self._enforce_drain(), name="drain")
            async with asyncio.TaskGroup() as supervised:
                for index in range(self._page.workers):
                    supervised.create_task(self._keep_running(index), name=f"worker {index}")
            enforcer.cancel()

    def broadcast(self, message: Message) -> None:
        body = encoded(message)
        for worker in self._workers.values():
            if worker.channel is not None:
                worker.channel.send(message, body)

    def send_each(self, message: Callable[[int], Message]) -> None:
        """Send each worker what this makes for its index."""
        for index, worker in self._workers.items():
            if worker.channel is not None:
                worker.channel.send(message(index))

    async def all_applied(self, version: int, deadline_s: float, shard: str = "") -> list[int]:
        """Wait until every worker has applied this version -> those that have not in time, by index.

        With a shard: and owes no answer to a write of it. A worker that ends is not waited for: its successor begins
        with the present states.
        """
        return await self._laggards(lambda applied: applied.version < version or shard in applied.busy, deadline_s)

    async def all_subscribed(self, shard: str, deadline_s: float) -> list[int]:
        """Wait until every worker has what its clients are subscribed to at this shard -> those that do not in time."""
        return await self._laggards(lambda applied: shard in applied.unconfirmed, deadline_s)

    async def all_drained(self, version: int, shard: str) -> None:
        """Wait until no worker has a request in flight to this shard from before this version."""
        while await self._laggards(lambda each: each.version < version or shard in each.outdated, DRAINED_S):
            pass

    async def _laggards(self, is_late: Callable[[Applied], bool], deadline_s: float) -> list[int]:
        """Those of which that is so at the end, or after so long."""

        def late() -> list[int]:
            running = [(index, worker) for index, worker in self._workers.items() if worker.channel is not None]
            return [index for index, worker in running if is_late(worker.applied)]

        changed = asyncio.Event()
        self._waiting.add(changed)
        try:
            async with within(deadline_s):
                while late():
                    await changed.wait()
                    changed.clear()
        except TimeoutError:
            pass
        finally:
            self._waiting.discard(changed)
        return late()

    def _wake_waiting(self) -> None:
        for waiting in self._waiting:
            waiting.set()

    def kill_worker(self, index: int, reason: str) -> None:
        """End one at once; it is started again."""
        if index in self._workers:
            self._workers[index].kill(reason)

    def held(self, shard: str) -> int:
        """How many requests of this shard the workers hold."""
        held = (worker.holding.held.get(shard) for worker in self._workers.values())
        return sum(each.requests for each in held if each is not None)

    def drain(self, deadline_s: float) -> None:
        """Have all workers end in order, and whoever has not by then be killed."""
        self._drain_s = deadline_s
        self._stopping.set()
        self.broadcast(Drain(deadline_s))

    def kill(self) -> None:
        """Have all workers end at once."""
        self._killing = True
        self._stopping.set()
        for worker in self._workers.values():
            worker.kill("told to stop at once")

    async def _enforce_drain(self) -> None:
        await self._stopping.wait()
        await asyncio.sleep(self._drain_s + DRAIN_SLACK_S)
        for worker in self._workers.values():
            worker.kill(f"not drained within {self._drain_s:g} s")

    async def _keep_running(self, index: int) -> None:
        pause_s = RESTART_MIN_S
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                status = await self._live(index)
            except OSError as exc:  # no process or no descriptor to be had
                status = f"not started: {exc.strerror}"
            finally:
                self._workers.pop(index, None)
                self._count(self._subscriptions.worker_ended(index))
                self._on_work(index, None)
                self._page.retire(index)
                self._wake_waiting()
            if self._stopping.is_set():
                return
            if time.monotonic() - started >= STEADY_S:
                pause_s = RESTART_MIN_S
            emit(Event.WORKER_DEATH, index=index, status=status, restart_in_s=pause_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause_s)
            pause_s = min(pause_s * 2, RESTART_MAX_S)

    async def _live(self, index: int) -> str:
        """One process from its start to its end, and how that was."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with contextlib.ExitStack() as not_taken_over:
            not_taken_over.callback(ours.close)
            with theirs:
                process = await self._start(index, theirs.fileno())
            worker = self._workers[index] = Worker(index, process)
            emit(Event.WORKER_START, index=index, pid=process.pid)
            try:
                channel = await Channel.open(ours, lambda message: self._on_message(worker, message), worker.on_closed)
                not_taken_over.pop_all()
                with contextlib.closing(channel):
                    worker.channel = channel
                    self._greet(worker, channel)
                    return await self._until_exit(worker)
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()

    async def _start(self, index: int, channel_fd: int) -> asyncio.subprocess.Process:
        listen_fd, page_fd = self._listener.fileno(), self._page.fd
        return await asyncio.create_subprocess_exec(
            *self._command,
            *("--index", str(index), "--listen-fd", str(listen_fd)),
            *("--channel-fd", str(channel_fd), "--page-fd", str(page_fd)),
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=(listen_fd, channel_fd, page_fd),
            start_new_session=True,  # Ctrl-C is for the parent, which drains; a worker must not end of it
        )

    def _greet(self, worker: Worker, channel: Channel) -> None:
        channel.send(self._setup(worker.index))
        for state in self._states():
            channel.send(state)
        self._count(self._on_started(worker))
        if self._killing:  # said while the process was being started
            worker.kill("told to stop at once")
        elif self._stopping.is_set():
            channel.send(Drain(self._drain_s))

    async def _until_exit(self, worker: Worker) -> str:
        async with asyncio.TaskGroup() as group:
            guard = group.create_task(self._guard(worker), name=f"guard worker {worker.index}")
            status = await worker.process.wait()
            guard.cancel()
        return _said(status)

    async def _guard(self, worker: Worker) -> None:
        """Kill a worker that does not get ready, or left its channel and stays; when draining, it has a deadline."""
        try:
            async with within(READY_S):
                await worker.ready.wait()
        except TimeoutError:
            worker.kill(f"not ready within {READY_S:g} s")
            return
        await worker.closed.wait()
        await asyncio.sleep(CLOSED_S)
        if not self._stopping.is_set():
            worker.kill("left its channel and did not end")

    def _on_message(self, worker: Worker, message: Message) -> None:
        match message:
            case Ready():
                worker.ready.set()
                self._count(self._ready(worker))
                emit(Event.WORKER_READY, index=worker.index, pid=worker.process.pid)
                self._were_ready.add(worker.index)
                if len(self._were_ready) == self._page.workers:
                    self.all_ready.set()
            case Applied():
                worker.applied = message
                self._wake_waiting()
            case Holding():
                worker.holding = message
            case AtWork():
                self._on_work(worker.index, message)
            case Awake(at=at):
                assert worker.channel is not None  # it came through it
                for state in self._states():
                    worker.channel.send(state)
                worker.channel.send(Confirmed(at))
            case Configured(number=number):
                assert worker.channel is not None  # it came through it
                self._on_configured(message, partial(worker.channel.send, Settled(number)))
            case Script(text=text):
                self._on_script(message)
                assert worker.channel is not None  # it came through it
                worker.channel.send(ScriptKnown(digest_of(text)))
            case ScriptsFlushed():
                self._on_script(message)
            case Subscribers():
                self._count(self._said(worker, message))
            case SubscribersKnown(number=number):
                self._count(self._on_acknowledged(worker, number))
            case Complaint(shard=shard, node=node, what=what):
                emit(Event.COMPLAINT, index=worker.index, shard=shard, node=node, what=what)
                self._on_complaint(message)

    # --- who is subscribed to what ---

    def _count(self, work: Iterator[int]) -> None:
        self._counting.run(work)
        self._share_soon()

    def _on_started(self, worker: Worker) -> Iterator[int]:
        if self._workers.get(worker.index) is worker:
            worker.counted = True
            yield from self._subscriptions.worker_started(worker.index)

    def _said(self, worker: Worker, message: Subscribers) -> Iterator[int]:
        if self._workers.get(worker.index) is worker:
            yield from self._subscriptions.update(worker.index, message)

    def _ready(self, worker: Worker) -> Iterator[int]:
        if self._workers.get(worker.index) is worker:
            self._subscriptions.ready(worker.index)
        yield 1

    def _on_acknowledged(self, worker: Worker, number: int) -> Iterator[int]:
        if self._workers.get(worker.index) is worker:
            self._subscriptions.acknowledged(worker.index, number)
        yield 1

    def _share_soon(self, in_s: float = 0.0) -> None:
        if not self._sharing:
            self._sharing = True
            asyncio.get_running_loop().call_later(in_s, lambda: self._slices.run(self._share()))

    def _share(self) -> Iterator[int]:
        """Tell each worker what has changed with the subscribers of the others; one that does not read, later."""
        more = True
        while more:
            more = False
            for worker in list(self._workers.values()):
                if self._share_with(worker):
                    more = True
                    yield BATCH_NAMES // 2  # they are found at once
            for index, number in self._subscriptions.known():
                channel = self._workers[index].channel if index in self._workers else None
                if channel is not None:
                    channel.send(SubscribersKnown(number))
        self._sharing = False
        if any(self._subscriptions.has_news(index) for index in self._workers):
            self._share_soon(SHARE_S)

    def _share_with(self, worker: Worker) -> bool:
        channel = worker.channel
        if channel is None or channel.congested or not worker.counted or not self._subscriptions.has_news(worker.index):
            return False
        channel.send(self._subscriptions.news(worker.index))
        return True

    def __repr__(self) -> str:
        return f"<Supervisor of {list(self._workers.values())}{' stopping' if self._stopping.is_set() else ''}>"


def _said(status: int) -> str:
    return f"exit {status}" if status >= 0 else f"signal {-status}"
