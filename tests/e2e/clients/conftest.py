"""What the tests of real clients ask for."""

from collections.abc import Iterator

import pytest

from pyproxy.fleet import Fleet
from tests.e2e.clients import node
from tests.e2e.clients.loop_server import LoopProxy
from tests.e2e.clients.node import LIBRARIES, Library


@pytest.fixture(scope="session")
def node_modules() -> None:
    """The libraries of node are installed; else the test is skipped with the reason."""
    node.install()


@pytest.fixture(scope="module", params=LIBRARIES, ids=lambda library: library.name)
def library(request: pytest.FixtureRequest, node_modules: None) -> Library:
    if not node.runs(request.param):
        pytest.skip(f"it needs node {request.param.node}")
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def loop_proxy() -> Iterator[LoopProxy]:
    """What loop-server's configuration names, over ten shards with a replica each, all of them well."""
    with Fleet(shards=10, replicas=1) as fleet, LoopProxy(fleet, patient=True) as proxy:
        yield proxy
