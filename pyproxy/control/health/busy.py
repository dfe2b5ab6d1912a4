"""Which servers are busy with a slow command that a worker has sent them, as the workers report.  Pure: no clock.

A server runs one command at a time, so one that runs KEYS over millions of keys answers nobody: not the health
monitor either. While a worker waits for such an answer (`Command.shard_wide`), the silence of its server has a cause.

    worker 0   ├── KEYS ──────┤                            busy from the beginning of the first
    worker 1             ├── FLUSHALL ──┤                  to the end of the last
"""

from collections.abc import Mapping

from pyproxy.messages import AtWork, Work


class BusyServers:
    """By server. A worker that has ended cannot report that its server is done; `server_answered` does."""

    def __init__(self) -> None:
        self._reported: dict[int, Mapping[str, Work]] = {}
        self._orphaned: dict[str, Work] = {}  # by workers that have ended
        self._since: dict[str, float] = {}

    def update(self, index: int, message: AtWork) -> list[str]:
        """The report of the worker of this index -> the shards of the servers that are done with everything."""
        before = {node: work.shard for each in self._reported.values() for node, work in each.items()}
        self._reported[index] = message.nodes
        for node, work in message.nodes.items():
            self._since[node] = min(work.since, self._since.get(node, work.since))
        return [shard for node, shard in before.items() if self.of(node) is None]

    def worker_ended(self, index: int) -> None:
        """The worker of this index has ended, and what it sent is still out."""
        self._orphaned.update(self._reported.pop(index, {}))

    def server_answered(self, node: str) -> None:
        """The server has answered somebody else."""
        self._orphaned.pop(node, None)
        if self.of(node) is None:
            self._since.pop(node, None)

    def of(self, node: str) -> Work | None:
        """Since when it has been at work without a pause, and until when that is waited for; None: it is not."""
        works = [each[node] for each in (*self._reported.values(), self._orphaned) if node in each]
        if not works:
            self._since.pop(node, None)
            return None
        return Work(works[0].shard, self._since.get(node, works[0].since), max(work.until for work in works))

    def others(self, index: int) -> AtWork:
        """What all workers but this one have servers work on."""
        nodes: dict[str, Work] = {}
        for each in (*(nodes for reporter, nodes in self._reported.items() if reporter != index), self._orphaned):
            for node, work in each.items():
                if node not in nodes or work.until > nodes[node].until:
                    nodes[node] = work
        return AtWork(nodes)

    def __repr__(self) -> str:
        return f"<BusyServers {self._reported} {self._orphaned}>"
