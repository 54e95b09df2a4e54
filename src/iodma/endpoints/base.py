# SPDX-License-Identifier: Apache-2.0
"""What every host endpoint is.

Invariants
 - An endpoint owns its descriptor: one passed in is duplicated.
 - It belongs to the first engine that used it, which keeps its order.
 - `close` lets nothing new begin and may be called again; the descriptor goes when the last
   transfer has ended.
"""

from __future__ import annotations

import warnings
from typing import Any, Self

from iodma._core import Target
from iodma.types import Constraints

__all__ = ["Endpoint"]

KIND_FILE, KIND_STREAM, KIND_PACKET, KIND_BUFFER, KIND_NULL, KIND_SCRIPT = range(6)


class Endpoint(Target):
    """The base of the endpoints.

    Attributes:
        name: what messages call it.
        constraints: what it asks of the requests that it is given.
    """

    name: str
    constraints: Constraints

    @classmethod
    def _make(cls, kind: int, name: str, constraints: Constraints, **options: Any) -> Self:
        self = super().__new__(
            cls,
            kind,
            memory_alignment=constraints.memory_alignment,
            offset_alignment=constraints.offset_alignment,
            max_segments=constraints.max_segments,
            max_bytes=constraints.max_bytes,
            **options,
        )
        self.name = name
        self.constraints = constraints
        return self

    def close(self) -> None:
        """Let go of it: nothing new begins, what is in flight ends by itself."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        self._warn_if_open(self._fd >= 0)

    def _warn_if_open(self, holds: bool) -> None:
        if not self.closed and holds:
            warnings.warn(f"{self!r} was not closed", ResourceWarning, stacklevel=2, source=self)
            self._close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}{' closed' if self.closed else ''}>"
