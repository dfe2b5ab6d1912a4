"""What a source tells of changes, by real servers."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from protocol.reply import Error
from pyproxy.access import Access
from pyproxy.config import BackendAccess, Timeouts
from pyproxy.fleet import Fleet, Server
from pyproxy.hashing import slot
from pyproxy.mover.connection import Lost
from pyproxy.mover.feed import Feed, wanted_slots
from tests.pyproxy.mover.storm import ACCESS, TIMEOUTS, connect, node_of
from tests.servers import KINDS, servers_of
from tests.waiting import until


@pytest.fixture(params=KINDS)
def source(request: pytest.FixtureRequest) -> Iterator[Server]:
    with servers_of(request.param), Fleet(shards=1, replicas=0) as fleet:
        yield fleet.shards[0].primary


class Heard:
    """A feed, and what it has told."""

    def __init__(self, wanted: bytes) -> None:
        self.names: list[bytes] = []
        self.flushes = 0
        self.lost = 0
        self.feed = Feed(wanted, self.names.extend, self._on_flush, self._on_lost)

    def _on_flush(self) -> None:
        self.flushes += 1

    def _on_lost(self) -> None:
        self.lost += 1


@asynccontextmanager
async def hearing(server: Server, wanted: bytes = b"\1" * 16384, own: bool = False) -> AsyncIterator[Heard]:
    heard = Heard(wanted)
    await heard.feed.open(node_of(server), ACCESS, TIMEOUTS, own=own)
    yield heard
    heard.feed.close()


# What is there before, the change, and the names that it changes.
CHANGES = """
SET a 1 | a
SET a 1; APPEND a 2 | a
SET a 1; INCR a | a
SETBIT a 7 1 | a
SETRANGE a 7 x | a
SET a 1; GETSET a 2 | a
SET a 1; GETDEL a | a
SET a 1; GETEX a EX 100 | a
MSET a 1 b 2 | a b
BITOP NOT b a; SET a 1; BITOP NOT b a | b
BITFIELD a SET u8 0 3 | a
PFADD a 1 | a
PFADD a 1; PFADD b 2; PFMERGE c a b | c
RPUSH a 1 | a
RPUSH a 1; LPOP a | a
RPUSH a 1; LSET a 0 2 | a
RPUSH a 1 1; LREM a 1 1 | a
RPUSH a 1 1; LTRIM a 0 0 | a
RPUSH a 1; LINSERT a BEFORE 1 0 | a
RPUSH a 1; LMOVE a b LEFT LEFT | a b
RPUSH a 1; BLMPOP 0 1 a LEFT | a
HSET a 1 2 | a
HSET a 1 2; HDEL a 1 | a
HINCRBY a 1 2 | a
HINCRBYFLOAT a 1 2 | a
SADD a 1 | a
SADD a 1; SREM a 1 | a
SADD a 1; SPOP a | a
SADD a 1; SMOVE a b 1 | a b
SADD a 1; SINTERSTORE b a | b
ZADD a 1 1 | a
ZADD a 1 1; ZINCRBY a 1 1 | a
ZADD a 1 1; ZREM a 1 | a
ZADD a 1 1; ZPOPMAX a | a
ZADD a 1 1; ZREMRANGEBYRANK a 0 0 | a
ZADD a 1 1; ZUNIONSTORE b 1 a | b
ZADD a 1 1; ZRANGESTORE b a 0 -1 | b
GEOADD a 1 1 x | a
GEOADD a 1 1 x; GEOSEARCHSTORE b a FROMMEMBER x BYRADIUS 9 km | b
RPUSH a 1; SORT a STORE b | b
XADD a 1-1 x y | a
XADD a 1-1 x y; XDEL a 1-1 | a
XADD a 1-1 x y; XTRIM a MAXLEN 0 | a
SET a 1; DEL a | a
SET a 1; UNLINK a | a
SET a 1; RENAME a b | a b
SET a 1; RENAMENX a b | a b
SET a 1; COPY a b | b
SET a 1; MOVE a 3 | a
SET a 1; EXPIRE a 100 | a
SET a 1 EX 100; PERSIST a | a
SET a 1; PEXPIREAT a 1 | a
EVAL 'redis.call("SET","a",1);redis.call("SET","b",1)' 0 | a b
RPUSH x 1; SET a 1; MULTI; DEL a; SET b 1; EXEC | a b
"""
OF_NEWER_SERVERS = """
HSET a 1 2; HEXPIRE a 100 FIELDS 1 1 | a
HSET a 1 2; HEXPIRE a 100 FIELDS 1 1; HPERSIST a FIELDS 1 1 | a
HSET a 1 2; HGETEX a EX 100 FIELDS 1 1 | a
HSETEX a EX 100 FIELDS 1 1 2 | a
"""


def parsed(line: str) -> tuple[list[list[bytes]], set[bytes]]:
    steps, _, names = line.partition(" | ")
    commands = []
    for step in steps.split("; "):
        words = step.split("'")
        argv = words[0].split() if len(words) == 1 else [*words[0].split(), words[1], *words[2].split()]
        commands.append([word.encode() for word in argv])
    return commands, set(names.encode().split())


async def test_every_kind_of_change_is_told(source: Server) -> None:
    writer = await connect(source)
    async with hearing(source) as heard:
        for line in (CHANGES + OF_NEWER_SERVERS).strip().splitlines():
            if not line:
                continue
            *before, change = (steps := parsed(line))[0]
            if b"MULTI" in (command[0] for command in before):
                cut = [command[0] for command in before].index(b"MULTI")
                before, changes = before[:cut], [*before[cut:], change]
            else:
                changes = [change]
            await writer.ask([b"FLUSHALL"], *before)
            await heard.feed.sync()
            heard.names.clear()
            *_, answer = await writer.ask(*changes)
            await heard.feed.sync()
            if isinstance(answer, Error):
                assert line in OF_NEWER_SERVERS, f"{line}: {answer}"
                assert answer.line.startswith(b"ERR unknown command"), f"{line}: {answer}"
            else:
                assert steps[1] <= set(heard.names), f"{line}: told {heard.names}, answered {answer!r}"
    writer.close()


async def test_a_change_is_told_before_its_writer_is_answered(source: Server) -> None:
    """So a PING that is sent after the answer finds it told."""
    writer = await connect(source)
    async with hearing(source) as heard:
        for number in range(300):
            await writer.ask((b"SET", b"%d" % number, b"1"))
            await heard.feed.sync()
            assert heard.names == [b"%d" % number]
            heard.names.clear()
    writer.close()


async def test_a_key_whose_time_is_over_is_told(source: Server) -> None:
    async with hearing(source) as heard:
        source.ask("SET", "a", "1", "PX", "5")
        await heard.feed.sync()
        heard.names.clear()
        await until("the end of it", lambda: heard.names == [b"a"], lambda: heard.names)


async def test_a_key_that_was_evicted_is_told(source: Server) -> None:
    for number in range(100):
        source.ask("SET", f"a{number}", "x" * 1000)
    async with hearing(source) as heard:
        source.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-random")
        source.ask("CONFIG", "SET", "maxmemory", "1")
        await until("evictions", lambda: len(heard.names) > 0, lambda: heard.names)


async def test_only_names_in_the_slots_are_told(source: Server) -> None:
    names = [b"n%d" % number for number in range(200)]
    async with hearing(source, wanted_slots(((0, 99), (5000, 9999)))) as heard:
        for name in names:
            source.ask("SET", name, "1")
        await heard.feed.sync()
        assert heard.names == [name for name in names if slot(name) <= 99 or 5000 <= slot(name) <= 9999]
        assert 0 < len(heard.names) < 200


@pytest.mark.parametrize("command", ["FLUSHALL", "FLUSHDB"])
async def test_a_database_that_is_emptied_is_told(source: Server, command: str) -> None:
    source.ask("SET", "a", "1")
    async with hearing(source) as heard:
        source.ask(command)
        await heard.feed.sync()
        assert heard.flushes == 1


async def test_groups_of_streams_are_not_told(source: Server) -> None:
    """Which is why streams are copied again at each sync. If this fails, that may be needless by now."""
    writer = await connect(source)
    async with hearing(source) as heard:
        await writer.ask((b"XADD", b"a", b"1-1", b"x", b"y"))
        await heard.feed.sync()
        heard.names.clear()
        answers = await writer.ask(
            (b"XGROUP", b"CREATE", b"a", b"g", b"0"),
            (b"XREADGROUP", b"GROUP", b"g", b"me", b"STREAMS", b"a", b">"),
            (b"XCLAIM", b"a", b"g", b"you", b"0", b"1-1"),
            (b"XACK", b"a", b"g", b"1-1"),
        )
        await heard.feed.sync()
        assert not [answer for answer in answers if isinstance(answer, Error)]
        assert heard.names == []
    writer.close()


async def test_what_its_own_connection_does_is_not_told_where_that_is_asked_for(source: Server) -> None:
    async with hearing(source, own=True) as heard:
        source.ask("MSET", "a", "1", "b", "1")
        await heard.feed.sync()
        heard.names.clear()
        await heard.feed.connection.ask((b"UNLINK", b"a"))
        source.ask("DEL", "b")
        await heard.feed.sync()
        assert heard.names == [b"b"]


async def test_a_server_that_dies_is_told_once(source: Server) -> None:
    async with hearing(source) as heard:
        source.kill()
        await until("the loss", lambda: heard.lost > 0, lambda: heard.lost)
        with pytest.raises(Lost, match=f"{source.address}: "):
            await heard.feed.sync()
        assert heard.lost == 1


async def test_a_server_that_does_not_answer_is_lost(source: Server) -> None:
    heard = Heard(b"\1" * 16384)
    await heard.feed.open(node_of(source), ACCESS, Timeouts(slow_reply_s=0.2))
    source.pause()
    try:
        with pytest.raises(Lost, match=r"has said nothing for 0\.2 s"):
            await heard.feed.sync()
        assert heard.lost == 1
    finally:
        source.resume()
        heard.feed.close()


async def test_a_push_of_any_size_in_any_pieces_is_understood(source: Server) -> None:
    names = 20_000
    async with hearing(source) as heard:
        script = f"for i=1,{names} do redis.call('SET', 'name of some length ' .. i, '') end"
        source.ask("EVAL", script, "0")
        await heard.feed.sync()
        assert len(heard.names) == len(set(heard.names)) == names


async def test_a_server_that_refuses_to_tell_says_why() -> None:
    with Fleet(shards=1, replicas=0, options=("--rename-command", "CLIENT", "")) as fleet:
        heard = Heard(b"\1" * 16384)
        with pytest.raises(Lost, match="refused CLIENT TRACKING: ERR unknown command"):
            await heard.feed.open(node_of(fleet.shards[0].primary), ACCESS, TIMEOUTS)
        assert heard.lost == 0


async def test_a_password_that_is_missing_is_said() -> None:
    with Fleet(shards=1, replicas=0) as fleet:
        server = fleet.shards[0].primary
        server.ask("CONFIG", "SET", "requirepass", "secret")
        with pytest.raises(Lost, match="NOAUTH"):
            await Heard(b"\1" * 16384).feed.open(node_of(server), Access(BackendAccess()), TIMEOUTS)
