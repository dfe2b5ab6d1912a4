"""Random command lines of the right form, from what a server says of a command's arguments (COMMAND DOCS)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

Doc = dict[str, Any]

# Keys and values that a careless parser would take for something else: one word in eight.
ODD = [*b"STORE storedist streams KEYS BY get COUNT BLOCK group LIMIT AUTH 0 2 # *".split(), b""]


@dataclass
class Writer:
    """Writes the arguments of one command line. `numkeys` and `streams` are what the line has promised so far."""

    random: Random
    words: list[bytes] = field(default_factory=list)
    numkeys: int | None = None
    streams: int = 0

    def write(self, arguments: Sequence[Doc]) -> None:
        for argument in arguments:
            flags = argument.get("flags", ())
            owed = self.numkeys is not None and _names_key(argument)
            if "optional" in flags and not owed and self.random.random() < 0.5:
                continue
            if argument["name"] == "numkeys":
                may_be_none = any("optional" in each.get("flags", ()) for each in arguments if _names_key(each))
                self.numkeys = self.random.randint(0 if may_be_none else 1, 3)
                self.words.append(b"%d" % self.numkeys)
                continue
            for index in range(self._times(argument)):
                if "token" in argument and (index == 0 or "multiple_token" in flags):
                    self.words.append(argument["token"].encode())
                self._one(argument)

    def _times(self, argument: Doc) -> int:
        if "multiple" not in argument.get("flags", ()):
            return 1
        if _names_key(argument) and self.numkeys is not None:
            times, self.numkeys = self.numkeys, None
            return times
        if argument["name"] == "id" and self.streams:
            return self.streams
        times = self.random.randint(1, 3)
        if _names_key(argument):
            self.streams = times
        return times

    def _one(self, argument: Doc) -> None:
        match argument["type"]:
            case "pure-token":
                pass
            case "oneof":
                self.write([self.random.choice(argument["arguments"])])
            case "block":
                self.write(argument["arguments"])
            case "key" | "string" if self.random.random() < 1 / 8:
                self.words.append(self.random.choice(ODD))
            case "key":
                self.words.append(b"key:%d" % self.random.randrange(10**6))
            case "integer" | "unix-time":
                self.words.append(b"%d" % self.random.randrange(1, 1000))
            case "double":
                self.words.append(b"%.2f" % self.random.uniform(-80, 80))
            case "pattern":
                self.words.append(self.random.choice([b"#", b"nosort", b"w:*", b"w:*->f"]))
            case _:
                self.words.append(b"value:%d" % self.random.randrange(10**6))


def _names_key(argument: Doc) -> bool:
    return argument["type"] == "key" or any(map(_names_key, argument.get("arguments", ())))


def command_line(name: str, doc: Doc, random: Random) -> list[bytes]:
    """One line for `name`, "get" or "object|encoding", whose entry in COMMAND DOCS is `doc`."""
    writer = Writer(random)
    writer.write(doc.get("arguments", ()))
    argv = [*name.encode().split(b"|"), *writer.words]
    if name == "migrate":  # its one key stands first and is empty if there is a list of keys; docs cannot say that
        argv[3] = b"" if b"KEYS" in argv else b"key:1"
    return [in_some_case(word, random) if index == 0 else word for index, word in enumerate(argv)]


def in_some_case(word: bytes, random: Random) -> bytes:
    """The word in lower, upper or first-letter case."""
    return random.choice([word.lower(), word.upper(), word.capitalize()])
