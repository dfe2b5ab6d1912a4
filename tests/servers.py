"""Both kinds of server that the proxy is compared with: the backend, as a rule Valkey, and this machine's Redis."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pyproxy.fleet import VARIABLE, find_backend

KINDS = ("the backend", "redis-server")
_BACKEND = os.environ.get(VARIABLE)


@contextmanager
def servers_of(kind: str) -> Iterator[None]:
    """The servers that are started within the block are of this one of KINDS; the test is skipped if there is none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(VARIABLE, raising=False)  # a fixture around this may have set it
        if _BACKEND:
            patch.setenv(VARIABLE, _BACKEND)
        if kind == "redis-server":
            binary = shutil.which("redis-server")
            if binary is None or binary == find_backend().path:
                pytest.skip("no second server on this machine: install redis-server to compare with it, too")
            patch.setenv(VARIABLE, binary)
        yield
