"""`pyproxy move`: what an operator asks of a running proxy about moves of slots, and how the answer is shown."""

import argparse
import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from pyproxy.control.http.admin import (
    Command,
    MoveAbort,
    MoveForget,
    MovePause,
    MoveResume,
    MoveStart,
    MoveStatus,
    MoveThrottle,
)
from pyproxy.moves import COUNTED, share

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}

BAR = 20
"""Characters of the bar of one move."""

Ask = Callable[[argparse.Namespace, Command], str | None]
"""Asks the proxy -> its line, or None where it has refused or cannot be asked, which has been said."""


def add_parsers(commands: Any, ask: Ask) -> None:
    """The subcommands of `move`. `commands`: what `argparse.ArgumentParser.add_subparsers` returns."""
    moving = commands.add_parser("move", help="have a running proxy move slots to other shards")
    subcommands = moving.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, does: str, run: Callable[[argparse.Namespace, Ask], int]) -> Any:
        parser = subcommands.add_parser(name, help=does)
        parser.add_argument("--config", type=Path, required=True, metavar="CONFIG", help="its own, with [http] admin")
        parser.set_defaults(run=lambda args: run(args, ask))
        return parser

    starting = add("start", "begin the moves of a plan, which go on in the background", start)
    starting.add_argument("plan", type=Path, metavar="PLAN", help="what `pyproxy plan` has written")
    starting.add_argument("--replace", action="store_true", help="the destinations may have keys in these slots")
    starting.add_argument("--accept-eviction", action="store_true", help="they may evict keys")
    showing = add("status", "how far all moves are", status)
    showing.add_argument("--json", action="store_true", help="all that is known of them")
    add("pause", "copy nothing more and hand nothing over, until resumed", pause)
    add("resume", "go on", resume)
    throttling = add("throttle", "bound the rate of all moves together", throttle)
    throttling.add_argument("rate", type=rate, metavar="RATE", help="20MB/s; 0: as fast as the servers bear")
    forgetting = add("forget", "take a shard without slots out of the store", forget)
    forgetting.add_argument("shard", metavar="SHARD")
    aborting = add("abort", "give moves up that have not handed over, and delete what was copied", abort)
    aborting.add_argument("id", nargs="?", default="", metavar="ID", help="of one move; else all")


def rate(text: str) -> int:
    """`20MB/s` -> bytes a second. Raises ArgumentTypeError."""
    found = re.fullmatch(r"([0-9]{1,9})(KB|MB|GB|)(?:/s)?", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"expected a rate such as 20MB/s, got {text!r}")
    return int(found[1]) * UNITS[found[2]]


def start(args: argparse.Namespace, ask: Ask) -> int:
    try:
        plan = args.plan.read_text()
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror.lower() if isinstance(exc, OSError) and exc.strerror else str(exc)
        print(f"pyproxy: {args.plan}: expected a plan, got: {reason}", file=sys.stderr)
        return 1
    return _said(ask(args, MoveStart(plan, args.replace, args.accept_eviction)))


def pause(args: argparse.Namespace, ask: Ask) -> int:
    return _said(ask(args, MovePause()))


def resume(args: argparse.Namespace, ask: Ask) -> int:
    return _said(ask(args, MoveResume()))


def throttle(args: argparse.Namespace, ask: Ask) -> int:
    return _said(ask(args, MoveThrottle(args.rate)))


def abort(args: argparse.Namespace, ask: Ask) -> int:
    return _said(ask(args, MoveAbort(args.id)))


def forget(args: argparse.Namespace, ask: Ask) -> int:
    return _said(ask(args, MoveForget(args.shard)))


def status(args: argparse.Namespace, ask: Ask) -> int:
    """1 if a move has failed, or there is something that an operator must know."""
    line = ask(args, MoveStatus())
    if line is None:
        return 1
    found = msgspec.json.decode(line.encode())
    if args.json:
        print(msgspec.json.format(line.encode()).decode())
    else:
        print(*(shown(each, time.time()) for each in found), sep="\n") if found else print("no moves")
    return 1 if any(each["alarm"] or each["phase"] == "failed" for each in found) else 0


def shown(move: Mapping[str, Any], now: float) -> str:
    """One line for a move; `now` on the wall clock, s."""
    keys, done, phase = move["keys"], move["keys_done"], move["phase"]
    filled = round(share(phase, keys, done) * BAR)
    words = [
        f"{move['id']:>4}  {move['source']} -> {move['destination']}",
        f"[{'#' * filled}{'-' * (BAR - filled)}]",
        f"{phase}{' (paused)' if move['paused'] else ''}",
        f"{move['slots']} slots, {move['copied_keys']} keys and {move['copied_bytes']} bytes copied",
    ]
    if phase in COUNTED and keys:
        began = move["times"].get(phase, now)
        left = f", {(now - began) * (keys - done) / done:.0f} s left" if 0 < done < keys else ""
        words.append(f"{done} of {keys}{left}")
    if move["dirty"]:
        words.append(f"{move['dirty']} changed since")
    if move["attempts"]:
        words.append(f"longest hold {move['longest_hold_ms']:g} ms in {move['attempts']} attempts")
    words += [text for text in (move["error"], move["alarm"], move["why"] if phase == "failed" else "") if text]
    return "  ".join(words)


def _said(line: str | None) -> int:
    if line is None:
        return 1
    print(line)
    return 0
