"""The counts of all workers' subscribers: each worker hears of the others, and never of itself."""

import random
from collections.abc import Iterator

from pyproxy.control.process.subscriptions import BATCH_BYTES, MOST_AWAITED, SubscriptionCounts
from pyproxy.messages import Subscribers
from pyproxy.slices import BATCH

Numbers = tuple[dict[bytes, int], dict[bytes, int]]


def message(channels: dict[bytes, int], patterns: dict[bytes, int] | None = None, number: int = 0) -> Subscribers:
    return Subscribers(channels, patterns or {}, {}, number)


def do(work: Iterator[int], workers: int = 3) -> None:
    """To its end, in steps that are bounded."""
    assert all(parts <= BATCH * workers for parts in work)


def sent(counts: SubscriptionCounts, worker: int) -> Numbers:
    """Channels and patterns of the next message to this worker."""
    news = counts.news(worker)
    return news.channels, news.patterns


def worker_started(*workers: int) -> SubscriptionCounts:
    counts = SubscriptionCounts()
    for worker in workers:
        do(counts.worker_started(worker))
        counts.ready(worker)
    return counts


def test_each_worker_hears_the_sum_of_the_others() -> None:
    counts = worker_started(0, 1, 2)
    do(counts.update(0, message({b"a": 2}, {b"p": 1})))
    do(counts.update(1, message({b"a": 3})))
    assert sent(counts, 0) == ({b"a": 3}, {})
    assert sent(counts, 1) == ({b"a": 2}, {b"p": 1})
    assert sent(counts, 2) == ({b"a": 5}, {b"p": 1})
    assert not any(counts.has_news(worker) for worker in (0, 1, 2))


def test_what_is_told_twice_changes_nothing() -> None:
    counts = worker_started(0, 1)
    do(counts.update(0, message({b"a": 2})))
    counts.news(1)
    do(counts.update(0, message({b"a": 2})))
    assert not counts.has_news(1)


def test_what_changes_several_times_is_told_once_as_it_is_now() -> None:
    counts = worker_started(0, 1)
    for count in (1, 2, 0):
        do(counts.update(0, message({b"a": count})))
    assert sent(counts, 1) == ({b"a": 0}, {})
    assert not counts.has_news(1)


def test_a_worker_that_ends_takes_its_numbers_along_and_one_that_begins_is_told_all() -> None:
    counts = worker_started(0, 1)
    do(counts.update(0, message({b"a": 2})))
    do(counts.update(1, message({b"a": 1})))
    counts.news(1)
    do(counts.worker_ended(0))
    assert sent(counts, 1) == ({b"a": 0}, {})
    do(counts.worker_started(0))
    assert sent(counts, 0) == ({b"a": 1}, {})
    do(counts.update(5, message({b"a": 7})))  # of no worker that is known
    assert not counts.has_news(0)


def test_a_message_is_bounded_and_the_rest_comes_in_the_next() -> None:
    counts, names = worker_started(0, 1), [b"%01000d" % number for number in range(1000)]
    do(counts.update(0, message(dict.fromkeys(names, 1))))
    acknowledged: dict[bytes, int] = {}
    messages = 0
    while counts.has_news(1):
        part = counts.news(1).channels
        assert sum(map(len, part)) <= BATCH_BYTES + 1000
        acknowledged |= part
        messages += 1
    assert acknowledged == dict.fromkeys(names, 1)
    assert messages > 1


def test_whatever_happens_all_workers_agree_in_the_end() -> None:
    chance = random.Random(7)
    counts = worker_started(0, 1, 2)
    own: dict[int, dict[bytes, int]] = {worker: {} for worker in range(3)}
    acknowledged: dict[int, dict[bytes, int]] = {worker: {} for worker in range(3)}
    for _ in range(2000):
        worker = chance.randrange(3)
        match chance.randrange(20):
            case 0:
                do(counts.worker_ended(worker))
                do(counts.worker_started(worker))
                own[worker], acknowledged[worker] = {}, {}
            case 1 | 2 | 3 | 4 | 5:
                acknowledged[worker] |= counts.news(worker).channels
            case _:
                name, count = chance.choice([b"a", b"b", b"c"]), chance.randrange(3)
                own[worker][name] = count
                do(counts.update(worker, message({name: count})))
    for worker in range(3):
        acknowledged[worker] |= counts.news(worker).channels
        for name in (b"a", b"b", b"c"):
            others = sum(own[other].get(name, 0) for other in range(3) if other != worker)
            assert acknowledged[worker].get(name, 0) == others


