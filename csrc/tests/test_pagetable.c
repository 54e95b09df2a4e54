/* SPDX-License-Identifier: Apache-2.0
 *
 * Page tables: every list, through any table and any memory, translates as a model says that looks at one byte at a
 * time; whatever is cached, and known of the host. */
#include "pagetable.h"

#include "bytes.h"
#include "check.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

const char *check_context = "";

enum { PAGE = 4096, PAGES = 40, RANGES = 4, SEGMENTS = 24 };

struct bench {
	uint64_t random;
	struct iod_space memory, space;
	struct iod_region region[RANGES];
	uint64_t base[RANGES]; /* of each region in the memory ... */
	bool placed[RANGES];   /* ... where it is there */
};

static uint32_t below(struct bench *b, uint32_t n)
{
	return check_random(&b->random) % n;
}

static uint8_t *ram_at(struct bench *b, uint64_t address, uint8_t access)
{
	for (int i = 0; i < RANGES; i++)
		if (b->placed[i] && address >= b->base[i] && address - b->base[i] < b->region[i].size &&
		    (access == IOD_READ || b->region[i].kind == IOD_RAM) && b->region[i].kind <= IOD_ROM)
			return b->region[i].host + (address - b->base[i]);
	return NULL;
}

static uint64_t entry_bits(const struct iod_table *table, const uint8_t *at)
{
	uint64_t entry = 0;
	for (unsigned i = 0; i < table->entry_bytes; i++)
		entry |= (uint64_t)at[i] << 8 * (table->big_endian ? table->entry_bytes - 1 - i : i);
	return entry;
}

/* Of one byte; NULL: it faults. */
static uint8_t *model(struct bench *b, uint64_t address, uint8_t access, enum iod_cause *cause, bool *below_it)
{
	const struct iod_table *table = b->space.table;
	uint64_t target = address;

	*below_it = false;
	if (table->mode != IOD_TABLE_TRANSLATES || address < table->first || address > table->last) {
		bool on = table->mode == IOD_TABLE_TRANSLATES;
		*cause = on ? IOD_C_LIMIT : IOD_C_SHUT;
		if ((on ? table->outside : table->mode) == IOD_TABLE_REFUSES)
			return NULL;
	} else {
		uint64_t page = (address - table->first) >> table->page_shift;
		const uint8_t *at = ram_at(b, table->base + page * table->entry_bytes, IOD_READ);
		*cause = IOD_C_TABLE;
		if (!at)
			return NULL;
		uint64_t entry = entry_bits(table, at);
		*cause = IOD_C_UNMAPPED;
		if ((entry & table->valid) != table->valid)
			return NULL;
		*cause = IOD_C_PERMISSION;
		if (access & IOD_WRITE && (entry & table->write) != table->write)
			return NULL;
		target = ((entry & table->frame) << table->shift) + ((address - table->first) & ((1u << table->page_shift) - 1));
	}
	*below_it = true;
	return ram_at(b, target, access);
}

static void compare(struct bench *b, const struct iod_segment *list, size_t count, uint8_t access)
{
	static struct iod_translation out;
	struct iod_fault fault = {0};
	enum iod_walk_result result = iod_walk(&b->space, list, count, 0, access, &out, &fault);
	uint32_t piece = 0;
	uint64_t in = 0, offset = 0;

	for (size_t i = 0; i < count; i++)
		for (uint64_t k = 0; k < list[i].length; k++, offset++) {
			enum iod_cause cause = IOD_C_NONE;
			bool under = false;
			uint64_t address = list[i].address + k;
			uint8_t *want = address < list[i].address ? NULL : model(b, address, access, &cause, &under);
			if (!want) {
				CHECK_EQ(result, IOD_WALK_FAULT);
				CHECK_EQ(fault.offset, offset);
				if (address < list[i].address) {
					CHECK(fault.cause == IOD_C_WRAP);
				} else if (under) {
					CHECK(fault.space == &b->memory);
				} else {
					CHECK(fault.space == &b->space && fault.address == address);
					CHECK_EQ(fault.cause, cause);
				}
				return;
			}
			if (result != IOD_WALK_OK)
				continue; /* the fault is further on */
			CHECK(piece < out.count);
			CHECK((uint8_t *)out.iov[piece].iov_base + in == want);
			CHECK(!out.only || out.only == out.piece[piece].region);
			CHECK(want >= out.piece[piece].region->host && want < out.piece[piece].region->host + out.piece[piece].region->size);
			bool held = false;
			for (uint32_t e = 0; e < out.extents && !held; e++)
				held = out.extent[e].space == &b->memory && b->memory.map.count;
			CHECK(held);
			if (++in == out.iov[piece].iov_len)
				piece++, in = 0;
		}
	CHECK_EQ(result, IOD_WALK_OK);
	CHECK_EQ(piece, out.count);
}

