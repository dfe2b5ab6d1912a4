import os
import subprocess
import sys

import pytest

from pyproxy.metrics import COUNTERS, FIELDS, GAUGES, HEARTBEAT_S, HUNG_S, INDEX, STRIDE, Page

NOW_US = 10_000_000


def running(page: Page, index: int, clients: int, heartbeat_us: int = NOW_US) -> None:
    row = page.row(index)
    row[INDEX["pid"]] = 100 + index
    row[INDEX["clients"]] = clients
    row[INDEX["heartbeat_us"]] = heartbeat_us


def test_what_a_worker_writes_into_its_row_another_process_reads() -> None:
    page = Page.create(2)
    page.row(1)[INDEX["commands"]] = 7
    program = f"from pyproxy.metrics import Page; print(Page.attach({page.fd}).total('commands'))"
    read = subprocess.check_output([sys.executable, "-c", program], pass_fds=[page.fd], text=True)
    assert read == "7\n"


def test_rows_do_not_touch_each_other() -> None:
    page = Page.create(3)
    page.row(1)[:] = memoryview(b"\xff" * 8 * len(FIELDS)).cast("q")
    assert set(page.row(0)) == set(page.row(2)) == {0}


def test_rows_begin_on_cache_lines_of_their_own() -> None:
    assert STRIDE * 8 % 64 == 0
    assert len(FIELDS) <= STRIDE


@pytest.mark.parametrize("index", [-1, 2])
def test_there_is_no_row_but_for_the_workers(index: int) -> None:
    with pytest.raises(IndexError, match="expected a worker from 0 to 1"):
        Page.create(2).row(index)


def test_the_counters_of_a_dead_worker_stay_in_the_total_and_its_gauges_do_not() -> None:
    page = Page.create(2)
    for name in FIELDS:
        page.row(0)[INDEX[name]] = 5
        page.row(1)[INDEX[name]] = 1
    page.retire(0)
    assert {page.total(name) for name in COUNTERS} == {6}
    assert {page.total(name) for name in GAUGES} == {1}
    assert set(page.row(0)) == {0}


def test_reset_has_all_counters_count_from_zero_and_leaves_the_gauges() -> None:
    page = Page.create(2)
    row, other = page.row(0), page.row(1)
    row[INDEX["commands"]], other[INDEX["commands"]], row[INDEX["clients"]] = 40, 2, 7
    page.reset()
    assert (page.total("commands"), page.total("clients")) == (0, 7)
    row[INDEX["commands"]] += 3
    assert page.total("commands") == 3
    page.reset()
    assert page.total("commands") == 0
    assert page.get(0, "commands") == 43  # a worker's row is its own


def test_after_a_reset_and_a_death_the_total_is_what_was_counted_since() -> None:
    page = Page.create(1)
    row = page.row(0)
    row[INDEX["commands"]] = 40
    page.reset()
    row[INDEX["commands"]] = 45
    page.retire(0)
    assert page.total("commands") == 5


def test_what_is_held_when_it_is_reset_is_counted_on() -> None:
    page = Page.create(1)
    row = page.row(0)
    row[INDEX["held"]], row[INDEX["drained"]], row[INDEX["held_requests"]] = 5, 3, 2
    page.reset()
    assert (page.total("held"), page.total("drained")) == (2, 0)


def test_the_fewest_clients_are_those_of_the_least_loaded_worker() -> None:
    page = Page.create(2)
    running(page, 0, clients=5)
    running(page, 1, clients=3)
    assert page.fewest_clients(NOW_US) == 3


def test_a_worker_that_died_does_not_keep_the_others_from_accepting() -> None:
    page = Page.create(2)
    running(page, 0, clients=5)
    running(page, 1, clients=0)
    page.retire(1)
    assert page.fewest_clients(NOW_US) == 5


def test_a_worker_that_hangs_does_not_keep_the_others_from_accepting() -> None:
    page = Page.create(2)
    running(page, 0, clients=5)
    running(page, 1, clients=0, heartbeat_us=NOW_US - int(HUNG_S * 1e6) - 1)
    assert page.fewest_clients(NOW_US) == 5


def test_a_worker_at_rest_has_its_turn_to_accept() -> None:
    page = Page.create(2)
    running(page, 0, clients=5)
    running(page, 1, clients=0, heartbeat_us=NOW_US - int(HEARTBEAT_S * 1e6))
    assert page.fewest_clients(NOW_US) == 0


def test_without_a_running_worker_the_fewest_clients_are_none() -> None:
    assert Page.create(2).fewest_clients(NOW_US) == 0


def test_a_closed_page_gives_its_descriptor_back() -> None:
    page = Page.create(1)
    page.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(page.fd)
