"""What the parent and a worker say to each other.

Every message that carries state carries the whole state and its version, never an edit: it may be sent twice
without harm, and the newest of a kind makes the older ones needless. How they travel is channel.py's. Subscribers alone
is a part of a state, which may be large; it is only sent while the other end reads (`Channel.congested`).

    parent -> worker    Setup (once, first), Settings, Settled, Scripts, Script, ScriptKnown, Topology, FleetHealth,
                        AtWork, Subscribers, SubscribersKnown, Confirmed, Drain
    worker -> parent    Ready, Applied, Awake, Holding, AtWork, Configured, Script, ScriptsFlushed, Subscribers,
                        SubscribersKnown, Complaint

What the parent and the mover say to each other is in moves.py, and travels the same way.

A Script is no state, and one may be lost: whoever lacks a text has the client load it again.
"""

from typing import Any

import msgspec

from pyproxy.config import Config
from pyproxy.moves import MoverMessage, MoveState
from pyproxy.shard_map import Node, Shard


class Setup(msgspec.Struct, frozen=True, tag=True):
    """The first message to a worker, sent once."""

    index: int
    workers: int
    config: Config
    listen: str  # the address as bound, host:port; not the configured one, which may ask for port 0
    version: str
    parent_started: float  # wall clock, s


class GateDirective(msgspec.Struct, frozen=True):
    """Whether the writes of a shard may pass, and where its reads may go. Times are CLOCK_MONOTONIC, s."""

    shard: str
    epoch: int  # of the primary; a connection belongs to the epoch it was opened in
    closed: str = ""  # why its writes may not pass, as clients are told ("is being promoted"); empty: they may
    hold: bool = False  # closed: they may be held, within the bounds; else they are refused at once
    since: float = 0.0  # when the incident began
    expected_at: float = 0.0  # when it is expected to be over; retry_after_ms is what is left of it
    usual_s: float = 1.0  # what a promotion of this shard takes, from the decision to the end of it
    fallback: Node | None = None  # the replica that all workers read from while the primary cannot be used
    readers: tuple[Node, ...] = ()  # replicas that may be read from in peace; empty unless `reads` says so
    moving: bool = False  # closed: some of its slots get another owner; what was begun goes on to the same server


class Topology(msgspec.Struct, frozen=True, tag=True):
    """Who serves what, with the roles of now, and the gates: one for each shard, in the same order."""

    version: int
    shards: list[Shard]
    learned: list[Any]  # rows of protocol.table.learn()
    gates: list[GateDirective] = []
    foreign: list[str] = []  # shards that have keys of slots of others, as these are being moved


class FixedSetting(msgspec.Struct, frozen=True):
    """A setting that the servers of a shard do not let themselves be told."""

    shard: str
    name: str
    value: str | None  # None: not known yet


class Settings(msgspec.Struct, frozen=True, tag=True):
    """What clients have set on all servers by CONFIG SET, and may set."""

    version: int
    told: dict[str, str] = {}  # name -> value, in the one spelling that is compared
    fixed: list[FixedSetting] = []


class Script(msgspec.Struct, frozen=True, tag=True):
    """A text that a client has loaded, after so many flushes."""

    flushes: int
    text: bytes


class Scripts(msgspec.Struct, frozen=True, tag=True):
    """All texts that the parent keeps; see scripts.py."""

    flushes: int
    texts: list[bytes] = []


class ScriptKnown(msgspec.Struct, frozen=True, tag=True):
    """All workers have been told of the Script that this one has sent, or it counts for nothing by now."""

    digest: bytes


class ScriptsFlushed(msgspec.Struct, frozen=True, tag=True):
    """A client has flushed the scripts of all shards."""


