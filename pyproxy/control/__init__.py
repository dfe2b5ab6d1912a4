"""The parent process: it owns the listening socket, keeps the workers alive and watches the shards. Never in a
request's path.
"""
