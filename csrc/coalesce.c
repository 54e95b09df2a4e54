/* SPDX-License-Identifier: Apache-2.0
 *
 * coalesce: several sends of one stream in one request.
 *
 * A stream has one request in flight a direction.  When the transfer whose turn it is (the host) needs no more than one
 * request, those that wait behind it ride along in the same vector, in order, each translated and leased on its own.
 *
 * Invariants
 *  - Bytes go to the host first, then to each rider in order: what the kernel took is always a prefix of the sequence.
 *  - A rider is in flight without a request of its own; when its host's request ends it is complete, has the next
 *    turn, or waits again in its old place.
 *  - Whoever cannot ride (a miss, a fault, lanes, too many pieces) stops all behind it: nobody passes. */
#include "xfer.h"

#include <stdlib.h>
#include <string.h>

#define MOST_BYTES (64u << 10)

/* The last first, so that they stand in front of the queue as they stood before. */
void iod_riders_send_back(struct iod_core *core, struct iod_row *row, struct iod_queue *queue)
{
	if (!row)
		return;
	iod_riders_send_back(core, row->range_next, queue);
	row->range_next = NULL;
	row->host = NULL;
	row->phase = IOD_P_NONE;
	if (row->cancel_wanted) {
		iod_row_complete(core, row, IOD_CANCELLED, 0);
		return;
	}
	iod_row_release(core, row);
	row->wait = IOD_W_ORDER;
	iod_row_to(core, row, IOD_S_WAITING);
	iod_queue_add_first(queue, row);
}

static bool may_ride(struct iod_core *core, struct iod_row *row, uint32_t room, uint64_t bytes)
{
	uint64_t left = row->total - row->moved;

	if (row->kind != IOD_R_TRANSFER || row->cancel_wanted || row->port->resetting || left == 0 || left > bytes)
		return false;
	if (iod_walk(row->port->space, row->list, row->count, row->moved, row->access, &row->t, &row->fault) !=
		    IOD_WALK_OK ||
	    row->state != IOD_S_WAITING || /* a stage's hook cancelled it */
	    !row->t.plain || row->t.count > room || iod_plan_is_small(core, row)) {
		iod_translation_clear(&row->t);
		return false;
	}
	return true;
}

void iod_riders_board(struct iod_core *core, struct iod_row *host, struct iod_op *op)
{
	struct iod_target *target = host->target;
	struct iod_queue *queue = &target->order[host->direction];
	uint64_t bytes = host->op_bytes;
	uint32_t count = op->niov;
	struct iod_row **last = &host->riders;

	host->message_bytes = bytes;
	if (target->kind != IOD_T_STREAM || host->direction != IOD_FROM_MEMORY || target->zero_copy ||
	    host->phase != IOD_P_DIRECT || host->alone || bytes != host->total - host->moved || !queue->head)
		return;
	if (!target->vector)
		target->vector = malloc(IOD_IOV_MAX * sizeof *target->vector);
	if (!target->vector)
		return;
	memcpy(target->vector, op->iov, op->niov * sizeof *op->iov);
	/* As much as is worth a system call, and not much more than the socket had room for lately: what is translated
	 * and not sent was translated for nothing. */
	uint64_t most = target->took && target->took < MOST_BYTES / 2 ? 2 * target->took : MOST_BYTES;
	while (queue->head && bytes < most && count < target->max_segments) {
		struct iod_row *row = queue->head;
		if (!may_ride(core, row, target->max_segments - count, most - bytes))
			break;
		iod_queue_remove(row);
		row->wait = IOD_W_NONE;
		iod_row_to(core, row, IOD_S_DESCRIBED);
		iod_row_lease(core, row);
		iod_row_to(core, row, IOD_S_IN_FLIGHT);
		iod_row_mark(core, row, IOD_M_REQUEST, row->total - row->moved);
		row->phase = IOD_P_RIDE;
		row->host = host;
		row->range_next = NULL;
		*last = row;
		last = &row->range_next;
		memcpy(target->vector + count, row->t.iov, row->t.count * sizeof *row->t.iov);
		count += row->t.count;
		bytes += row->total - row->moved;
	}
	host->message_bytes = bytes;
	if (host->riders) {
		op->iov = target->vector;
		op->niov = count;
		host->message.msg_iov = target->vector;
		host->message.msg_iovlen = count;
	}
}

void iod_riders_leave(struct iod_core *core, struct iod_row *host)
{
	struct iod_row *riders = host->riders;

	host->riders = NULL;
	host->batched = false;
	iod_riders_send_back(core, riders, &host->target->order[host->direction]);
}

struct iod_row *iod_riders_share(struct iod_core *core, struct iod_row *host, uint64_t bytes)
{
	struct iod_target *target = host->target;
	uint8_t direction = host->direction;
	struct iod_row *row = host->riders, *next_turn = NULL;

	/* The turn stays with this stream's transfers: nobody from the queue may take it meanwhile. */
	host->riders = NULL;
	host->holds_order = false;
	iod_row_complete(core, host, IOD_OK, 0);
	while (row) {
		struct iod_row *next = row->range_next;
		uint64_t n = iod_min64(bytes, row->total - row->moved);
		row->range_next = NULL;
		row->host = NULL;
		row->phase = IOD_P_NONE;
		iod_row_advance(row, n);
		bytes -= n;
		if (row->moved < row->total) {
			next_turn = row;
			iod_riders_send_back(core, next, &target->order[direction]);
			break;
		}
		core->count.coalesced++;
		iod_row_complete(core, row, IOD_OK, 0);
		row = next;
	}
	if (!next_turn) {
		next_turn = target->order[direction].head;
		if (next_turn) {
			next_turn->holds_order = true;
			iod_row_ready(core, next_turn);
		}
		target->active[direction] = next_turn;
		return NULL;
	}
	target->active[direction] = next_turn;
	next_turn->holds_order = true;
	return next_turn;
}
