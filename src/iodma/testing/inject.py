# SPDX-License-Identifier: Apache-2.0
"""A stage that refuses, delays or holds translations: anywhere in a chain.

Invariants
 - Addresses pass unchanged; what no rule catches passes at once.
 - A rule catches the bytes of its range and no others: a transfer that enters the range in the
   middle of a segment is caught there, and not at the segment's start.
 - What a `delay` or `hold` let pass once passes from then on, as if it were in a cache of
   translations: a transfer that starts again from its bus addresses comes through.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Self, TypeAlias

from iodma._core import Space, Wait
from iodma.engine import Engine
from iodma.errors import AddressRangeError, ArgumentError, Error
from iodma.types import Access

__all__ = ["Inject", "Rule", "Verdict"]

_HOOK = 4
PASS, REFUSE, PENDING = 0, 1, 2
_TOP = 1 << 64

#: Asked with (address, length, access) of what no rule catches: 0 passes, 1 refuses, 2 is pending
#: until `Inject.resume`. It may change no map of the chain: `Error` tells it so.
Verdict: TypeAlias = Callable[[int, int, Access], int]
_Key = tuple[int, Access]


class Rule:
    """What is done to a range of addresses; made by `Inject.fault`, `Inject.delay` and
    `Inject.hold`.

    Attributes:
        caught: how many translations it caught so far.
        held: (address, access) of those that wait now, in the order in which they came.
    """

    def __init__(
        self, stage: Inject, verb: str, span: range, access: Access, times: int | None, s: float
    ) -> None:
        self._stage = stage
        self._verb = verb
        self._span = span
        self._access = access
        self._times = times
        self._seconds = s
        self._passed: set[_Key] = set()
        self.caught = 0
        self.held: list[_Key] = []

    def _catches(self, address: int, access: Access) -> bool:
        if address not in self._span or not access & self._access:
            return False
        key = (address, access)
        if key in self.held:
            return True
        return key not in self._passed and (self._times is None or self.caught < self._times)

    def _verdict(self, address: int, access: Access) -> int:
        key = (address, access)
        if key in self.held:
            return PENDING
        self.caught += 1
        if self._verb == "fault":
            return REFUSE
        self.held.append(key)
        if self._verb == "delay":
            self._stage._owner().call_later(self._seconds, lambda: self._release(key))
        self._stage._wake()
        return PENDING

    def _release(self, key: _Key) -> None:
        if key in self.held:
            self.held.remove(key)
            self._passed.add(key)
            self._stage.resume()

    def release(self, address: int | None = None) -> None:
        """Let pass what waits: at ``address``, or all of it."""
        for key in [key for key in self.held if address is None or key[0] == address]:
            self._release(key)

    def remove(self) -> None:
        """Catch nothing more; what waits passes."""
        if self in self._stage.rules:
            self._stage.rules.remove(self)
        self.release()
        self._stage.resume()

    def __repr__(self) -> str:
        first, last = self._span[0], self._span[-1]
        return f"<Rule {self._verb} {self._access.name} {first:#x} to {last:#x}: {self.caught}>"


class Inject(Space):
    """Faults, delays and another order, put into a chain of stages.

    >>> import iodma
    >>> from iodma.testing import FakeMemory, Inject, strict_engine
    >>> with strict_engine() as engine, FakeMemory(8192) as memory:
    ...     inject = Inject(iodma.Window(memory))
    ...     rule = inject.fault(0x1004, 4, iodma.Access.WRITE, times=1)
    ...     port = engine.port(inject)
    ...     async def main():
    ...         done = await port.copy((0, 16), (0x1000, 16))
    ...         again = await port.copy((0, 16), (0x1000, 16))
    ...         return done.status.name, done.fault.offset, again.ok
    ...     engine.run(main())
    ('FAULT', 4, True)

    Args:
        next: the space below.
        verdict: asked about what no rule catches; see `Verdict`.
        name: what faults call it.

    Attributes:
        rules: those that are in force; the first that catches decides.
        log: (address, length, access, verdict) of all that was asked, if `logging` is True.
    """

    rules: list[Rule]
    log: list[tuple[int, int, Access, int]]
    logging: bool
    verdict: Verdict | None
    _waits: list[Wait[None]]

    def __new__(cls, next: Space, verdict: Verdict | None = None, *, name: str = "inject") -> Self:
        self = super().__new__(cls, _HOOK, next, name)
        self.rules = []
        self.log = []
        self.logging = False
        self.verdict = verdict
        self._waits = []
        # The core's references cannot be followed by the garbage collector: it must not hold this
        # object.
        weak = weakref.ref(self)

        def asked(address: int, length: int, access: int) -> int:
            stage = weak()
            return PASS if stage is None else stage._ask(address, length, Access(access))

        self._set_hook(asked, False)
        return self

    def fault(
        self,
        address: int = 0,
        length: int | None = None,
        access: Access = Access.RW,
        *,
        times: int | None = None,
    ) -> Rule:
        """Refuse what reaches ``length`` bytes at ``address`` (None: all from there on): FAULT, at
        that byte.

        Args:
            access: of these kinds.
            times: so often, and then no more; None: always.
        """
        return self._rule("fault", address, length, access, times, 0.0)

    def delay(
        self,
        seconds: float,
        address: int = 0,
        length: int | None = None,
        access: Access = Access.RW,
        *,
        times: int | None = None,
    ) -> Rule:
        """Keep what reaches the range pending for ``seconds`` of the engine's clock, then let it
        pass.
        """
        if not seconds >= 0:
            raise ArgumentError(f"seconds is {seconds}; 0 or more would be right")
        return self._rule("delay", address, length, access, times, seconds)

    def hold(
        self,
        address: int = 0,
        length: int | None = None,
        access: Access = Access.RW,
        *,
        times: int | None = None,
    ) -> Rule:
        """Keep what reaches the range pending until `Rule.release`: in any order, or never."""
        return self._rule("hold", address, length, access, times, 0.0)

    def _rule(
        self,
        verb: str,
        address: int,
        length: int | None,
        access: Access,
        times: int | None,
        seconds: float,
    ) -> Rule:
        end = _TOP if length is None else address + length
        if not 0 <= address < end <= _TOP:
            raise AddressRangeError(
                f"{self.name}: {length} bytes at {address:#x}; at least one, within 0 to 2^64 - 1"
            )
        if times is not None and times < 1:
            raise ArgumentError(f"times is {times}; 1 or more, or None for always, would be right")
        rule = Rule(self, verb, range(address, end), access, times, seconds)
        self.rules.append(rule)
        return rule

    def resume(self) -> None:
        """Let what is pending ask again."""
        self._resume()

    def caught(self) -> Wait[None]:
        """Await it to go on when something more waits here."""
        wait: Wait[None] = Wait(self._owner())
        self._waits.append(wait)
        return wait

    def _owner(self) -> Engine:
        engine = self._engine
        if engine is None:
            raise Error(f"{self.name} belongs to no engine yet: open a port on its chain first")
        assert isinstance(engine, Engine)
        return engine

    def _wake(self) -> None:
        waits, self._waits = self._waits, []
        for wait in waits:
            self._owner().call_soon(wait._resolve, None)

    def _ask(self, address: int, length: int, access: Access) -> int:
        """Called by the core, in the middle of a walk.  A negative answer lets only so many bytes
        pass, and asks again.
        """
        verdict, clear = PASS, length
        for rule in self.rules:
            if rule._catches(address, access):
                verdict, clear = rule._verdict(address, access), length
                break
            first = rule._span[0]
            if address < first and access & rule._access:
                clear = min(clear, first - address)
        else:
            if self.verdict is not None:
                verdict = self.verdict(address, length, access)
        if self.logging:
            self.log.append((address, length, access, verdict))
        return -clear if verdict == PASS and clear < length else verdict

    def __repr__(self) -> str:
        return f"<Inject {self.name}: {len(self.rules)} rules>"
