"""What the mover asks a server about itself."""

import re
from collections.abc import Mapping

from protocol.reply import BadFrame, Error, fields, listed
from pyproxy.mover.connection import Connection, Lost, refusal

_FIELD = re.compile(r"^([a-zA-Z0-9_|-]+):(.*?)\r?$", re.MULTILINE)
_DATABASE = re.compile(r"db(\d{1,9})")


async def info(connection: Connection, *sections: bytes) -> dict[str, str]:
    """The fields of these sections of INFO. Raises Lost, also where it is refused."""
    found: dict[str, str] = {}
    for answer in await connection.ask(*((b"INFO", section) for section in sections)):  # several at once since 7.0 only
        if isinstance(answer, Error) or not isinstance(answer, bytes):
            why = refusal(b"INFO", answer) if isinstance(answer, Error) else "answered INFO with no text"
            raise Lost(f"{connection.node}: {why}")
        found.update(_FIELD.findall(answer.decode(errors="replace")))
    return found


def databases(said: Mapping[str, str]) -> dict[int, int]:
    """The databases that have keys, of INFO keyspace, with the number of their keys."""
    found = {}
    for name, text in said.items():
        database, keys = _DATABASE.fullmatch(name), re.search(r"keys=(\d{1,18})", text)
        if database and keys:
            found[int(database[1])] = int(keys[1])
    return found


def number(said: Mapping[str, str], name: str) -> int:
    """A field of INFO; 0 where it is missing or no number."""
    text = said.get(name, "")
    return int(text) if text.isdecimal() and len(text) <= 18 else 0


def calls(said: Mapping[str, str], command: str) -> int:
    """How often a command was called, of INFO commandstats."""
    found = re.match(r"calls=(\d{1,18})", said.get(f"cmdstat_{command}", ""))
    return int(found[1]) if found else 0


def version(said: Mapping[str, str]) -> tuple[int, ...]:
    """Of INFO server, as far as it is numbers; a Valkey says here which Redis it is like."""
    return tuple(int(part) for part in re.findall(r"\d{1,9}", said.get("redis_version", "")))


def online_replicas(said: Mapping[str, str]) -> int:
    """Of INFO replication: replicas that have all data and follow."""
    return sum("state=online" in text for name, text in said.items() if re.fullmatch(r"slave\d+", name))


async def functions(connection: Connection) -> dict[bytes, bytes]:
    """The code of each library of functions; none where the server knows no functions (before 7.0)."""
    (answer,) = await connection.ask((b"FUNCTION", b"LIST", b"WITHCODE"))
    if isinstance(answer, Error):
        if answer.line.lower().startswith(b"err unknown"):
            return {}
        raise Lost(f"{connection.node}: {refusal(b'FUNCTION LIST', answer)}")
    found: dict[bytes, bytes] = {}
    try:
        for library in map(fields, listed(answer)):
            name, code = library.get(b"library_name"), library.get(b"library_code")
            if isinstance(name, bytes) and isinstance(code, bytes):
                found[name] = code
    except BadFrame:
        raise Lost(f"{connection.node}: answered FUNCTION LIST with what is no reply to it") from None
    return found
