"""`python -m pyproxy`, and the program `pyproxy`: the command line of cli.py."""

import signal
import sys

# While modules are imported a Ctrl-C ends the process without a traceback: nothing has begun that could be undone.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from pyproxy.cli import main

if __name__ == "__main__":
    sys.exit(main())
