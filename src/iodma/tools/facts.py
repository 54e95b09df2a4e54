# SPDX-License-Identifier: Apache-2.0
"""What this machine offers to iodma: the facts that `doctor` judges.

Invariants
 - Nothing here decides what is good, and nothing here changes the machine.
 - It works where the core cannot be imported: then io_uring is asked with a bare system call.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module

from iodma.tools.machine import (
    find_program,
    kernel_release,
    processor,
    program_version,
    read_text,
    status_field,
)

__all__ = ["Facts", "Ring", "gather"]

SYS_IO_URING_SETUP = 425
CAP_IPC_LOCK = 14


@dataclass(frozen=True, slots=True)
class Ring:
    """What io_uring answered.

    Attributes:
        error: 0, or the errno with which setting up a ring was refused.
        probed: whether the core asked for the rest; without it, only `error` is known.
    """

    error: int
    probed: bool = False
    features: int = 0
    setup_flags: int = 0
    opcodes: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Facts:
    """What `gather` found. An errno of 0 means that it worked."""

    kernel: str = ""
    kernel_version: tuple[int, int] = (0, 0)
    processor: str = ""
    processors: int = 1
    core_error: str = ""
    ring: Ring = field(default_factory=lambda: Ring(errno.ENOSYS))
    uring_disabled: str = ""
    seccomp: str = ""
    engine_wish: str = ""
    memlock: int = resource.RLIM_INFINITY
    ipc_lock: bool = False
    memfd_error: int = 0
    nofile: tuple[int, int] = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    kvm_error: int = 0
    programs: Mapping[str, str | None] = field(default_factory=dict)
    libnbd: str = ""
    libnbd_error: str = ""


def gather(programs: Iterable[str]) -> Facts:
    """Looks at this machine, and for these programs."""
    kernel, version = kernel_release()
    core_error = import_error()
    libnbd, libnbd_error = ("", "") if core_error else libnbd_version()
    return Facts(
        kernel=kernel,
        kernel_version=version,
        processor=processor(),
        processors=len(os.sched_getaffinity(0)),
        core_error=core_error,
        ring=bare_ring() if core_error else probed_ring(),
        uring_disabled=read_text("/proc/sys/kernel/io_uring_disabled"),
        seccomp=status_field("Seccomp"),
        engine_wish=os.environ.get("IODMA_ENGINE", ""),
        memlock=resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
        ipc_lock=has_capability(CAP_IPC_LOCK),
        memfd_error=memfd_error(),
        nofile=resource.getrlimit(resource.RLIMIT_NOFILE),
        kvm_error=open_error("/dev/kvm"),
        programs=found_programs(programs),
        libnbd=libnbd,
        libnbd_error=libnbd_error,
    )


def import_error() -> str:
    """Why the core, or the package on top of it, cannot be imported; empty when it can."""
    try:
        import_module("iodma._core")
        _ = import_module("iodma").Engine
    except (ImportError, AttributeError) as error:
        return str(error)
    return ""


def libnbd_version() -> tuple[str, str]:
    """The version of libnbd, or why there is none."""
    from iodma.endpoints.nbd import library_version
    from iodma.errors import UnsupportedError

    try:
        return library_version(), ""
    except UnsupportedError as error:
        return "", str(error)


def probed_ring() -> Ring:
    """What io_uring is like, asked by the core."""
    from iodma import _core

    probe = _core.uring_probe()
    return Ring(
        error=probe["error"],
        probed=True,
        features=probe["features"],
        setup_flags=probe["setup_flags"],
        opcodes=frozenset(probe["opcodes"]),
    )


def bare_ring() -> Ring:
    """Whether io_uring may be used at all, without the core: a call that makes no ring.

    The kernel checks permission before it looks at the arguments, and these cannot be right.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall(SYS_IO_URING_SETUP, 0, None)
    error = ctypes.get_errno()
    return Ring(0 if error in (errno.EFAULT, errno.EINVAL) else error)


def has_capability(number: int) -> bool:
    """Whether this process has a capability in effect."""
    return bool(int(status_field("CapEff") or "0", 16) >> number & 1)


def memfd_error() -> int:
    try:
        os.close(os.memfd_create("doctor", os.MFD_CLOEXEC))
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def open_error(path: str) -> int:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def found_programs(names: Iterable[str]) -> dict[str, str | None]:
    """Name -> version, or None where it is not."""
    paths = {name: find_program(name) for name in names}
    return {name: path and (program_version(path) or path) for name, path in paths.items()}
