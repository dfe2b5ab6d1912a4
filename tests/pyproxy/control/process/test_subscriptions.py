"""The sums of all workers' subscribers: each worker hears of the others, and never of itself."""

import random
from collections.abc import Iterator

from pyproxy.control.process.subscriptions import BATCH_BYTES, OWED_MOST, Sums
from pyproxy.messages import Subscribers
from pyproxy.slices import BATCH

Numbers = tuple[dict[bytes, int], dict[bytes, int]]


def said(channels: dict[bytes, int], patterns: dict[bytes, int] | None = None, number: int = 0) -> Subscribers:
    return Subscribers(channels, patterns or {}, {}, number)


def do(work: Iterator[int], workers: int = 3) -> None:
    """To its end, in steps that are bounded."""
    assert all(parts <= BATCH * workers for parts in work)


def told(sums: Sums, worker: int) -> Numbers:
    """Channels and patterns of the next message to this worker."""
    news = sums.news(worker)
    return news.channels, news.patterns


def began(*workers: int) -> Sums:
    sums = Sums()
    for worker in workers:
        do(sums.began(worker))
        sums.ready(worker)
    return sums


def test_each_worker_hears_the_sum_of_the_others() -> None:
    sums = began(0, 1, 2)
    do(sums.hear(0, said({b"a": 2}, {b"p": 1})))
    do(sums.hear(1, said({b"a": 3})))
    assert told(sums, 0) == ({b"a": 3}, {})
    assert told(sums, 1) == ({b"a": 2}, {b"p": 1})
    assert told(sums, 2) == ({b"a": 5}, {b"p": 1})
    assert not any(sums.has_news(worker) for worker in (0, 1, 2))


def test_what_is_told_twice_changes_nothing() -> None:
    sums = began(0, 1)
    do(sums.hear(0, said({b"a": 2})))
    sums.news(1)
    do(sums.hear(0, said({b"a": 2})))
    assert not sums.has_news(1)


def test_what_changes_several_times_is_told_once_as_it_is_now() -> None:
    sums = began(0, 1)
    for count in (1, 2, 0):
        do(sums.hear(0, said({b"a": count})))
    assert told(sums, 1) == ({b"a": 0}, {})
    assert not sums.has_news(1)


def test_a_worker_that_ends_takes_its_numbers_along_and_one_that_begins_is_told_all() -> None:
    sums = began(0, 1)
    do(sums.hear(0, said({b"a": 2})))
    do(sums.hear(1, said({b"a": 1})))
    sums.news(1)
    do(sums.ended(0))
    assert told(sums, 1) == ({b"a": 0}, {})
    do(sums.began(0))
    assert told(sums, 0) == ({b"a": 1}, {})
    do(sums.hear(5, said({b"a": 7})))  # of no worker that is known
    assert not sums.has_news(0)


def test_a_message_is_bounded_and_the_rest_comes_in_the_next() -> None:
    sums, names = began(0, 1), [b"%01000d" % number for number in range(1000)]
    do(sums.hear(0, said(dict.fromkeys(names, 1))))
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
                do(sums.ended(worker))
                do(sums.began(worker))
                own[worker], heard[worker] = {}, {}
            case 1 | 2 | 3 | 4 | 5:
                heard[worker] |= sums.news(worker).channels
            case _:
                name, count = chance.choice([b"a", b"b", b"c"]), chance.randrange(3)
                own[worker][name] = count
                do(sums.hear(worker, said({name: count})))
    for worker in range(3):
        heard[worker] |= sums.news(worker).channels
        for name in (b"a", b"b", b"c"):
            others = sum(own[other].get(name, 0) for other in range(3) if other != worker)
            assert heard[worker].get(name, 0) == others


# --- who knows what ---------------------------------------------------------------------------------------------------


def all_known(sums: Sums) -> dict[int, int]:
    return dict(sums.known())


def answer(sums: Sums, worker: int) -> None:
    """It hears all that there is for it."""
    while sums.has_news(worker):
        sums.answered(worker, sums.news(worker).number)


def test_a_worker_is_told_that_it_is_known_when_all_others_have_heard_and_not_before() -> None:
    sums = began(0, 1, 2)
    do(sums.hear(0, said({b"a": 1}, number=1)))
    assert all_known(sums) == {}
    first, second = sums.news(1), sums.news(2)
    assert all_known(sums) == {}
    sums.answered(1, first.number)
    assert all_known(sums) == {}
    sums.answered(2, second.number)
    assert all_known(sums) == {0: 1}
    assert all_known(sums) == {}, "it is said once"


def test_what_changes_nothing_is_known_at_once() -> None:
    sums = began(0, 1)
    do(sums.hear(0, said({b"a": 1}, number=1)))
    answer(sums, 1)
    assert all_known(sums) == {0: 1}
    do(sums.hear(0, said({b"a": 1}, number=2)))
    assert all_known(sums) == {0: 2}


def test_a_small_change_behind_a_large_one_is_known_when_it_has_been_told() -> None:
    sums = began(0, 1, 2)
    do(sums.hear(0, said({b"%d" % number: 1 for number in range(5000)}, number=5000)))
    do(sums.hear(1, said({b"small": 1}, number=1)))
    known: dict[int, int] = {}
    heard: dict[bytes, int] = {}
    answer(sums, 0)
    while sums.has_news(2):
        news = sums.news(2)
        heard |= news.channels
        assert 1 not in known
        sums.answered(2, news.number)
        known |= all_known(sums)
    assert known[1] == 1
    assert heard[b"small"] == 1


def test_nobody_waits_for_a_worker_that_does_not_serve_yet_or_is_gone() -> None:
    sums = began(0, 1)
    do(sums.began(2))
    do(sums.hear(0, said({b"a": 1}, number=1)))
    answer(sums, 1)
    assert all_known(sums) == {0: 1}
    sums.ready(2)
    do(sums.hear(0, said({b"b": 1}, number=2)))
    answer(sums, 1)
    assert all_known(sums) == {}
    do(sums.ended(2))
    assert all_known(sums) == {0: 2}
    do(sums.ended(1))
    do(sums.hear(0, said({b"c": 1}, number=3)))
    assert all_known(sums) == {0: 3}


def test_what_the_worker_in_the_place_of_another_says_is_not_known_because_that_of_the_other_was() -> None:
    sums = began(0, 1)
    do(sums.hear(0, said({b"a": 1}, number=100)))
    news = sums.news(1)
    do(sums.ended(0))
    do(sums.began(0))
    do(sums.hear(0, said({b"b": 1}, number=1)))
    sums.answered(1, news.number)
    assert all_known(sums) == {}
    answer(sums, 1)
    assert all_known(sums) == {0: 1}


def test_a_worker_that_never_answers_costs_bounded_memory_and_is_known_to_have_heard_in_the_end() -> None:
    sums = began(0, 1)
    for number in range(1, 3 * OWED_MOST):
        do(sums.hear(0, said({b"%d" % (number % 7): number}, number=number)))
        sums.news(1)
    assert len(sums._workers[1].owed) <= OWED_MOST + 1
    sums.answered(1, 3 * OWED_MOST)
    assert all_known(sums) == {0: 3 * OWED_MOST - 1}
