"""Which clients of this worker are subscribed to what, and how many clients of other workers are. Pure.

Clients are opaque objects, names are bytes. The registry says which clients a message goes to, how many receivers a
PUBLISH has, and what the frames are that clients get. Changes are collected for the parent, which tells each worker the
sums of all others, and when all of them have applied the changes.
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
NAME_BYTES = 16 << 10  # other workers do not learn of longer names
OVERHEAD = 512  # bytes that a client is charged for a subscription, beside its name
_CACHED_CHANNELS = 4096  # channels whose matching patterns are cached
_MATCH_EFFORT = 1 << 20  # length of a pattern times that of a name; beyond it they do not match, so nobody waits


class ChannelKind(enum.IntEnum):
    """What a name stands for. The same name may be subscribed to as each of the three."""

    CHANNEL = 0
    PATTERN = 1
    SHARD = 2  # a shard channel

    @property
    def prefix(self) -> bytes:
        """Of the commands, such as psubscribe, and of the messages: pmessage."""
        return (b"", b"p", b"s")[self]


SUBSCRIBE = {each.prefix + b"subscribe": each for each in ChannelKind}
UNSUBSCRIBE = {each.prefix + b"unsubscribe": each for each in ChannelKind}
MESSAGE = {each.prefix + b"message": each for each in ChannelKind}
PUBLISH = {b"publish": ChannelKind.CHANNEL, b"spublish": ChannelKind.SHARD}

ALLOWED_IN_RESP2 = frozenset((*SUBSCRIBE, *UNSUBSCRIBE, b"ping", b"quit", b"reset"))
"""The commands that a subscriber may send in RESP2."""

_LITERAL = re.compile(rb"[^*?\[\\]*")  # the beginning of a pattern

Client = TypeVar("Client")


# --- frames -----------------------------------------------------------------------------------------------------------


def message_frame(words: Sequence[bytes], proto: int) -> bytes:
    """A message for a client of this protocol. `words`: as the server sent it: [message, channel, payload]."""
    body = b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words])
    return b"%b%d\r\n%b" % (b">" if proto == 3 else b"*", len(words), body)


def confirmation_frame(verb: bytes, name: bytes | None, count: int, proto: int) -> bytes:
    """The answer for one name of a (P|S)(UN)SUBSCRIBE. `count`: how many subscriptions the client has then."""
    head, null = (b">3", b"_\r\n") if proto == 3 else (b"*3", b"$-1\r\n")
    named = null if name is None else b"$%d\r\n%b\r\n" % (len(name), name)
    return b"%b\r\n$%d\r\n%b\r\n%b:%d\r\n" % (head, len(verb), verb, named, count)


# --- one client -------------------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Subscriber:
    """What one client is subscribed to. `on_left` ends all of it."""

    on_left: Callable[[], None]
    names: tuple[dict[bytes, None], ...] = field(default_factory=lambda: ({}, {}, {}))
    synced: dict[object, float] = field(default_factory=dict)  # by shard: until when everything that it sent has come
    synced_at: int = 0  # how many commands the client has sent by then; after another one `synced` does not hold
    pending: Any = None  # its SUBSCRIBE that is not answered yet, see pending.py

    def count(self, kind: ChannelKind) -> int:
        """The number in a confirmation: of channels and patterns together, or of shard channels."""
        channels, patterns, of_shards = map(len, self.names)
        return of_shards if kind is ChannelKind.SHARD else channels + patterns

    @property
    def counts(self) -> tuple[int, int, int]:
        """Channels, patterns, shard channels."""
        channels, patterns, of_shards = map(len, self.names)
        return channels, patterns, of_shards


# --- all clients ------------------------------------------------------------------------------------------------------


class Registry(Generic[Client]):
    """All subscriptions of the clients of this worker, and the numbers of all other workers."""

    def __init__(self) -> None:
        self._local: tuple[dict[bytes, Any], ...] = ({}, {}, {})  # a client, or a dict of several: dicts are large
        self._remote: tuple[dict[bytes, int], ...] = ({}, {}, {})
        self._unsent: OrderedDict[tuple[ChannelKind, bytes], None] = OrderedDict()
        self._sent = 0
        self._patterns_of: dict[bytes, tuple[bytes, ...]] = {}

    def add(self, kind: ChannelKind, name: bytes, client: Client) -> None:
        local = self._local[kind]
        clients = local.get(name)
        if clients is None:
            local[name] = client
            self._patterns_changed(kind)
        elif type(clients) is dict:
            clients[client] = None
        elif clients is not client:
            local[name] = {clients: None, client: None}
        self._unsent[kind, name] = None

    def remove(self, kind: ChannelKind, name: bytes, client: Client) -> bool:
        """-> whether it was there."""
        local = self._local[kind]
        clients = local.get(name)
        if type(clients) is dict:
            if client not in clients:
                return False
            del clients[client]
            if clients:
                self._unsent[kind, name] = None
                return True
        elif clients is None or clients is not client:
            return False
        del local[name]
        self._patterns_changed(kind)
        self._unsent[kind, name] = None
        return True

    def replace(self, kind: ChannelKind, name: bytes, old: Client, new: Client) -> None:
        """Messages go to the new client instead of the old one. The numbers stay as they are."""
        clients = self._local[kind][name]
        if type(clients) is dict:
            del clients[old]
            clients[new] = None
        else:
            self._local[kind][name] = new

    def clients(self, kind: ChannelKind, name: bytes) -> Collection[Client]:
        """The clients that a message goes to, in the order in which they subscribed."""
        clients = self._local[kind].get(name)
        if clients is None:
            return ()
        return clients if type(clients) is dict else (clients,)

    # --- numbers, over all workers ---

    def count(self, kind: ChannelKind, name: bytes) -> int:
        return len(self.clients(kind, name)) + self._remote[kind].get(name, 0)

    def names(self, kind: ChannelKind, pattern: bytes | None = None) -> list[bytes]:
        """The names that somebody is subscribed to, or those of them that match the pattern."""
        names: Iterable[bytes] = self._local[kind].keys() | self._remote[kind].keys()
        return list(names) if pattern is None else [name for name in names if _matches(pattern, name)]

    def total(self, kind: ChannelKind) -> int:
        """How many names somebody is subscribed to."""
        local, remote = self._local[kind].keys(), self._remote[kind].keys()
        return len(local | remote) if local and remote else len(local) + len(remote)

    def receivers(self, kind: ChannelKind, name: bytes) -> int:
        """How many times a message to this channel is received: once by each client, for the name and each pattern."""
        direct = self.count(kind, name)
        if kind is not ChannelKind.CHANNEL or not (
            self._local[ChannelKind.PATTERN] or self._remote[ChannelKind.PATTERN]
        ):
            return direct
        return direct + sum(self.count(ChannelKind.PATTERN, pattern) for pattern in self._patterns(name))

    def _patterns(self, channel: bytes) -> tuple[bytes, ...]:
        found = self._patterns_of.get(channel)
        if found is None:
            found = tuple(self._find_patterns(channel))
            if len(self._patterns_of) >= _CACHED_CHANNELS:
                self._patterns_of.clear()
            if len(channel) <= NAME_BYTES:
                self._patterns_of[channel] = found
        return found

    def _find_patterns(self, channel: bytes) -> Iterable[bytes]:
        for pattern in self._local[ChannelKind.PATTERN].keys() | self._remote[ChannelKind.PATTERN].keys():
            if _matches(pattern, channel):
                yield pattern

    def _patterns_changed(self, kind: ChannelKind) -> None:
        if kind is ChannelKind.PATTERN:
            self._patterns_of.clear()

    # --- changes, for the other workers ---

    @property
    def has_changes(self) -> bool:
        return bool(self._unsent)

    @property
    def last_change(self) -> int:
        """The number of the last change. `next_update` sends the changes in their order."""
        return self._sent + len(self._unsent)

    @property
    def last_sent(self) -> int:
        """The number of the last change that was sent."""
        return self._sent

    def next_update(self) -> Subscribers:
        """The present numbers of names that have changed since they were last sent, as many as fit into one message."""
        sent: tuple[dict[bytes, int], ...] = ({}, {}, {})
        size = names = 0
        while self._unsent and size <= BATCH_BYTES and names < BATCH_NAMES:
            (kind, name), _ = self._unsent.popitem(last=False)
            self._sent += 1
            names += 1
            if len(name) <= NAME_BYTES:
                sent[kind][name] = len(self.clients(kind, name))
                size += len(name) + 16
        return Subscribers(sent[0], sent[1], sent[2], self._sent)

    def apply(self, update: Subscribers) -> Iterator[int]:
        """Take the present numbers of all other workers, for some names. A work for `Slices`."""
        if update.patterns:
            self._patterns_of.clear()
        left = BATCH
        for kind, counts in zip(ChannelKind, (update.channels, update.patterns, update.shard_channels), strict=True):
            remote = self._remote[kind]
            for name, count in counts.items():
                if count:
                    remote[name] = count
                else:
                    remote.pop(name, None)
                left -= 1
                if not left:
                    left = BATCH
                    yield BATCH
        if update.patterns:
            self._patterns_of.clear()


def _matches(pattern: bytes, name: bytes) -> bool:
    literal = _LITERAL.match(pattern)
    assert literal  # it matches the empty string, too
    if not name.startswith(literal[0]):
        return False
    if literal.end() + 1 == len(pattern) and pattern.endswith(b"*"):
        return bool(name)  # as glob has it
    return len(pattern) * len(name) <= _MATCH_EFFORT and glob.matches(pattern, name)
