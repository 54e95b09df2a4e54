/* SPDX-License-Identifier: Apache-2.0
 *
 * fuzz_core: bytes drive the core - maps, submits, answers of the backend, cancels, revocations, resets.
 *
 * What is asserted, whatever the bytes say, beside what world.h has:
 *  - Every submit has exactly one completion, with no more bytes moved than there are; a fault names its space. */
#include "world.h"

#include "pagetable.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

void submit(struct world *w)
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
		request.kind = (uint8_t)(IOD_R_FLUSH + below(w, 5));
		request.direction = request.kind >= IOD_R_PEEK;
		request.count = 0;
		request.length = request.kind == IOD_R_PEEK ? 1 + below(w, sizeof own->data) : length(w);
		request.data = own->data;
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
	MUST(row->status <= IOD_PEER_GONE && !row->leased && !row->remote && !row->bounce && !row->holds && !row->with_backend);
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

static void script_put(struct iod_core *core, struct iod_row *row, int error, uint64_t done)
{
	row->phase = IOD_P_SCRIPT;
	iod_script_done(core, row, error ? -EFAULT : (int32_t)done);
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
		uint64_t n = iod_min64(iod_min64((uint64_t)result, 4096), left), done = 0;
		uint8_t *data = malloc(4096);
		int error = 0;
		memset(data, 0xaa, n);
		row->phase = IOD_P_NONE;
		if (row->filled) {
			done = iod_min64(n, row->payload);
			memcpy(data, row->bounce, done);
		} else if (row->direction == IOD_TO_MEMORY) {
			error = iod_row_scatter(&w->core, row, data, n, &done, script_put);
		} else {
			error = iod_row_gather(&w->core, row, data, n, &done, NULL);
		}
		if (error == -EINPROGRESS) {
			iod_remote_own(row, data);
			return;
		}
		free(data);
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

/* As a guest does that keeps its tables in order, or not. */
static void change_table(struct world *w)
{
	struct iod_table *table = w->table.table;
	uint64_t first = (uint64_t)below(w, IOVAS) * PAGE, last = first + (1 + below(w, 3)) * PAGE - 1;

	switch (below(w, 8)) {
	case 0:
		describe_table(w);
		take_back(w, &w->table, 0, UINT64_MAX, NULL);
		return;
	case 1:
		iod_table_flush(table, 0, UINT64_MAX);
		take_back(w, &w->table, 0, UINT64_MAX, NULL);
		return;
	case 2: /* without a flush */
		set_entry(w, below(w, IOVAS));
		return;
	default:
		for (uint64_t page = first / PAGE; page <= last / PAGE; page++)
			set_entry(w, (unsigned)page);
		iod_table_flush(table, first, last);
		take_back(w, &w->table, first, last, NULL);
	}
}

static void change_maps(struct world *w)
{
	unsigned i = below(w, 2 * REGIONS), iova = below(w, IOVAS), count = 1 + below(w, 4);
	uint64_t first = (uint64_t)iova * PAGE, last = first + (uint64_t)count * PAGE - 1, removed;

	if (below(w, 12) == 0) {
		w->gate.shut = !w->gate.shut;
		if (w->gate.shut)
			take_back(w, &w->gate, 0, UINT64_MAX, NULL);
		return;
	}
	if (i < REGIONS && below(w, 3) == 0) {
		if (!w->placed[i]) {
			if (w->region[i]->closed || w->region[i]->quarantined || below(w, 4) == 0) {
				/* unplugged; another of its size comes */
				uint64_t size = w->region[i]->size;
				uint8_t kind = w->region[i]->kind;
				iod_region_close(w->region[i]);
				iod_region_put(w->region[i]);
				w->region[i] = world_region(kind, size);
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
	if (below(w, 2))
		iod_revocation_hasten(&w->core, revocation);
	else if (!revocation->done && !revocation->failed)
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
		if (w->gate.next != &w->memory && below(w, 2))
			change_table(w);
		else
			change_maps(w);
		break;
	case 20:
		script_answers(w);
		for (uint32_t n = below(w, 8); n > 0; n--)
			answer_message(w);
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
		while (w->messages)
			answer_message(w);
		iod_resume_pending(&w->core, &w->hook);
		iod_resume_pending(&w->core, &w->iommu);
		deliver(w, true);
	}
	world_drop(w);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct world *w = calloc(1, sizeof *w);
	MUST(w);
	w->bytes = (struct fuzz_script){data, data + size};
	world_begin(w);
	while (w->bytes.at < w->bytes.end)
		act(w);
	end(w);
	free(w);
	return 0;
}

const char fuzz_name[] = "fuzz_core";
void fuzz_report(void)
{
	const struct iod_counters *reached = &world_reached;

	for (size_t i = 0; i < iod_edge_count; i++)
		if (!world_edges[iod_edges[i].from * IOD_STATE_COUNT + iod_edges[i].to])
			printf("fuzz_core: never from %s to %s: %s\n", iod_state_names[iod_edges[i].from],
			       iod_state_names[iod_edges[i].to], iod_edges[i].why);
	printf("fuzz_core: %llu transfers, %llu bounces, %llu waited, %llu coalesced, %llu messages, %llu revocations\n",
	       (unsigned long long)reached->submitted,
	       (unsigned long long)(reached->bounces[0] + reached->bounces[1] + reached->bounces[2] + reached->bounces[3] + reached->bounces[4]),
	       (unsigned long long)(reached->waits[1] + reached->waits[2] + reached->waits[3] + reached->waits[4]),
	       (unsigned long long)reached->coalesced, (unsigned long long)reached->messages,
	       (unsigned long long)reached->revocations);
}
