"""One transfer as the model sees it: which bytes it reads and writes, and how it may end.

Invariants:

- A transfer is judged when it ends, against what the model's memory and endpoint hold then; that is
  what they held when it began, because transfers that would disturb each other are never in flight
  together (`Footprint.disturbs`).
- A transfer that was cancelled, or whose memory was taken away, may have moved any part: each byte
  it was to write is then the old or the new one, the first `moved` are new, all others are old.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from iodma import Status
from tests.unit import model

Indices = npt.NDArray[np.int64]


@dataclass
class Footprint:
    """Bytes of memory and of endpoints: (whose, indices), as sets of intervals or single ones."""

    reads: list[tuple[object, Indices]] = field(default_factory=list)
    writes: list[tuple[object, Indices]] = field(default_factory=list)

    def disturbs(self, other: Footprint) -> bool:
        return (
            meet(self.writes, other.writes)
            or meet(self.writes, other.reads)
            or meet(self.reads, other.writes)
        )


def meet(one: list[tuple[object, Indices]], two: list[tuple[object, Indices]]) -> bool:
    for whose, a in one:
        for whom, b in two:
            if whose is not whom or not len(a) or not len(b):
                continue
            if a.max() < b.min() or b.max() < a.min():
                continue
            if len(np.intersect1d(a, b)):
                return True
    return False


def indices(pieces: list[model.Piece]) -> list[tuple[model.Region, Indices]]:
    """Where the device's bytes are, piece by piece, in the order of the list."""
    out = []
    for piece in pieces:
        if piece.mask:
            at = np.array([piece.index(k) for k in range(piece.length)], np.int64)
        else:
            at = np.arange(piece.offset, piece.offset + piece.length)
        out.append((piece.region, at))
    return out


def span(start: int, end: int) -> Indices:
    return np.arange(start, max(start, end))


def has_repeats(places: list[tuple[model.Region, Indices]]) -> bool:
    by_region: dict[int, list[Indices]] = {}
    for region, at in places:
        by_region.setdefault(id(region), []).append(at)
    return any(
        len(np.unique(np.concatenate(each))) < sum(map(len, each)) for each in by_region.values()
    )


def gather(places: list[tuple[model.Region, Indices]]) -> bytes:
    return b"".join(np.frombuffer(region.data, np.uint8)[at].tobytes() for region, at in places)


class Checker:
    """Compares real memory with the model's, and takes over what may be either."""

    def __init__(self, regions: list[tuple[Any, model.Region]]) -> None:
        self.regions = regions

    def real(self, region: model.Region) -> npt.NDArray[np.uint8]:
        """A copy of what is really there."""
        for ram, each in self.regions:
            if each is region:
                with ram.view() as view:
                    return np.frombuffer(bytes(view), np.uint8)
        raise LookupError(region)

    def memory_is(self, but: Sequence[Footprint] = ()) -> None:
        """Every byte of every region, except what transfers in flight may be writing."""
        for ram, region in self.regions:
            with ram.view() as view:
                if view == region.data:
                    continue
            got = self.real(region)
            wanted = np.frombuffer(region.data, np.uint8)
            wrong = got != wanted
            for footprint in but:
                for whose, at in footprint.writes:
                    if whose is region:
                        wrong = wrong.copy()
                        wrong[at] = False
            at = np.flatnonzero(wrong)
            assert not len(at), (
                f"{region.name}: {len(at)} bytes differ from the model, from {at[0]} to {at[-1]}:"
                f" {got[at[:8]].tolist()} where it has {wanted[at[:8]].tolist()}"
            )

    def written(
        self,
        places: list[tuple[model.Region, Indices]],
        data: bytes,
        moved: int,
        *,
        loose: bool = False,
    ) -> None:
        """The device wrote `data`, of which `moved` bytes count; the model takes it over.

        With `loose`, bytes after those may have arrived as well.
        """
        repeats = has_repeats(places)
        start = 0
        twice = []
        for region, at in places:
            values = np.frombuffer(data[start : start + len(at)], np.uint8)
            at = at[: len(values)]
            own = np.frombuffer(region.data, np.uint8)  # writable: it is a bytearray's
            sure = max(0, min(len(at), moved - start))
            own[at[:sure]] = values[:sure]
            if repeats:
                twice.append((region, at))
            elif loose and sure < len(at):
                real = self.real(region)
                rest, new = at[sure:], values[sure:]
                either = (real[rest] == new) | (real[rest] == own[rest])
                assert either.all(), f"{region.name}: neither old nor new at {rest[~either][:8]}"
                own[rest] = real[rest]
            start += len(at)
        for region, at in twice:  # the order of segments that overlap is nobody's promise
            np.frombuffer(region.data, np.uint8)[at] = self.real(region)[at]


def ended_well(status: int) -> bool:
    return status == Status.OK
