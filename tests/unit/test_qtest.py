"""The qtest server: what each command answers, when, and that no client can do more than ask."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iodma import ArgumentError, Bus, Device, Engine, Event, Interrupt, Ram, Register
from iodma.testing import strict_engine
from iodma.transports.qtest import Machine, PhysicalSpace, Pins, QtestServer, SteppedClock
from iodma.transports.qtest.lines import Lines
from iodma.transports.qtest.words import MOST_BYTES
from tests.qtest import Qtest, QtestError

RAM_BYTES = 1 << 16
WINDOW = 0x1000_0000


class Chip(Device):
    """Two words, and a byte that only takes bytes."""

    first = Register(0, doc="any")
    second = Register(4, write="written")
    byte = Register(8, 1)

    def written(self, value: int) -> None:
        self.interrupt.set(value & 1 != 0)


@dataclass
class Rig:
    """A big-endian machine, a server, and a client, all in this thread."""

    engine: Engine
    ram: Ram
    chip: Chip
    clock: SteppedClock
    server: QtestServer
    client: Qtest
    input: Interrupt
    busy: list[bool] = field(default_factory=lambda: [False])
    resets: list[int] = field(default_factory=list)

    def __call__(self, line: str | bytes) -> str:
        data = line.encode() if isinstance(line, str) else line
        return self.client.ask(data + b"\n")

    def turn(self) -> None:
        self.engine.pump()


def make(engine: Engine, ram: Ram, view: memoryview, clock: SteppedClock, **more: Any) -> Rig:
    chip, bus, line = Chip(name="chip"), Bus(), Interrupt("input")
    engine.attach(chip)
    window = bus.attach(chip, WINDOW, 0x10)
    space = PhysicalSpace("big")
    space.add_memory(0, view)
    space.add_window(WINDOW, 0x8, window, least=4, most=4)
    space.add_window(WINDOW + 8, 0x8, window_at(window, 8), most=1)
    busy, resets = [False], [0]

    async def reset() -> None:
        await engine.sleep(0)
        await chip.request_reset()
        resets[0] += 1

    pins = {
        "/machine/chip": Pins([None, line], {"sysbus-irq": [chip.interrupt], None: []}),
        "/machine/none": Pins(),
    }
    machine = Machine(space, "board", pins, lambda: busy[0], reset, clock)
    ours, theirs = socket.socketpair()
    with theirs:
        server = QtestServer(engine, machine, fd=theirs.fileno(), **more)
    client = Qtest(ours, engine.pump)
    return Rig(engine, ram, chip, clock, server, client, line, busy, resets)


def window_at(window: Any, offset: int) -> Any:
    class Part:
        def read(self, at: int, width: int) -> int:
            return int(window.read(offset + at, width))

        def write(self, at: int, width: int, value: int) -> None:
            window.write(offset + at, width, value)

    return Part()


def opened(**more: Any) -> Iterator[Rig]:
    clock = SteppedClock()
    with (
        strict_engine(slow_step=None, clock=clock) as engine,
        Ram(RAM_BYTES) as ram,
        ram.view() as view,
    ):
        rig = make(engine, ram, view, clock, **more)
        yield rig
        rig.client.close()
        task = engine.start(rig.server.close())
        while not task.done:
            engine.pump()


@pytest.fixture
def rig() -> Iterator[Rig]:
    yield from opened()


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


# --- how lines come -------------------------------------------------------------------------------


def test_a_line_that_comes_again_does_what_it_did(rig: Rig) -> None:
    """What is kept of a line is its numbers, not its answer; and not every line is kept."""
    for value in range(3):
        assert rig(f"writel 0x10000004 {value}") == "OK"
        assert rig("readl 0x10000004") == f"OK 0x{value:016x}"
        assert rig("writel 0x10000004 7") == "OK"
        assert rig("readl 0x10000004") == "OK 0x0000000000000007"
        assert rig("readl").startswith("FAIL") and rig("writel 4").startswith("FAIL")
        assert rig("readl 0x10000004 and more") == "OK 0x0000000000000007"
    for at in range(0, 4096, 4):
        assert rig(f"writel {at} {at}") == "OK"
    for at in range(0, 4096, 4):
        assert rig(f"readl {at}") == f"OK 0x{at:016x}"
    assert len(rig.server.session._commands.known) <= 512  # type: ignore[union-attr]


@given(cuts=st.lists(st.integers(1, 40), max_size=12))
def test_lines_may_come_in_pieces_and_together(cuts: list[int]) -> None:
    text = b"writel 0 1\nreadl 0\nx\n\nwritel 0 2\nreadl 0\n"
    for rig in opened():
        at = 0
        for cut in cuts:
            rig.client.stream.send(text[at : at + cut])
            rig.turn()
            at += cut
        if at < len(text):
            rig.client.stream.send(text[at:])
        assert [rig.client.answer() for _ in range(6)] == [
            *("OK", "OK 0x0000000000000001", "FAIL Unknown command 'x'"),
            *("FAIL Unknown command ''", "OK", "OK 0x0000000000000002"),
        ]


NAMES = [
    *("read", "write", "b64read", "b64write", "memset", "readb", "readl", "writew", "writeq"),
    *("inb", "outl", "clock_step", "clock_set", "irq_intercept_in", "irq_intercept_out"),
    *("set_irq_in", "endianness", "module_load", "iodma_reset"),
]
#: What stands in a line: numbers that are near something, paths, data, anything.
WORDS = st.one_of(
    st.sampled_from([0, 1, RAM_BYTES - 1, RAM_BYTES, WINDOW, WINDOW + 7, (1 << 64) - 1, 1 << 64])
    .flatmap(lambda near: st.integers(near - 2, near + 2))
    .map(lambda number: b"%d" % number if number < 0 else b"0x%x" % number),
    st.sampled_from([b"/machine/chip", b"sysbus-irq", b"unnamed-gpio-in", b"0x0102", b"AQI="]),
    st.binary(max_size=12).map(lambda word: word.replace(b"\n", b"")),
)
LINES = st.one_of(
    st.binary(max_size=60).map(lambda line: line.replace(b"\n", b"")),
    st.tuples(st.sampled_from(NAMES), st.lists(WORDS, max_size=4)).map(
        lambda parts: b" ".join([parts[0].encode(), *parts[1]])
    ),
)


@given(lines=st.lists(LINES, min_size=1, max_size=20))
def test_any_line_is_answered_once_and_harms_nothing(lines: list[bytes]) -> None:
    for rig in opened():
        rig.client.stream.send(b"".join(line + b"\n" for line in lines))
        for line in lines:
            answer = rig.client.answer()
            assert answer.split(" ")[0] in ("OK", "FAIL", "ERR"), (line, answer)
        assert rig("endianness") == "OK big"
        assert all(irq.split()[0] in ("raise", "lower") for irq in rig.client.irqs)


def test_a_line_that_is_too_long_is_one_answer(rig: Rig) -> None:
    ours, theirs = socket.socketpair()
    came: list[bytes | None] = []
    lines = Lines(rig.engine, theirs, lambda: None, lambda why: None, most_line=100)
    with ours:
        for piece in (b"a" * 100, b"\n" + b"b" * 101, b"b" * 300, b"b\nc\n", b"d" * 101 + b"\ne\n"):
            ours.send(piece)
            rig.turn()
            while lines.waiting:
                came.append(lines.take())
            lines.more()
        assert came == [b"a" * 100, None, b"c", None, b"e"]
        lines.close()


@pytest.mark.parametrize("size", [50_000, 90_000])
def test_lines_that_wait_to_be_done_are_bounded(rig: Rig, size: int) -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    lines = Lines(rig.engine, theirs, lambda: None, lambda why: None, most_line=100_000)
    with ours:
        left, done = memoryview((b"a" * size + b"\n") * 600), 0

        def send() -> None:
            nonlocal left
            for _ in range(300):  # a line at a time, or a part of one
                with contextlib.suppress(BlockingIOError):
                    left = left[ours.send(left[: size + 1]) :]
                rig.turn()

        while done < 600:
            send()
            assert len(lines.data) <= 100_000 + (1 << 16)
            while lines.waiting:
                assert lines.take() == b"a" * size
                done += 1
            lines.more()
        assert done == 600
        lines.close()


def test_sizes_are_bounded(rig: Rig) -> None:
    for command in ("read 0", "b64read 0", "write 0", "b64write 0"):
        answer = rig(f"{command} {MOST_BYTES + 1} AAAA")
        assert answer == f"FAIL {MOST_BYTES + 1} bytes at once; at most {MOST_BYTES} would be right"


def test_a_client_that_does_not_read_is_waited_for(rig: Rig) -> None:
    rig.client.stream.setblocking(False)
    sent = 0
    while sent < 200:  # 16 MB of answers: more than a socket takes
        try:
            rig.client.stream.send(b"read 0 40000\n")
            sent += 1
        except BlockingIOError:
            break
        rig.turn()
    for _ in range(sent):
        assert rig.client.answer() == "OK 0x" + "00" * 40000
    assert rig("readb 0").startswith("OK")


def test_long_answers_are_not_gathered(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few short lines ask for gigabytes: the next is done when the one before has been read."""
    done, read = [0], PhysicalSpace.read

    def counted(space: PhysicalSpace, address: int, length: int) -> bytes:
        done[0] += 1
        return read(space, address, length)

    monkeypatch.setattr(PhysicalSpace, "read", counted)
    rig.client.stream.send(b"read 0 1000000\n" * 30)
    for _ in range(5):
        rig.turn()
    assert done == [1]
    for _ in range(30):
        assert len(rig.client.answer()) == len("OK 0x") + 2 * 1000000
    assert done == [30]


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


