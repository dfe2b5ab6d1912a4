"""Both kinds of server whose word the protocol follows."""

import shutil
from collections.abc import Iterator

import pytest

from pyproxy.fleet import Server, find_backend


@pytest.fixture(scope="session", params=["the backend", "redis-server"])
def each_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The backend, as a rule Valkey; then the Redis of this machine, if there is one."""
    if request.param == "the backend":
        yield request.getfixturevalue("server")
        return
    binary = shutil.which("redis-server")
    if binary is None or binary == find_backend().path:
        pytest.skip("no second server on this machine: install redis-server to compare with it, too")
    server = Server("redis", binary, tmp_path_factory.mktemp("redis"))
    try:
        server.start()
        yield server
    finally:
        server.stop()
        server.release()
