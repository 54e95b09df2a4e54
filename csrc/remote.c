/* SPDX-License-Identifier: Apache-2.0
 *
 * remote: bytes between a row's pieces and flat memory where somebody else has some of the pieces, and moves them when
 * asked by a message: later, and in any order.
 *
 * Invariants
 *  - Messages are sent in the list's order, no more than WINDOW of a row before their answers.  A device window is not
 *    accessed before all that stand before it in the list are answered; memory is not waited for.
 *  - Of a refusal on, nothing more is sent; the move ends when all that was sent is answered, cancelled or not.
 *  - An answer only copies and counts.  What it makes possible is done in a turn, from the queue `glue`.
 *  - Byte lanes are permuted as everywhere: whole units at once, a unit's bytes one by one where the move begins or ends
 *    inside it. */
#include "bytes.h"
#include "xfer.h"

#include <errno.h>
#include <stdlib.h>

#define WINDOW 64
#define NOTHING UINT64_MAX

struct iod_remote {
	struct iod_translation *t;
	uint32_t cursor, outstanding;
	uint64_t skip;
	uint8_t *flat, *own;
	uint64_t n, at;	   /* of them, bytes that were moved or asked for */
	uint64_t failed;   /* the first that cannot be */
	uint8_t cause;	   /* of that; IOD_C_NONE: host memory is gone */
	bool write, going; /* going: in the loop that sends */
	bool whole;	   /* what an endpoint gave, and will not give again: written, cancelled or not */
	iod_then *then;
};

static void fail(struct iod_remote *m, uint64_t at, enum iod_cause cause)
{
	if (at >= m->failed)
		return;
	m->failed = at;
	m->cause = (uint8_t)cause;
}

/* The next message of the piece that the move is at. */
static void ask(struct iod_core *core, struct iod_row *row, struct iod_remote *m)
{
	const struct iod_piece *piece = &m->t->piece[m->cursor];
	const struct iovec *iov = &m->t->iov[m->cursor];
	uint64_t base = (uint64_t)(uintptr_t)iov->iov_base, size = iov->iov_len, k = m->skip;
	struct iod_message message = {.ticket = row->ticket, .offset = base + k, .at = m->at,
				      .length = iod_min64(iod_min64(size - k, m->n - m->at), piece->region->most)};
	const uint8_t *data = m->write ? m->flat + m->at : NULL;
	uint8_t *permuted = NULL;

	if (piece->lanes) {
		unsigned unit = piece->lanes > 3 ? 8 : piece->lanes > 1 ? 4 : 2, in_unit = (piece->phase + k) & (unit - 1);
		if (in_unit == 0 && message.length >= unit) {
			message.length -= message.length % unit;
			message.lanes = piece->lanes;
		} else { /* part of a unit: each byte in its lane, if the piece holds the whole unit */
			message.length = 1;
			if (k >= in_unit && size - (k - in_unit) >= unit)
				message.offset = base + k - in_unit + (in_unit ^ piece->lanes);
		}
	}
	if (message.lanes && m->write) {
		size_t done;
		permuted = malloc(message.length);
		if (!permuted || iod_copy_lanes(permuted, data, message.length, message.lanes, 0, &done)) {
			free(permuted);
			fail(m, m->at, IOD_C_NONE);
			return;
		}
		data = permuted;
	}
	m->at += message.length;
	m->skip += message.length;
	if (m->skip == size) {
		m->skip = 0;
		m->cursor++;
	}
	m->outstanding++;
	core->count.messages++;
	uint8_t outer = core->depth;
	core->depth = (uint8_t)(row->depth + 1); /* whoever is asked may do DMA by itself */
	core->hooks.remote(core->hooks.context, piece->region, &message, data);
	core->depth = outer;
	free(permuted);
}

/* What is not asked for by messages, from where the move is. */
static void by_hand(struct iod_core *core, struct iod_row *row, struct iod_remote *m)
{
	uint64_t left = m->n - m->at, moved = 0;
	uint32_t count = 1;
	int error;

	if (m->t->piece[m->cursor].region->kind == IOD_DEVICE) {
		left = iod_min64(left, m->t->iov[m->cursor].iov_len - m->skip);
		error = iod_device_piece(core, row, m->t, m->cursor, m->skip, m->flat + m->at, left, m->write, &moved);
		if (error)
			fail(m, m->at + moved, IOD_C_MESSAGE);
	} else {
		count = iod_memory_run(m->t, m->cursor, m->skip, m->flat + m->at, left, m->write, &moved, &error);
		if (error)
			fail(m, m->at + moved, IOD_C_NONE);
	}
	m->at += moved;
	m->cursor += count;
	m->skip = 0;
}

