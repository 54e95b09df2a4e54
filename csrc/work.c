/* SPDX-License-Identifier: Apache-2.0
 *
 * work: transfers whose two ends are both memory: the core moves them itself, at the next turn.
 *
 * Invariants
 *  - A row comes here translated, leased and in flight, and leaves complete.
 *  - Byte lanes cost one pass: they are permuted on the way, never through the arena. */
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

/* A memory endpoint: bytes up to its end, as a file would. */
static void with_buffer(struct iod_core *core, struct iod_row *row)
{
	struct iod_region *region = row->target->region;
	uint64_t room = row->position < region->size ? region->size - row->position : 0;
	uint64_t want = row->total - row->moved, n = iod_min64(want, room), done = 0;
	uint8_t *flat = region->host + (room ? row->position : 0); /* a position may be anything */
	int error = row->direction == IOD_FROM_MEMORY ? iod_row_gather(core, row, flat, n, &done)
						      : iod_row_scatter(core, row, flat, n, &done);

	core->count.copied += done;
	if (row->direction == IOD_FROM_MEMORY)
		iod_region_mark_dirty(region, row->position, n);
	iod_row_advance(row, done);
	if (!error && n < want && row->direction == IOD_FROM_MEMORY)
		iod_row_complete(core, row, IOD_IO_ERROR, ENOSPC);
	else
		finish(core, row, error);
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
						&done);
			core->count.copied += done;
			iod_row_advance(row, done);
		}
	}
	finish(core, row, error);
}

static void memory_to_memory(struct iod_core *core, struct iod_row *row)
{
	int error = 0;

	if (row->t.plain && row->t2.plain) {
		size_t done = 0;
		error = iod_move(row->t2.iov, row->t2.count, 0, row->t.iov, row->t.count, 0, row->total - row->moved,
				 &done);
		core->count.copied += done;
		iod_row_advance(row, done);
	} else {
		uint8_t flat[4096];
		while (row->moved < row->total && !error) {
			uint64_t n = iod_min64(row->total - row->moved, sizeof flat), done = 0, put = 0;
			error = iod_row_gather(core, row, flat, n, &done);
			struct iod_fault fault = row->fault;
			int failed = iod_row_scatter2(core, row, flat, done, &put);
			if (!failed)
				row->fault = fault;
			else
				error = failed;
			core->count.copied += put;
			iod_row_advance(row, put);
		}
	}
	finish(core, row, error);
}

void iod_row_work(struct iod_core *core, struct iod_row *row)
{
	int error;
	uint64_t done = 0;

	row->fault.space = NULL;
	switch (row->kind) {
	case IOD_R_COPY:
		memory_to_memory(core, row);
		return;
	case IOD_R_LOAD:
		error = iod_row_gather(core, row, row->data, row->total, &done);
		iod_row_advance(row, done);
		finish(core, row, error);
		return;
	case IOD_R_STORE:
		error = iod_row_scatter(core, row, row->data, row->total, &done);
		iod_row_advance(row, done);
		finish(core, row, error);
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
