/* SPDX-License-Identifier: Apache-2.0
 *
 * framed: packets on a stream, each behind its length: four bytes, the highest first, as QEMU's `-netdev stream` and
 * `-netdev socket` have them.
 *
 * To those who use it the target is one of packets.  To the planner it is a stream that is limited: a send has its header
 * in front as a piece of the vector; a receive asks for a header, and then for so many bytes, straight into its list.
 * With the end of a frame the header of the next one is asked for, so that a frame costs one request.
 *
 * Invariants
 *  - What is on the stream is always whole frames: one that was begun and whose transfer ends is finished from a copy of
 *    the rest, in front of what is sent next; where there is no such copy the connection is ended.
 *  - The other end's length is compared with the longest before it is used; a longer one ends the connection.
 *  - A frame belongs to one receive or drop.  What of it does not fit, or was not taken when its receive was cancelled,
 *    is read and forgotten before the next.
 *  - What a peek has read goes to the next receive by a copy, which is counted (IOD_BY_PEEK). */
#include "framed.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

struct iod_framing *iod_framing_new(uint32_t most)
{
	struct iod_framing *f = calloc(1, sizeof *f);
	if (f)
		f->most = most;
	return f;
}

void iod_framing_free(struct iod_framing *f)
{
	if (f)
		free(f->rest);
	free(f);
}

static void put_length(uint8_t *to, uint32_t length)
{
	for (int i = 0; i < FRAME_HEADER; i++)
		to[i] = (uint8_t)(length >> (8 * (FRAME_HEADER - 1 - i)));
}

static uint32_t get_length(const uint8_t *from)
{
	return (uint32_t)from[0] << 24 | (uint32_t)from[1] << 16 | (uint32_t)from[2] << 8 | from[3];
}

static void end_connection(const struct iod_target *target)
{
	shutdown(target->fd, SHUT_RDWR);
}

/* A request for bytes of the framing's own. */
static enum iod_plan own_request(struct iod_row *row, struct iod_op *op, void *to, size_t bytes)
{
	const struct iod_target *target = row->target;

	row->one = (struct iovec){to, bytes};
	row->message = (struct msghdr){.msg_iov = &row->one, .msg_iovlen = 1};
	*op = (struct iod_op){.code = IOD_OP_RECVMSG, .fd = target->fd, .msg = &row->message};
	if (target->file_index >= 0) {
		op->flags |= IOD_OP_FIXED_FILE;
		op->file_index = target->file_index;
	}
	row->op_bytes = 0;
	row->phase = IOD_P_FRAME;
	return IOD_PLAN_REQUEST;
}

static enum iod_plan forget_more(struct iod_row *row, struct iod_op *op)
{
	struct iod_framing *f = row->target->framing;

	f->skips = true;
	return own_request(row, op, f->sink, iod_min64(f->left, sizeof f->sink));
}

static void frame_is_over(struct iod_framing *f)
{
	f->open = f->skips = false;
	f->head_bytes = 0;
}

static enum iod_plan peek(struct iod_row *row, struct iod_op *op)
{
	struct iod_framing *f = row->target->framing;
	uint32_t wanted = (uint32_t)iod_min64(iod_min64(row->length, FRAME_HEAD), f->frame);

	if (f->head_bytes < wanted)
		return own_request(row, op, f->head + f->head_bytes, wanted - f->head_bytes);
	memcpy(row->data, f->head, wanted);
	row->length = f->frame;
	row->total = wanted;
	return IOD_PLAN_DONE;
}

static enum iod_plan drop(struct iod_row *row, struct iod_op *op)
{
	struct iod_framing *f = row->target->framing;

	row->began = true;
	row->total = 0;
	if (f->left)
		return forget_more(row, op);
	frame_is_over(f);
	return IOD_PLAN_DONE;
}

static enum iod_plan receive(struct iod_row *row, struct iod_op *op, uint64_t *left)
{
	struct iod_framing *f = row->target->framing;

	row->began = true;
	if (f->head_bytes || !f->left)
		return IOD_PLAN_HELD;
	if (row->moved == row->total) { /* the rest has no room */
		row->cut = true;
		return forget_more(row, op);
	}
	*left = iod_min64(row->total - row->moved, f->left);
	return IOD_PLAN_STREAM;
}

