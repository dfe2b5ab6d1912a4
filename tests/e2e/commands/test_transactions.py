"""MULTI, EXEC, DISCARD: the texts and rules of a single server, one atomic block on the shard of the keys.

Configured `transactions = "split"`, keys may be on several shards: a block on each, the answers in the order of the
commands. What cannot be done is one error in the place of the whole answer, never one inside it, never a nil.
"""

import contextlib
import socket
from collections.abc import Iterator

import hiredis
import pytest

from pyproxy.fleet import HOST, Fleet, Proxy, Table, wait_until
from pyproxy.shard_map import Node
from tests.e2e.bare_worker import BareWorker
from tests.e2e.rig import PATIENCE_S, PATIENT, Connection, Keys, behind, error, of_a_worker, packed, wait_for_info
from tests.faults import End, Hop, Way

SLOW = 1
"""The index of the shard that the faults are made to."""

REPLY_S = 0.4

PROMOTION: Table = {"promoter": "replicaof", "on_promotion": "hold", "hold_s": 15.0}

ABORTED = "EXECABORT Transaction discarded because of previous errors."


@pytest.fixture(scope="module")
def proxy(fleet: Fleet) -> Iterator[Proxy]:
    with Proxy(fleet, timeouts=PATIENT) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def empty(fleet: Fleet) -> Iterator[None]:
    """Afterwards too: a proxy that starts then would refuse keys that a test gave to one server itself."""
    for server in fleet.servers:
        if not server.running:
            server.start()
        server.ask("FLUSHALL")
    yield
    for server in fleet.servers:
        if server.running:
            server.ask("FLUSHALL")


@pytest.fixture
def spread(split: Proxy, keys: Keys) -> Iterator[Connection]:
    """A client of the proxy that runs transactions over several shards; all of them are served."""
    with Connection(split.port) as conn:
        for shard in range(3):
            key = keys.one(shard)
            wait_until(f"s{shard} to be served", lambda: conn.ask("DEL", key) == 0, split.tail, PATIENCE_S)  # noqa: B023
        yield conn


def shown(reply: object) -> object:
    """Replies as values that compare: errors as their text."""
    if isinstance(reply, hiredis.ReplyError):
        return f"-{reply}"
    return [shown(each) for each in reply] if isinstance(reply, list) else reply


def block(*lines: str) -> list[list[str]]:
    """A transaction of commands as one types them."""
    return [line.split() for line in ("MULTI", *lines, "EXEC")]


# --- as a single server does it ---------------------------------------------------------------------------------------

