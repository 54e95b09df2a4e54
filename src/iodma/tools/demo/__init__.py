# SPDX-License-Identifier: Apache-2.0
"""`iodma demo`: a real file, from the disk through scattered guest pages to a process at the other
end of a socket.

    device.py     the device: a register for each page, a doorbell, a status
    guest.py      the guest's side: memory, what it mapped where, its driver
    receiver.py   the program at the other end, which uses nothing of iodma
    peer.py       starting it, and making sure that it ends
    plain.py      the same file without a device model, for comparison; the digest to expect
    run.py        all of it together, and the figures

Invariants
 - What was received is compared with what was read independently; a difference is an error, not a
   line in a table.
 - However it ends, no process is left over.
"""

from iodma.tools.demo.peer import DemoError
from iodma.tools.demo.run import Options, Result, render, run

__all__ = ["DemoError", "Options", "Result", "render", "run"]
