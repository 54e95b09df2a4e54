"""`iodma doctor` judges facts: each thing that is missing is named, with what is used and to do."""

import errno
import json
import resource
from dataclasses import replace

import pytest

from iodma.tools.doctor import PROGRAMS, Check, State, diagnose, judge, render
from iodma.tools.facts import Facts, Ring, bare_ring, gather, open_error
from iodma.tools.machine import (
    filesystem_of,
    kernel_release,
    program_version,
    read_text,
    status_field,
)

FULL_RING = Ring(0, probed=True, setup_flags=(1 << 12) | (1 << 13), opcodes=frozenset({47, 60}))
GOOD = Facts(
    kernel="6.18.0",
    kernel_version=(6, 18),
    processor="a processor",
    processors=4,
    ring=FULL_RING,
    uring_disabled="0",
    seccomp="0",
    programs=dict.fromkeys(PROGRAMS, "version 1"),
    libnbd="1.14.2",
)


def check_of(facts: Facts, name: str) -> Check:
    return next(check for check in judge(facts).checks if check.name.strip() == name)


def test_a_machine_with_everything_has_nothing_to_do() -> None:
    diagnosis = judge(GOOD)
    assert diagnosis.ok
    assert diagnosis.engine == "uring"
    assert {check.state for check in diagnosis.checks} == {State.OK}
    assert not any(check.advice for check in diagnosis.checks)


@pytest.mark.parametrize(
    ("more", "reason", "advice"),
    [
        ({"ring": Ring(errno.EPERM), "uring_disabled": "2"}, "is 2", "sysctl"),
        ({"ring": Ring(errno.EPERM), "uring_disabled": "1"}, "is 1", "group"),
        ({"ring": Ring(errno.EPERM), "seccomp": "2"}, "seccomp", "profile"),
        ({"ring": Ring(errno.ENOSYS), "seccomp": "2"}, "seccomp", "profile"),
        ({"ring": Ring(errno.ENOSYS)}, "kernel has none", "CONFIG_IO_URING"),
        ({"ring": Ring(errno.ENOMEM)}, "memory to lock", "ulimit -l"),
        ({"ring": Ring(errno.EMFILE)}, "no descriptor", "ulimit -n"),
        ({"ring": Ring(errno.EPERM)}, "not permitted", "security module"),
    ],
)
def test_why_io_uring_is_refused(more: dict[str, object], reason: str, advice: str) -> None:
    facts = replace(GOOD, **more)  # type: ignore[arg-type]
    check = check_of(facts, "io_uring")
    assert check.state is State.LESS
    assert errno.errorcode[facts.ring.error] in check.found
    assert reason in check.found
    assert advice in check.advice
    assert check.used == "the threads engine"
    assert judge(facts).engine == "threads"
    assert judge(facts).ok


def test_without_libnbd_only_nbd_disks_are_missing() -> None:
    facts = replace(GOOD, libnbd="", libnbd_error="libnbd is not installed: apt install libnbd0")
    check = check_of(facts, "libnbd")
    assert check.state is State.ABSENT and check.advice
    assert "not installed" in check.found
    assert judge(facts).ok


def test_io_uring_that_is_asked_for_and_refused_is_broken() -> None:
    facts = replace(GOOD, ring=Ring(errno.EPERM), engine_wish="uring")
    assert check_of(facts, "io_uring").state is State.BROKEN
    assert not judge(facts).ok


def test_threads_can_be_asked_for() -> None:
    facts = replace(GOOD, engine_wish="threads")
    assert judge(facts).engine == "threads"
    assert "IODMA_ENGINE" in check_of(facts, "io_uring").advice
    assert judge(facts).ok


def test_an_engine_that_does_not_exist_is_broken() -> None:
    check = check_of(replace(GOOD, engine_wish="fast"), "io_uring")
    assert check.state is State.BROKEN
    assert "uring, threads or auto" in check.advice


