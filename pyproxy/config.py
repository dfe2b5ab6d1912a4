"""The configuration: what an operator may say, and everything that is wrong with what was said.

A TOML file comes in; a checked `Config` goes out, or a ConfigErrors with every problem that the file has, each as
`path: expected ..., got ...`. The options, their types, bounds and defaults are the Structs below and stand nowhere
else. Here nothing is connected and no name is looked up.

msgspec stops at its first error, so the parsed TOML is walked along msgspec's own description of the Structs, field
by field. What was read well is then looked at as a whole: slots, names and nodes must fit together.
"""

import difflib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import msgspec
from msgspec import Meta
from msgspec import inspect as shape

from pyproxy.hashing import SLOTS
from pyproxy.shardmap import Node, Shard, ShardMap, SlotRange, format_slots, join_slots, parse_slots

KIB = 1024
MIB = 1024 * KIB

Seconds = Annotated[float, Meta(ge=0.001, le=3600.0)]


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds. Those that say so are per client or per worker."""

    max_clients: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000  # of all workers together
    memory_bytes: Annotated[int, Meta(ge=MIB, le=1 << 40)] = 256 * MIB  # per worker: requests, replies, held
    bulk_bytes: Annotated[int, Meta(ge=1, le=512 * MIB)] = 64 * MIB  # one argument
    args: Annotated[int, Meta(ge=1, le=1_048_576)] = 1_048_576  # of one command
    inline_bytes: Annotated[int, Meta(ge=64, le=64 * KIB)] = 64 * KIB  # a command without RESP framing
    inflight: Annotated[int, Meta(ge=1, le=1_000_000)] = 1024  # commands per client, then it is not read


class Timeouts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Deadlines, in seconds."""

    connect_s: Seconds = 1.0  # to a backend
    reply_s: Seconds = 1.0  # from a backend; then the client gets an error, and the late reply is swallowed
    silence_s: Seconds = 3.0  # a backend connection that owes replies and sends no byte is dropped
    reconnect_min_s: Seconds = 0.05
    reconnect_max_s: Seconds = 5.0
    drain_s: Annotated[float, Meta(ge=0.0, le=3600.0)] = 10.0  # from SIGTERM to the end of what is still out
    unfinished_s: Seconds = 30.0  # for a command whose end does not come


class Http(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The status over HTTP, for probes and operators."""

    listen: Node | None = None  # written ""; nobody listens


class BackendAccess(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[backend]`: how all servers are connected to. Passwords stand in a file of their own, never here."""

    tls: bool = False  # 1.2 or newer, certificate and name (the node's host) verified; never plain text instead
    tls_ca: str = ""  # certificates in PEM; empty: the system's
    username: str = ""  # empty: the default user
    password_file: str = ""  # one password, or two on two lines: the second is tried where the first is refused


class Promotion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[promotion]`: what happens when a primary fails, and to the writes of its shard meanwhile."""

    promoter: Literal["none", "replicaof", "sentinel", "elasticache"] = "none"  # `none`: follow, never act
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


class ShardTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[[shards]]` as written: a Shard whose replicas may be left out."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}\Z")]  # it stands in error lines, logs and metrics
    primary: Node
    slots: tuple[SlotRange, ...]
    replicas: tuple[Node, ...] = ()


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    listen: Node = Node("127.0.0.1", 6380)
    workers: Annotated[int, Meta(ge=0, le=256)] = 0  # 0: one per core
    limits: Limits = Limits()
    timeouts: Timeouts = Timeouts()
    reads: Literal["primary", "prefer-replica", "replica"] = "primary"
    reads_max_lag_s: Seconds = 2.0  # of a replica that is read from; and a client reads its own writes for so long
    http: Http = Http()
    backend: BackendAccess = BackendAccess()
    promotion: Promotion = Promotion()
    sentinel: Sentinel = Sentinel()
    elasticache: ElastiCache = ElastiCache()
    shards: tuple[Shard, ...]

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
            document = msgspec.toml.decode(raw)
        except UnicodeDecodeError as exc:
            line = raw.count(b"\n", 0, exc.start) + 1
            raise ConfigErrors([f"line {line}: expected UTF-8, got byte 0x{raw[exc.start]:02x}"]) from None
        except msgspec.DecodeError as exc:  # tomllib's text, which ends in "(at line 3, column 5)"
            raise ConfigErrors([f"syntax: expected TOML, got: {_lower_first(str(exc))}"]) from None
        problems: list[str] = []
        tree = _read_struct(_SHAPE, document, "", problems)
        problems += _cross_checks(tree)
        if problems:
            raise ConfigErrors(problems)
        return msgspec.convert(tree, cls)

    def shard_map(self, version: int = 1) -> ShardMap:
        return ShardMap(version, self.shards)


