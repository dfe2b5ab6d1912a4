"""Commands of very many keys are answered as short ones are, and as by one server, byte for byte."""

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from pyproxy.fleet import Fleet, Proxy, Server, Table, wait_until
from tests.e2e.bare_worker import BareWorker
from tests.e2e.rig import PATIENT, Argument, Connection, Keys, error

KEYS = 30_000
FEW = 100
"""Keys of a command that is begun and answered at once."""


@pytest.fixture(scope="module")
def proxy(fleet10: Fleet) -> Iterator[Proxy]:
    with Proxy(fleet10, timeouts=PATIENT, transactions="split") as proxy:
        yield proxy


@pytest.fixture(params=[2, 3], ids=["RESP2", "RESP3"])
def pair(request: pytest.FixtureRequest, fleet10: Fleet, proxy: Proxy, server: Server) -> Iterator["Pair"]:
    for each in (*fleet10.servers, server):
        each.ask("FLUSHALL")
    pair = Pair(proxy, server)
    pair.each("HELLO", request.param)
    yield pair
    for conn in pair.talks:
        conn.close()


class Pair:
    """The proxy and one server, which are asked the same."""

    def __init__(self, proxy: Proxy, server: Server) -> None:
        self.talks = [Connection(port) for port in (proxy.port, server.port)]

    def each(self, *words: Argument) -> list[object]:
        return [conn.ask(*words) for conn in self.talks]

    def says(self, *words: Argument) -> object:
        """What both say. Errors count by their text."""
        proxy, server = [str(said) if isinstance(said, Exception) else said for said in self.each(*words)]
        assert proxy == server, f"{str(words)[:200]}: {str(proxy)[:200]} is not {str(server)[:200]}"
        return proxy


def names(count: int) -> list[str]:
    """Some of them twice."""
    rng = random.Random(count)
    return [f"key:{rng.randrange(count)}" for _ in range(count)]


def pairs(keys: Sequence[str]) -> list[str]:
    """Each with a value of its own, some of which are empty."""
    return [word for at, key in enumerate(keys) for word in (key, f"{at}" if at % 7 else "")]


