"""What a Python client does all day, by each library's own methods: connect, pipeline, transaction, pub/sub, scan,
script, blocking pop. redis-py and valkey-py have the same methods, blocking and asynchronous; coredis has its own.

Keys are over ten shards, but for those of one transaction, script or pop, which have one {hash tag}.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import coredis
import pytest
import redis
import redis.asyncio
import valkey
import valkey.asyncio

from pyproxy.fleet import HOST, Fleet, Proxy, wait_until
from tests.e2e.clients.waiting_pops import blocked_at
from tests.e2e.rig import PATIENCE_S
from tests.waiting import until

BLOCKING: dict[str, Any] = {
    "redis-py, RESP3": (redis.Redis, 3),
    "redis-py, RESP2": (redis.Redis, 2),
    "valkey-py, RESP3": (valkey.Valkey, 3),
    "valkey-py, RESP2": (valkey.Valkey, 2),
}
ASYNCHRONOUS: dict[str, Any] = {
    "redis-py asyncio, RESP3": (redis.asyncio.Redis, 3),
    "redis-py asyncio, RESP2": (redis.asyncio.Redis, 2),
    "valkey-py asyncio, RESP3": (valkey.asyncio.Valkey, 3),
    "valkey-py asyncio, RESP2": (valkey.asyncio.Valkey, 2),
}
KEYS = [f"matrix:{number}" for number in range(100)]
SCRIPT = "redis.call('set', KEYS[1], ARGV[1]) return {KEYS[1], redis.call('get', KEYS[1])}"


# --- blocking ---------------------------------------------------------------------------------------------------------


@pytest.fixture(params=list(BLOCKING.values()), ids=list(BLOCKING))
def client(request: pytest.FixtureRequest, proxy10: Proxy) -> Iterator[Any]:
    made, protocol = request.param
    with made(host=HOST, port=proxy10.port, protocol=protocol, decode_responses=True) as client:
        client.flushall()
        yield client


def test_a_pipeline_is_answered_in_order(client: Any) -> None:
    with client.pipeline(transaction=False) as pipeline:
        for key in KEYS:
            pipeline.set(key, f"of {key}").get(key)
        assert pipeline.execute() == [reply for key in KEYS for reply in (True, f"of {key}")]


def test_a_transaction_is_run_as_a_whole(client: Any) -> None:
    with client.pipeline() as pipeline:
        pipeline.set("{t}k", 1).incr("{t}k").hset("{t}h", "f", "v").hgetall("{t}h")
        assert pipeline.execute() == [True, 2, 1, {"f": "v"}]


def test_a_watched_key_that_changed_breaks_the_transaction_and_it_is_tried_again(client: Any) -> None:
    client.set("{t}balance", 10)
    attempts: list[int] = []

    def withdraw(pipeline: Any) -> None:
        balance = int(pipeline.get("{t}balance"))
        attempts.append(balance)
        if len(attempts) == 1:
            client.set("{t}balance", 5)  # on another connection
        pipeline.multi()
        pipeline.set("{t}balance", balance - 1)

    assert client.transaction(withdraw, "{t}balance") == [True]
    assert (attempts, client.get("{t}balance")) == ([10, 5], "4")


def test_messages_reach_who_subscribed(client: Any) -> None:
    channels = [f"channel:{number}" for number in range(20)]
    with client.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe(*channels)
        pubsub.psubscribe("other:*")
        confirmed = [pubsub.get_message(timeout=PATIENCE_S) for _ in range(21)]
        assert confirmed == [None] * 21
        for each in channels:
            assert client.publish(each, f"to {each}") == 1
        assert client.publish("other:1", "x") == 1
        got = [pubsub.get_message(timeout=PATIENCE_S) for _ in range(21)]
    by_channel = {each["channel"]: (each["type"], each["pattern"], each["data"]) for each in got}
    expected = {each: ("message", None, f"to {each}") for each in channels}
    assert by_channel == expected | {"other:1": ("pmessage", "other:*", "x")}


def test_a_scan_finds_each_key_of_all_shards(client: Any) -> None:
    client.mset(dict.fromkeys([*KEYS, "elsewhere"], "x"))
    assert set(client.scan_iter("matrix:*")) == set(KEYS)


def test_a_script_is_run_and_found_again_by_its_sha1(client: Any) -> None:
    assert client.eval(SCRIPT, 1, "s", "v") == ["s", "v"]
    script = client.register_script(SCRIPT)
    for key in KEYS[:20]:  # on all shards
        assert script(keys=[key], args=["w"]) == [key, "w"]


def test_a_blocking_pop_waits_until_there_is_something(client: Any, proxy10: Proxy, fleet10: Fleet) -> None:
    with ThreadPoolExecutor(1) as other:
        popped = other.submit(client.blpop, ["{t}a", "{t}b"], PATIENCE_S)
        wait_until("the pop to wait", lambda: blocked_at(fleet10) == 1, lambda: f"{blocked_at(fleet10)} wait")
        client.rpush("{t}b", "v")
        assert tuple(popped.result(PATIENCE_S)) == ("{t}b", "v")


def test_a_blocking_pop_of_nothing_ends_by_itself(client: Any) -> None:
    assert client.blpop(["{t}a"], 0.01) is None
    assert client.ping()


# --- asynchronous -----------------------------------------------------------------------------------------------------


@pytest.fixture(params=list(ASYNCHRONOUS.values()), ids=list(ASYNCHRONOUS))
async def aclient(request: pytest.FixtureRequest, proxy10: Proxy) -> AsyncIterator[Any]:
    made, protocol = request.param
    async with made(host=HOST, port=proxy10.port, protocol=protocol, decode_responses=True) as client:
        await client.flushall()
        yield client


async def test_asyncio_pipelines_and_transactions(aclient: Any) -> None:
    async with aclient.pipeline(transaction=False) as pipeline:
        for key in KEYS:
            pipeline.set(key, f"of {key}").get(key)
        assert await pipeline.execute() == [reply for key in KEYS for reply in (True, f"of {key}")]
    async with aclient.pipeline() as pipeline:
        pipeline.set("{t}k", 1).incr("{t}k")
        assert await pipeline.execute() == [True, 2]


async def test_asyncio_watches(aclient: Any) -> None:
    await aclient.set("{t}k", "before")
    async with aclient.pipeline() as pipeline:
        await pipeline.watch("{t}k")
        assert await pipeline.get("{t}k") == "before"
        await aclient.set("{t}k", "between")
        pipeline.multi()
        pipeline.set("{t}k", "after")
        with pytest.raises(Exception, match="Watched variable changed"):
            await pipeline.execute()
    assert await aclient.get("{t}k") == "between"


async def test_asyncio_gets_messages(aclient: Any) -> None:
    async with aclient.pubsub() as pubsub:
        await pubsub.subscribe("channel")
        await pubsub.psubscribe("other:*")
        confirmed = [await pubsub.get_message(timeout=PATIENCE_S) for _ in range(2)]
        assert [(each["type"], each["data"]) for each in confirmed] == [("subscribe", 1), ("psubscribe", 2)]
        assert await aclient.publish("channel", "x") == 1
        assert await aclient.publish("other:1", "y") == 1
        got = [await pubsub.get_message(timeout=PATIENCE_S) for _ in range(2)]
    assert sorted((each["type"], each["channel"], each["data"]) for each in got) == [
        ("message", "channel", "x"), ("pmessage", "other:1", "y")
    ]  # fmt: skip


async def test_asyncio_scans_all_shards(aclient: Any) -> None:
    await aclient.mset(dict.fromkeys([*KEYS, "elsewhere"], "x"))
    assert {key async for key in aclient.scan_iter("matrix:*")} == set(KEYS)


async def test_asyncio_runs_scripts(aclient: Any) -> None:
    script = aclient.register_script(SCRIPT)
    for key in KEYS[:20]:
        assert await script(keys=[key], args=["w"]) == [key, "w"]


async def test_asyncio_pops_when_there_is_something(aclient: Any, fleet10: Fleet) -> None:
    popped = asyncio.create_task(aclient.blpop(["{t}a"], PATIENCE_S))
    await until("the pop to wait", lambda: blocked_at(fleet10) == 1, lambda: blocked_at(fleet10))
    await aclient.rpush("{t}a", "v")
    assert tuple(await popped) == ("{t}a", "v")


# --- coredis: RESP3 alone ---------------------------------------------------------------------------------------------


@pytest.fixture
async def core(proxy10: Proxy) -> AsyncIterator[Any]:
    """Its own context must be entered and left in one task, so by each test."""
    yield coredis.Redis(host=HOST, port=proxy10.port, decode_responses=True)


async def test_coredis_pipelines_and_transactions(core: Any) -> None:
    async with core as client:
        async with client.pipeline(transaction=False) as pipeline:
            replies = [each for key in KEYS for each in (pipeline.set(key, f"of {key}"), pipeline.get(key))]
        assert [await each for each in replies] == [reply for key in KEYS for reply in (True, f"of {key}")]
        async with client.pipeline() as pipeline:
            pipeline.delete(["{t}k"])
            pipeline.incr("{t}k")
            value = pipeline.get("{t}k")
        assert await value == "1"


async def test_coredis_watches(core: Any) -> None:
    async with core as client:
        await client.set("{t}k", "before")
        attempts: list[str] = []

        async def change(pipeline: Any) -> None:
            attempts.append(await client.get("{t}k"))
            if len(attempts) == 1:
                await client.set("{t}k", "between")
            pipeline.set("{t}k", attempts[-1] + " and after")

        await client.transaction(change, "{t}k")
        assert attempts == ["before", "between"]
        assert await client.get("{t}k") == "between and after"


async def test_coredis_gets_messages(core: Any) -> None:
    async with core as client, client.pubsub(ignore_subscribe_messages=True) as pubsub:
        await pubsub.subscribe("channel")
        await pubsub.psubscribe("other:*")
        assert await client.publish("channel", "x") == 1
        assert await client.publish("other:1", "y") == 1
        got = [await anext(pubsub) for _ in range(2)]
    assert sorted((each["channel"], each["data"]) for each in got) == [("channel", "x"), ("other:1", "y")]


async def test_coredis_scans_all_shards(core: Any) -> None:
    async with core as client:
        await client.flushall()
        await client.mset(dict.fromkeys([*KEYS, "elsewhere"], "x"))
        assert {key async for key in client.scan_iter(match="matrix:*")} == set(KEYS)


async def test_coredis_runs_scripts(core: Any) -> None:
    async with core as client:
        script = client.register_script(SCRIPT)
        for key in KEYS[:20]:
            assert await script(keys=[key], args=["w"]) == [key, "w"]


async def test_coredis_pops_when_there_is_something(core: Any, fleet10: Fleet) -> None:
    async with core as client:
        await client.flushall()
        popped = asyncio.create_task(wait_for(client.blpop(["{t}a"], PATIENCE_S)))
        await until("the pop to wait", lambda: blocked_at(fleet10) == 1, lambda: blocked_at(fleet10))
        await client.rpush("{t}a", ["v"])
        assert await popped == ["{t}a", "v"]


async def wait_for(request: Any) -> Any:
    return await request
