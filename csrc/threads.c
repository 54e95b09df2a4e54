/* SPDX-License-Identifier: Apache-2.0
 *
 * threads: the backend for hosts without io_uring: the owner's side of a pool of worker threads.
 *
 * Invariants
 *  - One flush hands over a whole batch: one lock, at most one system call, and none when the workers are awake.
 *  - The owner is woken once, when as many are done as it waits for.
 *  - What needs no waiting is done in flush by the owner itself, as io_uring does in its submit: a socket that is ready,
 *    a read that the page cache can answer.  Larger reads go to the workers unless there is nothing else to do
 *    meanwhile.  Where reads keep missing the cache, trying stops for a while.
 *  - The threads block every signal that is not a crash, never run Python code, and are all joined by destroy.
 */
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "spin.h"
#include "threads_internal.h"

#define INLINE_READ_MOST (16u << 10) /* one read among others */
#define INLINE_LONE_MOST (1u << 20)  /* one read and nothing else in flight */
#define INLINE_BATCH_MOST (512u << 10)
#define MISSES_TO_SKIP 4
#define SKIP_MOST 256
#define THREAD_STACK (256u << 10)

#define SELF(b) ((struct iod_threads *)(b))

/* Completion */

void iod_threads_done(struct iod_threads *t, struct job *j, int32_t res)
{
	j->res = res;
	job_set_state(j, JOB_DONE);
	struct job *head = __atomic_load_n(&t->done_head, __ATOMIC_RELAXED);
	do
		j->next = head;
	while (!__atomic_compare_exchange_n(&t->done_head, &head, j, true, __ATOMIC_RELEASE, __ATOMIC_RELAXED));
	int32_t done = __atomic_add_fetch(&t->done_count, 1, __ATOMIC_SEQ_CST);
	int32_t wanted = __atomic_load_n(&t->waiting_for, __ATOMIC_SEQ_CST);
	if (wanted && done >= wanted && __atomic_compare_exchange_n(&t->waiting_for, &wanted, 0, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) {
		__atomic_add_fetch(&t->owner_seq, 1, __ATOMIC_SEQ_CST);
		iod_futex_wake(&t->owner_seq, 1);
	}
	if (__atomic_load_n(&t->event_fd_used, __ATOMIC_SEQ_CST))
		iod_event_signal(t->event_fd);
}

static void done_at_once(struct iod_threads *t, struct job *j, int32_t res)
{
	j->res = res;
	job_set_state(j, JOB_DONE);
	job_list_append(&t->ready, j);
	if (t->event_fd_used)
		iod_event_signal(t->event_fd);
}

/* Moves what threads completed to the ready list, oldest first. */
static void take_done(struct iod_threads *t)
{
	struct job *j = __atomic_exchange_n(&t->done_head, NULL, __ATOMIC_ACQUIRE), *oldest = NULL;
	int32_t taken = 0;
	while (j) {
		struct job *next = j->next;
		j->next = oldest;
		oldest = j;
		j = next;
		taken++;
	}
	while (oldest) {
		struct job *next = oldest->next;
		job_list_append(&t->ready, oldest);
		oldest = next;
	}
	if (taken)
		__atomic_sub_fetch(&t->done_count, taken, __ATOMIC_SEQ_CST);
}

static uint32_t threads_reap(struct iod_backend *b, struct iod_cqe *out, uint32_t max)
{
	struct iod_threads *t = SELF(b);
	uint32_t n = 0;
	if (t->event_fd_used) {
		b->stats.enters++;
		iod_event_drain(t->event_fd);
		/* After that: a wake() in between sets the flag again and writes again. */
		if (__atomic_exchange_n(&t->wake_flag, 0, __ATOMIC_SEQ_CST))
			t->woken = true;
	}
	if (t->ready.count < max && __atomic_load_n(&t->done_head, __ATOMIC_RELAXED))
		take_done(t);
	while (n < max && t->ready.head) {
		struct job *j = job_list_pop(&t->ready);
		out[n++] = (struct iod_cqe){.user_data = j->op.user_data, .res = j->res};
		job_set_state(j, JOB_FREE);
		j->next = t->free_jobs;
		t->free_jobs = j;
	}
	t->inflight -= n;
	b->stats.completed += n;
	if (t->event_fd_used && t->ready.head)
		iod_event_signal(t->event_fd);
	return n;
}

/* Submission */

static uint32_t threads_room(struct iod_backend *b)
{
	return b->max_inflight - SELF(b)->inflight;
}

static int threads_queue(struct iod_backend *b, const struct iod_op *op)
{
	struct iod_threads *t = SELF(b);
	struct job *j = t->free_jobs;
	if (!j)
		return -EAGAIN;
	t->free_jobs = j->next;
	j->op = *op;
	__atomic_store_n(&j->cancel, 0, __ATOMIC_RELAXED);
	job_set_state(j, JOB_LOCAL);
	job_list_append(&t->local, j);
	t->inflight++;
	b->stats.queued++;
	return 0;
}

static size_t op_bytes(const struct iod_op *op)
{
	const struct iovec *iov = op->iov;
	size_t niov = op->niov, n = 0;
	if (op->code == IOD_OP_SENDMSG || op->code == IOD_OP_RECVMSG) {
		iov = op->msg->msg_iov;
		niov = op->msg->msg_iovlen;
	}
	for (size_t i = 0; i < niov; i++)
		n += iov[i].iov_len;
	return n;
}

/* The owner's own attempt; JOB_WOULD_BLOCK sends the job on.  *budget: bytes it may still copy in this flush. */
static int32_t try_read(struct iod_threads *t, const struct iod_op *op, size_t *budget)
{
	size_t bytes = op_bytes(op);
	bool lone = t->inflight == 1 && bytes <= INLINE_LONE_MOST;
	if (!lone && (bytes > INLINE_READ_MOST || bytes > *budget))
		return JOB_WOULD_BLOCK;
	if (t->skip_tries) {
		t->skip_tries--;
		return JOB_WOULD_BLOCK;
	}
	int32_t res = iod_job_try_read(op);
	if (res == JOB_WOULD_BLOCK) {
		if (++t->miss_run >= MISSES_TO_SKIP)
			t->skip_tries = t->miss_run < SKIP_MOST ? t->miss_run : SKIP_MOST;
	} else {
		t->miss_run = 0;
		*budget -= bytes < *budget ? bytes : *budget;
	}
	return res;
}

static int32_t try_at_once(struct iod_threads *t, const struct iod_op *op, size_t *budget)
{
	switch (op->code) {
	case IOD_OP_READV:
		return try_read(t, op, budget);
	case IOD_OP_WRITEV:
	case IOD_OP_FSYNC:
	case IOD_OP_FALLOCATE:
		return JOB_WOULD_BLOCK;
	default:
		return iod_job_run(op);
	}
}

static int threads_flush(struct iod_backend *b)
{
	struct iod_threads *t = SELF(b);
	struct job_list batch = {0};
	size_t budget = INLINE_BATCH_MOST;
	struct job *j;
	while ((j = job_list_pop(&t->local))) {
		bool stream = iod_job_is_stream(&j->op);
		bool large = stream && j->op.code != IOD_OP_POLL && op_bytes(&j->op) > INLINE_BATCH_MOST;
		int32_t res = large ? JOB_WOULD_BLOCK : try_at_once(t, &j->op, &budget);
		if (res != JOB_WOULD_BLOCK)
			done_at_once(t, j, res);
		else if (stream && !large)
			iod_threads_to_poller(t, j);
		else
			job_list_append(&batch, j);
	}
	if (!batch.head)
		return 0;

	pthread_mutex_lock(&t->lock);
	uint32_t wake = t->idle - t->waking, count = batch.count;
	while ((j = job_list_pop(&batch))) {
		job_set_state(j, JOB_QUEUED);
		job_list_append(&t->work, j);
	}
	wake = wake < count ? wake : count;
	t->waking += wake;
	if (wake)
		__atomic_add_fetch(&t->work_seq, 1, __ATOMIC_RELAXED);
	pthread_mutex_unlock(&t->lock);
	if (wake) {
		b->stats.enters++;
		iod_futex_wake(&t->work_seq, (int)wake);
	}
	return 0;
}

static int threads_cancel(struct iod_backend *b, uint64_t user_data)
{
	struct iod_threads *t = SELF(b);
	b->stats.cancels++;
	for (uint32_t i = 0; i < b->max_inflight; i++) {
		struct job *j = &t->jobs[i];
		int state = __atomic_load_n(&j->state, __ATOMIC_RELAXED);
		if (state == JOB_FREE || j->op.user_data != user_data)
			continue;
		if (state == JOB_LOCAL) {
			job_list_remove(&t->local, j);
			done_at_once(t, j, -ECANCELED);
			return 0;
		}
		pthread_mutex_lock(&t->lock);
		__atomic_store_n(&j->cancel, 1, __ATOMIC_RELAXED);
		bool queued = __atomic_load_n(&j->state, __ATOMIC_RELAXED) == JOB_QUEUED, call = false;
		if (queued) {
			job_list_remove(&t->work, j);
		} else {
			call = !t->poller_called;
			t->poller_called = true;
		}
		pthread_mutex_unlock(&t->lock);
		if (queued)
			done_at_once(t, j, -ECANCELED);
		else if (call)
			iod_event_signal(t->poll_fd);
		return 0;
	}
	return 0;
}

/* Waiting */

static bool take_wake(struct iod_threads *t)
{
	bool woken = t->woken;
	t->woken = false;
	if (__atomic_load_n(&t->wake_flag, __ATOMIC_RELAXED))
		woken |= __atomic_exchange_n(&t->wake_flag, 0, __ATOMIC_SEQ_CST);
	return woken;
}

static bool enough(const struct iod_threads *t, uint32_t least)
{
	return t->ready.count >= least || (int64_t)t->ready.count + __atomic_load_n(&t->done_count, __ATOMIC_SEQ_CST) >= (int64_t)least;
}

static bool spin(struct iod_threads *t, uint32_t least, int64_t until)
{
	int step = t->base.watches ? IOD_LOOKS : 1;
	t->base.stats.spins++;
	do {
		for (int i = 0; i < IOD_SPINS_PER_CLOCK << t->base.vain; i += step) {
			if (enough(t, least)) {
				t->base.stats.spin_hits++;
				return true;
			}
			if (__atomic_load_n(&t->wake_flag, __ATOMIC_RELAXED))
				return take_wake(t);
			if (!t->base.watches) {
				iod_pause();
			} else if (iod_watch_changed(&t->base, IOD_LOOKS)) {
				t->base.stats.spin_hits++;
				return true;
			}
		}
	} while (iod_offer(&t->base.vain, until)); /* a worker may have been woken on this very processor */
	return false;
}

static int sleep_once(struct iod_threads *t, uint32_t least, int64_t left)
{
	int r = 0;
	uint32_t seen = __atomic_load_n(&t->owner_seq, __ATOMIC_SEQ_CST);
	__atomic_store_n(&t->waiting_for, (int32_t)(least - t->ready.count), __ATOMIC_SEQ_CST);
	if (!enough(t, least) && !__atomic_load_n(&t->wake_flag, __ATOMIC_SEQ_CST)) {
		t->base.stats.enters++;
		t->base.stats.sleeps++;
		r = iod_futex_wait(&t->owner_seq, seen, left);
	}
	__atomic_store_n(&t->waiting_for, 0, __ATOMIC_SEQ_CST);
	return r;
}

static int threads_wait(struct iod_backend *b, uint32_t least, int64_t timeout_ns, uint64_t spin_ns)
{
	struct iod_threads *t = SELF(b);
	int r = threads_flush(b);
	if (take_wake(t) || enough(t, least))
		return 0;
	if (r < 0)
		return r;
	if (!timeout_ns)
		return -ETIME;
	int64_t start = timeout_ns > 0 || spin_ns ? iod_now_ns() : 0;
	int64_t deadline = timeout_ns < 0 ? -1 : iod_later(start, (uint64_t)timeout_ns);
	if (spin_ns) {
		int64_t until = iod_later(start, spin_ns);
		if (spin(t, least, deadline >= 0 && deadline < until ? deadline : until))
			return 0;
	}
	for (;;) {
		int64_t left = deadline < 0 ? -1 : deadline - iod_now_ns();
		if (deadline >= 0 && left <= 0)
			return -ETIME;
		r = sleep_once(t, least, left);
		if (take_wake(t) || enough(t, least))
			return 0;
		if (r == -EINTR)
			return r;
	}
}

static void threads_wake(struct iod_backend *b)
{
	struct iod_threads *t = SELF(b);
	if (__atomic_exchange_n(&t->wake_flag, 1, __ATOMIC_SEQ_CST))
		return;
	if (__atomic_load_n(&t->waiting_for, __ATOMIC_SEQ_CST)) {
		int saved = errno;
		__atomic_add_fetch(&t->owner_seq, 1, __ATOMIC_SEQ_CST);
		iod_futex_wake(&t->owner_seq, 1);
		errno = saved;
	}
	if (__atomic_load_n(&t->event_fd_used, __ATOMIC_SEQ_CST))
		iod_event_signal(t->event_fd);
}

static int threads_fileno(struct iod_backend *b)
{
	struct iod_threads *t = SELF(b);
	if (!t->event_fd_used) {
		__atomic_store_n(&t->event_fd_used, 1, __ATOMIC_SEQ_CST);
		/* What came before nobody signalled. */
		if (enough(t, 1) || t->woken || __atomic_load_n(&t->wake_flag, __ATOMIC_SEQ_CST))
			iod_event_signal(t->event_fd);
	}
	return t->event_fd;
}

/* Nothing to look up and nothing to pin: the descriptor and the address of each op are used as they are. */

static int threads_set_file(struct iod_backend *b, int index, int fd)
{
	(void)b;
	return index < 0 || index >= IOD_MAX_FILES || fd < -1 ? -EINVAL : index;
}

static int threads_set_buffer(struct iod_backend *b, int index, void *base, size_t length)
{
	(void)b;
	return index < 0 || index >= IOD_MAX_BUFFERS || (base && !length) ? -EINVAL : 0;
}

/* Making and ending */

static void stop_threads(struct iod_threads *t)
{
	pthread_mutex_lock(&t->lock);
	t->stopping = true;
	__atomic_add_fetch(&t->work_seq, 1, __ATOMIC_RELAXED);
	pthread_mutex_unlock(&t->lock);
	iod_futex_wake(&t->work_seq, INT32_MAX);
	for (uint32_t i = 0; i < t->threads_started; i++)
		pthread_join(t->threads[i], NULL);
	if (t->poller_started) {
		iod_event_signal(t->poll_fd);
		pthread_join(t->poller, NULL);
	}
}

static void threads_destroy(struct iod_backend *b)
{
	struct iod_threads *t = SELF(b);
	if (t->pid == getpid()) { /* in a fork's child there are no threads, and the lock may be anyone's */
		stop_threads(t);
		pthread_mutex_destroy(&t->lock);
	}
	if (t->poll_fd >= 0)
		close(t->poll_fd);
	if (t->event_fd >= 0)
		close(t->event_fd);
	free(t->poll_fds);
	free(t->poll_jobs);
	free(t->jobs);
	free(t);
}

static int start_threads(struct iod_threads *t)
{
	sigset_t blocked, before;
	pthread_attr_t attr;
	sigfillset(&blocked);
	/* A crash shall be reported as one. */
	static const int crashes[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGABRT, SIGSYS};
	for (size_t i = 0; i < sizeof crashes / sizeof crashes[0]; i++)
		sigdelset(&blocked, crashes[i]);
	int r = pthread_attr_init(&attr);
	if (r)
		return -r;
	pthread_attr_setstacksize(&attr, THREAD_STACK);
	pthread_sigmask(SIG_SETMASK, &blocked, &before);
	r = pthread_create(&t->poller, &attr, iod_threads_poller, t);
	t->poller_started = !r;
	while (!r && t->threads_started < t->workers) {
		r = pthread_create(&t->threads[t->threads_started], &attr, iod_threads_worker, t);
		t->threads_started += !r;
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attr);
	return -r;
}

static const struct iod_backend_ops threads_ops = {
	.name = "threads",
	.room = threads_room,
	.queue = threads_queue,
	.cancel = threads_cancel,
	.flush = threads_flush,
	.reap = threads_reap,
	.wait = threads_wait,
	.wake = threads_wake,
	.fileno = threads_fileno,
	.set_file = threads_set_file,
	.set_buffer = threads_set_buffer,
	.destroy = threads_destroy,
};

struct iod_backend *iod_threads_create(uint32_t workers, uint32_t inflight, int *err)
{
	*err = -EINVAL;
	if (!workers || !inflight || inflight > INT32_MAX)
		return NULL;
	*err = -ENOMEM;
	size_t size = sizeof(struct iod_threads) + workers * sizeof(pthread_t);
	struct iod_threads *t = aligned_alloc(64, (size + 63) & ~(size_t)63);
	if (!t)
		return NULL;
	memset(t, 0, size);
	t->base.ops = &threads_ops;
	t->base.max_inflight = inflight;
	t->workers = workers;
	t->pid = getpid();
	t->poll_fd = t->event_fd = -1;
	pthread_mutex_init(&t->lock, NULL);
	t->jobs = calloc(inflight, sizeof *t->jobs);
	t->poll_fds = calloc((size_t)inflight + 1, sizeof *t->poll_fds);
	t->poll_jobs = calloc(inflight, sizeof *t->poll_jobs);
	if (t->jobs && t->poll_fds && t->poll_jobs) {
		for (uint32_t i = inflight; i-- > 0;) {
			t->jobs[i].next = t->free_jobs;
			t->free_jobs = &t->jobs[i];
		}
		t->poll_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		t->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		t->poll_fds[0] = (struct pollfd){.fd = t->poll_fd, .events = POLLIN};
		*err = t->poll_fd < 0 || t->event_fd < 0 ? -errno : start_threads(t);
	}
	if (*err < 0) {
		threads_destroy(&t->base);
		return NULL;
	}
	return &t->base;
}
