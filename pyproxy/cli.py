"""The command line: what an operator types comes in, lines and an exit status go out.

    pyproxy serve CONFIG                  serve until SIGTERM
    pyproxy check CONFIG                  everything that is wrong with a configuration
    pyproxy where KEY... --config CONFIG  where keys live
    pyproxy slots --shards N              an equal split, ready to paste
    pyproxy status --config CONFIG        the shards of the proxy that runs with it, as a table
    pyproxy promote SHARD --config CONFIG have that proxy make a replica the primary, with both alive
    pyproxy pause SHARD --config CONFIG   have it hold the writes of a shard
    pyproxy resume SHARD --config CONFIG  and let them go
    pyproxy move ... --config CONFIG      have it move slots to other shards; see move_commands.py
    pyproxy verify --misplaced --config CONFIG    keys that lie on a wrong shard; with --move they are moved
    pyproxy plan --config CONFIG          the moves of slots that even out what the shards hold
    pyproxy demo                          a whole fleet of servers, and the proxy in front
    pyproxy demo --import                 one server becomes many while clients go on

What was asked for goes to stdout, what is wrong to stderr: 78 for a configuration, 69 for an address that cannot be
had or does not answer. `status` exits with 1 where it shows an alarm, and the commands where the proxy refuses.

What only one command needs and takes a while to import is imported when that command runs: the others start at once.
"""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from msgspec import ValidationError, convert, structs

from pyproxy import __version__, move_commands
from pyproxy.access import Access, why
from pyproxy.config import UNDISCOVERED, Config, ConfigErrors, ShardName, ShardTable
from pyproxy.control.growth.opening import looked_at
from pyproxy.control.growth.plan import CannotPlan, planned, weights
from pyproxy.control.growth.plan_file import write_plan
from pyproxy.control.growth.sampling import CannotSample, sampled
from pyproxy.control.growth.store import Document, differences, effective
from pyproxy.control.health.misplaced_keys import CannotVerify, MisplacedKeys
from pyproxy.control.http.admin import Command, Pause, Promote, Resume, ask
from pyproxy.control.http.status import table
from pyproxy.hashing import SLOTS, hash_tag, slot
from pyproxy.shard_map import Node, Shard, ShardMap, format_slots, split_slots

EX_USAGE = 64  # <sysexits.h>
EX_UNAVAILABLE = 69
EX_CONFIG = 78

GET_BOTO3 = "`pip install boto3` into the environment of pyproxy; ./run and the image have it"
ANSWER_S = 5.0  # for the answer of a proxy that is there

FIRST_PORT = 7000  # of the addresses that `slots` makes up


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        status: int = args.run(args)
        return status
    except ConfigErrors as exc:
        many = len(exc.problems)
        head = f"pyproxy: {args.config}: {many} problem{'s' if many > 1 else ''}"
        print(head, *exc.problems, sep="\n", file=sys.stderr)
        return EX_CONFIG


