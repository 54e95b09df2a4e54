/* SPDX-License-Identifier: Apache-2.0
 *
 * plan: the only decision between direct, split and bounce.
 *
 * A row is never planned as a whole: what is decided is the next request from where it is, so a tail that an alignment
 * cut leaves over is simply what comes next, and a short answer is not a special case.
 *
 * Invariants
 *  - Direct is the default; a bounce has a reason (enum iod_reason), and its bytes are counted under it.
 *  - The iovecs that a request borrows are as they were once iod_plan_end ran. */
#include "bounce.h"
#include "framed.h"

#include <errno.h>
#include <linux/falloc.h>
#include <sys/socket.h>

#define ZEROES (64u << 10)
#define ZERO_PIECES 256
static const uint8_t zeroes[ZEROES] __attribute__((aligned(4096)));

/* iod_tells_cut */
static uint8_t one_byte_more;

bool iod_plan_is_small(const struct iod_core *core, const struct iod_row *row)
{
	uint64_t pieces = row->t.count - row->cursor, left = row->total - row->moved;
	uint64_t small = row->target->small ? row->target->small : core->small[row->direction];
	return pieces > 1 && left < pieces * small && row->target->kind != IOD_T_SCRIPT;
}

static bool piece_bounces(const struct iod_row *row, uint32_t i, uint8_t *reason)
{
	const struct iod_piece *piece = &row->t.piece[i];
	if (piece->region->kind == IOD_DEVICE)
		*reason = IOD_BY_NOT_RAM;
	else if (piece->region->kind == IOD_REMOTE)
		*reason = IOD_BY_REMOTE;
	else if (piece->lanes)
		*reason = IOD_BY_LANES;
	else
		return false;
	return true;
}

void iod_plan_set_request(struct iod_row *row, struct iod_op *op, int fd)
{
	struct iod_target *target = row->target;
	bool out = row->direction == IOD_FROM_MEMORY;

	op->fd = fd;
	if (target->kind == IOD_T_FILE) {
		op->code = out ? IOD_OP_WRITEV : IOD_OP_READV;
		if (out && target->write_through)
			op->flags |= IOD_OP_DSYNC;
		else if (!out && !target->direct)
			op->flags |= IOD_OP_CACHED;
	} else if (target->plain_io) {
		op->code = out ? IOD_OP_WRITEV : IOD_OP_READV;
		op->flags |= out ? 0 : IOD_OP_CONSUMES;
		op->offset = 0;
	} else {
		row->message = (struct msghdr){.msg_iov = (struct iovec *)(uintptr_t)op->iov, .msg_iovlen = op->niov};
		op->msg = &row->message;
		op->code = !out ? IOD_OP_RECVMSG : target->zero_copy && !row->by_copy ? IOD_OP_SEND_ZC : IOD_OP_SENDMSG;
		if (row->phase == IOD_P_BOUNCE) { /* nobody keeps a piece of the arena until a peer likes */
			op->code = out ? IOD_OP_SENDMSG : IOD_OP_RECVMSG;
			op->flags |= IOD_OP_NOWAIT;
		}
	}
	if (target->file_index >= 0 && fd == target->fd) {
		op->flags |= IOD_OP_FIXED_FILE;
		op->file_index = target->file_index;
	}
}

static int registered(const struct iod_row *row, uint32_t pieces)
{
	const struct iod_region *region = row->t.piece[row->cursor].region;
	int index = region->buffer_index;
	if (index < 0 || region->buffer_core != row->port->core->number)
		return -1;
	if (row->t.only)
		return index;
	for (uint32_t i = 1; i < pieces; i++)
		if (row->t.piece[row->cursor + i].region->buffer_index != index ||
		    row->t.piece[row->cursor + i].region->buffer_core != region->buffer_core)
			return -1;
	return index;
}

