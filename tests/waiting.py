"""Waiting in asynchronous tests: until something is so, else the test fails and says what was seen."""

import asyncio
from collections.abc import Callable


async def until(what: str, done: Callable[[], bool], seen: Callable[[], object], timeout_s: float = 20.0) -> None:
    """Return once `done()`; AssertionError with `seen()` after `timeout_s`. fleet.wait_until is its blocking sister."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while not done():
        assert loop.time() < deadline, f"waited {timeout_s:g} s for {what}; seen: {seen()}"
        await asyncio.sleep(0.005)
