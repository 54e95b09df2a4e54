/* SPDX-License-Identifier: Apache-2.0
 *
 * virtq_inflight: which chains of a split ring are in flight, in memory that outlives this process (vhost-user, "Inflight
 * I/O tracking").
 *
 * Invariants
 *  - Each step leaves the area such that a process that dies right after it has lost no chain and answers none twice: a
 *    chain is marked before it is worked on, and unmarked after the used index has passed it; `used_idx` tells whether the
 *    unmarking was interrupted.
 *  - The area is the front-end's: nothing in it is trusted beyond what the ring allows. */
#include "virtq.h"

#include "bytes.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define VERSION 1
struct state { /* DescStateSplit */
	uint8_t inflight, padding[5];
	uint16_t next;
	uint64_t counter;
};
struct area { /* QueueRegionSplit */
	uint64_t features;
	uint16_t version, desc_num, last_batch_head, used_idx;
	struct state desc[];
};

uint64_t iod_virtq_inflight_bytes(uint32_t size)
{
	return sizeof(struct area) + size * (uint64_t)sizeof(struct state);
}

/* What the processor wrote is in memory whenever the process ends: only the compiler has to be kept in order. */
#define STEP() __atomic_signal_fence(__ATOMIC_SEQ_CST)

void iod_virtq_inflight_taken(struct iod_virtq *q, uint16_t id)
{
	struct area *area = (struct area *)q->inflight;
	area->desc[id].counter = q->counter++;
	STEP();
	area->desc[id].inflight = 1;
	STEP();
}

void iod_virtq_inflight_before(struct iod_virtq *q)
{
	struct area *area = (struct area *)q->inflight;
	for (uint32_t i = 0; i < q->used_count; i++) {
		uint16_t id = q->used[i].id;
		area->desc[id].next = area->last_batch_head;
		STEP();
		area->last_batch_head = id;
		STEP();
	}
}

void iod_virtq_inflight_after(struct iod_virtq *q)
{
	struct area *area = (struct area *)q->inflight;
	STEP();
	for (uint32_t i = 0; i < q->used_count; i++)
		area->desc[q->used[i].id].inflight = 0;
	STEP();
	area->used_idx = (uint16_t)(q->used_next);
	STEP();
}

struct found {
	uint64_t counter;
	uint16_t id;
};

static int by_age(const void *a, const void *b)
{
	uint64_t x = ((const struct found *)a)->counter, y = ((const struct found *)b)->counter;
	return x < y ? -1 : x > y;
}

void iod_virtq_inflight_recover(struct iod_virtq *q, uint16_t used_idx)
{
	struct area *area = (struct area *)q->inflight;

	q->replays = q->replayed = 0;
	if (area->version != VERSION || area->desc_num != q->size) { /* new */
		memset(area, 0, iod_virtq_inflight_bytes(q->size));
		area->desc_num = (uint16_t)q->size; /* 32768 fits */
		area->used_idx = used_idx;
		STEP();
		area->version = VERSION;
		return;
	}
	/* Interrupted between the ring's index and the marks: the last batch is done. */
	uint16_t done = (uint16_t)(used_idx - area->used_idx), at = area->last_batch_head;
	for (uint32_t i = 0; i < done && i < q->size && at < q->size; i++) {
		area->desc[at].inflight = 0;
		at = area->desc[at].next;
	}
	STEP();
	area->used_idx = used_idx;
	struct found *found = calloc(q->size, sizeof *found);
	q->replay = calloc(q->size, sizeof *q->replay);
	if (!found || !q->replay) {
		free(found);
		iod_virtq_break(q, "no memory to find what was in flight");
		return;
	}
	for (uint32_t i = 0; i < q->size; i++)
		if (area->desc[i].inflight)
			found[q->replays++] = (struct found){area->desc[i].counter, (uint16_t)i};
	qsort(found, q->replays, sizeof *found, by_age);
	for (uint32_t i = 0; i < q->replays; i++)
		q->replay[i] = found[i].id;
	q->counter = q->replays ? found[q->replays - 1].counter + 1 : 0;
	free(found);
	q->used_next = used_idx;
	q->next = q->seen = (uint16_t)(used_idx + q->replays);
}
