"""A client and a worker as the local commands see them, made of plain values."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from protocol.table import TABLE
from pyproxy.config import Config, ShardTable
from pyproxy.messages import FleetHealth, Setup, ShardHealth, Topology
from pyproxy.metrics import INDEX, Page
from pyproxy.moves import MoveState
from pyproxy.shard_map import Node, split_slots
from pyproxy.worker.commands.context import Context, HasCommands, HasKeys
from pyproxy.worker.pubsub.registry import Subscriber


@dataclass
class StandInClient:
    """Stands in for the compiled client: the attributes of context.Client, and nothing behind them."""

    id: int = 7
    proto: int = 2
    db: int = 0
    name: bytes = b""
    lib_name: bytes = b""
    lib_ver: bytes = b""
    addr: str = "127.0.0.1:50000"
    laddr: str = "127.0.0.1:6380"
    fd: int = 9
    created: float = 100.0
    last_active: float = 107.5
    commands: int = 3
    last_command: bytes = b""
    reply_mode: int = 0
    transaction: HasCommands | None = None
    conversation: Any = None
    queued_bytes: int = 0
    watched: HasKeys | None = None
    subscriber: Subscriber | None = None
    limited: bool = False
    closing: bool = False
    buffered_in: int = 0
    buffered_out: int = 0
    switches: list[tuple[int, int]] = field(default_factory=list)

    def switch(self, proto: int, db: int) -> None:
        self.switches.append((proto, db))
        self.proto, self.db = proto, db

    def end_transaction(self) -> None:
        self.transaction = None

    def end_watch(self) -> None:
        self.watched = None

    def finish(self) -> None:
        self.closing = True


def health(
    name: str, info: Mapping[str, object] | None = None, *, reachable: bool = True, keys: int = 0
) -> ShardHealth:
    """What was seen of a shard with these fields in its INFO, and `keys` keys in database 0."""
    keyspace = {0: {"keys": keys, "expires": 0, "avg_ttl": 0}} if keys else {}
    error = "" if reachable else "connection refused"
    fields = {field: str(value) for field, value in (info or {}).items()}
    return ShardHealth(name, "127.0.0.1:7001", reachable, error, fields, keyspace, "")


@contextmanager
def worker(
    *healths: ShardHealth, shards: int = 3, workers: int = 2, moves: Sequence[MoveState] = (), **options: Any
) -> Iterator[Context]:
    """The first of some workers, whose parent has seen this much (nothing: it has not looked yet). `options`: of its
    configuration."""
    placed = tuple(
        ShardTable(name=f"s{index}", primary=Node("127.0.0.1", 7001 + index), slots=(slots,))
        for index, slots in enumerate(split_slots(shards))
    )
    setup = Setup(0, workers, Config(shards=placed, **options), "127.0.0.1:6380", "1.2.3", time.time() - 90000)
    page = Page.create(workers)
    try:
        seen = FleetHealth(1, 105.0, list(healths), list(moves)) if healths else None
        topology = Topology(4, list(placed), [])
        yield Context(setup, page, topology, seen, TABLE, lambda: (), lambda message: None, lambda: 110.0)
    finally:
        page.close()


def count(page: Page, index: int, **values: int) -> None:
    """Write these numbers into a worker's row."""
    with page.row(index) as row:
        for name, value in values.items():
            row[INDEX[name]] = value
