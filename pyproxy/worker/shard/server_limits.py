"""What a server limits, so that nothing is sent on a shared connection that it would answer by closing it.

The reply to CONFIG GET comes in, what may be sent goes out. A server that refuses CONFIG, as those of ElastiCache do,
is taken for one with the limits of Redis.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from protocol.reply import BadFrame, Value, decode

QUESTIONS = ([b"CONFIG", b"GET", b"[pcm]*-*l*"], [b"CONFIG", b"GET", b"timeout"])
"""proto-max-bulk-len, client-query-buffer-limit, client-output-buffer-limit and maxmemory-clients in one; no password
has a name like these."""

STAY = [b"CLIENT", b"NO-EVICT", b"on"]
"""Where a server closes those of its clients that take most memory; it needs the right to administer."""

MIB = 1 << 20
BULK, QUERY_BUFFER = 512 * MIB, 1024 * MIB  # Redis' defaults
ROOM = 65_536
"""What a server has of other requests in the same buffer, and what a request costs it beside its arguments."""

LEAST = MIB - ROOM
"""A request of so many bytes is taken by every server: no limit can be set lower."""


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """`argument` and `block`: bytes of one argument, and of a transaction with its MULTI and EXEC.

    `idle_s`: after so long without a request it closes a connection; 0: never. `evicts`: it closes those that take most
    memory. `risks`: settings by which it may close connections that many clients share, whatever is done here.
    """

    argument: int = BULK
    block: int = QUERY_BUFFER - ROOM
    idle_s: int = 0
    evicts: bool = False
    risks: tuple[tuple[str, str], ...] = ()

    def heard(self, frame: bytes) -> "ServerLimits":
        """With what is in the reply to one of QUESTIONS."""
        said = _settings(frame)
        buffer = _integer(said.get("client-query-buffer-limit")) or QUERY_BUFFER
        bulk = _integer(said.get("proto-max-bulk-len")) or BULK
        output, clients = said.get("client-output-buffer-limit", ""), said.get("maxmemory-clients", "0")
        normal = output.partition("normal ")[2].split(" ")[:3]
        risky = normal[:2] not in ([], [""], ["0", "0"])
        risks = (("client-output-buffer-limit", " ".join(["normal", *normal])),) if risky else ()
        return ServerLimits(
            max(LEAST, min(self.argument, bulk, buffer - ROOM)),
            max(LEAST, min(self.block, buffer - ROOM)),
            _integer(said.get("timeout")) or self.idle_s,
            self.evicts or clients not in ("", "0"),
            self.risks + risks,
        )

    def may_be_evicted(self, said: bytes) -> "ServerLimits":
        """It has answered STAY with an error."""
        what = said[1:].split(b"\r\n", 1)[0][:100].decode("utf-8", "replace")
        return replace(self, risks=(*self.risks, ("maxmemory-clients", f"CLIENT NO-EVICT was answered with {what}")))


def _settings(frame: bytes) -> dict[str, str]:
    """Name -> value; none where the server did not say."""
    try:
        said: Value = decode(frame)
    except BadFrame:
        return {}
    if isinstance(said, list):
        pairs: Iterable[tuple[Value, Value]] = zip(said[::2], said[1::2], strict=False)
    else:
        pairs = said.items() if isinstance(said, dict) else ()
    return {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in pairs
        if isinstance(name, bytes) and isinstance(value, bytes)
    }


def _integer(text: str | None) -> int:
    """A number of at most 64 bits; 0 for anything else."""
    return int(text) if text is not None and len(text) < 20 and text.isascii() and text.isdigit() else 0
