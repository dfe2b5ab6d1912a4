"""A worker process: the listening socket, the channel to the parent and the page come in; clients are served.

    parent ── Setup, Topology, FleetLook, Drain ──▶ worker ── Ready, Applied, Complaint ──▶ parent

The parent's messages are whole states.  A worker whose parent is gone begins nothing more, flushes, closes and exits:
an orphan with an old map could write to a server that has been replaced.
"""

import asyncio
import ctypes
import gc
import os
import socket
import time
import traceback
from collections.abc import Callable, Coroutine
from typing import Any, cast

import uvloop

from protocol import errors, table
from pyproxy import events
from pyproxy.access import Access
from pyproxy.channel import Channel
from pyproxy.events import Event, emit
from pyproxy.messages import Applied, Complaint, Drain, FleetLook, Message, Ready, Setup, Topology
from pyproxy.metrics import INDEX, Page
from pyproxy.shardmap import ShardMap
from pyproxy.worker import split
from pyproxy.worker.here import Here
from pyproxy.worker.lane import Client, Lane
from pyproxy.worker.link import Link
from pyproxy.worker.session import Session

TICK_S = 0.02  # how exactly deadlines are kept
SELDOM_S = 1.0  # unfinished requests, memory
TRIM_BYTES = 32 << 20  # so much must have been freed before the heap is asked to give it back: that takes milliseconds
ACCEPT_AGAIN_S = 0.002  # a worker with more clients than another one looks again after this
ORPHAN_FLUSH_S = 1.0
KEPT_BYTES = 16 << 20  # free memory at the end of the heap that is not given back at once
TURNED_AWAY_S = 2.0  # then the connection is closed, whatever the client does

_LIBC = ctypes.CDLL(None)


