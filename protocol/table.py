"""Which commands there are, and what the proxy does with each. Here a command is added, refused or split.

The table is a dict of `Command` by lower-case name. It is made of the generated rows (rows.py). Rows of further
commands, discovered at the servers, are added at run time (`extend`).

The lists below give a command its kind. For a command in none of them a rule decides (`_kind_by_rule`): with exactly
one key at a fixed position it is PLAIN, with other keys KEYED, without keys or if it is not plain data work REFUSED.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from protocol import errors
from protocol.commands import Command, Kind, Row, rows_of
from protocol.keyspecs import Index, KeyNum, KeySpec, Keyword, Range
from protocol.rows import ROWS

# --- what the proxy does ---------------------------------------------------------------------------------------------

_LOCAL = """
    ping echo quit reset time hello auth select info lolwut readonly readwrite unwatch
    client client|id client|info client|list client|getname client|setname client|setinfo client|no-evict
    client|no-touch client|reply client|help client|capa client|getredir client|trackinginfo
    command command|count command|docs command|getkeys command|getkeysandflags command|help command|info command|list
    config config|get config|set config|resetstat config|help
    role lastsave memory|help acl|whoami
    object|help xgroup|help xinfo|help
    script script|help function function|help
    pubsub pubsub|channels pubsub|help pubsub|numpat pubsub|numsub pubsub|shardchannels pubsub|shardnumsub
"""
LOCAL = frozenset(_LOCAL.split())

# name -> how the answers of the parts are merged. The keys of a split go from its first key to the last word.
SPLIT = {"mget": "gather", "mset": "all_ok", "del": "sum", "unlink": "sum", "exists": "sum", "touch": "sum"}
FANOUT = {"dbsize": "sum", "flushdb": "all_ok", "flushall": "all_ok", "keys": "concat"}

TRANSACTION = frozenset(["multi", "exec", "discard"])

# Served by a handler each: pyproxy/worker/commands/handlers.py.
_CONVERSATION = """
    randomkey scan wait waitaof watch memory|doctor memory|purge
    blpop brpop blmove brpoplpush blmpop bzpopmin bzpopmax bzmpop
    eval eval_ro evalsha evalsha_ro fcall fcall_ro
    script|exists script|flush script|kill script|load script|show
    function|delete function|dump function|flush function|kill function|list function|load function|restore
    function|stats
"""
CONVERSATION = frozenset(_CONVERSATION.split())

_PUBSUB = "publish spublish subscribe psubscribe ssubscribe unsubscribe punsubscribe sunsubscribe"
PUBSUB = frozenset(_PUBSUB.split())

# Containers whose subcommands have keys, and commands that block only with BLOCK.
KEYED = frozenset(["object", "xgroup", "xinfo", "memory", "xread", "xreadgroup"])

# Commands that may keep their server busy for seconds, and that get a longer deadline: those that read all keys, whole
# values or several values, and code of clients. A command that only frees a value (DEL), or is slow because it has many
# arguments (MSET), is not in the list. Such commands are too frequent for a longer deadline: a server that does not
# answer one is taken for a silent server.
_SLOW = """
    keys flushall flushdb sort sort_ro
    smembers hgetall hkeys hvals lrange lrem lpos ltrim xrange xrevrange
    zrange zrangebylex zrangebyscore zrangestore zrevrange zrevrangebylex zrevrangebyscore
    zremrangebylex zremrangebyrank zremrangebyscore
    sunion sunionstore sinter sintercard sinterstore sdiff sdiffstore
    zunion zunionstore zinter zintercard zinterstore zdiff zdiffstore
    bitcount bitop bitpos pfcount pfmerge lcs copy dump restore
    georadius georadius_ro georadiusbymember georadiusbymember_ro geosearch geosearchstore
    eval eval_ro evalsha evalsha_ro fcall fcall_ro
    script|flush function|flush function|restore function|dump memory|usage xinfo|stream
