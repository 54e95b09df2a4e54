# SPDX-License-Identifier: Apache-2.0
"""What keeps a copy engine at work while something happens to it, by the module in the guest.

Invariant: all that is copied is compared; `end` fails if anything was wrong, or nothing was done.
"""

from __future__ import annotations

from tests.peers.guests.guest import Guest

DEVICE = "/sys/bus/pci/devices/0000:01:00.0"
#: Rounds a time, bytes, descriptors a round.
WORK = "5 16384 16"
LOAD = """
rm -f /tmp/{1}.*
echo 0 >/tmp/{1}.times
(
    while [ ! -e /tmp/{1}.stop ] && echo {2} >{0}/copy; do
        echo $(($(cat /tmp/{1}.times) + 1)) >/tmp/{1}.new
        mv /tmp/{1}.new /tmp/{1}.times
    done
    touch /tmp/{1}.over
) 2>/tmp/{1}.errors &
while [ $(cat /tmp/{1}.times) -lt 1 ]; do [ ! -e /tmp/{1}.over ]; sleep 0.1; done
"""
WAIT = "while [ ! -e /tmp/{0}.over ]; do sleep 0.1; done; cat /tmp/{0}.errors; cat /tmp/{0}.times"


def begin(guest: Guest, device: str = DEVICE, name: str = "load") -> None:
    """Returns when it is under way."""
    guest.run(LOAD.format(device, name, WORK), seconds=60)


def end(guest: Guest, name: str = "load") -> None:
    """It has gone well until now, and goes on."""
    times = int(guest.run(f"cat /tmp/{name}.times").output)
    more = f"while [ $(cat /tmp/{name}.times) -le {times} ]"
    on = f"{more}; do [ ! -e /tmp/{name}.over ]; sleep 0.1; done"
    guest.run(f"{on}; touch /tmp/{name}.stop", seconds=60)
    said = guest.run(WAIT.format(name), seconds=60).output.split()
    assert len(said) == 1 and int(said[0]) > times, said


def is_over(guest: Guest, name: str = "load", seconds: float = 30) -> str:
    """It ends by itself, and says why."""
    return guest.run(WAIT.format(name), seconds=seconds).output


def refused(guest: Guest, device: str = DEVICE, end: str = "target") -> int | None:
    """A copy one end of which is mapped no more fails in its descriptor, and the device says where:
    that address, or None. `end`: "source" or "target"."""
    result, told, address = guest.run(f"cat {device}/unmapped_{end}").output.split()
    right = int(result, 16) == 1 << 31 | 1 and int(told, 16) == int(address, 16) != 0
    return int(address, 16) if right else None
