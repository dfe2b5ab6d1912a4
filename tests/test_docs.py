"""The pages are what the tables and the tests say today, and lead nowhere that is not there."""

import re
from pathlib import Path

import pytest

from protocol.commands import Kind
from tools.make_docs import DOCS, PAGES, ROOT, kinds_explained

WRITTEN = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not {"node_modules", "build", ".venv"}.intersection(path.relative_to(ROOT).parts)
    and not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
)
RELIABILITY = DOCS / "reliability.md"
ROW = re.compile(r"^\| (.*) \|$", re.MULTILINE)
NAMED = re.compile(r"`(tests/[a-z0-9_/]+\.py)::(\w+)`")


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_current(name: str) -> None:
    assert (DOCS / name).read_text() == PAGES[name](), "run python -m tools.make_docs"


def test_every_kind_of_command_is_explained() -> None:
    assert kinds_explained().keys() == set(Kind), "a kind has its comment on its own line in protocol/commands.py"


def dead_links(page: Path) -> list[str]:
    """The links of a page that lead to no file, nor to a heading of one."""
    dead = []
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        name, _, heading = target.partition("#")
        path = page.parent / name if name else page
        if not path.exists() or (heading and heading not in anchors(path)):
            dead.append(target)
    return dead


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    assert dead_links(page) == []


def test_a_link_to_nowhere_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A title\n[a](page.md) [b](#a-title) [c](none.md) [d](page.md#none) [e](https://example.org/none)\n"
    )
    assert dead_links(page) == ["none.md", "page.md#none"]


def untested(text: str) -> list[str]:
    """What is named as a test and is none."""
    return [f"{file}::{name}" for file, name in NAMED.findall(text) if name not in functions_of(ROOT / file)]


def functions_of(path: Path) -> list[str]:
    return re.findall(r"^(?:async )?def (\w+)\(", path.read_text(), re.MULTILINE) if path.exists() else []


def test_every_test_that_holds_a_promise_is_there() -> None:
    assert untested(RELIABILITY.read_text()) == []


def test_every_promise_is_held_by_a_test() -> None:
    promises, _, _ = RELIABILITY.read_text().partition("\n## Tools\n")
    rows = [row.split(" | ") for row in ROW.findall(promises) if "held by" not in row]
    assert [int(cells[0]) for cells in rows if len(cells) == 3] == list(range(1, 19))
    assert len(rows) > 20
    assert [cells for cells in rows if not NAMED.search(cells[-1])] == []


def test_a_test_that_is_gone_is_found() -> None:
    assert untested("`tests/test_docs.py::test_a_test_that_is_gone_is_found`, `tests/test_docs.py::test_gone`") == [
        "tests/test_docs.py::test_gone"
    ]


def test_every_file_that_a_contributor_is_sent_to_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"`((?:protocol|pyproxy|tests|docs|tools|examples)/[\w./]+)`", text)
    assert len(named) > 20
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_how_to_contribute_can_be_found_from_the_first_page_and_from_the_index() -> None:
    assert "(CONTRIBUTING.md)" in (ROOT / "README.md").read_text()
    assert "(../CONTRIBUTING.md)" in (DOCS / "README.md").read_text()


def test_the_promises_can_be_found_from_the_first_page_and_from_the_map() -> None:
    assert "(docs/reliability.md)" in (ROOT / "README.md").read_text()
    assert "(reliability.md)" in (DOCS / "architecture.md").read_text()


def test_the_first_page_is_short_enough_to_be_read() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_every_page_is_in_the_index() -> None:
    index = (DOCS / "README.md").read_text()
    assert [page.name for page in DOCS.glob("*.md") if page.name != "README.md" and f"({page.name})" not in index] == []
