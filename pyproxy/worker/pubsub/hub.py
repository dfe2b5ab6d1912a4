"""Publish/subscribe for the whole fleet: what clients subscribe to is subscribed once for all of them at the shards.

    clients ── SUBSCRIBE ... ──▶ Hub ── Rolls ──▶ Upstream of each shard ──▶ servers
            ◀── messages ──────── │ ◀── deliver ──
                                  └── numbers ──▶ the parent ──▶ the other workers

A PUBLISH goes to the shard that the channel, taken as a key, belongs to: its home. A script publishes on the shard
where it runs, and every server the channels of keyspace events. So channels and patterns are listened to on all shards;
a message is on one of them, and comes once. A shard channel is listened to at home alone. Whether a pattern matches is
the servers' to say: what they send is handed on to the clients of that channel or pattern, and encoded at most twice.

A SUBSCRIBE goes through four works, each in slices, and its client waits as in a conversation:

    want      its names are on the roll, and what comes of them is kept for it from now on
              ... until the shards have confirmed; no longer than a moment for one that is silent
    count     its names are among the numbers of this worker
              ... until the other workers know; no longer than a moment
    confirm   its client gets the confirmations, and then what was kept
    hand over what comes from now on is the client's

Before an UNSUBSCRIBE, or a RESET, takes effect, a fence is passed: one round trip to the shards of its names, so that
what was published before has come, which a PUBLISH that is answered on another connection may be ahead of.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from protocol import request
from protocol.commands import Command
from pyproxy.access import Access
from pyproxy.config import Config
from pyproxy.events import Event, emit
from pyproxy.messages import Gate
from pyproxy.shard_map import Shard
from pyproxy.slices import BATCH, Slices, batches
from pyproxy.worker.commands.context import REPLY_OFF, REPLY_ON
from pyproxy.worker.lane.lane import Client, Lane, Route
from pyproxy.worker.lane.outcome import NOT_NOW, PLACED, Outcome
from pyproxy.worker.lane.split import relay
from pyproxy.worker.pubsub.registry import (
    OVERHEAD,
    PUBLISH,
    SUBSCRIBE,
    UNSUBSCRIBE,
    Registry,
    Sort,
    Subscriber,
    confirmed,
    pushed,
)
from pyproxy.worker.pubsub.upstream import LATE_S, MESSAGE_ROOM, Delivery, Unfinished, Upstream
from pyproxy.worker.pubsub.wanted import Roll, Wanted
from pyproxy.worker.shard.link import Spawn

KEYSPACE_EVENTS = (b"__keyspace@", b"__keyevent@")
"""What the names of the channels begin with that every server publishes itself (notify.c)."""

FENCE_S = 0.2
"""So long is waited at most for what was published before an UNSUBSCRIBE."""

Work = Iterator[int]
Answering = Generator[int, None, bytes]  # a work that ends with the answer


class Unanswered:
    """A command between its beginning and its answer; what a client's connection tells a conversation."""

    waits = False  # for something that may never come

    def go_on(self) -> None:
        """It has asked nothing that it would ask again."""

    def half_closed(self) -> None:
        """It is answered soon."""

    def left(self) -> None:
        """Its client is gone, which `Subscriber.left` says too."""


class Waiting(Unanswered):
    """A SUBSCRIBE, which gets what is for its client until that has its confirmations."""

    def __init__(self, hub: Hub, client: Client, subscriber: Subscriber, sort: Sort, names: Sequence[bytes]) -> None:
        self.client = client
        self.subscriber = subscriber
        self.sort = sort
        self.names = names
        self.new: list[bytes] = []  # that the client was not subscribed to, each once
        self.left_to: set[Upstream] = set()  # confirm
        self.number = 0  # of what the other workers have to be told
        self.waited_s = 0.0  # for them
        self.over = False  # nothing more is done for it
        self.proto: int = client.proto
        self._kept: list[bytes] | None = []
        self._kept_bytes = 0
        self._hub = hub

    def push(self, frame: bytes) -> int:
        """As of a client."""
        if self._kept is None or self.over:
            return int(self.client.push(frame))
        self._kept.append(frame)
        self._kept_bytes += len(frame)
        self.client.charge(len(frame))
        return self._kept_bytes

    def release(self) -> None:
        """Its client has its confirmations."""
        kept, self._kept = self._kept or [], None
        self.client.charge(-self._kept_bytes)
        for frame in kept:
            self.client.push(frame)

    def drain(self) -> None:
        self._hub.wait_no_more(self)


