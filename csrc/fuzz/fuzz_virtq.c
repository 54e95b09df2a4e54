/* SPDX-License-Identifier: Apache-2.0
 *
 * fuzz_virtq: bytes drive both sides of a virtqueue - a driver that is mostly sensible and sometimes not, a device that
 * answers in any order, an IOMMU whose translations come late and go away.
 *
 * What is asserted, whatever the bytes say:
 *  - Pop gives each chain once until it was answered, within the room of the batch, with segments that add up to the payload
 *    that it tells.
 *  - Memory that is not the guest's, or that it may not write, is as it was.
 *  - After a death, whatever became of the area of chains in flight, all of this holds again.
 *  - What was popped can be answered, once; when all is answered and every translation is there, nothing is in flight.
 *  - At the end nothing is left allocated. */
#include "fuzz.h"
#include "virtq.h"

#include <errno.h>
#include <string.h>

enum { PAGE = 4096, PAGES = 16, RAM_BASE = 0x10000, ROM_BASE = 0x40000, SEGMENTS = 2 * IOD_VIRTQ_DESCRIPTORS, REQUESTS = 8 };
#define RING_BYTES (4 * PAGE)

struct world {
	struct fuzz_script script;
	struct iod_region ram, rom, top;
	struct iod_space memory, iommu, *space;
	struct iod_virtq q;
	bool open, packed;
	uint16_t available, lap; /* the driver's */
	uint8_t *area; /* of chains in flight */
	uint64_t area_bytes;
	uint32_t outstanding[IOD_VIRTQ_LARGEST / 64 + 1];
	uint16_t waiting[4096];
	uint32_t waits;
	uint64_t header[REQUESTS * 16];
	uint64_t columns[REQUESTS * 8 + 2 * SEGMENTS + 64];
};

static struct {
	uint64_t popped, malformed, broken, missed, answered, indirect, deaths, replayed;
} reached;

static uint8_t byte(struct world *w)
{
	return fuzz_byte(&w->script);
}
static uint32_t below(struct world *w, uint32_t n)
{
	return fuzz_below(&w->script, n);
}

/* ---- memory ---- */

static enum iod_verdict miss(struct iod_space *space, uint64_t address, uint64_t *length, uint8_t access)
{
	(void)space;
	(void)address;
	(void)length;
	(void)access;
	reached.missed++;
	return IOD_PENDING;
}

static void map(struct world *w, uint32_t page)
{
	uint64_t first = RAM_BASE + (uint64_t)page * PAGE;
	if (iod_map_insert(&w->iommu.map, first, first + PAGE - 1, first, NULL, IOD_READ | IOD_WRITE) == 0)
		w->iommu.change++;
}

static void map_all(struct world *w)
{
	uint64_t removed;
	MUST(iod_map_remove(&w->iommu.map, 0, UINT64_MAX, &removed) == 0);
	MUST(iod_map_insert(&w->iommu.map, 0, UINT64_MAX, 0, NULL, IOD_READ | IOD_WRITE) == 0);
	w->iommu.change++;
}

static void begin(struct world *w)
{
	struct iod_region *regions[] = {&w->ram, &w->rom, &w->top};
	uint64_t sizes[] = {PAGES * PAGE, PAGE, PAGE}, bases[] = {RAM_BASE, ROM_BASE, UINT64_MAX - PAGE + 1};
	w->memory = (struct iod_space){.kind = IOD_MEMORY, .name = "memory"};
	w->iommu = (struct iod_space){.kind = IOD_IOMMU, .name = "iommu", .next = &w->memory, .misses_wait = true, .hook = miss};
	for (int i = 0; i < 3; i++) {
		*regions[i] = (struct iod_region){.kind = i == 1 ? IOD_ROM : IOD_RAM, .buffer_index = -1, .references = 1,
						  .size = sizes[i]};
		/* On its own, so that a sanitizer sees what is beyond. */
		MUST(posix_memalign((void **)&regions[i]->host, PAGE, sizes[i]) == 0);
		memset(regions[i]->host, i == 1 ? 0x55 : 0, sizes[i]);
		MUST(iod_map_insert(&w->memory.map, bases[i], bases[i] + (sizes[i] - 1), 0, regions[i],
				    i == 1 ? IOD_READ : IOD_READ | IOD_WRITE) == 0);
	}
	w->space = below(w, 3) ? &w->memory : &w->iommu;
}

/* ---- the driver ---- */

