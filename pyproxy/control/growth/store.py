"""The store: who owns which slots, and the journal of the moves. Where there is one, it is the truth.

A `Document` is all of it, with a generation that grows with every change. It comes from a `Store` with a revision, and
is saved only in the place of that revision, so that of two who write at the same time one is told (`Conflict`).

The configuration is its first content. From then on the slots of the store count, and the shards that were added to it.
Of a shard that the configuration names too, everything else (its servers, its promoter) is what the configuration says.
"""

import secrets
from collections.abc import Iterable
from typing import Any, Protocol, Self

import msgspec

from pyproxy.config import UNDISCOVERED, Config, ConfigErrors, ShardTable
from pyproxy.config_reading import lower_first
from pyproxy.control.growth.transitions import HANDED_OVER, OVER, Entry
from pyproxy.hashing import SLOTS
from pyproxy.shard_map import Shard, SlotRange, format_slots, join_slots

FORMAT = 1
"""Of the document. Another one is refused, never guessed at."""

KEPT = 100
"""Moves that are over and stay in the journal."""

SHOWN_RANGES = 8


class StoreError(Exception):
    """What is wrong, with the place: `store file:/path: expected ..., got ...`."""


class Conflict(StoreError):
    """Nothing was saved: somebody else has saved something since."""


class NotSaved(StoreError):
    """Nothing was saved, and what was there before will be there after any crash."""


class Unsure(StoreError):
    """It may have been saved. The same document is to be saved again until it is known."""


class Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that is stored. What changes it returns another one, of the next generation."""

    format: int
    id: str  # of this store since its beginning
    generation: int
    shards: tuple[Shard, ...]
    journal: tuple[Entry, ...] = ()

    @property
    def under_way(self) -> list[Entry]:
        return [entry for entry in self.journal if entry.phase not in OVER]

    def shard(self, name: str) -> Shard | None:
        return next((shard for shard in self.shards if shard.name == name), None)

    def with_entry(self, entry: Entry, at: float) -> Self:
        """The journal with this in the place of the entry of the same move; `at`: now, on the wall clock."""
        journal = tuple(_timed(entry, old, at) if old.move.id == entry.move.id else old for old in self.journal)
        return self._next(journal=journal)

    def handed_over(self, entry: Entry, at: float) -> Self:
        """Its slots are the destination's, and the journal says so. StoreError where they are not the source's."""
        move = entry.move
        slots = set(_numbers(move.slots))
        changed = {
            move.source: lambda own: own - slots,
            move.destination: lambda own: own | slots,
        }
        shards = tuple(
            msgspec.structs.replace(shard, slots=tuple(join_slots(sorted(change(set(_numbers(shard.slots)))))))
            if (change := changed.get(shard.name))
            else shard
            for shard in self.shards
        )
        return self._checked(msgspec.structs.replace(self.with_entry(entry, at), shards=shards))

    def with_moves(self, entries: Iterable[Entry], at: float, added: Iterable[Shard] = ()) -> Self:
        """With these moves queued, and these shards, which have no slots yet, added. Raises StoreError."""
        over = [entry for entry in self.journal if entry.phase in OVER]
        kept = tuple(entry for entry in self.journal if entry not in over[:-KEPT])
        journal = (*kept, *(_timed(entry, None, at) for entry in entries))
        shards = (*self.shards, *(msgspec.structs.replace(shard, slots=()) for shard in added))
        return self._checked(self._next(journal=journal, shards=shards))

    def without_known(self, shards: Iterable[Shard]) -> list[Shard]:
        """Those of these shards that are new. Raises StoreError where a server is another shard's, or it moved."""
        new = []
        for shard in shards:
            same = self.shard(shard.name)
            if same is None:
                new.append(shard)
            elif shard.primary not in (same.primary, *same.replicas):
                raise StoreError(f"expected {shard.name} at {same.primary}, where it is, got {shard.primary}")
            others = (each for each in self.shards if each.name != shard.name)
            of = {node: each.name for each in others for node in (each.primary, *each.replicas)}
            for node in (shard.primary, *shard.replicas):
                if node in of:
                    raise StoreError(f"expected servers of its own for {shard.name}, got {node} of {of[node]}")
        return new

    def without_shard(self, name: str) -> Self:
        """Without a shard that has no slots. Raises StoreError."""
        shard = self.shard(name)
        if shard is None:
            raise StoreError(f"expected one of the shards {', '.join(each.name for each in self.shards)}, got {name}")
        if shard.slots:
            raise StoreError(f"expected {name} to have no slots, got {_shown(_numbers(shard.slots))}")
        return self._checked(self._next(shards=tuple(each for each in self.shards if each.name != name)))

    def with_nodes(self, config: Config) -> Self:
        """With the servers as the configuration names them; the same document where they are those already."""
        tables = {table.name: table for table in config.shards if table.primary != UNDISCOVERED}
        shards = tuple(
            msgspec.structs.replace(shard, primary=table.primary, replicas=table.replicas)
            if (table := tables.get(shard.name))
            else shard
            for shard in self.shards
        )
        return self if shards == self.shards else self._next(shards=shards)

    def problems(self) -> list[str]:
        """What cannot be; each as `expected ..., got ...`."""
        return [*_slot_problems(self.shards), *_journal_problems(self)]

    def _checked(self, document: Self) -> Self:
        if problems := document.problems():
            raise StoreError("; ".join(problems))
        return document

    def _next(self, **changes: Any) -> Self:
        return msgspec.structs.replace(self, generation=self.generation + 1, **changes)


