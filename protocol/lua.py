"""Whether the text of a script may use keys that its call does not name.

The text is searched for calls of the server, and is not run. The answer is no only if each mention of `redis` (or
`server`) is one of these: the call of a command without keys whose name is written as a constant, or a harmless member.
For a text that hides its calls, that is in another language, or that is longer than `LONGEST`, the answer is yes.
"""

from __future__ import annotations

import re

LONGEST = 16 * 1024
"""The most bytes of a text that is searched. So many take some milliseconds."""

KEYLESS = frozenset({b"echo", b"ping", b"publish", b"spublish", b"time"})
"""Commands without keys whose answer is the same on every shard, as far as a client can tell."""

_HARMLESS = frozenset(
    b"""acl_check_cmd breakpoint debug error_reply log register_function replicate_commands set_repl setresp sha1hex
    status_reply""".split()
)
_CONSTANT = re.compile(rb"(LOG|REPL|REDIS|SERVER|VALKEY)_[A-Z_]+")

# These could give the server's table another name, or run the contents of a string.
_CLEVER = frozenset(
    b"""_G _ENV debug dofile getfenv getmetatable load loadfile loadstring module newproxy package rawget rawset require
    setfenv setmetatable""".split()
)

_STRING = rb"""'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*"|\[(?P<level>=*)\[.*?\](?P=level)\]"""
_TOKEN = re.compile(
    rb"--(?:\[(?P<depth>=*)\[.*?\](?P=depth)\]|[^\r\n]*)|" + _STRING + rb"|(?P<name>[A-Za-z_]\w*)", re.DOTALL
)
_MEMBER = re.compile(rb"\s*\.\s*(\w+)")
_CALLED = re.compile(rb"""\s*\(\s*(?:'(\w+)'|"(\w+)")\s*[,)]""")
_SHEBANG = re.compile(rb"#!lua(?![^\s])[^\n]*(\n|\Z)")


def may_use_keys(text: bytes) -> bool:
    """Whether a script, or a library of functions, may use keys beside those that a call names."""
    if len(text) > LONGEST:
        return True
    position = 0
    if text.startswith(b"#!"):
        shebang = _SHEBANG.match(text)
        if shebang is None:
            return True
        position = shebang.end()
    while (token := _TOKEN.search(text, position)) is not None:
        position = token.end()
        name = token["name"]
        if name in (b"redis", b"server"):
            end = _harmless_until(text, position)
            if end < 0:
                return True
            position = end
        elif name in _CLEVER:
            return True
    return False


def _harmless_until(text: bytes, position: int) -> int:
    """Where a harmless use of the server's table ends; -1 if it may use keys. `position`: behind its name."""
    member = _MEMBER.match(text, position)
    if member is None:
        return -1
    if member[1] in _HARMLESS or _CONSTANT.fullmatch(member[1]):
        return member.end()
    if member[1] not in (b"call", b"pcall"):
        return -1
    called = _CALLED.match(text, member.end())
    if called is None or (called[1] or called[2]).lower() not in KEYLESS:
        return -1
    return called.end()
