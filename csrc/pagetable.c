/* SPDX-License-Identifier: Apache-2.0
 *
 * pagetable: see pagetable.h for the invariants. */
#include "pagetable.h"

#include "bytes.h"

#include <stdlib.h>
#include <string.h>

struct iod_table *iod_table_new(unsigned bits)
{
	struct iod_table *table = calloc(1, sizeof *table + ((size_t)2 << bits) * sizeof table->slot[0]);

	if (!table)
		return NULL;
	table->host = table->slot + ((size_t)1 << bits);
	table->slot_bits = (uint8_t)bits;
	table->mask = (uint32_t)(((uint64_t)1 << bits) - 1);
	return table;
}

const char *iod_table_wrong(const struct iod_table *table)
{
	if (table->entry_bytes != 4 && table->entry_bytes != 8)
		return "an entry has 4 or 8 bytes";
	if (table->page_shift < 3 || table->page_shift > 32)
		return "a page has 8 bytes to 4 GiB";
	uint64_t page = (uint64_t)1 << table->page_shift;
	uint64_t all = table->entry_bytes == 8 ? UINT64_MAX : UINT32_MAX;
	if (!table->valid || (table->valid | table->write | table->frame) & ~all)
		return "the bits of an entry lie outside it, or none says that it is valid";
	if (!table->frame || table->shift > 63 || table->frame << table->shift >> table->shift != table->frame ||
	    (table->frame << table->shift) % page)
		return "the address bits of an entry do not make the address of a page of 64 bits";
	if (table->first > table->last || table->first % page || (table->last + 1) % page)
		return "the range is not made of pages";
	uint64_t pages = ((table->last - table->first) >> table->page_shift) + 1;
	if (pages > IOD_TABLE_MOST_PAGES)
		return "the range has more than 2^31 pages";
	if (table->base % table->entry_bytes)
		return "the table is not aligned to its entries";
	if (table->base > UINT64_MAX - (pages * table->entry_bytes - 1))
		return "the table runs past 2^64 - 1";
	return NULL;
}

void iod_table_set(struct iod_table *table, const struct iod_table *description)
{
	iod_table_flush(table, 0, UINT64_MAX);
	table->region = NULL;
	table->valid = description->valid;
	table->write = description->write;
	table->frame = description->frame;
	table->shift = description->shift;
	table->entry_bytes = description->entry_bytes;
	table->page_shift = description->page_shift;
	table->big_endian = description->big_endian;
	table->base = description->base;
	table->first = description->first;
	table->last = description->last;
	table->mode = description->mode;
	table->outside = description->outside;
	table->alone = (table->last - table->first) >> table->page_shift <= table->mask;
}

void iod_table_flush(struct iod_table *table, uint64_t first, uint64_t last)
{
	if (!table->filled || first > table->last || last < table->first)
		return;
	uint64_t from = first > table->first ? (first - table->first) >> table->page_shift : 0;
	uint64_t to = (iod_min64(last, table->last) - table->first) >> table->page_shift;

	if (from == 0 && to == (table->last - table->first) >> table->page_shift) {
		memset(table->slot, 0, ((size_t)table->mask + 1) * 2 * sizeof table->slot[0]);
		table->filled = false;
		return;
	}
	/* Of each place at most once, though more pages may share it; another page's translation may go with it. */
	if (to - from > table->mask)
		to = from + table->mask;
	for (uint64_t page = from; page <= to; page++)
		table->slot[page & table->mask] = table->host[page & table->mask] = 0;
}

struct entry_read {
	const uint8_t *from;
	uint64_t raw;
	uint8_t bytes;
};

/* One load each: half an entry is never seen. */
static void entry_read(void *arg)
{
	struct entry_read *entry = arg;
	uint32_t word;

	if (entry->bytes == 8) {
		memcpy(&entry->raw, entry->from, 8);
	} else {
		memcpy(&word, entry->from, 4);
		entry->raw = word;
	}
}

/* Of a page of the range. */
static bool read_entry(struct iod_space *space, uint64_t page, uint64_t *entry)
{
	struct iod_table *table = space->table;
	struct iod_region *region;
	uintptr_t fault;
	struct entry_read read = {.bytes = table->entry_bytes};

	table->reads++;
	read.from = iod_space_host(space->next, table->base + page * table->entry_bytes, table->entry_bytes, IOD_READ, &region);
	if (!read.from || !iod_guarded(entry_read, &read, &fault))
		return false;
	if (table->big_endian)
		read.raw = table->entry_bytes == 8 ? __builtin_bswap64(read.raw) : __builtin_bswap32((uint32_t)read.raw);
	*entry = read.raw;
	return true;
}

