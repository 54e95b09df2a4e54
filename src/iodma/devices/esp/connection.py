# SPDX-License-Identifier: Apache-2.0
"""The target's side of the bus, from its selection until the bus is free (SCSI-2 chapter 6).

    bus = Connection(target, initiator=7)
    bus.message_out(b"\\xc0")                 # IDENTIFY, with the privilege to disconnect
    bus.command(cdb)
    bus.phase(atn=False)                      # a phase, or None: the target is at work

    phase        what comes next                                  section
    message out  by ATN alone, whenever it is asserted            6.5.2
    message in   what the target has to say, byte by byte         6.5.1
    command      bytes of the CDB, as many as its group has       6.1.6
    data         the request's                                    6.1.7
    status       the request is over: one byte                    6.1.8
    bus free     after COMMAND COMPLETE, DISCONNECT, an abort     6.1.1

Invariants
 - What an initiator says is checked here, byte by byte; nothing of it raises.
 - A connection has at most one request, and the request outlives it only by DISCONNECT.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from iodma.devices.esp.registers import (
    BUS_FREE,
    COMMAND,
    DATA_IN,
    DATA_OUT,
    MESSAGE_IN,
    MESSAGE_OUT,
    STATUS,
)
from iodma.scsi import DataDirection, Request, State, Target, TaskAttribute

if TYPE_CHECKING:
    from iodma._core import Wait

__all__ = ["CDB_BYTES", "Connection"]

#: Bytes of a CDB by the group code of its first byte; reserved and vendor groups have 6.
CDB_BYTES = (6, 10, 10, 6, 16, 12, 6, 6)

# SCSI-2 6.6, table 13
COMMAND_COMPLETE = 0x00
EXTENDED = 0x01
SAVE_DATA_POINTER = 0x02
DISCONNECT = 0x04
INITIATOR_DETECTED_ERROR = 0x05
ABORT = 0x06
MESSAGE_REJECT = 0x07
NO_OPERATION = 0x08
MESSAGE_PARITY_ERROR = 0x09
BUS_DEVICE_RESET = 0x0C
ABORT_TAG = 0x0D
CLEAR_QUEUE = 0x0E
SIMPLE_QUEUE_TAG = 0x20
HEAD_OF_QUEUE_TAG = 0x21
ORDERED_QUEUE_TAG = 0x22
IDENTIFY = 0x80
DISCONNECT_PRIVILEGE = 0x40

SYNCHRONOUS_TRANSFER = 0x01
#: Of a synchronous transfer agreement: a period of 100 ns, in units of 4 ns; an offset.
FASTEST_PERIOD, MOST_OFFSET = 25, 15

ATTRIBUTES = {
    SIMPLE_QUEUE_TAG: TaskAttribute.SIMPLE,
    HEAD_OF_QUEUE_TAG: TaskAttribute.HEAD_OF_QUEUE,
    ORDERED_QUEUE_TAG: TaskAttribute.ORDERED,
}
#: Bytes of answers that an initiator has not taken, with which no more are made.
MOST_ANSWERS = 64
#: Messages of one byte that ask for nothing that this target would have to do.
IGNORED = frozenset({INITIATOR_DETECTED_ERROR, NO_OPERATION, MESSAGE_PARITY_ERROR})


class Connection:
    """A target that an initiator has selected.

    Args:
        target: the target.
        initiator: its initiator's SCSI ID.

    Attributes:
        lun, tag, attribute: of the command, as messages have said.
        request: the command; None: its CDB has not come yet.
        messages: message in bytes that were not taken yet.
        working: what the target does before the bus is free: an abort, a reset; None: nothing.
        disconnecting: it has said DISCONNECT.
    """

    def __init__(self, target: Target, initiator: int) -> None:
        self.target = target
        self.initiator = initiator
        self.lun = 0
        self.tag: int | None = None
        self.attribute = TaskAttribute.SIMPLE
        self.request: Request | None = None
        self.messages = bytearray()
        self.working: Wait[Any] | None = None
        self.disconnecting = False
        self._may_disconnect = False
        self._leaves = False  # once its messages are accepted
        self._accepted = False
        self._told = False  # the status
        self._moved = False  # data, since it was connected
        self._cdb = bytearray()
        self._out = bytearray()

    def phase(self, atn: bool) -> int | None:
        """The phase that the target asks for now; None: it is at work, see `wait`."""
        if self.working is not None:
            return BUS_FREE if self.working.done else None
        if atn:
            return MESSAGE_OUT
        if self.messages:
            return MESSAGE_IN
        if self._leaves and self._accepted:
            return BUS_FREE
        request = self.request
        if request is None:
            return COMMAND
        if request.state is State.DATA:
            return DATA_IN if request.direction is DataDirection.IN else DATA_OUT
        if not request.over:
            return None
        return BUS_FREE if request.status is None else STATUS

    def wait(self) -> Wait[Any]:
        """Await it after `phase` has given None, then ask again."""
        if self.working is not None:
            return self.working
        assert self.request is not None
        return self.request.finished if self.request.ready.done else self.request.ready

    # --- command, data, status --------------------------------------------------------------------

    def command(self, data: bytes) -> int:
        """Takes command bytes; how many it took: none beyond the CDB's last."""
        before = len(self._cdb)
        self._cdb += data[: self._wanted(data)]
        if self._cdb and len(self._cdb) == CDB_BYTES[self._cdb[0] >> 5]:
            self.request = self.target.request(
                self.lun,
                bytes(self._cdb),
                self.tag,
                attribute=self.attribute,
                initiator=self.initiator,
            )
        return len(self._cdb) - before

    def _wanted(self, data: bytes) -> int:
        first = self._cdb[:1] or data[:1]
        return CDB_BYTES[first[0] >> 5] - len(self._cdb) if first else 0

    def data_moved(self) -> None:
        """Data has moved: a DISCONNECT follows a SAVE DATA POINTER (SCSI-2 6.6.20)."""
        self._moved = True

    def status(self) -> int:
        """Takes the status byte; COMMAND COMPLETE is what the target says next."""
        assert self.request is not None and self.request.status is not None
        if not self._told:
            self._told = self._leaves = True
            self._say(COMMAND_COMPLETE)
        return int(self.request.status)

    # --- messages in ------------------------------------------------------------------------------

    def accepted(self) -> None:
        """The initiator has accepted the last message byte that it took."""
        self._accepted = not self.messages

    def _say(self, *message: int) -> None:
        self.messages += bytes(message)
        self._accepted = False

    @property
    def may_disconnect(self) -> bool:
        """Whether the initiator lets it, and it would help."""
        return self._may_disconnect and self.request is not None and not self.disconnecting

    def disconnect(self) -> None:
        """Says that it disconnects, and goes on without the bus."""
        if self._moved:
            self._say(SAVE_DATA_POINTER)
        self._say(DISCONNECT)
        self.disconnecting = self._leaves = True

    def reselect(self) -> int:
        """It is connected again. Its IDENTIFY; the tag is what it says next (SCSI-2 6.6.17)."""
        self.disconnecting = self._leaves = self._moved = False
        if self.tag is not None:
            self._say(SIMPLE_QUEUE_TAG, self.tag)
        return IDENTIFY | self.lun

    # --- messages out -----------------------------------------------------------------------------

    def message_out(self, data: bytes) -> None:
        """Takes message bytes; messages may be cut anywhere."""
        self._out += data
        while (length := self._message_bytes()) and length <= len(self._out):
            message = bytes(self._out[:length])
            del self._out[:length]
            self._heed(message)

    def _message_bytes(self) -> int:
        """Of the message at the front; 0: that cannot be said yet (SCSI-2 6.6, table 10)."""
        if not self._out:
            return 0
        first = self._out[0]
        if first == EXTENDED:
            return 2 + (self._out[1] or 256) if len(self._out) > 1 else 0
        return 2 if 0x20 <= first <= 0x2F else 1

    def _heed(self, message: bytes) -> None:
        code = message[0]
        if code & IDENTIFY:
            self.lun = code & 7 if self.request is None else self.lun
            self._may_disconnect = bool(code & DISCONNECT_PRIVILEGE)
        elif code in ATTRIBUTES and self.request is None:
            self.attribute = ATTRIBUTES[code]
            self.tag = message[1]
        elif code == EXTENDED and message[2] == SYNCHRONOUS_TRANSFER and len(message) == 5:
            period, offset = max(message[3], FASTEST_PERIOD), min(message[4], MOST_OFFSET)
            self._answer(EXTENDED, 3, SYNCHRONOUS_TRANSFER, period, offset)
        elif code == ABORT:
            self.working = self.target.abort_task_set(self.lun, self.initiator)
        elif code == ABORT_TAG:
            self.working = self.target.abort_task(self.lun, self.tag, self.initiator)
        elif code == CLEAR_QUEUE:
            self.working = self.target.clear_task_set(self.lun, self.initiator)
        elif code == BUS_DEVICE_RESET:
            self.working = self.target.reset()
        elif code == MESSAGE_REJECT:
            self.messages.clear()
            if self.disconnecting:
                self.disconnecting = self._leaves = self._may_disconnect = False
        elif code not in IGNORED:
            self._answer(MESSAGE_REJECT)

    def _answer(self, *message: int) -> None:
        """Says it, unless the initiator talks on and takes nothing of what was said."""
        if len(self.messages) < MOST_ANSWERS:
            self._say(*message)