/* `bytes` from where the row is, straight between the pieces and the endpoint. */
static void direct(struct iod_row *row, struct iod_op *op, uint64_t bytes)
{
	struct iovec *first = &row->t.iov[row->cursor];
	uint32_t pieces = 0;
	uint64_t sum = 0;

	if (bytes == row->total) { /* all of it at once: nothing to cut, and no need to count */
		pieces = row->t.count;
		row->trimmed = 0;
	} else {
		first->iov_base = (uint8_t *)first->iov_base + row->skip;
		first->iov_len -= row->skip;
		while (sum < bytes)
			sum += row->t.iov[row->cursor + pieces++].iov_len;
		row->trimmed = sum - bytes;
		row->t.iov[row->cursor + pieces - 1].iov_len -= row->trimmed;
	}
	row->op_pieces = pieces;
	row->op_bytes = bytes;
	row->phase = IOD_P_DIRECT;
	*op = (struct iod_op){.iov = first, .niov = pieces, .offset = row->position + row->moved};
	iod_plan_set_request(row, op, row->target->fd);
	int index = row->target->kind == IOD_T_FILE ? registered(row, pieces) : -1;
	if (index >= 0) {
		op->flags |= IOD_OP_FIXED_BUFFER;
		op->buffer_index = (uint16_t)index;
	}
}

void iod_plan_end(struct iod_row *row)
{
	if (row->phase != IOD_P_DIRECT || !(row->skip | row->trimmed))
		return;
	struct iovec *first = &row->t.iov[row->cursor];
	row->t.iov[row->cursor + row->op_pieces - 1].iov_len += row->trimmed;
	first->iov_base = (uint8_t *)first->iov_base - row->skip;
	first->iov_len += row->skip;
}

/* How much may go direct, and if nothing: how much must bounce until something may again. */
static uint64_t aligned_run(const struct iod_row *row, uint64_t limit, uint64_t *until)
{
	const struct iod_target *target = row->target;
	uint64_t block = target->offset_alignment, unit = target->memory_alignment;
	uint64_t position = row->position + row->moved, sum = 0, at = position;
	uint8_t reason;

	if (position % block == 0)
		for (uint32_t i = row->cursor; i < row->t.count && sum < limit; i++) {
			uint64_t skip = i == row->cursor ? row->skip : 0;
			uint64_t length = row->t.iov[i].iov_len - skip;
			uintptr_t host = (uintptr_t)row->t.iov[i].iov_base + skip;
			if (host % unit || piece_bounces(row, i, &reason))
				break;
			/* STATX_DIOALIGN: each segment's length is a multiple of the block, its address of the unit. */
			uint64_t usable = iod_min64(length - length % block, limit - sum);
			sum += usable;
			if (usable < length)
				break;
		}
	sum -= sum % block;
	*until = row->total - row->moved;
	for (uint32_t i = row->cursor; !sum && i < row->t.count; i++) {
		uint64_t skip = i == row->cursor ? row->skip : 0;
		uint64_t length = row->t.iov[i].iov_len - skip;
		uintptr_t host = (uintptr_t)row->t.iov[i].iov_base + skip;
		uint64_t candidate = iod_round_up(at > position ? at : position + 1, block);
		if (candidate + block <= at + length && (host + (candidate - at)) % unit == 0 &&
		    !piece_bounces(row, i, &reason)) {
			*until = candidate - position;
			break;
		}
		at += length;
	}
	return sum;
}

static enum iod_plan zero_request(struct iod_row *row, struct iod_op *op)
{
	static struct iovec many[ZERO_PIECES];
	const struct iod_target *target = row->target;
	uint64_t left = row->total - row->moved, position = row->position + row->moved;
	uint64_t align = target->offset_alignment;
	int fd = target->fd;

	if (align > 1 && (position % align || left < align)) { /* part of a block: through the page cache */
		fd = target->buffered_fd;
		left = iod_min64(left, align - position % align);
	} else {
		left -= left % align;
	}
	*op = (struct iod_op){.code = IOD_OP_WRITEV, .fd = fd, .offset = position};
	if (left >= ZEROES) {
		for (unsigned i = 0; i < ZERO_PIECES && !many[i].iov_len; i++)
			many[i] = (struct iovec){(uint8_t *)(uintptr_t)zeroes, ZEROES};
		op->iov = many;
		op->niov = (uint32_t)iod_min64(left / ZEROES, ZERO_PIECES);
		row->op_bytes = (uint64_t)op->niov * ZEROES;
	} else {
		row->one = (struct iovec){(uint8_t *)(uintptr_t)zeroes, left};
		op->iov = &row->one;
		op->niov = 1;
		row->op_bytes = left;
	}
	if (target->write_through)
		op->flags |= IOD_OP_DSYNC;
	if (target->file_index >= 0 && fd == target->fd) {
		op->flags |= IOD_OP_FIXED_FILE;
		op->file_index = target->file_index;
	}
	row->phase = IOD_P_ZERO;
	return IOD_PLAN_REQUEST;
}

