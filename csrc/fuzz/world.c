/* SPDX-License-Identifier: Apache-2.0
 *
 * world: see world.h. */
#include "../framed.h"
#include "world.h"

#include "pagetable.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

uint64_t world_edges[IOD_STATE_COUNT * IOD_STATE_COUNT];
struct iod_counters world_reached;
static uint32_t regions_alive;

uint64_t number(struct world *w)
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

struct iod_region *world_region(uint8_t kind, uint64_t size)
{
	struct iod_region *region = calloc(1, sizeof *region);
	*region = (struct iod_region){.kind = kind, .buffer_index = -1, .references = 1, .size = size,
				      .free = region_free};
	region->most = kind == IOD_REMOTE ? 100 : 0;
	if (iod_region_is_host(region)) {
		/* Not aligned on purpose; but for one, as a page table's cache knows only such pages by their host address. */
		region->host = size == 8 * PAGE ? aligned_alloc(PAGE, size + PAGE) : malloc(size + PAGE);
		MUST(region->host);
		memset(region->host, 0x55, size + PAGE);
	}
	regions_alive++;
	return region;
}

uint64_t base_of(unsigned i)
{
	static const uint64_t bases[REGIONS] = {0, 4 * PAGE, 0x100003, UINT64_MAX - 2 * PAGE + 1, 0x200000, 13 * PAGE};
	return bases[i];
}

void place(struct world *w, unsigned i)
{
	struct iod_region *region = w->region[i];
	uint64_t base = base_of(i);

	if (!w->placed[i] && !region->closed && !region->quarantined)
		w->placed[i] = iod_map_insert(&w->memory.map, base, base + (region->size - 1), 0, region,
					      IOD_READ | IOD_WRITE) == 0;
}

void map_pages(struct world *w, unsigned iova, unsigned pages, uint64_t target, uint32_t access)
{
	uint64_t first = (uint64_t)iova * PAGE;
	iod_map_insert(&w->iommu.map, first, first + ((uint64_t)pages * PAGE - 1), target, NULL, access); /* or it is mapped */
}

/* Anything: some entries of pages that are there, some that lead nowhere, and what guests write by mistake. */
void set_entry(struct world *w, unsigned iova)
{
	const struct iod_table *table = w->table.table;
	struct iod_region *region;
	uint64_t entry = number(w);

	if (below(w, 4))
		entry = (below(w, 4) ? 4 + below(w, 8) : below(w, 16)) * PAGE | (below(w, 8) ? 3 : below(w, 4));
	uint8_t *at = iod_space_host(&w->memory, table->base + iova * table->entry_bytes, table->entry_bytes, IOD_READ, &region);
	if (!at)
		return;
	uint32_t word = (uint32_t)entry;
	if (table->entry_bytes == 8) {
		entry = table->big_endian ? __builtin_bswap64(entry) : entry;
		memcpy(at, &entry, 8);
	} else {
		word = table->big_endian ? __builtin_bswap32(word) : word;
		memcpy(at, &word, 4);
	}
}

/* In the first region mostly, or where there is no memory, or at its end. */
void describe_table(struct world *w)
{
	uint64_t base = below(w, 8) ? 3 * PAGE : base_of(below(w, REGIONS)) / 8 * 8 + 4064 * below(w, 2);
	uint32_t pages = below(w, 4) ? IOVAS : 1 + below(w, IOVAS), first = below(w, 8) ? 0 : below(w, 4);
	bool wide = below(w, 4) == 0;
	uint8_t shift = below(w, 8) ? 12 : 13;
	struct iod_table now = {.valid = 1, .write = below(w, 8) ? 2 : 0, .frame = 0xfffff000 & -(1u << shift),
				.entry_bytes = wide ? 8 : 4, .shift = wide ? below(w, 33) : 0, .page_shift = shift, .big_endian = below(w, 2),
				.base = base > UINT64_MAX - PAGE ? 0 : base, .first = (uint64_t)first << shift,
				.last = ((uint64_t)(first + pages) << shift) - 1, .mode = below(w, 8) ? IOD_TABLE_TRANSLATES : below(w, 2),
				.outside = below(w, 2)};
	MUST(!iod_table_wrong(&now));
	iod_table_set(w->table.table, &now);
	w->table.table->notes = below(w, 2);
}

/* ---- the hooks ---- */

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

