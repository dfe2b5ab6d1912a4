"""Who of this worker's clients is subscribed to what, and how many clients of other workers are.

Clients come in as opaque objects, names as bytes; out go those to whom a message is due, the number of receivers of a
PUBLISH, and the frames that clients get. What changed is kept until it is told to the parent, which tells each worker
the sums of all others, and says when all have heard. Pure bookkeeping: nothing here is connected, sent or awaited.
"""

from __future__ import annotations

import enum
import re
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from protocol import glob
from pyproxy.messages import Subscribers
from pyproxy.slices import BATCH

BATCH_BYTES = 64 << 10  # of names in one message to the parent
BATCH_NAMES = 500
NAME_BYTES = 16 << 10  # longer names are not told to other workers
OVERHEAD = 512  # bytes that a subscription of a client costs beside its name
_MATCHES = 4096  # channels of which is known which patterns match them
_EFFORT = 1 << 20  # length of a pattern times that of a name: beyond it they are not compared, so that nobody waits


class Sort(enum.IntEnum):
    """What a name stands for. The three have nothing to do with each other."""

    CHANNEL = 0
    PATTERN = 1
    SHARD = 2  # a shard channel

    @property
    def prefix(self) -> bytes:
        """Of its commands: psubscribe, punsubscribe, and of what comes: pmessage."""
        return (b"", b"p", b"s")[self]


SUBSCRIBE = {each.prefix + b"subscribe": each for each in Sort}
UNSUBSCRIBE = {each.prefix + b"unsubscribe": each for each in Sort}
MESSAGE = {each.prefix + b"message": each for each in Sort}
PUBLISH = {b"publish": Sort.CHANNEL, b"spublish": Sort.SHARD}

IN_RESP2 = frozenset((*SUBSCRIBE, *UNSUBSCRIBE, b"ping", b"quit", b"reset"))
"""All that a subscriber may say in RESP2."""

_LITERAL = re.compile(rb"[^*?\[\\]*")  # what a pattern begins with

Client = TypeVar("Client")


# --- frames -----------------------------------------------------------------------------------------------------------


def pushed(words: Sequence[bytes], proto: int) -> bytes:
    """A message for a client of this protocol, as it came: [message, channel, payload], [pmessage, pattern, ...]."""
    body = b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words])
    return b"%b%d\r\n%b" % (b">" if proto == 3 else b"*", len(words), body)


def confirmed(verb: bytes, name: bytes | None, count: int, proto: int) -> bytes:
    """The answer for one name of a (P|S)(UN)SUBSCRIBE; `count`: of the subscriptions that are left."""
    head, null = (b">3", b"_\r\n") if proto == 3 else (b"*3", b"$-1\r\n")
    named = null if name is None else b"$%d\r\n%b\r\n" % (len(name), name)
    return b"%b\r\n$%d\r\n%b\r\n%b:%d\r\n" % (head, len(verb), verb, named, count)


# --- one client -------------------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Subscriber:
    """What one client is subscribed to; `left` ends all of it."""

    left: Callable[[], None]
    names: tuple[dict[bytes, None], ...] = field(default_factory=lambda: ({}, {}, {}))
    fenced: dict[object, float] = field(default_factory=dict)  # by shard: up to when all that it had sent has come
    fenced_at: int = 0  # how many commands the client has begun by then; one more, and it is no longer sure
    waiting: Any = None  # its SUBSCRIBE that is not answered yet, see hub.py

    def counted(self, sort: Sort) -> int:
        """The number that a confirmation says: channels and patterns together, shard channels for themselves."""
        channels, patterns, of_shards = map(len, self.names)
        return of_shards if sort is Sort.SHARD else channels + patterns

    @property
    def counts(self) -> tuple[int, int, int]:
        """Channels, patterns, shard channels."""
        channels, patterns, of_shards = map(len, self.names)
        return channels, patterns, of_shards


# --- all clients ------------------------------------------------------------------------------------------------------


