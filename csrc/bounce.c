/* SPDX-License-Identifier: Apache-2.0
 *
 * bounce: through the arena.  See bounce.h for the invariants. */
#include "bounce.h"

#include <errno.h>
#include <string.h>

/* A piece of the arena of at least `want` bytes in row->bounce, or why not. */
bool iod_bounce_take(struct iod_core *core, struct iod_row *row, size_t want)
{
	if (row->bounce && row->bounce_bytes >= want)
		return true;
	row->bounce_want = want;
	iod_row_give_bounce(core, row);
	if (core->budget.head) /* others wait: behind them */
		return false;
	row->bounce = iod_arena_take(&core->arena, want);
	row->bounce_bytes = want;
	return row->bounce != NULL;
}

static enum iod_plan bounce_request(struct iod_core *core, struct iod_row *row, struct iod_op *op, size_t bytes)
{
	row->one = (struct iovec){row->bounce, bytes};
	row->op_bytes = bytes;
	*op = (struct iod_op){.iov = &row->one, .niov = 1, .offset = row->position + row->moved - row->before};
	iod_plan_set_request(row, op, row->target->fd);
	if (core->arena.buffer_index >= 0 && row->target->kind == IOD_T_FILE) {
		op->flags |= IOD_OP_FIXED_BUFFER;
		op->buffer_index = (uint16_t)core->arena.buffer_index;
	}
	return IOD_PLAN_REQUEST;
}

static enum iod_plan end_fill(struct iod_core *core, struct iod_row *row, int failed, uint64_t done, int *error)
{
	core->count.copied += done;
	core->count.bounced[row->reason] += done;
	core->count.bounces[row->reason]++;
	row->filled = !failed;
	if (!failed)
		return IOD_PLAN_REQUEST;
	if (row->fault.space)
		return IOD_PLAN_FAULT;
	*error = EFAULT;
	return IOD_PLAN_ERROR;
}

/* Of messages that the payload came by: then it is there. */
static void filled(struct iod_core *core, struct iod_row *row, int failed, uint64_t done)
{
	int error = 0;
	enum iod_plan plan = end_fill(core, row, failed, done, &error);

	if (plan == IOD_PLAN_REQUEST && row->cancel_wanted)
		iod_row_complete(core, row, IOD_CANCELLED, 0);
	else if (plan == IOD_PLAN_REQUEST)
		iod_row_continue(core, row);
	else if (plan == IOD_PLAN_FAULT)
		iod_row_fault(core, row);
	else
		iod_row_gone(core, row);
}

/* The payload into the arena, behind the `before` bytes. */
enum iod_plan iod_bounce_fill(struct iod_core *core, struct iod_row *row, int *error)
{
	struct iod_backend *backend = core->backend;
	uint64_t done = 0;

	/* Once it is gathered there must be room for it. */
	if (!iod_row_has_room(core, row)) {
		backend->ops->flush(backend);
		core->queued_bytes = 0;
		if (!iod_row_has_room(core, row))
			return IOD_PLAN_WAIT_RING;
	}
	int failed = iod_row_gather(core, row, row->bounce + row->before, row->payload, &done, filled);
	return failed == -EINPROGRESS ? IOD_PLAN_REMOTE : end_fill(core, row, failed, done, error);
}

static uint64_t blocks_bytes(const struct iod_row *row)
{
	return iod_round_up(row->before + row->payload, row->target->offset_alignment);
}

/* What `sent` bytes of the blocks around the payload are still missing.  A read that ends early, but at a block's end, is
 * not yet the end of the file: it may have been cut short, and what it left out must not be taken for nothing. */
enum iod_plan iod_bounce_read_blocks(struct iod_core *core, struct iod_row *row, struct iod_op *op)
{
	uint64_t had = (uint64_t)row->sent, whole = blocks_bytes(row);

	row->phase = IOD_P_BEFORE;
	bounce_request(core, row, op, whole);
	row->one = (struct iovec){row->bounce + had, whole - had};
	row->op_bytes = whole - had;
	op->offset += had;
	op->code = IOD_OP_READV;
	op->flags &= (uint8_t)~IOD_OP_DSYNC;
	return IOD_PLAN_REQUEST;
}

bool iod_bounce_blocks_read(struct iod_row *row, uint64_t bytes)
{
	row->sent += (int32_t)bytes;
	uint64_t had = (uint64_t)row->sent;
	return bytes == 0 || had % row->target->offset_alignment || had >= blocks_bytes(row);
}

