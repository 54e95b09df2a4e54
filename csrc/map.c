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

/* The ranges, `before` places into arrays of this room, which may be the same ones. */
static void map_place(struct iod_map *map, uint64_t *first, struct iod_range *range, size_t before, size_t room)
{
	if (map->count) {
		memmove(first + before, map->first, map->count * sizeof *first);
		memmove(range + before, map->range, map->count * sizeof *range);
	}
	map->first = first + before;
	map->range = range + before;
	map->before = before;
	map->after = room - before - map->count;
}

/* A free place at each end.  What makes it leaves room in proportion to the count, so that it is seldom. */
static int map_reserve(struct iod_map *map)
{
	if (map->before && map->after)
		return 0;
	size_t room = map->before + map->count + map->after, spare = room - map->count;
	uint64_t *first = map->first ? map->first - map->before : NULL;
	struct iod_range *range = map->range ? map->range - map->before : NULL;

	if (spare >= 2 && spare >= map->count / 4) {
		map_place(map, first, range, spare / 2, room);
		return 0;
	}
	size_t more = room ? room * 2 : 8;
	uint64_t *new_first = malloc(more * sizeof *new_first);
	struct iod_range *new_range = malloc(more * sizeof *new_range);
	if (!new_first || !new_range) {
		free(new_first);
		free(new_range);
		return -ENOMEM;
	}
	map_place(map, new_first, new_range, (more - map->count) / 2, more);
	free(first);
	free(range);
	return 0;
}

static void map_move(struct iod_map *map, size_t from, size_t to, size_t count)
{
	memmove(map->first + to, map->first + from, count * sizeof *map->first);
	memmove(map->range + to, map->range + from, count * sizeof *map->range);
}

/* A place for one more, which map_reserve has seen to: the shorter side moves. */
static void map_open(struct iod_map *map, size_t at)
{
	if (at < map->count / 2) {
		map->first--;
		map->range--;
		map->before--;
		map_move(map, 1, 0, at);
	} else {
		map->after--;
		map_move(map, at, at + 1, map->count - at);
	}
	map->count++;
}

static void map_close(struct iod_map *map, size_t at, size_t end)
{
	size_t gone = end - at;

	if (at < map->count - end) {
		map_move(map, 0, gone, at);
		map->first += gone;
		map->range += gone;
		map->before += gone;
	} else {
		map_move(map, end, at, map->count - end);
		map->after += gone;
	}
	map->count -= gone;
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
	if (map_reserve(map) < 0)
		return -ENOMEM;
	map->version++;
	size_t at = (size_t)(iod_map_floor(map, first) + 1);
	map_open(map, at);
	map->first[at] = first;
	map->range[at] = (struct iod_range){.last = last, .base = base, .region = region, .access = access,
					   .host = region && iod_region_is_host(region) ? region->host + base : NULL};
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
	if (map_reserve(map) < 0)
		return -ENOMEM;
	map->version++;
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
	if (at != keep)
		map_close(map, keep, at);
	*removed = gone;
	return 0;
}

void iod_map_clear(struct iod_map *map)
{
	for (size_t i = 0; i < map->count; i++)
		if (map->range[i].region)
			iod_region_put(map->range[i].region);
	if (map->first) {
		free(map->first - map->before);
		free(map->range - map->before);
	}
	*map = (struct iod_map){.version = map->version + 1};
}