# What a server answers is what is expected; all keys are on one shard.
AS_A_SERVER = {
    "of three": "MULTI|SET {t}a 1|INCR {t}a|GET {t}a|EXEC|GET {t}a",
    "empty": "MULTI|EXEC",
    "EXEC and DISCARD without MULTI": "EXEC|DISCARD",
    "EXEC twice": "MULTI|SET {t}a 1|EXEC|EXEC",
    "discarded": "MULTI|SET {t}a 9|DISCARD|EXEC|GET {t}a",
    "an error while it runs": "MULTI|SET {t}a x|LPUSH {t}a y|INCR {t}a|GET {t}a|EXEC",
    "keys of one shard in one command": "MULTI|MSET {t}a 1 {t}b 2|MGET {t}a {t}b {t}c|DEL {t}a {t}b|EXEC",
    "keys behind their number": "MULTI|SADD {t}s 1 2|SINTERCARD 2 {t}s {t}s|OBJECT ENCODING {t}s|EXEC",
    "nested values": "MULTI|HSET {t}h f v|HGETALL {t}h|GET {t}none|HINCRBYFLOAT {t}h n 1.5|EXEC",
    "an unknown command": "MULTI|SET {t}a 2|nonsense b|EXEC|EXEC|GET {t}a",
    "an unknown subcommand": "MULTI|OBJECT nonsense {t}a|EXEC",
    "a wrong arity": "MULTI|GET|SET {t}a 2|EXEC|GET {t}a",
    "DEL of nothing": "MULTI|DEL|EXEC",
    "EXEC with an argument": "EXEC now|MULTI|SET {t}a 3|EXEC now|EXEC|GET {t}a",
    "DISCARD with an argument": "MULTI|SET {t}a 3|DISCARD now|EXEC",
    "MULTI with an argument": "MULTI x|SET {t}a 5|MULTI|MULTI x|EXEC",
    "WATCH of nothing": "MULTI|SET {t}a 1|WATCH|EXEC",
    "discarded after an error": "MULTI|nonsense|DISCARD|MULTI|SET {t}a 8|EXEC",
    "RESET": "MULTI|SET {t}a 7|RESET|EXEC|GET {t}a",
    "QUIT": "MULTI|SET {t}a 7|QUIT",
    "silent": "CLIENT REPLY SKIP|MULTI|SET {t}a 1|EXEC|GET {t}a",
    "all silent but the end": "CLIENT REPLY OFF|MULTI|SET {t}a 1|EXEC|CLIENT REPLY ON|GET {t}a",
    "others around": "SET {t}a 1|MULTI|INCR {t}a|EXEC|INCR {t}a|ECHO x|MULTI|GET {t}a|EXEC|GET {t}a",
    "UNWATCH outside": "UNWATCH|UNWATCH x",
    "what names no key": "MULTI|SET {t}a 1|PING|ECHO x|UNWATCH|CLIENT GETNAME|GET {t}a|PING a b|EXEC",
    "nothing but that": "MULTI|PING|CLIENT SETNAME me|CLIENT GETNAME|EXEC|CLIENT GETNAME",
    "silent to what names no key": "CLIENT REPLY OFF|MULTI|PING|EXEC|CLIENT REPLY ON|MULTI|PING|EXEC",
    "pairs that are not whole": "MULTI|SET {t}a 1|MSET {t}a 1 {t}b|GET {t}a|EXEC",
    "only a wrong form": "MULTI|MSET {t}a 1 {t}b|EXEC",
    "a wrong number of keys": "MULTI|LMPOP 0 {t}a LEFT|SINTERCARD 3 {t}a|ZUNIONSTORE {t}d x {t}a|SET {t}a 1|EXEC",
    "a wrong form": "MULTI|SORT {t}a BY|SORT {t}a STORE|XREAD COUNT|EVAL return x|EVAL x -1|EXEC",
    "EXEC with an argument ends the watch": "WATCH {t}a|MULTI|GET {t}a|EXEC now|SET {t}a 1|MULTI|GET {t}a|EXEC",
    "EXEC with an argument and nothing else": "WATCH {t}a|EXEC now|SET {t}a 1|MULTI|GET {t}a|EXEC",
    "UNWATCH behind a watch": "WATCH {t}a|MULTI|UNWATCH|GET {t}a|EXEC|SET {t}a 1|MULTI|GET {t}a|EXEC",
    "of a broken watch": "WATCH {t}a|SET {t}a 1|MULTI|CLIENT SETNAME me|GET {t}a|EXEC|CLIENT GETNAME",
    "DISCARD with an argument outside": "WATCH {t}a|DISCARD now|SET {t}a 1|MULTI|GET {t}a|EXEC",
    "of a subscriber": "SUBSCRIBE c|EXEC|MULTI|GET {t}a|EXEC now|DISCARD|UNSUBSCRIBE|EXEC",
    "EXEC of a subscriber ends the watch": "WATCH {t}a|SUBSCRIBE c|EXEC|UNSUBSCRIBE|SET {t}a 1|MULTI|GET {t}a|EXEC",
}


@pytest.mark.parametrize("proto", [2, 3])
@pytest.mark.parametrize("apart", [True, False], ids=["one by one", "in one segment"])
@pytest.mark.parametrize("mode", ["proxy", "split"])
@pytest.mark.parametrize("lines", AS_A_SERVER.values(), ids=AS_A_SERVER)
def test_a_transaction_is_answered_as_a_single_server_answers_it(
    request: pytest.FixtureRequest, fleet: Fleet, mode: str, lines: str, apart: bool, proto: int
) -> None:
    proxy: Proxy = request.getfixturevalue(mode)
    ours = conversation(proxy.port, lines, proto, apart)
    for server in fleet.servers:
        server.ask("FLUSHALL")
    assert ours == conversation(fleet.shards[0].primary.port, lines, proto, apart)


def conversation(port: int, lines: str, proto: int, apart: bool) -> bytes:
    """All that is answered to these lines, up to the end of the connection, without what HELLO says."""
    with Connection(port) as conn:
        if proto == 3:
            conn.ask("HELLO", 3)
        conn.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        commands = [line.split() for line in lines.split("|")]
        if commands[-1] != ["QUIT"]:
            commands.append(["QUIT"])
        for segment in [[command] for command in commands] if apart else [commands]:
            conn.send(*segment)
        return conn.until_end()


@pytest.mark.parametrize(
    ("line", "reply"),
    [
        ("MULTI", "ERR MULTI calls can not be nested"),
        ("WATCH {t}a", "ERR WATCH inside MULTI is not allowed"),
    ],
)
def test_what_redis_7_refuses_in_a_transaction_without_ending_it(conn: Connection, line: str, reply: str) -> None:
    conn.send(*block("SET {t}a 1", line))
    begun, queued, refused, executed = conn.reads(4)
    assert (begun, queued, error(refused), executed) == (b"OK", b"QUEUED", reply, [b"OK"])


