"""What is known of one command: its arity, its flags, where its keys are, and what the proxy does with it.

In comes a row, plain data as `rows.py` holds it and as it travels between processes; out comes a `Command`, which
for an argv says where the keys are, or raises `BadKeys` with the line to answer.

It never decides which commands there are (table.py) nor to which shard a key belongs.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from protocol import errors
from protocol.keyspecs import (
    ACTUAL_FLAGS,
    GRAMMARS,
    GUARDS,
    BadKeys,
    Index,
    KeyNum,
    KeySpec,
    number,
    timeout_place,
    together,
    why_not,
)

__all__ = ["BadKeys", "Command", "Kind", "Row", "rows_of"]


class Kind(enum.IntEnum):
    """What the proxy does with a command."""

    PLAIN = 1  # one key at a fixed position, whatever the arguments: to the shard of the key
    KEYED = 2  # keys that must be looked for: to their shard, if it is one
    SPLIT = 3  # a part to each shard, the answers merged
    FANOUT = 4  # to all shards, the answers merged
    LOCAL = 5  # answered by the proxy
    REFUSED = 6  # answered with a refusal that says why
    TRANSACTION = 7  # MULTI, and what ends it
    CONVERSATION = 8  # more than one question, or a connection of its own
    PUBSUB = 9  # publishes, or changes what the client is subscribed to


class Row(NamedTuple):
    """One entry of a COMMAND reply as plain data; words of a set are joined by spaces, in the server's order."""

    name: str  # lower case; a subcommand is "object|encoding"
    arity: int
    flags: str  # "write denyoom fast"
    first: int  # the old, coarse key positions; -1 as last: the last argument
    last: int
    step: int
    categories: str  # "@write @string @fast"
    tips: str
    key_specs: Sequence[Sequence[str]]  # each: flags "RW insert", begin "index 1", find "range 0 1 0", notes


_ABOUT_THE_SPEC = ("variable_flags", "incomplete")  # flags of a spec that say nothing about the key


@dataclass(frozen=True, slots=True, eq=False)
class Command:
    """One command, or one subcommand. Two are equal only if they are the same object."""

    name: bytes  # lower case; a subcommand is b"object|encoding"
    arity: int  # with the name counted; negative: at least
    flags: frozenset[str]
    key_specs: tuple[KeySpec, ...]
    kind: Kind
    row: Row  # what the server said, for COMMAND INFO and LIST
    first_key: int = 0  # PLAIN: argv position of its key; SPLIT: of the first key; else 0
    step: int = 0  # SPLIT: from key to key
    merge: str = ""  # SPLIT, FANOUT: how the answers become one
    reason: str = ""  # REFUSED: why, and what to do instead
    slow: bool = False  # one may keep its server busy for seconds, and the server then answers nobody else
    shard_wide: bool = False  # slow, and it always goes through all that a server has: what is behind it waits for it
    subcommands: Mapping[bytes, Command] = field(default_factory=dict)  # lower-case own name ("encoding")

    @property
    def is_read(self) -> bool:
        """Whether it changes nothing and never waits; everything else counts as a write."""
        return "readonly" in self.flags and "blocking" not in self.flags

    @property
    def categories(self) -> tuple[str, ...]:
        """ACL categories, with their @."""
        return tuple(self.row.categories.split())

    @property
    def tips(self) -> tuple[str, ...]:
        return tuple(self.row.tips.split())

    @property
    def has_keys(self) -> bool:
        """Whether it can name keys at all."""
        return any(spec.names_keys for spec in self.key_specs)

    def arity_ok(self, argc: int) -> bool:
        """Whether argv may have this many words."""
        return argc == self.arity if self.arity >= 0 else argc >= -self.arity

    def is_whole(self, argc: int) -> bool:
        """Whether a split of pairs (MSET) has whole pairs; a server finds that out when it runs it."""
        return self.kind is not Kind.SPLIT or (argc - self.first_key) % self.step == 0

    def keys(self, argv: Sequence[bytes]) -> Sequence[int]:
        """The argv positions of its keys, as COMMAND GETKEYS orders them; empty if it has none.

        Expects a right arity. Raises BadKeys where they cannot be determined, or where the command would read keys
        that it does not name and that may lie elsewhere (SORT BY, SORT GET).
        """
        guard = GUARDS.get(self.name)
        if guard is not None:
            guard(self.name, argv)
        return self.positions(argv)

    def is_malformed(self, argv: Sequence[bytes]) -> bool:
        """Whether its keys cannot be found at all, so that a server would refuse to run it, too."""
        try:
            self.positions(argv)
        except BadKeys:
            return True
        return False

    @property
    def may_wait(self) -> bool:
        """Whether it can wait for something to come to a key; within MULTI no command does."""
        return "blocking" in self.flags and self.has_keys

    def waits(self, argv: Sequence[bytes]) -> bool:
        """Whether it does, so that it needs a connection of its own. Raises BadKeys where `keys` does."""
        return self.may_wait and timeout_place(self.name, argv) > 0

    def positions(self, argv: Sequence[bytes]) -> Sequence[int]:
        """As `keys`, but it only looks where the keys are, and refuses nothing that has a right form."""
        parse = GRAMMARS.get(self.name)
        if parse is not None:
            return together([parse(self.name, argv)], len(argv))
        found: list[Sequence[int]] = []
        for spec in self.key_specs:
            if not spec.names_keys:
                continue
            positions = spec.positions(argv)
            if positions is None:
                if self._wants_no_key(spec, argv):
                    return []
                raise BadKeys(why_not(self.name.decode(), spec, argv))
            found.append(positions)
        if self.has_keys and not any(found):
            raise BadKeys(errors.syntax_error())
        return together(found, len(argv))

    def key_flags(self, argv: Sequence[bytes]) -> list[tuple[int, tuple[str, ...]]]:
        """The keys with what happens to each, as COMMAND GETKEYSANDFLAGS gives them; raises BadKeys as `positions`."""
        positions = self.positions(argv)
        if self.name in GRAMMARS:  # the first key is the first spec's, a destination (STORE) the last one's
            specs = [self.key_specs[0 if index == 0 else -1] for index in range(len(positions))]
        else:
            named = [spec for spec in self.key_specs if spec.names_keys] if positions else []
            specs = [spec for spec in named for _ in spec.positions(argv) or ()]
        actual = ACTUAL_FLAGS.get(self.name)
        if actual is not None:
            return [(position, actual(argv)) for position in positions]
        return [
            (position, tuple(flag for flag in spec.flags if flag not in _ABOUT_THE_SPEC))
            for position, spec in zip(positions, specs, strict=True)
        ]

    def _wants_no_key(self, spec: KeySpec, argv: Sequence[bytes]) -> bool:
        """EVAL and its like may say that they have 0 keys."""
        if "no_mandatory_keys" not in self.flags or not isinstance(spec.begin, Index):
            return False
        return isinstance(spec.find, KeyNum) and number(argv[spec.begin.position + spec.find.keynumidx]) == 0


