/* SPDX-License-Identifier: Apache-2.0
 *
 * test_uring_sqe: an op becomes the submission entry that is cheapest and still right; what the kernel's answer would
 * not show (durability, no SIGPIPE, which opcode) is looked at here.
 */
#include <string.h>

#include "backends.h"

static struct iod_uring u;
static struct uring_sqe s;

static void fill(struct iod_op op)
{
	memset(&s, 0xee, sizeof s); /* whatever was in the slot before */
	op.user_data = 77;
	CHECK(iod_uring_fill_sqe(&u, &s, &op));
	CHECK_EQ(s.user_data, 77);
	CHECK_EQ(s.personality, 0);
	CHECK_EQ(s.file_index, 0);
	CHECK_EQ(s.addr3 | s.pad, 0);
}

static void support(unsigned opcode)
{
	u.opcodes[opcode / 64] |= 1ull << (opcode % 64);
}

static void reads_and_writes(void)
{
	static const struct {
		uint8_t code, flags;
		uint32_t niov;
		bool registered, vectors;
		enum uring_opcode want;
	} cases[] = {
		{IOD_OP_READV, 0, 1, true, true, URING_READ},
		{IOD_OP_READV, 0, 2, true, true, URING_READV},
		{IOD_OP_WRITEV, 0, 1, true, true, URING_WRITE},
		{IOD_OP_WRITEV, 0, 3, true, true, URING_WRITEV},
		{IOD_OP_READV, IOD_OP_FIXED_BUFFER, 1, true, true, URING_READ_FIXED},
		{IOD_OP_WRITEV, IOD_OP_FIXED_BUFFER, 1, true, true, URING_WRITE_FIXED},
		{IOD_OP_READV, IOD_OP_FIXED_BUFFER, 2, true, true, URING_READV_FIXED},
		{IOD_OP_WRITEV, IOD_OP_FIXED_BUFFER, 2, true, true, URING_WRITEV_FIXED},
		{IOD_OP_READV, IOD_OP_FIXED_BUFFER, 2, true, false, URING_READV},
		{IOD_OP_READV, IOD_OP_FIXED_BUFFER, 1, false, true, URING_READ},
	};
	struct iovec iov[3] = {vec(&u, 100), vec(&s, 20), vec(&s, 1)};
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		memset(&u, 0, sizeof u);
		u.buffers_registered = cases[i].registered;
		if (cases[i].vectors) {
			support(URING_READV_FIXED);
			support(URING_WRITEV_FIXED);
		}
		struct iod_op op = rw(cases[i].code, 5, iov, cases[i].niov, 1ull << 40);
		op.flags = cases[i].flags;
		op.buffer_index = 9;
		fill(op);
		CHECK_EQ(s.opcode, cases[i].want);
		CHECK_EQ(s.fd, 5);
		CHECK_EQ(s.off, 1ull << 40);
		CHECK_EQ(s.op_flags, 0);
		CHECK_EQ(s.addr, (uintptr_t)(cases[i].niov == 1 ? iov[0].iov_base : (void *)iov));
		CHECK_EQ(s.len, cases[i].niov == 1 ? 100 : cases[i].niov);
		bool fixed = cases[i].want != URING_READ && cases[i].want != URING_READV && cases[i].flags;
		CHECK_EQ(s.buf_index, fixed ? 9 : 0);
		op.flags |= IOD_OP_DSYNC;
		fill(op);
		CHECK_EQ(s.op_flags, op.code == IOD_OP_WRITEV ? RWF_DSYNC : 0);
	}
	/* More than one request can say or do. */
	struct iovec huge = vec(NULL, 5ull << 30);
	fill(rw(IOD_OP_READV, 5, &huge, 1, 0));
	CHECK_EQ(s.opcode, URING_READV);
	CHECK_EQ(s.len, 1);
}