@pytest.mark.parametrize("line", ["SELECT 1", "CLIENT REPLY OFF", "HELLO 3", "CONFIG SET a b", "SCAN 0", "WAIT 0 0"])
def test_what_cannot_be_in_a_block_is_refused_in_a_transaction_and_nothing_of_it_is_run(
    conn: Connection, keys: Keys, line: str
) -> None:
    key = keys.one(SLOW)
    conn.send(*block(f"SET {key} 1", line), ["GET", key])
    *_, refused, executed, got = conn.reads(5)
    name = "|".join(line.split()[:2]) if line.startswith("C") else line.split()[0]
    assert error(refused).startswith(f"ERR command '{name.lower()}' is not served in a transaction: ")
    assert (error(executed), got) == (ABORTED, None)


def test_a_sort_by_keys_that_may_lie_elsewhere_is_refused_when_it_is_queued(conn: Connection) -> None:
    conn.send(*block("SET {t}a 1", "SORT {t}l BY w_*"), ["GET", "{t}a"])
    *_, refused, executed, got = conn.reads(5)
    assert error(refused).startswith("CROSSSLOT ")
    assert (error(executed), got) == (ABORTED, None)


def test_what_all_shards_are_asked_is_refused_at_exec_where_a_block_has_one_shard(conn: Connection) -> None:
    conn.send(*block("SET {t}a 1", "DBSIZE"), ["GET", "{t}a"])
    *_, queued, executed, got = conn.reads(5)
    assert queued == b"QUEUED"
    assert error(executed).startswith("CROSSSLOT Keys in transaction don't hash to the same slot ")
    assert got is None


@pytest.mark.parametrize("line", ["MONITOR", "CLIENT PAUSE 1", "SHUTDOWN"])
def test_what_is_not_served_is_refused_in_a_transaction_and_nothing_of_it_is_run(conn: Connection, line: str) -> None:
    conn.send(*block("SET {t}a 1", line), ["GET", "{t}a"])
    *_, refused, executed, got = conn.reads(5)
    assert " is not served by this proxy: " in error(refused)
    assert (error(executed), got) == (ABORTED, None)


def test_what_a_transaction_waits_with_is_seen_in_client_list(conn: Connection, proxy: Proxy) -> None:
    conn.send(["MULTI"], ["SET", "{t}a", "1"], ["GET", "{t}a"])
    conn.reads(3)
    with Connection(proxy.port) as other:
        listed = other.ask("CLIENT", "LIST")
    assert isinstance(listed, bytes)
    (line,) = [line for line in listed.decode().splitlines() if "flags=x" in line]
    assert " multi=2 " in line and " multi-mem=0 " not in line
    assert conn.ask("EXEC") == [b"OK", b"1"]


def test_a_client_that_leaves_inside_a_transaction_applies_nothing(conn: Connection, proxy: Proxy, keys: Keys) -> None:
    with Connection(proxy.port) as leaving:
        leaving.send(["MULTI"], ["SET", keys.one(0), "x" * 100_000])
        assert leaving.reads(2) == [b"OK", b"QUEUED"]
        wait_for_info(conn, "it to be counted", lambda info: int(info["buffered_bytes"]) > 100_000)
    wait_for_info(conn, "nothing to be buffered", lambda info: info["buffered_bytes"] == "0")
    assert conn.ask("GET", keys.one(0)) is None


def test_a_transaction_without_end_costs_its_client_the_connection_when_memory_is_used_up(fleet: Fleet) -> None:
    limits = {"memory_bytes": 4 << 20, "bulk_bytes": 1 << 20}
    with (
        Proxy(fleet, limits=limits, timeouts=PATIENT) as small,
        Connection(small.port) as hoarder,
        Connection(small.port) as other,
    ):
        hoarder.send(["MULTI"])
        with pytest.raises((AssertionError, OSError)):
            for _ in range(20):
                hoarder.ask("SET", "{t}a", b"x" * 500_000)
        wait_for_info(other, "nothing to be buffered", lambda info: info["buffered_bytes"] == "0")
        assert other.ask("GET", "{t}a") is None


def test_a_large_transaction_is_run(conn: Connection) -> None:
    """Far more than a client may have out in answers or requests otherwise."""
    large = "x" * 300_000
    conn.send(*block(*[f"APPEND {{t}}a {large}"] * 10, "STRLEN {t}a"), ["STRLEN", "{t}a"])
    assert conn.reads(12) == [b"OK", *[b"QUEUED"] * 11]
    assert conn.reads(2) == [[*range(300_000, 3_000_001, 300_000), 3_000_000], 3_000_000]


