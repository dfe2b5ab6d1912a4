"""What the tests of real clients ask for."""

import pytest

from tests.e2e.clients import node


@pytest.fixture(scope="session")
def node_modules() -> None:
    """The libraries of node are installed; else the test is skipped with the reason."""
    node.install()
