/* SPDX-License-Identifier: Apache-2.0
 *
 * iod: the words of the core.  Plain C11, nothing of Python's.
 *
 * Layers, each using only those before it:
 *   bytes, backend (uring, threads) | region, map | space | arena | target | xfer (table, plan, core) | revoke
 */
#ifndef IOD_H
#define IOD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#define IOD_MAX_DEPTH 32       /* spaces in one chain */
#define IOD_MISSES 64	       /* holes that one walk of a list asks about */
#define IOD_MESSAGE_DEPTH 8    /* DMA to a device window that causes DMA to a device window that ... */
#define IOD_IOV_MAX 1024       /* the kernel's UIO_MAXIOV */
#define IOD_MAX_IO 0x7ffff000u /* the kernel's MAX_RW_COUNT */

enum iod_status { IOD_OK, IOD_FAULT, IOD_IO_ERROR, IOD_CANCELLED, IOD_PEER_GONE };
enum { IOD_READ = 1, IOD_WRITE = 2 }; /* access, seen from the device */
enum iod_direction { IOD_FROM_MEMORY, IOD_TO_MEMORY };
enum iod_reason { IOD_BY_LANES, IOD_BY_ALIGNMENT, IOD_BY_NOT_RAM, IOD_BY_SMALL, IOD_BY_REMOTE, IOD_BY_PEEK, IOD_BY_FRAME,
		  IOD_REASONS };

/* A piece of an address space: never wraps once it passed iod_segments_check. */
struct iod_segment {
	uint64_t address, length;
};

/* Why a stage refused. */
enum iod_cause {
	IOD_C_NONE,
	IOD_C_UNMAPPED,	   /* nothing there */
	IOD_C_PERMISSION,  /* there, but not for this access */
	IOD_C_LIMIT,	   /* beyond the window */
	IOD_C_WRAP,	   /* past 2^64 - 1 */
	IOD_C_QUARANTINE,  /* a revocation failed here */
	IOD_C_GONE,	   /* the memory's file was truncated */
	IOD_C_MESSAGE,	   /* a device window refused, or messages went too deep */
	IOD_C_HOOK,	   /* a walker or an injected fault */
	IOD_C_SHUT,	   /* a gate that is shut */
	IOD_C_REMOTE,	   /* remote memory: who has it did not do what it was asked */
	IOD_C_TABLE,	   /* a page table that is not in host memory */
};
const char *iod_cause_text(enum iod_cause);

struct iod_space;
struct iod_fault {
	uint64_t offset;  /* into the transfer */
	uint64_t address; /* at the space that refused */
	struct iod_space *space;
	uint8_t access;
	uint8_t cause;
};

static inline uint64_t iod_min64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

#endif
