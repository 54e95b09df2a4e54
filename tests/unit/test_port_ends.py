# SPDX-License-Identifier: Apache-2.0
"""The end of a port: dropped while its reset is awaited, closed while its stream is."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from typing import Any

import iodma
from iodma.testing import strict_engine
from tests.unit.system import System


def test_a_reset_is_acknowledged_after_the_port_is_gone() -> None:
    with strict_engine() as engine, iodma.Ram(4096) as ram:
        memory = iodma.Memory({0: ram})

        async def main() -> str:
            await engine.port(memory, "idle").reset()
            return "reset"

        assert engine.run(main()) == "reset"


def test_a_reset_of_a_port_that_goes_with_its_last_transfer(tmp_path: Path) -> None:
    system = System()
    wire, _ = system.wire()

    async def main() -> None:
        port: Any = system.engine.port(system.memory, "dropped")
        transfer = port.to_memory((0, 8), source=wire)
        await system.turns()
        reset = port.reset()
        del port
        gc.collect()
        await reset
        assert transfer.done and system.ram.leases == 0
        assert (await transfer).status is iodma.Status.CANCELLED

    system.run(main())
    system.close()


def test_close_ends_a_stream_that_goes_on_for_ever_in_another_loop() -> None:
    async def main() -> list[str]:
        ended: list[str] = []
        with iodma.Engine() as engine, iodma.Ram(4096) as ram:
            port = engine.port(iodma.Memory({0: ram}), "port")
            loop = asyncio.get_running_loop()
            over = loop.create_future()

            async def completions() -> None:
                async for _ in port.completions(forever=True):
                    pass
                ended.append("ended")
                over.set_result(None)

            loop.add_reader(engine.fileno(), engine.pump)
            engine.start(completions())
            for _ in range(20):  # until it waits
                await asyncio.sleep(0)
            assert not ended
            port.close()
            await asyncio.wait_for(over, 20)
            loop.remove_reader(engine.fileno())
        return ended

    assert asyncio.run(main()) == ["ended"]
