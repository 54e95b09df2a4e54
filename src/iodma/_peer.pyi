# SPDX-License-Identifier: Apache-2.0
"""C loops that `iodma bench` measures against: not a part of the library, and free to change.

Every loop gives up the interpreter lock, runs on the calling thread until `seconds` are over or its
count is reached, and returns ``(nanoseconds, requests, bytes)`` of what was done by then.
"""

from typing import Any

from numpy.typing import NDArray
from typing_extensions import Buffer

# Under 3.11 the type checker does not know that an array is a buffer.
_Buffer = Buffer | NDArray[Any]

def uring_read_loop(
    fd: int,
    memory: _Buffer,
    lists: _Buffer,
    *,
    segments: int = 1,
    file_bytes: int,
    unit: int = 4096,
    random: bool = True,
    batch: int = 16,
    complete_min: int = 1,
    fixed_file: bool = True,
    fixed_buffer: bool = True,
    seconds: float = 0.4,
    requests: int = 0,
    seed: int = 1,
) -> tuple[int, int, int]:
    """Reads a file through io_uring, as many requests in flight as there are lists.

    Args:
        fd: the file; its flags (O_DIRECT) are the caller's.
        memory: where the bytes go; writable.
        lists: 64-bit (offset into memory, length) pairs, `segments` of them to a list.
        segments: 1 reads with READ or READ_FIXED, more with READV or READV_FIXED.
        file_bytes: no read passes this position.
        unit: positions are multiples of it, random or in sequence.
        batch: most completions taken, and so requests submitted, between two system calls.
        complete_min: completions that a wait asks for.
        fixed_file: the descriptor is registered with the ring.
        fixed_buffer: the memory is registered with the ring.
        requests: stop after so many; 0 is no limit.

    Raises:
        ValueError: an argument that cannot be right.
        OSError: the ring could not be set up, or a read failed or came back short.
    """

def memcpy_loop(
    target: _Buffer, source: _Buffer, bytes: int, *, seconds: float = 0.4, copies: int = 0
) -> tuple[int, int, int]:
    """Copies `bytes` at a time, over as many pieces as the shorter buffer holds, in turn.

    Raises:
        ValueError: `bytes` is below 1 or above the shorter buffer's length.
    """

def lookup_loop(map: Any, addresses: _Buffer, *, rounds: int = 1) -> tuple[int, int, int]:
    """Looks every address up in the map of a memory, nothing else.

    Raises:
        NotImplementedError: this build has no such loop.
    """
