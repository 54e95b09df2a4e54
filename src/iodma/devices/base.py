# SPDX-License-Identifier: Apache-2.0
"""What every device model is: registers, a scope for its work, an interrupt, a reset.

    class CopyEngine(iodma.Device):
        go = iodma.Doorbell(0x10, run="copy")
        status = iodma.Register(0x14, access="ro")

        async def copy(self, ring):
            pages = await self.port.load_segments(ring, 16)
            done = await self.port.from_memory(pages, to=self.disk)
            self.status = done.status
            self.interrupt.pulse()

    engine.run(CopyEngine(engine.port(memory), disk=disk))

Who may call what, always in the engine's thread:

- A **register handler** (plain, runs inside a bus access): the attributes, `start`, `Bell.ring`,
  `interrupt`, `request_reset`; bus accesses to other devices. It cannot await, and an access to
  its own device is refused and counted.
- A **coroutine in the scope**: all that; its port; awaits; bus accesses to its own device too. Once
  `Cancelled` was thrown into it, only to unwind: everything else is refused with `StaleError`.
- The **hooks** `reset` and `failure` (plain): the attributes and `interrupt`; `reset` also `start`.
- A **transport**: `bus_read`, `bus_write`, `request_reset`, `state`, `interrupt.connect`.

The states of a device, and what a bus access finds in each, are in `state.py`.

Invariants
 - Only while it runs is a device `_open`, and then none of its tasks is stale.
 - A reset is acknowledged when the DMA of the generation before has drained and the last of its
   tasks has ended, not earlier.
 - One handler or hook of a device runs at a time; none is ever re-entered.
 - An exception that nothing caught fails this device alone, and is logged once with its traceback.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine, Generator
from itertools import count
from threading import get_ident
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeGuard, TypeVar, cast

from iodma.devices.doorbell import Bell
from iodma.devices.host import EngineLike, PortLike, TaskLike
from iodma.devices.interrupt import Interrupt
from iodma.devices.lasting import Lasting
from iodma.devices.registers import ones
from iodma.devices.regmap import RegisterMap
from iodma.devices.scope import Scope
from iodma.devices.state import Counts, DeviceState
from iodma.errors import (
    ArgumentError,
    BusyError,
    Cancelled,
    Error,
    StaleError,
    WrongThreadError,
)
from iodma.log import place
from iodma.ratelimit import RateLimit

if TYPE_CHECKING:
    from iodma.engine import Engine, Task
    from iodma.port import Port

__all__ = ["Device"]

T = TypeVar("T")

logger = logging.getLogger("iodma.devices")

#: Class name -> the numbers for devices that were given no name.
_numbers: dict[str, count[int]] = {}


class Device:
    """The base class of device models.

    Args:
        port: the port its DMA goes through; None for a device that does none.
        name: for messages; default: the class's name in lower case and a number.
        endpoints: kept as attributes: ``disk=...`` becomes ``self.disk``. Ports among them are
            drained by a reset, as `port` is.

    Attributes:
        registers: the class's `RegisterMap`.
        interrupt: the device's `Interrupt`.
        counts: what was refused, as `Counts`.

    Raises:
        ArgumentError: an endpoint's name is that of a register, a method or a `Device` attribute.
    """

    registers: ClassVar[RegisterMap]

    name: str
    interrupt: Interrupt
    counts: Counts

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.registers = RegisterMap(cls, _RESERVED)

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        # Not in __init__, so that a subclass may set registers before it calls super().__init__().
        self = super().__new__(cls)
        self._set_up()
        return self

    def _set_up(self) -> None:
        kind, registers = type(self).__name__, self.registers
        self.name = f"{kind.lower()}{next(_numbers.setdefault(kind, count()))}"
        self.counts = Counts()
        self._port: Any = None
        self._ports: list[PortLike] = []
        self._scope = Scope(self)
        self._values = dict(registers.reset_values)
        self._bells = {
            name: Bell(self, doorbell, run, full)
            for name, (doorbell, run, full) in registers.doorbells.items()
        }
        self._lines: list[Interrupt] = []
        self._line_watchers: list[Callable[[Interrupt], object]] = []
        self._open = True
        self.interrupt = self.interrupt_line("interrupt")
        self._table = registers.table
        self._state = DeviceState.RUNNING
        self._busy = False  # a handler or hook is running
        self._in_hook = False
        self._reset: _Reset | None = None  # the one under way
        self._thread = get_ident()
        self._refusals = RateLimit(logger)
        self._errors = RateLimit(logger)

    def __init__(
        self, port: PortLike | None = None, *, name: str | None = None, **endpoints: Any
    ) -> None:
        if name is not None:
            self.name = name
            for line in self._lines:
                line.name = f"{name}.{line.name.rpartition('.')[2]}"
        for key, endpoint in endpoints.items():
            if key in _RESERVED or key in self.registers or callable(getattr(self, key, None)):
                raise ArgumentError(
                    f"{self.name}: an endpoint cannot be called {key}: the device has that "
                    "attribute already"
                )
            setattr(self, key, endpoint)
        self._port = port
        self._ports = [each for each in (port, *endpoints.values()) if isinstance(each, PortLike)]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}: {self._state.value}>"

    # --- for the device's own code ----------------------------------------------------------------

    @Lasting
    def port(self) -> Port:
        """The port. Raises `Error` if the device was made without one."""
        port: Port | None = self._port
        if port is None:
            raise Error(f"{self.name} has no port: give it one, as in Device(engine.port(memory))")
        return port

    @Lasting
    def engine(self) -> Engine:
        """The engine. Raises `Error` if the device is not attached to one."""
        engine: Any = self._scope.engine
        if engine is None:
            raise Error(f"{self.name} has no engine yet: engine.attach(device) comes first")
        return cast("Engine", engine)

    @property
    def state(self) -> DeviceState:
        """Running, resetting or failed."""
        return self._state

    @property
    def generation(self) -> int:
        """Counts resets and failures: what was begun in one generation is refused in the next."""
        return self._scope.generation

    @property
    def tasks(self) -> int:
        """Tasks of the device that have not ended."""
        return len(self._scope)

    def start(self, coro: Coroutine[Any, Any, T], *, name: str | None = None) -> Task[T]:
        """Runs a coroutine in the device's scope: a reset cancels it.

        It never runs inside this call. What it raises and does not catch fails the device.

        Returns:
            The engine's task: awaitable, with ``cancel()`` and ``done``.

        Raises:
            ArgumentTypeError: `coro` is not a coroutine object.
            Error: the device is not attached to an engine.
            StaleError: the device is in reset or has failed.
        """
        if not self._open:
            title = name or getattr(coro, "__name__", "task")
            if hasattr(coro, "close"):
                coro.close()
            self._refuse_closed(f"start({title})")
        engine = self._scope.engine
        if engine is not None and name is None:  # a coroutine a request: as short as it can be
            task = engine._spawn_task(coro, self, None, False)
            return task  # type: ignore[no-any-return]
        task = self._scope.start(coro, name and f"{self.name}.{name}")
        return cast("Task[T]", task)

    def interrupt_line(self, name: str) -> Interrupt:
        """Makes one more line, or MSI-X vector. A reset lowers it, as it does `interrupt`."""
        line = Interrupt(f"{self.name}.{name}")
        line._guard = None if self._open else self._guard_line
        self._lines.append(line)
        for told in self._line_watchers:
            told(line)
        return line

    def reset(self) -> None:
        """Hook: called at power-on (`engine.attach`) and in every reset, when all has drained.

        Registers have their reset values, the interrupts are low, `start` works. It is the place
        for state that is not in registers, and for work that goes on all the time.
        """

    def failure(self, error: Exception) -> None:
        """Hook: the device has just failed. For families that announce it (virtio: NEEDS_RESET)."""

    # --- for transports ---------------------------------------------------------------------------

    def bus_read(self, offset: int, width: int) -> int:
        """A bus read of `width` bytes, `offset` bytes into the device's window.

        A read that is refused gives all-ones; nothing that a guest does raises (but see `strict`
        of the engine).

        Raises:
            WrongThreadError: not in the thread of the device's engine.
        """
        if get_ident() != self._thread:
            self._wrong_thread()
        entry = self._table.get((offset, width))
        if entry is None or self._busy:
            return self._refused_read(offset, width)
        self._busy = True
        try:
            return entry[0](self)
        except Exception as error:
            self._fail(error)
            return ones(width)
        finally:
            self._busy = False

    def bus_write(self, offset: int, width: int, value: int) -> None:
        """A bus write of `value`, which fits in `width` bytes. One that is refused is dropped.

        Raises:
            WrongThreadError: not in the thread of the device's engine.
        """
        if get_ident() != self._thread:
            self._wrong_thread()
        entry = self._table.get((offset, width))
        if entry is None or self._busy:
            self._refused_write(offset, width, value)
            return
        self._busy = True
        try:
            entry[1](self, value)
        except Exception as error:
            self._fail(error)
        finally:
            self._busy = False

    def request_reset(self) -> Awaitable[None]:
        """Begins a reset, or joins the one under way.

        Within the call: the generation goes up, the bus is refused, rings that wait are forgotten,
        ports cancel what is in flight, every task is cancelled. Then, as the engine runs: the ports
        drain, the tasks end, registers take their reset values, the interrupts are lowered, and
        `reset` is called. A device without an engine does it all within the call.

        A handler calls it and does not wait; nor does a coroutine of the device, which it cancels.

        Returns:
            The acknowledgement: await it, any number of times. It raises what made the device fail
            in its reset, if it did.

        Raises:
            ClosedError: the engine was closed.
        """
        if self._reset is not None:
            return self._reset
        drains = self._stop(DeviceState.RESETTING)
        self._reset = reset = _Reset(self)
        engine = self._scope.engine
        if engine is None:
            try:
                self._restart()
            except Exception as error:
                self._fail(error)
            finally:
                self._reset = None
        else:
            reset.task = engine._spawn(reset.run(drains), owner=reset, name=f"{self.name}.reset")
        return reset

    # --- for the engine ---------------------------------------------------------------------------

    def _attach(self, engine: EngineLike) -> None:
        """Binds the device to the engine, in the engine's thread, and powers it on."""
        if self._scope.engine is engine:
            return
        if self._scope.engine is not None:
            raise BusyError(f"{self.name} is attached to another engine already")
        for port in self._ports:
            if getattr(port, "engine", engine) is not engine:
                raise ArgumentError(f"{self.name}: its port {port!r} belongs to another engine")
        self._scope.engine = engine
        self._thread = get_ident()
        try:
            self._run_hook(self.reset)
        except Exception as error:
            self._fail(error)

    def _plug(self) -> None:
        """For transports: a device that has a port and no engine is attached to the port's."""
        engine = getattr(self._port, "engine", None)
        if self._scope.engine is None and engine is not None:
            engine.attach(self)

    def _run_handler(self, handler: Callable[..., T], *arguments: Any) -> T | None:
        """Runs what is not in the register map as a register handler.

        None: the device does not run, or is answering already, or has failed in it.
        """
        if not self._open or self._busy:
            return None
        self._busy = True
        try:
            return handler(*arguments)
        except Exception as error:
            self._fail(error)
            return None
        finally:
            self._busy = False

    def _watch_lines(self, told: Callable[[Interrupt], object]) -> Callable[[], None]:
        """For what delivers interrupts: calls `told` with each line, and with those made later.

        Returns:
            A function that ends it; called once.
        """
        self._line_watchers.append(told)
        for line in self._lines:
            told(line)
        return lambda: self._line_watchers.remove(told)

    def _task_done(self, task: TaskLike) -> None:
        """A task of the scope has ended. Raises its exception if the engine is strict."""
        stale, ended = self._scope.forget(task)
        error = task.exception
        if stale:
            # An old coroutine ends in Cancelled or, if it tried to go on, in StaleError.
            if isinstance(error, Exception) and not isinstance(error, StaleError):
                self._report(error, "a coroutine from before the reset")
        elif isinstance(error, Exception):
            self._fail(error)
        elif ended is not None:
            ended()
        if is_for_the_program(error):
            raise error

    # --- the states -------------------------------------------------------------------------------

    def _stop(self, state: DeviceState) -> list[Awaitable[object]]:
        """Leaves `running`: everything of this generation is refused from here on."""
        self._state = state
        self._set_open(False)
        self._table = self.registers.always
        for bell in self._bells.values():
            bell._clear()
        drains = [port.reset() for port in self._ports]
        self._scope.next_generation()
        return drains

    def _restart(self) -> None:
        """All has drained: back to the state of power-on."""
        self._values.update(self.registers.reset_values)
        for line in self._lines:
            line._change(False)
        self._state = DeviceState.RUNNING
        self._set_open(True)
        self._table = self.registers.table
        self._run_hook(self.reset)
        self.counts.resets += 1

    def _fail(self, error: Exception) -> None:
        """Nothing caught `error`: the device fails. Raises it if the engine is strict."""
        if self._state is DeviceState.FAILED:
            logger.debug("%s: it had failed already: %r", self.name, error)
            return
        self.counts.failures += 1
        try:
            self._stop(DeviceState.FAILED)
            for line in self._lines:
                line._change(False)
            self._run_hook(lambda: self.failure(error))
        except Exception:
            logger.exception("%s: while it was failing", self.name)
        self._report(error, "it answers no more until it is reset")

    def _report(self, error: Exception, what: str) -> None:
        told = f"{error!r}{place(error)}"
        self._errors.log(logging.ERROR, "%s: %s: %s", self.name, told, what, exc_info=error)
        if self._scope.engine is not None:
            self._scope.engine._device_failed(self, error)

    def _run_hook(self, hook: Callable[[], None]) -> None:
        before = self._busy, self._in_hook
        self._busy = self._in_hook = True
        try:
            hook()
        finally:
            self._busy, self._in_hook = before

    # --- refusals ---------------------------------------------------------------------------------

    def _refuse_stale(self, what: str) -> None:
        """Raises for a coroutine from before the last reset; called while not `_open`."""
        if self._scope.is_stale() and not self._in_hook:
            raise StaleError(
                f"{self.name}: {what} from a coroutine that its reset or failure has cancelled"
            )

    def _refuse_closed(self, what: str) -> None:
        """Raises, as the device does not run."""
        self._refuse_stale(what)
        raise StaleError(f"{self.name}: {what} while the device is {self._state.value}")

    def _set_open(self, is_open: bool) -> None:
        self._open = is_open
        for line in self._lines:  # they are driven more often than this changes
            line._guard = None if is_open else self._guard_line

    def _guard_line(self) -> None:
        self._refuse_stale("an interrupt")

    def _refused_read(self, offset: int, width: int) -> int:
        if self._busy:
            self.counts.reentered += 1
        elif self._open:
            self.counts.bad_reads += 1
        else:
            self.counts.refused_reads += 1
        self._note("%s: read of %d bytes at %#x: all-ones", self.name, width, offset)
        return ones(width)

    def _refused_write(self, offset: int, width: int, value: int) -> None:
        if self._busy:
            self.counts.reentered += 1
        elif self._open:
            self.counts.bad_writes += 1
        else:
            self.counts.refused_writes += 1
        self._note("%s: write of %d bytes at %#x, %#x: dropped", self.name, width, offset, value)

    def _note(self, text: str, *args: object) -> None:
        """Says what a guest did in vain, to whoever debugs the device."""
        self._refusals.log(logging.DEBUG, text, *args)

    def _wrong_thread(self) -> None:
        raise WrongThreadError(
            f"{self.name} belongs to thread {self._thread}, of its engine, and was accessed from "
            f"thread {get_ident()}: engine.call_threadsafe crosses"
        )


