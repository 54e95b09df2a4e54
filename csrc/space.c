/* SPDX-License-Identifier: Apache-2.0
 *
 * space: the walk.  See space.h for the invariants. */
#include "space.h"

#include "bytes.h"
#include "pagetable.h"

#include <stdlib.h>
#include <string.h>

const char *iod_cause_text(enum iod_cause cause)
{
	static const char *const text[] = {
		[IOD_C_NONE] = "no fault",
		[IOD_C_UNMAPPED] = "nothing is mapped there",
		[IOD_C_PERMISSION] = "the mapping does not permit it",
		[IOD_C_LIMIT] = "beyond the limit",
		[IOD_C_WRAP] = "the segment runs past 2^64 - 1",
		[IOD_C_QUARANTINE] = "quarantined: a revocation failed there",
		[IOD_C_GONE] = "the memory behind it is gone",
		[IOD_C_MESSAGE] = "bus error in a device window",
		[IOD_C_HOOK] = "refused by the stage",
		[IOD_C_SHUT] = "it is off: nothing passes",
		[IOD_C_REMOTE] = "whoever has the memory refused",
		[IOD_C_TABLE] = "the page table is not in memory there",
	};
	return text[cause];
}

void iod_region_get(struct iod_region *region)
{
	region->references++;
}

/* Regions that are closed or quarantined and still there: as long as there is none, a walk need not ask. */
static uint32_t shut_regions;

bool iod_any_region_shut(void)
{
	return shut_regions != 0;
}

void iod_region_put(struct iod_region *region)
{
	if (--region->references)
		return;
	if (region->closed || region->quarantined)
		shut_regions--;
	if (region->free)
		region->free(region);
}

void iod_region_close(struct iod_region *region)
{
	if (!region->closed && !region->quarantined)
		shut_regions++;
	region->closed = true;
}

void iod_region_quarantine(struct iod_region *region)
{
	if (!region->closed && !region->quarantined)
		shut_regions++;
	region->quarantined = true;
}

void iod_region_mark_dirty(struct iod_region *region, uint64_t offset, uint64_t length)
{
	const struct iod_dirty *log = __atomic_load_n(&region->dirty, __ATOMIC_ACQUIRE);

	if (!log || length == 0)
		return;
	uint64_t bit = offset >> log->shift, last = (offset + length - 1) >> log->shift;
	if (last >= log->bits)
		last = log->bits - 1;
	/* A log that is gone (its file was truncated) has nobody who could miss the bits. */
	(void)iod_set_bits(log->byte, bit + log->first, last + log->first);
}

uint64_t iod_list_bytes(const struct iod_segment *list, size_t count)
{
	uint64_t sum = 0, bits = 0;

	for (size_t i = 0; i < count; i++) {
		sum += list[i].length;
		bits |= list[i].length;
	}
	if (bits < (uint64_t)1 << 38 && count < (size_t)1 << 25) /* nothing can have wrapped */
		return sum;
	sum = 0;
	for (size_t i = 0; i < count; i++) {
		if (list[i].length > (uint64_t)INT64_MAX - sum)
			return UINT64_MAX;
		sum += list[i].length;
	}
	return sum;
}

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

/* Neighbours in the same space become one extent: the list is looked at once per revocation and should be short. */
static inline bool add_extent(struct iod_translation *t, struct iod_space *space, uint64_t first, uint64_t last)
{
	for (uint32_t back = 1; back <= 2 && back <= t->extents; back++) {
		struct iod_extent *e = &t->extent[t->extents - back];
		if (e->space == space && e->last != UINT64_MAX && e->last + 1 == first) {
			e->last = last;
			return true;
		}
	}
	if (t->extents == t->extents_room && !iod_translation_more_extents(t))
		return false;
	t->extent[t->extents++] = (struct iod_extent){space, first, last};
	return true;
}

static inline bool hold_range(struct iod_translation *t, struct iod_space *space, uint64_t first, uint64_t last)
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

static inline bool add_piece(struct iod_translation *t, struct iod_region *region, uint64_t offset, uint64_t length,
			     uint8_t lanes, uint8_t phase)
{
	/* Where there is no host memory, the offset travels in the pointer, which is never followed. */
	uint8_t *base = iod_region_is_host(region) ? region->host + offset : (uint8_t *)(uintptr_t)offset;
	t->bytes += length;
	if (t->count) {
		struct iovec *prev = &t->iov[t->count - 1];
		struct iod_piece *piece = &t->piece[t->count - 1];
		if (piece->region == region && region->kind != IOD_DEVICE && (uint8_t *)prev->iov_base + prev->iov_len == base &&
		    piece->lanes == lanes && (lanes == 0 || ((piece->phase + prev->iov_len) & 7) == phase)) {
			prev->iov_len += length;
			return true;
		}
	}
	if (t->count == t->room && !iod_translation_more(t))
		return false;
	t->only = t->count == 0 || t->only == region ? region : NULL;
	t->iov[t->count] = (struct iovec){base, length};
	t->piece[t->count] = (struct iod_piece){region, lanes, phase};
	t->count++;
	return true;
}

