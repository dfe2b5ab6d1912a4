"""The demo of moving in: one server with many keys becomes eleven, and its clients notice nothing.

The options of the command line come in; the story goes out, line by line, and at the end the figures. What an operator
would type is done by the same commands. Clients read, count and check each answer from the beginning to the end, and
then every key is read. It ends by itself, and so do its processes.
"""

import argparse
import asyncio
import contextlib
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import msgspec

import pyproxy
from pyproxy.access import Access
from pyproxy.config import Config
from pyproxy.control.growth import transitions
from pyproxy.control.growth.plan import CannotPlan, planned, weights
from pyproxy.control.growth.plan_file import sized, write_plan
from pyproxy.control.growth.sampling import CannotSample, sampled
from pyproxy.control.http.admin import MoveCommand, MoveStart, MoveStatus, ask
from pyproxy.demo import DRAIN_S, need_hot_path, reserve
from pyproxy.demo_load import CLIENTS, Figures, Load, different, fill
from pyproxy.fleet import HOST, Fleet, FleetError, Proxy, interrupts
from pyproxy.move_commands import shown
from pyproxy.moves import share
from pyproxy.shard_map import Node, Shard

BEFORE_S = 3.0  # for which the clients are measured with one server
LOOK_S = 0.2  # between two looks at the moves
ANSWER_S = 10.0
SAMPLES = 10_000
BYTES_PER_S = 50e6  # of which the plan says how long it takes
HANDED_OVER = frozenset(phase.value for phase in transitions.HANDED_OVER)


