"""Where keys stand in an argv, and when that cannot be said."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import errors
from protocol.commands import BadKeys, Command
from protocol.keyspecs import MANY, KeySpec, number, timeout_place, together
from protocol.request import encode
from protocol.table import TABLE, lookup
from pyproxy.fleet import Server
from tests.wire import exchange


def command(line: str) -> tuple[Command, list[bytes]]:
    argv = [b"" if word == "''" else word.encode() for word in line.split()]
    found = lookup(argv)
    assert found is not None, line
    return found, argv


def keys(line: str) -> list[int]:
    found, argv = command(line)
    return list(found.keys(argv))


def refusal(line: str) -> bytes:
    with pytest.raises(BadKeys) as raised:
        keys(line)
    return raised.value.line


@pytest.mark.parametrize("text", [b"0", b"7", b"-7", b"9223372036854775807", b"-9223372036854775808"])
def test_a_number_is_read_as_the_server_reads_it(text: bytes) -> None:
    assert number(text) == int(text)


@pytest.mark.parametrize(
    "text", [b"", b"+7", b"07", b" 7", b"7 ", b"-0", b"-", b"1_0", b"7.0", b"9223372036854775808", b"1" * 10**6, b"7\n"]
)
def test_what_the_server_does_not_take_for_a_number_is_none(text: bytes) -> None:
    assert number(text) is None


@pytest.mark.parametrize(
    ("texts", "line", "positions"),
    [
        (("RO", "index 1", "range 0 1 0", ""), "get k", [1]),
        (("RO", "index 1", "range -1 1 0", ""), "mget a b c", [1, 2, 3]),
        (("RO", "index 1", "range -1 2 0", ""), "mset a 1 b 2", [1, 3]),
        (("RW", "index 1", "range -2 1 0", ""), "blpop a b 0", [1, 2]),
        (("RO", "index 2", "range -1 1 0", ""), "pfmerge d", []),
        (("RO", "index 2", "range 0 1 0", ""), "get k", None),
        (("RO", "index 1", "keynum 0 1 1", ""), "zunion 2 a b WEIGHTS 1 2", [2, 3]),
        (("OW", "index 1", "keynum 0 1 2", ""), "msetex 2 a 1 b 2 NX", [2, 4]),
        (("RO", "index 1", "keynum 0 1 1", ""), "zunion 3 a b", None),
        (("RO", "index 1", "keynum 0 1 1", ""), "zunion 0 a b", None),
        (("RO", "index 1", "keynum 0 1 1", ""), "zunion x a b", None),
        (("RO", "index 1", "keynum 0 1 1", ""), "zunion 9223372036854775807 a b", None),
        (("RO", "keyword STREAMS 1", "range -1 1 2", ""), "xread streams a b 1 2", [2, 3]),
        (("OW", "keyword STORE 6", "range 0 1 0", ""), "georadius k 1 1 1 m", []),
        (("RW", "keyword KEYS -2", "range -1 1 0", ""), "m h 1 x 0 1 KEYS a b", [7, 8]),
        (("RO", "unknown", "unknown", ""), "sort k", None),
    ],
)
def test_a_key_spec_finds_its_keys_or_says_that_it_cannot(
    texts: tuple[str, ...], line: str, positions: list[int] | None
) -> None:
    found = KeySpec.parse(texts).positions(line.encode().split())
    assert (found if found is None else list(found)) == positions


@pytest.mark.parametrize(
    ("line", "positions"),
    [
        ("PFMERGE d", [1]),
        ("pfmerge d a b", [1, 2, 3]),
        ("ZUNIONSTORE d 2 a b AGGREGATE MIN", [1, 3, 4]),
        ("OBJECT encoding k", [2]),
        ("eval script 0 not-a-key", []),
        ("eval script 1 k not-a-key", [3]),
        ("sort k", [1]),
        ("sort k LIMIT 0 1 GET # BY nosort ASC ALPHA STORE d", [1, 12]),
        ("sort k STORE store", [1, 3]),
        ("sort k STORE a STORE b", [1, 5]),
        ("sort k BY store", [1]),
        ("georadius k 1 1 1 km COUNT 3 ANY STOREDIST d", [1, 10]),
        ("georadius k 1 1 1 km STORE a STOREDIST b", [1, 9]),
        ("georadiusbymember store store 1 km", [1]),
        ("xread COUNT 1 STREAMS streams b 0 0", [4, 5]),
        ("xreadgroup COUNT 1 GROUP g streams NOACK STREAMS k >", [8]),
        ("xreadgroup GROUP streams c STREAMS a b > >", [5, 6]),
        ("migrate h 1 k 0 1 COPY AUTH keys", [3]),
        ("migrate h 1 '' 0 1 AUTH2 keys keys KEYS a b", [10, 11]),
    ],
)
def test_keys_are_where_the_server_will_look_for_them(line: str, positions: list[int]) -> None:
    assert keys(line) == positions


@pytest.mark.parametrize(
    "line",
    [
        *("ZUNION 0 x", "ZUNION u x", "ZUNION 3 x", "ZUNION +1 x", "ZUNION 9223372036854775808 x", "ZDIFF -1 x"),
        *("ZUNIONSTORE d 0 x", "ZINTERSTORE d u x", "ZDIFFSTORE d 3 x", "ZINTERCARD 0 x", "ZINTERCARD 4 x"),
        *("SINTERCARD 0 x", "SINTERCARD 3 x", "SINTERCARD u x", "LMPOP 0 x LEFT", "LMPOP 5 x LEFT", "LMPOP u x LEFT"),
        *("ZMPOP 0 x MIN", "ZMPOP 5 x MIN", "ZMPOP u x MIN", "XREAD COUNT 1 STREAMS", "XREAD FOO STREAMS a 0"),
        *("EVAL x 2 a", "EVAL_RO x -1 a", "EVAL x x a", "EVAL x 9223372036854775808 a"),
        *("SORT k FOO", "SORT k LIMIT 0", "SORT k STORE", "SORT_RO k STORE d", "GEORADIUS k 1 1 1 m FOO x"),
    ],
)
def test_where_keys_cannot_be_found_the_answer_is_the_servers(each_server: Server, line: str) -> None:
    assert refusal(line) == exchange(each_server.port, encode(line.encode().split()))


@pytest.mark.parametrize("line", ["MSETEX 0 k v", "MSETEX u k v", "MSETEX 3 k v"])
def test_where_keys_of_msetex_cannot_be_found_the_answer_is_the_servers(server: Server, line: str) -> None:
    reply = exchange(server.port, encode(line.encode().split()))
    if b"unknown command" in reply:
        pytest.skip("MSETEX came with Valkey 9.1, this server has none")
    assert refusal(line) == reply


@pytest.mark.parametrize(
    ("line", "place"),
    [
        *(("blpop a b 0", 3), ("bzpopmin a 0", 2), ("blmove a b LEFT LEFT 0", 5), ("brpoplpush a b 0", 3)),
        *(("blmpop 0 1 a LEFT", 1), ("bzmpop 0 1 a MIN", 1), ("xread BLOCK 0 STREAMS a 0", 2)),
        *(("xreadgroup GROUP g c COUNT 1 block 5 STREAMS a >", 7), ("xread block 1 BLOCK 2 STREAMS a 0", 4)),
        *(("xread STREAMS block 0", 0), ("xreadgroup GROUP block block STREAMS block >", 0)),
    ],
)
def test_a_command_that_waits_has_a_timeout_in_its_place(line: str, place: int) -> None:
    argv = line.encode().split()
    assert timeout_place(argv[0], argv) == place
    assert TABLE[argv[0]].waits(argv) == bool(place)


@pytest.mark.parametrize("line", ["get k", "wait 0 0", "lpop k", "subscribe c"])
def test_others_wait_for_no_key(line: str) -> None:
    argv = line.encode().split()
    assert not TABLE[argv[0]].waits(argv)


@pytest.mark.parametrize(
    "line",
    [
        "sort k BY w:*",
        "sort_ro k GET w:*->f",
        "sort k{t} GET # GET {u}:*",
        "sort k{t} BY *{t}",  # an element with a tag of its own would come before ours
        "sort k{t} BY {t*}",
        "sort k BY {}k:*",
        "sort '' BY w:*",
        "sort {}k BY {}k:*",
    ],
)
def test_sorting_by_keys_that_may_lie_elsewhere_is_refused(line: str) -> None:
    assert refusal(line) == errors.crossslot()


@pytest.mark.parametrize(
    "line",
    ["sort k BY nosort", "sort k GET #", "sort k{t} BY {t}w:* GET {t}v:*->f", "sort k BY {k}:*", "sort k BY w GET v"],
)
def test_sorting_by_keys_of_the_same_shard_passes(line: str) -> None:
    assert keys(line) == [1]


NAMES = ["sort", "xread", "xreadgroup", "georadius", "migrate", "zunionstore", "msetex", "bitop", "eval"]
WORDS = [b"streams", b"store", b"get", b"count", b"keys", b"2", b"-1", b"", b"*", b"k"]


@given(st.sampled_from(NAMES), st.lists(st.sampled_from(WORDS), max_size=12))
def test_whatever_the_arguments_keys_are_inside_argv_or_refused(name: str, arguments: list[bytes]) -> None:
    argv = [name.encode(), *arguments]
    found = lookup(argv)
    assert found is not None
    if not found.arity_ok(len(argv)):
        return
    try:
        positions = found.keys(argv)
    except BadKeys as refused:
        assert refused.line.startswith(b"-") and refused.line.endswith(b"\r\n")
    else:
        assert all(0 < position < len(argv) for position in positions)
        assert positions or name == "eval"


@pytest.mark.parametrize("runs", [[range(1, 5000)], [range(1, 2), range(2, 5000)], [[3], range(7, 9000, 2)], []])
def test_positions_that_are_not_written_out_are_those_that_are(runs: list[Sequence[int]]) -> None:
    places, written = together(runs, MANY + 1), [place for run in runs for place in run]
    assert together(runs, MANY) == written
    assert list(places) == written
    assert len(places) == len(written)
    assert bool(places) == bool(written)
    for index in {0, 1, -1, -2, len(written) // 2} if written else ():
        assert places[index] == written[index]
    assert places[1:-1:3] == written[1:-1:3]
    with pytest.raises(IndexError):
        places[len(written)]
