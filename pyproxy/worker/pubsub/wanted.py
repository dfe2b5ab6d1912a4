"""Names that are to be subscribed at servers, in the order in which they were first wanted. Pure.

What is subscribed at a server is one position in this list: all names up to there were asked for. So a name needs no
memory for each server, and to subscribe everything anew is to begin at the start of the list again.
"""

from __future__ import annotations

from typing import Any

from protocol import request
from pyproxy.worker.pubsub.registry import ChannelKind


class WantedName:
    """One name. `number` grows along the list. `clients`: how many want it. `refused`: a server refuses to subscribe
    it.

    `pending`: the subscribers that get its messages before they are registered; see `add_pending`.
    """

    __slots__ = ("before", "clients", "kind", "next", "number", "owner", "pending", "refused", "text")

    def __init__(self, owner: WantedNames, kind: ChannelKind, text: bytes, number: int) -> None:
        self.owner = owner
        self.kind = kind
        self.text = text
        self.number = number
        self.clients = 0
        self.refused = False
        self.pending: Any = None  # one subscriber, or a dict of several: most names have one, and dicts are large
        self.before: WantedName | None = None
        self.next: WantedName | None = None

    @property
    def all_pending(self) -> list[Any]:
        if type(self.pending) is dict:
            return list(self.pending)
        return [] if self.pending is None else [self.pending]

    def is_pending(self, subscriber: object) -> bool:
        return subscriber in self.pending if type(self.pending) is dict else subscriber is self.pending

    def add_pending(self, subscriber: object) -> None:
        if self.pending is None:
            self.pending = subscriber
        elif type(self.pending) is dict:
            self.pending[subscriber] = None
        else:
            self.pending = {self.pending: None, subscriber: None}

    def remove_pending(self, subscriber: object) -> bool:
        """-> whether it was there."""
        if not self.is_pending(subscriber):
            return False
        if type(self.pending) is dict and len(self.pending) > 1:
            del self.pending[subscriber]
        else:
            self.pending = None
        return True


class WantedNames:
    """The list. `start` is the position before all names, with the number 0."""

    def __init__(self) -> None:
        self.start = WantedName(self, ChannelKind.CHANNEL, b"", 0)
        self.last = self.start
        self.size = 0
        self._count = 0
        self._chunk: tuple[WantedName, int, bytes, list[WantedName]] | None = None

    def add(self, kind: ChannelKind, text: bytes) -> WantedName:
        self._count += 1
        self.size += 1
        name = WantedName(self, kind, text, self._count)
        name.before = self.last
        self.last.next = name
        self.last = name
        return name

    def remove(self, name: WantedName) -> None:
        before, following = name.before, name.next
        assert before is not None  # only the start has none
        before.next = following
        if following is None:
            self.last = before
        else:
            following.before = before
        self.size -= 1
        self._chunk = None

    def after(self, position: WantedName, limit: int) -> tuple[bytes, list[WantedName], bool]:
        """The next names after this position, at most `limit` -> their SUBSCRIBEs, the names, whether they were cached.

        There is a command for each name, so that each reply, an error too, is the reply to one name. All servers are
        asked for the same names, mostly at the same time, so the last result is cached.
        """
        chunk = self._chunk
        if chunk is not None and chunk[0] is position and chunk[1] == limit:
            return chunk[2], chunk[3], True
        names: list[WantedName] = []
        at = position.next
        while at is not None and len(names) < limit:
            names.append(at)
            at = at.next
        frames = b"".join([request.encode([each.kind.prefix + b"subscribe", each.text]) for each in names])
        self._chunk = (position, limit, frames, names) if names else None
        return frames, names, False

    def __repr__(self) -> str:
        return f"<WantedNames of {self.size} names>"