class Registry(Generic[Client]):
    """All subscriptions of this worker's clients, and the numbers of all other workers' clients."""

    def __init__(self) -> None:
        self._own: tuple[dict[bytes, Any], ...] = ({}, {}, {})  # a client, or a dict of several: that of one is dear
        self._others: tuple[dict[bytes, int], ...] = ({}, {}, {})
        self._untold: OrderedDict[tuple[Sort, bytes], None] = OrderedDict()
        self._told = 0
        self._matching: dict[bytes, tuple[bytes, ...]] = {}

    def add(self, sort: Sort, name: bytes, client: Client) -> None:
        own = self._own[sort]
        clients = own.get(name)
        if clients is None:
            own[name] = client
            self._patterns_changed(sort)
        elif type(clients) is dict:
            clients[client] = None
        elif clients is not client:
            own[name] = {clients: None, client: None}
        self._untold[sort, name] = None

    def remove(self, sort: Sort, name: bytes, client: Client) -> bool:
        """-> whether it was there."""
        own = self._own[sort]
        clients = own.get(name)
        if type(clients) is dict:
            if client not in clients:
                return False
            del clients[client]
            if clients:
                self._untold[sort, name] = None
                return True
        elif clients is None or clients is not client:
            return False
        del own[name]
        self._patterns_changed(sort)
        self._untold[sort, name] = None
        return True

    def replace(self, sort: Sort, name: bytes, old: Client, new: Client) -> None:
        """What is due to the one is due to the other; to the numbers it is the same."""
        clients = self._own[sort][name]
        if type(clients) is dict:
            del clients[old]
            clients[new] = None
        else:
            self._own[sort][name] = new

    def clients(self, sort: Sort, name: bytes) -> Collection[Client]:
        """To whom a message is due, in the order in which they came."""
        clients = self._own[sort].get(name)
        if clients is None:
            return ()
        return clients if type(clients) is dict else (clients,)

    # --- numbers, over all workers ---

    def count(self, sort: Sort, name: bytes) -> int:
        return len(self.clients(sort, name)) + self._others[sort].get(name, 0)

    def names(self, sort: Sort, pattern: bytes | None = None) -> list[bytes]:
        """All that somebody is subscribed to."""
        names: Iterable[bytes] = self._own[sort].keys() | self._others[sort].keys()
        return list(names) if pattern is None else [name for name in names if _matches(pattern, name)]

    def total(self, sort: Sort) -> int:
        """How many different names there are."""
        own, others = self._own[sort].keys(), self._others[sort].keys()
        return len(own | others) if own and others else len(own) + len(others)

    def receivers(self, sort: Sort, name: bytes) -> int:
        """How many times a message published there is received: by each client of it, and once for each pattern."""
        direct = self.count(sort, name)
        if sort is not Sort.CHANNEL or not (self._own[Sort.PATTERN] or self._others[Sort.PATTERN]):
            return direct
        return direct + sum(self.count(Sort.PATTERN, pattern) for pattern in self._patterns(name))

    def _patterns(self, channel: bytes) -> tuple[bytes, ...]:
        found = self._matching.get(channel)
        if found is None:
            found = tuple(self._matching_now(channel))
            if len(self._matching) >= _MATCHES:
                self._matching.clear()
            if len(channel) <= NAME_BYTES:
                self._matching[channel] = found
        return found

    def _matching_now(self, channel: bytes) -> Iterable[bytes]:
        for pattern in self._own[Sort.PATTERN].keys() | self._others[Sort.PATTERN].keys():
            if _matches(pattern, channel):
                yield pattern

    def _patterns_changed(self, sort: Sort) -> None:
        if sort is Sort.PATTERN:
            self._matching.clear()

    # --- what workers tell each other ---

    @property
    def has_news(self) -> bool:
        return bool(self._untold)

    @property
    def changes(self) -> int:
        """The `number` of the message that all changes up to now are told by."""
        return self._told + len(self._untold)

    @property
    def told(self) -> int:
        """The `number` of the last message."""
        return self._told

    def news(self) -> Subscribers:
        """The numbers of now for what changed since they were told last; not more than fits into one message."""
        told: tuple[dict[bytes, int], ...] = ({}, {}, {})
        size = names = 0
        while self._untold and size <= BATCH_BYTES and names < BATCH_NAMES:
            (sort, name), _ = self._untold.popitem(last=False)
            self._told += 1
            names += 1
            if len(name) <= NAME_BYTES:
                told[sort][name] = len(self.clients(sort, name))
                size += len(name) + 16
        return Subscribers(told[0], told[1], told[2], self._told)

    def hear(self, said: Subscribers) -> Iterator[int]:
        """The numbers of now of all other workers, for some names: a work for `Slices`."""
        if said.patterns:
            self._matching.clear()
        left = BATCH
        for sort, told in zip(Sort, (said.channels, said.patterns, said.shard_channels), strict=True):
            others = self._others[sort]
            for name, count in told.items():
                if count:
                    others[name] = count
                else:
                    others.pop(name, None)
                left -= 1
                if not left:
                    left = BATCH
                    yield BATCH
        if said.patterns:
            self._matching.clear()


def _matches(pattern: bytes, name: bytes) -> bool:
    literal = _LITERAL.match(pattern)
    assert literal  # if only the empty one
    if not name.startswith(literal[0]):
        return False
    if literal.end() + 1 == len(pattern) and pattern.endswith(b"*"):
        return bool(name)  # as glob has it
    return len(pattern) * len(name) <= _EFFORT and glob.matches(pattern, name)
