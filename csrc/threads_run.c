/* SPDX-License-Identifier: Apache-2.0
 *
 * threads_run: what a job does, and the loop of a worker.
 *
 * Invariants
 *  - Only file ops block, and only on a worker.  A socket op is tried without waiting and goes to the poller otherwise.
 *  - Bytes are moved by the kernel alone: memory that is gone is -EFAULT, never a signal.
 *  - A worker that finds work does not sleep; one that sleeps counts as idle until it holds the lock again.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "spin.h"
#include "threads_internal.h"

int iod_futex_wait(uint32_t *word, uint32_t seen, int64_t timeout_ns)
{
	struct timespec ts = {.tv_sec = timeout_ns / IOD_NS_PER_S, .tv_nsec = timeout_ns % IOD_NS_PER_S};
	long r = syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, timeout_ns >= 0 ? &ts : NULL, NULL, 0);
	return r < 0 ? -errno : 0;
}

void iod_futex_wake(uint32_t *word, int count)
{
	syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, count, NULL, NULL, 0);
}

static int32_t result(ssize_t r)
{
	return r < 0 ? -errno : (int32_t)r;
}

static int32_t would_block(const struct iod_op *op, ssize_t r)
{
	if (r < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
		return op->flags & IOD_OP_NOWAIT ? -EAGAIN : JOB_WOULD_BLOCK;
	return result(r);
}

static int32_t poll_now(const struct iod_op *op)
{
	struct pollfd p = {.fd = op->fd, .events = (short)op->poll_events};
	int r = poll(&p, 1, 0);
	if (r < 0)
		return would_block(op, r);
	if (op->fd < 0 || (p.revents & POLLNVAL)) /* poll passes over negative ones */
		return -EBADF;
	return r ? (uint16_t)p.revents : JOB_WOULD_BLOCK;
}

bool iod_job_is_stream(const struct iod_op *op)
{
	return op->code == IOD_OP_SENDMSG || op->code == IOD_OP_RECVMSG || op->code == IOD_OP_POLL;
}

short iod_job_events(const struct iod_op *op)
{
	return op->code == IOD_OP_SENDMSG ? POLLOUT : op->code == IOD_OP_RECVMSG ? POLLIN : (short)op->poll_events;
}

int32_t iod_job_try_read(const struct iod_op *op)
{
	size_t wanted = 0;
	for (uint32_t i = 0; i < op->niov; i++)
		wanted += op->iov[i].iov_len;
	if (op->flags & IOD_OP_CONSUMES)
		return JOB_WOULD_BLOCK;
	/* With O_DIRECT "do not wait" still waits for the device. */
	int flags = fcntl(op->fd, F_GETFL);
	if (flags < 0 || (flags & O_DIRECT))
		return JOB_WOULD_BLOCK;
	ssize_t r = preadv2(op->fd, op->iov, (int)op->niov, (off_t)op->offset, RWF_NOWAIT);
	/* Short may be the end of the file or the end of what is cached; only a read that may wait can tell. */
	return r >= 0 && (size_t)r == wanted ? (int32_t)r : JOB_WOULD_BLOCK;
}

int32_t iod_job_run(const struct iod_op *op)
{
	switch (op->code) {
	case IOD_OP_NOP:
		return 0;
	case IOD_OP_READV:
		return result(preadv2(op->fd, op->iov, (int)op->niov, (off_t)op->offset, 0));
	case IOD_OP_WRITEV:
		return result(pwritev2(op->fd, op->iov, (int)op->niov, (off_t)op->offset, op->flags & IOD_OP_DSYNC ? RWF_DSYNC : 0));
	case IOD_OP_SENDMSG:
		return would_block(op, sendmsg(op->fd, op->msg, MSG_NOSIGNAL | MSG_DONTWAIT));
	case IOD_OP_RECVMSG:
		return would_block(op, recvmsg(op->fd, op->msg, (int)iod_receive_flags(op) | MSG_DONTWAIT));
	case IOD_OP_FSYNC:
		return result(fdatasync(op->fd));
	case IOD_OP_FALLOCATE:
		return result(fallocate(op->fd, op->mode, (off_t)op->offset, (off_t)op->length));
	case IOD_OP_POLL:
		return poll_now(op);
	case IOD_OP_SEND_PACKETS:
	case IOD_OP_RECEIVE_PACKETS:
		return iod_packets_run(op);
	default:
		return -EOPNOTSUPP;
	}
}

static void run(struct iod_threads *t, struct job *j)
{
	int32_t res = iod_job_run(&j->op);
	if (res == JOB_WOULD_BLOCK)
		iod_threads_to_poller(t, j);
	else
		iod_threads_done(t, j, res);
}

void *iod_threads_worker(void *arg)
{
	struct iod_threads *t = arg;
	pthread_mutex_lock(&t->lock);
	while (!t->stopping) {
		struct job *j = job_list_pop(&t->work);
		if (j) {
			job_set_state(j, JOB_RUNNING);
			pthread_mutex_unlock(&t->lock);
			run(t, j);
			pthread_mutex_lock(&t->lock);
			continue;
		}
		uint32_t seen = t->work_seq;
		t->idle++;
		pthread_mutex_unlock(&t->lock);
		iod_futex_wait(&t->work_seq, seen, -1);
		pthread_mutex_lock(&t->lock);
		t->idle--;
		if (t->waking)
			t->waking--;
	}
	pthread_mutex_unlock(&t->lock);
	return NULL;
}
