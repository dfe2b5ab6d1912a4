"""What the parent and a worker say to each other.

Every message that carries state carries the whole state and its version, never an edit: it may be sent twice
without harm, and the newest of a kind makes the older ones needless. How they travel is channel.py's.

    parent -> worker    Setup (once, first), Topology, FleetLook, Drain
    worker -> parent    Ready, Applied, Complaint
"""

from typing import Any

import msgspec

from pyproxy.config import Config
from pyproxy.shardmap import Shard


class Setup(msgspec.Struct, frozen=True, tag=True):
    """The first message to a worker, sent once."""

    index: int
    workers: int
    config: Config
    listen: str  # the address as bound, host:port; not the configured one, which may ask for port 0
    version: str
    parent_started: float  # wall clock, s


class Topology(msgspec.Struct, frozen=True, tag=True):
    version: int
    shards: list[Shard]
    learned: list[Any]  # rows of protocol.table.learn()


class ShardLook(msgspec.Struct, frozen=True):
    """What the watcher saw of one shard's primary when it looked last."""

    name: str
    node: str
    reachable: bool
    error: str  # why it is not reachable; else empty
    info: dict[str, str]  # INFO, flat, as the primary said it; of the last look that succeeded
    keyspace: dict[int, dict[str, int]]  # database -> keys, expires, avg_ttl
    misplaced: str  # not empty: it holds keys of another shard (which, and whose), and must not be used
    at: float = 0.0  # when the answer was there, or known not to come: CLOCK_MONOTONIC, s
    since: float = 0.0  # when it became usable (reachable and not misplaced), or ceased to be; the same clock


class FleetLook(msgspec.Struct, frozen=True, tag=True):
    version: int
    at: float  # when it was sent: CLOCK_MONOTONIC, s, the same in all processes of a host
    shards: list[ShardLook]


class Drain(msgspec.Struct, frozen=True, tag=True):
    """Accept nobody any more, finish what is out, close, exit; what is left after `deadline_s` is closed too."""

    deadline_s: float


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The worker has its topology and accepts clients."""

    pid: int


class Applied(msgspec.Struct, frozen=True, tag=True):
    """The topology of this version is in use; none before it is."""

    version: int


class Complaint(msgspec.Struct, frozen=True, tag=True):
    """What a worker holds against a node. The parent decides what it means."""

    shard: str
    node: str
    what: str


Message = Setup | Topology | FleetLook | Drain | Ready | Applied | Complaint
