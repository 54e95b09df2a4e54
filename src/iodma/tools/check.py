# SPDX-License-Identifier: Apache-2.0
"""`iodma check FILE.py`: is this a device, and what does a driver see of it?

The file is imported (which checks the register map: offsets, overlaps, handlers), the device is
made with stand-ins for its endpoints, attached, and taken through one reset. If it says what it is
on a PCI bus, a function is made of it, and its configuration space read.

Invariants
 - Nothing of the host is touched: memory and endpoints are the process's own.
 - What is wrong with the device raises, with the file and the line; a result means that it is fine.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import iodma
from iodma.tools import describe_pci
from iodma.tools.describe_pci import PciLines
from iodma.tools.load import LoadError, endpoint_names, load, made, setting_names, told

__all__ = ["RegisterLine", "Result", "check", "render"]

RAM_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class RegisterLine:
    """One register, as its datasheet would list it. `reset` is None for a doorbell."""

    offset: int
    width: int
    name: str
    access: str
    reset: int | None
    doc: str


@dataclass(frozen=True, slots=True)
class Result:
    """What `check` found.

    Attributes:
        file: its path.
        device: the class.
        doc: the first line of its docstring.
        size: bytes of its window.
        registers: by offset.
        endpoints: what it asks for beside its port.
        settings: what can be given as NAME=VALUE, with the type's name.
        pci: what it is on a PCI bus; None: it does not say.
    """

    file: str
    device: str
    doc: str
    size: int
    registers: tuple[RegisterLine, ...]
    endpoints: tuple[str, ...]
    settings: dict[str, str]
    pci: PciLines | None = None

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def check(target: str) -> Result:
    """Checks FILE.py or FILE.py:Class.

    Raises:
        LoadError: the file has no device that can be used; says where and why.
    """
    loaded = load(target)
    on_pci = hasattr(loaded.device, "pci")
    if on_pci:
        describe_pci.described_by(loaded)
    with (
        iodma.Engine(name="check", strict=True) as engine,
        iodma.Ram(RAM_BYTES) as ram,
        made(loaded, engine, iodma.PciSlot(iodma.Memory({0: ram})), {}) as device,
    ):
        function = describe_pci.function_of(loaded, device) if on_pci else None
        pci = None if function is None else describe_pci.described(function)

        async def reset() -> None:
            await device.request_reset()

        try:
            engine.run(reset())
        except Exception as error:
            what = f"{loaded.device.__name__} fails in a reset: "
            raise LoadError(told(error, loaded.path, what)) from error
    return described(target.partition(":")[0], loaded.device, pci)


def described(file: str, device: type[iodma.Device], pci: PciLines | None) -> Result:
    """The device class as a table."""
    registers = device.registers
    doc = vars(device).get("__doc__") or ""
    return Result(
        file=file,
        device=device.__name__,
        doc=doc.strip().splitlines()[0] if doc.strip() else "",
        size=registers.size,
        registers=tuple(
            RegisterLine(
                offset=each.offset,
                width=each.width,
                name=each.name,
                access=each.rights if isinstance(each, iodma.Register) else "doorbell",
                reset=each.reset if isinstance(each, iodma.Register) else None,
                doc=each.doc,
            )
            for each in registers.values()
        ),
        endpoints=tuple(endpoint_names(device)),
        settings=setting_names(device),
        pci=pci,
    )


def render(result: Result) -> str:
    """The result as text for a terminal."""
    title = f"{result.device}: {result.doc}" if result.doc else result.device
    lines = [title, f"window: {result.size:#x} bytes"]
    lines.append(f"endpoints: {', '.join(result.endpoints) or 'none'}")
    if result.settings:
        listed = (f"{name} ({kind})" for name, kind in result.settings.items())
        lines.append(f"settings: {', '.join(listed)}")
    lines += ["pci: none"] if result.pci is None else describe_pci.render(result.pci)
    if result.registers:
        lines.append("")
    names = max((len(each.name) for each in result.registers), default=0)
    for each in result.registers:
        digits = 2 * each.width + 2
        reset = "-" if each.reset is None else f"{each.reset:#0{digits}x}"
        lines.append(
            f"  {each.offset:#06x}  {8 * each.width:>2} bit  {each.access:<8}"
            f"  {each.name:<{names}}  {reset:<18}  {each.doc}".rstrip()
        )
    return "\n".join(lines)
