/* SPDX-License-Identifier: Apache-2.0
 *
 * test_backend: the promises of backend.h about files, memory, waiting and waking, one function a promise.
 */
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "backends.h"
#include "spin.h"

static unsigned char bytes[2 * PAGE];

static void nops_come_back_once(struct iod_backend *b)
{
	struct iod_cqe c[64];
	CHECK(quiet(b));
	for (uint64_t i = 0; i < 40; i++)
		queue_op(b, (struct iod_op){.code = IOD_OP_NOP, .user_data = i << 32});
	CHECK_EQ(wait_for(b, 40, -1, 0), 0);
	CHECK_EQ(b->ops->reap(b, c, 64), 40);
	uint64_t seen = 0;
	for (int i = 0; i < 40; i++) {
		CHECK_EQ(c[i].res, 0);
		seen |= 1ull << (c[i].user_data >> 32);
	}
	CHECK_EQ(seen, (1ull << 40) - 1);
	CHECK(quiet(b));
	CHECK_EQ(run_op(b, (struct iod_op){.code = 200}), -EOPNOTSUPP);
	CHECK_EQ(b->stats.queued, 41);
	CHECK_EQ(b->stats.completed, 41);
}

static void room_is_bounded(struct iod_backend *b)
{
	struct iod_cqe c[64];
	uint32_t queued = 0;
	for (int round = 0; round < 3; round++) {
		/* All in flight, in as many flushes as it takes. */
		while (queued < b->max_inflight) {
			uint32_t room = b->ops->room(b);
			CHECK(room > 0);
			for (uint32_t i = 0; i < room; i++, queued++)
				queue_op(b, (struct iod_op){.code = IOD_OP_NOP, .user_data = queued});
			CHECK_EQ(b->ops->flush(b), 0);
		}
		CHECK_EQ(b->ops->room(b), 0);
		CHECK_EQ(b->ops->queue(b, &(struct iod_op){.code = IOD_OP_NOP}), -EAGAIN);
		while (queued) {
			CHECK_EQ(wait_for(b, 1, -1, 0), 0);
			uint32_t n = b->ops->reap(b, c, 7);
			CHECK(n > 0 && n <= 7);
			queued -= n;
		}
		CHECK(b->ops->room(b) > 0);
	}
	CHECK(quiet(b));
}

static void files(struct iod_backend *b)
{
	int fd = temporary_file(16 * PAGE);
	static unsigned char in[16 * PAGE];
	struct iovec one = vec(in, 3 * PAGE), three[3] = {vec(in, 100), vec(in + 200, PAGE), vec(in + 8000, 1)};

	CHECK_EQ(run_op(b, rw(IOD_OP_READV, fd, &one, 1, 2 * PAGE)), 3 * PAGE);
	CHECK(in[0] == 3 && in[PAGE] == 4 && in[3 * PAGE - 1] == 5);
	memset(in, 0, sizeof in);
	CHECK_EQ(run_op(b, rw(IOD_OP_READV, fd, three, 3, PAGE - 1)), 100 + PAGE + 1);
	CHECK(in[0] == 1 && in[1] == 2 && in[100] == 0 && in[200] == 2 && in[200 + PAGE - 1] == 3 && in[8000] == 3);
	CHECK_EQ(run_op(b, rw(IOD_OP_READV, fd, &one, 1, 15 * PAGE)), PAGE);
	CHECK_EQ(run_op(b, rw(IOD_OP_READV, fd, &one, 1, 16 * PAGE)), 0);
	CHECK_EQ(run_op(b, rw(IOD_OP_READV, fd, three, 0, 0)), 0);

	memset(in, 0x77, sizeof in);
	struct iod_op op = rw(IOD_OP_WRITEV, fd, three, 3, 5);
	CHECK_EQ(run_op(b, op), 100 + PAGE + 1);
	op.flags = IOD_OP_DSYNC;
	op.offset = 20 * PAGE;
	CHECK_EQ(run_op(b, op), 100 + PAGE + 1);
	CHECK_EQ(run_op(b, (struct iod_op){.code = IOD_OP_FSYNC, .fd = fd}), 0);
	unsigned char check[3];
	CHECK_EQ(pread(fd, check, 3, 4), 3);
	CHECK(check[0] == 1 && check[1] == 0x77);
	struct stat st;
	CHECK_EQ(fstat(fd, &st), 0);
	CHECK_EQ(st.st_size, 20 * PAGE + 100 + PAGE + 1);
	int r = run_op(b, (struct iod_op){.code = IOD_OP_FALLOCATE, .fd = fd, .offset = 40 * PAGE, .length = PAGE});
	CHECK_EQ(fstat(fd, &st), 0);
	CHECK((r == 0 && st.st_size == 41 * PAGE) || r == -EOPNOTSUPP);

	CHECK_EQ(run_op(b, rw(IOD_OP_READV, -1, &one, 1, 0)), -EBADF);
	CHECK_EQ(run_op(b, (struct iod_op){.code = IOD_OP_FSYNC, .fd = -1}), -EBADF);
	close(fd);
}

