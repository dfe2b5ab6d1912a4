"""The replies that may differ between the proxy and one plain server, in what, and why.

Two whole reply frames that are not the same bytes come in, with the command that was asked; out comes whether they are
what two servers may say. A command that is not in `ALLOWED` gets no leniency, and an error line never does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from protocol import scan
from protocol.reply import decode
from protocol.table import TABLE

Argv = Sequence[bytes]
Same = Callable[[Argv, bytes, bytes], bool]

AGGREGATES = b"*~%>"
CLOCK_S = 60  # how far apart two clock readings may be: more than any test takes, far less than deadlines here differ
CLOCK_MS = CLOCK_S * 1000
SINCE_2001_MS = 10**12  # an integer beyond it is a point in time; nothing else here counts so far


# --- frames in pieces -------------------------------------------------------------------------------------------------


def children(frame: bytes) -> list[bytes]:
    """The frames inside an array, set, push or map (its keys and values in turn)."""
    header, _, body = frame.partition(b"\r\n")
    count = int(header[1:]) * (2 if header[:1] == b"%" else 1)
    return scan.elements(b"*%d\r\n%b" % (count, body), True)


def flat(frame: bytes) -> list[bytes]:
    """All there is in a frame, in order: of an aggregate its header, then what is in it; else the frame as it is."""
    if frame[:1] not in AGGREGATES or is_null(frame):
        return [frame]
    return [header(frame), *(leaf for child in children(frame) for leaf in flat(child))]


def header(frame: bytes) -> bytes:
    return frame.partition(b"\r\n")[0]


def is_null(frame: bytes) -> bool:
    return frame in (b"$-1\r\n", b"*-1\r\n", b"_\r\n")


def are_close(ours: bytes, theirs: bytes, tolerance: int) -> bool:
    """Whether both are integers and not far apart; negative ones (no key, no deadline) must be the same."""
    if ours == theirs:
        return True
    if not (ours[:1] == theirs[:1] == b":"):
        return False
    one, other = int(ours[1:]), int(theirs[1:])
    return min(one, other) >= 0 and abs(one - other) <= tolerance


# --- ways to be the same ----------------------------------------------------------------------------------------------


def unordered(argv: Argv, ours: bytes, theirs: bytes) -> bool:
    """The same elements, each as often, in any order."""
    return header(ours) == header(theirs) and Counter(children(ours)) == Counter(children(theirs))


def jumbled(argv: Argv, ours: bytes, theirs: bytes) -> bool:
    """The same in all depths, each as often, in any order."""
    return Counter(flat(ours)) == Counter(flat(theirs))


def unordered_pairs(argv: Argv, ours: bytes, theirs: bytes) -> bool:
    """The same pairs, each as often, in any order: of a map, a flat array, or an array of arrays of two."""
    return header(ours) == header(theirs) and Counter(_pairs(ours)) == Counter(_pairs(theirs))


def _pairs(frame: bytes) -> list[bytes]:
    found = children(frame)
    if found and found[0][:1] == b"*":
        return found
    return [name + value for name, value in zip(found[::2], found[1::2], strict=True)]


def scanned(argv: Argv, ours: bytes, theirs: bytes) -> bool:
    """The same cursor, and the same elements in any order; a scan may give one twice while a table grows."""
    one, other = children(ours), children(theirs)
    worker = argv[0].lower() == b"sscan" or b"NOVALUES" in argv
    read = children if worker else _pairs
    return header(ours) == header(theirs) and one[0] == other[0] and set(read(one[1])) == set(read(other[1]))


def paged(argv: Argv, ours: bytes, theirs: bytes) -> bool:
    """A cursor and some elements; none that is not there, where the other gives all."""
    one, other = children(ours), children(theirs)
    alike = [frame[:1] for frame in one] == [frame[:1] for frame in other] == [b"$", b"*"]
    return alike and (decode(other[0]) != b"0" or set(children(one[1])) <= set(children(other[1])))


def titled(argv: Argv, ours: bytes, theirs: bytes) -> bool:
    """Lines of text of which the first is the same."""
    one, other = children(ours), children(theirs)
    return one[0] == other[0] and {line[:1] for line in one} == {line[:1] for line in other} == {b"+"}


def same_kind(argv: Argv, ours: bytes, theirs: bytes) -> bool:
    """Whatever is in them."""
    return ours[:1] == theirs[:1]


def drawn(argv: Argv, ours: bytes, theirs: bytes) -> bool:
    """All of it, in any order, where all was asked for (a count beyond any size here); else of the same shape."""
    if len(argv) > 2 and int(argv[2]) >= 1000:
        return unordered_pairs(argv, ours, theirs) if len(argv) > 3 else unordered(argv, ours, theirs)
    return shaped(argv, ours, theirs)


def shaped(argv: Argv, ours: bytes, theirs: bytes) -> bool:
    """As many elements of the same types; what they say may differ, but not that there is something."""
    one, other = flat(ours), flat(theirs)
    return len(one) == len(other) and all(_shape(a) == _shape(b) for a, b in zip(one, other, strict=True))


def _shape(leaf: bytes) -> bytes:
    return leaf if leaf[:1] in AGGREGATES or is_null(leaf) else leaf[:1]


def close(tolerance: int) -> Same:
    """The same, but for integers a little apart."""

    def same(argv: Argv, ours: bytes, theirs: bytes) -> bool:
        one, other = flat(ours), flat(theirs)
        return len(one) == len(other) and all(are_close(a, b, tolerance) for a, b in zip(one, other, strict=True))

    return same


_DURATIONS = (b"$4\r\nidle\r\n", b"$8\r\ninactive\r\n")


def timed(argv: Argv, ours: bytes, theirs: bytes) -> bool:
    """The same, but for points in time, and for the durations that stand behind their names."""
    one, other = [b"", *flat(ours)], [b"", *flat(theirs)]
    if len(one) != len(other):
        return False
    for (name, a), (_, b) in zip(pairwise(one), pairwise(other), strict=True):
        is_time = name in _DURATIONS or (a[:1] == b[:1] == b":" and min(int(a[1:]), int(b[1:])) > SINCE_2001_MS)
        if a != b and not (is_time and are_close(a, b, CLOCK_MS)):
            return False
    return True


def pending(argv: Argv, ours: bytes, theirs: bytes) -> bool:
    """Entries of [id, consumer, milliseconds since it was delivered, deliveries]."""
    one, other = children(ours), children(theirs)
    if len(argv) == 3 or len(one) != len(other):
        return False
    return all(_pending_entry(children(a), children(b)) for a, b in zip(one, other, strict=True))


def _pending_entry(one: list[bytes], other: list[bytes]) -> bool:
    return (one[:2], one[3:]) == (other[:2], other[3:]) and are_close(one[2], other[2], CLOCK_MS)


# rdb.h: 0 string, 18 list, 5 and 17 sorted set: types without an order of their own in memory and without times.
_ONE_FORM = (0, 18, 5, 17)


def dumped(argv: Argv, ours: bytes, theirs: bytes) -> bool:
    """The same RDB type; only of sets, hashes and streams may the rest differ."""
    one, other = decode(ours), decode(theirs)
    if not isinstance(one, bytes) or not isinstance(other, bytes):
        return False
    return one[0] == other[0] and one[0] not in _ONE_FORM


def greeted(argv: Argv, ours: bytes, theirs: bytes) -> bool:
    """HELLO: the same kind of frame, and the same protocol said."""
    return ours[:1] == theirs[:1] and _field(ours, b"proto") == _field(theirs, b"proto")


def _field(frame: bytes, name: bytes) -> bytes:
    found = children(frame)
    return found[found.index(b"$%d\r\n%b\r\n" % (len(name), name)) + 1]


# --- the list ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Allowance:
    """How two replies may differ, and why they do."""

    reason: str
    same: Same


def _each(names: str, reason: str, same: Same) -> dict[bytes, Allowance]:
    return {name.encode(): Allowance(reason, same) for name in names.split()}


_SEEDED = "a hash table is walked in the order of its seed, which each process draws"
_CLOCK = "time goes on between the two servers' answers"
_HELPS = " ".join(f"{name.decode()}|help" for name, command in TABLE.items() if b"help" in command.subcommands)
_OWN = "the proxy speaks of itself: of its clients, its shards, its version"

ALLOWED: dict[bytes, Allowance] = {
    **_each("smembers sinter sunion sdiff hkeys hvals", _SEEDED, unordered),
    **_each("hgetall config|get", _SEEDED, unordered_pairs),
    **_each("hscan sscan zscan", _SEEDED, scanned),
    **_each("keys", "shard by shard here, and each in the order of its own hash table", unordered),
    **_each("spop", "all members, in the order in which they were drawn", unordered),
    **_each("srandmember hrandfield zrandmember", "drawn by chance", drawn),
    **_each("ttl httl expiretime hexpiretime object|idletime", _CLOCK, close(CLOCK_S)),
    **_each("pttl hpttl pexpiretime hpexpiretime", _CLOCK, close(CLOCK_MS)),
    **_each("xinfo|stream xinfo|consumers", "says when consumers were seen and entries delivered", timed),
    **_each("xpending", "says for how long an entry is pending", pending),
    **_each("time", _CLOCK, shaped),
    **_each("dump", "sets and hashes are written in a hash table's order, streams with times of deliveries", dumped),
    **_each("memory|usage", "counts the allocator's blocks and samples a hash table", shaped),
    **_each("hello", "names the server, its version and the connection's number", greeted),
    **_each("scan", "one shard after the other, and each in the order of its own hash table", paged),
    **_each("client|id client|info client|list info lolwut memory|doctor", _OWN, shaped),
    **_each("lastsave", "each server says when it was started", close(CLOCK_S)),
    **_each("command command|count command|list", "all that is served here, which is not all that there is", same_kind),
    **_each("command|info command|docs", "as Valkey 9.1 describes it, whatever the servers are", same_kind),
    **_each("function|list", _SEEDED, jumbled),
    **_each(_HELPS, "lines for people: as Valkey 9.1 says them, or of what can be done here", titled),
}


def may_differ(name: bytes, argv: Argv, ours: bytes, theirs: bytes) -> bool:
    """Whether two replies that are not the same bytes count as the same; `name` as in the command table."""
    allowance = ALLOWED.get(name)
    if allowance is None or b"-" in (ours[:1], theirs[:1]):
        return False
    is_list = [frame[:1] in AGGREGATES and not is_null(frame) for frame in (ours, theirs)]
    return is_list[0] == is_list[1] and allowance.same(argv, ours, theirs)
