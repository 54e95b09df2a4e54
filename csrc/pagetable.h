/* SPDX-License-Identifier: Apache-2.0
 *
 * pagetable: a stage whose translations stand in a one-level page table in guest memory, and the cache in front of it.
 *
 * Invariants
 *  - An entry is read once for each decision, under the SIGBUS guard, from host memory; what it says is checked before
 *    it is used.  A table that is anything else is a fault of the walk.
 *  - The cache holds what valid entries said, as addresses of the space below.  Whoever changes what the entries mean
 *    (base, range, mode) flushes it, as a guest does that changes the entries.
 *  - Beside it stands where those pages are in the host, for those in one range of the memory below; that is good for
 *    one version of its map, and while no region is shut.
 *  - The range is made of whole pages, and none of it wraps: neither the table nor an entry's address can.
 */
#ifndef IOD_PAGETABLE_H
#define IOD_PAGETABLE_H

#include "space.h"

#define IOD_TABLE_MOST_PAGES ((uint64_t)1 << 31)

/* What becomes of addresses while it is off, and of those outside its range. */
enum iod_table_mode { IOD_TABLE_REFUSES, IOD_TABLE_PASSES, IOD_TABLE_TRANSLATES };

/* A cached entry is one word, so that it is looked at in one load: the page's address in the space below, with what is
 * known of it in the bits that an address of a page leaves free: the rights, 0 where nothing is cached, and above them
 * what tells the pages apart that share a place. */
#define IOD_TABLE_TAG 2 /* the tag's first bit */

struct iod_table {
	/* The entry.  A page may be read where all bits of `valid` are set, and written where those of `write` are, too. */
	uint64_t valid, write;
	uint64_t frame; /* the bits of the page's address, which is (entry & frame) << shift */
	uint8_t shift, entry_bytes, page_shift;
	bool big_endian;

	uint64_t base;	      /* of the table, in the space below */
	uint64_t first, last; /* the range: bus addresses that have an entry */
	uint8_t mode, outside; /* outside the range: REFUSES or PASSES */

	bool notes;    /* the owner's hook is told of faults */
	uint8_t cause; /* of the last one */
	uint64_t faults;
	uint64_t reads; /* of entries */
	uint64_t hits;

	uint32_t mask;	   /* of places */
	uint8_t slot_bits; /* 2^slot_bits of them */
	bool filled;	   /* since all were empty */
	bool alone;	   /* no two pages of the range share one */

	/* The pages that are in one range of the memory: its extent and region; where in the host they are, with tag and
	 * rights as in `slot`. */
	uint64_t version; /* of the memory's map */
	struct iod_extent extent;
	struct iod_region *region; /* NULL: none was met yet; never with pages of an unusual size */
	uint64_t *host;

	uint64_t slot[];
};

/* One that refuses everything, with room for 2^bits pages; NULL: no memory. */
struct iod_table *iod_table_new(unsigned bits);
/* NULL, or what is wrong with the description. */
const char *iod_table_wrong(const struct iod_table *);
/* Described anew, from one with which nothing is wrong; the cache is empty. */
void iod_table_set(struct iod_table *, const struct iod_table *description);

/* Forget what is cached of the pages that first..last touches. */
void iod_table_flush(struct iod_table *, uint64_t first, uint64_t last);

/* Where the address is in the space below: *length becomes the bytes that lie there together. */
enum iod_cause iod_table_find(struct iod_space *, uint64_t address, uint8_t access, uint64_t *length, uint64_t *target);

/* A transfer ends with this fault, or a load or store does: if it is of a table, its owner may want to know, as hardware
 * latches what faulted.  Not of walks that only try, or look: what is tried again would be told twice. */
void iod_table_faulted(const struct iod_fault *);

/* An entry as it is now, past the cache.  False: it cannot be read. */
bool iod_table_entry(struct iod_space *, uint64_t address, uint64_t *entry);

/* As much of the list as translates to RAM without a question, in one go.  Returns the whole segments; *skip: the bytes
 * of the next one. */
size_t iod_table_walk(struct iod_space *, const struct iod_segment *, size_t count, uint8_t access,
		      struct iod_translation *, uint64_t *skip);

#endif
