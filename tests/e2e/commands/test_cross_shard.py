"""Commands whose keys are on several shards, where the configuration says that they are emulated.

The answers are those of one plain server, and so is what is left. What a failure in the middle leaves is in
tests/e2e/commands/test_cross_shard_failures.py.
"""

import os
import re
from collections.abc import Iterator

import pytest

from protocol.commands import Command, Kind
from protocol.keyspecs import KeyNum, Range
from protocol.request import encode
from protocol.table import TABLE
from pyproxy.fleet import Fleet, Proxy, Server
from pyproxy.worker.commands.handlers import ACROSS, EMULATED
from tests.e2e.bare_worker import BareWorker
from tests.e2e.lane.test_twin import PATIENT, seeds
from tests.e2e.rig import Connection, Keys, error
from tests.e2e.twin.pair import Pair, check_what_is_left, payloads
from tests.e2e.twin.stream import Batch, Request, stream

VARIABLE = "PYPROXY_EMULATED_SEEDS"
REQUESTS = 3000  # of one seed


@pytest.fixture(scope="module")
def proxy(fleet: Fleet) -> Iterator[Proxy]:
    with Proxy(fleet, timeouts=PATIENT, cross_shard="emulate") as proxy:
        yield proxy


class Apart(Pair):
    """A value that was brought from one shard to another is stored as compactly as it can be."""

    def _compare(self, batch: Batch, request: Request, ours: list[bytes], theirs: list[bytes], trouble: str) -> None:
        if request.name == b"object|encoding" and ours and theirs and ours[0][:1] == theirs[0][:1] == b"$":
            return
        super()._compare(batch, request, ours, theirs, trouble)


@pytest.fixture
def pair(fleet: Fleet, proxy: Proxy, server: Server) -> Iterator[Apart]:
    for each in (*fleet.servers, server):
        each.ask("FLUSHALL")
    pair = Apart(proxy.port, server.port)
    yield pair
    pair.close()


@pytest.mark.parametrize("seed", seeds(os.environ.get(VARIABLE, "1-6")))
def test_a_random_stream_over_all_shards_is_answered_as_by_one_server_and_leaves_the_same(
    seed: int, pair: Apart, fleet: Fleet, server: Server
) -> None:
    try:
        for batch in stream(seed, REQUESTS, payloads(server), apart=True):
            pair.ask(batch)
        check_what_is_left(fleet, server, encodings=False)
    except AssertionError as problem:
        raise AssertionError(f"{problem}\nagain with {VARIABLE}={seed}") from None


# --- each command, with its options ---------------------------------------------------------------------------------

SETUP = """
SADD set0 a b c d e
SADD set1 b c d
SADD set2 c d x 7
SADD set3 1 2 3
ZADD zset0 1 a 2 b 3 c inf d
ZADD zset1 -1 a 2.5 b -inf d
ZADD zset2 0.1 a 1e300 c
GEOADD geo0 13.36 38.11 palermo 15.08 37.50 catania
PFADD hll0 a b c
PFADD hll1 c d e
PFADD hll2 e f
SET str0 abcdef
SET str1 abxdef12345
SET str2 \x0f
SET str3 5 EX 100000
RPUSH list0 3 1 2
RPUSH list1 x y
XADD stream0 1-1 f v
XADD stream0 2-1 f v
XADD stream1 1-1 g w
XGROUP CREATE stream0 group 0
XGROUP CREATE stream1 group 0
"""

