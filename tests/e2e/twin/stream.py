"""A whole conversation, made of a seed: batches of requests for several connections, each with its cuts.

In comes a seed and some DUMP payloads, out come the same batches for both servers. What a server answers has no
influence on what comes next, so both are asked the same.

Keys are few, so that commands meet each other's values: a handful for each type, some of them in the two groups that
share a hash tag, some with bytes that a careless proxy would stumble over. One key in fifty is of another type, and
what is written there stays in the way for a while.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from protocol.commands import BadKeys
from protocol.request import encode
from protocol.table import lookup
from tests.e2e.twin import vocabulary
from tests.e2e.twin.grammar import Line, lines

CONNECTIONS = 4
WRONG_TYPE = 1 / 50
LARGEST_CUT = 65536
YEAR_2100 = 4102444800

TYPES = ("str", "hash", "list", "set", "zset", "stream", "geo", "hll")
TAGS = (b"a", b"tag")
STRANGE = {"str": [b"", b"s\0\r\n\xff$1", b"{}str", b"{str"], "hash": [b"}hash{", b"{}{hash}"], "set": [b"set}{"]}


def _keys_of(kind: str, tag: bytes) -> list[bytes]:
    """The keys of a type in one group; the tag stands at their beginning or inside."""
    name = kind.encode()
    return [b"{%b}%b" % (tag, name), b"%b{%b}{x}" % (name, tag)]


TAGGED = {(kind, tag): _keys_of(kind, tag) for kind in TYPES for tag in TAGS}
KEYS = {
    kind: [b"%b%d" % (kind.encode(), number) for number in range(2)]
    + [key for tag in TAGS for key in TAGGED[kind, tag]]
    + STRANGE.get(kind, [])
    for kind in TYPES
}
TOGETHER = (b"sort",)  # whose keys are never apart
# Keys that no command for other types meets: values too long for LCS, and sorted sets whose scores are all the same.
ALONE = {kind: [b"%b%d" % (kind.encode(), number) for number in range(5)] for kind in ("big", "lex")}
ALL_KEYS = {key for names in (KEYS | ALONE).values() for key in names}


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it is sent. `answered`: whether a reply belongs to it; `last`: whether the server then closes;
    `runs`: what an EXEC runs."""

    argv: list[bytes]
    raw: bytes
    answered: bool = True
    last: bool = False
    runs: tuple[Request, ...] = ()

    @property
    def name(self) -> bytes:
        """As in the command table ("object|encoding"); b"" for what is no command."""
        command = lookup(self.argv) if self.argv else None
        return command.name if command else b""


@dataclass(frozen=True, slots=True)
class Batch:
    """What is sent on one connection before its replies are awaited, and in which pieces."""

    connection: int
    requests: list[Request]
    cuts: list[bytes]


