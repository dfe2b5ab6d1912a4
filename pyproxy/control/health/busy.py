"""Which servers are busy with a slow command that a worker has sent them, as the workers report.  Pure: no clock.

A server runs one command at a time, so one that runs KEYS over millions of keys answers nobody: not the health
monitor either. While a worker waits for such an answer (`Command.shard_wide`), the silence of its server has a cause.

    worker 0   ├── KEYS ──────┤                            busy from the beginning of the first
    worker 1             ├── FLUSHALL ──┤                  to the end of the last

A BLPOP of very many keys is such a command too, and is not answered while it waits. A server that answers what it was
asked well after it had such a command is not at it any more. One that answers nobody is waited for as long as the first
that it was sent since its last answer is waited for, whatever clients send it after that.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

from pyproxy.messages import AtWork, Work

TAKEN_S = 1.0
"""A server that has a command in its socket reads it, in pieces and between others, and is at it by then."""


class BusyServers:
    """By server. A worker that has ended cannot report that its server is done; `server_answered` does."""

    def __init__(self, on_ended: Callable[[str], None] = lambda _shard: None) -> None:
        """`on_ended` is told the shard of a server whose work is over by its answer to somebody else."""
        self._on_ended = on_ended
        self._reported: dict[int, Mapping[str, Sequence[Work]]] = {}
        self._orphaned: dict[str, list[Work]] = {}  # by workers that have ended
        self._answered: dict[str, float] = {}  # when that was asked which the server has answered last
        self._busy: dict[str, Work] = {}  # without a pause
        self._until: dict[str, float] = {}  # of the first that was sent since the last answer, even if it is over

    def update(self, index: int, message: AtWork) -> list[str]:
        """The report of the worker of this index -> the shards of the servers that are done with everything."""
        before = self._reported.get(index, {})
        self._reported[index] = message.nodes
        were = {node: self._busy[node].shard for node in before if node in self._busy}
        for node in before.keys() | message.nodes.keys():
            self._review(node)
        return [shard for node, shard in were.items() if node not in self._busy]

    def worker_ended(self, index: int) -> None:
        """The worker of this index has ended, and what it sent is still out."""
        for node, works in self._reported.pop(index, {}).items():
            self._orphaned[node] = [*self._orphaned.get(node, ()), *works]

    def server_answered(self, node: str, asked_at: float) -> None:
        """The server has answered somebody else, who had asked it then."""
        self._answered[node] = asked_at
        self._until.pop(node, None)
        self._orphaned.pop(node, None)
        before = self._busy.pop(node, None)
        if before is not None:
            self._review(node)
            if node not in self._busy:
                self._on_ended(before.shard)

    def _review(self, node: str) -> None:
        """What the server is at, after a change of what is known of it."""
        works = self._works(node)
        if not works:
            self._busy.pop(node, None)
            return
        first = min(works, key=lambda work: work.since)
        until = self._until[node] = min(first.until, self._until.get(node, math.inf))
        since = min(first.since, self._busy[node].since) if node in self._busy else first.since
        self._busy[node] = Work(first.shard, since, until)

    def _works(self, node: str, without: int | None = None) -> list[Work]:
        """All that it may be at, but for what the worker of this index has sent."""
        sent = [works.get(node, ()) for index, works in self._reported.items() if index != without]
        answered = self._answered.get(node, -math.inf)
        works = itertools.chain(*sent, self._orphaned.get(node, ()))
        return [work for work in works if not work.taken_at or answered <= work.taken_at + TAKEN_S]

    def of(self, node: str) -> Work | None:
        """Since when it has been at work without a pause, and until when that is waited for; None: it is not."""
        return self._busy.get(node)

    def others(self, index: int) -> AtWork:
        """What all workers but this one have servers work on."""
        nodes: dict[str, list[Work]] = {}
        for node, busy in self._busy.items():
            if works := self._works(node, index):
                nodes[node] = [Work(busy.shard, min(work.since for work in works), busy.until)]
        return AtWork(nodes)

    def __repr__(self) -> str:
        return f"<BusyServers {self._reported} {self._orphaned}>"
