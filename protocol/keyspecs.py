"""Where the keys of a command stand in its argv.

Most commands have key specs, which the server declares (https://valkey.io/topics/key-specs/). For the few whose specs
do not describe all keys (SORT, XREAD, GEORADIUS, MIGRATE), GRAMMARS has the grammar by which the server executes them.
If the keys cannot be found, `BadKeys` is raised with the error line for the client.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import NamedTuple, overload

from protocol import errors


class BadKeys(Exception):
    """The keys cannot be found, or the command would read keys that it does not name. `line`: the error line."""

    def __init__(self, line: bytes) -> None:
        super().__init__(line)
        self.line = line


class Places(Sequence[int]):
    """Positions in argv, in order, without a list of them: there may be a million.

    `runs`: ranges of positions, one after another.
    """

    def __init__(self, runs: Sequence[Sequence[int]]) -> None:
        self.runs = runs

    def __len__(self) -> int:
        return sum(map(len, self.runs))

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        place = index + len(self) if index < 0 else index
        for run in self.runs:
            if 0 <= place < len(run):
                return run[place]
            place -= len(run)
        raise IndexError(f"expected one of {len(self)} positions, got {index}")

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(self.runs)


MANY = 4096
"""Up to so many words of a command, its positions are a list."""


def together(runs: Sequence[Sequence[int]], argc: int) -> Sequence[int]:
    """The positions of all runs. `argc`: the number of words of the command."""
    return Places(runs) if argc > MANY else [place for run in runs for place in run]


class Index(NamedTuple):
    """Keys begin at this position of argv."""

    position: int


class Keyword(NamedTuple):
    """Keys begin after this word, looked for from `startfrom` (negative: from the end, backwards)."""

    keyword: str
    startfrom: int


class Range(NamedTuple):
    """Keys go to `lastkey`, from the first key or, if negative, from the end. `limit` 2: to half of the rest."""

    lastkey: int
    keystep: int
    limit: int


class KeyNum(NamedTuple):
    """The number of keys is `keynumidx` words after the beginning, the first key `firstkey` words after it."""

    keynumidx: int
    firstkey: int
    keystep: int


@dataclass(frozen=True, slots=True, eq=False)
class KeySpec:
    """One key spec. `begin` or `find` is None if the server declares "unknown"."""

    flags: tuple[str, ...]
    begin: Index | Keyword | None
    find: Range | KeyNum | None
    notes: str

    @classmethod
    def parse(cls, texts: Sequence[str]) -> KeySpec:
        """A key spec from the texts of a row. Raises ValueError if a number is missing or malformed."""
        flags, begin, find, notes = texts
        return cls(tuple(flags.split()), _parse_begin(begin), _parse_find(find), notes)

    @property
    def names_keys(self) -> bool:
        """False for channels and cursors: they have a spec only because a cluster routes by them."""
        return "not_key" not in self.flags

    @property
    def complete(self) -> bool:
        """Whether it finds all the keys that it describes."""
        return self.begin is not None and self.find is not None and "incomplete" not in self.flags

    def positions(self, argv: Sequence[bytes]) -> Sequence[int] | None:
        """The positions of the keys; empty if the keyword is missing; None if argv does not fit the spec."""
        match self.begin:
            case Index(index):
                first = index
            case Keyword(keyword, startfrom):
                first = _after_keyword(argv, keyword.lower().encode(), startfrom)
                if not first:
                    return []
            case None:
                return None
        argc = len(argv)
        match self.find:
            case Range(lastkey, step, limit):
                if lastkey >= 0:
                    last = first + lastkey
                elif limit > 1:
                    last = first + (argc - first) // limit + lastkey
                else:
                    last = argc + lastkey
                if first == argc == last + 1:
                    return []  # "key [key ...]" after other keys, and none is given: PFMERGE destination
            case KeyNum(keynumidx, firstkey, step):
                count = number(argv[first + keynumidx]) if first + keynumidx < argc else None
                if count is None:
                    return None
                first += firstkey
                last = first + (count - 1) * step
            case None:
                return None
        return range(first, last + 1, step) if first <= last < argc else None


def _after_keyword(argv: Sequence[bytes], keyword: bytes, startfrom: int) -> int:
    """The position after the keyword, 0 if it is missing (db.c, getKeysUsingKeySpecs)."""
    places = range(startfrom, len(argv)) if startfrom > 0 else range(len(argv) + startfrom, 0, -1)
    return next((place + 1 for place in places if argv[place].lower() == keyword), 0)


@cache
def _parse_begin(text: str) -> Index | Keyword | None:
    match text.split():
        case ["index", index]:
            return Index(int(index))
        case ["keyword", keyword, startfrom]:
            return Keyword(keyword, int(startfrom))
    return None


@cache
def _parse_find(text: str) -> Range | KeyNum | None:
    match text.split():
        case ["range", *numbers]:
            return Range(*map(int, numbers))
        case ["keynum", *numbers]:
            return KeyNum(*map(int, numbers))
    return None


_NUMBER = re.compile(rb"0|-?[1-9][0-9]{0,18}")


def number(text: bytes) -> int | None:
    """A decimal as the server reads one (string2ll: no plus, no blanks, no leading zeros, 64 bits), else None."""
    if not _NUMBER.fullmatch(text):
        return None
    value = int(text)
    return value if -(2**63) <= value < 2**63 else None


_SCRIPTS = ("eval", "eval_ro", "evalsha", "evalsha_ro", "fcall", "fcall_ro")


def why_not(name: str, spec: KeySpec, argv: Sequence[bytes]) -> bytes:
    """The server's error for a wrong number of keys, as Redis 7.0.15 and Valkey 9.1.2 answer it."""
    if not isinstance(spec.find, KeyNum) or not isinstance(spec.begin, Index):
        return errors.syntax_error()
    place = spec.begin.position + spec.find.keynumidx
    count = number(argv[place]) if place < len(argv) else None
    if name in ("lmpop", "zmpop", "blmpop", "bzmpop", "sintercard"):
        if count is None or count < 1:
            return errors.numkeys_not_positive()
        return errors.numkeys_beyond_arguments() if name == "sintercard" else errors.syntax_error()
    if name == "msetex":
        return errors.numkeys_invalid() if count is None or count < 1 else errors.syntax_error()
    if name in _SCRIPTS:
        if count is None:
            return errors.numkeys_bad() if name.startswith("fcall") else errors.not_an_integer()
        return errors.numkeys_negative() if count < 0 else errors.numkeys_beyond_arguments()
    if count is None:
        return errors.not_an_integer()
    return errors.no_input_key(name) if count < 1 else errors.syntax_error()


