"""rq, with its worker and its scheduler in processes of their own: jobs are queued, worked on, and their results read.

All its keys are on one shard, by RQ_KEY_PREFIX: it watches, moves and writes keys of jobs and queues together.
"""

import importlib
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import redis

from pyproxy.fleet import HOST, Fleet, Proxy, wait_until
from tests.e2e.clients.apps.program import Program
from tests.e2e.rig import PATIENCE_S

pytestmark = pytest.mark.timeout(120)

PREFIX = "{rq}"
JOBS = "tests.e2e.clients.apps.rq_jobs"


@pytest.fixture(scope="module")
def rq() -> Any:
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(os.environ, "RQ_KEY_PREFIX", PREFIX)  # it is read at the import
        return importlib.import_module("rq")


@pytest.fixture(scope="module")
def worker(rq: Any, fleet10: Fleet, proxy10: Proxy) -> Iterator[Program]:
    with redis.Redis(host=HOST, port=proxy10.port) as client:
        client.flushall()
    arguments = ["rq.cli", "worker", "--url", f"redis://{HOST}:{proxy10.port}", "--with-scheduler"]
    arguments += ["--name", "worker1", "high", "low"]
    with Program(fleet10, "rq", arguments, RQ_KEY_PREFIX=PREFIX) as worker:
        yield worker


@pytest.fixture(scope="module")
def queue(rq: Any, proxy10: Proxy, worker: Program) -> Iterator[Any]:
    with redis.Redis(host=HOST, port=proxy10.port) as client:
        yield rq.Queue("low", connection=client)


def wait_for(job: Any, status: str, worker: Program) -> None:
    def done() -> bool:
        return bool(job.get_status(refresh=True).value == status)

    wait_until(f"the job to be {status}", done, lambda: f"it is {job.get_status()}\n{worker.tail()}", PATIENCE_S)


def test_a_job_is_worked_on_and_its_result_read(queue: Any, worker: Program) -> None:
    job = queue.enqueue(f"{JOBS}.double", 21)
    wait_for(job, "finished", worker)
    assert job.return_value(refresh=True) == 42


def test_a_result_is_waited_for(queue: Any, worker: Program) -> None:
    job = queue.enqueue(f"{JOBS}.double", 4)
    assert job.latest_result(timeout=int(PATIENCE_S)).return_value == 8


def test_a_failed_job_has_its_reason(queue: Any, worker: Program) -> None:
    job = queue.enqueue(f"{JOBS}.fail")
    wait_for(job, "failed", worker)
    assert "it fails" in job.latest_result().exc_string
    assert job.id in queue.failed_job_registry.get_job_ids()


def test_a_job_runs_after_those_it_depends_on(queue: Any, worker: Program) -> None:
    first = queue.enqueue(f"{JOBS}.double", 1)
    second = queue.enqueue(f"{JOBS}.double", 2, depends_on=first)
    wait_for(second, "finished", worker)
    assert first.get_status(refresh=True).value == "finished"


def test_a_job_is_run_when_its_time_has_come(queue: Any, worker: Program) -> None:
    job = queue.enqueue_in(timedelta(seconds=1), f"{JOBS}.double", 3)
    assert job.id in queue.scheduled_job_registry.get_job_ids()
    wait_for(job, "finished", worker)


def test_a_worker_that_is_told_to_end_ends(queue: Any, worker: Program) -> None:
    """By pub/sub; the last test of this file."""
    importlib.import_module("rq.command").send_shutdown_command(queue.connection, "worker1")
    wait_until("the worker to end", lambda: not worker.running, worker.tail, PATIENCE_S)
