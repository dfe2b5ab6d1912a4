"""`python -m pyproxy.mover`: started by the parent, with the descriptor it inherits."""

import argparse
import signal

# Before the others, as they take a while: later they are logged, see main.IGNORED.
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, signal.SIG_IGN)

from pyproxy.mover.main import serve  # noqa: E402

parser = argparse.ArgumentParser(prog="pyproxy.mover", description="the mover of keys; started by pyproxy serve")
parser.add_argument("--channel-fd", type=int, required=True)
serve(parser.parse_args().channel_fd)
