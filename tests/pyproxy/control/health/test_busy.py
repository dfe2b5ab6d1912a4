from pyproxy.control.health.busy import BusyServers
from pyproxy.messages import AtWork, Work

A, B = "127.0.0.1:7001", "127.0.0.1:7002"
DONE = AtWork({})


def at_work(since: float, until: float, node: str = A) -> AtWork:
    return AtWork({node: Work("s0", since, until)})


def test_a_server_is_at_work_while_a_worker_says_so() -> None:
    work = BusyServers()
    work.update(0, at_work(10, 40))
    assert (work.of(A), work.of(B)) == (Work("s0", 10, 40), None)
    assert work.update(0, DONE) == ["s0"]
    assert work.of(A) is None


def test_a_stretch_lasts_from_the_first_of_all_workers_to_the_last() -> None:
    work = BusyServers()
    work.update(0, at_work(10, 40))
    work.update(1, at_work(12, 42))
    assert work.update(0, DONE) == []
    assert work.of(A) == Work("s0", 10, 42)
    assert work.update(1, DONE) == ["s0"]
    work.update(1, at_work(50, 80))
    assert work.of(A) == Work("s0", 50, 80)


def test_what_an_ended_worker_has_sent_goes_on_until_the_server_answers_somebody() -> None:
    work = BusyServers()
    work.update(0, at_work(10, 40))
    work.worker_ended(0)
    assert work.of(A) == Work("s0", 10, 40)
    work.server_answered(A)
    assert work.of(A) is None


def test_an_answer_to_somebody_else_ends_nothing_that_a_worker_waits_for() -> None:
    """It may have been given before the server came to it."""
    work = BusyServers()
    work.update(0, at_work(10, 40))
    work.server_answered(A)
    assert work.of(A) == Work("s0", 10, 40)


def test_each_worker_is_told_what_the_others_have_sent() -> None:
    work = BusyServers()
    work.update(0, at_work(10, 40))
    work.update(1, at_work(12, 42))
    work.update(2, at_work(11, 41, B))
    assert work.others(1) == AtWork({A: Work("s0", 10, 40), B: Work("s0", 11, 41)})
    assert work.others(7) == AtWork({A: Work("s0", 12, 42), B: Work("s0", 11, 41)})
    assert BusyServers().others(0) == DONE
