"""An event loop without a system under it: time passes when it is told to, and callbacks run when they are told to."""

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, cast

from pyproxy.worker.lane import lane

START = 1000.0
"""What the time is when a history begins, CLOCK_MONOTONIC, s."""


class Loop:
    """What asyncio and the worker ask of a loop, and no more.

    `failures`: what went wrong in callbacks and tasks. `connects`: makes connections; see network.py.
    """

    def __init__(self, congested_at: int) -> None:
        self.now = START
        self._sleeps: list[tuple[float, float]] = []  # when, and for how long
        self.failures: list[str] = []
        self.tasks: set[asyncio.Task[Any]] = set()
        self.connects: Any = None
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._count = 0
        self._congested_at = congested_at
        self._tell_lane()

    # --- time ---

    def time(self) -> float:
        return self.now

    def _tell_lane(self) -> None:
        lane.simulate(self.now, self._congested_at)

    def advance(self, seconds: float) -> None:
        """Time passes, and whatever is due meanwhile runs when it is due."""
        until = self.now + seconds
        while self._timers and self._timers[0][0] <= until:
            at, _, timer = heapq.heappop(self._timers)
            if timer.cancelled():
                continue
            self.now = max(self.now, at)
            self._tell_lane()
            self._ready.append(timer)
            self.settle()
        self.now = until
        self._tell_lane()
        self.settle()

    def sleep(self, seconds: float) -> None:
        """The process stands still: time passes, and nothing runs."""
        self._sleeps.append((self.now, seconds))
        self.now += seconds
        self._tell_lane()

    def slept_since(self, begin: float) -> float:
        """How long the process has stood still since then, s."""
        return sum(seconds for at, seconds in self._sleeps if at + seconds > begin)

    # --- callbacks ---

    @property
    def is_idle(self) -> bool:
        return not self._ready

    def turn(self) -> None:
        """One turn: what is due by now runs, what that asks for does not."""
        while self._timers and self._timers[0][0] <= self.now:
            self._ready.append(heapq.heappop(self._timers)[2])
        for _ in range(len(self._ready)):
            handle = self._ready.popleft()
            if not handle.cancelled():
                handle._run()

    def settle(self) -> None:
        """Turns, until nothing is left to run now."""
        for _ in range(1000):
            if not self._ready:
                return
            self.turn()
        self.failures.append("the loop never comes to rest")

    def run(self, callback: Callable[..., Any], *args: Any) -> None:
        """An event of a socket: nothing may come out of it but what uvloop would treat as a failure."""
        try:
            callback(*args)
        except Exception as exc:
            self.failures.append(f"{getattr(callback, '__qualname__', callback)} raised {exc!r}")

    # --- what asyncio asks of a loop ---

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, cast(Any, self), context)
        self._ready.append(handle)
        return handle

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, cast(Any, self), context)
        self._count += 1
        heapq.heappush(self._timers, (when, self._count, timer))
        return timer

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is left out when its time comes."""

    def create_future(self) -> "asyncio.Future[Any]":
        return asyncio.Future(loop=cast(Any, self))

    def create_task(self, coro: Coroutine[Any, Any, Any], *, name: Any = None, context: Any = None) -> Any:
        task = asyncio.Task(coro, loop=cast(Any, self), name=name)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.failures.append(f"{context.get('message')}: {context.get('exception')!r}")

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def add_reader(self, fd: Any, callback: Callable[..., Any], *args: Any) -> None:
        """Nobody comes by the listening socket; see `World.open`."""

    def remove_reader(self, fd: Any) -> bool:
        return True

    async def create_connection(self, factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:
        return await self.connects.connect(factory, host, port)

    async def connect_accepted_socket(self, protocol_factory: Any, sock: Any, **_: Any) -> Any:
        return self.connects.take_over(protocol_factory, sock)