"""
SLOW = frozenset(_SLOW.split())

# The slow commands that always read all keys, or nearly all, and that are rare. While one of them is in flight, the
# server is not taken for a silent one. Of the other slow commands a hung server would nearly always have one in flight.
SHARD_WIDE = frozenset(["keys", "flushall", "flushdb", "sort", "sort_ro"])

CONFIGURED_ELSEWHERE = "the proxy is configured by its own file, and each server at that server"

# Reason -> commands. A container stands for its subcommands, except those that a list above or a reason here names.
_REFUSALS: dict[str, str] = {
    "its cursors are about slots of a cluster; use SCAN": "clusterscan",
    "a script is debugged on a connection of one's own; connect to a server directly": "script|debug",
    "clients share connections here, and this changes or controls one; connect to the server directly": "monitor",
    "it is about one connection to one server, and clients share those here; connect to the server directly": """
        client|caching client|import-source client|tracking""",
    "it acts on another client, which may be another worker's; end it from that client's side": """
        client|kill client|unblock""",
    "it stops the clients of one server; send it to that server directly": "client|pause client|unpause",
    CONFIGURED_ELSEWHERE: "config|rewrite",
    "the proxy is one endpoint, not a node of a cluster; use it as a single server": "cluster asking",
    "servers speak it among themselves; replicate from a server directly": "sync psync replconf",
    "it moves keys past the proxy; run it at one server directly": "migrate restore-asking",
    "databases of all shards would have to change at one moment; use SELECT": "swapdb",
    "it is about one server, not about data; ask that server directly": """
        latency slowlog commandlog memory|malloc-stats""",
    "it is about one server; what all of them use together is in INFO memory": "memory|stats",
    "it administers one server, and would do so for everybody; send it to that server directly": """
        acl bgrewriteaof bgsave debug failover module pfdebug pfselftest replicaof save shutdown slaveof""",
}
REFUSED = {name: reason for reason, names in _REFUSALS.items() for name in names.split()}

UNSERVED = "this version does not know how to route it; send it to one server directly"


# --- rows -> commands ------------------------------------------------------------------------------------------------

# A command with one of these flags or categories is no plain data work: it blocks, listens, administers, runs code ...
_NOT_DATA = {"admin", "blocking", "pubsub", "noscript", "@admin", "@blocking", "@pubsub", "@connection", "@scripting"}


def _kind_by_rule(row: Row, specs: Sequence[KeySpec]) -> Kind:
    """The kind of a command that is in no list."""
    flags = row.flags.split()
    if not any(spec.names_keys for spec in specs) or _NOT_DATA & {*flags, *row.categories.split()}:
        return Kind.REFUSED
    fixed = all(isinstance(spec.begin, Index) and isinstance(spec.find, Range) for spec in specs)
    if fixed and "movablekeys" in flags:
        return Kind.REFUSED  # the server finds keys by code of its own, which the specs do not show
    one = len(specs) == 1 and specs[0].complete and isinstance(specs[0].find, Range) and specs[0].find.lastkey == 0
    # the lane does not check that the key is there, so the arity must guarantee it
    surely = isinstance(specs[0].begin, Index) and specs[0].begin.position < abs(row.arity)
    return Kind.PLAIN if fixed and one and surely and "|" not in row.name else Kind.KEYED


def _command(row: Row, subcommands: Mapping[bytes, Command]) -> Command:
    """The command of a row: its kind by the lists above, or else by the rule."""
    specs = tuple(KeySpec.parse(texts) for texts in row.key_specs)
    kind, merge, reason = _kind_by_rule(row, specs), "", ""
    refusal = REFUSED.get(row.name) or REFUSED.get(row.name.partition("|")[0])
    if row.name in LOCAL:
        kind = Kind.LOCAL
    elif row.name in TRANSACTION:
        kind = Kind.TRANSACTION
    elif row.name in CONVERSATION:
        kind = Kind.CONVERSATION
    elif row.name in PUBSUB:
        kind = Kind.PUBSUB
    elif row.name in FANOUT:
        kind, merge = Kind.FANOUT, FANOUT[row.name]
    elif row.name in SPLIT:
        kind, merge = Kind.SPLIT, SPLIT[row.name]
    elif row.name in KEYED:
        kind = Kind.KEYED
    elif refusal or kind is Kind.REFUSED:
        kind, reason = Kind.REFUSED, refusal or UNSERVED
    return _made(row, specs, kind, merge, reason, subcommands)


def _discovered(row: Row) -> Command:
    """The command of a row that a server gave: its kind by the rule."""
    specs = tuple(KeySpec.parse(texts) for texts in row.key_specs)
    return _made(row, specs, _kind_by_rule(row, specs), "", "", {})


def _made(
    row: Row, specs: tuple[KeySpec, ...], kind: Kind, merge: str, reason: str, subcommands: Mapping[bytes, Command]
) -> Command:
    first_key = step = 0
    if kind in (Kind.PLAIN, Kind.SPLIT):
        begin, find = specs[0].begin, specs[0].find
        if not isinstance(begin, Index) or not isinstance(find, Range):
            raise ValueError(f"{row.name}: expected keys at fixed positions, got {row.key_specs}")
        first_key, step = begin.position, find.keystep if kind is Kind.SPLIT else 0
    name, flags = row.name.encode(), frozenset(row.flags.split())
    slow, wide = row.name in SLOW, row.name in SHARD_WIDE
    return Command(name, row.arity, flags, specs, kind, row, first_key, step, merge, reason, slow, wide, subcommands)


def _build(rows: Iterable[Row]) -> dict[bytes, Command]:
    """Rows -> commands by name. A container stands before its subcommands."""
    subcommands: dict[str, dict[bytes, Command]] = {}
    for row in rows:
        container, _, sub = row.name.partition("|")
        if sub:
            subcommands.setdefault(container, {})[sub.encode()] = _command(row, {})
    tops = (row for row in rows if "|" not in row.name)
    return {row.name.encode(): _command(row, subcommands.get(row.name, {})) for row in tops}


TABLE: dict[bytes, Command] = _build([Row(*row) for row in ROWS])


# --- lookup ----------------------------------------------------------------------------------------------------------


def lookup(argv: Sequence[bytes], table: Mapping[bytes, Command] = TABLE) -> Command | None:
    """The command, or the subcommand, of this argv; None if there is none (`unknown` makes the error line).

    A container without a subcommand is found as itself. Its arity check fails then.
    """
    command = table.get(argv[0].lower())
    if command is None or not command.subcommands or len(argv) == 1:
        return command
    return command.subcommands.get(argv[1].lower())


def unknown(argv: Sequence[bytes], table: Mapping[bytes, Command] = TABLE) -> bytes:
    """The error line for an argv that `lookup` does not find."""
    container = table.get(argv[0].lower())
    return errors.unknown_command(argv) if container is None else errors.unknown_subcommand(container.name, argv[1])


# --- discovery --------------------------------------------------------------------------------------------------------


def learn(replies: Sequence[object]) -> list[Row]:
    """Rows for `extend`: the commands that the built-in table lacks and that all primaries describe alike.

    `replies`: the COMMAND reply of each primary, as hiredis parses it. An entry with an unknown form is left out, as no
    server may stop the proxy by its COMMAND reply. Built-in commands stay as they are.
    """
    known = [_rows_by_name(reply) for reply in replies]
    if not known:
        return []
    common = (row for name, row in known[0].items() if all(_agree(row, each.get(name)) for each in known[1:]))
    return [row for row in common if _learnable(row)][:_MAX_DISCOVERED]


def extend(table: Mapping[bytes, Command], rows: Iterable[Sequence[Any]]) -> dict[bytes, Command]:
    """A new table with the discovered rows; `table` itself does not change.

    A row may have become a list on its way between processes. A row that `learn` cannot have made is left out: no
    description of a command may end a worker.
    """
    extended = dict(table)
    for values in rows:
        row = Row(*values)
        if not _learnable(row):
            continue
        _add(extended, _discovered(row))
    return extended


def _add(table: dict[bytes, Command], command: Command) -> None:
    name, _, sub = command.name.partition(b"|")
    if not sub:
        table.setdefault(name, command)
        return
    container = table.get(name) or Command(
        name, -2, frozenset(), (), Kind.KEYED, Row(name.decode(), -2, "", 0, 0, 0, "@slow", "", ())
    )
    if container.kind is Kind.KEYED:
        table[name] = replace(container, subcommands={sub: command, **container.subcommands})


def _rows_by_name(reply: object) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for entry in reply if isinstance(reply, list | tuple) else ():
        try:
            rows.update((row.name, row) for row in rows_of(entry))
        except (ValueError, RecursionError):
            continue  # `malformed` reports it
    return rows


def _agree(row: Row, other: Row | None) -> bool:
    """Whether two servers describe the same command. Arity and tips may differ: each server checks its own arity."""
    return other is not None and row._replace(arity=0, tips="") == other._replace(arity=0, tips="")


def _learnable(row: Row) -> bool:
    """Whether a row is not built in, is plain data work, and has keys that can be found from its specs alone."""
    if _is_built_in(row.name):
        return False
    if "@dangerous" in row.categories.split() or not {"readonly", "write"}.intersection(row.flags.split()):
        return False
    try:
        specs = [KeySpec.parse(texts) for texts in row.key_specs]
    except (ValueError, TypeError):
        return False
    if _malformed(row, specs):
        return False
    complete = all(spec.complete and spec.names_keys for spec in specs)
    return complete and _kind_by_rule(row, specs) is not Kind.REFUSED


def malformed(reply: object) -> dict[str, str]:
    """Impossible descriptions of commands that are not built in, in a COMMAND reply: name -> what is impossible."""
    found = {}
    for entry in reply if isinstance(reply, list | tuple) else ():
        try:
            rows = [row for row in rows_of(entry) if not _is_built_in(row.name)]
        except (ValueError, RecursionError) as exc:
            found[repr(entry[0] if isinstance(entry, list) and entry else entry)[:60]] = str(exc)[:200]
            continue
        for row in rows:
            try:
                what = _malformed(row, [KeySpec.parse(texts) for texts in row.key_specs])
            except (ValueError, TypeError) as exc:
                what = str(exc)[:200]
            if what:
                found[row.name] = what
    return found


def _malformed(row: Row, specs: Sequence[KeySpec]) -> str:
    """What is impossible in the description of a command; empty: nothing. Its numbers are used to find keys."""
    if not re.fullmatch(_NAME, row.name):
        return f"expected a name of at most 100 letters, digits and _ . : | -, got {row.name!r:.120}"
    if not 0 < abs(row.arity) <= _MAX_WORDS:
        return f"expected an arity from 1 to {_MAX_WORDS}, or the negative, got {row.arity}"
    size = sum(map(len, (row.flags, row.categories, row.tips, *(text for texts in row.key_specs for text in texts))))
    if size > _MAX_ROW_BYTES:
        return f"expected at most {_MAX_ROW_BYTES} bytes about it, got {size}"
    numbers: list[tuple[str, int, int]] = [
        (what, abs(number), 0) for what, number in (("first", row.first), ("last", row.last), ("step", row.step))
    ]
    for spec in specs:
        match spec.begin:
            case Index(position):
                numbers.append(("begin_search index", position, 1))
            case Keyword(_, startfrom):
                numbers.append(("begin_search startfrom", abs(startfrom), 1))
        match spec.find:
            case Range(lastkey, keystep, limit):
                numbers += [("lastkey", abs(lastkey), 0), ("keystep", keystep, 1), ("limit", limit, 0)]
            case KeyNum(keynumidx, firstkey, keystep):
                numbers += [("keynumidx", keynumidx, 0), ("firstkey", firstkey, 0), ("keystep", keystep, 1)]
    for what, number, least in numbers:
        if not least <= number <= _MAX_WORDS:
            return f"expected a {what} from {least} to {_MAX_WORDS}, got {number}"
    return ""


_NAME = r"[a-z0-9_.:|-]{1,100}"

_MAX_WORDS = 1 << 20
"""The most words of one command that servers take (networking.c)."""

_MAX_DISCOVERED, _MAX_ROW_BYTES = 1000, 8192
"""The most discovered commands, and bytes of a description: each worker gets all of them in one message."""


def _is_built_in(name: str) -> bool:
    """True for each subcommand of a built-in container that is not KEYED: the container's kind covers all of them."""
    container, _, sub = name.partition("|")
    command = TABLE.get(container.encode())
    if command is None or not sub:
        return command is not None
    return command.kind is not Kind.KEYED or sub.encode() in command.subcommands
