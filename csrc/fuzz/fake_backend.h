/* SPDX-License-Identifier: Apache-2.0
 *
 * fake_backend: a backend whose every answer is scripted, and that looks at all memory it is given.
 *
 * Invariants
 *  - What an op points to is touched when it is queued and again when it ends, as the kernel might: a sanitizer sees
 *    whatever was let go in between.
 *  - An op ends once, when `fake_end` says so, and not before. */
#ifndef IOD_FUZZ_FAKE_BACKEND_H
#define IOD_FUZZ_FAKE_BACKEND_H

#include "backend.h"

#define FAKE_MOST 64u

struct fake_op {
	struct iod_op op;
	uint64_t bytes;	 /* of its vector */
	bool cancelled;	 /* cancel was asked for */
	bool sent;	 /* SEND_ZC: the first of its two completions came */
};

struct fake {
	struct iod_backend backend;
	struct fake_op op[FAKE_MOST];
	uint32_t count, most; /* in flight; most: room for them and for completions that were not reaped */
	struct iod_cqe cqe[2 * FAKE_MOST];
	uint32_t cqes;
	uint32_t refuse_cancels; /* so many answer -EAGAIN */
	/* Called with each op that is queued: what may be asked of the kernel. */
	void (*inspect)(void *, const struct fake_op *);
	void *context;
	uint8_t next; /* the next byte that a read gives */
};

void fake_init(struct fake *, uint32_t most);
/* Op `i` ends with this result: bytes (cut to what it asked for) or -errno. */
void fake_end(struct fake *, uint32_t i, int32_t result);
/* Whether some op's vector, as the kernel has it, has a byte in [base, base + size). */
/* The vectors of an op: none, one, or one a packet. */
uint32_t fake_vectors(const struct iod_op *);
const struct iovec *fake_vector(const struct iod_op *, uint32_t which, size_t *count);
bool fake_touches(const struct fake *, const void *base, uint64_t size);

#endif
