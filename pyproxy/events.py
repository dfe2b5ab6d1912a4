"""What is worth a line in the log.

The list of events is closed. A line is the event, then `key=value` fields, then the time. It goes through the standard
library's logging to stderr:

    +worker-death index=1 pid=4711 status="signal 9" restart_in_s=0.1 at=2026-11-22T10:00:00.123Z

At most LINES lines of one event about one subject (a shard, a server, a worker ...) are logged in WINDOW_S. Further
ones are only counted:

    +link-lost shard=s0 node=127.0.0.1:7001 suppressed=4711 at=2026-11-22T10:00:10.456Z

`+` says that something began or happened, `-` that it ended, as in Sentinel, whose names are taken where they mean
the same. Keys and values of clients are never logged, but one key that lies on a wrong shard, and nothing is logged
per request.
"""

import asyncio
import dataclasses
import datetime
import enum
import json
import logging
import re
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Any

LINES = 20
VALUE_LIMIT = 4000
"""Characters of one value of a line."""

WINDOW_S = 10.0
"""So many lines of one event about one subject in so many seconds."""

SUBJECT = ("index", "shard", "node", "where", "task", "step", "move")
"""The fields that say what it is about."""

_log = logging.getLogger("pyproxy")


@dataclasses.dataclass(slots=True)
class _Window:
    since: float
    about: Mapping[str, object]
    said: int = 0
    suppressed: int = 0


_windows: dict[tuple[Any, ...], _Window] = {}  # by the event and its subject


