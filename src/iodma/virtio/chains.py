# SPDX-License-Identifier: Apache-2.0
"""What a virtqueue's `pop` gives: a batch that a port takes as it is.

Invariants
 - The block is that of a `Batch`, then the columns that only chains have; the core cuts it the same
   way.
 - The columns are views of the rows in use; they are used again only when nobody holds one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from iodma._core import ChainColumns

__all__ = ["Chains"]


class Chains(ChainColumns):
    """Chains of one queue, as a batch for `Port.submit`: a struct of arrays.

    Request ``i`` moves the payload of chain ``id[i]``: its segments without the header in front and
    the trailer at the end (virtio 1.3, section 2.6).

    Args:
        requests: most chains it holds.
        segments: most segments, of all its chains together.
        header: bytes at the front of each chain that are copied into `header`.
    """

    def __new__(cls, requests: int, segments: int, header: int) -> Chains:
        batch = requests * (3 * 8 + 2 * 4 + 1) + segments * 16
        extra = -(-batch // 8) * 8
        self = super().__new__(cls, extra + requests * (2 * 8 + 4 + header), requests, segments)
        self._set_header(header)
        block: Any = self._block

        def column(offset: int, dtype: type[np.generic]) -> Any:
            return np.frombuffer(block, dtype, requests, offset)

        word = 8 * requests
        lists = 3 * word + segments * 16
        headers = extra + 2 * word + 4 * requests
        self._keep(
            (
                column(2 * word, np.uint64),  # ticket: Port.submit gives the first
                column(0, np.uint64),
                column(word, np.uint64),
                column(extra, np.uint64),
                column(extra + word, np.uint64),
                column(extra + 2 * word, np.uint32),
                column(lists + 8 * requests, np.uint8),
                np.frombuffer(block, np.uint8, requests * header, headers).reshape(
                    requests, header
                ),
                column(lists, np.uint32),
                column(lists + 4 * requests, np.uint32),
                np.frombuffer(block, np.uint64, segments, 3 * word),
                np.frombuffer(block, np.uint64, segments, 3 * word + segments * 8),
            )
        )
        return self

    @property
    def address(self) -> Any:
        """uint64[segments]: bus addresses; those in use are what `first` and `count` say."""
        return self._arrays[10]

    @property
    def length(self) -> Any:
        """uint64[segments]: bytes."""
        return self._arrays[11]

    def segments(self, row: int) -> list[tuple[int, int]]:
        """The payload of one chain as (address, length): what it can be read from, then written."""
        first, count = int(self.first[row]), int(self.count[row])
        rows = slice(first, first + count)
        return list(zip(self.address[rows].tolist(), self.length[rows].tolist(), strict=True))

    def __repr__(self) -> str:
        return f"<Chains {self.n}>"
