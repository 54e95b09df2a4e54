/* SPDX-License-Identifier: Apache-2.0
 *
 * core: what the glue asks of the table of transfers: submit, cancel, reset, take what is complete.  See xfer.h.
 *
 * Invariants
 *  - Nothing here translates, plans or delivers: rows are put on lists, and the step takes them from there. */
#include "bytes.h"
#include "pagetable.h"
#include "xfer.h"

#include <errno.h>
#include <string.h>

int iod_core_init(struct iod_core *core, struct iod_backend *backend, size_t bounce_bytes, const struct iod_hooks *hooks)
{
	static uint32_t made;
	*core = (struct iod_core){.backend = backend, .hooks = *hooks, .most_with_backend = UINT32_MAX,
				  .number = __atomic_add_fetch(&made, 1, __ATOMIC_RELAXED)};
	int error = iod_guard_install();
	return error ? error : iod_arena_create(&core->arena, bounce_bytes);
}

void iod_core_destroy(struct iod_core *core)
{
	iod_table_destroy(core);
	iod_arena_destroy(&core->arena);
}

static uint8_t access_of(const struct iod_request *request)
{
	if (request->kind == IOD_R_STORE)
		return IOD_WRITE;
	if (request->kind == IOD_R_TRANSFER && request->direction == IOD_TO_MEMORY)
		return IOD_WRITE;
	return IOD_READ;
}

int iod_submit(struct iod_core *core, const struct iod_request *request, uint64_t *ticket)
{
	struct iod_port *port = request->port;

	if (port->closed || port->resetting)
		return -ESTALE;
	if (port->rows >= port->depth)
		return -EBUSY;
	struct iod_row *row = iod_row_new(core);
	if (!row)
		return -ENOMEM;
	int error = iod_row_lists(row, request);
	if (error) {
		iod_row_unused(core, row);
		return error;
	}
	row->kind = request->kind;
	row->direction = request->direction;
	row->depth = request->depth;
	row->access = access_of(request);
	row->phase = IOD_P_NONE;
	row->status = IOD_OK;
	row->wait = IOD_W_NONE;
	row->cancel_wanted = row->cancel_sent = row->with_backend = row->holds_order = row->leased = false;
	row->was_ranged = row->notified = row->ranged = row->reads_first = false;
	row->cut = row->by_copy = row->by_write = row->alone = row->batched = row->no_end = false;
	row->began = false;
	row->linked = request->linked;
	row->unlinked = false;
	row->error = 0;
	if (request->unit) {
		if (row->total > request->end || request->position > request->end - row->total)
			row->error = ERANGE; /* the first step says so */
		else if (row->total % request->unit)
			row->error = EINVAL;
	}
	row->port = port;
	row->target = request->target;
	row->moved = 0;
	row->minimum = request->minimum;
	row->position = request->position;
	row->user = request->user;
	row->id = request->id;
	row->born = core->now;
	row->holds = NULL;
	row->riders = NULL;
	row->bounce = NULL;
	row->remote = NULL;
	if (request->kind != IOD_R_TRANSFER) {
		row->length = request->length;
		row->data = request->data;
		row->cursor2 = 0;
		row->skip2 = 0;
	}
	if (row->target)
		row->target->references++;
	port->rows++;
	port->busy++;
	port->submitted++;
	core->count.submitted++;
	iod_row_to(core, row, IOD_S_DESCRIBED);
	iod_queue_add(&core->ready, row);
	*ticket = row->ticket;
	return 0;
}

/* Of a row whose request the backend has. */
static void ask_to_end(struct iod_core *core, struct iod_row *row)
{
	if (row->riders && !row->with_backend) /* of a request that others still board: when it is handed over */
		core->cancel_again = true;
	if (!row->with_backend || row->cancel_sent)
		return;
	if (row->target && row->target->driver) {
		row->target->driver->ops->cancel(row->target->driver, row->ticket);
		row->cancel_sent = true;
		return;
	}
	int error = core->backend->ops->cancel(core->backend, row->ticket);
	if (error == -EAGAIN) {
		core->backend->ops->flush(core->backend);
		error = core->backend->ops->cancel(core->backend, row->ticket);
	}
	row->cancel_sent = error != -EAGAIN;
	if (!row->cancel_sent)
		core->cancel_again = true;
}

void iod_cancel_row(struct iod_core *core, struct iod_row *row)
{
	row->cancel_wanted = true;
	switch (row->state) {
	case IOD_S_DESCRIBED: /* on `ready`: the step sees the wish */
		return;
	case IOD_S_PENDING:
	case IOD_S_WAITING:
		iod_row_complete(core, row, IOD_CANCELLED, 0);
		return;
	case IOD_S_IN_FLIGHT:
		iod_row_to(core, row, IOD_S_CANCELLING);
		if (row->phase == IOD_P_WORK) { /* nothing of it is under way */
			iod_row_complete(core, row, IOD_CANCELLED, 0);
			return;
		}
		if (row->phase == IOD_P_SCRIPT) {
			core->hooks.script_cancel(core->hooks.context, row);
			return;
		}
		if (row->phase == IOD_P_RIDE) { /* it gets off when its host's request ends, which goes on alone */
			ask_to_end(core, row->host);
			return;
		}
		break;
	case IOD_S_CANCELLING:
		break;
	default:
		return;
	}
	ask_to_end(core, row->phase == IOD_P_RIDE ? row->host : row);
}