class NodeHealth(msgspec.Struct, frozen=True):
    """What the health checks found of one server, in the words of INFO: of the last check that was answered.

    `reachable`, `error`, `silent`, `at`, `unanswered_since`, `busy_until` and `loading` alone are of the last
    check, whatever came of it. -1 stands for a number that nobody has said.
    """

    node: str
    reachable: bool = False  # it answered PING with PONG (or -MISCONF), and INFO
    error: str = "not checked yet"  # why it is not reachable; else empty
    silent: bool = False  # the error is that nothing came in time: it may be slow, or stand still
    at: float = 0.0  # of this check, CLOCK_MONOTONIC, s; 0: there was none
    answered_at: float = 0.0  # of the last one that found it reachable
    unanswered_since: float = 0.0  # when it was asked first what it has not answered; 0: it answered, if with an error
    busy_until: float = 0.0  # so long its silence is put down to a slow command that a worker has sent it; 0: it is not
    role: str = ""  # master, slave
    run_id: str = ""
    replid: str = ""  # its history, and
    replid2: str = ""  # the one that it shares up to `second_offset`
    second_offset: int = -1
    offset: int = -1  # bytes of its history that it has
    link: str = ""  # of a slave to its master: up, down
    lag_s: int = -1  # of a slave: since its last acknowledgement as its master says, else since it heard of its master
    priority: int = -1  # of a slave; 0: must not be promoted
    good_replicas: int = -1  # min_slaves_good_slaves; -1: min-replicas-to-write is not in force, so it is unfenced
    master: str = ""  # of a slave: who it copies, host:port as it says it
    loading: bool = False
    syncing: bool = False
    keys: int = 0
    misconf: str = ""  # the -MISCONF that it answers writes with, as it does PING; else empty
    noreplicas: str = ""  # why it answers writes with -NOREPLICAS; else empty
    oom: str = ""  # why it answers writes with -OOM; else empty
    lost_keys: int = 0  # how many it had before it came back without them, and without having become a slave since

    @property
    def unfenced(self) -> bool:
        """Nothing keeps it from taking writes when its replicas have gone to another primary."""
        return self.answered_at > 0 and self.good_replicas < 0

    @property
    def at_work(self) -> bool:
        """It is silent, and has something to do that takes so long."""
        return self.silent and self.at < self.busy_until

    @property
    def busy(self) -> bool:
        """It lives, and answers nobody: it is at work, or a script runs there longer than its busy-reply-threshold."""
        return self.at_work or self.error.startswith("BUSY ")


class FillRate(msgspec.Struct, frozen=True):
    """How fast the memory that a primary uses grows, as its samples say (filling.py)."""

    bytes_per_day: int
    watched_s: float  # from the first of them to the last


class ShardHealth(msgspec.Struct, frozen=True):
    """What the last health check found of one shard; all but `nodes` is about its primary."""

    name: str
    node: str
    reachable: bool
    error: str  # why it is not reachable; else empty
    info: dict[str, str]  # INFO, flat, as the primary said it; of the last check that succeeded
    keyspace: dict[int, dict[str, int]]  # database -> keys, expires, avg_ttl
    misplaced: str  # not empty: it holds mostly keys of other shards (which, and whose), and must not be used
    at: float = 0.0  # when the answer was there, or known not to come: CLOCK_MONOTONIC, s
    since: float = 0.0  # when it became writable (health.py), or ceased to be; the same clock
    nodes: tuple[NodeHealth, ...] = ()  # the primary of now, then the replicas
    epoch: int = 0
    phase: str = ""  # of its failover, see control/failover/transitions.py
    closed: str = ""  # why writes may not pass; empty: the gate is open
    expected_at: float = 0.0  # closed: when that is expected to be over
    held: int = 0  # requests, of all workers
    stray: str = ""  # not empty: it holds some keys of other shards, one of them and its owner
    alarms: tuple[str, ...] = ()  # what an operator must know of it, beside what follows from the nodes
    fill_rate: FillRate | None = None  # None: too few samples yet, or no clear growth


class FleetHealth(msgspec.Struct, frozen=True, tag=True):
    version: int
    at: float  # when it was sent: CLOCK_MONOTONIC, s, the same in all processes of a host
    shards: list[ShardHealth]
    moves: list[MoveState] = []  # that are under way