class Words:
    """Fills placeholders in: the words of random commands."""

    def __init__(self, rng: random.Random, dumps: Sequence[bytes], apart: bool) -> None:
        self._rng = rng
        self._dumps = dumps
        self._apart = apart
        self._tag = TAGS[0]  # of the command that is being made
        self._same = TYPES[0]  # the type that `<same>` stands for in it
        self._newest = 1  # of the ids given to streams

        def item() -> bytes:
            return b"item%d" % rng.randint(0, 5)

        self._makers: dict[str, Callable[[], bytes]] = {
            "at": lambda: b"%d" % (YEAR_2100 + 1000 * rng.randint(0, 9)),
            "at_ms": lambda: b"%d" % (1000 * YEAR_2100 + 1_000_000 * rng.randint(0, 9)),
            "big_value": lambda: rng.randbytes(rng.choice((3_000, 16_384, 70_000))),
            "bit": lambda: rng.choice((b"0", b"1")),
            "bits": lambda: rng.choice((b"u1", b"u8", b"i16", b"u63", b"i64")),
            "consumer": lambda: rng.choice((b"alice", b"bob")),
            "count": lambda: rng.choice((b"1", b"2", b"5")),
            "db": lambda: b"%d" % rng.choice((*[0] * 12, 1, 1, rng.randint(0, 15))),
            "dump": lambda: rng.choice(self._dumps),
            "field": lambda: b"field%d" % rng.randint(0, 5),
            "float": lambda: rng.choice((b"0.5", b"-1.25", b"3", b"1e3", b"0.1")),
            "group": lambda: rng.choice((b"group", b"group", b"group", b"other")),
            "high": lambda: rng.choice((b"+inf", b"10", b"(5", b"0")),
            "high_word": lambda: rng.choice((b"+", b"[item9", b"(item5")),
            "index": lambda: b"%d" % rng.choice((0, 0, -1, -1, 1, 2, -3, rng.randint(-20, 20))),
            "int": lambda: b"%d" % rng.choice((0, 1, -7, 42, rng.randint(-(10**6), 10**6), 2**62)),
            "item": item,
            "latitude": lambda: b"%.4f" % rng.uniform(40, 60),
            "longitude": lambda: b"%.4f" % rng.uniform(-10, 30),
            "low": lambda: rng.choice((b"-inf", b"0", b"(1", b"-5")),
            "low_word": lambda: rng.choice((b"-", b"[item0", b"(item3")),
            # Members are without NUL: SORT ALPHA compares up to one, and equal ones come as the hash table has them.
            "member": lambda: rng.choice((item(), item(), item(), self._value(strange=b"\r\n+\xff"))),
            "milliseconds": lambda: b"%d" % (10_000_000 * rng.randint(1, 9)),
            "new_id": self._new_id,
            "offset": lambda: b"%d" % rng.choice((0, 1, 7, 8, rng.randint(0, 300))),
            "old_id": lambda: b"%d-%d" % (max(0, self._newest - rng.randint(0, 9)), rng.choice((0, 0, 1))),
            "pattern": lambda: rng.choice((b"*", b"*", b"*1", b"str*", b"{a}*", b"field[0-4]", b"nothing")),
            "score": lambda: rng.choice((b"1", b"2.5", b"-3", b"inf", b"%d" % rng.randint(-10, 10))),
            "seconds": lambda: b"%d" % (10_000 * rng.randint(1, 9)),
            "value": self._value,
            "weights": lambda: b"{%b}str*" % self._tag,
        }

    def argv(self, line: Line) -> list[bytes]:
        """A random command of this line."""
        self._tag, self._same = self._rng.choice(TAGS), self._rng.choice(TYPES)
        return line.argv(self._rng, self._together if set(TOGETHER).intersection(line.words[:1]) else self._word)

    def _word(self, name: str, tagged: bool) -> bytes:
        return self._together(name, tagged and not self._apart)

    def _together(self, name: str, tagged: bool) -> bytes:
        if name in self._makers:
            return self._makers[name]()
        if name in ALONE:
            return self._rng.choice(ALONE[name])
        if name == "any":
            name = self._rng.choice(TYPES)
        elif name == "same":
            name = self._same
        elif self._rng.random() < WRONG_TYPE:
            name = self._rng.choice(TYPES)
        return self._rng.choice(TAGGED[name, self._tag] if tagged else KEYS[name])

    def _new_id(self) -> bytes:
        self._newest += self._rng.random() < 0.15  # seldom, so that streams have ids in common
        return self._rng.choice((b"%d-1", b"%d-0", b"%d-*", b"%d")) % self._newest

    def _value(self, strange: bytes = b"\r\n$5\r\n\0\xff") -> bytes:
        rng = self._rng
        match rng.randint(0, 9):
            case 0 | 1:
                return b"%d" % rng.randint(-100, 10_000)
            case 2:
                return b""
            case 3:
                return strange + b"%d" % rng.randint(0, 99)
            case 4:
                return b"long" * rng.choice((17, 100, 300))
            case _:
                return b"value%d" % rng.randint(0, 20)


def stream(seed: int, requests: int, dumps: Sequence[bytes], *, apart: bool = False) -> Iterator[Batch]:
    """Batches of together at least `requests` requests; the same for the same arguments.

    `apart`: the keys of a command need have no hash tag in common, but those of TOGETHER; there are no transactions.
    """
    made, talkers = 0, Requests(random.Random(seed), dumps, apart)
    while made < requests:
        batch = talkers.batch()
        made += len(batch.requests)
        yield batch


