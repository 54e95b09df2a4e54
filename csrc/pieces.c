/* SPDX-License-Identifier: Apache-2.0
 *
 * pieces: bytes between the pieces of a translation and flat memory, by the core's own hand.
 *
 * Invariants
 *  - Byte lanes are permuted within whole units of a piece, wherever in it a copy starts or ends: the byte of the device's
 *    that lies at k of the piece is the memory's at (k ^ lanes), where the whole unit is inside the piece, else at k.
 *  - A device window sees each access once, ascending, naturally aligned, at most 8 bytes wide, never merged.
 *  - Nothing is delivered from here: a window's handler runs, and that is all. */
#include "bytes.h"
#include "xfer.h"

#include <errno.h>
#include <string.h>

static int copy(uint8_t *memory, uint8_t *flat, size_t n, bool write, size_t *done)
{
	return write ? iod_copy(memory, flat, n, done) : iod_copy(flat, memory, n, done);
}

/* n bytes of one piece, from `from` on. */
static int lanes_piece(uint8_t *base, uint64_t size, const struct iod_piece *piece, uint64_t from, uint8_t *flat,
		       uint64_t n, bool write, uint64_t *done)
{
	unsigned unit = piece->lanes > 3 ? 8 : piece->lanes > 1 ? 4 : 2;

	*done = 0;
	while (n) {
		uint64_t k = from + *done;
		unsigned in_unit = (unsigned)(piece->phase + k) & (unit - 1);
		size_t moved = 0;
		int error;
		if (in_unit == 0 && n >= unit && size - k >= unit) {
			uint64_t run = iod_min64(n, size - k) & ~(uint64_t)(unit - 1);
			unsigned phase = (unsigned)(piece->phase + k) & 7;
			error = write ? iod_copy_lanes(base + k, flat + *done, run, piece->lanes, phase, &moved)
				      : iod_copy_lanes(flat + *done, base + k, run, piece->lanes, phase, &moved);
			n -= moved;
		} else {
			bool whole = k >= in_unit && size - (k - in_unit) >= unit;
			uint64_t at = whole ? (k - in_unit) + (in_unit ^ piece->lanes) : k;
			error = copy(base + at, flat + *done, 1, write, &moved);
			n -= moved;
		}
		*done += moved;
		if (error)
			return error;
	}
	return 0;
}

static int device_piece(struct iod_core *core, struct iod_row *row, struct iod_region *region, uint64_t offset,
			uint8_t *flat, uint64_t n, bool write, uint64_t *done)
{
	uint8_t outer = core->depth;
	int error = 0;

	*done = 0;
	while (n && !error) {
		unsigned width = 8;
		while ((offset & (width - 1)) || width > n)
			width /= 2;
		uint64_t value = 0;
		if (row->depth >= IOD_MESSAGE_DEPTH) {
			error = -EFAULT;
			break;
		}
		if (write)
			memcpy(&value, flat + *done, width); /* little-endian hosts only, as the core is */
		core->depth = (uint8_t)(row->depth + 1);
		core->count.messages++;
		error = core->hooks.device(core->hooks.context, region, offset, width, write, &value);
		if (error)
			break;
		if (!write)
			memcpy(flat + *done, &value, width);
		offset += width;
		*done += width;
		n -= width;
	}
	core->depth = outer;
	return error ? -EFAULT : 0;
}

/* The bus address of byte `at` of a list. */
static uint64_t bus_address(const struct iod_segment *list, uint32_t count, uint64_t at)
{
	for (uint32_t i = 0; i < count; i++) {
		if (at < list[i].length)
			return list[i].address + at;
		at -= list[i].length;
	}
	return 0;
}

static int move(struct iod_core *core, struct iod_row *row, struct iod_translation *t, uint32_t cursor, uint64_t skip,
		uint8_t *flat, uint64_t n, bool write, uint64_t *done)
{
	*done = 0;
	row->fault.space = NULL;
	for (; n && cursor < t->count; cursor++, skip = 0) {
		struct iod_piece *piece = &t->piece[cursor];
		uint8_t *base = t->iov[cursor].iov_base;
		uint64_t size = t->iov[cursor].iov_len, m = iod_min64(n, size - skip), moved = 0;
		int error;
		if (piece->region->kind == IOD_DEVICE) {
			error = device_piece(core, row, piece->region, (uint64_t)(uintptr_t)base + skip, flat + *done, m,
					     write, &moved);
			if (error) {
				struct iod_space *space = row->port->space;
				while (space->next)
					space = space->next;
				row->fault = (struct iod_fault){
					.offset = row->moved + *done + moved,
					.address = t == &row->t
							   ? bus_address(row->list, row->count, row->moved + *done + moved)
							   : bus_address(row->list2, row->count2, row->moved + *done + moved),
					.space = space,
					.access = write ? IOD_WRITE : IOD_READ,
					.cause = IOD_C_MESSAGE};
			}
		} else if (piece->lanes) {
			error = lanes_piece(base, size, piece, skip, flat + *done, m, write, &moved);
		} else {
			size_t plain = 0;
			error = copy(base + skip, flat + *done, m, write, &plain);
			moved = plain;
		}
		*done += moved;
		n -= moved;
		if (error)
			return error;
	}
	return 0;
}

int iod_row_gather(struct iod_core *core, struct iod_row *row, uint8_t *to, uint64_t n, uint64_t *done)
{
	return move(core, row, &row->t, row->cursor, row->skip, to, n, false, done);
}

int iod_row_scatter(struct iod_core *core, struct iod_row *row, const uint8_t *from, uint64_t n, uint64_t *done)
{
	return move(core, row, &row->t, row->cursor, row->skip, (uint8_t *)(uintptr_t)from, n, true, done);
}

int iod_row_scatter2(struct iod_core *core, struct iod_row *row, const uint8_t *from, uint64_t n, uint64_t *done)
{
	int error = move(core, row, &row->t2, row->cursor2, row->skip2, (uint8_t *)(uintptr_t)from, n, true, done);
	uint64_t left = row->skip2 + *done;

	while (row->cursor2 < row->t2.count && left >= row->t2.iov[row->cursor2].iov_len)
		left -= row->t2.iov[row->cursor2++].iov_len;
	row->skip2 = left;
	return error;
}
