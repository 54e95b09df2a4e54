/* SPDX-License-Identifier: Apache-2.0
 *
 * uring_setup: makes and ends a ring, and finds out what the kernel's io_uring can do.
 *
 * Invariants
 *  - The best set of setup flags that the kernel takes is used; EINVAL, and only that, tries the next.
 *  - A ring is accepted only if no completion can be dropped (NODROP) and a wait can be bounded (EXT_ARG): kernel 5.11.
 *  - The ring's memory is not inherited over fork: a child that touched it would take its parent's completions.
 *  - destroy gives up registered descriptors and pinned buffers before it returns, not when the kernel gets to it.
 *    The ring's own memory only the kernel can give back, some time after the close: while it may still do so, a new
 *    ring that would exceed RLIMIT_MEMLOCK waits for that instead of being refused.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "spin.h"
#include "uring_internal.h"

#define REQUIRED (URING_FEAT_SINGLE_MMAP | URING_FEAT_NODROP | URING_FEAT_EXT_ARG)
#define REPORTED (URING_SETUP_SINGLE_ISSUER | URING_SETUP_DEFER_TASKRUN | URING_SETUP_TASKRUN_FLAG | URING_SETUP_COOP_TASKRUN)
#define MIN_ENTRIES 8u
#define MAX_ENTRIES 32768u /* the kernel's own bound */
/* After a close, until the ring's memory no longer counts: measured 1 to 40 ms. */
#define GIVEN_BACK_NS 200000000ll
#define LOOK_AGAIN_NS 500000ll

/* Best first: kernels 6.1, 6.0, 5.19, 5.18, 5.6. */
static const uint32_t setup_choices[] = {
	URING_SETUP_SUBMIT_ALL | URING_SETUP_SINGLE_ISSUER | URING_SETUP_DEFER_TASKRUN | URING_SETUP_TASKRUN_FLAG,
	URING_SETUP_SUBMIT_ALL | URING_SETUP_SINGLE_ISSUER | URING_SETUP_COOP_TASKRUN | URING_SETUP_TASKRUN_FLAG,
	URING_SETUP_SUBMIT_ALL | URING_SETUP_COOP_TASKRUN | URING_SETUP_TASKRUN_FLAG,
	URING_SETUP_SUBMIT_ALL,
	0,
};

unsigned iod_uring_first_choice;

int iod_uring_register(int fd, unsigned opcode, void *arg, unsigned count)
{
	long r = syscall(IOD_SYS_IO_URING_REGISTER, fd, opcode, arg, count);
	return r < 0 ? -errno : (int)r;
}

static uint32_t round_up_pow2(uint32_t v)
{
	uint32_t p = 1;
	while (p < v)
		p <<= 1;
	return p;
}

/* When this process last closed an engine's ring; 0: never. */
static int64_t last_closed;

static void ring_close(int fd)
{
	if (fd < 0)
		return;
	close(fd);
	__atomic_store_n(&last_closed, iod_now_ns(), __ATOMIC_RELAXED);
}

static int ring_try(struct uring_params *p, uint32_t entries, uint32_t completions)
{
	for (size_t i = iod_uring_first_choice; i < sizeof setup_choices / sizeof setup_choices[0]; i++) {
		memset(p, 0, sizeof *p);
		p->flags = setup_choices[i] | URING_SETUP_CQSIZE | URING_SETUP_CLAMP;
		p->cq_entries = completions;
		long fd = syscall(IOD_SYS_IO_URING_SETUP, entries, p);
		if (fd >= 0)
			return (int)fd;
		if (errno != EINVAL)
			break;
	}
	return -errno;
}

static int ring_open(struct uring_params *p, uint32_t entries, uint32_t completions)
{
	const struct timespec pause = {.tv_nsec = LOOK_AGAIN_NS};
	for (;;) {
		int64_t closed = __atomic_load_n(&last_closed, __ATOMIC_RELAXED), now = iod_now_ns();
		int r = ring_try(p, entries, completions);
		if (r != -ENOMEM || !closed || now - closed > GIVEN_BACK_NS)
			return r;
		nanosleep(&pause, NULL);
	}
}

static void read_opcodes(int fd, uint64_t opcodes[4])
{
	struct uring_probe probe = {0};
	memset(opcodes, 0, 4 * sizeof opcodes[0]);
	if (iod_uring_register(fd, URING_REGISTER_PROBE, &probe, 256) < 0)
		return;
	for (unsigned i = 0; i < probe.ops_len; i++)
		if (probe.ops[i].flags & URING_PROBE_SUPPORTED)
			opcodes[i / 64] |= 1ull << (i % 64);
}

void iod_uring_probe(struct iod_uring_probe *out)
{
	struct uring_params p;
	memset(out, 0, sizeof *out);
	int fd = ring_open(&p, MIN_ENTRIES, MIN_ENTRIES * 2);
	if (fd < 0) {
		out->error = -fd;
		return;
	}
	out->features = p.features;
	out->setup_flags = p.flags & REPORTED;
	if ((p.features & REQUIRED) != REQUIRED)
		out->error = ENOSYS;
	read_opcodes(fd, out->opcodes);
	close(fd);
}

