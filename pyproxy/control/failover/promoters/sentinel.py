"""Sentinels decide. The proxy follows the primary that they name, and asks them for a planned hand-over.

The Sentinels of `[sentinel]` come in; announcements go out, of the server that they name and its config-epoch. This
module promotes nobody, and makes no server a replica of another one than they announced: they would undo it.

All Sentinels are asked once a second, and at once when one of them publishes +switch-master: the one that carries a
failover out says so a second later than the others. The highest config-epoch wins, whoever says it. At first a
majority must have answered: one Sentinel alone may be one that was cut off, with the old primary.

Limits: Sentinels that were set up anew count from 0 again, and are heard when their epoch exceeds the old one, or
after a restart of the proxy. A server that the configuration does not name is never announced.
"""

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass

from protocol.reply import Error, Value
from pyproxy.access import Access
from pyproxy.config import BackendAccess, Config
from pyproxy.control.failover.promoters import Announce, Announcement, Promoter, PromotionFailed, PromotionPlan
from pyproxy.control.health.detector import parse_info
from pyproxy.control.health.node_connection import NodeConnection, NodeError
from pyproxy.deadline import within
from pyproxy.events import Event, emit
from pyproxy.shard_map import Node, Shard

POLL_S = 1.0
DEADLINE_S = 1.0  # of a connect, of the replies to one question, of looking names up
NOT_COORDINATED = b"ERR wrong number of arguments"
"""What Sentinels of Redis, and of Valkey before 9, answer to SENTINEL FAILOVER name COORDINATED."""


CATCH_UP_POLL_S = 0.005  # between two checks of a replica that has yet to get what its paused primary has


class _NotCoordinatedError(Exception):
    """This Sentinel knows no coordinated failover."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a Sentinel says of a shard: this address, as it writes it, is the primary by this config-epoch."""

    host: str
    port: int
    epoch: int


def make(shard: Shard, config: Config, access: Access, announce: Announce) -> Promoter:
    return SentinelPromoter(shard, config, access, announce)