static void put_entry(struct bench *b, uint32_t page)
{
	const struct iod_table *table = b->space.table;
	uint8_t *at = ram_at(b, table->base + (uint64_t)page * table->entry_bytes, IOD_READ);
	uint32_t which = below(b, RANGES);
	uint64_t target = b->base[which] + below(b, 12) * PAGE / (below(b, 6) ? 1 : 2);
	uint64_t entry = ((target >> table->shift) & table->frame) | (below(b, 8) ? table->valid : 0) |
			 (below(b, 4) ? table->write : 0);

	if (below(b, 12) == 0)
		entry = (uint64_t)check_random(&b->random) << 32 | check_random(&b->random);
	for (unsigned i = 0; at && i < table->entry_bytes; i++)
		at[i] = (uint8_t)(entry >> 8 * (table->big_endian ? table->entry_bytes - 1 - i : i));
}

static void describe(struct bench *b)
{
	bool wide = below(b, 2);
	struct iod_table now = {.valid = 2, .write = below(b, 3) ? 4 : 0, .frame = 0xffffff00, .shift = 4, .entry_bytes = wide ? 8 : 4,
				.page_shift = below(b, 4) ? 12 : 13, .big_endian = below(b, 2), .base = 0x2000,
				.mode = below(b, 10) ? IOD_TABLE_TRANSLATES : below(b, 2), .outside = below(b, 2)};

	if (now.page_shift == 13)
		now.frame = 0xfffffe00;
	if (below(b, 8) == 0) /* at the edge of memory: the last entries are not there */
		now.base = b->base[0] + b->region[0].size - 8 * (1 + below(b, 8));
	now.first = below(b, 3) ? 0xff000000u : below(b, 2) ? 0 : UINT64_MAX - ((uint64_t)PAGES << now.page_shift) + 1;
	now.last = now.first + (((uint64_t)PAGES << now.page_shift) - 1);
	CHECK(!iod_table_wrong(&now));
	iod_table_set(b->space.table, &now);
	for (uint32_t page = 0; page < PAGES; page++)
		put_entry(b, page);
}

static void place(struct bench *b, int i)
{
	struct iod_region *region = &b->region[i];

	b->placed[i] = true;
	CHECK_EQ(iod_map_insert(&b->memory.map, b->base[i], b->base[i] + (region->size - 1), 0, region,
				region->kind == IOD_ROM ? IOD_READ : IOD_READ | IOD_WRITE), 0);
}

static void any_lists(uint64_t seed)
{
	static uint8_t ram[RANGES][16 * PAGE + PAGE] __attribute__((aligned(4096)));
	static const uint64_t bases[RANGES] = {0, 0x100000, 0x110000, 0xf0000000}; /* the second one touches the third */
	static const uint64_t sizes[RANGES] = {16 * PAGE, 16 * PAGE, 8 * PAGE + 100, 6 * PAGE};
	struct bench b = {.random = seed, .memory = {.kind = IOD_MEMORY, .name = "memory"},
			  .space = {.kind = IOD_TABLE, .name = "table"}};

	b.space.next = &b.memory;
	b.space.table = iod_table_new(below(&b, 8));
	CHECK(b.space.table);
	for (int i = 0; i < RANGES; i++) {
		b.base[i] = bases[i];
		b.region[i] = (struct iod_region){.kind = i == 3 ? IOD_ROM : IOD_RAM, .references = 1, .size = sizes[i],
						  .buffer_index = -1, .host = ram[i] + (i == 1 ? 8 : 0)};
		place(&b, i);
	}
	describe(&b);
	for (int round = 0; round < 400; round++) {
		const struct iod_table *table = b.space.table;
		struct iod_segment list[SEGMENTS];
		uint32_t count = below(&b, SEGMENTS + 1);
		uint64_t page = (uint64_t)1 << table->page_shift;
		bool kind = below(&b, 2); /* whole pages, or anything */

		for (uint32_t i = 0; i < count; i++) {
			list[i].address = table->first + below(&b, PAGES) * page + (kind ? 0 : below(&b, PAGE));
			list[i].length = kind ? page * (below(&b, 8) ? 1 : below(&b, 5)) : below(&b, 300);
			if (below(&b, 60) == 0)
				list[i].address = below(&b, 2) ? table->first - below(&b, 100) : table->last - below(&b, 100);
			if (below(&b, 10) == 0 && i)
				list[i].address = list[i - 1].address + list[i - 1].length;
		}
		compare(&b, list, count, (uint8_t)(1 + below(&b, 2)));
		switch (below(&b, 12)) {
		case 0:
			describe(&b);
			break;
		case 1: { /* a region goes and comes back */
			int i = 1 + (int)below(&b, RANGES - 1);
			uint64_t removed;
			CHECK_EQ(iod_map_remove(&b.memory.map, b.base[i], b.base[i] + (b.region[i].size - 1), &removed), 0);
			b.placed[i] = false;
			compare(&b, list, count, IOD_READ);
			b.base[i] = below(&b, 2) ? bases[i] : bases[i] + 0x30000;
			place(&b, i);
			break;
		}
		default: {
			uint32_t first = below(&b, PAGES), pages = 1 + below(&b, 4);
			for (uint32_t k = first; k < PAGES && k < first + pages; k++)
				put_entry(&b, k);
			uint64_t at = table->first + first * page, left = table->last - at;
			iod_table_flush(b.space.table, at + below(&b, PAGE), at + iod_min64(pages * page - 1, left));
		}
		}
	}
	iod_map_clear(&b.memory.map);
	free(b.space.table);
}

