"""What Redis says: bytes and values. Pure: no asyncio, no socket, no clock, no logging."""