class Event(enum.Enum):
    """The name of the line, and its level."""

    LISTEN = "+listen", logging.INFO
    READY = "+ready", logging.INFO  # every worker accepts clients
    DRAIN = "+drain", logging.INFO
    SIGNAL_IGNORED = "+signal-ignored", logging.WARNING
    EXIT = "+exit", logging.INFO

    WORKER_START = "+worker-start", logging.INFO
    WORKER_READY = "+worker-ready", logging.INFO
    WORKER_DEATH = "+worker-death", logging.WARNING
    WORKER_KILL = "+worker-kill", logging.WARNING  # it did not end in time
    WORKER_ORPHAN = "+worker-orphan", logging.WARNING  # its parent is gone

    TOPOLOGY = "+topology", logging.INFO  # a new version goes to the workers
    COMMAND_IGNORED = "+command-ignored", logging.WARNING  # a server's description of a command cannot be true
    NODE_DOWN = "+sdown", logging.WARNING  # a server, primary or replica, does not answer its health check as it should
    NODE_UP = "-sdown", logging.INFO
    BUSY = "+busy", logging.WARNING  # it is silent while it works on what a worker has sent: it does not count as down
    BUSY_END = "-busy", logging.INFO
    SHARD_MISPLACED = "+shard-misplaced", logging.ERROR  # its primary holds mostly keys of others
    SHARD_PLACED = "-shard-misplaced", logging.INFO
    STRAY_KEYS = "+stray-keys", logging.ERROR  # it holds some: see `pyproxy verify --misplaced`
    STRAY_KEYS_END = "-stray-keys", logging.INFO
    REBOOT = "+reboot", logging.WARNING  # a server came back as another process (its run_id changed)
    RESTARTED_EMPTY = "+restarted-empty", logging.ERROR  # came back without its keys; stands for -sdown
    RESTARTED_END = "-restarted-empty", logging.WARNING
    ROLE_CHANGE = "+role-change", logging.WARNING  # a server says another role than before, at first than configured
    MISCONF = "+misconf", logging.ERROR  # a server cannot write to its disk, and refuses writes
    MISCONF_END = "-misconf", logging.INFO
    NOREPLICAS = "+noreplicas", logging.ERROR  # a primary has fewer replicas in step than it needs, and refuses writes
    NOREPLICAS_END = "-noreplicas", logging.INFO
    OOM = "+oom", logging.ERROR  # a primary is full, and refuses writes
    OOM_END = "-oom", logging.INFO
    UNFENCED = "+unfenced", logging.WARNING  # at the start: servers without min-replicas-to-write
    SUSPECT = "+suspect", logging.WARNING  # a primary is in trouble; this and the next: machine.py
    SUSPECT_END = "-suspect", logging.INFO
    ODOWN = "+odown", logging.WARNING  # it counts as down
    TRY_FAILOVER = "+try-failover", logging.WARNING  # a replica is being promoted
    TRY_FAILED = "-try-failover", logging.WARNING
    FAILOVER_ABORT = "-failover-abort", logging.ERROR  # given up, for now: the shard takes no writes
    SHARD_DOWN = "+shard-down", logging.ERROR  # no server of it answers
    VERIFYING = "+verifying", logging.WARNING  # another server says that it is the primary
    SWITCH_MASTER = "+switch-master", logging.WARNING  # the workers are taken to it
    FAILOVER_END = "+failover-end", logging.WARNING  # and are there
    HAND_OVER = "+hand-over", logging.WARNING  # a planned promotion
    HAND_OVER_FAILED = "-hand-over", logging.WARNING  # everything is as before
    PAUSED = "+paused", logging.WARNING  # writes of a shard are held, by an operator
    PAUSED_END = "-paused", logging.WARNING
    STATE_FILE = "+state-file", logging.ERROR  # it could not be read, or written
    CONFIG_SET = "+config-set", logging.INFO  # a client has set something, on all servers
    CONFIG_SET_FAILED = "+config-set-failed", logging.ERROR  # a server does not have it
    CONFIG_SET_DONE = "-config-set-failed", logging.INFO
    COMPLAINT = "+complaint", logging.WARNING  # a worker has trouble with a node

    STORE = "+store", logging.INFO  # the slots are those that it says
    STORE_DIFFERS = "+store-differs", logging.WARNING  # from the configuration, which is as it was before moves
    STORE_FAILED = "-store", logging.ERROR  # it cannot be written to: it is tried again
    MOVER_START = "+mover", logging.INFO  # the process that copies keys
    MOVER_DEATH = "-mover", logging.WARNING  # it has ended while it was needed; it is started again
    MOVE = "+move", logging.INFO  # of slots, to another shard: it begins, or goes on after a restart
    MOVE_REFUSED = "-move", logging.WARNING  # it must not begin
    MOVE_COPY = "+move-copy", logging.INFO  # the keys are copied, from the first one on
    MOVE_COPIED = "-move-copy", logging.INFO  # each has been copied once: the changes are followed
    MOVE_HAND_OVER = "+move-hand-over", logging.WARNING  # the writes of the source are held
    MOVE_HAND_OVER_FAILED = "-move-hand-over", logging.WARNING  # they go on where they were; it is tried again
    MOVE_SWITCH = "+move-switch", logging.WARNING  # the map says that the destination owns the slots
    MOVE_SWITCHED = "-move-switch", logging.WARNING  # all workers know it, and the writes go on
    MOVE_CLEAR = "+move-clear", logging.INFO  # the keys are deleted at the source
    MOVE_END = "+move-end", logging.INFO  # and are gone there
    MOVE_STRAY = "+move-stray", logging.ERROR  # somebody has written to them at the source since, past the proxy
    MOVE_ABORT = "+move-abort", logging.WARNING  # what was copied is deleted at the destination
    MOVE_ABORTED = "-move-abort", logging.WARNING  # all is as it was before the move

    PROMOTED = "+promoted-slave", logging.WARNING  # a replica was made primary, by REPLICAOF NO ONE
    RECONF_SENT = "+slave-reconf-sent", logging.INFO  # another replica was told to follow it
    CONVERT_TO_SLAVE = "+convert-to-slave", logging.WARNING  # a former primary was told to follow the present one
    FIX_SLAVE_CONFIG = "+fix-slave-config", logging.WARNING  # so was a replica that followed somebody else
    ELASTICACHE_LOST = "+elasticache-lost", logging.WARNING  # the API of AWS does not answer as it should
    ELASTICACHE_BACK = "-elasticache-lost", logging.INFO
    ELASTICACHE_ASKED = "+elasticache-asked", logging.WARNING  # AWS was asked to promote a member
    STEP_FAILED = "+step-failed", logging.WARNING  # a server did not do its part; the promotion stands or falls without
    SENTINEL_LOST = "+sentinel-lost", logging.WARNING  # a Sentinel does not answer
    SENTINEL_BACK = "-sentinel-lost", logging.INFO
    SENTINEL_DISREGARDED = "+sentinel-disregarded", logging.ERROR  # it answers, and what it says cannot be followed

    LINK_LOST = "+link-lost", logging.WARNING  # a worker's connection to a node ended
    LINK_DOWN = "+link-down", logging.WARNING  # and could not be made again: the shard is refused by that worker
    LINK_UP = "-link-down", logging.INFO
    SERVER_LIMIT = "+server-limit", logging.WARNING  # a node takes less than it might, or may close connections
    CANARY = "+canary", logging.ERROR  # a server answered out of step; its connection was ended
    LINK_REFUSED = "+link-refused", logging.WARNING  # the node refused the set-up for one protocol and database

    MOVE_TROUBLE = "+move-trouble", logging.WARNING  # what the mover does for a move does not get on; it tries again
    MOVE_TROUBLE_END = "-move-trouble", logging.INFO
    FEED_LOST = "+feed-lost", logging.WARNING  # the mover does not hear any more what changes: the copy begins anew
    MOVER_ORPHAN = "+mover-orphan", logging.WARNING  # the parent of the mover is gone

    PUBSUB_LOST = "+pubsub-lost", logging.WARNING  # a worker does not hear the messages of a shard
    PUBSUB_BACK = "-pubsub-lost", logging.INFO  # it is subscribed anew; what was published meanwhile is gone
    PUBSUB_REFUSED = "+pubsub-refused", logging.WARNING  # a server refused a subscription
    PUBSUB_SLOW = "+pubsub-slow", logging.WARNING  # a subscriber that did not read was closed

    CLIENT_HTTP = "+client-http", logging.WARNING  # a web browser was sent here; closed without a word
    CLIENT_UNFINISHED = "+client-unfinished", logging.INFO  # the end of its command did not come
    CLIENT_OUTPUT = "+client-output-limit", logging.WARNING  # it wrote and did not read; closed
    ACCEPT = "+accept-failed", logging.ERROR
    MAX_CLIENTS = "+max-clients", logging.WARNING  # connections are turned away
    SHED = "+shed", logging.WARNING  # a client was closed to keep the memory budget
    REPLY_DISCARDED = "+reply-discarded", logging.WARNING  # an answer that came was thrown away, likewise
    BUG = "+bug", logging.ERROR  # an exception that nobody expected


