/* SPDX-License-Identifier: Apache-2.0
 *
 * pieces: bytes between the pieces of a translation and flat memory, by the core's own hand.
 *
 * Invariants
 *  - Byte lanes are permuted within whole units of a piece, wherever in it a copy starts or ends: the byte of the device's
 *    that lies at k of the piece is the memory's at (k ^ lanes), where the whole unit is inside the piece, else at k.
 *  - A device window sees each access once, ascending, naturally aligned, at most 8 bytes wide, never merged.  (Units
 *    of byte lanes that a list or a request cuts are seen a byte at a time.)
 *  - Nothing is delivered from here: a window's handler runs, and that is all. */
#include "bytes.h"
#include "xfer.h"

#include <errno.h>
#include <string.h>

#define RUN 64 /* pieces whose lanes are handed on at a time */

/* A run of pieces that are host memory: `count` of them, from `skip` bytes into the first, at most n bytes. */
static int memory_run(struct iod_translation *t, uint32_t cursor, uint32_t count, uint64_t skip, bool plain,
		      uint8_t *flat, uint64_t n, bool write, uint64_t *done)
{
	const struct iovec *iov = &t->iov[cursor];
	uint8_t lanes[RUN], phases[RUN];
	size_t moved = 0;

	for (uint32_t i = 0; !plain && i < count; i++) {
		lanes[i] = t->piece[cursor + i].lanes;
		phases[i] = t->piece[cursor + i].phase;
	}
	int error = write ? iod_scatter(iov, count, skip, flat, n, plain ? NULL : lanes, plain ? NULL : phases, &moved)
			  : iod_gather(flat, iov, count, skip, n, plain ? NULL : lanes, plain ? NULL : phases, &moved);
	*done = moved;
	return error;
}

/* One register access, on behalf of the row. */
static int message(struct iod_core *core, struct iod_row *row, struct iod_region *region, uint64_t offset,
		   unsigned width, uint8_t *flat, uint8_t lanes, bool write)
{
	uint64_t value = 0; /* little-endian hosts only, as the core is */
	uint8_t byte[8], outer = core->depth;

	if (row->depth >= IOD_MESSAGE_DEPTH)
		return -EFAULT;
	for (unsigned i = 0; write && i < width; i++)
		byte[i] = flat[i ^ lanes];
	if (write)
		memcpy(&value, byte, width);
	core->depth = (uint8_t)(row->depth + 1);
	core->count.messages++;
	int error = core->hooks.device(core->hooks.context, region, offset, width, write, &value);
	core->depth = outer;
	if (error)
		return -EFAULT;
	memcpy(byte, &value, width);
	for (unsigned i = 0; !write && i < width; i++)
		flat[i ^ lanes] = byte[i];
	return 0;
}

/* At most n bytes of a piece that is a device window, from `skip` bytes into it. */
int iod_device_piece(struct iod_core *core, struct iod_row *row, const struct iod_translation *t, uint32_t cursor,
		     uint64_t skip, uint8_t *flat, uint64_t n, bool write, uint64_t *done)
{
	const struct iod_piece *piece = &t->piece[cursor];
	uint64_t base = (uint64_t)(uintptr_t)t->iov[cursor].iov_base, size = t->iov[cursor].iov_len;
	uint8_t lanes = piece->lanes;
	unsigned unit = lanes > 3 ? 8 : lanes > 1 ? 4 : lanes ? 2 : 1;

	for (*done = 0; *done < n;) {
		uint64_t k = skip + *done, at = base + k;
		unsigned width = 8, in_unit = (unsigned)(piece->phase + k) & (unit - 1);
		int error;
		while ((at & (width - 1)) || width > n - *done)
			width /= 2;
		if (in_unit == 0 && width >= unit) {
			error = message(core, row, piece->region, at, width, flat + *done, lanes, write);
		} else { /* part of a unit: each byte in its lane, if the piece holds the whole unit */
			bool whole = k >= in_unit && size - (k - in_unit) >= unit;
			width = 1;
			error = message(core, row, piece->region, whole ? at - in_unit + (in_unit ^ lanes) : at, width,
					flat + *done, 0, write);
		}
		if (error)
			return error;
		*done += width;
	}
	return 0;
}

void iod_row_refused(struct iod_row *row, const struct iod_translation *t, uint64_t offset, bool write, enum iod_cause cause)
{
	row->fault = (struct iod_fault){.offset = offset,
					.address = t == &row->t ? iod_bus_address(row->list, row->count, offset)
								: iod_bus_address(row->list2, row->count2, offset),
					.space = row->port->space,
					.access = write ? IOD_WRITE : IOD_READ,
					.cause = (uint8_t)cause};
}

uint32_t iod_memory_run(struct iod_translation *t, uint32_t cursor, uint64_t skip, uint8_t *flat, uint64_t n, bool write,
			uint64_t *done, int *error)
{
	uint32_t count = 1;

	while (count < RUN && cursor + count < t->count && iod_region_is_host(t->piece[cursor + count].region))
		count++;
	*error = memory_run(t, cursor, count, skip, false, flat, n, write, done);
	return count;
}

static int move(struct iod_core *core, struct iod_row *row, struct iod_translation *t, uint8_t *flat, uint64_t n,
		bool write, uint64_t *done, iod_then *then)
{
	uint32_t cursor = t == &row->t ? row->cursor : row->cursor2;
	uint64_t skip = t == &row->t ? row->skip : row->skip2;

	*done = 0;
	row->fault.space = NULL;
	if (t->plain)
		return memory_run(t, cursor, t->count - cursor, skip, true, flat, n, write, done);
	if (t->remote)
		return iod_remote_move(core, row, t, flat, n, write, done, then);
	while (n && cursor < t->count) {
		uint64_t moved = 0;
		uint32_t count = 1;
		int error;
		if (t->piece[cursor].region->kind == IOD_DEVICE) {
			uint64_t most = iod_min64(n, t->iov[cursor].iov_len - skip);
			error = iod_device_piece(core, row, t, cursor, skip, flat + *done, most, write, &moved);
			if (error)
				iod_row_refused(row, t, row->moved + *done + moved, write, IOD_C_MESSAGE);
		} else {
			count = iod_memory_run(t, cursor, skip, flat + *done, n, write, &moved, &error);
		}
		*done += moved;
		n -= moved;
		if (error)
			return error;
		cursor += count;
		skip = 0;
	}
	return 0;
}

int iod_row_gather(struct iod_core *core, struct iod_row *row, uint8_t *to, uint64_t n, uint64_t *done, iod_then *then)
{
	return move(core, row, &row->t, to, n, false, done, then);
}

int iod_row_scatter(struct iod_core *core, struct iod_row *row, const uint8_t *from, uint64_t n, uint64_t *done,
		    iod_then *then)
{
	return move(core, row, &row->t, (uint8_t *)(uintptr_t)from, n, true, done, then);
}

void iod_row_advance2(struct iod_row *row, uint64_t bytes)
{
	uint64_t left = row->skip2 + bytes;

	while (row->cursor2 < row->t2.count && left >= row->t2.iov[row->cursor2].iov_len)
		left -= row->t2.iov[row->cursor2++].iov_len;
	row->skip2 = left;
}

int iod_row_scatter2(struct iod_core *core, struct iod_row *row, const uint8_t *from, uint64_t n, uint64_t *done,
		     iod_then *then)
{
	int error = move(core, row, &row->t2, (uint8_t *)(uintptr_t)from, n, true, done, then);

	if (error != -EINPROGRESS)
		iod_row_advance2(row, *done);
	return error;
}
