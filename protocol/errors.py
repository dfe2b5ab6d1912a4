"""Every error line that the proxy itself gives to a client.

Each function takes the words that differ (a name, a shard, a reason) and returns one whole RESP error line as bytes:
`-` in front, CRLF at the end, no CR or LF in between. The callers decide when an error is given. Error lines of servers
are passed on elsewhere, unchanged.

Where Redis has a line for the case, it is used byte for byte (compared with Redis 7.0.15 and Valkey 9.1.2), as clients
parse these texts. The proxy's own lines have one pattern: a code, the shard and its node, the cause, the way out.
`-TRYAGAIN` promises that nothing was applied; `-UNCERTAIN` means that it may have been.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

Words = bytes | str  # a client speaks bytes, the proxy str

CRLF_TO_SPACES = bytes.maketrans(b"\r\n", b"  ")
# Redis prints at most this much of a command name, and of its arguments together (server.c, rejectUnknownCommand).
SHOWN_BYTES = 128


def _raw(words: Words) -> bytes:
    return words if isinstance(words, bytes) else words.encode()


def _line(*words: Words) -> bytes:
    """An error line of these words. CR and LF become spaces, as Redis prints them."""
    return b"-" + b"".join(map(_raw, words)).translate(CRLF_TO_SPACES) + b"\r\n"


def _printed(words: Words) -> bytes:
    """A client's bytes as C's ``%.128s`` prints them: up to the first NUL, at most 128 bytes."""
    return _raw(words).split(b"\0", 1)[0][:SHOWN_BYTES]


# --- framing ---------------------------------------------------------------------------------------------------------


def protocol(text: Words) -> bytes:
    """Redis' line for a request that is not RESP. The connection is closed after it."""
    return _line("ERR Protocol error: ", text)


def unbalanced_quotes() -> bytes:
    return protocol("unbalanced quotes in request")


# --- any command -----------------------------------------------------------------------------------------------------


def unknown_command(argv: Sequence[bytes]) -> bytes:
    """Redis' line for an unknown command, with the first 128 bytes of its arguments, each in quotes."""
    shown = b""
    for argument in argv[1:]:
        if len(shown) >= SHOWN_BYTES:
            break
        shown += b"'" + _printed(argument)[: SHOWN_BYTES - len(shown)] + b"' "
    return _line("ERR unknown command '", _printed(argv[0]), "', with args beginning with: ", shown)


def unknown_subcommand(name: Words, sub: Words) -> bytes:
    """`name`: the container (`client`). `sub`: the subcommand, as the client wrote it."""
    return _line("ERR unknown subcommand '", _printed(sub), "'. Try ", _raw(name).upper(), " HELP.")


def wrong_arity(name: Words) -> bytes:
    """``name`` as in the table: ``get``, ``client|id``."""
    return _line("ERR wrong number of arguments for '", _raw(name).lower(), "' command")


def internal_error() -> bytes:
    """A bug of the proxy. The connection is closed after it."""
    return _line("ERR internal error of the proxy, see its log; the connection is closed")


def for_command(name: Words, sent: Words, line: bytes) -> bytes:
    """A server's error for the command that was ``sent`` to it, with the name of the client's own command in it."""
    message = line[1:].rstrip(b"\r\n")
    return _line(message.replace(b"'%b'" % _raw(sent).lower(), b"'%b'" % _raw(name).lower()))


def no_such_key() -> bytes:
    """RENAME."""
    return _line("ERR no such key")


def subcommand_syntax(name: Words, sub: Words) -> bytes:
    """For a subcommand that checks the number of its arguments itself. `sub`: as the client wrote it."""
    words = ("ERR unknown subcommand or wrong number of arguments for '", _printed(sub), "'. Try ")
    return _line(*words, _raw(name).upper(), " HELP.")


def syntax_error() -> bytes:
    return _line("ERR syntax error")


def not_an_integer() -> bytes:
    return _line("ERR value is not an integer or out of range")


def not_a_c_int() -> bytes:
    """A number that does not fit C's int (object.c, getIntFromObjectOrReply). The wording is Redis' own."""
    return _line("ERR value is out of range, value must between -2147483648 and 2147483647")


def invalid_cursor() -> bytes:
    """SCAN."""
    return _line("ERR invalid cursor")


def cursor_too_large(shard: str, cursor: int) -> bytes:
    """The cursors of clients are below 2^53, and the server's own is a part of each."""
    return _line(f"ERR shard {shard}: its cursor {cursor} is too large to be passed on; scan that server directly")