def test_a_core_that_cannot_be_imported_is_the_first_line() -> None:
    diagnosis = judge(replace(GOOD, core_error="undefined symbol"))
    assert diagnosis.checks[0].state is State.BROKEN
    assert "undefined symbol" in diagnosis.checks[0].found
    assert (diagnosis.ok, diagnosis.engine) == (False, "none")
    assert "does not work here: iodma." in render(diagnosis)


def test_what_a_ring_lacks_names_the_kernel_that_has_it() -> None:
    facts = replace(GOOD, ring=Ring(0, probed=True))
    for name, release in (
        ("one issuer", "6.1"),
        ("zero-copy send", "6.1"),
        ("vectors in registered memory", "6.15"),
    ):
        check = check_of(facts, name)
        assert check.state is State.LESS
        assert release in check.advice


@pytest.mark.parametrize(
    ("version", "state"), [((5, 4), State.LESS), ((5, 15), State.LESS), ((6, 1), State.OK)]
)
def test_kernels(version: tuple[int, int], state: State) -> None:
    assert check_of(replace(GOOD, kernel_version=version), "kernel").state is state


def test_locked_memory_matters_without_the_capability() -> None:
    low = replace(GOOD, memlock=8 << 20)
    check = check_of(low, "locked memory")
    assert check.state is State.LESS
    assert "8 MiB" in check.found
    assert "ulimit -l" in check.advice
    assert check_of(replace(low, ipc_lock=True), "locked memory").state is State.OK
    assert check_of(replace(GOOD, memlock=2 << 30), "locked memory").state is State.OK


def test_the_rest_says_what_to_do() -> None:
    poor = replace(
        GOOD,
        memfd_error=errno.EPERM,
        nofile=(1024, 4096),
        processors=1,
        kvm_error=errno.EACCES,
        programs={"fio": None},
    )
    states = {check.name: check.state for check in judge(poor).checks}
    assert states["memfd"] is State.BROKEN
    assert states["descriptors"] is State.LESS
    assert states["processors"] is State.LESS
    assert states["KVM"] is State.ABSENT
    assert states["fio"] is State.ABSENT
    for check in judge(poor).checks:
        assert (check.state is State.OK) == (not check.advice), check


def test_what_nothing_needs_does_not_break_anything() -> None:
    facts = replace(GOOD, kvm_error=errno.ENOENT, programs=dict.fromkeys(PROGRAMS))
    assert judge(facts).ok


def test_the_text_has_every_check_and_the_json_is_json() -> None:
    diagnosis = judge(replace(GOOD, ring=Ring(errno.EPERM), kvm_error=errno.ENOENT))
    text = render(diagnosis)
    data = json.loads(json.dumps(diagnosis.as_dict()))
    assert data["engine"] == "threads"
    assert len(data["checks"]) == len(diagnosis.checks)
    for check in diagnosis.checks:
        assert check.found in text
        assert check.used in text
        assert check.advice in text


# --- this machine -------------------------------------------------------------------------------


def test_this_machine_can_be_looked_at() -> None:
    facts = gather(["no-such-program", "sh"])
    assert facts.kernel_version >= (4, 0)
    assert facts.processors >= 1
    assert facts.programs["no-such-program"] is None
    assert facts.programs["sh"]
    assert facts.nofile == resource.getrlimit(resource.RLIMIT_NOFILE)
    assert render(diagnose())


def test_the_bare_call_agrees_with_the_sysctl() -> None:
    disabled = read_text("/proc/sys/kernel/io_uring_disabled")
    ring = bare_ring()
    if disabled == "2":
        assert ring.error == errno.EPERM
    elif disabled == "0" and status_field("Seccomp") == "0":
        assert ring.error == 0


def test_facts_that_cannot_be_had_are_empty() -> None:
    assert open_error("/no/such/device") == errno.ENOENT
    assert read_text("/no/such/file") == ""
    assert status_field("NoSuchField") == ""
    assert program_version("/no/such/program") == ""


def test_words_about_the_machine() -> None:
    release, version = kernel_release()
    assert release.startswith(f"{version[0]}.{version[1]}")
    assert filesystem_of("/proc") == "proc"
