"""Work with many parts, a slice in each turn of the event loop, so that whoever asks for little never waits for it.

Work is an iterator: each step does a few parts and yields how many. In one turn of the loop PARTS parts are done, of
all works together. The rest goes on in the next turn, after the sockets were looked at. Works take turns, so a small
one is done soon however large the others are. What must be done in order goes through a `Line`.
"""

import asyncio
import itertools
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

from pyproxy.events import Event, emit

PARTS = 800
"""Of a turn. A part takes some microseconds: a name registered, encoded or confirmed; a message handed to a client."""

QUANTUM = 100  # of one work, before the next has its turn
BATCH = 50  # parts of a step; that no step has more is what the bound of a turn rests on

Part = TypeVar("Part")


def batches(parts: Iterable[Part], size: int = BATCH) -> Iterator[list[Part]]:
    """The parts in lists of at most `size`; what they are taken from must not change meanwhile."""
    left = iter(parts)
    while batch := list(itertools.islice(left, size)):
        yield batch


class Slices:
    """One process's. Its event loop must be running, or about to, when work comes."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None, parts: int = PARTS) -> None:
        self._loop = loop
        self._parts = parts
        self._left = parts
        self._works: deque[Iterator[int]] = deque()
        self._begun = False  # something was done since the last turn, or is to be done
        self._working = False

    @property
    def spent(self) -> bool:
        """Whether nothing more is done in this turn."""
        return self._left <= 0

    def run(self, work: Iterator[int]) -> None:
        """Have it done, from now on; its first steps at once where this turn allows it."""
        self._works.append(work)
        if self._left > 0 and not self._working and len(self._works) == 1:
            self._go_on()
        self._next_turn()

    def _next_turn(self) -> None:
        if not self._begun:
            self._begun = True
            (self._loop or asyncio.get_running_loop()).call_soon(self._turn)

    def _turn(self) -> None:
        self._begun = False
        self._left = self._parts
        self._go_on()
        if self._works or self._left < self._parts:
            self._next_turn()

    def _go_on(self) -> None:
        self._working = True
        try:
            while self._works and self._left > 0:
                work = self._works.popleft()
                if self._some(work):
                    self._works.append(work)
        finally:
            self._working = False

    def _some(self, work: Iterator[int]) -> bool:
        """A quantum of it -> whether there is more."""
        quantum = QUANTUM
        try:
            for done in work:
                self._left -= done
                quantum -= done
                if quantum <= 0 or self._left <= 0:
                    return True
        except Exception:  # our own fault: it ends this work, and no other
            emit(Event.BUG, where=work, trace=traceback.format_exc())
        return False

    def __repr__(self) -> str:
        return f"<Slices, {len(self._works)} works>"


class Line:
    """Works that are done one after the other, in the order in which they came."""

    def __init__(self, slices: Slices) -> None:
        self._slices = slices
        self._works: deque[Iterator[int]] = deque()
        self._runs = False

    def run(self, work: Iterator[int]) -> None:
        self._works.append(work)
        if not self._runs:
            self._runs = True
            self._slices.run(self._all())

    def _all(self) -> Iterator[int]:
        try:
            while self._works:
                yield from self._works.popleft()
        except Exception:
            if self._works:
                self._slices.run(self._all())
            else:
                self._runs = False
            raise
        self._runs = False
