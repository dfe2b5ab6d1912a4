"""A worker of an application, in a process of its own."""

import sys

from pyproxy.fleet import Fleet, Process


class Program(Process):
    """`python -m ARGUMENTS` with this environment; a context manager. Its log is among those of the fleet."""

    def __init__(self, fleet: Fleet, name: str, arguments: list[str], **environment: str) -> None:
        super().__init__(name, fleet.directory / f"{name}.log")
        self._arguments = arguments
        self._environment = environment

    def command(self) -> list[str]:
        environment = [f"{name}={value}" for name, value in self._environment.items()]
        return ["env", *environment, sys.executable, "-m", *self._arguments]

    def __enter__(self) -> "Program":
        self.launch()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
