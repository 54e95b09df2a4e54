# SPDX-License-Identifier: Apache-2.0
"""Device models that do DMA like hardware: vectored, asynchronous, zero-copy.

The public names, nothing else.  What each is responsible for stands in `docs/design.md`.
"""

from iodma._version import __version__

try:
    from iodma import _core
except ImportError as error:  # `iodma doctor` works without it, and says what is to be done

    def _missing(name: str, why: str = str(error)) -> object:
        if name not in __all__:
            raise AttributeError(f"module 'iodma' has no attribute {name!r}")
        raise ImportError(
            f"the C core cannot be imported ({why}); `iodma doctor` says more", name="iodma._core"
        )

    globals()["__getattr__"] = _missing  # not by name: type checkers know what is here
else:
    from iodma.devices import Device, Doorbell, Interrupt, Register
    from iodma.endpoints import Buffer, Datagram, Endpoint, File, Nbd, Null, Socket, Tap
    from iodma.engine import Engine, Event, Stats, SystemClock, Task
    from iodma.errors import (
        AddressRangeError,
        ArgumentError,
        ArgumentTypeError,
        BusyError,
        Cancelled,
        ClosedError,
        DmaFault,
        Error,
        StaleError,
        UnsupportedError,
        WrongThreadError,
    )
    from iodma.lease import Revocation
    from iodma.memory import DeviceWindow, Memory, MsiWindow, Ram, RemoteMemory, Rom
    from iodma.pci import Bar, Pci, PciSlot
    from iodma.port import Peek, Port
    from iodma.sg import Batch, Completions, ScatterList
    from iodma.stages import ByteLanes, Iommu, Mapping, Window
    from iodma.transfer import Completion, Transfer
    from iodma.transports import Bus
    from iodma.transports.vfio_user import VfioUserServer
    from iodma.types import Access, Constraints, Direction, Fault, Reason, Status

    if _core.version != __version__:
        raise ImportError(
            f"iodma is version {__version__} and its C core is {_core.version}: build it again with"
            " `make build`, or install the package again"
        )

__all__ = [
    "Access",
    "AddressRangeError",
    "ArgumentError",
    "ArgumentTypeError",
    "Bar",
    "Batch",
    "Buffer",
    "Bus",
    "BusyError",
    "ByteLanes",
    "Cancelled",
    "ClosedError",
    "Completion",
    "Completions",
    "Constraints",
    "Datagram",
    "Device",
    "DeviceWindow",
    "Direction",
    "DmaFault",
    "Doorbell",
    "Endpoint",
    "Engine",
    "Error",
    "Event",
    "Fault",
    "File",
    "Interrupt",
    "Iommu",
    "Mapping",
    "Memory",
    "MsiWindow",
    "Nbd",
    "Null",
    "Pci",
    "PciSlot",
    "Peek",
    "Port",
    "Ram",
    "Reason",
    "Register",
    "RemoteMemory",
    "Revocation",
    "Rom",
    "ScatterList",
    "Socket",
    "StaleError",
    "Stats",
    "Status",
    "SystemClock",
    "Tap",
    "Task",
    "Transfer",
    "UnsupportedError",
    "VfioUserServer",
    "Window",
    "WrongThreadError",
    "__version__",
]
