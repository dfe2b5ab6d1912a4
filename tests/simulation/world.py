"""A worker, its clients and its servers in one process; what happens to them is the caller's to say."""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast
from unittest import mock

from pyproxy import events
from pyproxy.messages import Setup
from pyproxy.worker import heap, main
from pyproxy.worker.lane import lane
from pyproxy.worker.shard import router
from tests.simulation.client import Client
from tests.simulation.ledger import Ledger
from tests.simulation.loop import Loop
from tests.simulation.network import End, Network, Socket
from tests.simulation.oracle import Broken, Oracle
from tests.simulation.parent import Channel, Parent
from tests.simulation.server import Connection, Server
from tests.simulation.setting import CONGESTED_AT, Setting, config, keys, page

TICK_S = 0.05
"""Of the worker: how exactly deadlines are kept here."""

LONGEST_S = 8.0
"""While the worker runs, no client that reads waits longer for its next answer, whatever the servers do: a hold, or the
silence of a server, then a new connection, and the deadline of a reply."""


class Bugs(logging.Handler):
    """The lines of the log that nobody expects."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if line.startswith("+bug"):
            self.lines.append(line)


class World:
    """To be made within `history`."""

    def __init__(self, setting: Setting, loop: Loop, bugs: Bugs) -> None:
        self.setting = setting
        self.bugs = bugs
        self.loop = loop
        self.network = Network(loop, setting.high, setting.window)
        self.ledger = Ledger()
        settings = config(setting.reads, setting.hold)
        shards = list(settings.shard_map().shards)
        self.servers: dict[str, list[Server]] = {}
        self.nodes: dict[tuple[str, int], Server] = {}
        for shard in shards:
            self.ledger.epochs[shard.name] = 0
            for node in (shard.primary, *shard.replicas):
                address = node.host, node.port
                server = Server(str(node), shard.name, address, self.ledger, loop.time)
                self.nodes[address] = server
                self.servers.setdefault(shard.name, []).append(server)
                if node is not shard.primary:
                    server.follow(self.servers[shard.name][0])
        self.clients: list[Client] = []
        self.oracle = Oracle(self.ledger, self.servers, setting.faulty)
        self.steps: list[str] = []
        channel = Channel()
        self.worker = worker = main.Worker(0, cast(Any, mock.Mock(fileno=lambda: -1)), cast(Any, None), page())
        worker._channel = cast(Any, channel)
        self.parent = Parent(loop, worker, channel, shards, self.servers)
        self.parent.reads_replicas = setting.reads != "primary"
        worker._on_message(Setup(0, 1, settings, "sim:1", "simulated", 0.0))
        assert worker._lane and worker._lease_pool and worker._acceptor
        self.lane = worker._lane
        self.acceptor = worker._acceptor
        self.lease_pool = worker._lease_pool
        self.parent.tell()
        self.loop.settle()

    # --- what there is ---

    @property
    def connections(self) -> list[Connection]:
        """To all servers, those that were closed and are not read to their end included."""
        return [each for server in self.nodes.values() for each in server.connections]

    def check(self) -> None:
        """Nothing has gone wrong so far. Raises Broken."""
        if self.loop.failures:
            raise Broken(self.loop.failures[0])
        if self.bugs.lines and not self.setting.faulty:
            raise Broken(self.bugs.lines[0].replace("\\n", "\n"))

    def overdue(self) -> None:
        """Nobody who reads has waited for too long. Raises Broken."""
        for client in self.clients:
            if client.is_reading and client.is_open and client.waiting:
                first = client.waiting[0]
                since = max(first.came_at, client.since)
                waited = self.loop.now - since
                if waited - self.loop.slept_since(since) > LONGEST_S:
                    what = f"{first.name} {first.index} since {waited:.1f} s"
                    raise Broken(f"{client} waits for {what}: {client.protocol!r}")

    # --- clients ---

    def open(self) -> Client:
        end = End(self.network.window)
        client = Client(len(self.clients), end, keys(), self.loop.time)
        self.clients.append(client)
        self.acceptor.adopt(cast(Any, Socket(end)))
        self.loop.settle()
        client.protocol = end.transport.protocol if end.transport else None
        return client

    def deliver(self, end: End, most: int = 1 << 30) -> bool:
        """Bytes, FIN or RST of a far end reach the proxy."""
        return end.transport is not None and end.transport.deliver(most)

    def send(self, client: Client, most: int = 1 << 30) -> bool:
        moved = self.deliver(client.end, most)
        client.arrived()
        return moved

    def read(self, client: Client, most: int = 1 << 30) -> bool:
        """The client takes what has come for it -> whether there was anything. Raises Broken."""
        if client.left == "reset":
            return False
        any_came = bool(client.end.inbox)
        for frame in client.read(most):
            client.since = self.loop.now
            self.oracle.judge(client, frame)
        return any_came

    def leave(self, client: Client, how: str) -> None:
        if client.left != "reset":
            client.left = how
            client.may_be_cut_off = not client.is_reading
            client.end.reset() if how == "reset" else client.end.finish()

    # --- servers ---

    def answer_connecting(self, place: int) -> None:
        attempt = self.network.connecting[place]
        server = self.nodes[attempt.node]
        if attempt.answered.done() or not server.unreachable:
            self.network.let_through(attempt, server.connect(self.network.window) if server.alive else None)

    def flow(self, rounds: int = 3, whom: Callable[[Server], bool] = lambda _: True) -> bool:
        """Whatever can move between everybody moves -> whether anything did."""
        any_moved = False
        for _ in range(rounds):
            moved = False
            for attempt in list(self.network.connecting):
                if attempt.answered.done() or not self.nodes[attempt.node].unreachable:
                    self.answer_connecting(self.network.connecting.index(attempt))
                    moved = True
            for client in self.clients:
                while self.send(client):
                    moved = True
            self.loop.settle()
            for connection in self.connections:
                if whom(connection.server):
                    moved |= connection.server.serve(connection, 1 << 30) > 0
                    while self.deliver(connection):
                        moved = True
            self.loop.settle()
            for client in self.clients:
                if client.is_reading:
                    moved |= self.read(client)
            any_moved |= moved
            if not moved:
                break
        return any_moved

    def advance(self, seconds: float) -> None:
        """Time passes for everybody; clients that read do so meanwhile. Raises Broken."""
        until = self.loop.now + seconds
        while self.loop.now < until - 1e-9:
            self.loop.advance(min(0.25, until - self.loop.now))
            for client in self.clients:
                if client.is_reading:
                    self.read(client)
            self.check()
            self.overdue()

    # --- the end ---

    def close(self) -> None:
        """Nothing of it runs on."""
        for _ in range(3):
            for task in list(self.loop.tasks):
                task.cancel()
            self.loop.settle()


@contextmanager
def history(setting: Setting, seed: int = 0) -> Iterator[World]:
    """A world, in which the time and the chance of this process are its own."""
    loop, bugs, log = Loop(setting.congested_at), Bugs(), events._log

    def end(what: str, exc: BaseException) -> None:
        loop.failures.append(f"the worker has ended: {what}: {exc!r}")

    def has_closed(client: Any) -> bool:
        return any(each.end.finished or each.end.is_reset for each in world.clients if each.protocol is client)

    before = asyncio._get_running_loop(), random.getstate(), log.level, log.propagate
    with ExitStack() as patched:
        for owner, name, there in (
            (time, "monotonic", loop.time),
            (main, "TICK_S", TICK_S),
            (main, "end", end),
            (main, "those_closed", lambda clients: [each for each in clients if has_closed(each)]),
            (router, "has_closed", has_closed),
            (heap, "trim", lambda used, peak: 0),
        ):
            patched.enter_context(mock.patch.object(owner, name, there))
        random.seed(seed)
        log.setLevel(logging.ERROR)
        log.propagate = False
        log.addHandler(bugs)
        asyncio._set_running_loop(cast(Any, loop))
        world = World(setting, loop, bugs)
        try:
            yield world
        finally:
            world.close()
            asyncio._set_running_loop(before[0])
            lane.simulate(0.0, CONGESTED_AT)
            log.removeHandler(bugs)
            random.setstate(before[1])
            log.setLevel(before[2])
            log.propagate = before[3]
