# SPDX-License-Identifier: Apache-2.0
"""The receiver's process, and the TCP connection to it.

Invariants
 - Both ends of the connection are made here, so nobody else can be at the other end.
 - The process has ended when `Receiver` is left, however it is left; it is ended by its own process
   id.
 - A receiver that dies is a `DemoError` that says so.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Self

import iodma

__all__ = ["ANSWER_S", "DemoError", "PeerGone", "Receiver", "command"]

#: Seconds that the receiver may take to answer after the last byte was sent.
ANSWER_S = 60.0


class DemoError(iodma.Error):
    """The file did not arrive, or not as it was."""


class PeerGone(DemoError):
    """The connection to the receiver is gone; its text says when."""


def command(fd: int) -> list[str]:
    """What starts a receiver on the connected socket ``fd``."""
    return [sys.executable, "-I", "-S", str(Path(__file__).with_name("receiver.py")), str(fd)]


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of one TCP connection over the loopback interface.

    Raises:
        OSError: there is no loopback interface, or no descriptor left.
    """
    with socket.create_server(("127.0.0.1", 0), backlog=16) as server:
        client = socket.create_connection(server.getsockname(), timeout=10)
        try:
            client.settimeout(None)
            while True:  # others may connect to the port as well
                accepted, address = server.accept()
                if address == client.getsockname():
                    return client, accepted
                accepted.close()
        except BaseException:
            client.close()
            raise


class Receiver:
    """A receiver that runs, for the time of a ``with`` block.

    Attributes:
        connection: our end.
        process: the receiver's.
    """

    def __init__(self) -> None:
        self.connection, theirs = tcp_pair()
        with theirs:
            theirs.set_inheritable(True)
            try:
                self.process = subprocess.Popen(
                    command(theirs.fileno()),
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    process_group=0,  # a Ctrl-C is for us; we end it
                )
            except BaseException:
                self.connection.close()
                raise

    def answer(self, expected: int) -> str:
        """Ends the stream, and waits for the SHA-256 of what was received.

        Raises:
            DemoError: the receiver has died, does not answer, or has not received ``expected``
                bytes.
        """
        try:
            self.connection.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise DemoError(self.died()) from error
        try:
            out, _ = self.process.communicate(timeout=ANSWER_S)
        except subprocess.TimeoutExpired:
            raise DemoError(f"the receiver did not answer within {ANSWER_S:.0f} s") from None
        if self.process.returncode:
            raise DemoError(self.died())
        told = json.loads(out)
        if told["bytes"] != expected:
            raise DemoError(f"the receiver got {told['bytes']} bytes; {expected} were sent")
        return str(told["sha256"])

    def died(self) -> str:
        """That the receiver is gone, in words."""
        try:
            code = self.process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return "the receiver has closed the connection"
        if code < 0:
            return f"the receiver has died: {signal.Signals(-code).name}"
        return f"the receiver has ended too early (exit status {code})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.connection.close()
        try:
            if self.process.poll() is None:
                self.process.kill()
        finally:
            if self.process.stdout is not None:
                self.process.stdout.close()
            self.process.wait()
