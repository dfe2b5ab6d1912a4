"""Deadlines for others: how long a server, or another process, may take to answer.

A process that was late itself must not take its own lateness for the silence of another. So time is counted in steps,
of which each counts once however long it took: a turn of the event loop that lasts for ever costs the other one step.
And before a deadline has passed the sockets are read: what is in them by then has come in time.

For pauses, where nobody is waited for, asyncio's own are right.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

STEPS = 8
"""Of a deadline. More, and each would be a timer; fewer, and a late turn would cost more."""

TURNS = 8
"""Of the event loop after the last step. One reads what is in a socket; whoever waits for it runs in the next, and with
TLS, or an answer that a StreamReader takes in pieces, it takes some."""


class Deadline:
    """Calls `passed` once this process has run for so many seconds, and has read its sockets then.

    Its event loop must be running.
    """

    def __init__(self, seconds: float, passed: Callable[[], object]) -> None:
        self._loop = asyncio.get_running_loop()
        self._passed: Callable[[], object] | None = passed
        self._step_s = max(0.0, seconds) / STEPS
        self._left = STEPS
        self._handle: asyncio.Handle | None = self._loop.call_later(self._step_s, self._step)

    def _step(self) -> None:
        self._left -= 1
        if self._left > 0:
            self._handle = self._loop.call_later(self._step_s, self._step)
        elif self._left > -TURNS:
            self._handle = self._loop.call_soon(self._step)
        else:
            passed, self._passed, self._handle = self._passed, None, None
            if passed is not None:
                passed()

    def cancel(self) -> None:
        """`passed` is not called any more."""
        self._passed = None
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None


@contextlib.asynccontextmanager
async def within(seconds: float | None) -> AsyncIterator[None]:
    """As asyncio.timeout: what is awaited in the block is ended after so long, and TimeoutError raised. None: never."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as timeout:
        deadline = None if seconds is None else Deadline(seconds, lambda: timeout.reschedule(loop.time()))
        try:
            yield
        finally:
            if deadline is not None:
                deadline.cancel()
