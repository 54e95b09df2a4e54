/* SPDX-License-Identifier: Apache-2.0
 *
 * space: address spaces, and the walk from a device's bus addresses to host memory.
 *
 * A chain is a list of spaces, each with one map to the next one down; the last is a memory.  One walk handles a piece
 * at a time all the way down, so that translation costs O(pieces x depth) and holds no intermediate list.
 *
 * Invariants
 *  - This is the one place where addresses of a guest are added, compared and bounded.
 *  - Ranges are kept as first and last byte, so that 2^64 is never a value.
 *  - A translation is only good until the next change of any space it went through; whoever keeps it takes the leases
 *    and records the extents that the walk gives.
 *  - A walk moves no byte and changes no map (hooks may note a miss).
 */
#ifndef IOD_SPACE_H
#define IOD_SPACE_H

#include "iod.h"

/* One bit a page, set before anyone is told of a write; shared with others where a VMM gave the bytes.  One that is taken
 * off its region stays allocated until no lease is left there: moves run without the glue's lock. */
struct iod_dirty {
	uint8_t *byte; /* bit i of byte j: page 8j + i */
	uint64_t first; /* the bit of the region's first page */
	uint64_t bits;
	uint8_t shift;
	struct iod_dirty *next; /* taken off before this one */
	void *owner;		/* the glue's */
};

/* Of the last two there is no host memory: a device's registers, and memory that somebody else has and moves. */
enum iod_region_kind { IOD_RAM, IOD_ROM, IOD_DEVICE, IOD_REMOTE };

/* Host memory, or what leads to a device or to somebody else's memory.  Freed when the last reference is dropped, and references are held by the maps
 * that name it, by the leases of transfers and by the program's own handle. */
struct iod_region {
	uint8_t kind;
	bool closed;	  /* the owner let go: nothing new may reach it */
	bool quarantined; /* a revocation failed: nothing new may reach it, ever */
	int buffer_index; /* registered with the kernel, or -1 ... */
	uint32_t buffer_core; /* ... by the core with this number: another's numbers mean nothing */
	uint32_t references;
	uint32_t leases; /* pieces of transfers in flight */
	uint32_t views;	 /* buffers handed out */
	uint32_t most;	 /* REMOTE: bytes of a message */
	uint8_t *host;
	uint64_t size;
	struct iod_dirty *dirty; /* NULL: nothing is logged */
	struct iod_dirty *stale; /* those that were taken off and may still be looked at */
	void *owner; /* the glue's handle */
	void (*free)(struct iod_region *);
};
static inline bool iod_region_is_host(const struct iod_region *region)
{
	return region->kind <= IOD_ROM;
}
void iod_region_get(struct iod_region *);
void iod_region_put(struct iod_region *);
/* Nothing new may reach it: its owner let go, or a revocation failed. */
void iod_region_close(struct iod_region *);
void iod_region_quarantine(struct iod_region *);
void iod_region_mark_dirty(struct iod_region *, uint64_t offset, uint64_t length);

/* One range of a map: addresses first..last become base + (address - first). */
struct iod_range {
	uint64_t last;
	uint64_t base; /* the next space's address, or the offset in the region */
	struct iod_region *region;
	uint8_t *host; /* where `base` is, for a region that is host memory: lookups need not go to the region */
	uint32_t access;
};

/* Ranges that do not overlap, sorted; the first addresses apart from the rest, because lookups only touch those.  There is
 * room at both ends: a guest's driver takes its addresses from the top down, or gives the oldest back first, and neither
 * may move all the others. */
struct iod_map {
	uint64_t *first;
	struct iod_range *range;
	size_t count;
	size_t before, after; /* places that are free in front of the first, and behind the last */
	size_t hint;
	uint64_t version; /* counts its changes */
};
/* The last index whose first address is <= the address, or -1.  Halving without branches that depend on the data:
 * with 4096 ranges the branches of the usual form cost more than the loads. */
static inline ptrdiff_t iod_map_floor(const struct iod_map *map, uint64_t address)
{
	const uint64_t *base = map->first;
	size_t n = map->count;

	if (n <= 8) { /* no step waits for the one before */
		if (n == 1)
			return (ptrdiff_t)(base[0] <= address) - 1;
		ptrdiff_t at = -1;
		for (size_t i = 0; i < n; i++)
			at += base[i] <= address;
		return at;
	}
	while (n > 1) {
		size_t half = n / 2;
		base += half & -(size_t)(base[half] <= address); /* not a branch */
		n -= half;
	}
	return base[0] <= address ? base - map->first : -1;
}
/* The index of the range that holds the address, or -1. */
ptrdiff_t iod_map_find(struct iod_map *, uint64_t address);
/* 0, -EEXIST when it overlaps, -ENOMEM. */
int iod_map_insert(struct iod_map *, uint64_t first, uint64_t last, uint64_t base, struct iod_region *, uint32_t access);
/* Takes out what lies in first..last, cutting ranges that reach beyond.  Bytes taken out in *removed. 0 or -ENOMEM. */
int iod_map_remove(struct iod_map *, uint64_t first, uint64_t last, uint64_t *removed);
/* The last address of the hole that the address, which nothing holds, lies in. */
uint64_t iod_map_hole(const struct iod_map *, uint64_t address);
bool iod_map_overlaps(const struct iod_map *, uint64_t first, uint64_t last);
void iod_map_clear(struct iod_map *);

