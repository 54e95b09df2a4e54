# SPDX-License-Identifier: Apache-2.0
"""What an engine counted.

Invariants
 - Every figure is a count of what happened, taken where it happens; none is derived from what
   should have.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Bounced", "Stats", "TransferInfo"]

#: Of a transfer, by the core's numbers.
KINDS = (
    *("transfer", "copy", "load", "store", "flush", "discard", "write_zeroes", "peek", "drop"),
)
_COUNTERS = (
    *("submitted", "delivered", "bytes_from_memory", "bytes_to_memory", "copied", "python_bytes"),
    *("pending", "requests", "splits", "coalesced", "pieces", "messages"),
    *("revocations", "revocations_failed", "tasks", "turns", "resumed", "lock_released"),
)
_BACKEND_COUNTERS = ("enters", "sleeps", "spins", "spin_hits", "cancels")
_WAITS = (None, "budget", "ring", "order", "range")


@dataclass(frozen=True, slots=True)
class TransferInfo:
    """A transfer in flight, as `Engine.transfers` lists it.

    Attributes:
        ticket: its number.
        state: its state's name, one of `TRANSITIONS`.
        kind: transfer, copy, load, store, flush, discard, write_zeroes, peek or drop.
        direction: "from_memory" or "to_memory".
        port: the port's name.
        total, moved: bytes.
        age_s: seconds since it was submitted.
        waits_for: budget, ring, order or range while it is WAITING.
        endpoint: the endpoint's representation.
    """

    ticket: int
    state: str
    kind: str
    direction: str
    port: str
    total: int
    moved: int
    age_s: float
    waits_for: str | None
    endpoint: str

    @classmethod
    def of(cls, row: tuple[Any, ...]) -> TransferInfo:
        """From a row of the core."""
        ticket, state, kind, direction, port, total, moved, age, wait, endpoint = row
        return cls(
            ticket=ticket,
            state=state,
            kind=KINDS[kind],
            direction="to_memory" if direction else "from_memory",
            port=port,
            total=total,
            moved=moved,
            age_s=age / 1e9,
            waits_for=_WAITS[wait],
            endpoint="" if endpoint is None else repr(endpoint),
        )


@dataclass(frozen=True, slots=True)
class Bounced:
    """Bytes copied through the arena, by reason (`Reason`), and in how many requests."""

    lanes: int
    alignment: int
    not_ram: int
    small: int
    remote: int
    peeked: int
    framed: int
    requests: int

    @property
    def total(self) -> int:
        """Bytes, all reasons together."""
        reasons = (self.lanes, self.alignment, self.not_ram, self.small, self.remote)
        return sum(reasons) + self.peeked + self.framed


@dataclass(frozen=True, slots=True)
class Stats:
    """An engine's counters since it was made; bytes unless a name says otherwise.

    Attributes:
        kind: "uring" or "threads".
        submitted, delivered: transfers.
        completed: transfers by status name.
        bytes_from_memory, bytes_to_memory: payload moved.
        bounced: payload copied, and why.
        copied: payload that the core moved itself: bounces, memory endpoints, copies.
        python_bytes: bytes that became Python objects or came from them: load, store, scripted
            endpoints.
        waited: how often a transfer waited, by what for.
        pending: how often one waited for a translation.
        requests: handed to the kernel (or the worker threads).
        splits: requests beyond a transfer's first.
        coalesced: sends that went with the request of another of the same stream, packets that went
            with the call of another of the same endpoint.
        pieces: of host memory, all translations together.
        messages: register accesses by DMA.
        revocations, revocations_failed: begun, and past their deadline.
        in_flight: transfers now.
        tasks: coroutines now.
        turns, resumed: of the loop, of coroutines.
        lock_released: how often the interpreter lock was given up.
        arena: bytes of the arena, in use now, and at most.
        enters, sleeps, spins, spin_hits, cancels: of the backend.
    """

    kind: str
    submitted: int
    delivered: int
    completed: dict[str, int]
    bytes_from_memory: int
    bytes_to_memory: int
    bounced: Bounced
    copied: int
    python_bytes: int
    waited: dict[str, int]
    pending: int
    requests: int
    splits: int
    coalesced: int
    pieces: int
    messages: int
    revocations: int
    revocations_failed: int
    in_flight: int
    tasks: int
    turns: int
    resumed: int
    lock_released: int
    arena: tuple[int, int, int]
    enters: int
    sleeps: int
    spins: int
    spin_hits: int
    cancels: int

    def as_dict(self) -> dict[str, object]:
        """As plain dictionaries and numbers, for JSON."""
        return asdict(self)

    @classmethod
    def of(cls, kind: str, raw: dict[str, int]) -> Stats:
        """From the core's counters."""

        def under(prefix: str) -> dict[str, int]:
            return {k.removeprefix(prefix): v for k, v in raw.items() if k.startswith(prefix)}

        bounced = under("bounced_")
        return cls(
            kind=kind,
            completed=under("completed_"),
            bounced=Bounced(**bounced, requests=sum(under("bounces_").values())),
            waited=under("waited_"),
            in_flight=raw["in_use"],
            arena=(raw["arena_bytes"], raw["arena_used"], raw["arena_peak"]),
            **{name: raw[name] for name in _COUNTERS},
            **{name: raw.get(name, 0) for name in _BACKEND_COUNTERS},
        )
