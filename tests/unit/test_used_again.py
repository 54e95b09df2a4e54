"""Objects that the core keeps for the next request: nobody who holds one sees it change."""

from __future__ import annotations

import gc
from typing import Any

import iodma
from iodma import Status
from iodma.testing import Answer, ScriptedEndpoint, strict_engine

ROUNDS = 200


def test_what_is_kept_of_a_request_stays_as_it_was() -> None:
    kept: list[tuple[int, Any, Any]] = []
    endpoint = ScriptedEndpoint(
        bytes(4096), script=lambda request: Answer.fail(5) if request.offset == 2 else Answer.all()
    )
    with iodma.Ram(4096) as ram, endpoint, strict_engine() as engine:
        port = engine.port(iodma.Memory({0: ram}))

        async def one(length: int) -> None:
            transfer = port.to_memory((0, length), source=endpoint, offset=length % 3)
            done = await transfer
            if length % 2:
                kept.append((length, transfer, done))

        async def main() -> None:
            tasks = [engine.start(one(length)) for length in range(300, 300 + ROUNDS)]
            for task in tasks:
                await task
            del tasks[::2]
            for _ in range(ROUNDS):  # in the place of those that were dropped
                await engine.start(one(300))
            assert all(task.done and task.exception is None for task in tasks)
            assert len({id(task) for task in tasks}) == len(tasks)

        engine.run(main())
        gc.collect()
        tickets = {transfer.ticket for _, transfer, _ in kept}
        assert len(tickets) == len(kept) == ROUNDS // 2
        for length, transfer, done in kept:
            assert transfer.done and transfer.result is done
            if length % 3 == 2:
                assert (done.status, done.error, done.moved) == (Status.IO_ERROR, 5, 0)
            else:
                assert (done.status, done.error, done.moved) == (Status.OK, 0, length)


def test_faults_leave_nothing_to_the_completions_after_them() -> None:
    with iodma.Ram(4096) as ram, iodma.Null() as null, strict_engine() as engine:
        port = engine.port(iodma.Memory({0: ram}))

        async def main() -> None:
            for _ in range(ROUNDS):
                refused = await port.from_memory((4090, 100), to=null)
                assert refused.fault is not None and refused.fault.address == 4096
                del refused
                assert (await port.from_memory((0, 4096), to=null)).fault is None

        engine.run(main())


def test_arguments_whose_names_are_made_at_run_time() -> None:
    with iodma.Ram(4096) as ram, iodma.Buffer(4096) as buffer, strict_engine() as engine:
        port = engine.port(iodma.Memory({0: ram}))
        names = {"".join(("sou", "rce")): buffer, "".join(("off", "set")): 96}

        async def main() -> int:
            return (await port.to_memory((0, 4000), **names)).moved  # type: ignore[arg-type]

        assert engine.run(main()) == 4000