# --- keys on several shards -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lines", [["SET {0} 1", "SET {1} 2"], ["SET {0} 1", "MSET {0} 2 {1} 2"]])
def test_keys_on_several_shards_are_refused_at_exec_and_nothing_is_applied(
    conn: Connection, keys: Keys, lines: list[str]
) -> None:
    here, there = keys.one(0), keys.one(2)
    conn.send(*block(*[line.format(here, there) for line in lines]), ["MGET", here, there])
    *queued, executed, got = conn.reads(5)
    assert queued == [b"OK", b"QUEUED", b"QUEUED"]
    assert error(executed).startswith("CROSSSLOT Keys in transaction don't hash to the same slot ")
    assert "s0, s2" in error(executed)
    assert got == [None, None]


def test_one_command_that_cannot_be_cut_is_refused_when_it_is_queued(spread: Connection, keys: Keys) -> None:
    spread.send(*block(f"SET {keys.one(0)} 1", f"RENAME {keys.one(0)} {keys.one(1)}"), ["GET", keys.one(0)])
    *_, refused, executed, got = spread.reads(5)
    assert error(refused).startswith("CROSSSLOT ")
    assert (error(executed), got) == (ABORTED, None)


@pytest.mark.parametrize("proto", [2, 3])
def test_split_the_answers_come_in_the_order_of_the_commands(spread: Connection, keys: Keys, proto: int) -> None:
    a, b, c = (keys.one(shard) for shard in range(3))
    spread.ask("HELLO", proto)
    lines = [f"SET {c} 1", f"HSET h{a} f v", f"INCR {c}", f"SET {b} x", f"LPUSH {b} y", f"HGETALL h{a}", f"GET {a}"]
    spread.send(["ECHO", "before"], *block(*lines), ["GET", c], ["ECHO", "after"])
    assert spread.reads(2 + len(lines)) == [b"before", b"OK", *[b"QUEUED"] * len(lines)]
    executed = shown(spread.read())
    assert executed == [
        b"OK",
        1,
        2,
        b"OK",
        "-WRONGTYPE Operation against a key holding the wrong kind of value",
        {b"f": b"v"} if proto == 3 else [b"f", b"v"],
        None,
    ]
    assert spread.reads(2) == [b"2", b"after"]


@pytest.mark.parametrize("typed", [True, False], ids=["typed", "in one segment"])
def test_split_commands_over_several_shards_are_cut_and_put_together(
    spread: Connection, keys: Keys, typed: bool
) -> None:
    a, b, c = (keys.one(shard) for shard in range(3))
    commands = block(
        f"MSET {a} 1 {b} 2 {c} 3",
        f"MGET {c} {a} none {b} {c}",
        f"INCR {b}",
        f"MGET {b} {a}",
        f"EXISTS {a} {b} {c} {a}",
        f"DEL {a} {c} none",
        f"MGET {a} {b} {c}",
    )
    if typed:
        replies = [spread.ask(*command) for command in commands]
    else:
        spread.send(*commands)
        replies = spread.reads(len(commands))
    assert replies[-1] == [
        b"OK",
        [b"3", b"1", None, b"2", b"3"],
        3,
        [b"3", b"1"],
        4,
        2,
        [None, b"3", None],
    ]


def test_split_what_all_shards_are_asked_is_asked_in_each_block(spread: Connection, keys: Keys) -> None:
    a, b, c = (keys.one(shard) for shard in range(3))
    lines = [f"MSET {a} 1 {b} 2 {c} 3", "DBSIZE", "KEYS *", "PING", f"DEL {a}", "DBSIZE", "FLUSHALL", "DBSIZE"]
    spread.send(*block(*lines))
    *queued, executed = spread.reads(2 + len(lines))
    assert queued == [b"OK", *[b"QUEUED"] * len(lines)]
    assert isinstance(executed, list)
    assert sorted(executed.pop(2)) == sorted(name.encode() for name in (a, b, c))
    assert executed == [b"OK", 3, b"PONG", 1, 2, b"OK", 0]


def test_split_a_thousand_transactions_in_one_segment_are_each_answered_whole(spread: Connection, keys: Keys) -> None:
    counters = [keys.one(shard, "counter") for shard in range(3)]
    spread.send(*[word for _ in range(1000) for word in (*block(*[f"INCR {key}" for key in counters]), ["PING"])])
    for number in range(1, 1001):
        assert spread.reads(6) == [b"OK", b"QUEUED", b"QUEUED", b"QUEUED", [number] * 3, b"PONG"]


def test_split_each_shard_gets_one_block_from_multi_to_exec(fleet: Fleet, keys: Keys) -> None:
    with (
        Hop(fleet.shards[SLOW].primary.port, of_a_worker) as hop,
        behind(fleet, {SLOW: hop}, transactions="split", timeouts=PATIENT) as proxy,
        Connection(proxy.port) as conn,
    ):
        key = keys.one(SLOW)
        conn.send(*block(f"SET {key} 1", f"SET {keys.one(0)} 1", f"GET {key}"))
        assert conn.reads(5)[-1] == [b"OK", b"OK", b"1"]
        assert b"".join(packed(*line) for line in block(f"SET {key} 1", f"GET {key}")) in hop.requests


