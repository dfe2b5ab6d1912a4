from pyproxy.mover.pace import LEAST, SLOW_S, Bucket, Throttle


def test_so_many_bytes_pass_in_a_second_whatever_their_pieces() -> None:
    bucket, now = Bucket(1000), 50.0
    for size in (10, 500, 1, 2000, 489):
        now += bucket.take(size, now)
    assert 52.4 < now < 53.0  # all but the last are paid for
    assert bucket.take(1, now) > 0.4


def test_time_in_which_nothing_was_sent_is_not_saved_up() -> None:
    bucket = Bucket(1000)
    bucket.take(1000, 0.0)
    assert bucket.take(1000, 100.0) == 0.0
    assert bucket.take(1000, 100.0) == 1.0


def test_another_rate_counts_from_now_on() -> None:
    bucket = Bucket(10)
    bucket.take(1000, 50.0)
    bucket.bound(10)
    assert bucket.take(1000, 50.0) == 100.0
    bucket.bound(1000)
    assert (bucket.take(500, 50.0), bucket.take(500, 50.0)) == (0.0, 0.5)


def test_without_a_bound_nothing_waits() -> None:
    bucket = Bucket()
    assert [bucket.take(1 << 40, 0.0) for _ in range(3)] == [0.0, 0.0, 0.0]


def test_a_server_that_gets_slow_halves_the_speed_and_it_grows_back_by_steps() -> None:
    throttle = Throttle()
    throttle.measured({"source": 0.001, "destination": 0.010})
    assert throttle.level == 1.0
    throttle.measured({"source": 0.001 + 1.1 * SLOW_S, "destination": 0.010})
    assert throttle.level == 0.5
    levels = []
    for _ in range(12):
        throttle.measured({"source": 0.002, "destination": 0.011})
        levels.append(throttle.level)
    assert levels == sorted(levels)
    assert 0.5 < levels[0] < 0.6
    assert levels[-1] == 1.0


def test_it_never_stands_still() -> None:
    throttle = Throttle()
    throttle.measured({"source": 0.001})
    for _ in range(50):
        throttle.measured({"source": 1.0})
    assert throttle.level == LEAST
