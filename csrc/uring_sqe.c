/* SPDX-License-Identifier: Apache-2.0
 *
 * uring_sqe: one op of the backend interface becomes one submission entry, in its cheapest form.
 *
 * Invariants
 *  - A vector of one segment goes as a plain buffer: the kernel then imports no iovec.
 *  - A send of one segment without address or control data goes as SEND; a receive stays RECVMSG, because only that
 *    reports msg_flags (truncation).
 *  - No send raises SIGPIPE.
 */
#include <string.h>

#include "uring_internal.h"

#define LEN_MAX 0x7ffff000u /* the most the kernel moves in one request */
#define RWF_DSYNC_BIT 2u

static void fill_rw(const struct iod_uring *u, struct uring_sqe *s, const struct iod_op *op)
{
	bool write = op->code == IOD_OP_WRITEV;
	bool fixed = (op->flags & IOD_OP_FIXED_BUFFER) && u->buffers_registered;
	s->off = op->offset;
	if (write && (op->flags & IOD_OP_DSYNC))
		s->op_flags = RWF_DSYNC_BIT;
	if (op->niov == 1 && op->iov->iov_len <= LEN_MAX) {
		s->opcode = write ? (fixed ? URING_WRITE_FIXED : URING_WRITE) : (fixed ? URING_READ_FIXED : URING_READ);
		s->addr = (uint64_t)(uintptr_t)op->iov->iov_base;
		s->len = (uint32_t)op->iov->iov_len;
	} else {
		fixed = fixed && uring_supports(u, URING_READV_FIXED) && uring_supports(u, URING_WRITEV_FIXED);
		s->opcode = write ? (fixed ? URING_WRITEV_FIXED : URING_WRITEV) : (fixed ? URING_READV_FIXED : URING_READV);
		s->addr = (uint64_t)(uintptr_t)op->iov;
		s->len = op->niov;
	}
	if (fixed)
		s->buf_index = op->buffer_index;
}

static void fill_send(const struct iod_uring *u, struct uring_sqe *s, const struct iod_op *op, bool zero_copy)
{
	const struct msghdr *m = op->msg;
	s->op_flags = MSG_NOSIGNAL | (op->flags & IOD_OP_NOWAIT ? MSG_DONTWAIT : 0);
	if (m->msg_iovlen == 1 && !m->msg_namelen && !m->msg_controllen && m->msg_iov->iov_len <= LEN_MAX) {
		s->opcode = zero_copy ? URING_SEND_ZC : URING_SEND;
		s->addr = (uint64_t)(uintptr_t)m->msg_iov->iov_base;
		s->len = (uint32_t)m->msg_iov->iov_len;
		if (zero_copy && (op->flags & IOD_OP_FIXED_BUFFER) && u->buffers_registered) {
			s->ioprio = URING_RECVSEND_FIXED_BUF;
			s->buf_index = op->buffer_index;
		}
	} else {
		s->opcode = zero_copy ? URING_SENDMSG_ZC : URING_SENDMSG;
		s->addr = (uint64_t)(uintptr_t)m;
		s->len = 1;
	}
}

static void begin(const struct iod_uring *u, struct uring_sqe *s, const struct iod_op *op)
{
	bool fixed = (op->flags & IOD_OP_FIXED_FILE) && u->files_registered;

	memset(s, 0, sizeof *s);
	s->fd = fixed ? op->file_index : op->fd;
	s->flags = fixed ? URING_SQE_FIXED_FILE : 0;
	s->user_data = op->user_data;
}

bool iod_uring_fill_sqe(const struct iod_uring *u, struct uring_sqe *s, const struct iod_op *op)
{
	if (op->code == IOD_OP_READV || op->code == IOD_OP_WRITEV) {
		begin(u, s, op);
		fill_rw(u, s, op);
		return true;
	}
	if (op->code > IOD_OP_POLL)
		return false;
	if (op->code == IOD_OP_SEND_ZC && !(uring_supports(u, URING_SEND_ZC) && uring_supports(u, URING_SENDMSG_ZC)))
		return false;
	begin(u, s, op);
	switch (op->code) {
	case IOD_OP_SENDMSG:
		fill_send(u, s, op, false);
		break;
	case IOD_OP_SEND_ZC:
		fill_send(u, s, op, true);
		break;
	case IOD_OP_RECVMSG:
		s->opcode = URING_RECVMSG;
		s->op_flags = iod_receive_flags(op) | (op->flags & IOD_OP_NOWAIT ? MSG_DONTWAIT : 0);
		s->addr = (uint64_t)(uintptr_t)op->msg;
		s->len = 1;
		break;
	case IOD_OP_FSYNC:
		s->opcode = URING_FSYNC;
		s->op_flags = URING_FSYNC_DATASYNC;
		break;
	case IOD_OP_FALLOCATE:
		s->opcode = URING_FALLOCATE;
		s->off = op->offset;
		s->addr = op->length;
		s->len = (uint32_t)op->mode;
		break;
	case IOD_OP_POLL:
		s->opcode = URING_POLL_ADD;
		s->op_flags = op->poll_events;
		break;
	default: /* IOD_OP_NOP */
		s->opcode = URING_NOP;
		s->fd = -1;
		s->flags = 0;
		break;
	}
	return true;
}
