"""The pages of docs/ that are made from tables are what the tables say today."""

import pytest

from protocol.commands import Kind
from tools.make_docs import DOCS, PAGES, kinds_explained


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_current(name: str) -> None:
    assert (DOCS / name).read_text() == PAGES[name](), "run python -m tools.make_docs"


def test_every_kind_of_command_is_explained() -> None:
    assert kinds_explained().keys() == set(Kind), "a kind has its comment on its own line in protocol/commands.py"
