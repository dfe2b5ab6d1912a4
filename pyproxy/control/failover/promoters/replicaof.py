"""The parent itself promotes, by REPLICAOF: it asks nobody, so there must be one such promoter (docs/promotion.md).

A PromotionPlan comes in, with the candidate already chosen; commands to its servers go out, each on a connection made
for it and within a deadline. A server is told of another by the host and port that the configuration gives: the servers
must reach each other by those.

REPLICAOF NO ONE is sent once and never again: where no reply comes, the candidate is checked, and its role is the
outcome. Once it is a primary, that is success: whatever else fails is logged, and left to `reconfigure`. A server is
never made a replica of one that was not seen to be a primary just before.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from protocol.reply import Error, Value
from pyproxy.access import Access
from pyproxy.config import Config
from pyproxy.control.failover.promoters import Announce, Promoter, PromotionFailed, PromotionPlan
from pyproxy.control.health import detector
from pyproxy.control.health.node_connection import NodeConnection, NodeError
from pyproxy.deadline import within
from pyproxy.events import Event, emit
from pyproxy.messages import NodeHealth
from pyproxy.shard_map import Node, Shard

STEP_S = 1.0  # for one connection, or one command
LEAST_S = 0.05  # for a step that cannot be left out, such as the check of what became of REPLICAOF NO ONE
FENCE_S = 0.3  # for an old primary to take notice: it mostly does not answer
FENCED_S = 60.0  # for which it then takes no write, unless it is demoted before
UNPAUSE_AGAIN_S = 0.5  # between two attempts to end a pause that is in the way
CATCH_UP_S = 1.0  # for a candidate to have all that the paused primary has
HAND_OVER_S = 4.0  # for all of it
PAUSE_S = 5.0  # of writes meanwhile: it ends by itself, but not before we do
FIRST_POLL_S, MOST_POLL_S = 0.001, 0.02  # between two checks of a candidate that catches up


class _Refused(NodeError):
    """The server answered, with an error: it did nothing."""


class _Unclear(PromotionFailed):
    """REPLICAOF NO ONE was sent, and may be applied yet."""


class _Clock:
    """What is left of a deadline, step by step."""

    def __init__(self, total_s: float) -> None:
        self._until = time.monotonic() + total_s

    def step(self, most_s: float = STEP_S) -> float:
        return max(LEAST_S, min(most_s, self._until - time.monotonic()))

    def check(self) -> None:
        """Raises NodeError when nothing more may be begun."""
        if time.monotonic() >= self._until:
            raise NodeError("out of time")


class _Server:
    """A connection to one server for a few commands. What fails is a NodeError that names it."""

    def __init__(self, node: Node, connection: NodeConnection, clock: _Clock) -> None:
        self.node = node
        self._connection = connection
        self._clock = clock

    async def check_health(self, *section: bytes) -> NodeHealth:
        (info,) = await self.ask((b"INFO", *section))
        if not isinstance(info, bytes):
            raise _Refused(f"{self.node}: {_text(info)}")
        fields, keyspace = detector.parse_info(info.decode(errors="replace"))
        return detector.answered(NodeHealth(str(self.node)), time.monotonic(), fields, keyspace)

    async def order(self, *argv: bytes) -> None:
        """Returns when the server has done it. Raises _Refused if it surely has not."""
        (answer,) = await self.ask(argv)
        if isinstance(answer, Error):
            raise _Refused(f"{self.node}: {_text(answer)}")

    async def order_late(self, *argv: bytes) -> None:
        """As `order`; and where it does not answer now, it finds this in its socket when it goes on."""
        self._connection.arrives_late = True
        await self.order(*argv)

    async def ask(self, *commands: tuple[bytes, ...]) -> list[Value]:
        try:
            return await self._connection.ask(*commands, deadline_s=self._clock.step())
        except NodeError as exc:
            raise NodeError(f"{self.node}: {exc}") from None

    async def follow(self, primary: Node) -> None:
        await self.order(b"REPLICAOF", *_host_port(primary))

    async def rewrite(self) -> None:
        """So that it has this role after a restart, too; a server without a configuration file cannot, nor need it."""
        await self.ask((b"CONFIG", b"REWRITE"))

    def close(self) -> None:
        self._connection.close()


class ReplicaOf(Promoter):
    """Of one shard."""

    acts = True
    hands_over = True

    def __init__(self, shard: str, deadline_s: float, access: Access) -> None:
        self._shard = shard
        self._deadline_s = deadline_s
        self._access = access
        self._failures: dict[str, str] = {}  # of `reconfigure` by server, each logged once
        self._paused = ""  # a primary that was left paused, though it is to take writes
        self._left_paused = asyncio.Event()
        self._pausing = asyncio.Lock()  # a pause is not ended by who wanted to end the one before

    async def run(self) -> None:
        """Ends the pauses that could not be ended at once: their servers would take no write for a minute."""
        while True:
            await self._left_paused.wait()
            async with self._pausing:
                if self._paused and not await self._try_to_unpause(self._paused, FENCE_S):
                    self._paused = ""
                if not self._paused:
                    self._left_paused.clear()
            await asyncio.sleep(UNPAUSE_AGAIN_S)

    # --- the primary is lost ------------------------------------------------------------------------------------------

    async def promote(self, plan: PromotionPlan) -> None:
        clock = _Clock(self._deadline_s)
        async with self._pausing:
            self._paused = ""
            fenced = await self._fence(plan.primary.node)
        try:
            async with self._connected(plan.candidate.node, clock) as candidate:
                now = await candidate.check_health()
                _check_lost(now, plan)
                if now.role != "master":
                    clock.check()
                    await self._promote_once(candidate, clock)
                    emit(Event.PROMOTED, shard=self._shard, node=candidate.node, epoch=plan.epoch, fenced=fenced)
        except _Unclear:
            raise
        except (PromotionFailed, NodeError) as exc:
            # Whatever is wrong with the primary, it is still the only one.
            await self._unpause(plan.primary.node, clock, FENCE_S)
            raise exc if isinstance(exc, PromotionFailed) else PromotionFailed(str(exc)) from None
        await self._gather_replicas(plan, clock)

    async def _fence(self, primary: str) -> str:
        """Whether the old primary said that it takes no write for a while, for the log.

        One that stands still may go on later: then it finds this in its socket, before what its clients send next.
        """
        try:
            async with within(FENCE_S), self._connected(primary, _Clock(FENCE_S)) as server:
                await server.order_late(b"CLIENT", b"PAUSE", _milliseconds(FENCED_S), b"WRITE")
        except (NodeError, TimeoutError):
            return "no"
        return "yes"

    # --- all are well -------------------------------------------------------------------------------------------------

    async def hand_over(self, plan: PromotionPlan) -> None:
        clock = _Clock(min(self._deadline_s, HAND_OVER_S))
        try:
            async with (
                self._connected(plan.primary.node, clock) as primary,
                self._connected(plan.candidate.node, clock) as candidate,
            ):
                _check_pair(await primary.check_health(), await candidate.check_health())
                await self._swap(plan, primary, candidate, clock)
                await asyncio.gather(self._give_way(primary, candidate.node), self._gather_replicas(plan, clock))
        except NodeError as exc:
            raise PromotionFailed(str(exc)) from None

    async def _swap(self, plan: PromotionPlan, primary: _Server, candidate: _Server, clock: _Clock) -> None:
        """The candidate has everything, and is the primary; else the old one takes writes again, and it is an error."""
        swapped = False
        try:
            async with self._pausing:
                self._paused = ""
                await primary.order(b"CLIENT", b"PAUSE", _milliseconds(PAUSE_S), b"WRITE")
            await _catch_up(candidate, await primary.check_health(b"replication"), clock)
            clock.check()
            await self._promote_once(candidate, clock)
            swapped = True
        finally:
            if not swapped:
                await self._unpause(plan.primary.node, clock, STEP_S)
        emit(Event.PROMOTED, shard=self._shard, node=candidate.node, epoch=plan.epoch)

    async def _give_way(self, old: _Server, new: Node) -> None:
        """The old primary follows the new one, and only then goes on: writes that wait are answered -READONLY.

        Its clients stay connected, as a lost connection leaves a write uncertain. If this fails, its pause lasts until
        `reconfigure` makes it a replica, or ends by itself.
        """
        try:
            await old.follow(new)
            await old.order(b"CLIENT", b"UNPAUSE")
            await old.rewrite()
        except NodeError as exc:
            self._failed(old.node, "REPLICAOF", exc)
        else:
            emit(Event.CONVERT_TO_SLAVE, shard=self._shard, node=old.node, primary=new)

    # --- afterwards ---------------------------------------------------------------------------------------------------

    async def reconfigure(self, primary: NodeHealth, not_following: Sequence[NodeHealth]) -> None:
        clock = _Clock(self._deadline_s)
        try:
            async with self._connected(primary.node, clock) as server:
                now = await server.check_health()
        except NodeError:
            return  # the health monitor sees and logs that
        # One that restarted has lost what its servers have, and would have them throw it away.
        if now.role == "master" and (now.run_id, now.replid) == (primary.run_id, primary.replid):
            await asyncio.gather(
                *(self._convert(replica.node, Node.parse(primary.node), clock) for replica in not_following)
            )

    async def _convert(self, replica: str, primary: Node, clock: _Clock) -> None:
        """Done in one piece, as Sentinel does (sentinel.c, sentinelSendSlaveOf): no client writes to it in between.

        CLIENT KILL leaves out who asks. The pause is our own fence: a replica that is paused does not even apply what
        its primary sends.
        """
        try:
            async with self._connected(replica, clock) as server:
                now = await server.check_health()
                if _follows(now, primary):
                    return
                *_, done = await server.ask(
                    (b"MULTI",),
                    (b"REPLICAOF", *_host_port(primary)),
                    (b"CONFIG", b"REWRITE"),
                    (b"CLIENT", b"KILL", b"TYPE", b"normal"),
                    (b"CLIENT", b"KILL", b"TYPE", b"pubsub"),
                    (b"CLIENT", b"UNPAUSE"),
                    (b"EXEC",),
                )
                if not isinstance(done, list) or not done or isinstance(done[0], Error):
                    raise NodeError(f"{replica}: {_text(done[0] if isinstance(done, list) and done else done)}")
        except NodeError as exc:
            if self._failures.get(replica) != str(exc):
                self._failures[replica] = str(exc)
                self._failed(replica, "REPLICAOF", exc)
            return
        self._failures.pop(replica, None)
        event = Event.CONVERT_TO_SLAVE if now.role == "master" else Event.FIX_SLAVE_CONFIG
        emit(event, shard=self._shard, node=replica, primary=primary, was=now.master or now.role)

    # --- steps --------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _connected(self, node: str, clock: _Clock) -> AsyncIterator[_Server]:
        """A connection of its own. Raises NodeError."""
        at = Node.parse(node)
        step_s = clock.step()
        try:
            async with within(step_s):  # of which AUTH is a part
                connection = await NodeConnection.open(at, self._access, step_s)
        except TimeoutError:
            raise NodeError(f"{node}: not connected within {step_s:g} s") from None
        except NodeError as exc:
            raise NodeError(f"{node}: {exc}") from None
        server = _Server(at, connection, clock)
        try:
            yield server
        finally:
            server.close()

    async def _promote_once(self, candidate: _Server, clock: _Clock) -> None:
        """REPLICAOF NO ONE; returns when the candidate is a primary. Raises PromotionFailed."""
        try:
            await candidate.order(b"REPLICAOF", b"NO", b"ONE")
        except _Refused as exc:
            raise PromotionFailed(f"REPLICAOF NO ONE was refused: {exc}") from None
        except NodeError as exc:
            await self._find_out(candidate.node, str(exc), clock)

    async def _find_out(self, candidate: Node, lost: str, clock: _Clock) -> None:
        """Returns if it was applied, though its reply is lost."""
        try:
            async with self._connected(str(candidate), clock) as server:
                role = (await server.check_health()).role
        except NodeError as exc:
            raise _Unclear(f"REPLICAOF NO ONE was sent, and nobody knows what came of it: {lost}; then {exc}") from None
        if role != "master":
            raise _Unclear(f"REPLICAOF NO ONE was sent, and {candidate} is still a {role}: {lost}")

    async def _gather_replicas(self, plan: PromotionPlan, clock: _Clock) -> None:
        """The others follow the new primary: without them an old one with min-replicas-to-write takes no write."""
        primary = Node.parse(plan.candidate.node)
        others = [each.node for each in plan.others if each.reachable]
        await asyncio.gather(self._keep_role(primary, clock), *(self._repoint(each, primary, clock) for each in others))

    async def _repoint(self, other: str, primary: Node, clock: _Clock) -> None:
        try:
            async with self._connected(other, clock) as server:
                now = await server.check_health()
                if now.role != "slave" or _follows(now, primary):
                    return
                await server.follow(primary)
                emit(Event.RECONF_SENT, shard=self._shard, node=other, primary=primary)
                await server.rewrite()
        except NodeError as exc:
            self._failed(other, "REPLICAOF", exc)

    async def _keep_role(self, primary: Node, clock: _Clock) -> None:
        try:
            async with self._connected(str(primary), clock) as server:
                await server.rewrite()
        except NodeError as exc:
            self._failed(primary, "CONFIG REWRITE", exc)

    async def _unpause(self, primary: str, clock: _Clock, most_s: float) -> None:
        """Now, or as soon as it can be done: `run` goes on with it."""
        if reason := await self._try_to_unpause(primary, clock.step(most_s)):
            emit(Event.STEP_FAILED, shard=self._shard, node=primary, step="CLIENT UNPAUSE", reason=reason, again="yes")
            self._paused = primary
            self._left_paused.set()

    async def _try_to_unpause(self, primary: str, within_s: float) -> str:
        """Why it failed; empty: it is done. On a connection of its own, as the one that paused it may be broken."""
        try:
            async with within(within_s), self._connected(primary, _Clock(within_s)) as server:
                await server.order(b"CLIENT", b"UNPAUSE")
        except (NodeError, TimeoutError) as exc:
            return str(exc) or "no reply in time"
        return ""

    def _failed(self, node: Node | str, step: str, exc: Exception) -> None:
        emit(Event.STEP_FAILED, shard=self._shard, node=node, step=step, reason=str(exc) or "no reply in time")


def make(shard: Shard, config: Config, access: Access, announce: Announce) -> Promoter:
    """One that never acts where another proxy promotes. Nobody announces: what the servers say is all there is."""
    if not config.promotion.promote:
        return Promoter()
    return ReplicaOf(shard.name, config.promotion.deadline_s, access)


def _check_lost(now: NodeHealth, plan: PromotionPlan) -> None:
    """Whether the candidate is what it was when it was chosen, or a primary since. Raises PromotionFailed."""
    if plan.candidate.replid not in (now.replid, now.replid2):
        raise PromotionFailed(f"{now.node} has another history than when it was chosen")
    if now.role == "master":
        return  # somebody did it, or we did before we were restarted
    _check_data(now)
    # A primary may be known to its replicas by another address than to us, so it is only asked whether that changed.
    others = [each.node for each in plan.others if each.reachable]
    if now.master in others or now.master not in (plan.candidate.master, plan.primary.node):
        raise PromotionFailed(f"{now.node} follows {now.master}")


def _check_pair(primary: NodeHealth, candidate: NodeHealth) -> None:
    """Whether the candidate copies the primary now. Raises PromotionFailed."""
    if primary.role != "master":
        raise PromotionFailed(f"{primary.node} is no primary: it is a {primary.role}")
    if candidate.role != "slave" or candidate.replid != primary.replid:
        raise PromotionFailed(f"{candidate.node} does not follow {primary.node}")
    _check_data(candidate)
    if candidate.link != "up":
        raise PromotionFailed(f"the link of {candidate.node} to {candidate.master} is {candidate.link}")


def _check_data(candidate: NodeHealth) -> None:
    if candidate.loading or candidate.syncing:
        raise PromotionFailed(f"{candidate.node} is {'loading' if candidate.loading else 'syncing'}, and has not all")


async def _catch_up(candidate: _Server, primary: NodeHealth, clock: _Clock) -> None:
    """Returns when the candidate has applied all that the paused primary has. Raises PromotionFailed or NodeError."""
    until = time.monotonic() + clock.step(CATCH_UP_S)
    pause_s = FIRST_POLL_S
    while (now := await candidate.check_health(b"replication")).offset < primary.offset or now.replid != primary.replid:
        if time.monotonic() > until:
            behind = f"is {primary.offset - now.offset} bytes behind" if now.replid == primary.replid else "went away"
            raise PromotionFailed(f"{candidate.node} {behind}, with writes paused for {CATCH_UP_S:g} s")
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, MOST_POLL_S)


def _follows(now: NodeHealth, primary: Node) -> bool:
    return now.role == "slave" and now.master == str(primary)


def _host_port(node: Node) -> tuple[bytes, bytes]:
    return node.host.encode(), b"%d" % node.port


def _milliseconds(seconds: float) -> bytes:
    return b"%d" % (seconds * 1000)


def _text(answer: Value) -> str:
    return answer.line.decode(errors="replace") if isinstance(answer, Error) else f"answered {answer!r:.100}"
