"""Who follows whom in a shard, and whether its primary lives, judged from what the servers say.  Pure: health checks
come in.

A history is the replication id that a primary and its replicas share. Servers know each other by names that need not be
ours, so who copies whom is told by the history rather than by the name.
"""

import statistics
from collections.abc import Mapping

from pyproxy.messages import NodeHealth
from pyproxy.shard_map import Node

STEADY_S = 0.2
"""Two health checks so far apart must agree before anything irreversible is done, or believed, because of them."""

Healths = Mapping[Node, NodeHealth]


def is_primary(health: NodeHealth | None, accepted: str) -> bool:
    """Whether this could be the primary. `accepted`: the run_id of one that may have lost its keys."""
    if health is None or not health.reachable or health.role != "master" or health.loading:
        return False
    return not health.lost_keys or health.run_id == accepted


def replicas(healths: Healths, primary: Node) -> list[tuple[Node, NodeHealth]]:
    """Those that answer."""
    return [
        (node, health)
        for node, health in healths.items()
        if node != primary and health.reachable and health.role == "slave"
    ]


def followers(healths: Healths, node: Node) -> list[Node]:
    """Who copies this one, and is in touch with it."""
    history = healths[node].replid if node in healths else ""
    return [
        other
        for other, health in healths.items()
        if health.reachable and health.role == "slave" and health.link == "up" and health.replid == history != ""
    ]


def have_gone_over(healths: Healths, primary: Node, to: Node) -> bool:
    """Whether the replicas follow this one, and nobody the primary: then the primary is starved, and the past."""
    return bool(followers(healths, to)) and not followers(healths, primary)


def not_following(healths: Healths, primary: Node) -> tuple[Node, ...]:
    """The servers that do not replicate the primary and could.

    One that copies another replica has the history of the primary all the same; that it does not copy the primary
    is told by the name, where that is one of ours. It would be cut off with the replica in between.
    """
    following = followers(healths, primary)
    others = {str(node) for node in healths if node != primary}
    return tuple(
        node
        for node, health in healths.items()
        if node != primary and health.reachable and not health.loading and not health.syncing
        and (
            health.role == "master" or health.master in others
            or (node not in following and health.master != str(primary))
        )
    )  # fmt: skip


def guessed(healths: Healths) -> str:
    """The history of a primary that nobody has seen yet: that of most replicas. Empty: there are none."""
    of = [health.replid for health in healths.values() if health.role == "slave" and health.replid]
    return statistics.mode(of) if of else ""


class ReplicationProgress:
    """Whether replicas still receive from a primary that is silent here: whether their offsets grow."""

    def __init__(self) -> None:
        self._from = 0.0
        self._offsets: dict[Node, tuple[int, float]] = {}  # of the first checks after that time, and when

    def begin(self, at: float) -> None:
        """Forget what was seen. Later checks are compared with the first ones after this time."""
        self._from, self._offsets = at, {}

    def note(self, healths: Healths, primary: Node) -> None:
        for node, health in replicas(healths, primary):
            if health.answered_at >= self._from:
                self._offsets.setdefault(node, (health.offset, health.answered_at))

    def found(self, healths: Healths, primary: Node, history: str) -> Node | None:
        """A replica that has received from it since."""
        if healths[primary].reachable:
            return None
        for node, health in replicas(healths, primary):
            before, _ = self._offsets.get(node, (health.offset, 0.0))
            if health.link == "up" and health.replid == history and health.offset > before:
                return node
        return None

    def are_complete(self, healths: Healths, primary: Node, since: float) -> bool:
        """Whether all were checked after `since`, and each replica for long enough to see a growing offset.

        A silent primary is not waited for once more: a check of it lasts until its deadline.
        """
        return (healths[primary].silent or healths[primary].at >= since) and all(
            health.answered_at >= since
            and node in self._offsets
            and health.answered_at - self._offsets[node][1] >= STEADY_S
            for node, health in replicas(healths, primary)
        )
