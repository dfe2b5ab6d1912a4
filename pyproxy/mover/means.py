"""What all tasks of the mover have in common: the way to the servers, the rate, whether they are paused."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from pyproxy.access import Access
from pyproxy.config import Timeouts
from pyproxy.mover.connection import Lost
from pyproxy.mover.pace import Bucket


class Anew(Exception):
    """A task must begin again, though its servers are well; `str` says why, for operators."""


@dataclass(slots=True)
class Means:
    """`notify` is told that there is progress to report; True: at once."""

    access: Access
    timeouts: Timeouts
    notify: Callable[[bool], None]
    bucket: Bucket = field(default_factory=Bucket)
    going: asyncio.Event = field(default_factory=asyncio.Event)  # not paused


class News:
    """Something has changed: whoever waits for a state looks again."""

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []
        self._timer: asyncio.TimerHandle | None = None

    def tell(self) -> None:
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            for each in waiting:
                if not each.done():
                    each.set_result(None)

    def tell_in(self, seconds: float) -> None:
        """At the latest."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.tell()

    async def next(self) -> None:
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(told)
        await told

    async def until(self, what: Callable[[], bool]) -> None:
        while not what():
            await self.next()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Of what ended a group of tasks: a bug, if there is one among it."""
    found: list[BaseException] = []
    for each in group.exceptions:
        found.append(first_of(each) if isinstance(each, BaseExceptionGroup) else each)
    return next((each for each in found if not isinstance(each, Lost | Anew)), found[0])
