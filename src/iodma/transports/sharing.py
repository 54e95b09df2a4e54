# SPDX-License-Identifier: Apache-2.0
"""Is the memory that a client gave really shared, or does it only look as if?

A VMM whose guest memory is private (QEMU without `share=on`) gives the descriptor of its file all
the same: what is then seen there are zeros, and what is put there nobody sees. Nothing about the
file tells. But the client's own list of mappings (proc(5), /proc/PID/maps) says how it has it.

Invariant: what cannot be known is not said: a client that may not be looked at, or that is in
another PID namespace, or this process itself.
"""

from __future__ import annotations

import os
import socket
import struct

__all__ = ["SHARE", "is_private", "peer_of"]

#: What to do about memory that is not shared.
SHARE = (
    "guest memory must be shared with this process: QEMU needs -object"
    " memory-backend-memfd,id=mem,size=...,share=on -machine memory-backend=mem"
)
_CREDENTIALS = struct.Struct("=iII")  # struct ucred of SO_PEERCRED (unix(7))


def peer_of(sock: socket.socket) -> int:
    """The process at the other end of a unix socket; 0 where it cannot be known, -1: this one."""
    found = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid: int = _CREDENTIALS.unpack(found)[0]
    return -1 if pid == os.getpid() else max(pid, 0)


def is_private(pid: int, file: tuple[int, int]) -> bool | None:
    """Whether a process maps a file and what it writes there is its own.

    Args:
        pid: of the process, as `peer_of` gave it.
        file: device and inode.

    Returns:
        True if it does; False if it shares it, or does not map it, or is this process; None: it
        cannot be looked at.
    """
    if pid <= 0:
        return None if pid == 0 else False
    device, inode = file
    mark = f"{os.major(device):02x}:{os.minor(device):02x} {inode}".split()
    private = False
    try:
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as maps:
            for line in maps:
                fields = line.split(maxsplit=5)
                if fields[3:5] == mark:
                    if fields[1].endswith("s"):
                        return False
                    private = True
    except OSError:
        return None
    return private
