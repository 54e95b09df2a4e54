/* SPDX-License-Identifier: Apache-2.0
 *
 * test_backend_sockets: the promises of backend.h about what waits for somebody else: sockets, polls, and cancelling
 * them.
 */
#include <netinet/in.h>
#include <string.h>
#include <unistd.h>

#include "backends.h"

static unsigned char bytes[1 << 20];

static void streams(struct iod_backend *b)
{
	int s[2];
	unsigned char in[64] = {0};
	struct iovec iov[2] = {vec(bytes, 5), vec(bytes + 10, 7)}, into = vec(in, sizeof in);
	struct msghdr send = header(iov, 2), one = header(iov, 1), receive = header(&into, 1);
	stream_pair(s);
	for (size_t i = 0; i < 32; i++)
		bytes[i] = (unsigned char)(i + 1);

	CHECK_EQ(run_op(b, message(IOD_OP_SENDMSG, s[0], &send)), 12);
	CHECK_EQ(run_op(b, message(IOD_OP_RECVMSG, s[1], &receive)), 12);
	CHECK(in[4] == 5 && in[5] == 11 && in[11] == 17);

	/* A receive with nothing there waits, blocks nobody, and ends when something comes. */
	struct iod_op op = message(IOD_OP_RECVMSG, s[1], &receive);
	op.user_data = 8;
	queue_op(b, op);
	CHECK(quiet(b));
	CHECK_EQ(run_op(b, message(IOD_OP_SENDMSG, s[1], &one)), 5); /* nor the other direction */
	CHECK_EQ(write(s[0], "abc", 3), 3);
	struct iod_cqe c = reap_one(b);
	CHECK_EQ(c.user_data, 8);
	CHECK_EQ(c.res, 3);

	/* A full socket: the send is short, the next one waits until there is room. */
	static unsigned char drain[1 << 20];
	CHECK_EQ(recv(s[0], in, sizeof in, MSG_DONTWAIT), 5); /* not to be taken for room */
	struct iovec large = vec(bytes, sizeof bytes);
	struct msghdr flood = header(&large, 1);
	for (int i = 0;; i++) {
		CHECK(i < 100);
		op = message(IOD_OP_SENDMSG, s[0], &flood);
		queue_op(b, op);
		if (quiet(b))
			break;
		c = reap_one(b);
		CHECK(c.res > 0 && c.res <= (int)sizeof bytes);
	}
	while (recv(s[1], drain, sizeof drain, MSG_DONTWAIT) > 0)
		;
	CHECK(reap_one(b).res > 0);
	close_pair(s);
}

/* A request that is not to wait says that it would have to. */
static void without_waiting(struct iod_backend *b)
{
	int s[2];
	static unsigned char in[1 << 20]; /* more than is tried in a flush */
	struct iovec into = vec(in, sizeof in), out = vec(bytes, sizeof bytes);
	struct msghdr receive = header(&into, 1), send = header(&out, 1);
	stream_pair(s);
	struct iod_op op = message(IOD_OP_RECVMSG, s[1], &receive);
	op.flags = IOD_OP_NOWAIT;
	CHECK_EQ(run_op(b, op), -EAGAIN);
	CHECK_EQ(write(s[0], "abc", 3), 3);
	CHECK_EQ(run_op(b, op), 3);
	into.iov_len = 1;
	CHECK_EQ(run_op(b, op), -EAGAIN);
	op = message(IOD_OP_SENDMSG, s[0], &send);
	op.flags = IOD_OP_NOWAIT;
	int32_t sent = 1;
	for (int i = 0; i < 1000 && sent > 0; i++)
		sent = run_op(b, op);
	CHECK_EQ(sent, -EAGAIN);
	out.iov_len = 1;
	CHECK_EQ(run_op(b, op), -EAGAIN);
	CHECK(quiet(b));
	close_pair(s);
}

