# SPDX-License-Identifier: Apache-2.0
"""`iodma doctor`: what this machine offers, what will be used, and what to do about the rest.

Invariants
 - Three steps that do not mix: `facts.gather` looks at the machine and decides nothing, `judge`
   decides and looks at nothing, `render` makes text.
 - It works where the core cannot be imported: that is when it is needed most.
 - Every check that is not "ok" says what to do about it.
"""

from __future__ import annotations

import errno
import os
import resource
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from iodma._version import __version__
from iodma.tools.facts import Facts, gather

__all__ = ["PROGRAMS", "Check", "Diagnosis", "State", "diagnose", "judge", "render"]

SETUP_SINGLE_ISSUER = 1 << 12
SETUP_DEFER_TASKRUN = 1 << 13
OP_SEND_ZC = 47
OP_READV_FIXED = 60

#: Below this, a guest's RAM of ordinary size cannot be registered with the kernel.
MEMLOCK_WANTED = 1 << 30
#: A region and an endpoint each hold a descriptor.
NOFILE_WANTED = 4096

#: Program -> (what iodma is tried with it for, Debian package). None is needed to use iodma.
PROGRAMS = {
    "qemu-system-x86_64": ("guests over vhost-user and vfio-user", "qemu-system-x86"),
    "qemu-system-sparc": ("the reference for sun4m devices", "qemu-system-sparc"),
    "qemu-system-s390x": ("big-endian guests", "qemu-system-misc"),
    "qemu-storage-daemon": ("the peer of `iodma bench vhost-user-blk`", "qemu-system-common"),
    "linux.uml": ("the fastest guest over vhost-user", "user-mode-linux"),
    "fio": ("the peer of `iodma bench core`", "fio"),
    "nbdkit": ("an NBD server to talk to", "nbdkit"),
}


