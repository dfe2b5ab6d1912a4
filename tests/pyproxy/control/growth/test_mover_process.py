"""A mover runs while it is needed; one that was let go is no loss, whatever is ordered before it has ended."""

import asyncio
import sys
from pathlib import Path

from pyproxy.config import Config
from pyproxy.control.growth.mover_process import MoverProcess
from pyproxy.deadline import within
from pyproxy.moves import MoverSetup, Orders

CONFIG = Config.parse(b'[[shards]]\nname = "s0"\nprimary = "10.0.0.1:6379"\nslots = ["0-16383"]\n')

LISTENER = """
import socket, sys
channel = socket.socket(fileno=int(sys.argv[2]))
with open(sys.argv[1], "a") as starts:
    starts.write("started\\n")
while channel.recv(65536):
    pass
"""
"""It ends when its channel does. Each start is a line in a file."""


def test_a_mover_that_was_let_go_is_not_lost_though_one_is_wanted_again_before_it_has_ended(
    tmp_path: Path,
) -> None:
    starts, lost = tmp_path / "starts", []
    starts.write_text("")
    program = tmp_path / "listener.py"
    program.write_text(LISTENER.replace("sys.argv[1]", repr(str(starts))))

    async def scenario() -> None:
        mover = MoverProcess(
            (sys.executable, str(program)), MoverSetup(CONFIG, "test"), lambda _: None, lambda: lost.append("lost")
        )
        running = asyncio.create_task(mover.run())
        async with within(20.0):
            for count in range(1, 4):
                mover.order(Orders(2 * count, []), needed=True)
                while len(starts.read_text().splitlines()) < count:  # noqa: ASYNC110 - another process writes it
                    await asyncio.sleep(0.01)
                mover.order(Orders(2 * count + 1, []), needed=False)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(scenario())
    assert lost == []
