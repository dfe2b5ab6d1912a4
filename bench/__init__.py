"""Measurements of pyproxy: hot spots alone (`test_hot.py`) and whole programs side by side under load (`load.py`)."""
