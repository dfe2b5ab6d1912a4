"""COMMAND and its subcommands, answered from the table.

Forms and errors are those of Valkey 9.1 (Redis 7.0 differs in the arity of GETKEYS, and wraps subcommands in a RESP3
set). A command that the proxy refuses is not listed, counted or described, so that no client concludes that it may use
it. GETKEYS answers for every known command, as it sends nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from functools import cache, lru_cache
from typing import Any

from protocol import errors, glob
from protocol.commands import BadKeys, Command, Kind
from protocol.keyspecs import Index, KeyNum, KeySpec, Keyword, Range
from protocol.reply import RESP3, Status, Value, encode
from protocol.table import lookup, unknown

Table = Mapping[bytes, Command]

_PATTERN_BYTES = 128  # of COMMAND LIST FILTERBY PATTERN; a longer one matches nothing, as no name is half as long


def answer(argv: Sequence[bytes], table: Table, proto: int) -> bytes:
    """The reply to `COMMAND ...` for a client of protocol `proto` (2 or 3); KeyError for any other command."""
    command = lookup(argv, table)
    if command is None:
        return unknown(argv, table)
    if not command.arity_ok(len(argv)):
        return errors.wrong_arity(command.name)
    return _ANSWERS[command.name](argv, table, proto)


class _Unordered(Set[Value]):
    """A set for a reply. Unlike a Python set it keeps the order of its members, which may be maps."""

    def __init__(self, members: Iterable[Value]) -> None:
        self._members = list(members)

    def __contains__(self, member: object) -> bool:
        return member in self._members

    def __iter__(self) -> Iterator[Value]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)


def _words(words: Iterable[str]) -> _Unordered:
    return _Unordered(Status(word.encode()) for word in words)


def _is_served(command: Command) -> bool:
    return command.kind is not Kind.REFUSED


def _served(table: Table) -> Iterator[Command]:
    return filter(_is_served, table.values())


def _named(name: bytes, table: Table) -> Command | None:
    """The served command of a full name, `get` or `config|get`."""
    command = lookup(name.split(b"|"), table)
    return command if command is not None and _is_served(command) and command.name == name.lower() else None


# --- COMMAND, COMMAND INFO -------------------------------------------------------------------------------------------


def _command(argv: Sequence[bytes], table: Table, proto: int) -> bytes:
    return _array([_info_frame(command, proto) for command in _served(table)])


def _info(argv: Sequence[bytes], table: Table, proto: int) -> bytes:
    if len(argv) == 2:
        return _command(argv, table, proto)
    commands = [_named(name, table) for name in argv[2:]]
    return _array([encode(None, proto) if each is None else _info_frame(each, proto) for each in commands])


def _array(frames: Sequence[bytes]) -> bytes:
    return b"*%d\r\n%b" % (len(frames), b"".join(frames))


@lru_cache(maxsize=2048)
def _info_frame(command: Command, proto: int) -> bytes:
    """The ten fields of a command. Cached, as a whole COMMAND reply takes milliseconds to write."""
    row = command.row
    fields: list[Value] = [
        *(command.name, row.arity, _words(row.flags.split()), row.first, row.last, row.step),
        *(_words(command.categories), _Unordered(tip.encode() for tip in command.tips)),
        _Unordered(_spec_fields(spec) for spec in command.key_specs),
    ]
    subcommands = [_info_frame(each, proto) for each in command.subcommands.values() if _is_served(each)]
    return b"*%d\r\n%b%b" % (len(fields) + 1, b"".join(encode(each, proto) for each in fields), _array(subcommands))


def _spec_fields(spec: KeySpec) -> dict[Value, Value]:
    notes: dict[Value, Value] = {"notes": spec.notes} if spec.notes else {}
    return notes | {"flags": _words(spec.flags), "begin_search": _begin(spec), "find_keys": _find(spec)}


def _begin(spec: KeySpec) -> dict[Value, Value]:
    match spec.begin:
        case Index(position):
            return {"type": "index", "spec": {"index": position}}
        case Keyword(keyword, startfrom):
            return {"type": "keyword", "spec": {"keyword": keyword, "startfrom": startfrom}}
    return {"type": "unknown", "spec": {}}


def _find(spec: KeySpec) -> dict[Value, Value]:
    match spec.find:
        case Range(lastkey, keystep, limit):
            return {"type": "range", "spec": {"lastkey": lastkey, "keystep": keystep, "limit": limit}}
        case KeyNum(keynumidx, firstkey, keystep):
            return {"type": "keynum", "spec": {"keynumidx": keynumidx, "firstkey": firstkey, "keystep": keystep}}
    return {"type": "unknown", "spec": {}}


# --- COMMAND COUNT, COMMAND LIST -------------------------------------------------------------------------------------


def _count(argv: Sequence[bytes], table: Table, proto: int) -> bytes:
    return encode(sum(1 for _ in _served(table)), proto)


def _list(argv: Sequence[bytes], table: Table, proto: int) -> bytes:
    """Full names. Subcommands come after their container."""
    commands = [each for top in _served(table) for each in (top, *filter(_is_served, top.subcommands.values()))]
    match [argv[2].lower(), argv[3].lower(), *argv[4:]] if len(argv) > 3 else list(argv[2:]):
        case []:
            pass
        case [b"filterby", b"module", _]:
            commands = []  # a discovered command does not tell its module
        case [b"filterby", b"aclcat", category]:
            wanted = "@" + category.decode("latin-1").lower()
            commands = [each for each in commands if wanted in each.categories]
        case [b"filterby", b"pattern", pattern]:
            short = pattern.lower() if len(pattern) <= _PATTERN_BYTES else b""
            commands = [each for each in commands if glob.matches(short, each.name)]
        case _:
            return errors.syntax_error()
    return encode([each.name for each in commands], proto)


# --- COMMAND DOCS, COMMAND HELP --------------------------------------------------------------------------------------


def _docs(argv: Sequence[bytes], table: Table, proto: int) -> bytes:
    commands = [_named(name, table) for name in argv[2:]] if len(argv) > 2 else [*_served(table)]
    frames = [_docs_frame(each, proto) for each in commands if each is not None]
    if proto == RESP3:
        return b"%%%d\r\n%b" % (len(frames), b"".join(frames))
    return b"*%d\r\n%b" % (2 * len(frames), b"".join(frames))


@lru_cache(maxsize=2048)
def _docs_frame(command: Command, proto: int) -> bytes:
    """The name of a command and the map of its docs. Cached, as redis-cli asks for all docs at each start."""
    return encode(command.name, proto) + encode(_doc_of(command), proto)


def _doc_of(command: Command) -> dict[Value, Value]:
    name = command.name.decode()
    container = name.partition("|")[0]
    doc: dict[str, Any] = _read_docs()["docs"].get(container, {})
    if container != name:
        doc = doc.get("subcommands", {}).get(name, {})
    if not doc:
        return {"group": "module"}  # discovered: its server gave no docs
    shown: dict[Value, Value] = {key: _doc_value(key, value) for key, value in doc.items() if key != "subcommands"}
    served = filter(_is_served, command.subcommands.values())
    subcommands: dict[Value, Value] = {each.name: _doc_of(each) for each in served}
    return shown | ({"subcommands": subcommands} if subcommands else {})


def _doc_value(key: str, value: object) -> Value:
    """A value of docs.json with the server's type: JSON has neither sets nor simple strings."""
    match value:
        case list() if key in ("flags", "doc_flags"):
            return _words(value)
        case list() if key == "history":
            return _Unordered(value)
        case list():
            return [_doc_value("", each) for each in value]
        case dict():
            return {name: _doc_value(name, each) for name, each in value.items()}
        case str() | int():
            return value
    raise ValueError(f"docs.json: expected text, a number, a list or a map under {key!r}, got {value!r}")


