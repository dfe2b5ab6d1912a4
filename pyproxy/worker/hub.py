"""Publish/subscribe for the whole fleet: what clients subscribe to is subscribed once for all of them at the shards.

    clients ── SUBSCRIBE ... ──▶ Hub ── want ──▶ Upstream of each shard ──▶ servers
            ◀── messages ──────── │ ◀── deliver ──
                                  └── numbers ──▶ the parent ──▶ the other workers

A channel lives on the shard that its name, taken as a key, belongs to; PUBLISH goes there. Patterns, and the channels
of keyspace events, which every server publishes itself, are listened to on all shards. Whether a pattern matches is the
servers' to say: what they send is handed on to the clients of that channel or pattern, and encoded at most twice.

A SUBSCRIBE is confirmed when the shards have confirmed it, or at once where one cannot be reached; its client waits as
in a conversation. Nothing is delivered before that. Before an UNSUBSCRIBE, or a RESET, takes effect, a fence is passed:
one round trip to the shards of its names, so that what was published before has come, which a PUBLISH that is answered
on another connection may be ahead of.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from protocol import request
from protocol.commands import Command
from pyproxy.access import Access
from pyproxy.config import Config
from pyproxy.events import Event, emit
from pyproxy.messages import Gate
from pyproxy.shardmap import Shard
from pyproxy.worker.here import REPLY_OFF, REPLY_ON
from pyproxy.worker.lane import NOT_NOW, Client, Lane, Route
from pyproxy.worker.link import Spawn
from pyproxy.worker.pubsub import (
    OVERHEAD,
    PUBLISH,
    SUBSCRIBE,
    UNSUBSCRIBE,
    Register,
    Sort,
    Subscriber,
    confirmed,
    pushed,
)
from pyproxy.worker.split import relay
from pyproxy.worker.upstream import Name, Upstream

KEYSPACE_EVENTS = (b"__keyspace@", b"__keyevent@")
"""What the names of the channels begin with that every server publishes itself (notify.c)."""

FENCE_S = 0.2
"""So long is waited at most for what was published before an UNSUBSCRIBE."""


class Unanswered:
    """A command between its beginning and its answer; what a client's connection tells a conversation."""

    waits = False  # for something that may never come

    def go_on(self) -> None:
        """It has asked nothing that it would ask again."""

    def half_closed(self) -> None:
        """It is answered soon."""


class Waiting(Unanswered):
    """A SUBSCRIBE."""

    def __init__(self, hub: Hub, client: Client, sort: Sort, names: Sequence[bytes]) -> None:
        self.client = client
        self.sort = sort
        self.names = names
        known: dict[bytes, None] = client.subscriber.names[sort] if client.subscriber is not None else {}
        self.new = [name for name in dict.fromkeys(names) if name not in known]
        self.left_to: set[tuple[Upstream, Name]] = set()  # confirm
        self.until = 0.0
        self._hub = hub

    def left(self) -> None:
        self._hub.forget(self)

    def drain(self) -> None:
        self._hub.finish(self)


class Leaving(Unanswered):
    """An UNSUBSCRIBE or a RESET, until the fences are passed. `end` carries it out, and makes its answer."""

    def __init__(self, hub: Hub, client: Client, end: Callable[[], bytes]) -> None:
        self.client = client
        self.end = end
        self.left_to: set[Upstream] = set()  # answer
        self.until = 0.0
        self._hub = hub

    def left(self) -> None:
        self._hub.forget_leaving(self)

    def drain(self) -> None:
        self._hub.finish_leaving(self)


