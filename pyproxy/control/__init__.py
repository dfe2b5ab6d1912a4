"""The parent process. It owns the listening socket, keeps the workers alive, checks the servers, and replaces a primary
that fails. It is never in the path of a request.

    main.py       puts the packages together; signals; the start and the end
    health/       checks every server once a second: what is seen
    failover/     what becomes of a shard: decides (machine.py, pure), and carries it out (coordinator.py, promoters/)
    growth/       moves of slots from shard to shard: a machine for each (pure), the store of the map, plans of moves
    process/      the listening socket, the workers, and what all of them must know
    http/         what is said of all this over HTTP; the socket through which operators give commands

Who imports whom:

    main ──▶ failover/coordinator ──▶ process/, http/admin ──▶ failover/promoters ──▶ health/
         ──▶ http/status, http/server

health/ imports none of the other packages. In each package the decisions are pure: time and observations come in,
events and effects go out. Only the coordinator makes a Topology, so there is one place where the version grows, and one
barrier that takes the workers past a change.

Where new work belongs:

- Moving slots: growth/. machine.py decides; a coordinator of its own carries that out, and may use that of failover/,
  but not the other way round. Keys are copied by the mover, a process of its own (pyproxy/mover/). A slot changes its
  owner through the Topology of failover/coordinator.py and its barrier. What outlives a restart is in the store.
- Reloading the configuration: a package `reload/`. It compares two configurations (pure), refuses what cannot change
  while the proxy runs, and hands each package its part. main.py turns SIGHUP and the operator's command (http/admin.py)
  into it.
"""
