"""One command: its arity, its flags, where its keys are, and what the proxy does with it.

A `Row` is the plain data of a command, as `rows.py` holds it and as processes send it to each other. table.py makes a
`Command` of it. A `Command` finds the keys in an argv, or raises `BadKeys` with the error line for the client.

table.py decides which commands there are, and shard_map.py to which shard a key belongs.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
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

    PLAIN = 1  # has one key, always at the same position: goes to the shard of that key
    KEYED = 2  # its keys are found from its arguments: goes to their shard if all are on one
    SPLIT = 3  # each shard gets the part with its keys; the answers are merged
    FANOUT = 4  # goes to all shards; the answers are merged
    LOCAL = 5  # the proxy answers it without a server
    REFUSED = 6  # gets an error that gives the reason
    TRANSACTION = 7  # begins or ends a transaction: MULTI, EXEC, DISCARD
    CONVERSATION = 8  # takes several requests to the servers, or a connection of its own
    PUBSUB = 9  # publishes, subscribes or unsubscribes


class Row(NamedTuple):
    """One entry of a COMMAND reply as plain data. The words of a set are joined by spaces, in the server's order."""

    name: str  # lower case; a subcommand is "object|encoding"
    arity: int
    flags: str  # "write denyoom fast"
    first: int  # key positions in the form before key specs; last = -1 is the last argument
    last: int
    step: int
    categories: str  # "@write @string @fast"
    tips: str
    key_specs: Sequence[Sequence[str]]  # each: flags "RW insert", begin "index 1", find "range 0 1 0", notes


_ABOUT_THE_SPEC = ("variable_flags", "incomplete")  # flags that describe the spec, not the key


@dataclass(frozen=True, slots=True, eq=False)
class Command:
    """One command, or one subcommand. Two are equal only if they are the same object."""

    name: bytes  # lower case; a subcommand is b"object|encoding"
    arity: int  # number of words with the name; negative: at least so many
    flags: frozenset[str]
    key_specs: tuple[KeySpec, ...]
    kind: Kind
    row: Row  # as the server describes it, for COMMAND INFO and LIST
    first_key: int = 0  # PLAIN: argv position of its key; SPLIT: of the first key; else 0
    step: int = 0  # SPLIT: from key to key
    merge: str = ""  # SPLIT, FANOUT: how the answers are merged
    reason: str = ""  # REFUSED: why, and what to do instead
    slow: bool = False  # may keep its server busy for seconds; the server answers no other request meanwhile
    shard_wide: bool = False  # slow, and always reads all keys of a server: requests behind it wait for it
    subcommands: Mapping[bytes, Command] = field(default_factory=dict)  # lower-case own name ("encoding")

    @property
    def is_read(self) -> bool:
        """Whether it changes nothing and never blocks. Every other command counts as a write."""
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
        """Whether it can have keys."""
        return any(spec.names_keys for spec in self.key_specs)

    def arity_ok(self, argc: int) -> bool:
        """Whether argv may have this many words."""
        return argc == self.arity if self.arity >= 0 else argc >= -self.arity

    def is_whole(self, argc: int) -> bool:
        """Whether each key of a split (MSET) has its value. A server checks that only when it runs the command."""
        return self.kind is not Kind.SPLIT or (argc - self.first_key) % self.step == 0

    def keys(self, argv: Sequence[bytes]) -> Sequence[int]:
        """The argv positions of its keys, in the order of COMMAND GETKEYS; empty if it has none.

        The arity must have been checked. Raises BadKeys if the keys cannot be found, or if the command would read
        keys that it does not name and that may be on another shard (SORT BY, SORT GET).
        """
        guard = GUARDS.get(self.name)
        if guard is not None:
            guard(self.name, argv)
        return self.positions(argv)

    def is_malformed(self, argv: Sequence[bytes]) -> bool:
        """Whether its keys cannot be found. A server would not run it either."""
        try:
            self.positions(argv)
        except BadKeys:
            return True
        return False

    @property
    def may_wait(self) -> bool:
        """Whether it is a blocking command on keys. Within MULTI no command blocks."""
        return "blocking" in self.flags and self.has_keys

    def waits(self, argv: Sequence[bytes]) -> bool:
        """Whether this argv blocks, so that it needs a connection of its own. Raises BadKeys as `keys` does."""
        return self.may_wait and timeout_place(self.name, argv) > 0

    def positions(self, argv: Sequence[bytes]) -> Sequence[int]:
        """As `keys`, without its check for keys that are not named."""
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

    def key_flags(self, argv: Sequence[bytes]) -> Iterator[tuple[int, tuple[str, ...]]]:
        """Each key's position and flags, as COMMAND GETKEYSANDFLAGS gives them, each found when it comes to its turn.

        Raises BadKeys as `positions` does.
        """
        positions = self.positions(argv)
        if self.name in GRAMMARS:  # the first key is the first spec's, a destination (STORE) the last one's
            specs = (self.key_specs[0 if index == 0 else -1] for index in range(len(positions)))
        else:
            named = [spec for spec in self.key_specs if spec.names_keys] if positions else []
            specs = (spec for spec in named for _ in spec.positions(argv) or ())
        actual = ACTUAL_FLAGS.get(self.name)
        if actual is not None:
            return ((position, actual(argv)) for position in positions)
        return (
            (position, tuple(flag for flag in spec.flags if flag not in _ABOUT_THE_SPEC))
            for position, spec in zip(positions, specs, strict=True)
        )

    def _wants_no_key(self, spec: KeySpec, argv: Sequence[bytes]) -> bool:
        """Whether it is a call like EVAL that gives 0 as the number of its keys."""
        if "no_mandatory_keys" not in self.flags or not isinstance(spec.begin, Index):
            return False
        return isinstance(spec.find, KeyNum) and number(argv[spec.begin.position + spec.find.keynumidx]) == 0


# --- COMMAND replies -> rows -----------------------------------------------------------------------------------------


def rows_of(entry: object) -> list[Row]:
    """One entry of a COMMAND reply (RESP2 or RESP3, as hiredis parses it) -> its row and those of its subcommands.

    Raises ValueError if the entry does not have the form of Redis 7.
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
    """The entries of a map: hiredis parses it as a dict from RESP3 and as a flat list from RESP2."""
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
