"""Who follows whom in a shard, and whether its primary lives, judged from what the servers say.  Pure: looks come in.

A history is the replication id that a primary and its replicas share. Servers know each other by names that need not be
ours, so who copies whom is told by the history rather than by the name.
"""

import statistics
from collections.abc import Mapping

from pyproxy.messages import NodeLook
from pyproxy.shard_map import Node

STEADY_S = 0.2
"""Two looks so far apart must agree before anything irreversible is done, or believed, because of them."""

Looks = Mapping[Node, NodeLook]


def is_primary(look: NodeLook | None, accepted: str) -> bool:
    """Whether this could be the primary, as it looks. `accepted`: the run_id of one that may have lost its keys."""
    if look is None or not look.reachable or look.role != "master" or look.loading:
        return False
    return not look.lost_keys or look.run_id == accepted


def replicas(looks: Looks, primary: Node) -> list[tuple[Node, NodeLook]]:
    """Those that answer."""
    return [(node, look) for node, look in looks.items() if node != primary and look.reachable and look.role == "slave"]


def followers(looks: Looks, node: Node) -> list[Node]:
    """Who copies this one, and is in touch with it."""
    history = looks[node].replid if node in looks else ""
    return [
        other
        for other, look in looks.items()
        if look.reachable and look.role == "slave" and look.link == "up" and look.replid == history != ""
    ]


def have_gone_over(looks: Looks, primary: Node, to: Node) -> bool:
    """Whether the replicas follow this one, and nobody the primary: then the primary is starved, and the past."""
    return bool(followers(looks, to)) and not followers(looks, primary)


def strays(looks: Looks, primary: Node) -> tuple[Node, ...]:
    """Those that do not follow the primary and could.

    One that copies another replica has the history of the primary all the same; that it does not copy the primary
    is told by the name, where that is one of ours. It would be cut off with the replica in between.
    """
    following = followers(looks, primary)
    others = {str(node) for node in looks if node != primary}
    return tuple(
        node
        for node, look in looks.items()
        if node != primary and look.reachable and not look.loading and not look.syncing
        and (look.role == "master" or look.master in others or (node not in following and look.master != str(primary)))
    )  # fmt: skip


def guessed(looks: Looks) -> str:
    """The history of a primary that nobody has seen yet: that of most replicas. Empty: there are none."""
    of = [look.replid for look in looks.values() if look.role == "slave" and look.replid]
    return statistics.mode(of) if of else ""


class LifeSigns:
    """Whether the replicas still hear of a primary that is silent here: their offsets, from some time on."""

    def __init__(self) -> None:
        self._from = 0.0
        self._offsets: dict[Node, tuple[int, float]] = {}  # of the first looks after that time, and when

    def begin(self, at: float) -> None:
        """Forget what was seen; the first looks after this time are what the later ones are compared with."""
        self._from, self._offsets = at, {}

    def note(self, looks: Looks, primary: Node) -> None:
        for node, look in replicas(looks, primary):
            if look.answered_at >= self._from:
                self._offsets.setdefault(node, (look.offset, look.answered_at))

    def found(self, looks: Looks, primary: Node, history: str) -> Node | None:
        """A replica that has heard of it since."""
        if looks[primary].reachable:
            return None
        for node, look in replicas(looks, primary):
            before, _ = self._offsets.get(node, (look.offset, 0.0))
            if look.link == "up" and look.replid == history and look.offset > before:
                return node
        return None

    def are_complete(self, looks: Looks, primary: Node, since: float) -> bool:
        """Whether all were looked at after `since`, and each replica long enough for a growing offset to be seen.

        A primary that is silent is not waited for once more: a look at it lasts until its deadline.
        """
        return (looks[primary].silent or looks[primary].at >= since) and all(
            look.answered_at >= since
            and node in self._offsets
            and look.answered_at - self._offsets[node][1] >= STEADY_S
            for node, look in replicas(looks, primary)
        )
