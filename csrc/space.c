/* SPDX-License-Identifier: Apache-2.0
 *
 * space: the walk down a chain, a piece at a time.  See space.h for the invariants. */
#include "straight.h"

#include "pagetable.h"

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
	return iod_hold_range(t, gate, 0, UINT64_MAX);
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
	if (!iod_hold_range(out, space, space->map.first[at], range->last) ||
	    !add_piece(out, region, range->base + (address - space->map.first[at]), n, lanes, phase))
		return IOD_WALK_NO_MEMORY;
	if (lanes || !iod_region_is_host(region))
		out->plain = false;
	out->remote |= region->kind == IOD_REMOTE;
	*length = n;
	return IOD_WALK_OK;
}

uint8_t *iod_space_host(struct iod_space *space, uint64_t address, uint64_t length, uint8_t access,
			struct iod_region **region)
{
	while (space->kind == IOD_GATE && !space->shut)
		space = space->next;
	ptrdiff_t at = space->kind == IOD_MEMORY ? iod_straight_range(space, address, length, access) : -1;
	if (at < 0)
		return NULL;
	*region = space->map.range[at].region;
	return space->map.range[at].host + (address - space->map.first[at]);
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
	if (count == 1 && skip == 0 && first->kind == IOD_MEMORY && iod_straight_one(first, list, access, out))
		return IOD_WALK_OK;
	size_t begin = 0;
	if (first->kind == IOD_MEMORY && skip == 0) {
		begin = iod_straight(first, list, count, access, out);
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
