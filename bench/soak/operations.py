"""What a client may ask at once: each function makes a few requests on keys of its own, and knows their answers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from bench.soak.ledger import Ledger, State, Write
from bench.soak.wire import Judge, Request

LARGE = 2_000_000
CHANNELS = tuple(b"news%d" % number for number in range(6))
SCRIPT = b"redis.call('RPUSH', KEYS[1], ARGV[1]) return {redis.call('INCR', KEYS[2]), ARGV[1]}"
SHA = hashlib.sha1(SCRIPT, usedforsecurity=False).hexdigest().encode()


def exactly(*expected: object) -> Judge:
    """One of these."""
    return lambda reply, _: None if reply in expected else f"expected one of {expected}, got {str(reply)[:80]}"


def number(low: int, high: int) -> Judge:
    def judge(reply: object, _: float) -> str | None:
        fits = isinstance(reply, int) and low <= reply <= high
        return None if fits else f"expected {low} to {high}, got {str(reply)[:80]}"

    return judge


class Operations:
    """Of one connection. `prefix` begins all its keys."""

    def __init__(self, prefix: bytes, ledger: Ledger, random: Random) -> None:
        self.prefix = prefix
        self._ledger = ledger
        self._random = random
        self._said = 0
        self._last = b"0"  # id in the stream

    def some(self) -> list[Request]:
        """A few operations, one behind the other."""
        chosen = self._random.choices(ALL, WEIGHTS, k=self._random.choice((1, 1, 2, 4, 8)))
        return [request for operation in chosen for request in operation(self)]

    def looks_back(self) -> list[Request]:
        """What the next connection of the client reads of this one; its writes of unknown fate may still be applied."""
        keys = [self.prefix + b":r%d" % each for each in range(6)]
        sure = [key for key in keys if all(each.state is State.ACKED for each in self._ledger.registers[key])]
        return [self._get(key) for key in sure]

    # --- registers ---

    def set_and_get(self) -> list[Request]:
        key = self._key("r", 6)
        size = LARGE if self._random.random() < 0.004 else 0
        return [self._set(key, size), self._get(key)] if self._random.random() < 0.6 else [self._get(key)]

    def of_many(self) -> list[Request]:
        keys = [self.prefix + b":m%d" % each for each in range(3)]
        writes = [self._ledger.write(self._ledger.registers, key) for key in keys]
        pairs = [each for write in writes for each in (write.key, write.value)]
        return [Request((b"MSET", *pairs), exactly(b"OK"), writes), self._mget(keys)]

    def delete(self) -> list[Request]:
        keys = [self.prefix + b":m%d" % each for each in range(3)]
        writes = [self._ledger.write(self._ledger.registers, key, -1) for key in keys]
        return [Request((b"DEL", *keys), number(0, 3), writes), self._mget(keys)]

    def other_database(self) -> list[Request]:
        key = self.prefix + b":one"
        there, back = (Request((b"SELECT", each), exactly(b"OK")) for each in (b"1", b"0"))
        return [there, self._set(key), self._get(key), back]

    # --- what grows ---

    def count(self) -> list[Request]:
        return [self._incr(self._key("i", 3))]

    def append(self) -> list[Request]:
        write = self._ledger.write(self._ledger.piles, self._key("a", 2))
        return [Request((b"APPEND", write.key, write.value + b";"), number(1, 1 << 40), [write])]

    def push(self) -> list[Request]:
        return [self._rpush(self._key("l", 4))]

    def queue(self) -> list[Request]:
        key = self.prefix + b":q"

        def judge(reply: object, now: float) -> str | None:
            if reply is None:
                self._ledger.found_empty(key, now)
                return None
            if not isinstance(reply, list) or len(reply) != 2 or reply[0] != key:
                return f"popped {str(reply)[:80]}"
            return self._ledger.popped(key, reply[1], now)

        def unsure() -> None:
            self._ledger.unknown_pops[key] += 1

        return [self._rpush(key), Request((b"BLPOP", key, b"0.1"), judge, unsure=unsure), *self.echo()]

    def script(self) -> list[Request]:
        tag = b"{%b:e}" % self.prefix
        write = self._ledger.write(self._ledger.piles, tag + b":l")
        counted = self._ledger.write(self._ledger.counts, tag + b":n")

        def judge(reply: object, now: float) -> str | None:
            if not isinstance(reply, list) or len(reply) != 2 or reply[1] != write.value:
                return f"the script said {str(reply)[:80]}"
            return self._ledger.counted(counted.key, reply[0], now)

        by_text = self._random.random() < 0.5
        how = (b"EVAL", SCRIPT) if by_text else (b"EVALSHA", SHA)
        return [Request((*how, b"2", write.key, counted.key, write.value), judge, [write, counted])]

    def stream(self) -> list[Request]:
        key = self.prefix + b":x"
        write = self._ledger.write(self._ledger.piles, key)
        add = Request((b"XADD", key, b"*", b"f", write.value), _an_id, [write])

        def entries(reply: object, _: float) -> str | None:
            if reply is None:
                return None
            pairs: Any = reply.items() if isinstance(reply, dict) else reply
            try:
                ((name, found),) = pairs
                values = [fields[1] for _, fields in found]
                self._last = found[-1][0]
            except (TypeError, ValueError, LookupError):
                return f"expected entries, got {str(reply)[:80]}"
            return self._ledger.of_pile(key, values) if name == key else f"entries of {name!r}"

        read = Request((b"XREAD", b"COUNT", b"20", b"STREAMS", key, self._last), entries)
        block = Request((b"XREAD", b"BLOCK", b"50", b"STREAMS", key, b"$"), entries)
        return [add, read] if self._random.random() < 0.8 else [add, block, *self.echo()]

    def union(self) -> list[Request]:
        one, two, sum_ = (self.prefix + each for each in (b":s1", b":s2", b":s3"))
        return [
            Request((b"SADD", one, b"a", b"b", b"c"), number(0, 3)),
            Request((b"SADD", two, b"c", b"d", b"e"), number(0, 3)),
            Request((b"SUNIONSTORE", sum_, one, two), exactly(5, 3, 0)),  # 3, 0: an SADD before it failed
        ]

    # --- transactions ---

    def transaction(self) -> list[Request]:
        key = self._key("r", 6)
        grows = [self._rpush(self._key("l", 4)), self._incr(self._key("i", 3))]
        return self._block([grows[0], self._set(key), self._get(key), grows[1]])

    def watched(self) -> list[Request]:
        key = self._key("r", 6)
        return [Request((b"WATCH", key), exactly(b"OK")), self._get(key), *self._block([self._set(key)], watched=True)]

    def _block(self, parts: Sequence[Request], watched: bool = False) -> list[Request]:
        def judge(reply: object, _: float) -> str | None:
            broken = watched and reply is None
            return None if broken else f"expected {len(parts)} answers, got {str(reply)[:80]}"

        queued = [Request(part.argv, exactly(b"QUEUED")) for part in parts]
        return [Request((b"MULTI",), exactly(b"OK")), *queued, Request((b"EXEC",), judge, parts=parts)]

    # --- the rest ---

    def wait(self) -> list[Request]:
        return [self._rpush(self._key("l", 4)), Request((b"WAIT", b"1", b"1000"), number(0, 2))]

    def scan(self) -> list[Request]:
        def judge(reply: object, _: float) -> str | None:
            if not isinstance(reply, list) or len(reply) != 2 or not isinstance(reply[1], list):
                return f"expected a page, got {str(reply)[:80]}"
            strange = [key for key in reply[1] if self.prefix not in key]
            return f"the page has {strange[:3]}" if strange else None

        return [Request((b"SCAN", b"0", b"MATCH", b"*%b:*" % self.prefix, b"COUNT", b"200"), judge)]

    def publish(self) -> list[Request]:
        self._said += 1
        channel = self._random.choice(CHANNELS)
        words = b"%b|%b|%d" % (channel, self.prefix, self._said)
        return [Request((b"PUBLISH", channel, words), number(0, 1000))]

    def echo(self) -> list[Request]:
        self._said += 1
        words = b"%b!%d" % (self.prefix, self._said)
        verb = self._random.choice((b"ECHO", b"PING"))
        return [Request((verb, words), exactly(words))]

    def nothing(self) -> list[Request]:
        return [Request((b"GET", self._key("none", 3)), exactly(None))]

    # --- single ones ---

    def _key(self, kind: str, count: int) -> bytes:
        return b"%b:%b%d" % (self.prefix, kind.encode(), self._random.randrange(count))

    def _set(self, key: bytes, size: int = 0) -> Request:
        write = self._ledger.write(self._ledger.registers, key, size)
        return Request((b"SET", key, write.value), exactly(b"OK"), [write])

    def _get(self, key: bytes) -> Request:
        issued = len(self._ledger.registers[key])
        return Request((b"GET", key), lambda reply, now: self._ledger.read(key, reply, now, issued))

    def _mget(self, keys: Sequence[bytes]) -> Request:
        issued = [len(self._ledger.registers[key]) for key in keys]

        def judge(reply: object, now: float) -> str | None:
            if not isinstance(reply, list) or len(reply) != len(keys):
                return f"expected {len(keys)} values, got {str(reply)[:80]}"
            read = zip(keys, reply, issued, strict=True)
            return next(filter(None, [self._ledger.read(key, each, now, count) for key, each, count in read]), None)

        return Request((b"MGET", *keys), judge)

    def _incr(self, key: bytes) -> Request:
        write: Write = self._ledger.write(self._ledger.counts, key)
        return Request((b"INCR", key), lambda reply, now: self._ledger.counted(key, reply, now), [write])

    def _rpush(self, key: bytes) -> Request:
        write = self._ledger.write(self._ledger.piles, key)
        return Request((b"RPUSH", key, write.value), number(1, 1 << 40), [write])


def _an_id(reply: object, _: float) -> str | None:
    fits = isinstance(reply, bytes) and reply.replace(b"-", b"", 1).isdigit()
    return None if fits else f"expected an id, got {str(reply)[:80]}"


CHANCES: dict[Callable[[Operations], list[Request]], int] = {
    Operations.set_and_get: 20,
    Operations.of_many: 6,
    Operations.delete: 3,
    Operations.other_database: 2,
    Operations.count: 8,
    Operations.append: 6,
    Operations.push: 10,
    Operations.queue: 4,
    Operations.script: 5,
    Operations.stream: 5,
    Operations.union: 2,
    Operations.transaction: 5,
    Operations.watched: 3,
    Operations.wait: 4,
    Operations.scan: 1,
    Operations.publish: 5,
    Operations.echo: 6,
    Operations.nothing: 2,
}
ALL, WEIGHTS = tuple(CHANCES), tuple(CHANCES.values())
