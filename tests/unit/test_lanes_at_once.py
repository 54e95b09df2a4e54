"""Loads and stores through byte lanes in front of RAM are done when the call returns."""

from __future__ import annotations

import random

import iodma
from iodma.testing import strict_engine
from tests.unit.system import Registers


def test_what_meets_ram_alone_is_done_at_once_and_as_a_transfer_does_it(rng: random.Random) -> None:
    with strict_engine() as engine, iodma.Ram(8192) as one, iodma.Ram(8192) as two:
        memory = iodma.Memory({0: one, 8192: two})
        one.start_dirty_log()
        two.start_dirty_log()
        for width in (2, 4, 8):
            port = engine.port(iodma.ByteLanes(memory, width=width), f"lanes {width}")

            async def main(port: iodma.Port = port) -> None:
                for _ in range(200):
                    at, length = rng.randrange(8192 - 64, 8192), rng.randrange(1, 128)
                    one.view()[:] = rng.randbytes(8192)
                    two.view()[:] = rng.randbytes(8192)
                    load = port.load_bytes(at, length)
                    assert load.done
                    with iodma.Buffer(length) as buffer:  # the same by a transfer
                        assert (await port.from_memory((at, length), to=buffer)).ok
                        assert await load == bytes(buffer.view())
                        data = rng.randbytes(length)
                        one.take_dirty_log()
                        two.take_dirty_log()
                        store = port.store_bytes(at, data)
                        assert store.done and (await store).moved == length
                        stored = bytes(one.view()) + bytes(two.view())
                        dirty = one.take_dirty_log()[0] | two.take_dirty_log()[0] << 2
                        first, last = at >> 12, (at + length - 1) >> 12
                        assert dirty >> first & 1 and dirty >> last & 1
                        buffer.view()[:] = data
                        one.view()[:] = bytes(8192)
                        two.view()[:] = bytes(8192)
                        assert (await port.to_memory((at, length), source=buffer)).ok
                        moved = bytes(one.view()) + bytes(two.view())
                        assert stored[at : at + length] == moved[at : at + length]

            engine.run(main())


def test_a_register_behind_them_is_still_a_message() -> None:
    registers = Registers(bytes.fromhex("1234") * 32)
    with strict_engine() as engine, iodma.Ram(4096) as ram:
        memory = iodma.Memory({0: ram, 4096: iodma.DeviceWindow(registers, 64)})
        port = engine.port(iodma.ByteLanes(memory, width=2))

        async def main() -> None:
            load = port.load("<H", 4096)
            assert not load.done
            assert await load == (0x1234,)

        engine.run(main())