enum iod_space_kind { IOD_MEMORY, IOD_WINDOW, IOD_IOMMU, IOD_LANES, IOD_HOOK, IOD_GATE, IOD_TABLE };
enum iod_verdict { IOD_PASS, IOD_REFUSE, IOD_PENDING };

struct iod_core;
struct iod_table; /* pagetable.h */
struct iod_space {
	uint8_t kind;
	uint8_t lanes;	    /* LANES: the XOR mask */
	bool misses_wait;   /* IOMMU: a miss is pending, not a fault */
	bool shut;	    /* GATE: nothing passes */
	struct iod_space *next;
	struct iod_core *core; /* the engine whose transfers go through here, once one does */
	struct iod_map map;    /* MEMORY, IOMMU */
	uint64_t offset, last; /* WINDOW: addresses 0..last become address + offset */
	struct iod_table *table; /* TABLE */
	uint64_t walks, hits;  /* pieces that went through; of those, by the map's hint */
	uint64_t change;       /* counts the changes of the map */
	const struct iod_region *removed; /* MEMORY: what the last unmap took away, only to be compared */
	char name[32];
	/* HOOK, and IOMMU when it misses (length: to the end of the hole, or of the list's segment): asks the glue.  The
	 * verdict is that of the first address.  Must not change any map of the chain (iod_space_is_asked).  A HOOK may make the length less (not 0): only so
	 * many bytes pass, and the rest is asked for again.  A TABLE tells of
	 * the faults of transfers (iod_table_faulted); the verdict is not looked at. */
	enum iod_verdict (*hook)(struct iod_space *, uint64_t address, uint64_t *length, uint8_t access);
	/* Told of what it has refused when that has ended a transfer; NULL: nobody wants to know.  It is called inside a step,
	 * or inside the call that submits: it must neither submit nor change any map. */
	void (*told)(struct iod_space *, const struct iod_fault *);
	void *owner;
};

/* A transfer has ended by that.  What a space is named for that refused nothing - memory that is gone, a message that was
 * not answered - it is not told of. */
static inline void iod_space_tell(const struct iod_fault *fault)
{
	if (fault->space->told &&
	    (fault->cause == IOD_C_UNMAPPED || fault->cause == IOD_C_PERMISSION || fault->cause == IOD_C_SHUT))
		fault->space->told(fault->space, fault);
}

struct iod_piece {
	struct iod_region *region;
	uint8_t lanes;
	uint8_t phase; /* low address bits of its first byte, where lanes are permuted */
};

/* What a transfer holds at a space that can revoke. */
struct iod_extent {
	struct iod_space *space;
	uint64_t first, last;
};

/* The result of a walk: parallel arrays, grown as needed, reused by whoever owns it. */
struct iod_translation {
	struct iovec *iov;
	struct iod_piece *piece;
	struct iod_extent *extent;
	uint32_t count, room;
	uint32_t extents, extents_room;
	uint64_t bytes;
	struct iod_region *only; /* the region of all its pieces; NULL: of several */
	bool plain;		 /* all RAM, no lanes */
	bool remote;		 /* some of it is */
	bool heap_pieces, heap_extents;
	/* It also holds what the list itself says, of the space that the list comes to first behind gates: an extent a
	 * segment without writing them down. */
	bool by_list;
};
void iod_translation_clear(struct iod_translation *);
void iod_translation_free(struct iod_translation *);
bool iod_translation_in_host(const struct iod_translation *); /* all of it, lanes or not: nobody's handler is run */
bool iod_translation_more(struct iod_translation *); /* room for more pieces */
bool iod_translation_more_extents(struct iod_translation *);

enum iod_walk_result { IOD_WALK_OK, IOD_WALK_FAULT, IOD_WALK_PENDING, IOD_WALK_NO_MEMORY };

/* Walk the list from `skip` bytes into it.  On FAULT and PENDING, *fault says where; out is then undefined.  After a miss
 * the walk goes on, so that a list's misses are asked for together; *fault is that of the first. */
enum iod_walk_result iod_walk(struct iod_space *top, const struct iod_segment *list, size_t count, uint64_t skip,
			      uint8_t access, struct iod_translation *out, struct iod_fault *fault);

/* Where that is, when it lies in one range of host memory of a memory: good until anything of the map changes.  NULL: a
 * walk says more. */
uint8_t *iod_space_host(struct iod_space *, uint64_t address, uint64_t length, uint8_t access, struct iod_region **);

/* Whether any region is closed or quarantined, and still there. */
bool iod_any_region_shut(void);

/* Whether a walk that goes through it is just asking a hook: its map must stay as it is. */
bool iod_space_is_asked(const struct iod_space *);

/* The sum of the lengths, or UINT64_MAX when it does not fit into 63 bits. */
uint64_t iod_list_bytes(const struct iod_segment *, size_t count);

#endif
