"""Messages of the servers, delivered to the clients that are subscribed to their channel or pattern.

Whether a pattern matches is decided by the servers alone. A message is encoded at most twice, once for each protocol. A
client that does not read is closed when too many bytes wait for it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from pyproxy.events import Event, emit
from pyproxy.slices import BATCH, batches
from pyproxy.worker.lane.lane import Client
from pyproxy.worker.pubsub.connection import Delivery
from pyproxy.worker.pubsub.interest import Interest
from pyproxy.worker.pubsub.pending import PendingSubscribe
from pyproxy.worker.pubsub.registry import ChannelKind, Registry, message_frame

Receiver = Client | PendingSubscribe


class Deliverer:
    """`output_limit`: how many bytes may wait for one client."""

    def __init__(self, registry: Registry[Receiver], interest: Interest, output_limit: int) -> None:
        self._registry = registry
        self._wanted = interest.names
        self._output_limit = output_limit

    def deliver(self, kind: ChannelKind, name: bytes, words: list[bytes]) -> Delivery:
        """See upstream.Listener."""
        receivers: Collection[Receiver] = self._registry.clients(kind, name)
        wanted = self._wanted[kind].get(name)
        if wanted is not None and wanted.pending is not None:
            receivers = [*receivers, *wanted.all_pending]
        if len(receivers) > BATCH:
            return self._deliver_in_slices(list(receivers), words)
        self._push(receivers, words, {})
        return len(receivers)

    def _deliver_in_slices(self, receivers: list[Receiver], words: list[bytes]) -> Iterator[int]:
        frames: dict[int, bytes] = {}
        for some in batches(receivers):
            self._push(some, words, frames)
            yield len(some)

    def _push(self, receivers: Iterable[Receiver], words: list[bytes], frames: dict[int, bytes]) -> None:
        """`frames`: the message as encoded for each protocol so far."""
        slow = []
        for receiver in receivers:
            frame = frames.get(receiver.proto)
            if frame is None:
                frame = frames[receiver.proto] = message_frame(words, receiver.proto)
            if receiver.push(frame) > self._output_limit:
                slow.append(receiver)
        for receiver in slow:  # after the loop, as this ends subscriptions
            client = receiver.client if isinstance(receiver, PendingSubscribe) else receiver
            emit(Event.PUBSUB_SLOW, id=client.id, addr=client.addr, bytes=client.buffered_out, limit=self._output_limit)
            client.abandon()