def configure(level: int = logging.INFO) -> None:
    """Send the lines of this process to stderr, from `level` on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    _log.handlers[:] = [handler]
    _windows.clear()
    _log.setLevel(level)
    _log.propagate = False


def emit(event: Event, **fields: object) -> None:
    """One line, whatever is in the values: those with a space, a quote or a control character become JSON strings."""
    if not _log.isEnabledFor(event.value[1]):
        return
    about = {key: fields[key] for key in SUBJECT if key in fields}
    subject = (event, *map(str, about.values()))
    now = time.monotonic()
    window = _windows.get(subject)
    if window is None or now - window.since >= WINDOW_S:
        _close_windows(now)
        window = _windows[subject] = _Window(now, about)
    if window.said >= LINES:
        window.suppressed += 1
        return
    window.said += 1
    _say(event, fields)


def _close_windows(now: float) -> None:
    """Those that are over, with a line of each of which something was not said."""
    for subject, window in [each for each in _windows.items() if now - each[1].since >= WINDOW_S]:
        del _windows[subject]
        if window.suppressed:
            _say(subject[0], {**window.about, "suppressed": window.suppressed})


def _say(event: Event, fields: Mapping[str, object]) -> None:
    name, level = event.value
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    words = [name, *(f"{key}={_quoted(_bounded(str(value)))}" for key, value in fields.items()), f"at={now}"]
    _log.log(level, "%s", " ".join(words))


def _bounded(text: str) -> str:
    """What servers and clients say may be of any length; the end of it, as of a trace that is what matters."""
    return text if len(text) <= VALUE_LIMIT else f"{text[:100]} ... {text[-VALUE_LIMIT:]}"


def _quoted(text: str) -> str:
    return text if re.fullmatch(r"[!#-<>-~]+", text) else json.dumps(text)


def on_loop_error(_loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
    """Of an event loop: what failed where nobody could catch it. Else asyncio writes pages, as often as it comes."""
    exc = context.get("exception")
    trace = "".join(traceback.format_exception(exc)) if exc is not None else ""
    emit(Event.BUG, where=context.get("message", "the event loop"), trace=trace)
