"""The names that are to be copied because they have changed, the oldest first. Pure.

The rule of copying: a name leaves the set when its DUMP is *sent*, never when the answer comes. Whatever changes after
that marks it again, so the last thing that is copied is the last thing that was written. The server does not say in
which database a name has changed, so a dirty name is dirty in all of them.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass

OVERHEAD = 300
"""Bytes of memory of a name beside its own, roughly: its header, its entry in the dictionary, a mark, two numbers."""


@dataclass(frozen=True, slots=True)
class Mark:
    """When a name was marked: by the clock, and by the number of marks before."""

    number: int
    at: float


class Dirty:
    def __init__(self) -> None:
        self.bytes = 0  # of memory, roughly
        self.marked = 0  # how often a clean name was marked
        # In the order of marking. A plain dict would pass over all that was taken from its front, each time.
        self._marks: OrderedDict[bytes, Mark] = OrderedDict()
        self._returned: dict[bytes, Mark] = {}  # which were to be copied before, and could not be

    def __len__(self) -> int:
        return len(self._marks) + len(self._returned)

    def __contains__(self, name: bytes) -> bool:
        return name in self._marks or name in self._returned

    def mark(self, names: Iterable[bytes], now: float) -> None:
        """They have changed. One that is dirty stays where it is."""
        for name in names:
            if name not in self._marks and name not in self._returned:
                self.marked += 1
                self._marks[name] = Mark(self.marked, now)
                self.bytes += len(name) + OVERHEAD

    @property
    def returned(self) -> int:
        """How many are dirty because they could not be copied."""
        return len(self._returned)

    def oldest(self, most: int, until: float, busy: Collection[bytes], returned: bool = True) -> list[bytes]:
        """At most so many, marked at `until` or before, but none that is busy: its order would be lost.

        `returned`: also those that could not be copied before, and these first.
        """
        found: list[bytes] = []
        for marks in (self._returned, self._marks) if returned else (self._marks,):
            for name, mark in marks.items():
                if mark.at > until or len(found) >= most:
                    break
                if name not in busy:
                    found.append(name)
        return found

    def sent(self, names: Iterable[bytes]) -> dict[bytes, Mark]:
        """Their DUMP is being sent: they are clean from now on. The marks of those that were dirty."""
        taken: dict[bytes, Mark] = {}
        for name in names:
            mark = self._marks.pop(name, None) or self._returned.pop(name, None)
            if mark is not None:
                taken[name] = mark
                self.bytes -= len(name) + OVERHEAD
        return taken

    def put_back(self, name: bytes, mark: Mark) -> None:
        """It could not be copied: it is as dirty as it was, whatever has marked it since."""
        if name in self._marks:
            self.bytes -= len(name) + OVERHEAD
            del self._marks[name]
        if name not in self._returned:
            self.bytes += len(name) + OVERHEAD
        self._returned[name] = mark

    def since(self) -> float | None:
        """When the oldest was marked; None: there is none."""
        ages = [mark.at for mark in self._returned.values()]
        first = next(iter(self._marks.values()), None)
        if first is not None:
            ages.append(first.at)
        return min(ages, default=None)

    def clean_up_to(self, number: int) -> bool:
        """Whether all that was marked up to this number has been sent."""
        first = next(iter(self._marks.values()), None)
        return not self._returned and (first is None or first.number > number)
