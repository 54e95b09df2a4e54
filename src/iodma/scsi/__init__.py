# SPDX-License-Identifier: Apache-2.0
"""SCSI targets: commands, task sets, sense data, and a disk (SAM-5, SPC-4, SBC-3).

    target = Target(engine, {0: Disk(iodma.File("disk.img"))})
    request = target.request(0, cdb, initiator=7)
    await request.ready
    while request.left:
        await request.transfer(port, segments)
    status = await request.finished

| file | its one concept |
|---|---|
| `sense` | status bytes and sense data |
| `cdb` | layouts of command descriptor blocks, as data, and what a CDB says by them |
| `primary`, `blocks` | the commands of SPC-4 and of SBC-3: the tables |
| `request` | one command's states, and its data phase |
| `movers` | what stands at the medium's end of a data phase |
| `taskset` | which command may begin |
| `unit` | a logical unit: commands in, statuses out, unit attentions, sense data kept |
| `block` | extents, reads, writes, flushes, one command alone on the medium |
| `verify`, `provisioning` | what compares; what unmaps, and writes the same |
| `mode`, `vpd` | mode pages; what it says of itself |
| `power`, `reservation` | start, stop, eject; a unit for one initiator alone |
| `scratch` | memory of the device server's own |
| `opcodes` | the table of commands, told |
| `disk` | the disk, from its parts |
| `target` | units behind one address, and task management |
"""

from iodma.scsi.disk import Disk
from iodma.scsi.request import DataDirection, Request, State, TaskAttribute
from iodma.scsi.sense import ScsiStatus, Sense, SenseKey
from iodma.scsi.target import Target
from iodma.scsi.unit import LogicalUnit

__all__ = [
    "DataDirection",
    "Disk",
    "LogicalUnit",
    "Request",
    "ScsiStatus",
    "Sense",
    "SenseKey",
    "State",
    "Target",
    "TaskAttribute",
]
