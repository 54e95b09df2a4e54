/* SPDX-License-Identifier: Apache-2.0
 *
 * Registers and descriptors of the copy engine (examples/rung3_copy_engine.py), for its drivers in a
 * guest: the kernel's and those of user space.  All of it is little-endian.
 */
#ifndef COPY_ENGINE_H
#define COPY_ENGINE_H

#define RING 0x00 /* 64 bits, by one access */
#define ENTRIES 0x08
#define CONTROL 0x0c
#define STATUS 0x10
#define HEAD 0x14
#define TAIL 0x18
#define IRQ 0x1c
#define IRQ_ENABLE 0x20
#define FAULT 0x28 /* 64 bits */

#define CONTROL_RESET 1u
#define STATUS_HALTED 1u
#define STATUS_RESETTING 2u
#define CAUSE_DONE 1u
#define CAUSE_FAILED 2u
#define CAUSE_HALTED 4u
#define CAUSES (CAUSE_DONE | CAUSE_FAILED | CAUSE_HALTED)

#define FLAG_INTERRUPT 1u
#define RESULT_DONE (1u << 31)
#define RESULT_OK RESULT_DONE
#define RESULT_FAULT (RESULT_DONE | 1u) /* iodma.Status.FAULT */
#define LONGEST (1u << 20)

#endif
