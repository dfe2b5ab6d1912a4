"""One worker process whose parent is the test: it says what the worker is told, and sees what the worker says.

    test ── Setup, Topology, FleetHealth, Confirmed ──▶ python -m pyproxy.worker ──▶ real servers
         ◀── Ready, Applied, Awake, Holding, Complaint ──

The channel lives in a thread with an event loop of its own; the methods may be called from any test.
"""

import asyncio
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Self, TypeVar

import msgspec

from pyproxy.channel import Channel
from pyproxy.config import Config
from pyproxy.fleet import HOST, Fleet, Process, Proxy, Server, Table, Value, wait_until
from pyproxy.messages import (
    Applied,
    FleetHealth,
    GateDirective,
    Held,
    Holding,
    Message,
    NodeHealth,
    Setup,
    ShardHealth,
    Topology,
)
from pyproxy.metrics import Page
from pyproxy.shard_map import Node, Shard, expanded, join_slots

Said = TypeVar("Said")


def node(server: Server) -> Node:
    return Node(HOST, server.port)


class BareWorker(Process):
    """A context manager; `port` is where the worker listens. `primaries`: in place of the fleet's, by index."""

    def __init__(
        self, fleet: Fleet, primaries: dict[int, Node] | None = None, top: str = "", **tables: Table | Value
    ) -> None:
        name = f"worker-{time.monotonic_ns()}"
        super().__init__("worker", fleet.directory / f"{name}.log")
        self.config = fleet.directory / f"{name}.toml"
        self.config.write_text(f"{top}\n{fleet.config(f'{HOST}:0', 1, **{**Proxy.always, **tables})}")
        self._config = Config.load(self.config)
        self.shards: list[Shard] = [
            msgspec.structs.replace(shard, primary=(primaries or {}).get(index, shard.primary))
            for index, shard in enumerate(self._config.shard_map().shards)
        ]
        self.gates = [GateDirective(shard.name, 0) for shard in self.shards]
        self.version = 0
        self.foreign: list[str] = []
        """Shards that have keys of slots of others."""
        self.said: list[Message] = []
        """All that the worker said."""
        self.page = Page.create(1)
        self._listener = socket.create_server((HOST, 0), backlog=512)
        self.port: int = self._listener.getsockname()[1]
        self._ours, self._theirs = socket.socketpair()
        self.inherits = (self._listener.fileno(), self._theirs.fileno(), self.page.fd)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="parent", daemon=True)

    def command(self) -> list[str]:
        named = zip(("--listen-fd", "--channel-fd", "--page-fd"), map(str, self.inherits), strict=True)
        return [sys.executable, "-m", "pyproxy.worker", "--index", "0", *(word for pair in named for word in pair)]

    def __enter__(self) -> Self:
        self._thread.start()
        self._channel = asyncio.run_coroutine_threadsafe(
            Channel.open(self._ours, self._on_message, lambda: None), self._loop
        ).result(10)
        self.launch()
        self._theirs.close()
        self.send(Setup(0, 1, self._config, f"{HOST}:{self.port}", "test", time.time()))
        self.tell()
        self.wait_for_pong(self.port)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._channel.close)
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._listener.close()
        self.page.close()

    # --- the parent's part ---

    def send(self, message: Message) -> None:
        self._loop.call_soon_threadsafe(self._channel.send, message)

    def tell(self) -> None:
        """Send the topology as it is here, and wait until it is applied."""
        self.version += 1
        version = self.version
        self.send(Topology(version, list(self.shards), [], list(self.gates), foreign=list(self.foreign)))
        self.wait_for(f"topology {version} to be applied", lambda: self.applied(version) is not None)

    def close(
        self, *indexes: int, hold: bool = True, why: str = "is being promoted", in_s: float = 0.5, moving: bool = False
    ) -> None:
        """Close the gates of these shards."""
        now = time.monotonic()
        for index in indexes:
            self.gates[index] = msgspec.structs.replace(
                self.gates[index], closed=why, hold=hold, since=now, expected_at=now + in_s, moving=moving
            )
        self.tell()

    def add_shard(self, shard: Shard) -> None:
        self.shards.append(shard)
        self.gates.append(GateDirective(shard.name, 0))
        self.tell()

    def move_slots(self, source: int, destination: int, *slots: int) -> None:
        """Give these slots to another shard; both gates are closed, and stay so."""
        own = {index: set(expanded(self.shards[index].slots)) for index in (source, destination)}
        own[source] -= set(slots)
        own[destination] |= set(slots)
        for index, numbers in own.items():
            ranges = tuple(join_slots(sorted(numbers)))
            self.shards[index] = msgspec.structs.replace(self.shards[index], slots=ranges)
        self.close(source, destination, why="is handing over slots", moving=True)

    def open(self, *indexes: int) -> None:
        for index in indexes:
            self.gates[index] = msgspec.structs.replace(self.gates[index], closed="", moving=False)
        self.tell()

    def fallback(self, index: int, server: Server) -> None:
        self.gates[index] = msgspec.structs.replace(self.gates[index], fallback=node(server))
        self.tell()

    def switch_to(self, index: int, server: Server, *, open_gate: bool = False) -> None:
        """Another primary for a shard, in another epoch; the gate stays as it is."""
        shard = self.shards[index]
        nodes = (shard.primary, *shard.replicas)
        others = tuple(each for each in nodes if each != node(server))
        self.shards[index] = msgspec.structs.replace(shard, primary=node(server), replicas=others)
        gate = self.gates[index]
        self.gates[index] = msgspec.structs.replace(gate, epoch=gate.epoch + 1, closed="" if open_gate else gate.closed)
        self.tell()

    def health(self, index: int, *, reachable: bool = True, misplaced: str = "") -> None:
        """Say what a health check would have found of a shard's primary now."""
        shard, now = self.shards[index], time.monotonic()
        answered_at = now if reachable else 0.0
        seen = NodeHealth(str(shard.primary), reachable, "", at=now, answered_at=answered_at, role="master")
        of_shard = ShardHealth(shard.name, seen.node, reachable, "", {}, {}, misplaced, now, now, nodes=(seen,))
        self.send(FleetHealth(1, now, [of_shard]))

    def _on_message(self, message: Message) -> None:
        self.said.append(message)

    # --- what was seen ---

    def of(self, kind: type[Said]) -> list[Said]:
        return [message for message in self.said if isinstance(message, kind)]

    def applied(self, version: int) -> Applied | None:
        """The last one of this version."""
        found = [message for message in self.of(Applied) if message.version == version]
        return found[-1] if found else None

    @property
    def busy(self) -> list[str]:
        applied = self.applied(self.version)
        assert applied is not None
        return applied.busy

    def holding(self, index: int) -> Held:
        """As the worker said last."""
        said = self.of(Holding)
        return said[-1].held.get(self.shards[index].name, Held(0, 0)) if said else Held(0, 0)

    def wait_for(self, what: str, done: Callable[[], bool]) -> None:
        wait_until(what, done, lambda: f"it said {self.said[-5:]}, and in its log:\n{self.tail()}", 20.0)

    def wait_held(self, index: int, requests: int) -> None:
        self.wait_for(f"{requests} requests to be held", lambda: self.holding(index).requests == requests)

    def count(self, name: str) -> int:
        return self.page.get(0, name)

    def wait_count(self, name: str, count: int) -> None:
        self.wait_for(f"{name} to be {count}, not {self.count(name)}", lambda: self.count(name) == count)


def promote(old: Server | None, new: Server, others: Sequence[Server] = ()) -> None:
    """By REPLICAOF; the old primary, if it lives, becomes its replica."""
    new.ask("REPLICAOF", "NO", "ONE")
    for each in (*([old] if old else []), *others):
        each.ask("REPLICAOF", HOST, new.port)
