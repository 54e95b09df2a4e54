/* SPDX-License-Identifier: Apache-2.0
 *
 * virtq_inflight_packed: which chains of a packed ring are in flight, in memory that outlives this process (vhost-user,
 * "Inflight I/O tracking").
 *
 * The driver's descriptors are gone from the ring once others were used in their place, so they are kept here: each chain
 * has as many entries of the area as it has descriptors, linked, and entries that no chain has are on a free list, linked
 * by the same field.
 *
 * Invariants
 *  - Each step leaves the area such that a process that dies right after it has lost no chain and answers none twice: what
 *    was begun counts from the moment that the `old_` fields follow, or, where chains are used, from the moment that the
 *    driver can see them in the ring.
 *  - Entries of a free list that was valid are not linked anew before it is not needed any more.
 *  - The area is the front-end's: each index from it is checked before use, and one that cannot be breaks the queue. */
#include "virtq.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define VERSION 1
struct state { /* DescStatePacked */
	uint8_t inflight, padding;
	uint16_t next, last, num;
	uint64_t counter;
	uint16_t id, flags;
	uint32_t length;
	uint64_t address;
};
struct area { /* QueueRegionPacked */
	uint64_t features;
	uint16_t version, desc_num, free_head, old_free_head;
	struct position { /* written all at once */
		_Alignas(8) uint16_t used_idx;
		uint16_t old_used_idx;
		uint8_t used_wrap, old_used_wrap, padding[2];
	} position;
	uint8_t padding[5];
	struct state desc[];
};
_Static_assert(sizeof(struct state) == 32 && offsetof(struct area, desc) == 32, "as the specification has it");

uint64_t iod_packed_inflight_bytes(uint32_t size)
{
	return sizeof(struct area) + size * (uint64_t)sizeof(struct state);
}

/* What the processor wrote is in memory whenever the process ends: only the compiler has to be kept in order. */
#define STEP() __atomic_signal_fence(__ATOMIC_SEQ_CST)

/* An index that the front-end may change at any time: read once. */
static uint16_t once(const uint16_t *index)
{
	return __atomic_load_n(index, __ATOMIC_RELAXED);
}

typedef uint64_t __attribute__((may_alias)) word;

static struct position position_of(const struct area *area)
{
	struct position position;
	uint64_t all = __atomic_load_n((const word *)&area->position, __ATOMIC_RELAXED);
	memcpy(&position, &all, sizeof position);
	position.used_wrap &= 1;
	position.old_used_wrap &= 1;
	return position;
}

static void set_position(struct area *area, struct position position)
{
	uint64_t all;
	memcpy(&all, &position, sizeof all);
	STEP();
	__atomic_store_n((word *)&area->position, all, __ATOMIC_RELAXED);
	STEP();
}

static void nonsense(struct iod_virtq *q)
{
	iod_virtq_break(q, "its area of chains in flight makes no sense");
}

/* ---- chains that come ---- */

bool iod_packed_inflight_save(struct iod_virtq *q, bool first, const struct iod_virtq_entry *d)
{
	struct area *area = (struct area *)q->inflight;
	uint16_t at = once(first ? &area->free_head : &area->desc[q->saved].next);
	if (at >= q->size) {
		iod_virtq_break(q, "more descriptors are in flight than the ring holds");
		return false;
	}
	struct state *to = &area->desc[at];
	to->address = d->address;
	to->length = d->length;
	to->flags = d->flags;
	to->id = d->id;
	q->saved = at;
	return true;
}

void iod_packed_inflight_taken(struct iod_virtq *q, const struct iod_virtq_chain *chain)
{
	struct area *area = (struct area *)q->inflight;
	uint16_t head = once(&area->free_head), next = once(&area->desc[q->saved].next);
	if (head >= q->size) {
		nonsense(q);
		return;
	}
	struct state *first = &area->desc[head];
	first->num = chain->descriptors;
	first->last = q->saved;
	first->counter = q->counter++;
	STEP();
	first->inflight = 1; /* on the free list, so it does not count yet */
	STEP();
	area->free_head = next;
	STEP();
	area->old_free_head = next;
	STEP();
	q->slot[chain->id].entry = head;
}

/* ---- chains that are used ---- */

void iod_packed_inflight_before(struct iod_virtq *q, uint16_t used_next, bool used_wrap)
{
	struct area *area = (struct area *)q->inflight;
	struct position position = position_of(area);
	uint16_t free_head = once(&area->free_head);
	for (uint32_t i = 0; i < q->used_count; i++) {
		uint16_t head = q->slot[q->used[i].id].entry, last = once(&area->desc[head].last);
		if (last >= q->size) {
			nonsense(q);
			return;
		}
		area->desc[last].next = free_head;
		free_head = head;
	}
	area->free_head = free_head;
	position.used_idx = used_next;
	position.used_wrap = used_wrap;
	set_position(area, position);
}