/* FLUSH, DISCARD, ZEROES, PEEK, DROP */
static enum iod_plan control(struct iod_row *row, struct iod_op *op, int *error)
{
	struct iod_target *target = row->target;

	if (iod_is_look(row))
		return iod_packet_look(row, op, error);
	if (target->kind == IOD_T_NULL || (target->kind == IOD_T_BUFFER && row->kind == IOD_R_FLUSH))
		return IOD_PLAN_DONE;
	if (target->kind == IOD_T_BUFFER)
		return IOD_PLAN_WORK;
	if (target->kind == IOD_T_SCRIPT) {
		row->op_bytes = row->total;
		return IOD_PLAN_SCRIPT;
	}
	if (target->kind != IOD_T_FILE) {
		*error = EOPNOTSUPP;
		return IOD_PLAN_ERROR;
	}
	if (row->kind == IOD_R_ZEROES &&
	    (row->by_write || target->no_zero_range || (target->write_through && !target->driver)))
		return zero_request(row, op);
	*op = (struct iod_op){.fd = target->fd, .offset = row->position, .length = row->total};
	row->op_bytes = 0;
	row->phase = IOD_P_PLAIN;
	if (row->kind == IOD_R_FLUSH) {
		op->code = IOD_OP_FSYNC;
	} else {
		op->code = IOD_OP_FALLOCATE;
		if (target->driver && target->write_through)
			op->flags |= IOD_OP_DSYNC;
		op->mode = row->kind == IOD_R_DISCARD ? FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE : FALLOC_FL_ZERO_RANGE;
	}
	return IOD_PLAN_REQUEST;
}

/* What most transfers are: all of it in one request to a file, with nothing to cut, to split or to bounce. */
static inline bool goes_at_once(const struct iod_core *core, const struct iod_row *row)
{
	const struct iod_target *target = row->target;
	return row->kind == IOD_R_TRANSFER && target->kind == IOD_T_FILE && row->phase == IOD_P_NONE && row->moved == 0 &&
	       row->t.plain && row->t.count <= target->max_segments && row->total <= target->max_bytes &&
	       target->offset_alignment <= 1 && target->memory_alignment <= 1 &&
	       (row->t.count == 1 || !iod_plan_is_small(core, row));
}

/* What a scripted endpoint is to take must be here when it looks. */
static enum iod_plan script(struct iod_core *core, struct iod_row *row, int *error)
{
	row->op_bytes = row->total - row->moved;
	if (row->direction != IOD_FROM_MEMORY || !row->t.remote)
		return IOD_PLAN_SCRIPT;
	if (!row->filled) {
		size_t most = iod_min64(row->op_bytes, core->arena.most);
		if (!most) {
			*error = ENOBUFS;
			return IOD_PLAN_ERROR;
		}
		if (!iod_bounce_take(core, row, most))
			return IOD_PLAN_WAIT_BUDGET;
		row->payload = most;
		row->before = 0;
		row->reason = IOD_BY_REMOTE;
		enum iod_plan plan = iod_bounce_fill(core, row, error);
		if (plan != IOD_PLAN_REQUEST)
			return plan;
	}
	row->op_bytes = row->payload;
	return IOD_PLAN_SCRIPT;
}

/* What the core moves itself, messages and all, goes through the arena only where both ends are lists. */
static enum iod_plan work(struct iod_core *core, struct iod_row *row, int *error)
{
	if (row->kind != IOD_R_COPY || !(row->t.remote || row->t2.remote))
		return IOD_PLAN_WORK;
	if (!core->arena.most) {
		*error = ENOBUFS;
		return IOD_PLAN_ERROR;
	}
	return iod_bounce_take(core, row, iod_min64(row->total - row->moved, core->arena.most)) ? IOD_PLAN_WORK
											    : IOD_PLAN_WAIT_BUDGET;
}

static enum iod_plan next_request(struct iod_core *core, struct iod_row *row, struct iod_op *op, int *error)
{
	struct iod_target *target = row->target;
	uint64_t left = row->total - row->moved;
	uint8_t reason = 0;