# --- a shard in trouble -----------------------------------------------------------------------------------------------


@pytest.fixture(params=["one shard", "several"])
def transaction(request: pytest.FixtureRequest, keys: Keys) -> list[list[str]]:
    """A transaction that the slow shard has a part in, or the whole of."""
    key, other = keys.one(SLOW, "counter"), keys.one(0, "counter")
    return block(f"INCR {key}", f"INCR {other if request.param == 'several' else key}", f"INCR {key}")


def test_a_shard_that_is_down_is_one_error_and_nothing_is_sent(
    fleet: Fleet, split: Proxy, keys: Keys, spread: Connection, transaction: list[list[str]]
) -> None:
    fleet.shards[SLOW].primary.kill()
    wait_until(
        "the shard to be down", lambda: "is down" in str(spread.ask("GET", keys.one(SLOW))), lambda: "", PATIENCE_S
    )
    spread.send(*transaction)
    *queued, executed = spread.reads(5)
    assert queued == [b"OK", *[b"QUEUED"] * 3]
    assert error(executed).startswith(f"EXECABORT Transaction discarded because of: shard s{SLOW}")
    assert ", applied=no; retry later" in error(executed)
    assert spread.ask("GET", keys.one(0, "counter")) is None


def test_a_server_killed_with_a_transaction_out_is_one_uncertain(
    fleet: Fleet, split: Proxy, keys: Keys, spread: Connection, transaction: list[list[str]]
) -> None:
    server = fleet.shards[SLOW].primary
    wait_until("the shard to be served", lambda: spread.ask("DEL", keys.one(SLOW)) == 0, lambda: "", PATIENCE_S)
    server.pause()
    spread.send(*transaction, ["ECHO", "behind"])
    assert spread.reads(4) == [b"OK", *[b"QUEUED"] * 3]
    with Connection(split.port) as other:
        wait_for_info(other, "it to be in flight", lambda info: info["inflight"] == "1")
        wait_until_answered(other, keys, transaction)
    server.kill()
    executed, behind_it = spread.reads(2)
    assert error(executed).startswith(f"UNCERTAIN shard s{SLOW}")
    others = "; other shards may have applied their part: s0"
    assert error(executed).endswith(others) == over_shards(keys, transaction)
    assert behind_it == b"behind"


def over_shards(keys: Keys, transaction: list[list[str]]) -> bool:
    return ["INCR", keys.one(0, "counter")] in transaction


def wait_until_answered(other: Connection, keys: Keys, transaction: list[list[str]]) -> None:
    """The part of the shard that answers."""
    if over_shards(keys, transaction):
        wait_until("s0's part", lambda: other.ask("GET", keys.one(0, "counter")) == b"1", lambda: "", PATIENCE_S)


@pytest.fixture(scope="module")
def hop(fleet: Fleet) -> Iterator[Hop]:
    with Hop(fleet.shards[SLOW].primary.port, of_a_worker) as hop:
        yield hop


@pytest.fixture
def hasty(fleet: Fleet, hop: Hop) -> Iterator[Proxy]:
    """A proxy with short deadlines that drops no connection for silence."""
    hop.heal()
    timeouts = {"reply_s": REPLY_S, "silence_s": PATIENCE_S, "connect_s": PATIENCE_S}
    with behind(fleet, {SLOW: hop}, transactions="split", timeouts=timeouts) as proxy:
        yield proxy
    hop.heal()


def test_late_answers_to_a_transaction_go_to_nobody(
    hop: Hop, hasty: Proxy, keys: Keys, transaction: list[list[str]]
) -> None:
    """All of them, and not one more: what is asked behind it on the same connection gets its own."""
    key = keys.one(SLOW)
    with Connection(hasty.port) as conn, Connection(hasty.port) as other:
        assert conn.ask("SET", key, "mine") == b"OK"
        hop.stall(Way.REPLIES)
        conn.send(*transaction, *transaction)
        for reply in conn.reads(10)[4::5]:
            assert error(reply).startswith(f"UNCERTAIN shard s{SLOW}")
            assert f"did not answer within {REPLY_S:g} s" in error(reply)
        hop.heal()
        other.send(["GET", key], ["STRLEN", key], *transaction)
        replies = other.reads(7)
        assert replies[:2] == [b"mine", 4]
        assert [number for number in replies[6] if number > 3], f"after two that were run: {replies[6]}"  # type: ignore[attr-defined]
        assert conn.ask("GET", key) == b"mine"