class Store(Protocol):
    """Where a document is kept. A revision is given out by the store, and means something only to it."""

    where: str  # as the configuration says it

    async def claim(self) -> None:
        """For as long as this process lives. Raises StoreError where that cannot be."""

    async def load(self) -> tuple[Document, int] | None:
        """The document and its revision; None: there is none, and never was, as far as is known. Raises StoreError."""

    async def save(self, document: Document, revision: int) -> int:
        """In the place of that revision; 0: of nothing -> its own. Raises Conflict, NotSaved, Unsure."""


def seeded(config: Config) -> Document:
    """The first document, of a configuration whose primaries are known."""
    return Document(FORMAT, secrets.token_hex(8), 1, config.shard_map().shards)


def encoded(document: Document) -> bytes:
    return msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"


def decoded(raw: bytes, where: str) -> Document:
    """Raises StoreError, for whatever cannot be used as it is."""
    try:
        found = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
        raise StoreError(f"store {where}: expected JSON, got: {exc}") from None
    number = found.get("format") if isinstance(found, dict) else None
    if number != FORMAT:
        got = "none" if number is None else f"{number!r:.40}"
        newer = ": a newer pyproxy has written it" if isinstance(number, int) and number > FORMAT else ""
        raise StoreError(f"store {where}: expected format {FORMAT}, got {got}{newer}")
    try:
        document = msgspec.convert(found, Document)
    except msgspec.ValidationError as exc:
        raise StoreError(f"store {where}: {lower_first(str(exc))}") from None
    if problems := document.problems():
        raise StoreError("\n".join(f"store {where}: {problem}" for problem in problems))
    return document


def check_seen(found: tuple[Document, int] | None, seen: int, where: str) -> None:
    """Raises StoreError where there was a later generation once than there is now; `seen` 0: none was seen."""
    if not seen:
        return
    expected = f"store {where}: expected generation {seen} or a later one, as it was seen"
    if found is None:
        way_out = "bring the store back; the configuration may not be what the servers have by now"
        raise StoreError(f"{expected}, got no store: {way_out}")
    if found[0].generation < seen:
        raise StoreError(f"{expected}, got {found[0].generation}: an old copy, which may name former owners of slots")


# --- beside the configuration -----------------------------------------------------------------------------------------


def effective(config: Config, document: Document) -> Config:
    """The configuration with the slots of the store, and the shards that were added. Raises ConfigErrors."""
    stored = {shard.name: shard for shard in document.shards}
    tables = [
        msgspec.structs.replace(table, slots=stored[table.name].slots if table.name in stored else ())
        for table in config.shards
    ]
    named = {table.name for table in tables}
    tables += [
        ShardTable(name=shard.name, primary=shard.primary, replicas=shard.replicas, slots=shard.slots)
        for shard in document.shards
        if shard.name not in named
    ]
    try:
        return config.with_shards(tables)
    except ConfigErrors as exc:
        raise ConfigErrors([f"{problem} (with the shards of the store)" for problem in exc.problems]) from None