bool iod_table_entry(struct iod_space *space, uint64_t address, uint64_t *entry)
{
	const struct iod_table *table = space->table;

	return address >= table->first && address <= table->last &&
	       read_entry(space, (address - table->first) >> table->page_shift, entry);
}

void iod_table_faulted(const struct iod_fault *fault)
{
	struct iod_space *space = fault->space;
	uint64_t length = 1;

	if (space->kind != IOD_TABLE)
		return;
	space->table->faults++;
	space->table->cause = fault->cause;
	if (space->table->notes)
		(void)space->hook(space, fault->address, &length, fault->access);
}

static inline uint64_t tag_of(const struct iod_table *table, uint64_t page)
{
	return page >> table->slot_bits << IOD_TABLE_TAG;
}

/* Asks the table, and keeps the answer if there is one. */
__attribute__((noinline)) static enum iod_cause ask_table(struct iod_space *space, uint64_t page, uint8_t access,
							  uint64_t *target)
{
	struct iod_table *table = space->table;
	uint64_t entry, tag = tag_of(table, page);

	if (!read_entry(space, page, &entry))
		return IOD_C_TABLE;
	if ((entry & table->valid) != table->valid)
		return IOD_C_UNMAPPED;
	uint8_t rights = IOD_READ | ((entry & table->write) == table->write ? IOD_WRITE : 0);
	if ((rights & access) != access)
		return IOD_C_PERMISSION;
	*target = (entry & table->frame) << table->shift;
	if (tag >> table->page_shift == 0) { /* else the table has more pages than this cache can tell apart */
		table->slot[page & table->mask] = *target | tag | rights;
		table->host[page & table->mask] = 0;
		table->filled = true;
	}
	return IOD_C_NONE;
}

/* Whether a slot is of that page, with those rights.  What may be written may be read, so an empty one never is. */
static inline bool holds(uint64_t slot, uint64_t in_page, uint64_t tag, uint8_t access)
{
	const uint64_t rights = access | IOD_READ;

	return (slot & ((in_page & ~(uint64_t)(IOD_READ | IOD_WRITE)) | rights)) == (tag | rights);
}

enum iod_cause iod_table_find(struct iod_space *space, uint64_t address, uint8_t access, uint64_t *length, uint64_t *target)
{
	struct iod_table *table = space->table;
	uint64_t n = *length - 1; /* from the first byte to the last */

	if (table->mode != IOD_TABLE_TRANSLATES || address < table->first || address > table->last) {
		bool on = table->mode == IOD_TABLE_TRANSLATES;
		if ((on ? table->outside : table->mode) == IOD_TABLE_REFUSES)
			return on ? IOD_C_LIMIT : IOD_C_SHUT;
		if (on && address < table->first)
			n = iod_min64(n, table->first - 1 - address);
		*length = n + 1;
		*target = address;
		return IOD_C_NONE;
	}
	const uint64_t in_page = ((uint64_t)1 << table->page_shift) - 1;
	uint64_t offset = address - table->first, page = offset >> table->page_shift, in = offset & in_page;
	uint64_t slot = table->slot[page & table->mask];
	if (holds(slot, in_page, tag_of(table, page), access)) {
		table->hits++;
		*target = slot & ~in_page;
	} else {
		enum iod_cause cause = ask_table(space, page, access, target);
		if (cause != IOD_C_NONE)
			return cause;
	}
	*length = iod_min64(n, in_page - in) + 1;
	*target += in;
	return IOD_C_NONE;
}

/* Room for so many more pieces; false: the general walk says what is wrong. */
static inline bool room_for(struct iod_translation *out, uint64_t pieces)
{
	while (out->room - out->count < pieces)
		if (out->room > UINT32_MAX / 2 || !iod_translation_more(out))
			return false;
	return true;
}

#define USUAL 12 /* the bits of an address in a page, for the loops that are quick */
#define USUAL_MASK ((uint64_t)(1 << USUAL) - 1)

/* The bits of a word of `host` that say which page it is of, and whether there is such access; and what they must be.  A
 * match says, too, that the page is one of the range. */
static inline uint64_t looked_at(uint8_t access)
{
	return (USUAL_MASK & ~(uint64_t)(IOD_READ | IOD_WRITE)) | access;
}
static inline uint64_t wanted(uint64_t page, unsigned slot_bits, uint8_t access)
{
	return page >> slot_bits << IOD_TABLE_TAG | access;
}

