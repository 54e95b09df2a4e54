"""Loads and stores through byte lanes that meet nothing but RAM are done when the call returns."""

from __future__ import annotations

import pytest

import iodma
from iodma.testing import FakeMemory, strict_engine


def seen_through(data: bytes, address: int, width: int) -> bytes:
    """What the lanes make of the bytes at an address: whole units turned, cut ones as they are."""
    first, out = address, bytearray(data)
    for at in range(address & -width, address + len(data), width):
        if at >= first and at + width <= first + len(data):
            out[at - first : at - first + width] = out[at - first : at - first + width][::-1]
    return bytes(out)


@pytest.mark.parametrize("width", [2, 4, 8])
@pytest.mark.parametrize("address", [0x100, 0x101, 0x103, 0xFFE, 0xFFD])
@pytest.mark.parametrize("length", [0, 1, 2, 3, 7, 8, 24, 63, 5000])
def test_it_is_done_at_once(width: int, address: int, length: int) -> None:
    content = bytes(1 + i * 7 % 251 for i in range(0x4000))
    with strict_engine() as engine, FakeMemory({0: 0x1000, 0x1000: 0x3000}) as memory:
        port = engine.port(iodma.ByteLanes(memory, width))
        memory.write(0, content)
        load = port.load_bytes(address, length)
        assert load.done
        assert load.result == seen_through(content[address : address + length], address, width)

        data = bytes(reversed(content[:length]))
        store = port.store_bytes(address, data)
        assert store.done
        assert store.result.moved == length
        assert memory.read(address, length) == seen_through(data, address, width)
        assert memory.read(0, address) == content[:address]
        assert memory.read(address + length, 64) == content[address + length :][:64]


def test_a_fault_is_told_at_once() -> None:
    with strict_engine() as engine, FakeMemory(0x1000) as memory:
        port = engine.port(iodma.ByteLanes(memory, 2))
        load = port.load_bytes(0xFFE, 4)
        assert load.done
        with pytest.raises(iodma.DmaFault):
            _ = load.result


def test_a_store_marks_what_it_wrote() -> None:
    with strict_engine() as engine, iodma.Ram(0x4000) as ram:
        port = engine.port(iodma.ByteLanes(iodma.Memory({0: ram}), 2))
        ram.start_dirty_log()
        assert port.store_bytes(0x1800, b"abc").done
        assert ram.take_dirty_log()[0] == 0b10
