"""Requests of several parts: how they are cut and put together, asked of a running proxy over ten shards."""

import asyncio
import random
from array import array
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from protocol.table import TABLE
from pyproxy.fleet import Fleet, Proxy
from pyproxy.metrics import INDEX
from pyproxy.worker.commands.context import Context
from pyproxy.worker.lane.lane import Backend, Client, Lane, Route
from pyproxy.worker.lane.outcome import PLACED
from pyproxy.worker.lane.split import ask, ask_on, execute, fan_out, relay
from tests.e2e.rig import Connection, Keys, error
from tests.pyproxy.worker.commands.stand_ins import worker


@pytest.fixture
def conversation(proxy10: Proxy) -> Iterator[Connection]:
    with Connection(proxy10.port) as conversation:
        conversation.ask("FLUSHALL")
        yield conversation


def calls(fleet: Fleet, command: str) -> int:
    """How often the servers have run this command."""
    total = 0
    for shard in fleet.shards:
        stats = shard.primary.ask("INFO", "commandstats")
        assert isinstance(stats, bytes)
        for line in stats.decode().splitlines():
            if line.startswith(f"cmdstat_{command}:calls="):
                total += int(line.split("=", 1)[1].split(",", 1)[0])
    return total


def test_values_come_in_the_order_of_the_keys(conversation: Connection) -> None:
    rng = random.Random(2)
    names = [f"k{number}" for number in range(300)]
    conversation.ask("MSET", *(word for name in names for word in (name, name.upper())))
    asked = rng.choices([*names, "none"], k=700)  # duplicates and misses
    assert conversation.ask("MGET", *asked) == [name.upper().encode() if name != "none" else None for name in asked]


def test_duplicates_count_as_often_as_they_are_named(conversation: Connection) -> None:
    conversation.ask("MSET", "a", "1", "b", "2")
    assert conversation.ask("EXISTS", "a", "a", "b", "none") == 3
    assert conversation.ask("TOUCH", "a", "b", "a") == 3
    assert conversation.ask("DEL", "a", "a", "b") == 2


def test_the_last_of_two_values_for_a_key_wins(conversation: Connection) -> None:
    conversation.ask("MSET", "a", "1", "b", "2", "a", "3")
    assert conversation.ask("MGET", "a", "b") == [b"3", b"2"]


def test_a_shard_gets_one_part_however_many_keys_are_its(
    conversation: Connection, fleet10: Fleet, proxy10: Proxy
) -> None:
    keys = Keys(proxy10)
    before = calls(fleet10, "mget")
    conversation.ask("MGET", *keys.on(0, 50), *keys.on(1, 50), *keys.on(2, 50))
    assert calls(fleet10, "mget") - before == 3


def test_values_of_any_size_are_gathered(conversation: Connection) -> None:
    sizes = [0, 1, 15_000, 70_000, 1_000_000]
    conversation.ask("MSET", *(word for size in sizes for word in (f"s{size}", b"x" * size)))
    assert conversation.ask("MGET", *(f"s{size}" for size in sizes)) == [b"x" * size for size in sizes]


def test_an_error_that_all_shards_give_is_passed_on_as_it_is(conversation: Connection) -> None:
    assert error(conversation.ask("FLUSHDB", "NOW")) == "ERR syntax error"


def test_a_part_that_a_server_refuses_makes_the_whole_uncertain_and_names_the_shards(
    conversation: Connection, fleet10: Fleet, proxy10: Proxy
) -> None:
    """Rule: never a swallowed error, and for writes which shards may have applied their part."""
    keys, full = Keys(proxy10), fleet10.shards[4].primary
    full.ask("CONFIG", "SET", "maxmemory", "1")
    try:
        said = error(conversation.ask("MSET", keys.one(4), "v", keys.one(7), "w"))
    finally:
        full.ask("CONFIG", "SET", "maxmemory", "0")
    names = [shard.name for shard in fleet10.shards]
    assert said.startswith(f"UNCERTAIN shard {names[4]}: OOM ")
    assert said.endswith(f"other shards may have applied their part: {names[7]}")
    assert conversation.ask("MGET", keys.one(4), keys.one(7)) == [None, b"w"]


def test_resp3_clients_get_resp3_nulls(proxy10: Proxy) -> None:
    with Connection(proxy10.port) as conversation:
        conversation.send(["HELLO", 3])
        conversation.read()
        conversation.socket.sendall(b"*3\r\n$4\r\nMGET\r\n$6\r\nnone:1\r\n$6\r\nnone:2\r\n")
        assert conversation.socket.recv(100) == b"*2\r\n_\r\n_\r\n"


def nobody(context: Context) -> tuple[Lane, Client, Route]:
    """A client that is not connected, in a lane without shards."""
    row = memoryview(array("q", [0] * len(INDEX)))
    lane = Lane(asyncio.new_event_loop(), lambda *_: PLACED, row, context.setup.config, 0, 1)
    client = Client(lane)
    client.switch(3, 0)
    return lane, client, Route(TABLE[b"ping"])


def test_what_does_not_know_how_often_it_is_answered_cannot_be_sent() -> None:
    """Rule: whoever expects n answers has sent exactly n requests. Bare bytes may be any number of them."""
    with worker(shards=1) as context:
        lane, client, route = nobody(context)
        backend = Backend(lane, None, 0, 2, 0)
        frame: Any = b"*1\r\n$4\r\nPING\r\n"
        ways: list[Callable[[], object]] = [
            lambda: client.send(0, frame, False, False),
            lambda: fan_out(client, route, frame),
            lambda: relay(client, route, 0, frame, bytes),
            lambda: execute(client, route, {0: frame}, [0], False),
            lambda: ask(client, route, {0: frame}, False, False, print),
            lambda: ask_on(client, route, backend, frame, False, print),
        ]
        for send in ways:
            with pytest.raises(AttributeError):
                send()
        assert backend.waiting_requests == 0


def test_who_asks_nobody_is_told_so_as_nobody_would_answer() -> None:
    with worker(shards=1) as context:
        _, client, route = nobody(context)
        with pytest.raises(ValueError, match="nobody would ever answer"):
            ask(client, route, {}, False, False, print)
        with pytest.raises(ValueError, match="nobody would ever answer"):
            execute(client, route, {}, [], False)
