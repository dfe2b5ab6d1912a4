"""One server, seen through one connection.

A look is PING and INFO within a deadline; what it saw is a NodeLook (judge.py says what an answer means), and what
changed is logged. While nothing goes on, INFO is asked for the replication alone, and for the rest seldom.

A primary is also asked, on each connect, for its COMMAND table and for a sample of its keys, most of which must belong
to its shard, or two endpoints were swapped (sample.py).

Nothing is ever written to a server.
"""

import itertools
import time
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from protocol import table
from protocol.reply import Error, Value
from pyproxy.access import Access
from pyproxy.control import judge, sample
from pyproxy.control.atwork import Stretches
from pyproxy.control.node import INFO_LIMIT, NodeConnection, NodeError
from pyproxy.deadline import within
from pyproxy.events import Event, emit
from pyproxy.messages import NodeLook
from pyproxy.shardmap import Node, Shard, ShardMap

DEADLINE_S = 1.0  # of a connect, and of the replies to one question
SAMPLE_S = 5.0  # of all samples of a primary
SAMPLES = 20  # per database
WHOLE_EVERY_S = 5.0  # at most between two looks at all that INFO says
QUIET_BYTES = 14  # of PING, which a primary sends its replicas now and then; the shortest write is longer
MOST_SAID = 10  # lines about the commands of one server


