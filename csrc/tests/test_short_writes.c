/* SPDX-License-Identifier: Apache-2.0
 *
 * test_short_writes: bounced writes to a direct file, by a backend that cuts requests short wherever it likes.
 *
 *  - Afterwards the file is as it was, but for the payload, and ends where it did or where the payload ends.
 *  - Every byte of a device window was read once. */
#include <errno.h>
#include <string.h>

#include "check.h"
#include "fake_backend.h"
#include "xfer.h"

enum { BLOCK = 512, RAM = 64 << 10, WINDOW = 64 << 10, FILE_MOST = 64 << 10, DIRECT = 100, CACHED = 101, RUNS = 4000 };

const char *check_context = "short writes";
static uint64_t seed = 1;
static uint8_t file[FILE_MOST + WINDOW], expected[sizeof file], window[WINDOW], reads[WINDOW];
static uint64_t file_size;
static struct fake fake;
static struct iod_core core;
static uint32_t cut;

static uint32_t below(uint32_t n)
{
	return check_random(&seed) % n;
}

static int device(void *context, struct iod_region *region, uint64_t offset, unsigned width, bool write, uint64_t *value)
{
	(void)context;
	CHECK(!write && offset + width <= region->size);
	for (unsigned i = 0; i < width; i++)
		CHECK_EQ(reads[offset + i]++, 0);
	memcpy(value, window + offset, width);
	return 0;
}

static void inspect(void *context, const struct fake_op *own)
{
	(void)context;
	CHECK(own->op.code == IOD_OP_READV || own->op.code == IOD_OP_WRITEV);
	if (own->op.fd == CACHED)
		return;
	CHECK_EQ(own->op.fd, DIRECT);
	CHECK_EQ(own->op.offset % BLOCK, 0);
	CHECK_EQ(own->bytes % BLOCK, 0);
}

/* Between the file and the vector; what the kernel would do. */
static void transfer(const struct iod_op *op, uint64_t bytes)
{
	uint64_t at = op->offset;

	for (uint32_t i = 0; i < op->niov && bytes; i++) {
		uint64_t n = iod_min64(op->iov[i].iov_len, bytes);
		if (op->code == IOD_OP_READV)
			memcpy(op->iov[i].iov_base, file + at, n);
		else
			memcpy(file + at, op->iov[i].iov_base, n);
		at += n;
		bytes -= n;
	}
	if (op->code == IOD_OP_WRITEV && at > file_size)
		file_size = at;
}

static void answer(void)
{
	struct iod_op op = fake.op[0].op;
	uint64_t bytes = fake.op[0].bytes;

	CHECK(op.offset + bytes <= sizeof file);
	if (op.code == IOD_OP_READV)
		bytes = op.offset < file_size ? iod_min64(bytes, file_size - op.offset) : 0;
	switch (below(4)) {
	case 0:
		fake_end(&fake, 0, -EINTR);
		return;
	case 1: /* at a block */
		if (bytes > BLOCK)
			bytes = (1 + below((uint32_t)(bytes - 1) / BLOCK)) * (uint64_t)BLOCK;
		cut++;
		break;
	case 2: /* anywhere, if it may be */
		if (op.code == IOD_OP_WRITEV && bytes > BLOCK)
			bytes = BLOCK + below((uint32_t)bytes - BLOCK);
		else if (op.fd == CACHED)
			bytes = 1 + below((uint32_t)bytes);
		cut++;
		break;
	}
	fake_end(&fake, 0, (int32_t)bytes);
	transfer(&op, bytes);
}

static void run(struct iod_port *port, struct iod_target *target, const uint8_t *ram)
{
	struct iod_segment list[6];
	uint32_t count = 1 + below(6);
	uint64_t at = below(64), ticket, position = below(20) * 256 + below(3) * 100;
	struct iod_request request = {.kind = IOD_R_TRANSFER, .direction = IOD_FROM_MEMORY, .port = port, .target = target,
				      .list = list, .count = count, .position = position, .user = &seed};
	struct iod_row *row;

	memset(reads, 0, sizeof reads);
	file_size = below(3) ? below(40) * 256 + below(3) * 50 : FILE_MOST;
	memset(file, 0, sizeof file);
	for (uint64_t i = 0; i < file_size; i++)
		file[i] = (uint8_t)below(256);
	memcpy(expected, file, sizeof file);
	uint64_t end = position;
	for (uint32_t i = 0; i < count; i++) {
		uint64_t length = below(2) ? 1 + below(3000) : (1 + below(8)) * (uint64_t)BLOCK;
		bool memory = below(3) == 0;
		list[i] = (struct iod_segment){(memory ? 0 : RAM) + at, length};
		memcpy(expected + end, (memory ? ram : window) + at, length);
		at += length + below(2) * below(50);
		end += length;
	}
	CHECK_EQ(iod_submit(&core, &request, &ticket), 0);
	for (int steps = 0; !(row = iod_take_done(&core)); steps++) {
		CHECK(steps < 1000);
		iod_core_step(&core);
		if (fake.count)
			answer();
		iod_core_reap(&core, 64);
	}
	CHECK_EQ(row->status, IOD_OK);
	CHECK_EQ(row->moved, end - position);
	iod_row_free(&core, row);
	if (end < file_size)
		end = file_size;
	CHECK_EQ(file_size, end);
	CHECK(!memcmp(file, expected, sizeof file));
	CHECK_EQ(core.arena.used, 0);
	CHECK_EQ(target->writers, NULL);
}

static void dropped(struct iod_region *region)
{
	(void)region;
}

int main(void)
{
	static uint8_t ram[RAM] __attribute__((aligned(4096)));
	struct iod_hooks hooks = {.device = device};
	struct iod_region memory = {.kind = IOD_RAM, .buffer_index = -1, .references = 1, .host = ram, .size = RAM,
				    .free = dropped};
	struct iod_region registers = {.kind = IOD_DEVICE, .buffer_index = -1, .references = 1, .size = WINDOW,
				       .free = dropped};
	struct iod_space space = {.kind = IOD_MEMORY, .name = "memory"};
	struct iod_target target = {.kind = IOD_T_FILE, .fd = DIRECT, .buffered_fd = CACHED, .file_index = -1,
				    .memory_alignment = 4, .offset_alignment = BLOCK, .max_segments = 1024,
				    .max_bytes = IOD_MAX_IO, .direct = true};

	for (uint32_t i = 0; i < RAM; i++)
		ram[i] = (uint8_t)below(256);
	for (uint32_t i = 0; i < WINDOW; i++)
		window[i] = (uint8_t)below(256);
	CHECK_EQ(iod_map_insert(&space.map, 0, RAM - 1, 0, &memory, IOD_READ | IOD_WRITE), 0);
	CHECK_EQ(iod_map_insert(&space.map, RAM, RAM + WINDOW - 1, 0, &registers, IOD_READ | IOD_WRITE), 0);
	for (int small = 0; small < 2; small++) {
		fake_init(&fake, 8);
		fake.inspect = inspect;
		CHECK_EQ(iod_core_init(&core, &fake.backend, small ? 16 << 10 : 256 << 10, &hooks), 0);
		struct iod_port port = {.core = &core, .space = &space, .depth = 4};
		for (int i = 0; i < RUNS; i++)
			run(&port, &target, ram);
		iod_core_destroy(&core);
	}
	CHECK(cut > RUNS);
	iod_map_clear(&space.map);
	printf("test_short_writes: ok\n");
	return 0;
}