static void closed_peers(struct iod_backend *b)
{
	int s[2];
	unsigned char in[8];
	struct iovec iov = vec(bytes, 100), into = vec(in, sizeof in);
	struct msghdr send = header(&iov, 1), receive = header(&into, 1);
	stream_pair(s);
	struct iod_op op = message(IOD_OP_RECVMSG, s[0], &receive);
	queue_op(b, op);
	CHECK(quiet(b));
	close(s[1]);
	CHECK_EQ(reap_one(b).res, 0);
	/* SIGPIPE would end this program. */
	CHECK_EQ(run_op(b, message(IOD_OP_SENDMSG, s[0], &send)), -EPIPE);
	close(s[0]);
	CHECK_EQ(run_op(b, message(IOD_OP_SENDMSG, -1, &send)), -EBADF);
}

static void packets(struct iod_backend *b)
{
	int s[2];
	unsigned char in[8], head[2] = {9, 9};
	struct iovec out[2] = {vec(head, 2), vec(bytes, 100)}, into = vec(in, sizeof in);
	struct msghdr send = header(out, 2), receive = header(&into, 1);
	CHECK_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, s), 0);
	CHECK_EQ(run_op(b, message(IOD_OP_SENDMSG, s[0], &send)), 102);
	CHECK_EQ(run_op(b, message(IOD_OP_RECVMSG, s[1], &receive)), 8);
	CHECK(receive.msg_flags & MSG_TRUNC);
	CHECK(in[0] == 9 && in[2] == bytes[0]);
	close_pair(s);
}

#define MANY 8

/* Several packets in one op: a prefix goes, and it never waits. */
static void many_packets(struct iod_backend *b)
{
	int s[2], small = 4096;
	unsigned char in[MANY][16];
	struct iovec out[MANY], into[MANY];
	struct mmsghdr send[MANY], receive[MANY];
	CHECK_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, s), 0);
	struct iod_op sends = {.code = IOD_OP_SEND_PACKETS, .fd = s[0], .packets = send, .niov = MANY, .user_data = 3};
	struct iod_op receives = {.code = IOD_OP_RECEIVE_PACKETS, .fd = s[1], .packets = receive, .niov = MANY};
	for (size_t i = 0; i < MANY; i++) {
		bytes[i] = (unsigned char)(i + 1);
		out[i] = vec(bytes + i, 20 - i);
		into[i] = vec(in[i], sizeof in[i]);
		send[i] = (struct mmsghdr){.msg_hdr = header(&out[i], 1)};
		receive[i] = (struct mmsghdr){.msg_hdr = header(&into[i], 1)};
	}
	CHECK_EQ(run_op(b, receives), -EAGAIN);
	CHECK_EQ(run_op(b, sends), MANY);
	receives.niov = MANY - 1;
	CHECK_EQ(run_op(b, receives), MANY - 1);
	receives.niov = MANY;
	CHECK(receive[0].msg_hdr.msg_flags & MSG_TRUNC);
	for (size_t i = 0; i < MANY - 1; i++) {
		CHECK_EQ(send[i].msg_len, 20 - i);
		CHECK_EQ(receive[i].msg_len, 20 - i < 16 ? 20 - i : 16);
		CHECK_EQ(in[i][0], i + 1);
	}
	CHECK_EQ(run_op(b, receives), 1); /* the last one, and no more */
	CHECK_EQ(in[0][0], MANY);

	/* One that is too long ends the call in front of it. */
	CHECK_EQ(setsockopt(s[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof small), 0);
	out[3] = vec(bytes, sizeof bytes);
	CHECK_EQ(run_op(b, sends), 3);
	sends.packets = send + 3;
	sends.niov = MANY - 3;
	CHECK_EQ(run_op(b, sends), -EMSGSIZE);
	sends.packets = send + 4;
	sends.niov = 1;
	while (run_op(b, sends) == 1)
		;
	CHECK_EQ(run_op(b, sends), -EAGAIN);

	/* What was not handed over is cancelled, and nothing of it went. */
	while (recv(s[1], in[0], sizeof in[0], MSG_DONTWAIT) > 0)
		;
	struct iod_op other = sends;
	other.user_data = 4;
	queue_op(b, sends);
	queue_op(b, other);
	CHECK_EQ(b->ops->cancel(b, 3), 0);
	struct iod_cqe c[2];
	b->ops->flush(b);
	CHECK_EQ(b->ops->reap(b, c, 2), 2);
	CHECK_EQ(c[c[0].user_data == 4].res, -ECANCELED);
	CHECK_EQ(c[c[0].user_data != 4].res, 1);
	CHECK_EQ(recv(s[1], in[0], sizeof in[0], MSG_DONTWAIT), 16);
	CHECK(recv(s[1], in[0], sizeof in[0], MSG_DONTWAIT) < 0);
	close(s[1]);
	CHECK_EQ(run_op(b, sends), -EPIPE);
	close(s[0]);
}