class ConfigErrors(Exception):
    """Everything that is wrong, a line for each problem."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


# --- field by field ------------------------------------------------------------------------------------------

Tree = dict[str, Any]
"""A Struct's fields that were read well or left out, by name; those with a problem are missing."""

_SHAPE = shape.type_info(Config)
_SHARD_SHAPE = shape.type_info(ShardTable)

_BAD = object()


def _read(kind: shape.Type, value: object, path: str, problems: list[str]) -> Any:
    """The value as this type; _BAD, and a line in `problems`, where it is not of it."""
    match kind:
        case shape.StructType(cls=cls) if cls is Node:
            return _parsed(Node.parse, "host:port", value, path, problems)
        case shape.UnionType():  # the one address that may be left empty
            return _parsed(lambda text: Node.parse(text) if text else None, 'host:port, or ""', value, path, problems)
        case shape.StructType(cls=cls) if cls is Shard:
            return _read_struct(_SHARD_SHAPE, value, path, problems)
        case shape.StructType():
            return _read_struct(kind, value, path, problems)
        case shape.TupleType():
            return _parsed(parse_slots, f'slots such as "0-1638" or "5", at most {SLOTS - 1}', value, path, problems)
        case shape.VarTupleType(item_type=item):
            if isinstance(value, list):
                return tuple(_read(item, each, f"{path}[{i}]", problems) for i, each in enumerate(value))
            tables = isinstance(item, shape.StructType) and item.cls is Shard
            expected = "tables, as [[shards]]" if tables else "an array"
        case shape.IntType() | shape.FloatType():
            whole = isinstance(kind, shape.IntType)
            if _is_number(value, whole) and kind.ge <= value <= kind.le:  # type: ignore[operator]
                return value if whole else float(value)  # type: ignore[arg-type]
            expected = f"a {'whole ' if whole else ''}number from {kind.ge} to {kind.le}"
        case shape.LiteralType(values=values):
            if value in values and isinstance(value, str):
                return value
            expected = f"one of {', '.join(map(str, values))}"
        case shape.BoolType():
            if isinstance(value, bool):
                return value
            expected = "true or false"
        case shape.StrType(pattern=None):
            if isinstance(value, str) and value.isprintable():
                return value
            expected = "a text on one line"
        case shape.StrType():  # only names have a pattern
            try:
                return msgspec.convert(value, Annotated[str, Meta(pattern=kind.pattern)])
            except msgspec.ValidationError:
                expected = "a name of 1 to 64 letters, digits and _ . -"
        case _:
            raise TypeError(f"no rule to read {kind} at {path}")
    problems.append(f"{path}: expected {expected}, got {_shown(value)}")
    return _BAD


def _read_struct(kind: shape.Type, value: object, path: str, problems: list[str]) -> Any:
    assert isinstance(kind, shape.StructType)
    if not isinstance(value, dict):
        problems.append(f"{path}: expected a table, got {_shown(value)}")
        return _BAD
    fields = {field.encode_name: field for field in kind.fields}
    here = f"{path}." if path else ""
    for name in (name for name in value if name not in fields):
        near = difflib.get_close_matches(name, fields, 1)
        known = f"{near[0]}?" if near else f"one of {', '.join(fields)}"
        problems.append(f"{here}{name}: expected a known option ({known}), got an unknown one")
    tree: Tree = {}
    for name, field in fields.items():
        if name in value:
            read = _read(field.type, value[name], here + name, problems)
            if read is not _BAD:
                tree[name] = read
        elif field.required:
            problems.append(f"{here}{name}: expected {_wanted(field.type)}, got nothing")
        else:
            nested = isinstance(field.default, msgspec.Struct) and not isinstance(field.default, Node)
            tree[name] = msgspec.structs.asdict(field.default) if nested else field.default
    return tree


