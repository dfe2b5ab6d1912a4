"""The demo: a whole fleet of real servers and the proxy in front of it, from one command.

The options of the command line come in; at most ten lines about what runs go out, and processes that live exactly as
long as this one. A server that is killed comes back after some seconds, as a replica of whoever is the primary then,
and a line says so. Never configured by a file, and never for production: its servers keep nothing.
"""

import argparse
import contextlib
import shutil
import signal
import sys
import tempfile
import time
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path
from socket import socket

import pyproxy
from pyproxy.config import Config
from pyproxy.fleet import (
    FENCED,
    HOST,
    Fleet,
    FleetError,
    LiveShard,
    Proxy,
    Sentinels,
    Server,
    Table,
    interrupts,
    reserve_port,
)

HOT_PATH = (
    "protocol.scan",
    *(
        f"pyproxy.worker.lane.{each}"
        for each in ("lane", "split", "share", "sending", "merge", "many_keys", "words", "check")
    ),
)
LEFT_OUT = "TLS for clients, which is not built yet: a client that speaks TLS is refused"
DRAIN_S = 1.0  # after Ctrl-C; the servers end as well, so there is little to wait for
DOWN_AFTER_S = 2.0  # of silence, until a primary is replaced; Sentinels, which ping once a second, need up to one more
BUSY_SOON = ("--lua-time-limit", "500")  # so that a long script says -BUSY before its silence costs a promotion
MIN_BETWEEN_S = 10.0  # between two promotions of a shard, for those who kill the new primary as well
BACK_AFTER_S = 5.0  # from the end of a server to its return
CHECK_S = 0.2  # between two checks of who has ended, and at most from a signal to the end


