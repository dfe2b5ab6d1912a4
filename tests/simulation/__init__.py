"""The compiled lane under a scheduler: one process, no sockets, no real time, any order of events.

    steps (drawn from a seed, or written) ──▶ World ── the real Worker, with its Lane, Clients, Backends, Wires,
                                                │      Links, Fronts, Gates, Session, Conversations and LeasePool
      Clients ── Network (far ends, cuts) ──────┼───── Servers (a small Redis, with replicas that lag)
      Loop (time that passes when told to)      └───── Parent (topologies, gates, the barrier)

      Ledger: what the servers did ──▶ Oracle: whether the clients were told the truth

A history is one run: some tens of steps, in which anything may go wrong, and then rest: everything heals, and everybody
must get what is owed. The same steps make the same history, so a failure is replayed by its seed, and made smaller by
leaving steps out. `./run simulate` runs as many as are wanted.
"""
