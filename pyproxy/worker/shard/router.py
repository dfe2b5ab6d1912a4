"""One shard as this worker serves it: the gate for its writes, and the server for its reads.

The lane asks the router only while a backend is guarded (`Backend.guard`): the gate is closed, the link is in trouble,
or reads may go to replicas. The router carries out what the gate decides: it holds and releases clients, has
requests that were begun replayed or refused, and has the replay queue sent when the gate opens.

Reads go to the primary. While the primary cannot be used they go to the fallback, the one replica that the parent names
for all workers. If the configuration says so, they go to one of the directive's `readers` at all times. The links to
replicas are made when they are first needed.
"""

import select
import time
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from protocol import errors
from pyproxy import messages
from pyproxy.config import Config
from pyproxy.messages import ShardHealth
from pyproxy.shard_map import Node, Shard, SlotRange
from pyproxy.worker.lane.lane import Backend, Client, Lane, refusal_code
from pyproxy.worker.lane.outcome import NOT_NOW, NotNow, Refused
from pyproxy.worker.shard.gate import Closure, Gate
from pyproxy.worker.shard.link import Link

RECONNECT_GRACE_S = 0.2
"""A lost connection that is not replaced in this time closes the gate."""

STALLED_REQUESTS = 3
"""A server that leaves so many requests in a row unanswered until their deadline has stalled."""

READ_BYTES = 64
"""How many bytes a held read counts for: the read stays in the buffer of its client."""

FORGET_S = 1.0
"""How often writes are forgotten that are too old to matter for `reads_max_lag_s`."""

POLLRDHUP = 0x2000  # <poll.h>; select has no name for it before Python 3.15

ReadRoute = Backend | bytes | NotNow
"""The backend that answers a read; the error line of a read that is refused; NOT_NOW where its client was parked."""


class HasSocket(Protocol):
    """A client. In the worker it is a compiled class."""

    @property
    def fd(self) -> int: ...


Socketed = TypeVar("Socketed", bound=HasSocket)


def has_closed(client: HasSocket) -> bool:
    """Whether a client has closed at least its half. The loop does not report that of a client that is not read."""
    return bool(those_closed([client]))


def those_closed(clients: Iterable[Socketed]) -> list[Socketed]:
    """Those of these clients that have."""
    poll = select.poll()
    by_fd = {client.fd: client for client in clients}
    for fd in by_fd:
        poll.register(fd, POLLRDHUP)
    return [by_fd[fd] for fd, _ in poll.poll(0)]