class SentinelPromoter(Promoter):
    """Of one shard. The followers give each claim to `take`, which all shards of a configuration share."""

    is_authority = True
    hands_over = True
    usual_s = 1.5  # they tell a second after they have promoted

    def __init__(self, shard: Shard, config: Config, servers: Access, announce: Announce) -> None:
        self.shard = shard.name
        self.name = config.sentinel.name.replace("{shard}", shard.name).encode()
        self._nodes = shard.primary, *shard.replicas
        self._config = config
        self._access = _access(config)
        self._servers = servers
        self._majority = len(config.sentinel.nodes) // 2 + 1
        self._announce = announce
        self._claims: dict[Node, Claim] = {}  # by Sentinel, its last; only until one is announced
        self._claim: Claim | None = None  # as announced, and
        self._primary: Node | None = None  # what that is in the configuration
        self._announced = asyncio.Event()

    async def run(self) -> None:
        async with _following(self._config, self) as followers:
            await asyncio.wait([followers])
            followers.result()

    async def take(self, sentinel: Node, claim: Claim) -> str:
        """Announce it if it is news. Returns why it is disregarded; empty: it is not, or is only old."""
        if self._claim is None:
            self._claims[sentinel] = claim
            if len(self._claims) < self._majority:
                return ""
            sentinel, claim = max(self._claims.items(), key=lambda named: named[1].epoch)
        elif claim == self._claim or claim.epoch < self._claim.epoch:
            return ""
        node = await self._configured(claim)
        at = Node(claim.host, claim.port)
        if node is None:
            return f"{at} is no server of this shard in the configuration"
        # Looking names up takes time, and another Sentinel may have been faster.
        if self._claim is not None and claim.epoch <= self._claim.epoch:
            contradicts = claim.epoch == self._claim.epoch and node != self._primary
            return f"{at} by epoch {claim.epoch}, by which it was {self._primary}" if contradicts else ""
        self._claim, self._primary = claim, node
        self._claims.clear()
        self._announced.set()
        self._announce(Announcement(node, claim.epoch, f"sentinel {sentinel}"))
        return ""

    async def _configured(self, claim: Claim) -> Node | None:
        """The server that is meant: Sentinels mostly say addresses, where the configuration may have names."""
        named = Node(claim.host, claim.port)
        if named in self._nodes:
            return named
        candidates = [node for node in self._nodes if node.port == claim.port]
        if not candidates:
            return None
        wanted, *found = await asyncio.gather(*(_addresses(node) for node in (named, *candidates)))
        return next((node for node, addresses in zip(candidates, found, strict=True) if wanted & addresses), None)

    # --- planned ------------------------------------------------------------------------------------------------------

    async def hand_over(self, plan: PromotionPlan) -> None:
        """A coordinated failover: the primary itself waits until its successor has everything.

        Which replica that is, is the Sentinels' choice. They tell about 1.1 s after they were asked.
        """
        deadline_s = self._config.promotion.deadline_s
        if self._claim is None:
            raise PromotionFailed("the sentinels have not said yet who is the primary")
        self._announced.clear()
        try:
            async with within(deadline_s):
                try:
                    await self._order(plan, b"COORDINATED")
                    await self._announced.wait()
                except _NotCoordinatedError:
                    await self._hand_over_paused(plan)
        except TimeoutError:
            raise PromotionFailed(f"no +switch-master within {deadline_s:g} s; it may come yet") from None
        except NodeError as exc:
            raise PromotionFailed(str(exc)) from None
        if plan.named and str(self._primary) != plan.candidate.node:
            raise PromotionFailed(f"the sentinels chose {self._primary}", again=False)

    async def _hand_over_paused(self, plan: PromotionPlan) -> None:
        """By Sentinels that do not ask the primary: its writes wait, and in the end it answers them with -READONLY.

        It is not left to the Sentinels to make it a replica: their connection to it waits as well, for a PUBLISH. Where
        a failover was begun and nothing is announced, the pause is left to its end, as there may be another primary.
        """
        async with _connected(Node.parse(plan.primary.node), self._servers) as primary:
            pause_ms = round(self._config.promotion.deadline_s * 1000)
            end: list[tuple[bytes, ...]] = [(b"CLIENT", b"UNPAUSE")]
            try:
                await _obeys(primary, (b"CLIENT", b"PAUSE", b"%d" % pause_ms, b"WRITE"))
                await self._catch_up(primary, plan)
                await self._order(plan)
                end.clear()
                await self._announced.wait()
                assert self._claim is not None
                new = self._claim.host.encode(), b"%d" % self._claim.port
                end += [(b"MULTI",), (b"REPLICAOF", *new), (b"CLIENT", b"UNPAUSE"), (b"EXEC",)]
            finally:
                if end:
                    with contextlib.suppress(NodeError):  # the pause ends by itself, and Sentinels do the rest
                        await primary.ask(*end, deadline_s=DEADLINE_S)

    async def _catch_up(self, primary: NodeConnection, plan: PromotionPlan) -> None:
        """Return when each replica, as any may be chosen, has what the primary has. Raises NodeError."""
        wanted = await _offset(primary, "master_repl_offset")
        for each in (plan.candidate, *plan.others):
            if each.reachable and each.role == "slave":
                async with _connected(Node.parse(each.node), self._servers) as replica:
                    while True:
                        if await _offset(replica, "slave_repl_offset") >= wanted:
                            break
                        await asyncio.sleep(CATCH_UP_POLL_S)

    async def _order(self, plan: PromotionPlan, *how: bytes) -> None:
        """Have one Sentinel begin a failover. Once one may have, no other is asked. Raises PromotionFailed."""
        failures = []
        for sentinel in self._config.sentinel.nodes:
            try:
                async with _connected(sentinel, self._access) as connection:
                    if plan.named:
                        await self._check_choice(sentinel, connection, plan.candidate.node)
                    answer = await self._fail_over(connection, how)
            except NodeError as exc:
                failures.append(f"sentinel {sentinel}: {exc}")
                continue
            if not isinstance(answer, Error):
                return
            if how and answer.line.startswith(NOT_COORDINATED):
                raise _NotCoordinatedError
            failures.append(f"sentinel {sentinel}: {_text(answer.line)}")
        raise PromotionFailed("; ".join(failures))

    async def _fail_over(self, connection: NodeConnection, how: tuple[bytes, ...]) -> Value:
        try:
            (answer,) = await connection.ask((b"SENTINEL", b"FAILOVER", self.name, *how), deadline_s=DEADLINE_S)
        except NodeError:
            return None  # it may have begun: the announcement will tell
        return answer

    async def _check_choice(self, sentinel: Node, connection: NodeConnection, wanted: str) -> None:
        """Raises PromotionFailed where the replica that this Sentinel would choose is not the one that is wanted."""
        (answer,) = await connection.ask((b"SENTINEL", b"REPLICAS", self.name), deadline_s=DEADLINE_S)
        replicas = [_fields(each) for each in answer] if isinstance(answer, list) else []
        fit = [each for each in replicas if _is_fit(each)]
        if not fit:
            return  # which it will say itself
        first = min(fit, key=_choice)
        chosen = await self._configured(Claim(first["ip"], int(first["port"]), 0))
        if str(chosen) != wanted:
            raise PromotionFailed(
                f"sentinel {sentinel} would choose {chosen}: by replica-priority, then offset, then run_id", again=False
            )

    def __repr__(self) -> str:
        return f"<SentinelPromoter {self.shard} {self._primary} by {self._claim}>"


