"""The router's oracle: the table against what real servers say of their commands; and what the table may learn."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

import msgspec
import pytest

from protocol import errors, rows
from protocol.commands import BadKeys, Command, Kind, Row, rows_of
from protocol.keyspecs import GRAMMARS
from protocol.reply import Error, Value, decode
from protocol.request import encode
from protocol.table import (
    FANOUT,
    KEYED,
    LOCAL,
    REFUSED,
    SLOW,
    SPLIT,
    TABLE,
    UNSERVED,
    extend,
    learn,
    lookup,
    malformed,
    unknown,
)
from pyproxy.fleet import Server
from tests.protocol.arguments import command_line
from tests.wire import exchange
from tools.make_table import Answers, docs_text, rows_text

LINES_PER_COMMAND = 12

# Lines for which the server finds keys and we answer an error; each with the reason.
WE_REFUSE = {
    "sort": "BY and GET with * read keys that lie on other shards",
    "sort_ro": "BY and GET with * read keys that lie on other shards",
}
# Lines for which we find keys and the server does not.
SERVER_FINDS_NONE = {
    "pfmerge": "given a destination alone; the specs of the server expect a source, PFMERGE itself does not",
}
# Lines with more than one destination, of which the server writes the last: Redis 7.0 names them all, we the last.
LAST_DESTINATION = ("georadius", "georadiusbymember")


def all_commands() -> Iterator[Command]:
    for command in TABLE.values():
        yield command
        yield from command.subcommands.values()


ALL = {command.name.decode(): command for command in all_commands()}


def said_of_keys(server: Server, argv: list[bytes]) -> Value:
    return decode(exchange(server.port, encode([b"COMMAND", b"GETKEYS", *argv])))


def docs_by_name(docs: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Commands and subcommands, each with its own entry."""
    subcommands = {name: doc for entry in docs.values() for name, doc in entry.get("subcommands", {}).items()}
    return docs | subcommands


@pytest.fixture(scope="session")
def reply(each_server: Server) -> Answers:
    return Answers(each_server.port)


@dataclass(frozen=True)
class Line:
    """A random line of a command, and the keys that the server finds in it."""

    name: str
    argv: list[bytes]
    keys: Value


@pytest.fixture(scope="session")
def lines(each_server: Server, reply: Answers) -> list[Line]:
    """Of every command of the server; several where it has keys."""
    docs, random = docs_by_name(reply.docs), Random(7)
    containers = {name.partition("|")[0] for name in reply.rows if "|" in name}
    found = []
    for name in sorted(reply.rows.keys() - containers):
        for _ in range(LINES_PER_COMMAND if ALL[name].has_keys else 1):
            argv = fitting_line(reply.rows[name], docs[name], random)
            found.append(Line(name, argv, said_of_keys(each_server, argv)))
    return found


# --- the oracle ------------------------------------------------------------------------------------------------------


def test_our_keys_are_those_of_command_getkeys(lines: list[Line]) -> None:
    disagree = []
    for line in lines:
        difference = compare_keys(line.name, ALL[line.name], line.argv, line.keys)
        if difference:
            disagree.append(f"{b' '.join(line.argv).decode()}: {difference}")
    assert disagree == []
    assert len(lines) > 2000, "the servers name hundreds of commands with keys"


def keys_are_looked_for(row: Row) -> bool:
    """By their number, behind a keyword, or by code of its own."""
    fixed = all(spec[1].startswith("index ") and spec[2].startswith("range ") for spec in row.key_specs)
    return not fixed or row.name.encode() in GRAMMARS


def test_the_server_found_keys_of_every_command_that_has_some(lines: list[Line], reply: Answers) -> None:
    numbers: dict[str, set[int]] = {line.name: set() for line in lines}
    for line in lines:
        numbers[line.name] |= {len(line.keys)} if isinstance(line.keys, list) else set()
    assert [name for name, counts in numbers.items() if ALL[name].has_keys and not counts - {0}] == []
    parsed = {name for name in numbers if keys_are_looked_for(reply.rows[name])}
    assert [name for name in parsed if len(numbers[name]) < 2] == ["sort_ro"], "which has one, and patterns"


