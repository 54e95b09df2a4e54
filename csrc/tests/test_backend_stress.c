/* SPDX-License-Identifier: Apache-2.0
 *
 * test_backend_stress: every op gives exactly one completion, whatever is cancelled, woken, rung and sent meanwhile.
 */
#include <pthread.h>
#include <sys/eventfd.h>

#include "backends.h"
#include "spin.h"

#define SLOTS 48
#define RUN_MS 400

struct slot {
	bool out, cancelled;
	uint8_t code;
	uint64_t generation;
	struct iovec iov;
	struct msghdr msg;
	unsigned char data[PAGE];
};

struct crowd {
	struct iod_backend *b;
	int bell, socket;
	bool stop; /* atomic */
};

static struct slot slots[SLOTS];
static uint64_t seed = 7;

static uint32_t below(uint32_t n)
{
	return check_random(&seed) % n;
}

/* Wakes, rings and sends at odd times. */
static void *disturb(void *arg)
{
	struct crowd *w = arg;
	uint64_t state = 99, one = 1;
	while (!__atomic_load_n(&w->stop, __ATOMIC_RELAXED)) {
		switch (check_random(&state) % 4) {
		case 0:
			w->b->ops->wake(w->b);
			break;
		case 1:
			CHECK_EQ(write(w->bell, &one, sizeof one), sizeof one);
			break;
		case 2:
			send(w->socket, "hello", 5, MSG_DONTWAIT | MSG_NOSIGNAL);
			break;
		default:
			usleep(check_random(&state) % 300);
		}
	}
	return NULL;
}

static void start_one(struct iod_backend *b, uint32_t i, int file, int bell, int receiver)
{
	static const uint8_t codes[] = {IOD_OP_NOP, IOD_OP_READV, IOD_OP_READV, IOD_OP_WRITEV, IOD_OP_RECVMSG, IOD_OP_POLL, IOD_OP_FSYNC};
	struct slot *s = &slots[i];
	s->code = codes[below(sizeof codes)];
	if (s->code == IOD_OP_FSYNC && below(8))
		s->code = IOD_OP_NOP;
	s->out = true;
	s->cancelled = false;
	s->generation++;
	s->iov = vec(s->data, s->code == IOD_OP_RECVMSG ? 3 : PAGE);
	s->msg = header(&s->iov, 1);
	memset(s->data, s->code == IOD_OP_WRITEV ? (int)i : 0xff, PAGE);
	queue_op(b, (struct iod_op){
		.code = s->code,
		.fd = s->code == IOD_OP_RECVMSG ? receiver : s->code == IOD_OP_POLL ? bell : file,
		.iov = &s->iov,
		.niov = 1,
		.msg = &s->msg,
		.offset = i * PAGE,
		.poll_events = POLLIN,
		.user_data = s->generation << 8 | i,
	});
}

static void check_one(const struct iod_cqe *c)
{
	struct slot *s = &slots[c->user_data & 0xff];
	CHECK((c->user_data & 0xff) < SLOTS);
	CHECK_EQ(c->user_data >> 8, s->generation);
	CHECK(s->out);
	CHECK_EQ(c->flags, 0);
	s->out = false;
	if (s->cancelled && (c->res == -ECANCELED || c->res == -EINTR))
		return;
	switch (s->code) {
	case IOD_OP_READV:
	case IOD_OP_WRITEV:
		CHECK_EQ(c->res, PAGE);
		CHECK_EQ(s->data[0], c->user_data & 0xff); /* nobody else writes there */
		CHECK_EQ(s->data[PAGE - 1], c->user_data & 0xff);
		break;
	case IOD_OP_RECVMSG:
		CHECK(c->res > 0 && c->res <= 3);
		break;
	case IOD_OP_POLL:
		CHECK_EQ(c->res, POLLIN);
		break;
	default:
		CHECK_EQ(c->res, 0);
	}
}

static uint32_t take(struct iod_backend *b)
{
	struct iod_cqe c[16];
	uint32_t n = b->ops->reap(b, c, 1 + below(16));
	for (uint32_t i = 0; i < n; i++)
		check_one(&c[i]);
	return n;
}

static void disturbed(struct iod_backend *b, bool foreign_loop)
{
	int s[2], file = temporary_file(SLOTS * PAGE);
	uint32_t out = 0;
	stream_pair(s);
	struct crowd w = {.b = b, .bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), .socket = s[0]};
	pthread_t thread;
	for (uint32_t i = 0; i < SLOTS; i++) {
		memset(slots[i].data, (int)i, PAGE);
		CHECK_EQ(pwrite(file, slots[i].data, PAGE, i * PAGE), PAGE);
	}
	CHECK_EQ(pthread_create(&thread, NULL, disturb, &w), 0);
	int64_t end = iod_now_ns() + RUN_MS * MS;
	uint64_t rounds = 0;
	for (; iod_now_ns() < end || rounds < 200; rounds++) {
		for (uint32_t i = below(SLOTS), n = below(10); n && b->ops->room(b); n--, i = (i + 1) % SLOTS)
			if (!slots[i].out) {
				start_one(b, i, file, w.bell, s[1]);
				out++;
			}
		for (uint32_t n = below(4), i; n; n--) {
			i = below(SLOTS);
			if (slots[i].out && !b->ops->cancel(b, slots[i].generation << 8 | i))
				slots[i].cancelled = true;
		}
		if (foreign_loop) {
			CHECK_EQ(b->ops->flush(b), 0);
			readable(b->ops->fileno(b), (int)below(3));
		} else {
			int r = b->ops->wait(b, below(1 + (out < 8 ? out : 8)), (int64_t)below(2000) * 1000, below(2) * 20000);
			CHECK(r == 0 || r == -ETIME || r == -EINTR);
		}
		out -= take(b);
		uint64_t count;
		if (below(3) && read(w.bell, &count, sizeof count) < 0)
			CHECK_EQ(errno, EAGAIN);
	}
	__atomic_store_n(&w.stop, true, __ATOMIC_RELAXED);
	pthread_join(thread, NULL);
	for (uint32_t i = 0; i < SLOTS; i++) {
		if (!slots[i].out)
			continue;
		while (b->ops->cancel(b, slots[i].generation << 8 | i))
			CHECK_EQ(b->ops->flush(b), 0);
		slots[i].cancelled = true;
	}
	while (out) {
		CHECK_EQ(wait_for(b, 1, 5000 * MS, 0), 0);
		out -= take(b);
	}
	for (uint32_t i = 0; i < SLOTS; i++)
		CHECK(!slots[i].out);
	CHECK_EQ(b->stats.queued, b->stats.completed);
	close_pair(s);
	close(w.bell);
	close(file);
}

static void own_loop(struct iod_backend *b)
{
	disturbed(b, false);
}

static void foreign_loop(struct iod_backend *b)
{
	disturbed(b, true);
}

static const struct test tests[] = {
	TEST(own_loop, 32, SLOTS),
	TEST(foreign_loop, 32, SLOTS),
	TEST(own_loop, 8, 16),
};

int main(void)
{
	return run_tests("test_backend_stress", tests, sizeof tests / sizeof tests[0]);
}
