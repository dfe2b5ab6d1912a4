"""Real servers on free ports: primaries with their replicas, their Sentinels, and the proxy in front of them.

How many shards and how many replicas each has come in. Running processes go out, with a port, a pid and a log file, and
the configuration that tells a proxy about them. The demo, the tests and the benchmarks all use this package. So
there is one way to start a server, and one way to be sure that none is left behind.

    process.py      a child process, its port, its log, its end
    interrupts.py   signals that end the program which starts all this
    binary.py       which server binary is run
    server.py       servers, shards, the fleet
    sentinel.py     its Sentinels
    proxy.py        the proxy in front of it

It never serves a request, and nothing that serves one imports it. Linux only.
"""

from pyproxy.fleet.binary import VARIABLE, Backend, find_backend
from pyproxy.fleet.process import (
    HOST,
    FleetError,
    ListeningProcess,
    Managed,
    Process,
    ask,
    reserve_port,
    wait_until,
)
from pyproxy.fleet.proxy import Proxy
from pyproxy.fleet.sentinel import Sentinel, Sentinels
from pyproxy.fleet.server import FENCED, Fleet, LiveShard, Server, Table, Value

__all__ = [
    "FENCED", "HOST", "VARIABLE", "Backend", "Fleet", "FleetError", "ListeningProcess", "LiveShard", "Managed",
    "Process", "Proxy", "Sentinel", "Sentinels", "Server", "Table", "Value", "ask", "find_backend", "reserve_port",
    "wait_until",
]  # fmt: skip
