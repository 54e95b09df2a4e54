/* SPDX-License-Identifier: Apache-2.0
 *
 * table: the rows of transfers, their lists, and the one function that changes a state.  See xfer.h. */
#include "xfer.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SLAB 64u
#define TICKET_BITS 24
#define MOST_ROWS (1u << TICKET_BITS)
#define KEEP_PIECES 256u /* larger arrays are given back to the heap with the row */

const char *const iod_state_names[IOD_STATE_COUNT] = {
#define S(name) #name,
	IOD_STATES(S)
#undef S
};
const struct iod_edge iod_edges[] = {
#define E(a, b, why) {IOD_S_##a, IOD_S_##b, why},
	IOD_EDGES(E)
#undef E
};
const size_t iod_edge_count = sizeof iod_edges / sizeof *iod_edges;

/* One bit for each state that may follow. */
uint16_t iod_may_go[IOD_STATE_COUNT];
__attribute__((constructor)) static void learn_edges(void)
{
	for (size_t i = 0; i < iod_edge_count; i++)
		iod_may_go[iod_edges[i].from] |= (uint16_t)(1u << iod_edges[i].to);
}

static uint64_t clock_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void iod_trace_note(struct iod_core *core, const struct iod_row *row, uint8_t to, uint64_t bytes)
{
	struct iod_trace *t = core->trace;
	if (t->count == t->room) {
		t->lost++;
		return;
	}
	t->event[t->count++] = (struct iod_trace_event){
		.when = clock_ns(),
		.ticket = row->ticket,
		.bytes = bytes,
		.from = row->state,
		.to = to,
		.status = row->status,
		.kind = (uint8_t)(row->kind << 1 | row->direction),
		.port = row->port->trace_id,
		.target = row->target ? row->target->trace_id : 0,
	};
}

void iod_row_to_watched(struct iod_core *core, struct iod_row *row, enum iod_state to)
{
	if (!(iod_may_go[row->state] >> to & 1)) {
		fprintf(stderr, "iodma: transfer %llx: no edge from %s to %s\n", (unsigned long long)row->ticket,
			iod_state_names[row->state], iod_state_names[to]);
		abort();
	}
	if (core->trace)
		iod_trace_note(core, row, (uint8_t)to, to == IOD_S_DESCRIBED ? row->total : row->moved);
	if (core->edges)
		core->edges[row->state * IOD_STATE_COUNT + to]++;
}

void iod_queue_add(struct iod_queue *queue, struct iod_row *row)
{
	row->queue = queue;
	row->next = NULL;
	row->previous = queue->tail;
	if (queue->tail)
		queue->tail->next = row;
	else
		queue->head = row;
	queue->tail = row;
	queue->count++;
}

void iod_queue_add_first(struct iod_queue *queue, struct iod_row *row)
{
	row->queue = queue;
	row->previous = NULL;
	row->next = queue->head;
	if (queue->head)
		queue->head->previous = row;
	else
		queue->tail = row;
	queue->head = row;
	queue->count++;
}

void iod_queue_remove(struct iod_row *row)
{
	struct iod_queue *queue = row->queue;
	if (row->previous)
		row->previous->next = row->next;
	else
		queue->head = row->next;
	if (row->next)
		row->next->previous = row->previous;
	else
		queue->tail = row->previous;
	queue->count--;
	row->queue = NULL;
}

static void borrow_inline(struct iod_row *row)
{
	row->t = (struct iod_translation){
		.iov = row->inline_iov,
		.piece = row->inline_piece,
		.extent = row->inline_extent,
		.room = IOD_INLINE_SEGMENTS,
		.extents_room = 2 * IOD_INLINE_SEGMENTS,
	};
	row->list = row->inline_list;
	row->list_room = IOD_INLINE_SEGMENTS;
}

