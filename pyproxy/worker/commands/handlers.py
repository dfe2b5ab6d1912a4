"""The table of the commands that a conversation serves: name -> handler.

To add a command that the proxy sends to the shards:

1. Put its name into one of the lists of `protocol/table.py`. One that is not in any list is routed by its key specs.
2. If it needs more than one question, or a connection of its own, its kind is CONVERSATION: write
   `async def _name(conversation) -> bytes` in the file of its subject here, and name it in that file's HANDLERS.
3. If only its form over several shards needs that, name the handler in ACROSS or EMULATED instead.
4. Write its test in `tests/e2e/commands/test_<subject>.py`.
5. Run `python -m tools.make_docs`, which writes `docs/commands.md`, and add a line to `CHANGELOG.md`.

A command that the proxy answers itself has the kind LOCAL, and its handler is in one of the files of local.py.

    blocking       commands that wait for something to come to a key
    keyspace       RANDOMKEY and SCAN, over the keys of all shards
    memory         MEMORY DOCTOR and PURGE, of all shards
    scripting      calls of scripts and functions
    script_admin   SCRIPT and FUNCTION
    streams        XREAD and XREADGROUP of streams on several shards
    wait           WAIT and WAITAOF
    watch          WATCH

dispatch.py itself chooses these, by the state of the client or by the arguments: executing (EXEC with WATCH or
scripts), settings (CONFIG SET, and CONFIG GET of servers' settings), client_list (CLIENT LIST of very many clients).

Only with `cross_shard = "emulate"`, for keys on several shards:

    cross_shard/operands   commands that read several keys: the values are copied to one shard
    cross_shard/moves      commands that move or copy from one key to another
    cross_shard/per_key    commands that do the same for each key, or for the first that has something
    cross_shard/polling    blocking commands; blocking.py calls it
"""

from collections.abc import Mapping

from pyproxy.worker.commands import blocking, keyspace, memory, script_admin, scripting, streams, wait, watch
from pyproxy.worker.commands.conversation import Handler
from pyproxy.worker.commands.cross_shard import moves, operands, per_key

HANDLERS: Mapping[bytes, Handler] = {
    **blocking.HANDLERS,
    **keyspace.HANDLERS,
    **wait.HANDLERS,
    **memory.HANDLERS,
    **scripting.HANDLERS,
    **script_admin.HANDLERS,
    **watch.HANDLERS,
}
"""The commands of the kind CONVERSATION."""

ACROSS: Mapping[bytes, Handler] = {**streams.ACROSS}
"""Commands of the kind KEYED that are also served where their keys are on several shards, and what serves them then."""

EMULATED: Mapping[bytes, Handler] = {**operands.HANDLERS, **moves.HANDLERS, **per_key.HANDLERS}
"""The same, for commands that are served so only with `cross_shard = "emulate"`."""
