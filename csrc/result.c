/* SPDX-License-Identifier: Apache-2.0
 *
 * result: what the backend answers, and what follows from it: the next request, or the end.
 *
 * Invariants
 *  - A row's request is over when this is called for it; iovecs are as they were before they were lent.
 *  - What a peer or the host caused becomes a status; no answer of the backend is dropped. */
#include "framed.h"

#include <errno.h>
#include <poll.h>

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
		iod_row_gone(core, row);
	else if (row->target && (iod_on_wire(row->target) || row->target->kind == IOD_T_SCRIPT || row->target->driver) &&
		 peer_gone(error))
		iod_row_complete(core, row, IOD_PEER_GONE, error);
	else
		iod_row_complete(core, row, IOD_IO_ERROR, error);
}

static void row_progress(struct iod_core *core, struct iod_row *row)
{
	struct iod_target *target = row->target;

	if (target && target->framing) {
		iod_framed_progress(core, row);
	} else if (row->cut) {
		iod_row_complete(core, row, IOD_IO_ERROR, EMSGSIZE);
	} else if (row->moved >= row->total || target->kind == IOD_T_PACKET ||
	    (target->kind == IOD_T_STREAM && row->direction == IOD_TO_MEMORY && row->moved >= row->minimum)) {
		iod_row_complete(core, row, IOD_OK, 0);
	} else if (row->cancel_wanted) {
		iod_row_complete(core, row, IOD_CANCELLED, 0);
	} else {
		core->count.splits++;
		iod_row_continue(core, row);
	}
}

/* An empty packet; or the other end of a sequenced-packet socket is gone, which looks the same. */
void iod_end_of_packets(struct iod_core *core, struct iod_row *row)
{
	struct pollfd poll_fd = {.fd = row->target->fd, .events = POLLRDHUP};

	if (row->cut)
		iod_row_complete(core, row, IOD_IO_ERROR, EMSGSIZE);
	else if (row->direction == IOD_TO_MEMORY && !row->no_end && poll(&poll_fd, 1, 0) > 0 && poll_fd.revents & (POLLRDHUP | POLLHUP))
		iod_row_complete(core, row, IOD_PEER_GONE, 0);
	else
		iod_row_complete(core, row, IOD_OK, 0);
}

/* The backend moved nothing and says so without an error. */
static void row_nothing(struct iod_core *core, struct iod_row *row)
{
	struct iod_target *target = row->target;

	if (target->kind == IOD_T_PACKET)
		iod_end_of_packets(core, row);
	else if (row->direction == IOD_FROM_MEMORY)
		iod_row_complete(core, row, IOD_IO_ERROR, EIO);
	else if (target->kind == IOD_T_STREAM)
		iod_row_complete(core, row, IOD_PEER_GONE, 0);
	else
		iod_row_complete(core, row, IOD_OK, 0); /* end of file */
}

/* What came through the arena is where it belongs, as far as that went. */
void iod_row_scattered(struct iod_core *core, struct iod_row *row, int error, uint64_t done)
{
	core->count.copied += done;
	core->count.bounced[row->reason] += done;
	core->count.bounces[row->reason]++;
	iod_row_advance(row, done);
	if (!error)
		row_progress(core, row);
	else if (row->fault.space)
		iod_row_fault(core, row);
	else
		iod_row_gone(core, row);
}

/* The end of a request through the arena: n bytes of the bounce piece, the `before` ones included. */
static void bounced(struct iod_core *core, struct iod_row *row, uint64_t n)
{
	uint64_t before = row->direction == IOD_FROM_MEMORY && row->by_cache ? 0 : row->before;
	uint64_t useful = n > before ? iod_min64(n - before, row->payload) : 0;
	uint64_t done = useful;

	if (useful == 0) {
		row_nothing(core, row);
		return;
	}
	if (row->direction == IOD_TO_MEMORY) {
		int error = iod_row_scatter(core, row, row->bounce + row->before, useful, &done, iod_row_scattered);
		if (error != -EINPROGRESS)
			iod_row_scattered(core, row, error, done);
		return;
	}
	iod_row_advance(row, useful);
	iod_bounce_took(row, useful);
	row_progress(core, row);
}

/* What the kernel will not do this way it may do in another. */
static bool another_way(struct iod_row *row, uint8_t phase, int error)
{
	struct iod_target *target = row->target;

	if (!target || row->cancel_wanted)
		return false;
	if (row->kind == IOD_R_ZEROES && phase == IOD_P_PLAIN && (error == EOPNOTSUPP || error == EINVAL)) {
		/* EINVAL: a range of a block device that is not made of its blocks. */
		target->no_zero_range |= error == EOPNOTSUPP;
		return row->by_write = true;
	}
	if (iod_on_wire(target) && target->zero_copy && !row->by_copy && row->direction == IOD_FROM_MEMORY &&
	    (error == EOPNOTSUPP || error == ENOMEM || error == ENOBUFS)) {
		/* Not on this kind of socket, or no more pages may be pinned just now. */
		if (error == EOPNOTSUPP)
			target->zero_copy = false;
		return row->by_copy = true;
	}
	return false;
}

/* Whether a packet was longer than the list that it went to. */
static bool was_cut(const struct iod_row *row, uint8_t phase, int32_t result)
{
	const struct iod_target *target = row->target;

	if (!target || target->kind != IOD_T_PACKET || row->direction != IOD_TO_MEMORY || phase == IOD_P_POLL)
		return false;
	return target->plain_io ? (uint64_t)result > row->total : row->message.msg_flags & MSG_TRUNC;
}

