"""Who serves a command that the lane does not serve itself: each command that is not plain, and each one after MULTI.

By the kind of the command (protocol.commands.Kind) it is answered here, refused, queued, sent to the shard of its keys
or to all shards, or given to a conversation (handlers.py). All requests go out through the lane, so the order of
replies, the doors and the deadlines are the same for every command.
"""

from collections.abc import Sequence
from functools import partial

from protocol import errors
from protocol.commands import BadKeys, Command, Kind
from protocol.request import Request
from pyproxy.events import Event, emit
from pyproxy.worker.commands import (
    blocking,
    client_list,
    executing,
    keyspace,
    local,
    local_config,
    settings,
    transaction,
)
from pyproxy.worker.commands.context import Context
from pyproxy.worker.commands.conversation import Conversation, Handler
from pyproxy.worker.commands.handlers import ACROSS, EMULATED, HANDLERS
from pyproxy.worker.commands.placing import shards_of
from pyproxy.worker.lane.lane import Client, Route
from pyproxy.worker.lane.outcome import NOT_NOW, Outcome
from pyproxy.worker.lane.split import fan_out
from pyproxy.worker.pubsub.hub import Hub
from pyproxy.worker.pubsub.registry import ALLOWED_IN_RESP2
from pyproxy.worker.shard.pool import LeasePool

# A web browser can be made to send these to any port (CVE-2016-10517). Like Redis, the proxy closes without an answer.
HTTP = (b"post", b"host:")

NOT_QUEUED = (b"multi", b"exec", b"discard", b"watch", b"reset", b"quit")


class Session:
    """Serves the commands that leave the hot path of one worker."""

    def __init__(self, context: Context, lease_pool: LeasePool, hub: Hub) -> None:
        self._context = context
        self._lease_pool = lease_pool
        self._hub = hub

    def dispatch(self, client: Client, route: Route | None, argv: Sequence[bytes]) -> Outcome:
        """Serve a command that the lane does not serve itself. `route`: None for an unknown command."""
        if route is None:
            return self._unfit(client, self._unknown(client, argv))
        command: Command = route.command
        if command.subcommands and len(argv) > 1:
            sub = command.subcommands.get(argv[1].lower())
            if sub is None:
                return self._unfit(client, errors.unknown_subcommand(command.name, argv[1]))
            command = sub
            client.last_command = command.name
        if not command.arity_ok(len(argv)):
            return self._unfit(client, errors.wrong_arity(command.name), command.name)
        if client.limited and command.name not in ALLOWED_IN_RESP2:
            return self._unfit(client, errors.only_for_subscribers(command.name), command.name)
        if client.transaction is not None and command.name not in NOT_QUEUED:
            queued: bytes = client.transaction.take(client, route, command, argv)
            return queued
        match command.kind:
            case Kind.TRANSACTION:
                return self._transaction(client, route, command, argv)
            case Kind.LOCAL:
                if command.name == b"config|set":
                    return self._converse(client, route, command, argv, settings.configure)
                if command.name == b"config|get" and local_config.settings_of_servers(argv, self._context):
                    return self._converse(client, route, command, argv, settings.show)
                if command.name == b"client|list" and len(self._context.clients()) > client_list.MANY:
                    return self._converse(client, route, command, argv, client_list.listed)
                if command.name == b"hello" and client.subscriber is not None and not client.settled():
                    return NOT_NOW  # a message in the new protocol would overtake answers in the old one
                if command.name == b"reset" and client.subscriber is not None:
                    return self._hub.reset(client, partial(local.answer, command.name, client, argv, self._context))
                return local.answer(command.name, client, argv, self._context)
            case Kind.PUBSUB:
                return self._hub.serve(client, route, command, argv)
            case Kind.REFUSED:
                return errors.refused(command.name, command.reason)
            case Kind.CONVERSATION:
                return self._converse(client, route, command, argv, HANDLERS[command.name])
            case Kind.FANOUT:
                if command.name == b"keys" and self._context.foreign:
                    return self._converse(client, route, command, argv, keyspace.keys)
                return fan_out(client, route, Request(argv))
        return self._keyed(client, route, command, argv)

    def _unknown(self, client: Client, argv: Sequence[bytes]) -> bytes:
        if argv[0].lower() in HTTP:
            emit(Event.CLIENT_HTTP, id=client.id, addr=client.addr)
            client.finish()
            return b""
        return errors.unknown_command(argv)

    def _unfit(self, client: Client, line: bytes, name: bytes = b"") -> bytes:
        """Refuse a command that cannot be run. EXEC aborts its transaction; a refused EXEC ends it, and the watch."""
        if name == b"exec":
            client.end_transaction()
            client.end_watch()
            return errors.exec_rejected(line)
        if client.transaction is not None:
            client.transaction.refused = True
        return line

    def _transaction(self, client: Client, route: Route, command: Command, argv: Sequence[bytes]) -> Outcome:
        match route.name:
            case b"multi":
                return transaction.begin(client, self._hub.publish_answer, self._local, self._context.keyless)
            case b"discard":
                return transaction.discard(client)
        if client.transaction is not None and (client.watched is not None or client.transaction.scripts):
            return self._converse(client, route, command, argv, executing.execute)
        return transaction.run(client, route, self._context.setup.config.transactions == "split")

    def _local(self, name: bytes, client: Client, argv: Sequence[bytes]) -> bytes:
        return local.LOCAL[name](client, argv, self._context)

    def _converse(
        self, client: Client, route: Route, command: Command, argv: Sequence[bytes], handler: Handler
    ) -> Outcome:
        if client.transaction is not None and command.name == b"watch":
            return errors.watch_in_multi()
        return Conversation(client, route, command, argv, self._context, self._lease_pool).begin(handler)

    def _keyed(self, client: Client, route: Route, command: Command, argv: Sequence[bytes]) -> Outcome:
        """Serve a command by the shards of its keys. `cross_shard` decides about keys on several shards."""
        try:
            keys = command.keys(argv)
        except BadKeys as bad:
            return bad.line
        if command.waits(argv):
            return self._converse(client, route, command, argv, blocking.wait)
        shards = shards_of(client.lane, argv, keys)
        if len(shards) != 1:
            handler = ACROSS.get(command.name)
            if handler is None and self._context.setup.config.cross_shard == "emulate":
                handler = EMULATED.get(command.name)
            if handler is None:
                return errors.crossslot()
            return self._converse(client, route, command, argv, handler)
        (shard,) = shards
        return client.send(shard, Request(argv), not command.is_read, route.replayable)
