# SPDX-License-Identifier: Apache-2.0
"""Flushes of one disk, one at a time.

The kernel tells of a failed write-back once for each open file: of two fsyncs at the same time one
may fail and the other not, and the one after them succeeds though the data is gone. So:

Invariants
 - At most one flush is under way; requests that come meanwhile share the next one.
 - After one flush has failed all later ones fail, for as long as the disk is open: what was lost
   then is not on the medium now.
"""

from __future__ import annotations

import errno
import os

from iodma._core import Completion, Wait
from iodma.endpoints import Endpoint
from iodma.engine import Engine
from iodma.log import GuestLog
from iodma.port import Port
from iodma.types import Status

__all__ = ["Flushes"]

log = GuestLog("iodma.endpoints")


class Flushes:
    """The flushes of `disk`.

    Attributes:
        lost: the errno of the flush that failed, or 0.
    """

    __slots__ = ("_active", "_begun", "_disk", "_ended", "lost")

    def __init__(self, disk: Endpoint) -> None:
        self._disk = disk
        self._active: Wait[None] | None = None
        self._begun = 0
        self._ended = 0
        self.lost = 0

    async def flush(self, engine: Engine, port: Port) -> bool:
        """Makes durable what completed before. False: it could not, or could not once before."""
        covers = self._begun + 1  # the first one that begins from now on
        while not self.lost and self._ended < covers:
            active = self._active
            if active is not None:
                await active
            elif not await self._flush(engine, port):
                return False
        return not self.lost

    async def _flush(self, engine: Engine, port: Port) -> bool:
        active: Wait[None] = Wait(engine)
        self._active = active
        self._begun += 1
        number = self._begun
        try:
            transfer = port.flush(self._disk)
            # Noted also where a reset has cancelled who waits: the kernel tells only once.
            transfer._when_done(lambda wait: self.note(wait.result))
            done = await transfer
            if done.ok:
                self._ended = number
            return done.ok
        finally:
            self._active = None
            active._resolve(None)

    def note(self, done: Completion) -> None:
        """Of a flush, or a write that was to be stable, that ended: an error is never forgotten."""
        if done.status in (Status.OK, Status.CANCELLED) or self.lost:
            return
        self.lost = done.error or errno.EIO
        log.error(
            "%r: a flush failed (%s): what it should have made durable may be lost, and no later"
            " flush will succeed",
            self._disk,
            os.strerror(self.lost),
        )