class Leaving(Unanswered):
    """An UNSUBSCRIBE or a RESET, until the fences are passed. `work` carries it out."""

    def __init__(self, hub: Hub, client: Client, work: Answering) -> None:
        self.client = client
        self.work = work
        self.left_to: set[Upstream] = set()  # answer
        self.until = 0.0
        self._hub = hub

    def left(self) -> None:
        self._hub.forget_leaving(self)

    def drain(self) -> None:
        self._hub.finish_leaving(self)


Receiver = Client | Waiting


class Hub:
    """One worker's. `register` is shared with who answers PUBSUB and INFO; `tell` has it told to the parent."""

    def __init__(
        self,
        lane: Lane,
        config: Config,
        access: Access,
        spawn: Spawn,
        slices: Slices,
        register: Registry[Receiver],
        alone: bool,
        tell: Callable[[], None],
    ) -> None:
        self.register = register
        self.subscribers = 0  # clients
        self._tell = tell
        self._telling = False
        self._lane = lane
        self._limit = config.limits.pubsub_bytes
        most = max(config.limits.memory_bytes // 4, config.limits.bulk_bytes + MESSAGE_ROOM)
        self._unfinished = Unfinished(most, lane.listens)
        self._timeouts = config.timeouts
        self._access = access
        self._spawn = spawn
        self._slices = slices
        self._opened = False
        self._shards: list[Shard] = []
        self._epochs: dict[str, int] = {}
        self._upstreams: list[Upstream] = []
        self._shared = Roll()  # of what is listened to on all shards
        self._wanted: tuple[dict[bytes, Wanted], ...] = ({}, {}, {})
        self._unknown: dict[Waiting, None] = {}  # not all workers know of them
        self._known = 0  # what they know of
        self._heedless = alone  # nobody waits for them; so after one that did in vain, until they answer
        self._alone = alone
        self._leaving: dict[Leaving, None] = {}
        self._ticked = time.monotonic()

    # --- what the worker says ---

    def open(self) -> None:
        """There is a client: be connected from now on."""
        if not self._opened:
            self._opened = True
            for upstream in self._upstreams:
                upstream.open()

    def face(self, shards: Sequence[Shard], gates: Sequence[Gate]) -> None:
        """Who the primaries are now. One that is another, or in another epoch, is subscribed to anew."""
        old = {upstream.shard: upstream for upstream in self._upstreams}
        epochs = {gate.shard: gate.epoch for gate in gates}
        moved = [(each.name, each.slots) for each in shards] != [(each.name, each.slots) for each in self._shards]
        self._upstreams = [old.pop(each.name) if each.name in old else self._upstream(each) for each in shards]
        for upstream in old.values():
            upstream.close()
        for upstream, shard in zip(self._upstreams, shards, strict=True):
            known, epoch = self._epochs.get(shard.name, 0), epochs.get(shard.name, 0)
            if upstream.node != shard.primary or (known and epoch != known):
                upstream.switch_to(shard.primary)
        self._shards, self._epochs = list(shards), epochs
        if moved:
            self._move()

    def _upstream(self, shard: Shard) -> Upstream:
        made = Upstream(
            shard.name,
            shard.primary,
            self._timeouts,
            self._access,
            self._spawn,
            self._slices,
            self._shared,
            self,
            self._unfinished,
        )
        if self._opened:
            made.open()
        return made

    def _move(self) -> None:
        """Have all shard channels subscribed where they belong now."""
        for wanted in list(self._wanted[Sort.SHARD].values()):
            if wanted.roll is not self._roll(Sort.SHARD, wanted.text):
                self._enlist(Sort.SHARD, wanted.text)
        for upstream in self._upstreams:
            upstream.ask_soon()

    @property
    def at_rest(self) -> bool:
        """Whether nobody waits for the time to pass."""
        return not (self._unknown or self._leaving) and all(upstream.at_rest for upstream in self._upstreams)

    def tick(self, now: float) -> None:
        passed_s, self._ticked = min(now - self._ticked, LATE_S), now
        for upstream in self._upstreams:
            upstream.tick(now)
        for waiting in list(self._unknown):
            waiting.waited_s += passed_s
            if waiting.waited_s >= self._timeouts.reply_s and not self._heedless:
                self._heedless = True
        if self._heedless:
            self._know(self.register.changes)
        for leaving in [each for each in self._leaving if now >= each.until]:
            for upstream in leaving.left_to:
                upstream.miss()
            self.finish_leaving(leaving)

    def known(self, number: int) -> None:
        """All other workers have heard what was told up to this number."""
        self._known = max(self._known, number)
        self._heedless = self._alone or (self._heedless and number < self.register.told)
        self._know(number)

    def _know(self, number: int) -> None:
        for waiting in [each for each in self._unknown if each.number <= number]:
            del self._unknown[waiting]
            self._begin(waiting.client, self._confirm(waiting))

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

    def take(self, client: Client, route: Route, command: Command, argv: Sequence[bytes]) -> Outcome:
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

    def _begin(self, client: Client, work: Work) -> None:
        self._slices.run(self._watched(client, work))

    def _watched(self, client: Client, work: Work) -> Work:
        """A work whose failure is our own fault, and ends this client's connection instead of having it wait."""
        try:
            yield from work
        except Exception:
            emit(Event.BUG, where=client, trace=traceback.format_exc())
            client.abandon()

    # --- SUBSCRIBE ---

    def _subscribe(self, client: Client, sort: Sort, names: Sequence[bytes]) -> Outcome:
        subscriber: Subscriber = client.subscriber or Subscriber(partial(self.leave, client))
        waiting = Waiting(self, client, subscriber, sort, names)
        mode, client.reply_mode = client.reply_mode, REPLY_ON  # which does not hold for what is pushed
        if client.converse(waiting) is NOT_NOW:
            client.reply_mode = mode
            return NOT_NOW
        client.reply_mode = REPLY_OFF if mode == REPLY_OFF else REPLY_ON
        if client.subscriber is None:
            client.subscriber = subscriber
            self.subscribers += 1
        subscriber.waiting = waiting
        self._begin(client, self._want(waiting))
        return PLACED

    def _want(self, waiting: Waiting) -> Work:
        sort, client, known = waiting.sort, waiting.client, waiting.subscriber.names[waiting.sort]
        all_wanted = self._wanted[sort]
        upto: dict[Roll, int] = {}
        homes: set[int] = set()
        for names in batches(waiting.names):
            if waiting.over:
                return
            size = 0
            for name in names:
                if name in known:
                    continue
                wanted = all_wanted.get(name)
                if wanted is not None and wanted.is_early(waiting):
                    continue  # it is named twice
                if wanted is None or wanted.refused:
                    wanted = self._enlist(sort, name)
                wanted.clients += 1
                waiting.new.append(name)
                wanted.add_early(waiting)
                size += len(name) + OVERHEAD
                upto[wanted.roll] = max(upto.get(wanted.roll, 0), wanted.number)
                if len(homes) < len(self._upstreams):
                    homes.update(self._homes(sort, name))
            client.charge(size)
            for upstream in self._upstreams:
                upstream.ask_soon()
            yield len(names)
        if waiting.over:
            return
        if len(waiting.new) <= BATCH:  # else it is asked for already; a PUBLISH may be on its way behind it
            for index in homes if len(homes) == 1 else ():
                self._upstreams[index].ask_now()
        for roll, number in upto.items():
            for index, upstream in enumerate(self._upstreams):
                if (roll is self._shared or roll is upstream.own) and upstream.expect(
                    roll, number, waiting, index in homes
                ):
                    waiting.left_to.add(upstream)
        if not waiting.left_to:
            yield from self._have_counted(waiting)

    def _homes(self, sort: Sort, name: bytes) -> Iterable[int]:
        """Where it is published by the commands and by the servers themselves; all other messages are of scripts."""
        if sort is Sort.PATTERN or (sort is Sort.CHANNEL and name.startswith(KEYSPACE_EVENTS)):
            return range(len(self._upstreams))
        return (self._lane.shard_of(name),)

    def confirmed(self, upstream: Upstream, waiting: Waiting) -> None:
        """See upstream.Listener."""
        if upstream in waiting.left_to:
            waiting.left_to.discard(upstream)
            if not waiting.left_to and not waiting.over:
                self._begin(waiting.client, self._have_counted(waiting))

    def _have_counted(self, waiting: Waiting) -> Work:
        sort, all_wanted = waiting.sort, self._wanted[waiting.sort]
        for names in batches(waiting.new):
            if waiting.over:
                return
            for name in names:
                all_wanted[name].remove_early(waiting)
                self.register.add(sort, name, waiting)
            self._tell_soon()
            yield len(names)
        if waiting.over:
            return
        waiting.number = self.register.changes
        if not waiting.new or self._heedless or waiting.number <= self._known:
            yield from self._confirm(waiting)
        else:
            self._unknown[waiting] = None

    def _confirm(self, waiting: Waiting) -> Work:
        client, sort, subscriber = waiting.client, waiting.sort, waiting.subscriber
        verb, known = sort.prefix + b"subscribe", subscriber.names[sort]
        for names in batches(waiting.names):
            if waiting.over:
                return
            frames = []
            for name in names:
                known[name] = None
                frames.append(confirmed(verb, name, subscriber.counted(sort), client.proto))
            client.push(b"".join(frames))
            yield len(names)
        if waiting.over:
            return
        waiting.release()
        for names in batches(waiting.new):
            for name in names:
                self.register.replace(sort, name, waiting, client)
            yield len(names)
            if waiting.over:
                return
        subscriber.waiting = None
        client.answer(b"")

    def wait_no_more(self, waiting: Waiting) -> None:
        """Confirm it, whatever the shards have confirmed, and the other workers know."""
        if waiting.left_to:
            waiting.left_to.clear()
            self._begin(waiting.client, self._have_counted(waiting))
        elif waiting in self._unknown:
            del self._unknown[waiting]
            self._begin(waiting.client, self._confirm(waiting))

    def refused(self, upstream: Upstream, wanted: Wanted, line: bytes) -> None:
        """See upstream.Listener."""
        wanted.refused = True
        for waiting in wanted.all_early:
            if not waiting.over:
                waiting.over = True
                self._begin(waiting.client, self._refuse(waiting, line))

    def _refuse(self, waiting: Waiting, line: bytes) -> Work:
        client, subscriber = waiting.client, waiting.subscriber
        yield from self._undo(waiting)
        if client.subscriber is subscriber:
            subscriber.waiting = None
            self._end_if_empty(client, subscriber)
            client.answer(line)

    def _undo(self, waiting: Waiting) -> Work:
        """However far it has come."""
        sort, known = waiting.sort, waiting.subscriber.names[waiting.sort]
        for names in batches(waiting.new):
            if waiting.client.subscriber is waiting.subscriber:  # else it has gone
                waiting.client.charge(-sum(len(name) + OVERHEAD for name in names))
            for name in names:
                early = self._wanted[sort][name].remove_early(waiting)
                if not early and not self.register.remove(sort, name, waiting):
                    self.register.remove(sort, name, waiting.client)
                known.pop(name, None)
                self._unwant(sort, name)
            self._tell_soon()
            yield 2 * len(names)

    # --- UNSUBSCRIBE, RESET, the end ---

    def _unsubscribe(self, client: Client, sort: Sort, names: Sequence[bytes]) -> Outcome:
        if not client.settled():
            return NOT_NOW
        if client.reply_mode != REPLY_OFF:
            client.reply_mode = REPLY_ON
        known = client.subscriber.names[sort] if client.subscriber is not None else {}
        concerned = self._concerned(sort, names or known, known)
        return self._behind_fences(client, concerned, self._end(client, sort, names), len(names or known))

    def reset(self, client: Client, end: Callable[[], bytes]) -> Outcome:
        """The RESET of a subscriber. `end` carries out the rest, and makes its answer."""
        if not client.settled():
            return NOT_NOW
        if client.reply_mode == REPLY_OFF:
            client.reply_mode = REPLY_ON
        subscriber: Subscriber = client.subscriber
        by_sort = [self._concerned(sort, names, names) for sort, names in zip(Sort, subscriber.names, strict=True)]
        concerned = [upstream for those in by_sort for upstream in those]
        return self._behind_fences(client, concerned, self._reset(client, subscriber, end), sum(subscriber.counts))

    def _reset(self, client: Client, subscriber: Subscriber, end: Callable[[], bytes]) -> Answering:
        yield from self._forget(client, subscriber)
        if client.subscriber is not subscriber:
            return b""  # it has gone
        self._end_if_empty(client, subscriber)
        return end()

    def _concerned(self, sort: Sort, names: Collection[bytes], known: dict[bytes, None]) -> Iterable[Upstream]:
        """The shards where messages of these names may be on their way, of those that are known."""
        if not known or (names is not known and not any(name in known for name in names)):
            return ()
        if sort is not Sort.SHARD or len(names) > BATCH:
            return self._upstreams
        return {self._upstreams[self._lane.shard_of(name)] for name in names if name in known}

    def _behind_fences(self, client: Client, concerned: Iterable[Upstream], work: Answering, parts: int) -> Outcome:
        """What `work` answers, at once if it is little and nothing may be on its way; else its place is taken.

        A client that sends many of these in a row waits for the shards once: what was published before all of them
        were here has come then.
        """
        leaving, now = Leaving(self, client, work), time.monotonic()
        subscriber: Subscriber | None = client.subscriber
        if subscriber is not None:
            if subscriber.fenced_at != client.commands:  # it has asked something else since, a PUBLISH perhaps
                subscriber.fenced.clear()
            subscriber.fenced_at = client.commands + 1
            for upstream in set(concerned):
                if subscriber.fenced.get(upstream, 0.0) < client.last_active:
                    subscriber.fenced[upstream] = now
                    if upstream.fence(partial(self._passed, leaving, upstream)):
                        leaving.left_to.add(upstream)
        if not leaving.left_to and parts <= BATCH:
            answer: bytes = _at_once(work)
            return answer
        client.converse(leaving)
        leaving.until = now + FENCE_S
        self._leaving[leaving] = None
        if not leaving.left_to:
            self.finish_leaving(leaving)
        return PLACED

    def _passed(self, leaving: Leaving, upstream: Upstream) -> None:
        leaving.left_to.discard(upstream)
        if not leaving.left_to:
            self.finish_leaving(leaving)

    def finish_leaving(self, leaving: Leaving) -> None:
        if leaving in self._leaving:  # else it was answered when its time was over
            del self._leaving[leaving]
            self._begin(leaving.client, self._finish(leaving))

    def _finish(self, leaving: Leaving) -> Work:
        reply = yield from leaving.work
        leaving.client.answer(reply)

    def forget_leaving(self, leaving: Leaving) -> None:
        """Its client is gone."""
        self._leaving.pop(leaving, None)

    def _end(self, client: Client, sort: Sort, names: Sequence[bytes]) -> Answering:
        subscriber: Subscriber | None = client.subscriber
        verb = sort.prefix + b"unsubscribe"
        left: Iterable[bytes] = names or list(subscriber.names[sort] if subscriber else ())
        for some in batches(left):
            if client.subscriber is not subscriber:
                return b""  # it has gone
            frames, size = [], 0
            for name in some:
                if subscriber is not None and name in subscriber.names[sort]:
                    del subscriber.names[sort][name]
                    self._remove(client, sort, name)
                    size += len(name) + OVERHEAD
                frames.append(confirmed(verb, name, subscriber.counted(sort) if subscriber else 0, client.proto))
            client.charge(-size)
            client.push(b"".join(frames))
            yield 2 * len(some)
        if client.subscriber is not subscriber:
            return b""
        if not left:
            client.push(confirmed(verb, None, subscriber.counted(sort) if subscriber else 0, client.proto))
        if subscriber is not None:
            self._end_if_empty(client, subscriber)
        return b""

    def _end_if_empty(self, client: Client, subscriber: Subscriber) -> None:
        if not any(subscriber.counts):
            client.subscriber = None
            self.subscribers -= 1

    def leave(self, client: Client) -> None:
        """It has gone: all of its subscriptions end, without a word."""
        subscriber: Subscriber = client.subscriber
        client.subscriber = None
        self.subscribers -= 1
        if subscriber.waiting is not None:
            subscriber.waiting.over = True
            self._unknown.pop(subscriber.waiting, None)
        self._slices.run(self._forget(client, subscriber))

    def _forget(self, client: Client, subscriber: Subscriber) -> Work:
        if subscriber.waiting is not None:
            yield from self._undo(subscriber.waiting)
        for sort, names in zip(Sort, subscriber.names, strict=True):
            while names:
                size, some = 0, min(len(names), BATCH)
                for _ in range(some):
                    name, _ = names.popitem()
                    self._remove(client, sort, name)
                    size += len(name) + OVERHEAD
                if client.subscriber is subscriber:  # else it has gone
                    client.charge(-size)
                yield 2 * some

    def _remove(self, client: Client, sort: Sort, name: bytes) -> None:
        self.register.remove(sort, name, client)
        self._unwant(sort, name)
        self._tell_soon()

    # --- what is wanted of the shards ---

    def _roll(self, sort: Sort, text: bytes) -> Roll:
        return self._upstreams[self._lane.shard_of(text)].own if sort is Sort.SHARD else self._shared

    def _enlist(self, sort: Sort, text: bytes) -> Wanted:
        """Have it asked for, or asked for anew."""
        old = self._wanted[sort].get(text)
        if old is not None:
            self._strike_off(old)
        wanted = self._wanted[sort][text] = self._roll(sort, text).add(sort, text)
        if old is not None:
            wanted.clients, wanted.early = old.clients, old.early
        return wanted

    def _unwant(self, sort: Sort, text: bytes) -> None:
        wanted = self._wanted[sort][text]
        wanted.clients -= 1
        if not wanted.clients:
            del self._wanted[sort][text]
            self._strike_off(wanted)

    def _strike_off(self, wanted: Wanted) -> None:
        frame = request.encode([wanted.sort.prefix + b"unsubscribe", wanted.text])
        for upstream in self._upstreams:
            if wanted.roll is self._shared or wanted.roll is upstream.own:
                upstream.leave(wanted, frame)
        wanted.roll.remove(wanted)

    def _tell_soon(self) -> None:
        if not self._telling:
            self._telling = True
            self._lane.loop.call_soon(self._tell_now)

    def _tell_now(self) -> None:
        self._telling = False
        self._tell()

    # --- what the shards say; see upstream.Listener ---

    def deliver(self, sort: Sort, name: bytes, words: list[bytes]) -> Delivery:
        receivers: Collection[Receiver] = self.register.clients(sort, name)
        wanted = self._wanted[sort].get(name)
        if wanted is not None and wanted.early is not None:
            receivers = [*receivers, *wanted.all_early]
        if len(receivers) > BATCH:
            return self._deliver_in_slices(list(receivers), words)
        self._hand(receivers, words, {})
        return len(receivers)

    def _deliver_in_slices(self, receivers: list[Receiver], words: list[bytes]) -> Work:
        frames: dict[int, bytes] = {}
        for some in batches(receivers):
            self._hand(some, words, frames)
            yield len(some)

    def _hand(self, receivers: Iterable[Receiver], words: list[bytes], frames: dict[int, bytes]) -> None:
        slow = []
        for receiver in receivers:
            frame = frames.get(receiver.proto)
            if frame is None:
                frame = frames[receiver.proto] = pushed(words, receiver.proto)
            if receiver.push(frame) > self._limit:
                slow.append(receiver)
        for receiver in slow:  # after the loop: it takes its subscriptions along
            client = receiver.client if isinstance(receiver, Waiting) else receiver
            emit(Event.PUBSUB_SLOW, id=client.id, addr=client.addr, bytes=client.buffered_out, limit=self._limit)
            client.abandon()


def _at_once(work: Iterator[Any]) -> Any:
    """What the work answers."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value