@pytest.mark.parametrize("shards", [[SLOW], [SLOW, 0]])
def test_a_transaction_that_only_reads_is_not_applied_where_an_answer_is_late(
    hop: Hop, hasty: Proxy, keys: Keys, shards: list[int]
) -> None:
    with Connection(hasty.port) as conn:
        assert conn.ask("EXISTS", keys.one(SLOW)) == 0
        hop.stall(Way.REPLIES)
        conn.send(*block(*[f"GET {keys.one(shard)}" for shard in shards], "PING"))
        reply = error(conn.reads(3 + len(shards))[-1])
        assert reply.startswith(f"EXECABORT Transaction discarded because of: shard s{SLOW}")
        assert f"did not answer within {REPLY_S:g} s, applied=no" in reply


def test_a_client_that_leaves_with_a_transaction_out_takes_no_answer_of_others_along(
    hop: Hop, hasty: Proxy, keys: Keys, transaction: list[list[str]]
) -> None:
    key = keys.one(SLOW)
    with Connection(hasty.port) as other:
        assert other.ask("SET", key, "mine") == b"OK"
        hop.stall(Way.REPLIES)
        with Connection(hasty.port) as leaving:
            leaving.send(*transaction)
            assert leaving.reads(4) == [b"OK", *[b"QUEUED"] * 3]
            wait_for_info(other, "it to be in flight", lambda info: info["inflight"] == "1")
        wait_for_info(other, "it to be gone", lambda info: (info["inflight"], info["connected_clients"]) == ("0", "1"))
        hop.heal()
        other.send(["GET", key], ["STRLEN", key])
        assert other.reads(2) == [b"mine", 4]


@pytest.mark.parametrize("hit", [0, 1])
def test_a_transaction_that_is_lost_is_not_sent_again_unless_it_only_reads(
    fleet: Fleet, hop: Hop, hasty: Proxy, keys: Keys, hit: int
) -> None:
    key = keys.one(SLOW, "list")
    reads, writes = block(f"LLEN {key}", f"LRANGE {key} 0 -1"), block(f"LLEN {key}", f"RPUSH {key} x")
    with Connection(hasty.port) as conn:
        assert conn.ask("LLEN", key) == 0
        wait_until("a connection that is old enough", lambda: connected_for(fleet) >= 2, lambda: "", PATIENCE_S)
        hop.answer(b"EXEC", b"+OK\r\n+QUEUED\r\n", End.FIN)
        conn.send(*[reads, writes][hit])
        executed = conn.reads(4)[-1]
        if hit == 0:
            assert executed == [0, []]
        else:
            assert error(executed).startswith(f"UNCERTAIN shard s{SLOW}")
            wait_until("the shard to be served", lambda: conn.ask("LLEN", key) == 0, lambda: "", PATIENCE_S)


def connected_for(fleet: Fleet) -> int:
    """The age of the youngest connection to the slow shard, in seconds."""
    listed = fleet.shards[SLOW].primary.ask("CLIENT", "LIST")
    assert isinstance(listed, bytes)
    lines = [line for line in listed.decode().splitlines() if "cmd=client|list" not in line]
    return min(int(line.split(" age=")[1].split()[0]) for line in lines)


def test_what_the_server_refuses_while_it_queues_aborts_the_whole(fleet: Fleet, conn: Connection, keys: Keys) -> None:
    server, key = fleet.shards[SLOW].primary, keys.one(SLOW)
    server.ask("CONFIG", "SET", "maxmemory", 1)
    try:
        conn.send(*block(f"DEL {key}", f"SET {key} x"), ["EXISTS", key])
        *queued, executed, exists = conn.reads(5)
        assert queued == [b"OK", b"QUEUED", b"QUEUED"]
        assert (error(executed), exists) == (ABORTED, 0)
    finally:
        server.ask("CONFIG", "SET", "maxmemory", 0)


def test_split_a_shard_that_refuses_its_block_is_uncertain_for_the_others(
    fleet: Fleet, spread: Connection, keys: Keys
) -> None:
    server = fleet.shards[SLOW].primary
    server.ask("CONFIG", "SET", "maxmemory", 1)
    try:
        spread.send(*block(f"SET {keys.one(0)} x", f"SET {keys.one(SLOW)} x"), ["GET", keys.one(0)])
        *_, executed, got = spread.reads(5)
    finally:
        server.ask("CONFIG", "SET", "maxmemory", 0)
    assert error(executed) == (f"UNCERTAIN shard s{SLOW}: {ABORTED}; other shards may have applied their part: s0")
    assert got == b"x"


def test_a_server_that_refuses_multi_is_not_believed_to_have_run_a_block(
    fleet: Fleet, conn: Connection, keys: Keys
) -> None:
    """It has run the commands one by one."""
    server, key = fleet.shards[SLOW].primary, keys.one(SLOW)
    server.ask("ACL", "SETUSER", "default", "-multi")
    try:
        conn.send(*block(f"SET {key} other"), ["GET", key])
        *_, executed, got = conn.reads(4)
        assert error(executed).startswith(f"UNCERTAIN shard s{SLOW}")
        assert "refused MULTI" in error(executed)
        assert got == b"other"
    finally:
        server.ask("ACL", "SETUSER", "default", "+multi")