/* 0, -EFAULT, -ECANCELED, or -EINPROGRESS. */
static int go(struct iod_core *core, struct iod_row *row, struct iod_remote *m)
{
	m->going = true;
	while (m->at < m->n && m->cursor < m->t->count && m->failed == NOTHING &&
	       (m->whole || !row->cancel_wanted)) {
		uint8_t kind = m->t->piece[m->cursor].region->kind;
		if (kind == IOD_REMOTE ? m->outstanding == WINDOW : kind == IOD_DEVICE && m->outstanding)
			break;
		if (kind == IOD_REMOTE)
			ask(core, row, m);
		else
			by_hand(core, row, m);
	}
	m->going = false;
	if (m->outstanding)
		return -EINPROGRESS;
	if (m->failed != NOTHING)
		return -EFAULT;
	return m->at < m->n && m->cursor < m->t->count ? -ECANCELED : 0;
}

/* The move is over: what it came to. */
static uint64_t end(struct iod_row *row, int error)
{
	struct iod_remote *m = row->remote;
	uint64_t done = iod_min64(m->at, m->failed);

	row->fault.space = NULL;
	if (error == -EFAULT && m->cause != IOD_C_NONE)
		iod_row_refused(row, m->t, row->moved + done, m->write, m->cause);
	iod_remote_drop(row);
	return done;
}

int iod_remote_move(struct iod_core *core, struct iod_row *row, struct iod_translation *t, uint8_t *flat, uint64_t n,
		    bool write, uint64_t *done, iod_then *then)
{
	bool first = t == &row->t;
	struct iod_remote *m = malloc(sizeof *m);

	*done = 0;
	if (!m) {
		iod_row_refused(row, t, row->moved, write, IOD_C_REMOTE);
		return -EFAULT;
	}
	*m = (struct iod_remote){.t = t, .cursor = first ? row->cursor : row->cursor2,
				 .skip = first ? row->skip : row->skip2, .flat = flat, .n = n, .failed = NOTHING,
				 .write = write, .whole = write && row->bounce && row->kind == IOD_R_TRANSFER,
				 .then = then};
	row->remote = m;
	int error = go(core, row, m);
	if (error == -EINPROGRESS || error == -ECANCELED) {
		row->phase = IOD_P_REMOTE;
		if (error == -ECANCELED) /* inside of a call that expects no end of the row: in a turn */
			iod_queue_add(&core->glue, row);
		return -EINPROGRESS;
	}
	*done = end(row, error);
	return error;
}

void iod_remote_answer(struct iod_core *core, const struct iod_message *message, const uint8_t *data)
{
	struct iod_row *row = iod_find(core, message->ticket);
	struct iod_remote *m = row ? row->remote : NULL;
	size_t done;

	if (!m)
		return;
	if (!data)
		fail(m, message->at, IOD_C_REMOTE);
	else if (!m->write && iod_copy_lanes(m->flat + message->at, data, message->length, message->lanes, 0, &done))
		fail(m, message->at + done, IOD_C_NONE);
	m->outstanding--;
	if (!m->going && !row->queue)
		iod_queue_add(&core->glue, row);
}

void iod_remote_drop(struct iod_row *row)
{
	free(row->remote->own);
	free(row->remote);
	row->remote = NULL;
}

void iod_remote_own(struct iod_row *row, uint8_t *flat)
{
	row->remote->own = flat;
}

void iod_remote_resume(struct iod_core *core, struct iod_row *row)
{
	struct iod_remote *m = row->remote;
	int error = go(core, row, m);

	if (error == -EINPROGRESS) {
		row->phase = IOD_P_REMOTE;
		return;
	}
	bool write = m->write, second = m->t == &row->t2;
	iod_then *then = m->then;
	uint64_t done = end(row, error);
	if (error == -ECANCELED) {
		if (write)
			iod_row_advance(row, done);
		iod_row_complete(core, row, IOD_CANCELLED, 0);
		return;
	}
	if (second)
		iod_row_advance2(row, done);
	then(core, row, error, done);
}