def crossslot() -> bytes:
    """The keys of a command are on different shards, and it cannot be split."""
    return _line(
        "CROSSSLOT Keys in request don't hash to the same slot",
        " (they are on different shards; give them one {hash tag} or send one command per key)",
    )


def refused(name: Words, reason: Words) -> bytes:
    """A command that exists but is not served. `reason`: one sentence with the cause and the way out."""
    return _line("ERR command '", _raw(name).lower(), "' is not served by this proxy: ", reason)


def too_many_patterns(name: Words, limit: int) -> bytes:
    """A limit of the proxy. Redis has none."""
    return _line("ERR too many patterns for '", _raw(name).lower(), f"' command: expected at most {limit}")


def config_set_failed(name: Words, why: Words) -> bytes:
    return _line("ERR CONFIG SET failed (possibly related to argument '", _printed(name), "') - ", why)


def setting_fixed(name: str, shard: str, value: str) -> bytes:
    """For servers that refuse CONFIG SET, as AWS configures them by parameter groups."""
    return _line(
        f"ERR {name} of shard {shard} is '{value}' by its parameter group, and cannot be set by CONFIG SET; ",
        "change it in the parameter group",
    )


def setting_unknown(name: str, shard: str) -> bytes:
    """The same, before the value in the parameter group is known."""
    return _line(f"TRYAGAIN {name} of shard {shard}: its parameter group was not read yet, applied=no; retry later")


# --- publish/subscribe -----------------------------------------------------------------------------------------------


def only_for_subscribers(name: Words) -> bytes:
    """A subscribed client sent another command in RESP2. `name`: as in the table."""
    return _line(
        "ERR Can't execute '", _raw(name).lower(), "': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET ",
        "are allowed in this context",
    )  # fmt: skip


# --- transactions ----------------------------------------------------------------------------------------------------


def multi_in_multi() -> bytes:
    return _line("ERR MULTI calls can not be nested")


def watch_over_shards(shards: Iterable[str]) -> bytes:
    """The watched keys are on several shards. No server could check all of them."""
    return _line(
        "CROSSSLOT the keys that are watched are on different shards (",
        ", ".join(shards),
        "), and they cannot be checked at one moment; give them one {hash tag}",
    )


def watch_in_multi() -> bytes:
    return _line("ERR WATCH inside MULTI is not allowed")


def without_multi(name: Words) -> bytes:
    """``name``: EXEC or DISCARD."""
    return _line("ERR ", name, " without MULTI")


def exec_rejected(line: bytes) -> bytes:
    """The answer of EXEC where another command would be answered by `line`, with or without a MULTI before it."""
    return _line(_DISCARDED, line[1:].rstrip(b"\r\n").removeprefix(b"ERR "))


_DISCARDED = b"EXECABORT Transaction discarded because of: "


def exec_aborted() -> bytes:
    """A command of the transaction was not queued."""
    return _line("EXECABORT Transaction discarded because of previous errors.")


def not_in_transaction(name: Words) -> bytes:
    return _line("ERR command '", _raw(name).lower(), "' is not served in a transaction: ", _NOT_A_PART)


_NOT_A_PART = "it can be no part of a block on a server; send it before MULTI or after EXEC"


def transaction_over_shards(names: Iterable[str]) -> bytes:
    """The keys of a transaction are on these shards, and the configuration demands one shard."""
    return _line(
        "CROSSSLOT Keys in transaction don't hash to the same slot (they are on different shards: ",
        ", ".join(names),
        '; give them one {hash tag}, or have the proxy run a block on each shard: transactions = "split")',
    )


def transaction_discarded(line: bytes) -> bytes:
    """The answer of EXEC where the proxy refuses it with `line`. After -TRYAGAIN nothing of it was applied."""
    message = line[1:].rstrip(b"\r\n")
    if message.startswith(b"TRYAGAIN "):
        message = _DISCARDED + message.removeprefix(b"TRYAGAIN ")
    return _line(message)


def too_large(argument: int) -> bytes:
    """A request that the proxy made for a command has an argument of more bytes than the servers take."""
    return _line(f"ERR an argument is too large: the servers take at most {argument} bytes (proto-max-bulk-len)")


def block_too_large(block: int) -> bytes:
    """The answer of EXEC for a transaction of more bytes than a server takes."""
    most = f"they take at most {block} bytes (client-query-buffer-limit)"
    return _line("EXECABORT Transaction discarded because it is too large for the servers: ", most)


# --- connections -----------------------------------------------------------------------------------------------------


def too_many_clients() -> bytes:
    return _line("ERR max number of clients reached")


def unsupported_protocol() -> bytes:
    return _line("NOPROTO unsupported protocol version")


