"""The proxy in front of a fleet, as a process."""

import socket
import sys
from collections.abc import Mapping
from typing import ClassVar

from pyproxy.fleet.process import HOST, ListeningProcess, Managed, reserve_port
from pyproxy.fleet.server import Fleet, Table, Value


class Proxy(ListeningProcess, Managed):
    """`pyproxy serve` in front of a fleet, as a process; a context manager.

    `reservation` is the reserved port to listen on (see `reserve_port`); it is closed at the end.
    """

    always: ClassVar[Mapping[str, Value]] = {}
    """What is in the configuration of each, unless it is told otherwise."""

    def __init__(
        self, fleet: Fleet, reservation: socket.socket | None = None, workers: int = 1, **tables: Table | Value
    ) -> None:
        reservation = reservation or reserve_port()
        name = f"proxy-{reservation.getsockname()[1]}"
        super().__init__(name, fleet.directory / f"{name}.log", reservation)
        self.config = fleet.directory / f"{name}.toml"
        self.config.write_text(fleet.config(f"{HOST}:{self.port}", workers, **{**self.always, **tables}))

    def command(self) -> list[str]:
        """The parent process, by the Python that runs this."""
        return [sys.executable, "-m", "pyproxy", "serve", str(self.config)]

    def start(self) -> None:
        """Start the proxy; return when it answers PING."""
        self.launch()
        self.wait_for_pong(self.port)
