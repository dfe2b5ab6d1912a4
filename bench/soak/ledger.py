"""What each client wrote and was told, and what must be true of every answer, and of the servers in the end.

Pure: no clock, no socket. Every value that is written names its key and its number there ("c3.1:r0|17"), and a key
belongs to one connection of one client, so an answer that is another's is known at sight. Three kinds of keys:

- a register is set, deleted and read: a read shows the last write that was acknowledged, or a later one;
- a pile (list, text, stream) only grows, each value once: lost and doubled are known exactly in the end;
- a counter grows by one with each request: its answers grow, and it never exceeds the requests.

What looks lost or stale is a `Doubt`, until it is known when primaries were replaced: replication is asynchronous.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

PAD = b"x"


class State(Enum):
    """What is known of a write."""

    SENT = "sent"
    ACKED = "acked"
    REFUSED = "refused"  # it was not, and never will be, applied
    UNKNOWN = "unknown"


@dataclass(slots=True, eq=False)
class Write:
    """One value on its way to a key. `size`: its bytes with the padding; -1: the key was deleted. Times in s."""

    key: bytes
    number: int
    size: int
    state: State = State.SENT
    at: float = 0.0  # of the answer
    waited: bool = False  # WAIT has said that a replica has it
    popped_at: float = 0.0
    denied_at: float = 0.0  # a read showed what was before it, while its fate was unknown

    @property
    def value(self) -> bytes:
        named = b"%b|%d|" % (self.key, self.number)
        return named + PAD * (self.size - len(named))


@dataclass(frozen=True, slots=True)
class Switch:
    """A primary was replaced, unplanned. `doubled`: while another server of the shard was not well either."""

    shard: int
    since: float  # from then on writes that were acknowledged may be lost,
    until: float  # until then
    doubled: bool = False


@dataclass(frozen=True, slots=True)
class Doubt:
    """An acknowledged write, answered at `at`, was not there. `seen_at` 0: in the end, where it counts as lost."""

    shard: int
    at: float
    seen_at: float
    waited: bool
    text: str


@dataclass(slots=True)
class Verdict:
    """`violations` are what nothing excuses; the numbers are what the replacement of a primary may cost."""

    misrouted: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    refused_but_applied: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)  # for no reason, or in spite of WAIT
    stale: list[str] = field(default_factory=list)  # a read of the past for no reason
    disordered: list[str] = field(default_factory=list)
    contradicted: list[str] = field(default_factory=list)  # a write of unknown fate was not there, and later was
    lost_to_switches: int = 0
    stale_by_fault: int = 0

    def violations(self, *, timed: bool = True) -> list[str]:
        """Not `timed`: without those that a slow machine may make: when a primary was replaced is only nearly known."""
        kinds = {"misrouted": self.misrouted, "doubled": self.duplicates, "out of order": self.disordered}
        kinds |= {"refused, but applied": self.refused_but_applied, "contradicted": self.contradicted}
        kinds |= {"lost": self.lost, "stale": self.stale} if timed else {}
        return [f"{name}: {each}" for name, found in kinds.items() for each in found]


class Ledger:
    """`shard_of`: the index of the shard that a key belongs to."""

    def __init__(self, shard_of: Callable[[bytes], int]) -> None:
        self.verdict = Verdict()
        self.doubts: list[Doubt] = []
        self.registers: dict[bytes, list[Write]] = defaultdict(list)
        self.piles: dict[bytes, list[Write]] = defaultdict(list)
        self.counts: dict[bytes, list[Write]] = defaultdict(list)
        self.unknown_pops: Counter[bytes] = Counter()
        self._short: list[tuple[bytes, int, list[Write]]] = []  # counters below what was acknowledged, and by how much
        self._highest: dict[bytes, tuple[int, float]] = {}
        self._shard_of = shard_of

    # --- as it happens ---

    def write(self, kind: Mapping[bytes, list[Write]], key: bytes, size: int = 0) -> Write:
        """The next one of this key, of `registers`, `piles` or `counts`."""
        made = Write(key, len(kind[key]) + 1, size)
        if size >= 0:
            made.size = max(size, len(b"%b|%d|" % (key, made.number)))
        kind[key].append(made)
        return made

    def read(self, key: bytes, value: object, now: float, issued: int) -> str | None:
        """A register was read; `issued`: of so many of its writes the answer may be. What is wrong with it, or None."""
        writes = self.registers[key]
        if value is None:
            deleted = [each for each in writes[:issued] if each.size < 0 and each.state is not State.REFUSED]
            seen = deleted[-1].number if deleted else 0
        else:
            found = self._named(writes, key, value)
            if found is None:
                return f"{key!r} is {str(value)[:80]}, which was never written to it"
            if found.state is State.REFUSED:
                self.verdict.refused_but_applied.append(f"{found.value[:60]!r} was read")
            if found.number > issued:
                self.doubts.append(self._doubt([found], now, f"{key!r} showed {found.number} before it was asked for"))
            seen = found.number
            if found.denied_at:
                self.verdict.contradicted.append(f"{found.value[:60]!r} is there, and was not at {found.denied_at:.3f}")
            if found.state is State.UNKNOWN:
                found.state, found.at = State.ACKED, now
        for each in writes[seen:issued]:
            if each.state is State.UNKNOWN and not each.denied_at:
                each.denied_at = now
        missing = [each for each in writes[seen:issued] if each.state is State.ACKED]
        if missing:
            text = f"{key!r} showed {seen}, after {missing[-1].number} had been acknowledged"
            self.doubts.append(self._doubt(missing, now, text))
        return None

    def counted(self, key: bytes, said: object, now: float) -> str | None:
        """A counter has answered."""
        if not isinstance(said, int) or said < 1:
            return f"{key!r} counted {said!r}"
        before, at = self._highest.get(key, (0, 0.0))
        if said <= before:
            self.doubts.append(Doubt(self._shard_of(key), at, now, False, f"{key!r}: {said} after {before}"))
        if said > len(self.counts[key]):
            self.verdict.duplicates.append(f"{key!r} counted {said} of {len(self.counts[key])} requests")
        self._highest[key] = (said, now)
        return None

    def popped(self, key: bytes, value: object, now: float) -> str | None:
        """An element of a pile came out of it."""
        found = self._named(self.piles[key], key, value)
        if found is None:
            return f"{str(value)[:80]} was popped of {key!r}"
        if found.popped_at:
            text = f"{found.value!r} was popped twice"
            self.doubts.append(Doubt(self._shard_of(key), found.popped_at, 0.0, False, text))
        found.popped_at = now
        return None

    def found_empty(self, key: bytes, now: float) -> None:
        """Nothing could be popped of a pile."""
        there = [each for each in self.piles[key] if each.state is State.ACKED and not each.popped_at]
        if len(there) > self.unknown_pops[key]:
            self.doubts.append(self._doubt(there, now, f"{key!r} was empty, and {len(there)} had been acknowledged"))

    def of_pile(self, key: bytes, values: Iterable[object]) -> str | None:
        """A pile, or a part of it, was read."""
        for value in values:
            if self._named(self.piles[key], key, value) is None:
                return f"{str(value)[:80]} is in {key!r}"
        return None

    # --- in the end ---

    def close(self, held: Mapping[bytes, object], now: float) -> None:
        """What the primaries hold: bytes, or the values of a list or stream."""
        for key in [*self.registers]:
            self.read(key, held.get(key), 0.0, len(self.registers[key]))
        for key, writes in self.piles.items():
            self._close_pile(key, writes, held.get(key, []))
        for key, writes in self.counts.items():
            value = held.get(key, b"0")
            count = int(value) if isinstance(value, bytes) else 0
            possible = sum(each.state is not State.REFUSED for each in writes)
            if count > possible:
                self.verdict.duplicates.append(f"{key!r} is {count} after {possible} requests")
            acked = [each for each in writes if each.state is State.ACKED]
            if count < len(acked):
                self._short.append((key, len(acked) - count, acked))
        for key in held.keys() - self.registers.keys() - self.piles.keys() - self.counts.keys():
            self.verdict.misrouted.append(f"the servers hold {key!r}, which nobody wrote")

    def fates(self) -> Counter[str]:
        """How many writes were acknowledged (and of these made sure by WAIT), refused, and neither."""
        keys = [*self.registers.values(), *self.piles.values(), *self.counts.values()]
        every = [each for writes in keys for each in writes]
        return Counter(each.state.value for each in every) + Counter("sure by WAIT" for each in every if each.waited)

    def _close_pile(self, key: bytes, writes: Sequence[Write], held: object) -> None:
        values = held if isinstance(held, list) else [each + b"|" for each in bytes(held).split(b"|;")[:-1]]  # type: ignore[call-overload]
        counts = Counter(values)
        for value in counts:
            if self._named(writes, key, value) is None:
                self.verdict.misrouted.append(f"{key!r} holds {value[:80]!r}")
        spare = self.unknown_pops[key]
        for each in writes:
            count = counts[each.value]
            if count > 1:
                self.verdict.duplicates.append(f"{each.value!r} is there {count} times")
            if count and each.state is State.REFUSED:
                self.verdict.refused_but_applied.append(f"{each.value!r} ({key!r})")
            if count and each.popped_at:
                text = f"{each.value!r} was popped and is there"
                self.doubts.append(Doubt(self._shard_of(key), each.popped_at, 0.0, False, text))
            if not count and not each.popped_at and each.state is State.ACKED:
                if spare:
                    spare -= 1
                else:
                    self.doubts.append(self._doubt([each], 0.0, f"{each.value!r} is not there"))
        sure = {each.value: each.number for each in writes if each.state is State.ACKED}
        order = [sure[value] for value in values if value in sure]
        if order != sorted(order):
            self.verdict.disordered.append(f"{key!r}: {order}"[:200])

    def judge(self, switches: Sequence[Switch], faults: Sequence[tuple[int, float, float]]) -> Verdict:
        """`faults`: shard, since, until: in these a replica may be read that is behind."""
        for key, lacking, acked in self._short:
            those = [each for each in switches if each.shard == self._shard_of(key)]
            loose = sum(any(s.since <= w.at <= s.until and (s.doubled or not w.waited) for s in those) for w in acked)
            if lacking > loose:
                self.verdict.lost.append(f"{key!r} lacks {lacking} of {len(acked)}, of which {loose} may be lost")
            self.verdict.lost_to_switches += lacking
        for doubt in self.doubts:
            reasons = [each for each in switches if each.shard == doubt.shard and each.since <= doubt.at <= each.until]
            excused = any(each.doubled or not doubt.waited for each in reasons)
            if not doubt.seen_at:
                if excused:
                    self.verdict.lost_to_switches += 1
                else:
                    how = "in spite of WAIT" if doubt.waited and reasons else "for no reason"
                    self.verdict.lost.append(f"{how}: {doubt.text} (shard {doubt.shard}, acknowledged {doubt.at:.3f})")
                continue
            amid = any(shard == doubt.shard and a <= doubt.seen_at <= b for shard, a, b in faults)
            if excused or amid:
                self.verdict.stale_by_fault += 1
            else:
                where = f"shard {doubt.shard}, acknowledged {doubt.at:.3f}, seen {doubt.seen_at:.3f}"
                self.verdict.stale.append(f"{doubt.text} ({where})")
        return self.verdict

    def _doubt(self, missing: Sequence[Write], now: float, text: str) -> Doubt:
        first = min(missing, key=lambda each: each.at)
        return Doubt(self._shard_of(first.key), first.at, now, any(each.waited for each in missing), text)

    def _named(self, writes: Sequence[Write], key: bytes, value: object) -> Write | None:
        """The write of this very value."""
        if not isinstance(value, bytes):
            return None
        name, _, rest = value.partition(b"|")
        number = rest.partition(b"|")[0]
        if name != key or not number.isdigit() or not 0 < int(number) <= len(writes):
            return None
        found = writes[int(number) - 1]
        return found if found.size == len(value) and found.value == value else None
