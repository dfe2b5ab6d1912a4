"""Both kinds of server whose word the protocol follows."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from pyproxy.fleet import Fleet, Server
from tests.servers import KINDS, servers_of


@pytest.fixture(scope="session", params=KINDS)
def each_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """The backend, as a rule Valkey; then the Redis of this machine, if there is one."""
    if request.param == "the backend":
        yield request.getfixturevalue("server")
        return
    with ExitStack() as open_:
        with servers_of(request.param):  # no longer: other fixtures start theirs while this one stands
            fleet = open_.enter_context(Fleet(shards=1, replicas=0))
        yield fleet.shards[0].primary