void answer_message(struct world *w)
{
	static uint8_t data[100];

	if (!w->messages)
		return;
	uint32_t i = below(w, w->messages);
	struct iod_message message = w->message[i].message;
	w->message[i] = w->message[--w->messages];
	memset(data, 0x33, sizeof data);
	iod_remote_answer(&w->core, &message, !w->ending && below(w, 16) == 0 ? NULL : data);
}

static void remote(void *context, struct iod_region *region, const struct iod_message *message, const uint8_t *data)
{
	struct world *w = context;
	uint8_t sum = 0;

	MUST(region->kind == IOD_REMOTE && message->length > 0 && message->length <= region->most);
	MUST(message->offset <= region->size && message->length <= region->size - message->offset);
	for (uint64_t i = 0; data && i < message->length; i++)
		sum ^= data[i];
	MUST(w->messages < MESSAGES);
	w->message[w->messages].message = *message;
	w->message[w->messages++].write = data || sum;
	switch (w->ending ? 1 : below(w, 24)) {
	case 0: /* whoever is asked acts */
		if (w->submits)
			iod_cancel(&w->core, w->submitted[below(w, w->submits)].ticket);
		break;
	case 1: /* at once; perhaps another one */
	case 2:
	case 3:
		answer_message(w);
		break;
	case 4:
		submit(w);
		break;
	}
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

/* One vector that the kernel is given. */
static void inspect_vector(struct world *w, const struct fake_op *own, const struct iovec *iov, size_t count)
{
	const struct iod_op *op = &own->op;
	const struct iod_target *direct = &w->target[DIRECT];
	bool file = op->code == IOD_OP_READV || op->code == IOD_OP_WRITEV;

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
	for (size_t i = 0; i < count; i++) {
		const uint8_t *at = iov[i].iov_base, *past = at + iov[i].iov_len;
		bool good = iov[i].iov_len == 0;
		if (zeroes && iov[i].iov_len)
			good = at[0] == 0 && !memcmp(at, at + 1, iov[i].iov_len - 1);
		if (at >= arena->base && past <= arena->base + arena->pages * IOD_ARENA_PAGE)
			good = (registered < 0 || registered == arena->buffer_index) && (file || iod_is_packets(op) || op->flags & IOD_OP_NOWAIT);
		const struct iod_framing *f = asks && asks->target ? asks->target->framing : NULL;
		if (asks && asks->kind == IOD_R_PEEK)
			good |= at >= asks->data && past <= asks->data + asks->length;
		if (f)
			good |= (at >= (const uint8_t *)f && past <= (const uint8_t *)(f + 1)) ||
				(f->rest && at >= f->rest && past <= f->rest + f->rest_bytes);
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
}

/* What the kernel may be asked. */
static void inspect(void *context, const struct fake_op *own)
{
	struct world *w = context;
	const struct iod_op *op = &own->op;
	const struct iod_row *asks = iod_find(&w->core, op->user_data);

	if (op->code == IOD_OP_POLL) /* a piece of the arena is kept for a peer's sake only if it cannot be filled again */
		MUST(!asks->bounce || asks->filled);
	for (uint32_t k = 0; k < fake_vectors(op); k++) {
		size_t count;
		const struct iovec *iov = fake_vector(op, k, &count);
		inspect_vector(w, own, iov, count);
	}
	for (int t = STREAM; t <= FRAMED; t++)
		for (int out = 0; out < 2; out++) {
			unsigned n = 0;
			for (uint32_t i = 0; i < w->fake.count; i++) {
				const struct iod_op *each = &w->fake.op[i].op;
				bool is_out = each->code == IOD_OP_SENDMSG || each->code == IOD_OP_SEND_ZC ||
					      each->code == IOD_OP_SEND_PACKETS;
				bool is_in = each->code == IOD_OP_RECVMSG || each->code == IOD_OP_RECEIVE_PACKETS;
				n += each->fd == w->target[t].fd && (out ? is_out : is_in);
			}
			MUST(n <= 1);
		}
}

/* ---- a world ---- */

void world_begin(struct world *w)
{
	struct iod_hooks hooks = {.device = device, .remote = remote, .script = script, .script_cancel = script_cancel,
				  .revoked = revoked, .other = other, .context = w};
	static const uint64_t sizes[REGIONS] = {4 * PAGE, 8 * PAGE, 5000, 2 * PAGE, 256, 9000};
	uint8_t flags = byte(w);

	fake_init(&w->fake, flags & 1 ? FAKE_MOST / 2 : 1 + below(w, 4));
	w->fake.inspect = inspect;
	w->fake.context = w;
	MUST(iod_core_init(&w->core, &w->fake.backend, flags & 2 ? 16 << 10 : 256 << 10, &hooks) == 0);
	w->core.edges = world_edges;
	w->core.small[0] = flags & 4 ? 1024 : 0;
	w->core.small[1] = flags & 4 ? 512 : 0;
	w->memory = (struct iod_space){.kind = IOD_MEMORY, .name = "memory"};
	w->iommu = (struct iod_space){.kind = IOD_IOMMU, .name = "iommu", .next = &w->memory, .hook = hook, .owner = w,
				      .misses_wait = flags & 64};
	w->table = (struct iod_space){.kind = IOD_TABLE, .name = "table", .next = &w->memory, .hook = hook, .owner = w,
				      .table = iod_table_new(below(w, 6))};
	MUST(w->table.table);
	const uint8_t which = below(w, 3); /* iommu, table in its place, table and nothing above it but a gate */
	struct iod_space *pages = which ? &w->table : &w->iommu;
	w->hook = (struct iod_space){.kind = IOD_HOOK, .name = "hook", .next = pages, .hook = hook, .owner = w};
	w->lanes = (struct iod_space){.kind = IOD_LANES, .name = "lanes", .lanes = (uint8_t)((2u << below(w, 3)) - 1),
				      .next = flags & 32 ? &w->hook : pages};
	w->window = (struct iod_space){.kind = IOD_WINDOW, .name = "window", .last = IOVAS * PAGE,
				       .next = flags & 16 ? &w->lanes : flags & 32 ? &w->hook : pages};
	w->gate = (struct iod_space){.kind = IOD_GATE, .name = "gate", .next = which == 2   ? pages
							   : flags & 8 ? &w->memory
								       : &w->window};
	w->top = below(w, 2) ? &w->gate : w->gate.next;
	for (unsigned i = 0; i < REGIONS; i++) {
		w->region[i] = world_region(i == 4 ? IOD_DEVICE : i == 5 ? IOD_REMOTE : IOD_RAM, sizes[i]);
		place(w, i);
	}
	for (unsigned i = 0; i < IOVAS - 4; i++) {
		static const uint64_t where[] = {0,	   PAGE,     2 * PAGE, 3 * PAGE, 4 * PAGE, 5 * PAGE,
						 6 * PAGE, 7 * PAGE, 0x100008, 0x200000, UINT64_MAX - PAGE + 1, 13 * PAGE, 14 * PAGE};
		map_pages(w, i, 1, where[below(w, 13)], IOD_READ | IOD_WRITE);
	}
	describe_table(w);
	for (unsigned i = 0; i < IOVAS; i++)
		set_entry(w, i);
	if (below(w, 2)) { /* registered with the kernel */
		w->region[0]->buffer_index = 0;
		w->region[0]->buffer_core = w->core.number;
		w->core.arena.buffer_index = 1;
	}
	static const uint8_t kinds[TARGETS] = {IOD_T_FILE,   IOD_T_FILE,   IOD_T_STREAM, IOD_T_STREAM,
					       IOD_T_PACKET, IOD_T_PACKET, IOD_T_BUFFER, IOD_T_NULL,	 IOD_T_SCRIPT};
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
	w->target[FRAMED].max_segments = 16;
	MUST(w->target[FRAMED].framing = iod_framing_new(5000));
	w->target[BUFFER].region = world_region(IOD_RAM, 3000);
	for (int i = 0; i < PORTS; i++)
		w->port[i] = (struct iod_port){.core = &w->core, .space = w->top, .depth = flags & 128 ? 100 : 20};
}

static void all_has_ended(struct world *w)
{
	struct iod_core *core = &w->core;

	core->refused = NULL;

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

void world_drop(struct world *w)
{
	all_has_ended(w);
	for (size_t i = 0; i < sizeof world_reached / sizeof(uint64_t); i++)
		((uint64_t *)&world_reached)[i] += ((uint64_t *)&w->core.count)[i];
	iod_map_clear(&w->memory.map);
	iod_map_clear(&w->iommu.map);
	free(w->table.table);
	for (int i = 0; i < REGIONS; i++)
		iod_region_put(w->region[i]);
	iod_region_put(w->target[BUFFER].region);
	for (int i = 0; i < TARGETS; i++) {
		free(w->target[i].vector);
		free(w->target[i].batch[0].packet);
		iod_framing_free(w->target[i].framing);
		free(w->target[i].batch[1].packet);
	}
	iod_core_destroy(&w->core);
	MUST(regions_alive == 0);
}
