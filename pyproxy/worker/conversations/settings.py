"""CONFIG SET of a setting that the operator allows (`config_set`): whether a value is right, the servers know.

All primaries are asked, and the client gets their answer. What they took is kept by the parent, which sets it on every
other server, and on those that come later. `notify-keyspace-events` is not among these: it is answered at once,
whatever the servers do (local.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from protocol import errors
from pyproxy.worker.conversation import Conversation
from pyproxy.worker.here import Here


def is_for_servers(argv: Sequence[bytes], here: Here) -> bool:
    """Whether this CONFIG SET is of one such setting."""
    return len(argv) == 4 and argv[2].lower().decode("latin-1") in here.setup.config.config_set


async def configure(talk: Conversation) -> bytes:
    """+OK where all primaries took it; else the error of one that did not, and nothing is kept."""
    name, value = talk.argv[2].lower(), talk.argv[3]
    if not value.isascii():
        return errors.config_set_failed(name, "expected ASCII")
    frames = await talk.ask_all(b"CONFIG", b"SET", name, value, write=True)
    for shard, frame in frames.items():
        if frame != b"+OK\r\n":
            took = [talk.name(other) for other, said in frames.items() if said == b"+OK\r\n"]
            return errors.part_failed(talk.name(shard), frame, took)
    talk.here.configure(name.decode(), value.decode())
    return b"+OK\r\n"
