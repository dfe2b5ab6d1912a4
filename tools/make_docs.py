"""Writes the pages of docs/ that are made from tables: one function a page.

    python -m tools.make_docs

Each function returns the whole page; tests/test_docs.py says when a committed page is not what its function returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from pyproxy.config import Limits
from tests.protocol.framing_cases import CASES, GROUPS, Case, Outcome

DOCS = Path(__file__).parent.parent / "docs"

GENERATED = "<!-- Written by tools/make_docs.py; do not edit. -->\n"
SHOWN_BYTES = 60


# --- framing.md ------------------------------------------------------------------------------------------------------


FRAMING = r"""A request is an array of bulk strings (`*1\r\n$4\r\nPING\r\n`) or a line (`PING\r\n`, with Redis'
rules for quotes). An array is taken only in the one form in which an encoder writes it, so the
proxy and a server can never disagree on where it ends. A request that is framed badly is answered
by Redis' own error, after what was asked before it; then the connection is closed, and nothing
behind it is done. What is only unknown, refused or short of arguments is answered by an error, and
the connection stays.

Limits and their defaults: `limits.args`, {args:,} arguments; `limits.bulk_bytes`, {bulk:,} bytes of one argument;
`limits.inline_bytes`, {line:,} bytes of a line or header; and `timeouts.unfinished_s` for a request whose end does
not come, however steadily its bytes do. A client that has nothing unfinished may be silent for as long as it likes, as
with Redis' own default. No header makes the proxy reserve memory.

Each case below is held against the running proxy, in one piece, byte by byte and with good commands behind it, and
against real servers, Redis 7.0 and Valkey 9.
"""


def framing() -> str:
    """Where a request ends, what is wrong with a bad one, and where the proxy differs from servers in that."""
    limits = Limits()
    head = FRAMING.format(args=limits.args, bulk=limits.bulk_bytes, line=limits.inline_bytes)
    parts = ["# Framing\n", GENERATED, head, "## Where the proxy differs from servers\n"]
    for why in dict.fromkeys(case.why for case in CASES.values() if case.why):
        rows = [
            (name, _bytes(case.sent), _outcome(case.redis), _outcome(case.valkey), _outcome(case.proxy))
            for name, case in CASES.items()
            if case.why == why
        ]
        parts += [f"{why}\n", _table(("case", "sent", "Redis 7.0", "Valkey 9", "the proxy"), rows)]
    parts.append("## All cases\n")
    for group, cases in GROUPS.items():
        parts += [f"### {group}\n", _table(("case", "sent", "the proxy"), map(_row, cases))]
    return "\n".join(parts)


def _row(case: Case) -> tuple[str, str, str]:
    mark = " (differs)" if case.why else ""
    return case.name + mark, _bytes(case.sent), _outcome(case.proxy)


def _outcome(outcome: Outcome) -> str:
    return f"{_bytes(outcome.answer) if outcome.answer else 'no answer'}, {outcome.end.value}"


def _bytes(raw: bytes) -> str:
    """As one would write them in a C string, without the middle of long ones."""
    text = repr(raw)[2:-1].replace("\\'", "'")
    if len(text) <= 3 * SHOWN_BYTES:
        return f"`{text}`"
    return f"`{repr(raw[:SHOWN_BYTES])[2:-1]}`... ({len(raw):,} bytes)"


# --- tables ----------------------------------------------------------------------------------------------------------


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


PAGES: dict[str, Callable[[], str]] = {"framing.md": framing}


def main() -> None:
    DOCS.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (DOCS / name).write_text(page())


if __name__ == "__main__":
    main()
