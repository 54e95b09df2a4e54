/* SPDX-License-Identifier: Apache-2.0
 *
 * step: from described to in flight: order, range, translation, lease, plan, request.
 *
 * Rows wait on one list each, and whoever frees what they wait for puts them on `ready`.  The step takes from `ready`
 * only, so nothing here recurses however long a chain of waiting rows is.
 *
 * Invariants
 *  - What cannot proceed holds no translation when the step is over. */
#include "xfer.h"

#include "pagetable.h"

#include <errno.h>
#include <sys/stat.h>

static inline bool hand_over(struct iod_core *core, struct iod_row *row, struct iod_op *op)
{
	struct iod_backend *backend = core->backend;

	op->user_data = row->ticket;
	if (row->target && row->target->driver) {
		if (!iod_row_has_room(core, row))
			return false;
		row->target->driver->ops->queue(row->target->driver, op);
		row->with_backend = true;
		core->with_drivers++;
		core->count.requests++;
		return true;
	}
	if (core->with_backend >= core->most_with_backend)
		return false;
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
	core->queued_bytes += row->batched ? row->message_bytes : row->op_bytes;
	return true;
}

bool iod_row_hand_over(struct iod_core *core, struct iod_row *row, struct iod_op *op)
{
	return hand_over(core, row, op);
}

static void in_flight(struct iod_core *core, struct iod_row *row)
{
	if (row->state == IOD_S_DESCRIBED)
		iod_row_to(core, row, IOD_S_IN_FLIGHT);
}

#define NOW_BYTES (64u << 10) /* above, what it saves is nothing beside the copy, during which the glue's lock is held */

/* Of a read that goes alone, and is all of its transfer: whether it is done. */
static inline bool done_now(struct iod_core *core, struct iod_row *row, const struct iod_op *op)
{
	in_flight(core, row);
	iod_row_mark(core, row, IOD_M_REQUEST, row->op_bytes);
	if (core->backend->ops->now(core->backend, op) != (int)row->total)
		return false;
	core->count.requests++;
	core->done_now = true;
	iod_row_mark(core, row, IOD_M_RESULT, row->total);
	row->phase = IOD_P_NONE;
	row->moved = row->total;
	iod_row_complete(core, row, IOD_OK, 0);
	return true;
}

/* The row is translated and leased, or needs neither: its next request. */
void iod_row_continue(struct iod_core *core, struct iod_row *row)
{
	struct iod_op op;
	bool alone;
	int error = 0;

	enum iod_plan plan = iod_plan_next(core, row, &op, &error);
	if (plan == IOD_PLAN_REQUEST) {
		iod_riders_board(core, row, &op);
		iod_batch_board(core, row, &op);
	}
	if (row->cancel_wanted && plan == IOD_PLAN_REQUEST) {
		/* By a device window that the plan read from, or a stage that a rider's walk asked; nothing was handed
		 * over yet. */
		iod_riders_leave(core, row);
		iod_plan_end(row);
		row->phase = IOD_P_NONE;
		iod_row_complete(core, row, IOD_CANCELLED, 0);
		return;
	}
	switch (plan) {
	case IOD_PLAN_REQUEST:
		alone = op.flags & IOD_OP_CACHED && core->backend->ops->now && !core->ready.head &&
			row->phase == IOD_P_DIRECT && row->op_bytes == row->total && row->total <= NOW_BYTES;
		if (alone && done_now(core, row, &op))
			return;
		if (!hand_over(core, row, &op)) {
			iod_riders_leave(core, row);
			iod_plan_end(row);
			if (row->t.remote && iod_bounce_must_keep(row)) { /* there was room before messages were waited for */
				in_flight(core, row);
				row->phase = IOD_P_NONE;
				iod_queue_add(&core->glue, row);
				return;
			}
			iod_row_wait(core, row, IOD_W_RING, iod_room_queue(core, row));
			return;
		}
		in_flight(core, row);
		if (!alone)
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
	case IOD_PLAN_REMOTE:
		in_flight(core, row);
		return;
	case IOD_PLAN_HELD:
		in_flight(core, row);
		iod_packet_give(core, row);
		return;
	case IOD_PLAN_WAIT_BUDGET:
		iod_row_wait(core, row, IOD_W_BUDGET, &core->budget);
		return;
	case IOD_PLAN_WAIT_RING:
		iod_row_wait(core, row, IOD_W_RING, iod_room_queue(core, row));
		return;
	case IOD_PLAN_FAULT:
		iod_row_fault(core, row);
		return;
	case IOD_PLAN_DONE:
		row->moved = row->total;
		iod_row_complete(core, row, IOD_OK, 0);
		return;
	case IOD_PLAN_STREAM: /* never comes here */
	case IOD_PLAN_ERROR:
		if (error == EFAULT)
			iod_row_gone(core, row);
		else if (error == EPIPE)
			iod_row_complete(core, row, IOD_PEER_GONE, 0);
		else
			iod_row_complete(core, row, IOD_IO_ERROR, error);
		return;
	}
}

