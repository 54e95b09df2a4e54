"""The SCSI layer under libiscsi's own conformance suites, through a thin iSCSI target.

What does not pass is listed with its reason in tests/peers/iscsi/known.py; a test that begins to do
something else is noticed either way.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.peers.iscsi.known import KNOWN, LUNS, MISSING, expected
from tests.peers.iscsi.suites import results, run_suite, suites

SUITES = (
    *("CompareAndWrite", "ExtendedCopy", "GetLBAStatus", "Inquiry", "Mandatory", "ModeSense6"),
    *("NoMedia", "OrWrite", "Prefetch10", "Prefetch16", "PreventAllow", "PrinReadKeys"),
    *("PrinServiceactionRange", "PrinReportCapabilities", "ProutRegister", "ProutReserve"),
    *("ProutClear", "ProutPreempt", "Read6", "Read10", "Read12", "Read16", "ReadCapacity10"),
    *("ReadCapacity16", "ReadDefectData10", "ReadDefectData12", "ReadOnly", "ReceiveCopyResults"),
    *("ReportSupportedOpcodes", "Reserve6", "Sanitize", "StartStopUnit", "TestUnitReady", "Unmap"),
    *("Verify10", "Verify12", "Verify16", "Write10", "Write12", "Write16", "WriteAtomic16"),
    *("WriteSame10", "WriteSame16", "WriteVerify10", "WriteVerify12", "WriteVerify16"),
    *("iSCSIcmdsn", "iSCSIdatasn", "iSCSIResiduals", "iSCSITMF", "MultipathIO"),
)


@pytest.fixture
def program(peer: Callable[[str], str]) -> str:
    return peer("iscsi-test-cu")


def test_these_are_its_suites(program: str) -> None:
    assert sorted(suites(program)) == sorted(SUITES)
    assert set(MISSING) <= set(SUITES) and not set(MISSING) & {name.split(".")[0] for name in KNOWN}


@pytest.mark.parametrize("suite", SUITES)
def test_a_suite(program: str, suite: str, tmp_path: Path) -> None:
    done, said = run_suite(program, suite, LUNS.get(suite, 0), tmp_path)
    assert done, said
    wanted = {test: expected(suite, test)[0] for test in done}
    listed = {name.split(".")[1] for name in KNOWN if name.startswith(f"{suite}.")}
    assert done == wanted and listed <= set(done), said[-4000:]


def test_what_it_says_is_read_right() -> None:
    said = """Suite: Some
  Test: Good ...passed
  Test: Bad ...    [FAILED] it did
FAILED
    1. file.c:1  - CU_FAIL
  Test: Half ...    [SKIPPED] a part of it
passed
  Test: Noisy ...    [FAILED] as it was to
passed    [SKIPPED] PERSISTENT RESERVE IN is not implemented.


Run Summary:    Type
"""
    assert results(said) == {
        "Good": "passed",
        "Bad": "failed",
        "Half": "skipped",
        "Noisy": "passed",
    }
    assert results(said.partition("passed    [SK")[0]) == {
        "Good": "passed",
        "Bad": "failed",
        "Half": "skipped",
        "Noisy": "failed",
    }