static void messages(void)
{
	struct iovec iov[2] = {vec(&u, 100), vec(&s, 20)};
	char control[32], name[16];
	for (int zero_copy = 0; zero_copy < 2; zero_copy++) {
		memset(&u, 0, sizeof u);
		int code = zero_copy ? IOD_OP_SEND_ZC : IOD_OP_SENDMSG;
		for (int kind = 0; kind < 4; kind++) {
			struct msghdr m = header(iov, kind == 1 ? 2 : 1);
			m.msg_control = kind == 2 ? control : NULL;
			m.msg_controllen = kind == 2 ? sizeof control : 0;
			m.msg_name = kind == 3 ? name : NULL;
			m.msg_namelen = kind == 3 ? sizeof name : 0;
			struct iod_op op = message(code, 6, &m);
			if (zero_copy) {
				u.opcodes[0] = 0;
				CHECK(!iod_uring_fill_sqe(&u, &s, &op));
				support(URING_SEND_ZC);
				support(URING_SENDMSG_ZC);
			}
			fill(op);
			int plain = zero_copy ? URING_SEND_ZC : URING_SEND, full = zero_copy ? URING_SENDMSG_ZC : URING_SENDMSG;
			CHECK_EQ(s.opcode, kind ? full : plain);
			CHECK_EQ(s.addr, (uintptr_t)(kind ? (void *)&m : iov[0].iov_base));
			CHECK_EQ(s.len, kind ? 1 : 100);
			CHECK_EQ(s.op_flags, MSG_NOSIGNAL);
			CHECK_EQ(s.ioprio, 0);
			op.flags = IOD_OP_FIXED_BUFFER;
			op.buffer_index = 3;
			u.buffers_registered = true;
			fill(op);
			CHECK_EQ(s.ioprio, zero_copy && !kind ? URING_RECVSEND_FIXED_BUF : 0);
			CHECK_EQ(s.buf_index, zero_copy && !kind ? 3 : 0);
			op.flags = IOD_OP_NOWAIT;
			fill(op);
			CHECK_EQ(s.op_flags, MSG_NOSIGNAL | MSG_DONTWAIT);
		}
	}
	struct msghdr m = header(iov, 1);
	fill(message(IOD_OP_RECVMSG, 6, &m));
	CHECK_EQ(s.opcode, URING_RECVMSG); /* which reports truncation */
	CHECK_EQ(s.addr, (uintptr_t)&m);
	CHECK_EQ(s.op_flags, 0);
	struct iod_op op = message(IOD_OP_RECVMSG, 6, &m);
	op.flags = IOD_OP_NOWAIT;
	fill(op);
	CHECK_EQ(s.op_flags, MSG_DONTWAIT);
}

static void the_rest(void)
{
	memset(&u, 0, sizeof u);
	struct iod_op op = {.code = IOD_OP_FSYNC, .fd = 4, .flags = IOD_OP_FIXED_FILE, .file_index = 8};
	fill(op); /* nothing is registered */
	CHECK(s.opcode == URING_FSYNC && s.op_flags == URING_FSYNC_DATASYNC && s.fd == 4 && !s.flags);
	u.files_registered = true;
	fill(op);
	CHECK(s.fd == 8 && s.flags == URING_SQE_FIXED_FILE);
	fill((struct iod_op){.code = IOD_OP_FALLOCATE, .fd = 4, .mode = 3, .offset = 1ull << 33, .length = 1ull << 34});
	CHECK(s.opcode == URING_FALLOCATE && s.off == 1ull << 33 && s.addr == 1ull << 34 && s.len == 3);
	fill((struct iod_op){.code = IOD_OP_POLL, .fd = 4, .poll_events = POLLIN | POLLRDHUP});
	CHECK(s.opcode == URING_POLL_ADD && s.op_flags == (POLLIN | POLLRDHUP) && s.len == 0);
	fill((struct iod_op){.code = IOD_OP_NOP, .fd = 4, .flags = IOD_OP_FIXED_FILE});
	CHECK(s.opcode == URING_NOP && !s.flags);
	CHECK(!iod_uring_fill_sqe(&u, &s, &(struct iod_op){.code = IOD_OP_POLL + 1}));
}

int main(void)
{
	reads_and_writes();
	messages();
	the_rest();
	printf("test_uring_sqe: ok\n");
	return 0;
}
