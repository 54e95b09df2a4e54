"""How lines come to the qtest server, and that no client can do more than ask."""

from __future__ import annotations

import contextlib
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iodma.transports.qtest import PhysicalSpace
from iodma.transports.qtest.lines import Lines
from iodma.transports.qtest.words import MOST_BYTES
from tests.unit.qtestkit import RAM_BYTES, WINDOW, Rig, opened, rig_fixture

#: The fixture.
__all__ = ["rig_fixture"]


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
