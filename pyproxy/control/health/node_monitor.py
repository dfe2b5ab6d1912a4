"""One server, seen through one connection.

A check is PING and INFO within a deadline; what it saw is a NodeHealth (detector.py says what an answer means), and
what changed is logged. A full check asks for all of INFO; while nothing happens, light checks ask for its replication
section alone.

A primary is also asked, on each connect, for its COMMAND table and for a sample of its keys, most of which must belong
to its shard, or two endpoints were swapped (key_sample.py).

Nothing is ever written to a server.
"""

import itertools
import time
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from protocol import table
from protocol.reply import Error, Value
from protocol.request import Request
from pyproxy.access import Access
from pyproxy.control.health import detector, key_sample
from pyproxy.control.health.busy import BusyServers
from pyproxy.control.health.node_connection import INFO_LIMIT, NodeConnection, NodeError
from pyproxy.deadline import within
from pyproxy.events import Event, emit
from pyproxy.messages import NodeHealth
from pyproxy.shard_map import Node, Shard, ShardMap

DEADLINE_S = 1.0  # of a connect, and of the replies to one question
SAMPLE_S = 5.0  # of all samples of a primary
SAMPLES = 20  # per database
FULL_CHECK_EVERY_S = 10.0  # at most between two checks with all of INFO
LIGHT_CHECK = Request((b"PING",)).frame + Request((b"INFO", b"replication")).frame
PING_BYTES = 14  # of PING, which a primary sends its replicas now and then; the shortest write is longer
MOST_LINES = 10  # about the commands of one server
COMMANDS_LIMIT = 2 << 20  # bytes of a reply to COMMAND; Valkey 9's is 250 KB
MOST_COMMANDS = 10_000
"""More than these are not looked at: each costs some microseconds, and meanwhile no other shard is."""


