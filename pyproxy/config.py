"""The configuration: what an operator may say, and everything that is wrong with what was said.

A TOML file comes in; a checked `Config` goes out, or a ConfigErrors with every problem that the file has, each as
`path: expected ..., got ...`. The options, their types, bounds and defaults are the Structs below and stand nowhere
else. Here nothing is connected and no name is looked up.

config_reading.py reads it field by field. What was read well is looked at as a whole at the end of this file: slots,
names, nodes, promoters, timers and bounds must fit together.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import msgspec
from msgspec import Meta
from msgspec import inspect as shape

from pyproxy.config_reading import BAD, NotToml, Tree, read_struct, read_toml, shown
from pyproxy.hashing import SLOTS
from pyproxy.shard_map import Node, Shard, ShardMap, SlotRange, format_slots, join_slots

KIB = 1024
MIB = 1024 * KIB

Seconds = Annotated[float, Meta(ge=0.001, le=3600.0)]
ShardName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}\Z")]
PromoterName = Literal["none", "replicaof", "sentinel", "elasticache"]

SENTINELS = 3  # fewer cannot outvote one that is wrong
SOCKET_PATH_BYTES = 107  # of a unix socket: sun_path of <sys/un.h>, less its end

UNDISCOVERED = Node("", 0)
"""The primary of a shard that is only known by its replication group, until that was asked for."""


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds. Those that say so are per client or per worker."""

    max_clients: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000  # of all workers together
    memory_bytes: Annotated[int, Meta(ge=MIB, le=1 << 40)] = 256 * MIB  # per worker: requests, replies, held
    bulk_bytes: Annotated[int, Meta(ge=1, le=512 * MIB)] = 64 * MIB  # one argument
    args: Annotated[int, Meta(ge=1, le=1_048_576)] = 1_048_576  # of one command
    inline_bytes: Annotated[int, Meta(ge=64, le=64 * KIB)] = 64 * KIB  # a command without RESP framing
    inflight: Annotated[int, Meta(ge=1, le=1_000_000)] = 1024  # commands per client, then it is not read
    scripts_bytes: Annotated[int, Meta(ge=64 * KIB, le=8 * MIB)] = 8 * MIB  # texts of scripts; per worker
    client_output_bytes: Annotated[int, Meta(ge=64 * KIB, le=1 << 40)] = 64 * MIB  # that it has not read
    pubsub_bytes: Annotated[int, Meta(ge=64 * KIB, le=1 << 40)] = 32 * MIB  # that a subscriber has not read
    long_leases: Annotated[int, Meta(ge=1, le=100_000)] = 500  # connections per shard and worker that clients hold
    cross_shard_bytes: Annotated[int, Meta(ge=1, le=1 << 40)] = 64 * MIB  # copied from shard to shard by one command


class Timeouts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Deadlines, in seconds."""

    connect_s: Seconds = 1.0  # to a backend
    reply_s: Seconds = 1.0  # from a backend; then the client gets an error, and the late reply is swallowed
    slow_reply_s: Seconds = 30.0  # instead, to what goes through all keys: KEYS, FLUSHALL, FLUSHDB, SORT
    silence_s: Seconds = 3.0  # a backend connection that owes replies and sends no byte is dropped
    reconnect_min_s: Seconds = 0.05
    reconnect_max_s: Seconds = 5.0
    drain_s: Annotated[float, Meta(ge=0.0, le=3600.0)] = 10.0  # from SIGTERM to the end of what is still out
    unfinished_s: Seconds = 30.0  # for a command whose end does not come


class Http(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the parent says and is told: the status over HTTP, commands of operators over a unix socket."""

    listen: Node | None = None  # written ""; nobody listens
    admin: str = ""  # an absolute path, for `promote`, `pause` and `resume`; empty: no commands


WithoutKeys = Literal["auto", "one", "refuse", "all-sum", "all-concat", "all-first", "all-equal"]


class ScriptRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[[scripts.calls]]`: which calls without keys, by one of the first three, and what they are."""

    text: str = ""  # a pattern of the script's text: *, ? and [...], as in a shell
    sha1: str = ""  # of its text, as EVALSHA names it
    function: str = ""  # a pattern of the function's name
    without_keys: WithoutKeys


class ScriptRules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[scripts]`: what calls of scripts and functions are that name no key. What they find may be on any shard."""

    without_keys: WithoutKeys = "auto"  # auto: on one shard where the text is seen to use no keys, else refused
    calls: tuple[ScriptRule, ...] = ()  # of which another is true; the first that fits counts


class BackendAccess(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[backend]`: how all servers are connected to. Passwords stand in a file of their own, never here."""

    tls: bool = False  # 1.2 or newer, certificate and name (the node's host) verified; never plain text instead
    tls_ca: str = ""  # certificates in PEM; empty: the system's
    username: str = ""  # empty: the default user
    password_file: str = ""  # one password, or two on two lines: the second is tried where the first is refused


class Promotion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[promotion]`: what happens when a primary fails, and to the writes of its shard meanwhile."""

    promoter: PromoterName = "none"  # of shards that name none themselves; `none`: follow, never act
    promote: bool = True  # false: this proxy follows what another promoter does (replicaof, elasticache)
    on_promotion: Literal["auto", "hold", "reject"] = "auto"  # auto: hold only what is expected to be over in time
    down_after_s: Seconds = 3.0  # of silence, until a primary counts as down
    misconf_after_s: Annotated[float, Meta(ge=0.0, le=3600.0)] = 5.0  # of -MISCONF; 0: that alone is no reason
    loading_s: Seconds = 30.0  # that a primary may load its data, until it counts as down
    auto_hold_s: Seconds = 1.0  # how long one request is held in auto, and
    hold_s: Seconds = 4.0  # in hold
    hold_incident_s: Seconds = 15.0  # after so long nothing more is held
    hold_again_s: Annotated[float, Meta(ge=0.0, le=3600.0)] = 60.0  # after a promotion, until anything is held again
    hold_requests: Annotated[int, Meta(ge=1, le=1_000_000)] = 2000  # per shard and worker
    hold_bytes: Annotated[int, Meta(ge=1, le=1 << 40)] = 8 * MIB  # per shard and worker
    hold_client_bytes: Annotated[int, Meta(ge=1, le=1 << 40)] = 256 * KIB  # per client
    hold_process_bytes: Annotated[int, Meta(ge=1, le=1 << 40)] = 32 * MIB  # per worker
    deadline_s: Seconds = 10.0  # for one attempt to promote
    verify_s: Seconds = 5.0  # for the new primary to be seen as such
    min_between_s: Annotated[float, Meta(ge=0.0, le=86400.0)] = 60.0  # between promotions of one shard by this proxy
    state_file: str = ""  # where epochs and primaries are kept over a restart; empty: nowhere


class Sentinel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[sentinel]`: who decides where promoter is sentinel."""

    nodes: tuple[Node, ...] = ()  # three or more
    name: str = "{shard}"  # of a shard's master, as the sentinels know it
    username: str = ""
    password_file: str = ""  # of the sentinels; of the servers it is backend.password_file


class ElastiCache(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[elasticache]`: how the API is reached where promoter is elasticache. Credentials are boto3's business."""

    region: str = ""  # empty: as boto3 finds it
    endpoint_url: str = ""  # empty: of the region
    poll_s: Seconds = 30.0  # between Describe calls in peace
    trouble_poll_s: Seconds = 5.0  # and for a shard in trouble
    delay_s: Annotated[float, Meta(ge=0.0, le=60.0)] = 3.0  # at most, at random, before a promotion is asked for


