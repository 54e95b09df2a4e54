/* SPDX-License-Identifier: Apache-2.0
 *
 * fuzz_core: bytes drive the core - maps, submits, answers of the backend, cancels, revocations, resets.
 *
 * What is asserted, whatever the bytes say:
 *  - Every submit has exactly one completion, with no more bytes moved than there are; a fault names its space.
 *  - The backend gets only vectors in memory that is leased, in the arena or the core's own zeroes, and of a direct file
 *    only what is aligned.
 *  - When a region's revocation is acknowledged, no request with the backend has a byte of it.
 *  - A stream has one request in flight a direction.
 *  - When all has ended: no lease, no piece of the arena, no reference, nothing on any list. */
#include "fake_backend.h"
#include "fuzz.h"
#include "xfer.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { REGIONS = 5, TARGETS = 8, PORTS = 2, SUBMITS = 512, REVOCATIONS = 64, PAGE = 4096, IOVAS = 24 };
enum target_index { BUFFERED, DIRECT, STREAM, ZERO_COPY, PACKET, BUFFER, NOTHING, SCRIPT };

struct submitted {
	uint64_t ticket, total;
	uint8_t port, completions;
	uint8_t data[64];
};

struct world {
	struct fuzz_script bytes;
	struct fake fake;
	struct iod_core core;
	struct iod_space memory, iommu, lanes, hook, window;
	struct iod_space *top;
	struct iod_region *region[REGIONS];
	bool placed[REGIONS];
	struct iod_target target[TARGETS];
	struct iod_port port[PORTS];
	struct submitted submitted[SUBMITS];
	uint32_t submits, delivered;
	struct iod_revocation *revocation[REVOCATIONS];
	uint32_t revocations;
	uint64_t script[SUBMITS]; /* tickets that wait for an answer */
	uint32_t scripts;
	bool ending;
};

static uint32_t regions_alive;
static uint64_t edges[IOD_STATE_COUNT * IOD_STATE_COUNT]; /* of the state table, how often each was walked */
static struct iod_counters reached;

/* ---- the script ---- */

static uint8_t byte(struct world *w)
{
	return fuzz_byte(&w->bytes);
}

static uint32_t below(struct world *w, uint32_t n)
{
	return fuzz_below(&w->bytes, n);
}

static uint64_t number(struct world *w)
{
	static const uint64_t usual[] = {0, 1, 2, 3, 7, 8, 511, 512, 513, 4095, 4096, 4097, 8192, 65536, INT64_MAX,
					 UINT64_MAX, UINT64_MAX - 1, (uint64_t)INT64_MAX + 1};
	uint8_t kind = byte(w);
	if (kind < 16)
		return usual[below(w, sizeof usual / sizeof *usual)];
	return kind < 128 ? (uint64_t)byte(w) << below(w, 8) : (uint64_t)byte(w) * 64 + below(w, 64);
}

/* ---- what is below ---- */

static void region_free(struct iod_region *region)
{
	MUST(region->leases == 0);
	free(region->host);
	free(region);
	regions_alive--;
}

static struct iod_region *region_make(uint8_t kind, uint64_t size)
{
	struct iod_region *region = calloc(1, sizeof *region);
	*region = (struct iod_region){.kind = kind, .buffer_index = -1, .references = 1, .size = size,
				      .free = region_free};
	if (kind != IOD_DEVICE) {
		region->host = malloc(size + PAGE); /* not aligned on purpose; see place */
		MUST(region->host);
		memset(region->host, 0x55, size + PAGE);
	}
	regions_alive++;
	return region;
}

static uint64_t base_of(unsigned i)
{
	static const uint64_t bases[REGIONS] = {0, 4 * PAGE, 0x100003, UINT64_MAX - 2 * PAGE + 1, 0x200000};
	return bases[i];
}

