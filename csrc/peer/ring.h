/* SPDX-License-Identifier: Apache-2.0
 *
 * ring: the least io_uring that the benchmark peers need, on purpose not the core's: a peer that shares code with
 * what it is compared to shares its mistakes.
 *
 * Invariants
 *  - A ring is made, used and closed by one thread (SINGLE_ISSUER | DEFER_TASKRUN where the kernel has them), so every
 *    wait enters the kernel with GETEVENTS.
 *  - There is always room: no more than `entries` requests are in flight.
 */
#ifndef PEER_RING_H
#define PEER_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* As in the kernel's ABI. */
enum {
	PEER_OP_READV = 1,
	PEER_OP_READ_FIXED = 4,
	PEER_OP_READ = 22,
	PEER_OP_READV_FIXED = 60,
};
#define PEER_SQE_FIXED_FILE 1u

struct peer_sqe {
	uint8_t opcode, flags;
	uint16_t ioprio;
	int32_t fd;
	uint64_t position;
	uint64_t address;
	uint32_t length;
	uint32_t rw_flags;
	uint64_t user_data;
	uint16_t buffer;
	uint16_t personality;
	uint32_t file;
	uint64_t pad[2];
};

struct peer_cqe {
	uint64_t user_data;
	int32_t res;
	uint32_t flags;
};

struct peer_ring {
	int fd;
	void *rings;
	size_t rings_size;
	struct peer_sqe *sqes;
	size_t sqes_size;
	struct peer_cqe *cqes;
	_Atomic uint32_t *sq_tail, *cq_head, *cq_tail;
	uint32_t sq_mask, cq_mask;
	uint32_t tail;	 /* ours: not yet shown to the kernel */
	uint32_t queued; /* shown at the next enter */
};

/* 0 or -errno.  entries: the most requests in flight. */
int peer_ring_open(struct peer_ring *, uint32_t entries);
int peer_ring_register_file(struct peer_ring *, int fd);
int peer_ring_register_buffer(struct peer_ring *, void *base, size_t length);
/* A cleared entry to fill in. */
struct peer_sqe *peer_ring_next(struct peer_ring *);
/* Submits what was queued and waits for `least` completions.  0 or -errno. */
int peer_ring_enter(struct peer_ring *, uint32_t least);
uint32_t peer_ring_ready(const struct peer_ring *);
/* Takes one completion; only when one is ready. */
struct peer_cqe peer_ring_take(struct peer_ring *);
void peer_ring_close(struct peer_ring *);

#endif
