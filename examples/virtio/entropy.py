# SPDX-License-Identifier: Apache-2.0
"""A virtio device of one's own: an entropy device (virtio 1.2, section 5.4), served to a VMM.

    python examples/virtio/entropy.py /tmp/rng.sock

QEMU has it with shared memory, as `iodma qemu-args` prints it, and

    -chardev socket,id=rng0,path=/tmp/rng.sock -device vhost-user-rng-pci,chardev=rng0
"""

import os
import sys

import iodma
from iodma.transports.vhost_user import VhostUserServer
from iodma.virtio import VirtioDevice

MOST = 4096  # bytes a chain, however many the driver has room for


class Entropy(VirtioDevice):
    """Fills every chain with random bytes."""

    device_id = 4

    async def serve(self, queue):
        async for chains in queue.batches():
            for row in range(chains.n):
                id, skip = int(chains.id[row]), int(chains.readable[row])
                self.start(self.fill(queue, id, chains.segments(row), skip))

    async def fill(self, queue, id, segments, skip):
        written = 0
        for address, length in segments:
            if skip:  # what the device may only read, of which a driver should give it none
                skip -= length
                continue
            part = os.urandom(min(length, MOST - written))
            try:
                await queue.port.store_bytes(address, part)
            except iodma.DmaFault:  # the driver's mistake: the rest is left as it is
                break
            written += len(part)
        queue.finish(id, written, b"")


def main(path):
    with iodma.Engine() as engine:
        server = VhostUserServer(engine, Entropy(), path)
        try:
            engine.run(server.wait())
        finally:
            engine.run(server.close())


if __name__ == "__main__":
    main(sys.argv[1])
