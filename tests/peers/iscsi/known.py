"""Which tests of iscsi-test-cu (libiscsi 1.19) do not pass against `iodma.scsi`, and why.

Invariants:

- A test that is not here passes; one that is here does what is said, "skipped" or "failed".
"""

from __future__ import annotations

#: What the suites run on, where that is not LUN 0: a removable medium, one that is read-only.
LUNS = {"NoMedia": 1, "PreventAllow": 1, "StartStopUnit": 1, "ReadOnly": 2}

#: Suites whose tests all skip themselves, as an optional command is not there.
MISSING = {
    "ExtendedCopy": "EXTENDED COPY is not there",
    "GetLBAStatus": "GET LBA STATUS is not there",
    "OrWrite": "ORWRITE is not there",
    "PrinReadKeys": "persistent reservations are not there",
    "PrinReportCapabilities": "persistent reservations are not there",
    "PrinServiceactionRange": "persistent reservations are not there",
    "ProutClear": "persistent reservations are not there",
    "ProutPreempt": "persistent reservations are not there",
    "ProutRegister": "persistent reservations are not there",
    "ProutReserve": "persistent reservations are not there",
    "ReceiveCopyResults": "EXTENDED COPY is not there",
    "Sanitize": "SANITIZE is not there",
    "WriteAtomic16": "WRITE ATOMIC is not there",
}

#: Single tests: (what they do, why).
KNOWN = {
    "NoMedia.NoMediaSBC": (
        "skipped",
        "in part: it asks for commands that are not there after all the others",
    ),
    "ReadOnly.ReadOnlySBC": (
        "skipped",
        "in part: it asks for commands that are not there after all the others",
    ),
    "StartStopUnit.PwrCnd": (
        "failed",
        "it wants GOOD for values of POWER CONDITION that SBC-3 5.25 reserves",
    ),
    "StartStopUnit.NoLoej": (
        "failed",
        "it wants a unit that was stopped to be ready; SBC-3 5.25 has it not ready until a start",
    ),
    "WriteSame10.UnmapUntilEnd": (
        "failed",
        "it writes blocks of ones with UNMAP and wants zeroes; SBC-3 5.43 unmaps only what reads as"
        " the data that was given",
    ),
}


def expected(suite: str, test: str) -> tuple[str, str]:
    """What a test does, and why; ("passed", "")."""
    if suite in MISSING:
        return "skipped", MISSING[suite]
    return KNOWN.get(f"{suite}.{test}", ("passed", ""))
