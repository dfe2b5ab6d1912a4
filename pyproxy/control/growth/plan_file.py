"""A plan as TOML: what `pyproxy plan` writes, an operator may change, and `pyproxy move start` reads.

What is read is checked by itself, each problem as `path: expected ..., got ...`. Whether it fits the map of now is
checked when the moves are taken into the journal (`Document.with_moves`).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from msgspec import inspect as shape

from pyproxy.config import ShardName
from pyproxy.config_reading import BAD, NotToml, Tree, read_struct, read_toml
from pyproxy.control.growth.plan import Plan, PlannedMove
from pyproxy.shard_map import Node, Shard, SlotRange, format_slots

IN_A_LINE = 8
"""Ranges of slots."""


class PlanErrors(Exception):
    """Everything that is wrong, a line for each problem."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class AddedShard(msgspec.Struct, frozen=True, kw_only=True):
    """`[[shards]]`: a shard that is new."""

    name: ShardName
    primary: Node
    replicas: tuple[Node, ...] = ()


class MoveTable(msgspec.Struct, frozen=True, kw_only=True):
    """`[[moves]]`."""

    source: ShardName
    destination: ShardName
    slots: tuple[SlotRange, ...]
    bytes: Annotated[int, Meta(ge=0, le=1 << 60)] = 0  # about; for people


class PlanTable(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file."""

    remove: tuple[ShardName, ...] = ()  # these are taken out when their slots are gone
    shards: tuple[AddedShard, ...] = ()
    moves: tuple[MoveTable, ...] = ()


# --- reading ----------------------------------------------------------------------------------------------------------


def load_plan(path: Path) -> Plan:
    """The plan in this file. Raises PlanErrors."""
    try:
        raw = path.read_bytes()
    except OSError as exc:
        reason = (exc.strerror or str(exc)).lower()
        raise PlanErrors([f"{path}: expected a readable file, got {reason}"]) from None
    return read_plan(raw)


def read_plan(raw: bytes) -> Plan:
    """The plan in these bytes of TOML, without figures. Raises PlanErrors."""
    try:
        document = read_toml(raw)
    except NotToml as exc:
        raise PlanErrors([str(exc)]) from None
    problems: list[str] = []
    tree = read_struct(shape.type_info(PlanTable), document, "", problems)
    problems += _cross_checks(tree)
    if problems:
        raise PlanErrors(problems)
    table = msgspec.convert(tree, PlanTable)
    return Plan(
        tuple(PlannedMove(each.source, each.destination, each.slots, each.bytes) for each in table.moves),
        tuple(Shard(each.name, each.primary, each.replicas, ()) for each in table.shards),
        table.remove,
    )


def _cross_checks(tree: Any) -> Iterator[str]:
    """What is wrong between fields that are each right."""
    names: dict[str, str] = {}
    for path, shard in _tables(tree, "shards"):
        name = shard.get("name", BAD)
        if name is not BAD and names.setdefault(name, path) != path:
            yield f'{path}.name: expected a name of its own, got "{name}" of {names[name]}'
    removed = tree.get("remove", ())
    moved: dict[int, str] = {}
    for path, move in _tables(tree, "moves"):
        source, destination = move.get("source"), move.get("destination")
        if source is not None and source == destination:
            yield f'{path}.destination: expected another shard than the source, got "{destination}"'
        if destination is not None and destination in removed:
            yield f'{path}.destination: expected a shard that stays, got "{destination}" of remove'
        slots = move.get("slots", BAD)
        if slots == ():
            yield f"{path}.slots: expected one or more, got none"
        for each in () if slots is BAD else slots:
            twice = [] if each is BAD else [n for n in range(each[0], each[1] + 1) if moved.setdefault(n, path) != path]
            if twice:
                yield f'{path}.slots: expected slots that no other has, got "{format_slots(each)}" of {moved[twice[0]]}'


def _tables(tree: Tree, name: str) -> Iterator[tuple[str, Tree]]:
    for index, table in enumerate(tree.get(name, ())):
        if table is not BAD:
            yield f"{name}[{index}]", table


# --- writing ----------------------------------------------------------------------------------------------------------


def write_plan(plan: Plan, bytes_per_s: float) -> str:
    """As TOML, with the figures above it as comments."""
    lines = [*_figures(plan, bytes_per_s), ""]
    if plan.removed:
        lines += [f"remove = {_array(plan.removed)}", ""]
    for shard in plan.added:
        lines += ["[[shards]]", f"name = {_text(shard.name)}", f"primary = {_text(shard.primary)}"]
        if shard.replicas:
            lines.append(f"replicas = {_array(shard.replicas)}")
        lines.append("")
    for move in plan.moves:
        lines += ["[[moves]]", f"source = {_text(move.source)}", f"destination = {_text(move.destination)}"]
        lines += [f"slots = {_array([format_slots(each) for each in move.slots])}", f"bytes = {move.bytes}", ""]
    return "\n".join(lines)


def _figures(plan: Plan, bytes_per_s: float) -> Iterator[str]:
    yield "# Written by `pyproxy plan`. All bytes are about right: they come from a sample of the keys."
    yield "#"
    width = max([5, *map(len, plan.before)])
    yield f"# {'shard':<{width}}  {'before':>10}  {'after':>10}  {'gives':>10}  {'takes':>10}"
    for name, before in plan.before.items():
        gives = sum(move.bytes for move in plan.moves if move.source == name)
        takes = sum(move.bytes for move in plan.moves if move.destination == name)
        figures = (
            sized(before),
            sized(plan.after[name]),
            sized(gives) if gives else "-",
            sized(takes) if takes else "-",
        )
        yield f"# {name:<{width}}" + "".join(f"  {figure:>10}" for figure in figures)
    yield "#"
    if not plan.moves:
        yield "# Nothing has to be moved."
        return
    slots = sum(last - first + 1 for move in plan.moves for first, last in move.slots)
    what = f"{len(plan.moves)} move{'s' if len(plan.moves) > 1 else ''}, {slots} slots, {sized(plan.bytes)}"
    yield f"# To move: {what}; {lasting(plan.bytes / bytes_per_s)} at {sized(bytes_per_s)} a second"


def sized(size: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def lasting(seconds: float) -> str:
    """A time for people."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _text(value: object) -> str:
    return json.dumps(str(value))


def _array(values: Any) -> str:
    texts = [_text(value) for value in values]
    if len(texts) <= IN_A_LINE:
        return f"[{', '.join(texts)}]"
    rows = [", ".join(texts[at : at + IN_A_LINE]) for at in range(0, len(texts), IN_A_LINE)]
    return "[\n" + "".join(f"    {row},\n" for row in rows) + "]"
