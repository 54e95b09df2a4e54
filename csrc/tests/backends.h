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
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../backend.h"
#include "../uring_internal.h"
#include "check.h"

#define MS 1000000ll
#define PAGE 4096u

const char *check_context = "backend";

enum variant { URING, URING_COOP, URING_OLD, THREADS_1, THREADS_4, VARIANTS };

static const char *const variant_names[VARIANTS] = {
	"uring", "uring without DEFER_TASKRUN", "uring without flags", "threads (1)", "threads (4)",
};

static inline bool variant_is_uring(enum variant v)
{
	return v < THREADS_1;
}

static enum variant variant; /* the one under test */

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

static inline int temporary_file(size_t size)
{
	int fd = open(".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (fd < 0) {
		char name[] = "/tmp/iod-test-XXXXXX";
		fd = mkstemp(name);
		unlink(name);
	}
	CHECK(fd >= 0);
	for (size_t at = 0; at < size; at += PAGE) {
		unsigned char page[PAGE];
		memset(page, (int)(at / PAGE + 1), sizeof page);
		CHECK_EQ(write(fd, page, sizeof page), sizeof page);
	}
	return fd;
}

static inline struct iovec vec(void *base, size_t length)
{
	return (struct iovec){base, length};
}

static inline struct iod_op rw(int code, int fd, const struct iovec *iov, uint32_t niov, uint64_t offset)
{
	return (struct iod_op){.code = (uint8_t)code, .fd = fd, .iov = iov, .niov = niov, .offset = offset};
}

static inline struct iod_op message(int code, int fd, struct msghdr *m)
{
	return (struct iod_op){.code = (uint8_t)code, .fd = fd, .msg = m};
}

static inline struct msghdr header(struct iovec *iov, size_t niov)
{
	return (struct msghdr){.msg_iov = iov, .msg_iovlen = niov};
}

static inline void stream_pair(int s[2])
{
	CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, s), 0);
}

static inline void close_pair(int s[2])
{
	close(s[0]);
	close(s[1]);
}

struct test {
	const char *name;
	void (*run)(struct iod_backend *);
	uint32_t entries, inflight;
};

#define TEST(name, entries, inflight) {#name, name, entries, inflight}

/* Each test gets a backend of its own, of every kind. */
static inline int run_tests(const char *program, const struct test *tests, size_t count)
{
	static char context[100];
	check_context = context;
	setvbuf(stdout, NULL, _IONBF, 0);
	for (variant = 0; variant < VARIANTS; variant++) {
		if (!variant_works(variant)) {
			printf("%s: %s: not on this host\n", program, variant_names[variant]);
			continue;
		}
		for (size_t i = 0; i < count; i++) {
			snprintf(context, sizeof context, "%s: %s", variant_names[variant], tests[i].name);
			struct iod_backend *b = variant_create(variant, tests[i].entries, tests[i].inflight);
			tests[i].run(b);
			b->ops->destroy(b);
		}
		printf("%s: %s: ok\n", program, variant_names[variant]);
	}
	return 0;
}

#endif