bool iod_cancel(struct iod_core *core, uint64_t ticket)
{
	struct iod_row *row = iod_find(core, ticket);

	if (!row || row->state == IOD_S_COMPLETE || row->state == IOD_S_DELIVERED)
		return false;
	iod_cancel_row(core, row);
	return true;
}

void iod_port_reset(struct iod_core *core, struct iod_port *port)
{
	port->generation++;
	port->resetting = true;
	for (uint32_t i = 0; i < core->rows && port->busy; i++) {
		struct iod_row *row = iod_row_at(core, i);
		if (row->state != IOD_S_FREE && row->port == port)
			iod_cancel_row(core, row);
	}
}

void iod_resume_pending(struct iod_core *core, struct iod_space *space)
{
	struct iod_row *next;
	for (struct iod_row *row = core->pending.head; row; row = next) {
		next = row->next;
		if (row->missed == space)
			iod_row_ready(core, row);
	}
}

struct iod_row *iod_take_done(struct iod_core *core)
{
	struct iod_row *row = core->done.head;
	if (row) {
		iod_queue_remove(row);
		iod_row_to(core, row, IOD_S_DELIVERED);
		core->count.delivered++;
	}
	return row;
}

struct iod_row *iod_take_batch(struct iod_core *core, struct iod_port *port)
{
	struct iod_row *row = port->done.head;
	if (row) {
		iod_queue_remove(row);
		iod_row_to(core, row, IOD_S_DELIVERED);
		core->count.delivered++;
	}
	return row;
}

void iod_row_free(struct iod_core *core, struct iod_row *row)
{
	row->port->rows--;
	iod_row_to(core, row, IOD_S_FREE);
	row->user = NULL;
	iod_row_unused(core, row);
}

static struct iod_fault gone(struct iod_space *space, uint64_t address, size_t done, bool write)
{
	return (struct iod_fault){.offset = done, .address = address + done, .space = space,
				  .access = write ? IOD_WRITE : IOD_READ, .cause = IOD_C_GONE};
}

int iod_access(struct iod_core *core, struct iod_space *space, uint64_t address, void *data, size_t length, bool write,
	       struct iod_fault *fault, size_t *done)
{
	struct iovec iov[4];
	struct iod_piece piece[4];
	struct iod_extent extent[8];
	struct iod_translation t = {.iov = iov, .piece = piece, .extent = extent, .room = 4, .extents_room = 8};
	struct iod_segment list = {address, length};
	struct iod_region *region;
	int error = 0;

	*done = 0;
	uint8_t *host = iod_space_host(space, address, length, write ? IOD_WRITE : IOD_READ, &region);
	if (host) { /* nearly always: the same as below, for one piece */
		error = write ? iod_copy(host, data, length, done) : iod_copy(data, host, length, done);
		if (write)
			iod_region_mark_dirty(region, (uint64_t)(host - region->host), length);
		if (error)
			*fault = gone(space, address, *done, write);
		return error;
	}
	enum iod_walk_result result = iod_walk(space, &list, 1, 0, write ? IOD_WRITE : IOD_READ, &t, fault);
	if (result == IOD_WALK_FAULT) {
		error = -EFAULT;
		iod_table_faulted(fault);
	}
	if (!error && (result != IOD_WALK_OK || !iod_translation_in_host(&t)))
		error = -EAGAIN;
	for (uint32_t i = 0; !error && i < t.count; i++) {
		size_t n = 0;
		uint8_t *at = (uint8_t *)data + *done;
		const struct iod_piece *here = &t.piece[i];
		if (write) {
			error = here->lanes ? iod_scatter(&t.iov[i], 1, 0, at, t.iov[i].iov_len, &here->lanes,
							  &here->phase, &n)
					    : iod_copy(t.iov[i].iov_base, at, t.iov[i].iov_len, &n);
			iod_region_mark_dirty(here->region,
					      (uint64_t)((uint8_t *)t.iov[i].iov_base - here->region->host),
					      t.iov[i].iov_len);
		} else {
			error = here->lanes ? iod_gather(at, &t.iov[i], 1, 0, t.iov[i].iov_len, &here->lanes,
							 &here->phase, &n)
					    : iod_copy(at, t.iov[i].iov_base, t.iov[i].iov_len, &n);
		}
		*done += n;
		if (error)
			*fault = gone(space, address, *done, write);
	}
	iod_translation_free(&t);
	(void)core;
	return error;
}
