/* SPDX-License-Identifier: Apache-2.0
 *
 * straight: a loop for each size of map.  See straight.h for the invariants. */
#include "straight.h"

#define NARROW 4
#define FEW 16

/* Room for a piece a segment, so that the loops below need not look. */
static bool room_for(struct iod_translation *out, size_t count)
{
	while (out->room - out->count < count)
		if (out->room > UINT32_MAX / 2 || !iod_translation_more(out))
			return false;
	return true;
}

/* The general walk goes on where a loop stopped, and must know how far that is. */
static void walked(struct iod_translation *out, const struct iod_segment *list, size_t done, size_t count)
{
	for (size_t i = 0; done < count && i < done; i++)
		out->bytes += list[i].length;
}

/* All of it in one range of host memory, as in a memory of one region: what the range says is looked at once. */
__attribute__((noinline)) static size_t walk_range(struct iod_space *space, size_t at, const struct iod_segment *list,
						   size_t count, uint8_t access, struct iod_translation *out)
{
	const struct iod_range *range = &space->map.range[at];
	struct iod_region *region = range->region;
	const uint64_t first = space->map.first[at], reach = range->last - first; /* the last offset */
	const struct iod_piece plain = {region, 0, 0};
	uint8_t *const host = range->host, *end = NULL;
	if (!room_for(out, count))
		return 0;
	struct iovec *iov = out->iov;
	struct iod_piece *piece = out->piece;
	uint32_t n = out->count;
	size_t i;

	if (!host || (range->access & access) != access || region->closed || region->quarantined ||
	    !iod_hold_range(out, space, first, range->last))
		return 0;
	for (i = 0; i < count; i++) {
		uint64_t offset = list[i].address - first, length = list[i].length;
		/* length 0 wraps, and is too long for anything */
		if (offset > reach || length - 1 > reach - offset)
			break;
		uint8_t *where = host + offset;
		if (where == end) {
			iov[n - 1].iov_len += length;
			end += length;
			continue;
		}
		end = where + length;
		iov[n] = (struct iovec){where, length};
		piece[n] = plain;
		n++;
	}
	out->count = n;
	out->only = n ? region : NULL;
	walked(out, list, i, count);
	return i;
}

/* A few ranges: which of them were met is a bit each, and what that means is worked out after the loop.  No more than
 * NARROW are compared with all at once, without a loop; no address lies beyond those that are not there. */
static inline size_t walk_ranges(struct iod_space *space, const struct iod_segment *list, size_t count, uint8_t access,
				 struct iod_translation *out, bool narrow)
{
	const struct iod_map *map = &space->map;
	const size_t range_count = map->count;
	uint64_t few[NARROW];
	const uint64_t *const firsts = map->first;
	const struct iod_range *const ranges = map->range;
	if (!room_for(out, count))
		return 0;
	struct iovec *iov = out->iov;
	struct iod_piece *piece = out->piece;
	uint32_t n = out->count;
	const uint32_t gates = out->extents;
	uint64_t met = 0;
	const uint8_t *end = NULL; /* of the last piece; no two regions share host memory */
	size_t i;

	if (iod_any_region_shut())
		return 0;
	uint64_t usable = 0;
	for (size_t k = 0; k < range_count; k++)
		usable |= (uint64_t)(ranges[k].host && (ranges[k].access & access) == access) << k;
	for (size_t k = 0; narrow && k < NARROW; k++)
		few[k] = k < range_count ? firsts[k] : UINT64_MAX;
	for (i = 0; i < count; i++) {
		uint64_t address = list[i].address, length = list[i].length;
		ptrdiff_t at = narrow ? (ptrdiff_t)(few[0] <= address) + (few[1] <= address) + (few[2] <= address) +
						(few[3] <= address) - 1
				      : iod_map_floor(map, address);
		if ((size_t)at >= range_count) /* before the first; or the last address of all, with room left in `few` */
			break;
		const struct iod_range *range = &ranges[at];
		uint64_t offset = address - firsts[at], left = range->last - address;
		/* length 0 wraps, and is too long for anything */
		uint64_t bit = (uint64_t)1 << at;
		if ((address > range->last) | (length - 1 > left) | !(usable & bit))
			break;
		uint8_t *where = range->host + offset;
		met |= bit;
		if (where == end && piece[n - 1].region == range->region) {
			iov[n - 1].iov_len += length;
			end += length;
			continue;
		}
		end = where + length;
		iov[n] = (struct iovec){where, length};
		piece[n] = (struct iod_piece){range->region, 0, 0};
		n++;
	}
	out->count = n;
	walked(out, list, i, count);
	out->only = n && !(met & (met - 1)) ? piece[0].region : NULL;
	for (; met; met &= met - 1) {
		size_t at = (size_t)__builtin_ctzll(met);
		if (!iod_hold_range(out, space, firsts[at], ranges[at].last)) {
			/* Without its extents nothing of it may stand: the general walk begins anew, and says why. */
			iod_translation_clear(out);
			out->extents = gates;
			return 0;
		}
	}
	return i;
}

