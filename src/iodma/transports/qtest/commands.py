# SPDX-License-Identifier: Apache-2.0
"""The commands: one function each, from the words of a line to its answer.

The protocol is the one that QEMU's test server documents (docs/devel/testing/qtest). What aborts
QEMU - a word that is missing, or is no number - is answered with ``FAIL`` and what was wrong. One
command is not QEMU's: ``iodma_reset`` resets the machine, which QEMU does over QMP.

Invariants
 - Nothing that a client says raises anything but `Refusal` out of a command.
 - A command that is done at once returns its answer; one that takes time is in `Later`.
"""

from __future__ import annotations

from binascii import b2a_base64
from collections.abc import Callable, Sequence

from iodma._core import KnownLines
from iodma.devices import Interrupt
from iodma.errors import Error
from iodma.transports.ending import in_words
from iodma.transports.qtest.interception import Interception
from iodma.transports.qtest.machine import Machine, Pins
from iodma.transports.qtest.words import (
    TooShort,
    base64_data,
    hex_data,
    length,
    number,
    shown,
    signed,
)
from iodma.transports.refusal import Refusal

__all__ = ["OK", "Commands", "Words"]

Words = Sequence[bytes]
Command = Callable[[Words], bytes]

OK = b"OK\n"
_TOO_SHORT = b"ERR invalid argument size\n"
#: Suffix of a command -> bytes.
_WIDTHS = {b"b": 1, b"w": 2, b"l": 4, b"q": 8}
#: Lines that are kept, and their bytes: register accesses are short.
_KEPT, _MOST_KEPT = 512, 64
#: I/O ports.
_MOST_PORT = 0xFFFF


class Commands:
    """The commands of one session that are done at once.

    Args:
        interception: where interrupt lines are listened to.

    Attributes:
        known: the lines that need not be taken apart when they come again: accesses.
    """

    def __init__(self, machine: Machine, interception: Interception) -> None:
        self._space = machine.space
        self._pins = machine.pins
        self._interception = interception
        self._line = b""  # the one that is done
        self.known = KnownLines(machine.busy, _answered, _KEPT, _MOST_KEPT)
        self._table: dict[bytes, Command] = {
            b"read": self._read,
            b"write": self._write,
            b"b64read": self._b64read,
            b"b64write": self._b64write,
            b"memset": self._memset,
            b"irq_intercept_in": self._intercept_in,
            b"irq_intercept_out": self._intercept_out,
            b"set_irq_in": self._set_irq_in,
            b"endianness": self._endianness,
            b"module_load": self._module_load,
        }
        for suffix, width in _WIDTHS.items():
            self._table[b"read" + suffix] = self._load_of(width)
            self._table[b"write" + suffix] = self._store_of(width)
            if width < 8:
                self._table[b"in" + suffix] = self._in_of(width)
                self._table[b"out" + suffix] = self._out

    def do(self, words: Words, line: bytes) -> bytes:
        """The answer to a line, which is not empty.

        Args:
            words: those of the line.
        """
        command = self._table.get(words[0])
        if command is None:
            return f"FAIL Unknown command '{shown(words[0])}'\n".encode()
        self._line = line
        try:
            return command(words)
        except TooShort:
            return _TOO_SHORT
        except (Refusal, Error) as why:
            return failed(why)

    # --- memory -----------------------------------------------------------------------------------

    def _load_of(self, width: int) -> Command:
        def command(words: Words) -> bytes:
            load, *arguments = self._space.loader(number(words, 1), width)
            self.known.keep(self._line, True, load, *arguments)
            return b"OK 0x%016x\n" % load(*arguments)

        return command

    def _store_of(self, width: int) -> Command:
        ones = (1 << 8 * width) - 1

        def command(words: Words) -> bytes:
            address, value = number(words, 1), number(words, 2) & ones
            store, *arguments = self._space.storer(address, width, value)
            self.known.keep(self._line, False, store, *arguments)
            store(*arguments)
            return OK

        return command

    def _read(self, words: Words) -> bytes:
        address, size = number(words, 1), length(words, 2)
        if not size:
            raise Refusal("read of no bytes")
        return b"OK 0x%b\n" % self._space.read(address, size).hex().encode()

    def _write(self, words: Words) -> bytes:
        address, size = number(words, 1), length(words, 2)
        self._space.write(address, hex_data(words, 3, size))
        return OK

    def _b64read(self, words: Words) -> bytes:
        address, size = number(words, 1), length(words, 2)
        return b"OK %b" % b2a_base64(self._space.read(address, size))  # with its end of line

    def _b64write(self, words: Words) -> bytes:
        address, size = number(words, 1), length(words, 2)
        self._space.write(address, base64_data(words, 3, size))
        return OK

    def _memset(self, words: Words) -> bytes:
        address, size = number(words, 1), number(words, 2)
        self._space.fill(address, size, number(words, 3) & 0xFF)
        return OK

    # --- I/O ports: a machine has none; what is not there reads as ones, if it is aligned ---------

    def _in_of(self, width: int) -> Command:
        ones, zeros = b"OK 0x%04x\n" % ((1 << 8 * width) - 1), b"OK 0x0000\n"

        def command(words: Words) -> bytes:
            return zeros if self._port(words) % width else ones

        return command

    def _out(self, words: Words) -> bytes:
        self._port(words)
        number(words, 2)
        return OK

    def _port(self, words: Words) -> int:
        port = number(words, 1)
        if port > _MOST_PORT:
            raise Refusal(f"port {shown(words[1])}: at most {_MOST_PORT:#x} would be right")
        return port

    # --- interrupt lines --------------------------------------------------------------------------

    def _device(self, words: Words) -> Pins:
        if len(words) < 2:
            raise Refusal(f"{shown(words[0])}: argument 1 is missing")
        path = words[1].decode("utf-8", "replace")
        # A path that does not begin at the root is the end of exactly one.
        found = [path] if path in self._pins else []
        found = found or [each for each in self._pins if each.endswith(f"/{path}")]
        if len(found) != 1 or not path:
            raise Refusal("Unknown device")
        return self._pins[found[0]]

    def _intercept_in(self, words: Words) -> bytes:
        self._interception.inputs(self._device(words), len(words) > 2)
        return OK

    def _intercept_out(self, words: Words) -> bytes:
        name = words[2].decode("utf-8", "replace") if len(words) > 2 else None
        self._interception.outputs(self._device(words), name)
        return OK

    def _set_irq_in(self, words: Words) -> bytes:
        pins = self._device(words)
        place, level = signed(words, 3), signed(words, 4)
        if words[2] != b"unnamed-gpio-in":
            raise Refusal(f"no inputs are called {shown(words[2])}")
        line: Interrupt | None = None
        if 0 <= place < len(pins.inputs):
            line = pins.inputs[place]
        if line is None:
            raise Refusal(f"no input has number {place}")
        line.set(level != 0)
        return OK

    # --- the machine ------------------------------------------------------------------------------

    def _endianness(self, words: Words) -> bytes:
        return b"OK %b\n" % self._space.order.encode()

    def _module_load(self, words: Words) -> bytes:
        return b"FAIL\n"  # there are no modules


def failed(why: Exception) -> bytes:
    """The answer to what cannot be: one line."""
    text = in_words(why).replace("\n", " ")
    return f"FAIL {text}\n".encode("ascii", "backslashreplace")


def _answered(why: BaseException) -> bytes:
    """The answer to what an access has raised; what is no answer is let out."""
    if isinstance(why, Refusal | Error):
        return failed(why)
    raise why
