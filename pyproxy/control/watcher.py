"""What the parent knows of the shards.

One connection to each primary. Once a second, all in step, each is asked PING and INFO; what they say goes out to
the workers as one FleetLook, the whole state. On each connect a primary is also asked for its COMMAND table, from
which the commands that the proxy may pass are learned (a new Topology where that changes them), and for a sample of
its keys, each of which must belong to its shard: a key of another shard means that two endpoints were swapped, and
that shard must not be used.

    tick      tick + 0.3 s            tick + 1 s
     |-- looks --|-- FleetLook out        |-- looks ...       a worker's copy is at most 2 s old while servers answer

It never decides what follows from what it sees, never sends on its own (it is given callables), and no request
passes here.
"""

import asyncio
import math
import re
import time
from collections.abc import Callable
from typing import Any

import msgspec

from protocol.reply import Error
from pyproxy.control.node import NodeConnection, NodeError
from pyproxy.events import Event, emit
from pyproxy.hashing import slot
from pyproxy.looks import writable
from pyproxy.messages import FleetLook, ShardLook, Topology
from pyproxy.shardmap import Shard, ShardMap

LOOK_EVERY_S = 1.0
SEND_AFTER_S = 0.3  # from the tick: by then those that answer have answered
DEADLINE_S = 1.0  # of a connect, and of the replies to one question
SAMPLE_S = 5.0  # of all samples of a primary
SAMPLES = 20  # per database

Learn = Callable[[list[Any]], list[Any]]
"""protocol.table.learn: the COMMAND replies of the primaries -> the rows of the commands that all of them know."""


class ShardWatch:
    """One primary, seen from here. `look` is what was seen last."""

    def __init__(self, shard: Shard, shard_map: ShardMap, on_commands: Callable[[], None]) -> None:
        self.shard = shard
        now = time.monotonic()
        self.look = ShardLook(shard.name, str(shard.primary), False, "not looked at yet", {}, {}, "", now, now)
        self.commands: list[Any] | None = None  # the COMMAND reply; None until it answered once
        self._shard_map = shard_map
        self._on_commands = on_commands
        self._connection: NodeConnection | None = None
        self._settled = False  # this connection was asked for its commands and its keys
        self._stray: tuple[int, bytes] | None = None  # database and key that make it misplaced
        self._looked = False

    async def look_once(self) -> None:
        """Ask the primary, within deadlines, connecting first where needed; `look` then says what came of it."""
        try:
            if self._connection is None:
                self._settled = False
                self._connection = await NodeConnection.open(self.shard.primary, DEADLINE_S)
            await self._ask(self._connection)
        except NodeError as exc:
            self.close()
            self._enter(reachable=False, error=str(exc))

    async def _ask(self, connection: NodeConnection) -> None:
        pong, info = await connection.ask((b"PING",), (b"INFO", b"everything"), deadline_s=DEADLINE_S)
        if isinstance(pong, Error) or not isinstance(info, bytes):  # LOADING, NOAUTH ...: it may be better next time
            refusal = pong if isinstance(pong, Error) else info
            line = refusal.line if isinstance(refusal, Error) else b"its INFO is no text"
            self._enter(reachable=False, error=_text(line))
            return
        fields, keyspace = parse_info(_text(info))
        if not self._settled or (self._stray is not None and not await self._still_there(connection, *self._stray)):
            self._stray = await self._sample(connection, list(keyspace))
        if not self._settled:
            (commands,) = await connection.ask((b"COMMAND",), deadline_s=DEADLINE_S)
            self._settled = True
            if isinstance(commands, list) and commands != self.commands:
                self.commands = commands
                self._on_commands()
        self._enter(reachable=True, error="", info=fields, keyspace=keyspace, misplaced=self._misplacement())

    async def _sample(self, connection: NodeConnection, databases: list[int]) -> tuple[int, bytes] | None:
        """The first key found that does not belong here, with its database; None if the sampled ones do."""
        questions = ((b"RANDOMKEY",),) * SAMPLES
        try:
            async with asyncio.timeout(SAMPLE_S):
                for database in databases:
                    replies = await connection.ask((b"SELECT", b"%d" % database), *questions, deadline_s=DEADLINE_S)
                    for key in replies[1:]:
                        if isinstance(key, bytes) and not self.shard.owns(slot(key)):
                            return database, key
        except TimeoutError:
            raise NodeError(f"no sample of its keys within {SAMPLE_S:g} s") from None
        return None

    async def _still_there(self, connection: NodeConnection, database: int, key: bytes) -> bool:
        """Asked of the very key: a new sample could miss it, and the shard would be used and refused in turns."""
        replies = await connection.ask((b"SELECT", b"%d" % database), (b"EXISTS", key), deadline_s=DEADLINE_S)
        return replies[1] == 1

    def _misplacement(self) -> str:
        if self._stray is None:
            return ""
        database, key = self._stray
        owner = self._shard_map.shard_of(key)
        return (
            f"shard {self.shard.name} ({self.shard.primary}) holds a key of slot {slot(key)} in database {database}, "
            f"which belongs to shard {owner.name} ({owner.primary})"
        )

    def _enter(self, reachable: bool, error: str, **seen: Any) -> None:
        """Take what was seen as the new look, and say what changed."""
        before, looked, now = self.look, self._looked, time.monotonic()
        look = ShardLook(
            before.name,
            before.node,
            reachable,
            error,
            seen.get("info", before.info),
            seen.get("keyspace", before.keyspace),
            seen.get("misplaced", before.misplaced),
            now,
            before.since,
        )
        self.look = look if writable(look) == writable(before) else msgspec.structs.replace(look, since=now)
        self._looked = True
        where = {"shard": before.name, "node": before.node}
        if not reachable and (before.reachable or not looked):
            emit(Event.SHARD_DOWN, **where, error=error)
        if reachable and looked and not before.reachable:
            emit(Event.SHARD_UP, **where)
        if before.info and before.info.get("run_id") != self.look.info.get("run_id"):
            emit(Event.REBOOT, **where, run_id=self.look.info.get("run_id", ""))
        if self.look.misplaced and not before.misplaced:
            emit(Event.SHARD_MISPLACED, **where, reason=self.look.misplaced)
        if before.misplaced and not self.look.misplaced:
            emit(Event.SHARD_PLACED, **where)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __repr__(self) -> str:
        return f"<ShardWatch {self.shard.name} {'up' if self.look.reachable else self.look.error}>"


