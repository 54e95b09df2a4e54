# SPDX-License-Identifier: Apache-2.0
"""C loops that `iodma bench` measures against and loads servers with.

Not a part of the library, and free to change.

Every loop gives up the interpreter lock, runs on the calling thread until `seconds` are over or its
count is reached, and returns ``(nanoseconds, requests, bytes)`` of what was done by then.
"""

from collections.abc import Sequence
from os import PathLike
from types import TracebackType
from typing import Any, NoReturn, Self, final

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

def packet_send_loop(
    fd: int,
    memory: _Buffer,
    lists: _Buffer,
    *,
    segments: int = 1,
    swap: bool = False,
    seconds: float = 0.4,
) -> tuple[int, int, int]:
    """Sends a packet a list, with one `sendmsg` each, which waits where the socket is full.

    Args:
        swap: each, of one segment, is copied first, and its 16-bit words are swapped.

    Raises:
        ValueError: an argument that cannot be right.
        OSError: a send failed.
    """

def packet_drain(fd: int, counter: _Buffer = ..., /) -> tuple[int, int, int]:
    """Takes packets in until an empty one comes. Raises OSError.

    Args:
        counter: one 64-bit integer: how many have come by now.
    """

def swap_loop(
    target: _Buffer, source: _Buffer, bytes: int, *, seconds: float = 0.4
) -> tuple[int, int, int]:
    """`memcpy` of so many bytes, then the bytes of each 16-bit word change places.

    Raises:
        ValueError: as `memcpy_loop`.
    """

def memcpy_loop(
    target: _Buffer, source: _Buffer, bytes: int, *, seconds: float = 0.4, copies: int = 0
) -> tuple[int, int, int]:
    """Copies `bytes` at a time, over as many pieces as the shorter buffer holds, in turn.

    Raises:
        ValueError: `bytes` is below 1 or above the shorter buffer's length.
    """

def list_copy_loop(
    memory: _Buffer,
    sources: _Buffer,
    targets: _Buffer,
    *,
    segments: int = 1,
    seconds: float = 0.4,
) -> tuple[int, int, int]:
    """memcpy of scatter lists inside one memory, in turn: a request is a list.

    Args:
        sources: 64-bit (offset into memory, length) pairs, `segments` of them to a list.
        targets: as many, each as long as its source.

    Raises:
        ValueError: an argument that cannot be right.
    """

def table_walk_loop(
    memory: _Buffer,
    lists: _Buffer,
    *,
    segments: int = 1,
    table: int = 0,
    first: int = 0,
    length: int = 0,
    write: bool = True,
    seconds: float = 0.4,
) -> tuple[int, int, int]:
    """Translates lists of bus addresses by a one-level page table, in turn: a request is a list.

    An entry is a big-endian word as the SBus IOMMU has it: bit 1 valid, bit 2 writable, bits 31:8
    the page. Every entry, address and length is checked; instead of bytes moved it gives pieces.

    Args:
        memory: physical memory from address 0, which also holds the table.
        lists: 64-bit (bus address, length) pairs, `segments` of them to a list.
        table: where the table is.
        first: the bus address that its first entry is for.
        length: bytes that have entries, whole pages of 4096.
        write: the pages must be writable.

    Raises:
        OSError: EFAULT: a list is refused.
        ValueError: an argument that cannot be right.
    """

def vfio_serve(
    listener: int,
    *,
    copies: bool = False,
    source: int = 0,
    target: int = 8,
    doorbell: int = 16,
    bytes: int = 4096,
) -> NoReturn:
    """A vfio-user server in C: one connection at a time, until the process ends.

    It answers each message with as many bytes as it has to, and closes the descriptors that came.

    Args:
        listener: a listening socket.
        copies: it maps what DMA_MAP gives it and keeps the eventfds of SET_IRQS. A write of the
            register `doorbell` of region 0 copies from the address in register `source` to the one
            in `target`, and writes the first eventfd.
        bytes: that it copies.

    Raises:
        OSError: the socket takes no connections.
    """