__attribute__((noinline)) static size_t walk_narrow(struct iod_space *space, const struct iod_segment *list, size_t count,
						    uint8_t access, struct iod_translation *out)
{
	return walk_ranges(space, list, count, access, out, true);
}

__attribute__((noinline)) static size_t walk_few(struct iod_space *space, const struct iod_segment *list, size_t count,
						 uint8_t access, struct iod_translation *out)
{
	return walk_ranges(space, list, count, access, out, false);
}

/* Many ranges: each segment that lies in one range of host memory is one lookup and one piece.  Stops at the
 * first that is anything else, which the general walk takes from there.  Returns segments done. */
__attribute__((noinline)) /* in its caller it has too few registers */
static size_t walk_many(struct iod_space *space, const struct iod_segment *list, size_t count, uint8_t access,
			  struct iod_translation *out)
{
	const struct iod_map *map = &space->map;
	const uint64_t *firsts = map->first;
	const struct iod_range *ranges = map->range;
	const bool shut = iod_any_region_shut();
	struct iovec *iov = out->iov;
	struct iod_piece *piece = out->piece;
	uint32_t n = out->count, room = out->room;
	uint64_t bytes = 0;
	const struct iod_region *region = NULL;
	uint8_t *end = NULL; /* of the last piece */
	uintptr_t differ = 0; /* bits in which the regions differ from the first */
	size_t i;

	for (i = 0; i < count; i++) {
		uint64_t address = list[i].address, length = list[i].length;
		ptrdiff_t at = iod_map_floor(map, address);
		if (at < 0 || length == 0)
			break;
		const struct iod_range *range = &ranges[at];
		if (address > range->last || length - 1 > range->last - address || !range->host ||
		    (range->access & access) != access)
			break;
		if (shut && (range->region->closed || range->region->quarantined))
			break;
		if (!iod_hold_range(out, space, firsts[at], range->last))
			break;
		uint8_t *host = range->host + (address - firsts[at]);
		bytes += length;
		if (host == end && range->region == region) {
			iov[n - 1].iov_len += length;
			end = host + length;
			continue;
		}
		if (n == room) {
			out->count = n;
			if (!iod_translation_more(out)) {
				bytes -= length;
				break;
			}
			iov = out->iov;
			piece = out->piece;
			room = out->room;
		}
		region = range->region;
		differ |= (uintptr_t)region ^ (uintptr_t)(n ? piece[0].region : region);
		end = host + length;
		iov[n] = (struct iovec){host, length};
		piece[n] = (struct iod_piece){range->region, 0, 0};
		n++;
	}
	out->count = n;
	out->only = differ || n == 0 ? NULL : piece[0].region;
	out->bytes += bytes;
	return i;
}

size_t iod_straight(struct iod_space *space, const struct iod_segment *list, size_t count, uint8_t access,
		    struct iod_translation *out)
{
	size_t ranges = space->map.count;
	return ranges == 1	? walk_range(space, 0, list, count, access, out)
	       : ranges <= NARROW ? walk_narrow(space, list, count, access, out)
	       : ranges <= FEW	  ? walk_few(space, list, count, access, out)
				  : walk_many(space, list, count, access, out);
}
