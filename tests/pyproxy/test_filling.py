"""How full a shard is, how fast it fills, and when it is full: without a server, over days that pass at once."""

import math
import random
from collections.abc import Callable

import pytest

from pyproxy.filling import (
    ALARM_DAYS,
    DAY_S,
    MOST_DAYS,
    SAMPLE_EVERY_S,
    SAMPLES,
    Filling,
    alarms,
    full_in_days,
    full_on,
)
from pyproxy.filling import limit as limit_of
from pyproxy.messages import FillRate, ShardHealth

GB = 1 << 30
HOUR_S = 3600.0
WALL = 1_796_083_200.0  # 2026-12-01T00:00:00Z


def watched(hours: float, used: Callable[[float], float], every_s: float = 10.0, start: float = 1000.0) -> Filling:
    """What is known after so many hours in which that much memory was in use; `used` is given hours."""
    filling = Filling()
    for step in range(int(hours * HOUR_S / every_s) + 1):
        filling.note(start + step * every_s, int(used(step * every_s / HOUR_S)))
    return filling


def per_day(filling: Filling) -> float:
    """In GB. Fails where nothing is said."""
    assert filling.rate is not None
    return filling.rate.bytes_per_day / GB


def shard(used: int = 0, maxmemory: int = 0, machine: int = 0, rate: FillRate | None = None) -> ShardHealth:
    info = {"used_memory": str(used), "maxmemory": str(maxmemory), "total_system_memory": str(machine)}
    return ShardHealth("s0", "127.0.0.1:7000", True, "", info, {}, "", fill_rate=rate)


def a_day(gigabytes: float, hours: float = 24.0) -> FillRate:
    return FillRate(int(gigabytes * GB), hours * HOUR_S)


# --- how fast it fills ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gigabytes_a_day", [24.0, 0.001, -5.0, 0.0])
def test_memory_that_grows_evenly_grows_at_that_rate(gigabytes_a_day: float) -> None:
    filling = watched(24, lambda hour: 10 * GB + hour / 24 * gigabytes_a_day * GB)
    assert per_day(filling) == pytest.approx(gigabytes_a_day, rel=0.01)
    assert filling.rate is not None
    assert filling.rate.watched_s == pytest.approx(DAY_S, rel=0.01)


def test_nothing_is_said_before_an_hour_has_passed() -> None:
    assert watched(0.9, lambda hour: hour * GB).rate is None
    assert watched(1.1, lambda hour: hour * GB).rate is not None


def test_some_jitter_does_not_hide_the_growth() -> None:
    drawn = random.Random(1)
    filling = watched(24, lambda hour: 10 * GB + hour * GB + drawn.gauss(0, GB / 4))
    assert per_day(filling) == pytest.approx(24, rel=0.05)


def test_peaks_of_a_few_buffers_do_not_count() -> None:
    filling = watched(24, lambda hour: 10 * GB + hour * GB / 24 + (20 * GB if int(hour) % 5 == 4 else 0))
    # a peak ends with a sharp fall, and what was before it is forgotten: so it is seen from the last one on
    assert per_day(filling) == pytest.approx(1, rel=0.05)


def test_what_was_loaded_at_once_is_no_growth() -> None:
    filling = watched(24, lambda hour: 10 * GB + (30 * GB if hour > 11 else 0) + hour * GB / 24)
    assert filling.rate is None or per_day(filling) < 2


@pytest.mark.parametrize("began", [0, 3, 6, 9, 12, 15, 18, 21])
def test_the_ups_and_downs_of_a_day_are_no_growth(began: int) -> None:
    day = watched(24, lambda hour: 10 * GB + GB * math.sin((hour + began) / 24 * math.tau))
    assert day.rate is None


def test_noise_alone_is_no_growth() -> None:
    drawn = random.Random(2)
    assert watched(24, lambda hour: 10 * GB + drawn.uniform(0, GB)).rate is None


def test_only_the_last_day_counts() -> None:
    filling = watched(72, lambda hour: 10 * GB + max(0.0, hour - 48) * GB)
    assert per_day(filling) == pytest.approx(24, rel=0.01)


# --- when the samples say nothing any more ----------------------------------------------------------------------------


def test_it_begins_anew_where_much_was_deleted() -> None:
    filling = watched(24, lambda hour: (10 + hour if hour < 22.5 else 5 + hour) * GB)
    assert per_day(filling) == pytest.approx(24, rel=0.01)
    assert filling.rate is not None
    assert filling.rate.watched_s < 2 * HOUR_S


def test_a_little_less_is_no_such_fall() -> None:
    filling = watched(24, lambda hour: (10 if int(hour * 4) % 2 else 9.5) * GB + 10 * hour * GB / 24)
    assert filling.rate is not None
    assert filling.rate.watched_s == pytest.approx(DAY_S, rel=0.02)