def test_every_command_whose_keys_are_looked_for_was_asked_of_a_server(reply: Answers) -> None:
    parsed = {row[0] for row in rows.ROWS if keys_are_looked_for(Row(*row))}
    assert len(parsed) > 20
    if reply.source != rows.SOURCES[0]:
        parsed -= {"msetex"}  # of Valkey 9.1
    assert parsed - reply.rows.keys() == set()


def fitting_line(row: Row, doc: dict[str, Any], random: Random) -> list[bytes]:
    """A line with a right arity, which docs do not say; two words at least, as Redis 7.0 wants for GETKEYS."""
    for _ in range(100):
        argv = command_line(row.name, doc, random)
        if not row.key_specs:
            return [*argv, b"x"]
        if len(argv) == row.arity or len(argv) >= -row.arity > 0:
            return argv
    raise AssertionError(f"{row.name}: no line of arity {row.arity} in 100 tries")


def compare_keys(name: str, command: Command, argv: list[bytes], theirs: Value) -> str:
    """What is different, in words; empty if nothing is, or if it is one of the differences listed above."""
    try:
        ours: list[bytes] | bytes = [argv[position] for position in command.positions(argv)]
    except BadKeys as refused:
        ours = refused.line
    match theirs:
        case Error(line=b"ERR The command has no key arguments"):
            same = not command.has_keys and ours == []
        case Error():
            same = isinstance(ours, bytes) or name in SERVER_FINDS_NONE
        case [key, _, last] if name in LAST_DESTINATION:
            same = ours == [key, last]
        case _:
            same = ours == theirs
    if not same:
        return f"we say {ours!r}, the server {theirs!r}"
    if not isinstance(ours, bytes) and name not in WE_REFUSE and command.keys(argv) != command.positions(argv):
        return "keys() and positions() differ"
    return ""


def test_the_oracle_notices_keys_that_differ() -> None:
    get = ALL["get"]
    assert compare_keys("get", get, [b"get", b"k"], [b"k"]) == ""
    assert "the server" in compare_keys("get", get, [b"get", b"k"], [b"other"])
    assert "the server" in compare_keys("get", get, [b"get", b"k"], Error(b"ERR The command has no key arguments"))
    assert "the server" in compare_keys("zunion", ALL["zunion"], [b"zunion", b"0", b"k"], [b"k"])


def test_each_listed_difference_is_one(server: Server) -> None:
    assert said_of_keys(server, [b"PFMERGE", b"d"]) == Error(b"ERR Invalid arguments specified for command")
    for line in ["sort k BY w:*", "sort_ro k GET *"]:
        argv = line.encode().split()
        assert argv[0].decode() in WE_REFUSE
        assert isinstance(said_of_keys(server, argv), list)
        with pytest.raises(BadKeys):
            ALL[argv[0].decode()].keys(argv)


def test_of_two_destinations_the_server_writes_the_last(each_server: Server) -> None:
    lines = ["DEL town a b", "GEOADD town 1 1 x", "GEORADIUS town 1 1 9 km STORE a STOREDIST b", "EXISTS a", "EXISTS b"]
    reply = exchange(each_server.port, b"".join(encode(line.encode().split()) for line in lines))
    assert reply.endswith(b":1\r\n:1\r\n:0\r\n:1\r\n")
    assert ALL["georadius"].keys(lines[2].encode().split()) == [1, 9]


def test_every_command_of_the_server_is_in_the_table(reply: Answers) -> None:
    assert reply.rows.keys() - ALL.keys() == set()


def test_the_commands_that_came_with_redis_7_2_and_7_4_are_in_the_table() -> None:
    """No such server is asked, so by their release notes."""
    of_72 = {"client|no-touch", "client|setinfo", "cluster|myshardid", "waitaof"}
    of_74 = {f"h{name}" for name in ("expire", "expireat", "expiretime", "persist", "ttl")}
    of_74 |= {f"h{name}" for name in ("pexpire", "pexpireat", "pexpiretime", "pttl")}
    assert (of_72 | of_74) - ALL.keys() == set()


