"""What tests/e2e/lane/test_twin.py and test_every_command.py compare a proxy and one plain server with.

`vocabulary` says which commands there are, `grammar` makes one of a line of it, `stream` makes a whole conversation of
a seed; `examples` holds calls of every command that must succeed. `pair` has a conversation with both at once,
`connection` with one of them; `allowed` says which replies may differ and how, `state` reads what is left at the end.
"""