class Requests:
    """Random requests, for one seed."""

    def __init__(self, rng: random.Random, dumps: Sequence[bytes], apart: bool) -> None:
        self._rng = rng
        self._apart = apart
        self._words = Words(rng, dumps, apart)
        self._data = {text: lines(text) for text in vocabulary.DATA}
        self._all = self._data | {text: lines(text) for text in vocabulary.REST}
        self._weights = vocabulary.DATA | vocabulary.REST

    def batch(self) -> Batch:
        """The next batch; one in forty ends the connection."""
        rng = self._rng
        depth = rng.choice((1, 1, rng.randint(2, 10), rng.randint(10, 60), rng.randint(60, 400)))
        requests: list[Request] = []
        while len(requests) < depth:
            dice = rng.random()
            if dice < 0.01:
                requests += self._silence()
            elif dice < 0.03 and not self._apart:
                requests += self._transaction()
            else:
                requests.append(self._one(self._all))
        if rng.random() < 1 / 40:
            requests.append(Request([b"QUIT"], encode([b"QUIT"]), last=True))
        raw = b"".join(request.raw for request in requests)
        return Batch(rng.randrange(CONNECTIONS), requests, cut(rng, raw))

    def _one(self, among: dict[str, list[Line]], answered: bool = True) -> Request:
        rng = self._rng
        (text,) = rng.choices(list(among), [self._weights[each] for each in among])
        (line,) = rng.choices(among[text], [each.weight for each in among[text]])
        argv = self._words.argv(line)
        argv[0] = rng.choice((argv[0], argv[0], argv[0].upper(), argv[0].title()))
        inline = rng.random() < 0.04 and sum(map(len, argv)) < 1000
        return Request(argv, as_line(rng, argv) if inline else encode(argv), answered)

    def _transaction(self) -> list[Request]:
        """From MULTI to EXEC, or DISCARD; in between only what a server and the proxy both queue."""
        rng = self._rng
        drawn = [self._one(self._data) for _ in range(rng.choice((0, 1, 2, 3, rng.randint(4, 40))))]
        queued = [request for request in drawn if _has_keys(request.argv)]
        begin, run, drop = [b"MULTI"], [b"EXEC"], [b"DISCARD"]
        end = Request(run, encode(run), runs=tuple(queued)) if rng.random() < 0.9 else Request(drop, encode(drop))
        return [Request(begin, encode(begin)), *queued, end]

    def _silence(self) -> list[Request]:
        """Requests that are carried out and not answered; or nothing, which is not answered either."""
        rng = self._rng
        match rng.randint(0, 2):
            case 0:
                skip = [b"CLIENT", b"REPLY", b"SKIP"]
                return [Request(skip, encode(skip), answered=False), self._one(self._data, answered=False)]
            case 1:
                off, on = [b"CLIENT", b"REPLY", b"OFF"], [b"CLIENT", b"REPLY", b"ON"]
                muted = [self._one(self._data, answered=False) for _ in range(rng.randint(0, 5))]
                return [Request(off, encode(off), answered=False), *muted, Request(on, encode(on))]
            case _:
                return [Request([], rng.choice((b"\r\n", b"*0\r\n", b"\n")), answered=False)]


def _has_keys(argv: Sequence[bytes]) -> bool:
    """Whether it is certain where this command's keys are."""
    command = lookup(argv)
    try:
        return command is not None and command.arity_ok(len(argv)) and bool(command.keys(argv))
    except BadKeys:
        return False


def as_line(rng: random.Random, argv: Sequence[bytes]) -> bytes:
    """The command as a person types it, arguments in quotes where they must be or may be."""
    words = [word if word.isalnum() and rng.random() < 0.7 else _quoted(word) for word in argv]
    return b" ".join(words) + rng.choice((b"\r\n", b"\n"))


def _quoted(word: bytes) -> bytes:
    plain = b"".join(bytes([each]) if chr(each).isalnum() and each < 128 else b"\\x%02x" % each for each in word)
    return b'"%b"' % plain


def cut(rng: random.Random, raw: bytes) -> list[bytes]:
    """The bytes in pieces: one of all, one of each byte, or random ones up to 64 KiB."""
    modes = ["whole", "random", "random"]
    if len(raw) < 10_000:
        modes.append("small")
    if len(raw) < 1_000:
        modes.append("bytes")
    mode = rng.choice(modes)
    if mode == "whole":
        return [raw]
    pieces, at = [], 0
    while at < len(raw):
        size = {"bytes": 1, "small": rng.randint(1, 40), "random": int(LARGEST_CUT ** rng.uniform(0.3, 1))}[mode]
        pieces.append(raw[at : at + size])
        at += size
    return pieces
