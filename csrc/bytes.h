/* SPDX-License-Identifier: Apache-2.0
 *
 * bytes: the few places where the core itself touches memory that a VMM or a guest shares with us.
 *
 * Invariants
 *  - Every access to such memory runs under the SIGBUS guard: a page that is gone (a truncated memory file) makes
 *    the call return -EFAULT with nothing else disturbed; *done says how many bytes were moved before it.
 *  - Bytes outside the given ranges are never read or written.
 *  - lanes is an XOR mask over the low address bits (1: 16-bit swap, 3: 32-bit, 7: 64-bit, 2: halfwords of a word ...;
 *    masks compose by XOR, so two equal ones cancel).  The unit is the smallest power of two above the mask.
 *    Only whole units inside a range are permuted; the bytes of a unit cut by a range's end stay as they are.
 */
#ifndef IOD_BYTES_H
#define IOD_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/* Installs the SIGBUS handler (idempotent, chains to what was there for faults that are not ours). 0 or -errno. */
int iod_guard_install(void);

/* Runs fn(arg), which touches shared memory by itself, keeps nothing of Python's and leaves its progress in *arg as it
 * goes; false when it met a SIGBUS, whose address is then in *fault. */
bool iod_guarded(void (*fn)(void *), void *arg, uintptr_t *fault);

/* Copy n bytes; 0 or -EFAULT. dst, src may not overlap. */
int iod_copy(void *dst, const void *src, size_t n, size_t *done);

/* As iod_copy, bytes permuted by lanes. phase = low bits of the address (on the swapping bus) of the first byte. */
int iod_copy_lanes(void *dst, const void *src, size_t n, unsigned lanes, unsigned phase, size_t *done);

/* Gather iov[0..niov) starting `skip` bytes into it, at most n bytes, into dst.  lanes/phases: per-iov lane masks
 * and phases (NULL: none).  Scatter is the other way.  Return 0 or -EFAULT; *done bytes moved in either case. */
int iod_gather(void *dst, const struct iovec *iov, size_t niov, size_t skip, size_t n, const uint8_t *lanes, const uint8_t *phases, size_t *done);
int iod_scatter(const struct iovec *iov, size_t niov, size_t skip, const void *src, size_t n, const uint8_t *lanes, const uint8_t *phases, size_t *done);
/* list to list, min(n, what both hold); overlap gives unspecified order, never a byte outside. */
int iod_move(const struct iovec *dst, size_t ndst, size_t dskip, const struct iovec *src, size_t nsrc, size_t sskip, size_t n, size_t *done);

/* Sets n bytes. */
int iod_fill(void *dst, int value, size_t n);

/* Sets bits first..last, each byte with one atomic operation that is a full barrier. 0 or -EFAULT. */
int iod_set_bits(uint8_t *byte, uint64_t first, uint64_t last);

#endif