def test_our_reads_are_what_the_server_flags_readonly_and_not_blocking(reply: Answers) -> None:
    flags = {name: row.flags.split() for name, row in reply.rows.items()}
    theirs = {name for name, each in flags.items() if "readonly" in each and "blocking" not in each}
    assert {name for name in reply.rows if ALL[name].is_read} == theirs
    assert len(theirs) > 80


def test_nothing_the_server_flags_as_dangerous_to_others_is_passed_on(reply: Answers) -> None:
    """The proxy answers or refuses it. Two wait only if they are asked to: `Command.waits`."""
    forbidden = {"admin", "blocking", "pubsub", "noscript"}
    passed_on = (Kind.PLAIN, Kind.KEYED, Kind.SPLIT, Kind.FANOUT)
    flagged = {name for name, row in reply.rows.items() if forbidden & set(row.flags.split())}
    assert {name for name in flagged if ALL[name].kind in passed_on} == {"xread", "xreadgroup"}


def test_a_plain_command_has_one_key_whatever_its_arguments(each_server: Server, reply: Answers) -> None:
    docs, random = docs_by_name(reply.docs), Random(8)
    plain = [name for name in reply.rows if ALL[name].kind is Kind.PLAIN]
    assert len(plain) > 100
    for name in plain:
        argv = [*fitting_line(reply.rows[name], docs[name], random), b"STORE", b"other", b"KEYS", b"2", b"GET", b"x"]
        if reply.rows[name].arity > 0:
            argv = argv[: reply.rows[name].arity]
        assert said_of_keys(each_server, argv) == [argv[ALL[name].first_key]], name


def test_the_committed_files_are_what_the_generator_writes(reply: Answers) -> None:
    if reply.source != rows.SOURCES[0]:
        pytest.skip(f"the files are of {rows.SOURCES[0]}, this server is {reply.source}")
    ours = {row[0]: Row(*row) for row in rows.ROWS}
    assert rows_text(reply.rows, rows.SOURCES) == rows_text(ours, rows.SOURCES)
    path = rows.__file__.replace("rows.py", "docs.json")
    with open(path, encoding="utf-8") as file:
        assert file.read() == docs_text(reply.docs, reply.help)


# --- kinds -----------------------------------------------------------------------------------------------------------


def test_every_name_in_the_lists_is_a_command() -> None:
    assert {*LOCAL, *SPLIT, *FANOUT, *KEYED, *REFUSED, *SLOW} - ALL.keys() == set()


def test_no_command_stands_in_two_lists() -> None:
    names = [*LOCAL, *SPLIT, *FANOUT, *KEYED, *REFUSED]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("name", ["keys", "flushall", "sort", "smembers", "hgetall", "sunion", "zrange", "evalsha"])
def test_a_command_that_may_keep_its_server_at_work_is_marked_slow(name: str) -> None:
    assert ALL[name].slow


@pytest.mark.parametrize("name", ["get", "set", "del", "mget", "hget", "zadd", "scan", "blpop", "exec", "publish"])
def test_what_is_waited_for_or_quick_is_not_marked_slow(name: str) -> None:
    """A server that is silent to one of these is silent; of one that waits, silence says nothing at all."""
    assert not ALL[name].slow


def test_no_command_that_waits_or_is_not_sent_is_marked_slow() -> None:
    assert [n for n in SLOW if "blocking" in ALL[n].flags or ALL[n].kind in (Kind.LOCAL, Kind.REFUSED)] == []


def test_no_built_in_command_is_refused_for_want_of_a_reason() -> None:
    assert [name for name, command in ALL.items() if command.reason == UNSERVED] == []


def test_a_reason_belongs_to_a_refusal_and_is_one_line() -> None:
    for name, command in ALL.items():
        assert bool(command.reason) == (command.kind is Kind.REFUSED), name
        assert "\n" not in command.reason and len(command.reason) < 130, name


def test_a_merge_belongs_to_what_goes_to_many_shards() -> None:
    merges = {name: command.merge for name, command in ALL.items() if command.merge}
    assert merges == SPLIT | FANOUT


