"""`python -m pyproxy.worker`: started by the parent, with the descriptors it inherits."""

import argparse

from pyproxy.worker.main import serve

parser = argparse.ArgumentParser(prog="pyproxy.worker", description="one worker; started by pyproxy serve")
for name in ("index", "listen-fd", "channel-fd", "page-fd"):
    parser.add_argument(f"--{name}", type=int, required=True)
args = parser.parse_args()
serve(args.index, args.listen_fd, args.channel_fd, args.page_fd)
