"""Which slots are to move where, so that all shards hold about the same.  Pure.

What is known of the keys of each shard comes in; moves go out, with what each shard holds before and after them. As
little is moved as evens it out: only shards that hold more than their part give, and only those that hold less take.
What one shard gives to another is the end of its slots, so that few ranges come of it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pyproxy.hashing import SLOTS
from pyproxy.shard_map import Shard, SlotRange, join_slots

EVEN = 0.02
"""A shard that is so near to its part does not take part, unless the others cannot even it out among themselves."""

HITS = 5
"""So many sampled keys in one slot, and"""

HEAVY = 5.0
"""so many times the bytes of the mean one: there are many keys of one hash tag, or large ones."""


ORDINARY = 8.0
"""A slot of more than so many times the mean bytes is left out where it is too much for who gives or takes."""


class CannotPlan(Exception):
    """What does not fit together, as `expected ..., got ...`."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What is known of the keys of one shard."""

    keys: int
    bytes: int
    found: tuple[tuple[int, int], ...] = ()  # of some keys, drawn at random: slot and bytes


@dataclass(frozen=True, slots=True)
class PlannedMove:
    source: str
    destination: str
    slots: tuple[SlotRange, ...]
    bytes: int  # about


@dataclass(frozen=True, slots=True)
class Plan:
    """`added` have no slots; what is in `removed` has none when the moves are done."""

    moves: tuple[PlannedMove, ...]
    added: tuple[Shard, ...] = ()
    removed: tuple[str, ...] = ()
    before: Mapping[str, int] = field(default_factory=dict)  # bytes by shard, about
    after: Mapping[str, int] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return sum(move.bytes for move in self.moves)


def weights(shards: Iterable[Shard], samples: Mapping[str, Sample]) -> list[float]:
    """About how many bytes each slot holds.

    Of most slots a sample has one key or none, and says little of it: those hold about the same, as keys are hashed.
    Where it has many, it counts as it is.
    """
    found = [0.0] * SLOTS
    for shard in shards:
        slots = _numbers(shard.slots)
        sample = samples[shard.name]
        if not slots or not sample.keys:
            continue
        hits, sizes = dict.fromkeys(slots, 0), dict.fromkeys(slots, 0.0)
        for number, size in sample.found:
            if number in hits:  # else it is a stray key, or its copy on the move
                hits[number] += 1
                sizes[number] += size
        drawn = sum(sizes.values())
        if not drawn:
            for number in slots:
                found[number] = sample.bytes / len(slots)
            continue
        mean = drawn / len(slots)
        heavy = {number for number in slots if hits[number] >= HITS and sizes[number] > HEAVY * mean}
        others = [number for number in slots if number not in heavy]
        left = drawn - sum(sizes[number] for number in heavy)
        smooth = left / len(others) if others else 0.0
        for number in slots:
            share = sizes[number] / drawn if number in heavy else (sizes[number] + smooth) / 2 / drawn
            found[number] = sample.bytes * share
    total = sum(found)
    least = total / SLOTS / 1000 if total else 1.0  # slots without keys are shared out, too
    return [max(weight, least) for weight in found]


def planned(
    shards: Sequence[Shard], slot_bytes: Sequence[float], added: Sequence[Shard] = (), removed: Sequence[str] = ()
) -> Plan:
    """Raises CannotPlan."""
    names = [shard.name for shard in shards]
    for shard in added:
        if shard.name in names:
            raise CannotPlan(f"expected a shard of a name that is new, got {shard.name}")
    for name in removed:
        if name not in names:
            raise CannotPlan(f"expected one of the shards {', '.join(names)}, got {name}")
    everyone = {shard.name: _numbers(shard.slots) for shard in (*shards, *added)}
    if len(everyone) < len(shards) + len(added):
        raise CannotPlan("expected shards of different names, got one twice")
    stay = [name for name in everyone if name not in removed]
    if not stay:
        raise CannotPlan("expected a shard that stays, got none")
    fleet = _Fleet(everyone, slot_bytes, stay)
    before = fleet.held()
    fleet.even_out()
    moves = [
        PlannedMove(source, destination, tuple(join_slots(sorted(slots))), round(sum(slot_bytes[n] for n in slots)))
        for (source, destination), slots in fleet.moved.items()
    ]
    moves.sort(key=lambda move: (names.index(move.source), move.slots))
    return Plan(tuple(moves), tuple(added), tuple(removed), before, fleet.held())