/* A read is short at the end of the file, not at the end of what happens to be cached. */
static void partly_cached_files(struct iod_backend *b)
{
	int fd = temporary_file(64 * PAGE);
	struct iovec iov = vec(bytes, 2 * PAGE);
	CHECK_EQ(fsync(fd), 0);
	posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
	for (uint32_t page = 1; page < 60; page += 7) {
		CHECK_EQ(pread(fd, bytes, PAGE, page * PAGE), PAGE);
		CHECK_EQ(run_op(b, rw(IOD_OP_READV, fd, &iov, 1, page * PAGE)), 2 * PAGE);
		CHECK(bytes[0] == page + 1 && bytes[2 * PAGE - 1] == page + 2);
	}
	close(fd);
}

/* Some file systems cannot say whether a read would wait; then it is never done at once. */
static void reads_at_once(struct iod_backend *b)
{
	int fd = temporary_file(4 * PAGE);
	struct iovec two[2] = {vec(bytes, 100), vec(bytes + PAGE, PAGE)};
	struct iod_op op = rw(IOD_OP_READV, fd, two, 2, PAGE), nop = {.code = IOD_OP_NOP, .user_data = 7};
	struct iod_cqe c;
	if (!b->ops->now)
		return;
	CHECK_EQ(run_op(b, op), PAGE + 100); /* it is cached, and what a flush adds is handed over */
	CHECK_EQ(b->ops->now(b, &op), -EAGAIN); /* nobody said that it may be */
	op.flags = IOD_OP_CACHED;
	memset(bytes, 0, 2 * PAGE);
	int r = b->ops->now(b, &op);
	CHECK(r == PAGE + 100 || r == -EAGAIN);
	CHECK(r == -EAGAIN || (bytes[99] == 2 && bytes[100] == 0 && bytes[PAGE] == 2 && bytes[2 * PAGE - 1] == 3));
	queue_op(b, nop);
	CHECK_EQ(b->ops->now(b, &op), -EAGAIN); /* not alone */
	CHECK_EQ(wait_for(b, 1, -1, 0), 0);
	CHECK_EQ(b->ops->reap(b, &c, 1), 1);
	op.offset = 3 * PAGE;
	CHECK_EQ(b->ops->now(b, &op), -EAGAIN); /* the file ends in the middle */
	CHECK(quiet(b));
	close(fd);
}

static void many_files_ops_at_once(struct iod_backend *b)
{
	int fd = temporary_file(64 * PAGE);
	static unsigned char in[64][PAGE];
	struct iovec iov[64];
	struct iod_cqe c[64];
	memset(in, 0, sizeof in);
	for (uint32_t i = 0; i < 64; i++) {
		iov[i] = vec(in[i], PAGE);
		struct iod_op op = rw(IOD_OP_READV, fd, &iov[i], 1, i * PAGE);
		op.user_data = i;
		queue_op(b, op);
	}
	CHECK_EQ(wait_for(b, 64, -1, 0), 0);
	CHECK_EQ(b->ops->reap(b, c, 64), 64);
	for (uint32_t i = 0; i < 64; i++) {
		CHECK_EQ(c[i].res, PAGE);
		CHECK_EQ(in[i][0], i + 1);
		CHECK_EQ(in[i][PAGE - 1], i + 1);
	}
	close(fd);
}

