"""What is done to servers and to the proxy while slots move: how a phase is reached, and the fault that is made in it.

A phase is reached by what the proxy says of its moves, never by time. Two of them last some milliseconds if all is
well; they are made longer, as an operator or another fault could:

    copying        the rate is bounded until the fault is made
    following      an attempt to hand over has failed, as the replicas of the destination stand still; the next one
                   comes a second later
    handing-over   the same, but the fault is made within the attempt
    switched       all workers have just been told of the new owner, and have written something there
    clearing       the operator has the moves paused when the map is written
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator

from bench.failover.move_rig import MoveRig
from pyproxy.control.http.admin import MoveAbort, MovePause, MoveResume
from pyproxy.fleet import FleetError, LiveShard, Proxy, Server

Hit = Callable[[MoveRig], None]
"""Makes a fault, and returns when it is over or when it is certain that it will be."""

PHASES = ("copying", "following", "handing-over", "switched", "clearing")


# --- a phase is reached -----------------------------------------------------------------------------------------------


def peace(rig: MoveRig) -> None:
    """All moves, and no fault."""
    rig.fault_begins()
    rig.start_moves()
    rig.until_over()
    rig.fault_ends()


def during(phase: str, hit: Hit) -> Callable[[MoveRig], None]:
    """The moves, and this fault in this phase."""
    reach = {
        "copying": _copying,
        "following": _following,
        "handing-over": _handing_over,
        "switched": _switched,
        "clearing": _clearing,
    }[phase]

    def act(rig: MoveRig) -> None:
        rig.fault_begins()
        with reach(rig):
            rig.note_hit()
            hit(rig)
        rig.until_over()
        rig.fault_ends()

    return act


@contextlib.contextmanager
def _copying(rig: MoveRig) -> Iterator[None]:
    rig.throttle()
    rig.start_moves()
    rig.watch("a key to be copied", lambda: any(each["keys_done"] for each in rig.status()))
    yield
    _go_on(rig)


@contextlib.contextmanager
def _following(rig: MoveRig) -> Iterator[None]:
    with _copying(rig):
        _pause(rig.destination.replicas)
        rig.throttle(0)
        _until_of_destination(rig, "-move-hand-over")
        _resume(rig.destination.replicas)
        yield


@contextlib.contextmanager
def _handing_over(rig: MoveRig) -> Iterator[None]:
    with _copying(rig):
        _pause(rig.destination.replicas)
        rig.throttle(0)
        _until_of_destination(rig, "+move-hand-over")
        try:
            yield
        finally:
            _resume(rig.destination.replicas)


@contextlib.contextmanager
def _switched(rig: MoveRig) -> Iterator[None]:
    with _copying(rig):
        rig.throttle(0)
        _until_of_destination(rig, "-move-switch")
        rig.write_to_moved()
        yield


@contextlib.contextmanager
def _clearing(rig: MoveRig) -> Iterator[None]:
    with _copying(rig):
        rig.throttle(0)
        _until_of_destination(rig, "+move-switch")
        rig.ask_proxy(MovePause())
        rig.watch("the switch to be over", lambda: not _switching(rig))
        yield
        rig.when_it_answers(MoveResume())


def _switching(rig: MoveRig) -> bool:
    return any(each["phase"] in ("switching", "draining") for each in rig.status())


def _until_of_destination(rig: MoveRig, event: str) -> None:
    """Until this is logged of a move to the shard that the fault is made to."""
    while f"destination={rig.name_of(rig.destination)} " not in rig.until_logged(event) + " ":
        pass


def _go_on(rig: MoveRig) -> None:
    """As fast as it may. A proxy that was restarted has no bound."""
    with contextlib.suppress(OSError):
        rig.throttle(0)


def _pause(servers: tuple[Server, ...]) -> None:
    for each in servers:
        each.pause()


def _resume(servers: tuple[Server, ...]) -> None:
    for each in servers:
        each.resume()


# --- the faults -------------------------------------------------------------------------------------------------------


def kill_parent(rig: MoveRig) -> None:
    rig.restart_proxy()


def kill_mover(rig: MoveRig) -> None:
    rig.kill_process("mover")


def kill_worker(rig: MoveRig) -> None:
    rig.kill_process("worker")


def stop_worker(rig: MoveRig) -> None:
    """Until an attempt to hand over is over, one way or the other."""
    worker = rig.stop_process("worker")
    _go_on(rig)
    rig.until_logged("-move-hand-over", "-move-switch")
    rig.resume_process(worker)


def kill_source(rig: MoveRig) -> None:
    _kill(rig, rig.source)


def kill_destination(rig: MoveRig) -> None:
    _kill(rig, rig.destination)


def _kill(rig: MoveRig, shard: LiveShard) -> None:
    rig.suffers(shard)
    shard.primary.kill()
    _resume(rig.destination.replicas)
    rig.primary_of(shard)


def stop_source(rig: MoveRig) -> None:
    _stop(rig, rig.source)


def stop_destination(rig: MoveRig) -> None:
    _stop(rig, rig.destination)


def _stop(rig: MoveRig, shard: LiveShard) -> None:
    """SIGSTOP until another one has been promoted, and a while longer."""
    rig.suffers(shard)
    shard.primary.pause()
    _resume(rig.destination.replicas)
    rig.wait("a replica to be promoted", lambda: any(each.says_master() for each in shard.replicas))
    rig.sleep(3)
    shard.primary.resume()


def promote_source(rig: MoveRig) -> None:
    _promote(rig, rig.source)


def promote_destination(rig: MoveRig) -> None:
    _promote(rig, rig.destination)


def _promote(rig: MoveRig, shard: LiveShard) -> None:
    """As an operator asks for it."""
    _resume(rig.destination.replicas)
    done = rig.admin("promote", rig.name_of(shard))
    if done.returncode:
        raise FleetError(f"pyproxy promote: {done.stdout}{done.stderr}")


def flush(rig: MoveRig) -> None:
    """A client empties a database, and writes to it again at once."""
    rig.ballast.empty_and_write_again()


def flush_destination(rig: MoveRig) -> None:
    """By somebody who takes it for a new server that nobody uses yet."""
    _resume(rig.destination.replicas)
    rig.destination.primary.ask("FLUSHALL")


def touch(rig: MoveRig) -> None:
    """An operator has the moves paused, and clients write once to each of many keys."""
    rig.ask_proxy(MovePause())
    rig.ballast.touch()
    rig.ask_proxy(MoveResume())


def fill_destination(rig: MoveRig) -> None:
    """Its memory is full before all is copied, until the mover has said so."""
    primary = rig.destination.primary
    primary.ask("CONFIG", "SET", "maxmemory", "1mb")
    _go_on(rig)
    rig.until_logged("+move-trouble")
    rig.sleep(5)
    if any(each["phase"] == "done" for each in rig.status() if each["destination"] == rig.name_of(rig.destination)):
        rig.problems.append("a move to a server without memory is done")
    primary.ask("CONFIG", "SET", "maxmemory", "0")


def abort(rig: MoveRig) -> None:
    """And the mover dies at the same time."""
    rig.kill_process("mover")
    rig.ask_proxy(MoveAbort(""))


def start_while_promoting(rig: MoveRig) -> None:
    """The primary of a source is dead when the operator asks for the moves."""
    rig.fault_begins()
    rig.suffers(rig.source)
    rig.source.primary.kill()
    rig.start_moves()
    rig.note_hit()
    rig.until_over()
    rig.fault_ends()


def start_while_replacing(rig: MoveRig) -> None:
    """Operators ask for a promotion and for the moves at the same time."""
    proxy = rig.proxies[0]
    assert isinstance(proxy, Proxy)
    rig.fault_begins()
    argv = [sys.executable, "-m", "pyproxy", "promote", rig.name_of(rig.source), "--config", str(proxy.config)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as promoting:
        rig.until_logged("+hand-over")
        rig.start_moves()
        rig.note_hit()
        said, _ = promoting.communicate()
    if promoting.returncode:
        raise FleetError(f"pyproxy promote: {said}")
    rig.until_over()
    rig.fault_ends()
