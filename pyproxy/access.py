"""How the proxy gets access to a server: the TLS of a connection, and the AUTH that is sent first on it.

The `[backend]` table of the configuration comes in; a TLS context and AUTH commands go out, or Refused with a reason
that may be shown to anybody. Used by the workers and by the parent, each of which reads the files itself: a password
is never in the configuration, a message between processes, an error, a log line or a repr.

The file of passwords is read again for each connection, so a rotation needs no restart.
"""

import os
import ssl
import stat
from collections.abc import Sequence

from pyproxy.config import BackendAccess

PASSWORD_BYTES = 16_384
"""Of one password: more is no AUTH to a server (networking.c, the longest bulk before a client has authenticated)."""

# Answered before or instead of AUTH; only the code is ever shown: a server without AUTH repeats what it was sent.
KNOWN_CODES = (b"DENIED", b"ERR", b"LOADING", b"NOPERM")


class Refused(ConnectionError):
    """The server does not let us in, or we have nothing to get in with; `str` is the reason."""


class Access:
    """What `[backend]` says, ready to be used for each new connection."""

    def __init__(self, backend: BackendAccess) -> None:
        self._backend = backend
        self._context: ssl.SSLContext | None = None

    def tls(self) -> ssl.SSLContext | None:
        """The context of a connection, which verifies certificate and name; None: no TLS. Raises Refused."""
        if self._backend.tls and self._context is None:
            self._context = _context(self._backend.tls_ca)
        return self._context

    def auths(self) -> list[list[bytes]]:
        """The AUTH commands to try, in their order; none where there is no password. Raises Refused."""
        if not self._backend.password_file:
            return []
        who = [self._backend.username.encode()] if self._backend.username else []
        return [[b"AUTH", *who, password] for password in _passwords(self._backend.password_file)]

    def problems(self) -> list[str]:
        """What is wrong with the files that `[backend]` names, a line for each."""
        found = []
        for use in (self.tls, self.auths):
            try:
                use()
            except Refused as exc:
                found.append(str(exc))
        return found

    def __repr__(self) -> str:
        return f"<Access {'tls' if self._backend.tls else 'plain'} password_file={self._backend.password_file!r}>"


def admitted(error: bytes, left: Sequence[object]) -> bool:
    """Whether an AUTH was accepted; False: try the next of those that are `left`. Raises Refused.

    `error` is the error line without its `-`, empty for +OK. Before Redis 6 a wrong password is -ERR invalid password.
    """
    if not error:
        return True
    if error.startswith((b"WRONGPASS", b"ERR invalid password")):
        if left:
            return False
        raise Refused("refused the password of backend.password_file (WRONGPASS)")
    if b"without any password configured" in error or b"no password is set" in error:  # the latter before Redis 6
        raise Refused("asks for no password, and backend.password_file has one")
    code = error.split(b" ", 1)[0]
    raise Refused(f"did not accept AUTH ({code.decode() if code in KNOWN_CODES else 'an answer that is none to it'})")


def why(exc: OSError) -> str:
    """What went wrong with a connection, in the system's words: `connection refused`. Never empty.

    asyncio wraps them in its own ("Connect call failed ..."), hence by errno; that of getaddrinfo is negative, and
    that of TLS is OpenSSL's, so both are left to their texts.
    """
    if isinstance(exc, Refused):
        return str(exc)
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"tls: certificate not accepted: {_lower_first(exc.verify_message.rstrip('.'))}"
    if isinstance(exc, ssl.SSLError):
        return f"tls: {(exc.reason or str(exc)).replace('_', ' ').lower()}"
    if exc.errno and exc.errno > 0:
        return os.strerror(exc.errno).lower()
    return (exc.strerror or str(exc) or "closed the connection").lower()


def _context(ca: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca or None)
    except ssl.SSLError:
        raise Refused("backend.tls_ca: expected certificates in PEM, got something else") from None
    except OSError as exc:
        raise Refused(f"backend.tls_ca: expected a readable file, got {why(exc)}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _passwords(path: str) -> list[bytes]:
    try:
        with open(path, "rb", opener=_never_waiting) as file:
            _check_owner(os.fstat(file.fileno()))
            content = file.read(2 * PASSWORD_BYTES + 8)
    except Refused:
        raise
    except OSError as exc:
        raise Refused(f"backend.password_file: expected a readable file, got {why(exc)}") from None
    lines = [line.removesuffix(b"\r") for line in content.rstrip(b"\r\n").split(b"\n")]
    if not content or not all(lines) or len(lines) > 2:
        got = f"{len(lines)} lines" if all(lines) else "an empty line"
        raise Refused(f"backend.password_file: expected one password, or two on two lines, got {got}")
    if max(map(len, lines)) > PASSWORD_BYTES:
        raise Refused(f"backend.password_file: expected at most {PASSWORD_BYTES} bytes a line, got more")
    return lines


def _never_waiting(path: str, flags: int) -> int:
    """A pipe would keep us waiting for its other end."""
    return os.open(path, flags | os.O_NONBLOCK)


def _check_owner(file: os.stat_result) -> None:
    if not stat.S_ISREG(file.st_mode):
        raise Refused("backend.password_file: expected a regular file, got something else")
    me, owner = os.geteuid(), file.st_uid
    if owner not in (0, me):
        raise Refused(f"backend.password_file: expected a file of user {me} or root, got one of {owner}")
    if file.st_mode & 0o077:
        mode = stat.S_IMODE(file.st_mode)
        raise Refused(f"backend.password_file: expected a file for its owner only (chmod 600), got mode {mode:03o}")


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