class _Reset:
    """One reset of a device: its run, and its acknowledgement for any number of waiters."""

    __slots__ = ("_device", "task")

    def __init__(self, device: Device) -> None:
        self._device = device
        self.task: Any = None

    async def run(self, drains: list[Awaitable[object]]) -> None:
        for drain in drains:
            await drain
        await self._device._scope.emptied()
        self._device._restart()

    def __await__(self) -> Generator[Any, Any, None]:
        if self.task is not None:
            yield from self.task.__await__()

    def _task_done(self, task: TaskLike) -> None:
        """As owner of the task: nobody needs to wait for it, so its failure is told here."""
        self._device._reset = None
        if isinstance(task.exception, Exception):
            self._device._fail(task.exception)
        if is_for_the_program(task.exception):
            raise task.exception


def is_for_the_program(error: BaseException | None) -> TypeGuard[BaseException]:
    """Whether it is nothing of the device's: Ctrl-C, or an exit, that came while it ran."""
    return error is not None and not isinstance(error, Exception | Cancelled)


Device.registers = RegisterMap(Device)

#: Names that neither a register nor an endpoint may take.
_RESERVED = frozenset(
    {name for name in dir(Device) if not name.startswith("__")}
    | {"counts", "interrupt", "name", "registers"}
    | set(vars(Device()))
)