def lookup_loop(map: Any, addresses: _Buffer, *, rounds: int = 1) -> tuple[int, int, int]:
    """Looks every address up in the map of a memory, nothing else.

    Raises:
        NotImplementedError: this build has no such loop.
    """

@final
class VhostBlk:
    """A vhost-user-blk front-end: connects, shares its memory, starts the rings.

    It takes VERSION_1, EVENT_IDX, INDIRECT_DESC and what it knows of a block device's features, and
    the protocol features REPLY_ACK, CONFIG and MQ. Every request has header, data and status in
    descriptors of their own; the segments of a request never touch. Used by one thread at a time.

    Args:
        path: the server's socket; None: a thread of this process that answers at once, without I/O.
        queues: request queues, all of which are loaded.
        queue_size: entries of each, a power of two.
        depth: requests in flight on each queue.
        segments: data segments of a request.
        segment_bytes: the length of each, whole sectors.
        indirect_above: requests of more descriptors than this use an indirect table. The default,
            1, is what Linux does.
        event_index: take EVENT_IDX if it is offered.
        indirect: take INDIRECT_DESC if it is offered.
        data_fd: shared memory for the data of requests, as large as it has to be; -1: our own.
        null_bytes: capacity of the thread's disk.
        null_cpu: the processor of that thread; -1: any.
        null_spins: it never sleeps.
        patience: seconds after which a request that has not come back is an error.

    Raises:
        ValueError: an option that cannot be right, or that the server cannot meet.
        OSError: no connection, or the server did not understand or answer; the errno tells which.
    """

    def __new__(
        cls,
        path: str | bytes | PathLike[str] | PathLike[bytes] | None,
        *,
        queues: int = 1,
        queue_size: int = 128,
        depth: int = 1,
        segments: int = 1,
        segment_bytes: int = 4096,
        indirect_above: int = 1,
        event_index: bool = True,
        indirect: bool = True,
        data_fd: int = -1,
        null_bytes: int = 268435456,
        null_cpu: int = -1,
        null_spins: bool = True,
        patience: float = 10.0,
    ) -> Self: ...
    @property
    def offered(self) -> int:
        """The features that the server offers."""

    @property
    def features(self) -> int:
        """The features that were taken."""

    @property
    def protocol_features(self) -> int:
        """The protocol features that were taken."""

    @property
    def capacity(self) -> int:
        """Bytes of the disk."""

    @property
    def config(self) -> bytes:
        """The configuration space when the connection was made."""

    @property
    def server_queues(self) -> int:
        """Request queues that the server has."""

    def run(
        self,
        *,
        write: bool = False,
        bytes: int = ...,
        seconds: float = 1.0,
        requests: int = 0,
        random: bool = True,
        poll: bool = False,
        seed: int = 1,
        verify: bool = False,
        data_seed: int = 0,
        first_byte: int = 0,
        span_bytes: int = 0,
    ) -> dict[str, int]:
        """Keeps `depth` requests in flight on each queue until the time or the count is over.

        Args:
            write: writes, else reads.
            bytes: of one request; default: all its segments.
            requests: stop after so many; 0 is no limit.
            random: positions, else in sequence from the start; multiples of `bytes` either way.
            poll: watch the used rings, else sleep on the call descriptors.
            seed: of the positions.
            verify: write what `data_seed` and the sector's number tell; check what is read for it.
            first_byte: where the part of the disk that is used begins.
            span_bytes: its length; 0: to the end.

        Returns:
            ns, requests, bytes: of what was done by the time it was over;
            errors: statuses that are not OK; mismatches: sectors that are not what was written;
            wrong_lengths: used lengths that are not what was written to memory;
            kicks: times the server was told; wakes: times it told us while we slept;
            reaps: passes that found something done; p50_ns, p99_ns: latencies, within a sixteenth.

        Raises:
            ValueError: an argument that cannot be right, or the client is closed or busy.
            TimeoutError: a request has not come back in time.
            ConnectionResetError: the server went away.
            OSError: EPROTO: the used ring says what cannot be. After any but ValueError the client
                can only be closed.
        """

    def request(
        self, type: int, sector: int = 0, *, data: _Buffer = b"", in_bytes: int = 0
    ) -> tuple[int, bytes, int]:
        """One request of any type on the first queue: (status, bytes read, used length).

        Args:
            type: VIRTIO_BLK_T_...
            data: what the device is to read.
            in_bytes: how much it may write. Only one of the two.

        Raises: as `run`.
        """

    def close(self) -> None:
        """Stops the rings and closes the connection; harmless when called again.

        Raises:
            OSError: the server did not stop where it had to; closed all the same.
        """

    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        type: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

