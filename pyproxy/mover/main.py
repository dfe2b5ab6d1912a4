"""The mover process. It gets the channel to the parent, and does for each move what the newest Orders say.

    parent ── MoverSetup, Orders ──▶ mover
    parent ◀── Progress ── mover

Orders and Progress are whole states. A mover whose parent is gone ends at once: what it has done is done, and the next
one begins anew.
"""

import asyncio
import os
import signal
import socket
import traceback
from collections.abc import Callable
from typing import NoReturn, ParamSpec

import uvloop

from protocol.reply import BadFrame
from pyproxy import events
from pyproxy.access import Access
from pyproxy.channel import Channel
from pyproxy.events import Event, emit
from pyproxy.messages import Message
from pyproxy.mover.check import Check
from pyproxy.mover.clearing import Clearing
from pyproxy.mover.connection import Lost
from pyproxy.mover.copying import Copying
from pyproxy.mover.means import Anew, Means
from pyproxy.moves import MoveProgress, MoverSetup, Order, Orders, Progress, Task

PROGRESS_S = 0.02
RETRY_MIN_S = 0.1
RETRY_MAX_S = 5.0

IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Job:
    """One order, from its first attempt to its end. `order` may change in what does not make it another task."""

    def __init__(self, order: Order, means: Means) -> None:
        self._order = order
        self._means = means
        self._attempt: Check | Copying | Clearing | None = None
        self._cleared: Clearing | None = None  # the attempt before
        self._following = asyncio.Event()  # no sync is asked for
        self._restarts = 0
        self._error = ""
        self.update(order)
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"{order.task.value} {order.move.id}")
        self._task.add_done_callback(_on_done)

    def is_for(self, order: Order) -> bool:
        """Whether this order is the one that is at work; a sync may be asked for without beginning anew."""
        return _without_sync(self._order) == _without_sync(order)

    def update(self, order: Order) -> None:
        self._order = order
        if order.sync:
            self._following.clear()
        else:
            self._following.set()
        if isinstance(self._attempt, Copying):
            self._attempt.set_sync(order.sync)

    def progress(self, version: int) -> MoveProgress:
        if self._attempt is not None:
            return self._attempt.progress(version, self._restarts)
        order = self._order
        if self._cleared is not None:
            return self._cleared.progress(version, self._restarts)
        return MoveProgress(order.move.id, order.task, version, restarts=self._restarts, error=self._error)

    async def end(self) -> None:
        """Nothing more comes of it."""
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        retry_s = RETRY_MIN_S
        loop = asyncio.get_running_loop()
        while True:
            # A sync may have been answered before, and the destination own the slots: nothing must be copied then.
            await self._following.wait()
            began = loop.time()
            self._attempt = attempt = self._begin()
            attempt.error = self._error
            try:
                await attempt.run()
            except (Lost, Anew, BadFrame) as exc:
                self._attempt = None
                self._on_failure(attempt, str(exc))
            else:
                return
            if loop.time() - began > RETRY_MAX_S:
                retry_s = RETRY_MIN_S
            await asyncio.sleep(retry_s)
            retry_s = min(RETRY_MAX_S, 2 * retry_s)

    def _begin(self) -> "Check | Copying | Clearing":
        match self._order.task:
            case Task.CHECK:
                return Check(self._order, self._means)
            case Task.COPY:
                return Copying(self._order, self._means)
            case Task.CLEAR | Task.UNDO:
                return Clearing(self._order, self._means, self._cleared)

    def _on_failure(self, attempt: "Check | Copying | Clearing", error: str) -> None:
        if isinstance(attempt, Copying) and attempt.begun:
            self._restarts += 1
        self._error = error
        if isinstance(attempt, Clearing):
            self._cleared = attempt
            attempt.error = error
        emit(Event.MOVE_TROUBLE, move=self._order.move.id, task=self._order.task.value, error=error)
        self._means.notify(False)


def _without_sync(order: Order) -> tuple[object, ...]:
    return (order.move, order.task, order.source, order.source_epoch, order.destination, order.destination_epoch,
            order.replace, order.accept_eviction)  # fmt: skip


class Mover:
    """One mover, from the parent's first message to the end of the parent."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel_socket = channel
        self._channel: Channel | None = None
        self._ended = asyncio.Event()
        self._means: Means | None = None
        self._jobs: dict[str, Job] = {}
        self._orders = Orders(0, [])
        self._news = asyncio.Event()  # newer orders
        self._applied = 0  # the version of the orders that the jobs have
        self._said: list[MoveProgress] = []
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(events.on_loop_error)
        for number in IGNORED:
            loop.add_signal_handler(number, _on_ignored_signal, number)
        self._channel = await Channel.open(self._channel_socket, or_end(self._on_message), self._on_parent_gone)
        await self._ended.wait()

    def _on_parent_gone(self) -> None:
        if self._orders.orders:  # else it is not needed any more; its jobs may not have ended yet
            emit(Event.MOVER_ORPHAN)
        self._ended.set()

    def _on_message(self, message: Message) -> None:
        match message:
            case MoverSetup(config=config):
                self._means = Means(Access(config.backend), config.timeouts, self._notify)
                applying = asyncio.get_running_loop().create_task(self._apply(self._means), name="orders")
                applying.add_done_callback(_on_done)
                self._tasks.add(applying)
            case Orders():
                self._orders = message
                self._news.set()

    async def _apply(self, means: Means) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            orders = self._orders
            means.bucket.bound(orders.bytes_per_s)
            if orders.paused:
                means.going.clear()
            else:
                means.going.set()
            wanted = {order.move.id: order for order in orders.orders}
            # A job that is another now is over before the next of its move begins: both write to the same keys.
            over = [move for move, job in self._jobs.items() if move not in wanted or not job.is_for(wanted[move])]
            await asyncio.gather(*(self._jobs.pop(move).end() for move in over))
            for move, order in wanted.items():
                if move in self._jobs:
                    self._jobs[move].update(order)
                else:
                    self._jobs[move] = Job(order, means)
            self._applied = orders.version
            self._notify(True)

    # --- progress ---

    def _notify(self, urgent: bool) -> None:
        if urgent:
            self._send()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PROGRESS_S, self._send)

    def _send(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        moves = [job.progress(self._applied) for job in self._jobs.values()]
        if moves != self._said and self._channel is not None:
            self._said = moves
            self._channel.send(Progress(moves))


Heard = ParamSpec("Heard")


def or_end(callback: Callable[Heard, None]) -> Callable[Heard, None]:
    """The callback. If it fails, the mover ends: its parent would count on what it does not do."""

    def called(*args: Heard.args, **kwargs: Heard.kwargs) -> None:
        try:
            callback(*args, **kwargs)
        except Exception as exc:
            end(callback.__name__, exc)

    return called


def _on_ignored_signal(number: int) -> None:
    """systemd sends a signal to all processes of a service."""
    name = signal.Signals(number).name
    emit(Event.SIGNAL_IGNORED, signal=name, why="the mover ends with its parent, or by SIGKILL")


def _on_done(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (exc := task.exception()) is not None:
        end(task.get_name(), exc)


def end(what: str, exc: BaseException) -> NoReturn:
    """End this process after a bug, as its state may be wrong. The parent starts another mover, which begins anew."""
    emit(Event.BUG, task=what, trace="".join(traceback.format_exception(exc)))
    os._exit(70)  # EX_SOFTWARE


def serve(channel_fd: int) -> None:
    """Run the mover on the descriptor it inherited."""
    events.configure()
    uvloop.run(Mover(socket.socket(fileno=channel_fd)).run())
