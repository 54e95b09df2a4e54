"""What tests of PCI functions share: a sink that notes, words for configuration space, a device."""

from __future__ import annotations

from typing import Any

import iodma
from iodma.pci import Function

BUS_MASTER = b"\x04\x00"
COMMAND = 0x04


class Noted:
    """A sink that notes what it is told: ``True`` and ``False`` for INTx, numbers for messages."""

    def __init__(self, takes: bool = True) -> None:
        self.told: list[Any] = []
        self.takes = takes

    def intx(self, level: bool) -> None:
        self.told.append(level)

    def message(self, vector: int) -> bool:
        if self.takes:
            self.told.append(vector)
        return self.takes

    def take(self) -> list[Any]:
        told, self.told = self.told, []
        return told


def capability(function: Function, wanted: int) -> int:
    """Where a capability is, as software finds it: along the list."""
    assert function.config_read(0x06, 1)[0] & 0x10
    offset = function.config_read(0x34, 1)[0]
    while offset:
        number, following = function.config_read(offset, 2)
        if number == wanted:
            return offset
        offset = following
    raise AssertionError(f"no capability {wanted:#x}")


def word(function: Function, offset: int, width: int = 2) -> int:
    return int.from_bytes(function.config_read(offset, width), "little")


def put(function: Function, offset: int, value: int, width: int = 2) -> Any:
    return function.config_write(offset, value.to_bytes(width, "little"))


class Lines(iodma.Device):
    """Three lines, and a register."""

    pci: Any = iodma.Pci(vendor=0xF1DA, device=1, bars={0: 4096}, msi=4, msix=4)
    value = iodma.Register(0x10, narrowest=1)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lines = [
            self.interrupt,
            self.interrupt_line("second"),
            self.interrupt_line("third"),
        ]


def described(**changes: Any) -> type[Lines]:
    """`Lines` with another description."""
    pci = iodma.Pci(**{"vendor": 0xF1DA, "device": 1, "bars": {0: 4096}, **changes})
    return type("Lines", (Lines,), {"pci": pci})


def dump(function: Function) -> str:
    """The configuration space as `lspci -F` reads it."""
    size = function.config.size
    data = function.config_read(0, size)
    rows = (f"{at:02x}: {data[at : at + 16].hex(' ')}" for at in range(0, size, 16))
    return "00:04.0 a function\n" + "\n".join(rows) + "\n"
