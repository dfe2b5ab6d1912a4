"""What every test may ask for: real servers, and a proxy in front of them.

The servers live as long as the test process (with pytest-xdist each process has its own) and are shared: a test flushes
what it is going to count, and one that kills or stops a server starts a fleet of its own.
"""

from collections.abc import Iterator, Mapping

import hypothesis
import pytest
import uvloop

from pyproxy.fleet import VARIABLE, Fleet, Proxy, Server
from tests.selection import E2E, NO_SERVER, starts_servers

# The same examples in every run: a failure is seen again, by everybody.
hypothesis.settings.register_profile("house", derandomize=True, deadline=None)
hypothesis.settings.load_profile("house")


# Every proxy of every test is watched for answers that are out of step.
Proxy.always = {"canary": True}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks as `servers` what starts real servers: all of tests/e2e, and whatever reaches what starts them.

    `./run test --fast` is without them.
    """
    for item in items:
        if E2E in item.path.parents or (isinstance(item, pytest.Function) and starts_servers(item)):
            item.add_marker("servers")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """While a test runs that is not marked there is no server to start: one that was not seen to start any fails."""
    with pytest.MonkeyPatch.context() as patch:
        if item.get_closest_marker("servers") is None:
            patch.setenv(VARIABLE, NO_SERVER)
        return (yield)


def pytest_asyncio_loop_factories() -> Mapping[str, object]:
    """Asynchronous tests run on the loop that the proxy runs on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def fleet10() -> Iterator[Fleet]:
    """Ten primaries without replicas."""
    with Fleet(shards=10, replicas=0) as fleet:
        yield fleet


@pytest.fixture(scope="session")
def proxy10(fleet10: Fleet) -> Iterator[Proxy]:
    """A proxy with one worker in front of the ten primaries."""
    with Proxy(fleet10) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """One plain server: what Redis itself says."""
    with Fleet(shards=1, replicas=0) as fleet:
        yield fleet.shards[0].primary
