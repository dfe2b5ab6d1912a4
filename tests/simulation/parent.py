"""What the parent of the worker would do: it says who is primary and whether writes may pass, and takes the barrier.

It acts on the servers as a promoter does, and on the worker by the real messages; what it decides, the steps decide.
"""

from typing import Any

import msgspec

from pyproxy.messages import Applied, Awake, Confirmed, FleetHealth, GateDirective, NodeHealth, ShardHealth, Topology
from pyproxy.shard_map import Node, Shard
from tests.simulation.loop import Loop
from tests.simulation.oracle import Broken
from tests.simulation.server import Server


class Channel:
    """What the worker says."""

    congested = False

    def __init__(self) -> None:
        self.said: list[Any] = []

    def send(self, message: Any) -> None:
        self.said.append(message)

    def close(self) -> None:
        """The end of the worker."""


class Parent:
    """`servers`: shard -> its servers, the primary of the beginning first. `worker`: the real one."""

    def __init__(
        self, loop: Loop, worker: Any, channel: Channel, shards: list[Shard], servers: dict[str, list[Server]]
    ) -> None:
        self.loop = loop
        self.worker = worker
        self.channel = channel
        self.shards = shards
        self.servers = servers
        self.gates = [GateDirective(shard.name, 1) for shard in shards]
        self.handing_over: set[int] = set()
        self.reads_replicas = False
        self._version = 0
        self._health = 0

    # --- what is so ---

    def _server(self, index: int, node: Node) -> Server:
        return next(each for each in self.servers[self.shards[index].name] if each.node == (node.host, node.port))

    def primary(self, index: int) -> Server:
        return self._server(index, self.shards[index].primary)

    def replicas(self, index: int) -> list[Server]:
        return [self._server(index, node) for node in self.shards[index].replicas]

    # --- what is said ---

    def tell(self) -> None:
        """The state, to the worker; it must say that it is applied."""
        self._version += 1
        for index, gate in enumerate(self.gates):
            primary = self.primary(index)
            fit = [
                node
                for node in self.shards[index].replicas
                if (replica := self._server(index, node)).alive and replica.master is primary
            ]
            known = gate.fallback if gate.fallback in fit else (fit[0] if fit else None)
            self.gates[index] = msgspec.structs.replace(
                gate, fallback=known, readers=tuple(fit) if self.reads_replicas else ()
            )
        self.worker._on_message(Topology(self._version, list(self.shards), [], list(self.gates)))
        if not any(isinstance(each, Applied) and each.version == self._version for each in self.channel.said):
            raise Broken(f"the worker has not applied topology {self._version}")

    def health(self) -> None:
        """What a look at all servers would find now."""
        self._health += 1
        now = self.loop.now
        healths = []
        for index, shard in enumerate(self.shards):
            nodes = []
            for server in (self.primary(index), *self.replicas(index)):
                well = server.alive and not server.stalled
                node = str(Node(*server.node))
                role = "master" if server.master is None else "slave"
                error = "" if well else "no answer"
                nodes.append(NodeHealth(node, well, error, at=now, answered_at=now * well, role=role))
            first, each = nodes[0], tuple(nodes)
            healths.append(
                ShardHealth(shard.name, first.node, first.reachable, first.error, {}, {}, "", now, nodes=each)
            )
        self.worker._on_message(FleetHealth(self._health, now, healths))

    def confirm(self) -> None:
        """The word that a worker waits for that has slept."""
        for said in [each for each in self.channel.said if isinstance(each, Awake)]:
            self.channel.said.remove(said)
            self.tell()
            self.worker._on_message(Confirmed(said.at))

    # --- what is done ---

    def close(self, index: int, hold: bool) -> None:
        if not self.gates[index].closed:
            self._gate(index, "is being promoted", hold)

    def open(self, index: int) -> None:
        self.handing_over.discard(index)
        if self.gates[index].closed:
            self._gate(index, "", False)

    def _gate(self, index: int, closed: str, hold: bool) -> None:
        self.gates[index] = msgspec.structs.replace(
            self.gates[index], closed=closed, hold=hold, since=self.loop.now, expected_at=self.loop.now + 0.4
        )
        self.tell()

    def promote(self, index: int, zombie: bool) -> None:
        """The primary is given up for the replica that has most; `zombie`: nobody can tell it."""
        old = self.primary(index)
        fit = [each for each in self.replicas(index) if each.alive and not each.stalled and each.master is not None]
        if not fit:
            return
        self.close(index, hold=True)
        new = min(fit, key=lambda server: server.lag)
        self._switch(index, old, new)
        if old.alive and not old.stalled and not zombie:
            old.follow(new)
        self.tell()

    def _switch(self, index: int, old: Server, new: Server) -> None:
        shard = self.shards[index]
        new.promote()
        for other in self.servers[shard.name]:
            if other not in (old, new) and other.alive:
                other.follow(new)
        node = Node(*new.node)
        others = tuple(each for each in (shard.primary, *shard.replicas) if each != node)
        self.shards[index] = msgspec.structs.replace(shard, primary=node, replicas=others)
        self.gates[index] = msgspec.structs.replace(self.gates[index], epoch=self.gates[index].epoch + 1)

    def hand_over(self, index: int) -> None:
        """Planned: once nothing is in flight and the replica has everything; else it is given up."""
        if index not in self.handing_over:
            if self.replicas(index) and not self.gates[index].closed:
                self.close(index, hold=True)
                self.handing_over.add(index)
            return
        applied = [each for each in self.channel.said if isinstance(each, Applied)][-1]
        old = self.primary(index)
        fit = [each for each in self.replicas(index) if each.alive and not each.stalled and each.master is old]
        busy = self.shards[index].name in applied.busy or applied.version != self._version
        if busy or not fit or not old.alive or old.stalled:
            self.open(index)
            return
        fit[0].copy(1 << 30)
        self._switch(index, old, fit[0])
        old.follow(fit[0])
        self.handing_over.discard(index)
        self.tell()

    def tidy(self) -> None:
        """Who is not the primary, and lives, follows it."""
        for index in range(len(self.shards)):
            primary = self.primary(index)
            for server in self.servers[self.shards[index].name]:
                if (
                    server is not primary
                    and server.alive
                    and not server.stalled
                    and (server.master is not primary or server.epoch != primary.epoch)
                ):
                    server.follow(primary)

    def mend(self) -> None:
        """Everybody is well: all gates open."""
        self.tidy()
        self.confirm()
        self.health()
        for index in range(len(self.shards)):
            self.open(index)
        self.tell()
