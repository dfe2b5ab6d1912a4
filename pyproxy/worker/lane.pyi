from asyncio import AbstractEventLoop, Protocol
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from protocol.commands import Command
from pyproxy.config import Config

NOT_NOW: object

class Route:
    name: bytes
    command: Command
    arity: int
    plain_key: int
    first_key: int
    step: int
    merge: str
    write: bool
    def __init__(self, command: Command) -> None: ...

class Split: ...

class Lane:
    loop: AbstractEventLoop
    links: list[Any]
    clients: set[Client]
    held: int
    draining: bool
    def __init__(
        self,
        loop: AbstractEventLoop,
        take: Callable[[Client, Route | None, Sequence[bytes]], object],
        merge: Callable[[Split], bytes],
        row: memoryview[int],
        config: Config,
        index: int,
        workers: int,
    ) -> None: ...
    def set_table(self, table: Mapping[bytes, Command]) -> None: ...
    def set_shards(self, links: Iterable[Any], owner: Sequence[int]) -> None: ...
    def shard_of(self, key: bytes) -> int: ...
    def turn(self) -> None: ...
    def tick(self) -> None: ...
    def count_coming(self, change: int) -> None: ...
    def publish(self) -> None: ...
    def check_unfinished(self, limit_s: float) -> None: ...
    def drain(self) -> None: ...

class Client(Protocol):
    lane: Lane
    id: int
    proto: int
    db: int
    fd: int
    addr: str
    laddr: str
    created: float
    last_active: float
    last_command: bytes
    commands: int
    name: bytes
    lib_name: bytes
    lib_ver: bytes
    reply_mode: int
    aborting: bool
    closing: bool
    buffered: int
    buffered_in: int
    buffered_out: int
    def __init__(self, lane: Lane) -> None: ...
    def send(self, shard: int, frame: bytes, write: bool) -> object: ...
    def switch(self, proto: int, db: int) -> None: ...
    def finish(self) -> None: ...
    def abandon(self) -> None: ...

class Backend:
    link: Any
    shard: int
    proto: int
    db: int
    wire: Wire | None
    is_open: bool
    is_shut: bool
    is_base: bool
    waiting_requests: int
    def __init__(self, lane: Lane, link: Any, shard: int, proto: int, db: int) -> None: ...
    def queue(self) -> None: ...
    def shut(self, refusal: bytes) -> None: ...
    def reset(self) -> None: ...
    def lost(self, why: str) -> bool: ...

class Wire(Protocol):
    backend: Backend
    def __init__(self, backend: Backend, on_setup: Callable[[bytes], None], on_lost: Callable[[str], None]) -> None: ...
    def send(self, data: bytes) -> None: ...
    def ready(self) -> None: ...
    def drop(self, why: str) -> None: ...