static void place(struct world *w, unsigned i)
{
	struct iod_region *region = w->region[i];
	uint64_t base = base_of(i);

	if (!w->placed[i] && !region->closed && !region->quarantined)
		w->placed[i] = iod_map_insert(&w->memory.map, base, base + (region->size - 1), 0, region,
					      IOD_READ | IOD_WRITE) == 0;
}

static void map_pages(struct world *w, unsigned iova, unsigned pages, uint64_t target, uint32_t access)
{
	uint64_t first = (uint64_t)iova * PAGE;
	iod_map_insert(&w->iommu.map, first, first + ((uint64_t)pages * PAGE - 1), target, NULL, access); /* or it is mapped */
}

/* ---- the hooks ---- */

static void submit(struct world *w);
static int device(void *context, struct iod_region *region, uint64_t offset, unsigned width, bool write, uint64_t *value)
{
	struct world *w = context;

	MUST(region->kind == IOD_DEVICE && offset % width == 0 && offset + width <= region->size);
	if (!write)
		*value = offset;
	if (w->ending)
		return 0;
	switch (below(w, 24)) {
	case 0:
		return -EFAULT;
	case 1: /* the handler acts */
		if (w->submits)
			iod_cancel(&w->core, w->submitted[below(w, w->submits)].ticket);
		return 0;
	case 2:
		submit(w);
		return 0;
	}
	return 0;
}

static void script(void *context, struct iod_row *row)
{
	struct world *w = context;
	MUST(w->scripts < SUBMITS);
	w->script[w->scripts++] = row->ticket;
}

static void script_cancel(void *context, struct iod_row *row)
{
	(void)context;
	MUST(row->phase == IOD_P_SCRIPT);
}

static void revoked(void *context, struct iod_revocation *revocation)
{
	struct world *w = context;

	/* It may have been put back and taken away again meanwhile: that is another revocation's. */
	bool last = !revocation->failed && revocation->space == &w->memory;
	for (uint32_t i = 0; i < w->revocations; i++)
		last &= w->revocation[i] == revocation || w->revocation[i]->region != revocation->region;
	if (last)
		for (unsigned i = 0; i < REGIONS; i++) { /* the region may be gone already, or be there again */
			const struct iod_region *region = w->region[i];
			if (region == revocation->region && region->host && !w->placed[i])
				MUST(!fake_touches(&w->fake, region->host, region->size));
		}
	revocation->owner = NULL; /* swept later: iod_revoke may still be at it */
}

static void other(struct iod_core *core, const struct iod_cqe *cqe)
{
	(void)core;
	(void)cqe;
	MUST(!"a completion of nobody's");
}

static enum iod_verdict hook(struct iod_space *space, uint64_t address, uint64_t *length, uint8_t access)
{
	struct world *w = space->owner;

	(void)address;
	(void)access;
	if (w->ending)
		return space == &w->iommu ? IOD_REFUSE : IOD_PASS;
	switch (below(w, 12)) {
	case 0:
		return IOD_REFUSE;
	case 1:
	case 2:
		return IOD_PENDING;
	case 3:
		if (*length > 100)
			*length = 100;
		break;
	case 4: /* who is asked acts */
		if (w->submits)
			iod_cancel(&w->core, w->submitted[below(w, w->submits)].ticket);
		break;
	}
	return space == &w->iommu ? IOD_REFUSE : IOD_PASS; /* an IOMMU asks about what it misses */
}

