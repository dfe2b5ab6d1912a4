"""What most end-to-end tests stand on; a module that needs it otherwise says so by a fixture of the same name."""

from collections.abc import Iterator

import pytest

from pyproxy.fleet import Fleet, Proxy
from tests.e2e.rig import PATIENT, Connection, Keys


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """Three primaries of this module's own: its tests may kill and stop them."""
    with Fleet(shards=3, replicas=0) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def replicated() -> Iterator[Fleet]:
    """Three primaries with a replica each, for tests that hold writes at a gate."""
    with Fleet(shards=3, replicas=1) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def split(fleet: Fleet) -> Iterator[Proxy]:
    """A proxy that runs transactions over several shards."""
    with Proxy(fleet, transactions="split", timeouts=PATIENT) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def keys(proxy: Proxy) -> Keys:
    return Keys(proxy)


@pytest.fixture
def conn(proxy: Proxy) -> Iterator[Connection]:
    with Connection(proxy.port) as conn:
        yield conn
