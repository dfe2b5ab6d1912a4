"""The sums of all workers' subscribers: each worker hears of the others, and never of itself."""

import random

from pyproxy.control.subscriptions import BATCH_BYTES, Sums
from pyproxy.messages import Subscribers


def said(channels: dict[bytes, int], patterns: dict[bytes, int] | None = None) -> Subscribers:
    return Subscribers(channels, patterns or {}, {})


def began(*workers: int) -> Sums:
    sums = Sums()
    for worker in workers:
        sums.began(worker)
    return sums


def test_each_worker_hears_the_sum_of_the_others() -> None:
    sums = began(0, 1, 2)
    sums.hear(0, said({b"a": 2}, {b"p": 1}))
    sums.hear(1, said({b"a": 3}))
    assert sums.news(0) == said({b"a": 3})
    assert sums.news(1) == said({b"a": 2}, {b"p": 1})
    assert sums.news(2) == said({b"a": 5}, {b"p": 1})
    assert not any(sums.has_news(worker) for worker in (0, 1, 2))


def test_what_is_told_twice_changes_nothing() -> None:
    sums = began(0, 1)
    sums.hear(0, said({b"a": 2}))
    sums.news(1)
    sums.hear(0, said({b"a": 2}))
    assert not sums.has_news(1)


def test_what_changes_several_times_is_told_once_as_it_is_now() -> None:
    sums = began(0, 1)
    for count in (1, 2, 0):
        sums.hear(0, said({b"a": count}))
    assert sums.news(1) == said({b"a": 0})
    assert not sums.has_news(1)


def test_a_worker_that_ends_takes_its_numbers_along_and_one_that_begins_is_told_all() -> None:
    sums = began(0, 1)
    sums.hear(0, said({b"a": 2}))
    sums.hear(1, said({b"a": 1}))
    sums.news(1)
    sums.ended(0)
    assert sums.news(1) == said({b"a": 0})
    sums.began(0)
    assert sums.news(0) == said({b"a": 1})
    sums.hear(5, said({b"a": 7}))  # of no worker that is known
    assert not sums.has_news(0)


def test_a_message_is_bounded_and_the_rest_comes_in_the_next() -> None:
    sums, names = began(0, 1), [b"%01000d" % number for number in range(1000)]
    sums.hear(0, said(dict.fromkeys(names, 1)))
    heard: dict[bytes, int] = {}
    messages = 0
    while sums.has_news(1):
        part = sums.news(1).channels
        assert sum(map(len, part)) <= BATCH_BYTES + 1000
        heard |= part
        messages += 1
    assert heard == dict.fromkeys(names, 1)
    assert messages > 1


def test_whatever_happens_all_workers_agree_in_the_end() -> None:
    chance = random.Random(7)
    sums = began(0, 1, 2)
    own: dict[int, dict[bytes, int]] = {worker: {} for worker in range(3)}
    heard: dict[int, dict[bytes, int]] = {worker: {} for worker in range(3)}
    for _ in range(2000):
        worker = chance.randrange(3)
        match chance.randrange(20):
            case 0:
                sums.ended(worker)
                sums.began(worker)
                own[worker], heard[worker] = {}, {}
            case 1 | 2 | 3 | 4 | 5:
                heard[worker] |= sums.news(worker).channels
            case _:
                name, count = chance.choice([b"a", b"b", b"c"]), chance.randrange(3)
                own[worker][name] = count
                sums.hear(worker, said({name: count}))
    for worker in range(3):
        heard[worker] |= sums.news(worker).channels
        for name in (b"a", b"b", b"c"):
            others = sum(own[other].get(name, 0) for other in range(3) if other != worker)
            assert heard[worker].get(name, 0) == others
