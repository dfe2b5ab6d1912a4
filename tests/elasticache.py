"""ElastiCache as the proxy meets it: AWS' query API over HTTP, in front of real servers.

    boto3 ──HTTP──▶ FakeElastiCache ──REPLICAOF, as an admin──▶ the servers of a Fleet

Each shard of the fleet is a replication group `rg-<shard>` with cluster mode disabled and the members `rg-<shard>-001`,
-002 ... It has AWS' states, and refuses what AWS refuses. Promotions are carried out by a thread of it, the control
plane, which also brings a member that comes back as a master under the primary, and where automatic failover is
enabled promotes the replica with the least lag when the primary is dead. A `Fault` is what the API does wrong.

The servers refuse to the default user, as which the proxy connects, what AWS forbids (RestrictedCommands in the guide):
start the fleet with `options()`. What the API answers has the shape of botocore's model of 2015-02-02; which code AWS
gives for which refusal is from its documentation, and not all of it was seen.
"""

import contextlib
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from pyproxy.fleet import HOST, Fleet, LiveShard, Server

ADMIN, SECRET = "rdsadmin", "s3cret-of-aws"
FORBIDDEN = [
    *("acl|deluser", "acl|load", "acl|save", "acl|setuser", "bgrewriteaof", "bgsave", "config", "debug", "migrate"),
    *("cluster|addslots", "cluster|addslotsrange", "cluster|bumpepoch", "cluster|delslots", "cluster|delslotsrange"),
    *("cluster|failover", "cluster|flushslots", "cluster|forget", "cluster|links", "cluster|meet", "cluster|setslot"),
    *("psync", "replicaof", "save", "shutdown", "slaveof", "sync"),
    "failover",  # not in the list, but nobody says that it is allowed
]
NAMESPACE = "http://elasticache.amazonaws.com/doc/2015-02-02/"
TICK_S = 0.02


def options() -> list[str]:
    """For the command line of every server."""
    admin = ["--user", ADMIN, "on", f">{SECRET}", "~*", "&*", "+@all"]
    everybody = ["--user", "default", "on", "nopass", "~*", "&*", "+@all", *(f"-{each}" for each in FORBIDDEN)]
    return [*admin, *everybody, "--masteruser", ADMIN, "--masterauth", SECRET]


def pretend_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """What boto3 signs with, and nothing that this machine may have."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "example",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "*",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_ELASTICACHE"):
        monkeypatch.delenv(name, raising=False)


class Refusal(Exception):
    """An error that the API answers."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


@dataclass
class Fault:
    """What happens to the next calls of an action."""

    refusal: Refusal | None = None  # answered, and nothing is done
    delay_s: float = 0.0  # before anything is done
    silent: bool = False  # nothing is done, and the connection closed without an answer after the delay
    lost: bool = False  # it is done, and the connection closed without an answer


@dataclass
class Group:
    id: str
    members: dict[str, Server]
    primary: str  # CacheClusterId
    automatic_failover: str = "disabled"
    multi_az: str = "disabled"
    status: str = "available"
    pending: str = ""
    named: str = ""  # who Describe still says is the primary; empty: as it is
    token: bool = False
    tls: str = ""  # TransitEncryptionMode
    cluster_enabled: bool = False
    parameters: dict[str, str] = field(default_factory=dict)


