/* SPDX-License-Identifier: Apache-2.0
 *
 * uring: the io_uring backend's hot path: queue, flush, reap, wait, wake.
 *
 * Invariants
 *  - One batch costs one system call where the kernel allows it: wait submits and waits in the same enter, and what
 *    completed during the submit ends it without sleeping.
 *  - reap reads memory only.  It enters when it would come back empty-handed although the ring says that completions
 *    are to be had by entering (SQ_TASKRUN with DEFER_TASKRUN: the tail alone never moves; CQ_OVERFLOW).
 *  - wake_flag carries the meaning of a wake-up; the poll on wake_fd only ends the sleep.  So a wake-up is never
 *    lost, and its completion, arriving late, ends nothing.
 *  - The wake poll is multishot and its eventfd is never read while armed: each write is an edge of its own.
 */
#include <errno.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "event.h"
#include "spin.h"
#include "uring_internal.h"

/* A wait for several completions is deaf to a wake-up (one completion) for this long; twice as long, up to the most,
 * each time that some but too few had come by then, so that a wait that lasts is not a poll. */
#define DEAF_US_LEAST 100
#define DEAF_US_MOST 1600
#define FOREVER_S 1000000

#define SELF(b) ((struct iod_uring *)(b))

int iod_uring_enter(struct iod_uring *u, uint32_t submit, uint32_t least, unsigned flags, const void *arg, size_t size)
{
	u->base.stats.enters++;
	long r = syscall(IOD_SYS_IO_URING_ENTER, u->fd, submit, least, flags, arg, size);
	if (r < 0)
		return -errno;
	u->sq_submitted += (uint32_t)r;
	return (int)r;
}

static inline uint32_t sq_pending(const struct iod_uring *u)
{
	return u->sq_tail - u->sq_submitted;
}

static inline uint32_t sq_free(const struct iod_uring *u)
{
	return u->sq_entries - (u->sq_tail - __atomic_load_n(u->k_sq_head, __ATOMIC_ACQUIRE));
}

static inline bool must_enter(const struct iod_uring *u)
{
	return __atomic_load_n(u->k_sq_flags, __ATOMIC_RELAXED) & (URING_SQ_TASKRUN | URING_SQ_CQ_OVERFLOW);
}

static inline uint32_t cq_tail(const struct iod_uring *u)
{
	return __atomic_load_n(u->k_cq_tail, __ATOMIC_ACQUIRE);
}

static inline bool internal(const struct uring_cqe *c)
{
	return c->user_data >= URING_UD_CANCEL;
}

/* Submission */

static uint32_t uring_room(struct iod_backend *b)
{
	struct iod_uring *u = SELF(b);
	uint32_t slots = sq_free(u), left = b->max_inflight - u->inflight;
	slots = slots > 1 ? slots - 1 : 0;
	return slots < left ? slots : left;
}

static void complete_locally(struct iod_uring *u, uint64_t user_data, int res)
{
	uint32_t at = (u->local_head + u->local_count++) % u->base.max_inflight;
	u->local[at] = (struct iod_cqe){.user_data = user_data, .res = res};
	if (u->event_fd >= 0)
		iod_event_signal(u->event_fd);
}

/* What need not wait goes without the ring. */
static int queue_packets(struct iod_uring *u, const struct iod_op *op)
{
	if (u->inflight >= u->base.max_inflight || u->packet_ops == URING_PACKETS)
		return -EAGAIN;
	u->packets[u->packet_ops++] = *op;
	u->inflight++;
	u->base.stats.queued++;
	return 0;
}

static void run_packets(struct iod_uring *u)
{
	for (uint32_t i = 0; i < u->packet_ops; i++) {
		u->base.stats.enters++;
		complete_locally(u, u->packets[i].user_data, iod_packets_run(&u->packets[i]));
	}
	u->packet_ops = 0;
}

static bool cancel_packets(struct iod_uring *u, uint64_t user_data)
{
	for (uint32_t i = 0; i < u->packet_ops; i++)
		if (u->packets[i].user_data == user_data) {
			u->packets[i] = u->packets[--u->packet_ops];
			complete_locally(u, user_data, -ECANCELED);
			return true;
		}
	return false;
}

static int uring_queue(struct iod_backend *b, const struct iod_op *op)
{
	struct iod_uring *u = SELF(b);
	if (iod_is_packets(op))
		return queue_packets(u, op);
	if (u->inflight >= b->max_inflight || sq_free(u) <= 1)
		return -EAGAIN;
	struct uring_sqe *s = &u->sqes[u->sq_tail & u->sq_mask];
	int r = iod_uring_fill_sqe(u, s, op) ? 0 : -EOPNOTSUPP;
	if (op->code == IOD_OP_POLL)
		r = iod_uring_poll_begin(u, op, &s->user_data);
	if (r < 0) {
		complete_locally(u, op->user_data, r);
	} else {
		u->sq_tail++;
	}
	u->inflight++;
	b->stats.queued++;
	return 0;
}

