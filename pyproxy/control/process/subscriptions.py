"""How many clients of which worker are subscribed to what: each worker reports its own, and is sent those of others.

The numbers that a worker reports come in (`update`), and the start and end of workers. For each worker two things go
out: what it does not know yet, in messages of bounded size, and up to which of its reports all others know. A number
that changes twice before it is sent is sent once. What takes long is work for `slices.Slices`. Pure: nothing is sent.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator

from pyproxy.messages import Subscribers
from pyproxy.slices import BATCH, batches

BATCH_BYTES = 64 << 10  # of names in one message
BATCH_NAMES = 500
MOST_AWAITED = (
    1000  # acknowledgements that one worker owes; one that does not read owes the last of each other worker's
)

Numbers = dict[bytes, int]


class Worker:
    """What one worker has reported, and what it has been sent."""

    def __init__(self) -> None:
        self.numbers: tuple[Numbers, Numbers, Numbers] = ({}, {}, {})
        self.last_number = 0  # the number of its last message that was counted
        self.known = 0  # up to here all others know, and it was sent that
        self.unsent: OrderedDict[tuple[int, bytes], None] = OrderedDict()
        self.sent = 0  # changes; the number of the last message to it
        self.acknowledged = 0  # what it has answered to
        self.ready = False  # it serves clients: the others wait until it has acknowledged
        self.awaited: deque[tuple[int, Worker, int]] = (
            deque()
        )  # (number to it, another, number of what that one reported)
        self.knows: dict[Worker, int] = {}  # of what the others reported


class SubscriptionCounts:
    """All workers, by their index. Channels, patterns and shard channels have nothing to do with each other."""

    def __init__(self) -> None:
        self._workers: dict[int, Worker] = {}
        self._total: tuple[Numbers, Numbers, Numbers] = ({}, {}, {})

    def worker_started(self, worker: int) -> Iterator[int]:
        """It has no subscribers, and knows of none."""
        new = self._workers[worker] = Worker()
        for sort, names in enumerate(self._total):
            for some in batches(list(names)):
                for name in some:
                    new.unsent[sort, name] = None
                yield len(some)
        for each in self._workers.values():
            self._await(new, each)

    def ready(self, worker: int) -> None:
        """It serves clients from now on."""
        if worker in self._workers:
            self._workers[worker].ready = True

    def worker_ended(self, worker: int) -> Iterator[int]:
        gone = self._workers.pop(worker, None)
        for each in self._workers.values():
            each.awaited = deque(awaited for awaited in each.awaited if awaited[1] is not gone)
            if gone is not None:
                each.knows.pop(gone, None)
        for sort, names in enumerate(gone.numbers if gone else ()):
            while names:
                some = min(BATCH, len(names))
                for _ in range(some):
                    name, count = names.popitem()
                    self._change(worker, sort, name, -count)
                yield some * max(len(self._workers), 1)

    def update(self, worker: int, message: Subscribers) -> Iterator[int]:
        own = self._workers.get(worker)
        if own is None:
            return
        for sort, sent in enumerate((message.channels, message.patterns, message.shard_channels)):
            for some in batches(sent.items()):
                if self._workers.get(worker) is not own:
                    return  # its numbers are gone with it
                for name, count in some:
                    change = count - own.numbers[sort].get(name, 0)
                    if count:
                        own.numbers[sort][name] = count
                    else:
                        own.numbers[sort].pop(name, None)
                    if change:
                        self._change(worker, sort, name, change)
                yield len(some) * max(len(self._workers) - 1, 1)
        own.last_number = message.number
        for each in self._workers.values():
            self._await(each, own)

    def _change(self, worker: int, sort: int, name: bytes, change: int) -> None:
        total = self._total[sort].get(name, 0) + change
        if total:
            self._total[sort][name] = total
        else:
            self._total[sort].pop(name, None)
        for other, each in self._workers.items():
            if other != worker:
                each.unsent[sort, name] = None

    def has_news(self, worker: int) -> bool:
        return worker in self._workers and bool(self._workers[worker].unsent)

    def news(self, worker: int) -> Subscribers:
        """What it does not know yet, or the first part of it."""
        each = self._workers[worker]
        sent: tuple[Numbers, Numbers, Numbers] = ({}, {}, {})
        size = names = 0
        while each.unsent and size <= BATCH_BYTES and names < BATCH_NAMES:
            (sort, name), _ = each.unsent.popitem(last=False)
            each.sent += 1
            names += 1
            sent[sort][name] = self._total[sort].get(name, 0) - each.numbers[sort].get(name, 0)
            size += len(name) + 16
        return Subscribers(*sent, each.sent)

    # --- who knows what ---

    def acknowledged(self, worker: int, number: int) -> None:
        """It has received what it was sent up to this number."""
        each = self._workers.get(worker)
        if each is not None:
            each.acknowledged = max(each.acknowledged, number)
            self._settle(each)

    def _await(self, worker: Worker, other: Worker) -> None:
        """It is to receive what another has reported up to now."""
        if worker is not other:
            worker.awaited.append((worker.sent + len(worker.unsent), other, other.last_number))
            if len(worker.awaited) > MOST_AWAITED:
                last = {message: (number, message, up_to) for number, message, up_to in worker.awaited}
                worker.awaited = deque(sorted(last.values(), key=lambda awaited: awaited[0]))
            self._settle(worker)

    def _settle(self, each: Worker) -> None:
        while each.awaited and each.awaited[0][0] <= each.acknowledged:
            _, other, number = each.awaited.popleft()
            each.knows[other] = number

    def known(self) -> Iterator[tuple[int, int]]:
        """For each worker of which the others know more than it was sent: it, and the number up to where they do."""
        for worker, own in self._workers.items():
            others = [each for each in self._workers.values() if each is not own and each.ready]
            number = min((each.knows.get(own, 0) for each in others), default=own.last_number)
            if number > own.known:
                own.known = number
                yield worker, number

    def __repr__(self) -> str:
        return f"<SubscriptionCounts of {len(self._workers)} workers, {sum(map(len, self._total))} names>"
