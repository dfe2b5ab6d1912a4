"""`python -m pyproxy`: the command line of cli.py."""

import sys

from pyproxy.cli import main

sys.exit(main())