class Drain(msgspec.Struct, frozen=True, tag=True):
    """Accept nobody any more, finish what is in flight, close, exit; what is left after `deadline_s` is closed too."""

    deadline_s: float


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The worker has its topology and accepts clients."""

    pid: int


class Applied(msgspec.Struct, frozen=True, tag=True):
    """The topology of this version is in use, none before it is, and no connection to a primary of an older epoch is.

    `busy` names the shards whose gate is closed and which still owe this worker the answer to a write. `unconfirmed`
    names those where subscriptions of its clients are still to be confirmed, and `outdated` those where a request is in
    flight that was sent before they lost slots. Sent once at once, and again, with the same version, when there are
    fewer.
    """

    version: int
    busy: list[str] = []
    unconfirmed: list[str] = []
    outdated: list[str] = []


class Awake(msgspec.Struct, frozen=True, tag=True):
    """The worker did not run for a while (stopped, or its machine was), and writes nothing before it hears what is true
    now: the states, then `Confirmed` with the same `at`."""

    at: float  # CLOCK_MONOTONIC, s


class Confirmed(msgspec.Struct, frozen=True, tag=True):
    """The states that were sent before this are those of now."""

    at: float  # of the Awake that is answered


class Held(msgspec.Struct, frozen=True):
    requests: int
    bytes: int


class Holding(msgspec.Struct, frozen=True, tag=True):
    """What this worker holds: shard -> requests and bytes; shards without any are left out. Sent when it changes."""

    held: dict[str, Held]


class Work(msgspec.Struct, frozen=True):
    """A server is at work on a command of a client's that goes through all its keys, or has very many words.

    Times are CLOCK_MONOTONIC, s.
    """

    shard: str
    since: float  # when it was sent
    until: float  # when it is given up
    taken_at: float = 0.0  # when the server's side had all of it; 0: it is on its way, or nobody knows


class AtWork(msgspec.Struct, frozen=True, tag=True):
    """Servers that have been at work on what was sent to them for a while, by node. Sent when it changes.

    From a worker: each command that it has sent. To a worker: what all others have, as one.
    """

    nodes: dict[str, list[Work]]


class Configured(msgspec.Struct, frozen=True, tag=True):
    """A client has set this; the parent has it set on the servers. The last one of a name counts."""

    name: str
    value: str
    number: int  # how many this worker has sent, with this one


class Settled(msgspec.Struct, frozen=True, tag=True):
    """The primaries that are up have what this worker has sent up to this one, or do not take it."""

    number: int  # of the Configured


class Subscribers(msgspec.Struct, frozen=True, tag=True):
    """How many clients are subscribed to these names now; 0: none any more. It says nothing of other names.

    From a worker: its own clients. To a worker: those of all others together. `number` grows from each to the next.
    """

    channels: dict[bytes, int]
    patterns: dict[bytes, int]
    shard_channels: dict[bytes, int]
    number: int = 0


class SubscribersKnown(msgspec.Struct, frozen=True, tag=True):
    """From a worker: it has heard what was sent up to this number. To a worker: all others have heard what it sent."""

    number: int


class Complaint(msgspec.Struct, frozen=True, tag=True):
    """What a worker holds against a node. The parent decides what it means."""

    shard: str
    node: str
    what: str  # "answered -CODE", for a refusal; else in words

    @property
    def code(self) -> str:
        """Of the refusal that it is about; empty: it is about something else."""
        return self.what.removeprefix("answered -") if self.what.startswith("answered -") else ""


Message = (
    Setup | Settings | Settled | Scripts | Script | ScriptKnown | Topology | FleetHealth | Confirmed | Drain
    | Ready | Applied | Awake | Holding | AtWork | Configured | ScriptsFlushed | Subscribers | SubscribersKnown
    | Complaint
    | MoverMessage
)  # fmt: skip