static enum iod_plan send_frame(struct iod_row *row, struct iod_op *op, uint64_t *left, int *error)
{
	const struct iod_target *target = row->target;
	struct iod_framing *f = target->framing;

	if (row->total > f->most) {
		*error = EMSGSIZE;
		return IOD_PLAN_ERROR;
	}
	if (!row->began) {
		row->began = true;
		put_length(f->out, (uint32_t)row->total);
		f->out_left = FRAME_HEADER;
	}
	*left = row->total - row->moved;
	if (*left)
		return IOD_PLAN_STREAM;
	own_request(row, op, f->out, 0); /* an empty frame: all of it is put in front */
	op->code = IOD_OP_SENDMSG;
	row->message.msg_iovlen = 0;
	return IOD_PLAN_REQUEST;
}

enum iod_plan iod_framed_next(struct iod_row *row, struct iod_op *op, uint64_t *left, int *error)
{
	struct iod_framing *f = row->target->framing;

	if (row->kind == IOD_R_TRANSFER && row->direction == IOD_FROM_MEMORY)
		return send_frame(row, op, left, error);
	if (f->refused) { /* what is behind such a length means nothing */
		*error = f->refused == FRAME_REFUSED ? EPROTO : EPIPE;
		f->refused = FRAME_TOLD;
		return IOD_PLAN_ERROR;
	}
	if (f->skips && f->left)
		return forget_more(row, op);
	if (f->skips)
		frame_is_over(f);
	if (!f->open)
		return own_request(row, op, f->in + f->in_got, FRAME_HEADER - f->in_got);
	return row->kind == IOD_R_PEEK ? peek(row, op) : row->kind == IOD_R_DROP ? drop(row, op) : receive(row, op, left);
}

void iod_framed_dress(struct iod_row *row, struct iod_op *op)
{
	struct iod_framing *f = row->target->framing;
	const struct msghdr *m = &row->message;
	uint32_t n = 0;

	if (row->direction == IOD_FROM_MEMORY) {
		if (f->rest_at < f->rest_bytes)
			f->vector[n++] = (struct iovec){f->rest + f->rest_at, f->rest_bytes - f->rest_at};
		if (f->out_left)
			f->vector[n++] = (struct iovec){f->out + FRAME_HEADER - f->out_left, f->out_left};
	} else if (row->phase != IOD_P_DIRECT || row->op_bytes < f->left) {
		return;
	}
	for (size_t i = 0; i < m->msg_iovlen; i++)
		f->vector[n++] = m->msg_iov[i];
	if (row->direction == IOD_TO_MEMORY) /* and the header behind it */
		f->vector[n++] = (struct iovec){f->in, FRAME_HEADER};
	row->message.msg_iov = f->vector;
	row->message.msg_iovlen = n;
	op->iov = f->vector;
	op->niov = n;
}

/* What was sent, less what was not the payload's. */
static uint64_t sent(struct iod_framing *f, uint64_t n)
{
	uint32_t rest = (uint32_t)iod_min64(n, f->rest_bytes - f->rest_at);
	f->rest_at += rest;
	uint32_t header = (uint32_t)iod_min64(n - rest, f->out_left);
	f->out_left -= header;
	return n - rest - header;
}

/* A header is here; it may end the connection. */
static void opened(struct iod_core *core, struct iod_target *target)
{
	struct iod_framing *f = target->framing;

	f->in_got = 0;
	f->frame = get_length(f->in);
	if (f->frame > f->most) {
		end_connection(target);
		f->refused = FRAME_REFUSED;
		target->next_refused = core->refused;
		core->refused = target;
		return;
	}
	f->left = f->frame;
	f->head_bytes = 0;
	f->open = true;
}

/* Bytes of the framing's own came. */
static void own_bytes(struct iod_core *core, struct iod_row *row, uint32_t n)
{
	struct iod_framing *f = row->target->framing;
	bool mine = row->began; /* and not what another has left over */

	if (f->skips) {
		f->left -= n;
		if (!f->left) {
			frame_is_over(f);
			if (mine) {
				iod_framed_progress(core, row);
				return;
			}
		}
	} else if (f->open) {
		f->head_bytes += n;
		f->left -= n;
	} else {
		f->in_got += n;
		if (f->in_got == FRAME_HEADER)
			opened(core, row->target);
	}
	if (row->cancel_wanted)
		iod_row_complete(core, row, IOD_CANCELLED, 0);
	else
		iod_row_continue(core, row);
}