void iod_row_result(struct iod_core *core, struct iod_row *row, int32_t result)
{
	uint8_t phase = row->phase;

	iod_row_mark(core, row, IOD_M_RESULT, (uint64_t)(int64_t)result);
	iod_plan_end(row);
	row->phase = IOD_P_NONE;
	if (phase == IOD_P_DIRECT && row->target->kind == IOD_T_STREAM && row->direction == IOD_FROM_MEMORY)
		row->target->took = result > 0 && (uint64_t)result < row->message_bytes ? (uint64_t)result : 0;
	if (row->riders && (result <= 0 || (uint64_t)result < row->op_bytes)) {
		iod_riders_leave(core, row);
		/* Whose memory it was that is gone shows when each goes by itself. */
		if (result == -EFAULT && !row->cancel_wanted) {
			row->alone = true;
			iod_row_continue(core, row);
			return;
		}
	}
	/* -ECANCELED that nobody wanted of this row: of one that rode along. */
	if ((result == -EINTR || result == -ECANCELED) && !row->cancel_wanted) {
		iod_row_continue(core, row);
		return;
	}
	if (result == -EAGAIN && row->target && iod_on_wire(row->target) && !row->cancel_wanted) {
		/* A request that is not to wait, or a descriptor that was set non-blocking: wait until it is ready,
		 * then again. */
		struct iod_op op = {.code = IOD_OP_POLL, .fd = row->target->fd,
				    .poll_events = row->direction == IOD_TO_MEMORY ? 1 /* POLLIN */ : 4 /* POLLOUT */};
		iod_bounce_pause(core, row);
		row->op_bytes = 0;
		row->phase = IOD_P_POLL;
		if (!iod_row_hand_over(core, row, &op)) {
			row->phase = IOD_P_NONE;
			iod_row_wait(core, row, IOD_W_RING, &core->ring);
		} else {
			iod_row_mark(core, row, IOD_M_REQUEST, 0);
		}
		return;
	}
	if (result < 0 && another_way(row, phase, -result)) {
		iod_row_continue(core, row);
		return;
	}
	if (result < 0) {
		row_failed(core, row, -result);
		return;
	}
	if (row->target && row->target->framing) {
		if (iod_framed_took(core, row, phase, &result))
			return;
	} else if (iod_is_look(row) && phase == IOD_P_PLAIN) {
		iod_packet_looked(core, row, result);
		return;
	}
	if (!(row->target && row->target->framing))
		row->cut = was_cut(row, phase, result);
	if (iod_is_control(row) && (phase == IOD_P_PLAIN || phase == IOD_P_SCRIPT)) { /* done, as a whole */
		row->moved = row->total;
		iod_row_complete(core, row, IOD_OK, 0);
		return;
	}
	switch (phase) {
	case IOD_P_PLAIN:
		row_nothing(core, row);
		return;
	case IOD_P_ZERO:
		row->moved += iod_min64((uint64_t)result, row->op_bytes);
		if (result == 0)
			iod_row_complete(core, row, IOD_IO_ERROR, EIO);
		else
			row_progress(core, row);
		return;
	case IOD_P_POLL:
		if (row->cancel_wanted)
			iod_row_complete(core, row, IOD_CANCELLED, 0);
		else
			iod_row_continue(core, row);
		return;
	case IOD_P_BEFORE:
		row->blocks_read = iod_bounce_blocks_read(row, (uint64_t)result);
		row->phase = IOD_P_BEFORE;
		if (row->cancel_wanted)
			iod_row_complete(core, row, IOD_CANCELLED, 0);
		else
			iod_row_continue(core, row);
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

/* The usual end: one request to a file was all of the transfer, and all of it was moved. */
static inline bool all_at_once(const struct iod_row *row, const struct iod_cqe *cqe)
{
	return row->phase == IOD_P_DIRECT && cqe->res > 0 && (uint64_t)cqe->res == row->total &&
	       row->op_bytes == row->total && row->target->kind == IOD_T_FILE;
}

/* Its request is answered. */
static void let_go(struct iod_core *core, struct iod_row *row)
{
	row->with_backend = row->cancel_sent = false;
	if (row->target && row->target->driver)
		core->with_drivers--;
	else
		core->with_backend--;
}

static void completion(struct iod_core *core, const struct iod_cqe *cqe)
{
	struct iod_row *row = iod_find(core, cqe->user_data);

	if (!row || !row->with_backend) {
		core->hooks.other(core, cqe);
		return;
	}
	if (all_at_once(row, cqe)) {
		let_go(core, row);
		iod_row_mark(core, row, IOD_M_RESULT, row->total);
		row->phase = IOD_P_NONE;
		row->moved = row->total;
		iod_row_complete(core, row, IOD_OK, 0);
		return;
	}
	if (cqe->flags & IOD_CQE_MORE) { /* zero-copy: the pages are still the kernel's */
		row->notified = true;
		row->sent = cqe->res;
		return;
	}
	let_go(core, row);
	int32_t result = cqe->res;
	if (row->notified) {
		row->notified = false;
		result = row->sent;
	}
	if (row->batched)
		iod_batch_result(core, row, result);
	else
		iod_row_result(core, row, result);
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
	for (struct iod_target *target = core->driven, *next; target; target = next) {
		next = target->next_driven;
		while (target->driver->done) {
			uint32_t got = target->driver->ops->reap(target->driver, cqe, 64);
			for (uint32_t i = 0; i < got; i++)
				completion(core, &cqe[i]);
			seen += got;
		}
	}
	return seen;
}

void iod_script_done(struct iod_core *core, struct iod_row *row, int32_t result)
{
	if (row->phase != IOD_P_SCRIPT)
		return;
	row->filled = false;
	iod_row_result(core, row, result);
}