static uint64_t address_of(struct world *w)
{
	switch (below(w, 24)) {
	case 0:
		return ROM_BASE + below(w, 256);
	case 1:
		return UINT64_MAX - below(w, 64);
	case 2:
		return RAM_BASE + PAGES * PAGE - below(w, 64);
	case 3:
		return 0;
	default: /* behind the ring */
		return RAM_BASE + RING_BYTES + ((uint64_t)byte(w) << 8 | byte(w)) % (PAGES * PAGE - RING_BYTES - 512);
	}
}

static uint32_t length_of(struct world *w)
{
	static const uint32_t odd[] = {0, UINT32_MAX, 1u << 31, 65535, PAGES * PAGE};
	return below(w, 16) ? below(w, 200) + 1 : odd[below(w, 5)];
}

static uint8_t *at(struct world *w, uint64_t address)
{
	return w->ram.host + (address - RAM_BASE);
}

static void put(struct world *w, uint64_t address, const void *data, size_t n)
{
	memcpy(at(w, address), data, n);
}

struct entry {
	uint64_t address;
	uint32_t length;
	uint16_t a, b; /* split: flags, next; packed: id, flags */
};

static void write_entry(struct world *w, uint64_t where, uint64_t address, uint32_t length, uint16_t flags, uint16_t next,
			uint16_t id)
{
	struct entry e = {address, length, w->packed ? id : flags, w->packed ? flags : next};
	put(w, where, &e, sizeof e);
}

/* A chain as virtio-blk has them, give or take. */
static void offer(struct world *w)
{
	uint32_t size = w->q.size, parts = 1 + below(w, size < 6 ? size : 6), writable = below(w, parts + 1);
	uint16_t head = (uint16_t)below(w, size);
	bool indirect = below(w, 3) == 0;
	uint64_t table = RAM_BASE + RING_BYTES + 512u * below(w, 16);
	uint16_t ring_flags = 0;

	if (indirect)
		reached.indirect++;
	uint16_t at_ring = w->available;
	bool lap = w->lap;
	for (uint32_t i = 0; i < (indirect ? 1 : parts); i++) {
		uint16_t slot = w->packed ? at_ring : (uint16_t)((head + i) % size);
		uint16_t flags = i + 1 < parts && !indirect ? IOD_DESCRIPTOR_NEXT : 0;
		if (i >= writable)
			flags |= IOD_DESCRIPTOR_WRITE;
		if (below(w, 40) == 0)
			flags ^= (uint16_t)(1u << below(w, 16));
		if (w->packed)
			flags = (uint16_t)((flags & ~0x8080) | (lap ? 0x80 : 0x8000));
		uint16_t next = (uint16_t)(below(w, 60) ? (slot + 1) % size : below(w, 256));
		uint64_t where = w->q.part[IOD_VIRTQ_TABLE].address + 16 * (uint64_t)slot;
		if (indirect)
			write_entry(w, where, table, 16 * parts + !below(w, 30), (uint16_t)(ring_flags | flags | IOD_DESCRIPTOR_INDIRECT),
				    next, head);
		else
			write_entry(w, where, address_of(w), length_of(w), flags, next, head);
		if (++at_ring == size && w->packed) {
			at_ring = 0;
			lap = !lap;
		}
	}
	for (uint32_t i = 0; indirect && i < parts; i++) {
		uint16_t flags = (uint16_t)((i + 1 < parts ? IOD_DESCRIPTOR_NEXT : 0) | (i >= writable ? IOD_DESCRIPTOR_WRITE : 0));
		if (below(w, 40) == 0)
			flags ^= (uint16_t)(1u << below(w, 16));
		write_entry(w, table + 16 * i, address_of(w), length_of(w), flags, (uint16_t)(i + 1), head);
	}
	if (w->packed) {
		w->available = at_ring;
		w->lap = lap;
		return;
	}
	uint64_t driver = w->q.part[IOD_VIRTQ_DRIVER].address;
	put(w, driver + 4 + 2 * (uint64_t)(w->available % size), &head, 2);
	w->available++;
	put(w, driver + 2, &w->available, 2);
}

static void scribble(struct world *w)
{
	uint64_t where = RAM_BASE + ((uint64_t)byte(w) << 8 | byte(w)) % (RING_BYTES - 8);
	uint64_t value = (uint64_t)byte(w) << 8 | byte(w);
	put(w, where, &value, 1 + below(w, 8));
}

/* ---- the device ---- */

