/* SPDX-License-Identifier: Apache-2.0
 *
 * uring_internal: the ring as its source files share it: uring_setup.c makes and ends it, uring_register.c keeps its
 * descriptor and buffer tables, uring_poll.c its poll ops and the descriptor for other people's loops, uring_sqe.c turns an
 * op into a submission entry, uring.c is the path that is hot.
 *
 * Invariants
 *  - sq_tail is ours, *k_sq_head the kernel's; a slot is free when sq_tail - *k_sq_head < sq_entries.
 *  - cq_head is ours, *k_cq_tail the kernel's.
 *  - One submission slot is always kept back for re-arming the wake poll (room() does not count it).
 *  - inflight counts ops of the caller that were queued and whose last completion was not yet reaped.
 */
#ifndef IOD_URING_INTERNAL_H
#define IOD_URING_INTERNAL_H

#include <sys/types.h>

#include "backend.h"
#include "uring_abi.h"

/* user_data from URING_UD_POLL on is the ring's own: slots of poll ops, and at the end completions that never reach the
 * caller. */
#define URING_UD_POLL (UINT64_MAX << 32)
#define URING_UD_CANCEL (UINT64_MAX - 1)
#define URING_UD_WAKE UINT64_MAX

#define URING_PACKETS 16

struct uring_poll {
	uint64_t user_data;
	int fd;
	uint32_t events;
	bool used;
};

struct iod_uring {
	struct iod_backend base;

	uint32_t *k_sq_head, *k_sq_tail, *k_sq_flags;
	uint32_t sq_mask, sq_entries;
	uint32_t sq_tail;      /* entries written */
	uint32_t sq_submitted; /* entries the kernel took */
	struct uring_sqe *sqes;

	uint32_t *k_cq_head, *k_cq_tail;
	uint32_t cq_mask;
	uint32_t cq_head;
	struct uring_cqe *cqes;

	uint32_t inflight;
	int fd;
	int wake_fd;
	int wake_flag; /* atomic: wake() was called and no wait has seen it yet */
	bool wake_armed;
	bool woken; /* a wake-up that reap met before a wait did */
	uint32_t deaf_us;

	/* Completions made here, for ops that this kernel does not know. */
	struct iod_cqe *local;
	uint32_t local_head, local_count;

	/* Packets that the next flush sends or receives. */
	struct iod_op packets[URING_PACKETS];
	uint32_t packet_ops;

	int never_cached; /* a descriptor that refused RWF_NOWAIT, or -1 */

	struct uring_poll *polls;
	uint32_t poll_slots;

	int event_fd; /* atomic: signalled with each completion once fileno() was called, else -1 */
	int epoll_fd; /* what fileno() gave away if not event_fd, else -1 */
	bool files_registered, buffers_registered;
	uint32_t features, setup_flags;
	uint64_t opcodes[4];

	void *ring_map, *sqe_map;
	size_t ring_size, sqe_size;
	pid_t pid;
};

static inline bool uring_supports(const struct iod_uring *u, unsigned opcode)
{
	return u->opcodes[opcode / 64] >> (opcode % 64) & 1;
}

int iod_uring_enter(struct iod_uring *u, uint32_t submit, uint32_t least, unsigned flags, const void *arg, size_t size);
int iod_uring_register(int fd, unsigned opcode, void *arg, unsigned count);

/* For tests: how many of the better sets of setup flags to pass over, as an older kernel would (0 to 4). */
extern unsigned iod_uring_first_choice;

extern const struct iod_backend_ops iod_uring_ops;
void iod_uring_destroy(struct iod_backend *);

int iod_uring_set_file(struct iod_backend *, int index, int fd);
int iod_uring_set_buffer(struct iod_backend *, int index, void *base, size_t length);
void iod_uring_drop_registrations(struct iod_uring *);

/* A poll op takes a slot (0 or -errno), gives it back (and gets the caller's user_data), is looked for. */
int iod_uring_poll_begin(struct iod_uring *, const struct iod_op *, uint64_t *id);
uint64_t iod_uring_poll_end(struct iod_uring *, uint64_t id);
uint64_t iod_uring_poll_id(const struct iod_uring *, uint64_t user_data);
/* The descriptor that is readable when event_fd or anything polled is; or -errno. */
int iod_uring_watch(struct iod_uring *, int event_fd);

/* Writes op as a submission entry; false when this kernel has no such operation (nothing was written then). */
bool iod_uring_fill_sqe(const struct iod_uring *, struct uring_sqe *, const struct iod_op *);

#endif
