"""bullmq, with its queue, worker, events and flows: all of it scripts, on the one shard that its prefix names."""

import json
import os
import subprocess

import pytest

from pyproxy.fleet import Proxy
from tests.e2e.clients import node

pytestmark = pytest.mark.timeout(240)  # it installs

PROGRAM = node.DRIVERS / "bullmq"
MODULES = node.ROOT / "build" / "bullmq" / "node_modules"
RUN_S = 60.0


def test_jobs_are_worked_on_whatever_their_kind(proxy10: Proxy) -> None:
    node.install(PROGRAM / "package.json", MODULES)
    ran = subprocess.run(
        ["node", str(PROGRAM / "run.js"), str(proxy10.port)],
        env={**os.environ, "NODE_PATH": str(MODULES)},
        capture_output=True,
        text=True,
        timeout=RUN_S,
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == {
        "one": 42,
        "many": [2, 4, 6],
        "failed": "it fails",
        "delayed": ["delayed", 10],
        "important": 12,
        "scheduler": True,
        "flow": 6,
        "failures": 1,
    }