static void open_queue(struct world *w)
{
	static const uint32_t sizes[] = {1, 2, 4, 8, 16, 64, 128};
	w->packed = below(w, 2);
	struct iod_virtq *q = &w->q;
	*q = (struct iod_virtq){.space = w->space, .call_fd = -1, .kick_fd = -1, .error_fd = -1, .position_at = -1};
	q->size = sizes[below(w, 7)];
	q->flags = below(w, 4) | (w->packed ? IOD_VIRTQ_PACKED : 0);
	q->header = (uint32_t[]){0, 4, 16, 100}[below(w, 4)];
	q->trailer = (uint32_t[]){0, 1, 12, 128}[below(w, 4)];
	if (q->header >= 16)
		q->position_at = 8;
	uint64_t base = RAM_BASE;
	if (below(w, 16) == 0)
		base += below(w, 32); /* odd places: refused, or cut */
	q->part[IOD_VIRTQ_TABLE].address = base;
	q->part[IOD_VIRTQ_DRIVER].address = base + 2 * PAGE;
	q->part[IOD_VIRTQ_DEVICE].address = below(w, 16) ? base + 3 * PAGE : below(w, 2) ? ROM_BASE : base + 2 * PAGE;
	w->available = below(w, 8) ? 0 : (uint16_t)(65530 + below(w, 6));
	w->lap = true;
	if (w->packed) {
		w->available = 0;
		q->next = q->used_next = 0x8000;
	} else {
		q->next = q->used_next = w->available;
	}
	memset(w->ram.host, 0, RING_BYTES);
	put(w, RAM_BASE + 2 * PAGE + 2, &w->available, w->packed ? 0 : 2);
	if (below(w, 2)) {
		w->area_bytes = w->packed ? iod_packed_inflight_bytes(q->size) : iod_virtq_inflight_bytes(q->size);
		w->area = calloc(1, w->area_bytes); /* on its own, too */
		MUST(w->area);
		q->inflight = w->area;
	}
	w->open = iod_virtq_open(q) == 0;
	if (!w->open) {
		free(w->area);
		w->area = NULL;
	}
	memset(w->outstanding, 0, sizeof w->outstanding);
	w->waits = 0;
}

/* The front-end writes into the area, of which the version and the size stay. */
static void scribble_area(struct world *w)
{
	for (uint32_t n = below(w, 6); n; n--)
		w->area[12 + ((uint64_t)byte(w) << 8 | byte(w)) % (w->area_bytes - 12)] = byte(w);
}

static void close_queue(struct world *w)
{
	if (!w->open)
		return;
	reached.popped += w->q.popped;
	reached.malformed += w->q.malformed;
	reached.broken += w->q.broken != NULL;
	reached.replayed += w->q.replays;
	iod_virtq_close(&w->q);
	w->open = false;
	free(w->area);
	w->area = NULL;
}

/* Another process goes on with the ring, from what the front-end remembers of it. */
static void die(struct world *w)
{
	struct iod_virtq was = w->q, *q = &w->q;
	reached.deaths++;
	reached.replayed += q->replays;
	iod_virtq_close(q);
	*q = (struct iod_virtq){.space = was.space, .size = was.size, .flags = was.flags, .header = was.header,
				.trailer = was.trailer, .position_at = was.position_at, .inflight = w->area,
				.call_fd = -1, .kick_fd = -1, .error_fd = -1};
	for (int i = 0; i < IOD_VIRTQ_PARTS; i++)
		q->part[i].address = was.part[i].address;
	q->next = q->used_next = w->packed ? 0x8000 : w->available;
	if (w->area && below(w, 3) == 0)
		scribble_area(w);
	MUST(iod_virtq_open(q) == 0);
	memset(w->outstanding, 0, sizeof w->outstanding);
	w->waits = 0;
}

static bool flip(struct world *w, uint64_t id)
{
	w->outstanding[id / 32] ^= 1u << (id % 32);
	return w->outstanding[id / 32] >> (id % 32) & 1;
}

static void pop(struct world *w)
{
	uint64_t *c = w->columns;
	struct iod_chains out = {.id = c, .position = c + REQUESTS, .readable = c + 2 * REQUESTS, .writable = c + 3 * REQUESTS,
				 .first = (uint32_t *)(c + 4 * REQUESTS), .count = (uint32_t *)(c + 5 * REQUESTS),
				 .opcode = (uint32_t *)(c + 6 * REQUESTS), .direction = (uint8_t *)(c + 7 * REQUESTS),
				 .address = c + 8 * REQUESTS, .length = c + 8 * REQUESTS + SEGMENTS,
				 .header = (uint8_t *)w->header, .requests = REQUESTS, .segments = SEGMENTS};
	uint32_t limit = 1 + below(w, 2 * REQUESTS);
	int n = iod_virtq_pop(&w->q, &out, limit);
	if (n < 0) {
		MUST(n == -EAGAIN || n == -EPIPE);
		MUST(n != -EPIPE || w->q.broken);
		MUST(n != -EAGAIN || w->space == &w->iommu);
		return;
	}
	MUST((uint32_t)n == out.n && out.n <= REQUESTS && out.n <= limit && out.used <= SEGMENTS);
	for (uint32_t i = 0; i < out.n; i++) {
		uint64_t sum = 0;
		MUST(out.id[i] < w->q.size && flip(w, out.id[i]));
		MUST(out.first[i] <= SEGMENTS && out.count[i] <= SEGMENTS - out.first[i]);
		for (uint32_t k = 0; k < out.count[i]; k++) {
			MUST(out.length[out.first[i] + k] != 0);
			sum += out.length[out.first[i] + k];
		}
		MUST(sum == out.readable[i] + out.writable[i]);
		MUST(out.direction[i] == (out.writable[i] != 0));
		w->waiting[w->waits++] = (uint16_t)out.id[i];
	}
}

