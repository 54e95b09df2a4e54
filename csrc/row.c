/* SPDX-License-Identifier: Apache-2.0
 *
 * row: what any part may do to a transfer: lease and release, wait and be ready again, advance, end.
 *
 * Invariants
 *  - A row is completed once, and has given back leases, bounce piece, order and range before anybody can see that.
 *  - A row that waits holds none of them but its turn in an order.
 *  - Of linked rows none goes that is behind one whose memory was refused. */
#include "bytes.h"
#include "framed.h"

/* Neighbours mostly lie in one region: count the run, then touch the region once. */
static uint32_t same_region(const struct iod_translation *t, uint32_t i)
{
	uint32_t n = 1;
	while (i + n < t->count && t->piece[i + n].region == t->piece[i].region)
		n++;
	return n;
}

static void lease(struct iod_translation *t)
{
	if (t->only) {
		t->only->leases += t->count;
		t->only->references += t->count;
		return;
	}
	for (uint32_t i = 0, n; i < t->count; i += n) {
		n = same_region(t, i);
		t->piece[i].region->leases += n;
		t->piece[i].region->references += n;
	}
}

static void unlease(struct iod_translation *t, bool written)
{
	struct iod_region *only = t->only;
	if (only && !(written && only->dirty)) {
		only->leases -= t->count;
		only->references -= t->count - 1;
		iod_region_put(only);
		iod_translation_clear(t);
		return;
	}
	for (uint32_t i = 0, n; i < t->count; i += n) {
		struct iod_region *region = t->piece[i].region;
		n = same_region(t, i);
		if (written && region->dirty && region->kind == IOD_RAM)
			for (uint32_t k = i; k < i + n; k++)
				iod_region_mark_dirty(region,
						      (uint64_t)((uint8_t *)t->iov[k].iov_base - region->host),
						      t->iov[k].iov_len);
		region->leases -= n;
		region->references -= n - 1;
		iod_region_put(region);
	}
	iod_translation_clear(t);
}

void iod_row_lease(struct iod_core *core, struct iod_row *row)
{
	core->count.pieces += row->t.count;
	lease(&row->t);
	if (row->count2)
		lease(&row->t2);
	row->leased = true;
	iod_row_mark(core, row, IOD_M_WALKED, row->t.count);
	row->cursor = row->cursor2 = 0;
	row->skip = row->skip2 = 0;
}

void iod_row_give_bounce(struct iod_core *core, struct iod_row *row)
{
	if (!row->bounce)
		return;
	iod_arena_give(&core->arena, row->bounce, row->bounce_bytes);
	row->bounce = NULL;
	row->filled = false;
	core->budget_again = true;
}

void iod_row_release(struct iod_core *core, struct iod_row *row)
{
	if (row->leased) {
		/* Whatever its status: all that could have been written counts as written. */
		unlease(&row->t, row->access & IOD_WRITE);
		if (row->count2)
			unlease(&row->t2, true);
		row->leased = false;
		if (row->holds)
			iod_revocation_row_gone(core, row);
	}
	if (row->remote) /* the engine is closed under it */
		iod_remote_drop(row);
	iod_row_give_bounce(core, row);
}

static void leave_order(struct iod_core *core, struct iod_row *row)
{
	struct iod_target *target = row->target;
	if (row->ranged) {
		for (struct iod_row **at = &target->writers; *at; at = &(*at)->range_next)
			if (*at == row) {
				*at = row->range_next;
				break;
			}
		row->ranged = false;
		while (target->range_wait.head)
			iod_row_ready(core, target->range_wait.head);
	}
	if (row->holds_order) {
		row->holds_order = false;
		struct iod_row *next = target->order[row->direction].head;
		target->active[row->direction] = next;
		if (next) {
			if (next->linked && next->port == row->port && (row->status == IOD_FAULT || row->unlinked))
				next->cancel_wanted = next->unlinked = true;
			next->holds_order = true;
			iod_row_ready(core, next);
		}
	}
}