# A word that ends in a digit is a key on the shard with this number (3: on 0); what is not made above does not exist.
COMMANDS = """
SINTER set0 set1 set2
SINTER set0 no1
SINTER set0 str1
SINTER str1 no0
SUNION set0 set1 no2 set1
SUNION set3 no1
SDIFF set0 set2
SDIFF no0 str1
SINTERCARD 3 set0 set1 set2 LIMIT 1
SINTERCARD 2 set0 set1 LIMIT -1
SINTERCARD 2 set0 set1 LIMIT
SINTERSTORE new0 set0 set1 set2
SINTERSTORE set1 set0 set1
SINTERSTORE str0 set0 set1
SINTERSTORE set0 set1 no2
SINTERSTORE new0 set0 list1
SUNIONSTORE new0 set1 set3
SUNIONSTORE new0 no1 no2
SDIFFSTORE new2 set0 set1
ZINTER 2 zset0 zset1 WITHSCORES
ZINTER 2 zset0 set1 WEIGHTS 2 -1 AGGREGATE MAX WITHSCORES
ZINTER 2 zset0 zset1 WEIGHTS 1 x
ZUNION 3 zset0 zset1 zset2 WITHSCORES
ZUNION 3 zset0 zset1 zset2 WEIGHTS inf 0 1.5 WITHSCORES
ZUNION 2 zset0 zset1 WEIGHTS 0 0 WITHSCORES
ZUNION 3 zset0 zset1 zset2 AGGREGATE MIN
ZUNION 2 zset0 str1
ZUNION 2 zset0 zset1 AGGREGATE AVG
ZDIFF 2 zset0 zset2 WITHSCORES
ZINTERCARD 2 zset0 zset1 LIMIT 1
ZINTERSTORE new2 2 zset0 zset1 WEIGHTS 1 2
ZUNIONSTORE zset0 2 zset0 zset1 WEIGHTS 1 2 AGGREGATE MIN
ZUNIONSTORE new0 2 set1 zset2
ZUNIONSTORE str0 1 zset1
ZDIFFSTORE new0 2 zset1 zset2
ZRANGESTORE new0 zset1 0 -1 REV
ZRANGESTORE new0 zset1 (-inf 3 BYSCORE LIMIT 0 1
ZRANGESTORE zset0 no1 0 -1
ZRANGESTORE new0 zset1 a b
GEOSEARCHSTORE new1 geo0 FROMLONLAT 15 37 BYRADIUS 200 km ASC COUNT 1
GEOSEARCHSTORE new1 geo0 FROMMEMBER palermo BYBOX 400 400 km STOREDIST
GEOSEARCHSTORE new1 geo0 FROMMEMBER nobody BYBOX 400 400 km
GEORADIUS geo0 15 37 200 km STORE new1
GEORADIUSBYMEMBER geo0 palermo 200 km STOREDIST new1
PFCOUNT hll0 hll1 hll2
PFCOUNT hll0 no1
PFCOUNT hll0 str1
PFMERGE new1 hll0 hll1
PFMERGE hll0 hll1 hll2
PFMERGE hll0 str1
BITOP AND new2 str0 str1
BITOP OR str0 str0 str1 no2
BITOP XOR new0 str1 str2
BITOP NOT new0 str1
BITOP NOT new0 str1 str2
BITOP AND new0 str1 set2
BITOP NAND new0 str1
LCS str0 str1
LCS str0 str1 IDX MINMATCHLEN 2 WITHMATCHLEN
LCS str0 str1 LEN IDX
LCS str0 set1
SORT list0 STORE new1
SORT list1 ALPHA DESC LIMIT 0 1 STORE new0
SORT list1 STORE new0
SORT zset1 BY nosort GET # STORE new0
SORT no1 STORE list0
RENAME set0 new1
RENAME str3 set1
RENAME stream0 new1
RENAME zset0 new2
RENAME no0 set1
RENAMENX set0 new1
RENAMENX set0 str1
RENAMENX no0 str1
COPY str3 new1
COPY str3 set1
COPY str3 set1 REPLACE
COPY str3 new1 DB 4
COPY str3 set1 DB 4 REPLACE
COPY str3 new1 DB 16
COPY str3 new1 DB x
COPY str3 new1 DB
COPY str3 new1 NOW
COPY no0 set1 REPLACE
SMOVE set0 set1 a
SMOVE set0 set1 b
SMOVE set0 new1 b
SMOVE set3 new1 2
SMOVE set0 set1 nobody
SMOVE set0 str1 nobody
SMOVE set0 str1 a
SMOVE no0 str1 a
SMOVE str0 set1 a
LMOVE list0 list1 LEFT RIGHT
LMOVE list0 list1 RIGHT LEFT
LMOVE list0 new1 LEFT LEFT
LMOVE list0 str1 LEFT LEFT
LMOVE no0 str1 LEFT LEFT
LMOVE str0 list1 LEFT LEFT
LMOVE list0 list1 LEFT DOWN
RPOPLPUSH list0 list1
RPOPLPUSH no0 list1
LMPOP 3 no0 list1 list0 RIGHT COUNT 5
LMPOP 2 no0 no1 LEFT
LMPOP 2 no0 str1 LEFT
LMPOP 2 no0 list1 DOWN
LMPOP 2 list0 str1 LEFT COUNT 0
ZMPOP 3 no0 zset1 zset0 MIN COUNT 2
ZMPOP 2 no0 no1 MAX
MSETNX new0 1 new1 2 new2 3
MSETNX new0 1 new1 2 new0 3
MSETNX new0 1 str1 2
MSETNX new0 1 new1
MSETEX 2 new0 1 new1 2 EX 100000
MSETEX 2 new0 1 str1 2 NX
MSETEX 2 new0 1 new1 2 NX
MSETEX 2 new0 1 str1 2 XX
MSETEX 2 str0 1 str1 2 XX KEEPTTL
MSETEX 2 new0 1 str1 2 NOW
MSETEX 2 new0 1 str1 2 NX XX
MSETEX 2 new0 1 str1 2 NX NX
MSETEX 2 str0 1 str1 2 XX XX EX 100
XREAD COUNT 1 STREAMS stream1 no0 stream0 0 0 0
XREAD STREAMS stream0 stream1 $ $
XREAD STREAMS stream0 set1 0 0
XREAD STREAMS stream0 stream1 0
XREAD STREAMS stream0 stream1 0 x
XREADGROUP GROUP group me COUNT 1 STREAMS stream1 stream0 > >
XREADGROUP GROUP group me STREAMS stream1 no0 > >
XREADGROUP GROUP group me STREAMS stream1 set0 > >
XREADGROUP GROUP other me STREAMS stream1 stream0 > >
XREADGROUP COUNT 1 NOACK STREAMS stream1 stream0 > >
"""