/* What the kernel may be asked. */
static void inspect(void *context, const struct fake_op *own)
{
	struct world *w = context;
	const struct iod_op *op = &own->op;
	const struct iod_target *direct = &w->target[DIRECT];
	bool file = op->code == IOD_OP_READV || op->code == IOD_OP_WRITEV;
	const struct iovec *iov = file ? op->iov : op->code <= IOD_OP_SEND_ZC ? op->msg->msg_iov : NULL;
	size_t count = file ? op->niov : iov ? op->msg->msg_iovlen : 0;

	MUST(count <= IOD_IOV_MAX);
	if (file && op->fd == direct->fd) {
		MUST(op->offset % direct->offset_alignment == 0);
		for (size_t i = 0; i < count; i++) {
			MUST((uintptr_t)iov[i].iov_base % direct->memory_alignment == 0);
			MUST(iov[i].iov_len % direct->offset_alignment == 0);
		}
	}
	if (file)
		MUST(own->bytes > 0 && op->offset <= INT64_MAX && own->bytes <= IOD_MAX_IO);
	int registered = op->flags & IOD_OP_FIXED_BUFFER ? op->buffer_index : -1;
	const struct iod_arena *arena = &w->core.arena;
	const struct iod_row *asks = iod_find(&w->core, op->user_data);
	bool zeroes = asks && asks->kind == IOD_R_ZEROES && op->code == IOD_OP_WRITEV; /* the core's own page of them */
	if (op->code == IOD_OP_POLL) /* a piece of the arena is kept for a peer's sake only if it cannot be filled again */
		MUST(!asks->bounce || asks->filled);
	for (size_t i = 0; i < count; i++) {
		const uint8_t *at = iov[i].iov_base, *past = at + iov[i].iov_len;
		bool good = iov[i].iov_len == 0;
		if (zeroes && iov[i].iov_len)
			good = at[0] == 0 && !memcmp(at, at + 1, iov[i].iov_len - 1);
		if (at >= arena->base && past <= arena->base + arena->pages * IOD_ARENA_PAGE)
			good = (registered < 0 || registered == arena->buffer_index) && (file || op->flags & IOD_OP_NOWAIT);
		for (uint32_t r = 0; !good && r < w->core.rows; r++) { /* of a row that holds it */
			const struct iod_row *row = iod_row_at(&w->core, r);
			for (uint32_t k = 0; row->leased && !good && k < row->t.count; k++) {
				const struct iod_region *region = row->t.piece[k].region;
				good = region->host && region->leases && at >= region->host &&
				       past <= region->host + region->size &&
				       (registered < 0 || registered == region->buffer_index);
			}
		}
		MUST(good);
	}
	for (int t = STREAM; t <= PACKET; t++)
		for (int out = 0; out < 2; out++) {
			unsigned n = 0;
			for (uint32_t i = 0; i < w->fake.count; i++) {
				const struct iod_op *each = &w->fake.op[i].op;
				bool is_out = each->code == IOD_OP_SENDMSG || each->code == IOD_OP_SEND_ZC;
				bool is_in = each->code == IOD_OP_RECVMSG;
				n += each->fd == w->target[t].fd && (out ? is_out : is_in);
			}
			MUST(n <= 1);
		}
}

/* ---- what is done ---- */

static uint64_t address(struct world *w)
{
	switch (below(w, 8)) {
	case 0:
		return number(w);
	case 1:
		return base_of(below(w, REGIONS)) + below(w, 200) - 100;
	default:
		return (uint64_t)below(w, IOVAS) * PAGE + (below(w, 2) ? 0 : (uint64_t)byte(w) * 16 + below(w, 16));
	}
}

static uint64_t length(struct world *w)
{
	static const uint16_t usual[] = {0, 1, 3, 8, 32, 100, 511, 512, 513, 1024, 4096, 5000, 8192};
	return below(w, 30) == 0 ? number(w) : usual[below(w, sizeof usual / sizeof *usual)];
}

/* Several sends of one stream, which may go together. */
static void burst(struct world *w)
{
	uint8_t which = below(w, 2) ? STREAM : ZERO_COPY;

	for (unsigned n = 1 + below(w, 6); n > 0 && w->submits < SUBMITS; n--) {
		struct submitted *own = &w->submitted[w->submits];
		struct iod_segment list = {address(w), 1 + byte(w)};
		struct iod_request request = {.port = &w->port[0], .target = &w->target[which], .list = &list, .count = 1,
					      .id = w->submits++, .user = own};
		own->total = list.length;
		if (iod_submit(&w->core, &request, &own->ticket))
			own->completions = 1;
	}
}

