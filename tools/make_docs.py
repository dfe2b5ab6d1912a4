"""Writes the pages of docs/ that are made from tables: one function a page.

    python -m tools.make_docs

Each function returns the whole page; tests/test_docs.py says when a committed page is not what its function returns.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from protocol import errors
from protocol.commands import Command, Kind
from protocol.rows import SOURCES
from protocol.table import TABLE
from pyproxy.config import Limits
from pyproxy.worker.conversations import ACROSS, EMULATED
from pyproxy.worker.conversations.polling import POLLED
from tests.protocol.framing_cases import CASES, GROUPS, Case, Outcome

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"

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

The reply of a server is held to its form as well: what is no reply, or no value of its type (`:abc`, `#x`, `,1x`),
ends the connection, and what it answered is not asked again. Only the text of a big number (`(...`) is passed on
unseen, as servers do with what a script returns.

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


# --- commands.md -----------------------------------------------------------------------------------------------------


COMMANDS = """What the proxy does with each of the {count} commands and subcommands of {sources}; Redis 7.2
and 7.4 have no others. What is refused is shown with the whole line that a client gets. `COMMAND LIST` says what is
served, too.

A command that a server has and this page has not is learned when the proxy connects, if all primaries know it alike, it
is plain work on data, and its keys can be found from what the servers say of it; else it is unknown here as well.

In brackets stands how the answers of several shards become one. Where the keys of a command must lie on one shard and
do not, the answer is

    {crossslot}

as it is to a SORT whose BY or GET names keys that may lie elsewhere. A `{{hash tag}}` keeps keys together. Commands
marked "emulated" are served all the same where the configuration says `cross_shard = "emulate"`, not atomic:
[cross-shard.md](cross-shard.md). What "may be slow" is waited for for `timeouts.silence_s`; KEYS, FLUSHALL, FLUSHDB and
SORT for `timeouts.slow_reply_s`. While one of KEYS, FLUSHALL,
FLUSHDB or SORT is with a server it is not taken for a silent one either, and what is behind it waits too.
"""


def commands() -> str:
    """Each command, by Redis' groups, with what is done with it; from the table alone."""
    groups: dict[str, list[Command]] = {}
    docs = json.loads((ROOT / "protocol" / "docs.json").read_text())["docs"]
    for top in TABLE.values():
        groups.setdefault(docs[top.name.decode()]["group"], []).extend(_calls(top))
    head = COMMANDS.format(
        count=sum(map(len, groups.values())),
        sources=" and ".join(source.capitalize() for source in SOURCES),
        crossslot=_line(errors.crossslot()),
    )
    kinds = [(_kind(kind), what) for kind, what in kinds_explained().items()]
    parts = ["# Commands\n", GENERATED, head, _table(("here", "that is"), kinds)]
    for group, members in sorted(groups.items()):
        rows = [_command_row(command) for command in sorted(members, key=lambda command: command.name.split(b"|"))]
        parts += [f"## {group.capitalize().replace('-', ' ')}\n", _table(("command", "here"), rows)]
    return "\n".join(parts)


def kinds_explained() -> dict[Kind, str]:
    """Each kind of command with what is done with it: the comment behind it in protocol/commands.py."""
    comments = re.findall(r"^    ([A-Z]+) = \d+  # (.*)$", inspect.getsource(Kind), re.MULTILINE)
    return {Kind[name]: comment for name, comment in comments}


def _calls(top: Command) -> Iterator[Command]:
    """What can be called: not a container without one of its subcommands."""
    if not top.subcommands or top.arity_ok(1):
        yield top
    yield from top.subcommands.values()


def _command_row(command: Command) -> tuple[str, str]:
    here = _kind(command.kind) + (f" ({command.merge})" if command.merge else "")
    if command.name in ACROSS:
        here += ", of several shards too; with BLOCK emulated" if command.name in POLLED else ", of several shards too"
    elif command.name in EMULATED or command.name in POLLED:
        here += ", or emulated"
    if command.slow and command.kind is not Kind.REFUSED:
        here += "; may be slow"
    if command.kind is Kind.REFUSED:
        here += f": `{_line(errors.refused(command.name, command.reason))}`"
    return f"`{command.name.decode().replace('|', ' ')}`", here


def _kind(kind: Kind) -> str:
    return kind.name.lower()


def _line(line: bytes) -> str:
    return line.decode().rstrip("\r\n")


# --- tables ----------------------------------------------------------------------------------------------------------


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


PAGES: dict[str, Callable[[], str]] = {"framing.md": framing, "commands.md": commands}


def main() -> None:
    DOCS.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (DOCS / name).write_text(page())


if __name__ == "__main__":
    main()