@pytest.mark.parametrize(("name", "first_key", "step"), [("mget", 1, 1), ("mset", 1, 2), ("del", 1, 1)])
def test_a_split_says_where_its_keys_begin_and_how_far_apart_they_are(name: str, first_key: int, step: int) -> None:
    assert (ALL[name].first_key, ALL[name].step) == (first_key, step)


def test_only_plain_and_split_commands_say_where_their_first_key_is() -> None:
    with_key = {command.kind for command in ALL.values() if command.first_key}
    assert with_key == {Kind.PLAIN, Kind.SPLIT}
    assert all(command.first_key for command in ALL.values() if command.kind in with_key)


LINES = {
    Kind.PLAIN: ["GET k", "restore k 0 x", "geosearch k", "delifeq k v", "move k 1"],
    Kind.KEYED: ["SORT k", "Object ENCODING k", "memory usage k", "xread", "xgroup CREATE k g $", "copy a b"],
    Kind.SPLIT: ["mget a", "MSET a 1", "touch a"],
    Kind.FANOUT: ["keys *", "dbsize", "FlushAll"],
    Kind.LOCAL: ["client id", "CLIENT", "command docs", "config get x", "config set a b", "object help"],
    Kind.REFUSED: ["client kill", "config rewrite", "memory stats", "clusterscan 0", "script debug yes"],
}
LINES[Kind.TRANSACTION] = ["multi", "EXEC", "discard"]
LINES[Kind.REFUSED] += ["cluster slots", "shutdown", "module list", "acl cat"]
LINES[Kind.CONVERSATION] = ["watch k", "RandomKey", "scan 0", "WAIT 1 0", "waitaof 1 0 0"]
LINES[Kind.CONVERSATION] += ["eval s 0", "Script LOAD x", "FCALL f 1 k", "function stats"]
LINES[Kind.CONVERSATION] += ["blpop k 0", "BLMOVE a b LEFT LEFT 0", "bzmpop 0 1 k MIN"]
LINES[Kind.PUBSUB] = ["publish c m", "Subscribe c", "sunsubscribe"]


@pytest.mark.parametrize(("kind", "line"), [(kind, line) for kind, lines in LINES.items() for line in lines])
def test_each_command_has_its_kind_in_any_case(kind: Kind, line: str) -> None:
    command = lookup(line.encode().split())
    assert command is not None
    assert command.kind is kind


# --- lookup ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["nosuch a b", "PING\0", "client nosuch", "CONFIG foo", "object ENCODING2 k", "get|x"])
def test_what_is_not_found_is_answered_as_the_server_answers_it(each_server: Server, line: str) -> None:
    argv = line.encode().split(b" ")
    assert lookup(argv) is None
    assert unknown(argv) == exchange(each_server.port, encode(argv))


def test_a_container_without_a_subcommand_is_short_of_an_argument() -> None:
    container = lookup([b"XGROUP"])
    assert container is TABLE[b"xgroup"]
    assert not container.arity_ok(1)
    assert errors.wrong_arity(container.name).startswith(b"-ERR wrong number of arguments for 'xgroup'")


# --- learning --------------------------------------------------------------------------------------------------------

ONE_KEY = [b"flags", [b"RO"], b"begin_search", [b"type", b"index", b"spec", [b"index", 1]], b"find_keys",
           [b"type", b"range", b"spec", [b"lastkey", 0, b"keystep", 1, b"limit", 0]]]  # fmt: skip
UNKNOWN = [b"flags", [b"RO"], b"begin_search", [b"type", b"unknown", b"spec", []], b"find_keys",
           [b"type", b"unknown", b"spec", []]]  # fmt: skip


def entry(
    name: str = "json.get", flags: str = "readonly", categories: str = "@read", specs: Any = (ONE_KEY,), subs: Any = ()
) -> list[Any]:
    words = [[word.encode() for word in each.split()] for each in (flags, categories)]
    return [name.encode(), -2, words[0], 1, 1, 1, words[1], [], list(specs), list(subs)]


def with_flags(spec: list[Any], *flags: bytes) -> list[Any]:
    return [spec[0], list(flags), *spec[2:]]