	if (goes_at_once(core, row)) {
		direct(row, op, left);
		return IOD_PLAN_REQUEST;
	}
	if (row->phase == IOD_P_BEFORE)
		return row->blocks_read ? iod_bounce_write_blocks(core, row, op, error) : iod_bounce_read_blocks(core, row, op);
	if (row->kind == IOD_R_COPY || row->kind == IOD_R_LOAD || row->kind == IOD_R_STORE)
		return work(core, row, error);
	if (row->kind != IOD_R_TRANSFER)
		return control(row, op, error);
	if (row->filled && target->kind != IOD_T_SCRIPT) /* it was cut short, or interrupted: what is left of it */
		return iod_bounce_write(core, row, op, error);
	switch (target->kind) {
	case IOD_T_BUFFER:
	case IOD_T_NULL:
		return IOD_PLAN_WORK;
	case IOD_T_SCRIPT:
		return script(core, row, error);
	case IOD_T_PACKET:
		if (target->framing) {
			enum iod_plan plan = iod_framed_next(row, op, &left, error);
			if (plan != IOD_PLAN_STREAM)
				return plan;
			break;
		}
		if (target->held_bytes && row->direction == IOD_TO_MEMORY)
			return IOD_PLAN_HELD;
		/* One packet is one request, whatever it takes. */
		for (uint32_t i = row->cursor; i < row->t.count; i++)
			if (piece_bounces(row, i, &reason))
				return iod_bounce(core, row, op, left, reason, error);
		if (row->t.count + iod_tells_cut(row) > target->max_segments || iod_plan_is_small(core, row))
			return iod_bounce(core, row, op, left, IOD_BY_SMALL, error);
		if (left == 0) {
			bool tells = iod_tells_cut(row);
			row->one = (struct iovec){&one_byte_more, tells};
			*op = (struct iod_op){.iov = &row->one, .niov = tells};
			row->phase = IOD_P_PLAIN;
			row->op_bytes = 0;
			iod_plan_set_request(row, op, target->fd);
			return IOD_PLAN_REQUEST;
		}
		if (iod_tells_cut(row) && row->t.count == row->t.room && !iod_translation_more(&row->t)) {
			*error = ENOMEM;
			return IOD_PLAN_ERROR;
		}
		direct(row, op, left);
		if (iod_tells_cut(row)) {
			row->t.iov[row->t.count] = (struct iovec){&one_byte_more, 1};
			op->niov++;
		}
		return IOD_PLAN_REQUEST;
	default:
		break;
	}

	/* The run from here that goes one way. */
	uint64_t run = 0;
	uint32_t i = row->cursor;
	if (row->t.plain) {
		run = left;
		if (row->t.count - i > target->max_segments) {
			run = 0;
			for (uint32_t n = 0; n < target->max_segments; n++)
				run += row->t.iov[i + n].iov_len;
			run -= row->skip;
		}
	} else if (piece_bounces(row, i, &reason)) {
		uint8_t other;
		for (; i < row->t.count && piece_bounces(row, i, &other); i++)
			run += row->t.iov[i].iov_len;
		return iod_bounce(core, row, op, iod_min64(run - row->skip, left), reason, error);
	} else {
		for (; i < row->t.count && i - row->cursor < target->max_segments && !piece_bounces(row, i, &reason); i++)
			run += row->t.iov[i].iov_len;
		run -= row->skip;
	}
	if (iod_plan_is_small(core, row) && row->t.plain)
		return iod_bounce(core, row, op, left, IOD_BY_SMALL, error);
	run = iod_min64(iod_min64(run, left), target->max_bytes); /* a frame may end before the list does */
	if (target->kind == IOD_T_FILE && (target->offset_alignment > 1 || target->memory_alignment > 1)) {
		uint64_t until;
		run = aligned_run(row, run, &until);
		if (run == 0)
			return iod_bounce(core, row, op, until, IOD_BY_ALIGNMENT, error);
	}
	direct(row, op, run);
	return IOD_PLAN_REQUEST;
}

enum iod_plan iod_plan_next(struct iod_core *core, struct iod_row *row, struct iod_op *op, int *error)
{
	enum iod_plan plan = next_request(core, row, op, error);

	if (plan == IOD_PLAN_REQUEST && row->target && row->target->framing &&
	    (row->phase != IOD_P_FRAME || op->code == IOD_OP_SENDMSG))
		iod_framed_dress(row, op);
	return plan;
}