static void polls(struct iod_backend *b)
{
	int p[2];
	CHECK_EQ(pipe2(p, O_CLOEXEC), 0);
	struct iod_op op = {.code = IOD_OP_POLL, .fd = p[0], .poll_events = POLLIN, .user_data = 5};
	queue_op(b, op);
	CHECK(quiet(b));
	CHECK_EQ(write(p[1], "x", 1), 1);
	struct iod_cqe c = reap_one(b);
	CHECK_EQ(c.user_data, 5);
	CHECK(c.res & POLLIN);
	CHECK(quiet(b));				    /* one shot */
	CHECK(run_op(b, op) & POLLIN);			    /* ready from the start */
	CHECK_EQ(run_op(b, (struct iod_op){.code = IOD_OP_POLL, .fd = p[1], .poll_events = POLLOUT}), POLLOUT);
	CHECK_EQ(read(p[0], (char[1]){0}, 1), 1);
	queue_op(b, op);
	CHECK(quiet(b));
	close(p[1]);
	CHECK(reap_one(b).res & POLLHUP);
	close(p[0]);
	CHECK_EQ(run_op(b, (struct iod_op){.code = IOD_OP_POLL, .fd = -1, .poll_events = POLLIN}), -EBADF);
}

static void cancels(struct iod_backend *b)
{
	int s[2];
	unsigned char in[8];
	struct iovec into = vec(in, sizeof in);
	struct msghdr receive = header(&into, 1);
	stream_pair(s);
	struct iod_op ops[2] = {
		message(IOD_OP_RECVMSG, s[0], &receive),
		{.code = IOD_OP_POLL, .fd = s[1], .poll_events = POLLIN},
	};
	for (int i = 0; i < 2; i++) {
		for (int flushed = 0; flushed < 2; flushed++) {
			ops[i].user_data = 100;
			queue_op(b, ops[i]);
			if (flushed)
				CHECK(quiet(b));
			CHECK_EQ(b->ops->cancel(b, 101), 0); /* nobody */
			CHECK_EQ(b->ops->cancel(b, 100), 0);
			struct iod_cqe c = reap_one(b);
			CHECK_EQ(c.user_data, 100);
			CHECK_EQ(c.res, -ECANCELED);
			CHECK_EQ(b->ops->cancel(b, 100), 0); /* too late */
			CHECK(quiet(b));
		}
	}
	CHECK_EQ(b->stats.cancels, 12);
	/* What was cancelled reads nothing afterwards. */
	CHECK_EQ(write(s[1], "x", 1), 1);
	CHECK_EQ(recv(s[0], in, 8, MSG_DONTWAIT), 1);
	/* The cancelled one alone ends. */
	for (uint64_t i = 0; i < 3; i++) {
		ops[0].user_data = i;
		queue_op(b, ops[0]);
	}
	CHECK(quiet(b));
	CHECK_EQ(b->ops->cancel(b, 1), 0);
	CHECK_EQ(reap_one(b).user_data, 1);
	CHECK(quiet(b));
	CHECK_EQ(b->ops->cancel(b, 0), 0);
	CHECK_EQ(b->ops->cancel(b, 2), 0);
	CHECK_EQ(reap_one(b).res, -ECANCELED);
	CHECK_EQ(reap_one(b).res, -ECANCELED);
	close_pair(s);
}

