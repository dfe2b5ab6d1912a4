"""The names that this worker has subscribed at the shards, for all of its clients together, and at which shards.

A name is wanted as long as a client wants it. Channels and patterns are subscribed at all shards; a shard channel is
subscribed at its home alone, the shard that the channel belongs to as a key.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from protocol import request
from pyproxy.slices import BATCH
from pyproxy.worker.pubsub.registry import ChannelKind
from pyproxy.worker.pubsub.upstream import Upstream
from pyproxy.worker.pubsub.wanted import WantedName, WantedNames

KEYSPACE_EVENTS = (b"__keyspace@", b"__keyevent@")
"""How the names of the channels begin on which every server publishes by itself (notify.c)."""


class Interest:
    """`upstreams`: one for each shard, in their order. `shared`: the names that are subscribed at all of them."""

    def __init__(self, shard_of: Callable[[bytes], int]) -> None:
        self.upstreams: list[Upstream] = []
        self.shared = WantedNames()
        self._shard_of = shard_of
        self.names: tuple[dict[bytes, WantedName], ...] = ({}, {}, {})  # by kind

    def find(self, kind: ChannelKind, text: bytes) -> WantedName | None:
        return self.names[kind].get(text)

    def want(self, kind: ChannelKind, text: bytes) -> WantedName:
        """One client more wants this name. A name that a server has refused is asked for anew."""
        name = self.names[kind].get(text)
        if name is None or name.refused:
            name = self._ask(kind, text)
        name.clients += 1
        return name

    def release(self, kind: ChannelKind, text: bytes) -> None:
        """One client less wants this name."""
        name = self.names[kind][text]
        name.clients -= 1
        if not name.clients:
            del self.names[kind][text]
            self._unsubscribe(name)

    def move_shard_channels(self) -> None:
        """Subscribe each shard channel at the shard that it belongs to now."""
        for name in list(self.names[ChannelKind.SHARD].values()):
            if name.owner is not self._list_of(ChannelKind.SHARD, name.text):
                self._ask(ChannelKind.SHARD, name.text)
        self.ask_soon()

    def ask_soon(self) -> None:
        for upstream in self.upstreams:
            upstream.ask_soon()

    def upstreams_of(self, names: WantedNames) -> Iterable[tuple[int, Upstream]]:
        """The shards at which this list of names is subscribed."""
        for index, upstream in enumerate(self.upstreams):
            if names is self.shared or names is upstream.own:
                yield index, upstream

    def homes(self, kind: ChannelKind, text: bytes) -> Iterable[int]:
        """The shards where commands and the servers themselves publish to this name. Scripts publish anywhere."""
        if kind is ChannelKind.PATTERN or (kind is ChannelKind.CHANNEL and text.startswith(KEYSPACE_EVENTS)):
            return range(len(self.upstreams))
        return (self._shard_of(text),)

    def sources(self, kind: ChannelKind, names: Collection[bytes], known: dict[bytes, None]) -> Iterable[Upstream]:
        """The shards from which messages of these names may be on their way, as far as the names are `known`."""
        if not known or (names is not known and not any(name in known for name in names)):
            return ()
        if kind is not ChannelKind.SHARD or len(names) > BATCH:
            return self.upstreams
        return {self.upstreams[self._shard_of(name)] for name in names if name in known}

    def _list_of(self, kind: ChannelKind, text: bytes) -> WantedNames:
        return self.upstreams[self._shard_of(text)].own if kind is ChannelKind.SHARD else self.shared

    def _ask(self, kind: ChannelKind, text: bytes) -> WantedName:
        old = self.names[kind].get(text)
        if old is not None:
            self._unsubscribe(old)
        name = self.names[kind][text] = self._list_of(kind, text).add(kind, text)
        if old is not None:
            name.clients, name.pending = old.clients, old.pending
        return name

    def _unsubscribe(self, name: WantedName) -> None:
        frame = request.encode([name.kind.prefix + b"unsubscribe", name.text])
        for _, upstream in self.upstreams_of(name.owner):
            upstream.unsubscribe(name, frame)
        name.owner.remove(name)
