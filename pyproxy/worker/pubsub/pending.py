"""Commands of publish/subscribe that are not answered yet. The lane takes them for conversations of their clients."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Protocol

from pyproxy.worker.lane.lane import Client
from pyproxy.worker.pubsub.registry import ChannelKind, Subscriber
from pyproxy.worker.pubsub.upstream import Upstream

Answering = Generator[int, None, bytes]
"""A work that ends with the answer."""


class Commands(Protocol):
    """The hub."""

    def stop_waiting(self, subscribe: PendingSubscribe) -> None: ...
    def finish_unsubscribe(self, unsubscribe: PendingUnsubscribe) -> None: ...
    def forget_unsubscribe(self, unsubscribe: PendingUnsubscribe) -> None: ...


class PendingCommand:
    """What the lane calls a conversation for."""

    waits = False  # it does not wait for something that may never come

    def go_on(self) -> None:
        """It has been refused nothing that it would ask for again."""

    def half_closed(self) -> None:
        """It is answered soon."""

    def left(self) -> None:
        """The client is gone. `Subscriber.on_left` is called too."""


class PendingSubscribe(PendingCommand):
    """A SUBSCRIBE. Messages of its names are buffered here until the client has its confirmations."""

    def __init__(
        self, hub: Commands, client: Client, subscriber: Subscriber, kind: ChannelKind, names: Sequence[bytes]
    ) -> None:
        self.client = client
        self.subscriber = subscriber
        self.kind = kind
        self.names = names
        self.new_names: list[bytes] = []  # those that the client was not subscribed to, each once
        self.unconfirmed: set[Upstream] = set()  # the shards that have not confirmed all names
        self.change = 0  # the number of the last change that the other workers have to acknowledge
        self.waited_s = 0.0  # for the other workers
        self.is_over = False  # nothing more is done for it
        self.proto: int = client.proto
        self._messages: list[bytes] | None = []
        self._buffered = 0
        self._hub = hub

    def push(self, frame: bytes) -> int:
        """As `Client.push`."""
        if self._messages is None or self.is_over:
            return int(self.client.push(frame))
        self._messages.append(frame)
        self._buffered += len(frame)
        self.client.charge(len(frame))
        return self._buffered

    def flush(self) -> None:
        """Push the buffered messages. From now on messages are not buffered any more."""
        messages, self._messages = self._messages or [], None
        self.client.charge(-self._buffered)
        for frame in messages:
            self.client.push(frame)

    def drain(self) -> None:
        self._hub.stop_waiting(self)


class PendingUnsubscribe(PendingCommand):
    """An UNSUBSCRIBE or a RESET that syncs with the shards of its names. `work` carries it out."""

    def __init__(self, hub: Commands, client: Client, work: Answering) -> None:
        self.client = client
        self.work = work
        self.syncing: set[Upstream] = set()  # the shards whose replies are still to come
        self.deadline = 0.0
        self._hub = hub

    def left(self) -> None:
        self._hub.forget_unsubscribe(self)

    def drain(self) -> None:
        self._hub.finish_unsubscribe(self)
