"""redis-py 8: RESP3 by default, RESP2 on demand, blocking and asyncio."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.exceptions import TryAgainError

from pyproxy.fleet import HOST, Fleet, Proxy, Server

KEYS = [f"py:{number}" for number in range(50)]


@pytest.fixture(params=[3, 2], ids=["resp3", "resp2"])
def proto(request: pytest.FixtureRequest) -> int:
    return request.param  # type: ignore[no-any-return]


def connect(port: int, proto: int) -> redis.Redis:
    """RESP3 is its own default, so it is not asked for."""
    return redis.Redis(host=HOST, port=port) if proto == 3 else redis.Redis(host=HOST, port=port, protocol=2)


def aconnect(port: int, proto: int) -> redis.asyncio.Redis:
    made = redis.asyncio.Redis
    return made(host=HOST, port=port) if proto == 3 else made(host=HOST, port=port, protocol=2)


@pytest.fixture
def client(proxy10: Proxy, proto: int) -> Iterator[redis.Redis]:
    with connect(proxy10.port, proto) as connected:
        connected.flushall()
        yield connected


@pytest.fixture
def plain(server: Server, proto: int) -> Iterator[redis.Redis]:
    """The same client at a plain server."""
    with connect(server.port, proto) as connected:
        connected.flushall()
        yield connected


@pytest.fixture
async def aclient(proxy10: Proxy, proto: int) -> AsyncIterator[redis.asyncio.Redis]:
    async with aconnect(proxy10.port, proto) as connected:
        await connected.flushall()
        yield connected


def test_it_connects_in_its_protocol(client: redis.Redis, proto: int) -> None:
    assert client.client_info()["resp"] == str(proto)


def test_its_name_and_version_are_known(client: redis.Redis) -> None:
    seen = client.client_info()
    assert (seen["lib-name"], seen["lib-ver"]) == ("redis-py", redis.__version__)


def test_a_name_given_to_the_connection_is_listed(client: redis.Redis) -> None:
    assert client.client_setname("web1") is True
    assert client.client_getname() in ("web1", b"web1")
    (mine,) = [each for each in client.client_list() if each["id"] == str(client.client_id())]
    assert mine["name"] == "web1"


def test_info_is_a_dict_of_typed_fields(client: redis.Redis) -> None:
    seen = client.info()
    assert (seen["loading"], seen["role"], seen["redis_mode"]) == (0, "master", "standalone")
    assert isinstance(seen["used_memory"], int)


REPLIES = [
    ("GET k", ["SET k v"]),
    ("GET k", []),
    ("HGETALL k", ["HSET k a 1 b 2"]),
    ("SMEMBERS k", ["SADD k only"]),
    ("SISMEMBER k only", ["SADD k only"]),
    ("LRANGE k 0 -1", ["RPUSH k x y z"]),
    ("ZRANGE k 0 -1 WITHSCORES", ["ZADD k 1.5 a inf b"]),
    ("ZSCORE k a", ["ZADD k 1.5 a"]),
    ("ZINCRBY k 0.25 a", []),
    ("ZPOPMIN k 1", ["ZADD k 1.5 a"]),
    ("XRANGE k - +", ["XADD k 1-1 f v"]),
    ("XREAD STREAMS k 0", ["XADD k 1-1 f v"]),
    ("XINFO STREAM k", ["XADD k 1-1 f v"]),
    ("GEOPOS k Palermo nowhere", ["GEOADD k 13.361389 38.115556 Palermo"]),
    ("INCRBYFLOAT k 0.1", []),
    ("OBJECT ENCODING k", ["SET k v"]),
    ("CONFIG GET maxclients", []),
    ("COMMAND INFO get", []),
]
"""What is asked, and what is done before."""


@pytest.mark.parametrize(("ask", "fill"), REPLIES, ids=[ask for ask, _ in REPLIES])
def test_a_reply_becomes_the_same_python_value_as_from_a_plain_server(
    client: Any, plain: Any, ask: str, fill: list[str]
) -> None:
    name, *arguments = ask.split()
    if name in ("OBJECT", "XINFO", "CONFIG", "COMMAND"):
        name, arguments = f"{name} {arguments[0]}", arguments[1:]  # redis-py chooses how to parse by both words
    for each in (client, plain):
        for command in fill:
            each.execute_command(*command.split())
    assert client.execute_command(name, *arguments) == plain.execute_command(name, *arguments)


def test_mset_and_mget_keep_the_order_of_keys_over_all_shards(client: redis.Redis) -> None:
    assert client.mset({key: f"of {key}" for key in KEYS}) is True
    assert client.mget([*KEYS, "never-set", KEYS[0]]) == [*(f"of {key}".encode() for key in KEYS), None, b"of py:0"]


def test_delete_counts_over_all_shards(client: redis.Redis) -> None:
    client.mset(dict.fromkeys(KEYS, "x"))
    assert client.delete(*KEYS, "never-set") == len(KEYS)


def test_keys_and_dbsize_see_all_shards(client: redis.Redis) -> None:
    client.mset(dict.fromkeys(KEYS, "x"))
    assert client.dbsize() == len(KEYS)
    assert sorted(client.keys("py:*")) == sorted(key.encode() for key in KEYS)


def test_a_pipeline_without_transaction_is_answered_in_order(client: redis.Redis) -> None:
    with client.pipeline(transaction=False) as pipeline:
        for key in KEYS:
            pipeline.set(key, f"of {key}")
            pipeline.get(key)
            pipeline.incr(f"{key}:count")
        assert pipeline.execute() == [reply for key in KEYS for reply in (True, f"of {key}".encode(), 1)]


def test_an_error_in_a_pipeline_is_raised_and_the_others_are_applied(client: redis.Redis) -> None:
    with client.pipeline(transaction=False) as pipeline:
        pipeline.set("text", "x")
        pipeline.lpush("text", "y")
        pipeline.set("other", "z")
        _, error, last = pipeline.execute(raise_on_error=False)
    assert isinstance(error, redis.ResponseError)
    assert (last, client.get("other")) == (True, b"z")


def test_a_registered_script_runs_wherever_its_key_is(client: redis.Redis) -> None:
    client.script_flush()
    count = client.register_script("return redis.call('incrby', KEYS[1], ARGV[1])")
    assert [count(keys=[key], args=[2]) for key in KEYS] == [2] * len(KEYS)


def test_scripts_in_a_pipeline_are_loaded_before_it(client: redis.Redis) -> None:
    client.script_flush()
    count = client.register_script("return redis.call('incr', KEYS[1])")
    pipe = client.pipeline(transaction=False)
    for key in KEYS:
        count(keys=[key], client=pipe)
    assert pipe.execute() == [1] * len(KEYS)


def test_a_lock_is_held_by_one_and_released(client: redis.Redis) -> None:
    for number in range(10):
        lock = client.lock(f"lock:{number}", timeout=60)
        assert lock.acquire(blocking=False)
        assert not client.lock(f"lock:{number}", timeout=60).acquire(blocking=False)
        assert lock.extend(60)
        lock.release()
        assert client.exists(f"lock:{number}") == 0


def test_bytes_come_back_as_they_were(client: redis.Redis) -> None:
    value = bytes(range(256)) * 1024
    client.set(value[:256], value)
    assert client.get(value[:256]) == value


def test_a_database_asked_for_at_connect_is_apart_from_the_others(client: redis.Redis, proxy10: Proxy) -> None:
    with redis.Redis(host=HOST, port=proxy10.port, db=5) as in5:
        in5.set("where", "five")
        assert client.get("where") is None
        client.set("where", "zero")
        assert in5.get("where") == b"five"


def test_a_transaction_on_one_shard_is_run(client: redis.Redis) -> None:
    with client.pipeline(transaction=True) as pipeline:
        pipeline.set("{t}k", "1")
        pipeline.incr("{t}k")
        pipeline.hset("{t}h", mapping={"f": "v"})
        pipeline.hgetall("{t}h")
        assert pipeline.execute() == [True, 2, 1, {b"f": b"v"}]


def test_a_transaction_with_a_command_that_is_not_served_is_not_run(client: redis.Redis) -> None:
    with client.pipeline(transaction=True) as pipeline:
        pipeline.set("k", "v")
        pipeline.execute_command("DEBUG", "SLEEP", "0")  # type: ignore[no-untyped-call]
        with pytest.raises(redis.ResponseError, match="is not served by this proxy"):
            pipeline.execute()
    assert client.get("k") is None


@dataclass
class OneDown:
    """A proxy over two shards of which the second is dead, and a key of each that was set before."""

    port: int
    alive: bytes
    dead: bytes


@pytest.fixture(scope="module")
def one_down() -> Iterator[OneDown]:
    with Fleet(shards=2, replicas=0) as fleet, Proxy(fleet) as proxy:
        with redis.Redis(host=HOST, port=proxy.port) as client:
            client.mset(dict.fromkeys(KEYS, "x"))
        alive, dead = (shard.primary.ask("RANDOMKEY") for shard in fleet.shards)
        assert isinstance(alive, bytes) and isinstance(dead, bytes), "a shard got none of the keys"
        fleet.shards[1].primary.kill()
        yield OneDown(proxy.port, alive, dead)


NOT_APPLIED = r"shard s1 \(127\.0\.0\.1:\d+\) is down: .*, applied=no; retry later"


def test_a_down_shard_is_an_error_that_says_what_was_not_applied(one_down: OneDown, proto: int) -> None:
    with connect(one_down.port, proto) as client, pytest.raises(TryAgainError, match=NOT_APPLIED):
        client.set(one_down.dead, "y")


def test_the_connection_outlives_the_error_of_a_down_shard(one_down: OneDown, proto: int) -> None:
    with connect(one_down.port, proto) as client:
        before = client.client_id()
        with pytest.raises(TryAgainError):
            client.get(one_down.dead)
        assert client.get(one_down.alive) == b"x"
        assert client.client_id() == before


def test_mget_over_a_down_shard_is_an_error_and_no_nil(one_down: OneDown, proto: int) -> None:
    with connect(one_down.port, proto) as client, pytest.raises(TryAgainError, match="shard s1"):
        client.mget(one_down.alive, one_down.dead)


async def test_asyncio_connects_in_its_protocol(aclient: redis.asyncio.Redis, proto: int) -> None:
    assert (await aclient.client_info())["resp"] == str(proto)


async def test_asyncio_reads_and_writes_over_all_shards(aclient: redis.asyncio.Redis) -> None:
    await aclient.mset({key: f"of {key}" for key in KEYS})
    assert await aclient.mget(KEYS) == [f"of {key}".encode() for key in KEYS]
    assert await aclient.delete(*KEYS) == len(KEYS)


async def test_asyncio_pipelines_are_answered_in_order(aclient: redis.asyncio.Redis) -> None:
    async with aclient.pipeline(transaction=False) as pipeline:
        for key in KEYS:
            pipeline.hset(key, "field", key)
            pipeline.hgetall(key)
        replies = await pipeline.execute()
    assert replies == [reply for key in KEYS for reply in (1, {b"field": key.encode()})]


async def test_asyncio_gets_the_error_of_a_down_shard_and_goes_on(one_down: OneDown, proto: int) -> None:
    async with aconnect(one_down.port, proto) as client:
        with pytest.raises(TryAgainError, match=NOT_APPLIED):
            await client.get(one_down.dead)
        assert await client.get(one_down.alive) == b"x"