# --- following: for all shards together -------------------------------------------------------------------------------


class _Follower:
    """One Sentinel, polled on one connection and subscribed to on another."""

    def __init__(self, sentinel: Node, access: Access, config: Config, promoters: list[SentinelPromoter]) -> None:
        self._sentinel = sentinel
        self._access = access
        self._timeouts = config.timeouts
        self._promoters = promoters
        self._lost = False
        self._disregarded: dict[str, str] = {}  # shard -> why what it says of it is not followed

    async def run(self) -> None:
        """Until cancelled."""
        pause_s = self._timeouts.reconnect_min_s
        while True:
            try:
                async with (
                    _connected(self._sentinel, self._access) as polled,
                    _connected(self._sentinel, self._access) as subscription,
                ):
                    # A message has no config-epoch, so it only says that it is time to ask.
                    await _obeys(subscription, (b"SUBSCRIBE", b"+switch-master"))
                    while True:
                        await self._poll(polled)
                        pause_s = self._timeouts.reconnect_min_s
                        await subscription.receives(POLL_S)
            except NodeError as exc:
                if not self._lost:
                    self._lost = True
                    emit(Event.SENTINEL_LOST, sentinel=self._sentinel, reason=str(exc))
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, self._timeouts.reconnect_max_s)

    async def _poll(self, connection: NodeConnection) -> None:
        promoters = list(self._promoters)
        questions = [question for promoter in promoters for question in _questions(promoter.name)]
        answers = await connection.ask(*questions, deadline_s=DEADLINE_S)
        if self._lost:
            self._lost = False
            emit(Event.SENTINEL_BACK, sentinel=self._sentinel)
        pairs = zip(promoters, answers[::2], answers[1::2], strict=True)
        await asyncio.gather(*(self._tell(*each) for each in pairs))

    async def _tell(self, promoter: SentinelPromoter, master: Value, address: Value) -> None:
        claim = _claim(master, address)
        reason = claim if isinstance(claim, str) else await promoter.take(self._sentinel, claim)
        if reason and self._disregarded.get(promoter.shard) != reason:
            emit(Event.SENTINEL_DISREGARDED, sentinel=self._sentinel, shard=promoter.shard, reason=reason)
        self._disregarded[promoter.shard] = reason


class _Followers:
    """Of all Sentinels of a configuration, as long as a shard needs them."""

    def __init__(self, config: Config) -> None:
        self.promoters: list[SentinelPromoter] = []
        self._followers = [_Follower(node, _access(config), config, self.promoters) for node in config.sentinel.nodes]
        self.task = asyncio.get_running_loop().create_task(self._run(), name="sentinels")

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for each in self._followers:
                group.create_task(each.run())


_followed: dict[tuple[asyncio.AbstractEventLoop, Config], _Followers] = {}
"""Those that run now. A promoter is of one shard, and each Sentinel is to be asked once for all of them."""


