"""What is known of one shard: who is primary, what its servers say, and who could be primary instead.  Pure.

A server is believed to be the primary by epoch and lineage, not because it says role:master. Either whoever decides has
announced it, or it was promoted from here, or its history goes on from that of the primary and the primary is gone.
"""

import statistics
from collections.abc import Mapping

from pyproxy.config import Promotion
from pyproxy.control.failover import lineage
from pyproxy.control.failover.candidates import ranked, readable
from pyproxy.control.failover.promoters import Announcement
from pyproxy.control.failover.transitions import Answer, Effect, Log, PersistentState, Phase, PromoterCapabilities
from pyproxy.events import Event
from pyproxy.messages import NodeHealth
from pyproxy.shard_map import Node


class ShardState:
    """One shard. The phases (unplanned.py, machine.py) change it; what is asked here changes nothing of the phase.

    `promoted_at`: of the last promotion by this proxy on the clock of `now` (CLOCK_MONOTONIC, s), if there was one.
    """

    def __init__(
        self,
        shard: str,
        options: Promotion,
        persistent: PersistentState,
        now: float,
        capabilities: PromoterCapabilities,
        promoted_at: float | None = None,
    ) -> None:
        self.shard = shard
        self.epoch = persistent.epoch
        self.primary = persistent.primary
        self.lineage = persistent.lineage
        self.phase = Phase.HEALTHY
        self.alarms: dict[str, str] = {}  # what an operator must know of: name -> text
        self.nodes: Mapping[Node, NodeHealth] = {}
        self._switched_at = 0.0  # what was seen before says nothing of the roles of now
        self.promoted_at = promoted_at
        self._options = options
        self._capabilities = capabilities
        self._started = now
        self._entered = now  # the phase
        self._since = now  # the incident began
        self._decided = now  # the primary was judged down
        self._failing_since = now  # when this kind of trouble began
        self._answers = False  # the kind: it does answer
        self._hard = False  # suspect: writes cannot succeed
        self._why = ""
        self._recovered_at = 0.0  # a first check found that the primary had recovered
        self._target: Node | None = None  # promoting, verifying, switching, handing over: who is to be primary
        self._target_epoch = 0
        self._seen_at = 0.0  # verifying: the first check that found it primary
        self._announcement: Announcement | None = None  # the newest word of whoever decides
        self._announced_at = 0.0
        self._last_announced: Node | None = None  # newest or not
        self._progress = lineage.ReplicationProgress()
        self._fresh_after = 0.0  # nothing is promoted on health checks older than this
        self._other_masters: set[Node] = set()  # were masters while the primary was well
        self._tried: list[Node] = []  # in this round
        self._rounds = 0  # in which all candidates refused, in this incident
        self._retry_at = 0.0
        self._durations: list[float] = []
        self._promotions: list[float] = []
        self._accepted = ""  # run_id of a server that lost its keys and was taken as it is by an operator
        self._asked = False  # an operator waits for an answer
        self._planned = False
        self._named = False
        self._hand_over_sent = False  # in phase handing-over: the promoter was asked, and has not answered
        self._reconfigured_at = 0.0
        self._waits = True

    @property
    def usual_s(self) -> float:
        """What a promotion takes from the decision on: the median of the last ones."""
        return statistics.median(self._durations) if self._durations else self._capabilities.usual_s

    @property
    def watches_only(self) -> bool:
        """Whether nobody is expected to promote."""
        return self._capabilities.watches_only

    @property
    def waits(self) -> bool:
        """Whether a health check with nothing new in it may have something done, as the time passes."""
        return self.phase is not Phase.HEALTHY or self._waits

    @property
    def persistent_state(self) -> PersistentState:
        return PersistentState(self.epoch, self.primary, self.lineage)

    @property
    def why(self) -> str:
        """What is wrong, or being done; empty while it is well."""
        return "" if self.phase is Phase.HEALTHY else self._why

    def fallback(self, present: Node | None, now: float) -> Node | None:
        """The one replica to read from while the primary cannot be used: the candidate, else the most complete.

        The `present` one stays as long as it can be read, or readers would go back and forth in time.
        """
        for node in (self._target, present):
            if node is not None and node != self.primary and self._readable(node, now):
                return node
        others = [node for node in self.nodes if node != self.primary and self._readable(node, now)]
        return min(others, key=lambda node: (-self.nodes[node].offset, str(node)), default=None)

    def _readable(self, node: Node, now: float) -> bool:
        health = self.nodes.get(node)
        if health is None or not (health.role == "slave" or node == self._target):
            return False
        return readable(health, self.lineage, now)

    # --- what is seen ---

    def _on_announcement(self, announcement: Announcement, now: float) -> None:
        """The newest word counts: that of the greatest epoch or, without epochs, the last that is another one.

        Who has no epochs goes on saying for a while what was true before (DescribeReplicationGroups does).
        """
        known = self._announcement.epoch if self._announcement else 0
        is_news = announcement.epoch > known if announcement.epoch else announcement.node != self._last_announced
        self._last_announced = announcement.node
        if is_news:
            self._announcement, self._announced_at = announcement, now
        if (
            announcement.node == self.primary
            and self.epoch == 0
            and announcement.epoch
            and self.phase is not Phase.SWITCHING
        ):
            self.epoch = announcement.epoch

    def _overruled(self) -> Announcement | None:
        """What whoever decides says, if it is not what we believe, and nothing that was seen since is against it."""
        announcement = self._announcement
        if not self._capabilities.is_authority or announcement is None or announcement.node == self.primary:
            return None
        health = self.nodes.get(announcement.node)
        if health is None or (announcement.epoch and announcement.epoch <= self.epoch):
            return None
        is_replica = health.reachable and health.role == "slave" and health.answered_at > self._announced_at
        return None if is_replica else announcement

    def _primary_failure(self) -> tuple[str, bool]:
        """What is wrong with the primary, and whether writes to it cannot succeed; ("", False): nothing."""
        health = self.nodes[self.primary]
        if overruled := self._overruled():
            return f"{overruled.by} says that {overruled.node} is primary", True
        if health.busy:
            return "", False  # whoever were primary would run that too, and clients hear of it from the server itself
        if not health.reachable:
            return health.error, not health.silent
        if health.role == "slave":
            return f"its role is slave (of {health.master})", True
        if health.lost_keys and health.run_id != self._accepted and not self._capabilities.watches_only:
            return f"it restarted without its {health.lost_keys:,} keys", True
        if health.misconf and self._options.misconf_after_s and not self._capabilities.watches_only:
            return "it answers -MISCONF", True
        return "", False

    def _patience_s(self) -> float:
        """How long this trouble may last until the primary counts as down."""
        health = self.nodes.get(self.primary)
        if health is not None:
            if health.loading:
                return max(self._options.down_after_s, self._options.loading_s)
            if health.reachable and health.misconf:
                return self._options.misconf_after_s
            if health.reachable and health.lost_keys:
                return 0.0  # its replicas copy the emptiness within a second: whoever still has the keys must be first
        return self._options.down_after_s

    def _counted_from(self) -> float:
        """Since when that has been so: a primary that answered, if with an error, has been silent only since then."""
        health = self.nodes.get(self.primary)
        return max(self._failing_since, health.unanswered_since if health is not None else 0.0)

    def _began_at(self, now: float) -> float:
        """When a primary that does not answer was asked first; now, for any other trouble."""
        return self.nodes[self.primary].unanswered_since or now

    def _successor(self, now: float) -> Node | None:
        """Who is the primary by now, if it is another one than we believe and there is reason to believe it."""
        if self._capabilities.is_authority:
            announcement = self._overruled()
            return announcement.node if announcement and self._could_be(announcement.node) else None
        masters = [node for node in self.nodes if node != self.primary and self._could_be(node)]
        old = self.nodes[self.primary]
        if old.reachable and old.role == "slave":
            for node in masters:
                if str(node) == old.master:
                    return node
        is_down = self.phase not in (Phase.HEALTHY, Phase.SUSPECT)
        for node in masters:
            replid2 = self.nodes[node].replid2
            # Of the history before: at the start, without a state file, nobody has told us which one that is.
            is_heir = replid2 == self.lineage if self.lineage else bool(replid2.strip("0"))
            if lineage.have_gone_over(self.nodes, self.primary, node) and (is_heir or is_down or not self.lineage):
                return node
            if node in self._other_masters:  # it was put aside in peace, not promoted in need
                is_needed = is_down and not self._candidates(now)
            else:
                is_needed = is_down or self._primary_failure()[1]
            if is_heir and is_needed:
                return node
        return None

    def _could_be(self, node: Node) -> bool:
        return lineage.is_primary(self.nodes.get(node), self._accepted)

    def _candidates(self, now: float) -> list[Node]:
        others = {node: health for node, health in self.nodes.items() if node != self.primary}
        by_check = {id(health): node for node, health in others.items()}
        return [by_check[id(health)] for health in ranked(others.values(), self.lineage, now)]

    def _learn(self, now: float) -> None:
        """The primary is well: its history is the one to go on from."""
        self.lineage = self.nodes[self.primary].replid or self.lineage
        self.alarms.clear()
        self._other_masters = {n for n, health in self.nodes.items() if n != self.primary and health.role == "master"}
        other_masters = [str(node) for node in self._other_masters if self.nodes[node].reachable]
        if other_masters:
            self.alarms["two-masters"] = (
                f"{', '.join(other_masters)} says that it is a master too; nothing is sent there"
            )
        newest = self._announcement
        if self._capabilities.is_authority and newest and newest.node not in self.nodes:
            text = f"{newest.by} says that {newest.node} is primary, which is no server of {self.shard}"
            self.alarms["unknown-primary"] = text

    # --- what follows -------------------------------------------------------------------------------------------------

    def _enter(self, phase: Phase, now: float, cause: str, event: Event, **fields: object) -> list[Effect]:
        """The one place where a phase begins: said once, with its cause, the epoch and the ages."""
        was, lasted = self.phase, now - self._entered
        self.phase, self._entered, self._why, self._recovered_at = phase, now, cause, 0.0
        announcement = {
            "shard": self.shard, "phase": phase.value, "was": was.value, "epoch": self.epoch, "cause": cause,
            "was_for_s": f"{lasted:.1f}", "incident_s": f"{now - self._since:.1f}", **fields,
        }  # fmt: skip
        return [Log(event, announcement)]

    def _answer(self, done: bool, text: str) -> list[Effect]:
        if not self._asked:
            return []
        self._asked = False
        return [Answer(done, text)]
