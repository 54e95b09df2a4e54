"""What each command of qtest answers, and does."""

from __future__ import annotations

import pytest

from tests.unit.qtestkit import RAM_BYTES, Rig, rig_fixture

#: The fixture.
__all__ = ["rig_fixture"]


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("endianness", "OK big"),
        ("readb 0x10", "OK 0x0000000000000010"),
        ("readw 16", "OK 0x0000000000001011"),
        ("readl 020", "OK 0x0000000010111213"),
        ("readq +0X10 and what else stands there", "OK 0x1011121314151617"),
        ("read 0x10 3", "OK 0x101112"),
        ("b64read 0x10 4", "OK EBESEw=="),
        ("b64read 0x10 0", "OK "),
        # Across the end of RAM, and where nothing is.
        ("readl 0xfffe", "OK 0x00000000feff0000"),
        ("readb 0xffffffffffffffff", "OK 0x0000000000000000"),
        ("readl -1", "OK 0x0000000000000102"),
        ("read 0xfffffffffffffffe 4", "OK 0x00000001"),
        # Registers: of other widths, a bus error.
        ("readl 0x10000000", "OK 0x0000000001020304"),
        ("readq 0x10000000", "OK 0x0102030400000000"),
        ("readw 0x10000000", "OK 0x0000000000000000"),
        ("readl 0x10000008", "OK 0x000000007fffffff"),
        ("inb 0x70", "OK 0x00ff"),
        ("inw 0x70", "OK 0xffff"),
        ("inl 0x70", "OK 0xffffffff"),
        ("inl 0x72", "OK 0x0000"),
        ("outl 0x70 1", "OK"),
        ("module_load a b", "FAIL"),
        ("clock_step", "FAIL cannot advance clock to the next deadline because there is no"
         " pending deadline"),
        ("clock_step 0", "FAIL could not advance time"),
        ("clock_step -5", "FAIL could not advance time"),
        ("clock_set 0", "OK 0"),
        ("clock_set -1", "FAIL 0"),
        ("foo", "FAIL Unknown command 'foo'"),
        ("", "FAIL Unknown command ''"),
        (" readb 0", "FAIL Unknown command ''"),
        ("READB 0", "FAIL Unknown command 'READB'"),
        ("readb", "FAIL readb: argument 1 is missing"),
        ("readb ", "FAIL '' is not a number"),
        ("readb  0", "FAIL '' is not a number"),
        ("readb 0\r", "FAIL '0?' is not a number"),
        ("readb 1_0", "FAIL '1_0' is not a number"),
        ("readb 08", "FAIL '08' is not a number"),
        ("readb 0x", "FAIL '0x' is not a number"),
        ("readb 0x10000000000000000", "FAIL 0x10000000000000000 has more than 64 bits"),
        ("writeb 0", "FAIL writeb: argument 2 is missing"),
        ("read 0 0", "FAIL read of no bytes"),
        ("write 0 1", "FAIL write: argument 3 is missing"),
        ("write 0 1 0x", "ERR invalid argument size"),
        ("write 0 1 0xgg", "FAIL '0xgg' is not hexadecimal"),
        ("b64write 0 1 ab", "ERR invalid argument size"),
        ("b64write 0 1 abcde", "FAIL 'abcde' is not base64"),
        ("memset 0 0 5", "OK"),
        ("memset 0 1", "FAIL memset: argument 3 is missing"),
        ("inb 0x10000", "FAIL port 0x10000: at most 0xffff would be right"),
        ("outb 0", "FAIL outb: argument 2 is missing"),
        ("clock_step x", "FAIL 'x' is not a number"),
        ("clock_step 0x8000000000000000", "FAIL 0x8000000000000000 does not fit in a signed number"
         " of 64 bits"),
        ("clock_set", "FAIL clock_set: argument 1 is missing"),
        ("irq_intercept_in", "FAIL irq_intercept_in: argument 1 is missing"),
        ("irq_intercept_in /machine/other", "FAIL Unknown device"),
        ("irq_intercept_in chip", "OK"),
        ("irq_intercept_in machine/chip", "OK"),
        ("irq_intercept_in hip", "FAIL Unknown device"),
        ("irq_intercept_in ", "FAIL Unknown device"),
        ("irq_intercept_in /machine/chip x", "FAIL Interception of named in-GPIOs not yet"
         " supported"),
        ("irq_intercept_in /machine/none", "FAIL No intercepts installed"),
        ("irq_intercept_out /machine/chip x", "FAIL No intercepts installed"),
        ("set_irq_in /machine/chip a", "FAIL set_irq_in: argument 3 is missing"),
        ("set_irq_in /machine/chip a 0 1", "FAIL no inputs are called a"),
        ("set_irq_in /machine/chip unnamed-gpio-in 0 1", "FAIL no input has number 0"),
        ("set_irq_in /machine/chip unnamed-gpio-in 2 1", "FAIL no input has number 2"),
        ("set_irq_in /machine/chip unnamed-gpio-in -1 1", "FAIL no input has number -1"),
    ],
)  # fmt: skip
def test_each_line_has_its_answer(rig: Rig, line: str, answer: str) -> None:
    rig.ram.view(0, 256)[:] = bytes(range(256))
    rig.ram.view(RAM_BYTES - 2, 2)[:] = b"\xfe\xff"
    rig.chip.first, rig.chip.byte = 0x0102_0304, 0x7F
    assert rig(line) == answer