@final
class VfioUser:
    """A vfio-user client, which says what it is told to and sleeps while it waits.

    Used by one thread at a time. It answers no commands of the server's: memory comes with a
    descriptor.

    Args:
        path: the server's socket.
        patience: seconds after which an answer or an interrupt that has not come is an error.

    Raises:
        ValueError: an argument that cannot be right.
        OSError: no connection.

    All that waits raises ValueError (an argument that cannot be right, or the client is closed or
    busy), TimeoutError, ConnectionResetError (the server went away) or OSError: EPROTO, an answer
    that is none; EIO, one that refuses, or bytes that did not arrive. After any but ValueError the
    client can only be closed.

    The loops give a dict: `ns` and `requests` of what was done; `waits`, interrupts waited for;
    `p50_ns` and `p99_ns` of single requests, 0 where they are not timed.
    """

    def __new__(
        cls,
        path: str | bytes | PathLike[str] | PathLike[bytes],
        *,
        patience: float = 10.0,
    ) -> Self: ...
    def request(
        self, command: int, payload: _Buffer = b"", fds: Sequence[int] = ()
    ) -> tuple[int, bytes]:
        """One command and its answer: (error number or 0, what is behind the answer's header)."""

    def reads(
        self, region: int, offset: int, width: int = 4, *, seconds: float = 1.0, requests: int = 0
    ) -> dict[str, int]:
        """Reads a register, one read after the other, until the time or the count is over."""

    def doorbells(
        self,
        region: int,
        offset: int,
        memory: _Buffer,
        source: int,
        target: int,
        bytes: int,
        interrupt: int,
        *,
        seconds: float = 1.0,
        requests: int = 0,
    ) -> dict[str, int]:
        """Writes a register (posted, four bytes), waits for the interrupt, checks the copy.

        Args:
            memory: shared with the server, writable.
            source: where in it the first and the last eight bytes are changed each time.
            target: where they have to be, when the interrupt comes.
            bytes: from the first to the last.
            interrupt: an eventfd.
        """

    def lists(
        self,
        region: int,
        offset: int,
        memory: _Buffer,
        ring: int,
        entries: int,
        group: int,
        bytes: int,
        interrupt: int,
        *,
        seconds: float = 1.0,
        requests: int = 0,
    ) -> dict[str, int]:
        """Keeps a ring of copies full; a request is a list.

        A descriptor is 32 bytes: u64 address of a table of sources, u64 of targets, u32 entries of
        each, u32 flags (bit 0: interrupt), u32 result (bit 31: done, below it the status), u32
        bytes moved.

        Args:
            offset: of the register that gets the index behind the last list, posted.
            ring: where in the memory the descriptors are; all but flags, result and moved is
                filled in.
            group: lists to a doorbell, and to an interrupt.
            bytes: of each list; a list that moves others is an error.
        """

    def map(
        self,
        fd: int,
        first: int,
        count: int,
        pages: int,
        *,
        page: int = 4096,
        step: int = 1,
    ) -> dict[str, int]:
        """Maps pages, one message each, with the descriptor: page `i` is at `first - i * page`.

        Args:
            pages: of the file; page `i` is page `i * step % pages` of it.
        """

    def unmap(
        self,
        fd: int,
        first: int,
        count: int,
        pages: int,
        *,
        page: int = 4096,
        step: int = 1,
    ) -> dict[str, int]:
        """Unmaps what `map` has mapped, in its order; takes the same arguments."""

    def close(self) -> None:
        """Closes the connection; harmless when called again."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        type: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