class NodeMonitor:
    """A server that the configuration gives this role (master or slave, as INFO says it).

    `health` is what was seen last. `info` names the sections to ask for; none: the default ones.
    """

    def __init__(self, shard: str, node: Node, access: Access, work: BusyServers, configured: str, info: bytes) -> None:
        self.node = node
        self._access = access
        self._work = work
        self.health = NodeHealth(str(node))
        self.info: dict[str, str] = {}  # of the last check that was answered
        self.keyspace: dict[int, dict[str, int]] = {}
        self._shard = shard
        self._configured = configured
        self.full_checks = 0  # checks with all of INFO
        self.changes = 0  # of what was seen, beside numbers that change by themselves
        self._full_info = (b"INFO", info) if info else (b"INFO",)
        self._full_check_at = 0.0
        self._full_check_due = True  # the next check asks for all of INFO
        self._replication: frozenset[str] = frozenset()  # the fields of this section
        self._lines: list[bytes] = []  # and what it said last by itself, since all was asked for
        self._connection: NodeConnection | None = None
        self._asked_at = 0.0  # the last question, if only whether it lets us in

    def require_full_check(self) -> None:
        """Something happens at this server, or somebody complains of it: the next check asks for all of INFO."""
        self._full_check_due = True

    async def check_once(self, replicas: Iterable[NodeHealth] = ()) -> None:
        """Ask the server, within deadlines, connecting first where needed; `health` is then what came of it.

        `replicas` are the last checks of those that copy it: they may hold what it has lost.
        """
        kept = self._connection is not None
        try:
            try:
                now = await self._try(replicas)
            except NodeError as exc:
                self.close()
                if not kept or exc.silent:
                    raise
                # It may have closed this connection for reasons of its own: CLIENT KILL, its `timeout`.
                now = await self._try(replicas)
        except NodeError as exc:
            now = self._failed(exc)
        self._take(now)

    def _failed(self, exc: NodeError) -> NodeHealth:
        self.close()
        at = time.monotonic()
        # if it took longer than the deadline this process did not run, and nobody listened
        asked_at = max(self._asked_at, at - DEADLINE_S)
        return detector.failed(self.health, asked_at, at, str(exc), exc.silent, self._work.of(str(self.node)))

    def _take(self, now: NodeHealth) -> None:
        """What came of a check."""
        if not now.unanswered_since:  # an error is an answer too
            self._work.server_answered(str(self.node), self._asked_at)
        before, self.health = self.health, now
        if before.at_work == now.at_work and detector.timeless(before) == detector.timeless(now):
            return
        self.changes += 1
        for event, fields in detector.changes(before, now, self._configured):
            emit(event, shard=self._shard, node=self.node, **fields)

    def begin_light_check(self, on_checked: Callable[[bool], None]) -> Callable[[], None] | None:
        """Check a server that was healthy and of which nothing is new, without a task that waits for the answer.

        `on_checked` is called once: `health` is then what came of it; or False, and `check_once` is to be called, as it
        says something else or has ended the connection. None: only `check_once` can check it now. Else to be called
        when DEADLINE_S have passed.
        """
        connection = self._connection
        if (
            connection is None
            or not connection.is_idle
            or not self.health.reachable
            or self._is_unsettled
            or self._needs_full_check
        ):
            return None

        def on_outcome(outcome: list[bytes] | NodeError) -> None:
            if isinstance(outcome, NodeError):
                self.close()
                now = self._failed(outcome) if outcome.silent else None
            elif (now := self._light_health(*outcome)) is None:
                self._full_check_due = True
            if now is not None:
                self._take(now)
            on_checked(now is not None)

        self._asked_at = time.monotonic()
        question = connection.begin(LIGHT_CHECK, 2, on_outcome, INFO_LIMIT)
        return lambda: connection.give_up(question, DEADLINE_S)

    @property
    def _needs_full_check(self) -> bool:
        return self._full_check_due or time.monotonic() - self._full_check_at >= FULL_CHECK_EVERY_S

    async def _try(self, replicas: Iterable[NodeHealth]) -> NodeHealth:
        if self._connection is None:
            self._asked_at = time.monotonic()
            self._connection = await NodeConnection.open(self.node, self._access, DEADLINE_S)
            self._full_check_due = True
            self._connected()
        return await self._ask(self._connection, list(replicas))

    async def _ask(self, connection: NodeConnection, replicas: list[NodeHealth]) -> NodeHealth:
        is_full, self._full_check_due = self._needs_full_check, False  # what begins from now on is for the next check
        if not is_full and (health := await self._check_lightly(connection)):
            return health
        pong, info = await self._put(connection, (b"PING",), self._full_info)
        at = time.monotonic()
        # With MISCONF a server refuses writes, and PING so that it is noticed (server.c, processCommand), but no reads.
        misconf = _text(pong.line) if isinstance(pong, Error) and pong.code == b"MISCONF" else ""
        refusal = info if isinstance(info, Error) else pong if isinstance(pong, Error) and not misconf else None
        if refusal is not None:  # LOADING, NOAUTH ...: it may be better next time
            return detector.refused(self.health, at, _text(refusal.line))
        if not isinstance(info, bytes):
            raise NodeError("not a redis server: its INFO is no text")
        self._take_full_info(_text(info), at)
        await self._settle(connection)
        now = detector.answered(self.health, at, self.info, self.keyspace, misconf)
        self._full_check_due = self._full_check_due or detector.has_activity(self.health, now, PING_BYTES)
        return msgspec.structs.replace(
            now, lost_keys=detector.lost_keys(self.health, now, replicas), **self._refusing(at)
        )

    async def _check_lightly(self, connection: NodeConnection) -> NodeHealth | None:
        """The health, where the replication is as it was: then so is the rest, for a while. Else None."""
        self._asked_at = time.monotonic()
        now = self._light_health(*await connection.frames(LIGHT_CHECK, 2, deadline_s=DEADLINE_S, most=INFO_LIMIT))
        if now is not None and self._is_unsettled:
            await self._settle(connection)
            now = msgspec.structs.replace(now, **self._refusing(now.at))
        return now

    def _light_health(self, pong: bytes, info: bytes) -> NodeHealth | None:
        """The health after these answers to LIGHT_CHECK; None: the rest may have changed."""
        at, before = time.monotonic(), self.health
        if not before.reachable or pong != (b"-%b\r\n" % before.misconf.encode() if before.misconf else b"+PONG\r\n"):
            return None
        fields = self._other_fields(info)
        if fields is None:
            return None
        now = msgspec.structs.replace(before, at=at, answered_at=at)
        if fields:
            merged = {**self.info, **fields}
            now = detector.answered(before, at, merged, self.keyspace, before.misconf)
            if detector.has_activity(before, now, PING_BYTES):
                return None
            self.info = merged
            now = msgspec.structs.replace(now, lost_keys=before.lost_keys, noreplicas=before.noreplicas, oom=before.oom)
        return now

    def _other_fields(self, frame: bytes) -> dict[str, str] | None:
        """Of INFO replication those fields that are not as they were; None: there are other fields."""
        if not frame.startswith(b"$") or not self._replication:
            return None
        lines = frame.split(b"\r\n")[1:]
        known, self._lines = self._lines, lines
        if len(lines) == len(known):
            lines = [line for line, before in zip(lines, known, strict=True) if line != before]
            fields = detector.parse_info(_text(b"\r\n".join(lines)))[0] if lines else {}
            return fields if fields.keys() <= self._replication else None
        fields = detector.parse_info(_text(b"\r\n".join(lines)))[0]
        return fields if fields.keys() == self._replication else None

    def _take_full_info(self, text: str, at: float) -> None:
        self.info, self.keyspace = detector.parse_info(text)
        section = text.partition("# Replication\r\n")[2].partition("\r\n#")[0]
        self._replication = frozenset(detector.parse_info(section)[0])
        self._lines = []
        self.full_checks, self._full_check_at = self.full_checks + 1, at

    async def _put(self, connection: NodeConnection, *questions: tuple[bytes, ...]) -> list[Value]:
        """The answers. Raises NodeError."""
        self._asked_at = time.monotonic()
        most = {b"INFO": INFO_LIMIT, b"COMMAND": COMMANDS_LIMIT}.get(questions[-1][0], 0)
        return await connection.ask(*questions, deadline_s=DEADLINE_S, most=most)

    def take_over(self, other: "NodeMonitor") -> None:
        """Go on from what the other one has seen of the same server."""
        self.health = other.health
        self.changes = other.changes + 1
        other.close()

    def _connected(self) -> None:
        """The connection is new."""

    @property
    def _is_unsettled(self) -> bool:
        """Whether there is more to ask, or something that passes with time."""
        return False

    async def _settle(self, connection: NodeConnection) -> None:
        """Ask what else there is to ask of this server. Raises NodeError."""

    def _refusing(self, at: float) -> dict[str, str]:
        """Why it refuses writes, by the field of NodeHealth; a replica refuses them anyway."""
        return {}

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.node} {'up' if self.health.reachable else self.health.error}>"


