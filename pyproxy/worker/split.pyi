from collections.abc import Callable
from typing import Any

from pyproxy.worker.lane import Backend, Client, Lane, Route

def install(lane: Lane) -> None: ...
def fan_out(client: Client, route: Route, frame: bytes) -> object: ...
def cut(lane: Lane, route: Route, argv: list[bytes]) -> tuple[bytes, dict[int, bytes]]: ...
def execute(
    client: Client, route: Route, blocks: dict[int, tuple[bytes, int]], commands: list[Any], write: bool
) -> object: ...
def relay(client: Client, route: Route, shard: int, frame: bytes, answer: Callable[[bytes], bytes]) -> object: ...
def ask(
    client: Client,
    route: Route,
    parts: dict[int, tuple[bytes, int]],
    write: bool,
    primary: bool,
    asked: Callable[[list[bytes | None], dict[int, tuple[bytes, bool]] | None], None],
) -> object: ...
def ask_on(
    client: Client,
    route: Route,
    backend: Backend,
    frame: bytes,
    write: bool,
    queued: int,
    asked: Callable[[list[bytes | None], dict[int, tuple[bytes, bool]] | None], None],
) -> None: ...
def together(lane: Lane, commands: list[Any], frames: list[bytes | None]) -> bytes: ...
