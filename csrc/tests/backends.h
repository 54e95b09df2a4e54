/* SPDX-License-Identifier: Apache-2.0
 *
 * backends: every way to get a backend on this kernel, so that each promise is tested against all of them, and a few
 * words to drive one.
 *
 * Invariants
 *  - queue_op never fails: a test that fills a backend on purpose calls it itself.
 *  - A wait that a signal may have ended is repeated here, as every caller has to.
 */
#ifndef IOD_TESTS_BACKENDS_H
#define IOD_TESTS_BACKENDS_H

#include <errno.h>
#include <poll.h>
#include <stdbool.h>

#include "../backend.h"
#include "../uring_internal.h"
#include "check.h"

enum variant { URING, URING_COOP, URING_OLD, THREADS_1, THREADS_4, VARIANTS };

static const char *const variant_names[VARIANTS] = {
	"uring", "uring without DEFER_TASKRUN", "uring without flags", "threads (1)", "threads (4)",
};

static inline bool variant_is_uring(enum variant v)
{
	return v < THREADS_1;
}

static inline struct iod_backend *variant_create(enum variant v, uint32_t entries, uint32_t inflight)
{
	static const unsigned choices[] = {[URING_COOP] = 1, [URING_OLD] = 4, [THREADS_4] = 0};
	int err = 1;
	struct iod_backend *b;
	iod_uring_first_choice = choices[v];
	if (variant_is_uring(v))
		b = iod_uring_create(entries, inflight, &err);
	else
		b = iod_threads_create(v == THREADS_1 ? 1 : 4, inflight, &err);
	iod_uring_first_choice = 0;
	CHECK_EQ(err, 0);
	CHECK(b != NULL);
	return b;
}

static inline bool variant_works(enum variant v)
{
	struct iod_uring_probe probe;
	iod_uring_probe(&probe);
	return !variant_is_uring(v) || !probe.error;
}

static inline void queue_op(struct iod_backend *b, struct iod_op op)
{
	CHECK_EQ(b->ops->queue(b, &op), 0);
}

static inline int wait_for(struct iod_backend *b, uint32_t least, int64_t timeout_ns, uint64_t spin_ns)
{
	int r;
	do
		r = b->ops->wait(b, least, timeout_ns, spin_ns);
	while (r == -EINTR);
	return r;
}

/* Waits for one completion and reaps exactly that. */
static inline struct iod_cqe reap_one(struct iod_backend *b)
{
	struct iod_cqe c = {0};
	do
		CHECK_EQ(wait_for(b, 1, 5000000000ll, 0), 0); /* which a wake-up from earlier may end */
	while (!b->ops->reap(b, &c, 1));
	return c;
}

static inline int32_t run_op(struct iod_backend *b, struct iod_op op)
{
	op.user_data = 4711;
	queue_op(b, op);
	struct iod_cqe c = reap_one(b);
	CHECK_EQ(c.user_data, 4711);
	CHECK_EQ(c.flags, 0);
	return c.res;
}

static inline bool readable(int fd, int timeout_ms)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};
	return poll(&p, 1, timeout_ms) == 1;
}

static inline bool quiet(struct iod_backend *b)
{
	struct iod_cqe c;
	return wait_for(b, 1, 3000000, 0) == -ETIME && b->ops->reap(b, &c, 1) == 0;
}

#endif