/* Memory that is gone is an error of the op that meets it. */
static void memory_that_is_gone(struct iod_backend *b)
{
	int fd = temporary_file(4 * PAGE), memory = memfd_create("gone", MFD_CLOEXEC);
	CHECK_EQ(ftruncate(memory, 2 * PAGE), 0);
	unsigned char *p = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
	CHECK(p != MAP_FAILED);
	CHECK_EQ(ftruncate(memory, PAGE), 0);
	struct iovec gone = vec(p + PAGE, PAGE), half = vec(p, 2 * PAGE);
	CHECK_EQ(run_op(b, rw(IOD_OP_READV, fd, &gone, 1, 0)), -EFAULT);
	CHECK_EQ(run_op(b, rw(IOD_OP_WRITEV, fd, &gone, 1, 0)), -EFAULT);
	int r = run_op(b, rw(IOD_OP_READV, fd, &half, 1, 0));
	CHECK(r == (int)PAGE || r == -EFAULT);
	struct iovec nowhere = vec(NULL, PAGE);
	CHECK_EQ(run_op(b, rw(IOD_OP_READV, fd, &nowhere, 1, 0)), -EFAULT);
	munmap(p, 2 * PAGE);
	close(memory);
	close(fd);
}

static void timeouts(struct iod_backend *b)
{
	for (int spin = 0; spin < 3; spin++) {
		static const uint64_t spins[] = {0, 2 * MS, 1000 * MS};
		int64_t start = iod_now_ns();
		CHECK_EQ(wait_for(b, 1 + (uint32_t)spin, 20 * MS, spins[spin]), -ETIME);
		int64_t took = iod_now_ns() - start;
		CHECK(took >= 20 * MS && took < 2000 * MS);
		CHECK_EQ(wait_for(b, 1, 0, spins[spin]), -ETIME);
		CHECK_EQ(wait_for(b, 0, -1, spins[spin]), 0);
	}
	/* Too few by the deadline: what there is can be reaped. */
	queue_op(b, (struct iod_op){.code = IOD_OP_NOP});
	CHECK_EQ(wait_for(b, 2, 5 * MS, 0), -ETIME);
	struct iod_cqe c;
	CHECK_EQ(b->ops->reap(b, &c, 1), 1);
	queue_op(b, (struct iod_op){.code = IOD_OP_NOP});
	CHECK_EQ(wait_for(b, 1, INT64_MAX, UINT64_MAX), 0);
	CHECK_EQ(b->ops->reap(b, &c, 1), 1);
}

struct later {
	struct iod_backend *b;
	int us, fd, times;
	bool stop; /* atomic */
	pthread_t thread, signalled;
};

static void *wake_later(void *arg)
{
	struct later *l = arg;
	usleep((useconds_t)l->us);
	for (int i = 0; i < l->times; i++)
		l->b->ops->wake(l->b);
	return NULL;
}

static void *write_later(void *arg)
{
	struct later *l = arg;
	usleep((useconds_t)l->us);
	for (int i = 0; i < l->times; i++) {
		CHECK_EQ(write(l->fd, "x", 1), 1);
		usleep(1000);
	}
	return NULL;
}

static void *ring_later(void *arg)
{
	struct later *l = arg;
	uint64_t one = 1;
	usleep((useconds_t)l->us);
	CHECK_EQ(write(l->fd, &one, sizeof one), sizeof one);
	return NULL;
}

static void start(struct later *l, void *(*fn)(void *))
{
	CHECK_EQ(pthread_create(&l->thread, NULL, fn, l), 0);
}