class _Fleet:
    """The shards while they are evened out."""

    def __init__(self, slots: dict[str, list[int]], slot_bytes: Sequence[float], stay: list[str]) -> None:
        # Ascending; the last ones are given first.
        self._slots = {name: dict.fromkeys(numbers) for name, numbers in slots.items()}
        self._bytes = slot_bytes
        self._stay = stay
        self._load = {name: sum(slot_bytes[number] for number in numbers) for name, numbers in slots.items()}
        self._part = 0.0
        self._ordinary = ORDINARY * sum(slot_bytes) / SLOTS
        self._too_large: set[int] = set()  # slots that alone hold more than a part
        self.moved: dict[tuple[str, str], list[int]] = {}

    def held(self) -> dict[str, int]:
        return {name: round(load) for name, load in self._load.items()}

    def even_out(self) -> None:
        self._find_part()
        leavers = [name for name in self._slots if name not in self._stay]
        for name in leavers:
            large = [number for number in self._slots[name] if self._bytes[number] > self._ordinary]
            for number in sorted(large, key=lambda number: -self._bytes[number]):
                self._give(name, self._emptiest(), number)
        takers, givers = self._participants(sum(self._load[name] for name in leavers))
        for name in leavers:
            takers = self._hand_out(name, self._load[name], takers)
        for name, excess in givers:
            takers = self._hand_out(name, excess, takers)
        for name in leavers:
            for number in list(reversed(self._slots[name])):
                self._give(name, self._emptiest(), number)

    def _find_part(self) -> None:
        """What each is to hold: an equal part of all but of the slots that are larger than that."""
        total = sum(self._load.values())
        large = sorted(range(SLOTS), key=lambda number: -self._bytes[number])[: len(self._stay) - 1]
        self._part = total / len(self._stay)
        for count, number in enumerate(large, 1):
            if self._bytes[number] <= self._part:
                return
            self._too_large.add(number)
            total -= self._bytes[number]
            self._part = total / (len(self._stay) - count)

    def _participants(self, leaving: float) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
        """Who takes and who gives, and how much, the most first: both together the same, as far as that can be."""
        over = {name: self._excess(name) for name in self._stay}

        def beyond(sign: int, least: float) -> list[tuple[str, float]]:
            found = [(name, sign * excess) for name, excess in over.items() if sign * excess > least * self._part]
            return sorted(found, key=lambda each: -each[1])

        takers, givers = beyond(-1, EVEN), beyond(1, EVEN)
        taken, given = _sum(takers), leaving + _sum(givers)
        if taken > given:
            givers = _first(beyond(1, 0.0), taken - leaving)
        elif given > taken:
            takers = _first(beyond(-1, 0.0), given)
        return takers, givers

    def _excess(self, name: str) -> float:
        """What it holds beyond its part. A slot that is too large stays, and nothing is wanted beside it."""
        fixed = sum(self._bytes[number] for number in self._slots[name] if number in self._too_large)
        return self._load[name] - max(self._part, fixed)

    def _hand_out(self, giver: str, excess: float, takers: list[tuple[str, float]]) -> list[tuple[str, float]]:
        """So much, to these -> those who still want something, and how much."""
        for number in list(reversed(self._slots[giver])):
            size = self._bytes[number]
            if number in self._too_large:
                continue
            if size > self._ordinary:  # it goes where it fits, or stays
                index = next((index for index, (_, wanted) in enumerate(takers) if wanted >= size), None)
                if index is None or excess < size:
                    continue
            else:
                while takers and takers[0][1] < size / 2:
                    takers = _carried(takers)
                if not takers or excess < size / 2:
                    break
                index = 0
            name, wanted = takers[index]
            self._give(giver, name, number)
            excess -= size
            takers[index] = (name, wanted - size)
        return takers

    def _give(self, giver: str, taker: str, number: int) -> None:
        del self._slots[giver][number]
        self._load[giver] = self._load[giver] - self._bytes[number] if self._slots[giver] else 0.0
        self._load[taker] += self._bytes[number]
        self.moved.setdefault((giver, taker), []).append(number)

    def _emptiest(self) -> str:
        return min(self._stay, key=lambda name: self._load[name])


def _first(those: list[tuple[str, float]], most: float) -> list[tuple[str, float]]:
    """The first of them, as far as it goes."""
    found = []
    for name, amount in those:
        if most <= 0.0:
            break
        found.append((name, min(amount, most)))
        most -= amount
    return found


def _carried(takers: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Those after the first one; what it got too much or too little, the next one gets less or more."""
    (_, rest), *others = takers
    return [(name, wanted + rest * (not index)) for index, (name, wanted) in enumerate(others)]


def _sum(those: list[tuple[str, float]]) -> float:
    return sum(amount for _, amount in those)


def _numbers(slots: Iterable[SlotRange]) -> list[int]:
    return sorted(number for first, last in slots for number in range(first, last + 1))
