"""Publish/subscribe for the clients of one worker. What they subscribe to is subscribed once for all of them.

    clients ── SUBSCRIBE ... ──▶ Hub ── Interest ──▶ Upstream of each shard ──▶ servers
            ◀── messages ──────── │ ◀── Deliverer ──
                                  └── numbers ──▶ the parent ──▶ the other workers

A PUBLISH goes to the home of its channel: the shard that the channel belongs to as a key. A script publishes on the
shard where it runs, and every server publishes keyspace events by itself. So channels and patterns are subscribed at
all shards. A message is published on one of them, and so arrives once.

A SUBSCRIBE goes through four steps, each in slices. Its client is parked meanwhile, as in a conversation.

    1. Its names are wanted. From now on messages of them are buffered for it.
       It waits until the shards have confirmed the names, for a moment at most if one is silent.
    2. Its names are registered, and the parent is told of their new numbers.
       It waits until the other workers have acknowledged the numbers, for a moment at most.
    3. The client gets the confirmations, and then the buffered messages.
    4. The client is registered in its place. From now on messages go to the client.

An UNSUBSCRIBE, or a RESET, first syncs with the shards of its names, by one round trip to each. So messages arrive that
were published before, which may be later than the answer to a PUBLISH on another connection.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from protocol import request
from protocol.commands import Command
from pyproxy.access import Access
from pyproxy.config import Config
from pyproxy.events import Event, emit
from pyproxy.messages import GateDirective
from pyproxy.shard_map import Shard
from pyproxy.slices import BATCH, Slices, batches
from pyproxy.worker.lane.lane import Client, Lane, Route
from pyproxy.worker.lane.outcome import NOT_NOW, PLACED, REPLY_OFF, REPLY_ON, Outcome
from pyproxy.worker.lane.split import relay
from pyproxy.worker.pubsub.connection import MESSAGE_OVERHEAD, PartialMessages
from pyproxy.worker.pubsub.delivery import Deliverer, Receiver
from pyproxy.worker.pubsub.interest import Interest
from pyproxy.worker.pubsub.pending import Answering, PendingSubscribe, PendingUnsubscribe
from pyproxy.worker.pubsub.registry import (
    OVERHEAD,
    PUBLISH,
    SUBSCRIBE,
    UNSUBSCRIBE,
    ChannelKind,
    Registry,
    Subscriber,
    confirmation_frame,
)
from pyproxy.worker.pubsub.upstream import LATE_S, Upstream
from pyproxy.worker.pubsub.wanted import WantedName, WantedNames
from pyproxy.worker.shard.link import Spawn

SYNC_S = 0.2
"""How long an UNSUBSCRIBE waits for the shards of its names."""

Work = Iterator[int]


class Hub:
    """`registry` is shared with the commands PUBSUB and INFO. `notify_parent`: numbers in the registry have changed.

    `alone`: there are no other workers.
    """

    def __init__(
        self,
        lane: Lane,
        config: Config,
        access: Access,
        spawn: Spawn,
        slices: Slices,
        registry: Registry[Receiver],
        alone: bool,
        notify_parent: Callable[[], None],
    ) -> None:
        self.registry = registry
        self.subscribers = 0  # clients
        self.interest = Interest(lane.shard_of)
        self._notify_parent = notify_parent
        self._notifying = False
        self._lane = lane
        self.deliver = Deliverer(registry, self.interest, config.limits.pubsub_bytes).deliver  # see upstream.Listener
        limit = max(config.limits.memory_bytes // 4, config.limits.bulk_bytes + MESSAGE_OVERHEAD)
        self._partial_messages = PartialMessages(limit, lane.count_partial_message)
        self._timeouts = config.timeouts
        self._access = access
        self._spawn = spawn
        self._slices = slices
        self._opened = False
        self._shards: list[Shard] = []
        self._epochs: dict[str, int] = {}
        self._unacknowledged: dict[PendingSubscribe, None] = {}
        self._acknowledged = 0  # the number of the last change that all other workers have acknowledged
        self._skips_acks = alone  # also after a SUBSCRIBE that waited in vain, until the other workers catch up
        self._alone = alone
        self._unsubscribing: dict[PendingUnsubscribe, None] = {}
        self._ticked_at = time.monotonic()

    # --- called by the worker ---

    def open(self) -> None:
        """There is a client: be connected from now on."""
        if not self._opened:
            self._opened = True
            for upstream in self.interest.upstreams:
                upstream.open()

    def apply_topology(self, shards: Sequence[Shard], directives: Sequence[GateDirective]) -> None:
        """Subscribe everything anew at a primary that is another, or in another epoch."""
        old = {upstream.shard: upstream for upstream in self.interest.upstreams}
        epochs = {directive.shard: directive.epoch for directive in directives}
        moved = [(each.name, each.slots) for each in shards] != [(each.name, each.slots) for each in self._shards]
        upstreams = [old.pop(each.name) if each.name in old else self._new_upstream(each) for each in shards]
        self.interest.upstreams = upstreams
        for upstream in old.values():
            upstream.close()
        for upstream, shard in zip(upstreams, shards, strict=True):
            known, epoch = self._epochs.get(shard.name, 0), epochs.get(shard.name, 0)
            if upstream.node != shard.primary or (known and epoch != known):
                upstream.switch_to(shard.primary)
        self._shards, self._epochs = list(shards), epochs
        if moved:
            self.interest.move_shard_channels()

    def _new_upstream(self, shard: Shard) -> Upstream:
        upstream = Upstream(
            shard.name,
            shard.primary,
            self._timeouts,
            self._access,
            self._spawn,
            self._slices,
            self.interest.shared,
            self,
            self._partial_messages,
        )
        if self._opened:
            upstream.open()
        return upstream

    @property
    def at_rest(self) -> bool:
        """Whether nothing here depends on the time."""
        waiting = self._unacknowledged or self._unsubscribing
        return not waiting and all(upstream.at_rest for upstream in self.interest.upstreams)

    def tick(self, now: float) -> None:
        passed_s, self._ticked_at = min(now - self._ticked_at, LATE_S), now
        for upstream in self.interest.upstreams:
            upstream.tick(now)
        for subscribe in list(self._unacknowledged):
            subscribe.waited_s += passed_s
            if subscribe.waited_s >= self._timeouts.reply_s and not self._skips_acks:
                self._skips_acks = True
        if self._skips_acks:
            self._confirm_up_to(self.registry.last_change)
        for unsubscribe in [each for each in self._unsubscribing if now >= each.deadline]:
            for upstream in unsubscribe.syncing:
                upstream.on_sync_timeout()
            self.finish_unsubscribe(unsubscribe)

    def on_acknowledged(self, number: int) -> None:
        """All other workers have applied the changes up to this number."""
        self._acknowledged = max(self._acknowledged, number)
        self._skips_acks = self._alone or (self._skips_acks and number < self.registry.last_sent)
        self._confirm_up_to(number)

    def _confirm_up_to(self, number: int) -> None:
        for subscribe in [each for each in self._unacknowledged if each.change <= number]:
            del self._unacknowledged[subscribe]
            self._run(subscribe.client, self._confirm(subscribe))

    @property
    def connections(self) -> int:
        return sum(upstream.is_connected for upstream in self.interest.upstreams)

    @property
    def unconfirmed(self) -> set[str]:
        """The shards where some name is not confirmed, and may be soon."""
        return {upstream.shard for upstream in self.interest.upstreams if upstream.has_unconfirmed}

    def close(self) -> None:
        for upstream in self.interest.upstreams:
            upstream.close()

    # --- commands ---

    def serve(self, client: Client, route: Route, command: Command, argv: Sequence[bytes]) -> Outcome:
        """As `Session.dispatch`, for commands of the kind PUBSUB."""
        if command.name in PUBLISH:
            to_answer = self.publish_answer(PUBLISH[command.name], argv[1])
            return relay(client, route, self._lane.shard_of(argv[1]), request.Request(argv), to_answer)
        if command.name in SUBSCRIBE:
            return self._subscribe(client, SUBSCRIBE[command.name], argv[1:])
        return self._unsubscribe(client, UNSUBSCRIBE[command.name], argv[1:])

    def publish_answer(self, kind: ChannelKind, channel: bytes) -> partial[bytes]:
        """A function that makes the answer to a PUBLISH of the reply: servers count workers, clients expect clients."""
        return partial(self._publish_answer, kind, channel)

    def _publish_answer(self, kind: ChannelKind, channel: bytes, frame: bytes) -> bytes:
        return b":%d\r\n" % self.registry.receivers(kind, channel) if frame.startswith(b":") else frame

    def _run(self, client: Client, work: Work) -> None:
        self._slices.run(self._caught(client, work))

    def _caught(self, client: Client, work: Work) -> Work:
        """The work. If it fails, which is a bug, the client's connection is closed, so that it does not wait."""
        try:
            yield from work
        except Exception:
            emit(Event.BUG, where=client, trace=traceback.format_exc())
            client.abandon()

    # --- SUBSCRIBE ---

    def _subscribe(self, client: Client, kind: ChannelKind, names: Sequence[bytes]) -> Outcome:
        subscriber: Subscriber = client.subscriber or Subscriber(partial(self.on_client_left, client))
        subscribe = PendingSubscribe(self, client, subscriber, kind, names)
        mode, client.reply_mode = client.reply_mode, REPLY_ON  # the mode does not hold for what is pushed
        if client.converse(subscribe) is NOT_NOW:
            client.reply_mode = mode
            return NOT_NOW
        client.reply_mode = REPLY_OFF if mode == REPLY_OFF else REPLY_ON
        if client.subscriber is None:
            client.subscriber = subscriber
            self.subscribers += 1
        subscriber.pending = subscribe
        self._run(client, self._want(subscribe))
        return PLACED

    def _want(self, subscribe: PendingSubscribe) -> Work:
        kind, client, known = subscribe.kind, subscribe.client, subscribe.subscriber.names[subscribe.kind]
        last: dict[WantedNames, int] = {}  # the number of the last name in each list
        homes: set[int] = set()
        for names in batches(subscribe.names):
            if subscribe.is_over:
                return
            size = 0
            for name in names:
                if name in known:
                    continue
                wanted = self.interest.find(kind, name)
                if wanted is not None and wanted.is_pending(subscribe):
                    continue  # the command has this name twice
                wanted = self.interest.want(kind, name)
                subscribe.new_names.append(name)
                wanted.add_pending(subscribe)
                size += len(name) + OVERHEAD
                last[wanted.owner] = max(last.get(wanted.owner, 0), wanted.number)
                if len(homes) < len(self.interest.upstreams):
                    homes.update(self.interest.homes(kind, name))
            client.charge(size)
            self.interest.ask_soon()
            yield len(names)
        if subscribe.is_over:
            return
        if (
            len(subscribe.new_names) <= BATCH
        ):  # else it is asked for already; a PUBLISH may follow on another connection
            for index in homes if len(homes) == 1 else ():
                self.interest.upstreams[index].ask_now()
        for owner, number in last.items():
            for index, upstream in self.interest.upstreams_of(owner):
                if upstream.wait_until_confirmed(owner, number, subscribe, index in homes):
                    subscribe.unconfirmed.add(upstream)
        if not subscribe.unconfirmed:
            yield from self._register(subscribe)

    def confirmed(self, upstream: Upstream, waiter: PendingSubscribe) -> None:
        """See upstream.Listener."""
        if upstream in waiter.unconfirmed:
            waiter.unconfirmed.discard(upstream)
            if not waiter.unconfirmed and not waiter.is_over:
                self._run(waiter.client, self._register(waiter))

    def _register(self, subscribe: PendingSubscribe) -> Work:
        kind = subscribe.kind
        for names in batches(subscribe.new_names):
            if subscribe.is_over:
                return
            for name in names:
                self._wanted(kind, name).remove_pending(subscribe)
                self.registry.add(kind, name, subscribe)
            self._notify_soon()
            yield len(names)
        if subscribe.is_over:
            return
        subscribe.change = self.registry.last_change
        if not subscribe.new_names or self._skips_acks or subscribe.change <= self._acknowledged:
            yield from self._confirm(subscribe)
        else:
            self._unacknowledged[subscribe] = None

    def _confirm(self, subscribe: PendingSubscribe) -> Work:
        client, kind, subscriber = subscribe.client, subscribe.kind, subscribe.subscriber
        verb, known = kind.prefix + b"subscribe", subscriber.names[kind]
        for names in batches(subscribe.names):
            if subscribe.is_over:
                return
            frames = []
            for name in names:
                known[name] = None
                frames.append(confirmation_frame(verb, name, subscriber.count(kind), client.proto))
            client.push(b"".join(frames))
            yield len(names)
        if subscribe.is_over:
            return
        subscribe.flush()
        for names in batches(subscribe.new_names):
            for name in names:
                self.registry.replace(kind, name, subscribe, client)
            yield len(names)
            if subscribe.is_over:
                return
        subscriber.pending = None
        client.answer(b"")

    def stop_waiting(self, subscribe: PendingSubscribe) -> None:
        """Confirm it, whatever the shards have confirmed and the other workers have acknowledged."""
        if subscribe.unconfirmed:
            subscribe.unconfirmed.clear()
            self._run(subscribe.client, self._register(subscribe))
        elif subscribe in self._unacknowledged:
            del self._unacknowledged[subscribe]
            self._run(subscribe.client, self._confirm(subscribe))

    def refused(self, upstream: Upstream, name: WantedName, line: bytes) -> None:
        """See upstream.Listener."""
        name.refused = True
        for subscribe in name.all_pending:
            if not subscribe.is_over:
                subscribe.is_over = True
                self._run(subscribe.client, self._refuse(subscribe, line))

    def _refuse(self, subscribe: PendingSubscribe, line: bytes) -> Work:
        client, subscriber = subscribe.client, subscribe.subscriber
        yield from self._roll_back(subscribe)
        if client.subscriber is subscriber:
            subscriber.pending = None
            self._end_if_empty(client, subscriber)
            client.answer(line)

    def _roll_back(self, subscribe: PendingSubscribe) -> Work:
        """Undo a SUBSCRIBE, however far it has come."""
        kind, known = subscribe.kind, subscribe.subscriber.names[subscribe.kind]
        for names in batches(subscribe.new_names):
            if subscribe.client.subscriber is subscribe.subscriber:  # else the client has gone
                subscribe.client.charge(-sum(len(name) + OVERHEAD for name in names))
            for name in names:
                was_pending = self._wanted(kind, name).remove_pending(subscribe)
                if not was_pending and not self.registry.remove(kind, name, subscribe):
                    self.registry.remove(kind, name, subscribe.client)
                known.pop(name, None)
                self.interest.release(kind, name)
            self._notify_soon()
            yield 2 * len(names)

    def _wanted(self, kind: ChannelKind, name: bytes) -> WantedName:
        """A name that is wanted by somebody."""
        wanted = self.interest.find(kind, name)
        assert wanted is not None
        return wanted

    # --- UNSUBSCRIBE, RESET, clients that leave ---

    def _unsubscribe(self, client: Client, kind: ChannelKind, names: Sequence[bytes]) -> Outcome:
        if not client.settled():
            return NOT_NOW
        if client.reply_mode != REPLY_OFF:
            client.reply_mode = REPLY_ON
        known = client.subscriber.names[kind] if client.subscriber is not None else {}
        sources = self.interest.sources(kind, names or known, known)
        return self._after_sync(client, sources, self._end(client, kind, names), len(names or known))

    def reset(self, client: Client, finish: Callable[[], bytes]) -> Outcome:
        """The RESET of a subscriber. `finish` does the rest of it, and makes its answer."""
        if not client.settled():
            return NOT_NOW
        if client.reply_mode == REPLY_OFF:
            client.reply_mode = REPLY_ON
        subscriber: Subscriber = client.subscriber
        by_kind = zip(ChannelKind, subscriber.names, strict=True)
        sources = [upstream for kind, names in by_kind for upstream in self.interest.sources(kind, names, names)]
        return self._after_sync(client, sources, self._reset(client, subscriber, finish), sum(subscriber.counts))

    def _reset(self, client: Client, subscriber: Subscriber, finish: Callable[[], bytes]) -> Answering:
        yield from self._end_all(client, subscriber)
        if client.subscriber is not subscriber:
            return b""  # the client has gone
        self._end_if_empty(client, subscriber)
        return finish()

    def _after_sync(self, client: Client, sources: Iterable[Upstream], work: Answering, parts: int) -> Outcome:
        """Run `work` once no messages are on their way from the sources. It is run at once if that is so and it is
        small.

        A client that sends many of these in a row waits for the shards once: what was published before the last of them
        was received has arrived then.
        """
        unsubscribe, now = PendingUnsubscribe(self, client, work), time.monotonic()
        subscriber: Subscriber | None = client.subscriber
        if subscriber is not None:
            if subscriber.synced_at != client.commands:  # it has sent another command since, perhaps a PUBLISH
                subscriber.synced.clear()
            subscriber.synced_at = client.commands + 1
            for upstream in set(sources):
                if subscriber.synced.get(upstream, 0.0) < client.last_active:
                    subscriber.synced[upstream] = now
                    if upstream.sync(partial(self._on_synced, unsubscribe, upstream)):
                        unsubscribe.syncing.add(upstream)
        if not unsubscribe.syncing and parts <= BATCH:
            answer: bytes = _run_at_once(work)
            return answer
        client.converse(unsubscribe)
        unsubscribe.deadline = now + SYNC_S
        self._unsubscribing[unsubscribe] = None
        if not unsubscribe.syncing:
            self.finish_unsubscribe(unsubscribe)
        return PLACED

    def _on_synced(self, unsubscribe: PendingUnsubscribe, upstream: Upstream) -> None:
        unsubscribe.syncing.discard(upstream)
        if not unsubscribe.syncing:
            self.finish_unsubscribe(unsubscribe)

    def finish_unsubscribe(self, unsubscribe: PendingUnsubscribe) -> None:
        if unsubscribe in self._unsubscribing:  # else it was finished at its deadline
            del self._unsubscribing[unsubscribe]
            self._run(unsubscribe.client, self._finish(unsubscribe))

    def _finish(self, unsubscribe: PendingUnsubscribe) -> Work:
        answer = yield from unsubscribe.work
        unsubscribe.client.answer(answer)

    def forget_unsubscribe(self, unsubscribe: PendingUnsubscribe) -> None:
        """Its client is gone."""
        self._unsubscribing.pop(unsubscribe, None)

    def _end(self, client: Client, kind: ChannelKind, names: Sequence[bytes]) -> Answering:
        """End the subscriptions to these names; without names, to all of this kind."""
        subscriber: Subscriber | None = client.subscriber
        verb = kind.prefix + b"unsubscribe"
        ending: Iterable[bytes] = names or list(subscriber.names[kind] if subscriber else ())
        for some in batches(ending):
            if client.subscriber is not subscriber:
                return b""  # the client has gone
            frames, size = [], 0
            for name in some:
                if subscriber is not None and name in subscriber.names[kind]:
                    del subscriber.names[kind][name]
                    self._remove(client, kind, name)
                    size += len(name) + OVERHEAD
                count = subscriber.count(kind) if subscriber else 0
                frames.append(confirmation_frame(verb, name, count, client.proto))
            client.charge(-size)
            client.push(b"".join(frames))
            yield 2 * len(some)
        if client.subscriber is not subscriber:
            return b""
        if not ending:
            client.push(confirmation_frame(verb, None, subscriber.count(kind) if subscriber else 0, client.proto))
        if subscriber is not None:
            self._end_if_empty(client, subscriber)
        return b""

    def _end_if_empty(self, client: Client, subscriber: Subscriber) -> None:
        if not any(subscriber.counts):
            client.subscriber = None
            self.subscribers -= 1

    def on_client_left(self, client: Client) -> None:
        """End all subscriptions of a client that has gone."""
        subscriber: Subscriber = client.subscriber
        client.subscriber = None
        self.subscribers -= 1
        if subscriber.pending is not None:
            subscriber.pending.is_over = True
            self._unacknowledged.pop(subscriber.pending, None)
        self._slices.run(self._end_all(client, subscriber))

    def _end_all(self, client: Client, subscriber: Subscriber) -> Work:
        if subscriber.pending is not None:
            yield from self._roll_back(subscriber.pending)
        for kind, names in zip(ChannelKind, subscriber.names, strict=True):
            while names:
                size, count = 0, min(len(names), BATCH)
                for _ in range(count):
                    name, _ = names.popitem()
                    self._remove(client, kind, name)
                    size += len(name) + OVERHEAD
                if client.subscriber is subscriber:  # else the client has gone
                    client.charge(-size)
                yield 2 * count

    def _remove(self, client: Client, kind: ChannelKind, name: bytes) -> None:
        self.registry.remove(kind, name, client)
        self.interest.release(kind, name)
        self._notify_soon()

    def _notify_soon(self) -> None:
        if not self._notifying:
            self._notifying = True
            self._lane.loop.call_soon(self._notify_now)

    def _notify_now(self) -> None:
        self._notifying = False
        self._notify_parent()


def _run_at_once(work: Iterator[Any]) -> Any:
    """Run a work to its end -> its result."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value