def protocol_version_not_an_integer() -> bytes:
    return _line("ERR Protocol version is not an integer or out of range")


def hello_option(option: Words) -> bytes:
    return _line("ERR Syntax error in HELLO option '", _raw(option).split(b"\0", 1)[0], "'")


def auth_without_password() -> bytes:
    """AUTH with a password alone, and no password is configured."""
    return _line(
        "ERR AUTH <password> called without any password configured for the default user. ",
        "Are you sure your configuration is correct?",
    )


def wrong_password() -> bytes:
    return _line("WRONGPASS invalid username-password pair or user is disabled.")


def timeout_not_a_float() -> bytes:
    return _line("ERR timeout is not a float or out of range")


def timeout_not_an_integer() -> bytes:
    """XREAD and XREADGROUP, whose timeout is in milliseconds."""
    return _line("ERR timeout is not an integer or out of range")


def timeout_negative() -> bytes:
    return _line("ERR timeout is negative")


def timeout_out_of_range() -> bytes:
    return _line("ERR timeout is out of range")


def db_index_out_of_range() -> bytes:
    return _line("ERR DB index is out of range")


def no_cluster() -> bytes:
    """READONLY and READWRITE on a server without a cluster."""
    return _line("ERR This instance has cluster support disabled")


# --- CLIENT ----------------------------------------------------------------------------------------------------------


def bad_client_name() -> bytes:
    return _line("ERR Client names cannot contain spaces, newlines or special characters.")


def bad_client_info(attribute: Words) -> bytes:
    """``attribute``: ``LIB-NAME`` or ``LIB-VER`` (CLIENT SETINFO)."""
    return _line("ERR ", attribute, " cannot contain spaces, newlines or special characters.")


def unknown_client_attribute(attribute: Words) -> bytes:
    return _line("ERR Unrecognized option '", _raw(attribute).split(b"\0", 1)[0], "'")


def unknown_client_type(kind: Words) -> bytes:
    return _line("ERR Unknown client type '", _raw(kind).split(b"\0", 1)[0], "'")


def bad_client_id() -> bytes:
    return _line("ERR Invalid client ID")


# --- COMMAND GETKEYS -------------------------------------------------------------------------------------------------


def getkeys_unknown_command() -> bytes:
    return _line("ERR Invalid command specified")


def getkeys_wrong_arity() -> bytes:
    return _line("ERR Invalid number of arguments specified for command")


def getkeys_no_keys() -> bytes:
    return _line("ERR The command has no key arguments")


def getkeys_bad_arguments() -> bytes:
    return _line("ERR Invalid arguments specified for command")


# --- numbers of keys -------------------------------------------------------------------------------------------------


def numkeys_not_positive() -> bytes:
    """LMPOP, ZMPOP, SINTERCARD."""
    return _line("ERR numkeys should be greater than 0")


def numkeys_beyond_arguments() -> bytes:
    """SINTERCARD, scripts and functions."""
    return _line("ERR Number of keys can't be greater than number of args")


def numkeys_negative() -> bytes:
    """Scripts and functions."""
    return _line("ERR Number of keys can't be negative")


def numkeys_bad() -> bytes:
    """FCALL."""
    return _line("ERR Bad number of keys provided")


def numkeys_invalid() -> bytes:
    """MSETEX."""
    return _line("ERR invalid numkeys value or out of range")


def no_input_key(name: Words) -> bytes:
    """ZUNIONSTORE and the other sorted set operations."""
    return _line("ERR at least 1 input key is needed for '", _raw(name).lower(), "' command")


# --- shards: not applied ---------------------------------------------------------------------------------------------


def shard_down(shard: str, node: object, why: str) -> bytes:
    """The shard cannot be reached. The request was not sent, or was a read. `why`: `connection refused`."""
    return not_applied(shard, node, f"is down: {why}")


def not_applied(shard: str, node: object, why: str) -> bytes:
    """A read got no reply, or a request was not sent. `why`: as for `uncertain`."""
    return _line(f"TRYAGAIN shard {shard} ({node}) {why}, applied=no; retry later")


def gate_closed(shard: str, node: object, why: str, retry_after_ms: int) -> bytes:
    """The gate of the shard is closed, and the write was not sent. `why`: `is being promoted`, `is down: ...`."""
    return _line(f"TRYAGAIN shard {shard} ({node}) {why}, applied=no retry_after_ms={retry_after_ms}; retry later")


def no_lease(shard: str, node: object, limit: int) -> bytes:
    """A command needs a lease, and all connections that may be leased are."""
    return not_applied(shard, node, f"has leased all {limit} connections to commands that wait (limits.long_leases)")