bool iod_framed_took(struct iod_core *core, struct iod_row *row, uint8_t phase, int32_t *result)
{
	struct iod_framing *f = row->target->framing;
	uint64_t n = (uint64_t)*result;

	if (phase == IOD_P_POLL)
		return false;
	if (n == 0) {
		iod_row_complete(core, row, IOD_PEER_GONE, 0);
		return true;
	}
	if (row->direction == IOD_FROM_MEMORY) {
		n = sent(f, n);
		*result = (int32_t)n;
		if (n)
			return false;
		iod_framed_progress(core, row);
		return true;
	}
	if (phase == IOD_P_FRAME) {
		own_bytes(core, row, (uint32_t)n);
		return true;
	}
	uint64_t payload = iod_min64(n, row->op_bytes);
	f->left -= (uint32_t)payload;
	f->in_got = (uint32_t)(n - payload);
	*result = (int32_t)payload;
	return false;
}

void iod_framed_progress(struct iod_core *core, struct iod_row *row)
{
	struct iod_framing *f = row->target->framing;
	bool over;

	if (row->direction == IOD_FROM_MEMORY) {
		over = row->moved == row->total && !f->out_left;
	} else {
		if (f->open && !f->head_bytes && !f->left && !f->skips) {
			bool header = f->in_got == FRAME_HEADER;
			frame_is_over(f);
			/* The next one's came along; what may be wrong with it is told to who comes next. */
			if (header)
				opened(core, row->target);
			over = true;
		} else {
			over = !f->open;
		}
	}
	row->began &= !over;
	if (over)
		iod_row_complete(core, row, row->cut ? IOD_IO_ERROR : IOD_OK, row->cut ? EMSGSIZE : 0);
	else if (row->cancel_wanted)
		iod_row_complete(core, row, IOD_CANCELLED, 0);
	else
		iod_row_continue(core, row);
}

void iod_framed_give(struct iod_core *core, struct iod_row *row)
{
	struct iod_framing *f = row->target->framing;
	uint64_t n = iod_min64(row->total - row->moved, f->head_bytes), done = n;
	int error = 0;

	row->cut |= f->head_bytes > n;
	row->reason = IOD_BY_PEEK;
	row->phase = IOD_P_NONE;
	row->fault.space = NULL;
	f->head_bytes = 0;
	if (!n) {
		iod_framed_progress(core, row);
		return;
	}
	error = iod_row_scatter(core, row, f->head, n, &done, iod_row_scattered);
	if (error != -EINPROGRESS)
		iod_row_scattered(core, row, error, done);
}

/* The rest of a frame that was begun, so that it can still be sent. */
static bool keep_rest(struct iod_core *core, struct iod_row *row)
{
	struct iod_framing *f = row->target->framing;
	uint32_t bytes = f->out_left + (uint32_t)(row->total - row->moved);
	uint64_t done = 0;

	if (row->filled || (row->moved < row->total && !row->leased) || !iod_translation_in_host(&row->t))
		return false;
	uint8_t *rest = malloc(bytes + 1u);
	if (!rest)
		return false;
	memcpy(rest, f->out + FRAME_HEADER - f->out_left, f->out_left);
	struct iod_fault fault = row->fault; /* why it ends, if that is why */
	int error = row->moved < row->total
			    ? iod_row_gather(core, row, rest + f->out_left, row->total - row->moved, &done, NULL)
			    : 0;
	row->fault = fault;
	if (error) {
		free(rest);
		return false;
	}
	core->count.copied += done;
	core->count.bounced[IOD_BY_FRAME] += done;
	core->count.bounces[IOD_BY_FRAME]++;
	free(f->rest);
	f->rest = rest;
	f->rest_at = 0;
	f->rest_bytes = bytes;
	return true;
}

void iod_framed_end(struct iod_core *core, struct iod_row *row)
{
	struct iod_framing *f = row->target->framing;

	row->began = false;
	if (row->direction == IOD_TO_MEMORY) {
		f->skips = f->open;
		f->head_bytes = f->open ? 0 : f->head_bytes;
		return;
	}
	bool begun = f->out_left < FRAME_HEADER, over = !f->out_left && row->moved == row->total;
	if (begun && !over && !keep_rest(core, row))
		end_connection(row->target);
	f->out_left = 0;
}
