"""Clients of all kinds and faults of all kinds at once, for as long as one likes: `./run soak`."""