# --- grammars, where key specs do not describe all keys ---------------------------------------------------------------


def _options(argv: Sequence[bytes], start: int, values: Mapping[bytes, int], until: bytes = b"") -> Iterable[int]:
    """The positions of the options in argv. `values`: option -> how many words follow it.

    Stops at the word `until`. Raises BadKeys with the server's syntax error for any other option, and for an option
    without its values.
    """
    place = start
    while place < len(argv):
        option = argv[place].lower()
        if option == until:
            yield place
            return
        skip = values.get(option)
        if skip is None or place + skip >= len(argv):
            raise BadKeys(errors.syntax_error())
        yield place
        place += 1 + skip


_SORT_RO_OPTIONS = {b"asc": 0, b"desc": 0, b"alpha": 0, b"limit": 2, b"by": 1, b"get": 1}
_SORT_OPTIONS = _SORT_RO_OPTIONS | {b"store": 1}
_GEORADIUS_OPTIONS = {
    **dict.fromkeys((b"withdist", b"withhash", b"withcoord", b"any", b"asc", b"desc"), 0),
    **dict.fromkeys((b"count", b"store", b"storedist"), 1),
}
_XREAD_OPTIONS = {b"block": 1, b"count": 1}
_XREADGROUP_OPTIONS = _XREAD_OPTIONS | {b"group": 2, b"noack": 0}
_MIGRATE_OPTIONS = {b"copy": 0, b"replace": 0, b"auth": 1, b"auth2": 2}


def _with_destination(argv: Sequence[bytes], options: Iterable[int], words: Sequence[bytes]) -> list[int]:
    """Key 1, and the key after one of `words`, which is written. The last of them counts (sort.c, geo.c)."""
    destination = 0
    for option in options:
        if argv[option].lower() in words:
            destination = option + 1
    return [1, destination] if destination else [1]


def _sort_options(name: bytes, argv: Sequence[bytes]) -> Iterable[int]:
    return _options(argv, 2, _SORT_OPTIONS if name == b"sort" else _SORT_RO_OPTIONS)