class PrimaryMonitor(NodeMonitor):
    """The primary of a shard. `accepts`: its keys are those of this shard, whatever their slots. `is_moving`: keys are
    on their way to it or from it, so that they are not judged."""

    def __init__(
        self,
        shard: Shard,
        shard_map: ShardMap,
        access: Access,
        work: BusyServers,
        on_commands: Callable[[], None],
        accepts: bool = False,
        is_moving: bool = False,
    ) -> None:
        # With every section: what the primaries say is what the proxy's own INFO is made of.
        super().__init__(shard.name, shard.primary, access, work, "master", b"everything")
        self.commands: list[Any] | None = None  # the COMMAND reply; None until it answered once
        self.misplaced = ""  # its keys are mostly those of other shards: which, and whose
        self.stray = ""  # some are
        self._of = shard
        self._shard_map = shard_map
        self._on_commands = on_commands
        self._accepts = accepts
        self._is_moving = is_moving
        self._settled = False  # this connection was asked for its commands and its keys
        self._sample = key_sample.Sample(0, ())
        self._trusted = ""  # the process (run_id) whose keys were those of this shard: it is no other shard's by now
        self._lags: dict[str, int] = {}
        self._lags_of: dict[str, str] = {}
        self._refused: dict[str, detector.Refused] = {}  # code -> when a worker was refused with it last

    def follow(self, shard: Shard, shard_map: ShardMap, is_moving: bool) -> None:
        """Slots have moved: its keys are judged by this map from now on, when it has been asked for some again."""
        self._of, self._shard_map, self._is_moving = shard, shard_map, is_moving
        self._sample = key_sample.Sample(0, ())
        self._settled = False
        self._judge_keys()

    def refused(self, code: str) -> None:
        """A worker was refused a write by it, with this code."""
        self._refused[code] = detector.Refused(time.monotonic())
        self.require_full_check()

    def _refusing(self, at: float) -> dict[str, str]:
        return {
            "noreplicas": detector.noreplicas(self.info, self._refused.get("NOREPLICAS"), at),
            "oom": detector.out_of_memory(self.info, self.keyspace, self._refused.get("OOM"), at),
        }

    @property
    def lags(self) -> dict[str, int]:
        """Seconds since its replicas have acknowledged what they have, by `host:port`, as it says."""
        if self._lags_of is not self.info:
            self._lags, self._lags_of = detector.acknowledged(self.info), self.info
        return self._lags

    def trust(self) -> None:
        """It was a replica of this shard."""
        self._trusted = self.health.run_id

    def _connected(self) -> None:
        self._settled = False

    @property
    def _is_unsettled(self) -> bool:
        return not self._settled or bool(self._sample.foreign or self._refused)

    async def _settle(self, connection: NodeConnection) -> None:
        astray = self._sample.foreign
        if not self._settled or (astray and not await self._still_there(connection, *astray[0])):
            self._sample = key_sample.judged(self._of, await self._draw(connection, list(self.keyspace)))
        if not self._settled:
            (commands,) = await self._put(connection, (b"COMMAND",))
            self._settled = True
            if isinstance(commands, list) and len(commands) > MOST_COMMANDS:
                why = f"expected at most {MOST_COMMANDS} commands, got {len(commands)}"
                emit(Event.COMMAND_IGNORED, shard=self._shard, node=self.node, command="*", why=why)
            elif isinstance(commands, list) and commands != self.commands:
                self.commands = commands
                for name, what in itertools.islice(table.malformed(commands).items(), MOST_LINES):
                    emit(Event.COMMAND_IGNORED, shard=self._shard, node=self.node, command=name, why=what)
                self._on_commands()
        self._judge_keys()

    def _judge_keys(self) -> None:
        run_id = self.info.get("run_id", "")
        if self._accepts or self._is_moving or not self._sample.is_swapped:
            self._trusted = run_id
        found = "" if self._is_moving else key_sample.described(self._sample, self._of, self._shard_map)
        is_trusted = self._trusted == run_id
        was_misplaced, was_stray = self.misplaced, self.stray
        self.misplaced, self.stray = ("", found) if is_trusted else (found, "")
        for before, now, begins, ends in (
            (was_misplaced, self.misplaced, Event.SHARD_MISPLACED, Event.SHARD_PLACED),
            (was_stray, self.stray, Event.STRAY_KEYS, Event.STRAY_KEYS_END),
        ):
            if now != before:
                self.changes += 1
            if now and not before:
                emit(begins, shard=self._shard, node=self.node, reason=now)
            if before and not now:
                emit(ends, shard=self._shard, node=self.node)

    async def _draw(self, connection: NodeConnection, databases: list[int]) -> list[key_sample.Place]:
        """Keys at random, with their databases."""
        questions = ((b"RANDOMKEY",),) * SAMPLES
        found = []
        try:
            async with within(SAMPLE_S):
                for database in databases:
                    replies = await self._put(connection, (b"SELECT", b"%d" % database), *questions)
                    found += [(database, key) for key in replies[1:] if isinstance(key, bytes)]
        except TimeoutError:
            raise NodeError(f"no sample of its keys within {SAMPLE_S:g} s", silent=True) from None
        return found

    async def _still_there(self, connection: NodeConnection, database: int, key: bytes) -> bool:
        """Asked of the very key: a new sample could miss it, and the shard would be used and refused in turns."""
        replies = await self._put(connection, (b"SELECT", b"%d" % database), (b"EXISTS", key))
        return replies[1] == 1


def _text(data: bytes) -> str:
    """Text of a server, which may be anything: what is not UTF-8 is replaced, so that it can be sent on."""
    return data.decode(errors="replace")
