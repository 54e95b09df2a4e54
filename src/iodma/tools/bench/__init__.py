# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: our side and a peer, measured in pairs on one processor, one row a promise.

| file | its one concept |
|---|---|
| `harness` | pairs, rows, the report |
| `budget` | how long it may take |
| `core` | the rows of `iodma bench core`, as data |
| `ours`, `peers` | what each side does, run by `worker` in processes that `workers` starts |
| `fio` | the peer that is a program |
| `vhost_user_blk` | the rows of `iodma bench vhost-user-blk` measured; `vhost_works`: as data |
| `vhost_servers`, `vhost_load` | the servers, and the client that loads one in a worker |
| `vfio_user` | the rows of `iodma bench vfio-user` measured; `vfio_works`: as data |
| `vfio_device`, `vfio_peer` | our server, and those in C; `vfio_layout`: what all agree on |
| `vfio_client`, `vfio_load` | the client, and what it does in a worker |
| `sun4m` | the rows of `iodma bench sun4m` measured; `sun4m_works`: as data |
| `sun4m_machine`, `sun4m_servers` | our machine, and how it and QEMU's are started |
| `sun4m_guest`, `sun4m_load` | the drivers, and what they do in a worker; `sun4m_layout`: where |
| `sun4m_counters` | what our machine has copied |
| `servers` | a server as a process |
| `lists`, `maps`, `files` | what both sides are given |
| `sides`, `two_sides` | a row of two sides, and what measures it |
| `beside` | what a client and a server beside it have in common |
| `ends` | what comes before the first sample and after the last |
| `options` | what can be asked for |
| `run` | puts the benchmark of the core together |

Invariants
 - Importing this package imports nothing else of it.
"""

from __future__ import annotations

__all__ = ["NAMES"]

#: The benchmarks there are: a name for the command line -> what it measures.
NAMES = {
    "core": "the core against fio and against C loops: throughput, latency, memory",
    "vhost-user-blk": "`iodma serve blk` against qemu-storage-daemon, loaded by one client",
    "vfio-user": "a device of ours served over vfio-user, against C servers and memcpy",
    "sun4m": "a SPARCstation 5's network and disk against QEMU's, driven alike over qtest",
}
