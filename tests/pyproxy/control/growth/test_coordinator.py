"""Whose turn it is to hand over, and until when: the writes of a shard are held for one move, and released by it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from pyproxy.config import Config
from pyproxy.control.failover.coordinator import Coordinator
from pyproxy.control.growth import coordinator
from pyproxy.control.growth.coordinator import GrowthCoordinator
from pyproxy.control.growth.file_store import FileStore
from pyproxy.control.growth.opening import Opened
from pyproxy.control.growth.store import Document, NotSaved, Store, StoreError, seeded
from pyproxy.control.growth.transitions import Entry, Phase
from pyproxy.control.health.monitor import HealthMonitor
from pyproxy.control.http.admin import Refused
from pyproxy.deadline import within
from pyproxy.moves import Move, MoveProgress, Order, Orders, Progress, Task
from pyproxy.shard_map import Node, Shard

CONFIG = Config.parse(b'[[shards]]\nname = "s0"\nprimary = "10.0.0.1:6379"\nslots = ["0-16383"]\n')
MOVES = [Move(f"m{index}", "s0", f"n{index}", ((index, index),)) for index in range(3)]
ADDED = [Shard(f"n{index}", Node("10.0.1.1", 6379 + index), (), ()) for index in range(3)]

TURNS = 10
"""Of the event loop, in which all has happened that may happen at once."""


class Servers:
    """The shards, all well. Nobody is quiet until it is given up."""

    def __init__(self) -> None:
        self.begun = 0
        self.holds = 0  # that were begun and not ended
        self.late = "a write was in flight"  # why they are not quiet
        self.given_up = asyncio.Event()
        self.just_after: Callable[[], None] = lambda: None  # a move was told
        self.on_hold, self.on_release = asyncio.Event(), asyncio.Event()
        self.on_changed: object = None
        self.store_generation = 0
        self.shards = list(ADDED)

    def have_foreign(self, _moving: set[str]) -> None:
        pass

    def trouble(self, _shard: str) -> str:
        return ""

    def primary(self, shard: str) -> tuple[Node, int]:
        return Node(shard, 6379), 0

    def hold_writes(self, shard: str) -> None:
        assert shard == "s0"
        self.holds += 1
        self.begun += 1
        self.on_hold.set()

    def release_writes(self, *_shards: str) -> None:
        self.holds -= 1
        self.on_release.set()

    async def until_quiesced(self, _shard: str, _deadline_s: float) -> str:
        await self.given_up.wait()
        asyncio.get_running_loop().call_soon(self.just_after)
        return self.late


class Monitor:
    def follow(self, *_: object) -> None:
        pass


class Mover:
    """It says what the test says."""

    def __init__(self, _command: object, _setup: object, on_progress: Any, _on_lost: object) -> None:
        self.say = on_progress
        self.orders = Orders(0, [])
        self.on_order = asyncio.Event()

    def order(self, orders: Orders, needed: bool) -> None:
        self.orders = orders
        self.on_order.set()

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def ordered(self, is_it: Callable[[list[Order]], bool]) -> int:
        """The version of the orders that are so."""
        while not is_it(self.orders.orders):
            self.on_order.clear()
            await self.on_order.wait()
        return self.orders.version

    async def sync(self, move: Move) -> None:
        """Say that all is copied, when that is asked for."""
        version = await self.ordered(lambda orders: any(each.move == move and each.sync for each in orders))
        self.say(Progress([MoveProgress(move.id, Task.COPY, version, scanned=True, synced=1)]))


class BrokenStore:
    """Nothing can be written."""

    where = "file:/map.json"

    async def save(self, _document: object, _revision: int) -> int:
        raise NotSaved("the disk is full")


class SlowStore:
    """It keeps nothing, and saves when it is let."""

    where = "nowhere"

    def __init__(self) -> None:
        self.lets = asyncio.Event()
        self.lets.set()

    async def save(self, _document: object, revision: int) -> int:
        await asyncio.sleep(0)
        await self.lets.wait()
        return revision + 1


@contextlib.asynccontextmanager
async def coordinating(
    monkeypatch: pytest.MonkeyPatch, store: object, *entries: Entry
) -> AsyncIterator[tuple[GrowthCoordinator, Servers, Mover]]:
    """Of shards that are known, of which s0 has all slots, and these moves."""
    movers: list[Mover] = []

    def start(*args: Any) -> Mover:
        movers.append(Mover(*args))
        return movers[0]

    monkeypatch.setattr(coordinator, "MoverProcess", start)
    document = seeded(CONFIG).with_moves(entries, 0.0, ADDED)
    servers = Servers()
    opened = Opened(cast(Store, store), document, 0, CONFIG)
    growth = GrowthCoordinator(opened, cast(Coordinator, servers), cast(HealthMonitor, Monitor()))
    async with within(10.0), growth.coordinating():
        yield growth, servers, movers[0]


@contextlib.asynccontextmanager
async def copying(monkeypatch: pytest.MonkeyPatch, store: object) -> AsyncIterator[tuple[Servers, Mover]]:
    """All moves, each of which copies."""
    entries = [Entry(move=move, phase=Phase.COPYING) for move in MOVES]
    async with coordinating(monkeypatch, store, *entries) as (_, servers, mover):
        await mover.ordered(lambda orders: len(orders) == len(MOVES))
        yield servers, mover


def through(move: Move, version: int) -> MoveProgress:
    return MoveProgress(move.id, Task.COPY, version, scanned=True)


def test_the_turn_is_given_to_one_move_though_the_one_before_has_more_to_hear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with copying(monkeypatch, FileStore(str(tmp_path / "map.json"))) as (servers, mover):
            first, second, third = (through(move, mover.orders.version) for move in MOVES)
            mover.say(Progress([first]))
            await servers.on_hold.wait()
            mover.say(Progress([second, third]))
            for _ in range(TURNS):
                await asyncio.sleep(0)
            assert servers.holds == 1
            servers.just_after = lambda: mover.say(Progress([first]))
            servers.given_up.set()
            for _ in range(TURNS):
                await asyncio.sleep(0)
                assert servers.holds <= 1

    asyncio.run(scenario())


def test_where_the_map_cannot_be_written_each_move_lets_the_writes_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with copying(monkeypatch, BrokenStore()) as (servers, mover):
            servers.late = ""
            servers.given_up.set()
            for count, move in enumerate(MOVES, 1):
                mover.say(Progress([through(move, mover.orders.version)]))
                await mover.sync(move)
                await servers.on_release.wait()
                servers.on_release.clear()
                assert (servers.begun, servers.holds) == (count, 0)

    asyncio.run(scenario())


def plan(slot: int) -> str:
    return f'[[moves]]\nsource = "s0"\ndestination = "n0"\nslots = ["{slot}"]\n'


def test_of_two_plans_that_are_started_at_once_the_second_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with coordinating(monkeypatch, SlowStore()) as (growth, _, _):
            answers = await asyncio.gather(
                *(growth.start(plan(slot), False, False) for slot in (1, 2)), return_exceptions=True
            )
            assert str(answers[0]).startswith("m1: begun")
            assert isinstance(answers[1], Refused)
            assert str(answers[1]) == "expected no moves under way, got m1; wait for them, or abort them"

    asyncio.run(scenario())


def test_a_plan_without_moves_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with coordinating(monkeypatch, SlowStore()) as (growth, _, _):
            with pytest.raises(Refused, match="expected a plan with moves, got none"):
                await growth.start("", False, False)

    asyncio.run(scenario())


def test_a_move_is_shown_as_over_only_when_another_one_may_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        store = SlowStore()
        async with coordinating(monkeypatch, store) as (growth, _, _):
            await growth.start(plan(1), False, False)
            store.lets.clear()
            aborting = asyncio.create_task(growth.abort("m1"))
            for _ in range(TURNS):
                await asyncio.sleep(0)
            assert '"phase":"aborted"' not in growth.status()
            store.lets.set()
            await aborting
            assert '"phase":"aborted"' in growth.status()
            await growth.start(plan(1), False, False)

    asyncio.run(scenario())


def test_who_asks_a_move_that_is_just_coming_to_its_end_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        store = SlowStore()
        async with coordinating(monkeypatch, store, Entry(move=MOVES[0])) as (growth, _, mover):
            await mover.ordered(lambda orders: bool(orders))
            store.lets.clear()
            first = asyncio.create_task(growth.abort("m0"))
            second = asyncio.create_task(growth.abort("m0"))
            for _ in range(TURNS):
                await asyncio.sleep(0)
            store.lets.set()
            assert await first == "m0 is aborted; nothing was copied"
            with pytest.raises(Refused, match="m0 is aborted"):
                await second

    asyncio.run(scenario())


def test_where_the_map_cannot_be_made_the_writes_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with copying(monkeypatch, SlowStore()) as (servers, mover):

            def impossible(*_: object) -> Document:
                raise StoreError("expected one owner for every slot, got nobody for 7")

            monkeypatch.setattr(Document, "handed_over", impossible)
            servers.late = ""
            servers.given_up.set()
            mover.say(Progress([through(MOVES[0], mover.orders.version)]))
            await mover.sync(MOVES[0])
            await servers.on_release.wait()
            assert servers.holds == 0

    asyncio.run(scenario())
