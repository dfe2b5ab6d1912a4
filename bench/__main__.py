"""`python -m bench`: the hot spots alone, then the load comparison. With arguments: only the comparison, with these."""

import sys
from pathlib import Path

import pytest

from bench import load


def main() -> int:
    """The first exit status that is not 0, or 0."""
    hot_spots = Path(__file__).with_name("test_hot.py")
    failed = 0 if len(sys.argv) > 1 else pytest.main(["-q", str(hot_spots)])
    return failed or load.main()


if __name__ == "__main__":
    sys.exit(main())