def several_keys(command: Command) -> bool:
    """Whether it can name more than one."""
    spans = [spec.find for spec in command.key_specs if spec.names_keys]
    more = [isinstance(span, KeyNum) or (isinstance(span, Range) and span.lastkey != 0) for span in spans]
    return len(spans) > 1 or any(more)


def test_every_command_that_can_have_its_keys_on_several_shards_is_emulated() -> None:
    rows = [row for top in TABLE.values() for row in (top.subcommands.values() if top.subcommands else [top])]
    keyed = {row.name for row in rows if row.kind is Kind.KEYED and several_keys(row)}
    assert keyed - {b"sort_ro"} == EMULATED.keys() | ACROSS.keys()  # of SORT_RO all but the first would be patterns


def test_there_is_an_example_of_every_command_that_is_emulated() -> None:
    shown = {line.split()[0].lower().encode() for line in COMMANDS.split("\n") if line}
    assert shown == EMULATED.keys() | ACROSS.keys()


def command(line: str, keys: Keys) -> list[bytes]:
    """The words of a line, its keys as they lie on their shards."""
    words = line.split()
    places = {word: keys.one(int(word[-1]) % 3, word) for word in words[1:] if re.fullmatch("[a-z]{2,}[0-9]", word)}
    return [places.get(word, word).encode("latin-1") for word in words]


@pytest.mark.parametrize("line", COMMANDS.strip().split("\n"))
def test_it_is_answered_as_by_one_server_and_leaves_the_same(
    line: str, pair: Apart, fleet: Fleet, server: Server, keys: Keys
) -> None:
    if server.ask("COMMAND", "INFO", line.split()[0]) == [None]:
        pytest.skip(f"{fleet.backend.version} has no {line.split()[0]}")
    setup = [command(each, keys) for each in SETUP.strip().split("\n")]
    for proto in (b"2", b"3"):
        argvs = [[b"HELLO", proto], [b"FLUSHALL"], *setup, command(line, keys), command("EXISTS set0 set1", keys)]
        requests = [Request(argv, encode(argv)) for argv in argvs]
        pair.ask(Batch(0, requests, [b"".join(request.raw for request in requests)]))
    check_what_is_left(fleet, server, encodings=False)


