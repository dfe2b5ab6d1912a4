"""The commands that are conversations: a file for each subject, each with its HANDLERS.

    blocking    commands that wait for something to come to a key
    clients     CLIENT LIST of very many
    executing   EXEC of a transaction with scripts
    keyspace    what is asked of the keys of all shards
    reports     what is asked of the memory of all shards
    replicas    how many have what the client wrote
    scripting   scripts and functions
    settings    CONFIG SET
    streams     streams of several shards at once
    watching    WATCH, and the EXEC after it

And those that are only where their keys are on several shards, and the configuration says so:

    operands    what reads several keys: the values are brought to one shard
    moves       what takes something from one key to another
    parts       what is done for each key, or for the first that will do
"""

from collections.abc import Mapping

from pyproxy.worker.commands import blocking, keyspace, memory, scripting, streams, wait, watch
from pyproxy.worker.commands.conversation import Handler
from pyproxy.worker.commands.cross_shard import moves, operands, per_key

HANDLERS: Mapping[bytes, Handler] = {
    **blocking.HANDLERS,
    **keyspace.HANDLERS,
    **wait.HANDLERS,
    **memory.HANDLERS,
    **scripting.HANDLERS,
    **watch.HANDLERS,
}
"""The table's name of each command of the kind CONVERSATION -> what serves it."""

ACROSS: Mapping[bytes, Handler] = {**streams.ACROSS}
"""Commands of the kind KEYED that are served where their keys are on several shards, too -> what serves them there."""

EMULATED: Mapping[bytes, Handler] = {**operands.HANDLERS, **moves.HANDLERS, **per_key.HANDLERS}
"""And those of which that is so with `cross_shard = "emulate"` only."""