class NodeWatch:
    """A server that the configuration gives this role (master or slave, as INFO says it).

    `look` is what was seen last. `info` names the sections to ask for; none: the default ones.
    """

    def __init__(self, shard: str, node: Node, access: Access, work: Stretches, configured: str, info: bytes) -> None:
        self.node = node
        self._access = access
        self._work = work
        self.look = NodeLook(str(node))
        self.info: dict[str, str] = {}  # of the last look that was answered
        self.keyspace: dict[int, dict[str, int]] = {}
        self._shard = shard
        self._configured = configured
        self.wholes = 0  # looks at all that INFO says
        self._whole = (b"INFO", info) if info else (b"INFO",)
        self._whole_at = 0.0
        self._goes_on = True  # something: all is asked for next
        self._replication: frozenset[str] = frozenset()  # the fields of this section
        self._connection: NodeConnection | None = None
        self._asked_at = 0.0  # the last question, if only whether it lets us in

    def goes_on(self) -> None:
        """Something does at this server, or somebody has trouble with it: the next look is at all that INFO says."""
        self._goes_on = True

    async def look_once(self, replicas: Iterable[NodeLook] = ()) -> None:
        """Ask the server, within deadlines, connecting first where needed; `look` then says what came of it.

        `replicas` are the last looks at those that copy it: they may hold what it has lost.
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
            self.close()
            at = time.monotonic()
            # if it took longer than the deadline this process did not run, and nobody listened
            asked_at = max(self._asked_at, at - DEADLINE_S)
            now = judge.failed(self.look, asked_at, at, str(exc), exc.silent, self._work.of(str(self.node)))
        if now.reachable:
            self._work.answered(str(self.node))
        before, self.look = self.look, now
        for event, fields in judge.changes(before, now, self._configured):
            emit(event, shard=self._shard, node=self.node, **fields)

    async def _try(self, replicas: Iterable[NodeLook]) -> NodeLook:
        if self._connection is None:
            self._asked_at = time.monotonic()
            self._connection = await NodeConnection.open(self.node, self._access, DEADLINE_S)
            self._goes_on = True
            self._connected()
        return await self._ask(self._connection, list(replicas))

    async def _ask(self, connection: NodeConnection, replicas: list[NodeLook]) -> NodeLook:
        is_whole = self._goes_on or time.monotonic() - self._whole_at >= WHOLE_EVERY_S
        self._goes_on = False  # what begins from now on is for the next look
        pong, info = await self._put(connection, (b"PING",), self._whole if is_whole else (b"INFO", b"replication"))
        quiet = None if is_whole else self._quiet(info)
        if not is_whole and quiet is None:
            pong, info = await self._put(connection, (b"PING",), self._whole)
        at = time.monotonic()
        # With MISCONF a server refuses writes, and PING so that it is noticed (server.c, processCommand), but no reads.
        misconf = _text(pong.line) if isinstance(pong, Error) and pong.code == b"MISCONF" else ""
        refusal = info if isinstance(info, Error) else pong if isinstance(pong, Error) and not misconf else None
        if refusal is not None:  # LOADING, NOAUTH ...: it may be better next time
            return judge.refused(self.look, at, _text(refusal.line))
        if not isinstance(info, bytes):
            raise NodeError("not a redis server: its INFO is no text")
        if quiet is None:
            self._take_whole(_text(info), at)
        else:
            self.info = quiet
        await self._settle(connection)
        now = judge.answered(self.look, at, self.info, self.keyspace, misconf)
        self._goes_on = self._goes_on or judge.goes_on(self.look, now, QUIET_BYTES)
        return msgspec.structs.replace(now, lost_keys=judge.lost_keys(self.look, now, replicas), **self._refusing(at))

    def _take_whole(self, text: str, at: float) -> None:
        self.info, self.keyspace = judge.parse_info(text)
        section = text.partition("# Replication\r\n")[2].partition("\r\n#")[0]
        self._replication = frozenset(judge.parse_info(section)[0])
        self.wholes, self._whole_at = self.wholes + 1, at

    def _quiet(self, said: Value) -> dict[str, str] | None:
        """INFO with the replication of now, where that is as it was: then so is the rest, for a while. Else None."""
        fields = judge.parse_info(_text(said))[0] if isinstance(said, bytes) else {}
        if fields.keys() != self._replication:
            return None
        info = {**self.info, **fields}
        now = judge.answered(self.look, self.look.at, info, self.keyspace, self.look.misconf)
        return None if judge.goes_on(self.look, now, QUIET_BYTES) else info

    async def _put(self, connection: NodeConnection, *questions: tuple[bytes, ...]) -> list[Value]:
        """The answers. Raises NodeError."""
        self._asked_at = time.monotonic()
        most = INFO_LIMIT if questions[-1][0] == b"INFO" else 0
        return await connection.ask(*questions, deadline_s=DEADLINE_S, most=most)

    def take_over(self, other: "NodeWatch") -> None:
        """Go on from what the other one has seen of the same server."""
        self.look = other.look
        other.close()

    def _connected(self) -> None:
        """The connection is new."""

    async def _settle(self, connection: NodeConnection) -> None:
        """Ask what else there is to ask of this server. Raises NodeError."""

    def _refusing(self, at: float) -> dict[str, str]:
        """Why it refuses writes, by the field of NodeLook; a replica refuses them anyway."""
        return {}

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.node} {'up' if self.look.reachable else self.look.error}>"


class PrimaryWatch(NodeWatch):
    """The primary of a shard. `accepts`: its keys are those of this shard, whatever they look like."""

    def __init__(
        self,
        shard: Shard,
        shard_map: ShardMap,
        access: Access,
        work: Stretches,
        on_commands: Callable[[], None],
        accepts: bool = False,
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
        self._settled = False  # this connection was asked for its commands and its keys
        self._sample = sample.Sample(0, ())
        self._trusted = ""  # the process (run_id) whose keys were those of this shard: it is no other shard's by now
        self._refused: dict[str, judge.Refused] = {}  # code -> when a worker was refused with it last

    def refused(self, code: str) -> None:
        """A worker was refused a write by it, with this code."""
        self._refused[code] = judge.Refused(time.monotonic())
        self.goes_on()

    def _refusing(self, at: float) -> dict[str, str]:
        return {
            "noreplicas": judge.noreplicas(self.info, self._refused.get("NOREPLICAS"), at),
            "oom": judge.out_of_memory(self.info, self.keyspace, self._refused.get("OOM"), at),
        }

    def trust(self) -> None:
        """It was a replica of this shard."""
        self._trusted = self.look.run_id

    def _connected(self) -> None:
        self._settled = False

    async def _settle(self, connection: NodeConnection) -> None:
        astray = self._sample.foreign
        if not self._settled or (astray and not await self._still_there(connection, *astray[0])):
            self._sample = sample.judged(self._of, await self._draw(connection, list(self.keyspace)))
        if not self._settled:
            (commands,) = await self._put(connection, (b"COMMAND",))
            self._settled = True
            if isinstance(commands, list) and commands != self.commands:
                self.commands = commands
                for name, what in itertools.islice(table.nonsense(commands).items(), MOST_SAID):
                    emit(Event.COMMAND_IGNORED, shard=self._shard, node=self.node, command=name, why=what)
                self._on_commands()
        self._judge_keys()

    def _judge_keys(self) -> None:
        run_id = self.info.get("run_id", "")
        if self._accepts or not self._sample.is_swapped:
            self._trusted = run_id
        found = sample.described(self._sample, self._of, self._shard_map)
        is_trusted = self._trusted == run_id
        was_misplaced, was_stray = self.misplaced, self.stray
        self.misplaced, self.stray = ("", found) if is_trusted else (found, "")
        for before, now, begins, ends in (
            (was_misplaced, self.misplaced, Event.SHARD_MISPLACED, Event.SHARD_PLACED),
            (was_stray, self.stray, Event.STRAY_KEYS, Event.STRAY_KEYS_END),
        ):
            if now and not before:
                emit(begins, shard=self._shard, node=self.node, reason=now)
            if before and not now:
                emit(ends, shard=self._shard, node=self.node)

    async def _draw(self, connection: NodeConnection, databases: list[int]) -> list[sample.Place]:
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


def _text(said: bytes) -> str:
    """Text of a server, which may be anything: what is not UTF-8 is replaced, so that it can be sent on."""
    return said.decode(errors="replace")
