"""Beside the twenty: no fault, other promoters, three proxies over one fleet, and nutcracker in place of the proxy."""

import shutil

import pytest

from bench.failover.catalogue import BESIDE
from bench.failover.trial import Fault, run
from tests.e2e.failover.test_scenarios import SCALE, SHARDS


@pytest.mark.timeout(180)
@pytest.mark.parametrize("fault", BESIDE, ids=lambda fault: fault.name)
def test_clients_see_no_more_of_it_than_they_may(fault: Fault) -> None:
    if fault.needs.peer != "pyproxy" and shutil.which(fault.needs.peer) is None:
        pytest.skip(f"no {fault.needs.peer} on this machine")
    assert run(fault, SCALE, shards=SHARDS).problems == []