# --- time, and rest -------------------------------------------------------------------------------


def test_time_is_the_clients(rig: Rig) -> None:
    rang: list[int] = []
    for ns in (500, 200, 200, 900):
        rig.engine.call_later(ns / 1e9, lambda: rang.append(rig.clock.now_ns()))
    assert rig("clock_step") == "OK 200" and rang == [200, 200]
    assert rig("clock_step 1") == "OK 201"
    assert rig("clock_step 1000") == "OK 1201"
    assert rang == [200, 200, 500, 900]
    assert rig("clock_set 5000") == "OK 5000"
    assert rig("clock_set 4000") == "FAIL 5000"
    assert rig("clock_step").startswith("FAIL cannot advance")
    assert rig("clock_step 0x7fffffffffffffff") == "FAIL could not advance time"
    assert rig("clock_set 0x7fffffffffffffff") == "OK 9223372036854775807"


def test_a_timer_may_start_another_and_the_clock_waits_for_what_they_begin(rig: Rig) -> None:
    rang: list[int] = []

    async def work() -> None:
        await rig.engine.sleep(100e-9)
        rang.append(rig.clock.now_ns())
        rig.busy[0] = True
        for _ in range(10):
            event = Event(rig.engine)
            rig.engine.call_soon(event.set)
            await event.wait()
        rig.engine.call_later(100e-9, lambda: rang.append(rig.clock.now_ns()))
        rig.busy[0] = False

    rig.engine.start(work())
    rig.turn()
    assert rig("clock_step 1000") == "OK 1000"
    assert rang == [100, 200]