/* As `load` and `store` do it when nobody is to be waited for. */
static void access_now(struct world *w)
{
	uint8_t data[256];
	struct iod_fault fault = {0};
	size_t size = 1 + below(w, sizeof data), done = 0;
	bool write = below(w, 2);

	memset(data, 0x77, sizeof data);
	int error = iod_access(&w->core, w->top, address(w), data, size, write, &fault, &done);
	MUST(error == 0 || error == -EAGAIN || (error == -EFAULT && fault.space && fault.cause));
	MUST(done == (error ? 0 : size)); /* here no memory goes away */
}

static void submit(struct world *w)
{
	struct iod_segment list[80], list2[80];
	struct iod_request request = {0};
	uint32_t which = w->submits;

	if (which == SUBMITS)
		return;
	struct submitted *own = &w->submitted[which];
	request.count = below(w, 12) == 0 ? below(w, 80) : 1 + below(w, 4);
	for (uint32_t i = 0; i < request.count; i++)
		list[i] = (struct iod_segment){address(w), length(w)};
	own->port = below(w, 3) == 0;
	request.port = &w->port[own->port];
	request.list = list;
	request.direction = below(w, 2);
	request.id = which;
	request.position = below(w, 16) == 0 ? number(w) : (uint64_t)below(w, 20) * 256 + below(w, 3);
	request.user = own->port ? NULL : own; /* port 1 is of batches */
	switch (below(w, 12)) {
	case 0:
		request.kind = IOD_R_COPY;
		request.direction = 0;
		memcpy(list2, list, sizeof list2);
		for (uint32_t i = 0; i < request.count; i++)
			list2[i].address = address(w);
		request.list2 = list2;
		request.count2 = request.count;
		break;
	case 1:
		request.kind = below(w, 2) ? IOD_R_LOAD : IOD_R_STORE;
		request.direction = request.kind == IOD_R_LOAD ? 0 : 1;
		request.count = 1;
		list[0] = (struct iod_segment){address(w), below(w, sizeof own->data + 1)};
		request.data = own->data;
		break;
	case 2:
		request.kind = (uint8_t)(IOD_R_FLUSH + below(w, 3));
		request.direction = 0;
		request.count = 0;
		request.length = length(w);
		request.target = &w->target[below(w, 4) ? below(w, 2) : below(w, TARGETS)];
		break;
	default:
		request.kind = IOD_R_TRANSFER;
		request.target = &w->target[below(w, TARGETS)];
	}
	if (request.target && request.target->kind == IOD_T_SCRIPT && request.kind != IOD_R_TRANSFER)
		return;
	own->total = iod_list_bytes(list, request.count);
	request.minimum = below(w, 2) ? own->total : 1;
	request.depth = w->core.depth;
	uint64_t ticket = 0;
	w->submits++; /* a handler may submit as well */
	int error = iod_submit(&w->core, &request, &ticket);
	MUST(error == 0 || error == -EBUSY || error == -ESTALE);
	own->ticket = ticket;
	if (error)
		own->completions = 1;
	else
		MUST(iod_find(&w->core, ticket));
}

static void sweep(struct world *w)
{
	for (uint32_t i = 0; i < w->revocations;)
		if (!w->revocation[i]->owner) {
			MUST(w->revocation[i]->holders == 0);
			free(w->revocation[i]);
			w->revocation[i] = w->revocation[--w->revocations];
		} else {
			i++;
		}
}

