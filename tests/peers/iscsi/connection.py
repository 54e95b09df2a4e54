"""One iSCSI connection: PDUs in, commands to a SCSI target, PDUs out.

All data moves by the engine: from the socket into this connection's memory and from there, by the
request's own transfer, to the disk; and back.

Invariants:

- A length, offset or number that a peer sends is checked where its PDU is taken, and what does not
  fit ends the connection (`Broken`) or is ignored as RFC 7143 says; nothing grows with it.
- There are `WINDOW` slots; a command has one from its PDU to its response.
- Leaving `serve` cancels what is under way and waits until nothing of it moves.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from iodma import Engine, Event, Memory, Port, Ram, Socket
from iodma.scsi import (
    DataDirection,
    Request,
    ScsiStatus,
    Sense,
    SenseKey,
    Target,
    TaskAttribute,
)
from tests.peers.iscsi.login import (
    MAX_BURST,
    MAX_DATA,
    MOST_PDUS,
    MOST_TEXT,
    LoginRefused,
    answer,
    make_text,
    number,
    parse_text,
)
from tests.peers.iscsi.pdu import BHS, NO_TAG, Opcode, Pdu, header

NAME = "iqn.2026-01.example.iodma:disk"
WINDOW = 16
#: Commands that are sent outside the window, as immediate, besides.
EXTRA = 4
SLOT = MAX_BURST
HEADERS = 0
SLOTS = 1 << 16
MEMORY = SLOTS + (WINDOW + EXTRA) * SLOT
_ATTRIBUTES = {
    2: TaskAttribute.ORDERED,
    3: TaskAttribute.HEAD_OF_QUEUE,
}


#: What a command ends with whose Data-Out was not in order (RFC 7143 section 7.8).
DATA_PHASE_ERROR = Sense(SenseKey.ABORTED_COMMAND, 0x4B, 0x00)


class Broken(Exception):
    """The connection cannot go on."""


class Command:
    """A SCSI command PDU under way."""

    def __init__(self, engine: Engine, pdu: Pdu, slot: int) -> None:
        self.pdu = pdu
        self.slot = slot
        self.expected = pdu.word(20)  # Expected Data Transfer Length
        self.request: Request | None = None
        self.news = Event(engine)
        self.immediate = 0
        # What the R2T under way asks for: (tag, offset, end), and what came of it.
        self.asked: tuple[int, int, int] | None = None
        self.came = 0
        self.data_number = 0
        self.wrong = False


class Connection:
    """A connection that was accepted. `initiator` is who logged in, or None."""

    def __init__(self, engine: Engine, target: Target, sock: socket.socket, port: int) -> None:
        self.engine = engine
        self.target = target
        self.socket = Socket(sock)
        self._sock = sock.dup()
        self.ram = Ram(MEMORY)
        self.port: Port = engine.port(Memory({0: self.ram}), "iscsi")
        self.address = f"127.0.0.1:{port},1"
        self.initiator: tuple[str, bytes] | None = None
        self.reinstated: Callable[[Connection], None] = lambda connection: None
        self.closing = Event(engine)
        self._most = 8192  # what the initiator takes in one PDU
        self._status_number = 1
        self._command_number = 0
        self._discovery = False
        self._free = [SLOTS + SLOT * index for index in range(WINDOW + EXTRA)]
        self._commands: dict[int, Command] = {}
        self._headers = [HEADERS + 64 * index for index in range(1, 1000)]
        self._transfer_tag = 0
        self._tasks: list[Any] = []

    # --- bytes ------------------------------------------------------------------------------------

    async def _receive(self, address: int, length: int) -> None:
        padded = length + -length % 4
        if padded:
            done = await self.port.to_memory((address, padded), source=self.socket, minimum=padded)
            if not done.ok or done.moved < padded:
                raise Broken("the peer is gone")

    async def _send(self, head: bytearray, address: int = 0, length: int = 0) -> None:
        """A PDU whose data segment is in memory."""
        if not self._headers:
            raise Broken("too many PDUs at once")
        at = self._headers.pop()
        try:
            with self.ram.view(at, BHS) as view:
                view[:] = head
            parts = [(at, BHS)]
            if length:
                parts += [(address, length), (at + BHS, -length % 4)]
            done = await self.port.from_memory(parts, to=self.socket)
            if not done.ok:
                raise Broken("the peer is gone")
        finally:
            self._headers.append(at)

    async def _send_bytes(self, head: bytearray, data: bytes = b"") -> None:
        """A PDU with a few bytes of data. Not beside another that waits for its header's room."""
        if not data:
            await self._send(head)
            return
        slot = self._take_slot()
        try:
            with self.ram.view(slot, len(data)) as view:
                view[:] = data
            await self._send(head, slot, len(data))
        finally:
            self._free.append(slot)

    async def _pdu(self) -> Pdu:
        await self._receive(HEADERS, BHS)
        with self.ram.view(HEADERS, BHS) as view:
            pdu = Pdu(bytes(view))
        if pdu.data_length > MAX_DATA:
            raise Broken(f"a data segment of {pdu.data_length} bytes")
        if pdu.ahs_length:
            slot = self._take_slot()
            try:
                await self._receive(slot, pdu.ahs_length)
            finally:
                self._free.append(slot)
        return pdu

    async def _data(self, pdu: Pdu) -> bytes:
        if not pdu.data_length:
            return b""
        slot = self._take_slot()
        try:
            await self._receive(slot, pdu.data_length)
            with self.ram.view(slot, pdu.data_length) as view:
                return bytes(view)
        finally:
            self._free.append(slot)

    def _take_slot(self) -> int:
        if not self._free:
            raise Broken("more commands than the window has room for")
        return self._free.pop()

    def _numbers(self, *, status: bool = True) -> dict[int, int]:
        """StatSN, ExpCmdSN, MaxCmdSN."""
        words = {28: self._command_number, 32: self._command_number + len(self._free) - EXTRA - 1}
        if status:
            words[24] = self._status_number
            self._status_number += 1
        return words

    # --- the session ------------------------------------------------------------------------------

    async def serve(self) -> None:
        try:
            if await self._login():
                while not self.closing.is_set:
                    pdu = await self._pdu()
                    if not await self._take(pdu):
                        break
        except Broken:
            pass
        finally:
            self.close()

    def close(self) -> None:
        """Ends it: what was sent arrives, nothing more is taken, commands are cancelled."""
        self.closing.set()
        with suppress(OSError):  # it is not connected any more
            self._sock.shutdown(socket.SHUT_RDWR)
        if self.initiator is not None:
            self.target.forget(self.initiator)
            self.initiator = None
        for command in self._commands.values():
            command.news.set()

    async def ended(self) -> None:
        """Waits for its commands, and lets go."""
        for task in self._tasks:
            if not task.done:
                await task
        self.port.close()
        self.socket.close()
        self._sock.close()
        self.ram.close()

    async def _login(self) -> bool:
        text: dict[str, str] = {}
        for _ in range(MOST_PDUS):
            pdu = await self._pdu()
            if pdu.opcode != Opcode.LOGIN or pdu.data_length > MOST_TEXT:
                raise Broken("no login")
            self._command_number = pdu.command_number
            words = {24: self._status_number, 28: pdu.command_number}
            words[32] = pdu.command_number + WINDOW - 1
            self._status_number += 1
            stage, following = pdu.flags >> 2 & 3, pdu.flags & 3
            transit = pdu.flags & 0x80
            try:
                new = parse_text(await self._data(pdu))
                text |= new
                keys = answer(new)
                if "MaxRecvDataSegmentLength" in new:
                    self._most = max(512, min(number(new["MaxRecvDataSegmentLength"]), SLOT))
                if "InitiatorName" not in text:
                    raise LoginRefused(0x0207)
                self._discovery = text.get("SessionType") == "Discovery"
                if not self._discovery and text.get("TargetName") != NAME:
                    raise LoginRefused(0x0203)
                if stage not in (0, 1) or (transit and following not in (1, 3)):
                    raise LoginRefused(0x0200)
            except LoginRefused as refused:
                head = header(Opcode.LOGIN_RESPONSE, 0, 0, pdu.tag, words)
                head[8:14] = pdu.header[8:14]
                struct.pack_into(">H", head, 36, refused.status)
                await self._send(head)
                return False
            if stage == 1 or following == 3:
                keys["MaxRecvDataSegmentLength"] = str(MAX_DATA)
            if pdu.flags & 0x80 and following == 1:
                keys["TargetPortalGroupTag"] = "1"
            data = make_text(keys)
            flags = transit | stage << 2 | (following if transit else 0)
            head = header(Opcode.LOGIN_RESPONSE, flags, len(data), pdu.tag, words)
            head[8:14] = pdu.header[8:14]  # ISID
            if transit and following == 3:
                head[14:16] = b"\0\1"  # TSIH
            await self._send_bytes(head, data)
            if transit and following == 3:
                if not self._discovery:
                    self.initiator = (text["InitiatorName"], bytes(pdu.header[8:14]))
                    self.reinstated(self)
                return True
        raise Broken("a login that does not end")

    async def _take(self, pdu: Pdu) -> bool:
        """One PDU of the full feature phase. False: the connection ends."""
        if pdu.opcode == Opcode.DATA_OUT:
            await self._data_out(pdu)
            return True
        if not self._in_order(pdu):
            await self._data(pdu)  # ignored (section 4.2.2.1)
            return True
        if pdu.opcode == Opcode.SCSI_COMMAND and not self._discovery:
            await self._command(pdu)
        elif pdu.opcode == Opcode.NOP_OUT:
            data = await self._data(pdu)
            if pdu.tag != NO_TAG:
                words = {20: NO_TAG, **self._numbers()}
                await self._send_bytes(header(Opcode.NOP_IN, 0x80, len(data), pdu.tag, words), data)
        elif pdu.opcode == Opcode.TASK_MANAGEMENT and not self._discovery:
            self._start(self._manage(pdu))
        elif pdu.opcode == Opcode.TEXT:
            await self._text(pdu)
        elif pdu.opcode == Opcode.LOGOUT:
            await self._send(header(Opcode.LOGOUT_RESPONSE, 0x80, 0, pdu.tag, self._numbers()))
            return False
        else:
            await self._data(pdu)
            words = {20: NO_TAG, **self._numbers()}
            head = header(Opcode.REJECT, 0x80, BHS, NO_TAG, words, 0x05)
            await self._send_bytes(head, pdu.header)
        return True

    def _in_order(self, pdu: Pdu) -> bool:
        if pdu.immediate:
            return True
        if pdu.command_number != self._command_number:
            return False
        self._command_number = self._command_number + 1 & 0xFFFFFFFF
        return True

    def _start(self, coroutine: Any) -> None:
        self._tasks = [task for task in self._tasks if not task.done]
        self._tasks.append(self.engine.start(self._guard(coroutine)))

    async def _guard(self, coroutine: Any) -> None:
        try:
            await coroutine
        except Broken:
            self.close()

    async def _text(self, pdu: Pdu) -> None:
        if pdu.data_length > MOST_TEXT:
            raise Broken("too long a text")
        try:
            keys = parse_text(await self._data(pdu))
        except LoginRefused:
            raise Broken("no text") from None
        found = {}
        if keys.get("SendTargets") in ("All", "", NAME):
            found = {"TargetName": NAME, "TargetAddress": self.address}
        data = make_text(found)
        words = {20: NO_TAG, **self._numbers()}
        await self._send_bytes(header(Opcode.TEXT_RESPONSE, 0x80, len(data), pdu.tag, words), data)

    # --- commands ---------------------------------------------------------------------------------

    async def _command(self, pdu: Pdu) -> None:
        if pdu.tag in self._commands or pdu.tag == NO_TAG:
            raise Broken("an initiator task tag that is in use")
        command = Command(self.engine, pdu, self._take_slot())
        if pdu.data_length > min(command.expected, SLOT):
            raise Broken("more immediate data than the command has")
        if pdu.data_length and not pdu.flags & 0x20:
            raise Broken("immediate data of a command that writes nothing")
        await self._receive(command.slot, pdu.data_length)
        command.immediate = pdu.data_length
        self._commands[pdu.tag] = command
        command.request = self.target.request(
            pdu.lun,
            pdu.header[32:48],
            pdu.tag,
            attribute=_ATTRIBUTES.get(pdu.flags & 7, TaskAttribute.SIMPLE),
            initiator=self.initiator,
            autosense=True,
            offered=command.expected,
        )
        if not command.request.over:
            command.request.when_over(command.news.set)
        self._start(self._run(command, command.request))

    async def _run(self, command: Command, request: Request) -> None:
        pdu = command.pdu
        try:
            await request.ready
            moved = 0
            wants = request.direction
            if wants is DataDirection.IN and pdu.flags & 0x40:
                moved = await self._data_in(command, request)
            elif wants is DataDirection.OUT and pdu.flags & 0x20:
                moved = await self._write(command, request)
            if command.wrong:
                request.cancel()
            request.end_data()
            status, sense = await request.finished, request.sense
            if command.wrong and status is None:
                status, sense = ScsiStatus.CHECK_CONDITION, DATA_PHASE_ERROR
            if status is not None and not self.closing.is_set:
                await self._respond(command, request, status, sense, moved)
        except BaseException:
            request.cancel()
            raise
        finally:
            await request.finished
            del self._commands[pdu.tag]
            self._free.append(command.slot)

    async def _data_in(self, command: Command, request: Request) -> int:
        moved, number = 0, 0
        most = min(command.expected, request.expected)
        while moved < most and request.left:
            length = min(most - moved, self._most, SLOT)
            done = await request.transfer(self.port, (command.slot, length))
            if not done.ok:
                break
            last = moved + length == most
            words = {20: NO_TAG, 36: number, 40: moved, **self._numbers(status=False)}
            head = header(Opcode.DATA_IN, 0x80 * last, length, command.pdu.tag, words)
            await self._send(head, command.slot, length)
            moved += length
            number += 1
        return moved

    async def _write(self, command: Command, request: Request) -> int:
        moved, number = 0, 0
        most = min(command.expected, request.expected)
        length = min(command.immediate, most)
        while True:
            if length:
                done = await request.transfer(self.port, (command.slot, length))
                moved += done.moved
                if not done.ok:
                    break
            if moved >= most or not request.left:
                break
            length = min(most - moved, SLOT)
            self._transfer_tag = self._transfer_tag + 1 & 0x7FFFFFFF
            command.asked = (self._transfer_tag, moved, moved + length)
            command.came, command.data_number = 0, 0
            command.news.clear()
            words = {20: self._transfer_tag, 36: number, 40: moved, 44: length}
            words |= self._numbers(status=False) | {24: self._status_number}
            await self._send(header(Opcode.R2T, 0x80, 0, command.pdu.tag, words))
            number += 1
            if not request.over and not self.closing.is_set:
                await command.news.wait()
            if request.over or self.closing.is_set or command.wrong:
                break
        command.asked = None
        return moved

    async def _data_out(self, pdu: Pdu) -> None:
        command = self._commands.get(pdu.tag)
        asked = command.asked if command is not None else None
        if command is None or asked is None or asked[0] != pdu.word(20):
            await self._data(pdu)  # of a command that is over
            return
        _, begin, end = asked
        offset = pdu.word(40)
        if pdu.word(36) != command.data_number or offset != begin + command.came or command.wrong:
            await self._data(pdu)
            command.wrong = True
            if pdu.final:
                command.news.set()
            return
        if offset + pdu.data_length > end:
            raise Broken("more Data-Out than was asked for")
        # What is padded may reach behind the piece, but not behind the slot.
        if command.came + pdu.data_length + -pdu.data_length % 4 > SLOT:
            raise Broken("padding behind the burst")
        await self._receive(command.slot + command.came, pdu.data_length)
        command.came += pdu.data_length
        command.data_number += 1
        if command.came == end - begin:
            command.news.set()
        elif pdu.final:
            raise Broken("less Data-Out than was asked for")

    async def _respond(
        self,
        command: Command,
        request: Request,
        status: ScsiStatus,
        sense: Sense | None,
        moved: int,
    ) -> None:
        data = b""
        if sense is not None:
            data = len(sense.data).to_bytes(2, "big") + sense.data
        flags, residual = 0x80, 0
        if status is not ScsiStatus.CHECK_CONDITION and request.expected > command.expected:
            flags, residual = flags | 0x04, request.expected - command.expected
        elif moved < command.expected:
            flags, residual = flags | 0x02, command.expected - moved
        self._free.append(command.slot)  # the window is open again when the response goes out
        words = {44: residual, **self._numbers()}
        self._free.remove(command.slot)
        head = header(Opcode.SCSI_RESPONSE, flags, len(data), command.pdu.tag, words, 0, status)
        if data:
            with self.ram.view(command.slot, len(data)) as view:
                view[:] = data
        await self._send(head, command.slot, len(data))

    # --- task management --------------------------------------------------------------------------

    async def _manage(self, pdu: Pdu) -> None:
        """Section 11.5: functions and responses."""
        target, function, lun = self.target, pdu.flags & 0x7F, pdu.lun
        response = 0
        if function in (1, 2, 4, 5) and lun not in target.units:
            response = 2
        elif function == 1:
            if not await target.abort_task(lun, pdu.word(20), self.initiator):
                response = 1
        elif function == 2:
            await target.abort_task_set(lun, self.initiator)
        elif function == 4:
            await target.clear_task_set(lun, self.initiator)
        elif function == 5:
            await target.reset_unit(lun)
        elif function in (6, 7):
            await target.reset()
        else:
            response = 5
        words = self._numbers()
        head = header(Opcode.TASK_MANAGEMENT_RESPONSE, 0x80, 0, pdu.tag, words, response)
        await self._send(head)
        if function == 7:
            self.close()
