"""The first requests on a connection to a server, and whether its replies are right.

AUTH comes first and alone, until a password is accepted. Then HELLO, SELECT and an ECHO of random bytes are sent in one
go: a server that does not answer that is no Redis, or answers another connection. On a connection that clients share
the server is asked for its limits before the ECHO. It may refuse to tell them.
"""

import os

from protocol import request
from pyproxy.access import Refused, admitted
from pyproxy.worker.shard.server_limits import LIMIT_QUERIES, NO_EVICT, ServerLimits


class Handshake:
    """`auths`: the AUTH commands to try. `limits`: of the server, as it has told them so far."""

    def __init__(self, proto: int, db: int, auths: list[list[bytes]], asks_limits: bool) -> None:
        nonce = os.urandom(8).hex().encode()
        self.limits = ServerLimits()
        requests = [([b"ECHO", nonce], b"$16\r\n" + nonce)]
        if asks_limits:
            requests[:0] = [(query, b"") for query in LIMIT_QUERIES]
        if db:
            requests.insert(0, ([b"SELECT", b"%d" % db], b"+OK"))
        if proto == 3:
            requests.insert(0, ([b"HELLO", b"3"], b"%"))
        self._auths = list(auths)
        self._admitted = not auths
        self._after_auth = b"".join(request.encode(argv) for argv, _ in requests)
        self._expected = [(argv[0].decode(), start) for argv, start in requests]

    @property
    def is_done(self) -> bool:
        return not self._expected

    def next_bytes(self) -> bytes:
        """What to send first, and after a refused AUTH."""
        return self._after_auth if self._admitted else request.encode(self._auths.pop(0))

    def on_reply(self, frame: bytes) -> bytes:
        """Take the next reply -> what to send then; may be empty. Raises Refused for a reply that is not right."""
        if not self._admitted:
            # no reply but +OK is ever shown: it may repeat the password
            error = b"" if frame == b"+OK\r\n" else frame[1:].split(b"\r\n", 1)[0] or b"?"
            self._admitted = admitted(error, self._auths)
            return self.next_bytes()
        name, start = self._expected.pop(0)
        if name == "CONFIG":
            evicted, self.limits = self.limits.evicts, self.limits.with_reply(frame)
            if self.limits.evicts and not evicted:
                self._expected.append((NO_EVICT[0].decode(), b""))
                return request.encode(NO_EVICT)
        elif name == "CLIENT" and frame.startswith(b"-"):
            self.limits = self.limits.with_eviction_risk(frame)
        if frame.startswith(start):
            return b""
        if frame.startswith(b"-NOAUTH"):
            raise Refused("asks for a password, and backend.password_file names none")
        reply = frame.split(b"\r\n", 1)[0][:100].decode("utf-8", "replace")
        raise Refused(f"answered {name} with {reply}")
