"""Moves of slots from one shard to another: what the parent and the mover say to each other.

The mover is the process that copies keys (pyproxy/mover/). The parent decides (pyproxy/control/growth/). Both messages
are whole states, so they may be sent twice, and the newest makes the older ones needless.

    parent -> mover    MoverSetup (once, first), Orders
    mover -> parent    Progress
"""

import enum

import msgspec

from pyproxy.config import Config
from pyproxy.shard_map import Node, SlotRange


class Move(msgspec.Struct, frozen=True):
    """These slots, with all their keys, from one shard to another. `id` is unique in the journal."""

    id: str
    source: str
    destination: str
    slots: tuple[SlotRange, ...]


class Task(enum.Enum):
    """What the mover does for a move."""

    CHECK = "check"  # may the destination take these slots? Nothing is changed
    COPY = "copy"  # copies all keys, then what changes, until it is told otherwise
    CLEAR = "clear"  # the destination owns the slots: deletes the keys at the source
    UNDO = "undo"  # the move is aborted: deletes what was copied at the destination


class Order(msgspec.Struct, frozen=True):
    """One move that is under way. With another node or epoch than before, its task begins anew."""

    move: Move
    task: Task
    source: Node  # the primaries of now
    source_epoch: int
    destination: Node
    destination_epoch: int
    # COPY: not 0: when all that changed before this came is copied, and the destination has answered it all, nothing
    # more is sent to it; then answer with the same `synced`. With sync = 0 it is followed again.
    sync: int = 0
    replace: bool = False  # CHECK: the destination may have keys in these slots
    accept_eviction: bool = False  # CHECK: the destination may have another policy than noeviction


class Orders(msgspec.Struct, frozen=True, tag=True):
    """All moves that are under way."""

    version: int
    orders: list[Order]
    bytes_per_s: int = 0  # for all of them together; 0: as fast as the servers bear
    paused: bool = False  # nothing is copied or deleted; the changes are followed


class MoverSetup(msgspec.Struct, frozen=True, tag=True):
    """The first message to the mover."""

    config: Config
    version: str


class MoveProgress(msgspec.Struct, frozen=True):
    """How far the task of one move is. It is of the task, nodes and epochs of the order of version `of`."""

    id: str
    task: Task
    of: int
    checked: bool = False  # CHECK: it is over
    refused: list[str] = []  # CHECK: why the move must not begin; each with the way out
    keys: int = 0  # in these slots at the source, as far as is known
    keys_done: int = 0  # copied or deleted, each counted every time
    bytes_done: int = 0  # of DUMP; COPY only
    scanned: bool = False  # COPY: every key that was there at the beginning has been copied once
    dirty: int = 0  # COPY: names that changed since they were copied
    behind_s: float = 0.0  # COPY: for how long the oldest of them has waited
    untold: int = 0  # COPY: keys that change without a word of the source: streams with groups; each sync copies them
    synced: int = 0  # COPY: the last Order.sync that is fulfilled
    done: bool = False  # CLEAR, UNDO: nothing is left
    strays: int = 0  # CLEAR: changes of moved keys at the source that were not the mover's
    stray: str = ""  # one of them
    restarts: int = 0  # COPY: how often the change feed was lost, and the copy began anew
    error: str = ""  # what keeps it from going on; it tries again


class Progress(msgspec.Struct, frozen=True, tag=True):
    """Sent whenever something has changed, but at most every 20 ms; at once for `synced`, `done` and `checked`."""

    moves: list[MoveProgress]


class MoveState(msgspec.Struct, frozen=True):
    """How far one move is, for the workers' INFO and over HTTP."""

    id: str
    source: str
    destination: str
    phase: str  # of its machine
    share: float  # see `share`
    paused: bool
    longest_hold_ms: float  # for how long writes were held at most, so far


COUNTED = ("copying", "clearing", "undoing")
"""Phases that go through all keys of the slots."""

BEFORE_ANY = ("queued", "checking", "failed", "aborted")
"""Phases in which no key is copied, or none any more."""


def share(phase: str, keys: int, done: int) -> float:
    """Of the keys of the slots, how many are copied, from 0 to 1; while they are cleared or the move is undone, how
    many are deleted. Keys that are copied twice count twice, so it may be 1 too early."""
    if phase in COUNTED:
        return min(1.0, done / keys) if keys else 0.0
    return 0.0 if phase in BEFORE_ANY else 1.0


MoverMessage = MoverSetup | Orders | Progress