/* What is in the arena, from `before` bytes in front of where the row is: the payload, and what of the file lies behind it
 * up to `sent`. */
enum iod_plan iod_bounce_write(struct iod_core *core, struct iod_row *row, struct iod_op *op, int *error)
{
	uint64_t had = (uint64_t)row->sent, end = row->before + row->payload;

	row->phase = IOD_P_BOUNCE;
	if (had > end)
		end = had;
	if (!row->by_cache && (iod_target_block(row) == 1 || end % iod_target_block(row) == 0))
		return bounce_request(core, row, op, end);
	/* The file ends inside this block: exactly the payload, through the page cache. */
	if (row->target->buffered_fd < 0) {
		*error = EINVAL;
		return IOD_PLAN_ERROR;
	}
	row->by_cache = true;
	row->one = (struct iovec){row->bounce + row->before, row->payload};
	row->op_bytes = row->payload;
	*op = (struct iod_op){.iov = &row->one, .niov = 1, .offset = row->position + row->moved};
	iod_plan_set_request(row, op, row->target->buffered_fd);
	return IOD_PLAN_REQUEST;
}

enum iod_plan iod_bounce(struct iod_core *core, struct iod_row *row, struct iod_op *op, uint64_t bytes,
			    enum iod_reason reason, int *error)
{
	struct iod_target *target = row->target;
	uint64_t align = iod_target_block(row);
	uint64_t position = row->position + row->moved;
	uint64_t most = iod_min64(core->arena.most, target->max_bytes) / align * align;

	if (most < 2 * align || !core->arena.pages) {
		*error = ENOBUFS;
		return IOD_PLAN_ERROR;
	}
	row->before = position % align;
	uint64_t whole = iod_round_up(row->before + bytes, align) + iod_tells_cut(row);
	if (whole > most) {
		if (target->kind == IOD_T_PACKET && !target->framing) {
			*error = EMSGSIZE;
			return IOD_PLAN_ERROR;
		}
		whole = most;
		bytes = whole - row->before;
	}
	if (!iod_bounce_take(core, row, whole))
		return IOD_PLAN_WAIT_BUDGET;
	row->payload = bytes;
	row->reason = (uint8_t)reason;
	if (row->direction == IOD_FROM_MEMORY) {
		row->by_cache = false;
		row->sent = 0;
		if (row->before || (row->before + bytes) % align) /* the write comes when they are here */
			return iod_bounce_read_blocks(core, row, op);
		enum iod_plan plan = iod_bounce_fill(core, row, error);
		return plan == IOD_PLAN_REQUEST ? iod_bounce_write(core, row, op, error) : plan;
	}
	row->phase = IOD_P_BOUNCE;
	return bounce_request(core, row, op, whole);
}

static bool came_from_device(const struct iod_row *row)
{
	uint64_t left = row->skip + row->payload;

	for (uint32_t i = row->cursor; left && i < row->t.count; i++) {
		if (row->t.piece[i].region->kind == IOD_DEVICE)
			return true;
		left -= iod_min64(left, row->t.iov[i].iov_len);
	}
	return false;
}

bool iod_bounce_must_keep(const struct iod_row *row)
{
	return row->filled && came_from_device(row);
}

void iod_bounce_pause(struct iod_core *core, struct iod_row *row)
{
	if (!iod_bounce_must_keep(row))
		iod_row_give_bounce(core, row);
}

void iod_bounce_took(struct iod_row *row, uint64_t bytes)
{
	uint64_t had = (uint64_t)row->sent, at = row->before + bytes, end = row->before + row->payload;
	uint64_t drop = at - at % iod_target_block(row); /* whole blocks */

	row->filled = row->filled && at < end;
	row->payload -= bytes;
	if (!row->filled)
		return;
	memmove(row->bounce, row->bounce + drop, (had > end ? had : end) - drop);
	row->before = at - drop;
	row->sent = had > drop ? (int32_t)(had - drop) : 0;
}

/* The blocks around the payload are in the arena: overlay it and write. */
enum iod_plan iod_bounce_write_blocks(struct iod_core *core, struct iod_row *row, struct iod_op *op, int *error)
{
	uint64_t had = (uint64_t)row->sent;

	if (had < row->before) /* the write starts behind the end of the file */
		memset(row->bounce + had, 0, row->before - had);
	enum iod_plan plan = iod_bounce_fill(core, row, error);
	return plan == IOD_PLAN_REQUEST ? iod_bounce_write(core, row, op, error) : plan;
}