/* What is next in the host: with the piece before it, where that ends there. */
static inline __attribute__((always_inline)) void put(struct iovec **iov, struct iod_piece **piece, uint64_t *end,
						      struct iod_region *region, uint64_t where, uint64_t length)
{
	if (where == *end) {
		(*iov)[-1].iov_len += length;
	} else {
		*(*iov)++ = (struct iovec){(void *)(uintptr_t)where, length};
		*(*piece)++ = (struct iod_piece){region, 0, 0};
	}
	*end = where + length;
}

/* The usual list: each segment in one page, and it is known where that is.  Stops at the first that is anything else.
 * `alone`: no two pages of the range share a place. */
static inline __attribute__((always_inline)) size_t walk_known(const struct iod_table *table, const struct iod_segment *list,
							       size_t count, uint8_t access, struct iod_translation *out,
							       const bool alone)
{
	const uint64_t *const known = table->host;
	const uint64_t mask = table->mask, first = table->first, pages = ((table->last - first) >> USUAL) + 1,
		       bits = looked_at(access);
	const unsigned slot_bits = table->slot_bits;
	struct iod_region *const region = table->region;
	const struct iod_segment *each = list, *const stop = list + count;
	struct iovec *iov = out->iov + out->count;
	struct iod_piece *pieces = out->piece + out->count;
	uint64_t end = 0;

	for (; each < stop; each++) {
		uint64_t offset = each->address - first, length = each->length, page = offset >> USUAL, in = offset & USUAL_MASK;
		if (alone && page >= pages)
			break;
		uint64_t word = known[alone ? page : page & mask];
		/* length 0 wraps, and is too long for anything */
		if (length - 1 > (in ^ USUAL_MASK) || (word & bits) != (alone ? access : wanted(page, slot_bits, access)))
			break;
		uint64_t where = (word & ~USUAL_MASK) | in;
		put(&iov, &pieces, &end, region, where, length);
	}
	out->count = (uint32_t)(iov - out->iov);
	return (size_t)(each - list);
}

/* Each alone in a function, as the loop needs all the registers there are. */
__attribute__((noinline)) static size_t walk_small(const struct iod_table *table, const struct iod_segment *list,
						   size_t count, uint8_t access, struct iod_translation *out)
{
	return walk_known(table, list, count, access, out, true);
}
__attribute__((noinline)) static size_t walk_large(const struct iod_table *table, const struct iod_segment *list,
						   size_t count, uint8_t access, struct iod_translation *out)
{
	return walk_known(table, list, count, access, out, false);
}

/* The same for one segment of several pages: the bytes that it comes to.  There is room for a piece a page. */
__attribute__((noinline)) static uint64_t walk_run(const struct iod_table *table, uint64_t offset, const uint64_t length,
						   uint8_t access, struct iod_translation *out)
{
	const uint64_t *const known = table->host;
	const uint64_t mask = table->mask, bits = looked_at(access), start = offset, stop = offset + length;
	const unsigned slot_bits = table->slot_bits;
	struct iod_region *const region = table->region;
	struct iovec *iov = out->iov + out->count;
	struct iod_piece *pieces = out->piece + out->count;
	uint64_t end = 0;

	while (offset != stop) {
		uint64_t page = offset >> USUAL, in = offset & USUAL_MASK, word = known[page & mask];
		uint64_t size = iod_min64(stop - offset, (in ^ USUAL_MASK) + 1);
		if ((word & bits) != wanted(page, slot_bits, access))
			break;
		uint64_t where = (word & ~USUAL_MASK) | in;
		put(&iov, &pieces, &end, region, where, size);
		offset += size;
	}
	out->count = (uint32_t)(iov - out->iov);
	return offset - start;
}

/* What a piece in that range of the memory holds.  One that is there twice does no harm. */
static inline bool hold(struct iod_translation *out, const struct iod_extent *extent)
{
	for (uint32_t back = 1; back <= 4 && back <= out->extents; back++) {
		const struct iod_extent *e = &out->extent[out->extents - back];
		if (e->space == extent->space && e->first == extent->first)
			return true;
	}
	if (out->extents == out->extents_room && !iod_translation_more_extents(out))
		return false;
	out->extent[out->extents++] = *extent;
	return true;
}

