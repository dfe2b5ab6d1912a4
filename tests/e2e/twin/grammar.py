"""Lines that describe commands, and how a random command is made of one.

    3* set <str> <value> [ NX | XX ] [ EX <seconds> | KEEPTTL ]
    mset ( <str> <value> ) ...
    sinterstore <@set> <@set> ...

A word is sent as it stands, `<name>` is filled in (`<@name>`: a key with the hash tag that all such keys of one command
share), `[ a | b ]` is one of these or nothing, `( a | b )` is one of these, and `...` repeats what stands before it
one to four times. `3*` makes a line three times as likely as others. Signs stand between blanks.

It knows no command and no placeholder by name: whoever fills a line in brings a function that does.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

MOST = 4

Fill = Callable[[str, bool], bytes]
"""(name, tagged) of a placeholder -> the word that stands for it this time."""


@dataclass(frozen=True)
class Word:
    text: bytes

    def write(self, rng: random.Random, fill: Fill, out: list[bytes]) -> None:
        out.append(self.text)


@dataclass(frozen=True)
class Place:
    name: str
    tagged: bool

    def write(self, rng: random.Random, fill: Fill, out: list[bytes]) -> None:
        out.append(fill(self.name, self.tagged))


@dataclass(frozen=True)
class Choice:
    branches: tuple[Sequence, ...]
    optional: bool

    def write(self, rng: random.Random, fill: Fill, out: list[bytes]) -> None:
        if not self.optional or rng.random() < 0.5:
            rng.choice(self.branches).write(rng, fill, out)


@dataclass(frozen=True)
class Many:
    part: Part

    def write(self, rng: random.Random, fill: Fill, out: list[bytes]) -> None:
        for _ in range(rng.randint(1, MOST)):
            self.part.write(rng, fill, out)


Part = Word | Place | Choice | Many


@dataclass(frozen=True)
class Sequence:
    parts: tuple[Part, ...]

    def write(self, rng: random.Random, fill: Fill, out: list[bytes]) -> None:
        for part in self.parts:
            part.write(rng, fill, out)


@dataclass(frozen=True)
class Line:
    """One line: how likely it is among its like, and what it makes."""

    weight: int
    sequence: Sequence

    @property
    def words(self) -> list[bytes]:
        """The fixed words at its beginning, in lower case: the command's name, and what may be its subcommand."""
        begin = []
        for part in self.sequence.parts:
            if not isinstance(part, Word):
                break
            begin.append(part.text.lower())
        return begin

    def argv(self, rng: random.Random, fill: Fill) -> list[bytes]:
        """A random command of this line."""
        out: list[bytes] = []
        self.sequence.write(rng, fill, out)
        return out


def lines(text: str) -> list[Line]:
    """All lines of a text but the empty ones. ValueError for a sign that does not fit."""
    return [_line(each) for each in text.splitlines() if each.strip()]


def _line(text: str) -> Line:
    found = re.fullmatch(r"(?:(\d+)\* )?(.*)", text.strip())
    assert found is not None
    tokens = iter(found[2].split())
    branches, end = _branches(tokens)
    if end or len(branches) != 1:
        raise ValueError(f"expected brackets in pairs, got {text!r}")
    return Line(int(found[1] or 1), branches[0])


def _branches(tokens: Iterator[str]) -> tuple[tuple[Sequence, ...], str]:
    """What stands between the bars up to a closing bracket, and that bracket ("": the line ended)."""
    branches: list[Sequence] = []
    parts: list[Part] = []
    end = ""
    for token in tokens:
        if token in ("]", ")"):
            end = token
            break
        if token == "|":
            branches.append(Sequence(tuple(parts)))
            parts = []
        elif token == "...":
            parts.append(Many(parts.pop()))
        else:
            parts.append(_part(token, tokens))
    return (*branches, Sequence(tuple(parts))), end


def _part(token: str, tokens: Iterator[str]) -> Part:
    if token in ("[", "("):
        branches, end = _branches(tokens)
        if end != {"[": "]", "(": ")"}[token]:
            raise ValueError(f"expected the bracket {token} to be closed, got {end!r}")
        return Choice(branches, optional=token == "[")
    if token.startswith("<") and token.endswith(">"):
        return Place(token[1:-1].lstrip("@"), tagged=token.startswith("<@"))
    return Word(token.encode())
