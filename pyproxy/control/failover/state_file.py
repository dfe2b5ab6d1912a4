"""What outlives a restart of the proxy: who is primary of each shard, by which epoch, of which history; and settings.

The parent alone writes this file, whole and in one step. A file that cannot be read or parsed is reported in the log
and counts as missing, as the servers themselves tell nearly all of what is in it.
"""

import contextlib
import os
from pathlib import Path

import msgspec

from pyproxy.control.failover.transitions import PersistentState
from pyproxy.events import Event, emit


class SavedState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole of it."""

    shards: dict[str, PersistentState] = {}  # by name
    settings: dict[str, str] = {}  # that clients have set on all servers
    store_generation: int = 0  # of the store that was served last; 0: the slots were those of the configuration


class StateFile:
    """`path` empty: nothing is kept."""

    def __init__(self, path: str) -> None:
        self._path = Path(path) if path else None
        self._written = SavedState()

    def load(self) -> SavedState:
        """What was saved last."""
        if self._path is None:
            return SavedState()
        try:
            self._written = msgspec.json.decode(self._path.read_bytes(), type=SavedState)
        except FileNotFoundError:
            return SavedState()
        except (OSError, msgspec.MsgspecError, RecursionError) as exc:
            emit(Event.STATE_FILE, path=self._path, expected="the state of a pyproxy", got=exc)
        return self._written

    def save(self, kept: SavedState) -> None:
        """Keep this, if it is something else than what was kept before."""
        if self._path is None or kept == self._written:
            return
        beside = self._path.with_name(self._path.name + ".new")
        try:
            with beside.open("wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(kept), indent=2))
                file.flush()
                os.fsync(file.fileno())
            beside.replace(self._path)
        except OSError as exc:
            emit(Event.STATE_FILE, path=self._path, expected="a file to write", got=exc.strerror)
            with contextlib.suppress(OSError):
                beside.unlink()
        self._written = kept  # tried again at the next change, not at every health check