static void wakes(struct iod_backend *b)
{
	static const uint32_t leasts[] = {1, 8};
	for (int i = 0; i < 8; i++) {
		uint64_t spin = i & 1 ? 500 * MS : 0;
		uint32_t least = leasts[i >> 1 & 1];
		struct later l = {.b = b, .us = 5000, .times = i & 4 ? 100 : 1};
		start(&l, wake_later);
		int64_t begin = iod_now_ns();
		CHECK_EQ(wait_for(b, least, 5000 * MS, spin), 0);
		CHECK(iod_now_ns() - begin < 2000 * MS);
		pthread_join(l.thread, NULL);
		if (l.times > 1)
			wait_for(b, 1, 5 * MS, 0); /* those that came after the first */
		CHECK_EQ(wait_for(b, 1, 5 * MS, 0), -ETIME); /* used up */
	}
	/* Before the wait, with some but too few there, and reaped in between: still ends the next. */
	queue_op(b, (struct iod_op){.code = IOD_OP_NOP});
	b->ops->wake(b);
	CHECK_EQ(wait_for(b, 2, 5000 * MS, 0), 0);
	struct iod_cqe c;
	CHECK_EQ(wait_for(b, 1, 5000 * MS, 0), 0);
	CHECK_EQ(b->ops->reap(b, &c, 1), 1);
	b->ops->wake(b);
	CHECK_EQ(b->ops->reap(b, &c, 1), 0);
	CHECK_EQ(wait_for(b, 1, 5000 * MS, 0), 0);
	CHECK(quiet(b));
}

/* A wait for three ends with three, not before, and does not go round in between. */
static void waits_for_several(struct iod_backend *b)
{
	int p[2];
	CHECK_EQ(pipe2(p, O_CLOEXEC), 0);
	for (int spin = 0; spin < 2; spin++) {
		for (uint64_t i = 0; i < 3; i++)
			queue_op(b, (struct iod_op){.code = IOD_OP_NOP, .user_data = i});
		queue_op(b, (struct iod_op){.code = IOD_OP_POLL, .fd = p[0], .poll_events = POLLIN, .user_data = 3});
		struct later l = {.b = b, .us = 20000, .fd = p[1], .times = 1};
		start(&l, write_later);
		uint64_t before = b->stats.sleeps, begin = iod_now_ns();
		CHECK_EQ(wait_for(b, 4, 5000 * MS, spin ? 500 * MS : 0), 0);
		/* At most one a millisecond, once it knows that it takes longer: the writer may get its processor late. */
		CHECK(b->stats.sleeps - before <= 10 + (iod_now_ns() - begin) / MS);
		struct iod_cqe c[5];
		CHECK_EQ(b->ops->reap(b, c, 5), 4);
		CHECK_EQ(read(p[0], (char[1]){0}, 1), 1);
		pthread_join(l.thread, NULL);
	}
	close_pair(p);
}

/* Cached reads: one system call for the batch, however large. */
static void one_call_a_batch(struct iod_backend *b)
{
	int fd = temporary_file(32 * PAGE);
	struct iovec iov = vec(bytes, PAGE);
	struct iod_cqe c[32];
	CHECK_EQ(b->ops->flush(b), 0);
	for (int i = 0; i < 2; i++) {
		uint64_t before = b->stats.enters;
		for (uint32_t k = 0; k < 32; k++)
			queue_op(b, rw(IOD_OP_READV, fd, &iov, 1, k * PAGE));
		CHECK_EQ(wait_for(b, 32, -1, i ? 50000 : 0), 0);
		CHECK_EQ(b->ops->reap(b, c, 32), 32);
		CHECK(b->stats.enters - before <= 1);
	}
	close(fd);
}

/* A false alarm may come late, but it ends. */
static void calm(struct iod_backend *b, int fd)
{
	struct iod_cqe c;
	for (int alarms = 0; readable(fd, 2); alarms++) {
		CHECK(alarms < 3);
		CHECK_EQ(b->ops->reap(b, &c, 1), 0);
	}
}

