/* SPDX-License-Identifier: Apache-2.0
 *
 * pagetable: see pagetable.h for the invariants. */
#include "pagetable.h"

#include "bytes.h"

#include <stdlib.h>
#include <string.h>

#define NO_RANGE UINT16_MAX

struct iod_table *iod_table_new(unsigned bits)
{
	size_t slots = (size_t)1 << bits;
	struct iod_table *table = calloc(1, sizeof *table + slots * sizeof table->slot[0]);

	if (!table)
		return NULL;
	table->mask = (uint32_t)(slots - 1);
	for (size_t i = 0; i < slots; i++)
		table->slot[i].page = IOD_TABLE_NO_PAGE;
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
}

void iod_table_flush(struct iod_table *table, uint64_t first, uint64_t last)
{
	if (!table->filled || first > table->last || last < table->first)
		return;
	uint64_t from = first > table->first ? (first - table->first) >> table->page_shift : 0;
	uint64_t to = (iod_min64(last, table->last) - table->first) >> table->page_shift;

	if (to - from <= table->mask) {
		for (uint64_t page = from; page <= to; page++) {
			struct iod_table_slot *slot = &table->slot[page & table->mask];
			if (slot->page == page)
				slot->page = IOD_TABLE_NO_PAGE;
		}
		return;
	}
	for (uint32_t i = 0; i <= table->mask; i++)
		if (table->slot[i].page >= from && table->slot[i].page <= to)
			table->slot[i].page = IOD_TABLE_NO_PAGE;
	if (from == 0 && to == (table->last - table->first) >> table->page_shift)
		table->filled = 0;
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

/* Asks the table, and keeps the answer if there is one. */
__attribute__((noinline)) static enum iod_cause fill(struct iod_space *space, uint64_t page, uint8_t access)
{
	struct iod_table *table = space->table;
	uint64_t entry;

	if (!read_entry(space, page, &entry))
		return IOD_C_TABLE;
	if ((entry & table->valid) != table->valid)
		return IOD_C_UNMAPPED;
	uint8_t rights = IOD_READ | ((entry & table->write) == table->write ? IOD_WRITE : 0);
	if ((rights & access) != access)
		return IOD_C_PERMISSION;
	struct iod_table_slot *slot = &table->slot[page & table->mask];
	*slot = (struct iod_table_slot){
		.page = (uint32_t)page, .range = NO_RANGE, .access = rights, .target = (entry & table->frame) << table->shift};
	table->filled = 1;
	if (space->next->kind == IOD_MEMORY) {
		ptrdiff_t at = iod_map_floor(&space->next->map, slot->target);
		if (space->next->map.count && at >= 0 && at < NO_RANGE)
			slot->range = (uint16_t)at;
	}
	return IOD_C_NONE;
}

static inline bool holds(const struct iod_table_slot *slot, uint64_t page, uint8_t access)
{
	return slot->page == page && (slot->access & access) == access;
}

enum iod_cause iod_table_find(struct iod_space *space, uint64_t address, uint8_t access, uint64_t *length, uint64_t *target)
{
	struct iod_table *table = space->table;
	uint64_t n = *length - 1, left; /* from the first byte to the last */

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
	uint64_t offset = address - table->first, page = offset >> table->page_shift;
	const struct iod_table_slot *slot = &table->slot[page & table->mask];
	if (holds(slot, page, access)) {
		table->hits++;
	} else {
		enum iod_cause cause = fill(space, page, access);
		if (cause != IOD_C_NONE)
			return cause;
	}
	uint64_t in_page = ((uint64_t)1 << table->page_shift) - 1, in = offset & in_page;
	left = in_page - in;
	*length = iod_min64(n, left) + 1;
	*target = slot->target + in;
	return IOD_C_NONE;
}

/* Room for so many more of both; false: the general walk says what is wrong. */
static inline bool room_for(struct iod_translation *out, uint64_t pieces, uint64_t extents)
{
	while (out->room - out->count < pieces)
		if (out->room > UINT32_MAX / 2 || !iod_translation_more(out))
			return false;
	while (out->extents_room - out->extents < extents)
		if (out->extents_room > UINT32_MAX / 2 || !iod_translation_more_extents(out))
			return false;
	return true;
}

#define RANGES 64 /* of the memory below, each a bit of those that were met */

size_t iod_table_walk(struct iod_space *space, const struct iod_segment *list, size_t count, uint8_t access,
		      struct iod_translation *out, uint64_t *skip)
{
	struct iod_table *const table = space->table;
	const struct iod_space *const memory = space->next;
	const size_t ranges = memory->map.count;

	if (table->mode != IOD_TABLE_TRANSLATES || memory->kind != IOD_MEMORY || iod_any_region_shut() || ranges > RANGES ||
	    !room_for(out, count, count + ranges))
		return 0;
	const uint64_t *const firsts = memory->map.first;
	const struct iod_range *const range = memory->map.range;
	const uint64_t first = table->first, reach = table->last - first, page_bytes = (uint64_t)1 << table->page_shift;
	uint64_t usable = 0, met = 0, hits = 0, bytes = 0, done = 0;
	struct iod_region *region = NULL;
	const uint8_t *end = NULL;
	uint32_t n = out->count;
	struct iod_extent *extent = out->extent + out->extents; /* where the next one goes */
	uint64_t next = 0;					/* the address behind the last one; 0: there is none */
	size_t i;

	for (size_t k = 0; k < ranges; k++)
		usable |= (uint64_t)(range[k].host && (range[k].access & access) == access) << k;
	for (i = 0; i < count; i++, done = 0) {
		uint64_t offset = list[i].address - first, left = list[i].length;
		if (left == 0)
			continue;
		if (offset > reach || left - 1 > reach - offset)
			break;
		uint64_t in = offset & (page_bytes - 1);
		if (left > page_bytes - in) {
			out->count = n;
			if (!room_for(out, ((left - 1) >> table->page_shift) + 2 + (count - i), 0))
				break;
		}
		do {
			uint64_t page = offset >> table->page_shift;
			const struct iod_table_slot *slot = &table->slot[page & table->mask];
			if (!holds(slot, page, access) && fill(space, page, access) != IOD_C_NONE)
				goto out;
			hits++;
			uint64_t size = iod_min64(left, page_bytes - in), target = slot->target + in;
			size_t at = slot->range;
			if (at >= ranges)
				goto out;
			uint64_t into = target - firsts[at];
			if (target < firsts[at] || target > range[at].last || size - 1 > range[at].last - target ||
			    !(usable >> at & 1))
				goto out;
			uint8_t *where = range[at].host + into;
			met |= (uint64_t)1 << at;
			if (where == end && range[at].region == region) {
				out->iov[n - 1].iov_len += size;
			} else {
				region = range[at].region;
				out->iov[n] = (struct iovec){where, size};
				out->piece[n] = (struct iod_piece){region, 0, 0};
				n++;
			}
			end = where + size;
			offset += size;
			left -= size;
			done += size;
			in = 0;
		} while (left);
		bytes += done;
		uint64_t address = list[i].address;
		if (next && address == next)
			extent[-1].last = address + (done - 1);
		else
			*extent++ = (struct iod_extent){space, address, address + (done - 1)};
		next = address + done;
	}
	done = 0;
out:
	if (done) {
		uint64_t address = list[i].address;
		bytes += done;
		*extent++ = (struct iod_extent){space, address, address + (done - 1)};
	}
	table->hits += hits;
	out->count = n;
	out->only = n && !(met & (met - 1)) ? out->piece[0].region : NULL;
	out->bytes += bytes;
	for (; met; met &= met - 1) {
		size_t at = (size_t)__builtin_ctzll(met);
		*extent++ = (struct iod_extent){(struct iod_space *)memory, firsts[at], range[at].last};
	}
	out->extents = (uint32_t)(extent - out->extent);
	*skip = done;
	return i;
}
