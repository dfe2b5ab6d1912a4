"""The pages of docs/ that are made from tables are what the tables say today."""

import pytest

from tools.make_docs import DOCS, PAGES


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_current(name: str) -> None:
    assert (DOCS / name).read_text() == PAGES[name](), "run python -m tools.make_docs"