@pytest.mark.parametrize(
    ("line", "at", "there"),
    [
        ("writeb 0x10 0x1ff", 0x10, b"\xff\0"),
        ("writew 0x10 0x1234", 0x10, b"\x12\x34\0"),
        ("writel 0x11 0x12345678", 0x10, b"\0\x12\x34\x56\x78\0"),
        ("writeq 0x10 -2", 0x10, b"\xff\xff\xff\xff\xff\xff\xff\xfe\0"),
        ("write 0x10 4 0x0102", 0x10, b"\1\2\0\0\0"),
        ("write 0x10 1 0x0102", 0x10, b"\1\0"),
        ("write 0x10 2 0x010", 0x10, b"\1\0"),
        ("write 0x10 2 ??AbCd", 0x10, b"\xab\xcd"),
        ("b64write 0x10 3 AQIDBA==", 0x10, b"\1\2\3\0"),
        ("memset 0x10 2 0x1ff", 0x10, b"\xff\xff\0"),
        # What reaches beyond the end of RAM is lost, and what is in RAM is not.
        ("writel 0xfffe 0x12345678", 0xFFFE, b"\x12\x34"),
        ("memset 0xfffe 0xffffffff00000000 7", 0xFFFE, b"\7\7"),
        # And goes on at 0 behind the last address.
        ("memset 0xfffffffffffffffe 0x12 7", 0, b"\7" * 16 + b"\0"),
        ("writeq 0xfffffffffffffffe 0x0102030405060708", 0, b"\3\4\5\6\7\x08\0"),
    ],
)
def test_what_is_written_lies_in_memory(rig: Rig, line: str, at: int, there: bytes) -> None:
    assert rig(line) == "OK"
    assert bytes(rig.ram.view(at, len(there))) == there


def test_a_register_sees_the_value_whatever_the_byte_order(rig: Rig) -> None:
    assert rig("writel 0x10000000 0x12345678") == "OK"
    assert rig.chip.first == 0x1234_5678
    assert rig("write 0x10000000 8 0x0102030400000002") == "OK"  # the widest accesses it takes
    assert (rig.chip.first, rig.chip.second) == (0x0102_0304, 2)
    assert rig("writew 0x10000000 0xffff") == rig("writel 0x10000002 0") == "OK"
    assert rig.chip.first == 0x0102_0304
    assert rig("read 0x10000006 3") == "OK 0x000000"
    assert rig("writeb 0x10000008 0x55") == "OK"
    assert rig("readw 0x10000008") == "OK 0x00000000000055ff"


# --- interrupts -----------------------------------------------------------------------------------


def test_lines_that_are_intercepted_are_told_of_before_the_answer(rig: Rig) -> None:
    assert rig("writel 0x10000004 1") == "OK" and not rig.client.irqs
    assert rig("irq_intercept_out /machine/chip sysbus-irq") == "OK"
    assert rig("irq_intercept_out /machine/chip sysbus-irq") == "OK"
    # As in QEMU a line was low, for the client, until it is told otherwise.
    assert rig("writel 0x10000004 0") == "OK" and not rig.client.irqs
    assert rig("writel 0x10000004 1") == "OK" and rig.client.irqs == ["raise 0"]
    assert rig("writel 0x10000004 3") == "OK" and rig.client.irqs == ["raise 0"]
    assert rig("writel 0x10000004 0") == "OK" and rig.client.irqs == ["raise 0", "lower 0"]
    assert rig("irq_intercept_in /machine/none") == "FAIL IRQ intercept already enabled"
    rig.chip.interrupt.pulse()  # of itself, while no command is under way
    rig("endianness")
    assert rig.client.irqs[2:] == ["raise 0", "lower 0"]


def test_inputs_can_be_intercepted_and_set(rig: Rig) -> None:
    assert rig("irq_intercept_in /machine/chip") == "OK"
    seen: list[bool] = []
    rig.input.connect(seen.append)
    assert rig("set_irq_in /machine/chip unnamed-gpio-in 1 -1") == "OK"
    assert rig("set_irq_in /machine/chip unnamed-gpio-in 1 0") == "OK"
    assert rig.client.irqs == ["raise 1", "lower 1"] and seen == [True, False]


def test_a_session_that_ends_listens_no_more(rig: Rig) -> None:
    rig("irq_intercept_in /machine/chip")
    rig.client.close()
    while not rig.server.closed:
        rig.turn()
    rig.input.set(True)  # and nothing is sent to anybody
    rig.turn()


# --- reset ----------------------------------------------------------------------------------------


def test_reset(rig: Rig) -> None:
    rig("writel 0x10000000 5")
    rig("writel 0 7")
    assert rig("iodma_reset") == "OK"
    assert rig.resets == [1] and rig.chip.first == 0
    assert rig("readl 0") == "OK 0x0000000000000007"
