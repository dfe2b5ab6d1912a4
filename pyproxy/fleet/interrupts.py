"""Signals that end a program which starts servers. They are noted at once, and obeyed between two steps only.

A handler that raises may be called anywhere. Inside a hook of `fork`, or inside a destructor, Python drops what it
raises. Between the start of a process and the assignment of its pid nobody would stop that process. So the handler only
notes the signal here, and whoever starts a process or waits for one asks for it.
"""

import signal
from types import FrameType

_noted = False


def listen(*numbers: signal.Signals) -> None:
    """From now on these signals end this program by KeyboardInterrupt, raised where it calls `raise_if_interrupted`.

    The second signal raises KeyboardInterrupt at once, as the orderly end may take too long.
    """
    for number in numbers:
        signal.signal(number, _note)


def raise_if_interrupted() -> None:
    """Raises KeyboardInterrupt if a signal has come."""
    if _noted:
        raise KeyboardInterrupt


def _note(_number: int, _frame: FrameType | None) -> None:
    global _noted
    if _noted:
        raise KeyboardInterrupt
    _noted = True
