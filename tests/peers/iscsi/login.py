"""The login phase of iSCSI (RFC 7143 chapter 6 and 13): keys that come, keys that are answered.

Invariants:

- Only what leads to no authentication, no digests and error recovery level 0 is agreed to.
- A login takes at most `MOST_PDUS` PDUs of at most `MOST_TEXT` bytes.
"""

from __future__ import annotations

MOST_PDUS, MOST_TEXT = 16, 8192
#: What this target takes in one PDU.
MAX_DATA = 1 << 16
MAX_BURST = 1 << 18

_NUMBERS = {"MaxBurstLength": MAX_BURST, "FirstBurstLength": MAX_DATA, "MaxOutstandingR2T": 1}
_FIXED = {
    "HeaderDigest": "None",
    "DataDigest": "None",
    "InitialR2T": "Yes",
    "MaxConnections": "1",
    "DefaultTime2Wait": "0",
    "DefaultTime2Retain": "0",
    "DataPDUInOrder": "Yes",
    "DataSequenceInOrder": "Yes",
    "ErrorRecoveryLevel": "0",
    "IFMarker": "No",
    "OFMarker": "No",
    "AuthMethod": "None",
}
#: Declarative keys, which are not answered.
_DECLARED = {
    *("InitiatorName", "InitiatorAlias", "SessionType", "TargetName", "MaxRecvDataSegmentLength"),
}


class LoginRefused(Exception):
    """Status-Class and Status-Detail (section 11.13.5)."""

    def __init__(self, status: int) -> None:
        super().__init__(hex(status))
        self.status = status


def parse_text(data: bytes) -> dict[str, str]:
    """Keys and values. Raises LoginRefused: that is no text."""
    found = {}
    for part in data.split(b"\0"):
        if part:
            key, equals, value = part.partition(b"=")
            if not equals:
                raise LoginRefused(0x0200)
            found[key.decode("ascii", "replace")] = value.decode("ascii", "replace")
    return found


def make_text(keys: dict[str, str]) -> bytes:
    return b"".join(f"{key}={value}".encode() + b"\0" for key, value in keys.items())


def answer(keys: dict[str, str]) -> dict[str, str]:
    """What this target answers to keys."""
    out = {}
    for key, value in keys.items():
        if key in _DECLARED:
            continue
        if key in _NUMBERS:
            out[key] = str(min(number(value), _NUMBERS[key]))
        elif key == "ImmediateData":
            out[key] = "Yes" if value == "Yes" else "No"
        elif key in ("HeaderDigest", "DataDigest", "AuthMethod"):
            if "None" not in value.split(","):
                raise LoginRefused(0x0201 if key == "AuthMethod" else 0x0200)
            out[key] = "None"
        else:
            out[key] = _FIXED.get(key, "NotUnderstood")
    return out


def number(value: str) -> int:
    """A number of a key. Raises LoginRefused: it is none, or out of any range."""
    try:
        found = int(value, 0)
    except ValueError:
        raise LoginRefused(0x0200) from None
    if not 0 <= found < 1 << 24:
        raise LoginRefused(0x0200)
    return found
