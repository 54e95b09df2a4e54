# SPDX-License-Identifier: Apache-2.0
"""The words of a line: numbers and data, as QEMU's qtest protocol writes them.

A number is what C's ``strtoull`` takes with base 0: decimal, hexadecimal behind ``0x``, octal
behind ``0``, perhaps with a sign; it has 64 bits. Data is hexadecimal behind ``0x``, or base64.

Invariants
 - What a word can do is raise `Refusal`, and nothing else.
 - No word is converted before its length was looked at.
"""

from __future__ import annotations

import re
from binascii import Error as BinasciiError
from binascii import a2b_base64, unhexlify
from collections.abc import Sequence

from iodma.transports.refusal import Refusal

__all__ = ["MOST_BYTES", "MOST_LINE", "TooShort", "base64_data", "hex_data", "number", "signed"]

#: Bytes that one line can ask for, or bring.
MOST_BYTES = 64 << 20
#: Bytes of a line: what brings so many in hexadecimal, and the words before.
MOST_LINE = 2 * MOST_BYTES + 256
#: Of a word that is quoted in an answer.
_SHOWN = 40

_HEXADECIMAL = re.compile(rb"0[xX][0-9a-fA-F]{1,32}").fullmatch
_ANY = re.compile(
    rb"([+-]?)(?:(0[xX][0-9a-fA-F]{1,32})|(0[0-7]{0,32})|([1-9][0-9]{0,32}))"
).fullmatch


class TooShort(Exception):
    """Data that is no data: QEMU has an answer of its own for it."""


def shown(word: bytes) -> str:
    """A word, fit to be quoted in an answer."""
    text = word[:_SHOWN].decode("ascii", "backslashreplace")
    text = "".join(each if each.isprintable() else "?" for each in text)
    return text + ("..." if len(word) > _SHOWN else "")


def number(words: Sequence[bytes], place: int) -> int:
    """The number at that place: 0 to 2^64 - 1; a negative one is taken modulo 2^64.

    Raises:
        Refusal: there is no such word, or it is no number of 64 bits.
    """
    if place >= len(words):
        raise Refusal(f"{shown(words[0])}: argument {place} is missing")
    word = words[place]
    value = int(word, 16) if _HEXADECIMAL(word) else _signed(word)
    if not -(1 << 64) < value < 1 << 64:
        raise Refusal(f"{shown(word)} has more than 64 bits")
    return value & 0xFFFF_FFFF_FFFF_FFFF


def signed(words: Sequence[bytes], place: int) -> int:
    """The number at that place: -2^63 to 2^63 - 1.

    Raises:
        Refusal: there is no such word, or it is no such number.
    """
    if place >= len(words):
        raise Refusal(f"{shown(words[0])}: argument {place} is missing")
    value = _signed(words[place])
    if not -(1 << 63) <= value < 1 << 63:
        raise Refusal(f"{shown(words[place])} does not fit in a signed number of 64 bits")
    return value


def _signed(word: bytes) -> int:
    match = _ANY(word)
    if match is None:
        raise Refusal(f"'{shown(word)}' is not a number")
    sign, hexadecimal, octal, decimal = match.groups()
    if hexadecimal:
        value = int(hexadecimal, 16)
    elif octal:
        value = int(octal, 8)
    else:
        value = int(decimal)
    return -value if sign == b"-" else value


def length(words: Sequence[bytes], place: int) -> int:
    """A number of bytes that are kept or sent at once.

    Raises:
        Refusal: it is no number, or beyond `MOST_BYTES`.
    """
    value = number(words, place)
    if value > MOST_BYTES:
        raise Refusal(f"{value} bytes at once; at most {MOST_BYTES} would be right")
    return value


def hex_data(words: Sequence[bytes], place: int, size: int) -> bytes:
    """``size`` bytes of hexadecimal data: shorter data goes on with zeros, longer is cut.

    Raises:
        TooShort: no digit stands behind the prefix.
        Refusal: there is no such word, or it has what is no digit.
    """
    word = _data(words, place)
    digits = word[2 : 2 + 2 * size]
    try:
        data = unhexlify(digits[: len(digits) & ~1])
    except BinasciiError:
        raise Refusal(f"'{shown(word)}' is not hexadecimal") from None
    return data.ljust(size, b"\0")


def base64_data(words: Sequence[bytes], place: int, size: int) -> bytes:
    """Base64 data, and no more than ``size`` bytes of it.

    Raises:
        TooShort: fewer than three characters.
        Refusal: there is no such word, or it is not base64.
    """
    word = _data(words, place)
    try:
        return a2b_base64(word)[:size]
    except BinasciiError:
        raise Refusal(f"'{shown(word)}' is not base64") from None


def _data(words: Sequence[bytes], place: int) -> bytes:
    if place >= len(words):
        raise Refusal(f"{shown(words[0])}: argument {place} is missing")
    if len(words[place]) < 3:
        raise TooShort
    return words[place]