static int uring_cancel(struct iod_backend *b, uint64_t user_data)
{
	struct iod_uring *u = SELF(b);
	if (u->packet_ops && cancel_packets(u, user_data)) {
		b->stats.cancels++;
		return 0;
	}
	uint64_t id = iod_uring_poll_id(u, user_data);
	if (id == user_data && id >= URING_UD_POLL) {
		b->stats.cancels++; /* a poll that is over */
		return 0;
	}
	if (sq_free(u) <= 1)
		return -EAGAIN;
	u->sqes[u->sq_tail++ & u->sq_mask] = (struct uring_sqe){
		.opcode = URING_ASYNC_CANCEL,
		.fd = -1,
		.addr = id,
		.user_data = URING_UD_CANCEL,
	};
	b->stats.cancels++;
	return 0;
}

static void arm_wake(struct iod_uring *u)
{
	if (u->wake_armed)
		return;
	u->sqes[u->sq_tail++ & u->sq_mask] = (struct uring_sqe){
		.opcode = URING_POLL_ADD,
		.fd = u->wake_fd,
		.len = URING_POLL_ADD_MULTI,
		.op_flags = POLLIN,
		.user_data = URING_UD_WAKE,
	};
	u->wake_armed = true;
}

/* One read alone is cheaper without the ring where the page cache has it, which is all that this may wait for. */
static int uring_now(struct iod_backend *b, const struct iod_op *op)
{
	struct iod_uring *u = SELF(b);
	size_t bytes = 0;
	if (!(op->flags & IOD_OP_CACHED) || op->fd == u->never_cached || sq_pending(u))
		return -EAGAIN;
	for (uint32_t i = 0; i < op->niov; i++)
		bytes += op->iov[i].iov_len;
	b->stats.enters++;
	/* Not preadv2(): a place where threads can be cancelled, which costs it 30 ns. */
	long n = syscall(SYS_preadv2, op->fd, op->iov, (unsigned long)op->niov, (unsigned long)op->offset,
			 (unsigned long)(op->offset >> 32), RWF_NOWAIT);
	if (n < 0 && errno == EOPNOTSUPP)
		u->never_cached = op->fd;
	if (n < 0 || (size_t)n != bytes) /* only a read that may wait can tell whether this is the end of the file */
		return -EAGAIN;
	b->stats.queued++;
	b->stats.completed++;
	return (int)n;
}

static int uring_flush(struct iod_backend *b)
{
	struct iod_uring *u = SELF(b);
	run_packets(u);
	arm_wake(u);
	__atomic_store_n(u->k_sq_tail, u->sq_tail, __ATOMIC_RELEASE);
	while (sq_pending(u)) {
		int r = iod_uring_enter(u, sq_pending(u), 0, must_enter(u) ? URING_ENTER_GETEVENTS : 0, NULL, 0);
		if (r <= 0)
			return r < 0 ? r : -EAGAIN;
	}
	return 0;
}

/* Completion */

static void swallow(struct iod_uring *u, const struct uring_cqe *c)
{
	if (c->user_data != URING_UD_WAKE)
		return;
	if (!(c->flags & URING_CQE_F_MORE)) {
		/* Read before the flag is looked at: a wake() in between sets it again and writes again. */
		iod_event_drain(u->wake_fd);
		u->wake_armed = false;
	}
	if (__atomic_exchange_n(&u->wake_flag, 0, __ATOMIC_SEQ_CST))
		u->woken = true;
}

static uint32_t reap_ring(struct iod_uring *u, struct iod_cqe *out, uint32_t max)
{
	uint32_t tail = cq_tail(u), head = u->cq_head, n = 0;
	for (; head != tail; head++) {
		const struct uring_cqe *c = &u->cqes[head & u->cq_mask];
		if (internal(c)) {
			swallow(u, c);
			continue;
		}
		if (n == max)
			break;
		bool more = c->flags & URING_CQE_F_MORE;
		uint64_t id = c->user_data < URING_UD_POLL ? c->user_data : iod_uring_poll_end(u, c->user_data);
		out[n++] = (struct iod_cqe){.user_data = id, .res = c->res, .flags = more ? IOD_CQE_MORE : 0};
		if (!more)
			u->inflight--;
	}
	if (head != u->cq_head) {
		u->cq_head = head;
		__atomic_store_n(u->k_cq_head, head, __ATOMIC_RELEASE);
	}
	return n;
}

