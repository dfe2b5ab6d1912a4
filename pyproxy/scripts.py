"""The texts of scripts that clients have loaded, by their digest: bounded, the least recently used go first.

The parent has one store, and each worker has its own: what a worker learns it tells the parent, which tells all. A
text that is not here any more is as good as one that Redis has flushed: its EVALSHA is answered -NOSCRIPT, and the
client loads it again. So nothing depends on a message that is lost.

A flush empties all stores. They are numbered, as a worker may learn a text before it hears of a flush: what was
loaded before is forgotten everywhere.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

OVERHEAD = 200  # bytes that a text costs beside its own: its digest, its place in the order

LARGEST = 8
"""A text that is larger than this part of the store is not kept, so one cannot drive all others out."""


def digest_of(text: bytes) -> bytes:
    """As SCRIPT LOAD answers it."""
    return hashlib.sha1(text, usedforsecurity=False).hexdigest().encode()


class Scripts:
    """Texts by their digests, of at most `limit_bytes` together; `flushes`: how often they were all forgotten."""

    def __init__(self, limit_bytes: int) -> None:
        self.flushes = 0
        self._limit = limit_bytes
        self._bytes = 0
        self._texts: OrderedDict[bytes, bytes] = OrderedDict()  # the one that was used last is at the end

    def learn(self, text: bytes) -> bool:
        """Keep a text -> whether it is new here, and small enough."""
        digest, size = digest_of(text), len(text) + OVERHEAD
        if digest in self._texts:
            self._texts.move_to_end(digest)
            return False
        if size > self._limit // LARGEST:
            return False
        self._texts[digest] = text
        self._bytes += size
        while self._bytes > self._limit:
            _, oldest = self._texts.popitem(last=False)
            self._bytes -= len(oldest) + OVERHEAD
        return True

    def text(self, digest: bytes) -> bytes | None:
        """The text of this digest, in any case; it counts as used."""
        digest = digest.lower()
        if digest in self._texts:
            self._texts.move_to_end(digest)
        return self._texts.get(digest)

    def __contains__(self, digest: bytes) -> bool:
        return digest.lower() in self._texts

    @property
    def texts(self) -> list[bytes]:
        """All of them, the least recently used first."""
        return list(self._texts.values())

    def flush(self) -> None:
        """Forget all."""
        self.flushes += 1
        self._texts.clear()
        self._bytes = 0

    def take(self, flushes: int, texts: Sequence[bytes]) -> None:
        """What another store knows: after an older flush than the last one here it counts for nothing."""
        if flushes > self.flushes:
            self.flush()
            self.flushes = flushes
        if flushes == self.flushes:
            for text in texts:
                self.learn(text)

    def __repr__(self) -> str:
        return f"<Scripts {len(self._texts)} of {self._bytes} bytes, flushed {self.flushes} times>"
