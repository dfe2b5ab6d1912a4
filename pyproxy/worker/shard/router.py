"""One shard as this worker serves it: the gate for its writes, and the server for its reads.

The lane asks here only while something is not as usual (`Backend.guarded`): the gate is closed, the link is in trouble,
reads may go to replicas. What the gate decides is carried out here: clients are parked and let go, what was begun and
not sent is kept or refused, and sent when the gate opens.

Reads go to the primary; where that cannot be used, to the one replica that the parent names for all workers (`refuge`);
in peace to one of `readers`, if the configuration says so. A connection to another server of the shard is a Link like
that to the primary, made when it is first needed.
"""

import select
import time
from collections.abc import Callable
from typing import Protocol

from protocol import errors
from pyproxy import messages
from pyproxy.config import Config
from pyproxy.messages import ShardHealth
from pyproxy.shard_map import Node, Shard
from pyproxy.worker.lane.lane import Backend, Client, Lane, refusal_code
from pyproxy.worker.lane.outcome import NOT_NOW, NotNow, Refused
from pyproxy.worker.shard.gate import Closed, Gate
from pyproxy.worker.shard.link import Link

UNSTEADY_S = 0.2
"""A connection that was lost is made again in less, or its shard counts as down until it is."""

STALLED = 3
"""So many requests in a row get no answer before their deadline, then nobody waits for it any more."""

READ_BYTES = 64
"""What a waiting read counts for: its bytes stay where they are."""

FORGET_S = 1.0  # how often is looked which writes are too old to matter

POLLRDHUP = 0x2000  # <poll.h>; select has no name for it before Python 3.15


class HasSocket(Protocol):
    """A client; in the worker it is a compiled class."""

    @property
    def fd(self) -> int: ...


def gone(client: HasSocket) -> bool:
    """Whether a client has closed, if only its half. The loop does not tell while the client is not read."""
    poll = select.poll()
    poll.register(client.fd, POLLRDHUP)
    return bool(poll.poll(0))