static void delivered(struct world *w, struct iod_row *row)
{
	MUST(row->id < w->submits && row->state == IOD_S_DELIVERED);
	struct submitted *own = &w->submitted[row->id];

	MUST(own->completions++ == 0);
	MUST(own->ticket == 0 || own->ticket == row->ticket);
	MUST(row->status <= IOD_PEER_GONE && !row->leased && !row->bounce && !row->holds && !row->with_backend);
	MUST(row->kind > IOD_R_STORE || row->moved <= own->total);
	MUST(row->status != IOD_FAULT || (row->fault.space && row->fault.cause));
	MUST((row->status == IOD_IO_ERROR) <= (row->error > 0));
	MUST(row->status == IOD_OK || row->status == IOD_IO_ERROR || row->status == IOD_PEER_GONE || row->error == 0);
	if (row->status == IOD_OK && row->kind >= IOD_R_COPY && row->kind <= IOD_R_STORE)
		MUST(row->moved == own->total);
	w->delivered++;
	iod_row_free(&w->core, row);
	MUST(!iod_find(&w->core, row->ticket - ((uint64_t)1 << 24)));
}

static void deliver(struct world *w, bool all)
{
	struct iod_row *row;

	while ((row = iod_take_done(&w->core)))
		delivered(w, row);
	if (all || below(w, 2))
		while ((row = iod_take_batch(&w->core, &w->port[1])))
			delivered(w, row);
	for (int i = 0; i < PORTS; i++) {
		struct iod_port *port = &w->port[i];
		if (port->resetting && port->busy == 0) {
			while ((row = iod_take_batch(&w->core, port)))
				delivered(w, row);
			port->resetting = false;
			for (uint32_t r = 0; r < w->core.rows; r++) {
				row = iod_row_at(&w->core, r);
				MUST(row->port != port || row->state == IOD_S_FREE || row->state == IOD_S_COMPLETE);
			}
		}
	}
	sweep(w);
}

static void turn(struct world *w)
{
	iod_core_step(&w->core);
	if (w->core.glue.head)
		iod_core_work(&w->core, &w->core.glue);
	if (w->core.work.head)
		iod_core_work(&w->core, &w->core.work);
	w->core.queued_bytes = 0;
}

static int32_t answer(struct world *w, bool cancelled, bool wire)
{
	static const int32_t errors[] = {EIO, ENOSPC, EINTR, EAGAIN, EFAULT, EINVAL, ENOMEM, EBADF};
	static const int32_t on_wire[] = {EPIPE, ECONNRESET, EINTR, EAGAIN, EFAULT, EAGAIN};

	if (cancelled && below(w, 4))
		return below(w, 4) ? -ECANCELED : -EINTR;
	switch (below(w, 8)) {
	case 0:
		return wire ? -on_wire[below(w, 6)] : -errors[below(w, 8)];
	case 1:
		return 0;
	case 2:
		return 1 + (int32_t)below(w, 256);
	case 3:
		return 512 * (int32_t)(1 + below(w, 8));
	default:
		return INT32_MAX;
	}
}

static void backend_answers(struct world *w)
{
	struct fake *fake = &w->fake;

	if (fake->count && fake->cqes < FAKE_MOST) {
		uint32_t i = below(w, fake->count);
		int32_t result = w->ending ? INT32_MAX : answer(w, fake->op[i].cancelled, fake->op[i].op.msg);
		fake_end(fake, i, result);
	}
}

static void script_answers(struct world *w)
{
	if (!w->scripts)
		return;
	uint32_t i = below(w, w->scripts);
	struct iod_row *row = iod_find(&w->core, w->script[i]);

	w->script[i] = w->script[--w->scripts];
	if (!row || row->phase != IOD_P_SCRIPT)
		return;
	int32_t result = w->ending ? 4096 : answer(w, row->cancel_wanted, false);
	uint64_t left = row->total - row->moved;
	if (result > 0 && !iod_is_control(row)) {
		uint8_t data[4096];
		uint64_t n = iod_min64((uint64_t)result, sizeof data), done = 0;
		n = iod_min64(n, left);
		memset(data, 0xaa, n);
		row->phase = IOD_P_NONE;
		int error = row->direction == IOD_TO_MEMORY ? iod_row_scatter(&w->core, row, data, n, &done)
							    : iod_row_gather(&w->core, row, data, n, &done);
		row->phase = IOD_P_SCRIPT;
		result = error ? -EFAULT : (int32_t)done;
	}
	iod_script_done(&w->core, row, result);
}

