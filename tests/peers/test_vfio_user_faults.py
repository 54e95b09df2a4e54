# SPDX-License-Identifier: Apache-2.0
"""Rung 4 in a guest: a kernel's driver of the copy engine meets the faults of a plan, each when the
plan says so, and works again after each. What is needed comes as test_vfio_user_qtest.py says.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.peers.guests.foreign import Foreign
from tests.peers.guests.qemu import Boot, Machine
from tests.peers.vfio_user.machine import Served, VfioQemu

COPY = "echo 1 4096 1 >/sys/bus/pci/devices/0000:01:00.0/copy"
PLAN = """
write fault nth=3 offset=100
report delay nth=5 seconds=0.3   # so that the driver waits
done lose nth=4                  # which is the fifth copy's, as the third has failed
read hang nth=7
"""


class Faulty(Served):
    """Rung 4, with a plan."""

    def __init__(self, work: Path) -> None:
        super().__init__(work, "rung4_faulty_engine.py")
        self.plan = work / "plan"
        self.plan.write_text(PLAN)

    def command(self) -> Sequence[str]:
        return [*super().command(), "-v", f"faults={self.plan}"]


@pytest.mark.limit(300)
def test_a_driver_is_told_of_each_fault_and_goes_on(
    work: Path, qemu11: Foreign, vfio_boot: Boot
) -> None:
    with Faulty(work) as server:
        with VfioQemu(work, vfio_boot, qemu11, [server], Machine(memory=256)) as guest:
            guest.start()
            guest.run("insmod /drivers/copy_engine.ko irq=msix", seconds=60)
            ends = []
            for _ in range(8):
                answer = guest.run(COPY, seconds=60, status=None)
                ends.append(answer.output.rpartition(": ")[2].strip() if answer.status else "")
        late = "Connection timed out"
        assert ends == ["", "", "Input/output error", "", late, "", late, ""], ends
        server.stop()
        said = server.said()
        for line in ("write fault", "report delay", "done lose", "read hang"):
            assert said.count(f"faultyengine0: {line}\n") == 1, said
