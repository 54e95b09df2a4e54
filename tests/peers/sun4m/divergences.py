# SPDX-License-Identifier: Apache-2.0
"""What is not as QEMU has it, on purpose, each with the section that says who is right.

Invariants:

- A predicate accepts the values that the entry names and no others, so that nothing else hides
  behind it; how often each was needed is reported by every campaign.
- Only behaviour that a datasheet settles is here. Where QEMU and the datasheet agree, there is no
  entry: the device is wrong.
"""

from __future__ import annotations

from tests.peers.sun4m import lance_predicates as lance
from tests.peers.sun4m import lance_rings as rings
from tests.peers.sun4m.compare import Divergence
from tests.peers.sun4m.register_divergences import REGISTERS
from tests.peers.sun4m.scsi_divergences import SCSI

LANCE: tuple[Divergence, ...] = (
    Divergence(
        "TDMD stays",
        "TDMD is clear once the transmitter has looked at its ring; QEMU's stays set",
        'Am7990, "Control and Status Register 0", TDMD: cleared when it has been used',
        lance.tdmd,
    ),
    Divergence(
        "TXON after STOP",
        "STOP clears TXON; in QEMU it sets it, and MODE.DTX does not clear it",
        'Am7990, "Control and Status Register 0", TXON: cleared by RESET or by setting STOP',
        lance.stopped,
    ),
    Divergence(
        "STOP with INIT or STRT",
        "STOP overrides the other; QEMU stops only where all three are set",
        'Am7990, "Control and Status Register 0", STOP',
        lance.stop_overrides,
        ends=True,
    ),
    Divergence(
        "INEA while stopped",
        "INEA stays clear; QEMU sets it",
        'Am7990, "Control and Status Register 0", INEA: cannot be set while STOP is',
        lance.enable_while_stopped,
    ),
    Divergence(
        "sent while off",
        "nothing is sent while TXON is clear; QEMU's was set by a STOP, and it sends",
        'Am7990, "Control and Status Register 0", STOP: disables all external activity; TXON',
        lance.sent_while_off,
        ends=True,
    ),
    Divergence(
        "INIT after STRT",
        "INIT has to follow STOP; QEMU reads the block though it has been started",
        'Am7990, "Control and Status Register 0", INIT; "Initialization"',
        lance.initialized_while_started,
        ends=True,
    ),
    Divergence(
        "started without an initialization",
        "neither half is on: there are no rings; QEMU's work at address 0",
        'Am7990, "Initialization": the block is read before the first start',
        lance.never_initialized,
        ends=True,
    ),
    Divergence(
        "frames below the minimum",
        "padded to 60 bytes, as on an Ethernet; QEMU stores what its backend brought",
        'Am7990, "Receive": a frame of fewer than 64 bytes is a runt; IEEE 802.3, 4.2.3.3',
        rings.padded,
        ends=True,
    ),
    Divergence(
        "BABL",
        "a frame that is longer than 1,518 bytes sets BABL; QEMU never does",
        'Am7990, "Control and Status Register 0", BABL',
        lance.babbled,
        ends=True,
    ),
    Divergence(
        "MERR",
        "a fault ends the transfer, and MERR says so; QEMU's LANCE goes on with zeros",
        'Am7990, "Control and Status Register 0", MERR',
        lance.memory_error,
        ends=True,
    ),
    Divergence(
        "look ahead",
        "descriptors are read when their turn comes; QEMU reads others, and its IOMMU faults",
        'Am7990, "Descriptor Rings"',
        lance.looked_ahead,
        ends=True,
    ),
    Divergence(
        "frame before the start",
        "a frame that comes before STRT waits; QEMU receives it when INIT is done",
        'Am7990, "Control and Status Register 0", STRT and RXON',
        lance.before_start,
        ends=True,
    ),
    Divergence(
        "frame while stopped",
        "it waits in the host until the chip is started; QEMU takes it, and drops it",
        'Am7990, "Control and Status Register 0", STOP: disables all external activity',
        lance.while_stopped,
        ends=True,
    ),
    Divergence(
        "TINT without a packet",
        "buffers from before an STP are given back silently; QEMU sets TINT",
        'Am7990, "Control and Status Register 0", TINT: after a packet',
        lance.no_packet,
        ends=True,
    ),
    Divergence(
        "short packets in loopback",
        "come back as they were sent, with an FCS; QEMU fills them up to 60 bytes",
        'Am7990, "Loopback": packets of 8 to 32 bytes; "MODE Register", DTCR',
        lance.looped_short,
    ),
    Divergence(
        "logical addresses in loopback",
        "are not heard while the CRC logic makes the FCS; by QEMU they are",
        'Am7990, "Loopback": multicast needs DTCR',
        lance.looped_group,
        ends=True,
    ),
    Divergence(
        "long packets in loopback",
        "do not fit into the FIFO: UFLO, and the transmitter is off; QEMU's come back",
        'Am7990, "Loopback": packets of 8 to 32 bytes',
        lance.looped_long,
        ends=True,
    ),
    Divergence(
        "packet without an end",
        "BUFF and UFLO, and the transmitter is off; QEMU gives the buffers back, or goes on",
        'Am7990, "Transmit Message Descriptor 3", BUFF and UFLO',
        rings.no_end,
        ends=True,
    ),
    Divergence(
        "bits of CSR1 to CSR3",
        "bit 0 of CSR1, the high byte of CSR2, bits 15:3 of CSR3 read as 0; QEMU keeps them",
        'Am7990, "Control and Status Register 1", "2" and "3"',
        lance.csr_bits,
    ),
    Divergence(
        "ring at address 0",
        "is a ring as any other; QEMU has none there",
        'Am7990, "Initialization Block", RDRA and TDRA',
        rings.ring_at_zero,
        ends=True,
    ),
    Divergence(
        "ring at an odd place",
        "it begins at a multiple of 8; in QEMU where bits 2:0 of its address say",
        'Am7990, "Initialization Block", RDRA and TDRA: bits 2:0 are zero',
        rings.unaligned,
        ends=True,
    ),
    Divergence(
        "ones above BCNT",
        "bits 15:12 of a descriptor's third word are not looked at; QEMU takes it for not owned",
        'Am7990, "Transmit Message Descriptor 2": written by the host, unchanged by LANCE',
        rings.ones,
        ends=True,
    ),
    Divergence(
        "buffer over the rings",
        "what a packet takes is read before it is moved; QEMU reads one descriptor after another",
        'Am7990, "Receive Message Descriptor 1", BUFF: the next is polled ahead, any time before',
        rings.over_the_rings,
        ends=True,
    ),
    Divergence(
        "odd address through the swap",
        "words begin at even addresses, and the byte before is not read; QEMU begins with it",
        'Am7990, "Bus Interface", BM0 and BM1: a byte at an odd end is transferred by itself',
        rings.odd_address,
        ends=True,
    ),
    Divergence(
        "CSR1 to CSR3 written while running",
        "are not written; in QEMU they are",
        'Am7990, "Control and Status Register 1", "2", "3": accessible only when STOP is set',
        lance.kept_while_running,
    ),
    Divergence(
        "CSR1 to CSR3 as they should not be",
        "another block is read, or bytes are swapped, than in QEMU, which wrote or kept them",
        'Am7990, "Control and Status Register 1", "2", "3": accessible only when STOP is set',
        lance.used_while_running,
        ends=True,
    ),
    Divergence(
        "CSR3 after STOP",
        "STOP clears CSR3; QEMU keeps it",
        'Am7990, "Control and Status Register 3": cleared by RESET or by setting STOP',
        lance.forgotten,
    ),
    Divergence(
        "OFLO with BUFF",
        "what is left of a frame that no buffer was for fits into the FIFO; QEMU has OFLO, too",
        'Am7990, "Receive Message Descriptor 1", BUFF: OFLO only where both occur',
        lance.overflow,
    ),
    Divergence(
        "frame in more than three buffers",
        "a received frame is chained over as many buffers as it needs; QEMU's over three",
        'Am7990, "Receive Descriptor Ring", data chaining',
        lance.fourth_buffer,
        ends=True,
    ),
    Divergence(
        "descriptor out of turn",
        "a frame for which the current descriptor is not owned is missed; QEMU looks for another",
        'Am7990, "Control and Status Register 0", MISS; "Receive Descriptor Ring"',
        lance.scanned,
        ends=True,
    ),
    Divergence(
        "odd byte sent through the swap",
        "the byte that the buffer ends with is sent; QEMU sends one of a frame before",
        'Am7990, "Bus Interface", BM0 and BM1: a byte at an odd end is transferred by itself',
        lance.odd_sent,
    ),
    Divergence(
        "odd byte received through the swap",
        "the last byte of the FCS is stored; QEMU drops it",
        'Am7990, "Bus Interface", BM0 and BM1: a byte at an odd end is transferred by itself',
        rings.odd_received,
    ),
)

DIVERGENCES: tuple[Divergence, ...] = (*REGISTERS, *SCSI, *LANCE)
