/* SPDX-License-Identifier: Apache-2.0
 *
 * arena: next-fit over a bitmap of pages.  See arena.h for the invariants. */
#include "arena.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>

int iod_arena_create(struct iod_arena *arena, size_t bytes)
{
	size_t pages = (bytes + IOD_ARENA_PAGE - 1) / IOD_ARENA_PAGE;

	*arena = (struct iod_arena){.buffer_index = -1};
	if (pages == 0)
		return 0;
	arena->map = calloc((pages + 63) / 64, sizeof *arena->map);
	if (!arena->map)
		return -ENOMEM;
	void *base = mmap(NULL, pages * IOD_ARENA_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (base == MAP_FAILED) {
		free(arena->map);
		return -errno;
	}
	/* A fork must not copy pages that the kernel is writing to. */
	madvise(base, pages * IOD_ARENA_PAGE, MADV_DONTFORK);
	arena->base = base;
	arena->pages = pages;
	/* A quarter, so that one request cannot hold everybody else up; 256 KiB keeps a piece in the second-level cache. */
	arena->most = pages * IOD_ARENA_PAGE / 4;
	if (arena->most > 256 << 10)
		arena->most = 256 << 10;
	if (arena->most < IOD_ARENA_PAGE)
		arena->most = IOD_ARENA_PAGE;
	return 0;
}

void iod_arena_destroy(struct iod_arena *arena)
{
	if (arena->base)
		munmap(arena->base, arena->pages * IOD_ARENA_PAGE);
	free(arena->map);
	*arena = (struct iod_arena){.buffer_index = -1};
}

static bool taken(const struct iod_arena *arena, size_t page)
{
	return arena->map[page / 64] >> (page % 64) & 1;
}

static void set(struct iod_arena *arena, size_t page, size_t count, bool on)
{
	for (size_t i = page; i < page + count; i++) {
		uint64_t bit = (uint64_t)1 << (i % 64);
		if (on)
			arena->map[i / 64] |= bit;
		else
			arena->map[i / 64] &= ~bit;
	}
}

void *iod_arena_take(struct iod_arena *arena, size_t bytes)
{
	size_t want = (bytes + IOD_ARENA_PAGE - 1) / IOD_ARENA_PAGE;

	if (want == 0 || want > arena->pages - arena->used)
		return NULL;
	for (int pass = 0; pass < 2; pass++) {
		size_t run = 0;
		size_t from = pass == 0 ? arena->next : 0;
		for (size_t i = from; i < arena->pages; i++) {
			run = taken(arena, i) ? 0 : run + 1;
			if (run < want)
				continue;
			size_t page = i + 1 - want;
			set(arena, page, want, true);
			arena->used += want;
			if (arena->used > arena->peak)
				arena->peak = arena->used;
			arena->next = i + 1;
			return arena->base + page * IOD_ARENA_PAGE;
		}
	}
	return NULL;
}

void iod_arena_give(struct iod_arena *arena, void *piece, size_t bytes)
{
	size_t page = (size_t)((uint8_t *)piece - arena->base) / IOD_ARENA_PAGE;
	size_t count = (bytes + IOD_ARENA_PAGE - 1) / IOD_ARENA_PAGE;

	set(arena, page, count, false);
	arena->used -= count;
	/* The last piece given back is the warmest in the cache. */
	arena->next = page;
}