def _wanted(kind: shape.Type) -> str:
    """What a required field wants, as said by its own rule when it is given something of no type."""
    problems: list[str] = []
    _read(kind, None, "", problems)
    return problems[0].removeprefix(": expected ").removesuffix(f", got {_shown(None)}")


def _parsed(parse: Any, expected: str, value: object, path: str, problems: list[str]) -> Any:
    try:
        if isinstance(value, str):
            return parse(value)
    except ValueError:
        pass
    problems.append(f"{path}: expected {expected}, got {_shown(value)}")
    return _BAD


def _is_number(value: object, whole: bool) -> bool:
    return isinstance(value, int if whole else int | float) and not isinstance(value, bool)


def _shown(value: object) -> str:
    """A value of the file, short, as one would write it in TOML."""
    match value:
        case dict():
            return "a table"
        case list():
            return f"an array of {len(value)}"
        case str():
            return json.dumps(value if len(value) <= 60 else value[:60] + "...")
        case bool():
            return str(value).lower()
        case _:
            return str(value)


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


# --- as a whole ----------------------------------------------------------------------------------------------


def _cross_checks(tree: Any) -> Iterator[str]:
    """What is wrong between fields that are each right. Fields that were not read well are not asked about."""
    if tree is _BAD:
        return
    yield from _check_order(tree, "limits", "bulk_bytes", "memory_bytes")
    yield from _check_order(tree, "timeouts", "reply_s", "silence_s")
    yield from _check_order(tree, "timeouts", "reconnect_min_s", "reconnect_max_s")
    ours = {path: node for path, node in (("listen", tree.get("listen")), ("http.listen", _http_listen(tree))) if node}
    if len(ours) > 1 and len(set(ours.values())) == 1 and ours["listen"].port:
        yield f'http.listen: expected an address of its own, got "{ours["listen"]}" of listen'
    yield from _check_backend(tree.get("backend", {}))
    if "shards" in tree:
        shards = tree["shards"]
        if not shards:
            yield "shards: expected at least one, got none"
            return
        yield from _check_names(shards)
        yield from _check_nodes(shards, set(ours.values()))
        yield from _check_slots(shards)


def _check_order(tree: Tree, table: str, smaller: str, larger: str) -> Iterator[str]:
    options: Tree = tree.get(table, {})
    if smaller in options and larger in options and options[larger] < options[smaller]:
        yield f"{table}.{larger}: expected at least {table}.{smaller} ({options[smaller]}), got {options[larger]}"


def _check_backend(backend: Tree) -> Iterator[str]:
    if backend.get("tls_ca") and backend.get("tls") is False:
        yield "backend.tls: expected true, as backend.tls_ca is given, got false"
    if backend.get("username") and backend.get("password_file") == "":
        yield "backend.password_file: expected a file, as backend.username is given, got nothing"


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


def _check_nodes(shards: tuple[Any, ...], ours: set[Node]) -> Iterator[str]:
    first: dict[Node, str] = {}
    for index, shard in _trees(shards):
        named = [(f"shards[{index}].primary", shard.get("primary", _BAD))]
        named += [(f"shards[{index}].replicas[{i}]", node) for i, node in enumerate(shard.get("replicas", ()))]
        for path, node in named:
            if node is _BAD:
                continue
            if node.port == 0:
                yield f"{path}: expected a port from 1 to 65535, got 0"
            elif node in ours:
                yield f'{path}: expected a redis server, got "{node}", where pyproxy itself listens'
            elif first.setdefault(node, path) != path:
                yield f'{path}: expected a node of its own, got "{node}" of {first[node]}'


def _check_slots(shards: tuple[Any, ...]) -> Iterator[str]:
    """Each slot has one owner. Nothing is said of gaps while some slots could not be read: they may be there."""
    owners: list[list[int]] = [[] for _ in range(SLOTS)]
    all_read = True
    for index, shard in enumerate(shards):
        ranges = shard.get("slots", _BAD) if shard is not _BAD else _BAD
        if ranges is _BAD or _BAD in ranges:
            all_read = False
        for first, last in (each for each in (() if ranges is _BAD else ranges) if each is not _BAD):
            for number in range(first, last + 1):
                owners[number].append(index)
    shared: dict[tuple[int, ...], list[int]] = {}
    for number, claims in enumerate(owners):
        if len(claims) > 1:
            shared.setdefault(tuple(claims), []).append(number)
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
    return ((index, shard) for index, shard in enumerate(shards) if shard is not _BAD)