# --- COMMAND replies -> rows -----------------------------------------------------------------------------------------


def rows_of(entry: object) -> list[Row]:
    """One entry of a COMMAND reply (RESP2 or RESP3, as hiredis parses it) -> its row, and those of its subcommands.

    ValueError if it has not the form that Redis 7 gave it.
    """
    match entry:
        case [name, int() as arity, flags, int() as first, int() as last, int() as step, categories, tips, specs, subs]:
            key_specs = tuple(_spec_texts(spec) for spec in _items(specs))
            words = _joined(categories), _joined(tips)
            row = Row(_text(name).lower(), arity, _joined(flags), first, last, step, *words, key_specs)
            return [row, *(sub for each in _items(subs) for sub in rows_of(each))]
    raise ValueError(f"expected an entry of a COMMAND reply with 10 fields, got {entry!r:.200}")


def _spec_texts(spec: object) -> tuple[str, str, str, str]:
    fields = _fields(spec)
    return (
        _joined(fields["flags"]),
        _described(fields["begin_search"]),
        _described(fields["find_keys"]),
        _text(fields.get("notes", b"")),
    )


def _described(part: object) -> str:
    fields = _fields(part)
    return " ".join([_text(fields["type"]), *map(_text, _fields(fields["spec"]).values())])


def _fields(value: object) -> dict[str, object]:
    """A map: hiredis makes a dict of RESP3's and a flat list of RESP2's."""
    pairs = value.items() if isinstance(value, dict) else zip(*[iter(_items(value))] * 2, strict=True)
    return _Fields((_text(key), each) for key, each in pairs)


class _Fields(dict[str, object]):
    def __missing__(self, key: str) -> object:
        raise ValueError(f"expected a field {key!r} in a COMMAND reply, got {list(self)}")


def _items(value: object) -> Sequence[object]:
    if isinstance(value, list | tuple):
        return value
    raise ValueError(f"expected a list in a COMMAND reply, got {value!r:.200}")


def _joined(value: object) -> str:
    return " ".join(_text(word) for word in _items(value))


def _text(value: object) -> str:
    match value:
        case bytes():
            return value.decode()
        case str() | int():
            return str(value)
    raise ValueError(f"expected a string in a COMMAND reply, got {value!r:.200}")
