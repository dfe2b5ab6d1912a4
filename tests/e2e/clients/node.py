"""The clients of node: installed once under build/, and driven one connection a process.

What comes in: a library and its version, a port, and steps. What goes out: what the client's own methods returned or
threw, as JSON says it; bytes are bytes. js/driver.js is the other end.
"""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest

from tests.waiting import readable_within

ROOT = Path(__file__).parents[3]
DRIVERS = Path(__file__).parent / "js"
MODULES = ROOT / "build" / "node" / "node_modules"
INSTALL_S = 120.0
STEP_S = 20.0


@dataclass(frozen=True, slots=True)
class Library:
    """A client library: its name in js/package.json, the driver for it, the protocol that it speaks by itself, and what
    it calls itself by CLIENT SETINFO ("" where it does not)."""

    name: str
    adapter: str
    proto: int
    lib_name: str
    node: int = 0  # the oldest major version of node that it says it runs on


NODE_REDIS_0 = Library("redis-0.12", "node_redis_0", 2, "")
LIBRARIES = [
    NODE_REDIS_0,
    Library("redis-4", "node_redis", 2, "node-redis", 14),
    Library("redis", "node_redis", 3, "node-redis", 20),
    Library("ioredis-5", "ioredis", 2, "ioredis", 12),
    Library("ioredis", "ioredis", 3, "ioredis", 20),
]


class NodeError(Exception):
    """What the client threw; the text is its message."""


def install(manifest: Path = DRIVERS / "package.json", modules: Path = MODULES) -> None:
    """Put the libraries that this package.json names there, under build/, unless they are; pytest.skip with the reason
    if that cannot be done here. Test processes that run side by side wait for the one that installs."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    wanted = manifest.read_text()
    place = modules.parent
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = place / "installed.json"
        if stamp.exists() and stamp.read_text() == wanted:
            return
        (place / "package.json").write_text(wanted)
        command = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"]
        command += ["--loglevel=error", "--prefer-offline", "--fetch-retries=0", "--fetch-timeout=20000"]
        try:
            subprocess.run(command, cwd=place, check=True, capture_output=True, text=True, timeout=INSTALL_S)
        except subprocess.TimeoutExpired:
            pytest.skip(f"npm install did not end within {INSTALL_S:g} s")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"npm install failed: {' '.join(error.stderr.split())[:200]}")
        stamp.write_text(wanted)


def runs(library: Library) -> bool:
    """Whether this machine's node is as new as the library wants it."""
    said = subprocess.run(["node", "--version"], check=True, capture_output=True, text=True, timeout=STEP_S).stdout
    return int(said.lstrip("v").split(".")[0]) >= library.node  # v20.20.2


class NodeClient:
    """One connection of one library, in a process of its own; a context manager."""

    def __init__(self, library: Library, port: int, db: int = 0) -> None:
        self.library = library
        self._received = b""
        self._node = subprocess.Popen(
            ["node", str(DRIVERS / "driver.js"), library.adapter, library.name, str(port), str(db)],
            env={**os.environ, "NODE_PATH": str(MODULES)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,  # what node says when it dies stands where an answer was expected
            bufsize=0,
        )
        try:
            self.answer()
        except BaseException:
            self.__exit__()
            raise

    def do(self, name: str, *args: Any) -> Any:
        """One step of the driver, by its name; what it gave back. Raises NodeError for what the client threw."""
        self.begin(name, *args)
        return self.answer()

    def begin(self, name: str, *args: Any) -> None:
        """A step whose answer is asked for later."""
        assert self._node.stdin is not None
        self._node.stdin.write(json.dumps([name, *args], default=_base64).encode() + b"\n")

    def answer(self) -> Any:
        """What the first step without one gave back."""
        line = self._line()
        try:
            answer = json.loads(line, object_hook=_bytes)
        except ValueError:
            raise AssertionError(f"node ended: {line + self._rest()}") from None
        if "error" in answer:
            raise NodeError(answer["error"])
        return answer["value"]

    def _line(self) -> str:
        assert self._node.stdout is not None
        deadline = time.monotonic() + STEP_S
        while b"\n" not in self._received:
            readable = readable_within(self._node.stdout, deadline - time.monotonic())
            assert readable, f"{self.library.name} said nothing for {STEP_S:g} s, after {self._received!r}"
            more = self._node.stdout.read(65536)
            assert more, f"node ended: {self._received!r}"
            self._received += more
        line, _, self._received = self._received.partition(b"\n")
        return line.decode()

    def _rest(self) -> str:
        assert self._node.stdout is not None
        self._node.kill()
        return (self._received + (self._node.stdout.read() or b"")).decode(errors="replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._node.kill()
        self._node.communicate()


def _base64(value: object) -> dict[str, str]:
    assert isinstance(value, bytes), f"{value!r} is no JSON"
    return {"base64": base64.b64encode(value).decode()}


def _bytes(value: dict[str, Any]) -> Any:
    return base64.b64decode(value["base64"]) if value.keys() == {"base64"} else value