def test_a_timer_that_never_ends_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    for rig in opened(deadline_s=0.05):
        on = [True]

        def again(rig: Rig = rig, on: list[bool] = on) -> None:
            if on:
                rig.engine.call_later(0, again)

        again()
        answer = rig("clock_step 1000")
        assert answer == "FAIL could not advance time"
        assert "does not come to rest in 0.05 s" in caplog.text
        on.clear()
        rig.turn()
        assert rig("clock_step 1000") == "OK 1000"


def test_a_command_is_answered_when_the_machine_rests(rig: Rig) -> None:
    steps: list[str] = []

    async def work(count: int) -> None:
        for _ in range(count):
            event = Event(rig.engine)
            rig.engine.call_soon(event.set)
            await event.wait()
        steps.append("rests")
        rig.busy[0] = False

    rig.busy[0] = True
    rig.engine.start(work(5))
    rig.client.stream.send(b"readl 0\nreadl 4\n")
    rig.client.answer()
    assert steps == ["rests"]
    rig.busy[0] = True
    rig.engine.start(work(100_000))  # long enough that it is looked at less often
    rig.client.answer()
    assert steps == ["rests"] or steps == ["rests"] * 2
    rig("readl 0")
    assert steps == ["rests"] * 2


def test_one_that_never_rests_is_answered_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    for rig in opened(deadline_s=0.02):
        rig.busy[0] = True
        assert rig("readl 0") == "OK 0x0000000000000000"
        assert rig("endianness") == "OK big"
        assert "board: readl: the machine does not come to rest in 0.02 s" in caplog.text