class _Version(argparse.Action):
    """A build that does not serve says what it is for; see tools/make_build.py."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from pyproxy.worker.lane.lane import BUILD  # the compiled half, which no other command here needs

        print(f"pyproxy {__version__}" + (f" ({BUILD} build)" if BUILD else ""))
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pyproxy", description="One Redis endpoint in front of many primaries.")
    parser.add_argument("--version", action=_Version, nargs=0, help="say the version, and which build it is, and exit")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    ends = "serve until SIGTERM, SIGINT or SIGQUIT drains it; SIGINT twice ends it at once"
    serving = commands.add_parser("serve", help=ends)
    serving.add_argument("config", type=Path, metavar="CONFIG")
    serving.set_defaults(run=serve)

    checking = commands.add_parser("check", help="say everything that is wrong with a configuration")
    checking.add_argument("config", type=Path, metavar="CONFIG")
    checking.set_defaults(run=check)

    asking = commands.add_parser("where", help="say the slot, the shard and the primary of keys")
    asking.add_argument("keys", nargs="+", metavar="KEY")
    asking.add_argument("--config", type=Path, required=True, metavar="CONFIG")
    asking.set_defaults(run=where)

    splitting = commands.add_parser("slots", help="print an equal split of the slots, to paste into a configuration")
    splitting.add_argument("--shards", type=_shards, required=True, metavar="N")
    splitting.set_defaults(run=slots)

    watching = commands.add_parser("status", help="show the shards of a running proxy; 1 if there is an alarm")
    which = watching.add_mutually_exclusive_group(required=True)
    which.add_argument("--config", type=Path, metavar="CONFIG", help="its configuration, with [http] listen")
    which.add_argument("--url", metavar="URL", help="such as http://127.0.0.1:6381")
    watching.set_defaults(run=status)

    for name, run, does in (
        ("promote", promote, "have a running proxy make a replica the primary, with both alive"),
        ("pause", pause, "have a running proxy hold the writes of a shard"),
        ("resume", resume, "have a running proxy let the writes of a shard go"),
    ):
        telling = commands.add_parser(name, help=does)
        telling.add_argument("shard", type=_text, metavar="SHARD")
        telling.add_argument("--config", type=Path, required=True, metavar="CONFIG", help="its own, with [http] admin")
        if run is promote:
            telling.add_argument("--to", type=_node, metavar="HOST:PORT", help="else the fittest replica")
        telling.set_defaults(run=run)

    move_commands.add_parsers(commands, _answer_to_move)

    verifying = commands.add_parser("verify", help="look for keys that lie on a wrong shard; 1 if some are left")
    verifying.add_argument("--misplaced", action="store_true", required=True, help="keys whose slot is another shard's")
    verifying.add_argument("--config", type=Path, required=True, metavar="CONFIG")
    verifying.add_argument("--move", action="store_true", help="move them; a key that is there too is left, and said")
    verifying.add_argument("--rate", type=_rate, default=20_000, metavar="N", help="keys a second of a server (20000)")
    verifying.set_defaults(run=verify)

    planning = commands.add_parser(
        "plan", help="propose the moves of slots that even out what the shards hold, as TOML"
    )
    planning.add_argument("--config", type=Path, required=True, metavar="CONFIG")
    planning.add_argument("--add", type=_shard, action="append", default=[], metavar="NAME=HOST:PORT[,HOST:PORT...]",
                          help="a new shard: its primary, then its replicas; may be given several times")  # fmt: skip
    planning.add_argument("--remove", type=_text, action="append", default=[], metavar="NAME",
                          help="a shard that is to have no slots any more; may be given several times")  # fmt: skip
    planning.add_argument("--samples", type=_number(1, 1_000_000), default=10_000, metavar="N",
                          help="keys of each shard that are looked at (10000)")  # fmt: skip
    planning.add_argument("--rate", type=_number(1, 100_000), default=50, metavar="MB",
                          help="megabytes a second, to say how long it will take (50)")  # fmt: skip
    planning.set_defaults(run=plan)

    showing = commands.add_parser("demo", help="start servers and the proxy in front of them; Ctrl-C ends all")
    _demo_options(showing)
    showing.set_defaults(run=demo)
    return parser


def _demo_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=_number(0, 65535), default=6380, help="of the proxy; 0: a free one (6380)")
    parser.add_argument("--shards", type=_number(1, 1024), default=10, help="primaries (10)")
    parser.add_argument("--replicas", type=_number(0, 16), default=1, help="replicas of each primary (1)")
    parser.add_argument("--workers", type=_number(0, 256), default=0, help="workers; 0: one per core (0)")
    parser.add_argument(
        "--transactions",
        choices=("shard", "split"),
        default="shard",
        help="whose keys are on several shards: refused, or a block to each (shard)",
    )
    parser.add_argument(
        "--cross-shard",
        choices=("refuse", "emulate"),
        default="refuse",
        help="commands whose keys are on several shards: refused, or done in steps (refuse)",
    )
    parser.add_argument("--sentinel", action="store_true", help="three Sentinels promote, instead of the proxy")
    moving_in = "one server with many keys becomes one more than --shards, without replicas, while clients go on"
    parser.add_argument("--import", action="store_true", dest="moving_in", help=moving_in)
    parser.add_argument("--keys", type=_number(1, 100_000_000), default=1_000_000, help="for --import (1000000)")


def _load(path: Path) -> Config:
    """A configuration that can be served: the files it names can be used too. Raises ConfigErrors."""
    config = Config.load(path)
    problems = Access(config.backend).problems()
    if "elasticache" in map(config.promoter_of, config.shards) and find_spec("boto3") is None:
        problems.append(f"promotion.promoter: expected boto3 for elasticache ({GET_BOTO3}), got none")
    if problems:
        raise ConfigErrors(problems)
    return config


def _discovered(config: Config) -> Config:
    """With the servers of its replication groups, for which AWS is asked. Raises ConfigErrors."""
    if not config.undiscovered():
        return config
    from pyproxy.control.failover.promoters.replication_groups import discover

    return config.with_nodes(discover(config))


def _with_store(config: Config) -> tuple[Config, Document | None]:
    """With the slots that its store says, if it has one, and what else that says. Raises ConfigErrors."""
    document = asyncio.run(looked_at(config))
    return (effective(config, document) if document is not None else config), document


def serve(args: argparse.Namespace) -> int:
    config = _load(args.config)
    # Here, and not above: the other commands also work where nothing is compiled.
    from pyproxy.control import main as parent

    try:
        return parent.serve(config)
    except parent.StartError as exc:
        print(f"pyproxy: {exc}", file=sys.stderr)
        return exc.status


def check(args: argparse.Namespace) -> int:
    config = _load(args.config)
    replicas = sum(len(shard.replicas) for shard in config.shards)
    promoters = sorted({config.promoter_of(shard) for shard in config.shards})
    promoter = f"promoter{'s' if len(promoters) > 1 else ''} {' and '.join(promoters)}"
    workers = f"{config.workers} workers" if config.workers else "a worker per core"
    counts = f"{len(config.shards)} shards, {replicas} replicas"
    _, document = _with_store(config)
    print(f"{args.config}: ok: {counts}, {promoter}, {workers}, listens on {config.listen}")
    if document is not None:
        differs = differences(config, document)
        says = f"generation {document.generation}, moves under way: {len(document.under_way)}"
        head = f"store {config.store}: ok: {says}" + (", and differs from the configuration:" if differs else "")
        print(head, *differs, sep="\n  ")
    elif config.store:
        print(f"store {config.store}: ok: nothing yet; the first start writes the slots of the configuration into it")
    return 0


def where(args: argparse.Namespace) -> int:
    config, _ = _with_store(Config.load(args.config))
    shard_map = ShardMap(1, config.shards)
    for text in args.keys:
        key = os.fsencode(text)
        shard = shard_map.shard_of(key)
        tag = hash_tag(key)
        of_tag = "" if tag == key else f" (of hash tag {_printable(tag)})"
        primary = "not asked for yet" if shard.primary == UNDISCOVERED else shard.primary
        print(f"{_printable(key)}: slot {slot(key)}{of_tag}, shard {shard.name}, primary {primary}")
    return 0


def slots(args: argparse.Namespace) -> int:
    for index, each in enumerate(split_slots(args.shards)):
        print("[[shards]]", f'name = "s{index}"', f'primary = "127.0.0.1:{FIRST_PORT + index}"', sep="\n")
        print(f'slots = ["{format_slots(each)}"]\n')
    return 0


def status(args: argparse.Namespace) -> int:
    url = args.url or _status_url(Config.load(args.config))
    try:
        body = _fetch(f"{url.rstrip('/')}/shards")
        lines = table(body)
    except OSError as exc:
        reason = getattr(exc, "reason", exc)
        print(f"pyproxy: {url}: expected a pyproxy with [http] listen, got: {reason}", file=sys.stderr)
        return EX_UNAVAILABLE
    except (ValueError, LookupError, TypeError):
        print(f"pyproxy: {url}: expected the status of a pyproxy, got something else", file=sys.stderr)
        return EX_UNAVAILABLE
    print(*lines, sep="\n")
    return 1 if any(shard["alarms"] for shard in body["shards"]) else 0


def verify(args: argparse.Namespace) -> int:
    config, document = _with_store(_discovered(_load(args.config)))
    if args.move and document is not None and (moves := document.under_way):
        ids = ", ".join(entry.move.id for entry in moves)
        print(f"pyproxy: --move: expected no moves of slots under way, got {ids}", file=sys.stderr)
        return EX_UNAVAILABLE
    try:
        return asyncio.run(_verify(MisplacedKeys(config.shard_map(), Access(config.backend), args.rate), args.move))
    except CannotVerify as exc:
        print(f"pyproxy: {exc}", file=sys.stderr)
        return EX_UNAVAILABLE


async def _verify(misplaced_keys: MisplacedKeys, move: bool) -> int:
    found = left = 0
    async with misplaced_keys:
        async for misplaced in misplaced_keys.find():
            found += 1
            why_not = await misplaced_keys.move(misplaced) if move else "not moved"
            left += bool(why_not)
            print(f"{misplaced}: {why_not or 'moved'}" if move else misplaced, flush=True)
    print(f"{found} misplaced keys" + (f", {found - left} moved, {left} left" if move else ""))
    return 1 if left else 0


def plan(args: argparse.Namespace) -> int:
    config, document = _with_store(_discovered(_load(args.config)))
    if document is not None and (moves := document.under_way):
        ids = ", ".join(entry.move.id for entry in moves)
        print(f"pyproxy: expected no moves of slots under way, got {ids}", file=sys.stderr)
        return EX_UNAVAILABLE
    shards = config.shard_map().shards
    try:
        planned(shards, [1.0] * SLOTS, args.add, args.remove)  # names that do not fit, before any server is asked
        _check_added(config, args.add)
        samples = asyncio.run(sampled(shards, Access(config.backend), args.samples))
        proposal = planned(shards, weights(shards, samples), args.add, args.remove)
    except CannotPlan as exc:
        print(f"pyproxy: {exc}", file=sys.stderr)
        return EX_USAGE
    except CannotSample as exc:
        print(f"pyproxy: {exc}", file=sys.stderr)
        return EX_UNAVAILABLE
    print(write_plan(proposal, args.rate * 1e6), end="")
    return 0


def _check_added(config: Config, added: Sequence[Shard]) -> None:
    """Whether they could be served beside those that there are. Raises CannotPlan."""
    try:
        config.with_shards([*config.shards, *(ShardTable(**structs.asdict(shard)) for shard in added)])
    except ConfigErrors as exc:
        raise CannotPlan("with the shards that are added: " + "; ".join(exc.problems)) from None


def promote(args: argparse.Namespace) -> int:
    config = Config.load(args.config)
    longest = config.promotion.deadline_s + config.promotion.verify_s + ANSWER_S
    return _ask_proxy(config, Promote(args.shard, args.to or ""), longest)


def pause(args: argparse.Namespace) -> int:
    return _ask_proxy(Config.load(args.config), Pause(args.shard), ANSWER_S)


def resume(args: argparse.Namespace) -> int:
    return _ask_proxy(Config.load(args.config), Resume(args.shard), ANSWER_S)


def _answer_to_move(args: argparse.Namespace, command: Command) -> str | None:
    return _answer(Config.load(args.config), command, ANSWER_S)[0]


def _ask_proxy(config: Config, command: Command, timeout_s: float) -> int:
    line, status = _answer(config, command, timeout_s)
    if line is not None:
        print(line)
    return status


def _answer(config: Config, command: Command, timeout_s: float) -> tuple[str | None, int]:
    """The line of the proxy that has done it, and 0; else None, what was wrong has been said, and the exit status."""
    path = config.http.admin
    if not path:
        raise ConfigErrors(['http.admin: expected the path of the socket for commands, got ""'])
    try:
        answer = ask(path, command, timeout_s)
    except TimeoutError:
        line = f"expected an answer within {timeout_s:g} s, got none; `pyproxy status` tells what became of it"
        print(f"pyproxy: {path}: {line}", file=sys.stderr)
        return None, EX_UNAVAILABLE
    except OSError as exc:
        print(f"pyproxy: {path}: expected a pyproxy with [http] admin, got: {why(exc)}", file=sys.stderr)
        return None, EX_UNAVAILABLE
    except ValueError:
        print(f"pyproxy: {path}: expected the answer of a pyproxy, got something else", file=sys.stderr)
        return None, EX_UNAVAILABLE
    if not answer.done:
        print(f"pyproxy: {answer.line}", file=sys.stderr)
        return None, 1
    return answer.line, 0


def demo(args: argparse.Namespace) -> int:
    if args.moving_in:
        from pyproxy.demo_import import run
    else:
        from pyproxy.demo import run

    return run(args)


def _status_url(config: Config) -> str:
    if config.http.listen is None:
        raise ConfigErrors(['http.listen: expected the address of the status, got ""'])
    return f"http://{config.http.listen}"


def _fetch(url: str) -> Any:
    import urllib.error
    import urllib.request

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # it is near, whatever http_proxy says
    try:
        with opener.open(url, timeout=ANSWER_S) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as answer:
        if answer.code != 503:  # 503 is an answer: some shard is down
            raise
        with answer:
            return json.load(answer)


def _shards(text: str) -> int:
    if text.isdecimal() and 1 <= int(text) <= SLOTS:
        return int(text)
    raise argparse.ArgumentTypeError(f"expected 1 to {SLOTS}, got {text}")


def _rate(text: str) -> int:
    if text.isdecimal() and 1 <= int(text) <= 10_000_000:
        return int(text)
    raise argparse.ArgumentTypeError(f"expected 1 to 10000000 keys a second, got {text}")


def _number(least: int, most: int) -> Callable[[str], int]:
    """An argparse type: a whole number from `least` to `most`."""

    def number(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"expected a number from {least} to {most}, got {text!r}")
        return int(text)

    return number


def _shard(text: str) -> Shard:
    """A new shard, `name=host:port[,host:port...]`; it has no slots yet."""
    name, _, nodes = text.partition("=")
    try:
        checked = convert(name, ShardName)
        primary, *replicas = map(Node.parse, nodes.split(","))
    except ValidationError:
        raise argparse.ArgumentTypeError(f"expected a name of letters, digits and _ . -, got {_text(name)!r}") from None
    except ValueError as exc:
        raise argparse.ArgumentTypeError(
            f"expected NAME=HOST:PORT[,HOST:PORT...], got {_text(text)!r}: {exc}"
        ) from None
    return Shard(checked, primary, tuple(replicas), ())


def _node(text: str) -> str:
    try:
        return str(Node.parse(text))
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None


def _text(argument: str) -> str:
    """What was typed as text, whatever its bytes."""
    return _printable(os.fsencode(argument))


def _printable(key: bytes) -> str:
    """A key as text on one line, whatever is in it."""
    text = key.decode(errors="replace")
    return text if text.isprintable() and text.encode() == key else repr(key)[2:-1]