class ShardTable(Shard, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[[shards]]`: a Shard, and what is said of it alone."""

    name: ShardName  # it stands in error lines, logs and metrics
    primary: Node = UNDISCOVERED  # only with a replication group
    replicas: tuple[Node, ...] = ()
    slots: tuple[SlotRange, ...]
    promoter: Literal["", PromoterName] = ""  # empty: promotion.promoter
    accept_misplaced: bool = False  # its primary may hold mostly keys of other shards: it is used all the same
    replication_group: str = ""  # the id that ElastiCache knows; its nodes are asked for at the start


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    listen: Node = Node("127.0.0.1", 6380)
    workers: Annotated[int, Meta(ge=0, le=256)] = 0  # 0: one per core
    store: str = ""  # file:/path; who owns which slots, once they were moved; empty: as written here
    limits: Limits = Limits()
    timeouts: Timeouts = Timeouts()
    reads: Literal["primary", "prefer-replica", "replica"] = "primary"
    reads_max_lag_s: Seconds = 2.0  # of a replica that is read from; and a client reads its own writes for so long
    transactions: Literal["shard", "split"] = "shard"  # keys on several shards: refused at EXEC, or a block on each
    cross_shard: Literal["refuse", "emulate"] = "refuse"  # commands whose keys are on several, SUNION for one
    canary: bool = False  # an ECHO before each request, to see that a server's answers are in step
    config_set: tuple[str, ...] = ()  # settings that clients may set on all servers, beside notify-keyspace-events
    scripts: ScriptRules = ScriptRules()
    http: Http = Http()
    backend: BackendAccess = BackendAccess()
    promotion: Promotion = Promotion()
    sentinel: Sentinel = Sentinel()
    elasticache: ElastiCache = ElastiCache()
    shards: tuple[ShardTable, ...]

    @classmethod
    def load(cls, path: Path) -> Self:
        """The checked configuration in this file. Raises ConfigErrors with all problems."""
        try:
            raw = path.read_bytes()
        except OSError as exc:
            reason = (exc.strerror or str(exc)).lower()
            raise ConfigErrors([f"{path}: expected a readable file, got {reason}"]) from None
        return cls.parse(raw)

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """The checked configuration in these bytes of TOML. Raises ConfigErrors with all problems."""
        try:
            document = read_toml(raw)
        except NotToml as exc:
            raise ConfigErrors([str(exc)]) from None
        problems: list[str] = []
        tree = read_struct(shape.type_info(cls), document, "", problems)
        problems += _cross_checks(tree)
        if problems:
            raise ConfigErrors(problems)
        return msgspec.convert(tree, cls)

    def shard_map(self, version: int = 1) -> ShardMap:
        """The shards as they are to be served; ValueError while one is undiscovered."""
        if missing := [table.name for table in self.undiscovered()]:
            raise ValueError(f"expected the primary of every shard, got none of {', '.join(missing)}")
        plain = (Shard(each.name, each.primary, each.replicas, each.slots) for each in self.shards)
        return ShardMap(version, tuple(plain))

    def undiscovered(self) -> tuple[ShardTable, ...]:
        """The shards of which only the replication group is known."""
        return tuple(table for table in self.shards if table.primary == UNDISCOVERED)

    def with_nodes(self, found: Iterable[Shard]) -> Self:
        """The same with the primary and the replicas of these shards, by their names."""
        by_name = {shard.name: shard for shard in found}
        tables = tuple(
            msgspec.structs.replace(table, primary=shard.primary, replicas=shard.replicas)
            if (shard := by_name.get(table.name))
            else table
            for table in self.shards
        )
        return msgspec.structs.replace(self, shards=tables)

    def with_shards(self, tables: Iterable[ShardTable]) -> Self:
        """The same with these shards. Raises ConfigErrors, as `parse` does."""
        changed = msgspec.structs.replace(self, shards=tuple(tables))
        if problems := list(_cross_checks(_tree(changed))):
            raise ConfigErrors(problems)
        return changed

    def promoter_of(self, shard: Shard) -> PromoterName:
        """Who promotes in this shard."""
        return self._table(shard).promoter or self.promotion.promoter

    def replication_group_of(self, shard: Shard) -> str:
        """The id by which ElastiCache knows this shard; empty: none."""
        return self._table(shard).replication_group

    def _table(self, shard: Shard) -> ShardTable:
        """That of a shard that was added while the proxy runs has no options of its own."""
        added = ShardTable(name=shard.name, slots=shard.slots)
        return next((table for table in self.shards if table.name == shard.name), added)


class ConfigErrors(Exception):
    """Everything that is wrong, a line for each problem."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


# --- as a whole ----------------------------------------------------------------------------------------------


def _cross_checks(tree: Any) -> Iterator[str]:
    """What is wrong between fields that are each right. Fields that were not read well are not asked about."""
    if tree is BAD:
        return
    for smaller, larger in ORDER:
        yield from _check_order(tree, smaller, larger)
    ours = {path: node for path, node in (("listen", tree.get("listen")), ("http.listen", _http_listen(tree))) if node}
    if len(ours) > 1 and len(set(ours.values())) == 1 and ours["listen"].port:
        yield f'http.listen: expected an address of its own, got "{ours["listen"]}" of listen'
    yield from _check_store(tree.get("store", ""))
    yield from _check_scripts(tree.get("scripts", {}))
    yield from _check_admin(tree.get("http", {}))
    yield from _check_login("backend", tree.get("backend", {}))
    yield from _check_login("sentinel", tree.get("sentinel", {}))
    if "shards" in tree:
        shards = tree["shards"]
        if not shards:
            yield "shards: expected at least one, got none"
            return
        yield from _check_names(shards)
        yield from _check_nodes(shards, tree.get("sentinel", {}), set(ours.values()))
        yield from _check_slots(shards)
        yield from _check_promoters(tree, shards)


ORDER = (
    ("limits.bulk_bytes", "limits.memory_bytes"),
    ("timeouts.reply_s", "timeouts.silence_s"),
    ("timeouts.reply_s", "timeouts.slow_reply_s"),
    ("timeouts.reconnect_min_s", "timeouts.reconnect_max_s"),
    ("promotion.auto_hold_s", "promotion.hold_incident_s"),
    ("promotion.hold_s", "promotion.hold_incident_s"),
    ("promotion.hold_client_bytes", "promotion.hold_bytes"),
    ("promotion.hold_bytes", "promotion.hold_process_bytes"),
    ("elasticache.trouble_poll_s", "elasticache.poll_s"),
)
"""What may not be larger than what."""


def _check_order(tree: Tree, smaller: str, larger: str) -> Iterator[str]:
    least, most = (tree.get(table, {}).get(option) for table, option in (smaller.split("."), larger.split(".")))
    if least is not None and most is not None and most < least:
        yield f"{larger}: expected at least {smaller} ({least}), got {most}"


def _tree(value: Any) -> Any:
    """A configuration as it is read: tables of tables."""
    if isinstance(value, msgspec.Struct) and not isinstance(value, Node):
        return {name: _tree(getattr(value, name)) for name in value.__struct_fields__}
    return tuple(map(_tree, value)) if isinstance(value, tuple) else value


def _check_store(store: str) -> Iterator[str]:
    if store.startswith("etcd://"):
        yield f"store: expected file:/absolute/path, as etcd is not supported yet, got {shown(store)}"
    elif store and not re.fullmatch("file:/.*[^/]", store):
        yield f'store: expected file:/absolute/path, or "", got {shown(store)}'


def _check_scripts(scripts: Tree) -> Iterator[str]:
    """Each rule says of which calls, and says it once."""
    calls = scripts.get("calls", BAD)
    for index, rule in _trees(() if calls is BAD else calls):
        path = f"scripts.calls[{index}]"
        named = [option for option in ("text", "sha1", "function") if rule.get(option, BAD) not in ("", BAD)]
        if len(named) > 1 or (not named and all(option in rule for option in ("text", "sha1", "function"))):
            yield f"{path}: expected one of text, sha1, function, got {' and '.join(named) or 'none'}"
        sha1 = rule.get("sha1", "")
        if sha1 and not re.fullmatch("[0-9a-fA-F]{40}", sha1):
            yield f"{path}.sha1: expected 40 hexadecimal digits, got {shown(sha1)}"


def _check_admin(http: Tree) -> Iterator[str]:
    path = http.get("admin", "")
    if path and not path.startswith("/"):
        yield f'http.admin: expected an absolute path, got "{path}"'
    elif (length := len(path.encode())) > SOCKET_PATH_BYTES:
        yield f"http.admin: expected a path of at most {SOCKET_PATH_BYTES} bytes, as of every socket, got {length}"


def _check_login(table: str, options: Tree) -> Iterator[str]:
    if options.get("tls_ca") and options.get("tls") is False:
        yield f"{table}.tls: expected true, as {table}.tls_ca is given, got false"
    if options.get("username") and options.get("password_file") == "":
        yield f"{table}.password_file: expected a file, as {table}.username is given, got nothing"


def _check_names(shards: tuple[Any, ...]) -> Iterator[str]:
    first: dict[str, int] = {}
    for index, shard in _trees(shards):
        if "name" in shard:
            name = shard["name"]
            if first.setdefault(name, index) != index:
                yield f'shards[{index}].name: expected a name of its own, got "{name}" of shards[{first[name]}]'


def _http_listen(tree: Tree) -> Node | None:
    http: Tree = tree.get("http", {})
    return http.get("listen")


def _check_nodes(shards: tuple[Any, ...], sentinel: Tree, ours: set[Node]) -> Iterator[str]:
    """Every server has an address of its own, in the order of the shards; sentinels are servers too."""
    named: list[tuple[str, Any]] = []
    for index, shard in _trees(shards):
        named.append((f"shards[{index}].primary", shard.get("primary", BAD)))
        named += [(f"shards[{index}].replicas[{i}]", node) for i, node in enumerate(shard.get("replicas", ()))]
    named += [(f"sentinel.nodes[{i}]", node) for i, node in enumerate(sentinel.get("nodes", ()))]
    first: dict[Node, str] = {}
    for path, node in named:
        if node is BAD or node == UNDISCOVERED:
            continue
        if node.port == 0:
            yield f"{path}: expected a port from 1 to 65535, got 0"
        elif node in ours:
            yield f'{path}: expected a redis server, got "{node}", where pyproxy itself listens'
        elif first.setdefault(node, path) != path:
            yield f'{path}: expected a node of its own, got "{node}" of {first[node]}'


def _check_slots(shards: tuple[Any, ...]) -> Iterator[str]:
    """Each slot has one owner. Nothing is said of gaps while some slots could not be read: they may be there."""
    owners: list[tuple[int, ...]] = [()] * SLOTS
    all_read = True
    for index, shard in enumerate(shards):
        ranges = shard.get("slots", BAD) if shard is not BAD else BAD
        if ranges is BAD or BAD in ranges:
            all_read = False
        for first, last in (each for each in (() if ranges is BAD else ranges) if each is not BAD):
            owners[first : last + 1] = [(*claims, index) for claims in owners[first : last + 1]]
    shared: dict[tuple[int, ...], list[int]] = {}
    for number, claims in enumerate(owners):
        if len(claims) > 1:
            shared.setdefault(claims, []).append(number)
    for claims_of, slots in shared.items():
        times = Counter(claims_of).items()
        who = " and ".join(f"shards[{index}]" + (f" ({count} times)" if count > 1 else "") for index, count in times)
        yield f"shards[{claims_of[-1]}].slots: expected slots that no other has, got {_ranges(slots)} of {who}"
    missing = [number for number, claims in enumerate(owners) if not claims]
    if missing and all_read:
        yield f"shards: expected an owner for every slot from 0 to {SLOTS - 1}, got none for {_ranges(missing)}"


def _ranges(slots: list[int]) -> str:
    ranges = [format_slots(each) for each in join_slots(slots)]
    more = f" and {len(ranges) - 8} more ranges" if len(ranges) > 8 else ""
    return ", ".join(ranges[:8]) + more


def _trees(shards: tuple[Any, ...]) -> Iterator[tuple[int, Tree]]:
    return ((index, shard) for index, shard in enumerate(shards) if shard is not BAD)


# --- promoters -----------------------------------------------------------------------------------------------


def _check_promoters(tree: Tree, shards: tuple[Any, ...]) -> Iterator[str]:
    """Each shard has what its promoter needs, and nobody is told anything who is not asked."""
    promoters: dict[int, str] = {}
    groups: dict[str, int] = {}
    for index, shard in _trees(shards):
        promoter = shard.get("promoter", BAD) or tree.get("promotion", {}).get("promoter", BAD)
        if promoter is not BAD:
            promoters[index] = promoter
        yield from _check_shard(f"shards[{index}]", shard, promoter)
        group = shard.get("replication_group")
        if group and groups.setdefault(group, index) != index:
            path = f"shards[{index}].replication_group"
            yield f'{path}: expected a group of its own, got "{group}" of shards[{groups[group]}]'
    if len(promoters) < len(shards):
        return  # who promotes the others may be what could not be read
    if set(promoters.values()) != {"none"}:
        yield from _check_order(tree, "promotion.hold_process_bytes", "limits.memory_bytes")
    if "sentinel" in promoters.values():
        yield from _check_sentinel(tree.get("sentinel", {}), list(promoters.values()).count("sentinel"))
    for table, defaults in (("sentinel", Sentinel()), ("elasticache", ElastiCache())):
        if table not in promoters.values():
            for option, value in tree.get(table, {}).items():
                if value != getattr(defaults, option):
                    yield f"{table}.{option}: expected nothing, as no shard has promoter {table}, got {shown(value)}"
    if tree.get("reads", "primary") != "primary" and not any(_may_have_replicas(shard) for _, shard in _trees(shards)):
        yield f"reads: expected primary, as no shard has replicas, got {tree['reads']}"


def _check_shard(path: str, shard: Tree, promoter: Any) -> Iterator[str]:
    group = shard.get("replication_group", BAD)
    if promoter == "elasticache" and group == "":
        yield f"{path}.replication_group: expected an id, as the shard's promoter is elasticache, got nothing"
    if promoter not in ("elasticache", BAD) and group not in ("", BAD):
        yield f'{path}.replication_group: expected nothing, as the shard\'s promoter is {promoter}, got "{group}"'
    if shard.get("primary") == UNDISCOVERED:
        if group == "":
            yield f"{path}.primary: expected host:port, got nothing"
        elif shard.get("replicas"):
            yield f"{path}.primary: expected host:port, as replicas are given, got nothing"
    if promoter in ("replicaof", "sentinel") and not _may_have_replicas(shard):
        yield f"{path}.replicas: expected one or more, as the shard's promoter is {promoter}, got none"


def _may_have_replicas(shard: Tree) -> bool:
    return shard.get("replicas") != () or shard.get("replication_group") != ""


def _check_sentinel(sentinel: Tree, shards: int) -> Iterator[str]:
    nodes, name = sentinel.get("nodes", BAD), sentinel.get("name", BAD)
    if nodes is not BAD and len(nodes) < SENTINELS:
        yield f"sentinel.nodes: expected {SENTINELS} or more, as promoter is sentinel, got {len(nodes)}"
    if name is BAD:
        return
    if not name or set("{}") & set(name.replace("{shard}", "")):
        yield f'sentinel.name: expected a name, with no braces but of {{shard}}, got "{name}"'
    elif shards > 1 and "{shard}" not in name:
        yield f'sentinel.name: expected {{shard}} in it, as {shards} shards have promoter sentinel, got "{name}"'
