"""pyproxy: one endpoint in front of many Redis primaries."""

__version__ = "0.1.0"
