"""What the lane does not do itself: commands that are not plain come in here, one call each.

Local commands are answered, refusals said, keys looked for, all shards asked.  What goes out goes back through the
lane, so the order of replies, the doors and the deadlines are the same for all.
"""

from collections.abc import Sequence

from protocol import errors, request
from protocol.commands import BadKeys, Command, Kind
from protocol.reply import OK
from pyproxy.events import Event, emit
from pyproxy.worker import local
from pyproxy.worker.here import Here
from pyproxy.worker.lane import Client, Route
from pyproxy.worker.split import fan_out

# A web browser can be made to send these to any port (CVE-2016-10517): like Redis, close without a word.
HTTP = (b"post", b"host:")

LEAVE_TRANSACTION = (b"exec", b"discard", b"reset", b"quit")


class Session:
    """The worker's answer to commands that leave the hot path."""

    def __init__(self, here: Here) -> None:
        self._here = here

    def take(self, client: Client, route: Route | None, argv: Sequence[bytes]) -> object:
        """The reply; b"" for none; None where the client's place was taken; NOT_NOW where the client was parked."""
        if client.aborting and (route is None or route.name not in LEAVE_TRANSACTION):
            return errors.not_run()
        if route is None:
            return self._unknown(client, argv)
        command: Command = route.command
        if command.subcommands and len(argv) > 1:
            sub = command.subcommands.get(argv[1].lower())
            if sub is None:
                return errors.unknown_subcommand(command.name, argv[1])
            command = sub
            client.last_command = command.name
        if not command.arity_ok(len(argv)):
            return errors.wrong_arity(command.name)
        match command.kind:
            case Kind.LOCAL:
                return local.answer(command.name, client, argv, self._here)
            case Kind.REFUSED:
                return self._refused(client, command)
            case Kind.FANOUT:
                return fan_out(client, route, request.encode(argv))
        return self._keyed(client, route, command, argv)

    def _unknown(self, client: Client, argv: Sequence[bytes]) -> bytes:
        if argv[0].lower() in HTTP:
            emit(Event.CLIENT_HTTP, id=client.id, addr=client.addr)
            client.finish()
            return b""
        return errors.unknown_command(argv)

    def _refused(self, client: Client, command: Command) -> bytes:
        """A refused MULTI takes its block along: clients send it in one go, and half of it must not be applied."""
        if client.aborting:
            client.aborting = False
            return errors.exec_aborted() if command.name == b"exec" else OK
        client.aborting = command.name == b"multi"
        return errors.refused(command.name, command.reason)

    def _keyed(self, client: Client, route: Route, command: Command, argv: Sequence[bytes]) -> object:
        """To the shard of its keys, if it is one."""
        try:
            keys = command.keys(argv)
        except BadKeys as bad:
            return bad.line
        shards = {client.lane.shard_of(argv[position]) for position in keys}
        if len(shards) != 1:
            return errors.crossslot()
        return client.send(shards.pop(), request.encode(argv), not command.is_read, route.again)
