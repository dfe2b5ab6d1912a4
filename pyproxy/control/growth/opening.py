"""The store when a proxy starts, and when a command only wants to know what it says."""

import time
from typing import NamedTuple

from pyproxy.config import Config, ConfigErrors
from pyproxy.control.growth.file_store import FileStore
from pyproxy.control.growth.store import Document, Store, StoreError, check_seen, differences, effective, seeded
from pyproxy.events import Event, emit


class Opened(NamedTuple):
    """A store that this process has for itself, and what is to be served."""

    store: Store
    document: Document
    revision: int
    config: Config


def store_of(config: Config) -> Store | None:
    """None: there is none, and the slots are those of the configuration."""
    return FileStore(config.store.removeprefix("file:")) if config.store else None


async def opened(store: Store, config: Config, seen: int) -> Opened:
    """For a proxy whose primaries are known. Raises StoreError and ConfigErrors, and then nothing must be served.

    `seen`: the generation that it served last, as is known elsewhere; 0: none.
    """
    began = time.monotonic()
    await store.claim()
    loaded = await store.load()
    check_seen(loaded, seen, store.where)
    document, revision = loaded if loaded is not None else (seeded(config), 0)
    differs = differences(config, document)
    served = effective(config, document)
    current = document.with_nodes(config)
    if loaded is None or current is not document:
        revision = await store.save(current, revision)
    fields = {"store": store.where, "generation": current.generation, "moves": len(current.under_way)}
    emit(Event.STORE, **fields, took_s=f"{time.monotonic() - began:.3f}")
    if differs:
        emit(Event.STORE_DIFFERS, store=store.where, why="; ".join(differs))
    return Opened(store, current, revision, served)


def check_none_seen(seen: int) -> None:
    """For a proxy without a store. Raises StoreError where it had one."""
    if seen:
        way_out = "if the configuration names the owners of now, remove store_generation from promotion.state_file"
        raise StoreError(f"store: expected the store that was served last, of generation {seen}, got none: {way_out}")


async def looked_at(config: Config) -> Document | None:
    """What the store says, for a command beside the proxy; None: nothing yet. Raises ConfigErrors."""
    store = store_of(config)
    if store is None:
        return None
    try:
        loaded = await store.load()
    except StoreError as exc:
        raise ConfigErrors(str(exc).splitlines()) from None
    return loaded[0] if loaded is not None else None