/* For the next time: the page of the table is in that range of the memory, and it is known where. */
static void know(struct iod_table *table, const struct iod_extent *extent, const struct iod_range *range, uint64_t page)
{
	uint64_t slot = table->slot[page & table->mask], target = slot & ~USUAL_MASK;
	const uint64_t rights = IOD_READ | IOD_WRITE;

	if (table->page_shift != USUAL || !slot || (slot & USUAL_MASK) >> IOD_TABLE_TAG != page >> table->slot_bits)
		return;
	if (!table->region) {
		table->region = range->region;
		table->extent = *extent;
	}
	if (table->extent.first != extent->first || target < extent->first || USUAL_MASK > extent->last - target)
		return;
	uint64_t host = (uintptr_t)range->host + (target - extent->first);
	if (!(host & USUAL_MASK))
		table->host[page & table->mask] = host | (slot & USUAL_MASK & ~rights) | (slot & range->access & rights);
}

/* One page's part of a segment becomes a piece, if all of it is in one range of the memory and may be accessed so. */
static bool add_page(struct iod_translation *out, struct iod_space *space, uint64_t page, uint64_t target, uint64_t size,
		     uint8_t access)
{
	struct iod_map *map = &space->next->map;
	ptrdiff_t at = iod_map_find(map, target);

	if (at < 0 || size - 1 > map->range[at].last - target || !map->range[at].host ||
	    (map->range[at].access & access) != access)
		return false;
	const struct iod_range *range = &map->range[at];
	const struct iod_extent extent = {space->next, map->first[at], range->last};
	uint8_t *where = range->host + (target - extent.first);
	if (!room_for(out, 1) || !hold(out, &extent))
		return false;
	know(space->table, &extent, range, page);
	if (out->count) {
		struct iovec *last = &out->iov[out->count - 1];
		if ((uint8_t *)last->iov_base + last->iov_len == where && out->piece[out->count - 1].region == range->region) {
			last->iov_len += size;
			return true;
		}
	}
	out->only = out->count == 0 || out->only == range->region ? range->region : NULL;
	out->iov[out->count] = (struct iovec){where, size};
	out->piece[out->count++] = (struct iod_piece){range->region, 0, 0};
	return true;
}

/* The pieces from here on are in the known range. */
static inline bool in_known(struct iod_translation *out, const struct iod_table *table)
{
	if (!table->region || !hold(out, &table->extent))
		return false;
	out->only = out->count == 0 || out->only == table->region ? table->region : NULL;
	return true;
}

/* A segment, from so many bytes into it: how many of it are translated then. */
static uint64_t walk_segment(struct iod_space *space, const struct iod_segment *segment, uint8_t access,
			     struct iod_translation *out)
{
	struct iod_table *table = space->table;
	uint64_t offset = segment->address - table->first, done = 0, length = segment->length, target;
	const uint64_t reach = table->last - table->first;
	const uint32_t held = out->extents;

	if (length == 0 || offset > reach || length - 1 > reach - offset)
		return 0;
	if (length >> USUAL && table->page_shift == USUAL && room_for(out, (length >> USUAL) + 2) && in_known(out, table)) {
		done = walk_run(table, offset, length, access, out);
		table->hits += (done + USUAL_MASK) >> USUAL;
		if (!done)
			out->extents = held;
	}
	while (done < length) {
		uint64_t size = length - done;
		if (iod_table_find(space, segment->address + done, access, &size, &target) != IOD_C_NONE ||
		    !add_page(out, space, (offset + done) >> table->page_shift, target, size, access))
			break;
		done += size;
	}
	return done;
}

size_t iod_table_walk(struct iod_space *space, const struct iod_segment *list, size_t count, uint8_t access,
		      struct iod_translation *out, uint64_t *skip)
{
	struct iod_table *const table = space->table;
	const struct iod_space *const memory = space->next;

	if (table->mode != IOD_TABLE_TRANSLATES || memory->kind != IOD_MEMORY || !access || iod_any_region_shut() ||
	    !room_for(out, count))
		return 0;
	out->by_list = true;
	if (table->version != memory->map.version) { /* none of what was known holds any more */
		memset(table->host, 0, ((size_t)table->mask + 1) * sizeof table->host[0]);
		table->region = NULL;
		table->version = memory->map.version;
	}
	for (size_t i = 0; i < count;) {
		const uint32_t held = out->extents;
		if (list[i].length <= USUAL_MASK + 1 && room_for(out, count - i) && in_known(out, table)) {
			size_t n = (table->alone ? walk_small : walk_large)(table, list + i, count - i, access, out);
			table->hits += n;
			if (n == count) /* nobody asks how long a list is that is done */
				return count;
			if (!n)
				out->extents = held;
			for (; n; n--)
				out->bytes += list[i++].length;
			if (i == count)
				break;
		}
		uint64_t done = walk_segment(space, &list[i], access, out);
		out->bytes += done;
		if (done < list[i].length) {
			*skip = done;
			return i;
		}
		i++;
	}
	return count;
}
