"""What a sample of a primary's keys says: all at home, a few astray, or the endpoint of another shard.  Pure.

Where most of the keys belong elsewhere, two endpoints were swapped, or the data were placed by another rule: nothing of
that shard may be used. A few are there because a client wrote them past the rule (a script that names keys it does not
declare, a write to the server itself): an alarm, as no single key, script or client takes a shard out of service.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from pyproxy.hashing import slot
from pyproxy.shard_map import Shard, ShardMap

LEAST = 3
"""Fewer keys that belong elsewhere prove nothing, even where there are no others."""

SHOWN_BYTES = 100

Place = tuple[int, bytes]
"""A database and a key."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Different keys of one primary."""

    home: int
    foreign: tuple[Place, ...]

    @property
    def is_swapped(self) -> bool:
        """Whether they can hardly be those of this shard."""
        return len(self.foreign) >= LEAST and len(self.foreign) > self.home


def judged(shard: Shard, found: Iterable[Place]) -> Sample:
    """The sample that these keys are; one that was drawn twice counts once."""
    places = dict.fromkeys(found)
    foreign = tuple(place for place in places if not shard.owns(slot(place[1])))
    return Sample(len(places) - len(foreign), foreign)


def described(sample: Sample, shard: Shard, shard_map: ShardMap) -> str:
    """For operators, with one of the keys that belong elsewhere; empty: there are none."""
    if not sample.foreign:
        return ""
    database, key = sample.foreign[0]
    owner = shard_map.shard_of(key)
    return (
        f"shard {shard.name} ({shard.primary}) holds {len(sample.foreign)} keys of other shards among "
        f"{sample.home + len(sample.foreign)} that were sampled, such as {shown(key)} of slot {slot(key)} in database "
        f"{database}, which belongs to shard {owner.name} ({owner.primary})"
    )


def shown(key: bytes) -> str:
    """A key on one line, cut where it is long."""
    return repr(key[:SHOWN_BYTES])[1:] + ("..." if len(key) > SHOWN_BYTES else "")
