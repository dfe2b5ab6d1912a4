"""What the lane is told of a command: its reply, or why there is none yet; and whether its client gets replies."""

from __future__ import annotations

import enum
from typing import Final, Literal


class Later(enum.Enum):
    """Why a command has no reply yet."""

    PLACED = "placed"
    """The command holds a place in its client's order of replies. The reply is given to that place later."""

    NOT_NOW = "not now"
    """The client was parked, and nothing was done for the command. The lane offers it again when the client goes on."""


PLACED: Final = Later.PLACED
NOT_NOW: Final = Later.NOT_NOW

Outcome = bytes | Later
"""A whole reply frame, `b""` for a command that gets none; or why there is no reply yet."""

NotNow = Literal[Later.NOT_NOW]

Refused = bytes | NotNow | None
"""The error line of a request that may not pass; NOT_NOW where its client was parked; None where it may pass."""

REPLY_ON, REPLY_OFF, REPLY_SKIP = 0, 1, 2
"""`Client.reply_mode`: what CLIENT REPLY has set. SKIP holds for the next command alone."""
