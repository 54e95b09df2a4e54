# SPDX-License-Identifier: Apache-2.0
"""An engine for tests.

Invariants
 - What nothing caught comes out of `run` and `pump`: no failure of a device is only a line in a
   log.
"""

from __future__ import annotations

from typing import Any

from iodma.engine import Engine

__all__ = ["strict_engine"]


def strict_engine(kind: str = "auto", **options: Any) -> Engine:
    """An `Engine` that lets every exception that nothing caught out of `run`; ``options`` are the
    engine's.

    >>> from iodma.testing import strict_engine
    >>> async def broken():
    ...     raise RuntimeError("a bug in a device")
    >>> with strict_engine() as engine:
    ...     task = engine.start(broken())
    ...     engine.run()
    Traceback (most recent call last):
        ...
    RuntimeError: a bug in a device
    """
    return Engine(kind, strict=True, **options)