/* Whether the file does not fill the block that a write ends in. */
static bool ends_the_file(const struct iod_target *target, uint64_t end)
{
	struct stat file;
	return fstat(target->fd, &file) == 0 && S_ISREG(file.st_mode) &&
	       (uint64_t)file.st_size / target->offset_alignment <= end / target->offset_alignment;
}

static bool lock_range(struct iod_core *core, struct iod_row *row)
{
	struct iod_target *target = row->target;
	bool transfer = row->kind == IOD_R_TRANSFER;
	uint64_t align = target->offset_alignment, length = transfer ? row->total : row->length;

	if (length == 0 || length > UINT64_MAX - row->position)
		return true; /* the kernel will say so */
	uint64_t end = row->position + length;
	/* Zeroes and discards read nothing (but where zeroes are written), yet a block that a write has read must not lose
	 * them again. */
	row->reads_first = (transfer || row->kind == IOD_R_ZEROES) && (row->position % align || end % align);
	/* A write that ends in a block that the file does not fill goes through the page cache, and so do zeroes in a part of
	 * a block.  As the file grows by that, the kernel fills what was its last block, there too: a direct write to that
	 * would find the cache dirty when it is done, which makes the next flush fail.  So no other write is under way. */
	bool whole = transfer ? end % align && ends_the_file(target, end) : row->reads_first;
	row->block_first = whole ? 0 : row->position / align;
	row->block_last = whole ? UINT64_MAX / align : (end - 1) / align;
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

/* A write to a direct file locks its blocks: one that must read a block first keeps all others off it. */
static inline bool take_range(struct iod_core *core, struct iod_row *row)
{
	const struct iod_target *target = row->target;

	if (row->ranged || target->offset_alignment <= 1 || target->kind != IOD_T_FILE || row->direction != IOD_FROM_MEMORY)
		return true;
	return lock_range(core, row);
}

static inline bool take_order(struct iod_core *core, struct iod_row *row)
{
	struct iod_target *target = row->target;
	if (!iod_on_wire(target) || row->holds_order)
		return true;
	if (target->active[row->direction]) {
		iod_row_wait(core, row, IOD_W_ORDER, &target->order[row->direction]);
		return false;
	}
	target->active[row->direction] = row;
	row->holds_order = true;
	return true;
}

/* Its translation was refused, or must be waited for. */
static void not_translated(struct iod_core *core, struct iod_row *row, enum iod_walk_result result)
{
	switch (result) {
	case IOD_WALK_OK:
		break;
	case IOD_WALK_PENDING:
		row->missed = row->fault.space;
		core->count.pending++;
		iod_translation_clear(&row->t);
		iod_translation_clear(&row->t2);
		if (row->cancel_wanted) { /* by the stage that was asked */
			iod_row_complete(core, row, IOD_CANCELLED, 0);
			return;
		}
		iod_row_release(core, row); /* a piece of the arena, which others can use meanwhile */
		iod_row_to(core, row, IOD_S_PENDING);
		iod_queue_add(&core->pending, row);
		return;
	case IOD_WALK_FAULT:
		iod_translation_clear(&row->t);
		iod_translation_clear(&row->t2);
		iod_table_faulted(&row->fault);
		iod_row_fault(core, row);
		iod_space_tell(&row->fault);
		return;
	case IOD_WALK_NO_MEMORY:
		iod_translation_clear(&row->t);
		iod_translation_clear(&row->t2);
		iod_row_complete(core, row, IOD_IO_ERROR, ENOMEM);
		return;
	}
}

static inline bool translate(struct iod_core *core, struct iod_row *row)
{
	struct iod_space *space = row->port->space;
	iod_row_mark(core, row, IOD_M_WALK, 0);
	enum iod_walk_result result =
		iod_walk(space, row->list, row->count, row->moved, row->access, &row->t, &row->fault);

	if (result == IOD_WALK_OK && row->count2)
		result = iod_walk(space, row->list2, row->count2, row->moved, IOD_WRITE, &row->t2, &row->fault);
	if (result != IOD_WALK_OK) {
		not_translated(core, row, result);
		return false;
	}
	iod_row_lease(core, row);
	return true;
}

static void row_look(struct iod_core *core, struct iod_row *row)
{
	if (row->target->kind != IOD_T_PACKET) {
		iod_row_complete(core, row, IOD_IO_ERROR, EOPNOTSUPP);
		return;
	}
	if (take_order(core, row))
		iod_row_continue(core, row);
}

static void row_control(struct iod_core *core, struct iod_row *row)
{
	struct iod_target *target = row->target;

	if (iod_is_look(row)) {
		row_look(core, row);
		return;
	}
	if (row->kind != IOD_R_FLUSH) {
		row->total = row->length;
		if (row->total > INT64_MAX || row->position > INT64_MAX - row->total) {
			iod_row_complete(core, row, IOD_IO_ERROR, EFBIG);
			return;
		}
		if (target->read_only) {
			iod_row_complete(core, row, IOD_IO_ERROR, EROFS);
			return;
		}
		if (row->total == 0) {
			iod_row_complete(core, row, IOD_OK, 0);
			return;
		}
		if (!take_range(core, row))
			return;
	}
	iod_row_continue(core, row);
}

static void row_step(struct iod_core *core, struct iod_row *row, bool last)
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
	if (row->error) { /* found when it was submitted */
		iod_row_complete(core, row, IOD_IO_ERROR, row->error);
		return;
	}
	if (iod_is_control(row)) {
		row_control(core, row);
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
		if (target->kind == IOD_T_PACKET && !last) {
			iod_queue_add(&core->packets, row);
			return;
		}
	}
	if (translate(core, row))
		iod_row_continue(core, row);
}

