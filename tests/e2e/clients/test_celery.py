"""celery, with the proxy as broker and as result backend, and a worker in a process of its own."""

import importlib
import os
from collections.abc import Iterator
from typing import Any

import pytest

from pyproxy.fleet import HOST, Fleet, Proxy, wait_until
from tests.e2e.clients.apps.program import Program
from tests.e2e.rig import PATIENCE_S

pytestmark = pytest.mark.timeout(120)

MODULE = "tests.e2e.clients.apps.celery_app"


@pytest.fixture(scope="module")
def app(proxy10: Proxy) -> Iterator[Any]:
    """The application as a caller has it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(os.environ, "REDIS_URL", url(proxy10))
        celery_app = importlib.import_module(MODULE)
        yield celery_app
        celery_app.app.close()


def url(proxy: Proxy) -> str:
    return f"redis://{HOST}:{proxy.port}/0"


@pytest.fixture(scope="module")
def worker(app: Any, fleet10: Fleet, proxy10: Proxy) -> Iterator[Program]:
    arguments = ["celery", "--app", MODULE, "worker", "--pool", "solo", "--loglevel", "INFO"]
    with Program(fleet10, "celery", arguments, REDIS_URL=url(proxy10)) as worker:
        wait_until("the worker", lambda: bool(app.app.control.ping(timeout=0.5)), worker.tail, 60.0)
        yield worker


def test_a_task_is_worked_on_and_its_result_read(app: Any, worker: Program) -> None:
    assert app.add.delay(2, 3).get(timeout=PATIENCE_S) == 5


def test_an_error_of_a_task_is_raised_where_its_result_is_read(app: Any, worker: Program) -> None:
    with pytest.raises(ValueError, match="it fails"):
        app.fail.delay().get(timeout=PATIENCE_S)


def test_a_group_is_worked_on_and_a_chord_gets_all_its_results(app: Any, worker: Program) -> None:
    celery = importlib.import_module("celery")
    numbers = [app.add.s(number, 1) for number in range(5)]
    assert celery.group(numbers).apply_async().get(timeout=PATIENCE_S) == [1, 2, 3, 4, 5]
    assert celery.chord(numbers)(app.total.s()).get(timeout=PATIENCE_S) == 15


def test_a_task_of_another_priority_and_one_of_later_are_worked_on(app: Any, worker: Program) -> None:
    later = app.add.apply_async((1, 1), countdown=0.5)
    assert app.add.apply_async((2, 2), priority=6).get(timeout=PATIENCE_S) == 4
    assert later.get(timeout=PATIENCE_S) == 2


def test_a_worker_is_asked_what_it_does(app: Any, worker: Program) -> None:
    """By pub/sub."""
    (stats,) = app.app.control.inspect(timeout=PATIENCE_S, limit=1).stats().values()
    assert stats["total"][f"{MODULE}.add"] > 0
