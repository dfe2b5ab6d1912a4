"""A worker that serves nobody: it writes down what it is told, for the tests of the supervisor.

    fake_worker.py REPORT MODE --index I --listen-fd N --channel-fd N --page-fd N

REPORT gets a line of JSON for each thing it sees. MODE: `serve` gets ready and drains when told; `crash` exits with 3
at once; `stubborn` gets ready and ignores Drain; `mute` leaves its channel and stays; `late` never gets ready;
`complain` does, complains of a server, has it work, and has a client that sets something; `sleep` does, and says that
it has slept. All that get ready apply each topology at once; `slow` applies only the first, and `busy` owes an answer
to a write of s0, and holds two others, until it is told version 3.
"""

import argparse
import asyncio
import json
import os
import socket
import stat
import sys
from pathlib import Path

from pyproxy.channel import Channel
from pyproxy.messages import (
    Applied,
    AtWork,
    Awake,
    Complaint,
    Configured,
    Drain,
    Held,
    Holding,
    Message,
    Ready,
    Script,
    Setup,
    Topology,
    Work,
)
from pyproxy.metrics import INDEX, Page


class FakeWorker:
    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._ended = asyncio.Event()
        self._channel: Channel | None = None
        self._row = Page.attach(args.page_fd).row(args.index)

    async def run(self) -> None:
        self._channel = await Channel.open(socket.socket(fileno=self._args.channel_fd), self._take, self._lost)
        await self._ended.wait()

    def report(self, what: str, **fields: object) -> None:
        line = json.dumps({"what": what, "index": self._args.index, "pid": os.getpid(), **fields}) + "\n"
        with self._args.report.open("a") as report:
            report.write(line)

    def _take(self, message: Message) -> None:
        self.report(type(message).__name__, version=getattr(message, "version", None))
        assert self._channel is not None
        match message:
            case Setup():
                self._row[INDEX["pid"]] = os.getpid()
                self._row[INDEX["clients"]] = 1
                self._row[INDEX["commands"]] += 10
            case Topology() if self._args.mode == "mute":
                self._channel.close()
            case Topology() if self._args.mode != "late":
                self._channel.send(Ready(os.getpid()))
                busy = ["s0"] if self._args.mode == "busy" and message.version < 3 else []
                unconfirmed = ["s0"] if self._args.mode == "unconfirmed" and message.version < 3 else []
                if self._args.mode != "slow" or message.version == 1:
                    self._channel.send(Applied(message.version, busy, unconfirmed))
                self._channel.send(Holding({"s0": Held(2, 100)} if busy else {}))
                if self._args.mode == "complain":
                    self._channel.send(Complaint("s0", "127.0.0.1:7000", "answered -READONLY"))
                    self._channel.send(Configured("notify-keyspace-events", "xE", 1))
                    self._channel.send(Script(0, b"return 1"))
                    self._channel.send(AtWork({"127.0.0.1:7000": [Work("s0", 1.0, 31.0)]}))
                if self._args.mode == "sleep":
                    self._channel.send(Awake(1.5))
            case Drain() if self._args.mode != "stubborn":
                self._ended.set()

    def _lost(self) -> None:
        self.report("parent gone")
        if self._args.mode != "mute":
            self._ended.set()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("report", type=Path)
    parser.add_argument("mode")
    for name in ("index", "listen-fd", "channel-fd", "page-fd"):
        parser.add_argument(f"--{name}", type=int, required=True)
    args = parser.parse_args()
    worker = FakeWorker(args)
    sockets = [fd for fd in map(int, os.listdir("/proc/self/fd")) if _is_socket(fd)]
    worker.report(
        "started",
        other_sockets=[fd for fd in sockets if fd not in (args.listen_fd, args.channel_fd)],
        port=socket.socket(fileno=args.listen_fd).getsockname()[1],
        session=os.getsid(0),
        stdin=os.readlink("/proc/self/fd/0"),
    )
    if args.mode == "crash":
        sys.exit(3)
    asyncio.run(worker.run())


def _is_socket(fd: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:  # the descriptor by which the directory was read
        return False


if __name__ == "__main__":
    main()
