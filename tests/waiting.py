"""Waiting in asynchronous tests: until something is so, else the test fails and says what was seen."""

import asyncio
import select
from collections.abc import Callable
from typing import Protocol


async def until(what: str, done: Callable[[], bool], seen: Callable[[], object], timeout_s: float = 20.0) -> None:
    """Return once `done()`; AssertionError with `seen()` after `timeout_s`. fleet.wait_until is its blocking sister."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while not done():
        assert loop.time() < deadline, f"waited {timeout_s:g} s for {what}; seen: {seen()}"
        await asyncio.sleep(0.005)


class HasDescriptor(Protocol):
    def fileno(self) -> int: ...


def readable_within(file: HasDescriptor | int, timeout_s: float) -> bool:
    """Whether there is something to read, or the end, within so many seconds; of any descriptor, unlike select(2)."""
    poll = select.poll()
    poll.register(file, select.POLLIN)
    return bool(poll.poll(max(0.0, timeout_s) * 1000))
