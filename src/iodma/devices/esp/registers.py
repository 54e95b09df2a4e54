# SPDX-License-Identifier: Apache-2.0
"""The chip's registers and commands: bits, phases, the command table (NCR 53C90A, 53C94, FAS100A).

Plain integers, because registers are read and written on the way of every SCSI command.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

# --- status register ------------------------------------------------------------------------------

STAT_INT: Final = 0x80
#: Gross error: the FIFO's or the command register's top was overwritten.
STAT_GE: Final = 0x40
#: The transfer counter has counted to zero.
STAT_TC: Final = 0x10
STAT_PHASE: Final = 0x07

# --- interrupt register ---------------------------------------------------------------------------

INTR_RST: Final = 0x80
INTR_ICMD: Final = 0x40
INTR_DIS: Final = 0x20
INTR_BS: Final = 0x10
INTR_FC: Final = 0x08
INTR_RESEL: Final = 0x04

# --- configuration registers ----------------------------------------------------------------------

CFG1_ID: Final = 0x07
#: No interrupt for a reset of the bus.
CFG1_SRD: Final = 0x40
#: Features enable: the transfer counter has 24 bits.
CFG2_FE: Final = 0x40

#: In the command register: with DMA; loads the transfer counter.
CMD_DMA: Final = 0x80
CMD_RESET_CHIP: Final = 0x02
CMD_RESET_BUS: Final = 0x03

FIFO_BYTES: Final = 16
#: What TC HIGH reads as until it is written: a FAS100A.
CHIP_ID: Final = 0x04

# --- the bus --------------------------------------------------------------------------------------

DATA_OUT: Final = 0
DATA_IN: Final = 1
COMMAND: Final = 2
STATUS: Final = 3
MESSAGE_OUT: Final = 6
MESSAGE_IN: Final = 7
#: No phase: the bus is free.
BUS_FREE: Final = -1


class Mode(Enum):
    """When a command may be given."""

    ANY = "any"
    DISCONNECTED = "disconnected"
    INITIATOR = "initiator"


@dataclass(frozen=True, slots=True)
class Command:
    """A command of the chip.

    Attributes:
        name: the datasheet's.
        mode: where it is legal; elsewhere it is an illegal command interrupt.
        at_once: the method of the device that does it inside the register write; or
        sequence: the method of `Sequences` that does it, in a coroutine.
        argument: to that.
        shortcut: the method of `Sequences` that does it inside the register write, where nothing
            has to be waited for, or begins it; False from it: it has done nothing.
    """

    name: str
    mode: Mode
    at_once: str = ""
    sequence: str = ""
    argument: int = 0
    shortcut: str = ""


#: Code without CMD_DMA -> command. The chip is never a target here, so that commands of the target
#: group, like those that are reserved, are illegal.
COMMANDS: Final[dict[int, Command]] = {
    0x00: Command("nop", Mode.ANY, "nop"),
    0x01: Command("flush fifo", Mode.ANY, "flush_fifo"),
    0x02: Command("reset chip", Mode.ANY, "reset_chip"),
    0x03: Command("reset scsi bus", Mode.ANY, "reset_bus"),
    0x10: Command("transfer information", Mode.INITIATOR, sequence="transfer"),
    0x11: Command(
        "initiator command complete", Mode.INITIATOR, sequence="complete", shortcut="complete_now"
    ),
    0x12: Command(
        "message accepted", Mode.INITIATOR, sequence="message_accepted", shortcut="accept_now"
    ),
    0x18: Command("transfer pad", Mode.INITIATOR, sequence="pad"),
    0x1A: Command("set atn", Mode.INITIATOR, "set_atn"),
    0x1B: Command("reset atn", Mode.INITIATOR, "reset_atn"),
    0x40: Command("reselect", Mode.DISCONNECTED, sequence="nobody"),
    0x41: Command("select without atn", Mode.DISCONNECTED, "", "select", 0, "select_now"),
    0x42: Command("select with atn", Mode.DISCONNECTED, "", "select", 1, "select_now"),
    0x43: Command("select with atn and stop", Mode.DISCONNECTED, sequence="select_and_stop"),
    0x44: Command("enable selection", Mode.DISCONNECTED, "enable_selection"),
    0x45: Command("disable selection", Mode.DISCONNECTED, "disable_selection"),
    0x46: Command("select with atn3", Mode.DISCONNECTED, "", "select", 3, "select_now"),
    0x47: Command("reselect3", Mode.DISCONNECTED, sequence="nobody"),
}
