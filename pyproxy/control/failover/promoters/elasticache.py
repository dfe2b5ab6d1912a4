"""AWS decides: the proxy follows what it says of a shard's replication group, and may ask it to promote.

Two loops follow. One asks AWS (`elasticache.poll_s` in peace, all shards with one call; `trouble_poll_s` in trouble),
the other asks the servers: the primary, and the candidate that AWS was asked to promote, as the servers know sooner.
A node is announced when AWS names it and it says role:master itself; the candidate also when it says so twice and AWS
has finished, whatever AWS still says of the primary. No server is ever told anything: all of it is AWS' doing.

Asking is ModifyReplicationGroup with PrimaryClusterId, once for each promotion. Where nobody knows whether AWS was
reached (no answer, 5xx) what follows is awaited, and nothing is asked again for REQUEST_TIMEOUT_S. Where automatic
failover is on AWS promotes by itself, and is never asked. How long AWS takes is not published; `usual_s` is a guess.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar
from weakref import WeakValueDictionary

from pyproxy.access import Access
from pyproxy.config import Config, ElastiCache
from pyproxy.control.failover.promoters import Announce, Announcement, Promoter, PromotionFailed, PromotionPlan
from pyproxy.control.failover.promoters.replication_groups import Api, ApiError, Group
from pyproxy.control.health import detector
from pyproxy.control.health.node_connection import NodeConnection, NodeError
from pyproxy.events import Event, emit
from pyproxy.health import integer
from pyproxy.shard_map import Node, Shard

THREADS = 4
NODE_S = 1.0  # for a server to connect, and to answer
CHECK_S = 0.25  # between two checks of a candidate, of which MASTERS in a row must say role:master
MASTERS = 2
REQUEST_TIMEOUT_S = 30.0  # after AWS was asked, until it is believed that it never will
IN_STEP_S = 1.0  # for a replica to have all that its primary has, when no write is in flight

# Codes of refusals that another attempt, or another candidate, meets again.
FOR_GOOD = ("AccessDenied", "AccessDeniedException", "InvalidParameterCombination", "InvalidParameterValue")

Answer = TypeVar("Answer")


def make(shard: Shard, config: Config, access: Access, announce: Announce) -> Promoter:
    groups = _shared.get(config.elasticache)
    if groups is None:
        groups = _shared[config.elasticache] = Groups(config.elasticache)
    return ElastiCachePromoter(config.replication_group_of(shard), config, access, announce, groups)


class Groups:
    """The API, asked in threads of its own and not in the loop's, which look up names; one for all shards."""

    def __init__(self, options: ElastiCache) -> None:
        self._api = Api(options)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="elasticache")
        self._listing = asyncio.Lock()
        self._listed: dict[str, Group] | ApiError = {}
        self._listed_at = float("-inf")

    async def listed(self, name: str, max_age_s: float) -> Group:
        """This group as of a list of all of them that is no older. Raises ApiError."""
        async with self._listing:
            if time.monotonic() - self._listed_at > max_age_s:
                self._listed_at = time.monotonic()
                try:
                    self._listed = await self._in_thread(self._api.describe)
                except ApiError as exc:
                    self._listed = exc
        if isinstance(self._listed, ApiError):
            raise self._listed
        return _named(name, self._listed)

    async def described(self, name: str) -> Group:
        """This group as it is now. Raises ApiError."""
        return _named(name, await self._in_thread(lambda: self._api.describe(name)))

    async def promote(self, group: str, cluster: str) -> None:
        """See Api.promote."""
        await self._in_thread(lambda: self._api.promote(group, cluster))

    async def parameter(self, group: str, name: str) -> str:
        """See Api.parameter."""
        return await self._in_thread(lambda: self._api.parameter(group, name))

    async def _in_thread(self, ask: Callable[[], Answer]) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self._threads, ask)

    def __repr__(self) -> str:
        return f"<Groups {self._api}>"


_shared: WeakValueDictionary[ElastiCache, Groups] = WeakValueDictionary()


def _named(name: str, groups: dict[str, Group]) -> Group:
    if name not in groups:
        raise ApiError(f'replication group "{name}" is not there')
    return groups[name]


@dataclass(slots=True)
class RequestedPromotion:
    """What AWS was asked for, by us or by somebody else, until it is so or surely will not be."""

    node: Node
    at: float = float("inf")  # when AWS was asked, CLOCK_MONOTONIC, s: an earlier description says nothing of it
    masters: int = 0  # checks in a row at which its role was master
    over: asyncio.Future[str] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """Why it will not be; empty: it is."""

    def end(self, why: str = "") -> None:
        if not self.over.done():
            self.over.set_result(why)