static enum iod_walk_result refuse(struct iod_fault *fault, struct iod_space *space, uint64_t address, enum iod_cause cause)
{
	fault->space = space;
	fault->address = address;
	fault->cause = (uint8_t)cause;
	return IOD_WALK_FAULT;
}

/* The walks that ask a hook just now: what they have found so far is leased by nobody yet. */
static struct asking {
	const struct iod_space *top;
	struct asking *next;
} *asking;

static enum iod_verdict ask(const struct iod_space *top, struct iod_space *space, uint64_t address, uint64_t *length,
			    uint8_t access)
{
	struct asking here = {top, asking};

	asking = &here;
	enum iod_verdict verdict = space->hook(space, address, length, access);
	/* Not always the newest: in a hook the glue's lock may have gone to another engine's thread. */
	for (struct asking **at = &asking; *at; at = &(*at)->next)
		if (*at == &here) {
			*at = here.next;
			break;
		}
	return verdict;
}

bool iod_space_is_asked(const struct iod_space *space)
{
	for (const struct asking *each = asking; each; each = each->next)
		for (const struct iod_space *at = each->top; at; at = at->next)
			if (at == space)
				return true;
	return false;
}

/* What passes a gate holds all of it, once a list. */
static inline bool hold_gate(struct iod_translation *t, struct iod_space *gate)
{
	return hold_range(t, gate, 0, UINT64_MAX);
}

/* One piece, down the chain.  *length comes back as the bytes that one range of every space on the way holds.
 * `top`: of the whole chain; `space`: what comes first behind the gates that the list has passed already. */
static inline enum iod_walk_result walk_piece(const struct iod_space *top, struct iod_space *space, uint64_t address,
					      uint64_t *length, uint8_t access, struct iod_translation *out,
					      struct iod_fault *fault)
{
	uint64_t n = *length;
	uint8_t lanes = 0, phase = 0;
	ptrdiff_t at;
	struct {
		struct iod_space *space;
		uint64_t first;
	} way[IOD_MAX_DEPTH];
	unsigned ways = 0;

	for (;; space = space->next) {
		switch (space->kind) {
		case IOD_WINDOW:
			if (address > space->last)
				return refuse(fault, space, address, IOD_C_LIMIT);
			n = iod_min64(n - 1, space->last - address) + 1;
			address += space->offset;
			continue;
		case IOD_LANES:
			lanes ^= space->lanes;
			phase = address & 7;
			continue;
		case IOD_HOOK: {
			enum iod_verdict verdict = ask(top, space, address, &n, access);
			if (verdict == IOD_PASS)
				continue;
			*length = n;
			refuse(fault, space, address, IOD_C_HOOK);
			return verdict == IOD_PENDING ? IOD_WALK_PENDING : IOD_WALK_FAULT;
		}
		case IOD_GATE:
			if (space->shut)
				return refuse(fault, space, address, IOD_C_SHUT);
			if (out->count == 0 && !hold_gate(out, space)) /* every piece goes this way */
				return IOD_WALK_NO_MEMORY;
			continue;
		case IOD_IOMMU:
			at = iod_map_find(&space->map, address);
			if (at < 0 || (space->map.range[at].access & access) != access) {
				refuse(fault, space, address, at < 0 ? IOD_C_UNMAPPED : IOD_C_PERMISSION);
				if (!space->misses_wait)
					return IOD_WALK_FAULT;
				uint64_t miss = at < 0 ? iod_map_hole(&space->map, address) : space->map.range[at].last;
				n = iod_min64(n - 1, miss - address) + 1;
				*length = n;
				enum iod_verdict verdict = ask(top, space, address, &n, access);
				if (verdict == IOD_PENDING)
					return IOD_WALK_PENDING;
				if (verdict == IOD_REFUSE)
					fault->cause = IOD_C_HOOK;
				return IOD_WALK_FAULT;
			}
			n = iod_min64(n - 1, space->map.range[at].last - address) + 1;
			way[ways].space = space;
			way[ways++].first = address;
			address = space->map.range[at].base + (address - space->map.first[at]);
			continue;
		case IOD_TABLE: {
			uint64_t target;
			enum iod_cause cause = iod_table_find(space, address, access, &n, &target);
			if (cause != IOD_C_NONE)
				return refuse(fault, space, address, cause);
			way[ways].space = space;
			way[ways++].first = address;
			address = target;
			continue;
		}
		case IOD_MEMORY:
			break;
		}
		break;
	}
	at = iod_map_find(&space->map, address);
	if (at < 0)
		return refuse(fault, space, address, IOD_C_UNMAPPED);
	const struct iod_range *range = &space->map.range[at];
	struct iod_region *region = range->region;
	if (region->closed || region->quarantined)
		return refuse(fault, space, address, region->closed ? IOD_C_UNMAPPED : IOD_C_QUARANTINE);
	if ((range->access & access) != access)
		return refuse(fault, space, address, IOD_C_PERMISSION);
	n = iod_min64(n - 1, range->last - address) + 1;
	for (unsigned i = 0; i < ways; i++)
		if (!add_extent(out, way[i].space, way[i].first, way[i].first + (n - 1)))
			return IOD_WALK_NO_MEMORY;
	/* A memory gives back whole ranges only, so the range is what is held. */
	if (!hold_range(out, space, space->map.first[at], range->last) ||
	    !add_piece(out, region, range->base + (address - space->map.first[at]), n, lanes, phase))
		return IOD_WALK_NO_MEMORY;
	if (lanes || !iod_region_is_host(region))
		out->plain = false;
	out->remote |= region->kind == IOD_REMOTE;
	*length = n;
	return IOD_WALK_OK;
}

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
	    !hold_range(out, space, first, range->last))
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