class FakeElastiCache:
    """A context manager. `ports` are where members are reached, if not at their servers' ports."""

    def __init__(self, fleet: Fleet, ports: dict[int, int] | None = None) -> None:
        self.groups = {group.id: group for group in map(_group, fleet.shards)}
        self.calls: list[dict[str, str]] = []
        self.begin_s = 0.0  # from an accepted modification to the change of roles
        self.modifying_s = 0.0  # from there until the group is available again
        self.late_s = 0.0  # from there until Describe names the new primary
        self.detect_s = 0.0  # automatic failover: from a primary's death to the change of roles
        self.mends = True  # brings members that come back under the primary
        self._ports = ports or {}
        self._faults: dict[str, deque[Fault]] = {}
        self._lock = threading.RLock()
        self._stopped = threading.Event()
        self._plans: list[tuple[float, Callable[[], None]]] = []
        self._dead_since: dict[str, float] = {}
        self._http = ThreadingHTTPServer((HOST, 0), self._handler())
        self._http.daemon_threads = True
        serve = threading.Thread(target=self._http.serve_forever, args=(TICK_S,), daemon=True)
        self._threads = [serve, threading.Thread(target=self._control_plane, daemon=True)]

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self._http.server_port}"

    @property
    def group(self) -> Group:
        """The only one."""
        (group,) = self.groups.values()
        return group

    def counted(self, action: str) -> int:
        """How often this was called, refused or not."""
        return Counter(call["Action"] for call in self.calls)[action]

    def fail(self, action: str, fault: Fault, times: int = 1) -> None:
        self._faults.setdefault(action, deque()).extend([fault] * times)

    def promote(self, group: Group, cluster: str) -> None:
        """As if somebody had asked for it who may."""
        with self._lock:
            self._modify(group, cluster)

    def denied(self) -> list[str]:
        """What the servers refused to the proxy, as those of AWS do."""
        servers = [server for group in self.groups.values() for server in group.members.values() if server.running]
        entries = [entry for server in servers for entry in admin(server, "ACL", "LOG")]
        return [str(dict(zip(entry[::2], entry[1::2], strict=True))[b"object"]) for entry in entries]

    def require(self, password: str) -> None:
        """From now on the servers ask everybody for it, as with an AUTH token."""
        for group in self.groups.values():
            group.token = True
            for server in group.members.values():
                admin(server, "ACL", "SETUSER", "default", "resetpass", f">{password}")

    def address(self, server: Server) -> str:
        return f"{HOST}:{self._port(server)}"

    def __enter__(self) -> Self:
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._http.shutdown()
        for each in self._threads:
            each.join()
        self._http.server_close()

    # --- the control plane --------------------------------------------------------------------------------------------

    def _modify(self, group: Group, cluster: str) -> None:
        group.status, group.pending = "modifying", cluster
        self._plan(self.begin_s, lambda: self._switch(group, cluster))

    def _switch(self, group: Group, cluster: str) -> None:
        """The roles change, and later what is said of them."""
        was, group.primary = group.primary, cluster
        group.named = was
        for each, server in sorted(group.members.items(), key=lambda member: member[0] != cluster):
            with contextlib.suppress(redis.RedisError):
                admin(server, "REPLICAOF", *(["NO", "ONE"] if each == cluster else _place(group)))

        def described() -> None:
            group.named = ""

        def available() -> None:
            group.status, group.pending = "available", ""

        self._plan(self.late_s, described)
        self._plan(self.modifying_s, available)

    def _plan(self, after_s: float, what: Callable[[], None]) -> None:
        self._plans.append((time.monotonic() + after_s, what))

    def _control_plane(self) -> None:
        while not self._stopped.wait(TICK_S):
            with self._lock:
                now = time.monotonic()
                due = [what for at, what in self._plans if at <= now]
                self._plans = [plan for plan in self._plans if plan[0] > now]
                for what in due:
                    what()
                for group in list(self.groups.values()):
                    if group.status == "available":
                        self._mend(group, now)

    def _mend(self, group: Group, now: float) -> None:
        dead = not group.members[group.primary].running
        since = self._dead_since.setdefault(group.id, now) if dead else self._dead_since.pop(group.id, now)
        if dead and group.automatic_failover == "enabled" and now - since >= self.detect_s:
            alive = [each for each, server in group.members.items() if server.running and each != group.primary]
            if alive:
                group.status = "modifying"
                self._switch(group, max(alive, key=lambda each: _offset(group.members[each])))
        for each, server in group.members.items() if self.mends else ():
            with contextlib.suppress(redis.RedisError):
                if each != group.primary and server.running and _info(server)["role"] == "master":
                    admin(server, "REPLICAOF", *_place(group))

    # --- the API ------------------------------------------------------------------------------------------------------

    def _answer(self, action: str, asked: dict[str, str]) -> str:
        with self._lock:
            match action:
                case "DescribeReplicationGroups":
                    return self._describe(asked)
                case "ModifyReplicationGroup":
                    return f"<ReplicationGroup>{self._modification(asked)}</ReplicationGroup>"
                case "DescribeCacheClusters":
                    return self._describe_cluster(asked["CacheClusterId"])
                case "DescribeCacheParameters":
                    return self._describe_parameters(asked)
        raise Refusal("InvalidAction", f"{action} is not what the proxy may call")

    def _found(self, name: str) -> Group:
        if name not in self.groups:
            raise Refusal("ReplicationGroupNotFoundFault", f"ReplicationGroup {name} not found.", 404)
        return self.groups[name]

    def _describe(self, asked: dict[str, str]) -> str:
        if "ReplicationGroupId" in asked:
            group = self._described(self._found(asked["ReplicationGroupId"]))
            return f"<ReplicationGroups><ReplicationGroup>{group}</ReplicationGroup></ReplicationGroups>"
        page, marker = _page(sorted(self.groups), asked)
        groups = "".join(f"<ReplicationGroup>{self._described(self.groups[each])}</ReplicationGroup>" for each in page)
        return f"{marker}<ReplicationGroups>{groups}</ReplicationGroups>"

    def _described(self, group: Group) -> str:
        primary = group.named or group.primary
        members = "".join(
            f"<NodeGroupMember><CacheClusterId>{each}</CacheClusterId><CacheNodeId>0001</CacheNodeId>"
            f"{self._endpoint('ReadEndpoint', server)}<PreferredAvailabilityZone>eu-west-1a</PreferredAvailabilityZone>"
            f"<CurrentRole>{'primary' if each == primary else 'replica'}</CurrentRole></NodeGroupMember>"
            for each, server in group.members.items()
        )
        pending = f"<PrimaryClusterId>{group.pending}</PrimaryClusterId>" if group.pending else ""
        mode = f"<TransitEncryptionMode>{group.tls}</TransitEncryptionMode>" if group.tls else ""
        return (
            f"<ReplicationGroupId>{group.id}</ReplicationGroupId><Description>of tests</Description>"
            f"<Status>{group.status}</Status><PendingModifiedValues>{pending}</PendingModifiedValues><MemberClusters>"
            + "".join(f"<ClusterId>{each}</ClusterId>" for each in group.members)
            + f"</MemberClusters><NodeGroups><NodeGroup><NodeGroupId>0001</NodeGroupId><Status>{group.status}</Status>"
            f"<PrimaryEndpoint><Address>primary.invalid</Address><Port>6379</Port></PrimaryEndpoint>"
            f"<ReaderEndpoint><Address>reader.invalid</Address><Port>6379</Port></ReaderEndpoint>"
            f"<NodeGroupMembers>{members}</NodeGroupMembers></NodeGroup></NodeGroups>"
            f"<AutomaticFailover>{group.automatic_failover}</AutomaticFailover><MultiAZ>{group.multi_az}</MultiAZ>"
            f"<ClusterEnabled>{_truth(group.cluster_enabled)}</ClusterEnabled>"
            f"<AuthTokenEnabled>{_truth(group.token)}</AuthTokenEnabled>"
            f"<TransitEncryptionEnabled>{_truth(bool(group.tls))}</TransitEncryptionEnabled>{mode}"
        )

    def _modification(self, asked: dict[str, str]) -> str:
        group = self._found(asked["ReplicationGroupId"])
        if group.status != "available":
            raise Refusal("InvalidReplicationGroupState", f"Replication group must be available, is {group.status}.")
        cluster = asked.get("PrimaryClusterId", "")
        if cluster not in group.members:
            raise Refusal("CacheClusterNotFound", f"{cluster or 'nothing'} is no member of {group.id}.", 404)
        if group.automatic_failover != "disabled" or group.multi_az != "disabled" or group.cluster_enabled:
            message = "PrimaryClusterId cannot be specified while automatic failover or Multi-AZ is enabled."
            raise Refusal("InvalidParameterCombination", message)
        if asked.get("ApplyImmediately") == "true":
            self._modify(group, cluster)
        else:
            group.pending = cluster  # until the maintenance window
        return self._described(group)

    def _describe_cluster(self, cluster: str) -> str:
        group = next((each for each in self.groups.values() if cluster in each.members), None)
        if group is None:
            raise Refusal("CacheClusterNotFound", f"CacheCluster not found: {cluster}", 404)
        return (
            f"<CacheClusters><CacheCluster><CacheClusterId>{cluster}</CacheClusterId><CacheParameterGroup>"
            f"<CacheParameterGroupName>of-{group.id}</CacheParameterGroupName></CacheParameterGroup>"
            f"<ReplicationGroupId>{group.id}</ReplicationGroupId></CacheCluster></CacheClusters>"
        )

    def _describe_parameters(self, asked: dict[str, str]) -> str:
        parameters = self.groups[asked["CacheParameterGroupName"].removeprefix("of-")].parameters
        page, marker = _page(sorted(parameters), asked)
        listed = "".join(
            f"<Parameter><ParameterName>{each}</ParameterName>"
            f"<ParameterValue>{escape(parameters[each])}</ParameterValue></Parameter>"
            for each in page
        )
        return f"{marker}<Parameters>{listed}</Parameters>"

    def _endpoint(self, element: str, server: Server) -> str:
        return f"<{element}><Address>{HOST}</Address><Port>{self._port(server)}</Port></{element}>"

    def _port(self, server: Server) -> int:
        return self._ports.get(server.port, server.port)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                asked = dict(parse_qsl(body))
                with api._lock:
                    api.calls.append(asked)
                    faults = api._faults.get(asked["Action"])
                    fault = faults.popleft() if faults else Fault()
                if api._stopped.wait(fault.delay_s) or fault.silent:
                    self.close_connection = True
                    return
                status, said = self._answered(asked, fault)
                if fault.lost:
                    self.close_connection = True
                    return
                with contextlib.suppress(OSError):  # it did not wait for the answer
                    self._say(status, said)

            def _answered(self, asked: dict[str, str], fault: Fault) -> tuple[int, str]:
                action = asked["Action"]
                try:
                    if "Credential=" not in self.headers.get("Authorization", ""):
                        raise Refusal("MissingAuthenticationToken", "Request is missing Authentication Token", 403)
                    if fault.refusal:
                        raise fault.refusal
                    result = api._answer(action, asked)
                except Refusal as exc:
                    error = f"<Type>Sender</Type><Code>{exc.code}</Code><Message>{escape(str(exc))}</Message>"
                    return exc.status, _document("ErrorResponse", f"<Error>{error}</Error>")
                return 200, _document(f"{action}Response", f"<{action}Result>{result}</{action}Result>")

            def _say(self, status: int, said: str) -> None:
                body = said.encode()
                self.send_response(status)
                self.send_header("Content-Type", "text/xml")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