def learned(*entries: Any) -> dict[bytes, Command]:
    """The table after learning from two primaries that say the same, over the wire to a worker."""
    found = learn([list(entries), list(entries)])
    return extend(TABLE, msgspec.msgpack.decode(msgspec.msgpack.encode(found)))


def test_a_new_command_with_one_key_is_plain() -> None:
    command = learned(entry())[b"json.get"]
    assert (command.kind, command.first_key, command.is_read) == (Kind.PLAIN, 1, True)
    assert command.keys([b"JSON.GET", b"k", b"path"]) == [1]


def test_a_new_command_whose_key_may_be_missing_is_keyed() -> None:
    """The lane reads the key of a plain one where the arity promises it."""
    name, _, *others = entry()
    assert learned([name, -1, *others])[b"json.get"].kind is Kind.KEYED


def test_a_new_command_with_keys_in_a_row_is_keyed() -> None:
    row = [*ONE_KEY[:5], [b"type", b"range", b"spec", [b"lastkey", -2, b"keystep", 1, b"limit", 0]]]
    command = learned(entry("json.mget", "write", "@write", [row]))[b"json.mget"]
    assert (command.kind, command.is_read) == (Kind.KEYED, False)
    assert command.keys([b"json.mget", b"a", b"b", b"path"]) == [1, 2]


def test_a_new_command_with_a_number_of_keys_is_keyed() -> None:
    spec = [*ONE_KEY[:5], [b"type", b"keynum", b"spec", [b"keynumidx", 0, b"firstkey", 1, b"keystep", 1]]]
    command = learned(entry("vec.sum", "readonly movablekeys", specs=[spec]))[b"vec.sum"]
    assert command.kind is Kind.KEYED
    assert command.keys([b"vec.sum", b"2", b"a", b"b", b"w"]) == [2, 3]


def test_learning_changes_nothing_in_the_table_it_extends() -> None:
    before = dict(TABLE)
    assert b"json.get" in learned(entry())
    assert before == TABLE


@pytest.mark.parametrize(
    "unfit",
    [
        entry(flags=""),
        entry(flags="fast"),
        *(entry(flags=f"readonly {flag}") for flag in ("admin", "blocking", "pubsub", "noscript")),
        entry(categories="@read @connection"),
        entry(categories="@read @dangerous"),
        entry(specs=()),
        entry(specs=[UNKNOWN]),
        entry(specs=[ONE_KEY, UNKNOWN]),
        entry(specs=[with_flags(ONE_KEY, b"RO", b"incomplete")]),
        entry(specs=[with_flags(ONE_KEY, b"not_key")]),
        entry(flags="readonly movablekeys"),  # found by code of the server's own
    ],
    ids=lambda unfit: f"{unfit[2]} {unfit[6]} {len(unfit[8])} specs",
)
def test_a_new_command_that_is_not_plain_work_on_its_keys_stays_unknown(unfit: list[Any]) -> None:
    assert b"json.get" not in learned(unfit)


def about(**numbers: int) -> list[Any]:
    """A spec that begins at `index` and goes on by these numbers of a range."""
    reply = {"lastkey": 0, "keystep": 1, "limit": 0} | numbers
    index = reply.pop("index", 1)
    found = [part for name, number in reply.items() for part in (name.encode(), number)]
    return [b"flags", [b"RO"], b"begin_search", [b"type", b"index", b"spec", [b"index", index]], b"find_keys",
            [b"type", b"range", b"spec", found]]  # fmt: skip


def of_arity(arity: int) -> list[Any]:
    return [b"json.get", arity, *entry()[2:]]


NONSENSE: dict[str, list[Any]] = {
    "arity of 0": of_arity(0),
    "arity beyond 32 bits": of_arity(1 << 40),
    "arity far below": of_arity(-(1 << 63)),
    "index of 0": entry(specs=[about(index=0)]),
    "index below 0": entry(specs=[about(index=-1)]),
    "index beyond 32 bits": entry(specs=[about(index=1 << 33)]),
    "step of 0": entry(specs=[about(keystep=0)]),
    "step below 0": entry(specs=[about(keystep=-2)]),
    "limit below 0": entry(specs=[about(limit=-1)]),
    "last key beyond all": entry(specs=[about(lastkey=1 << 62)]),
    "first key beyond all": [*entry()[:3], 1 << 62, *entry()[4:]],
    "no name": entry(""),
    "a name that is no word": entry("json get\r\n"),
    "a novel": entry(flags=f"readonly {'x' * 10_000}"),
    "no fields": [b"json.get", 1],
}


