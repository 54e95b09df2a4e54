# SPDX-License-Identifier: Apache-2.0
"""The engine: one thread's DMA, its coroutines, its timers.

Invariants
 - Completions are delivered in one place, a turn of the loop, and never inside a submit.
 - An engine belongs to the thread and process that made it; only `call_threadsafe` and `stop` may
   be called elsewhere.
 - `close` cancels, waits for what the kernel has, and lets go of memory only then.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import threading
import warnings
import weakref
from collections.abc import Callable, Coroutine
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeVar

from iodma import _core
from iodma._core import Space, Task, Wait
from iodma.engine.choose import choose, fall_back
from iodma.engine.clock import Clock, SystemClock
from iodma.engine.foreign import Outer, Readers, SignalPipe
from iodma.engine.slow import SlowStepWatch
from iodma.engine.stats import Stats, TransferInfo
from iodma.engine.timers import Timer, Timers
from iodma.errors import (
    ArgumentError,
    ArgumentTypeError,
    BusyError,
    Cancelled,
    ClosedError,
    Error,
    WrongThreadError,
)
from iodma.ratelimit import RateLimit

if TYPE_CHECKING:
    from iodma.port import Port

__all__ = ["Engine", "Task", "Timer", "engines"]

log = logging.getLogger("iodma.engine")

T = TypeVar("T")

_WOKEN, _WATCHED, _DEADLINE, _STOP = 1, 2, 4, 8
#: Instead of a time, to `_run`: return when nothing is left to do but wait.
_WHEN_IDLE = -2
_AFTER_ABORT = 1_000_000_000
#: Bytes a segment below which one copy was cheaper than the vector, all that either costs included
#: (`iodma doctor --measure` does it again).
SMALL_TO_MEMORY = 192
SMALL_FROM_MEMORY = 512
#: Of a timer: 31 years, far from where 64 bits of nanoseconds end.
MOST_SECONDS = 10**9

#: Those that are open, for whoever prints them.
engines: weakref.WeakSet[Engine] = weakref.WeakSet()
_numbers = count()


class Tracer(Protocol):
    """Who takes the events of a trace; see `iodma.trace`."""

    def drain(self) -> None:
        """Take what there is."""

    def stop(self) -> None:
        """The engine closes."""


class Engine(_core.Engine):
    """Runs transfers and the coroutines that wait for them.

        with iodma.Engine() as engine:
            engine.run(main(engine))

    Args:
        kind: "uring", "threads", or "auto" for the first that works here (`IODMA_ENGINE`
            overrides).
        depth: submission slots of the ring.
        in_flight: most requests with the kernel; more wait.
        workers: threads of the threads engine.
        spin_us: longest spin before a sleep, microseconds; 0: never spin.
        bounce_bytes: size of the bounce arena, which is the budget for copies.
        small: bytes a segment below which a copy is cheaper than a vector, (from memory, to
            memory); None: as measured.
        strict: let an exception that nothing caught out of `run`, for tests.
        slow_step: seconds after which a step is reported with its stack; None: never.
        clock: the time that timers go by.

    Raises:
        UnsupportedError: io_uring was asked for and is not to be had.
        ArgumentError: a number out of range.
    """

    _make_port: ClassVar[Callable[[Engine, Space, str, int], Port]]

    def __init__(
        self,
        kind: str = "auto",
        *,
        depth: int = 256,
        in_flight: int = 4096,
        workers: int | None = None,
        spin_us: float = 50,
        bounce_bytes: int = 8 << 20,
        small: tuple[int, int] | None = None,
        strict: bool = False,
        slow_step: float | None = 0.1,
        name: str | None = None,
        clock: Clock | None = None,
    ) -> None:
        chosen = choose(kind)
        for what, value, low, high in (
            ("depth", depth, 1, 32768),
            ("in_flight", in_flight, 1, 65536),
            ("spin_us", spin_us, 0, 1e6),
            ("bounce_bytes", bounce_bytes, 0, 1 << 40),
        ):
            if not isinstance(value, int | float):
                raise ArgumentTypeError(f"{what} is {value!r}; a number would be right")
            if not low <= value <= high:
                raise ArgumentError(f"{what} is {value}; {low} to {high:.0f} would be right")
        if small is not None and not (isinstance(small, tuple) and len(small) == 2):
            raise ArgumentTypeError(f"small is {small!r}; (from memory, to memory) would be right")
        if clock is not None and not callable(getattr(clock, "now_ns", None)):
            raise ArgumentTypeError(f"clock is {clock!r}, which has no now_ns(): it is no Clock")
        if workers is None:
            workers = min(16, 4 * (os.cpu_count() or 1))
        if not 1 <= workers <= 256:
            raise ArgumentError(f"workers is {workers}; 1 to 256 would be right")
        sizes = (depth, in_flight, workers, bounce_bytes, int(spin_us * 1000))
        try:
            self._open(0 if chosen == "uring" else 1, *sizes)
        except OSError as error:
            if chosen != "uring":
                raise
            chosen = fall_back(kind, error)
            self._open(1, *sizes)
        self.name = f"engine{next(_numbers)}" if name is None else name
        self.strict = strict
        self.clock: Clock = SystemClock() if clock is None else clock
        self._system_clock = clock is None
        self._clock_stands = False  # it was told of the next timer, and did not go there
        self._timers = Timers()
        self._soon: collections.deque[tuple[Callable[..., object], tuple[Any, ...]]] = (
            collections.deque()
        )
        self._readers: Readers | None = None
        self._outer: Outer | None = None
        self._signals: SignalPipe | None = None
        self._stopping = False
        self._running = False
        self._each_turn: list[Callable[[], object]] = []
        self._main: Task[Any] | None = None
        self._pid = os.getpid()
        self._devices: list[Any] = []
        self._tracer: Tracer | None = None
        self._refusals = RateLimit(log)
        self._slow: SlowStepWatch | None = None
        self._slow_step = slow_step
        small_out, small_in = (SMALL_FROM_MEMORY, SMALL_TO_MEMORY) if small is None else small
        self._set("small_from_memory", small_out)
        self._set("small_to_memory", small_in)
        engines.add(self)

    # -- ports, tasks, devices ------------------------------------------------

    def port(self, space: Space, name: str = "port0", *, depth: int = 4096) -> Port:
        """A `Port` through which a device reaches ``space``.

        Args:
            space: the top of the chain: a stage, or a `Memory`.
            name: what statistics, faults and traces call it.
            depth: most transfers outstanding; a submit beyond raises `BusyError`.
        """
        return type(self)._make_port(self, space, name, depth)

    def start(self, coro: Coroutine[Any, Any, T], *, name: str | None = None) -> Task[T]:
        """Start a coroutine in the engine's own scope: it first runs in the next turn."""
        return self._spawn(coro, owner=None, name=name)

    def _spawn(
        self, coro: Coroutine[Any, Any, T], *, owner: Any, name: str | None = None
    ) -> Task[T]:
        return self._spawn_task(coro, owner, name, True)

    def attach(self, device: Any) -> None:
        """Bind a device to this engine: its scope opens and its `reset` hook runs."""
        attach = getattr(device, "_attach", None)
        if attach is None:
            raise ArgumentTypeError(f"{device!r} is not a Device")
        self._check()
        if device not in self._devices:
            attach(self)
            self._devices.append(device)

    def _device_failed(self, device: Any, error: BaseException) -> None:
        """A device failed; a strict engine lets that out of `run`."""
        if self.strict:
            raise error

    def _window_failed(self, target: object, error: BaseException) -> None:
        """The handler of a device window raised; its access ends in a bus error."""
        if not isinstance(error, Exception) or self.strict:
            raise error
        self._refusals.log(
            logging.ERROR, "%s: device window %r failed", self.name, target, exc_info=error
        )

    def _task_failed(self, task: Task[Any], error: BaseException) -> None:
        """A task of nobody's ended with an exception that nobody waits for."""
        if task is self._main or isinstance(error, Cancelled):
            return
        if isinstance(error, KeyboardInterrupt | SystemExit) or self.strict:
            raise error
        if isinstance(error, Exception):
            log.error("%s: task %s failed", self.name, task.name, exc_info=error)

    # -- timers, other threads, foreign descriptors ---------------------------

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """Call ``callback()`` in a turn not before ``seconds`` have passed."""
        if not isinstance(seconds, int | float) or not 0 <= seconds <= MOST_SECONDS:
            raise ArgumentError(f"seconds is {seconds!r}; it must be 0 to {MOST_SECONDS}")
        self._check()
        timer = Timer(self.clock.now_ns() + int(seconds * 1e9), callback)
        if self._timers.add(timer):
            self._return_soon()  # the loop has to look at the time again
        return timer

    def call_soon(self, callback: Callable[..., object], *args: Any) -> None:
        """Call ``callback(*args)`` in the next turn."""
        self._check()
        self._soon.append((callback, args))
        self._return_soon()

    def _check(self) -> None:
        if not self._owned:
            self._run(0)  # raises what is wrong

    def _return_soon(self) -> None:
        self._set("return", 1)
        if self._outer is not None:
            self._nudge()

    def call_threadsafe(self, callback: Callable[..., object], *args: Any) -> None:
        """`call_soon`, from any thread. Raises ClosedError once the engine is closed."""
        if self.closed:
            raise ClosedError(f"{self.name} is closed")
        self._soon.append((callback, args))
        self._wake()

    def sleep(self, seconds: float) -> Wait[None]:
        """Await it to go on after ``seconds``."""
        wait: Wait[None] = Wait(self)
        self.call_later(seconds, lambda: wait._resolve(None))
        return wait

    def add_reader(self, fd: int, callback: Callable[[], object]) -> None:
        """Call ``callback()`` in a turn whenever ``fd`` is readable (or its other end is gone)."""
        self._check()
        if self._readers is None:
            self._readers = Readers()
            self._watch(self._readers.fileno())
            if self._outer is not None:
                self._outer.watch(self._readers.fileno())
        self._readers.add(fd, callback)

    def remove_reader(self, fd: int) -> None:
        """Watch ``fd`` no more; nothing happens if it is not watched."""
        if self.closed:
            return
        self._check()
        if self._readers is not None:
            self._readers.remove(fd)

    def _do_python_work(self, why: int) -> None:
        if self._tracer is not None:
            self._tracer.drain()
        if why & _WATCHED and self._readers is not None:
            self._readers.call_ready(self._call)
        for _ in range(len(self._soon)):
            function, args = self._soon.popleft()
            self._call(function, *args)
        if self._timers:
            for callback in self._timers.due(self.clock.now_ns()):
                self._call(callback)
        for callback in tuple(self._each_turn):
            self._call(callback)

    def _watch_turns(self, callback: Callable[[], object]) -> None:
        """Calls ``callback`` after each turn, until `_forget_turns`. The engine may sleep in it."""
        self._each_turn.append(callback)
        self._set("each_turn", 1)

    def _forget_turns(self, callback: Callable[[], object]) -> None:
        self._each_turn.remove(callback)
        if not self._each_turn and not self.closed:
            self._set("each_turn", 0)

    def _call(self, callback: Callable[..., object], *args: Any) -> None:
        try:
            callback(*args)
        except Exception:
            if self.strict:
                raise
            log.exception("%s: %r failed", self.name, callback)

    # -- running --------------------------------------------------------------

    def run(self, main: Any = None) -> Any:
        """Run until ``main`` is over, or until `stop`; a `stop` since the last run counts.

        Args:
            main: a coroutine, whose result is returned (None if `stop` cancelled it); a device,
                which is attached; or None.

        Raises:
            Error: it runs already: a coroutine, handler or callback cannot run it again.
            ArgumentTypeError: ``main`` is something else.
        """
        coroutine = main if isinstance(main, Coroutine) else None
        try:
            self._begin()
        except BaseException:
            if coroutine is not None:
                coroutine.close()
            raise
        try:
            with self._hear_signals():
                if coroutine is not None:
                    return self._run_main(coroutine)
                if main is not None:
                    self.attach(main)
                self._loop(lambda: self._stopping)
                return None
        finally:
            self._running = self._stopping = False

    def _hear_signals(self) -> contextlib.AbstractContextManager[None]:
        if not SignalPipe.wanted():
            return contextlib.nullcontext()
        if self._signals is None:
            self._signals = SignalPipe()
            self.add_reader(self._signals.fileno(), self._signals.drain)
        return self._signals

    def _begin(self) -> None:
        if self._running:
            raise Error(f"{self.name} runs already: what runs in it can neither run nor close it")
        self._check()
        if self._slow is None and self._slow_step is not None:
            self._slow = SlowStepWatch(self, self._slow_step)
        self._running = True

    def _run_main(self, main: Coroutine[Any, Any, Any]) -> Any:
        task = self._main = self.start(main, name="main")
        task._when_done(lambda _: self._set("stop", 1))
        try:
            self._loop(lambda: self._stopping or task.done)
            if not task.done:
                task.cancel()
                self._loop(lambda: task.done)
                if isinstance(task.exception, Cancelled):
                    return None
        except BaseException:
            if not task.done:
                task.cancel()  # it ends in the next run, or as the engine is closed
            raise
        finally:
            self._main = None
        return task.result

    def _loop(self, over: Callable[[], bool]) -> None:
        try:
            while not over():
                self._set("stop", 0)
                deadline = self._deadline()
                why = self._run(deadline)
                self._clock_stands = False
                if deadline == _WHEN_IDLE and why & _DEADLINE:
                    when = self._timers.next_ns()
                    self.clock.idle_until(when)
                    self._clock_stands = self.clock.now_ns() < when
                self._do_python_work(why)
        finally:
            self._clock_stands = False
            self._set("stop", 0)

    def _deadline(self) -> int:
        when = self._timers.next_ns()
        if self._system_clock:
            return when
        if self._soon or (when >= 0 and when <= self.clock.now_ns()):
            return 0
        return _WHEN_IDLE if when >= 0 and not self._clock_stands else -1

    def stop(self) -> None:
        """End `run`; from any thread."""
        self._stopping = True
        self._set("stop", 1)
        self._wake()

    def pump(self, limit: int = 64) -> bool:
        """For other loops: submit, deliver, resume at most ``limit`` coroutines; never sleep.

        Returns whether work remains; `fileno` is readable then.
        """
        if self._running:
            raise Error(f"{self.name} runs already: what runs in it cannot pump it")
        self._check()
        self._running = True
        more = True
        try:
            self._do_python_work(self._pump(limit))
            more = self._work_remains()
        finally:  # also when something is let out: the rest is not to be forgotten
            self._running = False
            if more:
                self._nudge()
            self._arm_timer()
        return more

    def _work_remains(self) -> bool:
        if self._has_work or self._soon:
            return True
        if self._system_clock:
            return False
        if self._idle and self._deadline() == _WHEN_IDLE:
            self.clock.idle_until(self._timers.next_ns())
        return self._deadline() == 0

    def fileno(self) -> int:
        """One descriptor that is readable when `pump` has something to do.

        That is: a completion came, a timer is due, a foreign descriptor is readable, or something
        was started, submitted or set since the last pump.
        """
        if self._outer is None:
            self._outer = Outer(self._fileno())
            if self._readers is not None:
                self._outer.watch(self._readers.fileno())
            self._nudge()
        return self._outer.fileno()

    def _arm_timer(self) -> None:
        if self._outer is not None and self._system_clock:
            self._outer.arm(self._timers.next_ns())

    # -- looking at it --------------------------------------------------------

    def stats(self) -> Stats:
        """What was counted so far."""
        return Stats.of(self.kind, self._stats())

    def transfers(self) -> list[TransferInfo]:
        """The transfers that were submitted and not delivered."""
        return [TransferInfo.of(row) for row in self._rows()]

    def register(self, region: _core.Region | None = None) -> bool:
        """Pin a region's memory and register it with the kernel, which saves work a request.

        Only for RAM that this process made and nobody discards pages of: a balloon would orphan
        the pinned pages.

        Args:
            region: None: the bounce arena.

        Returns:
            False when it was registered already.

        Raises:
            OSError: the kernel refuses (see RLIMIT_MEMLOCK).
        """
        return self._register(region)

    # -- the end --------------------------------------------------------------

    def close(self, deadline: float = 5.0) -> None:
        """Cancel everything, wait for what the kernel has, and let go.

        Raises:
            BusyError: the kernel still holds requests after ``deadline`` seconds; memory stays
                mapped.
        """
        if self.closed:
            return
        if self._running or self._in_turn:  # _in_turn: a window's handler, outside of a run too
            raise Error(f"{self.name} runs: what runs in it can stop it, and not close it")
        forked = self._pid != os.getpid()  # all of it is the parent's; what is a copy goes
        if not self._owned and not forked:
            raise WrongThreadError(f"{self.name} belongs to the thread that made it")
        if self._slow is not None and not forked:
            self._slow.close()
            self._slow = None
        failed = None if forked else self._drain(deadline)
        if self._tracer is not None and not forked:
            try:
                self._tracer.stop()
            except OSError as error:  # the file's disk is full
                failed = failed or error
        if self._close():
            self._let_go()
        else:
            held = self._with_backend
            log.error("%s: closed with %d requests still with the kernel", self.name, held)
            raise BusyError(
                f"{self.name}: the kernel still holds {held} requests after {deadline} s"
            ) from failed
        if failed is not None:
            raise failed

    def _drain(self, deadline: float) -> BaseException | None:
        """Until nothing is left, or until the deadline; gives the first of what is raised."""
        end = _core.clock_ns() + int(deadline * 1e9)
        failed: BaseException | None = None
        if self._readers is not None:
            self._readers.clear()
        self._running = True
        self._cancel_all()
        self._settle()
        turns, aborted = 0, False
        while self._with_backend or self._in_use or self._tasks:
            if _core.clock_ns() >= end:
                if aborted or not self._abort_drivers():
                    break
                aborted = True  # unlike the kernel, they can be made to let go
                end += _AFTER_ABORT
            turns += 1  # a few without a sleep: tasks that end at once are most of it
            self._set("stop", 1 if not self._with_backend and turns < 32 else 0)
            try:
                self._do_python_work(self._run(min(end, _core.clock_ns() + 10_000_000)))
            except BaseException as error:
                failed = failed or error
            self._cancel_all()
        self._running = False
        return failed

    def _let_go(self) -> None:
        for each in (self._readers, self._outer, self._signals):
            if each is not None:
                each.close()
        self._readers = self._outer = self._signals = None
        self._timers.clear()
        self._soon.clear()
        self._devices.clear()  # each knows its port, and that the engine
        engines.discard(self)

    def __enter__(self) -> Self:
        if self.closed:
            raise ClosedError(f"{self.name} is closed")
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if self.closed or self._pid != os.getpid():
            return
        if threading.main_thread().is_alive():
            warnings.warn(f"{self!r} was not closed", ResourceWarning, stacklevel=2, source=self)

    def __repr__(self) -> str:
        name = getattr(self, "name", "engine")
        return f"<Engine {name}: {self.kind}>"
