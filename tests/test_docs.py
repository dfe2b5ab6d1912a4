"""The pages are what the tables and the tests say today, and lead nowhere that is not there."""

import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from protocol.commands import Kind
from pyproxy.events import Event
from tests.symbols import PACKAGES, Symbols, symbols_of
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


# --- names of the code ------------------------------------------------------------------------------------------------

HISTORY = ROOT / "CHANGELOG.md"
NOW = [page for page in WRITTEN if page != HISTORY]
"""The changelog may name what is gone."""

INTERNALS = [ROOT / "CONTRIBUTING.md", *(DOCS / f"{name}.md" for name in ("architecture", "request-path"))]
INTERNALS += [DOCS / f"{name}-internals.md" for name in ("worker", "failover", "growth")]

OPERATORS = [
    DOCS / f"{name}.md" for name in ("monitoring", "operations", "promotion", "limits", "blocking", "errors", "growth")
]

ELSEWHERE = ("my.toml",)
"""Files of a reader's own."""

SOURCES = (".py", ".pyx", ".pxi", ".pxd", ".pyi")
PATH = re.compile(r"(?:[\w.-]+/)*[\w.-]+\.(?:py|pyx|pxi|pxd|toml|md|json|svg|lock|js|lua|cfg|png)|(?:[\w.-]+/)+")
EVENT = re.compile(r"[+-][a-z]+(?:-[a-z]+)*")
CODE = re.compile(r"`([^`\n]+)`")


@cache
def tree() -> tuple[str, ...]:
    """All files and folders of the sources, as paths from the root."""
    tops = [ROOT / name for name in (*PACKAGES, "docs", "examples")]
    below = [path for top in tops for path in (top, *top.rglob("*")) if "node_modules" not in path.parts]
    return tuple(str(path.relative_to(ROOT)) for path in (*below, *ROOT.glob("*.*")))


@cache
def symbols() -> Symbols:
    return symbols_of(ROOT)


@cache
def options() -> dict[str, Any]:
    return tomllib.loads((ROOT / "examples" / "pyproxy.toml").read_text())


@cache
def words() -> set[str]:
    """All of the sources."""
    return {word for path in tree() if path.endswith(SOURCES) for word in re.findall(r"\w+", (ROOT / path).read_text())}


def names_nothing(name: str) -> bool:
    """Whether a text between backticks has the form of a path, of an event, or of `module.name` or `Class.name`, and
    there is none."""
    if PATH.fullmatch(name):
        path = name.rstrip("/").removeprefix("./")
        return path not in ELSEWHERE and not any(f"/{each}".endswith(f"/{path}") for each in tree())
    if EVENT.fullmatch(name) and len(name) > 2:
        return name not in {event.value[0] for event in Event}
    first, *rest = name.removesuffix("()").split(".")
    if not rest or not all(re.fullmatch(r"\w+", part) for part in (first, *rest)):
        return False
    if first in options():
        return rest[0] not in options()[first] and not symbols().has(first, rest[0])
    if first == "pyproxy":
        return False  # a package, as in an import
    owners = [first, *rest[:-1]]
    return not all(symbols().has(owner, member) for owner, member in zip(owners, rest, strict=True))


def stale(text: str) -> list[str]:
    return [name for name in CODE.findall(re.sub(r"```.*?```", "", text, flags=re.DOTALL)) if names_nothing(name)]


@pytest.mark.parametrize("page", NOW, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_of_the_code_is_there(page: Path) -> None:
    assert stale(page.read_text()) == []


@pytest.mark.parametrize("page", INTERNALS, ids=lambda page: page.name)
def test_what_a_page_about_the_code_calls_by_name_is_in_the_code(page: Path) -> None:
    names = {name for name in CODE.findall(page.read_text()) if re.fullmatch(r"_?[A-Za-z]\w*", name)}
    assert len(names) > 3
    assert sorted(names - words()) == []


@pytest.mark.parametrize("page", OPERATORS, ids=lambda page: page.name)
def test_a_field_or_option_that_operators_are_told_of_is_in_the_code(page: Path) -> None:
    names = {name for name in CODE.findall(page.read_text()) if re.fullmatch(r"[a-z]+(_[a-z]+)+", name)}
    assert names
    assert sorted(names - words()) == []


def misplaced(text: str) -> list[str]:
    """Of a table with the columns `file` and `function`: functions that are in none of the files of their row."""
    found = []
    for files, functions in re.findall(r"^\| \d+ \|.*\| ([^|]+) \| ([^|]+) \|$", text, re.MULTILINE):
        paths = [path for name in CODE.findall(files) for path in tree() if f"/{path}".endswith(f"/{name}")]
        code = "\n".join((ROOT / path).read_text() for path in paths)
        for name in CODE.findall(functions):
            if not re.search(rf"\bc?p?def [^=#\n]*\b{name.rpartition('.')[2]}\(", code):
                found.append(f"{name}: not in {files}")
    return found


@pytest.mark.parametrize("name", ["request-path.md", "failover-internals.md", "growth-internals.md"])
def test_each_step_of_a_path_is_in_the_file_that_is_named(name: str) -> None:
    assert misplaced((DOCS / name).read_text()) == []


def commented() -> Iterator[tuple[str, str]]:
    """The comments and docstrings of the sources."""
    for path in tree():
        if path.endswith(SOURCES):
            for text in re.findall(r'(?:^| )#[^\n]*|"""(?:.|\n)*?"""', (ROOT / path).read_text(), re.MULTILINE):
                yield path, text


def test_what_a_comment_names_of_the_code_is_there() -> None:
    found = []
    for path, text in commented():
        files = re.findall(r"(?<![\w/.-])[\w/]+\.(?:pyx|pxi|pxd|py|md|toml)\b", text)
        members = re.findall(r"(?<![\w./-])([A-Z]\w+\.[a-z_]\w+)\b(?!\.)", text)
        named = [name for name in members if symbols().knows(name.partition(".")[0]) and not PATH.fullmatch(name)]
        found += [f"{path}: {name}" for name in (*files, *named) if names_nothing(name)]
    assert found == []


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("`tests/test_docs.py`, `docs/` and `Event`", []),
        ("`tests/test_gone.py`, `gone/`", ["tests/test_gone.py", "gone/"]),
        ("`Event.READY`, `events.emit`, `Client.data_received`, `limits.inflight`, `gate.Gate.hold`", []),
        (
            "`Event.GONE`, `events.gone`, `Client.gone`, `limits.gone`",
            ["Event.GONE", "events.gone", "Client.gone", "limits.gone"],
        ),
        ("`+ready`, `-link-down`, `+gone`", ["+gone"]),
    ],
)
def test_a_name_that_is_gone_is_found(text: str, names: list[str]) -> None:
    assert stale(text) == names


def test_a_step_in_another_file_is_found() -> None:
    assert misplaced("| 1 | asks | `client.pxi` | `Client.enqueue`, `Backend.put` |") == [
        "Backend.put: not in `client.pxi`"
    ]


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
