"""What may happen to a move, and what is to be done then: what machine.py and whoever runs it tell each other.

Values only. Events go into a MoveMachine, effects come out; `Entry` is what outlives a restart, `Hold` what it shows.
"""

import enum
from dataclasses import dataclass

import msgspec

from pyproxy.control.failover.transitions import Answer, Log, PauseAsked, ResumeAsked, Ticked
from pyproxy.moves import Move, MoveProgress, Task


class Phase(enum.Enum):
    QUEUED = "queued"
    CHECKING = "checking"
    COPYING = "copying"
    FOLLOWING = "following"
    READY = "ready"
    HOLDING = "holding"
    SYNCING = "syncing"
    WRITING = "writing"
    SWITCHING = "switching"
    DRAINING = "draining"
    CLEARING = "clearing"
    UNDOING = "undoing"
    DONE = "done"
    ABORTED = "aborted"
    FAILED = "failed"


HANDING_OVER = (Phase.HOLDING, Phase.SYNCING, Phase.WRITING, Phase.SWITCHING)
"""The gate of the source is closed."""

HANDED_OVER = (Phase.SWITCHING, Phase.DRAINING, Phase.CLEARING, Phase.DONE)
"""The map says that the destination owns the slots."""

OVER = (Phase.DONE, Phase.ABORTED, Phase.FAILED)


class Totals(msgspec.Struct, frozen=True):
    """What a move has taken so far, before the last restart of the proxy too."""

    keys: int = 0  # copied, each counted every time
    bytes: int = 0  # of DUMP
    restarts: int = 0  # how often the copy began anew
    attempts: int = 0  # to hand over
    longest_hold_s: float = 0.0


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One move in the journal."""

    move: Move
    phase: Phase = Phase.QUEUED
    why: str = ""  # FAILED: the reasons; else the cause of the phase
    paused: bool = False
    replace: bool = False  # as an operator said for the check, see moves.Order
    accept_eviction: bool = False
    totals: Totals = Totals()
    times: dict[str, float] = {}  # by the name of a phase: when it was written last (wall clock, s)


@dataclass(frozen=True, slots=True)
class Hold:
    """One time in which the writes of the source were held."""

    at: float  # CLOCK_MONOTONIC, s
    lasted_s: float
    given_up: str  # why; empty: the slots were handed over


# --- events: what may happen ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started:
    """The first event of each machine: the move begins, or goes on after a restart of the proxy."""


@dataclass(frozen=True, slots=True)
class ProgressMade:
    progress: MoveProgress


@dataclass(frozen=True, slots=True)
class Checked:
    refusals: tuple[str, ...]  # none: it may begin


@dataclass(frozen=True, slots=True)
class TurnGiven:
    """Now, and no other move at the same time. Both shards are healthy."""


@dataclass(frozen=True, slots=True)
class Quiesced:
    """Every worker holds, and no write to the source is in flight."""

    attempt: int  # of Quiesce


@dataclass(frozen=True, slots=True)
class QuiesceFailed:
    attempt: int
    why: str


@dataclass(frozen=True, slots=True)
class Synced:
    token: int  # of Order.sync


@dataclass(frozen=True, slots=True)
class MapWritten:
    """The store says that the destination owns the slots, and will say so after any crash."""


@dataclass(frozen=True, slots=True)
class MapNotWritten:
    """The store says that the source owns the slots, and will go on to say so. What is not known is no event."""

    why: str


@dataclass(frozen=True, slots=True)
class Switched:
    """Every worker has the new map."""


@dataclass(frozen=True, slots=True)
class Drained:
    """No worker owes an answer of the source to a request from before the switch."""


@dataclass(frozen=True, slots=True)
class Cleared:
    """None of the keys is left at the source."""


@dataclass(frozen=True, slots=True)
class Undone:
    """None of the keys is left at the destination."""


@dataclass(frozen=True, slots=True)
class AbortAsked:
    pass


@dataclass(frozen=True, slots=True)
class SourceUnwell:
    """The source has left `healthy`, or its epoch has changed."""

    why: str


@dataclass(frozen=True, slots=True)
class DestinationUnwell:
    why: str


@dataclass(frozen=True, slots=True)
class MoverLost:
    """The process that copies has ended; there is another one, or there will be."""


MoveEvent = (
    Started | ProgressMade | Checked | TurnGiven | Quiesced | QuiesceFailed | Synced | MapWritten | MapNotWritten
    | Switched | Drained | Cleared | Undone | Ticked | PauseAsked | ResumeAsked | AbortAsked | SourceUnwell
    | DestinationUnwell | MoverLost
)  # fmt: skip


def noticed(progress: MoveProgress) -> list[MoveEvent]:
    """What a message of the mover says of one move, as events in their order."""
    events: list[MoveEvent] = [ProgressMade(progress)]
    match progress:
        case MoveProgress(task=Task.CHECK, checked=True, refused=refused):
            events.append(Checked(tuple(refused)))
        case MoveProgress(task=Task.COPY, synced=synced) if synced:
            events.append(Synced(synced))
        case MoveProgress(task=Task.CLEAR, done=True):
            events.append(Cleared())
        case MoveProgress(task=Task.UNDO, done=True):
            events.append(Undone())
    return events


# --- effects: what is to be done --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Order:
    """This is from now on what the mover is to do for this move, at the primaries and epochs of now; None: nothing."""

    task: Task | None
    sync: int = 0


@dataclass(frozen=True, slots=True)
class HoldWrites:
    """Close the gate of this shard, with hold."""

    shard: str


@dataclass(frozen=True, slots=True)
class ReleaseWrites:
    """Open it again, as far as it is this move that holds it closed."""

    shard: str


@dataclass(frozen=True, slots=True)
class Quiesce:
    """See that all workers hold the writes of the source and owe no answer to one. Answered by Quiesced or
    QuiesceFailed."""

    attempt: int


@dataclass(frozen=True, slots=True)
class WriteMap:
    """Write the new map and this entry to the store, both or none. Answered, when it is known which, by MapWritten or
    MapNotWritten."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Switch:
    """Send all workers the new map, behind the gates that are closed, and end those that are late; answered by
    Switched."""


@dataclass(frozen=True, slots=True)
class AwaitDrained:
    """See that no worker owes an answer of the source to a request from before the switch; answered by Drained."""


@dataclass(frozen=True, slots=True)
class Record:
    """Have the store keep this entry. The effects after it are carried out when it does, and not before."""

    entry: Entry


MoveEffect = (
    Order | HoldWrites | ReleaseWrites | Quiesce | WriteMap | Switch | AwaitDrained | Record | Log | Answer
)  # fmt: skip