static void retry_cancels(struct iod_core *core)
{
	core->cancel_again = false;
	for (uint32_t i = 0; i < core->rows; i++) {
		struct iod_row *row = iod_row_at(core, i);
		if (row->state == IOD_S_CANCELLING && (row->with_backend || row->phase == IOD_P_RIDE))
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
		if (core->ring.head && iod_room(core) > core->ready.count + core->packets.count)
			iod_row_ready(core, core->ring.head);
		for (struct iod_target *target = core->driven; target; target = target->next_driven)
			if (target->driver_wait.head && target->driver->room > core->ready.count)
				iod_row_ready(core, target->driver_wait.head);
		struct iod_row *row = core->ready.head;
		bool last = !row;
		if (last && !(row = core->packets.head))
			return;
		iod_queue_remove(row);
		row_step(core, row, last);
	}
}

void iod_core_work(struct iod_core *core, struct iod_queue *queue)
{
	/* Only what is there now: what a message to a device window causes comes in the next turn. */
	for (uint32_t left = queue->count; left > 0 && queue->head; left--) {
		struct iod_row *row = queue->head;
		iod_queue_remove(row);
		if (row->phase == IOD_P_WORK)
			iod_row_mark(core, row, IOD_M_RESULT, row->total - row->moved);
		row->phase = IOD_P_NONE; /* a cancel from one of its messages finds it under way */
		iod_row_work(core, row);
	}
	if (queue == &core->work)
		core->work_bytes = 0;
}

void iod_core_moved(struct iod_core *core)
{
	struct iod_row *row;
	while ((row = core->moved.head)) {
		iod_queue_remove(row);
		iod_row_complete(core, row, row->status, row->error);
	}
}
