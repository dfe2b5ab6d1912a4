"""The limits of a server, so that nothing is sent on a shared connection that the server would answer by closing it.

The reply to CONFIG GET comes in, what may be sent goes out. A server that refuses CONFIG, as those of ElastiCache do,
is taken for one with the limits of Redis. Pure.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from protocol.reply import BadFrame, Value, decode

LIMIT_QUERIES = ([b"CONFIG", b"GET", b"[pcm]*-*l*"], [b"CONFIG", b"GET", b"timeout"])
"""The first asks for proto-max-bulk-len, client-query-buffer-limit, client-output-buffer-limit and maxmemory-clients at
once. No setting of a password has a name like these."""

NO_EVICT = [b"CLIENT", b"NO-EVICT", b"on"]
"""Sent where the server closes the clients that take most memory. It needs the right to administer."""

MIB = 1 << 20
BULK, QUERY_BUFFER = 512 * MIB, 1024 * MIB  # Redis' defaults
HEADROOM = 65_536
"""Bytes of other requests in the same buffer of the server, and of a request beside its arguments."""

MIN_LIMIT = MIB - HEADROOM
"""Every server takes a request of so many bytes, as no limit can be set lower."""


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """`argument` and `block`: bytes of one argument, and of a transaction with its MULTI and EXEC.

    `idle_s`: the server closes a connection after this time without a request; 0: never. `evicts`: it closes the
    clients that take most memory. `risks`: settings by which it may close a shared connection, whatever is done here.
    """

    argument: int = BULK
    block: int = QUERY_BUFFER - HEADROOM
    idle_s: int = 0
    evicts: bool = False
    risks: tuple[tuple[str, str], ...] = ()

    def with_reply(self, frame: bytes) -> "ServerLimits":
        """These limits, with those in the reply to one of LIMIT_QUERIES."""
        settings = _settings(frame)
        buffer = _integer(settings.get("client-query-buffer-limit")) or QUERY_BUFFER
        bulk = _integer(settings.get("proto-max-bulk-len")) or BULK
        output, clients = settings.get("client-output-buffer-limit", ""), settings.get("maxmemory-clients", "0")
        normal = output.partition("normal ")[2].split(" ")[:3]
        risky = normal[:2] not in ([], [""], ["0", "0"])
        risks = (("client-output-buffer-limit", " ".join(["normal", *normal])),) if risky else ()
        return ServerLimits(
            max(MIN_LIMIT, min(self.argument, bulk, buffer - HEADROOM)),
            max(MIN_LIMIT, min(self.block, buffer - HEADROOM)),
            _integer(settings.get("timeout")) or self.idle_s,
            self.evicts or clients not in ("", "0"),
            self.risks + risks,
        )

    def with_eviction_risk(self, error: bytes) -> "ServerLimits":
        """These limits, after NO_EVICT was answered with an error."""
        what = error[1:].split(b"\r\n", 1)[0][:100].decode("utf-8", "replace")
        return replace(self, risks=(*self.risks, ("maxmemory-clients", f"CLIENT NO-EVICT was answered with {what}")))


def _settings(frame: bytes) -> dict[str, str]:
    """Name -> value. Empty for any other reply."""
    try:
        reply: Value = decode(frame)
    except BadFrame:
        return {}
    if isinstance(reply, list):
        pairs: Iterable[tuple[Value, Value]] = zip(reply[::2], reply[1::2], strict=False)
    else:
        pairs = reply.items() if isinstance(reply, dict) else ()
    return {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in pairs
        if isinstance(name, bytes) and isinstance(value, bytes)
    }


def _integer(text: str | None) -> int:
    """A number of at most 64 bits; 0 for anything else."""
    return int(text) if text is not None and len(text) < 20 and text.isascii() and text.isdigit() else 0
