"""How many groups of consumers a stream has, by its DUMP. Pure.

A source tells nothing of what happens to groups. So those streams are copied again at each sync that had groups when
they were copied, or have some then; most have none, and these may be large.

The form is that of an RDB file: lengths of one to nine bytes, texts with their length before them, some compressed.
"""

# The first byte of a DUMP of a stream, and how many numbers are between its entries and the number of its groups.
NUMBERS = {
    15: 3,  # RDB_TYPE_STREAM_LISTPACKS: length, last id
    19: 8,  # ..._2 (7.0): first id, greatest deleted id, entries added
    21: 8,  # ..._3 (7.2)
}

_NUMBER = {0xC0: 1, 0xC1: 2, 0xC2: 4}  # bytes of a text that is a number
_COMPRESSED = 0xC3


def groups(frame: bytes, at: int) -> int | None:
    """Of the DUMP that begins at this position of a frame; None: it is no stream of a form that is known here."""
    numbers = NUMBERS.get(frame[at])
    if numbers is None:
        return None
    try:
        nodes, at = _length(frame, at + 1)
        for _ in range(2 * nodes):
            at = _past_text(frame, at)
        for _ in range(numbers):
            _, at = _length(frame, at)
        return _length(frame, at)[0]
    except IndexError:
        return None


def _length(frame: bytes, at: int) -> tuple[int, int]:
    """The length that begins here, and where it ends."""
    first = frame[at]
    kind = first >> 6
    if kind == 0:
        return first, at + 1
    if kind == 1:
        return (first & 0x3F) << 8 | frame[at + 1], at + 2
    size = {0x80: 4, 0x81: 8}.get(first)
    if size is None:
        raise IndexError("no length")
    return int.from_bytes(frame[at + 1 : at + 1 + size]), at + 1 + size


def _past_text(frame: bytes, at: int) -> int:
    first = frame[at]
    if first in _NUMBER:
        return at + 1 + _NUMBER[first]
    if first == _COMPRESSED:
        size, at = _length(frame, at + 1)
        _, at = _length(frame, at)
        return at + size
    size, at = _length(frame, at)
    return at + size