struct iod_row *iod_row_new(struct iod_core *core)
{
	struct iod_row *row = core->unused.tail;
	if (!row) {
		if (core->rows + SLAB > MOST_ROWS)
			return NULL;
		struct iod_row **slab = realloc(core->slab, (core->slabs + 1) * sizeof *slab);
		if (!slab)
			return NULL;
		core->slab = slab;
		struct iod_row *fresh = aligned_alloc(_Alignof(struct iod_row), SLAB * sizeof *fresh);
		if (!fresh)
			return NULL;
		memset(fresh, 0, SLAB * sizeof *fresh);
		core->slab[core->slabs++] = fresh;
		for (uint32_t i = SLAB; i-- > 0;) {
			fresh[i].ticket = (uint64_t)1 << TICKET_BITS | (core->rows + i);
			borrow_inline(&fresh[i]);
			iod_queue_add(&core->unused, &fresh[i]);
		}
		core->rows += SLAB;
		row = core->unused.tail;
	}
	iod_queue_remove(row);
	core->in_use++;
	return row;
}

int iod_row_lists(struct iod_row *row, const struct iod_request *request)
{
	uint64_t count = (uint64_t)request->count + request->count2;
	if (count > UINT32_MAX)
		return -EINVAL;
	if (count > row->list_room) {
		struct iod_segment *list = malloc(count * sizeof *list);
		if (!list)
			return -ENOMEM;
		if (row->list != row->inline_list)
			free(row->list);
		row->list = list;
		row->list_room = (uint32_t)count;
	}
	row->count = request->count;
	if (request->addresses) {
		uint64_t sum = 0, bits = 0;
		for (uint32_t i = 0; i < request->count; i++) {
			row->list[i] = (struct iod_segment){request->addresses[i], request->lengths[i]};
			sum += request->lengths[i];
			bits |= request->lengths[i];
		}
		/* Long segments may wrap the sum: then it is done with care. */
		row->total = bits < (uint64_t)1 << 31 ? sum : iod_list_bytes(row->list, row->count);
	} else {
		if (request->count)
			memcpy(row->list, request->list, request->count * sizeof *row->list);
		row->total = iod_list_bytes(row->list, row->count);
	}
	if (request->count2) {
		row->list2 = row->list + request->count;
		memcpy(row->list2, request->list2, request->count2 * sizeof *row->list);
	}
	row->count2 = request->count2;
	return 0;
}

void iod_row_unused(struct iod_core *core, struct iod_row *row)
{
	row->ticket += (uint64_t)1 << TICKET_BITS;
	/* Arrays of the usual size stay with the row: the steady state allocates nothing. */
	if (row->t.room > KEEP_PIECES || row->t.extents_room > 2 * KEEP_PIECES || row->list_room > KEEP_PIECES) {
		iod_translation_free(&row->t);
		if (row->list != row->inline_list)
			free(row->list);
		borrow_inline(row);
	}
	if (row->t2.room > KEEP_PIECES || row->t2.extents_room > 2 * KEEP_PIECES)
		iod_translation_free(&row->t2);
	else if (row->count2)
		iod_translation_clear(&row->t2); /* the next transfer may have no second list */
	core->in_use--;
	iod_queue_add(&core->unused, row);
}

struct iod_row *iod_find(struct iod_core *core, uint64_t ticket)
{
	uint32_t index = (uint32_t)(ticket & (MOST_ROWS - 1));
	if (index >= core->rows)
		return NULL;
	struct iod_row *row = &core->slab[index / SLAB][index % SLAB];
	return row->ticket == ticket && row->state != IOD_S_FREE ? row : NULL;
}

struct iod_row *iod_row_at(struct iod_core *core, uint32_t index)
{
	return index < core->rows ? &core->slab[index / SLAB][index % SLAB] : NULL;
}

void iod_table_destroy(struct iod_core *core)
{
	for (uint32_t i = 0; i < core->rows; i++) {
		struct iod_row *row = iod_row_at(core, i);
		iod_translation_free(&row->t);
		iod_translation_free(&row->t2);
		if (row->list != row->inline_list)
			free(row->list);
	}
	for (uint32_t i = 0; i < core->slabs; i++)
		free(core->slab[i]);
	free(core->slab);
	core->slab = NULL;
	core->slabs = core->rows = 0;
}
