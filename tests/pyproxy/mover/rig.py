"""A mover process, and the parent's end of its channel."""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from pyproxy.channel import Channel
from pyproxy.config import Config, ShardTable, Timeouts
from pyproxy.fleet import Server
from pyproxy.messages import Message
from pyproxy.moves import Move, MoveProgress, MoverSetup, Order, Orders, Progress, Task
from pyproxy.shard_map import Node, SlotRange
from tests.pyproxy.mover.storm import TIMEOUTS, node_of
from tests.waiting import until

ALL: tuple[SlotRange, ...] = ((0, 16383),)
HALF: tuple[SlotRange, ...] = ((0, 4000), (9000, 13191))
OTHER_HALF: tuple[SlotRange, ...] = ((4001, 8999), (13192, 16383))


def order(
    source: Server,
    destination: Server,
    task: Task = Task.COPY,
    slots: tuple[SlotRange, ...] = ALL,
    move: str = "m",
    sync: int = 0,
    replace: bool = False,
    accept_eviction: bool = False,
) -> Order:
    one = Move(move, "s0", "s1", slots)
    return Order(one, task, node_of(source), 1, node_of(destination), 1, sync, replace, accept_eviction)


class Parent:
    """What the mover has said is in `said`, the last of each move in `of`."""

    def __init__(self) -> None:
        self.said: list[Progress] = []
        self.closed = False
        self.process: asyncio.subprocess.Process
        self.version = 0
        self._channel: Channel

    async def start(self, timeouts: Timeouts = TIMEOUTS) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "pyproxy.mover", "--channel-fd", str(theirs.fileno()), pass_fds=[theirs.fileno()]
            )
        self._channel = await Channel.open(ours, self._on_message, self._on_closed)
        shard = ShardTable(name="s0", primary=Node("127.0.0.1", 1), slots=ALL)  # it asks nobody but those of the orders
        self._channel.send(MoverSetup(Config(shards=(shard,), timeouts=timeouts), "0"))

    def _on_message(self, message: Message) -> None:
        assert isinstance(message, Progress)
        self.said.append(message)

    def _on_closed(self) -> None:
        self.closed = True

    def close(self) -> None:
        self._channel.close()

    def send(self, *orders: Order, bytes_per_s: int = 0, paused: bool = False) -> None:
        self.version += 1
        self._channel.send(Orders(self.version, list(orders), bytes_per_s, paused))

    def of(self, move: str = "m") -> MoveProgress | None:
        """What was said last of this move, of the orders that were sent last."""
        found = [each for each in self.said[-1].moves if each.id == move] if self.said else []
        return found[0] if found and found[0].of == self.version else None

    async def until(self, what: str, done: Callable[[MoveProgress], bool], move: str = "m") -> MoveProgress:
        await until(
            what,
            lambda: self.closed or ((said := self.of(move)) is not None and done(said)),
            lambda: self.said[-1:],
            60.0,
        )
        assert not self.closed, "the mover ended"
        said = self.of(move)
        assert said is not None
        return said


@asynccontextmanager
async def mover(timeouts: Timeouts = TIMEOUTS) -> AsyncIterator[Parent]:
    parent = Parent()
    await parent.start(timeouts)
    try:
        yield parent
    finally:
        parent.close()
        await asyncio.wait_for(parent.process.wait(), 20.0)