@contextlib.asynccontextmanager
async def _following(config: Config, promoter: SentinelPromoter) -> AsyncIterator["asyncio.Task[None]"]:
    """The task that follows the Sentinels, for this shard as well; the first shard begins it, the last one ends it."""
    key = asyncio.get_running_loop(), config
    followers = _followed.get(key)
    if followers is None:
        followers = _followed[key] = _Followers(config)
    followers.promoters.append(promoter)
    try:
        yield followers.task
    finally:
        followers.promoters.remove(promoter)
        if not followers.promoters:
            del _followed[key]
            followers.task.cancel()
            await asyncio.wait([followers.task])


# --- replies ---------------------------------------------------------------------------------------------------------


def _questions(name: bytes) -> tuple[tuple[bytes, ...], ...]:
    """In this order, so that an epoch is never taken for newer than the address it comes with.

    The Sentinel that promotes says in MASTER the new config-epoch and for a second still the old address; the right
    one it says only in GET-MASTER-ADDR-BY-NAME (sentinel.c, sentinelGetCurrentMasterAddress).
    """
    return (b"SENTINEL", b"MASTER", name), (b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", name)


def _claim(master: Value, address: Value) -> Claim | str:
    """What these two answers say, or why they say nothing."""
    if isinstance(master, Error):
        return _text(master.line)  # ERR No such master with that name
    match address:
        case [bytes(host), bytes(port)]:
            with contextlib.suppress(KeyError, ValueError):
                return Claim(_text(host), int(port), int(_fields(master)["config-epoch"]))
    return "its answer is not understood"


def _fields(named: Value) -> dict[str, str]:
    """A flat list of names and values, as a dictionary; of anything else, an empty one."""
    texts = [_text(each) for each in named if isinstance(each, bytes)] if isinstance(named, list) else []
    return dict(zip(texts[::2], texts[1::2], strict=False))


def _is_fit(replica: dict[str, str]) -> bool:
    """Whether a Sentinel would have it promoted (sentinel.c, sentinelSelectSlave), as far as it says."""
    out = {"s_down", "o_down", "disconnected"} & set(replica.get("flags", "").split(","))
    return not out and replica.get("slave-priority") != "0"


def _choice(replica: dict[str, str]) -> tuple[int, int, str]:
    """The first by this is whom a Sentinel chooses (sentinel.c, compareSlavesForPromotion)."""
    return int(replica.get("slave-priority", 0)), -int(replica.get("slave-repl-offset", 0)), replica.get("runid", "")


def _text(named: bytes) -> str:
    return named.decode(errors="replace")


# --- the network ------------------------------------------------------------------------------------------------------


def _access(config: Config) -> Access:
    """A Sentinel that speaks TLS to servers speaks it to all, so that is as `[backend]` says; its password is not."""
    backend, own = config.backend, config.sentinel
    return Access(BackendAccess(backend.tls, backend.tls_ca, own.username, own.password_file))


@contextlib.asynccontextmanager
async def _connected(sentinel: Node, access: Access) -> AsyncIterator[NodeConnection]:
    """A connection to it, which is closed at the end. Raises NodeError."""
    try:
        connection = await NodeConnection.open(sentinel, access, DEADLINE_S)
    except NodeError as exc:  # access.py speaks of [backend], whatever table it was given
        raise NodeError(str(exc).replace("backend.password_file", "sentinel.password_file")) from None
    try:
        yield connection
    finally:
        connection.close()


async def _obeys(connection: NodeConnection, order: tuple[bytes, ...]) -> None:
    (answer,) = await connection.ask(order, deadline_s=DEADLINE_S)
    if isinstance(answer, Error):
        raise NodeError(_text(answer.line))


async def _offset(connection: NodeConnection, field: str) -> int:
    """What the server says of itself in INFO. Raises NodeError."""
    (info,) = await connection.ask((b"INFO", b"replication"), deadline_s=DEADLINE_S)
    fields, _ = parse_info(_text(info)) if isinstance(info, bytes) else ({}, None)
    if not fields.get(field, "").isdigit():
        raise NodeError(f"{connection} does not say its {field}")
    return int(fields[field])


async def _addresses(node: Node) -> set[str]:
    """The IP addresses of its host; none if they are not to be had in time."""
    try:
        async with within(DEADLINE_S):
            found = await asyncio.get_running_loop().getaddrinfo(node.host, node.port, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError, UnicodeError):
        return set()
    return {str(address[0]) for *_, address in found}