def run(args: argparse.Namespace) -> int:
    """Tell the story (0), or until Ctrl-C, SIGTERM or SIGHUP (0); 1 if something failed."""
    interrupts.listen(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    directory = Path(tempfile.mkdtemp(prefix="pyproxy-demo-"))
    try:
        need_hot_path()
        with contextlib.closing(reserve(args.port)) as reservation:
            good = _Story(args, directory).tell(reservation)
    except KeyboardInterrupt:
        good = True
    except FleetError as error:
        print(f"pyproxy demo: {error}", file=sys.stderr)
        good = False
    if good:
        shutil.rmtree(directory, ignore_errors=True)
    elif any(directory.iterdir()):
        print(f"pyproxy demo: the logs are in {directory}", file=sys.stderr)
    else:
        directory.rmdir()
    return 0 if good else 1


class _Story:
    """One run of it."""

    def __init__(self, args: argparse.Namespace, directory: Path) -> None:
        self._keys: int = args.keys
        self._shards: int = args.shards
        self._workers: int = args.workers
        self._directory = directory
        self._admin = str(directory / "admin.sock")

    def tell(self, reservation: socket.socket) -> bool:
        """Whether no client and no key has anything against it."""
        old = self._directory / "old"
        new = self._directory / "new"
        old.mkdir()
        new.mkdir()
        with Fleet(1, 0, directory=old) as before:
            server = before.shards[0].primary
            say("", f"pyproxy {pyproxy.__version__}: one server becomes {self._shards + 1}, and its clients go on")
            say("server", f"{server.address}, {before.backend.version}")
            began = time.monotonic()
            fill(server.port, self._keys)
            say("filled", f"{self._keys:,} keys in {time.monotonic() - began:.1f} s")
            store = f"file:{self._directory}/map.json"
            http = {"admin": self._admin}
            timeouts = {"drain_s": DRAIN_S}
            with Proxy(before, reservation, self._workers, store=store, http=http, timeouts=timeouts) as proxy:
                spread = f"workers: {self._workers}" if self._workers else "one worker per core"
                say("proxy", f"{HOST}:{proxy.port}, {spread}; that server is its one shard, s0, with all slots")
                with Load(proxy.port, self._keys).running() as load:
                    load.measure()
                    _sleep(BEFORE_S)
                    alone = load.measure()
                    say("clients", f"{CLIENTS} that read, count and check each answer: {alone}")
                    with Fleet(self._shards, 0, directory=new) as added:
                        return self._move(proxy, load, alone, before, added)

    def _move(self, proxy: Proxy, load: "Load", alone: "Figures", before: Fleet, added: Fleet) -> bool:
        names = [f"n{index}" for index in range(len(added.shards))]
        say("added", f"{len(names)} empty servers, {names[0]} to {names[-1]}")
        plan = self._directory / "plan.toml"
        new = [
            Shard(name, Node.parse(each.primary.address), (), ())
            for name, each in zip(names, added.shards, strict=True)
        ]
        plan.write_text(proposed(Config.load(proxy.config), new))
        say("plan", "pyproxy plan --add n0=HOST:PORT ... --config my.toml > plan.toml")
        say("", "  " + next(line for line in plan.read_text().splitlines() if "To move" in line))
        load.measure()
        began = time.monotonic()
        say("start", "pyproxy move start plan.toml --config my.toml")
        say("", f"  {self._ask(MoveStart(plan.read_text()))}")
        moves = self._watch(proxy)
        took_s = time.monotonic() - began
        during = load.measure()
        say("reading", "every key, through the proxy")
        wrong = different(proxy.port, self._keys)
        load.stop()
        wrong += load.counted_wrong()
        keys = {"s0": before.shards[0].primary.ask("DBSIZE")}
        keys |= {name: each.primary.ask("DBSIZE") for name, each in zip(names, added.shards, strict=True)}
        copied, size = (sum(move[what] for move in moves) for what in ("copied_keys", "copied_bytes"))
        hold_ms = max(move["longest_hold_ms"] for move in moves)
        failed = [move for move in moves if move["phase"] != "done"]
        say("moved", f"{copied:,} keys, {sized(size)}, in {took_s:.1f} s")
        say("clients", f"before: {alone}")
        say("", f"during: {during}")
        say("held", f"{hold_ms:g} ms at most, when slots changed their owner")
        say(
            "errors", f"{len(load.wrong)} in {load.answers:,} answers; {wrong} of all keys are not as they were written"
        )
        say("keys", "  ".join(f"{name} {count:,}" for name, count in keys.items()))
        for each in load.wrong[:3]:
            print(f"pyproxy demo: a client: {each}", file=sys.stderr)
        for move in failed:
            print(f"pyproxy demo: {move['id']} is {move['phase']}: {move['why']}", file=sys.stderr)
        return not (load.wrong or wrong or failed)

    def _watch(self, proxy: Proxy) -> list[dict[str, Any]]:
        """Show the moves until all are over."""
        with bars(sys.stdout) as show:
            while True:
                if not proxy.running:
                    raise FleetError(f"the proxy ended by itself, with status {proxy.wait()}:\n{proxy.tail()}")
                moves = msgspec.json.decode(self._ask(MoveStatus()), type=list[dict[str, Any]])
                show(moves)
                if all(move["phase"] in ("done", "failed", "aborted") for move in moves):
                    return moves
                _sleep(LOOK_S)

    def _ask(self, command: MoveCommand) -> str:
        try:
            answer = ask(self._admin, command, ANSWER_S)
        except (OSError, ValueError) as exc:
            raise FleetError(f"the proxy does not answer {type(command).__name__}: {exc}") from None
        if not answer.done:
            raise FleetError(answer.line)
        return answer.line


def proposed(config: Config, added: Sequence[Shard]) -> str:
    """What `pyproxy plan` prints."""
    shards = config.shard_map().shards
    try:
        samples = asyncio.run(sampled(shards, Access(config.backend), SAMPLES))
        return write_plan(planned(shards, weights(shards, samples), added, []), BYTES_PER_S)
    except (CannotSample, CannotPlan) as exc:
        raise FleetError(f"pyproxy plan: {exc}") from None


def say(what: str, text: str) -> None:
    print(f"  {what:<10} {text}" if what or not text.startswith("pyproxy") else text, flush=True)


def _sleep(seconds: float) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        interrupts.raise_if_interrupted()
        time.sleep(min(left, LOOK_S))


# --- how far it is ----------------------------------------------------------------------------------------------------

Show = Callable[[list[dict[str, Any]]], None]


@contextlib.contextmanager
def bars(out: TextIO) -> Iterator[Show]:
    """Shows the moves: in a terminal their lines in place, elsewhere a line for each change of what is done."""
    drawn = 0
    told = ""

    def draw(moves: list[dict[str, Any]]) -> None:
        nonlocal drawn
        width = shutil.get_terminal_size().columns - 1
        lines = [*(shown(move, time.time()) for move in moves), f"  {done_of(moves)}"]
        up = f"\x1b[{drawn}A" if drawn else ""
        out.write(up + "".join(f"\x1b[2K{line[:width]}\n" for line in lines))
        out.flush()
        drawn = len(lines)

    def tell(moves: list[dict[str, Any]]) -> None:
        nonlocal told
        text = done_of(moves)
        if text != told:
            told = text
            say("", text)

    yield draw if out.isatty() else tell


def done_of(moves: Sequence[Mapping[str, Any]]) -> str:
    """All moves together."""
    shares = [
        1.0 if move["phase"] in HANDED_OVER else share(move["phase"], move["keys"], move["keys_done"]) for move in moves
    ]
    copied = sum(shares) / len(shares)
    over, handed = (sum(move["phase"] in phases for move in moves) for phases in (("done",), HANDED_OVER))
    return f"copied {copied:4.0%}, handed over {handed} of {len(moves)}, cleared {over} of {len(moves)}"