def run(args: argparse.Namespace) -> int:
    """Run until Ctrl-C, SIGTERM or SIGHUP (0); 1 if something could not start or the proxy ended by itself."""
    interrupts.listen(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    directory = Path(tempfile.mkdtemp(prefix="pyproxy-demo-"))
    try:
        need_hot_path()
        reservation = reserve(args.port)
        options = BUSY_SOON + (FENCED if args.replicas > 1 else ())
        with (
            reserve_port() as http,
            Fleet(args.shards, args.replicas, options=options, directory=directory) as fleet,
            Sentinels(fleet, DOWN_AFTER_S) if args.sentinel else contextlib.nullcontext() as sentinels,
            _proxy(fleet, sentinels, reservation, args, f"{HOST}:{http.getsockname()[1]}") as proxy,
        ):
            print("\n".join(describe(fleet, sentinels, proxy, args.workers)), flush=True)
            _bring_back_until_end(fleet, proxy)
            raise FleetError(f"the proxy ended by itself, with status {proxy.wait()}:\n{proxy.tail()}")
    except KeyboardInterrupt:
        shutil.rmtree(directory, ignore_errors=True)
        return 0
    except FleetError as error:
        print(f"pyproxy demo: {error}", file=sys.stderr)
        if any(directory.iterdir()):
            print(f"pyproxy demo: the logs are in {directory}", file=sys.stderr)
        else:
            directory.rmdir()
        return 1


def _proxy(
    fleet: Fleet, sentinels: Sentinels | None, reservation: socket, args: argparse.Namespace, http: str
) -> Proxy:
    tables: dict[str, Table | str] = {
        "transactions": args.transactions,
        "cross_shard": args.cross_shard,
        "timeouts": {"drain_s": DRAIN_S},
        "http": {"listen": http, "admin": str(fleet.directory / "admin.sock")},
        "promotion": {
            "promoter": "sentinel" if sentinels else "replicaof" if args.replicas else "none",
            "down_after_s": DOWN_AFTER_S,
            "min_between_s": MIN_BETWEEN_S,
            "state_file": str(fleet.directory / "promotion.state"),
        },
    }
    if sentinels:
        tables["sentinel"] = {"nodes": sentinels.addresses}
    return Proxy(fleet, reservation, args.workers, **tables)


def describe(fleet: Fleet, sentinels: Sentinels | None, proxy: Proxy, workers: int) -> list[str]:
    """What runs and how to talk to it, in at most ten lines."""
    backend = fleet.backend
    here = f"{Path.cwd()}/"
    spread = f"workers: {workers}" if workers else "one worker per core"
    http = Config.load(proxy.config).http.listen
    missing = "" if shutil.which("redis-cli") else "   (apt-get install redis-tools)"
    servers = f"{len(fleet.shards)} primaries, {len(fleet.servers) - len(fleet.shards)} replicas"
    servers += f", {len(sentinels.all)} sentinels" if sentinels else ""
    return [
        f"pyproxy {pyproxy.__version__}, compiled: protocol.scan, pyproxy.worker.lane",
        f"  backends   {servers}",
        f"  binary     {backend.version} from {backend.source}, {backend.path.removeprefix(here)}",
        f"  listening  {HOST}:{proxy.port}, {spread}; status: http://{http}/shards",
        f"  talk       redis-cli -p {proxy.port} SET a 1{missing}",
        f"  or, bash   exec 3<>/dev/tcp/{HOST}/{proxy.port}; printf 'SET a 1\\r\\nGET a\\r\\n' >&3; head -n 3 <&3",
        f"  try        {_what_to_try(fleet.shards[0], sentinels)}",
        f"  logs       {fleet.directory}, removed at the end; the proxy's is {proxy.log.name}",
        f"  left out   {LEFT_OUT}",
        "Ctrl-C ends all of it.",
    ]


def _what_to_try(shard: LiveShard, sentinels: Sentinels | None) -> str:
    kill = f"kill -9 {shard.primary.pid}, the primary of {shard.name}"
    if not shard.replicas:
        return f"{kill}: the other shards go on"
    promoters = "the sentinels promote" if sentinels else "the proxy promotes"
    return f"{kill}: {promoters} a replica, and it is back as one after {BACK_AFTER_S:g} s"


# --- who was killed comes back ----------------------------------------------------------------------------------------


def _bring_back_until_end(fleet: Fleet, proxy: Proxy) -> None:
    """Returns when the proxy has ended."""
    ended: dict[Server, float] = {}  # and when that was seen; infinitely late: it stays away
    while proxy.running:
        interrupts.raise_if_interrupted()
        time.sleep(CHECK_S)
        for shard in fleet.shards:
            for server in shard.servers:
                if server.running:
                    ended.pop(server, None)
                elif time.monotonic() - ended.setdefault(server, time.monotonic()) >= BACK_AFTER_S:
                    outcome = _bring_back(shard, server)
                    if outcome:
                        print(f"{shard.name}: {server.address} was killed; {outcome}", flush=True)
                        ended[server] = float("inf")


def _bring_back(shard: LiveShard, server: Server) -> str:
    """Start it as a replica, and say of whom; empty: nobody is the primary yet."""
    if not any(each.running for each in shard.servers):
        return "it stays away, as no server of its shard is left to copy"
    primary = shard.present_primary()
    if primary is None:
        return ""
    try:
        server.revive(primary)
    except FleetError as error:  # its primary may have been killed just now
        return f"as a replica of {primary.address} it failed: {error}"
    return f"back as a replica of {primary.address}"


def reserve(port: int) -> socket:
    """The port that a demo listens on. Raises FleetError."""
    try:
        return reserve_port(port)
    except OSError as error:
        raise FleetError(f"cannot listen on {HOST}:{port}: {error.strerror}; try another --port, or --port 0") from None


def need_hot_path() -> None:
    """Raises FleetError where the compiled modules are not built."""
    for name in HOT_PATH:
        spec = find_spec(name)
        if spec is None or spec.origin is None or not spec.origin.endswith(tuple(EXTENSION_SUFFIXES)):
            raise FleetError(f"the compiled module {name} is not built: `pip install -e .` builds it, as ./run does")
