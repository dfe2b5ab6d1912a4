"""The clients of a soak, as a thread of their own: each asks, leaves and comes again, until it is told to end."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from random import Random

import uvloop

from bench.soak.ledger import Ledger
from bench.soak.operations import CHANNELS, SCRIPT, SHA, Operations, exactly
from bench.soak.wire import Request, Tally, Wire
from pyproxy.fleet import HOST

SUBSCRIBERS = 3
PATIENCE_S = 90.0
"""Longer than anything of the proxy's may take, on a busy machine too: past it, a client was forgotten."""

PAUSE_S = 0.12  # between two batches, at most
RECONNECT_S = 0.05


class Clients:
    """`problems`: who was not answered. `count` of them, the last ones subscribe."""

    def __init__(self, port: int, ledger: Ledger, tally: Tally, count: int, seed: int) -> None:
        self.problems: list[str] = []
        self.comings: Counter[str] = Counter()
        self.messages = 0
        self._port = port
        self._ledger = ledger
        self._tally = tally
        self._count = count
        self._seed = seed
        self._ending = threading.Event()
        self._thread = threading.Thread(target=lambda: uvloop.run(self._run()), name="clients", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Ask nothing more; returns when all is answered."""
        self._ending.set()
        self._thread.join(PATIENCE_S * 2)
        if self._thread.is_alive():
            self.problems.append("the clients have not ended")

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for number in range(self._count):
                subscribes = number >= self._count - min(SUBSCRIBERS, self._count // 2)
                life = self._listen if subscribes else self._live
                tasks.create_task(life(number, Random(self._seed * 1000 + number)))

    async def _live(self, number: int, random: Random) -> None:
        """Connection after connection."""
        generation = 0
        former: Operations | None = None
        while not self._ending.is_set():
            generation += 1
            wire = await self._connect(f"c{number}.{generation}")
            if wire is None:
                return
            operations = Operations(wire.name.encode(), self._ledger, random)
            first = [Request((b"SCRIPT", b"LOAD", SCRIPT), exactly(SHA))]
            if number % 2:
                first.insert(0, Request((b"HELLO", b"3"), _is_hello))
            if former:
                first += former.looks_back()
            wire.send(first)
            await self._through(wire, operations, random)
            former = operations

    async def _through(self, wire: Wire, operations: Operations, random: Random) -> None:
        """The life of a connection."""
        while await self._is_answered(wire):
            if self._ending.is_set():
                wire.leave(reset=False)
                await wire.closed
                return
            await asyncio.sleep(random.random() * PAUSE_S)
            requests = operations.some()
            size = sum(len(word) for request in requests for word in request.argv)
            cuts = sorted(random.randrange(1, size) for _ in range(random.choice((0, 0, 0, 1, 3))))
            wire.send(requests, cuts)
            if random.random() < 0.01:
                if random.random() < 0.5:
                    await asyncio.sleep(random.random() * 0.05)
                reset = random.random() < 0.5
                self.comings["left by RST" if reset else "left by FIN"] += 1
                wire.leave(reset)
                await wire.closed
                return
        self.comings["was closed"] += 1

    async def _listen(self, number: int, random: Random) -> None:
        """A subscriber: messages of its channels alone, each publisher's in their order and once."""
        generation = 0
        while not self._ending.is_set():
            generation += 1
            own = random.sample(CHANNELS, 3)
            heard: dict[tuple[bytes, bytes], int] = {}

            wire = await self._connect(f"s{number}.{generation}", partial(self._message, own, heard))
            if wire is None:
                return
            for count, channel in enumerate(own, 1):
                wire.send([Request((b"SUBSCRIBE", channel), exactly([b"subscribe", channel, count]))])
            life = random.randrange(20, 400)
            while await self._is_answered(wire) and life and not self._ending.is_set():
                life -= 1
                await asyncio.sleep(0.05)
                words = b"%b!%d" % (wire.name.encode(), life)
                wire.send([Request((b"PING", words), exactly([b"pong", words]))])
            wire.leave(reset=random.random() < 0.5 and not self._ending.is_set())
            await wire.closed

    def _message(self, own: list[bytes], heard: dict[tuple[bytes, bytes], int], reply: list[object]) -> str | None:
        """One that came to a subscriber to these channels, who has heard so far of each publisher on each of them."""
        self.messages += 1
        _, channel, words = reply
        assert isinstance(channel, bytes) and isinstance(words, bytes)
        name, publisher, said = words.split(b"|")
        if channel not in own or name != channel:
            return f"subscribed to {own}, got {reply}"
        before = heard.get((channel, publisher), 0)
        heard[channel, publisher] = int(said)
        return f"heard {words!r} after {before}" if int(said) <= before else None

    async def _connect(self, name: str, pushed: Callable[[list[object]], str | None] | None = None) -> Wire | None:
        self.comings["came"] += 1
        while not self._ending.is_set():
            try:
                loop = asyncio.get_running_loop()
                _, wire = await loop.create_connection(lambda: Wire(name, self._tally, pushed), HOST, self._port)
            except OSError:
                await asyncio.sleep(RECONNECT_S)
            else:
                return wire
        return None

    async def _is_answered(self, wire: Wire) -> bool:
        """And the connection is there."""
        if not await wire.answered(PATIENCE_S):
            asked = [b" ".join(request.argv)[:60] for request in list(wire.out)[:3]]
            self.problems.append(f"{wire.name} was not answered within {PATIENCE_S:g} s: {asked}")
            wire.leave(reset=True)
            await wire.closed
        return not wire.closed.done()


def _is_hello(reply: object, _: float) -> str | None:
    return None if isinstance(reply, dict) and reply.get(b"proto") == 3 else f"HELLO said {str(reply)[:80]}"