# --- who knows what ---------------------------------------------------------------------------------------------------


def all_known(counts: SubscriptionCounts) -> dict[int, int]:
    return dict(counts.known())


def answer(counts: SubscriptionCounts, worker: int) -> None:
    """It hears all that there is for it."""
    while counts.has_news(worker):
        counts.acknowledged(worker, counts.news(worker).number)


def test_a_worker_is_told_that_it_is_known_when_all_others_have_heard_and_not_before() -> None:
    counts = worker_started(0, 1, 2)
    do(counts.update(0, message({b"a": 1}, number=1)))
    assert all_known(counts) == {}
    first, second = counts.news(1), counts.news(2)
    assert all_known(counts) == {}
    counts.acknowledged(1, first.number)
    assert all_known(counts) == {}
    counts.acknowledged(2, second.number)
    assert all_known(counts) == {0: 1}
    assert all_known(counts) == {}, "it is said once"


def test_what_changes_nothing_is_known_at_once() -> None:
    counts = worker_started(0, 1)
    do(counts.update(0, message({b"a": 1}, number=1)))
    answer(counts, 1)
    assert all_known(counts) == {0: 1}
    do(counts.update(0, message({b"a": 1}, number=2)))
    assert all_known(counts) == {0: 2}


def test_a_small_change_behind_a_large_one_is_known_when_it_has_been_told() -> None:
    counts = worker_started(0, 1, 2)
    do(counts.update(0, message({b"%d" % number: 1 for number in range(5000)}, number=5000)))
    do(counts.update(1, message({b"small": 1}, number=1)))
    known: dict[int, int] = {}
    acknowledged: dict[bytes, int] = {}
    answer(counts, 0)
    while counts.has_news(2):
        news = counts.news(2)
        acknowledged |= news.channels
        assert 1 not in known
        counts.acknowledged(2, news.number)
        known |= all_known(counts)
    assert known[1] == 1
    assert acknowledged[b"small"] == 1


def test_nobody_waits_for_a_worker_that_does_not_serve_yet_or_is_gone() -> None:
    counts = worker_started(0, 1)
    do(counts.worker_started(2))
    do(counts.update(0, message({b"a": 1}, number=1)))
    answer(counts, 1)
    assert all_known(counts) == {0: 1}
    counts.ready(2)
    do(counts.update(0, message({b"b": 1}, number=2)))
    answer(counts, 1)
    assert all_known(counts) == {}
    do(counts.worker_ended(2))
    assert all_known(counts) == {0: 2}
    do(counts.worker_ended(1))
    do(counts.update(0, message({b"c": 1}, number=3)))
    assert all_known(counts) == {0: 3}


def test_what_the_worker_in_the_place_of_another_says_is_not_known_because_that_of_the_other_was() -> None:
    counts = worker_started(0, 1)
    do(counts.update(0, message({b"a": 1}, number=100)))
    news = counts.news(1)
    do(counts.worker_ended(0))
    do(counts.worker_started(0))
    do(counts.update(0, message({b"b": 1}, number=1)))
    counts.acknowledged(1, news.number)
    assert all_known(counts) == {}
    answer(counts, 1)
    assert all_known(counts) == {0: 1}


def test_a_worker_that_never_answers_costs_bounded_memory_and_is_known_to_have_heard_in_the_end() -> None:
    counts = worker_started(0, 1)
    for number in range(1, 3 * MOST_AWAITED):
        do(counts.update(0, message({b"%d" % (number % 7): number}, number=number)))
        counts.news(1)
    assert len(counts._workers[1].awaited) <= MOST_AWAITED + 1
    counts.acknowledged(1, 3 * MOST_AWAITED)
    assert all_known(counts) == {0: 3 * MOST_AWAITED - 1}