static void descriptor_says_when(struct iod_backend *b)
{
	int s[2], fd = b->ops->fileno(b);
	unsigned char in[8];
	struct iod_cqe c[8];
	struct iovec into = vec(in, sizeof in);
	struct msghdr receive = header(&into, 1);
	CHECK(fd >= 0);
	CHECK_EQ(b->ops->fileno(b), fd);
	CHECK(!readable(fd, 0));
	for (int i = 0; i < 3; i++) {
		b->ops->wake(b);
		CHECK(readable(fd, 1000));
		CHECK_EQ(b->ops->reap(b, c, 8), 0);
		calm(b, fd);
	}
	for (int i = 0; i < 3; i++)
		queue_op(b, (struct iod_op){.code = i == 2 ? IOD_OP_NOP : 200});
	CHECK_EQ(b->ops->flush(b), 0);
	for (int i = 0; i < 3; i++) {
		CHECK(readable(fd, 1000));
		CHECK_EQ(b->ops->reap(b, c, 1), 1);
	}
	b->ops->reap(b, c, 8);
	calm(b, fd);

	stream_pair(s);
	struct iod_op op = message(IOD_OP_RECVMSG, s[0], &receive);
	for (int i = 0; i < 3; i++) {
		queue_op(b, op);
		CHECK_EQ(b->ops->flush(b), 0);
		b->ops->reap(b, c, 8);
		calm(b, fd);
		CHECK_EQ(write(s[1], "x", 1), 1);
		CHECK(readable(fd, 1000));
		CHECK_EQ(b->ops->flush(b), 0);
		CHECK_EQ(b->ops->reap(b, c, 8), 1);
		CHECK_EQ(c[0].res, 1);
		calm(b, fd);
	}
	close_pair(s);
	/* Doorbells: eventfds, polled, also twice; rung by another thread while this one sleeps on the descriptor. */
	int bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	for (int i = 0; i < 5; i++) {
		const uint64_t ids[2] = {0, UINT64_MAX};
		for (int k = 0; k < 2; k++)
			queue_op(b, (struct iod_op){.code = IOD_OP_POLL, .fd = bell, .poll_events = POLLIN, .user_data = ids[k]});
		CHECK_EQ(b->ops->flush(b), 0);
		b->ops->reap(b, c, 8);
		if (i == 4) {
			CHECK_EQ(b->ops->cancel(b, UINT64_MAX), 0);
			CHECK_EQ(reap_one(b).user_data, UINT64_MAX);
			CHECK_EQ(b->ops->cancel(b, UINT64_MAX), 0);
		}
		calm(b, fd);
		struct later l = {.fd = bell, .us = 3000, .times = 1};
		start(&l, ring_later);
		int64_t begin = iod_now_ns();
		uint32_t n = 0;
		while (n < (i == 4 ? 1 : 2)) {
			CHECK(readable(fd, 2000));
			CHECK_EQ(b->ops->flush(b), 0);
			n += b->ops->reap(b, c, 8);
		}
		CHECK(iod_now_ns() - begin < 500 * MS);
		CHECK(c[0].res & POLLIN);
		pthread_join(l.thread, NULL);
		calm(b, fd);
		CHECK_EQ(read(bell, in, 8), 8);
	}
	for (int i = 0; i < 3; i++) {
		struct later l = {.b = b, .us = 3000, .times = 1};
		start(&l, wake_later);
		int64_t begin = iod_now_ns();
		CHECK(readable(fd, 2000));
		CHECK(iod_now_ns() - begin < 500 * MS);
		pthread_join(l.thread, NULL);
		calm(b, fd);
	}
	/* A wake-up that reap met still ends the next wait. */
	wait_for(b, 1, 5 * MS, 0);
	CHECK_EQ(wait_for(b, 1, 5 * MS, 0), -ETIME);
	b->ops->wake(b);
	CHECK(readable(fd, 1000));
	CHECK_EQ(b->ops->reap(b, c, 8), 0);
	CHECK_EQ(wait_for(b, 1, 5000 * MS, 0), 0);
	close(bell);
	/* A file op, which a worker or the kernel's own thread may complete. */
	int file = temporary_file(PAGE);
	for (int i = 0; i < 20; i++) {
		queue_op(b, (struct iod_op){.code = IOD_OP_FSYNC, .fd = file});
		CHECK_EQ(b->ops->flush(b), 0);
		int64_t begin = iod_now_ns();
		CHECK(readable(fd, 2000));
		CHECK(iod_now_ns() - begin < 1500 * MS); /* poll looks once more when the time is up */
		CHECK_EQ(b->ops->reap(b, c, 8), 1);
		calm(b, fd);
	}
	close(file);
}

