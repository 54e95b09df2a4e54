/* SPDX-License-Identifier: Apache-2.0
 *
 * map: sorted ranges of one address space.  See space.h for the invariants. */
#include "space.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

ptrdiff_t iod_map_find(struct iod_map *map, uint64_t address)
{
	size_t hint = map->hint;

	if (hint < map->count && map->first[hint] <= address && address <= map->range[hint].last)
		return (ptrdiff_t)hint;
	ptrdiff_t at = iod_map_floor(map, address);
	if (at < 0 || address > map->range[at].last)
		return -1;
	map->hint = (size_t)at;
	return at;
}

uint64_t iod_map_hole(const struct iod_map *map, uint64_t address)
{
	size_t next = (size_t)(iod_map_floor(map, address) + 1);

	return next < map->count ? map->first[next] - 1 : UINT64_MAX;
}

static int map_reserve(struct iod_map *map, size_t count)
{
	if (count <= map->room)
		return 0;
	size_t room = map->room ? map->room * 2 : 8;
	uint64_t *first = realloc(map->first, room * sizeof *first);
	if (!first)
		return -ENOMEM;
	map->first = first;
	struct iod_range *range = realloc(map->range, room * sizeof *range);
	if (!range)
		return -ENOMEM;
	map->range = range;
	map->room = room;
	return 0;
}

static void map_open(struct iod_map *map, size_t at)
{
	memmove(map->first + at + 1, map->first + at, (map->count - at) * sizeof *map->first);
	memmove(map->range + at + 1, map->range + at, (map->count - at) * sizeof *map->range);
	map->count++;
}

bool iod_map_overlaps(const struct iod_map *map, uint64_t first, uint64_t last)
{
	ptrdiff_t at = iod_map_floor(map, last);
	return at >= 0 && map->range[at].last >= first;
}

int iod_map_insert(struct iod_map *map, uint64_t first, uint64_t last, uint64_t base, struct iod_region *region,
		   uint32_t access)
{
	if (iod_map_overlaps(map, first, last))
		return -EEXIST;
	if (map_reserve(map, map->count + 1) < 0)
		return -ENOMEM;
	size_t at = (size_t)(iod_map_floor(map, first) + 1);
	map_open(map, at);
	map->first[at] = first;
	map->range[at] = (struct iod_range){.last = last, .base = base, .region = region, .access = access,
					   .host = region && region->kind != IOD_DEVICE ? region->host + base : NULL};
	if (region)
		iod_region_get(region);
	return 0;
}

int iod_map_remove(struct iod_map *map, uint64_t first, uint64_t last, uint64_t *removed)
{
	uint64_t gone = 0;
	ptrdiff_t floor = iod_map_floor(map, first);
	size_t at = floor < 0 ? 0 : (size_t)floor;

	/* At most one range reaches beyond both ends, and only then does the count grow. */
	if (map_reserve(map, map->count + 1) < 0)
		return -ENOMEM;
	if (at < map->count && map->range[at].last < first)
		at++;
	if (at < map->count && map->first[at] < first) {
		struct iod_range *r = &map->range[at];
		uint64_t end = iod_min64(r->last, last);
		gone += end - first + 1;
		if (r->last > last) {
			struct iod_range tail = *r;
			tail.base += (last + 1) - map->first[at];
			tail.host += tail.host ? (last + 1) - map->first[at] : 0;
			r->last = first - 1;
			map_open(map, at + 1);
			map->first[at + 1] = last + 1;
			map->range[at + 1] = tail;
			if (tail.region)
				iod_region_get(tail.region);
			*removed = gone;
			return 0;
		}
		r->last = first - 1;
		at++;
	}
	size_t keep = at;
	while (at < map->count && map->range[at].last <= last) {
		gone += map->range[at].last - map->first[at] + 1;
		if (map->range[at].region)
			iod_region_put(map->range[at].region);
		at++;
	}
	if (at < map->count && map->first[at] <= last) {
		struct iod_range *r = &map->range[at];
		uint64_t cut = last - map->first[at] + 1;
		gone += cut;
		r->base += cut;
		r->host += r->host ? cut : 0;
		map->first[at] = last + 1;
	}
	if (at != keep) {
		memmove(map->first + keep, map->first + at, (map->count - at) * sizeof *map->first);
		memmove(map->range + keep, map->range + at, (map->count - at) * sizeof *map->range);
		map->count -= at - keep;
	}
	*removed = gone;
	return 0;
}

void iod_map_clear(struct iod_map *map)
{
	for (size_t i = 0; i < map->count; i++)
		if (map->range[i].region)
			iod_region_put(map->range[i].region);
	free(map->first);
	free(map->range);
	*map = (struct iod_map){0};
}
