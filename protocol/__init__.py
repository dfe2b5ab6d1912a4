"""The Redis protocol and its commands: bytes and values. Pure: no asyncio, no socket, no clock, no logging."""
