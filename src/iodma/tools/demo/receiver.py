# SPDX-License-Identifier: Apache-2.0
"""The program at the other end: it receives until the end of the stream, and prints how much and
its SHA-256.

Run as a script with one argument, the number of a connected TCP socket that it inherits.

Invariants
 - Only the standard library is used: what it says of the bytes owes nothing to iodma.
 - It ends when the stream does, or after a minute in which nothing came.
"""

import hashlib
import json
import socket
import sys

IDLE_S = 60.0
BUFFER_BYTES = 1 << 20


def receive(connection: socket.socket) -> dict[str, int | str]:
    """All that comes, counted and hashed."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(BUFFER_BYTES))
    total = 0
    while count := connection.recv_into(buffer):
        digest.update(buffer[:count])
        total += count
    return {"bytes": total, "sha256": digest.hexdigest()}


def main() -> None:
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        connection.settimeout(IDLE_S)
        print(json.dumps(receive(connection)))


if __name__ == "__main__":
    main()
