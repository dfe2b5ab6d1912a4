"""COMMAND as a client sees it: byte for byte what the server says, without what the proxy does not serve."""

import pytest

from protocol import rows
from protocol.commands import Command, Kind
from protocol.introspect import answer
from protocol.reply import decode
from protocol.request import encode
from protocol.table import TABLE, extend
from pyproxy.fleet import Server
from tests.protocol.test_table import ALL, ONE_KEY, entry, learned
from tests.wire import exchange

PREFACE = {2: b"", 3: encode([b"CLIENT", b"REPLY", b"SKIP"]) + encode([b"HELLO", b"3"])}
PROTOCOLS = pytest.mark.parametrize("proto", [2, 3])


def ask(line: str, proto: int = 2) -> bytes:
    return answer(line.encode().split(), TABLE, proto)


def reply_of(server: Server, line: str, proto: int = 2) -> bytes:
    return exchange(server.port, PREFACE[proto] + encode(line.encode().split()))


def shown(command: Command) -> bool:
    """Whether the server's own entry is ours: served, and with it all of its subcommands."""
    return all(each.kind is not Kind.REFUSED for each in (command, *command.subcommands.values()))


@pytest.fixture
def peer(server: Server) -> Server:
    """The server of which the table is."""
    reply = decode(reply_of(server, "HELLO"))
    assert isinstance(reply, list)
    version = f"{reply[1].decode()} {reply[3].decode()}"
    if version != rows.SOURCES[0]:
        pytest.skip(f"the table is of {rows.SOURCES[0]}, this server is {version}")
    return server


@PROTOCOLS
@pytest.mark.parametrize("what", ["INFO", "DOCS"])
def test_a_served_command_is_described_as_the_server_describes_it(peer: Server, what: str, proto: int) -> None:
    # a server tells nine subcommands in the order of its hash table; each of them is among the names by itself
    names = [name for name, command in ALL.items() if shown(command) and name != "function"]
    assert len(names) > 200
    line = f"COMMAND {what} {' '.join(names)}"
    assert ask(line, proto) == reply_of(peer, line, proto)


@PROTOCOLS
@pytest.mark.parametrize(
    "line",
    [
        *("COMMAND HELP", "command help"),
        *("COMMAND FOO", "COMMAND GETKEYS", "COMMAND COUNT x", "COMMAND HELP x", "COMMAND DOCS nosuch"),
        *("COMMAND INFO nosuch", "COMMAND INFO config|get CONFIG|GET config|foo foo|bar get|foo config| |get get|"),
        *("COMMAND INFO get GET nosuch xgroup", "COMMAND DOCS xgroup|create XGROUP|CREATE get nosuch"),
        *("COMMAND LIST foo", "COMMAND LIST FILTERBY", "COMMAND LIST FILTERBY ACLCAT", "COMMAND LIST FILTERBY foo x"),
        *("COMMAND LIST FILTERBY ACLCAT nosuch", "COMMAND LIST FILTERBY ACLCAT @geo", "COMMAND LIST FILTERBY MODULE x"),
        *("COMMAND LIST FILTERBY PATTERN nosuch*", "COMMAND LIST FILTERBY ACLCAT a b"),
        *("COMMAND GETKEYS nosuch a", "COMMAND GETKEYS ping", "COMMAND GETKEYS get", "COMMAND GETKEYS get a b"),
        *("COMMAND GETKEYS eval x 0", "COMMAND GETKEYS eval x 1 k", "COMMAND GETKEYS zunionstore d 0 x"),
        *("COMMAND GETKEYS object encoding k", "COMMAND GETKEYS object", "COMMAND GETKEYS object help"),
        *("COMMAND GETKEYS config foo", "COMMAND GETKEYS config get x", "COMMAND GETKEYS MSET a 1 b 2"),
        *("COMMAND GETKEYS xread BLOCK 0 STREAMS a b 0 0", "COMMAND GETKEYS sort k BY w:* STORE d"),
        *("COMMAND GETKEYS spublish c m", "COMMAND GETKEYSANDFLAGS zunionstore d 2 a b", "COMMAND GETKEYSANDFLAGS get"),
        *("COMMAND GETKEYSANDFLAGS SET k v", "COMMAND GETKEYSANDFLAGS SET k v GET", "COMMAND GETKEYSANDFLAGS del a b"),
        *("COMMAND GETKEYSANDFLAGS migrate h 1 k 0 1", "COMMAND GETKEYSANDFLAGS ping"),
        *("COMMAND GETKEYSANDFLAGS eval s 0", "COMMAND GETKEYSANDFLAGS pfcount a b"),
        "COMMAND GETKEYSANDFLAGS georadius k 1 1 1 m STOREDIST d",
    ],
)
def test_an_answer_is_the_servers_byte_for_byte(peer: Server, line: str, proto: int) -> None:
    assert ask(line, proto) == reply_of(peer, line, proto)


