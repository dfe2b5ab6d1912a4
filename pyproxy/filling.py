"""How full a shard is, how fast it fills, and on which day it is full, in the same numbers for INFO and HTTP.

The parent keeps a sample of `used_memory` for each quarter of an hour of the last day, of the primary of each shard
(`Filling`). What follows from them is the rate, which goes to the workers with the health of the shard; all else
follows from that health. Pure: the time is an argument. Nothing outlives a restart.

The rate is that of Theil and Sen: the median of the slopes between any two samples. What is loaded or deleted at once
moves it little, and a peak of some buffers not at all, where least squares would take either for growth.
"""

import datetime
import itertools
import math
from collections import deque
from collections.abc import Iterable

from pyproxy.health import integer
from pyproxy.messages import FillRate, ShardHealth

DAY_S = 86400.0

SAMPLE_EVERY_S = 900.0
"""The rate is found anew with each sample, in less than a millisecond."""

SAMPLES = 97
"""Of a whole day: a load that rises in the morning and falls in the evening does not grow."""

LEAST_SAMPLES = 5
"""Of an hour."""

FALL = 0.9
"""Less than this of the sample before, and what was before it says nothing of what comes: keys were deleted, or moved
to another shard."""

CLEAR = 8.0
"""The growth over all samples must be so many times the median distance of a sample from the line. It is half as much
for a load that rises and falls by the day and does not grow."""

MOST_DAYS = 365.0
"""What is further away is not said: no day tells how a year will be. And before a whole day was watched, nothing is
said that is further away than what was watched: half of a load that rises and falls by the day looks like growth."""

ALARM_SHARE = 0.8
"""Of the limit: above it a shard that grows on is soon evicting keys, or refusing writes."""

ALARM_DAYS = 14.0
"""For so long another shard must be planned, ordered and filled before."""


class Filling:
    """The memory that one primary has used, over the last day. `rate`: how fast it grows, where that is clear."""

    def __init__(self) -> None:
        self.rate: FillRate | None = None
        self._samples: deque[tuple[float, int]] = deque(maxlen=SAMPLES)
        self._due = -math.inf

    def note(self, at: float, used: int) -> None:
        """So many bytes are in use; `at` is CLOCK_MONOTONIC, s. Most of the calls come too soon, and do nothing."""
        if at < self._due:
            return
        if self._samples and used < FALL * self._samples[-1][1]:
            self.begin_anew()
        self._samples.append((at, used))
        self._due = at + SAMPLE_EVERY_S
        self.rate = _rate(list(self._samples))

    def begin_anew(self) -> None:
        """What was seen so far says nothing of what comes."""
        self._samples.clear()
        self.rate, self._due = None, -math.inf

    def __len__(self) -> int:
        return len(self._samples)

    def __repr__(self) -> str:
        return f"<Filling {len(self)} samples {self.rate}>"


def _rate(samples: list[tuple[float, int]]) -> FillRate | None:
    """None: too few samples, or too much noise."""
    if len(samples) < LEAST_SAMPLES:
        return None
    slope = _median((y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in itertools.combinations(samples, 2))
    base = _median(y - slope * x for x, y in samples)
    noise = _median(abs(y - slope * x - base) for x, y in samples)
    watched_s = samples[-1][0] - samples[0][0]
    if abs(slope) * watched_s < CLEAR * noise:
        return None
    return FillRate(round(slope * DAY_S), watched_s)


def _median(values: Iterable[float]) -> float:
    """The upper one of an even number. The module `statistics` would cost each worker some hundred kilobytes."""
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


def limit(health: ShardHealth) -> tuple[int, str]:
    """The bytes that the primary may use, and which field of INFO says so: `maxmemory`, or `total_system_memory`, what
    its machine has, which it may have to share with others. 0 and no name: nothing is known."""
    for field in ("maxmemory", "total_system_memory"):
        if (size := integer(health.info.get(field))) > 0:
            return size, field
    return 0, ""


def full_in_days(health: ShardHealth) -> float | None:
    """Until its primary has used all that it may, at this rate; None where no day can be said, or it is full."""
    rate, (size, _) = health.fill_rate, limit(health)
    left = size - integer(health.info.get("used_memory"))
    if rate is None or rate.bytes_per_day <= 0 or left <= 0:
        return None
    days = left / rate.bytes_per_day
    return days if days <= (MOST_DAYS if rate.watched_s >= DAY_S else rate.watched_s / DAY_S) else None


def full_on(health: ShardHealth, wall: float) -> str:
    """The day (UTC) on which it is full, as 2026-12-31; empty where none can be said. `wall`: the time, s."""
    days = full_in_days(health)
    return "" if days is None else datetime.datetime.fromtimestamp(wall + days * DAY_S, datetime.UTC).date().isoformat()


def alarms(health: ShardHealth, wall: float) -> list[str]:
    """What an operator must know of its memory: a line each."""
    found = []
    used, (size, field) = integer(health.info.get("used_memory")), limit(health)
    if size and used > ALARM_SHARE * size:
        of = (
            f"maxmemory ({size:,})"
            if field == "maxmemory"
            else f"the machine's memory ({size:,}), and there is no maxmemory"
        )
        found.append(f"memory: {used:,} bytes are {used / size:.0%} of {of}")
    rate, days = health.fill_rate, full_in_days(health)
    if rate is not None and days is not None and days <= ALARM_DAYS:
        soon = f"{days:.0f} days" if days >= 2 else f"{days * 24:.0f} hours"
        over = f"the rate of the last {rate.watched_s / 3600:.0f} h ({rate.bytes_per_day:,} bytes a day)"
        found.append(f"memory: full on {full_on(health, wall)}, in {soon}, at {over}")
    return found
