# SPDX-License-Identifier: Apache-2.0
"""The generators of programs, by name, each with its share of a campaign."""

from __future__ import annotations

from collections.abc import Callable

from tests.peers.sun4m.lance_programs import driver, faults, loopback, modes
from tests.peers.sun4m.program import Program
from tests.peers.sun4m.register_programs import hostile, interrupts, iommu, ledma, widths
from tests.peers.sun4m.scsi_programs import scsi, scsi_wide

GENERATORS: dict[str, tuple[Callable[[int], Program], float]] = {
    "driver": (driver, 5),
    "faults": (faults, 1),
    "loopback": (loopback, 1),
    "modes": (modes, 1),
    "iommu": (iommu, 2),
    "ledma": (ledma, 2),
    "interrupts": (interrupts, 1),
    "widths": (widths, 0.5),
    "hostile": (hostile, 2),
    "scsi": (scsi, 2),
    "scsi_wide": (scsi_wide, 1),
}
