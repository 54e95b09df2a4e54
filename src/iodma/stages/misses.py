# SPDX-License-Identifier: Apache-2.0
"""What an IOMMU with a walker asks for, and how it is answered.

Invariants
 - A page is asked for once for each access, however many transfers wait for it, until it was
   answered. The pages that one list misses are asked for together.
 - No answer, whoever gives it, is older than an invalidation of what it maps: one to what was asked
   for before that is thrown away, and the page is asked for again.
 - A refusal lasts until all that waited for it have seen it, and no longer.
 - Whatever a walker does wrong refuses the page: nothing waits for an answer that cannot come.
"""

from __future__ import annotations

import inspect
import logging
import weakref
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from iodma.errors import Error
from iodma.ratelimit import RateLimit
from iodma.types import Access

if TYPE_CHECKING:
    from iodma.stages.iommu import Iommu

__all__ = ["Mapping", "Misses", "Walk"]

log = logging.getLogger("iodma.stages.iommu")

_PASS, _REFUSE, _PENDING = 0, 1, 2
#: Pages of one hole that are asked for at a time.
_AHEAD = 64
#: Invalidations that are told apart while answers are waited for.
_INVALIDATIONS = 1024
_ACCESS = {int(each): each for each in (Access.READ, Access.WRITE, Access.RW)}


@dataclass(frozen=True, slots=True)
class Mapping:
    """What a walk found: ``length`` bytes at ``address`` are at ``target`` of the next space."""

    address: int
    target: int
    length: int
    access: Access


#: Called with (address of a page, access) on a miss, in a turn of the engine. It gives a `Mapping`,
#: which may be of more than the page; or False, which refuses: the transfer ends with FAULT; or
#: None: the answer comes later, with `Iommu.update` or `Iommu.refuse`. It may be an ``async def``.
Walk = Callable[[int, Access], "Mapping | bool | Coroutine[Any, Any, Mapping | bool | None] | None"]

Key = tuple[int, Access]


