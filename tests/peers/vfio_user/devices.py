# SPDX-License-Identifier: Apache-2.0
"""Devices for the guests: the ladder's copy engine, with more and with less than it has there."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import iodma
from iodma.pci import Capability

LADDER = Path(__file__).parents[3] / "examples"
_spec = importlib.util.spec_from_file_location("copy_engine", LADDER / "rung3_copy_engine.py")
assert _spec is not None and _spec.loader is not None
_rung3 = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_rung3)


class Removable(_rung3.CopyEngine):  # type: ignore[misc, name-defined]
    """Without MSI-X: QEMU 11.1 aborts by itself when a function that has it is taken out."""

    pci = iodma.Pci(vendor=0xF1DA, device=0x0003, class_code=0x088000, bars={0: 4096}, msi=2)


class AllKinds(_rung3.CopyEngine):  # type: ignore[misc, name-defined]
    """Every kind of interrupt, BAR and capability."""

    pci = iodma.Pci(
        vendor=0xF1DA,
        device=0x0003,
        class_code=0x088000,
        revision=0x5A,
        subsystem_vendor=0xF1DA,
        subsystem=0x0103,
        bars={
            0: 4096,
            1: iodma.Bar(256, kind="io", at=0x1000),
            2: iodma.Bar(1 << 16, kind="memory64", prefetchable=True, at=0x10000),
        },
        intx=True,
        msi=2,
        msix=2,
        capabilities=(
            Capability.vendor_specific(b"iodma\0\0\0\0", writable=bytes(5) + b"\xff\x0f"),
        ),
    )


class Shapes(iodma.Device):
    """A BAR of every kind with something behind it, a ROM, and a line for each vector."""

    pci = iodma.Pci(
        vendor=0xF1DA,
        device=0x0010,
        bars={
            0: 4096,
            1: iodma.Bar(256, kind="io", at=0x1000),
            2: iodma.Bar(1 << 16, kind="memory64", prefetchable=True, at=0x10000),
            4: iodma.Bar(8192, ram="shared"),
        },
        msi=4,
        msix=3,
        rom=b"\x55\xaa\x04 what is in the ROM",
    )
    value = iodma.Register(0x10)
    pulse = iodma.Register(0x20, access="wo", write="pulse_line", doc="the line")
    level = iodma.Register(0x24, write="set_line", mask=1, doc="of line 0")
    ports = iodma.Register(0x1004, doc="in I/O space")
    far = iodma.Register(0x10008, 8, doc="behind the 64-bit BAR")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.shared = iodma.Ram(8192)
        self.lines = [self.interrupt, self.interrupt_line("one"), self.interrupt_line("two")]

    def pulse_line(self, value: int) -> None:
        self.lines[value % len(self.lines)].pulse()

    def set_line(self, value: int) -> None:
        self.interrupt.set(bool(value & 1))
