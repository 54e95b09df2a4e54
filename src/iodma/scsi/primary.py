# SPDX-License-Identifier: Apache-2.0
"""The commands that every logical unit has, as SPC-4 lays them out.

Invariant: a field is here by its name in the standard, once; `LogicalUnit` has the handlers.
"""

from __future__ import annotations

from iodma.scsi.cdb import Command, Field

__all__ = ["PRIMARY"]

PRIMARY = (
    Command("TEST UNIT READY", "SPC-4 6.47", 0x00, (), "test_unit_ready", medium=True),
    Command(
        "REQUEST SENSE",
        "SPC-4 6.39",
        0x03,
        (Field("DESC", 1, 1, 0), Field("ALLOCATION LENGTH", 4)),
        "request_sense",
        exempt=True,
        unreserved=True,
    ),
    Command(
        "INQUIRY",
        "SPC-4 6.6",
        0x12,
        (
            Field("EVPD", 1, 1, 0),
            Field("PAGE CODE", 2),
            Field("ALLOCATION LENGTH", 3, 16),
        ),
        "inquiry",
        exempt=True,
        unreserved=True,
    ),
    Command(
        "REPORT LUNS",
        "SPC-4 6.33",
        0xA0,
        (Field("SELECT REPORT", 2), Field("ALLOCATION LENGTH", 6, 32)),
        "report_luns",
        exempt=True,
        unreserved=True,
    ),
    Command(
        "SEND DIAGNOSTIC",
        "SPC-4 6.42",
        0x1D,
        (
            Field("SELF-TEST CODE", 1, 3, 7),
            Field("SELFTEST", 1, 1, 2),
            Field("DEVOFFL", 1, 1, 1),
            Field("UNITOFFL", 1, 1, 0),
            Field("PARAMETER LIST LENGTH", 3, 16),
        ),
        "send_diagnostic",
    ),
    Command(
        "REPORT SUPPORTED OPERATION CODES",
        "SPC-4 6.35",
        0xA3,
        (
            Field("RCTD", 2, 1, 7),
            Field("REPORTING OPTIONS", 2, 3, 2),
            Field("REQUESTED OPERATION CODE", 3),
            Field("REQUESTED SERVICE ACTION", 4, 16),
            Field("ALLOCATION LENGTH", 6, 32),
        ),
        "report_opcodes",
        service_action=0x0C,
        unreserved=True,
    ),
    Command(
        "REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS",
        "SPC-4 6.36",
        0xA3,
        (Field("ALLOCATION LENGTH", 6, 32),),
        "report_functions",
        service_action=0x0D,
        unreserved=True,
    ),
)
