/* SPDX-License-Identifier: Apache-2.0
 *
 * packet: looking at a packet before it is received: peeks, drops, and the packet that a tap's peek has read.
 *
 * A peek and a drop take their turn among the receives of their endpoint, so what a peek saw is what the next of them
 * gets.  A socket is asked to leave the packet where it is.  A tap cannot: its packet is read into a buffer of the
 * target's, and whoever receives it gets a copy, which is counted (IOD_BY_PEEK).
 *
 * Invariants
 *  - A held packet is given to exactly one receive or drop, whole, and before any that the tap has.
 *  - A receive that faults takes no packet, held or not. */
#include "framed.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define HELD_MOST ((64u << 10) + 256) /* no frame of a tap is longer: 64 KiB with all headers */

static void tap_request(struct iod_row *row, struct iod_op *op, uint8_t *to, size_t bytes)
{
	row->one = (struct iovec){to, bytes};
	op->code = IOD_OP_READV;
	op->flags = IOD_OP_CONSUMES;
	op->iov = &row->one;
	op->niov = 1;
}

static void socket_request(struct iod_row *row, struct iod_op *op)
{
	bool peek = row->kind == IOD_R_PEEK;

	row->one = (struct iovec){row->data, peek ? row->total : 0};
	row->message = (struct msghdr){.msg_iov = &row->one, .msg_iovlen = peek};
	op->code = IOD_OP_RECVMSG;
	op->flags = IOD_OP_WHOLE | (peek ? IOD_OP_PEEK : 0);
	op->msg = &row->message;
}

static void seen(struct iod_row *row, uint64_t length)
{
	row->length = length;
	row->total = iod_min64(row->total, length); /* which is what has moved, then */
}

enum iod_plan iod_packet_look(struct iod_row *row, struct iod_op *op, int *error)
{
	struct iod_target *target = row->target;
	static uint8_t nobody;

	if (target->framing)
		return iod_framed_next(row, op, NULL, error);
	row->total = row->kind == IOD_R_PEEK ? row->length : 0;
	if (target->held_bytes) {
		if (row->kind == IOD_R_DROP) {
			target->held_bytes = 0;
			return IOD_PLAN_DONE;
		}
		memcpy(row->data, target->held, iod_min64(row->total, target->held_bytes));
		seen(row, target->held_bytes);
		return IOD_PLAN_DONE;
	}
	if (target->plain_io && !target->held && !(target->held = malloc(HELD_MOST))) {
		*error = ENOMEM;
		return IOD_PLAN_ERROR;
	}
	*op = (struct iod_op){.fd = target->fd};
	if (!target->plain_io)
		socket_request(row, op);
	else if (row->kind == IOD_R_PEEK)
		tap_request(row, op, target->held, HELD_MOST);
	else
		tap_request(row, op, &nobody, 1);
	if (target->file_index >= 0) {
		op->flags |= IOD_OP_FIXED_FILE;
		op->file_index = target->file_index;
	}
	row->op_bytes = 0;
	row->phase = IOD_P_PLAIN;
	return IOD_PLAN_REQUEST;
}

void iod_packet_looked(struct iod_core *core, struct iod_row *row, int32_t result)
{
	struct iod_target *target = row->target;

	if (row->kind == IOD_R_PEEK) {
		if (target->plain_io) {
			target->held_bytes = (uint32_t)result;
			memcpy(row->data, target->held, iod_min64(row->total, (uint64_t)result));
		}
		seen(row, (uint64_t)result);
		row->moved = row->total;
	}
	row->cut = false;
	if (result == 0)
		iod_end_of_packets(core, row);
	else
		iod_row_complete(core, row, IOD_OK, 0);
}

void iod_packet_give(struct iod_core *core, struct iod_row *row)
{
	struct iod_target *target = row->target;
	if (target->framing) {
		iod_framed_give(core, row);
		return;
	}
	uint64_t n = iod_min64(row->total, target->held_bytes), done = n;
	int error = 0;

	row->cut = target->held_bytes > row->total;
	row->reason = IOD_BY_PEEK;
	row->phase = IOD_P_NONE;
	row->fault.space = NULL;
	target->held_bytes = 0;
	if (n)
		error = iod_row_scatter(core, row, target->held, n, &done, iod_row_scattered);
	if (error != -EINPROGRESS)
		iod_row_scattered(core, row, error, done);
}
