# SPDX-License-Identifier: Apache-2.0
"""REPORT SUPPORTED OPERATION CODES (SPC-4 6.35): the table of commands, told.

Invariant: what is told is what `Commands` finds; usage data is made from the layouts.
"""

from __future__ import annotations

import struct

from iodma.scsi.cdb import Cdb, Command, Commands

__all__ = ["supported_opcodes"]

#: REPORTING OPTIONS (SPC-4 table 281).
ALL, OPCODE, ACTION, EITHER = range(4)
#: SUPPORT (SPC-4 table 285).
NOT_SUPPORTED, SUPPORTED = 1, 3
#: A command timeouts descriptor that names no time (SPC-4 6.35.4).
_TIMEOUTS = struct.pack(">HxBII", 10, 0, 0, 0)


def supported_opcodes(commands: Commands, cdb: Cdb) -> bytes:
    """The parameter data.

    Raises:
        CheckCondition: an option that there is not, or one that does not fit the opcode.
    """
    timeouts = bool(cdb["RCTD"])
    options, opcode = cdb["REPORTING OPTIONS"], cdb["REQUESTED OPERATION CODE"]
    action = cdb["REQUESTED SERVICE ACTION"]
    if options == ALL:
        data = b"".join(_descriptor(each, timeouts) for each in commands.all)
        return len(data).to_bytes(4, "big") + data
    if options == OPCODE:
        if commands.has_actions(opcode):
            raise cdb.invalid("REPORTING OPTIONS")
        found = commands.lookup(opcode, None)
    elif options == ACTION:
        if commands.lookup(opcode, None) is not None:
            raise cdb.invalid("REPORTING OPTIONS")
        found = commands.lookup(opcode, action)
    elif options == EITHER:
        found = commands.lookup(opcode, action)
        if found is None and not action:
            found = commands.lookup(opcode, None)
    else:
        raise cdb.invalid("REPORTING OPTIONS")
    if found is None:
        return bytes((0, NOT_SUPPORTED, 0, 0))
    head = struct.pack(">xBH", SUPPORTED | timeouts << 7, found.length)
    return head + found.usage() + (_TIMEOUTS if timeouts else b"")


def _descriptor(command: Command, timeouts: bool) -> bytes:
    action = command.service_action
    flags = timeouts << 1 | (action is not None)
    data = struct.pack(">BxHxBH", command.opcode, action or 0, flags, command.length)
    return data + (_TIMEOUTS if timeouts else b"")