def _group(shard: LiveShard) -> Group:
    servers = [shard.primary, *shard.replicas]
    members = {f"rg-{shard.name}-{number:03}": server for number, server in enumerate(servers, 1)}
    return Group(f"rg-{shard.name}", members, f"rg-{shard.name}-001")


def _place(group: Group) -> list[str]:
    """Where the members copy from: each other's servers, whatever stands before them."""
    return [HOST, str(group.members[group.primary].port)]


def admin(server: Server, *argv: str) -> Any:
    """The answer of a server to AWS."""
    once = Retry(NoBackoff(), 0)
    with redis.Redis(
        port=server.port, username=ADMIN, password=SECRET, protocol=2, socket_timeout=1.0, retry=once
    ) as client:
        return client.execute_command(*argv)


def _info(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = admin(server, "INFO", "replication")
    return found


def _offset(server: Server) -> int:
    with contextlib.suppress(redis.RedisError):
        return int(_info(server)["slave_repl_offset"])
    return -1


def _page(names: list[str], asked: dict[str, str]) -> tuple[list[str], str]:
    """Those after the marker, and the marker of the next."""
    left = [each for each in names if each > asked.get("Marker", "")]
    page = left[: int(asked.get("MaxRecords", 100))]
    return page, f"<Marker>{page[-1]}</Marker>" if len(left) > len(page) else ""


def _truth(value: bool) -> str:
    return str(value).lower()


def _document(element: str, inside: str) -> str:
    return f'<{element} xmlns="{NAMESPACE}">{inside}<RequestId>r</RequestId></{element}>'
