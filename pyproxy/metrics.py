"""The numbers of all workers, on one page of shared memory.

Each worker has a row of 64-bit integers and is its only writer; everybody reads all rows. The parent makes the page
and passes its file descriptor on. It writes only where nobody else can: the row of a worker that is dead, and a
row of its own, the retired row, in which the counters of dead workers live on, so that a total falls by `reset` alone.
That one writes the last row, whoever calls it: what the totals were then, as negative numbers.

             pid clients ... accepted commands ...
    row 0    [   worker 0                        ]
    row 1    [   worker 1                        ]
    retired  [   0   0   ...  counters of the dead ]
    reset    [   0   0   ...  -(all of the above, when it was reset) ]

A row with pid 0 is that of a worker that does not run. Nothing here sends, formats or locks: an aligned 8-byte
store is whole on every machine that CPython runs on.
"""

import mmap
import os
from typing import Self

GAUGES = (
    "pid",  # 0: this worker is not running
    "started_us",  # wall clock
    "heartbeat_us",  # CLOCK_MONOTONIC, written at least every HEARTBEAT_S: a worker that hangs is seen by its age
    "clients",
    "backend_connections",
    "inflight",
    "buffered_bytes",  # of requests and answers
    "held_requests",  # writes that wait for a gate to open
    "subscribers",  # clients that are subscribed to anything
    "blocked_clients",  # in a command that waits for something that may never come
    "leased_connections",  # of those of the backends, the leases, and idle ones
)
COUNTERS = (
    "accepted",
    "rejected",
    "commands",
    "errors",
    "bytes_in",
    "bytes_out",
    "shed",
    "timeouts",
    "uncertain",
    "protocol_errors",
    "splits",
    "out_of_step",  # connections to servers that a canary ended
    "held",  # all that ever waited: drained + refused_held + dropped_client_gone + held_requests
    "drained",
    "refused_held",
    "dropped_client_gone",
    "refused_at_once",  # at a closed gate
    "withheld_writes",  # refused by the server, and held or refused by the gate instead
)
FIELDS = GAUGES + COUNTERS
INDEX = {name: position for position, name in enumerate(FIELDS)}

HEARTBEAT_S = 0.5
"""A worker writes its heartbeat at least so often, even one of which nobody wants anything."""

HUNG_S = 0.75
"""A worker whose last heartbeat is older than this takes no part in who accepts next."""

# A row fills whole cache lines (8 words of 64 bits), or two workers would fight for the line they share.
STRIDE = (len(FIELDS) + 7) // 8 * 8


class Page:
    """All rows. `fd` is the page's file descriptor, to be inherited by the workers."""

    __slots__ = ("_map", "_words", "fd", "workers")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._map = mmap.mmap(fd, 0)
        self._words = memoryview(self._map).cast("q")
        self.workers = len(self._words) // STRIDE - 2

    @classmethod
    def create(cls, workers: int) -> Self:
        fd = os.memfd_create("pyproxy-metrics")
        os.ftruncate(fd, (workers + 2) * STRIDE * 8)
        return cls(fd)

    @classmethod
    def attach(cls, fd: int) -> Self:
        return cls(fd)

    def row(self, index: int) -> "memoryview[int]":
        """The row of a worker: words of 64 bits, in the order of FIELDS."""
        if not 0 <= index < self.workers:
            raise IndexError(f"expected a worker from 0 to {self.workers - 1}, got {index}")
        return self._words[index * STRIDE : index * STRIDE + len(FIELDS)]

    def get(self, index: int, name: str) -> int:
        return self.row(index)[INDEX[name]]

    def total(self, name: str) -> int:
        """The sum over all workers; of a counter since it was reset, and those that died included."""
        return sum(self._words[INDEX[name] :: STRIDE])

    def reset(self) -> None:
        """Count from zero. What is held now was begun: `held` goes on from it, or it would be ended more often."""
        last = (self.workers + 1) * STRIDE
        for name in COUNTERS:
            begun = self.total("held_requests") if name == "held" else 0
            # a whole number and no difference: two that reset at once write nearly the same
            self._words[last + INDEX[name]] = begun - sum(self._words[INDEX[name] : last : STRIDE])

    def fewest_clients(self, now_us: int) -> int:
        """Clients of the least loaded worker that runs and does not hang; 0 if none does. `now_us`: CLOCK_MONOTONIC."""
        oldest = now_us - int(HUNG_S * 1e6)
        pids, heartbeats, clients = (self._words[INDEX[name] :: STRIDE] for name in ("pid", "heartbeat_us", "clients"))
        return min((c for p, b, c in zip(pids, heartbeats, clients, strict=True) if p and b >= oldest), default=0)

    def retire(self, index: int) -> None:
        """Clear the row of a dead worker, and keep its counters in the retired row. Only the parent does this."""
        row = self.row(index)
        retired = self.workers * STRIDE
        for name in COUNTERS:
            self._words[retired + INDEX[name]] += row[INDEX[name]]
        for position in range(len(FIELDS)):
            row[position] = 0

    def close(self) -> None:
        """Give the page back. Rows that were handed out must be released before (BufferError)."""
        self._words.release()
        self._map.close()
        os.close(self.fd)

    def __repr__(self) -> str:
        return f"<Page of {self.workers} workers, {self.total('clients')} clients>"
