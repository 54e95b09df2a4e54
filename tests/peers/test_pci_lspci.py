"""The configuration space as lspci decodes it, which nobody here wrote."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import iodma
from iodma.pci import Capability, Function
from tests.unit.pcikit import Lines, capability, described, dump, put

Decode = Callable[[Function], str]


@pytest.fixture
def decode(peer: Callable[[str], str], tmp_path: Path) -> Decode:
    """What `lspci -vvv` says of a function, each run of blanks as one."""
    program = peer("lspci")

    def run(function: Function) -> str:
        file = tmp_path / "dump"
        file.write_text(dump(function))
        done = subprocess.run(
            [program, "-F", file, "-vvv", "-n"], capture_output=True, text=True, timeout=20
        )
        assert done.returncode == 0, done.stderr
        wrong = re.findall(r".*(?:<chain broken|<chain looped|\?\?).*", done.stdout)
        assert not wrong, wrong
        return re.sub(r"[ \t]+", " ", done.stdout)

    return run


def test_a_function_at_power_on(decode: Decode) -> None:
    text = decode(
        Function(described(class_code=0x088000, revision=3, subsystem=0x42, msi=4, msix=5)())
    )
    assert "00:04.0 0880: f1da:0001 (rev 03)" in text
    assert "Subsystem: f1da:0042" in text
    assert "Control: I/O- Mem- BusMaster- SpecCycle- MemWINV- VGASnoop- ParErr-" in text
    assert "SERR- FastB2B- DisINTx-" in text and "Status: Cap+ 66MHz- UDF-" in text
    assert "Interrupt: pin A routed to IRQ 0" in text
    assert "[40] Power Management version 3" in text
    assert "PMEClk- DSI- D1- D2- AuxCurrent=0mA PME(D0-,D1-,D2-,D3hot-,D3cold-)" in text
    assert "Status: D0 NoSoftRst+ PME-Enable-" in text
    assert "[48] MSI: Enable- Count=1/4 Maskable+ 64bit+" in text
    assert "[60] Express (v2) Endpoint, MSI 00" in text
    assert "RBE+ FLReset+" in text and "MaxPayload 256 bytes" in text
    assert "RlxdOrd+ ExtTag- PhantFunc- AuxPwr- NoSnoop+ FLReset-" in text
    assert "MaxPayload 128 bytes, MaxReadReq 512 bytes" in text
    assert "LnkCap: Port #0, Speed 2.5GT/s, Width x1, ASPM not supported" in text
    assert "LnkSta: Speed 2.5GT/s, Width x1" in text
    assert "[9c] MSI-X: Enable- Count=5 Masked-" in text
    assert "Vector table: BAR=1 offset=00000000" in text
    assert "PBA: BAR=1 offset=00000800" in text
    assert text.count("Capabilities: [") == 4


def test_what_software_has_set(decode: Decode) -> None:
    bars: dict[int, Any] = {
        0: 4096,
        1: iodma.Bar(1 << 20, kind="memory64", prefetchable=True),
        3: iodma.Bar(64, kind="io", at=0),
        4: 256,
    }
    function = Function(described(bars=bars, msi=8, msix=2048, rom=b"\x55\xaa", msix_bar=5)())
    put(function, 0x04, 0x0547)
    put(function, 0x10, 0xE000_0000, 4)
    put(function, 0x14, 0x12_3450_0000, 8)
    put(function, 0x1C, 0xC040, 4)
    put(function, 0x20, 0xE100_0100, 4)
    put(function, 0x30, 0xE200_0801, 4)
    put(function, 0x3C, 11)
    offset = capability(function, 0x05)
    put(function, offset + 2, 0x21)
    put(function, offset + 4, 0xFEE0_1000, 8)
    put(function, offset + 12, 0x4041)
    put(function, offset + 16, 0b10, 4)
    put(function, capability(function, 0x11) + 2, 0x4000)
    put(function, capability(function, 0x10) + 8, 0x20)
    text = decode(function)
    assert "Control: I/O+ Mem+ BusMaster+" in text and "ParErr+ Stepping- SERR+" in text
    assert "DisINTx+" in text and "Interrupt: pin A routed to IRQ 11" in text
    assert "Region 0: Memory at e0000000 (32-bit, non-prefetchable)" in text
    assert "Region 1: Memory at 1234500000 (64-bit, prefetchable)" in text
    assert "Region 3: I/O ports at c040" in text
    assert "Region 4: Memory at e1000100 (32-bit, non-prefetchable)" in text
    assert "Expansion ROM at e2000800" in text
    assert "MSI: Enable+ Count=4/8 Maskable+ 64bit+" in text
    assert "Address: 00000000fee01000 Data: 4041" in text
    assert "Masking: 00000002 Pending: 00000000" in text
    assert "MSI-X: Enable- Count=2048 Masked+" in text and "Vector table: BAR=5" in text
    assert "MaxPayload 256 bytes, MaxReadReq 128 bytes" in text


def test_states_that_come_and_go(decode: Decode) -> None:
    device = Lines()
    function = Function(device)
    device.interrupt.set(True)
    assert "INTx+" in decode(function)
    put(function, 0x04, 4)
    put(function, capability(function, 0x05) + 2, 1)
    put(function, capability(function, 0x05) + 16, 1, 4)
    device.lines[1].pulse()
    text = decode(function)
    assert "INTx-" in text and "Masking: 00000001 Pending: 00000001" in text
    put(function, capability(function, 0x01) + 4, 3)
    assert "Status: D3 NoSoftRst+" in decode(function)
    assert "NoSoftRst-" in decode(Function(described(soft_reset=True)()))


def test_capabilities_of_ones_own(decode: Decode) -> None:
    function = Function(
        described(
            power_management=False,
            capabilities=(
                Capability.vendor_specific(b"abc"),
                Capability.vendor_specific(b"Hello world."),
                Capability(0x03, bytes(range(8)), extended=True),
                Capability(0x0B, b"\x1a\x00\xd1\x00" + b"abcde", extended=True),
                Capability(0x0B, b"\x1b\x00\x42\x01" + b"Hello world.", extended=True),
            ),
        )()
    )
    text = decode(function)
    assert "[40] Express (v2)" in text
    assert "[7c] Vendor Specific Information: Len=06" in text
    assert "[84] Vendor Specific Information: Len=0f" in text
    assert "[100 v1] Device Serial Number 07-06-05-04-03-02-01-00" in text
    assert "[10c v1] Vendor Specific Information: ID=001a Rev=1 Len=00d" in text
    assert "[11c v1] Vendor Specific Information: ID=001b Rev=2 Len=014" in text


memory = st.integers(4, 31).map(lambda bits: iodma.Bar(1 << bits))
# From 2^32 on the lower half of the address is 0, and lspci takes the upper half for another BAR.
wide = st.builds(
    lambda bits, prefetchable: iodma.Bar(1 << bits, kind="memory64", prefetchable=prefetchable),
    st.integers(4, 31),
    st.booleans(),
)
ports = st.integers(2, 8).map(lambda bits: iodma.Bar(1 << bits, kind="io"))
extra = st.one_of(
    st.binary(min_size=1, max_size=24).map(Capability.vendor_specific),
    st.binary(min_size=8, max_size=8).map(lambda data: Capability(0x03, data, extended=True)),
)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    bars=st.dictionaries(st.sampled_from((0, 2, 4)), st.one_of(memory, wide, ports)),
    msi=st.sampled_from((0, 1, 8, 32)),
    msix=st.sampled_from((0, 1, 100, 2048)),
    intx=st.booleans(),
    power=st.booleans(),
    capabilities=st.lists(extra, max_size=3),
)
def test_any_function(
    decode: Decode,
    bars: dict[int, iodma.Bar],
    msi: int,
    msix: int,
    intx: bool,
    power: bool,
    capabilities: list[Capability],
) -> None:
    """All that is described is found, and nothing else."""

    class Any(iodma.Device):
        pci = iodma.Pci(
            vendor=0xF1DA,
            device=1,
            bars=bars,
            msi=msi,
            msix=msix,
            intx=intx,
            power_management=power,
            capabilities=tuple(capabilities),
        )

    function = Function(Any())
    put(function, 0x04, 7)
    for index, bar in function.bars.items():
        put(function, 0x10 + 4 * index, bar.size, 4 + 4 * bar.wide)  # its own size is aligned
    text = decode(function)
    for index, bar in function.bars.items():
        where = "I/O ports at" if bar.io else "Memory at"
        kind = f"({64 if bar.wide else 32}-bit, {'' if bar.prefetchable else 'non-'}prefetchable)"
        number = f"{bar.size:0{4 if bar.io else 8}x}"
        expected = f"Region {index}: {where} {number}" + ("" if bar.io else f" {kind}")
        assert expected in text, f"no {expected} in\n{text}"
    assert text.count("Region ") == len(function.bars)
    assert text.count("Capabilities: [") == power + (msi > 0) + (msix > 0) + 1 + len(capabilities)
    assert (f"MSI: Enable- Count=1/{msi} " in text) == (msi > 0)
    assert (f"MSI-X: Enable- Count={msix} " in text) == (msix > 0)
    assert ("Interrupt: pin A" in text) == intx


def test_conventional_pci(decode: Decode) -> None:
    text = decode(Function(described(express=False, intx=False, power_management=False)()))
    assert "Cap-" in text and "Capabilities" not in text and "pin A" not in text
    assert "Capabilities: [40] Power Management" in decode(Function(described(express=False)()))
