"""The store in a file of one proxy.

    PATH        the document
    PATH.seen   the latest generation that was loaded or saved: an older one, or none, is refused at the start
    PATH.lock   locked by the one process that uses it

It is written beside, with fsync, and renamed, with fsync of the directory: after a crash there is the old document or
the new one. Nobody creates the directory: that it is missing may be a disk that is not mounted.
"""

import asyncio
import contextlib
import fcntl
import os
from pathlib import Path

import msgspec

from pyproxy.access import why
from pyproxy.control.growth.store import (
    Conflict,
    Document,
    NotSaved,
    StoreError,
    Unsure,
    check_seen,
    decoded,
    encoded,
)


class Seen(msgspec.Struct, frozen=True):
    """A generation of a store."""

    id: str
    generation: int


class FileStore:
    """`path` is absolute."""

    def __init__(self, path: str) -> None:
        self.where = f"file:{path}"
        self._path = Path(path)
        self._seen_path = self._beside("seen")
        self._lock: int | None = None  # a file descriptor
        self._saved = b"", 0  # what this process saved last, and its generation
        self._renamed = b""  # what it has put in its place, last

    async def claim(self) -> None:
        """Raises StoreError where another process has it."""
        self._check_directory()
        try:
            self._lock = os.open(self._beside("lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise self._wrong(f"a file {self._path.name}.lock that can be written beside it", exc) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            by = os.read(self._lock, 20).decode(errors="replace").strip() or "unknown"
            self.close()
            expected = "to be used by one pyproxy only"
            raise StoreError(f"store {self.where}: expected {expected}, got another one, process {by}") from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, b"%d\n" % os.getpid(), 0)

    def close(self) -> None:
        """Give it back."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def load(self) -> tuple[Document, int] | None:
        """As the store says; a generation that is older than one that was seen is refused. Raises StoreError."""
        return await asyncio.to_thread(self._load)

    async def save(self, document: Document, revision: int) -> int:
        """Raises Conflict, NotSaved, Unsure."""
        return await asyncio.to_thread(self._save, document, revision)

    # --- in a thread, as a disk may take its time -------------------------------------------------------------------

    def _load(self) -> tuple[Document, int] | None:
        self._check_directory()
        raw = self._read()
        document = None if raw is None else decoded(raw, self.where)
        found = None if document is None else (document, document.generation)
        seen = self._seen()
        if document is not None and seen is not None and seen.id not in ("", document.id):
            raise StoreError(f"store {self.where}: expected the store {seen.id}, as it was seen, got {document.id}")
        check_seen(found, seen.generation if seen is not None else 0, self.where)
        if document is not None and self._lock is not None:
            self._note(document, sync=True)
        return found

    def _save(self, document: Document, revision: int) -> int:
        new = encoded(document)
        # What was renamed once may be there, whatever goes wrong now.
        failed = Unsure if new == self._renamed else NotSaved
        try:
            self._check_directory()
            raw = self._read()
            present = self._generation(raw)
        except StoreError as exc:
            raise failed(str(exc)) from None
        if raw != new:
            if present != revision:
                raise Conflict(f"store {self.where}: expected generation {revision}, got {present}")
            self._replace(new)
        try:
            _sync_directory(self._path.parent)
        except OSError as exc:
            raise Unsure(str(self._wrong("the directory to be written to disk", exc))) from None
        self._saved = new, document.generation
        # It only makes a later look more exact, and writes of clients are held meanwhile: no fsync.
        self._note(document, sync=not revision)
        return document.generation

    def _replace(self, content: bytes) -> None:
        beside = self._beside("new")
        try:
            _write(beside, content, sync=True)
            beside.replace(self._path)
        except OSError as exc:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise NotSaved(str(self._wrong("a file that can be written", exc))) from None
        self._renamed = content

    def _generation(self, raw: bytes | None) -> int:
        """Of what is in the file. To decode and check it takes milliseconds, in which writes of clients are held."""
        if raw is None:
            return 0
        return self._saved[1] if raw == self._saved[0] else decoded(raw, self.where).generation

    def _check_directory(self) -> None:
        directory = self._path.parent
        if not directory.is_dir():
            got = "a file" if directory.exists() else "none (is a disk not mounted?)"
            raise StoreError(f"store {self.where}: expected a directory {directory}, got {got}")

    def _read(self) -> bytes | None:
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise self._wrong("a file that can be read", exc) from None

    def _seen(self) -> Seen | None:
        """None: it was never used. What cannot be read is of a generation that nobody knows."""
        try:
            return msgspec.json.decode(self._seen_path.read_bytes(), type=Seen)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return Seen("", 1)

    def _note(self, document: Document, sync: bool) -> None:
        """What was seen. Where that cannot be kept, the store is what it is all the same."""
        raw = msgspec.json.encode(Seen(document.id, document.generation)) + b"\n"
        beside = self._beside("seen.new")
        with contextlib.suppress(OSError):
            _write(beside, raw, sync)
            beside.replace(self._seen_path)

    def _beside(self, suffix: str) -> Path:
        return self._path.with_name(f"{self._path.name}.{suffix}")

    def _wrong(self, expected: str, exc: OSError) -> StoreError:
        return StoreError(f"store {self.where}: expected {expected}, got: {why(exc)}")

    def __repr__(self) -> str:
        return f"<FileStore {self._path}>"


def _write(path: Path, content: bytes, sync: bool) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        if sync:
            os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
