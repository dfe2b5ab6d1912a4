"""What servers say when they are asked directly: which keys live where, what each holds, which role it has."""

from __future__ import annotations

import socket
from collections.abc import Sequence

import hiredis

from pyproxy.fleet import HOST, Fleet, FleetError, Server, ask

_NOTHING = object()
PART = 500
"""Commands that are sent at once."""


def place(port: int, fleet: Fleet, wanted: int) -> dict[str, list[str]]:
    """For each shard so many names of keys that live there, as the proxy at `port` sees it, whatever it hashes with."""
    candidates = [f"n{number}" for number in range(wanted * len(fleet.shards) * 4)]
    asks(port, [("SET", name, "x") for name in candidates])
    found = {}
    for shard in fleet.shards:
        there = {str(each) for each in _texts(shard.primary.ask("KEYS", "*"))}
        found[shard.name] = [name for name in candidates if name in there][:wanted]
        if len(found[shard.name]) < wanted:
            raise FleetError(f"expected {wanted} names for {shard.name}, got {len(found[shard.name])}")
    asks(port, [("DEL", name) for name in candidates])
    return found


def asks(port: int, commands: Sequence[Sequence[str | bytes]], encoding: str | None = "utf-8") -> list[object]:
    """The replies to many commands on one connection, in parts: a server does not read on while nobody reads of it.

    `encoding`: of what is in them; None: as bytes.
    """
    reader = hiredis.Reader(encoding=encoding, notEnoughData=_NOTHING)
    replies: list[object] = []
    with socket.create_connection((HOST, port), timeout=60) as connection:
        for begin in range(0, len(commands), PART):
            part = commands[begin : begin + PART]
            connection.sendall(b"".join(hiredis.pack_command(tuple(each)) for each in part))  # type: ignore[arg-type]
            while len(replies) < begin + len(part):
                data = connection.recv(1 << 18)
                if not data:
                    raise ConnectionError(f"{HOST}:{port} closed the connection")
                reader.feed(data)
                while (reply := reader.gets()) is not _NOTHING:
                    replies.append(reply)
    return replies


def dump(port: int, pattern: str = "*") -> dict[str, str | list[str]]:
    """Strings and lists of a server, whose names are like this."""
    (keys,) = asks(port, [("KEYS", pattern)])
    names = _texts(keys)
    if not names:
        return {}
    held: dict[str, str | list[str]] = {}
    types = asks(port, [("TYPE", name) for name in names])
    kinds = zip(names, types, strict=True)
    reads = [("LRANGE", name, "0", "-1") if kind == "list" else ("GET", name) for name, kind in kinds]
    for name, value in zip(names, asks(port, reads), strict=True):
        if isinstance(value, list):
            held[name] = [str(each) for each in value]
        elif value is not None:
            held[name] = str(value)
    return held


def role_of(server: Server) -> str:
    """master, slave, or why it does not say."""
    try:
        role = ask(server.port, "ROLE", timeout=0.5)
    except (OSError, hiredis.ReplyError) as error:
        return type(error).__name__
    assert isinstance(role, list)
    return str(role[0], "ascii")


def info(server: Server, section: str) -> bytes:
    """What it says; nothing if it does not."""
    try:
        said = ask(server.port, "INFO", section, timeout=1.0)
    except (OSError, hiredis.ReplyError):
        return b""
    assert isinstance(said, bytes)
    return said


def fields(said: bytes) -> dict[str, str]:
    return dict(line.split(":", 1) for line in said.decode().splitlines() if ":" in line)


def _texts(reply: object) -> list[str]:
    assert isinstance(reply, list)
    return [each.decode() if isinstance(each, bytes) else str(each) for each in reply]
