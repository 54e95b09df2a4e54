/* SPDX-License-Identifier: Apache-2.0
 *
 * work: transfers whose two ends are both memory: the core moves them itself, at the next turn.
 *
 * Invariants
 *  - A row comes here translated, leased and in flight, and leaves complete.
 *  - Byte lanes cost one pass: they are permuted on the way, never through the arena.
 *  - Each of these begins anew where the row is: what messages made it wait for goes on from there. */
#include "bytes.h"
#include "xfer.h"

#include <errno.h>
#include <string.h>

static void finish(struct iod_core *core, struct iod_row *row, int error)
{
	if (!error) {
		iod_row_complete(core, row, IOD_OK, 0);
	} else if (row->fault.space) {
		iod_row_fault(core, row);
	} else {
		iod_row_gone(core, row);
	}
}

static uint64_t buffer_room(const struct iod_row *row)
{
	const struct iod_region *region = row->target->region;
	return row->position < region->size ? region->size - row->position : 0;
}

static void buffer_done(struct iod_core *core, struct iod_row *row, int error, uint64_t done)
{
	bool short_of = row->total - row->moved > buffer_room(row) && row->direction == IOD_FROM_MEMORY;

	core->count.copied += done;
	if (row->direction == IOD_FROM_MEMORY)
		iod_region_mark_dirty(row->target->region, row->position,
				      iod_min64(row->total - row->moved, buffer_room(row)));
	iod_row_advance(row, done);
	if (!error && short_of)
		iod_row_complete(core, row, IOD_IO_ERROR, ENOSPC);
	else
		finish(core, row, error);
}

/* A memory endpoint: bytes up to its end, as a file would. */
static void with_buffer(struct iod_core *core, struct iod_row *row)
{
	uint64_t room = buffer_room(row), n = iod_min64(row->total - row->moved, room), done = 0;
	uint8_t *flat = row->target->region->host + (room ? row->position : 0); /* a position may be anything */
	int error = row->direction == IOD_FROM_MEMORY ? iod_row_gather(core, row, flat, n, &done, buffer_done)
						      : iod_row_scatter(core, row, flat, n, &done, buffer_done);

	if (error != -EINPROGRESS)
		buffer_done(core, row, error, done);
}

/* ZEROES and DISCARD */
static void zero_buffer(struct iod_core *core, struct iod_row *row)
{
	struct iod_region *region = row->target->region;
	uint64_t room = row->position < region->size ? region->size - row->position : 0;
	uint64_t n = iod_min64(row->total, room);

	if (iod_fill(region->host + row->position, 0, n)) {
		iod_row_complete(core, row, IOD_IO_ERROR, EIO);
		return;
	}
	iod_region_mark_dirty(region, row->position, n);
	row->moved = n;
	if (n < row->total)
		iod_row_complete(core, row, IOD_IO_ERROR, ENOSPC);
	else
		iod_row_complete(core, row, IOD_OK, 0);
}

static void with_null(struct iod_core *core, struct iod_row *row);

static void null_done(struct iod_core *core, struct iod_row *row, int error, uint64_t done)
{
	core->count.copied += done;
	iod_row_advance(row, done);
	if (error)
		finish(core, row, error);
	else if (row->cancel_wanted && row->moved < row->total)
		iod_row_complete(core, row, IOD_CANCELLED, 0);
	else
		with_null(core, row);
}

static void with_null(struct iod_core *core, struct iod_row *row)
{
	static const uint8_t zeroes[4096];
	int error = 0;

	if (row->direction == IOD_FROM_MEMORY) {
		iod_row_advance(row, row->total - row->moved);
	} else {
		while (row->moved < row->total && !error) {
			uint64_t done = 0;
			error = iod_row_scatter(core, row, zeroes, iod_min64(row->total - row->moved, sizeof zeroes),
						&done, null_done);
			if (error == -EINPROGRESS)
				return;
			core->count.copied += done;
			iod_row_advance(row, done);
		}
	}
	finish(core, row, error);
}