/* What is cached stays what it was until it is flushed, whoever writes to the table. */
static void stays_until_flushed(void)
{
	static uint8_t ram[8 * PAGE] __attribute__((aligned(4096)));
	struct iod_region region = {.kind = IOD_RAM, .references = 1, .size = sizeof ram, .buffer_index = -1, .host = ram};
	struct iod_space memory = {.kind = IOD_MEMORY}, space = {.kind = IOD_TABLE, .next = &memory, .table = iod_table_new(4)};
	struct iod_table now = {.valid = 2, .write = 4, .frame = 0xffffff00, .shift = 4, .entry_bytes = 4, .page_shift = 12,
				.big_endian = true, .last = 4 * PAGE - 1, .mode = IOD_TABLE_TRANSLATES};
	struct iod_segment list[2] = {{0, PAGE}, {PAGE, PAGE}};
	struct iod_translation out = {0};
	struct iod_fault fault;

	check_context = "stays until it is flushed";
	CHECK_EQ(iod_map_insert(&memory.map, 0, sizeof ram - 1, 0, &region, IOD_READ | IOD_WRITE), 0);
	iod_table_set(space.table, &now);
	for (int way = 0; way < 4; way++) {
		memcpy(ram, "\0\0\2\6\0\0\4\6", 8);
		iod_table_flush(space.table, 0, UINT64_MAX);
		for (int i = 0; i < 3; i++) {
			CHECK_EQ(iod_walk(&space, list, 2, 0, IOD_WRITE, &out, &fault), IOD_WALK_OK);
			CHECK(out.iov[0].iov_base == ram + 2 * PAGE && out.iov[1].iov_base == ram + 4 * PAGE);
			CHECK(out.by_list && out.extents == 1 && out.only == &region);
			memcpy(ram, "\0\0\3\6\0\0\5\2", 8);
		}
		if (way == 0)
			iod_table_flush(space.table, 0, 0);
		else if (way == 1)
			iod_table_flush(space.table, 2 * PAGE - 1, UINT64_MAX);
		else if (way == 2)
			iod_table_set(space.table, &now);
		else
			iod_table_flush(space.table, 2 * PAGE, UINT64_MAX);
		enum iod_walk_result result = iod_walk(&space, list, 2, 0, IOD_WRITE, &out, &fault);
		if (way == 0 || way == 3) {
			CHECK_EQ(result, IOD_WALK_OK);
			CHECK(out.iov[0].iov_base == ram + (way ? 2 : 3) * PAGE && out.iov[1].iov_base == ram + 4 * PAGE);
		} else {
			CHECK(result == IOD_WALK_FAULT && fault.cause == IOD_C_PERMISSION && fault.offset == PAGE);
		}
	}
	iod_translation_free(&out);
	iod_map_clear(&memory.map);
	free(space.table);
}

/* A page of which memory has but the beginning: known or not, no byte behind it. */
static void page_that_ends_early(void)
{
	static uint8_t ram[4 * PAGE] __attribute__((aligned(4096)));
	struct iod_region region = {.kind = IOD_RAM, .references = 1, .size = 3 * PAGE + 100, .buffer_index = -1, .host = ram};
	struct iod_space memory = {.kind = IOD_MEMORY}, space = {.kind = IOD_TABLE, .next = &memory, .table = iod_table_new(4)};
	struct iod_table now = {.valid = 1, .write = 2, .frame = 0xfffff000, .entry_bytes = 4, .page_shift = 12,
				.last = 4 * PAGE - 1, .mode = IOD_TABLE_TRANSLATES};
	struct iod_segment good = {0, 100}, bad[2] = {{0, 101}, {0, 2 * PAGE}};
	struct iod_translation out = {0};
	struct iod_fault fault;

	check_context = "a page that ends early";
	memcpy(ram, "\3\x30\0\0\3\x10\0\0", 8);
	CHECK_EQ(iod_map_insert(&memory.map, 0, region.size - 1, 0, &region, IOD_READ | IOD_WRITE), 0);
	iod_table_set(space.table, &now);
	for (int i = 0; i < 3; i++) {
		CHECK_EQ(iod_walk(&space, &good, 1, 0, IOD_READ, &out, &fault), IOD_WALK_OK);
		CHECK(out.iov[0].iov_base == ram + 3 * PAGE);
		for (int k = 0; k < 2; k++) {
			CHECK_EQ(iod_walk(&space, &bad[k], 1, 0, IOD_READ, &out, &fault), IOD_WALK_FAULT);
			CHECK(fault.space == &memory && fault.offset == 100);
		}
	}
	iod_translation_free(&out);
	iod_map_clear(&memory.map);
	free(space.table);
}