@pytest.mark.parametrize("reply", NONSENSE.values(), ids=NONSENSE.keys())
def test_what_can_be_true_of_no_command_is_not_learned_and_is_said(reply: list[Any]) -> None:
    (told,) = malformed([reply, entry("json.set")]).items()
    assert told[0] != "json.set" and "expected" in told[1]
    assert set(learned(reply, entry("json.set"))) - set(TABLE) == {b"json.set"}


def test_what_a_server_says_of_a_command_that_is_built_in_is_nothing_to_it() -> None:
    assert malformed([[b"get", 1 << 40, *entry()[2:]]]) == {}
    assert learned([b"get", 1 << 40, *entry()[2:]])[b"get"] is TABLE[b"get"]


def test_more_commands_than_can_be_told_are_not_learned() -> None:
    assert len(learn([[entry(f"json.get{number}") for number in range(5000)]])) == 1000


def test_a_row_that_was_never_learned_does_not_come_in_by_the_wire() -> None:
    evil = rows_of(entry("evil", "readonly admin"))
    assert b"evil" not in extend(TABLE, evil)


def test_a_new_command_must_be_known_to_all_primaries_alike() -> None:
    other = entry(specs=[[*ONE_KEY[:3], [b"type", b"index", b"spec", [b"index", 2]], *ONE_KEY[4:]]])
    assert learn([[entry()], []]) == []
    assert learn([[entry()], [other]]) == []
    assert learn([[entry()], [entry(flags="readonly fast")]]) == []
    assert learn([[entry()], [entry(categories="@read @dangerous")]]) == []
    assert [row.name for row in learn([[entry(), entry("x.get")], [entry("y.get"), entry()]])] == ["json.get"]
    assert learn([]) == []


@pytest.mark.parametrize("name", ["flushall", "eval", "scan", "multi", "get", "sort", "del"])
def test_learning_never_changes_a_built_in_command(name: str) -> None:
    assert learned(entry(name))[name.encode()] is TABLE[name.encode()]


@pytest.mark.parametrize("container", ["client", "config", "script", "cluster", "acl"])
def test_a_new_subcommand_of_a_container_that_is_not_about_keys_stays_unknown(container: str) -> None:
    new = entry(container, "", "", (), [entry(f"{container}|new")])
    table = learned(new)
    assert learn([[new]]) == []
    assert lookup([container.encode(), b"new"], table) is None


def test_a_new_subcommand_of_a_keyed_container_is_learned() -> None:
    table = learned(entry("object", "", "", (), [entry("object|new"), entry("object|freq", "write")]))
    new = lookup([b"OBJECT", b"NEW", b"x"], table)
    assert new is not None and new.kind is Kind.KEYED
    assert table[b"object"].subcommands[b"freq"] is TABLE[b"object"].subcommands[b"freq"]
    assert lookup([b"object", b"new", b"x"]) is None


def test_a_new_container_is_learned_with_its_fit_subcommands() -> None:
    table = learned(entry("doc", "", "", (), [entry("doc|see"), entry("doc|wipe", "write admin")]))
    assert set(table[b"doc"].subcommands) == {b"see"}
    assert lookup([b"doc", b"wipe", b"k"], table) is None


@pytest.mark.parametrize("reply", [None, b"OK", Error(b"ERR no"), [None], [[b"get"]], [[b"\xff", 1, 2]], {b"a": 1}])
def test_what_is_no_command_reply_teaches_nothing(reply: object) -> None:
    assert learn([reply]) == []


def test_an_odd_entry_does_not_hide_the_others() -> None:
    assert [row.name for row in learn([[[b"odd"], entry()]])] == ["json.get"]


def test_a_server_of_the_table_teaches_nothing_new(each_server: Server) -> None:
    assert learn([decode(exchange(each_server.port, encode([b"COMMAND"])))]) == []