/* Of a copy, `payload` bytes of which are in `flat`: they are where they belong, as far as that went. */
static void put(struct iod_core *core, struct iod_row *row, int error, uint64_t done)
{
	core->count.copied += done;
	iod_row_advance(row, done);
	if (error)
		finish(core, row, error);
}

static void copy_by_messages(struct iod_core *core, struct iod_row *row);

static void put_later(struct iod_core *core, struct iod_row *row, int error, uint64_t done)
{
	put(core, row, error, done);
	if (error)
		return;
	if (row->cancel_wanted && row->moved < row->total)
		iod_row_complete(core, row, IOD_CANCELLED, 0);
	else
		copy_by_messages(core, row);
}

static int got(struct iod_core *core, struct iod_row *row, int error, uint64_t done)
{
	uint64_t moved = 0;

	if (error) {
		finish(core, row, error);
		return error;
	}
	error = iod_row_scatter2(core, row, row->bounce, done, &moved, put_later);
	if (error != -EINPROGRESS)
		put(core, row, error, moved);
	return error;
}

static void got_later(struct iod_core *core, struct iod_row *row, int error, uint64_t done)
{
	if (!got(core, row, error, done))
		copy_by_messages(core, row);
}

/* Through the row's piece of the arena: what is in it has to wait. */
static void copy_by_messages(struct iod_core *core, struct iod_row *row)
{
	while (row->moved < row->total) {
		uint64_t done = 0, n = iod_min64(row->total - row->moved, row->bounce_bytes);
		int error = iod_row_gather(core, row, row->bounce, n, &done, got_later);
		if (error == -EINPROGRESS || got(core, row, error, done))
			return;
	}
	finish(core, row, 0);
}

static void memory_to_memory(struct iod_core *core, struct iod_row *row)
{
	int error = 0;

	if (row->t.remote || row->t2.remote) {
		copy_by_messages(core, row);
		return;
	}
	if (row->t.plain && row->t2.plain) {
		size_t done = 0;
		error = iod_move(row->t2.iov, row->t2.count, 0, row->t.iov, row->t.count, 0, row->total - row->moved,
				 &done);
		core->count.copied += done;
		iod_row_advance(row, done);
	} else {
		uint8_t flat[4096];
		while (row->moved < row->total && !error) {
			uint64_t n = iod_min64(row->total - row->moved, sizeof flat), done = 0, moved = 0;
			error = iod_row_gather(core, row, flat, n, &done, NULL);
			struct iod_fault fault = row->fault;
			int failed = iod_row_scatter2(core, row, flat, done, &moved, NULL);
			if (!failed)
				row->fault = fault;
			else
				error = failed;
			core->count.copied += moved;
			iod_row_advance(row, moved);
		}
	}
	finish(core, row, error);
}

static void access_done(struct iod_core *core, struct iod_row *row, int error, uint64_t done)
{
	iod_row_advance(row, done);
	finish(core, row, error);
}

void iod_row_work(struct iod_core *core, struct iod_row *row)
{
	int error;
	uint64_t done = 0;

	if (row->remote) {
		iod_remote_resume(core, row);
		return;
	}
	if (row->filled) { /* there was no room for it: see iod_row_continue */
		if (row->cancel_wanted)
			iod_row_complete(core, row, IOD_CANCELLED, 0);
		else
			iod_row_continue(core, row);
		return;
	}
	row->fault.space = NULL;
	switch (row->kind) {
	case IOD_R_COPY:
		memory_to_memory(core, row);
		return;
	case IOD_R_LOAD:
		error = iod_row_gather(core, row, row->data, row->total, &done, access_done);
		if (error != -EINPROGRESS)
			access_done(core, row, error, done);
		return;
	case IOD_R_STORE:
		error = iod_row_scatter(core, row, row->data, row->total, &done, access_done);
		if (error != -EINPROGRESS)
			access_done(core, row, error, done);
		return;
	case IOD_R_ZEROES:
	case IOD_R_DISCARD:
		zero_buffer(core, row);
		return;
	default:
		if (row->target->kind == IOD_T_BUFFER)
			with_buffer(core, row);
		else
			with_null(core, row);
		return;
	}
}