def lease_timeout(shard: str, node: object, limit: int, wait_s: float) -> bytes:
    """A command needs a lease for a moment, and none was given back in time."""
    why = f"has all {limit} connections for commands like this in use, and none came back within {wait_s:g} s"
    return not_applied(shard, node, why)


def unblocked() -> bytes:
    """A blocking command was ended from outside and has done nothing. The code is Redis' own."""
    return _line("UNBLOCKED the proxy has stopped waiting for this command; nothing was done")


def client_gone(shard: str, node: object) -> bytes:
    """The client closed its half while its request was held."""
    return not_applied(shard, node, "is being waited for, and the client has closed its connection")


# --- shards: perhaps applied -----------------------------------------------------------------------------------------


def uncertain(shard: str, node: object, why: str) -> bytes:
    """A write was sent, and its reply will never be known. `why`: what the node did (`no_reply`, `garbled`, `LOST`)."""
    return _line(f"UNCERTAIN shard {shard} ({node}) {why}, applied=unknown; read the key before writing again")


LOST = "closed the connection before it answered"
FAULT = "was not asked, or not heard, by a fault of the proxy"
CLOSED = "closed the connection"
UNAUTHENTICATED = "asks for a password again"
OUT_OF_SIGHT = "lost its connection, or was replaced, after this client wrote to it"
NOT_UNBLOCKED = "did not give up a command that waits (CLIENT UNBLOCK)"
NO_TRANSACTION = "refused MULTI, and may have run the commands behind it one by one"


def too_many_arguments(name: bytes, most: int) -> bytes:
    """For a command that the proxy answers itself, in one turn of the event loop."""
    return _line("ERR too many arguments for '", _raw(name), f"', which the proxy answers itself: at most {most - 1}")


def reply_too_large(limit: int) -> bytes:
    """The reply of a server is larger than the memory budget of the worker, or than the rest of it."""
    return _line(
        f"ERR the answer is beyond the memory budget of the proxy (limits.memory_bytes, {limit}), alone or with ",
        "others that came at the same time; it was done all the same",
    )


def needs_too_much(name: Words, limit: int) -> bytes:
    """What the proxy would keep for a command over shards is larger than what is left of its memory budget."""
    return _line("ERR '", _raw(name), f"' needs more memory than the proxy has left (limits.memory_bytes, {limit})")


OVER_MEMORY = "sends an answer that is beyond the memory budget of the proxy (limits.memory_bytes)"


def not_read(deadline_s: float) -> str:
    return f"has read nothing more for {deadline_s:g} s"


OVER_BUDGET = "reads too slowly, and the memory for what waits is used up (limits.memory_bytes)"


def no_reply(deadline_s: float) -> str:
    return f"did not answer within {deadline_s:g} s"


def garbled(what: str) -> str:
    return f"broke the protocol: {what}"


# --- one part of a split command failed ------------------------------------------------------------------------------

# The lines of `not_applied`, `gate_closed` and `uncertain`, of which the cause becomes a part of another line.
_OWN_LINE = re.compile(
    rb"-(TRYAGAIN|UNCERTAIN) shard \S+ \((\S+)\) (.*)(, applied=(?:no|unknown)(?: retry_after_ms=\d+)?; [^;]*)\r\n",
    re.DOTALL,
)
# A redirection names a node that clients of the proxy must not go to.
_REDIRECTIONS = (b"MOVED", b"ASK")


def part_failed(shard: str, line: bytes, applied_by: Iterable[str] = ()) -> bytes:
    """The answer to a split command if the part for `shard` got the error `line`.

    `line`: the whole error line, of a server or of this file. `applied_by`: for a write, the shards other than `shard`
    that have applied their part, or may have; for a read, none. With such shards the answer is `-UNCERTAIN`. Without
    them it keeps the code of `line`, so `-TRYAGAIN` still means that nothing was applied.
    """
    others = ", ".join(applied_by)
    own = _OWN_LINE.fullmatch(line)
    if own:
        code, cause = own[1], own[2] + b" " + own[3]
    else:
        code, _, cause = line[1:].rstrip(b"\r\n").partition(b" ")
        if code in _REDIRECTIONS:
            code, cause = b"ERR", b"answered with a redirection (" + code + b")"
    if others:
        message = cause if own or code == b"ERR" else code + b" " + cause
        return _line(f"UNCERTAIN shard {shard}: ", message, f"; other shards may have applied their part: {others}")
    if code == b"UNCERTAIN":
        return _line(f"UNCERTAIN shard {shard}: ", cause, "; it may have applied its part, no other shard did")
    way_out = own[4] if own else b""
    return _line(code, f" shard {shard}: ", cause, way_out)


