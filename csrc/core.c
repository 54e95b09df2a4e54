/* SPDX-License-Identifier: Apache-2.0
 *
 * core: how a transfer lives - submitted, stepped, in flight, complete.  See xfer.h for the invariants.
 *
 * Rows wait on one list each, and whoever frees what they wait for puts them on `ready`.  iod_core_step takes from
 * `ready` only, so nothing here recurses however long a chain of waiting rows is. */
#include "bytes.h"
#include "xfer.h"

#include <errno.h>
#include <string.h>

int iod_core_init(struct iod_core *core, struct iod_backend *backend, size_t bounce_bytes, const struct iod_hooks *hooks)
{
	*core = (struct iod_core){.backend = backend, .hooks = *hooks};
	int error = iod_guard_install();
	return error ? error : iod_arena_create(&core->arena, bounce_bytes);
}

void iod_core_destroy(struct iod_core *core)
{
	iod_table_destroy(core);
	iod_arena_destroy(&core->arena);
}

/* ---- submit ---- */

static uint8_t access_of(const struct iod_request *request)
{
	if (request->kind == IOD_R_STORE)
		return IOD_WRITE;
	if (request->kind == IOD_R_TRANSFER && request->direction == IOD_TO_MEMORY)
		return IOD_WRITE;
	return IOD_READ;
}

int iod_submit(struct iod_core *core, const struct iod_request *request, uint64_t *ticket)
{
	struct iod_port *port = request->port;

	if (port->closed || port->resetting)
		return -ESTALE;
	if (port->rows >= port->depth)
		return -EBUSY;
	struct iod_row *row = iod_row_new(core);
	if (!row)
		return -ENOMEM;
	int error = iod_row_lists(row, request);
	if (error) {
		iod_row_unused(core, row);
		return error;
	}
	row->kind = request->kind;
	row->direction = request->direction;
	row->depth = request->depth;
	row->access = access_of(request);
	row->phase = IOD_P_NONE;
	row->status = IOD_OK;
	row->wait = IOD_W_NONE;
	row->cancel_wanted = row->cancel_sent = row->with_backend = row->holds_order = row->leased = false;
	row->was_ranged = row->notified = row->ranged = row->reads_first = false;
	row->error = 0;
	row->port = port;
	row->target = request->target;
	row->moved = 0;
	row->minimum = request->minimum;
	row->position = request->position;
	row->user = request->user;
	row->id = request->id;
	row->born = core->now;
	row->holds = NULL;
	row->riders = NULL;
	row->bounce = NULL;
	if (request->kind != IOD_R_TRANSFER) {
		row->length = request->length;
		row->data = request->data;
		row->cursor2 = 0;
		row->skip2 = 0;
	}
	if (row->target)
		row->target->references++;
	port->rows++;
	port->busy++;
	port->submitted++;
	core->count.submitted++;
	iod_row_to(core, row, IOD_S_DESCRIBED);
	iod_queue_add(&core->ready, row);
	*ticket = row->ticket;
	return 0;
}

/* ---- leases ---- */

/* Neighbours mostly lie in one region: count the run, then touch the region once. */
static uint32_t same_region(const struct iod_translation *t, uint32_t i)
{
	uint32_t n = t->only ? t->count - i : 1;
	while (i + n < t->count && t->piece[i + n].region == t->piece[i].region)
		n++;
	return n;
}

static void lease(struct iod_translation *t)
{
	for (uint32_t i = 0, n; i < t->count; i += n) {
		n = same_region(t, i);
		t->piece[i].region->leases += n;
		t->piece[i].region->references += n;
	}
}

static void unlease(struct iod_translation *t, bool written)
{
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

static void give_bounce(struct iod_core *core, struct iod_row *row)
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
	give_bounce(core, row);
}

/* ---- the ends of a row ---- */

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
			next->holds_order = true;
			iod_row_ready(core, next);
		}
	}
}

