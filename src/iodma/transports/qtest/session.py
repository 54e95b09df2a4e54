# SPDX-License-Identifier: Apache-2.0
"""One client, from its first line to its end.

Lines are done one after the other. Before one is done the machine has come to rest, and again
before it is answered: what a command has begun is over then, as in QEMU, which does it at once.
The machine itself outlives its clients, and is not reset between them.

Invariants
 - Each line is answered once, in order. Lines about interrupts come between answers: what a command
   causes, before its own.
 - Nothing that a client says raises out of here, or takes longer than settling may.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

from iodma._core import Task, clock_ns
from iodma.engine import Engine, Event
from iodma.errors import Error
from iodma.log import GuestLog
from iodma.transports.ending import in_words
from iodma.transports.qtest.commands import OK, Commands, Words, failed
from iodma.transports.qtest.interception import Interception
from iodma.transports.qtest.lines import Lines
from iodma.transports.qtest.machine import Machine
from iodma.transports.qtest.settle import Settling
from iodma.transports.qtest.words import MOST_LINE, shown, signed
from iodma.transports.refusal import Refusal

__all__ = ["Session", "log"]

log = GuestLog("iodma.qtest")

#: Lines that are done before others have their turn.
_AT_ONCE = 64
#: Bytes of an answer that does not wait for others to go with it.
_LONG = 1 << 16


class Session:
    """A client that is connected.

    Args:
        sock: the connection; the session's from now on.
        deadline_s: seconds that a machine may take to come to rest.
        linger_s: seconds that the engine may wait for a client that asks again at once.
        ended: called when nothing is left of it.

    Attributes:
        over: set when nothing is left of it.
    """

    def __init__(
        self,
        engine: Engine,
        machine: Machine,
        sock: socket.socket,
        deadline_s: float,
        linger_s: float,
        ended: Callable[[], None],
    ) -> None:
        self.over = Event(engine)
        self._engine = engine
        self._machine = machine
        self._busy = machine.busy
        self._on_end = ended
        self._deadline_ns = int(deadline_s * 1e9)
        self._interception = Interception(self._tell)
        self._commands = Commands(machine, self._interception)
        self._settling = Settling(engine, machine.busy, deadline_s, self._flush)
        self._slow: dict[bytes, Callable[[Words], None]] = {}
        if machine.clock is not None:
            self._slow |= {b"clock_step": self._clock_step, b"clock_set": self._clock_set}
        if machine.reset is not None:
            self._slow[b"iodma_reset"] = self._reset
        self._out: list[bytes] = []
        self._in_turn = False
        self._waits = False  # a line is under way, or the machine
        self._at_once = False  # the next line does not wait: it has
        self._ended = False
        self._held, self._command = b"", ""  # an answer that waits for the machine, and to what
        self._task: Task[None] | None = None
        self._channel = Lines(engine, sock, self._work, self.end, linger_s=linger_s)

    # --- lines ------------------------------------------------------------------------------------

    def _work(self) -> None:
        """Does the lines that are there, and sends their answers."""
        if self._in_turn:
            return
        self._in_turn = True
        try:
            self._do_lines()
            if not self._settling.waits:  # it mostly rests in a moment: one packet for all
                self._flush()
            self._channel.working = self._waits
            self._channel.more()
        except BaseException:
            self.end("an error of this program")
            raise
        finally:
            self._in_turn = False

    def _do_lines(self) -> None:
        """Does lines, until one makes the machine busy, or others have to have their turn."""
        channel, known = self._channel, self._commands.known
        left, rests = _AT_ONCE, False
        while channel.waiting and not self._waits and not channel.blocked:
            if left <= 0:
                self._engine.call_soon(self._work)
                return
            if not rests and not self._at_once and self._busy():
                self._wait(self._go_on)
                return
            self._at_once = False
            at, done, answer = known.run(channel.data, channel.at, left, self._out)
            if self._ended:
                return
            rests = True
            left -= done
            channel.at = at
            if answer is not None:
                self._hold(answer, "a register access")
            elif left and channel.waiting:
                left -= 1
                rests = self._do(channel.take())

    def _do(self, line: bytes | None) -> bool:
        """Does a line. Whether that is over, and the machine rests."""
        if line is None:
            self._out.append(b"FAIL a line of more than %d bytes\n" % MOST_LINE)
            return False
        words = line.split(b" ")
        slow = self._slow.get(words[0])
        if slow is not None:
            self._waits = True
            try:
                slow(words)
            except Refusal as why:
                self._answer(failed(why))
            return False
        answer = self._commands.do(words, line)
        if self._busy():
            self._hold(answer, shown(words[0]))
            return False
        self._put(answer)
        return True

    def _hold(self, answer: bytes, command: str) -> None:
        """The answer to what has made the machine busy, for when it has come to rest."""
        self._held, self._command = answer, command
        self._wait(self._settled)

    def _wait(self, done: Callable[[bool], None]) -> None:
        self._waits = True
        self._settling.wait(done)

    def _go_on(self, rests: bool) -> None:
        """The machine rests, and the next line can be done."""
        self._waits = False
        if not rests:
            self._late("what came before")
            self._at_once = True
        self._work()

    def _settled(self, rests: bool) -> None:
        if not rests:
            self._late(self._command)
        self._answer(self._held)
        self._channel.linger()

    def _late(self, command: str) -> None:
        log.warning(
            "%s: %s: the machine does not come to rest in %g s",
            self._machine.name,
            command,
            self._deadline_ns / 1e9,
        )

    def _answer(self, answer: bytes) -> None:
        """The answer to the line under way, and on to the next."""
        self._waits = False
        self._put(answer)
        if not self._in_turn:
            self._work()

    def _put(self, answer: bytes) -> None:
        """An answer. After a long one no line is done before the client has read it."""
        self._out.append(answer)
        if len(answer) > _LONG:
            self._flush()

    def _tell(self, line: bytes) -> None:
        """An interrupt: before the answer of the command under way, if there is one."""
        self._out.append(line)
        if not self._in_turn and not self._waits:
            self._flush()

    def _flush(self) -> None:
        if self._out:
            data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
            self._out.clear()
            self._channel.send(data)

    # --- commands that take time ------------------------------------------------------------------

    def _clock_step(self, words: Words) -> None:
        clock = self._machine.clock
        assert clock is not None
        now = clock.now_ns()
        if len(words) > 1:
            to = now + signed(words, 1)
        else:
            to = self._engine._timers.next_ns()
            if to < 0:
                raise Refusal(
                    "cannot advance clock to the next deadline because there is no pending deadline"
                )
        if to >= 1 << 63:
            raise Refusal("could not advance time")

        def there(late: bool) -> None:
            at = clock.now_ns()
            moved = at > now
            self._answer(b"OK %d\n" % at if moved else b"FAIL could not advance time\n")

        self._go_to(to, there, clock_ns() + self._deadline_ns)

    def _clock_set(self, words: Words) -> None:
        clock = self._machine.clock
        assert clock is not None
        to = signed(words, 1)

        def there(late: bool) -> None:
            at = clock.now_ns()
            self._answer(b"%b %d\n" % (b"OK" if at == to else b"FAIL", at))

        self._go_to(to, there, clock_ns() + self._deadline_ns)

    def _go_to(self, to: int, there: Callable[[bool], None], end_ns: int) -> None:
        """Moves the clock, from one timer to the next; each is called at its own time."""
        clock = self._machine.clock
        assert clock is not None

        def rests(rests: bool) -> None:
            if not rests or clock_ns() >= end_ns:
                self._late("the clock")
                there(True)
            else:
                self._go_to(to, there, end_ns)

        when = self._engine._timers.next_ns()
        if 0 <= when <= to:
            clock.go_to(when)
            self._settling.wait_for_timers(rests)
        else:
            clock.go_to(to)
            there(False)

    def _reset(self, words: Words) -> None:
        reset = self._machine.reset
        assert reset is not None
        self._task = self._engine.start(self._reset_done(reset), name="qtest.reset")

    async def _reset_done(self, reset: Callable[[], Awaitable[object]]) -> None:
        answer = OK
        try:
            await reset()
        except Error as why:
            answer = failed(why)
            log.error("%s: reset: %s", self._machine.name, in_words(why))
            why.__traceback__ = why.__context__ = None  # they have this session
        if not self._ended:
            self._task = None
            self._answer(answer)

    # --- the end ----------------------------------------------------------------------------------

    def end(self, why: str) -> None:
        """The session is over; what the machine does goes on."""
        if self._ended:
            return
        self._ended = True
        log.info("%s: the session ends: %s", self._machine.name, why)
        self._settling.close()
        self._commands.known.forget()
        self._interception.end()
        self._channel.close()
        self._out.clear()
        if self._task is None:
            self._gone()
        else:
            self._task._when_done(lambda _: self._gone())
            self._task.cancel()

    def _gone(self) -> None:
        self.over.set()
        self._on_end()
