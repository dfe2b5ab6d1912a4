"""The configuration field by field: what a TOML file says, read as the Structs of config.py say.

Parsed TOML and msgspec's own description of a Struct come in; a tree of what was read well goes out, and a line for
each problem. msgspec itself stops at its first error. What does not fit together is not seen here.
"""

import difflib
import json
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from msgspec import inspect as shape

from pyproxy.hashing import SLOTS
from pyproxy.shard_map import Node, parse_slots

Tree = dict[str, Any]
"""A Struct's fields that were read well or left out, by name; those with a problem are missing."""

EMPTY = '""'

BAD = object()
"""Stands for what was not read well."""


class NotToml(Exception):
    """Why not: one line, with the place."""


def read_toml(raw: bytes) -> Any:
    """The document in these bytes. Raises NotToml."""
    try:
        text = raw.decode()  # here: what msgspec raises for it has changed from one release to the next
    except UnicodeDecodeError as exc:
        line = raw.count(b"\n", 0, exc.start) + 1
        raise NotToml(f"line {line}: expected UTF-8, got byte 0x{raw[exc.start]:02x}") from None
    try:
        return msgspec.toml.decode(text)
    except RecursionError:
        raise NotToml("syntax: expected TOML, got: arrays or tables too deep in each other") from None
    except ValueError as exc:  # tomllib's text, which ends in "(at line 3, column 5)"; or int()'s, of 5,000 digits
        raise NotToml(f"syntax: expected TOML, got: {lower_first(str(exc))}") from None


def _read(kind: shape.Type, value: object, path: str, problems: list[str]) -> Any:
    """The value as this type; BAD, and a line in `problems`, where it is not of it."""
    match kind:
        case shape.StructType(cls=cls) if cls is Node:
            return _parsed(Node.parse, "host:port", value, path, problems)
        case shape.UnionType():  # the one address that may be left empty
            return _parsed(lambda text: Node.parse(text) if text else None, 'host:port, or ""', value, path, problems)
        case shape.StructType():
            return read_struct(kind, value, path, problems)
        case shape.TupleType():
            return _parsed(parse_slots, f'slots such as "0-1638" or "5", at most {SLOTS - 1}', value, path, problems)
        case shape.VarTupleType(item_type=item):
            if isinstance(value, list):
                return tuple(_read(item, each, f"{path}[{i}]", problems) for i, each in enumerate(value))
            tables = isinstance(item, shape.StructType) and item.cls is not Node
            expected = f"tables, as [[{path}]]" if tables else "an array"
        case shape.IntType() | shape.FloatType():
            whole = isinstance(kind, shape.IntType)
            if _is_number(value, whole) and kind.ge <= value <= kind.le:  # type: ignore[operator]
                return value if whole else float(value)  # type: ignore[arg-type]
            expected = f"a {'whole ' if whole else ''}number from {kind.ge} to {kind.le}"
        case shape.LiteralType(values=values):
            if value in values and isinstance(value, str):
                return value
            expected = f"one of {', '.join(str(each) or EMPTY for each in values)}"
        case shape.BoolType():
            if isinstance(value, bool):
                return value
            expected = "true or false"
        case shape.StrType(pattern=None):
            if isinstance(value, str) and value.isprintable():
                return value
            expected = "a text on one line"
        case shape.StrType():  # only names have a pattern
            try:
                return msgspec.convert(value, Annotated[str, Meta(pattern=kind.pattern)])
            except msgspec.ValidationError:
                expected = "a name of 1 to 64 letters, digits and _ . -"
        case _:
            raise TypeError(f"no rule to read {kind} at {path}")
    problems.append(f"{path}: expected {expected}, got {shown(value)}")
    return BAD


def read_struct(kind: shape.Type, value: object, path: str, problems: list[str]) -> Any:
    """The tree of what is a table for this Struct; BAD where it is no table."""
    assert isinstance(kind, shape.StructType)
    if not isinstance(value, dict):
        problems.append(f"{path}: expected a table, got {shown(value)}")
        return BAD
    fields = {field.encode_name: field for field in kind.fields}
    here = f"{path}." if path else ""
    for name in (name for name in value if name not in fields):
        near = difflib.get_close_matches(name, fields, 1)
        known = f"{near[0]}?" if near else f"one of {', '.join(fields)}"
        problems.append(f"{here}{name}: expected a known option ({known}), got an unknown one")
    tree: Tree = {}
    for name, field in fields.items():
        if name in value:
            read = _read(field.type, value[name], here + name, problems)
            if read is not BAD:
                tree[name] = read
        elif field.required:
            problems.append(f"{here}{name}: expected {_wanted(field.type, here + name)}, got nothing")
        else:
            nested = isinstance(field.default, msgspec.Struct) and not isinstance(field.default, Node)
            tree[name] = msgspec.structs.asdict(field.default) if nested else field.default
    return tree


def _wanted(kind: shape.Type, path: str) -> str:
    """What a required field wants, as said by its own rule when it is given something of no type."""
    problems: list[str] = []
    _read(kind, None, path, problems)
    return problems[0].removeprefix(f"{path}: expected ").removesuffix(f", got {shown(None)}")


def _parsed(parse: Any, expected: str, value: object, path: str, problems: list[str]) -> Any:
    try:
        if isinstance(value, str):
            return parse(value)
    except ValueError:
        pass
    problems.append(f"{path}: expected {expected}, got {shown(value)}")
    return BAD


def _is_number(value: object, whole: bool) -> bool:
    return isinstance(value, int if whole else int | float) and not isinstance(value, bool)


def shown(value: object) -> str:
    """A value of the file, short, as one would write it in TOML."""
    match value:
        case dict():
            return "a table"
        case list() | tuple():
            return f"an array of {len(value)}"
        case str():
            return json.dumps(value if len(value) <= 60 else value[:60] + "...")
        case bool():
            return str(value).lower()
        case _:
            return str(value)


def lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
