/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "ring.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef __NR_io_uring_setup
#define __NR_io_uring_setup 425
#define __NR_io_uring_enter 426
#define __NR_io_uring_register 427
#endif

#define SETUP_SINGLE_ISSUER (1u << 12)
#define SETUP_DEFER_TASKRUN (1u << 13)
#define FEATURE_SINGLE_MMAP (1u << 0)
#define ENTER_GETEVENTS (1u << 0)
#define OFFSET_RINGS 0
#define OFFSET_SQES 0x10000000
enum { REGISTER_BUFFERS = 0, REGISTER_FILES = 2 };

struct sq_offsets {
	uint32_t head, tail, ring_mask, ring_entries, flags, dropped, array, reserved;
	uint64_t user_address;
};
struct cq_offsets {
	uint32_t head, tail, ring_mask, ring_entries, overflow, cqes, flags, reserved;
	uint64_t user_address;
};
struct parameters {
	uint32_t sq_entries, cq_entries, flags, sq_thread_cpu, sq_thread_idle, features, wq_fd, reserved[3];
	struct sq_offsets sq;
	struct cq_offsets cq;
};

_Static_assert(sizeof(struct peer_sqe) == 64, "the kernel's submission entry");
_Static_assert(sizeof(struct peer_cqe) == 16, "the kernel's completion entry");
_Static_assert(sizeof(struct parameters) == 120, "the kernel's io_uring_params");

static int enter(int fd, uint32_t submit, uint32_t least, uint32_t flags)
{
	return (int)syscall(__NR_io_uring_enter, fd, submit, least, flags, NULL, 0);
}

static int set_up(uint32_t entries, struct parameters *p)
{
	int fd;

	memset(p, 0, sizeof *p);
	p->flags = SETUP_SINGLE_ISSUER | SETUP_DEFER_TASKRUN;
	fd = (int)syscall(__NR_io_uring_setup, entries, p);
	if (fd < 0 && errno == EINVAL) { /* before 6.1 */
		memset(p, 0, sizeof *p);
		fd = (int)syscall(__NR_io_uring_setup, entries, p);
	}
	return fd < 0 ? -errno : fd;
}

int peer_ring_open(struct peer_ring *ring, uint32_t entries)
{
	struct parameters p;
	uint8_t *rings;
	size_t sq_size, cq_size;
	uint32_t *array;

	memset(ring, 0, sizeof *ring);
	ring->fd = set_up(entries, &p);
	if (ring->fd < 0)
		return ring->fd;
	if (!(p.features & FEATURE_SINGLE_MMAP)) {
		close(ring->fd);
		return -ENOSYS;
	}
	sq_size = p.sq.array + p.sq_entries * sizeof(uint32_t);
	cq_size = p.cq.cqes + p.cq_entries * sizeof(struct peer_cqe);
	ring->rings_size = sq_size > cq_size ? sq_size : cq_size;
	ring->sqes_size = p.sq_entries * sizeof(struct peer_sqe);
	ring->rings = mmap(NULL, ring->rings_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring->fd,
			   OFFSET_RINGS);
	ring->sqes = mmap(NULL, ring->sqes_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring->fd,
			  OFFSET_SQES);
	if (ring->rings == MAP_FAILED || ring->sqes == MAP_FAILED) {
		int error = -errno;

		peer_ring_close(ring);
		return error;
	}
	rings = ring->rings;
	ring->sq_tail = (_Atomic uint32_t *)(rings + p.sq.tail);
	ring->cq_head = (_Atomic uint32_t *)(rings + p.cq.head);
	ring->cq_tail = (_Atomic uint32_t *)(rings + p.cq.tail);
	ring->cqes = (struct peer_cqe *)(rings + p.cq.cqes);
	memcpy(&ring->sq_mask, rings + p.sq.ring_mask, sizeof ring->sq_mask);
	memcpy(&ring->cq_mask, rings + p.cq.ring_mask, sizeof ring->cq_mask);
	array = (uint32_t *)(rings + p.sq.array);
	for (uint32_t i = 0; i < p.sq_entries; i++)
		array[i] = i;
	return 0;
}

int peer_ring_register_file(struct peer_ring *ring, int fd)
{
	return syscall(__NR_io_uring_register, ring->fd, REGISTER_FILES, &fd, 1) < 0 ? -errno : 0;
}

int peer_ring_register_buffer(struct peer_ring *ring, void *base, size_t length)
{
	struct iovec iov = { base, length };

	return syscall(__NR_io_uring_register, ring->fd, REGISTER_BUFFERS, &iov, 1) < 0 ? -errno : 0;
}

struct peer_sqe *peer_ring_next(struct peer_ring *ring)
{
	struct peer_sqe *sqe = &ring->sqes[ring->tail++ & ring->sq_mask];

	ring->queued++;
	memset(sqe, 0, sizeof *sqe);
	return sqe;
}

int peer_ring_enter(struct peer_ring *ring, uint32_t least)
{
	atomic_store_explicit(ring->sq_tail, ring->tail, memory_order_release);
	for (;;) {
		int n = enter(ring->fd, ring->queued, least, ENTER_GETEVENTS);

		if (n >= 0) {
			ring->queued -= (uint32_t)n;
			if (!ring->queued)
				return 0;
		} else if (errno != EINTR && errno != EAGAIN && errno != EBUSY) {
			return -errno;
		}
	}
}

uint32_t peer_ring_ready(const struct peer_ring *ring)
{
	return atomic_load_explicit(ring->cq_tail, memory_order_acquire) -
	       atomic_load_explicit(ring->cq_head, memory_order_relaxed);
}

struct peer_cqe peer_ring_take(struct peer_ring *ring)
{
	uint32_t head = atomic_load_explicit(ring->cq_head, memory_order_relaxed);
	struct peer_cqe cqe = ring->cqes[head & ring->cq_mask];

	atomic_store_explicit(ring->cq_head, head + 1, memory_order_release);
	return cqe;
}

void peer_ring_close(struct peer_ring *ring)
{
	if (ring->rings && ring->rings != MAP_FAILED)
		munmap(ring->rings, ring->rings_size);
	if (ring->sqes && (void *)ring->sqes != MAP_FAILED)
		munmap(ring->sqes, ring->sqes_size);
	close(ring->fd);
	memset(ring, 0, sizeof *ring);
	ring->fd = -1;
}
