"""What the tests of commands that wait share: each of them in a form that may be asked of any server."""

from collections.abc import Sequence
from dataclasses import dataclass

from protocol.request import encode
from pyproxy.fleet import Fleet, Server, wait_until
from tests.e2e.rig import PATIENCE_S
from tests.e2e.twin.connection import Connection as Frames


@dataclass(frozen=True)
class Waiter:
    """`wait` with T for its timeout, a and b for its keys; `push` is what it waits for, `left` shows what is left."""

    wait: str
    push: str
    left: str
    before: str = ""

    @property
    def in_ms(self) -> bool:
        return self.wait.startswith("x")

    def words(self, line: str, a: str, b: str, timeout_ms: int = 0) -> list[bytes]:
        timeout = str(timeout_ms) if self.in_ms else str(timeout_ms / 1000)
        names = {"a": a, "b": b, "T": timeout}
        return [names.get(word, word).encode() for word in line.split()]

    def __str__(self) -> str:
        return self.wait.split()[0]


_GROUPS = "xgroup CREATE a g $ MKSTREAM ; xgroup CREATE b g $ MKSTREAM"
WAITERS = [
    Waiter("blpop a b T", "rpush b x y", "lrange b 0 -1"),
    Waiter("brpop a b T", "rpush b x y", "lrange b 0 -1"),
    Waiter("blmpop T 2 a b LEFT COUNT 5", "rpush b x y", "lrange b 0 -1"),
    Waiter("bzpopmin a b T", "zadd b 2.5 x 1 y", "zrange b 0 -1"),
    Waiter("bzpopmax a b T", "zadd b 2.5 x 1 y", "zrange b 0 -1"),
    Waiter("bzmpop T 2 a b MIN", "zadd b 2.5 x 1 y", "zrange b 0 -1"),
    Waiter("xread COUNT 5 BLOCK T STREAMS a b $ $", "xadd b 5-1 f v", "xlen b"),
    Waiter("xreadgroup GROUP g c BLOCK T STREAMS a b > >", "xadd b 5-1 f v", "xpending b g", _GROUPS),
]
"""Those that wait for any of several keys."""

MOVERS = [
    Waiter("blmove a b LEFT RIGHT T", "rpush a x y", "lrange b 0 -1"),
    Waiter("brpoplpush a b T", "rpush a x y", "lrange b 0 -1"),
]
"""And those that wait for one, to move what comes to another."""


def asked(frames: Frames, *argvs: Sequence[bytes]) -> list[bytes]:
    """The reply frames to these requests, sent in one piece."""
    return frames.say([b"".join(encode(argv) for argv in argvs)], len(argvs))


def blocked(server: Server) -> int:
    """How many clients this server knows as blocked."""
    text = server.ask("INFO", "clients")
    assert isinstance(text, bytes)
    return int(text.partition(b"blocked_clients:")[2].split(b"\r\n")[0])


def wait_blocked(server: Server, count: int) -> None:
    """Return once so many wait at this server."""
    wait_until(f"{count} blocked clients", lambda: blocked(server) == count, lambda: str(blocked(server)), PATIENCE_S)


def empty(fleet: Fleet) -> None:
    for shard in fleet.shards:
        shard.primary.ask("FLUSHALL")