/* The table's file was cut short: a fault at the walk, whatever is known of other pages. */
static void gone(void)
{
	int fd = memfd_create("table", MFD_CLOEXEC);
	CHECK(fd >= 0 && ftruncate(fd, 2 * PAGE) == 0);
	uint8_t *host = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	struct iod_region region = {.kind = IOD_RAM, .references = 1, .size = 2 * PAGE, .buffer_index = -1, .host = host};
	struct iod_space memory = {.kind = IOD_MEMORY}, space = {.kind = IOD_TABLE, .next = &memory, .table = iod_table_new(4)};
	struct iod_table now = {.valid = 1, .write = 2, .frame = 0xfffff000, .entry_bytes = 4, .page_shift = 12, .base = PAGE,
				.last = 4 * PAGE - 1, .mode = IOD_TABLE_TRANSLATES};
	struct iod_segment list[2] = {{0, 4}, {PAGE, 4}};
	struct iod_translation out = {0};
	struct iod_fault fault;

	check_context = "the table is gone";
	CHECK(host != MAP_FAILED);
	memcpy(host + PAGE, "\3\0\0\0\3\0\0\0", 8);
	CHECK_EQ(iod_map_insert(&memory.map, 0, 2 * PAGE - 1, 0, &region, IOD_READ | IOD_WRITE), 0);
	iod_table_set(space.table, &now);
	CHECK_EQ(iod_walk(&space, list, 1, 0, IOD_READ, &out, &fault), IOD_WALK_OK);
	CHECK(ftruncate(fd, PAGE) == 0);
	CHECK_EQ(iod_walk(&space, list, 1, 0, IOD_READ, &out, &fault), IOD_WALK_OK);
	CHECK_EQ(iod_walk(&space, list, 2, 0, IOD_READ, &out, &fault), IOD_WALK_FAULT);
	CHECK(fault.cause == IOD_C_TABLE && fault.offset == 4 && fault.address == PAGE);
	uint64_t entry;
	CHECK(!iod_table_entry(&space, 0, &entry) && !iod_table_entry(&space, 4 * PAGE, &entry));
	iod_translation_free(&out);
	iod_map_clear(&memory.map);
	free(space.table);
	munmap(host, 2 * PAGE);
	close(fd);
}

static void what_cannot_be(void)
{
	static const struct iod_table good = {.valid = 1, .write = 2, .frame = 0xfffff000, .entry_bytes = 4, .page_shift = 12,
					      .last = 16 * PAGE - 1};
	struct iod_table bad[14];

	check_context = "what cannot be";
	CHECK(!iod_table_wrong(&good));
	for (size_t i = 0; i < 14; i++)
		memcpy(&bad[i], &good, sizeof good);
	bad[0].entry_bytes = 3;
	bad[1].page_shift = 2;
	bad[2].page_shift = 33;
	bad[3].valid = 0;
	bad[4].write = (uint64_t)1 << 32;
	bad[5].frame = 0;
	bad[6].frame = 0xfffff800;
	bad[7].shift = 33;
	bad[8].shift = 64;
	bad[9].first = 1;
	bad[10].last--;
	bad[11].base = 2;
	bad[12].base = UINT64_MAX - 62;
	bad[13].last = ((uint64_t)PAGE << 32) - 1;
	for (size_t i = 0; i < 14; i++)
		CHECK(iod_table_wrong(&bad[i]));
	bad[12].base = UINT64_MAX - 63;
	CHECK(!iod_table_wrong(&bad[12]));
}

int main(void)
{
	CHECK_EQ(iod_guard_install(), 0);
	what_cannot_be();
	stays_until_flushed();
	page_that_ends_early();
	gone();
	check_context = "any list";
	for (uint64_t seed = 1; seed <= 150; seed++)
		any_lists(seed);
	puts("test_pagetable: ok");
	return 0;
}