@cache
def _read_docs() -> dict[str, Any]:
    """docs.json, read at first use: {"help": lines of COMMAND HELP, "docs": command -> its COMMAND DOCS}."""
    from importlib.resources import files  # here, and not above: a worker starts without it

    docs: dict[str, Any] = json.loads(files("protocol").joinpath("docs.json").read_text())
    return docs


def _help(argv: Sequence[bytes], table: Table, proto: int) -> bytes:
    lines: list[str] = _read_docs()["help"]
    return encode([Status(line.encode()) for line in lines], proto)


# --- COMMAND GETKEYS -------------------------------------------------------------------------------------------------


def _getkeys(argv: Sequence[bytes], table: Table, proto: int) -> bytes:
    """GETKEYS and GETKEYSANDFLAGS."""
    asked = argv[2:]
    command = lookup(asked, table)
    if command is None:
        return errors.getkeys_unknown_command()
    if not command.has_keys:
        return errors.getkeys_no_keys()
    if not command.arity_ok(len(asked)):
        return errors.getkeys_wrong_arity()
    try:
        keys = list(command.key_flags(asked))
    except BadKeys:
        return errors.getkeys_bad_arguments()
    if argv[1].lower() == b"getkeys":
        return encode([asked[position] for position, _ in keys], proto)
    return encode([[asked[position], _words(flags)] for position, flags in keys], proto)


_ANSWERS: dict[bytes, Callable[[Sequence[bytes], Table, int], bytes]] = {
    b"command": _command,
    b"command|count": _count,
    b"command|docs": _docs,
    b"command|getkeys": _getkeys,
    b"command|getkeysandflags": _getkeys,
    b"command|help": _help,
    b"command|info": _info,
    b"command|list": _list,
}