def test_what_was_set_is_read_touched_counted_and_deleted_as_by_one_server(pair: Pair) -> None:
    keys = names(KEYS)
    assert pair.says("MSET", *pairs(keys)) == b"OK"
    values = pair.says("MGET", *keys, "none", *keys)
    assert isinstance(values, list)
    assert len(values) == 2 * KEYS + 1
    assert pair.says("EXISTS", *keys, "none") == KEYS
    assert pair.says("TOUCH", *keys, "none") == KEYS
    some, others = keys[: KEYS // 2], keys[KEYS // 2 :]
    pair.says("DEL", *some)
    pair.says("UNLINK", *keys)
    assert pair.says("EXISTS", *others) == 0
    assert pair.says("DBSIZE") == 0


def test_values_of_all_sizes_come_back(pair: Pair) -> None:
    sizes = [*range(300), 15_000, 70_000, 2_000_000, 0]
    words = [word for size in sizes for word in (f"size:{size}", bytes([65 + size % 26]) * size)]
    assert pair.says("MSET", *words) == b"OK"
    assert pair.says("MGET", *words[::2]) == words[1::2]


@pytest.mark.parametrize("words", [["MSET", *names(KEYS + 1)], ["MSET", *names(KEYS), "last"]])
def test_a_value_that_is_missing_is_an_error_as_by_one_server(pair: Pair, words: Sequence[str]) -> None:
    assert pair.says(*words) == "ERR wrong number of arguments for 'mset' command"
    assert pair.says("DBSIZE") == 0


def test_keys_of_one_shard_are_served_as_by_one_server(pair: Pair) -> None:
    keys = [f"{{tag}}{number}" for number in range(KEYS)]
    assert pair.says("MSET", *pairs(keys)) == b"OK"
    assert isinstance(pair.says("MGET", *keys), list)
    assert pair.says("DEL", *keys, *keys) == KEYS


def test_in_a_transaction_they_are_answered_as_by_one_server(pair: Pair) -> None:
    keys = names(KEYS)
    pair.says("MULTI")
    for words in (["MSET", *pairs(keys)], ["MGET", *keys], ["DEL", *keys]):
        assert pair.says(*words) == b"QUEUED"
    assert isinstance(pair.says("EXEC"), list)
    assert pair.says("DBSIZE") == 0


def tagged(count: int) -> list[str]:
    """All on one shard."""
    return [f"{{tag}}{number}" for number in range(count)]


@pytest.mark.parametrize(
    "words",
    [
        ["SUNION", *tagged(KEYS)],
        ["SDIFF", *tagged(KEYS)],
        ["SUNIONSTORE", "{tag}to", *tagged(KEYS)],
        ["SINTERCARD", KEYS, *tagged(KEYS), "LIMIT", 5],
        ["ZUNION", KEYS, *tagged(KEYS), "WITHSCORES"],
        ["PFCOUNT", *tagged(KEYS)],
        ["XREAD", "STREAMS", *tagged(KEYS), *["0"] * KEYS],
        ["EVAL", "return {#KEYS, #ARGV}", KEYS, *tagged(KEYS), "argument"],
        ["EVAL", "return 1", KEYS + 1, *tagged(KEYS)],
        ["BLPOP", *tagged(KEYS), "0.001"],
        ["BLPOP", *tagged(KEYS), "{tag}list", 0],
        ["BLMPOP", "0.001", KEYS, *tagged(KEYS), "LEFT"],
        ["SUNION"],
    ],
    ids=lambda words: f"{words[0]} {len(words)}",
)
def test_commands_on_very_many_keys_of_one_shard_are_answered_as_by_one_server(
    pair: Pair, words: Sequence[Argument]
) -> None:
    pair.says("RPUSH", "{tag}list", "element")
    pair.says("SADD", "{tag}7", "a", "b")
    pair.says(*words)
    pair.says("DEL", "{tag}7", "{tag}list")
    pair.says("MULTI")
    pair.says(*words)
    pair.says("PING")
    proxy, server = map(repr, pair.each("EXEC"))  # errors by their text
    assert proxy == server


@pytest.mark.parametrize("with_entries", [0, 1, 3000])
def test_very_many_streams_of_all_shards_are_read_as_from_one_server(pair: Pair, with_entries: int) -> None:
    keys = [f"key:{number}" for number in range(KEYS)]
    for key in keys[:: KEYS // with_entries] if with_entries else ():
        for conn in pair.talks:
            conn.send(["XADD", key, "1-1", "field", "value"])
    for conn in pair.talks:
        conn.reads(with_entries)
    pair.says("XREAD", "STREAMS", *keys, *["0"] * KEYS)
    pair.says("XREAD", "STREAMS", *keys, *["0"] * (KEYS - 1))


def test_very_many_watched_keys_are_watched_as_by_one_server(pair: Pair) -> None:
    for changed in ("{tag}0", f"{{tag}}{KEYS - 1}", "{tag}none"):
        assert pair.says("WATCH", *tagged(KEYS)) == b"OK"
        for conn in pair.talks:
            with Connection(conn.socket.getpeername()[1]) as other:
                other.ask("SET", changed, 1)
        pair.says("MULTI")
        pair.says("PING")
        assert pair.says("EXEC") == ([b"PONG"] if changed.endswith("none") else None)


def test_a_key_of_another_type_is_answered_as_by_one_server(pair: Pair) -> None:
    pair.says("RPUSH", "key:5", "element")
    assert isinstance(pair.says("MGET", *[f"key:{number}" for number in range(KEYS)]), list)


def test_what_is_sent_behind_it_is_done_behind_it(pair: Pair) -> None:
    keys = names(KEYS)
    key = keys[0]
    for conn in pair.talks:
        conn.send(["SET", key, 1], ["MSET", *pairs(keys)], ["INCR", "n"], ["MGET", *keys], ["DEL", *keys], ["GET", key])
    proxy, server = [conn.reads(6) for conn in pair.talks]
    assert proxy == server


def test_others_get_what_is_theirs_meanwhile(proxy: Proxy, conn: Connection) -> None:
    keys = [f"key:{number}" for number in range(300_000)]
    with Connection(proxy.port) as beside, ThreadPoolExecutor(1) as pool:
        asking = pool.submit(lambda: [conn.ask("MGET", *keys), conn.ask("DEL", *keys)])
        asked = 0
        while not asking.done():
            asked += 1
            assert beside.ask("INCR", "bystander") == asked
            assert beside.ask("GET", "bystander") == b"%d" % asked
        assert asking.result() == [[None] * len(keys), 0]
        assert beside.ask("DEL", "bystander") == 1


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.fixture
def conn(fleet10: Fleet, proxy: Proxy) -> Iterator[Connection]:
    for each in fleet10.servers:
        each.ask("FLUSHALL")
    with Connection(proxy.port) as conn:
        yield conn


@pytest.mark.parametrize("name", ["MGET", "MSET", "DEL"])
def test_a_shard_that_is_down_is_said_as_for_few_keys(fleet10: Fleet, conn: Connection, name: str) -> None:
    words = pairs([f"key:{number}" for number in range(KEYS)])

    def said(count: int) -> str:
        return str(conn.ask(name, *words[:count]))

    server = fleet10.shards[3].primary
    server.kill()
    try:
        # at first it says how the connection was lost
        wait_until("the shard to be down", lambda: "refused, applied=no" in said(FEW), lambda: said(FEW))
        assert said(2 * KEYS) == said(FEW)
    finally:
        server.start()
    wait_until("the shard to be served", lambda: not said(FEW).startswith("TRYAGAIN"), lambda: said(FEW))
    assert not said(2 * KEYS).startswith("TRYAGAIN")


def test_a_part_that_a_server_refuses_is_said_as_for_few_keys(fleet10: Fleet, conn: Connection) -> None:
    words = pairs([f"key:{number}" for number in range(KEYS)])
    full = fleet10.shards[4].primary
    full.ask("CONFIG", "SET", "maxmemory", "1")
    try:
        few, many = error(conn.ask("MSET", *words[:FEW])), error(conn.ask("MSET", *words))
    finally:
        full.ask("CONFIG", "SET", "maxmemory", "0")
    assert many == few
    assert many.startswith("UNCERTAIN shard s4: OOM ")


# --- a gate that is closed --------------------------------------------------------------------------------------------

PROMOTION: Table = {"promoter": "replicaof", "on_promotion": "hold", "hold_s": 15.0}
HELD = 1


@pytest.fixture
def worker(replicated: Fleet) -> Iterator[BareWorker]:
    for shard in replicated.shards:
        shard.primary.ask("FLUSHALL")
    with BareWorker(replicated, promotion=PROMOTION) as worker:
        yield worker


def many_of(worker: BareWorker, shards: Sequence[int]) -> list[str]:
    """More keys than are begun at once, and fewer bytes than a client may have held."""
    count = 5000 // len(shards)
    keys = Keys(worker)
    return [f"{{{keys.one(shard)}}}{number}" for shard in shards for number in range(count)]


@pytest.mark.parametrize("shards", [[0, 1, 2], [HELD]], ids=["several shards", "one"])
def test_a_write_waits_at_a_closed_gate_and_is_sent_when_it_opens(
    replicated: Fleet, worker: BareWorker, shards: Sequence[int]
) -> None:
    keys = many_of(worker, shards)
    worker.close(HELD)
    with Connection(worker.port) as conn:
        conn.send(["MSET", *pairs(keys)], ["EXISTS", *keys])
        worker.wait_held(HELD, 1)
        assert all(shard.primary.ask("DBSIZE") == 0 for shard in replicated.shards)
        worker.open(HELD)
        assert conn.reads(2) == [b"OK", len(keys)]


def test_one_that_leaves_while_it_is_held_takes_its_write_along(worker: BareWorker) -> None:
    keys = many_of(worker, [0, 1, 2])
    worker.close(HELD)
    with Connection(worker.port) as conn:
        conn.send(["MSET", *pairs(keys)])
        worker.wait_held(HELD, 1)
    worker.wait_held(HELD, 0)
    worker.open(HELD)
    with Connection(worker.port) as conn:
        assert conn.ask("EXISTS", *keys) == 0
