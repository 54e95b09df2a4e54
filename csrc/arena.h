/* SPDX-License-Identifier: Apache-2.0
 *
 * arena: the only memory that bytes are bounced through.
 *
 * Invariants
 *  - Its size is the budget: there is no other place to bounce, so there is no other limit to keep.
 *  - A piece is contiguous and whole pages, so that it may be registered with the kernel and used with O_DIRECT.
 *  - It knows nothing of who waits for it; whoever is refused queues (core.c keeps that queue first in, first out).
 */
#ifndef IOD_ARENA_H
#define IOD_ARENA_H

#include <stddef.h>
#include <stdint.h>

#define IOD_ARENA_PAGE 4096u

struct iod_arena {
	uint8_t *base;
	size_t pages, used, peak, next;
	uint64_t *map; /* one bit a page, set when taken */
	size_t most;   /* bytes of the largest piece that will be given */
	int buffer_index;
};

int iod_arena_create(struct iod_arena *, size_t bytes); /* 0 or -errno */
void iod_arena_destroy(struct iod_arena *);
void *iod_arena_take(struct iod_arena *, size_t bytes); /* NULL when there is no such run of pages */
void iod_arena_give(struct iod_arena *, void *piece, size_t bytes);

#endif