/* What fileno() gave away is readable again if there is more. */
static void event_fd_restore(const struct iod_uring *u)
{
	if (u->local_count || u->cq_head != cq_tail(u) || must_enter(u))
		iod_event_signal(u->event_fd);
}

static uint32_t uring_reap(struct iod_backend *b, struct iod_cqe *out, uint32_t max)
{
	struct iod_uring *u = SELF(b);
	uint32_t n = 0;
	if (u->event_fd >= 0)
		iod_event_drain(u->event_fd);
	while (u->local_count && n < max) {
		out[n++] = u->local[u->local_head];
		u->local_head = (u->local_head + 1) % b->max_inflight;
		u->local_count--;
		u->inflight--;
	}
	n += reap_ring(u, out + n, max - n);
	if (!n && max && must_enter(u) && iod_uring_enter(u, 0, 0, URING_ENTER_GETEVENTS, NULL, 0) >= 0) {
		if (u->event_fd >= 0)
			iod_event_drain(u->event_fd); /* what was posted by this very enter */
		n = reap_ring(u, out, max);
	}
	if (!u->wake_armed && u->event_fd >= 0)
		uring_flush(b);
	if (u->event_fd >= 0)
		event_fd_restore(u);
	b->stats.completed += n;
	return n;
}

/* Waiting */

static bool take_wake(struct iod_uring *u)
{
	bool woken = u->woken;
	u->woken = false;
	if (__atomic_load_n(&u->wake_flag, __ATOMIC_RELAXED))
		woken |= __atomic_exchange_n(&u->wake_flag, 0, __ATOMIC_SEQ_CST);
	return woken;
}

/* Are `least` completions there for the caller?  If not, *others counts the ring's own among those that are. */
static bool enough(const struct iod_uring *u, uint32_t least, uint32_t *others)
{
	uint32_t tail = cq_tail(u), seen = u->local_count;
	*others = 0;
	for (uint32_t head = u->cq_head; head != tail && seen < least; head++) {
		if (internal(&u->cqes[head & u->cq_mask]))
			++*others;
		else
			seen++;
	}
	return seen >= least;
}

/* True when there is no reason left to wait. */
static bool spin(struct iod_uring *u, uint32_t least, int64_t until)
{
	uint32_t others, seen = cq_tail(u);
	int step = u->base.watches ? IOD_LOOKS : 1;
	u->base.stats.spins++;
	do {
		for (int i = 0; i < IOD_SPINS_PER_CLOCK << u->base.vain; i += step) {
			if (must_enter(u) && iod_uring_enter(u, 0, 0, URING_ENTER_GETEVENTS, NULL, 0) < 0)
				return false;
			if (cq_tail(u) != seen) {
				seen = cq_tail(u);
				if (enough(u, least, &others)) {
					u->base.stats.spin_hits++;
					return true;
				}
			}
			if (__atomic_load_n(&u->wake_flag, __ATOMIC_RELAXED))
				return take_wake(u);
			if (!u->base.watches) {
				iod_pause();
			} else if (iod_watch_changed(&u->base, IOD_LOOKS)) {
				u->base.stats.spin_hits++;
				return true;
			}
		}
	} while (iod_offer(&u->base.vain, until));
	return false;
}

/* One enter that submits what is pending and sleeps.  0: look again; or -errno. */
static int sleep_once(struct iod_uring *u, uint32_t least, uint32_t others, int64_t left)
{
	struct uring_timespec ts = {.sec = left / IOD_NS_PER_S, .nsec = left % IOD_NS_PER_S};
	struct uring_getevents_arg arg = {.timeout = left >= 0 ? (uint64_t)(uintptr_t)&ts : 0};
	uint32_t wanted = least - u->local_count + others;
	bool deaf = wanted > 1 && (u->features & URING_FEAT_MIN_TIMEOUT);
	int64_t start = 0;
	if (deaf) {
		start = iod_now_ns();
		arg.min_wait_us = u->deaf_us;
		if (left < 0) { /* without a timeout of its own the shorter one would end the wait */
			ts = (struct uring_timespec){.sec = FOREVER_S};
			arg.timeout = (uint64_t)(uintptr_t)&ts;
		}
	} else if (wanted > 1) {
		wanted = cq_tail(u) - u->cq_head + 1; /* each one that comes */
	}
	unsigned flags = URING_ENTER_GETEVENTS | (arg.timeout ? URING_ENTER_EXT_ARG : 0);
	__atomic_store_n(u->k_sq_tail, u->sq_tail, __ATOMIC_RELEASE);
	u->base.stats.sleeps++;
	int r = iod_uring_enter(u, sq_pending(u), wanted, flags, arg.timeout ? &arg : NULL, arg.timeout ? sizeof arg : 0);
	if (r < 0)
		return r == -ETIME ? 0 : r;
	if (sq_pending(u)) /* not all taken, so the kernel did not wait either */
		return r ? 0 : -EAGAIN;
	if (cq_tail(u) - u->cq_head >= wanted)
		return 0;
	if (deaf && cq_tail(u) != u->cq_head && iod_now_ns() - start >= u->deaf_us * 1000ll) {
		u->deaf_us = u->deaf_us < DEAF_US_MOST ? u->deaf_us * 2 : DEAF_US_MOST;
		return 0;
	}
	return -EINTR; /* which the kernel does not say when it has anything else to report */
}