def test_reset(rig: Rig) -> None:
    rig("writel 0x10000000 5")
    rig("writel 0 7")
    assert rig("iodma_reset") == "OK"
    assert rig.resets == [1] and rig.chip.first == 0
    assert rig("readl 0") == "OK 0x0000000000000007"


def test_a_client_that_leaves_in_the_middle(rig: Rig) -> None:
    rig.busy[0] = True
    rig.client.stream.send(b"readl 0\niodma_reset\nreadl")
    rig.turn()
    rig.client.close()
    while not rig.server.closed:
        rig.turn()
    rig.busy[0] = False


def test_a_client_that_leaves_in_a_reset(rig: Rig) -> None:
    rig.client.stream.send(b"iodma_reset\n")
    rig.client.close()
    while not rig.server.closed:
        rig.turn()


# --- the server -----------------------------------------------------------------------------------


def test_clients_one_after_another(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with strict_engine(slow_step=None) as engine:
        server = QtestServer(engine, Machine(PhysicalSpace()), path)
        for _ in range(3):
            with socket.socket(socket.AF_UNIX) as stream:
                stream.connect(str(path))
                client = Qtest(stream, engine.pump)
                assert client("endianness") == "little"
                # A machine without a clock, or a reset: as QEMU without its accelerator.
                with pytest.raises(QtestError, match="Unknown command 'clock_step'"):
                    client("clock_step", 5)
                with pytest.raises(QtestError, match="Unknown command 'iodma_reset'"):
                    client("iodma_reset")
        assert server.sessions == 3
        task = engine.start(server.close())
        while not task.done:
            engine.pump()
    assert not path.exists()


def test_the_clock_is_the_engines() -> None:
    machine = Machine(PhysicalSpace(), clock=SteppedClock())
    with strict_engine() as engine, pytest.raises(ArgumentError, match="clock is not that of"):
        QtestServer(engine, machine, "nowhere")


def test_an_engine_sleeps_while_its_clock_stands() -> None:
    clock = SteppedClock()
    with strict_engine(slow_step=None, clock=clock) as engine:
        rang: list[int] = []

        def ring() -> None:
            rang.append(clock.now_ns())
            engine.stop()

        def move() -> None:
            ours.recv(1)
            clock.go_to(1 << 30)

        engine.call_later(1, ring)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            engine.add_reader(ours.fileno(), move)
            turns = engine.stats().turns
            threading.Timer(0.05, theirs.send, [b"x"]).start()
            engine.run()
            engine.remove_reader(ours.fileno())
        assert rang == [1 << 30]
        assert engine.stats().turns - turns < 100


def test_a_client_that_asks_again_at_once_needs_no_turn_of_the_engine() -> None:
    """It is waited for in its turn: but not for ever, and not when something else is to be done."""
    with strict_engine(slow_step=None) as engine:
        ours, theirs = socket.socketpair()
        with theirs:
            server = QtestServer(
                engine, Machine(PhysicalSpace()), fd=theirs.fileno(), linger_us=10_000
            )
        said: list[bytes] = []

        def client() -> None:
            for _ in range(300):
                ours.sendall(b"endianness\n")
                said.append(ours.recv(100))
            ours.close()

        before = engine.stats().turns
        thread = threading.Thread(target=client)
        thread.start()
        engine.run(server.wait())
        thread.join()
        assert said == [b"OK little\n"] * 300
        assert engine.stats().turns - before < 200


@pytest.mark.parametrize("linger_us", [-1, 10_001])
def test_lingering_is_bounded(linger_us: float) -> None:
    with strict_engine() as engine, pytest.raises(ArgumentError, match="0 to 10000 micro"):
        QtestServer(engine, Machine(PhysicalSpace()), "nowhere", linger_us=linger_us)
