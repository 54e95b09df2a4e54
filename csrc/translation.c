/* SPDX-License-Identifier: Apache-2.0
 *
 * translation: the arrays that a walk writes, which belong to a row and grow onto the heap.
 *
 * Invariants
 *  - Arrays that do not grow stay as they were: count and room are true also where there is no memory. */
#include "space.h"

#include <stdlib.h>
#include <string.h>

void iod_translation_clear(struct iod_translation *t)
{
	t->count = 0;
	t->extents = 0;
	t->bytes = 0;
	t->only = NULL;
	t->by_list = false;
	t->plain = true;
	t->remote = false;
}

void iod_translation_free(struct iod_translation *t)
{
	if (t->heap_pieces) {
		free(t->iov);
		free(t->piece);
	}
	if (t->heap_extents)
		free(t->extent);
	*t = (struct iod_translation){0};
}

/* Grow from storage that may be the owner's (not the heap's). */
__attribute__((cold, noinline)) static void *grow(void *old, bool on_heap, size_t used, size_t size)
{
	if (on_heap)
		return realloc(old, size);
	void *fresh = malloc(size);
	if (fresh && used)
		memcpy(fresh, old, used);
	return fresh;
}

/* Cold, as arrays stay with their row: kept out of the loops, which need the registers. */
__attribute__((cold, noinline)) bool iod_translation_more(struct iod_translation *t)
{
	uint32_t room = t->room ? t->room * 2 : 8;
	struct iovec *iov = grow(t->iov, t->heap_pieces, t->count * sizeof *iov, room * sizeof *iov);
	if (!iov)
		return false;
	t->iov = iov;
	struct iod_piece *piece = grow(t->piece, t->heap_pieces, t->count * sizeof *piece, room * sizeof *piece);
	if (!piece) {
		if (!t->heap_pieces)
			free(iov), t->iov = NULL, t->count = 0, t->room = 0;
		return false;
	}
	t->piece = piece;
	t->room = room;
	t->heap_pieces = true;
	return true;
}

__attribute__((cold, noinline)) bool iod_translation_more_extents(struct iod_translation *t)
{
	uint32_t room = t->extents_room ? t->extents_room * 2 : 8;
	struct iod_extent *extent = grow(t->extent, t->heap_extents, t->extents * sizeof *extent, room * sizeof *extent);
	if (!extent)
		return false;
	t->extent = extent;
	t->extents_room = room;
	t->heap_extents = true;
	return true;
}

bool iod_translation_in_host(const struct iod_translation *t)
{
	if (t->plain)
		return true;
	for (uint32_t i = 0; i < t->count; i++)
		if (!iod_region_is_host(t->piece[i].region))
			return false;
	return true;
}