/* More cancels than any ring has room for: none is lost, none is seen. */
static void cancels_without_end(struct iod_backend *b)
{
	struct iod_cqe c;
	for (int i = 0; i < 3000; i++) {
		int r = b->ops->cancel(b, 12345);
		if (r == -EAGAIN) {
			r = b->ops->flush(b);
			CHECK(r == 0 || r == -EBUSY);
		}
		if (i % 1000 == 999)
			CHECK_EQ(b->ops->reap(b, &c, 1), 0);
	}
	CHECK_EQ(run_op(b, (struct iod_op){.code = IOD_OP_NOP}), 0);
	CHECK(quiet(b));
}

static void tcp_pair(int s[2])
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	socklen_t size = sizeof a;
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	CHECK(!bind(listener, (struct sockaddr *)&a, size) && !listen(listener, 1));
	CHECK(!getsockname(listener, (struct sockaddr *)&a, &size));
	s[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	CHECK(!connect(s[0], (struct sockaddr *)&a, size));
	s[1] = accept(listener, NULL, NULL);
	CHECK(s[1] >= 0);
	close(listener);
}

static void zero_copy_sends(struct iod_backend *b)
{
	int s[2];
	tcp_pair(s);
	for (size_t segments = 1; segments <= 3; segments += 2) {
		struct iovec iov[3] = {vec(bytes, 5000), vec(bytes + 9000, 100), vec(bytes, 1)};
		struct msghdr send = header(iov, segments);
		int want = segments == 1 ? 5000 : 5101;
		struct iod_op op = message(IOD_OP_SEND_ZC, s[0], &send);
		op.user_data = 3;
		queue_op(b, op);
		uint32_t room = b->ops->room(b);
		struct iod_cqe c = reap_one(b);
		CHECK_EQ(c.user_data, 3);
		if (c.res == -EOPNOTSUPP) {
			CHECK(!variant_is_uring(variant));
			CHECK_EQ(c.flags, 0);
			continue;
		}
		CHECK_EQ(c.res, want);
		CHECK_EQ(c.flags, IOD_CQE_MORE);
		CHECK(b->ops->room(b) <= room + 1);
		static unsigned char in[8192];
		for (int got = 0, n; got < want; got += n) {
			n = (int)recv(s[1], in, sizeof in, 0);
			CHECK(n > 0);
		}
		c = reap_one(b); /* the memory is free again */
		CHECK_EQ(c.user_data, 3);
		CHECK_EQ(c.flags, 0);
	}
	CHECK(quiet(b));
	close_pair(s);
	/* Where the socket cannot do it, the op says so. */
	struct iovec iov = vec(bytes, 10);
	struct msghdr send = header(&iov, 1);
	stream_pair(s);
	queue_op(b, message(IOD_OP_SEND_ZC, s[0], &send));
	struct iod_cqe c = reap_one(b);
	CHECK_EQ(c.res, -EOPNOTSUPP);
	if (c.flags & IOD_CQE_MORE)
		CHECK_EQ(reap_one(b).flags, 0);
	CHECK(quiet(b));
	close_pair(s);
}

static const struct test tests[] = {
	TEST(streams, 8, 8),
	TEST(without_waiting, 8, 8),
	TEST(closed_peers, 8, 8),
	TEST(packets, 8, 8),
	TEST(many_packets, 8, 8),
	TEST(polls, 8, 8),
	TEST(cancels, 8, 8),
	TEST(cancels_without_end, 8, 8),
	TEST(zero_copy_sends, 8, 8),
};

int main(void)
{
	return run_tests("test_backend_sockets", tests, sizeof tests / sizeof tests[0]);
}
