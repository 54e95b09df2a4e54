"""The example of a virtio device of one's own: the base knows no block device."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from iodma import Engine, Memory, Ram
from iodma.tools.load import load
from tests.unit.guestring import GuestRing

EXAMPLE = Path(__file__).parents[2] / "examples" / "virtio" / "entropy.py"


def test_every_chain_is_filled(rng: random.Random) -> None:
    entropy: Any = load(str(EXAMPLE)).device
    with Engine(strict=True) as engine, Ram(1 << 20) as ram:
        view = ram.view()
        ring = GuestRing(view, 0x1000, 32, event_idx=True)
        device = entropy()
        engine.attach(device)

        async def main() -> None:
            device.set_features(ring.features)
            ring.listen(engine)
            device.start_queue(ring.setup(), Memory({0: ram}))
            asked: dict[int, tuple[list[tuple[int, int]], int]] = {}
            for k in range(5):
                at = 0x10000 + 0x4000 * k
                pieces = [(at + 0x1000 * i, rng.randrange(1, 0x1000)) for i in range(3)]
                asked[ring.add([], pieces)] = pieces, min(4096, sum(n for _, n in pieces))
            outside = ring.add([], [(0x80000, 16), (1 << 40, 16)])
            wrong = ring.add([(0x80000, 16)], [(0x90000, 16)])
            ring.kick()
            lengths: dict[int, int] = {}
            while len(lengths) < 7:
                await ring.called()
                lengths.update(ring.used())
            for head, (pieces, wanted) in asked.items():
                assert lengths[head] == wanted
                if wanted >= 64:
                    data = b"".join(view[at : at + n] for at, n in pieces)[:wanted]
                    assert len(set(data)) > 16, "these are no random bytes"
            assert (lengths[outside], lengths[wrong]) == (16, 16)
            assert any(view[0x90000:0x90010]) and device.state == "running"
            assert await device.stop_queue(0) == 7

        engine.run(main())
        ring.close(engine)
        view.release()
