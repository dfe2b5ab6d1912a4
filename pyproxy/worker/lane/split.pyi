from collections.abc import Callable, Mapping, Sequence
from typing import Any

from protocol.request import Asked, Block, Request
from pyproxy.slices import Slices
from pyproxy.worker.lane.lane import Backend, Client, Lane, Route
from pyproxy.worker.lane.outcome import Outcome, Refused

def install(lane: Lane, slices: Slices) -> None: ...
def fan_out(client: Client, route: Route, asked: Request) -> Outcome: ...
def cut(lane: Lane, route: Route, argv: Sequence[bytes]) -> tuple[bytes, dict[int, Request]]: ...
def execute(client: Client, route: Route, blocks: dict[int, Block], commands: list[Any], write: bool) -> Outcome: ...
def relay(client: Client, route: Route, shard: int, asked: Request, answer: Callable[[bytes], bytes]) -> Outcome: ...
def ask(
    client: Client,
    route: Route,
    parts: Mapping[int, Asked],
    write: bool,
    primary: bool,
    asked: Callable[[list[bytes | None], dict[int, tuple[bytes, bool]] | None], None],
) -> Refused: ...
def ask_on(
    client: Client,
    route: Route,
    backend: Backend,
    part: Asked,
    write: bool,
    asked: Callable[[list[bytes | None], dict[int, tuple[bytes, bool]] | None], None],
) -> None: ...
