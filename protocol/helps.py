"""The answers to OBJECT HELP and the other HELP subcommands: container -> lines.

Those of CLIENT, CONFIG and MEMORY list what the proxy serves. The others are Valkey 9.1's, word for word.
"""

from __future__ import annotations

from protocol.reply import Status

_CLIENT = """\
CLIENT <subcommand> [<arg> [value] [opt] ...]. Subcommands are:
CAPA <option> [options...]
    Taken, without effect.
GETNAME
    Return the name of the current connection.
GETREDIR
    Return -1: no connection is tracked.
ID
    Return the ID of the current connection.
INFO
    Return information about the current client connection.
LIST [TYPE <type> | ID <id> [<id> ...]]
    Return information about the client connections of this worker of the proxy.
NO-EVICT (ON|OFF)
    Taken, without effect.
NO-TOUCH (ON|OFF)
    Taken, without effect.
REPLY (ON|OFF|SKIP)
    Control the replies sent to the current connection.
SETINFO (LIB-NAME|LIB-VER) <value>
    Set the name or the version of the client's library.
SETNAME <name>
    Assign the name <name> to the current connection.
TRACKINGINFO
    Report that the current connection is not tracked.
HELP
    Print this help."""

_CONFIG = """\
CONFIG <subcommand> [<arg> [value] [opt] ...]. Subcommands are:
GET <pattern>
    Return parameters matching the glob-like <pattern> and their values.
SET <directive> <value>
    Set the configuration <directive> to <value> on all servers: notify-keyspace-events, and what the operator allows.
RESETSTAT
    Reset the proxy's own statistics reported by the INFO command.
HELP
    Print this help."""

_MEMORY = """\
MEMORY <subcommand> [<arg> [value] [opt] ...]. Subcommands are:
DOCTOR
    Return memory problems reports of all shards.
PURGE
    Attempt to purge dirty pages for reclamation by the allocators of all shards.
USAGE <key> [SAMPLES <count>]
    Return memory in bytes used by <key> and its value. Nested values are
    sampled up to <count> times (default: 5, 0 means sample all).
HELP
    Print this help."""

_OBJECT = """\
OBJECT <subcommand> [<arg> [value] [opt] ...]. Subcommands are:
ENCODING <key>
    Return the kind of internal representation used in order to store the value
    associated with a <key>.
FREQ <key>
    Return the access frequency index of the <key>. The returned integer is
    proportional to the logarithm of the recent access frequency of the key.
IDLETIME <key>
    Return the idle time of the <key>, that is the approximated number of
    seconds elapsed since the last access to the key.
REFCOUNT <key>
    Return the number of references of the value associated with the specified
    <key>.
HELP
    Print this help."""

_XGROUP = """\
XGROUP <subcommand> [<arg> [value] [opt] ...]. Subcommands are:
CREATE <key> <groupname> <id|$> [option]
    Create a new consumer group. Options are:
    * MKSTREAM
      Create the empty stream if it does not exist.
    * ENTRIESREAD entries_read
      Set the group's entries_read counter (internal use).
CREATECONSUMER <key> <groupname> <consumer>
    Create a new consumer in the specified group.
DELCONSUMER <key> <groupname> <consumer>
    Remove the specified consumer.
DESTROY <key> <groupname>
    Remove the specified group.
SETID <key> <groupname> <id|$> [ENTRIESREAD entries_read]
    Set the current group ID and entries_read counter.
HELP
    Print this help."""

_XINFO = """\
XINFO <subcommand> [<arg> [value] [opt] ...]. Subcommands are:
CONSUMERS <key> <groupname>
    Show consumers of <groupname>.
GROUPS <key>
    Show the stream consumer groups.
STREAM <key> [FULL [COUNT <count>]
    Show information about the stream.
HELP
    Print this help."""

_SCRIPT = """\
SCRIPT <subcommand> [<arg> [value] [opt] ...]. Subcommands are:
DEBUG (YES|SYNC|NO) [<engine_name>]
    Set the debug mode for subsequent scripts executed of the specified engine.
    Default engine name: 'lua'
EXISTS <sha1> [<sha1> ...]
    Return information about the existence of the scripts in the script cache.
FLUSH [ASYNC|SYNC]
    Flush the Lua scripts cache. Very dangerous on replicas.
    When called without the optional mode argument, the behavior is determined
     by the lazyfree-lazy-user-flush configuration directive. Valid modes are:
    * ASYNC: Asynchronously flush the scripts cache.
    * SYNC: Synchronously flush the scripts cache.
KILL
    Kill the currently executing Lua script.
LOAD <script>
    Load a script into the scripts cache without executing it.
SHOW <sha1>
    Show a script from the scripts cache.
HELP
    Print this help."""

_FUNCTION = """\
FUNCTION <subcommand> [<arg> [value] [opt] ...]. Subcommands are:
LOAD [REPLACE] <FUNCTION CODE>
    Create a new library with the given library name and code.
DELETE <LIBRARY NAME>
    Delete the given library.
LIST [LIBRARYNAME PATTERN] [WITHCODE]
    Return general information on all the libraries:
    * Library name
    * The engine used to run the Library
    * Functions list
    * Library code (if WITHCODE is given)
    It also possible to get only function that matches a pattern using LIBRARYNAME argument.
STATS
    Return information about the current function running:
    * Function name
    * Command used to run the function
    * Duration in MS that the function is running
    If no function is running, return nil
    In addition, returns a list of available engines.
KILL
    Kill the current running function.
FLUSH [ASYNC|SYNC]
    Delete all the libraries.
    When called without the optional mode argument, the behavior is determined by the
    lazyfree-lazy-user-flush configuration directive. Valid modes are:
    * ASYNC: Asynchronously flush the libraries.
    * SYNC: Synchronously flush the libraries.
DUMP
    Return a serialized payload representing the current libraries, can be restored using FUNCTION RESTORE command
RESTORE <PAYLOAD> [FLUSH|APPEND|REPLACE]
    Restore the libraries represented by the given payload, it is possible to give a restore policy to
    control how to handle existing libraries (default APPEND):
    * FLUSH: delete all existing libraries.
    * APPEND: appends the restored libraries to the existing libraries. On collision, abort.
    * REPLACE: appends the restored libraries to the existing libraries, On collision, replace the old
      libraries with the new libraries (notice that even on this option there is a chance of failure
      in case of functions name collision with another library).
HELP
    Print this help."""

_PUBSUB = """\
PUBSUB <subcommand> [<arg> [value] [opt] ...]. Subcommands are:
CHANNELS [<pattern>]
    Return the currently active channels matching a <pattern> (default: '*').
NUMPAT
    Return number of subscriptions to patterns.
NUMSUB [<channel> ...]
    Return the number of subscribers for the specified channels, excluding
    pattern subscriptions(default: no channels).
SHARDCHANNELS [<pattern>]
    Return the currently active shard level channels matching a <pattern> (default: '*').
SHARDNUMSUB [<shardchannel> ...]
    Return the number of subscribers for the specified shard level channel(s)
HELP
    Print this help."""

_TEXTS = {
    b"client": _CLIENT,
    b"config": _CONFIG,
    b"memory": _MEMORY,
    b"object": _OBJECT,
    b"pubsub": _PUBSUB,
    b"xgroup": _XGROUP,
    b"xinfo": _XINFO,
    b"script": _SCRIPT,
    b"function": _FUNCTION,
}


def lines(container: bytes) -> list[Status]:
    """The lines of ``<container> HELP``, in any case; KeyError if it has none here."""
    return [Status(line.encode()) for line in _TEXTS[container.lower()].splitlines()]
