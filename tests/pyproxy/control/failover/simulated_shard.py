"""A shard that exists as health checks only, and its machine: what is done to its servers is seen by the next check.

For the tests of the machine, which never asks a server anything. Time passes only when a test says so.
"""

from collections.abc import Iterable
from typing import Any

import msgspec

from pyproxy.config import Promotion
from pyproxy.control.failover.machine import Machine
from pyproxy.control.failover.promoters import Announcement
from pyproxy.control.failover.transitions import (
    Announced,
    Answer,
    ClosedGate,
    Effect,
    FailoverEvent,
    HealthChecked,
    Log,
    PersistentState,
    Phase,
    Promote,
    Promoted,
    PromoterCapabilities,
    Switched,
)
from pyproxy.messages import NodeHealth
from pyproxy.shard_map import Node

P1, P2, P3 = (Node(f"10.0.0.{number}", 6379) for number in (1, 2, 3))
ELSEWHERE = Node("10.9.9.9", 6379)

PROMOTES = PromoterCapabilities(acts=True, hands_over=True)  # replicaof
FOLLOWS = PromoterCapabilities()  # replicaof with promote = false
SENTINEL = PromoterCapabilities(hands_over=True, is_authority=True)
ELASTICACHE = PromoterCapabilities(acts=True, hands_over=True, is_authority=True, usual_s=30.0)
NONE = PromoterCapabilities(watches_only=True)

CHECK_S = 0.25
"""Between two checks. The health monitor checks once a second, and a shard in trouble more often."""


class SimulatedShard:
    """P1 is primary, by epoch 4 and history "a"; the others copy it. The proxy has run for a while, and all is well."""

    def __init__(
        self,
        capabilities: PromoterCapabilities = PROMOTES,
        *,
        nodes: Iterable[Node] = (P1, P2, P3),
        persistent: PersistentState | None = None,
        seasoned: bool = True,
        **options: Any,
    ) -> None:
        self.now = 1000.0
        self.histories = 0
        self.effects: list[Effect] = []  # since `forget`
        self.healths = {node: NodeHealth(str(node)) for node in nodes}
        for number, node in enumerate(self.healths, 1):
            self.change(node, reachable=True, error="", run_id=f"r{number}", replid="a", priority=100, keys=50)
            self.change(node, offset=500, role="slave", master=str(P1), link="up", lag_s=0)
        self.change(P1, role="master", master="", link="", lag_s=-1)
        self.options = Promotion(promoter="replicaof", **options)
        self.machine = Machine("s1", self.options, persistent or PersistentState(4, P1, "a"), self.now, capabilities)
        if seasoned:
            self.check()
            self.now += 1000.0
            self.check()
            self.forget()

    # --- what becomes of the servers ---

    def change(self, node: Node, **fields: Any) -> None:
        self.healths[node] = msgspec.structs.replace(self.healths[node], **fields)

    def kill(self, *nodes: Node) -> None:
        """Its connections are refused, and those who copied it know."""
        for node in nodes:
            self.change(node, reachable=False, error="connection refused", silent=False)
            for other, health in self.healths.items():
                if health.master == str(node):
                    self.change(other, link="down")

    def silence(self, *nodes: Node) -> None:
        """It does not answer, and nobody knows why."""
        for node in nodes:
            self.change(node, reachable=False, error="no answer within 1 s", silent=True)

    def wake(self, *nodes: Node, **fields: Any) -> None:
        for node in nodes:
            self.change(node, reachable=True, error="", silent=False, loading=False, **fields)

    def write(self, by: int = 10) -> None:
        """To the primary, and those in step copy it."""
        masters = [health for health in self.healths.values() if health.role == "master"]
        for node, health in self.healths.items():
            copies = any(health.replid == master.replid for master in masters) and health.link != "down"
            if copies:
                self.change(node, offset=health.offset + by)

    def make_master(self, node: Node) -> None:
        """REPLICAOF NO ONE: a history of its own begins where it is."""
        health = self.healths[node]
        self.histories += 1
        self.change(
            node, role="master", master="", link="", replid=f"{health.replid}{self.histories}", replid2=health.replid,
            second_offset=health.offset + 1,
        )  # fmt: skip

    def make_replica(self, node: Node, of: Node) -> None:
        """REPLICAOF, and the copying is done."""
        source = self.healths[of]
        self.change(
            node, role="slave", master=str(of), link="up", replid=source.replid, replid2=source.replid2,
            second_offset=source.second_offset, offset=source.offset, keys=source.keys, lost_keys=0,
        )  # fmt: skip

    def empty(self, node: Node) -> None:
        """It was restarted without its data, as a master; its replicas copy that at once."""
        health = self.healths[node]
        self.histories += 1
        self.wake(node, run_id=f"{health.run_id}'", lost_keys=health.keys, keys=0, offset=0, role="master")
        self.change(node, replid=f"e{self.histories}", replid2="", master="", link="")

    # --- what the machine is given ---

    def step(self, event: FailoverEvent, after_s: float = 0.0) -> list[Effect]:
        self.now += after_s
        effects = self.machine.step(event, self.now)
        self.effects += effects
        return effects

    def announce(self, node: Node, epoch: int = 0) -> list[Effect]:
        return self.step(Announced(Announcement(node, epoch, "a test")))

    def check(self, after_s: float = 0.0) -> list[Effect]:
        """All servers are checked."""
        self.now += after_s
        for node, health in self.healths.items():
            self.change(node, at=self.now)
            if health.reachable:
                self.change(node, answered_at=self.now, unanswered_since=0.0)
            elif health.error.startswith(("LOADING ", "BUSY ")):
                self.change(node, unanswered_since=0.0)
            elif not health.unanswered_since:
                self.change(node, unanswered_since=self.now)
        return self.step(HealthChecked(dict(self.healths)), after_s=0.001)

    def check_for(self, for_s: float) -> list[Effect]:
        """Checks, one after the other, and what followed from them."""
        effects = []
        for _ in range(round(for_s / CHECK_S)):
            effects += self.check(CHECK_S)
        return effects

    def until(self, phase: Phase, within_s: float) -> None:
        """Checks, until it is in this phase."""
        until = self.now + within_s
        while self.machine.phase is not phase:
            assert self.now < until, f"expected {phase} within {within_s} s, got {self.machine}"
            self.check(CHECK_S)

    # --- what came of it ---

    def forget(self) -> None:
        self.effects = []

    def of(self, kind: type) -> list[Any]:
        """The effects of this kind."""
        return [effect for effect in self.effects if type(effect) is kind]

    @property
    def logged(self) -> list[str]:
        return [effect.event.value[0] for effect in self.of(Log)]

    @property
    def answers(self) -> list[bool]:
        return [effect.done for effect in self.of(Answer)]

    @property
    def phase(self) -> Phase:
        return self.machine.phase

    @property
    def is_closed(self) -> bool:
        return self.machine.gate() is not None


def closed_gate(shard: SimulatedShard) -> ClosedGate:
    gate = shard.machine.gate()
    assert gate is not None
    return gate


def fail_over(shard: SimulatedShard, to: Node, within_s: float = 10.0) -> None:
    """The whole of it, with a promoter that does what it is asked."""
    shard.until(Phase.PROMOTING, within_s)
    assert shard.of(Promote)[-1] == Promote(to)
    shard.make_master(to)
    shard.step(Promoted())
    shard.until(Phase.SWITCHING, 2.0)
    shard.step(Switched())
