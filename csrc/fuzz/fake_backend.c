/* SPDX-License-Identifier: Apache-2.0
 *
 * fake_backend: see fake_backend.h. */
#include "fake_backend.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static struct fake *fake_of(struct iod_backend *backend)
{
	return (struct fake *)backend; /* its first member */
}

static bool reads(const struct iod_op *op) /* into memory */
{
	return op->code == IOD_OP_READV || op->code == IOD_OP_RECVMSG || op->code == IOD_OP_RECEIVE_PACKETS;
}

static bool moves(const struct iod_op *op)
{
	return (op->code <= IOD_OP_SEND_ZC && op->code != IOD_OP_NOP) || iod_is_packets(op);
}

uint32_t fake_vectors(const struct iod_op *op)
{
	return !moves(op) ? 0 : iod_is_packets(op) ? op->niov : 1;
}

const struct iovec *fake_vector(const struct iod_op *op, uint32_t which, size_t *count)
{
	if (iod_is_packets(op)) {
		*count = op->packets[which].msg_hdr.msg_iovlen;
		return op->packets[which].msg_hdr.msg_iov;
	}
	if (op->code == IOD_OP_READV || op->code == IOD_OP_WRITEV) {
		*count = op->niov;
		return op->iov;
	}
	*count = op->msg->msg_iovlen;
	return op->msg->msg_iov;
}

static void touch(struct fake *fake, const struct iod_op *op, uint32_t which, uint64_t bytes)
{
	size_t count;
	const struct iovec *iov = fake_vector(op, which, &count);
	volatile uint8_t sink = 0;

	for (size_t i = 0; i < count && bytes; i++) {
		size_t n = iov[i].iov_len < bytes ? iov[i].iov_len : bytes;
		uint8_t *at = iov[i].iov_base;
		if (reads(op)) {
			memset(at, n <= 4 ? 0 : fake->next, n); /* a small number, if it is the length of a frame */
			if (n)
				at[n - 1] = fake->next++;
		} else {
			for (size_t k = 0; k < n; k += 61)
				sink = (uint8_t)(sink + at[k]);
		}
		if (!reads(op) && n)
			sink = (uint8_t)(sink + at[n - 1]);
		bytes -= n;
	}
}

static uint32_t fake_room(struct iod_backend *backend)
{
	struct fake *fake = fake_of(backend);
	uint32_t used = fake->count + fake->cqes;
	return used < fake->most ? fake->most - used : 0;
}

static int fake_queue(struct iod_backend *backend, const struct iod_op *op)
{
	struct fake *fake = fake_of(backend);

	if (!fake_room(backend))
		return -EAGAIN;
	struct fake_op *own = &fake->op[fake->count++];
	*own = (struct fake_op){.op = *op};
	for (uint32_t k = 0; k < fake_vectors(op); k++) {
		size_t count;
		const struct iovec *iov = fake_vector(op, k, &count);
		for (size_t i = 0; i < count; i++)
			own->bytes += iov[i].iov_len;
		volatile uint8_t sink = 0;
		for (size_t i = 0; i < count; i++)
			if (iov[i].iov_len)
				sink = (uint8_t)(sink + *(uint8_t *)iov[i].iov_base +
						 ((uint8_t *)iov[i].iov_base)[iov[i].iov_len - 1]);
	}
	fake->inspect(fake->context, own);
	return 0;
}

static int fake_cancel(struct iod_backend *backend, uint64_t user_data)
{
	struct fake *fake = fake_of(backend);

	if (fake->refuse_cancels) {
		fake->refuse_cancels--;
		return -EAGAIN;
	}
	for (uint32_t i = 0; i < fake->count; i++)
		if (fake->op[i].op.user_data == user_data)
			fake->op[i].cancelled = true;
	return 0;
}

static int fake_flush(struct iod_backend *backend)
{
	(void)backend;
	return 0;
}

static uint32_t fake_reap(struct iod_backend *backend, struct iod_cqe *cqe, uint32_t max)
{
	struct fake *fake = fake_of(backend);
	uint32_t n = fake->cqes < max ? fake->cqes : max;

	memcpy(cqe, fake->cqe, n * sizeof *cqe);
	fake->cqes -= n;
	memmove(fake->cqe, fake->cqe + n, fake->cqes * sizeof *cqe);
	return n;
}

static void fake_wake(struct iod_backend *backend)
{
	(void)backend;
}

static const struct iod_backend_ops ops = {
	.name = "fake",
	.room = fake_room,
	.queue = fake_queue,
	.cancel = fake_cancel,
	.flush = fake_flush,
	.reap = fake_reap,
	.wake = fake_wake,
};

void fake_init(struct fake *fake, uint32_t most)
{
	*fake = (struct fake){.most = most, .backend = {.ops = &ops, .max_inflight = most}};
}

/* So many of the packets, each whole; of those that come some are shorter or longer than where they go. */
static int32_t end_packets(struct fake *fake, const struct iod_op *op, int32_t result)
{
	uint32_t went = 1 + (uint32_t)result % op->niov;

	for (uint32_t k = 0; k < went; k++) {
		size_t count;
		uint64_t bytes = 0;
		const struct iovec *iov = fake_vector(op, k, &count);
		for (size_t i = 0; i < count; i++)
			bytes += iov[i].iov_len;
		if (reads(op) && fake->next % 4 == 0)
			bytes /= 2;
		touch(fake, op, k, bytes);
		fake->next++;
		op->packets[k].msg_len = (unsigned)bytes;
		op->packets[k].msg_hdr.msg_flags = reads(op) && fake->next % 8 == 1 ? MSG_TRUNC : 0;
	}
	return (int32_t)went;
}

void fake_end(struct fake *fake, uint32_t i, int32_t result)
{
	struct fake_op *own = &fake->op[i];
	bool more = false;

	if (own->sent) {
		result = 0;
	} else if (result > 0 && iod_is_packets(&own->op)) {
		result = end_packets(fake, &own->op, result);
	} else if (result > 0) {
		if (!moves(&own->op))
			result = own->op.code == IOD_OP_POLL ? 1 : 0;
		else if ((uint64_t)result > own->bytes)
			result = (int32_t)own->bytes;
		if (moves(&own->op))
			touch(fake, &own->op, 0, (uint64_t)result);
		more = own->op.code == IOD_OP_SEND_ZC && result > 0;
	}
	fake->cqe[fake->cqes++] = (struct iod_cqe){own->op.user_data, result, more ? IOD_CQE_MORE : 0};
	if (more)
		own->sent = true;
	else
		*own = fake->op[--fake->count];
}

bool fake_touches(const struct fake *fake, const void *base, uint64_t size)
{
	for (uint32_t i = 0; i < fake->count; i++) {
		const struct iod_op *op = &fake->op[i].op;
		for (uint32_t p = 0; p < fake_vectors(op); p++) {
			size_t count;
			const struct iovec *iov = fake_vector(op, p, &count);
			for (size_t k = 0; k < count; k++)
				if ((uintptr_t)iov[k].iov_base < (uintptr_t)base + size &&
				    (uintptr_t)base < (uintptr_t)iov[k].iov_base + iov[k].iov_len)
					return true;
		}
	}
	return false;
}