static void registered_descriptors(struct iod_backend *b)
{
	int one = temporary_file(PAGE), two = temporary_file(2 * PAGE);
	struct iovec iov = vec(bytes, 2 * PAGE);
	struct iod_op op = rw(IOD_OP_READV, one, &iov, 1, 0);
	CHECK_EQ(b->ops->set_file(b, 3, -1), 3);
	CHECK_EQ(b->ops->set_file(b, 7, one), 7);
	op.flags = IOD_OP_FIXED_FILE;
	op.file_index = 7;
	CHECK_EQ(run_op(b, op), PAGE);
	CHECK_EQ(b->ops->set_file(b, 7, two), 7);
	op.fd = two;
	CHECK_EQ(run_op(b, op), 2 * PAGE);
	CHECK_EQ(run_op(b, (struct iod_op){.code = IOD_OP_FSYNC, .fd = two, .flags = IOD_OP_FIXED_FILE, .file_index = 7}), 0);
	CHECK_EQ(b->ops->set_file(b, 7, -1), 7);
	if (variant_is_uring(variant))
		CHECK_EQ(run_op(b, op), -EBADF);
	CHECK(b->ops->set_file(b, -1, one) < 0);
	CHECK(b->ops->set_file(b, IOD_MAX_FILES, one) < 0);
	CHECK_EQ(b->ops->set_file(b, IOD_MAX_FILES - 1, one), IOD_MAX_FILES - 1);

	/* The slot does not outlive the backend. */
	close(one);
	close(two);
}

static void registered_buffers(struct iod_backend *b)
{
	int fd = temporary_file(4 * PAGE);
	unsigned char *p = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct iovec one = vec(p + PAGE, 2 * PAGE), two[2] = {vec(p, PAGE), vec(p + 5 * PAGE, PAGE)}, outside = vec(bytes, PAGE);
	CHECK_EQ(b->ops->set_buffer(b, 9, p, 16 * PAGE), 0);
	struct iod_op op = rw(IOD_OP_READV, fd, &one, 1, PAGE);
	op.flags = IOD_OP_FIXED_BUFFER;
	op.buffer_index = 9;
	CHECK_EQ(run_op(b, op), 2 * PAGE);
	CHECK(p[PAGE] == 2 && p[2 * PAGE] == 3);
	op.iov = two;
	op.niov = 2;
	CHECK_EQ(run_op(b, op), 2 * PAGE);
	CHECK(p[0] == 2 && p[5 * PAGE] == 3);
	op.code = IOD_OP_WRITEV;
	op.offset = 0;
	CHECK_EQ(run_op(b, op), 2 * PAGE);
	op.iov = &one;
	op.niov = 1;
	op.flags |= IOD_OP_DSYNC;
	CHECK_EQ(run_op(b, op), 2 * PAGE);
	unsigned char check;
	CHECK_EQ(pread(fd, &check, 1, 0), 1);
	CHECK_EQ(check, 2);
	op.iov = &outside;
	if (variant_is_uring(variant)) {
		CHECK_EQ(run_op(b, op), -EFAULT);
		two[1] = outside;
		op.iov = two;
		op.niov = 2;
		if (uring_supports((struct iod_uring *)b, URING_READV_FIXED))
			CHECK_EQ(run_op(b, op), -EFAULT);
		op.niov = 1;
	}
	CHECK_EQ(b->ops->set_buffer(b, 9, NULL, 0), 0);
	op.iov = &one;
	if (variant_is_uring(variant))
		CHECK_EQ(run_op(b, op), -EFAULT);
	CHECK(b->ops->set_buffer(b, IOD_MAX_BUFFERS, p, PAGE) < 0);
	CHECK(b->ops->set_buffer(b, 0, p, 0) < 0);
	munmap(p, 16 * PAGE);
	close(fd);
}

