"""What tests/e2e/test_twin.py compares a proxy and one plain server with.

`vocabulary` says which commands there are, `grammar` makes one of a line of it, `stream` makes a whole conversation of
a seed, `talk` has it with a server, `allowed` says which replies may differ and how, `state` reads what is left at the
end, and `examples` holds one call of every command that must succeed.
"""