def test_a_server_that_asks_for_a_password_has_run_nothing(hop: Hop, hasty: Proxy, keys: Keys) -> None:
    key = keys.one(SLOW)
    with Connection(hasty.port) as conn:
        assert conn.ask("EXISTS", key) == 0
        hop.answer(b"EXEC", b"-NOAUTH Authentication required.\r\n" * 3)
        conn.send(*block(f"SET {key} x"))
        reply = error(conn.reads(3)[-1])
        assert reply.startswith(f"EXECABORT Transaction discarded because of: shard s{SLOW}")
        assert "asks for a password again, applied=no" in reply
        wait_until("the shard to be served", lambda: conn.ask("EXISTS", key) == 0, lambda: "", PATIENCE_S)


# --- a closed gate ----------------------------------------------------------------------------------------------------


@pytest.fixture
def worker(replicated: Fleet) -> Iterator[BareWorker]:
    for shard in replicated.shards:
        shard.primary.ask("FLUSHALL")
    with BareWorker(replicated, promotion=PROMOTION, transactions="split") as worker:
        yield worker


def test_a_transaction_that_writes_waits_at_a_closed_gate_and_is_run_once(
    worker: BareWorker, transaction: list[list[str]]
) -> None:
    worker.close(SLOW)
    with Connection(worker.port) as conn:
        conn.send(*transaction, ["ECHO", "behind"])
        assert conn.reads(4) == [b"OK", *[b"QUEUED"] * 3]
        worker.wait_held(SLOW, 1)
        worker.open(SLOW)
        executed, behind_it = conn.reads(2)
        assert executed in ([1, 2, 3], [1, 1, 2])
        assert behind_it == b"behind"


def test_a_block_that_was_begun_and_not_sent_when_the_gate_closed_is_sent_when_it_opens(
    replicated: Fleet, keys: Keys, transaction: list[list[str]]
) -> None:
    for shard in replicated.shards:
        shard.primary.ask("FLUSHALL")
    with contextlib.ExitStack() as stack:
        hop = stack.enter_context(Hop(replicated.shards[SLOW].primary.port, of_a_worker))
        primaries = {SLOW: Node(HOST, hop.port)}
        worker = BareWorker(replicated, primaries, promotion=PROMOTION, timeouts=PATIENT, transactions="split")
        stack.enter_context(worker)
        conn, other = (stack.enter_context(Connection(worker.port)) for _ in range(2))
        assert isinstance(conn.ask("DEL", keys.one(SLOW)), int)
        hop.stall()
        conn.send(["SELECT", "3"], *transaction, ["GET", keys.one(SLOW)])  # of which it has no connection yet
        assert conn.reads(5) == [b"OK", b"OK", *[b"QUEUED"] * 3]
        wait_for_info(other, "it to be begun", lambda info: info["inflight"] == "2")
        worker.close(SLOW)
        worker.wait_held(SLOW, 1)
        hop.heal()
        worker.open(SLOW)
        executed, got = conn.reads(2)
        assert executed in ([1, 2, 3], [1, 1, 2])
        assert got is None


def test_a_client_that_closes_its_half_is_told_that_its_held_transaction_is_discarded(
    worker: BareWorker, transaction: list[list[str]]
) -> None:
    worker.close(SLOW)
    with Connection(worker.port) as conn:
        conn.send(*transaction)
        assert conn.reads(4) == [b"OK", *[b"QUEUED"] * 3]
        worker.wait_held(SLOW, 1)
        conn.socket.shutdown(socket.SHUT_WR)
        assert conn.until_end().startswith(b"-EXECABORT Transaction discarded because of: shard s%d" % SLOW)


def test_a_held_transaction_of_a_client_that_leaves_is_never_sent(
    worker: BareWorker, replicated: Fleet, keys: Keys, transaction: list[list[str]]
) -> None:
    worker.close(SLOW)
    with Connection(worker.port) as conn:
        conn.send(*transaction)
        assert conn.reads(4) == [b"OK", *[b"QUEUED"] * 3]
        worker.wait_held(SLOW, 1)
    worker.wait_count("dropped_client_gone", 1)
    worker.open(SLOW)
    with Connection(worker.port) as conn:
        assert conn.ask("MGET", keys.one(SLOW, "counter"), keys.one(0, "counter")) == [None, None]


def test_a_transaction_that_only_reads_passes_a_closed_gate(worker: BareWorker, keys: Keys) -> None:
    worker.close(SLOW)
    with Connection(worker.port) as conn:
        conn.send(*block(f"GET {keys.one(SLOW)}", f"GET {keys.one(0)}"))
        assert conn.reads(4) == [b"OK", b"QUEUED", b"QUEUED", [None, None]]