class TurnedAway(asyncio.Protocol):
    """One client too many: told so, then FIN; what it sends is read, or the kernel would reset the connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = cast(asyncio.Transport, transport)
        stream.write(errors.too_many_clients())
        stream.write_eof()
        asyncio.get_running_loop().call_later(TURNED_AWAY_S, stream.abort)


class Worker:
    """One worker, from the parent's first message to the last client's FIN."""

    def __init__(self, index: int, listener: socket.socket, channel: socket.socket, page: Page) -> None:
        self._index = index
        self._listener = listener
        self._channel_socket = channel
        self._page = page
        self._row = page.row(index)
        self._ended = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._links: list[Link] = []
        self._accepting = False
        self._turning_away = False
        self._channel: Channel | None = None
        self._setup: Setup | None = None
        self._access: Access | None = None
        self._lane: Lane | None = None
        self._here: Here | None = None

    async def run(self) -> None:
        """Serve until drained, or until the parent is gone."""
        self._channel = await Channel.open(self._channel_socket, self._on_message, self._on_parent_gone)
        await self._ended.wait()
        for link in self._links:
            link.close()
        self._channel.close()

    # --- the parent's messages ---

    def _on_message(self, message: Message) -> None:
        match message:
            case Setup():
                self._begin(message)
            case Topology():
                self._apply(message)
            case FleetLook():
                self._look(message)
            case Drain(deadline_s=deadline_s):
                self._drain(deadline_s)

    def _begin(self, setup: Setup) -> None:
        loop = asyncio.get_running_loop()
        self._setup = setup
        self._access = Access(setup.config.backend)
        self._here = Here(
            setup, self._page, Topology(0, [], []), None, table.TABLE, lambda: self._lane.clients if self._lane else ()
        )
        session = Session(self._here)
        self._lane = Lane(loop, session.take, split.merged, self._row, setup.config, setup.index, setup.workers)
        split.install(self._lane)
        self._lane.set_table(table.TABLE)
        self._row[INDEX["started_us"]] = int(time.time() * 1e6)
        self._lane.publish()  # a beat, or the others would take this worker for one that hangs
        self._row[INDEX["pid"]] = os.getpid()
        self._spawn(self._tick(self._lane), "tick")

    def _apply(self, topology: Topology) -> None:
        assert self._here and self._lane and self._setup and self._channel
        if topology.version <= self._here.topology.version:
            return
        learned = table.extend(table.TABLE, topology.learned)
        if topology.shards != self._here.topology.shards:
            self._relink(topology)
        self._lane.set_table(learned)
        self._here.table = learned
        self._here.topology = topology
        self._channel.send(Applied(topology.version))
        if not self._accepting:
            self._accepting = True
            self._accept_on_ready()
            self._channel.send(Ready(os.getpid()))

    def _relink(self, topology: Topology) -> None:
        """A link for each shard; those whose shard is as it was stay."""
        assert self._lane and self._setup and self._access
        timeouts = self._setup.config.timeouts
        kept = {link.shard: link for link in self._links}
        links = []
        for index, shard in enumerate(topology.shards):
            link = kept.pop(shard, None)
            if link is None or link.index != index:
                link = Link(self._lane, index, shard, timeouts, self._access, self._spawn, self._complain)
            links.append(link)
        gone, self._links = [link for link in self._links if link not in links], links
        self._lane.set_shards(links, ShardMap(topology.version, tuple(topology.shards)).owners())
        for link in gone:
            link.close()
        for link in links:
            link.connect(link.backend(2, 0))

    def _look(self, look: FleetLook) -> None:
        assert self._here
        self._here.look = look
        by_name = {link.name: link for link in self._links}
        for shard in look.shards:
            if shard.name in by_name:
                by_name[shard.name].misplaced(shard.misplaced)

    def _complain(self, shard: str, node: str, what: str) -> None:
        if self._channel is not None:
            self._channel.send(Complaint(shard, node, what))

    # --- clients ---

    def _accept_on_ready(self) -> None:
        if self._accepting:
            asyncio.get_running_loop().add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        """Accept one client, if no worker has fewer; so clients are spread evenly and no queue is a worker's own."""
        assert self._lane and self._setup
        loop = asyncio.get_running_loop()
        if self._row[INDEX["clients"]] > self._page.fewest_clients(int(time.monotonic() * 1e6)):
            loop.remove_reader(self._listener.fileno())
            loop.call_later(ACCEPT_AGAIN_S, self._accept_on_ready)
            return
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionError):
            return  # another worker was faster, or the client has left already
        except OSError as exc:  # no descriptor to be had: those who are here are served, and some will go
            emit(Event.ACCEPT, why=exc.strerror)
            loop.remove_reader(self._listener.fileno())
            loop.call_later(0.1, self._accept_on_ready)
            return
        sock.setblocking(False)
        if self._page.total("clients") >= self._setup.config.limits.max_clients:
            if not self._turning_away:
                emit(Event.MAX_CLIENTS, limit=self._setup.config.limits.max_clients)
            self._turning_away = True  # said once, until somebody is let in again
            self._row[INDEX["rejected"]] += 1
            self._spawn(self._take_over(sock, TurnedAway), "turn away")
            return
        self._turning_away = False
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._row[INDEX["accepted"]] += 1
        self._adopt(self._lane, sock)

    def _adopt(self, lane: Lane, sock: socket.socket) -> None:
        lane.count_coming(1)  # at once: the other workers look at it before they accept
        self._spawn(self._take_over(sock, lambda: Client(lane)), "client")

    async def _take_over(self, sock: socket.socket, protocol: Callable[[], asyncio.Protocol]) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(protocol, sock)
        except OSError:
            sock.close()
            if self._lane is not None and protocol is not TurnedAway:
                self._lane.count_coming(-1)

    # --- time ---

    async def _tick(self, lane: Lane) -> None:
        assert self._setup
        unfinished_s = self._setup.config.timeouts.unfinished_s
        check_at = 0.0
        peak = 0
        while True:
            await asyncio.sleep(TICK_S)
            lane.tick()
            self._row[INDEX["backend_connections"]] = sum(link.connections for link in self._links)
            now = time.monotonic()
            if now >= check_at:
                check_at = now + SELDOM_S
                lane.check_unfinished(unfinished_s)
                peak = give_back(lane.held, peak)

    # --- the end ---

    def _drain(self, deadline_s: float) -> None:
        if self._lane is None:
            self._ended.set()
        elif not self._lane.draining:
            self._lane.drain()
            self._stop_accepting()
            self._spawn(self._until_drained(self._lane, deadline_s), "drain")

    def _on_parent_gone(self) -> None:
        if self._ended.is_set() or (self._lane is not None and self._lane.draining):
            return  # this end was closed by ourselves, or the parent has gone first at the end of both
        emit(Event.WORKER_ORPHAN, index=self._index)
        self._drain(ORPHAN_FLUSH_S)

    async def _until_drained(self, lane: Lane, deadline_s: float) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + deadline_s
        await asyncio.sleep(TICK_S)  # those who came last are not among the clients before the next turn
        while lane.clients and loop.time() < end:  # noqa: ASYNC110 - they end in compiled callbacks
            await asyncio.sleep(TICK_S)
        for client in list(lane.clients):
            client.abandon()
        self._ended.set()

    def _stop_accepting(self) -> None:
        if self._accepting:
            self._accepting = False
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._empty_backlog()
        self._listener.close()

    def _empty_backlog(self) -> None:
        """Whoever has connected already gets a FIN; at the end of the socket the kernel would send RST."""
        assert self._lane
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setblocking(False)
            self._adopt(self._lane, sock)

    def _spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        """A task whose failure is the worker's end: nothing in it is expected to fail."""
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            emit(Event.BUG, task=task.get_name(), trace="".join(traceback.format_exception(task.exception())))
            os._exit(70)  # EX_SOFTWARE; the parent starts another one


def give_back(held: int, peak: int) -> int:
    """Have the C library return freed memory to the system, once it is worth it -> the new peak of what is held.

    glibc keeps what was freed for the next time; after a burst of large replies that would be hundreds of megabytes.
    """
    if peak - held < TRIM_BYTES:
        return max(peak, held)
    if hasattr(_LIBC, "malloc_trim"):  # musl has none, and keeps less
        _LIBC.malloc_trim(0)
    return held


def keep_the_heap() -> None:
    """Have the C library keep what is freed of middling size for the next request or reply, until `give_back`.

    By default glibc returns every freed buffer of 128 KiB to the system at once, and each page of the next one is a
    fault, which values of 100 KB pay for each time. Larger ones than a read brings (256 KiB) are still returned at
    once, or the budget would not bound the process. (mallopt(3), <malloc.h>: M_TRIM_THRESHOLD is -1, M_MMAP_THRESHOLD
    is -3.)
    """
    if hasattr(_LIBC, "mallopt"):
        _LIBC.mallopt(-1, KEPT_BYTES)
        _LIBC.mallopt(-3, 256 << 10)


def serve(index: int, listen_fd: int, channel_fd: int, page_fd: int) -> None:
    """Run one worker on the descriptors it inherited."""
    events.configure()
    keep_the_heap()
    # Requests make no cycles; full collections would only add to the tail latency.
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    listener = socket.socket(fileno=listen_fd)
    listener.setblocking(False)
    uvloop.run(Worker(index, listener, socket.socket(fileno=channel_fd), Page.attach(page_fd)).run())