# --- and what is not emulated ---------------------------------------------------------------------------------------


def test_in_refuse_mode_they_are_refused(fleet: Fleet, keys: Keys) -> None:
    with Proxy(fleet) as proxy, Connection(proxy.port) as conn:
        conn.ask("FLUSHALL")
        for line in ("SUNION set0 set1", "RENAME str0 str1", "MSETNX str0 1 str1 2", "LMPOP 2 list0 list1 LEFT"):
            assert error(conn.ask(*command(line, keys))).startswith("CROSSSLOT "), line
        assert conn.ask("DBSIZE") == 0


def test_in_a_transaction_they_are_refused(proxy: Proxy, keys: Keys) -> None:
    with Connection(proxy.port) as conn:
        conn.send(["MULTI"], command("SUNION set0 set1", keys), ["EXEC"])
        replies = conn.reads(3)
        assert replies[0] == b"OK"
        assert error(replies[1]).startswith("CROSSSLOT ")
        assert error(replies[2]).startswith("EXECABORT ")


def test_sort_by_keys_of_the_source_cannot_store_on_another_shard(proxy: Proxy, keys: Keys) -> None:
    with Connection(proxy.port) as conn:
        argv = command("SORT list0 BY weight STORE new1", keys)
        argv[3] = b"{%b}weight_*" % argv[1]
        assert error(conn.ask(*argv)).startswith("CROSSSLOT ")


def test_more_than_may_be_copied_is_an_error_that_says_so(fleet: Fleet, keys: Keys) -> None:
    with (
        Proxy(fleet, cross_shard="emulate", limits={"cross_shard_bytes": 5000}) as proxy,
        Connection(proxy.port) as conn,
    ):
        conn.ask("FLUSHALL")
        here, there, other = command("x str0 str1 str2", keys)[1:]
        conn.ask("SET", here, "x" * 4000)
        conn.ask("SET", there, "x" * 4000)
        conn.ask("SET", other, "x" * 6000)
        assert conn.ask("BITOP", "OR", other, here) == 4000
        line = error(conn.ask("BITOP", "OR", other, here, there))
        assert re.fullmatch(r"ERR command 'bitop' would copy \d+ bytes from shard to shard, more than 5000 \(.*", line)
        conn.ask("SET", other, "x" * 6000)
        assert "more than 5000" in error(conn.ask("RENAME", other, here))
        assert "more than 5000" in error(conn.ask("COPY", other, here, "REPLACE"))
        assert [conn.ask("STRLEN", key) for key in (here, there, other)] == [4000, 4000, 6000]


# --- nobody gets an answer that is somebody else's --------------------------------------------------------------------


@pytest.mark.parametrize("proto", [2, 3])
def test_where_no_operand_is_there_every_client_gets_its_own_answers(fleet: Fleet, proto: int) -> None:
    """With servers whose versions are not known, as before the first look, each copy is tried before it is used."""
    with (
        BareWorker(fleet, cross_shard="emulate", timeouts=PATIENT) as worker,
        Connection(worker.port) as one,
        Connection(worker.port) as other,
    ):
        for conn in (one, other):
            conn.ask("HELLO", proto)
        keys = Keys(worker)
        one.ask("FLUSHALL")
        for line in COMMANDS.strip().split("\n"):
            name, *rest = line.split()
            one.ask(
                *command(" ".join([name, *(re.sub("^[a-z]{2,}([0-9])$", r"absent\1", word) for word in rest)]), keys)
            )
            for shard in range(3):
                for conn in (other, one):
                    key, value = keys.one(shard, "own"), f"{line} {shard}"
                    assert conn.ask("SET", key, value) == b"OK", line
                    assert conn.ask("GET", key) == value.encode(), line
            one.ask("FLUSHALL")
        assert "bug" not in worker.log.read_text()
