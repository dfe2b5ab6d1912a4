"""A row and the command made of it: what it keeps, and what it says."""

import hiredis
import msgspec
import pytest

from protocol.commands import Command, Kind, Row, rows_of
from protocol.keyspecs import KeySpec
from protocol.reply import decode
from protocol.request import encode
from protocol.table import TABLE, lookup
from pyproxy.fleet import Server
from tests.wire import exchange

IN_RESP3 = encode([b"CLIENT", b"REPLY", b"SKIP"]) + encode([b"HELLO", b"3"])
ROW = Row("frob", -2, "write fast", 1, 1, 1, "@write @fast", "a:b", (("RW insert", "index 1", "range 0 1 0", "why"),))


def make(arity: int, flags: str = "") -> Command:
    return Command(b"x", arity, frozenset(flags.split()), (), Kind.PLAIN, ROW)


@pytest.mark.parametrize(
    ("arity", "fits", "does_not"), [(2, [2], [1, 3]), (-2, [2, 3, 100], [0, 1]), (-1, [1, 2], [0])]
)
def test_arity_counts_the_name_and_negative_means_at_least(arity: int, fits: list[int], does_not: list[int]) -> None:
    assert [make(arity).arity_ok(argc) for argc in fits] == [True] * len(fits)
    assert [make(arity).arity_ok(argc) for argc in does_not] == [False] * len(does_not)


def test_a_split_of_pairs_has_whole_pairs() -> None:
    assert [argc for argc in range(3, 8) if TABLE[b"mset"].is_whole(argc)] == [3, 5, 7]
    assert [argc for argc in range(2, 5) if TABLE[b"mget"].is_whole(argc)] == [2, 3, 4]


@pytest.mark.parametrize(
    ("flags", "is_read"),
    [("readonly fast", True), ("readonly blocking", False), ("write", False), ("", False), ("noscript pubsub", False)],
)
def test_a_read_is_flagged_readonly_and_never_waits(flags: str, is_read: bool) -> None:
    assert make(2, flags).is_read is is_read


def test_a_row_that_travelled_as_msgpack_is_the_same_row() -> None:
    travelled = Row(*msgspec.msgpack.decode(msgspec.msgpack.encode(ROW)))
    assert [KeySpec.parse(texts).positions([b"frob", b"k"]) for texts in travelled.key_specs] == [range(1, 2)]
    assert travelled[:-1] == ROW[:-1]


def test_both_protocols_give_the_same_rows(each_server: Server) -> None:
    in_resp2 = decode(exchange(each_server.port, encode([b"COMMAND"])))
    in_resp3 = decode(exchange(each_server.port, IN_RESP3 + encode([b"COMMAND"])))
    assert isinstance(in_resp2, list) and isinstance(in_resp3, list) and len(in_resp2) > 200
    rows = [{row.name: row for entry in reply for row in rows_of(entry)} for reply in (in_resp2, in_resp3)]
    assert rows[0] == rows[1]


def test_an_entry_becomes_its_row_and_those_of_its_subcommands() -> None:
    spec = [b"notes", b"why", b"flags", [b"RW", b"insert"]]
    spec += [b"begin_search", [b"type", b"index", b"spec", [b"index", 1]]]
    spec += [b"find_keys", [b"type", b"range", b"spec", [b"lastkey", 0, b"keystep", 1, b"limit", 0]]]
    sub = [b"frob|off", 2, [], 0, 0, 0, [b"@slow"], [], [], []]
    entry = [b"frob", -2, [b"write", b"fast"], 1, 1, 1, [b"@write", b"@fast"], [b"a:b"], [spec], [sub]]
    assert rows_of(entry) == [ROW, Row("frob|off", 2, "", 0, 0, 0, "@slow", "", ())]


@pytest.mark.parametrize(
    "entry",
    [
        None,
        b"get",
        [],
        [b"get", 2, [], 1, 1, 1],  # Redis 6
        [b"get", b"2", [], 1, 1, 1, [], [], [], []],
        [b"get", 2, None, 1, 1, 1, [], [], [], []],
        [None, 2, [], 1, 1, 1, [], [], [], []],
        [b"get", 2, [], 1, 1, 1, [], [], [[b"flags", []]], []],
        [b"get", 2, [], 1, 1, 1, [], [], [[b"flags"]], []],
        [b"get", 2, [], 1, 1, 1, [], [], [b"spec"], []],
        [b"\xff", 2, [], 1, 1, 1, [], [], [], []],
    ],
)
def test_an_entry_of_another_form_is_a_value_error(entry: object) -> None:
    with pytest.raises(ValueError):
        rows_of(entry)


@pytest.mark.parametrize(
    ("line", "flags"),
    [
        ("SET k v", [(1, ("OW", "update"))]),
        ("SET k v EX 1 get", [(1, ("RW", "access", "update"))]),
        ("SET get get", [(1, ("OW", "update"))]),
        ("BITFIELD k GET u8 0 OVERFLOW WRAP", [(1, ("RO", "access"))]),
        ("BITFIELD k GET u8 0 SET u8 0 1", [(1, ("RW", "access", "update"))]),
        ("SORT k GET # STORE d", [(1, ("RO", "access")), (5, ("OW", "update"))]),
        ("ZUNIONSTORE d 1 a", [(1, ("OW", "update")), (3, ("RO", "access"))]),
        ("EVAL s 0", []),
    ],
)
def test_what_happens_to_each_key_is_what_the_server_says(
    each_server: Server, line: str, flags: list[tuple[int, tuple[str, ...]]]
) -> None:
    argv = line.encode().split()
    found = lookup(argv)
    assert found is not None
    assert list(found.key_flags(argv)) == flags
    reply = hiredis.Reader()
    reply.feed(exchange(each_server.port, encode([b"COMMAND", b"GETKEYSANDFLAGS", *argv])))
    assert reply.gets() == [[argv[position], [flag.encode() for flag in each]] for position, each in flags]
