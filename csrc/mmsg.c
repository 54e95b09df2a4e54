/* SPDX-License-Identifier: Apache-2.0
 *
 * mmsg: several packets of one endpoint in one call, for both backends.
 *
 * Why not the ring: without links two sends of one socket may pass each other as soon as the first has to wait; with them
 * each is started by the end of the one before, which costs more than the system call that a plain loop would make, and
 * none but the first can be cancelled.
 *
 * Invariants
 *  - It never waits, so it is made by whoever flushes, and nothing is in flight when it returns.
 *  - What went is a prefix: the first packet that cannot go ends the call, and its error is the result only if it is the
 *    first of all. */
#include <errno.h>
#include <sys/uio.h>

#include "backend.h"

/* A tap, whose descriptor does not block: a call a packet. */
static int one_by_one(const struct iod_op *op)
{
	bool out = op->code == IOD_OP_SEND_PACKETS;

	for (uint32_t i = 0; i < op->niov; i++) {
		const struct msghdr *m = &op->packets[i].msg_hdr;
		ssize_t n = out ? writev(op->fd, m->msg_iov, (int)m->msg_iovlen)
				: readv(op->fd, m->msg_iov, (int)m->msg_iovlen);
		if (n < 0)
			return i ? (int)i : -1;
		op->packets[i].msg_len = (unsigned)n;
	}
	return (int)op->niov;
}

int32_t iod_packets_run(const struct iod_op *op)
{
	int n;

	if (op->mode)
		n = one_by_one(op);
	else if (op->code == IOD_OP_SEND_PACKETS)
		n = sendmmsg(op->fd, op->packets, op->niov, MSG_NOSIGNAL | MSG_DONTWAIT);
	else
		n = recvmmsg(op->fd, op->packets, op->niov, MSG_DONTWAIT, NULL);
	return n < 0 ? -errno : n;
}