void iod_row_complete(struct iod_core *core, struct iod_row *row, enum iod_status status, int error)
{
	struct iod_port *port = row->port;

	if (core->unlocked) { /* its leases are counted where others count as well: see iod_core_moved */
		row->status = (uint8_t)status;
		row->error = error;
		iod_queue_add(&core->moved, row);
		return;
	}
	if (row->queue) {
		if (row->queue == &core->budget) /* it may have been what those behind it waited for */
			core->budget_again = true;
		iod_queue_remove(row);
	}
	row->status = (uint8_t)status;
	row->error = error;
	if (row->began)
		iod_framed_end(core, row);
	iod_row_release(core, row);
	iod_row_to(core, row, IOD_S_COMPLETE);
	struct iod_target *target = row->target;
	if (row->ranged || row->holds_order)
		leave_order(core, row);
	row->target = NULL;
	port->busy--;
	port->completed[status]++;
	core->count.completed[status]++;
	if (row->kind == IOD_R_TRANSFER) {
		port->bytes[row->direction] += row->moved;
		core->count.bytes[row->direction] += row->moved;
	}
	iod_queue_add(row->user ? &core->done : &port->done, row);
	if (target && --target->references == 0 && target->idle)
		target->idle(target); /* may free it */
}

void iod_row_fault(struct iod_core *core, struct iod_row *row)
{
	if (row->queue)
		iod_queue_remove(row);
	iod_row_to(core, row, IOD_S_FAULTED);
	iod_row_complete(core, row, IOD_FAULT, 0);
}

uint64_t iod_bus_address(const struct iod_segment *list, uint32_t count, uint64_t at)
{
	for (uint32_t i = 0; i < count; i++) {
		if (at < list[i].length)
			return list[i].address + at;
		at -= list[i].length;
	}
	return 0;
}

/* Of a copy that failed: whether the byte that it came to can be read, so that it must be the other side. */
static bool source_is_there(const struct iod_row *row)
{
	uint8_t byte;
	size_t done;
	const struct iovec *iov = &row->t.iov[row->cursor];

	if (row->cursor >= row->t.count || !iod_region_is_host(row->t.piece[row->cursor].region))
		return false;
	return iod_copy(&byte, (const uint8_t *)iov->iov_base + row->skip, 1, &done) == 0;
}

/* The memory was mapped, but the kernel (or the guard) could not reach it: say where that was, as the device knows it. */
void iod_row_gone(struct iod_core *core, struct iod_row *row)
{
	bool target = row->count2 && source_is_there(row);

	row->fault = (struct iod_fault){
		.offset = row->moved,
		.address = target ? iod_bus_address(row->list2, row->count2, row->moved)
				  : iod_bus_address(row->list, row->count, row->moved),
		.space = row->port->space,
		.access = target ? IOD_WRITE : row->access,
		.cause = IOD_C_GONE};
	iod_row_fault(core, row);
}

void iod_row_wait(struct iod_core *core, struct iod_row *row, enum iod_wait_reason why, struct iod_queue *queue)
{
	iod_row_release(core, row);
	row->phase = IOD_P_NONE;
	row->wait = (uint8_t)why;
	core->count.waits[why]++;
	iod_row_to(core, row, IOD_S_WAITING);
	iod_queue_add(queue, row);
}

void iod_row_ready(struct iod_core *core, struct iod_row *row)
{
	if (row->queue)
		iod_queue_remove(row);
	row->was_ranged = row->state == IOD_S_WAITING && row->wait == IOD_W_RANGE;
	row->wait = IOD_W_NONE;
	iod_row_to(core, row, IOD_S_DESCRIBED);
	iod_queue_add(&core->ready, row);
}

void iod_row_advance(struct iod_row *row, uint64_t bytes)
{
	uint64_t left = row->skip + bytes;
	const struct iod_translation *t = &row->t;

	row->moved += bytes;
	if (row->moved == row->total) { /* the usual end: no need to walk there */
		row->cursor = t->count;
		row->skip = 0;
		return;
	}
	while (row->cursor < t->count && left >= t->iov[row->cursor].iov_len) {
		left -= t->iov[row->cursor].iov_len;
		row->cursor++;
	}
	row->skip = left;
}