def test_it_begins_anew_when_it_is_told_to() -> None:
    filling = watched(24, lambda hour: hour * GB)
    filling.begin_anew()
    assert filling.rate is None
    filling.note(200_000.0, 5 * GB)
    assert filling.rate is None


# --- what it costs ----------------------------------------------------------------------------------------------------


def test_its_memory_is_bounded_however_long_it_runs() -> None:
    filling = watched(24 * 30, lambda hour: hour * GB, every_s=SAMPLE_EVERY_S)
    assert len(filling) == SAMPLES


def test_between_two_samples_nothing_is_kept() -> None:
    filling = watched(0.2, lambda hour: hour * GB, every_s=0.1)
    assert len(filling) == 1


# --- how full it is ---------------------------------------------------------------------------------------------------


def test_the_limit_is_maxmemory() -> None:
    assert limit_of(shard(1, 1000, 8000)) == (1000, "maxmemory")


def test_without_maxmemory_it_is_what_the_machine_has() -> None:
    assert limit_of(shard(1, 0, 8000)) == (8000, "total_system_memory")


@pytest.mark.parametrize("odd", ["", "x", "-1", "1e3", "9" * 40])
def test_a_server_that_says_neither_has_no_limit(odd: str) -> None:
    info = {"used_memory": "700", "maxmemory": odd, "total_system_memory": odd}
    assert limit_of(ShardHealth("s0", "n:1", True, "", info, {}, "")) == (0, "")
    assert limit_of(ShardHealth("s0", "n:1", True, "", {}, {}, "")) == (0, "")


# --- when it is full --------------------------------------------------------------------------------------------------


def test_it_is_full_when_what_is_left_is_used_up_at_this_rate() -> None:
    health = shard(40 * GB, 60 * GB, rate=a_day(2))
    assert full_in_days(health) == pytest.approx(10)
    assert full_on(health, WALL) == "2026-12-11"


@pytest.mark.parametrize(
    "health",
    [
        shard(40 * GB, 60 * GB),  # too few samples, or too noisy
        shard(40 * GB, 60 * GB, rate=a_day(0)),
        shard(40 * GB, 60 * GB, rate=a_day(-1)),
        shard(40 * GB, rate=a_day(2)),  # no limit is known
        shard(61 * GB, 60 * GB, rate=a_day(2)),  # it is full
        shard(1 * GB, 60 * GB, rate=a_day(59 / (MOST_DAYS + 1))),  # too far away to be believed
    ],
)
def test_no_day_is_said_where_there_is_none(health: ShardHealth) -> None:
    assert full_in_days(health) is None
    assert full_on(health, WALL) == ""


def test_before_a_day_was_watched_only_the_near_future_is_told() -> None:
    """The morning's rise of a load that falls in the evening looks like growth."""
    assert full_in_days(shard(58 * GB, 60 * GB, rate=a_day(24, hours=3))) == pytest.approx(2 / 24)
    assert full_in_days(shard(50 * GB, 60 * GB, rate=a_day(24, hours=3))) is None
    assert full_in_days(shard(20 * GB, 60 * GB, rate=a_day(24, hours=24))) == pytest.approx(40 / 24)


def test_the_rising_half_of_a_daily_load_is_no_alarm_after_a_restart() -> None:
    rising = watched(11, lambda hour: 30 * GB - 3 * GB * math.cos(hour / 24 * math.tau))
    assert alarms(shard(33 * GB, 60 * GB, rate=rising.rate), WALL) == []


# --- alarms -----------------------------------------------------------------------------------------------------------


def test_full_within_two_weeks_is_an_alarm() -> None:
    assert alarms(shard(40 * GB, 60 * GB, rate=a_day(2)), WALL) == [
        "memory: full on 2026-12-11, in 10 days, at the rate of the last 24 h (2,147,483,648 bytes a day)"
    ]
    assert alarms(shard(1 * GB, 60 * GB, rate=a_day(59 / (ALARM_DAYS + 1))), WALL) == []


def test_a_shard_that_is_full_soon_says_so_in_hours() -> None:
    *_, said = alarms(shard(56 * GB, 60 * GB, rate=a_day(48, hours=3)), WALL)
    assert said == "memory: full on 2026-12-01, in 2 hours, at the rate of the last 3 h (51,539,607,552 bytes a day)"


def test_much_of_the_memory_of_a_machine_is_an_alarm_too() -> None:
    assert alarms(shard(801, 0, 1000), WALL) == [
        "memory: 801 bytes are 80% of the machine's memory (1,000), and there is no maxmemory"
    ]


def test_a_rate_travels_as_whole_bytes() -> None:
    rate = watched(2, lambda hour: hour * GB / 7).rate
    assert rate is not None
    assert isinstance(rate.bytes_per_day, int)