static void take_back(struct world *w, struct iod_space *space, uint64_t first, uint64_t last,
		   const struct iod_region *region)
{
	sweep(w);
	if (w->revocations == REVOCATIONS)
		return;
	struct iod_revocation *revocation = calloc(1, sizeof *revocation);
	*revocation = (struct iod_revocation){.space = space, .first = first, .last = last, .region = region, .owner = w};
	w->revocation[w->revocations++] = revocation;
	iod_revoke(&w->core, revocation, below(w, 2));
	if (!revocation->done)
		for (uint32_t r = 0, held = 0; r < w->core.rows; r++) {
			held += iod_row_touches(iod_row_at(&w->core, r), space, first, last);
			MUST(r + 1 < w->core.rows || held);
		}
}

static void change_maps(struct world *w)
{
	unsigned i = below(w, 2 * REGIONS), iova = below(w, IOVAS), count = 1 + below(w, 4);
	uint64_t first = (uint64_t)iova * PAGE, last = first + (uint64_t)count * PAGE - 1, removed;

	if (i < REGIONS && below(w, 3) == 0) {
		if (!w->placed[i]) {
			if (w->region[i]->closed || w->region[i]->quarantined || below(w, 4) == 0) {
				/* unplugged; another of its size comes */
				uint64_t size = w->region[i]->size;
				uint8_t kind = w->region[i]->kind;
				iod_region_close(w->region[i]);
				iod_region_put(w->region[i]);
				w->region[i] = region_make(kind, size);
			}
			place(w, i);
			return;
		}
		first = base_of(i);
		last = first + (w->region[i]->size - 1);
		MUST(iod_map_remove(&w->memory.map, first, last, &removed) == 0);
		w->placed[i] = false;
		take_back(w, &w->memory, first, last, w->region[i]);
		return;
	}
	if (below(w, 2)) {
		MUST(iod_map_remove(&w->iommu.map, first, last, &removed) == 0);
		take_back(w, &w->iommu, first, last, NULL);
	}
	uint64_t target = base_of(below(w, REGIONS)) / 8 * 8;
	if (below(w, 2))
		map_pages(w, iova, count, target < UINT64_MAX - 8 * PAGE ? target : 0, IOD_READ | IOD_WRITE);
	else
		map_pages(w, iova, 1, target + PAGE * (uint64_t)below(w, 2), 1 + below(w, 3));
	iod_resume_pending(&w->core, &w->iommu);
}

static void fail_one(struct world *w)
{
	sweep(w);
	if (!w->revocations)
		return;
	struct iod_revocation *revocation = w->revocation[below(w, w->revocations)];
	if (!revocation->done && !revocation->failed)
		iod_revocation_fail(&w->core, revocation);
}

static void act(struct world *w)
{
	switch (below(w, 24)) {
	case 0:
	case 1:
	case 2:
	case 3:
	case 4:
		submit(w);
		break;
	case 5:
		if (below(w, 3))
			burst(w);
		else
			access_now(w);
		break;
	case 6:
	case 7:
	case 8:
		turn(w);
		break;
	case 9:
	case 10:
	case 11:
	case 12:
		backend_answers(w);
		break;
	case 13:
	case 14:
		iod_core_reap(&w->core, 1 + below(w, 70));
		break;
	case 15:
	case 16:
		deliver(w, false);
		break;
	case 17:
		if (w->submits)
			iod_cancel(&w->core, w->submitted[below(w, w->submits)].ticket);
		break;
	case 18:
	case 19:
		change_maps(w);
		break;
	case 20:
		script_answers(w);
		break;
	case 21:
		iod_resume_pending(&w->core, below(w, 2) ? &w->hook : &w->iommu);
		break;
	case 22:
		switch (below(w, 4)) {
		case 0:
			w->fake.refuse_cancels = below(w, 4);
			break;
		case 1:
			fail_one(w);
			break;
		case 2: {
			struct iod_target *target = &w->target[below(w, TARGETS)];
			target->closed = !target->closed && below(w, 2);
			break;
		}
		}
		break;
	case 23:
		if (below(w, 4) == 0)
			iod_port_reset(&w->core, &w->port[below(w, PORTS)]);
		break;
	}
}