class State(StrEnum):
    """What a check came to."""

    OK = "ok"
    #: It works, with less.
    LESS = "less"
    #: Nothing needs it.
    ABSENT = "absent"
    #: iodma does not work without it.
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the diagnosis.

    Attributes:
        name: what was looked at.
        state: what it came to.
        found: what is there.
        used: what iodma will do with it, or instead of it.
        advice: what to do about it; empty when there is nothing to do.
    """

    name: str
    state: State
    found: str
    used: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All checks, and what they come to.

    Attributes:
        engine: "uring" or "threads": what `Engine("auto")` will choose; "none" without the core.
        checks: in the order to read them.
    """

    engine: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether iodma works here."""
        return all(check.state is not State.BROKEN for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "ok": self.ok,
            "engine": self.engine,
            "checks": [asdict(check) for check in self.checks],
        }


def diagnose() -> Diagnosis:
    """Looks at this machine."""
    return judge(gather(PROGRAMS))


def judge(facts: Facts) -> Diagnosis:
    """What the facts mean for iodma."""
    engine = chosen_engine(facts)
    checks = (
        judge_core(facts),
        judge_kernel(facts),
        judge_uring(facts, engine),
        *judge_ring_features(facts),
        judge_memlock(facts),
        judge_memfd(facts),
        judge_nofile(facts),
        judge_processors(facts),
        judge_kvm(facts),
        judge_libnbd(facts),
        *judge_programs(facts),
    )
    return Diagnosis(engine, checks)


def chosen_engine(facts: Facts) -> str:
    if facts.core_error:
        return "none"
    if facts.engine_wish in ("uring", "threads"):
        return facts.engine_wish
    return "threads" if facts.ring.error else "uring"


def judge_core(facts: Facts) -> Check:
    name = "iodma"
    if facts.core_error:
        return Check(
            name,
            State.BROKEN,
            f"{__version__}, and its core cannot be imported: {facts.core_error}",
            "nothing works but this command",
            "build it again: `make`, or reinstall the package",
        )
    return Check(name, State.OK, __version__, "core and package belong together")


def judge_kernel(facts: Facts) -> Check:
    if facts.kernel_version < (5, 11):
        return Check(
            "kernel",
            State.LESS,
            facts.kernel,
            "the threads engine",
            "io_uring is of use from 5.11 on, and best from 6.1 on",
        )
    if facts.kernel_version < (6, 1):
        return Check(
            "kernel",
            State.LESS,
            facts.kernel,
            "io_uring without SINGLE_ISSUER and DEFER_TASKRUN",
            "6.1 or later is faster",
        )
    return Check("kernel", State.OK, facts.kernel, "all of io_uring that iodma knows")


def judge_uring(facts: Facts, engine: str) -> Check:
    name = "io_uring"
    wish = facts.engine_wish
    if wish not in ("", "auto", "uring", "threads"):
        return Check(
            name,
            State.BROKEN,
            f"IODMA_ENGINE={wish}",
            "no engine will start",
            "IODMA_ENGINE is uring, threads or auto",
        )
    error = facts.ring.error
    if not error:
        if wish == "threads":
            return Check(
                name,
                State.LESS,
                "allowed",
                "the threads engine, because IODMA_ENGINE=threads",
                "unset IODMA_ENGINE",
            )
        return Check(name, State.OK, "allowed", "the io_uring engine")
    reason, advice = refusal(facts)
    forced = engine == "uring"
    return Check(
        name,
        State.BROKEN if forced else State.LESS,
        f"refused ({errno.errorcode.get(error, error)}): {reason}",
        "nothing: IODMA_ENGINE=uring asks for it" if forced else "the threads engine",
        advice,
    )


def refusal(facts: Facts) -> tuple[str, str]:
    """Why io_uring is refused, and what would change that."""
    error = facts.ring.error
    sysctl = "sysctl -w kernel.io_uring_disabled=0, as root"
    if error == errno.EPERM and facts.uring_disabled == "2":
        return "kernel.io_uring_disabled is 2, for everybody", sysctl
    if error == errno.EPERM and facts.uring_disabled == "1":
        return (
            "kernel.io_uring_disabled is 1, for all but a group",
            f"join the group in kernel.io_uring_group, or {sysctl}",
        )
    if error in (errno.EPERM, errno.EACCES, errno.ENOSYS) and facts.seccomp == "2":
        return (
            "a seccomp filter, as containers have",
            "start the container with a seccomp profile that allows io_uring_setup, "
            "io_uring_enter and io_uring_register",
        )
    if error == errno.ENOSYS:
        return "this kernel has none", "use a kernel with CONFIG_IO_URING"
    if error == errno.ENOMEM:
        return "no memory to lock", "raise `ulimit -l`"
    if error in (errno.EMFILE, errno.ENFILE):
        return "no descriptor left", "raise `ulimit -n`"
    return os.strerror(error), "look for a security module that forbids it"


def judge_ring_features(facts: Facts) -> list[Check]:
    """What the ring can do beyond the plain reads and writes."""
    ring = facts.ring
    if ring.error or not ring.probed:
        return []
    checks = []
    wanted = SETUP_SINGLE_ISSUER | SETUP_DEFER_TASKRUN
    for name, there, used, instead, since in (
        (
            "  one issuer",
            ring.setup_flags & wanted == wanted,
            "completions are made when they are asked for",
            "completions interrupt the engine",
            "6.1",
        ),
        (
            "  zero-copy send",
            OP_SEND_ZC in ring.opcodes,
            "where an endpoint asks for it",
            "an endpoint that asks for it is refused",
            "6.1",
        ),
        (
            "  vectors in registered memory",
            OP_READV_FIXED in ring.opcodes,
            "lists of segments use registered memory too",
            "only single segments use registered memory",
            "6.15",
        ),
    ):
        if there:
            checks.append(Check(name, State.OK, "there", used))
        else:
            checks.append(Check(name, State.LESS, "missing", instead, f"kernel {since} has it"))
    return checks


def judge_memlock(facts: Facts) -> Check:
    name = "locked memory"
    limit = amount(facts.memlock)
    used = "what Engine.register is given is pinned"
    if facts.ipc_lock:
        return Check(name, State.OK, f"limit {limit}, CAP_IPC_LOCK", used)
    if facts.memlock == resource.RLIM_INFINITY or facts.memlock >= MEMLOCK_WANTED:
        return Check(name, State.OK, f"limit {limit}", f"{used}, up to that")
    return Check(
        name,
        State.LESS,
        f"limit {limit}, no CAP_IPC_LOCK",
        "Engine.register takes no more than that; other memory is up to 1.2x slower",
        "`ulimit -l unlimited`, LimitMEMLOCK=infinity in a systemd unit, or CAP_IPC_LOCK",
    )


def judge_memfd(facts: Facts) -> Check:
    if facts.memfd_error:
        return Check(
            "memfd",
            State.BROKEN,
            os.strerror(facts.memfd_error),
            "no guest RAM but from files of yours",
            "allow memfd_create in the seccomp profile",
        )
    return Check("memfd", State.OK, "there", "guest RAM that can be shared with a VMM")


def judge_nofile(facts: Facts) -> Check:
    soft, hard = facts.nofile
    found = f"limit {count(soft)}, at most {count(hard)}"
    if soft != resource.RLIM_INFINITY and soft < NOFILE_WANTED:
        return Check(
            "descriptors",
            State.LESS,
            found,
            "memories of fewer regions than that",
            f"`ulimit -n {NOFILE_WANTED}` for memories of thousands of regions",
        )
    return Check("descriptors", State.OK, found, "one a region and one an endpoint")


def judge_processors(facts: Facts) -> Check:
    found = f"{facts.processors} x {facts.processor}"
    if facts.processors < 2:
        return Check(
            "processors",
            State.LESS,
            found,
            "engine and guest take turns",
            "a second processor lets them overlap",
        )
    return Check("processors", State.OK, found, "one for an engine, the others for guests")


def judge_kvm(facts: Facts) -> Check:
    used = "nothing of iodma's needs it"
    if not facts.kvm_error:
        return Check("KVM", State.OK, "/dev/kvm opens", used)
    advice = {
        errno.EACCES: "join the group kvm",
        errno.EPERM: "join the group kvm",
        errno.ENOENT: "load kvm_intel or kvm_amd; guests run without, slowly",
    }.get(facts.kvm_error, "guests run without, slowly")
    return Check("KVM", State.ABSENT, os.strerror(facts.kvm_error), used, advice)


def judge_libnbd(facts: Facts) -> Check:
    use = "`Nbd`: disks at NBD servers"
    if facts.libnbd:
        return Check("libnbd", State.OK, facts.libnbd, use)
    if not facts.libnbd_error:
        return Check("libnbd", State.ABSENT, "not looked for", use, "see the core, above")
    return Check("libnbd", State.ABSENT, facts.libnbd_error, use, "Debian: libnbd0")


def judge_programs(facts: Facts) -> list[Check]:
    checks = []
    for name, version in facts.programs.items():
        use, package = PROGRAMS.get(name, ("", name))
        if version:
            checks.append(Check(name, State.OK, version, use))
        else:
            checks.append(Check(name, State.ABSENT, "not here", use, f"Debian: {package}"))
    return checks


def with_crossover(diagnosis: Diagnosis) -> Diagnosis:
    """The same, and what `crossover.measure` finds here beside what the planner assumes."""
    from iodma.engine.loop import SMALL_FROM_MEMORY, SMALL_TO_MEMORY
    from iodma.tools.crossover import measure

    found = measure(diagnosis.engine)
    here = (found.from_memory, found.to_memory)
    same = here == (SMALL_FROM_MEMORY, SMALL_TO_MEMORY)
    check = Check(
        "small segments",
        State.OK,
        f"a copy is cheaper up to {here[0]} B when memory is read, {here[1]} B when it is written",
        f"copied below {SMALL_FROM_MEMORY} and {SMALL_TO_MEMORY} B on the average",
        "" if same else f"Engine(small={here}), if your lists are of about that size",
    )
    return Diagnosis(diagnosis.engine, (*diagnosis.checks, check))


def amount(limit: int) -> str:
    if limit == resource.RLIM_INFINITY:
        return "unlimited"
    return f"{limit >> 20} MiB" if limit >= 1 << 20 else f"{limit >> 10} KiB"


def count(limit: int) -> str:
    return "unlimited" if limit == resource.RLIM_INFINITY else str(limit)


def render(diagnosis: Diagnosis) -> str:
    """The diagnosis as text for a terminal."""
    width = max(len(check.name) for check in diagnosis.checks)
    state_width = max(len(check.state) for check in diagnosis.checks)
    indent = " " * (width + state_width + 4)
    lines = []
    for check in diagnosis.checks:
        lines.append(f"{check.name:<{width}}  {check.state:<{state_width}}  {check.found}")
        label = "for" if check.state is State.ABSENT else "used"
        lines.append(f"{indent}{label}: {check.used}")
        if check.advice:
            lines.append(f"{indent}to do: {check.advice}")
    if diagnosis.ok:
        lines.append(f"\niodma works here, with the {diagnosis.engine} engine.")
    else:
        broken = [check.name for check in diagnosis.checks if check.state is State.BROKEN]
        lines.append(f"\niodma does not work here: {', '.join(broken)}.")
    return "\n".join(lines)
