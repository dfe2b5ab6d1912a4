"""What may happen to a shard, and what is to be done then: what machine.py and the coordinator tell each other.

Values only. Events go into a Machine, effects come out; `PersistentState`, `PromoterCapabilities` and `ClosedGate` are
what it begins with and shows.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from pyproxy.control.failover.promoters import Announcement
from pyproxy.events import Event
from pyproxy.messages import NodeHealth
from pyproxy.shard_map import Node


class Phase(enum.Enum):
    HEALTHY = "healthy"
    SUSPECT = "suspect"
    WAITING = "waiting"
    PROMOTING = "promoting"
    VERIFYING = "verifying"
    SWITCHING = "switching"
    HANDING_OVER = "handing-over"
    PAUSED = "paused"
    READONLY = "readonly"
    DOWN = "down"


# --- events: what may happen ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HealthChecked:
    """The last health checks of all servers of the shard, whatever their role."""

    nodes: Mapping[Node, NodeHealth]


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Announced:
    announcement: Announcement


@dataclass(frozen=True, slots=True)
class Promoted:
    """The promoter has done what was asked of it."""


@dataclass(frozen=True, slots=True)
class PromotionRefused:
    why: str
    again: bool


@dataclass(frozen=True, slots=True)
class Switched:
    """Every worker is at the new primary, and none has a connection to the old one."""


@dataclass(frozen=True, slots=True)
class Quiesced:
    """Every worker holds the writes of the shard, and none is in flight."""


@dataclass(frozen=True, slots=True)
class QuiesceFailed:
    why: str


@dataclass(frozen=True, slots=True)
class PromoteAsked:
    """An operator asks for a promotion, and may name the server."""

    to: Node | None


@dataclass(frozen=True, slots=True)
class PauseAsked:
    pass


@dataclass(frozen=True, slots=True)
class ResumeAsked:
    pass


FailoverEvent = (
    HealthChecked | Ticked | Announced | Promoted | PromotionRefused | Switched | Quiesced | QuiesceFailed
    | PromoteAsked | PauseAsked | ResumeAsked
)  # fmt: skip


# --- effects: what is to be done --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Promote:
    """Ask the promoter; answered by Promoted or PromotionRefused."""

    candidate: Node


@dataclass(frozen=True, slots=True)
class Quiesce:
    """See that all workers hold and have nothing in flight; answered by Quiesced or QuiesceFailed."""


@dataclass(frozen=True, slots=True)
class HandOver:
    """Ask the promoter; answered by Promoted or PromotionRefused. `named`: an operator wants this one and no other."""

    candidate: Node
    named: bool


@dataclass(frozen=True, slots=True)
class Switch:
    """Take all workers to this primary and epoch; answered by Switched."""

    node: Node
    epoch: int


@dataclass(frozen=True, slots=True)
class Reconfigure:
    """Have these made replicas of the primary."""

    not_following: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Log:
    event: Event
    fields: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Answer:
    """To the operator who asked."""

    done: bool
    text: str


Effect = Promote | Quiesce | HandOver | Switch | Reconfigure | Log | Answer


class PersistentState(msgspec.Struct, frozen=True):
    """What outlives a restart of the proxy: who is primary, by which epoch, of which history."""

    epoch: int
    primary: Node
    lineage: str = ""  # master_replid
    promoted_at: float = 0.0  # wall clock, s; 0: never by us


@dataclass(frozen=True, slots=True)
class ClosedGate:
    """A closed gate, as clients see it."""

    why: str
    hold: bool
    since: float
    expected_at: float


@dataclass(frozen=True, slots=True)
class PromoterCapabilities:
    """What the promoter of the shard can do; its attributes of the same names."""

    acts: bool = False
    hands_over: bool = False
    is_authority: bool = False
    usual_s: float = 1.0
    watches_only: bool = False  # `none`: no gate is closed but for a primary that others have made
