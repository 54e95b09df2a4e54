# SPDX-License-Identifier: Apache-2.0
"""The server: a socket that VMMs connect to, one at a time.

Invariant: all that is its own is what a session is opened with; the rest is `Listener`'s.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from iodma.devices import Device
from iodma.engine import Engine
from iodma.log import GuestLog
from iodma.pci import Function
from iodma.transports.listener import Listener
from iodma.transports.vfio_user.session import Session

__all__ = ["VfioUserServer"]

log = GuestLog("iodma.vfio_user")


class VfioUserServer(Listener[Session]):
    """Serves a PCI device to a VMM: the server of the vfio-user protocol.

        async with iodma.VfioUserServer(engine, device, "/run/device.sock") as server:
            await server.wait()

    It serves from now on, while the engine runs, until `close`. A client that goes away ends its
    session: what it had in flight is cancelled, the function is reset, its memory unmapped; then
    the next one is accepted.

    Args:
        device: has a `Pci` as its class attribute ``pci``; or a `pci.Function`. It is attached to
            the engine if it is not yet.
        path: where to listen. A socket there that nobody listens on is replaced.
        fd: instead of a path: a unix stream socket, which listens or is connected. The descriptor
            is duplicated.
        mapped: whether memory that the client shares is mapped: always, never, or as a function of
            a region's bus address and bytes says. What is not mapped is reached by messages, as
            memory that is not shared is: for clients that have to be tried, and slow.

    Attributes:
        function: the device as a PCI function.
        path: as it was given, or None.
        session: the client that is connected, or None.
        sessions: how many there were.
        closed: nobody is served any more.

    Raises:
        ArgumentError: the device is no PCI device, or its ports do not lead to one `PciSlot`;
            neither or both of path and fd; a path that is too long; a descriptor that is no unix
            stream socket.
        BusyError: somebody listens at the path, or something else than a socket is there.
        OSError: the socket cannot be made there.
    """

    _peer = "client"

    def __init__(
        self,
        engine: Engine,
        device: Device | Function,
        path: str | os.PathLike[str] | None = None,
        *,
        fd: int | None = None,
        mapped: bool | Callable[[int, int], bool] = True,
    ) -> None:
        function = device if isinstance(device, Function) else Function(device)
        super().__init__(engine, function.device.name, log, path, fd)
        self.function = function
        self._mapped = mapped if callable(mapped) else None if mapped else _never
        self._function_is_ours = function is not device
        engine.attach(function.device)
        self._serve()

    def _open(self, sock: socket.socket) -> Session:
        return Session(self.engine, self.function, sock, self._name, self._ended, self._mapped)

    async def close(self) -> None:
        """Ends the session, drains what is in flight, removes the socket file; the device can be
        served again."""
        await super().close()
        if self._function_is_ours:
            self.function.close()


def _never(address: int, size: int) -> bool:
    return False