@PROTOCOLS
@pytest.mark.parametrize("filtered", ["ACLCAT geo", "aclcat STREAM", "PATTERN z*", "pattern XINFO|*", "PATTERN *[g]et"])
def test_a_filtered_list_is_the_servers_in_some_order(peer: Server, filtered: str, proto: int) -> None:
    line = f"COMMAND LIST FILTERBY {filtered}"
    ours, theirs = decode(ask(line, proto)), decode(reply_of(peer, line, proto))
    assert isinstance(ours, list) and isinstance(theirs, list) and ours
    assert sorted(ours) == sorted(name for name in theirs if ALL[name.decode()].kind is not Kind.REFUSED)


@PROTOCOLS
def test_command_and_its_parts_show_the_same_commands(proto: int) -> None:
    entries, infos = decode(ask("COMMAND", proto)), decode(ask("COMMAND INFO", proto))
    names, docs = decode(ask("COMMAND LIST", proto)), decode(ask("COMMAND DOCS", proto))
    assert isinstance(entries, list) and isinstance(names, list) and isinstance(docs, list | dict)
    served = {name for name, command in TABLE.items() if command.kind is not Kind.REFUSED}
    assert {entry[0] for entry in entries} == served
    assert infos == entries
    assert {name for name in names if b"|" not in name} == served
    assert set(docs if isinstance(docs, dict) else docs[::2]) == served
    assert decode(ask("COMMAND COUNT", proto)) == len(served)


@PROTOCOLS
def test_what_is_refused_is_not_shown(proto: int) -> None:
    assert decode(ask("COMMAND INFO monitor client|kill", proto)) == [None, None]
    assert ask("COMMAND DOCS monitor client|kill", proto) == (b"*0\r\n" if proto == 2 else b"%0\r\n")
    for line in ("COMMAND INFO client", "COMMAND DOCS client", "COMMAND LIST", "COMMAND LIST FILTERBY PATTERN client*"):
        assert b"client|id\r\n" in ask(line, proto)
        assert b"client|kill\r\n" not in ask(line, proto)


def test_keys_are_found_in_refused_commands_too() -> None:
    assert ask("COMMAND GETKEYS BLPOP a b 0") == b"*2\r\n$1\r\na\r\n$1\r\nb\r\n"


@PROTOCOLS
def test_a_learned_command_is_shown_like_the_others(proto: int) -> None:
    table = learned(entry("json.get", specs=[ONE_KEY]))
    info = decode(answer(b"COMMAND INFO json.get".split(), table, proto))
    assert isinstance(info, list) and info[0][:6] == [b"json.get", -2, [b"readonly"], 1, 1, 1]
    assert b"json.get" in answer(b"COMMAND DOCS json.get".split(), table, proto)
    assert b"json.get" in answer(b"COMMAND LIST".split(), table, proto)
    assert answer(b"COMMAND GETKEYS json.get k".split(), table, proto) == b"*1\r\n$1\r\nk\r\n"
    assert b"json.get" not in answer(b"COMMAND".split(), extend(TABLE, []), proto)


def test_a_pattern_longer_than_any_name_needs_matches_nothing() -> None:
    assert ask("COMMAND LIST FILTERBY PATTERN " + "*" * 128) == ask("COMMAND LIST")
    assert ask("COMMAND LIST FILTERBY PATTERN " + "*" * 129) == b"*0\r\n"