def _sort_keys(name: bytes, argv: Sequence[bytes]) -> list[int]:
    return _with_destination(argv, _sort_options(name, argv), (b"store",))


def _georadius_keys(name: bytes, argv: Sequence[bytes]) -> list[int]:
    start = 6 if name == b"georadius" else 5
    return _with_destination(argv, _options(argv, start, _GEORADIUS_OPTIONS), (b"store", b"storedist"))


def _stream_options(name: bytes, argv: Sequence[bytes]) -> Iterable[int]:
    return _options(argv, 1, _XREAD_OPTIONS if name == b"xread" else _XREADGROUP_OPTIONS, until=b"streams")


def _stream_keys(name: bytes, argv: Sequence[bytes]) -> Sequence[int]:
    """Half of the words after STREAMS. The key spec is not used: it takes a group named "streams" for the keyword."""
    last = max(_stream_options(name, argv), default=0)
    if argv[last].lower() != b"streams":
        raise BadKeys(errors.syntax_error())
    count = (len(argv) - last - 1) // 2
    if not count:
        raise BadKeys(errors.syntax_error())
    return range(last + 1, last + 1 + count)


def _migrate_keys(name: bytes, argv: Sequence[bytes]) -> Sequence[int]:
    last = max(_options(argv, 6, _MIGRATE_OPTIONS, until=b"keys"), default=0)
    if not last or argv[last].lower() != b"keys":
        return [3]
    if argv[3] or last + 1 == len(argv):
        raise BadKeys(errors.syntax_error())
    return range(last + 1, len(argv))


GRAMMARS: dict[bytes, Callable[[bytes, Sequence[bytes]], Sequence[int]]] = {
    b"sort": _sort_keys,
    b"sort_ro": _sort_keys,
    b"georadius": _georadius_keys,
    b"georadiusbymember": _georadius_keys,
    b"xread": _stream_keys,
    b"xreadgroup": _stream_keys,
    b"migrate": _migrate_keys,
}


# --- how long a command blocks ----------------------------------------------------------------------------------------


def timeout_place(name: bytes, argv: Sequence[bytes]) -> int:
    """The position of the timeout of a command that may block; 0: it does not block. Raises BadKeys."""
    if name in (b"xread", b"xreadgroup"):  # in milliseconds, all others in seconds
        return max((each + 1 for each in _stream_options(name, argv) if argv[each].lower() == b"block"), default=0)
    return 1 if name in (b"blmpop", b"bzmpop") else len(argv) - 1


# --- guards: arguments that would read keys that are not named -------------------------------------------------------


def _refuse_patterns(name: bytes, argv: Sequence[bytes]) -> None:
    """BY and GET read keys made from each element. Only a {tag} equal to that of the key keeps them on its shard."""
    for option in _sort_options(name, argv):
        if argv[option].lower() in (b"by", b"get"):
            start, star, _ = argv[option + 1].partition(b"*")
            if star and (not _tag(start) or _tag(start) != (_tag(argv[1]) or argv[1])):
                raise BadKeys(errors.crossslot())


def _tag(key: bytes) -> bytes:
    """The text between the first { and the first } after it; empty if there is none."""
    return key.partition(b"{")[2].partition(b"}")[0] if b"}" in key.partition(b"{")[2] else b""


GUARDS: dict[bytes, Callable[[bytes, Sequence[bytes]], None]] = {
    b"sort": _refuse_patterns,
    b"sort_ro": _refuse_patterns,
}


# --- flags of keys that depend on the arguments (db.c, setGetKeys and bitfieldGetKeys) --------------------------------


def _set_flags(argv: Sequence[bytes]) -> tuple[str, ...]:
    returns_it = any(word.lower() == b"get" for word in argv[3:])
    return ("RW", "access", "update") if returns_it else ("OW", "update")


_BITFIELD_READS = {b"get": 2, b"overflow": 1}


def _bitfield_flags(argv: Sequence[bytes]) -> tuple[str, ...]:
    try:
        list(_options(argv, 2, _BITFIELD_READS))
    except BadKeys:  # anything that is not a reading operation
        return ("RW", "access", "update")
    return ("RO", "access")


ACTUAL_FLAGS: dict[bytes, Callable[[Sequence[bytes]], tuple[str, ...]]] = {
    b"set": _set_flags,
    b"bitfield": _bitfield_flags,
}