class Watcher:
    """All shards. `topology` and `fleet_look` are the states that a new worker needs."""

    def __init__(
        self,
        shard_map: ShardMap,
        learn: Learn,
        on_topology: Callable[[Topology], None],
        on_look: Callable[[FleetLook], None],
    ) -> None:
        self.topology = Topology(shard_map.version, list(shard_map.shards), [])
        self._learn = learn
        self._on_topology = on_topology
        self._on_look = on_look
        self._looks = 0
        self._watches = [ShardWatch(shard, shard_map, self._relearn) for shard in shard_map.shards]

    @property
    def fleet_look(self) -> FleetLook:
        return FleetLook(self._looks, time.monotonic(), [watch.look for watch in self._watches])

    @property
    def misplaced(self) -> list[str]:
        """For each shard whose primary holds keys of another: which, and whose."""
        return [watch.look.misplaced for watch in self._watches if watch.look.misplaced]

    async def look(self) -> None:
        """Look at all primaries once, at the same time; returns within the deadlines, whatever they do."""
        async with asyncio.TaskGroup() as group:
            for watch in self._watches:
                group.create_task(watch.look_once(), name=f"look at {watch.shard.name}")

    async def run(self) -> None:
        """Look and tell, until cancelled. A primary that keeps us waiting delays no other's look, nor the telling."""
        try:
            async with asyncio.TaskGroup() as group:
                for watch in self._watches:
                    group.create_task(self._keep_looking(watch), name=f"watch {watch.shard.name}")
                while True:
                    await _next_tick(SEND_AFTER_S)
                    self._looks += 1
                    self._on_look(self.fleet_look)
        finally:
            self.close()

    async def _keep_looking(self, watch: ShardWatch) -> None:
        while True:
            await _next_tick()
            await watch.look_once()

    def _relearn(self) -> None:
        """A primary's commands changed: what follows from all that answered goes out if it is something else."""
        learned = self._learn([watch.commands for watch in self._watches if watch.commands is not None])
        if learned != self.topology.learned:
            self.topology = Topology(self.topology.version + 1, self.topology.shards, learned)
            emit(Event.TOPOLOGY, version=self.topology.version, learned=len(learned))
            self._on_topology(self.topology)

    def close(self) -> None:
        for watch in self._watches:
            watch.close()

    def __repr__(self) -> str:
        up = sum(watch.look.reachable for watch in self._watches)
        return f"<Watcher {up} of {len(self._watches)} shards up>"


def parse_info(text: str) -> tuple[dict[str, str], dict[int, dict[str, int]]]:
    """INFO's text as its fields, flat, and its keyspace by database: {0: {"keys": 3, "expires": 0, "avg_ttl": 0}}."""
    fields: dict[str, str] = {}
    keyspace: dict[int, dict[str, int]] = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if not colon or line.startswith("#"):
            continue
        if re.fullmatch("db[0-9]{1,9}", name):
            numbers = re.findall("([a-z_]+)=([0-9]{1,18})(?![0-9])", value)  # 18 digits: what any message carries
            keyspace[int(name[2:])] = {key: int(number) for key, number in numbers}
        else:
            fields[name] = value
    return fields, keyspace


async def _next_tick(after_s: float = 0.0) -> None:
    """Sleep until the next whole second of the loop's clock, and `after_s`: all that wait by it are in step."""
    now = asyncio.get_running_loop().time()
    await asyncio.sleep((math.floor((now - after_s) / LOOK_EVERY_S) + 1) * LOOK_EVERY_S + after_s - now)


def _text(said: bytes) -> str:
    """Text of a server, which may be anything: what is not UTF-8 is replaced, so that it can be sent on."""
    return said.decode(errors="replace")
