"""Which servers are at work on something slow that a worker has sent them, as the workers say.  Pure: no clock.

A server runs one command at a time, so one that runs KEYS over millions of keys answers nobody: not the watcher
either. While a worker waits for such an answer (`Command.shard_wide`), the silence of its server has a cause.

    worker 0   ├── KEYS ──────┤                            one stretch: from the beginning of the first
    worker 1             ├── FLUSHALL ──┤                  to the end of the last
"""

from collections.abc import Mapping

from pyproxy.messages import AtWork, Work


class Stretches:
    """By server. A worker that has ended cannot say when its server is done; `answered` says it then."""

    def __init__(self) -> None:
        self._told: dict[int, Mapping[str, Work]] = {}
        self._left: dict[str, Work] = {}  # by workers that have ended
        self._began: dict[str, float] = {}

    def hear(self, index: int, message: AtWork) -> list[str]:
        """What the worker of this index says now -> the shards of the servers that are done with everything."""
        before = {node: work.shard for each in self._told.values() for node, work in each.items()}
        self._told[index] = message.nodes
        for node, work in message.nodes.items():
            self._began[node] = min(work.since, self._began.get(node, work.since))
        return [shard for node, shard in before.items() if self.of(node) is None]

    def ended(self, index: int) -> None:
        """The worker of this index has ended, and what it sent is still out."""
        self._left.update(self._told.pop(index, {}))

    def answered(self, node: str) -> None:
        """The server has answered somebody else."""
        self._left.pop(node, None)
        if self.of(node) is None:
            self._began.pop(node, None)

    def of(self, node: str) -> Work | None:
        """Since when it has been at work without a pause, and until when that is waited for; None: it is not."""
        works = [each[node] for each in (*self._told.values(), self._left) if node in each]
        if not works:
            self._began.pop(node, None)
            return None
        return Work(works[0].shard, self._began.get(node, works[0].since), max(work.until for work in works))

    def others(self, index: int) -> AtWork:
        """What all workers but this one have servers work on."""
        nodes: dict[str, Work] = {}
        for each in (*(told for teller, told in self._told.items() if teller != index), self._left):
            for node, work in each.items():
                if node not in nodes or work.until > nodes[node].until:
                    nodes[node] = work
        return AtWork(nodes)

    def __repr__(self) -> str:
        return f"<Stretches {self._told} {self._left}>"
