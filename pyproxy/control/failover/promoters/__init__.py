"""Ways to give a shard another primary: one file each, behind one small interface.

A promoter follows whoever decides (`run`), and where it may act itself it does so once when it is told to (`promote`,
`hand_over`, `reconfigure`). When to act, whom to promote, and what clients see meanwhile is not its business: that is
machine.py. Nothing here is ever in the path of a request.

    run          whoever decides ──▶ announce(Announcement): "this node is the primary, by this epoch"
    promote      the primary is lost: make the candidate the primary, as well as that can be done without it
    hand_over    all are well, and no write is in flight: the candidate takes over with everything
    reconfigure  some servers are not replicas of the primary: make them so; the one that was lost may have come back
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pyproxy.access import Access
from pyproxy.config import Config
from pyproxy.messages import NodeHealth
from pyproxy.shard_map import Node, Shard


class PromotionFailed(Exception):
    """What happened instead, for operators. `again`: another attempt, or another candidate, may succeed.

    Raised only where the candidate was surely not made primary, or where a health check will tell.
    """

    def __init__(self, why: str, again: bool = True) -> None:
        super().__init__(why)
        self.again = again


@dataclass(frozen=True, slots=True)
class Announcement:
    """Whoever decides says that this node is the primary. `epoch` is theirs, and never falls; 0: they have none."""

    node: Node
    epoch: int
    by: str  # "sentinel 127.0.0.1:26379", "elasticache"


@dataclass(frozen=True, slots=True)
class PromotionPlan:
    """A shard whose primary is to be replaced."""

    shard: str
    epoch: int  # that the new primary will have
    primary: NodeHealth  # the present one, as it was seen last
    candidate: NodeHealth
    others: tuple[NodeHealth, ...]  # the other servers, whatever their state
    named: bool = False  # an operator asked for this very candidate


class Promoter:
    """One for each shard. All methods are run in the parent's loop: whatever takes time in them is awaited."""

    is_authority = False
    """Whether somebody else has the last word: then no server is believed to be the primary that was not announced."""

    acts = False
    """Whether `promote` may be called."""

    hands_over = False
    """Whether `hand_over` may be."""

    usual_s = 1.0
    """From the decision to the end of a promotion, before there has been one, in seconds."""

    async def run(self) -> None:
        """Follow whoever decides and announce what they say, until cancelled. Their failures end nothing."""

    async def promote(self, plan: PromotionPlan) -> None:
        """Have the candidate made primary: one attempt, until it is, or soon will be. Raises PromotionFailed."""
        raise PromotionFailed("nobody promotes here", again=False)

    async def hand_over(self, plan: PromotionPlan) -> None:
        """The same with both alive and no write in flight: nothing may be lost. Undone if it fails: PromotionFailed."""
        raise PromotionFailed("nobody promotes here", again=False)

    async def setting(self, name: str) -> str | None:
        """What this setting is on its servers where CONFIG SET is not allowed; None: it is allowed.

        Asked again now and then. Raises PromotionFailed if that cannot be known now.
        """
        return None

    async def reconfigure(self, primary: NodeHealth, not_following: Sequence[NodeHealth]) -> None:
        """Make these servers replicas of the primary. Raises nothing: what fails is tried again later."""


Announce = Callable[[Announcement], None]


def make(shard: Shard, config: Config, access: Access, announce: Announce) -> Promoter:
    """The promoter that the configuration names for this shard."""
    # By name, as boto3 alone takes half a second to import.
    module = importlib.import_module(f"pyproxy.control.failover.promoters.{config.promoter_of(shard)}")
    promoter: Promoter = module.make(shard, config, access, announce)
    return promoter
