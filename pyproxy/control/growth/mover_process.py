"""The mover, as the parent has it: a process that runs while moves are under way.

It is told all that it is to do in each message (`Orders`). One that ends is started again, after 0.1 s at first, then
twice as long each time up to 5 s.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Sequence

from pyproxy.channel import Channel
from pyproxy.deadline import within
from pyproxy.events import Event, emit
from pyproxy.messages import Message
from pyproxy.moves import MoverSetup, Orders, Progress

RESTART_MIN_S = 0.1
RESTART_MAX_S = 5.0
STEADY_S = 10.0  # a mover that lived so long did not fail at its start
END_S = 2.0  # for one that is not needed any more to end by itself


class MoverProcess:
    """`on_progress` gets what it says, `on_lost` is called when one has ended that was needed."""

    def __init__(
        self,
        command: Sequence[str],
        setup: MoverSetup,
        on_progress: Callable[[Progress], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._command = command
        self._setup = setup
        self._on_progress = on_progress
        self._on_lost = on_lost
        self._orders = Orders(0, [])
        self._wanted = asyncio.Event()
        self._channel: Channel | None = None
        self._is_let_go = False  # the present process: it was told to end

    def order(self, orders: Orders, needed: bool) -> None:
        """This is all that it is to do from now on. `needed`: there is more to come, or no process runs."""
        self._orders = orders
        if needed:
            self._wanted.set()
        else:
            self._wanted.clear()
            self._is_let_go = True
        if self._channel is not None:
            self._channel.send(orders)
            if not needed:
                self._channel.close()

    async def run(self) -> None:
        """Keep it running while it is needed, until cancelled."""
        pause_s = RESTART_MIN_S
        while True:
            await self._wanted.wait()
            self._is_let_go = False
            began = asyncio.get_running_loop().time()
            try:
                status = await self._live()
            except OSError as exc:  # no process or no descriptor to be had
                status = exc.strerror or str(exc)
            if self._is_let_go:  # it may be wanted again by now: the next one gets the orders of now
                pause_s = RESTART_MIN_S
                continue
            if asyncio.get_running_loop().time() - began >= STEADY_S:
                pause_s = RESTART_MIN_S
            emit(Event.MOVER_DEATH, status=status, restart_in_s=pause_s)
            self._on_lost()
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, RESTART_MAX_S)

    async def _live(self) -> str:
        """One process from its start to its end, and how that was."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with contextlib.ExitStack() as not_taken_over:
            not_taken_over.callback(ours.close)
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *self._command,
                    *("--channel-fd", str(theirs.fileno())),
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,  # Ctrl-C is for the parent
                )
            emit(Event.MOVER_START, pid=process.pid)
            try:
                closed = asyncio.Event()
                channel = await Channel.open(ours, self._on_message, closed.set)
                not_taken_over.pop_all()
                with contextlib.closing(channel):
                    self._channel = channel
                    channel.send(self._setup)
                    channel.send(self._orders)
                    if self._is_let_go:  # while it was started
                        channel.close()
                    await self._until_closed(process, closed)
            finally:
                self._channel = None
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        return f"status {process.returncode}"

    async def _until_closed(self, process: asyncio.subprocess.Process, closed: asyncio.Event) -> None:
        """Until it has ended, or has left its channel and had the time to end."""
        async with asyncio.TaskGroup() as group:
            leaving = group.create_task(closed.wait())
            ending = group.create_task(process.wait())
            await asyncio.wait([leaving, ending], return_when=asyncio.FIRST_COMPLETED)
            with contextlib.suppress(TimeoutError):
                async with within(END_S):
                    await asyncio.wait([ending])
            leaving.cancel()
            ending.cancel()

    def _on_message(self, message: Message) -> None:
        if isinstance(message, Progress):
            self._on_progress(message)

    def __repr__(self) -> str:
        return f"<MoverProcess {'runs' if self._channel else 'is not there'}, {len(self._orders.orders)} orders>"