def test_where_nothing_may_wait_a_transaction_is_refused_whole(
    worker: BareWorker, keys: Keys, transaction: list[list[str]]
) -> None:
    worker.close(SLOW, hold=False, in_s=10.0)
    with Connection(worker.port) as conn:
        conn.send(*transaction)
        reply = error(conn.reads(5)[-1])
        assert reply.startswith(f"EXECABORT Transaction discarded because of: shard s{SLOW}")
        assert "applied=no retry_after_ms=" in reply
        assert conn.ask("GET", keys.one(0, "counter")) is None


def test_a_transaction_that_the_server_refuses_is_not_replayed(
    worker: BareWorker, replicated: Fleet, keys: Keys
) -> None:
    """A write alone would be held, and sent again."""
    server, key = replicated.shards[SLOW].primary, keys.one(SLOW)
    server.ask("CONFIG", "SET", "min-replicas-to-write", 5)
    try:
        with Connection(worker.port) as conn, Connection(worker.port) as held:
            conn.send(*block(f"SET {key} x"))
            assert error(conn.reads(3)[-1]) == ABORTED
            held.send(["SET", key, "y"])
            worker.wait_held(SLOW, 1)
            server.ask("CONFIG", "SET", "min-replicas-to-write", 0)
            worker.close(SLOW)
            worker.open(SLOW)
            assert held.read() == b"OK"
            assert conn.ask("GET", key) == b"y"
    finally:
        server.ask("CONFIG", "SET", "min-replicas-to-write", 0)


def test_what_a_server_says_to_exec_is_the_answer_whatever_it_would_mean_for_a_write(
    replicated: Fleet, keys: Keys
) -> None:
    refusal = b"-READONLY You can't write against a read only replica.\r\n"
    with Hop(replicated.shards[SLOW].primary.port, of_a_worker) as hop:
        primaries = {SLOW: Node(HOST, hop.port)}
        with BareWorker(replicated, primaries, promotion=PROMOTION) as worker, Connection(worker.port) as conn:
            assert isinstance(conn.ask("DEL", keys.one(SLOW)), int)
            hop.answer(b"EXEC", b"+OK\r\n+QUEUED\r\n" + refusal)
            conn.send(*block(f"SET {keys.one(SLOW)} x"), ["ECHO", "behind"])
            *_, executed, behind_it = conn.reads(4)
            assert (error(executed), behind_it) == (refusal[1:-2].decode(), b"behind")


# --- of very many -----------------------------------------------------------------------------------------------------

MANY = 20_000


@pytest.mark.parametrize("over", [1, 3])
def test_very_many_commands_are_answered_in_their_order(split: Proxy, keys: Keys, over: int) -> None:
    """Where they go is found when they are queued, and their answers are put together in slices: others go on."""
    names = [name for shard in range(over) for name in keys.on(shard, 50, "many")]
    asked: list[tuple[str, ...]] = []
    expected: list[object] = []
    for number in range(MANY):
        name = names[number % len(names)]
        match number % 5:
            case 0 | 1:
                asked.append(("SET", name, str(number)))
                expected.append(b"OK")
            case 2:
                asked.append(("MGET", *names[:3]))
                expected.append(None)  # known from what was set before
            case 3:
                asked.append(("ECHO", str(number)))
                expected.append(str(number).encode())
            case _:
                asked.append(("GET", name))
                expected.append(None)
    stored: dict[str, bytes | None] = dict.fromkeys(names)
    for place, argv in enumerate(asked):
        match argv[0]:
            case "SET":
                stored[argv[1]] = argv[2].encode()
            case "GET":
                expected[place] = stored[argv[1]]
            case "MGET":
                expected[place] = [stored[name] for name in argv[1:]]
    with Connection(split.port) as conn, Connection(split.port) as bystander:
        conn.ask("FLUSHALL")
        conn.send(("MULTI",), *asked)
        assert set(conn.reads(MANY + 1)) == {b"OK", b"QUEUED"}
        conn.send(("EXEC",), ("PING",))
        assert bystander.ask("PING") == b"PONG"
        assert conn.read() == expected
        assert conn.read() == b"PONG"


def test_a_client_that_leaves_in_the_middle_of_very_many_answers_leaves_nothing(split: Proxy, keys: Keys) -> None:
    with Connection(split.port) as stays:
        for _ in range(5):
            with Connection(split.port) as leaves:
                leaves.send(("MULTI",), *[("SET", keys.one(number % 3), "v") for number in range(MANY)], ("EXEC",))
                leaves.reads(MANY + 1)
                leaves.reset()
        wait_for_info(
            stays, "nothing to be left", lambda info: (info["inflight"], info["buffered_bytes"]) == ("0", "0")
        )
        assert stays.ask("GET", keys.one(2)) == b"v"
