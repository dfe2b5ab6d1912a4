"""Names that are to be subscribed, in the order in which they came to be wanted.

What is subscribed at a server is known by a place in the roll: all names up to there were asked for. So it costs no
memory for each name and server, and to subscribe everything anew is to begin at the first place again. Pure.
"""

from __future__ import annotations

from typing import Any

from protocol import request
from pyproxy.worker.pubsub.registry import Sort


class Wanted:
    """One name. `number` grows along the roll; `clients`: how many want it; `refused`: a server does not take it.

    `early`: who gets what comes of it and is not counted yet; see `add_early`.
    """

    __slots__ = ("before", "clients", "early", "next", "number", "refused", "roll", "sort", "text")

    def __init__(self, roll: Roll, sort: Sort, text: bytes, number: int) -> None:
        self.roll = roll
        self.sort = sort
        self.text = text
        self.number = number
        self.clients = 0
        self.refused = False
        self.early: Any = None  # one, or a dict of several: nearly all names have one, and a dict for each is dear
        self.before: Wanted | None = None
        self.next: Wanted | None = None

    @property
    def all_early(self) -> list[Any]:
        if type(self.early) is dict:
            return list(self.early)
        return [] if self.early is None else [self.early]

    def is_early(self, who: object) -> bool:
        return who in self.early if type(self.early) is dict else who is self.early

    def add_early(self, who: object) -> None:
        if self.early is None:
            self.early = who
        elif type(self.early) is dict:
            self.early[who] = None
        else:
            self.early = {self.early: None, who: None}

    def remove_early(self, who: object) -> bool:
        """-> whether it was there."""
        if not self.is_early(who):
            return False
        if type(self.early) is dict and len(self.early) > 1:
            del self.early[who]
        else:
            self.early = None
        return True


class Roll:
    """The names. `start` is the place before all of them, with the number 0."""

    def __init__(self) -> None:
        self.start = Wanted(self, Sort.CHANNEL, b"", 0)
        self.last = self.start
        self.size = 0
        self._count = 0
        self._chunk: tuple[Wanted, int, bytes, list[Wanted]] | None = None

    def add(self, sort: Sort, text: bytes) -> Wanted:
        self._count += 1
        self.size += 1
        wanted = Wanted(self, sort, text, self._count)
        wanted.before = self.last
        self.last.next = wanted
        self.last = wanted
        return wanted

    def remove(self, wanted: Wanted) -> None:
        before, following = wanted.before, wanted.next
        assert before is not None  # only the start has none
        before.next = following
        if following is None:
            self.last = before
        else:
            following.before = before
        self.size -= 1
        self._chunk = None

    def after(self, place: Wanted, most: int) -> tuple[bytes, list[Wanted], bool]:
        """The next names after this place, at most so many: their SUBSCRIBEs, they, and whether they were at hand.

        A command for each name, so that each answer, an error too, is the answer to one. All servers are asked for the
        same, mostly at the same time, so what was made last is kept.
        """
        chunk = self._chunk
        if chunk is not None and chunk[0] is place and chunk[1] == most:
            return chunk[2], chunk[3], True
        names: list[Wanted] = []
        at = place.next
        while at is not None and len(names) < most:
            names.append(at)
            at = at.next
        frames = b"".join([request.encode([each.sort.prefix + b"subscribe", each.text]) for each in names])
        self._chunk = (place, most, frames, names) if names else None
        return frames, names, False

    def __repr__(self) -> str:
        return f"<Roll of {self.size} names>"