static void answer(struct world *w)
{
	uint8_t data[IOD_VIRTQ_TRAILER] = {0};
	if (!w->waits) {
		MUST(!iod_virtq_answer(&w->q, (uint64_t)byte(w) << 8, 0, data, 0) || w->q.size > 256);
		return;
	}
	uint32_t i = below(w, w->waits);
	uint16_t id = w->waiting[i];
	w->waiting[i] = w->waiting[--w->waits];
	memset(data, byte(w), sizeof data);
	MUST(iod_virtq_answer(&w->q, id, below(w, 2) ? UINT64_MAX / 2 : below(w, 200), data, below(w, w->q.trailer + 1)));
	MUST(!iod_virtq_answer(&w->q, id, 0, data, 0));
	MUST(!flip(w, id));
	reached.answered++;
	if (below(w, 3))
		iod_virtq_publish(&w->q);
}

static void act(struct world *w)
{
	uint64_t removed;
	if (!w->open)
		open_queue(w);
	if (!w->open)
		return;
	switch (below(w, 16)) {
	case 0 ... 4:
		offer(w);
		return;
	case 5 ... 7:
		pop(w);
		return;
	case 8 ... 10:
		answer(w);
		return;
	case 11:
		if (below(w, 4) == 0)
			scribble(w);
		if (w->area && below(w, 8) == 0)
			scribble_area(w);
		return;
	case 12:
		if (iod_virtq_arm(&w->q))
			MUST(iod_virtq_available(&w->q) || w->q.broken);
		return;
	case 13:
		if (iod_virtq_available(&w->q) && w->q.resolved) {
			struct iod_watch watch = w->q.format->watch(&w->q);
			MUST(!watch.word || *(const volatile uint16_t *)watch.word <= UINT16_MAX); /* it is there */
		}
		iod_virtq_retry(&w->q);
		return;
	case 14:
		if (below(w, 2)) {
			map(w, below(w, PAGES));
		} else {
			uint64_t first = RAM_BASE + (uint64_t)below(w, PAGES) * PAGE;
			if (iod_map_remove(&w->iommu.map, first, first + PAGE - 1, &removed) == 0)
				w->iommu.change++;
		}
		return;
	default:
		if (below(w, 4) == 0)
			die(w);
		else if (below(w, 8) == 0)
			close_queue(w);
	}
}

static void end(struct world *w)
{
	if (w->open) {
		map_all(w);
		while (w->waits)
			answer(w);
		iod_virtq_retry(&w->q);
		iod_virtq_publish(&w->q);
		MUST(w->q.broken || (w->q.in_flight == 0 && w->q.answered == 0 && w->q.used_count == 0));
		close_queue(w);
	}
	for (uint32_t i = 0; i < PAGE; i++)
		MUST(w->rom.host[i] == 0x55);
	free(w->area);
	iod_map_clear(&w->memory.map);
	iod_map_clear(&w->iommu.map);
	free(w->ram.host);
	free(w->rom.host);
	free(w->top.host);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct world *w = calloc(1, sizeof *w);
	MUST(w);
	w->script = (struct fuzz_script){data, data + size};
	begin(w);
	while (w->script.at < w->script.end)
		act(w);
	end(w);
	free(w);
	return 0;
}

const char fuzz_name[] = "fuzz_virtq";
void fuzz_report(void)
{
	printf("fuzz_virtq: %llu chains, %llu malformed, %llu indirect, %llu queues broken, %llu misses, %llu answers, "
	       "%llu deaths, %llu chains in flight at them\n",
	       (unsigned long long)reached.popped, (unsigned long long)reached.malformed,
	       (unsigned long long)reached.indirect, (unsigned long long)reached.broken, (unsigned long long)reached.missed,
	       (unsigned long long)reached.answered, (unsigned long long)reached.deaths,
	       (unsigned long long)reached.replayed);
}
