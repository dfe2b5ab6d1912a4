"""How fast keys are copied. Pure: the time, and what was measured, are arguments."""

SLOW_S = 0.005
"""So much longer than at its fastest a server may take to answer PING, until the mover counts as a burden to it."""

LEAST = 0.01
STEP = 0.05


class Bucket:
    """Bytes per second, of all moves together; 0: no bound."""

    def __init__(self, bytes_per_s: int = 0) -> None:
        self.bytes_per_s = bytes_per_s
        self._free_at = 0.0  # when what was taken is paid for

    def bound(self, bytes_per_s: int) -> None:
        """From now on. A debt from before is forgotten: what waits for a low rate goes on as soon as it is raised."""
        if bytes_per_s != self.bytes_per_s:
            self.bytes_per_s, self._free_at = bytes_per_s, 0.0

    def take(self, size: int, now: float) -> float:
        """How many seconds to wait before so many bytes are sent."""
        if not self.bytes_per_s:
            return 0.0
        wait = max(0.0, self._free_at - now)
        self._free_at = now + wait + size / self.bytes_per_s
        return wait


class Throttle:
    """What part of the full speed the servers bear: more by a step, less by half (AIMD)."""

    def __init__(self) -> None:
        self.level = 1.0
        self._fastest: dict[str, float] = {}

    def measured(self, latencies: dict[str, float]) -> None:
        """How long each server took to answer PING, in seconds."""
        slow = False
        for server, latency in latencies.items():
            fastest = self._fastest[server] = min(latency, self._fastest.get(server, latency))
            slow = slow or latency > fastest + SLOW_S
        self.level = max(LEAST, self.level / 2) if slow else min(1.0, self.level + STEP)
