from typing import Any

from pyproxy.worker.lane.lane import Lane

class Assembly:
    reply: bytes
    def __init__(self, lane: Lane, commands: list[Any], frames: list[bytes | None], write: bool) -> None: ...
    def step(self) -> bool: ...