void iod_packed_inflight_after(struct iod_virtq *q)
{
	struct area *area = (struct area *)q->inflight;
	STEP();
	for (uint32_t i = 0; i < q->used_count; i++)
		area->desc[q->slot[q->used[i].id].entry].inflight = 0;
	STEP();
	area->old_free_head = area->free_head;
	struct position now = position_of(area);
	now.old_used_idx = now.used_idx;
	now.old_used_wrap = now.used_wrap;
	set_position(area, now);
}

/* ---- a process after the one that died ---- */

struct found {
	uint64_t counter;
	uint16_t head;
};

static int by_age(const void *a, const void *b)
{
	uint64_t x = ((const struct found *)a)->counter, y = ((const struct found *)b)->counter;
	return x < y ? -1 : x > y;
}

static void make(struct iod_virtq *q, struct area *area)
{
	memset(area, 0, iod_packed_inflight_bytes(q->size));
	area->desc_num = (uint16_t)q->size; /* 32768 fits */
	area->position = (struct position){q->used_next, q->used_next, q->used_wrap, q->used_wrap, {0}};
	for (uint32_t i = 0; i < q->size; i++) /* the last one leads out of it */
		area->desc[i].next = (uint16_t)(i + 1);
	STEP();
	area->version = VERSION;
}

uint32_t iod_packed_inflight_interrupted(struct iod_virtq *q, uint16_t *at, bool *wrap)
{
	struct area *area = (struct area *)q->inflight;
	struct position position = position_of(area);
	if (area->version != VERSION || area->desc_num != q->size)
		return 0;
	*at = position.old_used_idx;
	*wrap = position.old_used_wrap;
	int64_t used = (int64_t)position.used_idx - *at + (position.used_wrap != *wrap ? q->size : 0);
	if (*at < q->size && position.used_idx < q->size && used >= 0 && used <= q->size)
		return (uint32_t)used;
	nonsense(q);
	return 0;
}

/* What is on the free list is not in flight, whatever it says. The number of entries; -1: it leads nowhere. */
static int64_t clear_free(struct iod_virtq *q, struct area *area, uint8_t *seen)
{
	int64_t n = 0;
	for (uint16_t at = once(&area->free_head); at < q->size; at = once(&area->desc[at].next)) {
		if (seen[at])
			return -1;
		seen[at] = 1;
		area->desc[at].inflight = 0;
		n++;
	}
	return n;
}

/* The chains in flight and how many descriptors they have; -1: they cannot be. */
static int64_t find(struct iod_virtq *q, const struct area *area, uint8_t *seen, struct found *found)
{
	int64_t n = 0;
	for (uint32_t i = 0; i < q->size; i++) {
		const struct state *head = &area->desc[i];
		if (!head->inflight)
			continue;
		uint16_t at = (uint16_t)i, num = once(&head->num);
		if (num == 0 || num > q->size)
			return -1;
		for (uint16_t k = 0; k < num; k++) {
			if (at >= q->size || seen[at])
				return -1;
			seen[at] = 1;
			at = once(&area->desc[at].next);
		}
		found[q->replays++] = (struct found){head->counter, (uint16_t)i};
		n += num;
	}
	return n;
}

int64_t iod_packed_inflight_recover(struct iod_virtq *q, bool published)
{
	struct area *area = (struct area *)q->inflight;

	q->replays = q->replayed = 0;
	if (area->version != VERSION || area->desc_num != q->size) {
		make(q, area);
		return -1;
	}
	struct position position = position_of(area);
	if (published) {
		area->old_free_head = area->free_head;
		position.old_used_idx = position.used_idx;
		position.old_used_wrap = position.used_wrap;
	} else {
		area->free_head = area->old_free_head;
		position.used_idx = position.old_used_idx;
		position.used_wrap = position.old_used_wrap;
	}
	set_position(area, position);
	uint8_t *seen = calloc(q->size, 1);
	struct found *found = calloc(q->size, sizeof *found);
	q->replay = calloc(q->size, sizeof *q->replay);
	int64_t taken = -1;
	if (!seen || !found || !q->replay) {
		iod_virtq_break(q, "no memory to find what was in flight");
	} else {
		int64_t unused = clear_free(q, area, seen);
		taken = unused < 0 ? -1 : find(q, area, seen, found);
		if (position.used_idx >= q->size || taken < 0 || unused + taken != q->size)
			nonsense(q);
	}
	if (q->broken) {
		q->replays = 0;
	} else {
		qsort(found, q->replays, sizeof *found, by_age);
		for (uint32_t i = 0; i < q->replays; i++)
			q->replay[i] = found[i].head;
		q->counter = q->replays ? found[q->replays - 1].counter + 1 : 0;
		q->used_next = position.used_idx;
		q->used_wrap = position.used_wrap;
	}
	free(seen);
	free(found);
	return taken;
}

uint16_t iod_packed_inflight_read(const struct iod_virtq *q, bool first, struct iod_virtq_entry *d, uint16_t at)
{
	const struct area *area = (const struct area *)q->inflight;
	if (!first)
		at = once(&area->desc[at].next);
	if (at >= q->size)
		return UINT16_MAX;
	const struct state *from = &area->desc[at];
	*d = (struct iod_virtq_entry){from->address, from->length, from->id, from->flags};
	return at;
}
