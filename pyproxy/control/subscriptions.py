"""How many clients of which worker are subscribed to what: told by each worker, told to each the sums of all others.

Numbers come in as a worker says them (`hear`), and the beginning and end of workers; out goes, for each worker, what it
does not know yet, in messages that are not too large. A number that changes twice before it is told is told once. Pure:
nothing is sent here.
"""

from pyproxy.messages import Subscribers

BATCH_BYTES = 256 << 10  # of names in one message

Numbers = dict[bytes, int]


class Sums:
    """All workers, by their index. Channels, patterns and shard channels have nothing to do with each other."""

    def __init__(self) -> None:
        self._of: dict[int, tuple[Numbers, Numbers, Numbers]] = {}
        self._total: tuple[Numbers, Numbers, Numbers] = ({}, {}, {})
        self._untold: dict[int, dict[tuple[int, bytes], None]] = {}

    def began(self, worker: int) -> None:
        """It has no subscribers, and knows of none."""
        self.ended(worker)
        self._of[worker] = ({}, {}, {})
        self._untold[worker] = {(sort, name): None for sort in range(3) for name in self._total[sort]}

    def ended(self, worker: int) -> None:
        numbers = self._of.pop(worker, None)
        self._untold.pop(worker, None)
        for sort, names in enumerate(numbers or ()):
            for name, count in names.items():
                self._change(worker, sort, name, -count)

    def hear(self, worker: int, said: Subscribers) -> None:
        own = self._of.get(worker)
        if own is None:
            return
        for sort, told in enumerate((said.channels, said.patterns, said.shard_channels)):
            for name, count in told.items():
                change = count - own[sort].get(name, 0)
                if count:
                    own[sort][name] = count
                else:
                    own[sort].pop(name, None)
                if change:
                    self._change(worker, sort, name, change)

    def _change(self, worker: int, sort: int, name: bytes, change: int) -> None:
        total = self._total[sort].get(name, 0) + change
        if total:
            self._total[sort][name] = total
        else:
            self._total[sort].pop(name, None)
        for other, untold in self._untold.items():
            if other != worker:
                untold[sort, name] = None

    def has_news(self, worker: int) -> bool:
        return bool(self._untold.get(worker))

    def news(self, worker: int) -> Subscribers:
        """What it does not know yet, or the first part of it."""
        untold, own = self._untold[worker], self._of[worker]
        told: tuple[Numbers, Numbers, Numbers] = ({}, {}, {})
        size = 0
        for sort, name in list(untold):
            if size > BATCH_BYTES:
                break
            del untold[sort, name]
            told[sort][name] = self._total[sort].get(name, 0) - own[sort].get(name, 0)
            size += len(name) + 16
        return Subscribers(*told)

    def __repr__(self) -> str:
        return f"<Sums of {len(self._of)} workers, {sum(map(len, self._total))} names>"
