# SPDX-License-Identifier: Apache-2.0
"""What a device is as a PCI function: one line in its class.

    class CopyEngine(iodma.Device):
        pci = iodma.Pci(vendor=0xF1DA, device=0x0003, class_code=0x088000, bars={0: 4096}, msix=2)

PCI Local Bus 3.0, chapter 6; PCI Express Base, chapter 7.

Invariants
 - What cannot be a function raises where it is written; where its BARs, capabilities and MSI-X
   table lie follows from the description alone, and is known to work once it has been made.
 - A description holds no state: any number of functions are made from one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from inspect import iscoroutinefunction
from types import MappingProxyType
from typing import Literal, get_args

from iodma.errors import AddressRangeError, ArgumentError, ArgumentTypeError, integer
from iodma.pci.capabilities import VENDOR, config_space
from iodma.pci.placement import ROM, Placement, place

__all__ = ["Bar", "BarKind", "Capability", "Pci"]

BarKind = Literal["memory", "memory64", "io"]

#: Vectors that MSI can have: its Multiple Message fields count in powers of two.
MSI_VECTORS = (0, 1, 2, 4, 8, 16, 32)
MSIX_MOST = 2048
#: Kind -> least and most bytes of a BAR.
_SIZES = {"memory": (16, 1 << 31), "memory64": (16, 1 << 63), "io": (4, 256)}
_ROM_MOST = 16 << 20
#: The least of guests' pages: a smaller BAR shares its page with others.
_PAGE = 4096


@dataclass(frozen=True, slots=True)
class Bar:
    """One base address register, and what is behind it.

    Args:
        size: bytes, a power of two: 16 to 2^31 for "memory", to 2^63 for "memory64", 4 to 256 for
            "io".
        at: where in the device's register space the BAR begins, bytes.
        kind: "memory64" takes the BAR above it, too.
        prefetchable: reads of it have no side effects.
        ram: the name of an attribute of the device that is a `Ram` of at least `size` bytes: what
            is behind the BAR instead of registers. A VMM maps it into the guest.

    Raises:
        ArgumentError: a size or place that a BAR cannot have.
    """

    size: int
    _: KW_ONLY
    at: int = 0
    kind: BarKind = "memory"
    prefetchable: bool = False
    ram: str | None = None

    def __post_init__(self) -> None:
        size = integer(self.size, "a BAR's size", "bytes")
        if self.kind not in get_args(BarKind):
            raise ArgumentError(
                f'a BAR\'s kind is {self.kind!r}; "memory", "memory64" or "io" would be right'
            )
        least, most = _SIZES[self.kind]
        if not least <= size <= most or size & (size - 1):
            nearest = min(max(1 << (size - 1).bit_length(), least), most) if size > 0 else least
            raise ArgumentError(
                f"a BAR of {size} bytes of kind {self.kind!r}: a power of two from {least} to "
                f"{most:#x} would be right, such as {nearest}"
            )
        at = integer(self.at, "where a BAR begins (at)", "bytes")
        if at < 0 or at % min(size, 8):
            raise ArgumentError(
                f"a BAR that begins at {at:#x} of the device's registers; a multiple of "
                f"{min(size, 8)} would be right"
            )
        if self.kind == "io" and (self.prefetchable or self.ram is not None):
            raise ArgumentError("a BAR in I/O space can be neither prefetchable nor ram")
        if self.ram is not None and not isinstance(self.ram, str):
            raise ArgumentTypeError(
                f"ram is {self.ram!r}; the name of the device's attribute would be right"
            )
        if self.ram is not None and at:
            raise ArgumentError(f"a BAR that is ram has no registers to begin at {at:#x}")


@dataclass(frozen=True, slots=True)
class Capability:
    """A capability of one's own, in the list of the configuration space.

    Args:
        id: its number: 1 to 0xFF, or to 0xFFFF for an extended one.
        data: what stands behind its header (id and next pointer: 2 bytes, or 4 if extended).
        writable: a mask as long as data or shorter: the bits that software can write.
        extended: it goes to the extended space, from offset 0x100 on.
        version: of an extended one, 1 to 15.
        read: the name of a method of the device that gives the data as it is now, as long as
            `data`: ``read(self) -> bytes``.
        write: the name of one that is called after a write, with all of the data as it is then:
            ``write(self, data)``. Both are register handlers: plain functions that answer at once.

    Raises:
        ArgumentError: a value that does not fit.
    """

    id: int
    data: bytes
    writable: bytes = b""
    _: KW_ONLY
    extended: bool = False
    version: int = 1
    read: str | None = None
    write: str | None = None

    def __post_init__(self) -> None:
        most = 0xFFFF if self.extended else 0xFF
        if not 0 < integer(self.id, "a capability's id") <= most:
            raise ArgumentError(f"a capability's id is {self.id:#x}; 1 to {most:#x} would be right")
        for name in ("data", "writable"):
            value = getattr(self, name)
            if not isinstance(value, bytes | bytearray | memoryview):
                raise ArgumentTypeError(f"a capability's {name} is {value!r}; bytes would be right")
            object.__setattr__(self, name, bytes(value))
        if len(self.writable) > len(self.data):
            raise ArgumentError(
                f"capability {self.id:#x}: a mask of {len(self.writable)} bytes for"
                f" {len(self.data)} bytes of data"
            )
        if not 0 < integer(self.version, "a capability's version") <= 15:
            raise ArgumentError(f"a capability's version is {self.version}; 1 to 15 would be right")
        for name in ("read", "write"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and self.data):
                raise ArgumentTypeError(
                    f"capability {self.id:#x}: {name} is {value!r}; the name of a method of the "
                    "device, and data, would be right"
                )
        if self.extended or self.id != VENDOR:
            return
        length = len(self.data) + 2
        if not self.data or self.data[0] != length:
            raise ArgumentError(
                f"a vendor-specific capability begins with its length, {length}, not with "
                f"{self.data[:1].hex() or 'nothing'}: Capability.vendor_specific(...) puts it there"
            )

    @classmethod
    def vendor_specific(
        cls,
        data: bytes,
        writable: bytes = b"",
        *,
        read: str | None = None,
        write: str | None = None,
    ) -> Capability:
        """The capability of id 0x09 with its length byte, which are not part of `data`.

        To `read` and `write` the length byte is the first.

        Raises:
            ArgumentError: longer than 252 bytes.
        """
        if len(data) > 252:
            raise ArgumentError(f"{len(data)} bytes do not fit a capability; 252 do at most")
        mask = b"\0" + writable if writable else b""
        return cls(VENDOR, bytes((len(data) + 3,)) + data, mask, read=read, write=write)


@dataclass(frozen=True)
class Pci:
    """What a device is on a PCI bus.

    Args:
        vendor: 1 to 0xFFFE.
        device: the Device ID.
        class_code: 24 bits: class, subclass, programming interface. Default: fits no class.
        revision: 0 to 0xFF.
        subsystem_vendor: default: the vendor.
        subsystem: default: the device.
        bars: index, 0 to 5, -> a `Bar`, or its size in bytes.
        intx: it has an interrupt pin (INTA#).
        msi: vectors of MSI: 0 (it has none), 1, 2, 4, 8, 16 or 32.
        msix: vectors of MSI-X: 0 (it has none) to 2048.
        msix_bar: where MSI-X's table goes: into a BAR of its own, or to the end of one that has
            room behind the registers. Default: the first BAR above those that are used.
        express: a PCI Express endpoint, with 4096 bytes of configuration space and function level
            reset; False: conventional PCI, 256 bytes.
        power_management: it has the capability, with D0 and D3hot.
        soft_reset: what goes from D3hot to D0 is reset; False: it goes on as it was.
        capabilities: more of them.
        rom: what is in its expansion ROM.

    Raises:
        ArgumentError: a value that no function can have, or more than fits; it says what is right.
    """

    _: KW_ONLY
    vendor: int
    device: int
    class_code: int = 0xFF0000
    revision: int = 0
    subsystem_vendor: int | None = None
    subsystem: int | None = None
    bars: Mapping[int, int | Bar] = field(default_factory=dict)
    intx: bool = True
    msi: int = 0
    msix: int = 0
    msix_bar: int | None = None
    express: bool = True
    power_management: bool = True
    soft_reset: bool = False
    capabilities: tuple[Capability, ...] = ()
    rom: bytes | None = field(default=None, repr=False)
    _placement: Placement = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._check_numbers()
        if not isinstance(self.bars, Mapping):
            raise ArgumentTypeError(
                f"bars is {self.bars!r}; a dictionary such as {{0: 4096}} would be right"
            )
        bars = {}
        for index, bar in self.bars.items():
            bars[integer(index, "a BAR's index")] = bar if isinstance(bar, Bar) else Bar(bar)
        object.__setattr__(self, "bars", MappingProxyType(bars))
        if not isinstance(self.capabilities, tuple | list) or not all(
            isinstance(each, Capability) for each in self.capabilities
        ):
            raise ArgumentTypeError(
                f"capabilities is {self.capabilities!r}; a tuple of Capability would be right"
            )
        object.__setattr__(self, "capabilities", tuple(self.capabilities))
        if self.rom is not None:
            if not isinstance(self.rom, bytes | bytearray) or not self.rom:
                raise ArgumentTypeError(f"rom is {self.rom!r}; at least a byte would be right")
            if len(self.rom) > _ROM_MOST:
                raise ArgumentError(f"a rom of {len(self.rom)} bytes; {_ROM_MOST} fit at most")
            object.__setattr__(self, "rom", bytes(self.rom))
        # Where things lie: raises if they cannot.
        object.__setattr__(self, "_placement", place(self))
        config_space(self)

    def _check_numbers(self) -> None:
        for name, value, least, most in (
            ("vendor", self.vendor, 1, 0xFFFE),
            ("device", self.device, 0, 0xFFFF),
            ("class_code", self.class_code, 0, 0xFFFFFF),
            ("revision", self.revision, 0, 0xFF),
            ("subsystem_vendor", self.subsystem_vendor, 0, 0xFFFF),
            ("subsystem", self.subsystem, 0, 0xFFFF),
            ("msix", self.msix, 0, MSIX_MOST),
        ):
            if value is not None and not least <= integer(value, name) <= most:
                raise ArgumentError(f"{name} is {value:#x}; {least:#x} to {most:#x} would be right")
        if integer(self.msi, "msi") not in MSI_VECTORS:
            raise ArgumentError(
                f"msi is {self.msi} vectors; {', '.join(map(str, MSI_VECTORS))} would be right"
            )
        if self.soft_reset and not self.power_management:
            raise ArgumentError("soft_reset is what power_management does: it would be needed")

    @property
    def placement(self) -> Placement:
        """Where the BARs and MSI-X's structures are."""
        return self._placement

    def check(self, device: type) -> None:
        """Whether a device class fits: every register behind a BAR, nothing on MSI-X's structures,
        and the methods that capabilities name are there.

        Raises:
            AddressRangeError: registers that no BAR shows, or in the table's place.
            ArgumentError: a method that is missing, or is an ``async def``.
        """
        for each in self.capabilities:
            for name in filter(None, (each.read, each.write)):
                method = getattr(device, name, None)
                if not callable(method) or iscoroutinefunction(method):
                    raise ArgumentError(
                        f"{device.__name__}: capability {each.id:#x} names its method {name}, which"
                        f" is {method!r}; a plain method would be right"
                    )
        registers = device.registers.values()  # type: ignore[attr-defined]
        behind = [
            bar
            for bar in self.placement.bars.values()
            if bar.ram is None and not bar.msix and bar.index != ROM
        ]
        for register in registers:
            holds = [bar for bar in behind if bar.at <= register.offset and register.end <= bar.end]
            if not holds:
                there = ", ".join(f"{bar.at:#x}..{bar.end:#x} (BAR {bar.index})" for bar in behind)
                end = max(each.end for each in registers)
                all_of_them = max(_PAGE, 1 << (end - 1).bit_length())
                raise AddressRangeError(
                    f"{device.__name__}.{register.name} at {register.offset:#x}.."
                    f"{register.end:#x} is behind none of the BARs, which show "
                    f"{there or 'no registers'}; bars={{0: {all_of_them}}} would show all"
                )
            for bar in holds:
                if bar.table is not None and register.end > bar.at + bar.table:
                    raise AddressRangeError(
                        f"{device.__name__}.{register.name} ends at {register.end - bar.at:#x} of "
                        f"BAR {bar.index}, and the MSI-X table begins at {bar.table:#x}: a BAR of "
                        f"{2 * bar.size} bytes, or an msix_bar= of its own, would be right"
                    )