static int sleep_until(struct iod_uring *u, uint32_t least, int64_t deadline, int64_t left)
{
	u->deaf_us = DEAF_US_LEAST;
	for (;;) {
		uint32_t others;
		reap_ring(u, NULL, 0); /* completions of the ring's own would only end the sleep early */
		if (enough(u, least, &others) || take_wake(u))
			return 0;
		int r = sleep_once(u, least, others, left);
		if (enough(u, least, &others) || take_wake(u))
			return 0;
		if (deadline >= 0 && (left = deadline - iod_now_ns()) <= 0)
			return -ETIME;
		if (r < 0)
			return r;
	}
}

static int uring_wait(struct iod_backend *b, uint32_t least, int64_t timeout_ns, uint64_t spin_ns)
{
	struct iod_uring *u = SELF(b);
	uint32_t others;
	int r;
	run_packets(u);
	arm_wake(u);
	bool done = take_wake(u) || enough(u, least, &others);
	if (done || spin_ns || !timeout_ns) {
		r = uring_flush(b);
		if (!done && !timeout_ns && r >= 0 && must_enter(u))
			r = iod_uring_enter(u, 0, 0, URING_ENTER_GETEVENTS, NULL, 0);
		if (done || enough(u, least, &others))
			return r < 0 ? r : 0;
		if (r < 0)
			return r;
		if (!timeout_ns)
			return take_wake(u) ? 0 : -ETIME;
	}
	if (!spin_ns && timeout_ns < 0)
		return sleep_until(u, least, -1, -1);
	int64_t start = iod_now_ns(), left = -1;
	int64_t deadline = timeout_ns < 0 ? -1 : iod_later(start, (uint64_t)timeout_ns);
	if (spin_ns) {
		int64_t until = iod_later(start, spin_ns);
		if (spin(u, least, deadline >= 0 && deadline < until ? deadline : until))
			return 0;
	}
	if (deadline >= 0) {
		left = deadline - (spin_ns ? iod_now_ns() : start);
		if (left <= 0)
			return enough(u, least, &others) ? 0 : -ETIME;
	}
	return sleep_until(u, least, deadline, left);
}

static void uring_wake(struct iod_backend *b)
{
	struct iod_uring *u = SELF(b);
	if (__atomic_exchange_n(&u->wake_flag, 1, __ATOMIC_SEQ_CST))
		return;
	iod_event_signal(u->wake_fd);
	int event_fd = __atomic_load_n(&u->event_fd, __ATOMIC_SEQ_CST);
	if (event_fd >= 0)
		iod_event_signal(event_fd);
}

static int uring_fileno(struct iod_backend *b)
{
	struct iod_uring *u = SELF(b);
	if (u->event_fd >= 0)
		return u->epoll_fd >= 0 ? u->epoll_fd : u->event_fd;
	int r = uring_flush(b); /* the wake poll may not be armed */
	int fd = r < 0 ? r : eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (fd < 0)
		return r < 0 ? r : -errno;
	r = iod_uring_register(u->fd, URING_REGISTER_EVENTFD, &fd, 1);
	if (r >= 0)
		r = iod_uring_watch(u, fd);
	if (r < 0) {
		close(fd);
		return r;
	}
	__atomic_store_n(&u->event_fd, fd, __ATOMIC_SEQ_CST);
	event_fd_restore(u);
	if (u->woken || __atomic_load_n(&u->wake_flag, __ATOMIC_SEQ_CST))
		iod_event_signal(fd);
	return r;
}

const struct iod_backend_ops iod_uring_ops = {
	.name = "uring",
	.room = uring_room,
	.queue = uring_queue,
	.now = uring_now,
	.cancel = uring_cancel,
	.flush = uring_flush,
	.reap = uring_reap,
	.wait = uring_wait,
	.wake = uring_wake,
	.fileno = uring_fileno,
	.set_file = iod_uring_set_file,
	.set_buffer = iod_uring_set_buffer,
	.destroy = iod_uring_destroy,
};