class ShardRouter:
    """`open_link(node)` makes a link to another server of the shard; `index` is the worker's, for who reads where."""

    def __init__(
        self, lane: Lane, link: Link, gate: Gate[Client], config: Config, index: int, open_link: Callable[[Node], Link]
    ) -> None:
        self.link = link
        self.gate = gate
        self._lane = lane
        self._config = config
        self._index = index
        self._open_link = open_link
        self._closed: Closed | None = None
        self._reachable = True  # the primary, as the watcher saw it last
        self._readers: list[Client] = []  # wait for somebody to read from; some may have gone
        self._keeps_reads = False  # some that were begun wait for that too
        self._sides: dict[Node, Link] = {}
        self._retired: list[Link] = []
        self._wrote: dict[int, float] = {}  # client -> its last write here
        self._forget_at = 0.0
        link.router = self
        self.review()

    # --- what is known ---

    def tell(self, said: messages.Gate, shard: Shard) -> None:
        """The parent's word. The primary may be another, or the epoch: then no connection of the old one is left."""
        known = self.gate.said.epoch  # 0: of the same server only the number is new
        moved = shard.primary != self.link.node or (said.epoch != known and known > 0)
        for node in self._sides.keys() - {said.refuge, *said.readers}:
            self._retired.append(self._sides.pop(node))
        self.gate.tell(said, shard.primary, bool(shard.replicas), time.monotonic())
        if moved:
            self._reachable = True
            self.gate.own.lost_at = 0.0
            self.link.point_at(shard.primary)
        self.review()
        if said.closed:
            self._unblock_leases()

    def observe(self, health: ShardHealth) -> None:
        if health.node == str(self.link.node):
            if health.reachable and not self._reachable:
                self.link.reconnect_now()
            self._reachable = health.reachable
        stalled = self.gate.own.stalled_at
        self.gate.observe(health)
        if stalled and not self.gate.own.stalled_at:
            self.link.unanswered = 0
        self.review()

    def slept(self, now: float) -> None:
        """Nothing is written before `confirmed`."""
        self.gate.own.slept_at = now
        self.review()

    def confirmed(self) -> None:
        self.gate.own.slept_at = 0.0
        self.review()

    def refused(self, code: str) -> None:
        self.gate.refused(code, time.monotonic())
        self.review()

    def down(self, why: str) -> None:
        """No connection to the primary can be made; called again when the reason is another."""
        if any(backend.is_open for backend in self.link.backends.values()):
            return
        own = self.gate.own
        own.lost_at = own.lost_at or self.link.lost_at or time.monotonic()
        own.lost = why
        self.review()

    def up(self) -> None:
        self.gate.own.lost_at = 0.0
        self.review()

    @property
    def links(self) -> list[Link]:
        """To all servers of the shard that this worker has connections to."""
        return [self.link, *self._sides.values(), *self._retired]

    @property
    def busy(self) -> bool:
        """Whether the gate is closed, and the answer to a write that was sent is still to come."""
        leased = (lease.backend for lease in self.link.leased)
        shared = self.link.backends.values()
        return bool(self.gate.said.closed) and any(backend.owes_write for backend in (*shared, *leased))

    def takes_back(self, reply: bytes) -> bool:
        """Whether this reply to a write means that it was not done and may be tried again; then its gate is closed."""
        code = refusal_code(reply)
        if code is None or not self.gate.takes_back(code):
            return False
        self.refused(code)
        return True

    # --- what follows ---

    def _unblock_leases(self) -> None:
        """What waits at the server, for minutes perhaps, waits at the gate from now on."""
        for lease in list(self.link.leased):
            if lease.unblock is not None:
                lease.unblock()

    def review(self) -> None:
        """Take what is known by now into effect."""
        was, closed = self._closed, self.gate.closed(time.monotonic())
        self._closed = closed
        self._guard()
        if closed is None:
            if was is not None:
                self._open()
        elif was is None:
            for backend in list(self.link.backends.values()):
                if closed.hold and self.gate.said.closed and self._reachable:
                    backend.flush()  # planned: what was begun is sent, if the server reads
                backend.requeue_unsent()
            for waiter in list(self.link.lease_waiters):
                if waiter.past_gate:  # it waits at the gate instead
                    waiter.refuse(self.gate.line(closed, time.monotonic()))
        elif was.hold and not closed.hold:
            self._expire()

    @property
    def guarded(self) -> bool:
        """Whether the lane must ask here before it begins anything."""
        elsewhere = self._config.reads != "primary" or self._sides or self._retired
        return self._closed is not None or bool(elsewhere)

    @property
    def replicated(self) -> bool:
        """Whether there is anybody who could take over."""
        return self.gate.replicated

    def _guard(self) -> None:
        guarded = self.guarded
        for backend in self.link.backends.values():
            backend.guard(self, guarded, self.replicated)

    def _open(self) -> None:
        """In the order of coming: first what was begun, then the clients that are held; but nothing of who has gone."""
        for backend in list(self.link.backends.values()):
            backend.replay()
        for client in list(self.gate.parked):
            if gone(client):
                self.left(client)
                client.leave(self._gone_line())
            else:
                self._let_go(client, "drained")

    def _let_go(self, client: Client, became: str) -> None:
        """It offers its command again."""
        holds = self.gate.holds
        self.gate.unpark(client)
        setattr(holds, became, getattr(holds, became) + 1)
        client.let_go()

    def _expire(self) -> None:
        """Nobody is held longer than the bounds say."""
        now = time.monotonic()
        for client in self.gate.due(now):
            self.gate.give_up(client.id)
            self._let_go(client, "refused_held")
        if self._closed is not None:
            before = self.gate.overdue(self._closed, now)
            for backend in self.link.backends.values():
                backend.refuse_replays(before, self.gate.line(self._closed, now))

    @property
    def at_rest(self) -> bool:
        """Whether nothing waits for the time to pass."""
        waits = self._closed or self._readers or self._keeps_reads or self._sides or self._retired or self._wrote
        troubled = self.link.lost_at or self.link.is_down or self.gate.own.stalled_at or self.link.unanswered
        return not waits and not troubled

    def tick(self, now: float) -> None:
        """Every few milliseconds, or seldom while it is at rest."""
        link, own = self.link, self.gate.own
        if own.lost_at == 0.0 and link.lost_at and now - link.lost_at > UNSTEADY_S:
            self.down("the connection was lost")
        if not own.stalled_at and self.gate.promotable and link.unanswered >= STALLED:
            own.stalled_at = now
        elif own.stalled_at and not link.unanswered:
            own.stalled_at = 0.0
        if self._closed is not None or own.stalled_at:
            self.review()
            self._expire()
        if self._readers or self._keeps_reads:
            self._try_reads()
        if self._retired:
            self._retire()
        if self._sides and self._closed is None and self._config.reads == "primary":
            self._leave_sides()
        if self._wrote and now >= self._forget_at:
            self._forget_at = now + FORGET_S
            oldest = now - self._config.reads_max_lag_s
            self._wrote = {client: at for client, at in self._wrote.items() if at > oldest}

    def drain(self, orphan: bool) -> None:
        """The worker is going: who is held is answered. An orphan writes nothing any more."""
        now = time.monotonic()
        for client in list(self.gate.parked):
            self.gate.unpark(client)
            self.gate.holds.refused_held += 1
            client.leave(self.gate.line(self._closed or Closed("is being left", now, now, hold=False), now))
        if orphan:
            line = errors.not_applied(self.link.name, self.link.node, "is not served by this process any more")
            for backend in self.link.backends.values():
                backend.refuse_replays(float("inf"), line)

    def close(self) -> None:
        """The shard is another's: whatever waits is refused or offered anew."""
        for backend in self.link.backends.values():
            backend.refuse_replays(
                float("inf"), errors.shard_down(self.link.name, self.link.node, "is no longer served")
            )
        for client in list(self.gate.parked):
            self._let_go(client, "drained")
        for link in (*self._sides.values(), *self._retired):
            self._lane.sides.remove(link)
            link.close()
        self._sides.clear()
        self._retired.clear()

    # --- writes; called by the lane ---

    def ask(self, client: Client, size: int) -> bytes | None:
        """The line to refuse a write with; None: it may pass or be held."""
        now = time.monotonic()
        closed = self.gate.closed(now)
        if closed is None:
            return None
        start = client.held_since(now)
        if self.gate.may_be_held(closed, client.id, size, start, now, again=start != now):
            return None
        return self.gate.line(closed, now)

    def write(self, client: Client, size: int) -> Refused:
        """None: it may pass; NOT_NOW: the client was parked; else the line to refuse it with."""
        now = time.monotonic()
        closed = self.gate.closed(now)
        if closed is None:
            if self._config.reads != "primary":
                self._wrote[client.id] = now
            return None
        line = self.ask(client, size)
        start = client.held_since(now)
        if line is not None:
            if start != now:  # it has waited; who was refused at once may be held when the end is near
                self.gate.give_up(client.id)
            self.gate.holds.refused_at_once += 1
            return line
        self.gate.park(client, size, start)
        client.hold(self, start)
        return NOT_NOW

    @property
    def closed(self) -> bool:
        return self._closed is not None

    def keep(self, backend: Backend, client: Client, size: int, start: float, requests: int) -> bytes | None:
        """None: writes that were begun and are not sent may wait in this backend; else the line to refuse them with."""
        now = time.monotonic()
        closed = self.gate.closed(now)
        if closed is None:
            return backend.refusal if backend.is_down else None
        if self.gate.may_be_held(closed, client.id, size, start, now, requests=requests):
            return None
        if start <= self.gate.overdue(closed, now):
            self.gate.give_up(client.id)
        self.gate.holds.refused_at_once += requests
        return self.gate.line(closed, now)

    def ended(self, write: bool, became: str) -> None:
        """A request is not kept any more; only writes are counted."""
        if write:
            setattr(self.gate.holds, became, getattr(self.gate.holds, became) + 1)

    def grew(self, client: Client, size: int) -> None:
        """A held client has sent more."""
        if client in self.gate.parked and not self.gate.grew(client, size):
            self.gate.give_up(client.id)
            self._let_go(client, "refused_held")

    def left(self, client: Client) -> None:
        """A held client has gone: what it wanted is not done."""
        if client in self.gate.parked:
            self.gate.unpark(client)
            self.gate.holds.dropped_client_gone += 1

    def half_closed(self, client: Client) -> None:
        self.left(client)
        client.leave(self._gone_line())

    def has_gone(self, client: Client) -> bytes | None:
        """What is said to a client that has closed its half, if it has."""
        return self._gone_line() if gone(client) else None

    def _gone_line(self) -> bytes:
        return errors.client_gone(self.link.name, self.link.node)

    # --- reads; called by the lane ---

    def read(self, client: Client, primary: Backend) -> Backend | bytes | NotNow:
        """The backend to read from; NOT_NOW: the client was parked; else the line to refuse a read with."""
        if client.is_unresolved(self.link.index):  # a write of it may still be applied, which no other server knows of
            said = self.write(client, READ_BYTES)
            return primary if said is None else said
        policy = self._config.reads
        lag_s = self._config.reads_max_lag_s
        if policy != "primary" and time.monotonic() - self._wrote.get(client.id, -lag_s) >= lag_s:
            reader = self._reader(primary)
            if reader is not None:
                return reader
            if policy == "replica" and self._usable(primary):
                return errors.not_applied(self.link.name, self.link.node, "has no replica to read from")
        if self._usable(primary):
            return primary
        backend = self.refuge(primary) or primary
        now = time.monotonic()
        start = client.held_since(now)
        if backend.is_down and self._read_may_wait(client, READ_BYTES, start, now):
            self.gate.park(client, READ_BYTES, start)
            client.hold(self, start)
            self._readers.append(client)
            return NOT_NOW
        return backend

    def _read_may_wait(self, client: Client, size: int, start: float, now: float) -> bool:
        """Nobody can answer it now; in an incident that may soon be otherwise."""
        closed = self.gate.closed(now)
        return closed is not None and self.gate.may_be_held(closed, client.id, size, start, now, again=True)

    def read_waits(self, client: Client, size: int, start: float) -> bool:
        """Whether a read that was begun may wait for somebody who can answer it."""
        if not self._read_may_wait(client, size, start, time.monotonic()):
            return False
        self._keeps_reads = True
        return True

    def _try_reads(self) -> None:
        """Those who wait for somebody to read from offer their commands again."""
        primaries = self.link.backends.values()
        if not any(not (self.refuge(primary) or primary).is_down for primary in primaries):
            return
        self._keeps_reads = False
        for backend in list(primaries):
            backend.replay_reads()
        readers, self._readers = self._readers, []
        for client in readers:
            if client in self.gate.parked:
                self._let_go(client, "drained")

    def home(self, backend: Backend) -> Backend:
        """That of the primary, in the same protocol and database."""
        return self.link.backend(backend.proto, backend.db)

    def elsewhere(self, backend: Backend) -> Backend | None:
        """Where reads go that cannot be sent on this backend."""
        other = self.refuge(backend)
        if other is None or other is backend:
            other = self.home(backend)
        return other if other is not backend and not other.is_down else None

    def _usable(self, primary: Backend) -> bool:
        own = self.gate.own
        if self._closed is not None and (own.lost_at or own.stalled_at or own.refused_at or not self._reachable):
            return False
        return not primary.is_down and (primary.is_open or self._closed is None)

    def _reader(self, primary: Backend) -> Backend | None:
        readers = self.gate.said.readers
        if not readers:
            return None
        reader = self._side(readers[self._index % len(readers)]).backend(primary.proto, primary.db)
        return None if reader.is_down else reader

    def refuge(self, primary: Backend) -> Backend | None:
        """The replica that all read from where the primary cannot be, if one is named and can be asked."""
        node = self.gate.said.refuge
        if node is None or node == self.link.node:
            return None
        refuge = self._side(node).backend(primary.proto, primary.db)
        return None if refuge.is_down else refuge

    def _side(self, node: Node) -> Link:
        link = self._sides.get(node)
        if link is None:
            link = self._sides[node] = self._open_link(node)
            link.router = self
            self._lane.sides.append(link)
            self._guard()
        return link

    def _leave_sides(self) -> None:
        """In peace all reads are the primary's again, once nobody has one out elsewhere."""
        if not any(backend.waiting_requests for link in self._sides.values() for backend in link.backends.values()):
            self._retired += self._sides.values()
            self._sides.clear()

    def _retire(self) -> None:
        for link in list(self._retired):
            if not any(backend.waiting_requests for backend in link.backends.values()):
                self._retired.remove(link)
                self._lane.sides.remove(link)
                link.close()
        if not self._sides and not self._retired:
            self._lane.forget_sides(self.link.index)
            self._guard()