def half_done(line: bytes, applied_by: Iterable[str]) -> bytes:
    """The answer to a command that goes from shard to shard: `line` ended it after these shards."""
    shard = _NAMED.match(line)
    if shard:
        return part_failed(shard[1].decode(), line, applied_by)
    message = line[1:].rstrip(b"\r\n").removeprefix(b"UNCERTAIN ")
    return _line("UNCERTAIN ", message, "; these shards have applied their part: ", ", ".join(applied_by))


_NAMED = re.compile(rb"-(?:TRYAGAIN|UNCERTAIN) shard (\S+) \(")


def leaves_nothing(line: bytes) -> bytes:
    """`line` for a request that changes nothing whether it was applied or not: as for a read."""
    message = line[1:].rstrip(b"\r\n")
    unknown = b", applied=unknown; read the key before writing again"
    if message.startswith(b"UNCERTAIN ") and message.endswith(unknown):
        message = (
            b"TRYAGAIN " + message.removeprefix(b"UNCERTAIN ").removesuffix(unknown) + b", applied=no; retry later"
        )
    return _line(message)


# --- scripts and functions -------------------------------------------------------------------------------------------


def no_script() -> bytes:
    """EVALSHA of an unknown text."""
    return _line("NOSCRIPT No matching script. Please use EVAL.")


def script_without_keys(name: Words, what: Words) -> bytes:
    """`what`: the call in the words of the configuration: `sha1 = "..."`, `function = "f"`."""
    return _line(
        "ERR command '",
        _raw(name).lower(),
        "' names no key, and what it runs may use keys, which are on several ",
        "shards; name them, or have the configuration say what it is: [[scripts.calls]] with ",
        what,
        ", or scripts.without_keys",
    )


def script_answers_differ(name: Words, way: Words) -> bytes:
    """The call was run on all shards, and their answers cannot be merged in the configured way."""
    return _line(
        "ERR the shards' answers to '",
        _raw(name).lower(),
        "' cannot be merged by ",
        way,
        ", as the configuration ",
        "says of it (scripts.without_keys, [[scripts.calls]]); each of them has run it",
    )


# --- commands whose keys are on several shards, emulated -------------------------------------------------------------


def too_much_to_copy(name: Words, size: int, limit: int) -> bytes:
    return _line(
        "ERR command '",
        _raw(name).lower(),
        f"' would copy {size} bytes from shard to shard, more than {limit}",
        " (limits.cross_shard_bytes); give its keys one {hash tag}",
    )


def not_restored(shard: str, line: bytes) -> bytes:
    """A shard refused the value of another shard with `line`, for example as it is older. Nothing was applied."""
    return _line(f"ERR shard {shard} does not take a value of another shard: ", line[1:].rstrip(b"\r\n"))


TAKEN_AWAY = "has elements at the source that others take away, each before it is moved"
INCOMPLETE = "has run it without all the values of other shards"
COPIES_EXPIRED = b"-ERR they expired before they were read\r\n"


def source_changed(source: str, destination: str) -> bytes:
    """RENAME, RENAMENX: the source changed after it was copied, so it was not removed."""
    return _line(
        f"UNCERTAIN shard {source} still has the source, which others keep changing, ",
        f"and shard {destination} a copy of it; read both keys before writing again",
    )


def source_taken(source: str, destination: str) -> bytes:
    """The element is on the destination, and another client has removed it from the source meanwhile."""
    return _line(
        f"UNCERTAIN shard {destination} has what was to be moved, ",
        f"but somebody else has taken it from shard {source} too; read both keys before writing again",
    )


def condition_lost(shard: str, applied_by: Iterable[str]) -> bytes:
    """MSETNX, MSETEX: the condition was true on all shards at first, and then false on this one."""
    return _line(
        f"UNCERTAIN shard {shard}: somebody else has changed its keys meanwhile, so nothing was set there; ",
        "these shards have applied their part: ",
        ", ".join(applied_by),
    )


def unexpected_part(name: Words, write: bool = False) -> bytes:
    """The answers to the parts of a command cannot be merged. What came of a write nobody knows."""
    what = "the shards' answers to '", name, "' do not fit together"
    if write:
        return _line("UNCERTAIN ", *what, ", applied=unknown; read the keys before writing again")
    return _line("ERR ", *what)


def unexpected_before_write(name: Words) -> bytes:
    """As `unexpected_part`, for a command that writes, before it has sent a write to any shard."""
    return _line("ERR the shards' answers to '", name, "' do not fit together, applied=no")