void iod_row_complete(struct iod_core *core, struct iod_row *row, enum iod_status status, int error)
{
	struct iod_port *port = row->port;

	if (row->queue)
		iod_queue_remove(row);
	row->status = (uint8_t)status;
	row->error = error;
	iod_row_release(core, row);
	iod_row_to(core, row, IOD_S_COMPLETE);
	struct iod_target *target = row->target;
	if (target)
		leave_order(core, row);
	row->target = NULL;
	port->busy--;
	port->completed[status]++;
	core->count.completed[status]++;
	if (row->kind == IOD_R_TRANSFER) {
		port->bytes[row->direction] += row->moved;
		core->count.bytes[row->direction] += row->moved;
	}
	if (row->user) {
		iod_queue_add(&core->done, row);
	} else {
		iod_queue_add(&port->done, row);
		core->batches_done++;
	}
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

/* The memory was mapped, but the kernel (or the guard) could not reach it: say where that was. */
static void fault_gone(struct iod_core *core, struct iod_row *row)
{
	struct iod_space *space = row->port->space;
	uint64_t left = row->moved, address = 0;

	while (space->next)
		space = space->next;
	for (uint32_t i = 0; i < row->count; i++) {
		address = row->list[i].address + left;
		if (left < row->list[i].length)
			break;
		left -= row->list[i].length;
	}
	row->fault = (struct iod_fault){
		.offset = row->moved, .address = address, .space = space, .access = row->access, .cause = IOD_C_GONE};
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

/* ---- the core step ---- */

static bool hand_over(struct iod_core *core, struct iod_row *row, struct iod_op *op)
{
	struct iod_backend *backend = core->backend;

	op->user_data = row->ticket;
	int error = backend->ops->queue(backend, op);
	if (error == -EAGAIN) {
		backend->ops->flush(backend);
		core->queued_bytes = 0;
		error = backend->ops->queue(backend, op);
	}
	if (error)
		return false;
	row->with_backend = true;
	core->with_backend++;
	core->count.requests++;
	core->queued_bytes += row->op_bytes;
	return true;
}

static void in_flight(struct iod_core *core, struct iod_row *row)
{
	if (row->state == IOD_S_DESCRIBED)
		iod_row_to(core, row, IOD_S_IN_FLIGHT);
}

static bool on_wire(const struct iod_target *target)
{
	return target->kind == IOD_T_STREAM || target->kind == IOD_T_PACKET;
}

/* The row is translated and leased, or needs neither: its next request. */
static void row_continue(struct iod_core *core, struct iod_row *row)
{
	struct iod_op op;
	int error = 0;

	enum iod_plan plan = iod_plan_next(core, row, &op, &error);
	if (row->cancel_wanted && plan == IOD_PLAN_REQUEST) {
		/* By a device window that the plan read from; nothing was handed over yet. */
		iod_plan_end(row);
		row->phase = IOD_P_NONE;
		iod_row_complete(core, row, IOD_CANCELLED, 0);
		return;
	}
	switch (plan) {
	case IOD_PLAN_REQUEST:
		iod_riders_board(core, row, &op);
		if (!hand_over(core, row, &op)) {
			iod_riders_leave(core, row);
			iod_plan_end(row);
			iod_row_wait(core, row, IOD_W_RING, &core->ring);
			return;
		}
		in_flight(core, row);
		iod_row_mark(core, row, IOD_M_REQUEST, row->op_bytes);
		return;
	case IOD_PLAN_WORK: {
		bool plain = row->t.plain && (row->count2 == 0 || row->t2.plain);
		row->phase = IOD_P_WORK;
		in_flight(core, row);
		/* Lanes alone need no lock, but are rare enough to take the same way. */
		if (plain)
			core->work_bytes += row->total - row->moved;
		iod_row_mark(core, row, IOD_M_REQUEST, row->total - row->moved);
		iod_queue_add(plain ? &core->work : &core->glue, row);
		return;
	}
	case IOD_PLAN_SCRIPT:
		row->phase = IOD_P_SCRIPT;
		in_flight(core, row);
		iod_row_mark(core, row, IOD_M_REQUEST, row->op_bytes);
		core->hooks.script(core->hooks.context, row);
		return;
	case IOD_PLAN_WAIT_BUDGET:
		iod_row_wait(core, row, IOD_W_BUDGET, &core->budget);
		return;
	case IOD_PLAN_WAIT_RING:
		iod_row_wait(core, row, IOD_W_RING, &core->ring);
		return;
	case IOD_PLAN_FAULT:
		iod_row_fault(core, row);
		return;
	case IOD_PLAN_ERROR:
		if (error == EFAULT)
			fault_gone(core, row);
		else
			iod_row_complete(core, row, IOD_IO_ERROR, error);
		return;
	}
}

/* A write to a direct file locks its blocks: one that must read a block first keeps all others off it. */
static bool take_range(struct iod_core *core, struct iod_row *row)
{
	struct iod_target *target = row->target;
	bool transfer = row->kind == IOD_R_TRANSFER;
	uint64_t align = target->offset_alignment, length = transfer ? row->total : row->length;

	if (row->ranged || align <= 1 || target->kind != IOD_T_FILE || row->direction != IOD_FROM_MEMORY)
		return true;
	if (length == 0 || length > UINT64_MAX - row->position)
		return true; /* the kernel will say so */
	uint64_t end = row->position + length;
	/* Zeroes and discards read nothing, but a block that a write has read must not lose them again. */
	row->reads_first = transfer && (row->position % align || end % align);
	/* The last partial block goes through the page cache: its page is the unit then. */
	if (row->reads_first && align < 4096)
		align = 4096;
	row->block_first = row->position / align;
	row->block_last = (end - 1) / align;
	if (align != 4096) { /* compare in one unit */
		row->block_first = row->block_first * align / 4096;
		row->block_last = (row->block_last * align + align - 1) / 4096;
	}
	struct iod_row *other;
	for (other = target->writers; other; other = other->range_next)
		if ((row->reads_first || other->reads_first) && row->block_first <= other->block_last &&
		    other->block_first <= row->block_last)
			break;
	/* Nor past one that waits already, or a stream of small writes could keep it waiting for ever. */
	if (!other && !row->was_ranged)
		for (other = target->range_wait.head; other; other = other->next)
			if ((row->reads_first || other->reads_first) && row->block_first <= other->block_last &&
			    other->block_first <= row->block_last)
				break;
	if (other) {
		iod_row_wait(core, row, IOD_W_RANGE, &target->range_wait);
		return false;
	}
	row->ranged = true;
	row->range_next = target->writers;
	target->writers = row;
	return true;
}

static bool take_order(struct iod_core *core, struct iod_row *row)
{
	struct iod_target *target = row->target;
	if (!on_wire(target) || row->holds_order)
		return true;
	if (target->active[row->direction]) {
		iod_row_wait(core, row, IOD_W_ORDER, &target->order[row->direction]);
		return false;
	}
	target->active[row->direction] = row;
	row->holds_order = true;
	return true;
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

static bool translate(struct iod_core *core, struct iod_row *row)
{
	struct iod_space *space = row->port->space;
	iod_row_mark(core, row, IOD_M_WALK, 0);
	enum iod_walk_result result =
		iod_walk(space, row->list, row->count, row->moved, row->access, &row->t, &row->fault);

	if (result == IOD_WALK_OK && row->count2)
		result = iod_walk(space, row->list2, row->count2, row->moved, IOD_WRITE, &row->t2, &row->fault);
	switch (result) {
	case IOD_WALK_OK:
		break;
	case IOD_WALK_PENDING:
		row->missed = row->fault.space;
		core->count.pending++;
		iod_translation_clear(&row->t);
		iod_translation_clear(&row->t2);
		iod_row_to(core, row, IOD_S_PENDING);
		iod_queue_add(&core->pending, row);
		return false;
	case IOD_WALK_FAULT:
		iod_translation_clear(&row->t);
		iod_translation_clear(&row->t2);
		iod_row_fault(core, row);
		return false;
	case IOD_WALK_NO_MEMORY:
		iod_translation_clear(&row->t);
		iod_translation_clear(&row->t2);
		iod_row_complete(core, row, IOD_IO_ERROR, ENOMEM);
		return false;
	}
	iod_row_lease(core, row);
	return true;
}

static void row_step(struct iod_core *core, struct iod_row *row)
{
	struct iod_target *target = row->target;

	if (row->cancel_wanted || row->port->resetting) {
		iod_row_complete(core, row, IOD_CANCELLED, 0);
		return;
	}
	if (target && target->closed) {
		iod_row_complete(core, row, IOD_IO_ERROR, EBADF);
		return;
	}
	if (row->kind == IOD_R_FLUSH || row->kind == IOD_R_DISCARD || row->kind == IOD_R_ZEROES) {
		if (row->kind == IOD_R_FLUSH || take_range(core, row))
			row_continue(core, row);
		return;
	}
	if (row->total > INT64_MAX || (row->count2 && iod_list_bytes(row->list2, row->count2) > INT64_MAX)) {
		/* No host maps as much, so the walk refuses it, and says at which byte; unless the list names
		 * the same memory over and over. */
		if (translate(core, row)) {
			row->fault = (struct iod_fault){.space = row->port->space, .address = UINT64_MAX,
							.access = row->access, .cause = IOD_C_WRAP};
			iod_row_fault(core, row);
		}
		return;
	}
	if (row->count2)
		row->total = iod_min64(row->total, iod_list_bytes(row->list2, row->count2));
	if (row->total == row->moved && !(target && target->kind == IOD_T_PACKET)) {
		iod_row_complete(core, row, IOD_OK, 0);
		return;
	}
	if (target) {
		if (target->kind == IOD_T_FILE && row->position > INT64_MAX - row->total) {
			iod_row_complete(core, row, IOD_IO_ERROR, EFBIG);
			return;
		}
		if (target->read_only && row->direction == IOD_FROM_MEMORY) {
			iod_row_complete(core, row, IOD_IO_ERROR, EROFS);
			return;
		}
		if (!take_order(core, row) || !take_range(core, row))
			return;
	}
	if (translate(core, row))
		row_continue(core, row);
}

static void retry_cancels(struct iod_core *core)
{
	core->cancel_again = false;
	for (uint32_t i = 0; i < core->rows; i++) {
		struct iod_row *row = iod_row_at(core, i);
		if (row->state == IOD_S_CANCELLING && row->with_backend && !row->cancel_sent)
			iod_cancel_row(core, row);
	}
}

/* First in, first out, and nobody passes: the head gets its piece before any later row may try. */
static void feed_budget(struct iod_core *core)
{
	core->budget_again = false;
	while (core->budget.head) {
		struct iod_row *row = core->budget.head;
		row->bounce = iod_arena_take(&core->arena, row->bounce_want);
		if (!row->bounce)
			return;
		row->bounce_bytes = row->bounce_want;
		iod_row_ready(core, row);
	}
}

void iod_core_step(struct iod_core *core)
{
	if (core->cancel_again)
		retry_cancels(core);
	for (;;) {
		if (core->budget_again)
			feed_budget(core);
		if (core->ring.head && core->backend->ops->room(core->backend) > core->ready.count)
			iod_row_ready(core, core->ring.head);
		struct iod_row *row = core->ready.head;
		if (!row)
			return;
		iod_queue_remove(row);
		row_step(core, row);
	}
}

void iod_core_work(struct iod_core *core, struct iod_queue *queue)
{
	/* Only what is there now: what a message to a device window causes comes in the next turn. */
	for (uint32_t left = queue->count; left > 0 && queue->head; left--) {
		struct iod_row *row = queue->head;
		iod_queue_remove(row);
		iod_row_mark(core, row, IOD_M_RESULT, row->total - row->moved);
		row->phase = IOD_P_NONE; /* a cancel from one of its messages finds it under way */
		iod_row_work(core, row);
	}
	if (queue == &core->work)
		core->work_bytes = 0;
}

/* ---- completions ---- */

static bool peer_gone(int error)
{
	return error == EPIPE || error == ECONNRESET || error == ENOTCONN || error == ECONNABORTED ||
	       error == ESHUTDOWN || error == ECONNREFUSED || error == ETIMEDOUT;
}

static void row_failed(struct iod_core *core, struct iod_row *row, int error)
{
	/* A request that a cancel broke off says so in one of three ways. */
	if (row->cancel_wanted && (error == ECANCELED || error == EINTR || error == EAGAIN))
		iod_row_complete(core, row, IOD_CANCELLED, 0);
	else if (error == EFAULT && row->kind == IOD_R_TRANSFER)
		fault_gone(core, row);
	else if (row->target && (on_wire(row->target) || row->target->kind == IOD_T_SCRIPT) && peer_gone(error))
		iod_row_complete(core, row, IOD_PEER_GONE, error);
	else
		iod_row_complete(core, row, IOD_IO_ERROR, error);
}

static void row_progress(struct iod_core *core, struct iod_row *row)
{
	struct iod_target *target = row->target;

	if (row->moved >= row->total || target->kind == IOD_T_PACKET ||
	    (target->kind == IOD_T_STREAM && row->direction == IOD_TO_MEMORY && row->moved >= row->minimum)) {
		iod_row_complete(core, row, IOD_OK, 0);
	} else if (row->cancel_wanted) {
		iod_row_complete(core, row, IOD_CANCELLED, 0);
	} else {
		core->count.splits++;
		row_continue(core, row);
	}
}

/* The backend moved nothing and says so without an error. */
static void row_nothing(struct iod_core *core, struct iod_row *row)
{
	struct iod_target *target = row->target;

	if (target->kind == IOD_T_PACKET)
		iod_row_complete(core, row, IOD_OK, 0); /* an empty packet */
	else if (row->direction == IOD_FROM_MEMORY)
		iod_row_complete(core, row, IOD_IO_ERROR, EIO);
	else if (target->kind == IOD_T_STREAM)
		iod_row_complete(core, row, IOD_PEER_GONE, 0);
	else
		iod_row_complete(core, row, IOD_OK, 0); /* end of file */
}

/* The end of a request through the arena: n bytes of the bounce piece, the `before` ones included. */
static void bounced(struct iod_core *core, struct iod_row *row, uint64_t n)
{
	uint64_t useful = n > row->before ? iod_min64(n - row->before, row->payload) : 0;
	uint64_t done = useful;

	if (useful == 0) {
		row_nothing(core, row);
		return;
	}
	if (row->direction == IOD_TO_MEMORY) {
		int error = iod_row_scatter(core, row, row->bounce + row->before, useful, &done);
		core->count.copied += done;
		core->count.bounced[row->reason] += done;
		iod_row_advance(row, done);
		if (error) {
			if (row->fault.space)
				iod_row_fault(core, row);
			else
				fault_gone(core, row);
			return;
		}
	} else {
		iod_row_advance(row, useful);
		iod_plan_took(row, useful);
	}
	row_progress(core, row);
}

static void row_result(struct iod_core *core, struct iod_row *row, int32_t result)
{
	uint8_t phase = row->phase;

	iod_row_mark(core, row, IOD_M_RESULT, (uint64_t)(int64_t)result);
	iod_plan_end(row);
	row->phase = IOD_P_NONE;
	if (phase == IOD_P_DIRECT && row->target->kind == IOD_T_STREAM && row->direction == IOD_FROM_MEMORY)
		row->target->took = result > 0 && (uint64_t)result < row->message_bytes ? (uint64_t)result : 0;
	if (row->riders && (result <= 0 || (uint64_t)result < row->op_bytes))
		iod_riders_leave(core, row);
	/* -ECANCELED that nobody wanted of this row: of one that rode along. */
	if ((result == -EINTR || result == -ECANCELED) && !row->cancel_wanted) {
		row_continue(core, row);
		return;
	}
	if (result == -EAGAIN && row->target && on_wire(row->target) && !row->cancel_wanted) {
		/* A descriptor that was set non-blocking: wait until it is ready, then again. */
		struct iod_op op = {.code = IOD_OP_POLL, .fd = row->target->fd,
				    .poll_events = row->direction == IOD_TO_MEMORY ? 1 /* POLLIN */ : 4 /* POLLOUT */};
		row->op_bytes = 0;
		row->phase = IOD_P_POLL;
		if (!hand_over(core, row, &op)) {
			row->phase = IOD_P_NONE;
			iod_row_wait(core, row, IOD_W_RING, &core->ring);
		} else {
			iod_row_mark(core, row, IOD_M_REQUEST, 0);
		}
		return;
	}
	if (result == -EOPNOTSUPP && row->target && row->target->zero_copy && !row->cancel_wanted) {
		/* Not on this kernel, this engine or this kind of socket: an ordinary send does the same. */
		row->target->zero_copy = false;
		row_continue(core, row);
		return;
	}
	if (result < 0) {
		row_failed(core, row, -result);
		return;
	}
	switch (phase) {
	case IOD_P_PLAIN:
		iod_row_complete(core, row, IOD_OK, 0);
		return;
	case IOD_P_POLL:
		if (row->cancel_wanted)
			iod_row_complete(core, row, IOD_CANCELLED, 0);
		else
			row_continue(core, row);
		return;
	case IOD_P_BEFORE:
		row->sent = result; /* bytes that the blocks held */
		row->phase = IOD_P_BEFORE;
		if (row->cancel_wanted)
			iod_row_complete(core, row, IOD_CANCELLED, 0);
		else
			row_continue(core, row);
		return;
	case IOD_P_BOUNCE:
		bounced(core, row, (uint64_t)result);
		return;
	default:
		if (result == 0) {
			row_nothing(core, row);
			return;
		}
		iod_row_advance(row, iod_min64((uint64_t)result, row->op_bytes));
		if (row->riders) {
			row = iod_riders_share(core, row, (uint64_t)result - row->op_bytes);
			if (row)
				row_progress(core, row);
			return;
		}
		row_progress(core, row);
		return;
	}
}

static void completion(struct iod_core *core, const struct iod_cqe *cqe)
{
	struct iod_row *row = iod_find(core, cqe->user_data);

	if (!row || !row->with_backend) {
		core->hooks.other(core, cqe);
		return;
	}
	if (cqe->flags & IOD_CQE_MORE) { /* zero-copy: the pages are still the kernel's */
		row->notified = true;
		row->sent = cqe->res;
		return;
	}
	row->with_backend = false;
	core->with_backend--;
	row->cancel_sent = false;
	int32_t result = cqe->res;
	if (row->notified) {
		row->notified = false;
		result = row->sent;
	}
	row_result(core, row, result);
}

uint32_t iod_core_reap(struct iod_core *core, uint32_t most)
{
	struct iod_cqe cqe[64];
	uint32_t seen = 0;

	while (seen < most) {
		uint32_t want = most - seen < 64 ? most - seen : 64;
		uint32_t got = core->backend->ops->reap(core->backend, cqe, want);
		for (uint32_t i = 0; i < got; i++)
			completion(core, &cqe[i]);
		seen += got;
		if (got < want)
			break;
	}
	return seen;
}

void iod_script_done(struct iod_core *core, struct iod_row *row, int32_t result)
{
	if (row->phase != IOD_P_SCRIPT)
		return;
	row_result(core, row, result);
}

/* ---- cancel, reset, what waits ---- */

void iod_cancel_row(struct iod_core *core, struct iod_row *row)
{
	row->cancel_wanted = true;
	switch (row->state) {
	case IOD_S_DESCRIBED: /* on `ready`: the step sees the wish */
		return;
	case IOD_S_PENDING:
	case IOD_S_WAITING:
		iod_row_complete(core, row, IOD_CANCELLED, 0);
		return;
	case IOD_S_IN_FLIGHT:
		iod_row_to(core, row, IOD_S_CANCELLING);
		if (row->phase == IOD_P_WORK) { /* nothing of it is under way */
			iod_row_complete(core, row, IOD_CANCELLED, 0);
			return;
		}
		if (row->phase == IOD_P_SCRIPT) {
			core->hooks.script_cancel(core->hooks.context, row);
			return;
		}
		if (row->phase == IOD_P_RIDE) { /* it gets off when its host's request ends, which goes on alone */
			if (row->host->with_backend && !row->host->cancel_sent)
				row->host->cancel_sent =
					core->backend->ops->cancel(core->backend, row->host->ticket) != -EAGAIN;
			return;
		}
		break;
	case IOD_S_CANCELLING:
		break;
	default:
		return;
	}
	if (!row->with_backend || row->cancel_sent)
		return;
	int error = core->backend->ops->cancel(core->backend, row->ticket);
	if (error == -EAGAIN) {
		core->backend->ops->flush(core->backend);
		error = core->backend->ops->cancel(core->backend, row->ticket);
	}
	row->cancel_sent = error != -EAGAIN;
	if (!row->cancel_sent)
		core->cancel_again = true;
}

bool iod_cancel(struct iod_core *core, uint64_t ticket)
{
	struct iod_row *row = iod_find(core, ticket);

	if (!row || row->state == IOD_S_COMPLETE || row->state == IOD_S_DELIVERED)
		return false;
	iod_cancel_row(core, row);
	return true;
}

void iod_port_reset(struct iod_core *core, struct iod_port *port)
{
	port->generation++;
	port->resetting = true;
	for (uint32_t i = 0; i < core->rows && port->busy; i++) {
		struct iod_row *row = iod_row_at(core, i);
		if (row->state != IOD_S_FREE && row->port == port)
			iod_cancel_row(core, row);
	}
}

void iod_resume_pending(struct iod_core *core, struct iod_space *space)
{
	struct iod_row *next;
	for (struct iod_row *row = core->pending.head; row; row = next) {
		next = row->next;
		if (row->missed == space)
			iod_row_ready(core, row);
	}
}

struct iod_row *iod_take_done(struct iod_core *core)
{
	struct iod_row *row = core->done.head;
	if (row) {
		iod_queue_remove(row);
		iod_row_to(core, row, IOD_S_DELIVERED);
		core->count.delivered++;
	}
	return row;
}

struct iod_row *iod_take_batch(struct iod_core *core, struct iod_port *port)
{
	struct iod_row *row = port->done.head;
	if (row) {
		iod_queue_remove(row);
		core->batches_done--;
		iod_row_to(core, row, IOD_S_DELIVERED);
		core->count.delivered++;
	}
	return row;
}

void iod_row_free(struct iod_core *core, struct iod_row *row)
{
	row->port->rows--;
	iod_row_to(core, row, IOD_S_FREE);
	row->user = NULL;
	iod_row_unused(core, row);
}

int iod_access(struct iod_core *core, struct iod_space *space, uint64_t address, void *data, size_t length, bool write,
	       struct iod_fault *fault, size_t *done)
{
	struct iovec iov[4];
	struct iod_piece piece[4];
	struct iod_extent extent[8];
	struct iod_translation t = {.iov = iov, .piece = piece, .extent = extent, .room = 4, .extents_room = 8};
	struct iod_segment list = {address, length};
	int error = 0;

	*done = 0;
	enum iod_walk_result result = iod_walk(space, &list, 1, 0, write ? IOD_WRITE : IOD_READ, &t, fault);
	if (result == IOD_WALK_FAULT)
		error = -EFAULT;
	else if (result != IOD_WALK_OK || !t.plain)
		error = -EAGAIN;
	for (uint32_t i = 0; !error && i < t.count; i++) {
		size_t n = 0;
		uint8_t *at = (uint8_t *)data + *done;
		if (write) {
			error = iod_copy(t.iov[i].iov_base, at, t.iov[i].iov_len, &n);
			iod_region_mark_dirty(t.piece[i].region,
					      (uint64_t)((uint8_t *)t.iov[i].iov_base - t.piece[i].region->host),
					      t.iov[i].iov_len);
		} else {
			error = iod_copy(at, t.iov[i].iov_base, t.iov[i].iov_len, &n);
		}
		*done += n;
		if (error)
			*fault = (struct iod_fault){.offset = *done, .address = address + *done,
						    .space = t.extent[t.extents - 1].space,
						    .access = write ? IOD_WRITE : IOD_READ, .cause = IOD_C_GONE};
	}
	iod_translation_free(&t);
	(void)core;
	return error;
}
