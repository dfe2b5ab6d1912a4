"""`python -m pyproxy.worker`: started by the parent, with the descriptors it inherits."""

import argparse
import signal

# Before the others, as they take a while: later they are logged, see main.IGNORED.
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, signal.SIG_IGN)

from pyproxy.worker.main import serve  # noqa: E402

parser = argparse.ArgumentParser(prog="pyproxy.worker", description="one worker; started by pyproxy serve")
for name in ("index", "listen-fd", "channel-fd", "page-fd"):
    parser.add_argument(f"--{name}", type=int, required=True)
args = parser.parse_args()
serve(args.index, args.listen_fd, args.channel_fd, args.page_fd)