class Hub:
    """One worker's. `register` is shared with who answers PUBSUB and INFO; `tell` has it told to the parent."""

    def __init__(
        self,
        lane: Lane,
        config: Config,
        access: Access,
        spawn: Spawn,
        register: Register[Client],
        tell: Callable[[], None],
    ) -> None:
        self.register = register
        self._tell = tell
        self._telling = False
        self._lane = lane
        self._limit = config.limits.pubsub_bytes
        self._timeouts = config.timeouts
        self._access = access
        self._spawn = spawn
        self._shards: list[Shard] = []
        self._epochs: dict[str, int] = {}
        self._upstreams: list[Upstream] = []
        self._wanted: Counter[Name] = Counter()  # by clients, those that still wait included
        self._waiting: dict[Waiting, None] = {}
        self._leaving: dict[Leaving, None] = {}
        self._due: dict[tuple[Upstream, Name], dict[Waiting, None]] = {}  # a confirmation -> who waits for it
        self.subscribers = 0  # clients

    # --- what the worker says ---

    def face(self, shards: Sequence[Shard], gates: Sequence[Gate]) -> None:
        """Who the primaries are now. One that is another, or in another epoch, is subscribed to anew."""
        old = {upstream.shard: upstream for upstream in self._upstreams}
        epochs = {gate.shard: gate.epoch for gate in gates}
        moved = [(each.name, each.slots) for each in shards] != [(each.name, each.slots) for each in self._shards]
        self._upstreams = [
            old.pop(each.name)
            if each.name in old
            else Upstream(each.name, each.primary, self._timeouts, self._access, self._spawn, self)
            for each in shards
        ]
        for upstream in old.values():
            upstream.close()
            self.unavailable(upstream)
        for upstream, shard in zip(self._upstreams, shards, strict=True):
            known, epoch = self._epochs.get(shard.name, 0), epochs.get(shard.name, 0)
            if upstream.node != shard.primary or (known and epoch != known):
                upstream.point_at(shard.primary)
        self._shards, self._epochs = list(shards), epochs
        if moved:
            self._place()

    def _place(self) -> None:
        """Have everything subscribed where it belongs, and nowhere else."""
        targets = {name: self._targets(name) for name in self._wanted}
        for upstream in self._upstreams:
            for name in upstream.wanted:
                if upstream not in targets.get(name, ()):
                    upstream.leave(name)
            for name, those in targets.items():
                if upstream in those:
                    upstream.want(name)

    def tick(self, now: float) -> None:
        for upstream in self._upstreams:
            upstream.tick(now)
        for waiting in [each for each in self._waiting if now >= each.until]:
            for upstream, _ in waiting.left_to:
                upstream.doubt()
            self.finish(waiting)
        for leaving in [each for each in self._leaving if now >= each.until]:
            for upstream in leaving.left_to:
                upstream.miss()
            self.finish_leaving(leaving)

    @property
    def connections(self) -> int:
        return sum(upstream.is_connected for upstream in self._upstreams)

    @property
    def deaf(self) -> set[str]:
        """Shards where something is still to be confirmed, and may be expected soon."""
        return {upstream.shard for upstream in self._upstreams if upstream.is_deaf}

    def close(self) -> None:
        for upstream in self._upstreams:
            upstream.close()

    # --- what clients ask ---

    def take(self, client: Client, route: Route, command: Command, argv: Sequence[bytes]) -> object:
        """As Session.take, for the commands of the kind PUBSUB."""
        if command.name in PUBLISH:
            answer = self.counted(PUBLISH[command.name], argv[1])
            return relay(client, route, self._lane.shard_of(argv[1]), request.Request(argv), answer)
        if command.name in SUBSCRIBE:
            return self._subscribe(client, SUBSCRIBE[command.name], argv[1:])
        return self._unsubscribe(client, UNSUBSCRIBE[command.name], argv[1:])

    def counted(self, sort: Sort, channel: bytes) -> partial[bytes]:
        """What makes the answer of a PUBLISH: the server counts workers, the client wants to know of clients."""
        return partial(self._count, sort, channel)

    def _count(self, sort: Sort, channel: bytes, frame: bytes) -> bytes:
        return b":%d\r\n" % self.register.receivers(sort, channel) if frame.startswith(b":") else frame

    def _subscribe(self, client: Client, sort: Sort, names: Sequence[bytes]) -> object:
        waiting = Waiting(self, client, sort, names)
        mode, client.reply_mode = client.reply_mode, REPLY_ON  # which does not hold for what is pushed
        if client.converse(waiting) is NOT_NOW:
            client.reply_mode = mode
            return NOT_NOW
        client.reply_mode = REPLY_OFF if mode == REPLY_OFF else REPLY_ON
        for text in waiting.new:
            name = (sort, text)
            self._wanted[name] += 1
            for upstream in self._targets(name):
                upstream.want(name)
                if upstream.is_available and not upstream.is_confirmed(name):
                    waiting.left_to.add((upstream, name))
                    self._due.setdefault((upstream, name), {})[waiting] = None
        waiting.until = time.monotonic() + self._timeouts.reply_s
        self._waiting[waiting] = None
        if not waiting.left_to:
            self.finish(waiting)
        return None

    def finish(self, waiting: Waiting) -> None:
        """Confirm it, whatever has been confirmed by the shards."""
        self._wait_no_more(waiting)
        client, sort = waiting.client, waiting.sort
        subscriber = client.subscriber
        if subscriber is None:
            subscriber = client.subscriber = Subscriber(partial(self.leave, client))
            self.subscribers += 1
        if waiting.new:
            self._tell_soon()
        new = set(waiting.new)
        frames = []
        for name in waiting.names:
            if name in new:
                new.discard(name)
                subscriber.names[sort][name] = None
                self.register.add(sort, name, client)
                client.charge(len(name) + OVERHEAD)
            frames.append(confirmed(sort.prefix + b"subscribe", name, subscriber.counted(sort), client.proto))
        client.push(b"".join(frames))
        client.answer(b"")

    def forget(self, waiting: Waiting) -> None:
        """It is not answered: its client is gone, or gets an error instead."""
        self._wait_no_more(waiting)
        for text in waiting.new:
            self._unwant((waiting.sort, text))

    def _wait_no_more(self, waiting: Waiting) -> None:
        del self._waiting[waiting]
        for due in waiting.left_to:
            self._due[due].pop(waiting)
            if not self._due[due]:
                del self._due[due]
        waiting.left_to.clear()

    def _unsubscribe(self, client: Client, sort: Sort, names: Sequence[bytes]) -> object:
        if not client.settled():
            return NOT_NOW
        if client.reply_mode != REPLY_OFF:
            client.reply_mode = REPLY_ON
        known = client.subscriber.names[sort] if client.subscriber is not None else {}
        left = [(sort, name) for name in names or known if name in known]
        return self._behind_fences(client, left, partial(self._end, client, sort, names))

    def reset(self, client: Client, end: Callable[[], bytes]) -> object:
        """The RESET of a subscriber. `end` carries it out, and makes its answer."""
        if not client.settled():
            return NOT_NOW
        if client.reply_mode == REPLY_OFF:
            client.reply_mode = REPLY_ON
        left = [(sort, name) for sort in Sort for name in client.subscriber.names[sort]]
        return self._behind_fences(client, left, end)

    def _behind_fences(self, client: Client, names: Iterable[Name], end: Callable[[], bytes]) -> object:
        """What `end` answers, at once if nothing may be on its way; else its place is taken until then.

        A client that sends many of these in a row waits for the shards once: what was published before all of them
        were here has come then.
        """
        subscriber: Subscriber | None = client.subscriber
        if subscriber is None:
            return end()
        if subscriber.fenced_at != client.commands:  # it has asked something else since, a PUBLISH perhaps
            subscriber.fenced.clear()
        subscriber.fenced_at = client.commands + 1
        leaving, now = Leaving(self, client, end), time.monotonic()
        for upstream in {each for name in names for each in self._targets(name)}:
            if subscriber.fenced.get(upstream, 0.0) < client.last_active:
                subscriber.fenced[upstream] = now
                if upstream.fence(partial(self._passed, leaving, upstream)):
                    leaving.left_to.add(upstream)
        if not leaving.left_to:
            return end()
        leaving.until = now + FENCE_S
        self._leaving[leaving] = None
        return client.converse(leaving)

    def _passed(self, leaving: Leaving, upstream: Upstream) -> None:
        leaving.left_to.discard(upstream)
        if not leaving.left_to:
            self.finish_leaving(leaving)

    def finish_leaving(self, leaving: Leaving) -> None:
        if leaving in self._leaving:  # else it was answered when its time was over
            del self._leaving[leaving]
            leaving.client.answer(leaving.end())

    def forget_leaving(self, leaving: Leaving) -> None:
        """Its client is gone."""
        del self._leaving[leaving]

    def _end(self, client: Client, sort: Sort, names: Sequence[bytes]) -> bytes:
        subscriber: Subscriber | None = client.subscriber
        verb, frames = sort.prefix + b"unsubscribe", []
        for name in names or list(subscriber.names[sort] if subscriber else ()):
            if subscriber is not None and name in subscriber.names[sort]:
                self._remove(client, subscriber, sort, name)
                client.charge(-len(name) - OVERHEAD)
            count = subscriber.counted(sort) if subscriber else 0
            frames.append(confirmed(verb, name, count, client.proto))
        if not frames:
            frames.append(confirmed(verb, None, subscriber.counted(sort) if subscriber else 0, client.proto))
        if subscriber is not None and not any(subscriber.counts):
            client.subscriber = None
            self.subscribers -= 1
        client.push(b"".join(frames))
        return b""

    def leave(self, client: Client) -> None:
        """All of a client's subscriptions end, without a word."""
        subscriber: Subscriber = client.subscriber
        for sort in Sort:
            for name in list(subscriber.names[sort]):
                self._remove(client, subscriber, sort, name)
                client.charge(-len(name) - OVERHEAD)
        client.subscriber = None
        self.subscribers -= 1

    def _remove(self, client: Client, subscriber: Subscriber, sort: Sort, name: bytes) -> None:
        del subscriber.names[sort][name]
        self.register.remove(sort, name, client)
        self._unwant((sort, name))
        self._tell_soon()

    def _unwant(self, name: Name) -> None:
        self._wanted[name] -= 1
        if not self._wanted[name]:
            del self._wanted[name]
            for upstream in self._targets(name):
                upstream.leave(name)

    def _tell_soon(self) -> None:
        if not self._telling:
            self._telling = True
            self._lane.loop.call_soon(self._tell_now)

    def _tell_now(self) -> None:
        self._telling = False
        self._tell()

    def _targets(self, name: Name) -> Sequence[Upstream]:
        """Where it is published."""
        sort, text = name
        if sort is Sort.PATTERN or (sort is Sort.CHANNEL and text.startswith(KEYSPACE_EVENTS)):
            return self._upstreams
        return [self._upstreams[self._lane.shard_of(text)]]

    # --- what the shards say; see upstream.Listener ---

    def deliver(self, sort: Sort, name: bytes, words: list[bytes]) -> int:
        clients = self.register.clients(sort, name)
        frames: dict[int, bytes] = {}
        slow = []
        for client in clients:
            frame = frames.get(client.proto)
            if frame is None:
                frame = frames[client.proto] = pushed(words, client.proto)
            if client.push(frame) > self._limit:
                slow.append(client)
        for client in slow:  # after the loop: it takes its subscriptions along
            emit(Event.PUBSUB_SLOW, id=client.id, addr=client.addr, bytes=client.buffered_out, limit=self._limit)
            client.abandon()
        return len(clients)

    def confirmed(self, upstream: Upstream, name: Name) -> None:
        self._settle((upstream, name))

    def refused(self, upstream: Upstream, name: Name, line: bytes) -> None:
        for waiting in list(self._due.get((upstream, name), ())):
            self.forget(waiting)
            waiting.client.answer(line)

    def unavailable(self, upstream: Upstream) -> None:
        for due in [each for each in self._due if each[0] is upstream]:
            self._settle(due)

    def _settle(self, due: tuple[Upstream, Name]) -> None:
        """Nobody waits for this any more."""
        for waiting in self._due.pop(due, ()):
            waiting.left_to.discard(due)
            if not waiting.left_to:
                self.finish(waiting)