static void *map_ring(size_t size, int fd, off_t offset)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, offset);
	if (p == MAP_FAILED)
		return NULL;
	madvise(p, size, MADV_DONTFORK);
	return p;
}

static int ring_map(struct iod_uring *u, const struct uring_params *p)
{
	size_t sq = p->sq_off.array + p->sq_entries * sizeof(uint32_t);
	size_t cq = p->cq_off.cqes + p->cq_entries * sizeof(struct uring_cqe);
	u->ring_size = sq > cq ? sq : cq;
	u->sqe_size = p->sq_entries * sizeof(struct uring_sqe);
	u->ring_map = map_ring(u->ring_size, u->fd, (off_t)URING_OFF_SQ_RING);
	u->sqe_map = map_ring(u->sqe_size, u->fd, (off_t)URING_OFF_SQES);
	if (!u->ring_map || !u->sqe_map)
		return -errno;

	char *ring = u->ring_map;
	u->k_sq_head = (uint32_t *)(void *)(ring + p->sq_off.head);
	u->k_sq_tail = (uint32_t *)(void *)(ring + p->sq_off.tail);
	u->k_sq_flags = (uint32_t *)(void *)(ring + p->sq_off.flags);
	u->k_cq_head = (uint32_t *)(void *)(ring + p->cq_off.head);
	u->k_cq_tail = (uint32_t *)(void *)(ring + p->cq_off.tail);
	u->cqes = (struct uring_cqe *)(void *)(ring + p->cq_off.cqes);
	u->sqes = u->sqe_map;
	u->sq_entries = p->sq_entries;
	u->sq_mask = p->sq_entries - 1;
	u->cq_mask = p->cq_entries - 1;
	/* Slots are used in ring order, so the indirection is the identity, once and for all. */
	uint32_t *array = (uint32_t *)(void *)(ring + p->sq_off.array);
	for (uint32_t i = 0; i < p->sq_entries; i++)
		array[i] = i;
	return 0;
}

static int ring_make(struct iod_uring *u, uint32_t entries, uint32_t inflight)
{
	struct uring_params p;
	/* Room in the completion ring for two completions an op (zero-copy sends) and the ring's own; what does not fit
	 * is kept by the kernel, which costs time but nothing else. */
	/* Without the last one, which is the engine's poll: a power of two of transfers stays one. */
	uint32_t usual = inflight > 1 ? inflight - 1 : 1;
	uint32_t completions = round_up_pow2(usual < MAX_ENTRIES ? usual * 2 : MAX_ENTRIES * 2);
	uint32_t slots = entries < MIN_ENTRIES ? MIN_ENTRIES : round_up_pow2(entries < MAX_ENTRIES ? entries : MAX_ENTRIES);
	if (completions < slots * 2)
		completions = slots * 2;

	u->fd = ring_open(&p, slots, completions);
	if (u->fd < 0)
		return u->fd;
	if ((p.features & REQUIRED) != REQUIRED)
		return -ENOSYS;
	u->features = p.features;
	u->setup_flags = p.flags & REPORTED;
	int r = ring_map(u, &p);
	if (r < 0)
		return r;
	read_opcodes(u->fd, u->opcodes);

	u->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (u->wake_fd < 0)
		return -errno;
	u->local = calloc(inflight, sizeof *u->local);
	if (!u->local)
		return -ENOMEM;
	return iod_uring_ops.flush(&u->base); /* arms the wake poll */
}

struct iod_backend *iod_uring_create(uint32_t entries, uint32_t inflight, int *err)
{
	struct iod_uring *u = calloc(1, sizeof *u);
	if (!u || !entries || !inflight) {
		*err = u ? -EINVAL : -ENOMEM;
		free(u);
		return NULL;
	}
	u->base.ops = &iod_uring_ops;
	u->base.max_inflight = inflight;
	u->fd = u->wake_fd = u->event_fd = u->epoll_fd = u->never_cached = -1;
	u->pid = getpid();
	*err = ring_make(u, entries, inflight);
	if (*err < 0) {
		iod_uring_destroy(&u->base);
		return NULL;
	}
	memset(&u->base.stats, 0, sizeof u->base.stats);
	return &u->base;
}

static void close_fd(int fd)
{
	if (fd >= 0)
		close(fd);
}

void iod_uring_destroy(struct iod_backend *b)
{
	struct iod_uring *u = (struct iod_uring *)b;
	bool own = u->pid == getpid(); /* in a fork's child the mappings are gone and the ring is its parent's */
	if (own) {
		iod_uring_drop_registrations(u);
		if (u->sqe_map)
			munmap(u->sqe_map, u->sqe_size);
		if (u->ring_map)
			munmap(u->ring_map, u->ring_size);
	}
	ring_close(u->fd);
	close_fd(u->wake_fd);
	close_fd(u->event_fd);
	close_fd(u->epoll_fd);
	free(u->polls);
	free(u->local);
	free(u);
}