/* Of a memory: the range of host memory that holds all of it and may be accessed so, or -1. */
static inline ptrdiff_t one_range(struct iod_space *space, uint64_t address, uint64_t length, uint8_t access)
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
static inline bool walk_one(struct iod_space *space, const struct iod_segment *segment, uint8_t access,
			    struct iod_translation *out)
{
	ptrdiff_t at = one_range(space, segment->address, segment->length, access);
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

uint8_t *iod_space_host(struct iod_space *space, uint64_t address, uint64_t length, uint8_t access,
			struct iod_region **region)
{
	while (space->kind == IOD_GATE && !space->shut)
		space = space->next;
	ptrdiff_t at = space->kind == IOD_MEMORY ? one_range(space, address, length, access) : -1;
	if (at < 0)
		return NULL;
	*region = space->map.range[at].region;
	return space->map.range[at].host + (address - space->map.first[at]);
}

#define NARROW 4

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

	if (shut_regions)
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
		if (!hold_range(out, space, firsts[at], ranges[at].last)) {
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
	const bool shut = shut_regions != 0;
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
		if (!hold_range(out, space, firsts[at], range->last))
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

enum iod_walk_result iod_walk(struct iod_space *top, const struct iod_segment *list, size_t count, uint64_t skip,
			      uint8_t access, struct iod_translation *out, struct iod_fault *fault)
{
	uint64_t offset = 0;
	struct iod_fault found = {.access = access}; /* of a piece that is not the first to miss */
	unsigned misses = 0;

	iod_translation_clear(out);
	fault->access = access;
	struct iod_space *first = top;
	for (; first->kind == IOD_GATE && !first->shut; first = first->next)
		if (!hold_gate(out, first))
			return IOD_WALK_NO_MEMORY;
	if (count == 1 && skip == 0 && first->kind == IOD_MEMORY && walk_one(first, list, access, out))
		return IOD_WALK_OK;
	size_t begin = 0;
	if (first->kind == IOD_MEMORY && skip == 0) {
		begin = first->map.count == 1	     ? walk_range(first, 0, list, count, access, out)
			: first->map.count <= NARROW ? walk_narrow(first, list, count, access, out)
			: first->map.count <= 16     ? walk_few(first, list, count, access, out)
						     : walk_many(first, list, count, access, out);
		offset = out->bytes;
	} else if (first->kind == IOD_TABLE && skip == 0) {
		begin = iod_table_walk(first, list, count, access, out, &skip);
		offset = out->bytes - skip;
	}
	for (size_t i = begin; i < count; i++) {
		uint64_t address = list[i].address, left = list[i].length;
		if (skip) {
			uint64_t cut = iod_min64(skip, left);
			if (cut && left != cut && address > UINT64_MAX - cut) { /* before any miss: nothing was walked */
				fault->offset = offset + (UINT64_MAX - address) + 1;
				return refuse(fault, top, UINT64_MAX, IOD_C_WRAP);
			}
			address += cut;
			left -= cut;
			skip -= cut;
			offset += cut;
		}
		while (left) {
			uint64_t n = left;
			if (n - 1 > UINT64_MAX - address)
				n = UINT64_MAX - address + 1; /* never 0: address 0 cannot wrap */
			enum iod_walk_result result = walk_piece(top, first, address, &n, access, out, misses ? &found : fault);
			if (result != IOD_WALK_OK) {
				if (!misses)
					fault->offset = offset;
				/* A miss does not end the walk: what else is missing is asked for in the same go. */
				if (result != IOD_WALK_PENDING)
					return misses ? IOD_WALK_PENDING : result;
				if (++misses == IOD_MISSES)
					return IOD_WALK_PENDING;
			}
			offset += n;
			left -= n;
			address += n;
			if (left && address == 0) { /* it ran past the top */
				if (misses)
					return IOD_WALK_PENDING;
				fault->offset = offset;
				return refuse(fault, top, UINT64_MAX, IOD_C_WRAP);
			}
		}
	}
	return misses ? IOD_WALK_PENDING : IOD_WALK_OK;
}
