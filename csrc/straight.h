/* SPDX-License-Identifier: Apache-2.0
 *
 * straight: the lists that lie straight in host memory of a memory, which most lists do; the general walk takes what is left.
 *
 * Invariants
 *  - A loop stops at the first segment that is anything else, having written what it has come to, with its extents.
 *  - What is not good in all ways - a region that is shut, an access that is not permitted - is left to the general walk,
 *    which says why. */
#ifndef IOD_STRAIGHT_H
#define IOD_STRAIGHT_H

#include "space.h"

/* A memory, and a gate, give back whole ranges only: the range is what is held, and once. */
static inline bool iod_hold_range(struct iod_translation *t, struct iod_space *space, uint64_t first, uint64_t last)
{
	for (uint32_t back = 1; back <= 2 && back <= t->extents; back++) {
		const struct iod_extent *e = &t->extent[t->extents - back];
		if (e->space == space && e->first == first)
			return true;
	}
	if (t->extents == t->extents_room && !iod_translation_more_extents(t))
		return false;
	t->extent[t->extents++] = (struct iod_extent){space, first, last};
	return true;
}

/* Of a memory: the range of host memory that holds all of it and may be accessed so, or -1. */
static inline ptrdiff_t iod_straight_range(struct iod_space *space, uint64_t address, uint64_t length, uint8_t access)
{
	struct iod_map *map = &space->map;
	size_t at = map->hint;

	if (at >= map->count || address < map->first[at] || address > map->range[at].last) {
		ptrdiff_t floor = iod_map_floor(map, address);
		if (floor < 0)
			return -1;
		map->hint = at = (size_t)floor;
	}
	const struct iod_range *range = &map->range[at];
	/* length 0 wraps, and is too long for anything */
	if (address > range->last || length - 1 > range->last - address || !range->host ||
	    (range->access & access) != access || range->region->closed || range->region->quarantined)
		return -1;
	return (ptrdiff_t)at;
}

/* The most usual list of all: one segment in one range of host memory.  False: nothing was written. */
static inline bool iod_straight_one(struct iod_space *space, const struct iod_segment *segment, uint8_t access,
				    struct iod_translation *out)
{
	ptrdiff_t at = iod_straight_range(space, segment->address, segment->length, access);
	if (at < 0 || !out->room || out->extents == out->extents_room)
		return false;
	const struct iod_range *range = &space->map.range[at];
	uint64_t first = space->map.first[at];
	out->iov[0] = (struct iovec){range->host + (segment->address - first), segment->length};
	out->piece[0] = (struct iod_piece){range->region, 0, 0};
	out->extent[out->extents++] = (struct iod_extent){space, first, range->last};
	out->count = 1;
	out->only = range->region;
	return true;
}

/* Of a memory: how many segments of the list are done. */
size_t iod_straight(struct iod_space *, const struct iod_segment *, size_t count, uint8_t access, struct iod_translation *);

#endif
