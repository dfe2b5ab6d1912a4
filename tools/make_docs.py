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
from pyproxy.worker.commands.cross_shard.polling import POLLED
from pyproxy.worker.commands.handlers import ACROSS, EMULATED
from tests.protocol.framing_cases import CASES, GROUPS, Case, Outcome

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"

GENERATED = "<!-- Written by tools/make_docs.py; do not edit. -->\n"
SHOWN_BYTES = 60


# --- framing.md ------------------------------------------------------------------------------------------------------


FRAMING = r"""This page says which requests the proxy accepts, byte by byte, and what it does with a badly framed one.

**What is a request?** An array of bulk strings (`*1\r\n$4\r\nPING\r\n`) or a line (`PING\r\n`, with Redis' rules for
quotes). The proxy accepts an array only in the one form in which an encoder writes it. So the proxy and a server can
never disagree on where a request ends.

**What happens to a bad request?**

| the request | the answer | the connection |
| --- | --- | --- |
| is framed badly | Redis' own error, after earlier answers | is closed; nothing behind the request is done |
| is unknown, is refused, or has too few arguments | an error | stays open |

**How large may a request be?**

| option | default | what it limits |
| --- | --- | --- |
| `limits.args` | {args:,} | arguments |
| `limits.bulk_bytes` | {bulk:,} bytes | one argument |
| `limits.inline_bytes` | {line:,} bytes | a line or a header |

No header makes the proxy reserve memory.

**How long may it take?** A request must be complete within `timeouts.unfinished_s`, however steadily its bytes come. A
client that has no unfinished request may be silent for as long as it likes, as with Redis' own default.

**What about replies?** The reply of a server is held to its form as well. Something that is no reply, or no value of
its type (`:abc`, `#x`, `,1x`), ends the connection to that server, and the request that it answered is not sent again.
Only the text of a big number (`(...`) is passed on unseen, as servers do with what a script returns.

**How is this page tested?** Each case below is tested with the running proxy: in one piece, byte by byte, and with good
commands behind it. It is also compared with real servers, Redis 7.0 and Valkey 9.
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


COMMANDS = """This page says what the proxy does with each of the {count} commands and subcommands of {sources}. Redis
7.2 and 7.4 have no others. `COMMAND LIST` also says what is served.

**What if a server has a command that is not on this page?** The proxy learns it when it connects, if all of these are
true; otherwise the command is unknown to the proxy as well:

- All primaries describe the command alike.
- It is plain work on data.
- Its keys can be found from what the servers say of it.

## How do I read the tables?

The first word in the column "here" says how the command is served:

{kinds}
What may follow it:

- **A word in brackets** says how the answers of several shards become one.
- **After "refused"** stands the whole line that a client gets.
- **"emulated"**: with `cross_shard = "emulate"` the command is also served when its keys are on several shards. It is
  not atomic then: see [cross-shard.md](cross-shard.md).
- **"of several shards too"**: the keys of the command may be on several shards, whatever `cross_shard` says.
- **"may be slow"**: the proxy waits for the answer for `timeouts.silence_s`. For KEYS, FLUSHALL, FLUSHDB and SORT it
  waits for `timeouts.slow_reply_s`.

**What if the keys of a command must be on one shard, and are not?** The answer is

    {crossslot}

A SORT whose BY or GET names keys that may be on another shard gets the same answer. A `{{hash tag}}` keeps keys
together.

**What do KEYS, FLUSHALL, FLUSHDB and SORT change for other clients?** While a server is at work on one of them, the
proxy does not take the server for a silent one, and the requests behind it wait too.
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
        kinds=_table(("here", "that is"), [(_kind(kind), what) for kind, what in kinds_explained().items()]),
    )
    parts = ["# Commands\n", GENERATED, head]
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