/* ---- a world ---- */

static void begin(struct world *w)
{
	struct iod_hooks hooks = {.device = device, .script = script, .script_cancel = script_cancel,
				  .revoked = revoked, .other = other, .context = w};
	static const uint64_t sizes[REGIONS] = {4 * PAGE, 8 * PAGE, 5000, 2 * PAGE, 256};
	uint8_t flags = byte(w);

	fake_init(&w->fake, flags & 1 ? FAKE_MOST / 2 : 1 + below(w, 4));
	w->fake.inspect = inspect;
	w->fake.context = w;
	MUST(iod_core_init(&w->core, &w->fake.backend, flags & 2 ? 16 << 10 : 256 << 10, &hooks) == 0);
	w->core.edges = edges;
	w->core.small[0] = flags & 4 ? 1024 : 0;
	w->core.small[1] = flags & 4 ? 512 : 0;
	w->memory = (struct iod_space){.kind = IOD_MEMORY, .name = "memory"};
	w->iommu = (struct iod_space){.kind = IOD_IOMMU, .name = "iommu", .next = &w->memory, .hook = hook, .owner = w,
				      .misses_wait = flags & 64};
	w->hook = (struct iod_space){.kind = IOD_HOOK, .name = "hook", .next = &w->iommu, .hook = hook, .owner = w};
	w->lanes = (struct iod_space){.kind = IOD_LANES, .name = "lanes", .lanes = (uint8_t)((2u << below(w, 3)) - 1),
				      .next = flags & 32 ? &w->hook : &w->iommu};
	w->window = (struct iod_space){.kind = IOD_WINDOW, .name = "window", .last = IOVAS * PAGE,
				       .next = flags & 16 ? &w->lanes : flags & 32 ? &w->hook : &w->iommu};
	w->top = flags & 8 ? &w->memory : &w->window;
	for (unsigned i = 0; i < REGIONS; i++) {
		w->region[i] = region_make(i == 4 ? IOD_DEVICE : IOD_RAM, sizes[i]);
		place(w, i);
	}
	for (unsigned i = 0; i < IOVAS - 4; i++) {
		static const uint64_t where[] = {0,	   PAGE,     2 * PAGE, 3 * PAGE, 4 * PAGE, 5 * PAGE,
						 6 * PAGE, 7 * PAGE, 0x100008, 0x200000, UINT64_MAX - PAGE + 1};
		map_pages(w, i, 1, where[below(w, 11)], IOD_READ | IOD_WRITE);
	}
	if (below(w, 2)) { /* registered with the kernel */
		w->region[0]->buffer_index = 0;
		w->region[0]->buffer_core = w->core.number;
		w->core.arena.buffer_index = 1;
	}
	static const uint8_t kinds[TARGETS] = {IOD_T_FILE,   IOD_T_FILE,   IOD_T_STREAM, IOD_T_STREAM,
					       IOD_T_PACKET, IOD_T_BUFFER, IOD_T_NULL,	 IOD_T_SCRIPT};
	for (int i = 0; i < TARGETS; i++)
		w->target[i] = (struct iod_target){.kind = kinds[i], .fd = 100 + i, .buffered_fd = -1, .file_index = -1,
						   .memory_alignment = 1, .offset_alignment = 1, .max_segments = 1024,
						   .max_bytes = IOD_MAX_IO};
	w->target[DIRECT].direct = true;
	w->target[DIRECT].memory_alignment = 4; /* as NVMe has it */
	w->target[DIRECT].offset_alignment = 512;
	w->target[DIRECT].buffered_fd = 200;
	w->target[STREAM].max_segments = 16;
	w->target[ZERO_COPY].zero_copy = true;
	w->target[BUFFER].region = region_make(IOD_RAM, 3000);
	for (int i = 0; i < PORTS; i++)
		w->port[i] = (struct iod_port){.core = &w->core, .space = w->top, .depth = flags & 128 ? 100 : 20};
}