def differences(config: Config, document: Document) -> list[str]:
    """What the store says and the configuration does not, or the other way round; a line for each."""
    stored = {shard.name: shard for shard in document.shards}
    found = []
    for table in config.shards:
        shard = stored.pop(table.name, None)
        if shard is None:
            found.append(f"shard {table.name}: the store has no such shard; the configuration says {_owns(table)}")
            continue
        if set(_numbers(shard.slots)) != set(_numbers(table.slots)):
            found.append(f"shard {table.name}: the store says {_owns(shard)}; the configuration says {_owns(table)}")
        nodes, named = ({each.primary, *each.replicas} for each in (shard, table))
        if table.primary != UNDISCOVERED and nodes != named:
            found.append(
                f"shard {table.name}: the store says {_servers(shard)}; the configuration says {_servers(table)}"
            )
    for shard in stored.values():
        found.append(f"shard {shard.name}: the store says {_owns(shard)}; the configuration has no such shard")
    return found


def _servers(shard: Shard) -> str:
    return ", ".join(sorted(map(str, (shard.primary, *shard.replicas))))


def _owns(shard: Shard) -> str:
    return f"slots {_shown(_numbers(shard.slots))}" if shard.slots else "no slots"


# --- what cannot be ---------------------------------------------------------------------------------------------------


def _slot_problems(shards: tuple[Shard, ...]) -> list[str]:
    found = []
    owners: dict[int, list[str]] = {number: [] for number in range(SLOTS)}
    names = [shard.name for shard in shards]
    for name in sorted({name for name in names if names.count(name) > 1}):
        found.append(f"expected shards of different names, got {name} {names.count(name)} times")
    for shard in shards:
        for first, last in shard.slots:
            if not 0 <= first <= last < SLOTS:
                found.append(f"expected slots from 0 to {SLOTS - 1}, got {first}-{last} of {shard.name}")
                return found
            for number in range(first, last + 1):
                owners[number].append(shard.name)
    shared: dict[tuple[str, ...], list[int]] = {}
    for number, of in owners.items():
        if len(of) != 1:
            shared.setdefault(tuple(of), []).append(number)
    for names_of, numbers in shared.items():
        got = " and ".join(names_of) or "nobody"
        found.append(f"expected one owner for every slot, got {got} for {_shown(numbers)}")
    return found


def _journal_problems(document: Document) -> list[str]:
    """Of the moves that are under way: their slots are where their phase says, and no two have one of them."""
    found = []
    ids = [entry.move.id for entry in document.journal]
    for name in sorted({name for name in ids if ids.count(name) > 1}):
        found.append(f"expected moves of different ids, got {name} {ids.count(name)} times")
    moved: dict[int, str] = {}
    for entry in document.under_way:
        move = entry.move
        for name in (move.source, move.destination):
            if document.shard(name) is None:
                found.append(f"expected a shard that is there for move {move.id}, got {name}")
        if move.source == move.destination:
            found.append(f"expected two shards for move {move.id}, got {move.source} twice")
        numbers = _numbers(move.slots)
        if not numbers or not all(0 <= number < SLOTS for number in numbers):
            found.append(f"expected slots from 0 to {SLOTS - 1} for move {move.id}, got {_shown(numbers) or 'none'}")
            continue
        owner = document.shard(move.destination if entry.phase in HANDED_OVER else move.source)
        elsewhere = [number for number in numbers if owner is not None and not owner.owns(number)]
        if owner is not None and elsewhere:
            found.append(
                f"expected {owner.name} to own the slots of move {move.id}, which is {entry.phase.value}, got others "
                f"for {_shown(elsewhere)}"
            )
        twice = [number for number in numbers if moved.setdefault(number, move.id) != move.id]
        if twice:
            found.append(
                f"expected slots that no other move has for move {move.id}, got {_shown(twice)} of {moved[twice[0]]}"
            )
    return found


def _numbers(slots: Iterable[SlotRange]) -> list[int]:
    return [number for first, last in slots for number in range(first, last + 1)]


def _shown(numbers: Iterable[int]) -> str:
    ranges = [format_slots(each) for each in join_slots(sorted(numbers))]
    more = f" and {len(ranges) - SHOWN_RANGES} more ranges" if len(ranges) > SHOWN_RANGES else ""
    return ", ".join(ranges[:SHOWN_RANGES]) + more


def _timed(entry: Entry, old: Entry | None, at: float) -> Entry:
    """With the times of the journal, and that of its phase if it is in it now."""
    times = dict(old.times) if old is not None else {}
    if old is None or old.phase is not entry.phase:
        times[entry.phase.value] = at
    return msgspec.structs.replace(entry, times=times)
