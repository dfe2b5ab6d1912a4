"""What AWS says of ElastiCache's replication groups, and the one thing that is asked of it.

    describe(...)    DescribeReplicationGroups ──▶ Group, by id
    promote(...)     ModifyReplicationGroup with PrimaryClusterId, once, whatever comes of it
    parameter(...)   DescribeCacheClusters, DescribeCacheParameters ──▶ a parameter of a group's servers
    discover(...)    the shards of a configuration, with the nodes of those that are written as a group alone

Nothing else is ever called. Everything here blocks, as boto3 does: promoters/elasticache.py calls it in threads of its
own. Nodes are the members' own endpoints, never the primary's or the readers' endpoint, whose DNS is late. Only groups
with cluster mode disabled are known: in the others no member can be promoted.
"""

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import boto3  # type: ignore[import-untyped]  # it comes without types, as botocore does
import msgspec
from botocore.config import Config as ClientConfig  # type: ignore[import-untyped]
from botocore.exceptions import (  # type: ignore[import-untyped]
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ProxyConnectionError,
)
from botocore.parsers import ResponseParserError  # type: ignore[import-untyped]

from pyproxy.config import UNDISCOVERED, Config, ConfigErrors, ElastiCache
from pyproxy.shard_map import Node, Shard

CONNECT_S = 2.0
DESCRIBE_S, DESCRIBE_ATTEMPTS = 5.0, 2  # each; the process cannot end while a thread waits for AWS
MODIFY_S = 10.0
PAGE = 100  # replication groups, parameters: the most that AWS gives at once

# What botocore raises before a byte of the request has left.
NEVER_SENT = (
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ProxyConnectionError,
)

_making = threading.Lock()  # boto3's default session makes one client at a time


class ApiError(Exception):
    """The API did not do what it was asked; `str` says why.

    `code` is AWS's own, empty where it said nothing. `unknown`: it may have done it all the same.
    """

    def __init__(self, why: str, code: str = "", unknown: bool = False) -> None:
        super().__init__(why)
        self.code = code
        self.unknown = unknown


@dataclass(frozen=True, slots=True)
class Member:
    cluster: str  # CacheClusterId, by which it is promoted
    node: Node
    primary: bool


@dataclass(frozen=True, slots=True)
class Group:
    """One replication group, as it was described; a member whose endpoint is not made yet is left out."""

    id: str
    status: str  # available, modifying, snapshotting ...; of the group and of its nodes
    members: tuple[Member, ...]
    pending: str = ""  # CacheClusterId of the one that is to become the primary
    automatic_failover: str = "disabled"  # enabled, enabling, disabling
    multi_az: str = "disabled"
    cluster_mode: bool = False
    tls: str = "off"  # preferred: both with and without it; required
    token: bool = False  # a password is asked for

    @classmethod
    def parse(cls, description: Mapping[str, Any]) -> Self:
        """From an entry of ReplicationGroups, as boto3 gives it."""
        nodes = description.get("NodeGroups") or [{}]
        statuses = [description.get("Status", ""), nodes[0].get("Status", "available")]
        return cls(
            id=description["ReplicationGroupId"],
            status=next((each for each in statuses if each != "available"), "available"),
            members=tuple(_members(nodes[0])),
            pending=description.get("PendingModifiedValues", {}).get("PrimaryClusterId", ""),
            automatic_failover=description.get("AutomaticFailover", "disabled"),
            multi_az=description.get("MultiAZ", "disabled"),
            cluster_mode=bool(description.get("ClusterEnabled")) or len(nodes) > 1,
            tls=description.get("TransitEncryptionMode", "required")
            if description.get("TransitEncryptionEnabled")
            else "off",
            token=bool(description.get("AuthTokenEnabled")),
        )

    @property
    def primary(self) -> Node | None:
        return next((each.node for each in self.members if each.primary), None)

    @property
    def refusal(self) -> str:
        """Why AWS lets nobody promote a member of it, until an operator has changed it; else empty."""
        if self.cluster_mode:
            return "cluster mode is enabled"
        if self.automatic_failover in ("enabled", "enabling"):
            return f"automatic failover is {self.automatic_failover}: aws promotes"
        return "multi-az is enabled" if self.multi_az == "enabled" else ""

    @property
    def idle(self) -> bool:
        """Nothing is being changed, and a change may be asked for."""
        return self.status == "available" and not self.pending

    def cluster_of(self, node: str) -> str:
        """Who has this address; empty: no member."""
        return next((each.cluster for each in self.members if str(each.node) == node), "")

    def node_of(self, cluster: str) -> Node | None:
        return next((each.node for each in self.members if each.cluster == cluster), None)


def _members(node_group: Mapping[str, Any]) -> Iterator[Member]:
    for description in node_group.get("NodeGroupMembers", ()):
        endpoint = description.get("ReadEndpoint")
        if endpoint:
            node = Node(endpoint["Address"], endpoint["Port"])
            yield Member(description["CacheClusterId"], node, description.get("CurrentRole") == "primary")