class ShardRouter:
    """`open_link(node)` makes a link to a replica. `index`: the worker's, by which workers choose different readers."""

    def __init__(
        self, lane: Lane, link: Link, gate: Gate[Client], config: Config, index: int, open_link: Callable[[Node], Link]
    ) -> None:
        self.link = link
        self.gate = gate
        self._lane = lane
        self._config = config
        self._index = index
        self._open_link = open_link
        self._closure: Closure | None = None
        self._reachable = True  # the primary, by the last health check
        self._held_readers: list[Client] = []  # held before a read; some may have gone
        self._has_held_reads = False  # reads that were begun are in a replay queue
        self._replica_links: dict[Node, Link] = {}
        self._draining_links: list[Link] = []
        self._last_write_at: dict[int, float] = {}  # by client, here
        self._forget_at = 0.0
        self._slots: tuple[SlotRange, ...] | None = None  # None: not known yet
        self._moved_at = 0.0  # when it lost slots; 0: nothing from before that is in flight
        link.router = self
        self.refresh()

    # --- what is known ---

    def apply(self, directive: messages.GateDirective, shard: Shard) -> None:
        """Follow the parent's directive. With another primary, or another epoch, all old connections are dropped."""
        known = self.gate.directive.epoch  # 0: no epoch was known yet, so the same server stays connected
        moved = shard.primary != self.link.node or (directive.epoch != known and known > 0)
        for node in self._replica_links.keys() - {directive.fallback, *directive.readers}:
            self._draining_links.append(self._replica_links.pop(node))
        self.gate.apply(directive, shard.primary, bool(shard.replicas), time.monotonic())
        if self._slots is not None and self._slots != shard.slots:
            self._moved_at = time.monotonic()
        self._slots = shard.slots
        if moved:
            self._reachable = True
            self.gate.observed.lost_at = 0.0
            self.link.switch_to(shard.primary)
        self.refresh()
        if directive.closed:
            self._unblock_leases()

    def on_health(self, health: ShardHealth) -> None:
        if health.node == str(self.link.node):
            if health.reachable and not self._reachable:
                self.link.reconnect_now()
            self._reachable = health.reachable
        was_stalled = self.gate.observed.stalled_at
        self.gate.on_health(health)
        if was_stalled and not self.gate.observed.stalled_at:
            self.link.unanswered = 0
        self.refresh()

    def on_slept(self, now: float) -> None:
        """The worker did not run for a while. Nothing is written before `on_confirmed`."""
        self.gate.observed.slept_at = now
        self.refresh()

    def on_confirmed(self) -> None:
        self.gate.observed.slept_at = 0.0
        self.refresh()

    def on_refusal(self, code: str) -> None:
        """The primary refused a write for a reason that a promotion would end."""
        self.gate.on_refusal(code, time.monotonic())
        self.refresh()

    def on_down(self, why: str) -> None:
        """No connection to the primary can be made. Called again when the reason changes."""
        if any(backend.is_open for backend in self.link.backends.values()):
            return
        observed = self.gate.observed
        observed.lost_at = observed.lost_at or self.link.lost_at or time.monotonic()
        observed.lost = why
        self.refresh()

    def on_up(self) -> None:
        self.gate.observed.lost_at = 0.0
        self.refresh()

    @property
    def links(self) -> list[Link]:
        """The links to all servers of the shard to which this worker is connected."""
        return [self.link, *self._replica_links.values(), *self._draining_links]

    @property
    def busy(self) -> bool:
        """Whether the gate is closed, and a write that was sent is not answered yet."""
        if not self.gate.directive.closed:
            return False
        leased = (lease.backend for lease in self.link.leased)
        backends = (*self.link.backends.values(), *leased)
        if self.gate.directive.moving:  # what was begun may not be sent to another server, as after a promotion
            return any(backend.has_writes for backend in backends)
        return any(backend.has_unanswered_write for backend in backends)

    @property
    def is_outdated(self) -> bool:
        """Whether a request is in flight that was sent before the shard lost slots, to any of its servers."""
        if self._moved_at:
            shared = [backend for link in self.links for backend in link.backends.values()]
            leased = [lease.backend for link in self.links for lease in link.leased]
            if not any(0 < backend.oldest_sent_at <= self._moved_at for backend in (*shared, *leased)):
                self._moved_at = 0.0
        return bool(self._moved_at)

    def withholds(self, reply: bytes) -> bool:
        """Whether this reply to a write is a refusal after which the write may be sent again. It closes the gate."""
        code = refusal_code(reply)
        if code is None or not self.gate.withholds(code):
            return False
        self.on_refusal(code)
        return True

    # --- what follows ---

    def _unblock_leases(self) -> None:
        """Commands that block at the server, for minutes perhaps, wait at the gate from now on."""
        for lease in list(self.link.leased):
            if lease.unblock is not None:
                lease.unblock()

    def refresh(self) -> None:
        """Act on what is known now."""
        was, closure = self._closure, self.gate.closure(time.monotonic())
        self._closure = closure
        self._update_guards()
        if closure is None:
            if was is not None:
                self._on_open()
        elif was is None:
            for backend in list(self.link.backends.values()):
                if closure.hold and self.gate.directive.closed and self._reachable:
                    backend.flush()  # a planned promotion: what was begun is sent, if the server reads
                if not self.gate.directive.moving:
                    backend.requeue_unsent()
            for waiter in list(self.link.lease_waiters):
                if waiter.past_gate:  # it waits at the gate instead
                    waiter.refuse(self.gate.refusal(closure, time.monotonic()))
        elif was.hold and not closure.hold:
            self._expire()

    @property
    def guarded(self) -> bool:
        """Whether the lane must ask the router before it begins anything."""
        uses_replicas = self._config.reads != "primary" or self._replica_links or self._draining_links
        return self._closure is not None or bool(uses_replicas)

    @property
    def replicated(self) -> bool:
        return self.gate.replicated

    def _update_guards(self) -> None:
        guarded = self.guarded
        for backend in self.link.backends.values():
            backend.guard(self, guarded, self.replicated)

    def _on_open(self) -> None:
        """Send what was begun, then release the held clients, each in the order of coming. Skip clients that left."""
        for backend in list(self.link.backends.values()):
            backend.replay()
        for client in list(self.gate.held_clients):
            if has_closed(client):
                self.on_client_left(client)
                client.leave(self._client_gone())
            else:
                self._release(client, "drained")

    def _release(self, client: Client, outcome: str) -> None:
        """Have a held client offer its command again."""
        self.gate.release(client)
        self.gate.stats.count(outcome)
        client.release()

    def _expire(self) -> None:
        """Refuse what has been held for as long as it may be."""
        now = time.monotonic()
        for client in self.gate.expired(now):
            self.gate.exhaust(client.id)
            self._release(client, "refused_held")
        if self._closure is not None:
            cutoff = self.gate.hold_cutoff(self._closure, now)
            for backend in self.link.backends.values():
                backend.refuse_replays(cutoff, self.gate.refusal(self._closure, now))

    @property
    def at_rest(self) -> bool:
        """Whether nothing here depends on the time."""
        observed = self.gate.observed
        held = self._closure or self._held_readers or self._has_held_reads
        replicas = self._replica_links or self._draining_links or self._last_write_at
        troubled = self.link.lost_at or self.link.is_down or observed.stalled_at or self.link.unanswered
        return not (held or replicas or troubled)

    def tick(self, now: float) -> None:
        """Called every few milliseconds, or seldom while it is at rest."""
        link, observed = self.link, self.gate.observed
        if observed.lost_at == 0.0 and link.lost_at and now - link.lost_at > RECONNECT_GRACE_S:
            self.on_down("the connection was lost")
        if not observed.stalled_at and self.gate.promotable and link.unanswered >= STALLED_REQUESTS:
            observed.stalled_at = now
        elif observed.stalled_at and not link.unanswered:
            observed.stalled_at = 0.0
        if self._closure is not None or observed.stalled_at:
            self.refresh()
            self._expire()
        if self._held_readers or self._has_held_reads:
            self._retry_reads()
        if self._draining_links:
            self._close_drained()
        if self._replica_links and self._closure is None and self._config.reads == "primary":
            self._drain_replica_links()
        if self._last_write_at and now >= self._forget_at:
            self._forget_at = now + FORGET_S
            oldest = now - self._config.reads_max_lag_s
            self._last_write_at = {client: at for client, at in self._last_write_at.items() if at > oldest}

    def drain(self, orphan: bool) -> None:
        """The worker drains: held clients are refused. An orphan does not write any more, so nothing is replayed."""
        now = time.monotonic()
        for client in list(self.gate.held_clients):
            self.gate.release(client)
            self.gate.stats.count("refused_held")
            client.leave(self.gate.refusal(self._closure or Closure("is being left", now, now, hold=False), now))
        if orphan:
            line = errors.not_applied(self.link.name, self.link.node, "is not served by this process any more")
            for backend in self.link.backends.values():
                backend.refuse_replays(float("inf"), line)

    def close(self) -> None:
        """The shard is not served any more. What was begun is refused; held clients offer their commands again."""
        line = errors.shard_down(self.link.name, self.link.node, "is no longer served")
        for backend in self.link.backends.values():
            backend.refuse_replays(float("inf"), line)
        for client in list(self.gate.held_clients):
            self._release(client, "drained")
        for link in (*self._replica_links.values(), *self._draining_links):
            self._lane.replica_links.remove(link)
            link.close()
        self._replica_links.clear()
        self._draining_links.clear()

    # --- writes; called by the lane ---

    def check_write(self, client: Client, size: int) -> bytes | None:
        """The error line of a write that would be refused; None: it may pass or be held. Nothing is changed."""
        now = time.monotonic()
        closure = self.gate.closure(now)
        if closure is None or self._goes_on(client):
            return None
        start = client.held_since(now)
        if self.gate.may_hold(closure, client.id, size, start, now, again=start != now):
            return None
        return self.gate.refusal(closure, now)

    def admit_write(self, client: Client, size: int) -> Refused:
        """Pass, hold or refuse a write that has not begun."""
        now = time.monotonic()
        closure = self.gate.closure(now)
        if closure is None or self._goes_on(client):
            if self._config.reads != "primary":
                self._last_write_at[client.id] = now
            return None
        line = self.check_write(client, size)
        start = client.held_since(now)
        if line is not None:
            if start != now:  # it was held; a client that is refused at once may be held when the gate opens soon
                self.gate.exhaust(client.id)
            self.gate.stats.refused_at_once += 1
            return line
        self.gate.hold(client, size, start)
        client.hold(self, start)
        return NOT_NOW

    def _goes_on(self, client: Client) -> bool:
        """Whether slots are moving, and a conversation has begun to write that is waited for: it must come to its end.

        See `Conversation.pass_moving_gates`.
        """
        return self.gate.directive.moving and client.conversation is not None and client.conversation.wrote

    @property
    def is_closed(self) -> bool:
        return self._closure is not None

    def admit_replay(self, backend: Backend, client: Client, size: int, start: float, requests: int) -> bytes | None:
        """Whether writes that were begun may join the replay queue of this backend (None), or the error line."""
        now = time.monotonic()
        closure = self.gate.closure(now)
        if closure is None:
            return backend.refusal if backend.is_down else None
        if self.gate.may_hold(closure, client.id, size, start, now, requests=requests):
            return None
        if start <= self.gate.hold_cutoff(closure, now):
            self.gate.exhaust(client.id)
        self.gate.stats.refused_at_once += requests
        return self.gate.refusal(closure, now)

    def on_replay_ended(self, write: bool, outcome: str) -> None:
        """A request has left the replay queue. Only writes are counted."""
        if write:
            self.gate.stats.count(outcome)

    def on_client_grew(self, client: Client, size: int) -> None:
        """A held client has sent more: `size` bytes in all."""
        if client in self.gate.held_clients and not self.gate.resize(client, size):
            self.gate.exhaust(client.id)
            self._release(client, "refused_held")

    def on_client_left(self, client: Client) -> None:
        """A held client has gone. Its command is not carried out."""
        if client in self.gate.held_clients:
            self.gate.release(client)
            self.gate.stats.count("dropped_client_gone")

    def on_half_closed(self, client: Client) -> None:
        self.on_client_left(client)
        client.leave(self._client_gone())

    def gone_refusal(self, client: Client) -> bytes | None:
        """The error line for a client that has closed its half; None: it has not."""
        return self._client_gone() if has_closed(client) else None

    def _client_gone(self) -> bytes:
        return errors.client_gone(self.link.name, self.link.node)

    # --- reads; called by the lane ---

    def route_read(self, client: Client, primary: Backend) -> ReadRoute:
        if client.is_unresolved(self.link.index):  # no other server may know of its uncertain write
            refused = self.admit_write(client, READ_BYTES)
            return primary if refused is None else refused
        policy = self._config.reads
        lag_s = self._config.reads_max_lag_s
        if policy != "primary" and time.monotonic() - self._last_write_at.get(client.id, -lag_s) >= lag_s:
            reader = self._reader(primary)
            if reader is not None:
                return reader
            if policy == "replica" and self._is_usable(primary):
                return errors.not_applied(self.link.name, self.link.node, "has no replica to read from")
        if self._is_usable(primary):
            return primary
        backend = self.fallback(primary) or primary
        now = time.monotonic()
        start = client.held_since(now)
        if backend.is_down and self._may_hold_read(client, READ_BYTES, start, now):
            self.gate.hold(client, READ_BYTES, start)
            client.hold(self, start)
            self._held_readers.append(client)
            return NOT_NOW
        return backend

    def _may_hold_read(self, client: Client, size: int, start: float, now: float) -> bool:
        """No server can answer it now. In an incident that may soon change."""
        closure = self.gate.closure(now)
        return closure is not None and self.gate.may_hold(closure, client.id, size, start, now, again=True)

    def admit_read_replay(self, client: Client, size: int, start: float) -> bool:
        """Whether a read that was begun may wait in the replay queue until a server can answer it."""
        if not self._may_hold_read(client, size, start, time.monotonic()):
            return False
        self._has_held_reads = True
        return True

    def _retry_reads(self) -> None:
        """As soon as some server can answer reads, send those that were begun and release the clients."""
        primaries = self.link.backends.values()
        if not any(not (self.fallback(primary) or primary).is_down for primary in primaries):
            return
        self._has_held_reads = False
        for backend in list(primaries):
            backend.replay_reads()
        readers, self._held_readers = self._held_readers, []
        for client in readers:
            if client in self.gate.held_clients:
                self._release(client, "drained")

    def primary_backend(self, backend: Backend) -> Backend:
        """The primary's backend in the protocol and database of this one."""
        return self.link.backend(backend.proto, backend.db)

    def other_reader(self, backend: Backend) -> Backend | None:
        """Another backend for reads that cannot be sent on this one: the fallback's, else the primary's."""
        other = self.fallback(backend)
        if other is None or other is backend:
            other = self.primary_backend(backend)
        return other if other is not backend and not other.is_down else None

    def _is_usable(self, primary: Backend) -> bool:
        observed = self.gate.observed
        in_trouble = observed.lost_at or observed.stalled_at or observed.refused_at or not self._reachable
        if self._closure is not None and in_trouble:
            return False
        return not primary.is_down and (primary.is_open or self._closure is None)

    def _reader(self, primary: Backend) -> Backend | None:
        readers = self.gate.directive.readers
        if not readers:
            return None
        reader = self._replica_link(readers[self._index % len(readers)]).backend(primary.proto, primary.db)
        return None if reader.is_down else reader

    def fallback(self, primary: Backend) -> Backend | None:
        """The fallback's backend, if the parent names one and it is up."""
        node = self.gate.directive.fallback
        if node is None or node == self.link.node:
            return None
        fallback = self._replica_link(node).backend(primary.proto, primary.db)
        return None if fallback.is_down else fallback

    def _replica_link(self, node: Node) -> Link:
        link = self._replica_links.get(node)
        if link is None:
            link = self._replica_links[node] = self._open_link(node)
            link.router = self
            self._lane.replica_links.append(link)
            self._update_guards()
        return link

    def _drain_replica_links(self) -> None:
        """All is well, so reads go to the primary again, once no replica has a read in flight."""
        links = self._replica_links.values()
        if not any(backend.waiting_requests for link in links for backend in link.backends.values()):
            self._draining_links += links
            self._replica_links.clear()

    def _close_drained(self) -> None:
        for link in list(self._draining_links):
            if not any(backend.waiting_requests for backend in link.backends.values()):
                self._draining_links.remove(link)
                self._lane.replica_links.remove(link)
                link.close()
        if not self._replica_links and not self._draining_links:
            self._lane.forget_replica_links(self.link.index)
            self._update_guards()
