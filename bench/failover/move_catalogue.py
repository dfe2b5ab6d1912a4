"""All faults that are made while slots move: what each is called, and what may be seen of it."""

from __future__ import annotations

from bench.failover import moves
from bench.failover.move_trial import MoveExpect, MoveFault

CLEAN = MoveExpect(clean=True)
PARENT = MoveExpect(process_dies=True)
MOVER = MoveExpect(clean=True, logged=("-mover",))
WORKER = MoveExpect(process_dies=True, logged=("+worker-death", "+worker-kill"))
SERVER = MoveExpect(loses=True)

HITS = [
    ("kill-parent", "kill -9 of the parent", moves.kill_parent, PARENT),
    ("kill-mover", "kill -9 of the mover", moves.kill_mover, MOVER),
    ("kill-worker", "kill -9 of a worker", moves.kill_worker, WORKER),
    ("kill-source", "kill -9 of the primary of a source", moves.kill_source, SERVER),
    ("stop-source", "SIGSTOP of the primary of a source", moves.stop_source, SERVER),
    ("kill-destination", "kill -9 of the primary of a destination", moves.kill_destination, SERVER),
    ("stop-destination", "SIGSTOP of the primary of a destination", moves.stop_destination, SERVER),
    ("promote-source", "pyproxy promote of a source", moves.promote_source, CLEAN),
    ("promote-destination", "pyproxy promote of a destination", moves.promote_destination, CLEAN),
    ("flush", "FLUSHDB of a client, and writes right after it", moves.flush, CLEAN),
]
"""Each is made in each phase."""

MOVES = [
    MoveFault("move-growth", "as many shards again join; no fault", moves.peace, CLEAN),
    MoveFault(
        "move-one-to-many",
        "one server is shared out to several; no fault",
        moves.peace,
        CLEAN,
        grows=lambda shards: (1, max(2, shards)),
    ),
    *(
        MoveFault(f"move-{name}-{phase}", f"{what}, {phase}", moves.during(phase, hit), expect)
        for name, what, hit, expect in HITS
        for phase in moves.PHASES
    ),
    *(
        MoveFault(
            f"move-flush-destination-{phase}",
            f"FLUSHALL at the destination, past the proxy, {phase}",
            moves.during(phase, moves.flush_destination),
            CLEAN,
            grows=lambda _shards: (1, 1),  # it owns nothing before its move is done
        )
        for phase in moves.PHASES[:3]
    ),
    MoveFault(
        "move-stop-worker",
        "SIGSTOP of a worker until an attempt to hand over has come to an end",
        moves.during("copying", moves.stop_worker),
        WORKER,
    ),
    MoveFault(
        "move-touch",
        "the moves are paused while clients write once to each of many keys",
        moves.during("following", moves.touch),
        CLEAN,
    ),
    MoveFault(
        "move-full", "the destination has no memory left", moves.during("copying", moves.fill_destination), CLEAN
    ),
    MoveFault(
        "move-abort",
        "an operator aborts the moves, and the mover is killed",
        moves.during("copying", moves.abort),
        MoveExpect(ends="aborted", clean=True, logged=("-mover",)),
    ),
    MoveFault(
        "move-start-dead", "the moves are asked for when a primary has just died", moves.start_while_promoting, SERVER
    ),
    MoveFault("move-start-replacing", "the moves and a planned promotion at once", moves.start_while_replacing, CLEAN),
]