static void on_signal(int signo)
{
	(void)signo;
}

static void *signal_later(void *arg)
{
	struct later *l = arg;
	/* Again and again: one that comes while the waiter is between two system calls goes unseen, here as anywhere. */
	while (!__atomic_load_n(&l->stop, __ATOMIC_RELAXED)) {
		usleep((useconds_t)l->us);
		pthread_kill(l->signalled, SIGUSR1);
	}
	return NULL;
}

/* Asleep, with something submitted by the same call, and with some but too few there. */
static void signals_end_a_wait(struct iod_backend *b)
{
	int p[2];
	CHECK_EQ(pipe2(p, O_CLOEXEC), 0);
	sigaction(SIGUSR1, &(struct sigaction){.sa_handler = on_signal}, NULL);
	for (int i = 0; i < 3; i++) {
		if (i)
			queue_op(b, (struct iod_op){.code = i == 1 ? IOD_OP_POLL : IOD_OP_NOP, .fd = p[0], .poll_events = POLLIN, .user_data = (uint64_t)i});
		struct later l = {.us = 10000, .signalled = pthread_self()};
		int64_t begin = iod_now_ns(); /* before the thread that counts from then on */
		start(&l, signal_later);
		CHECK_EQ(b->ops->wait(b, 2, 5000 * MS, 0), -EINTR);
		CHECK(iod_now_ns() - begin >= 9 * MS);
		__atomic_store_n(&l.stop, true, __ATOMIC_RELAXED);
		pthread_join(l.thread, NULL);
	}
	CHECK_EQ(reap_one(b).user_data, 2); /* the NOP */
	CHECK_EQ(b->ops->cancel(b, 1), 0);
	CHECK_EQ(reap_one(b).res, -ECANCELED);
	close_pair(p);
}

/* A fork's child may only let go, and that disturbs nothing. */
static void child_lets_go(struct iod_backend *b)
{
	int p[2];
	CHECK_EQ(pipe2(p, O_CLOEXEC), 0);
	CHECK_EQ(b->ops->set_file(b, 0, p[0]), 0);
	queue_op(b, (struct iod_op){.code = IOD_OP_POLL, .fd = p[0], .poll_events = POLLIN, .user_data = 6});
	CHECK(quiet(b));
	pid_t child = fork();
	if (!child) {
		b->ops->destroy(b);
		_exit(0);
	}
	int status;
	CHECK_EQ(waitpid(child, &status, 0), child);
	CHECK_EQ(status, 0);
	CHECK_EQ(write(p[1], "x", 1), 1);
	CHECK_EQ(reap_one(b).user_data, 6);
	close_pair(p);
}

static const struct test tests[] = {
	TEST(nops_come_back_once, 64, 64),
	TEST(room_is_bounded, 16, 50),
	TEST(room_is_bounded, 1, 1),
	TEST(room_is_bounded, 64, 5),
	TEST(files, 8, 8),
	TEST(partly_cached_files, 8, 8),
	TEST(reads_at_once, 8, 8),
	TEST(many_files_ops_at_once, 128, 64),
	TEST(memory_that_is_gone, 8, 8),
	TEST(timeouts, 8, 8),
	TEST(wakes, 8, 8),
	TEST(waits_for_several, 8, 8),
	TEST(one_call_a_batch, 64, 64),
	TEST(descriptor_says_when, 8, 8),
	TEST(registered_descriptors, 8, 8),
	TEST(registered_buffers, 8, 8),
	TEST(signals_end_a_wait, 8, 8),
	TEST(child_lets_go, 8, 8),
};

int main(void)
{
	return run_tests("test_backend", tests, sizeof tests / sizeof tests[0]);
}