class Misses:
    """The pages that an Iommu asked its walker for."""

    def __init__(self, stage: Iommu, walk: Walk) -> None:
        # The core holds this object for the stage: a strong reference back would never go.
        self._stage = weakref.ref(stage)
        self._walk = walk
        self._engine: weakref.ref[Any] | None = None
        #: Page and access -> how many invalidations there had been when the walker was asked.
        self.asked: dict[Key, int] = {}
        #: Those that it will be asked for; a dictionary because that keeps their order.
        self._queue: dict[Key, None] = {}
        #: Of the invalidations that an answer may be older than: number, first address, end.
        self._invalidations: deque[tuple[int, int, int]] = deque()
        self._count = 0
        self._refused: set[Key] = set()
        self._refused_turn = -1
        self._errors = RateLimit(log)

    # -- from the core --------------------------------------------------------

    def miss(self, address: int, length: int, access: int) -> int:
        """The hook: in the middle of a walk, so it notes the miss and changes nothing."""
        stage = self._stage()
        if stage is None:
            return _REFUSE
        page, wanted = stage.page, _ACCESS[access]
        first = address - address % page
        if (first, wanted) in self._refused:
            return _REFUSE
        engine: Any = stage._engine
        if engine is None:  # `translate` without an engine: nobody could answer
            return _PENDING
        if self._engine is None or self._engine() is not engine:
            self._forget_engine(engine)
        last = min(address + length, first + _AHEAD * page)
        keys = [(at, wanted) for at in range(first, last, page)]
        self._will_ask([k for k in keys if k not in self.asked and k not in self._refused])
        return _PENDING

    def _forget_engine(self, engine: Any) -> None:
        """What waited went with another engine."""
        self._engine = weakref.ref(engine)
        self.asked.clear()
        self._queue.clear()
        self._refused.clear()
        self._invalidations.clear()

    # -- asking ---------------------------------------------------------------

    def _will_ask(self, keys: list[Key]) -> None:
        engine = self._engine() if self._engine else None
        if engine is None or engine.closed or not keys:
            return
        if not self._queue:
            engine.call_soon(self._ask)
        for key in keys:
            self.asked[key] = self._count
            self._queue[key] = None

    def _ask(self) -> None:
        queue, self._queue = self._queue, {}
        for key in queue:
            if key not in self.asked:  # answered by what was found for another page
                continue
            asked = self.asked[key] = self._count
            try:
                found = self._walk(*key)
            except Exception as error:
                self._failed(key, "failed", error)
                continue
            if inspect.iscoroutine(found):
                engine = self._engine() if self._engine else None
                if engine is None:
                    found.close()
                else:
                    task = engine.start(self._walked(key, asked, found), name="walk")
                    task._when_done(lambda _, walk=found: walk.close())  # it may never have begun
            else:  # found just now, whatever the walker invalidated itself
                self._answer(key, found, self._count)

    async def _walked(self, key: Key, asked: int, walk: Coroutine[Any, Any, Any]) -> None:
        try:
            found = await walk
        except Exception as error:
            self._failed(key, "failed", error)
            return
        if self.asked.get(key) == asked:  # otherwise it was answered, or asked for again
            self._answer(key, found, asked)

    def _answer(self, key: Key, found: object, asked: int) -> None:
        stage = self._stage()
        if found is None or stage is None:
            return
        if found is False:
            self.refuse(key, asked)
            return
        if not isinstance(found, Mapping):
            self._failed(key, f"gave {found!r}; a Mapping, False or None would be right")
            return
        try:
            stage._check_mapping(found)
            if self._outdated(found.address, found.length, asked):
                self._will_ask([key])
                return
            stage._install(found, key, alone=False)
        except Error as error:
            self._failed(key, f"gave {found}: {error}")
            return
        if key in self.asked:
            self._failed(key, f"gave {found}, which does not hold it")

    def _failed(self, key: Key, what: str, error: BaseException | None = None) -> None:
        stage = self._stage()
        if stage is not None:
            self._errors.log(
                logging.ERROR,
                "%s: the walk for %s of %#x %s",
                stage.name,
                key[1].name,
                key[0],
                what,
                exc_info=error,
            )
        self.refuse(key, self._count)

    # -- answers --------------------------------------------------------------

    def answered(
        self,
        address: int,
        length: int,
        access: Access,
        answer_to: Key | None = None,
        *,
        alone: bool = True,
    ) -> None:
        """A range is about to be mapped: what was asked for in it is answered.

        What asked for more than ``access`` is refused; the caller resumes what waits.

        Args:
            answer_to: what the answer was given to.
            alone: False: whoever is asked answers each question; what asked for more waits for its
                own answer.
        """
        for key in self._within(address, length):
            if key[1] not in access and not alone and key != answer_to:
                continue
            del self.asked[key]
            if key[1] not in access:
                self._refuse(key)

    def outdated(self, address: int, length: int) -> bool:
        """Whether an answer for a range is older than an invalidation there.

        If so, what was asked for in the range is asked for again. What nobody asked for is as new
        as who gives it says.
        """
        keys = self._within(address, length)
        if not keys or not self._outdated(address, length, min(self.asked[key] for key in keys)):
            return False
        self._will_ask(keys)
        return True

    def refuse(self, key: Key, asked: int | None = None) -> None:
        """A page is refused, if it was asked for: at ``asked``, or when it was last."""
        if key not in self.asked:
            return
        stage = self._stage()
        page = stage.page if stage is not None else 1
        if self._outdated(key[0], page, self.asked[key] if asked is None else asked):
            self._will_ask([key])
            return
        del self.asked[key]
        self._refuse(key)
        if stage is not None:
            stage._resume()

    def invalidated(self, address: int, length: int | None) -> None:
        """What is being looked for in a range (None: to the end) is out of date."""
        self._refused.clear()
        if not self.asked:
            self._invalidations.clear()
            return
        self._count += 1
        end = 1 << 64 if length is None else address + length
        self._invalidations.append((self._count, address, end))
        if len(self._invalidations) > _INVALIDATIONS:
            oldest = min(self.asked.values())
            while self._invalidations and self._invalidations[0][0] <= oldest:
                self._invalidations.popleft()
            if len(self._invalidations) > _INVALIDATIONS // 2:  # too many: all that is looked for
                self._invalidations.clear()
                self._invalidations.append((self._count, 0, 1 << 64))

    def _outdated(self, address: int, length: int, asked: int) -> bool:
        """Whether the range was invalidated since ``asked``."""
        for number, start, end in reversed(self._invalidations):
            if number <= asked:
                break
            if start < address + length and address < end:
                return True
        return False

    def _within(self, address: int, length: int | None) -> list[Key]:
        page = stage.page if (stage := self._stage()) else 0
        if length == page:
            return [key for each in _ACCESS.values() if (key := (address, each)) in self.asked]
        end = 1 << 64 if length is None else address + length
        return [key for key in self.asked if address <= key[0] < end]

    def _refuse(self, key: Key) -> None:
        engine = self._engine() if self._engine else None
        if engine is None or engine.closed:
            return
        if not self._refused:
            engine.call_soon(self._forget_refused)
        self._refused.add(key)
        self._refused_turn = engine._turns

    def _forget_refused(self) -> None:
        """Those that waited see the refusal when the next turn steps them."""
        engine = self._engine() if self._engine else None
        if engine is None or not self._refused:
            return
        if engine._turns > self._refused_turn:
            self._refused.clear()
        else:
            engine.call_soon(self._forget_refused)