class ElastiCachePromoter(Promoter):
    is_authority = True
    usual_s = 30.0

    def __init__(self, name: str, config: Config, access: Access, announce: Announce, groups: Groups) -> None:
        self.acts = self.hands_over = config.promotion.promote
        self._name = name
        self._options = config.elasticache
        self._access = access
        self._announce = announce
        self._groups = groups
        self._believed: Node | None = None  # announced last
        self._late: Node | None = None  # whom AWS still named as the primary when another one was announced
        self._group: Group | None = None  # as it was described last, when AWS was asked
        self._group_at = 0.0  # at this time
        self._error = ""  # of the last description, as it was logged
        self._requested: RequestedPromotion | None = None
        self._deferred = ""  # CacheClusterId of one that is to be promoted, but not now: in the maintenance window
        self._troubled = False  # the primary is not one
        self._describe_now = asyncio.Event()  # the loop that asks AWS
        self._check_now = asyncio.Event()  # the loop that asks the servers

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_api(), name=f"{self._name}-api")
            group.create_task(self._follow_servers(), name=f"{self._name}-servers")

    async def setting(self, name: str) -> str:
        """As the parameter group has it: the servers do not know CONFIG."""
        try:
            return await self._groups.parameter(self._name, name)
        except ApiError as exc:
            raise PromotionFailed(str(exc)) from None

    # --- following ----------------------------------------------------------------------------------------------------

    async def _follow_api(self) -> None:
        while True:
            at = time.monotonic()
            try:
                if self._in_trouble:
                    group = await self._groups.described(self._name)
                else:
                    group = await self._groups.listed(self._name, 0.8 * self._options.poll_s)
                await self._on_described(group, at)
            except ApiError as exc:
                self._on_api_error(str(exc))
            in_peace_s = self._options.poll_s * random.uniform(0.8, 1.2)  # not all proxies at once
            await _pause(self._describe_now, self._options.trouble_poll_s if self._in_trouble else in_peace_s)

    async def _follow_servers(self) -> None:
        while True:
            requested = self._requested
            node = requested.node if requested else self._believed
            role = await self._role(node) if node else ""
            if requested is not None and requested is self._requested:
                self._judge(requested, role)
            elif requested is None and node is not None and node == self._believed:
                if not self._in_trouble and role != "master":
                    self._describe_now.set()
                self._troubled = role != "master"
            await _pause(self._check_now, CHECK_S if self._requested else self._options.trouble_poll_s)

    @property
    def _in_trouble(self) -> bool:
        """A change is near, or under way: AWS is asked more often."""
        return self._requested is not None or self._troubled or (self._group is not None and not self._group.idle)

    async def _on_described(self, group: Group, at: float) -> None:
        """AWS described the group when it was asked at this time: believe its primary, unless that is old news."""
        if self._error:
            emit(Event.ELASTICACHE_BACK, group=self._name)
            self._error = ""
        if at < self._group_at:  # the answer to a later question was here first
            return
        self._group, self._group_at = group, at
        named = group.primary
        if named is None:
            return
        if named != self._late:
            self._late = None
        requested = (
            self._requested is not None and named == self._requested.node
        )  # the loop that asks the servers tells
        if self._believed is None or (named != self._believed and not requested and await self._is_replaced_by(named)):
            self._believe(named)

    async def _is_replaced_by(self, named: Node) -> bool:
        """Whether this one is the primary, and not the one that is believed to be."""
        if await self._role(named) != "master":
            return False  # not yet, or not any more
        return named != self._late or (self._believed is not None and await self._role(self._believed) != "master")

    def _on_api_error(self, error: str) -> None:
        if error != self._error:
            emit(Event.ELASTICACHE_LOST, group=self._name, error=error)
            self._error = error

    def _judge(self, requested: RequestedPromotion, role: str) -> None:
        """What became of a requested promotion, now that its candidate was checked."""
        requested.masters = requested.masters + 1 if role == "master" else 0
        group = self._group
        if group is None or self._group_at < requested.at:
            return
        if requested.masters >= MASTERS and (group.primary == requested.node or group.status == "available"):
            self._late = group.primary if group.primary != requested.node else None
            self._believe(requested.node)
        elif (
            not requested.masters and group.status == "available" and self._group_at > requested.at + REQUEST_TIMEOUT_S
        ):
            self._deferred = group.pending
            self._end(f"{requested.node} is no primary {REQUEST_TIMEOUT_S:g} s after aws was asked")

    def _believe(self, node: Node) -> None:
        if self._requested is not None:
            self._end("" if node == self._requested.node else f"aws says that {node} is the primary")
        if node != self._believed:
            self._believed = node
            self._troubled = False
            self._announce(Announcement(node, 0, "elasticache"))

    def _end(self, why: str = "") -> None:
        if self._requested is not None:
            self._requested.end(why)
            self._requested = None

    async def _role(self, node: Node) -> str:
        """master, slave; empty: it does not answer."""
        return (await self._replication(str(node))).get("role", "")

    async def _replication(self, node: str) -> dict[str, str]:
        """Its INFO replication; empty where it does not answer."""
        try:
            connection = await NodeConnection.open(Node.parse(node), self._access, NODE_S)
            with contextlib.closing(connection):
                (reply,) = await connection.ask((b"INFO", b"replication"), deadline_s=NODE_S)
        except NodeError:
            return {}
        return detector.parse_info(reply.decode(errors="replace"))[0] if isinstance(reply, bytes) else {}

    # --- asking -------------------------------------------------------------------------------------------------------

    async def promote(self, plan: PromotionPlan) -> None:
        """Returns when AWS has done it, which may be long: cancelled, it is followed to the end all the same."""
        self._describe_now.set()
        await asyncio.sleep(random.uniform(0.0, self._options.delay_s))  # another proxy may be faster
        await self._obtain(plan)

    async def hand_over(self, plan: PromotionPlan) -> None:
        """The same, once the candidate has all that the primary has. Takes as long as AWS takes."""
        await self._wait_in_step(plan)
        await self._obtain(plan)

    async def _obtain(self, plan: PromotionPlan) -> None:
        at = time.monotonic()
        try:
            group = await self._groups.described(self._name)
        except ApiError as exc:
            raise PromotionFailed(str(exc)) from None
        await self._on_described(group, at)
        if group.refusal:
            raise PromotionFailed(group.refusal, again=False)
        requested = self._requested or self._begun(group, plan) or await self._ask(group, plan)
        self._check_now.set()
        self._describe_now.set()
        why = await asyncio.shield(requested.over)
        if why:
            raise PromotionFailed(why)
        if str(requested.node) != plan.candidate.node:
            raise PromotionFailed(f"aws promoted {requested.node}, as somebody else asked for")

    def _begun(self, group: Group, plan: PromotionPlan) -> RequestedPromotion | None:
        """What AWS does already; None if it may be asked. Raises PromotionFailed."""
        node = group.node_of(group.pending) if group.pending != self._deferred else None
        if node is None and group.primary is not None and str(group.primary) != plan.primary.node:
            if str(group.primary) != plan.candidate.node:
                raise PromotionFailed(f"aws says that {group.primary} is the primary")
            node = group.primary
        if node is None and group.status != "available":
            raise PromotionFailed(f"the replication group is {group.status}")
        if node is None and group.automatic_failover != "disabled":
            raise PromotionFailed(f"automatic failover is {group.automatic_failover}")
        if node is None:
            return None
        self._requested = RequestedPromotion(node, time.monotonic())
        return self._requested

    async def _ask(self, group: Group, plan: PromotionPlan) -> RequestedPromotion:
        """Ask AWS, once."""
        cluster = group.cluster_of(plan.candidate.node)
        if not cluster:
            raise PromotionFailed(f"aws knows no {plan.candidate.node} in the replication group")
        requested = self._requested = RequestedPromotion(Node.parse(plan.candidate.node))
        what = {"shard": plan.shard, "epoch": plan.epoch, "node": requested.node}
        emit(Event.ELASTICACHE_ASKED, **what, group=self._name, cluster=cluster)
        try:
            await self._groups.promote(self._name, cluster)
        except ApiError as exc:
            if not exc.unknown:
                self._requested = None
                raise PromotionFailed(str(exc), again=exc.code not in FOR_GOOD) from None
            self._on_api_error(str(exc))
        finally:
            requested.at = time.monotonic()
        return requested

    async def _wait_in_step(self, plan: PromotionPlan) -> None:
        primary = await self._replication(plan.primary.node)
        wanted = integer(primary.get("master_repl_offset"))
        deadline = time.monotonic() + IN_STEP_S
        while True:
            candidate = await self._replication(plan.candidate.node)
            offset, link = integer(candidate.get("slave_repl_offset")), candidate.get("master_link_status", "none")
            if primary.get("role") == "master" and offset >= wanted and link == "up":
                return
            if time.monotonic() > deadline:
                state = f"is at {offset} with link {link}, its primary at {wanted}"
                raise PromotionFailed(f"{plan.candidate.node} {state}")
            await asyncio.sleep(CHECK_S / 10)

    def __repr__(self) -> str:
        return f"<ElastiCachePromoter {self._name} {self._believed}>"


async def _pause(until: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await until.wait()
    until.clear()
