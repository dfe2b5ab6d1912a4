"""The mover: the process that copies keys from one shard to another, and deletes those that have moved.

Orders of the parent come in; RESTOREs and UNLINKs go to the servers, and Progress to the parent (pyproxy/moves.py). It
decides nothing: which moves there are, and when clients are taken to the destination, is the parent's.
"""