static void all_has_ended(struct world *w)
{
	struct iod_core *core = &w->core;

	MUST(core->in_use == 0 && core->with_backend == 0 && core->arena.used == 0);
	MUST(!core->ready.count && !core->work.count && !core->done.count && !core->budget.count && !core->ring.count &&
	     !core->pending.count && !core->glue.count && !core->revocations && !w->revocations);
	for (uint32_t i = 0; i < w->submits; i++)
		MUST(w->submitted[i].completions == 1);
	for (int i = 0; i < PORTS; i++)
		MUST(!w->port[i].rows && !w->port[i].busy && !w->port[i].done.count);
	for (int i = 0; i < TARGETS; i++) {
		struct iod_target *t = &w->target[i];
		MUST(!t->references && !t->active[0] && !t->active[1] && !t->order[0].count && !t->order[1].count &&
		     !t->writers && !t->range_wait.count);
	}
	for (int i = 0; i < REGIONS; i++)
		MUST(w->region[i]->leases == 0 && w->region[i]->references == 1u + w->placed[i]);
}

static void end(struct world *w)
{
	w->ending = true;
	w->fake.refuse_cancels = 0;
	for (int rounds = 0; w->core.in_use || w->revocations; rounds++) {
		MUST(rounds < 20000); /* it hangs */
		turn(w);
		for (uint32_t i = w->fake.count; i > 0; i--)
			backend_answers(w);
		iod_core_reap(&w->core, UINT32_MAX);
		for (uint32_t i = w->scripts; i > 0; i--)
			script_answers(w);
		iod_resume_pending(&w->core, &w->hook);
		iod_resume_pending(&w->core, &w->iommu);
		deliver(w, true);
	}
	all_has_ended(w);
	for (size_t i = 0; i < sizeof reached / sizeof(uint64_t); i++)
		((uint64_t *)&reached)[i] += ((uint64_t *)&w->core.count)[i];
	iod_map_clear(&w->memory.map);
	iod_map_clear(&w->iommu.map);
	for (int i = 0; i < REGIONS; i++)
		iod_region_put(w->region[i]);
	iod_region_put(w->target[BUFFER].region);
	for (int i = 0; i < TARGETS; i++)
		free(w->target[i].vector);
	iod_core_destroy(&w->core);
	MUST(regions_alive == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct world *w = calloc(1, sizeof *w);
	MUST(w);
	w->bytes = (struct fuzz_script){data, data + size};
	begin(w);
	while (w->bytes.at < w->bytes.end)
		act(w);
	end(w);
	free(w);
	return 0;
}

const char fuzz_name[] = "fuzz_core";
void fuzz_report(void)
{
	for (size_t i = 0; i < iod_edge_count; i++)
		if (!edges[iod_edges[i].from * IOD_STATE_COUNT + iod_edges[i].to])
			printf("fuzz_core: never from %s to %s: %s\n", iod_state_names[iod_edges[i].from],
			       iod_state_names[iod_edges[i].to], iod_edges[i].why);
	printf("fuzz_core: %llu transfers, %llu bounces, %llu waited, %llu coalesced, %llu messages, %llu revocations\n",
	       (unsigned long long)reached.submitted,
	       (unsigned long long)(reached.bounces[0] + reached.bounces[1] + reached.bounces[2] + reached.bounces[3]),
	       (unsigned long long)(reached.waits[1] + reached.waits[2] + reached.waits[3] + reached.waits[4]),
	       (unsigned long long)reached.coalesced, (unsigned long long)reached.messages,
	       (unsigned long long)reached.revocations);
}
