/* SPDX-License-Identifier: Apache-2.0
 *
 * batch: several packets of one endpoint in one request.
 *
 * A packet endpoint has one request in flight a direction.  The transfer whose turn it is (the host) is tried first, and
 * those that wait behind it (riders) are tried with it, in order, by one call that does not wait.  What it could not
 * take goes back to where it waited; the first of those then goes alone, by a request that waits, and the others are
 * tried again when that is over.
 *
 * Invariants
 *  - Each packet is a transfer of its own: translated, leased, planned and answered by itself.  An error is that of the
 *    first packet that did not go, and touches no other.
 *  - The packets that went are a prefix of the order, so nothing passes anything.
 *  - Nobody rides whose planning or answer would run somebody's handler (device windows, remote memory).
 *  - How many are tried follows how many went lately: what is translated or copied and does not go was for nothing. */
#include "xfer.h"

#include <errno.h>
#include <stdlib.h>

#define MOST 64u
#define FEW 4u
#define MOST_BYTES (256u << 10)

static void put(struct mmsghdr *packet, const struct iod_row *row, const struct iod_op *op)
{
	packet->msg_hdr = row->target->plain_io ? (struct msghdr){.msg_iov = (struct iovec *)(uintptr_t)op->iov,
								   .msg_iovlen = op->niov}
						: row->message;
	packet->msg_len = 0;
}

/* The head of the queue, planned; false: it stays there, and so do all behind it. */
static bool board(struct iod_core *core, struct iod_row *row, uint64_t bytes, struct iod_op *op)
{
	struct iod_queue *queue = row->queue;
	int error = 0;

	if (row->kind != IOD_R_TRANSFER || row->cancel_wanted || row->port->resetting || row->total > bytes)
		return false;
	if (iod_walk(row->port->space, row->list, row->count, 0, row->access, &row->t, &row->fault) != IOD_WALK_OK ||
	    row->state != IOD_S_WAITING || /* a stage's hook cancelled it */
	    !iod_translation_in_host(&row->t)) {
		iod_translation_clear(&row->t);
		return false;
	}
	iod_queue_remove(row);
	row->wait = IOD_W_NONE;
	iod_row_to(core, row, IOD_S_DESCRIBED);
	iod_row_lease(core, row);
	if (iod_plan_next(core, row, op, &error) == IOD_PLAN_REQUEST)
		return true;
	iod_row_release(core, row); /* whatever it is, it comes up again when it has the turn */
	row->phase = IOD_P_NONE;
	row->wait = IOD_W_ORDER;
	iod_row_to(core, row, IOD_S_WAITING);
	iod_queue_add_first(queue, row);
	return false;
}

static bool is_packet(const struct iod_row *row)
{
	return row->kind == IOD_R_TRANSFER && row->target->kind == IOD_T_PACKET && !row->target->zero_copy &&
	       !row->target->framing && row->phase != IOD_P_POLL;
}

void iod_batch_board(struct iod_core *core, struct iod_row *host, struct iod_op *op)
{
	struct iod_target *target = host->target;
	struct iod_batch *batch = &target->batch[host->direction];
	struct iod_queue *queue = &target->order[host->direction];
	bool out = host->direction == IOD_FROM_MEMORY;

	if (!is_packet(host) || !iod_translation_in_host(&host->t))
		return;
	if (batch->wait || (!out && !queue->head)) { /* a receive alone is asked for by a request that waits */
		batch->wait = false;
		return;
	}
	if (!batch->packet) {
		batch->packet = malloc(MOST * sizeof *batch->packet);
		batch->most = out ? MOST : FEW;
		if (!batch->packet)
			return;
	}
	struct iod_row **last = &host->riders;
	struct iod_op other;
	uint64_t bytes = host->op_bytes;
	uint32_t count = 1;
	put(&batch->packet[0], host, op);
	while (count < batch->most && queue->head && bytes < MOST_BYTES && !host->cancel_wanted) {
		struct iod_row *row = queue->head;
		if (!board(core, row, MOST_BYTES - bytes, &other))
			break;
		put(&batch->packet[count++], row, &other);
		bytes += row->op_bytes;
		iod_row_to(core, row, IOD_S_IN_FLIGHT);
		iod_row_mark(core, row, IOD_M_REQUEST, row->op_bytes);
		row->planned = row->phase;
		row->phase = IOD_P_RIDE;
		row->host = host;
		row->range_next = NULL;
		*last = row;
		last = &row->range_next;
	}
	batch->count = count;
	host->batched = true;
	host->message_bytes = bytes;
	*op = (struct iod_op){.code = out ? IOD_OP_SEND_PACKETS : IOD_OP_RECEIVE_PACKETS, .fd = op->fd,
			      .packets = batch->packet, .niov = count, .mode = target->plain_io};
}

/* The host's answer and those of the riders that went with it, in order; the rest as it was. */
static void share(struct iod_core *core, struct iod_row *host, uint32_t went)
{
	struct iod_target *target = host->target;
	uint8_t direction = host->direction;
	const struct iod_batch *batch = &target->batch[direction];
	struct iod_row *row = host, *next = host->riders;
	uint32_t whole = 0; /* behind an empty one that is not the end */

	for (uint32_t i = 0; i < went; i++)
		if (batch->packet[i].msg_len || went < batch->count)
			whole = i + 1;
	/* The turn stays with these: nobody from the queue may take it meanwhile. */
	host->riders = NULL;
	host->holds_order = false;
	target->references++; /* while its last row ends */
	for (uint32_t i = 0; i < went; i++) {
		if (i) {
			row = next;
			next = row->range_next;
			row->range_next = NULL;
			row->host = NULL;
			row->phase = row->planned;
			core->count.coalesced++;
		}
		row->message.msg_flags = batch->packet[i].msg_hdr.msg_flags;
		row->no_end = i < whole;
		iod_row_result(core, row, (int32_t)batch->packet[i].msg_len);
	}
	target->batch[direction].wait = next != NULL;
	iod_riders_send_back(core, next, &target->order[direction]);
	next = target->order[direction].head;
	target->active[direction] = next;
	if (next) {
		next->holds_order = true;
		iod_row_ready(core, next);
	}
	target->references--;
	if (target->references == 0 && target->idle)
		target->idle(target);
}

void iod_batch_result(struct iod_core *core, struct iod_row *host, int32_t result)
{
	struct iod_batch *batch = &host->target->batch[host->direction];
	uint32_t went = result > 0 ? (uint32_t)result : 0;

	host->batched = false;
	if (went == batch->count)
		batch->most = batch->most < MOST / 2 ? batch->most * 2 : MOST;
	else if (result != -ECANCELED)
		batch->most = went < FEW / 2 ? FEW : went < MOST / 2 ? 2 * went : MOST;
	if (went) {
		share(core, host, went);
		return;
	}
	iod_riders_leave(core, host);
	if (result == -EAGAIN && !host->cancel_wanted) {
		iod_row_mark(core, host, IOD_M_RESULT, (uint64_t)(int64_t)result);
		batch->wait = true;
		host->phase = IOD_P_NONE;
		iod_row_continue(core, host);
		return;
	}
	iod_row_result(core, host, result);
}