class Api:
    """The API of one region. May be used by several threads; a client is made when it is first needed."""

    def __init__(self, options: ElastiCache) -> None:
        self._options = options
        self._asking: Any = None
        self._modifying: Any = None

    def describe(self, *ids: str) -> dict[str, Group]:
        """The replication groups of these ids; of none: all that there are. Raises ApiError."""
        with _errors("DescribeReplicationGroups"):
            pages = self._asker().get_paginator("describe_replication_groups")
            found = []
            for asked in [{"ReplicationGroupId": each} for each in ids] or [{}]:
                for page in pages.paginate(**asked, PaginationConfig={"PageSize": PAGE}):
                    found += page["ReplicationGroups"]
        return {each["ReplicationGroupId"]: Group.parse(each) for each in found}

    def promote(self, group: str, cluster: str) -> None:
        """Ask once for this member to be made the primary, now. Raises ApiError, perhaps of unknown outcome."""
        with _errors("ModifyReplicationGroup"):
            # boto3 itself would send it up to five times.
            if self._modifying is None:
                self._modifying = self._client(MODIFY_S, attempts=1)
            self._modifying.modify_replication_group(
                ReplicationGroupId=group, PrimaryClusterId=cluster, ApplyImmediately=True
            )

    def parameter(self, group: str, name: str) -> str:
        """What the parameter group of these servers says, as they may not be asked (CONFIG GET). Raises ApiError."""
        members = self._described(group).members
        with _errors("DescribeCacheClusters"):
            (cluster,) = self._asker().describe_cache_clusters(CacheClusterId=members[0].cluster)["CacheClusters"]
        with _errors("DescribeCacheParameters"):
            pages = self._asker().get_paginator("describe_cache_parameters")
            of = cluster["CacheParameterGroup"]["CacheParameterGroupName"]
            for page in pages.paginate(CacheParameterGroupName=of, PaginationConfig={"PageSize": PAGE}):
                for description in page["Parameters"]:
                    if description["ParameterName"] == name:
                        return str(description.get("ParameterValue", ""))
        return ""

    def _described(self, group: str) -> Group:
        found = self.describe(group)
        if not found.get(group, Group(group, "", ())).members:
            raise ApiError(f'replication group "{group}" has no members')
        return found[group]

    def _asker(self) -> Any:
        if self._asking is None:
            self._asking = self._client(DESCRIBE_S, DESCRIBE_ATTEMPTS)
        return self._asking

    def _client(self, read_s: float, attempts: int) -> Any:
        retries = {"mode": "standard", "total_max_attempts": attempts}
        try:
            with _making:
                return boto3.client(
                    "elasticache",
                    region_name=self._options.region or None,
                    endpoint_url=self._options.endpoint_url or None,
                    config=ClientConfig(connect_timeout=CONNECT_S, read_timeout=read_s, retries=retries),
                )
        except ValueError as exc:  # elasticache.endpoint_url is no URL
            raise ApiError(f"elasticache: {exc}") from None

    def __repr__(self) -> str:
        return f"<Api {self._options.endpoint_url or self._options.region or 'as boto3 finds it'}>"


@contextlib.contextmanager
def _errors(call: str) -> Iterator[None]:
    """What goes wrong with this call, as an ApiError."""
    try:
        yield
    except ClientError as exc:
        error = exc.response.get("Error", {})
        code = str(error.get("Code", ""))
        status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        raise ApiError(f"{call}: {code}: {error.get('Message', '')}", code, unknown=status >= 500) from None
    except BotoCoreError as exc:
        raise ApiError(f"{call}: {exc}", unknown=not isinstance(exc, NEVER_SENT)) from None
    except (ResponseParserError, LookupError, TypeError, ValueError) as exc:
        raise ApiError(f"{call}: not an answer of AWS: {exc!r}", unknown=True) from None


# --- at the start -----------------------------------------------------------------------------------------------------


def discover(config: Config) -> tuple[Shard, ...]:
    """All shards; those that are written as a replication group alone with the primary and the replicas it has.

    AWS is not asked if there is no such shard. Raises ConfigErrors with all problems.
    """
    if not config.undiscovered():
        return config.shards
    try:
        groups = Api(config.elasticache).describe()
    except ApiError as exc:
        raise ConfigErrors([f"elasticache: expected an answer of AWS, got {exc}"]) from None
    shards: list[Shard] = []
    problems: list[str] = []
    for index, shard in enumerate(config.shards):
        if shard.primary == UNDISCOVERED:
            group = groups.get(shard.replication_group)
            problems += _problems(f"shards[{index}].replication_group", shard.replication_group, group, config)
            if group is not None and group.primary is not None:
                replicas = tuple(each.node for each in group.members if not each.primary)
                shard = msgspec.structs.replace(shard, primary=group.primary, replicas=replicas)
        shards.append(shard)
    problems += _shared(shards)
    if problems:
        raise ConfigErrors(problems)
    return tuple(shards)


def _problems(path: str, name: str, group: Group | None, config: Config) -> Iterator[str]:
    if group is None:
        yield f'{path}: expected a group of this account and region, got "{name}", which is none'
        return
    if group.cluster_mode:
        yield f'{path}: expected a group with cluster mode disabled, got "{name}", where it is enabled'
    elif group.primary is None:
        yield f'{path}: expected a group with a primary, got "{name}", which has none and is {group.status}'
    tls = config.backend.tls
    if group.tls == ("off" if tls else "required"):
        wanted, got = str(not tls).lower(), str(tls).lower()
        yield f"backend.tls: expected {wanted}, as encryption in transit of {name} is {group.tls}, got {got}"
    if group.token and not config.backend.password_file:
        yield f'backend.password_file: expected a file, as {name} asks for a token, got ""'


def _shared(shards: list[Shard]) -> Iterator[str]:
    nodes = Counter(node for shard in shards for node in (shard.primary, *shard.replicas) if node != UNDISCOVERED)
    for node in (node for node, times in nodes.items() if times > 1):
        yield f"shards: expected nodes of their own, got {node} more than once"
