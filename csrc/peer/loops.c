/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "loops.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>

#include "ring.h"

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Where the next read goes. */
struct positions {
	uint64_t state, next, unit, file_bytes;
	bool random;
};

static uint64_t next_position(struct positions *p, uint64_t bytes)
{
	uint64_t room = p->file_bytes - bytes, position;

	if (p->random) {
		p->state ^= p->state << 13;
		p->state ^= p->state >> 7;
		p->state ^= p->state << 17;
		return (uint64_t)(((unsigned __int128)p->state * (room / p->unit + 1)) >> 64) * p->unit;
	}
	position = p->next > room ? 0 : p->next;
	p->next = position + (bytes + p->unit - 1) / p->unit * p->unit;
	return position;
}

struct plan {
	const struct peer_reads *job;
	struct positions positions;
	struct iovec *iov; /* per_list of list 0, then of list 1, ... */
	uint64_t *bytes;   /* of each list */
};

static void plan_free(struct plan *plan)
{
	free(plan->iov);
	free(plan->bytes);
}

static int plan_make(struct plan *plan, const struct peer_reads *job)
{
	size_t total = (size_t)job->per_list * job->lists;

	plan->job = job;
	plan->positions = (struct positions){
		.state = job->seed ? job->seed : 1,
		.unit = job->unit,
		.file_bytes = job->file_bytes,
		.random = job->random,
	};
	plan->iov = calloc(total, sizeof *plan->iov);
	plan->bytes = calloc(job->lists, sizeof *plan->bytes);
	if (!plan->iov || !plan->bytes) {
		plan_free(plan);
		return -ENOMEM;
	}
	for (size_t i = 0; i < total; i++) {
		const struct peer_segment *s = &job->segments[i];

		plan->iov[i] = (struct iovec){ job->memory + s->offset, s->length };
		plan->bytes[i / job->per_list] += s->length;
	}
	for (uint32_t i = 0; i < job->lists; i++) {
		if (plan->bytes[i] > job->file_bytes) {
			plan_free(plan);
			return -EINVAL;
		}
	}
	return 0;
}

static bool over(const struct peer_reads *job, uint64_t requests, uint64_t start, uint64_t *ns)
{
	*ns = now_ns() - start;
	return *ns >= job->most_ns || (job->most_requests && requests >= job->most_requests);
}

/* io_uring: `lists` in flight, submitted and reaped `batch` at a time. */

static void queue_read(struct peer_ring *ring, struct plan *plan, uint32_t slot)
{
	const struct peer_reads *job = plan->job;
	const struct iovec *iov = &plan->iov[(size_t)slot * job->per_list];
	struct peer_sqe *sqe = peer_ring_next(ring);

	sqe->fd = job->fixed_file ? 0 : job->fd;
	sqe->flags = job->fixed_file ? PEER_SQE_FIXED_FILE : 0;
	sqe->position = next_position(&plan->positions, plan->bytes[slot]);
	sqe->user_data = slot;
	if (job->per_list == 1) {
		sqe->opcode = job->fixed_buffer ? PEER_OP_READ_FIXED : PEER_OP_READ;
		sqe->address = (uintptr_t)iov->iov_base;
		sqe->length = (uint32_t)iov->iov_len;
	} else {
		sqe->opcode = job->fixed_buffer ? PEER_OP_READV_FIXED : PEER_OP_READV;
		sqe->address = (uintptr_t)iov;
		sqe->length = job->per_list;
	}
}

/* Takes up to `most` completions; each goes on as the next read unless something failed or it is the end. */
static int reap(struct peer_ring *ring, struct plan *plan, uint32_t most, bool again, uint32_t *in_flight,
		struct peer_result *out)
{
	uint32_t n = peer_ring_ready(ring);
	int error = 0;

	for (n = n < most ? n : most; n; n--) {
		struct peer_cqe cqe = peer_ring_take(ring);
		uint32_t slot = (uint32_t)cqe.user_data;

		if (cqe.res < 0)
			error = cqe.res;
		else if ((uint64_t)cqe.res != plan->bytes[slot])
			error = -ENODATA;
		out->requests++;
		out->bytes += cqe.res > 0 ? (uint64_t)cqe.res : 0;
		if (again && !error)
			queue_read(ring, plan, slot);
		else
			(*in_flight)--;
	}
	return error;
}

static int run_ring(struct peer_ring *ring, struct plan *plan, struct peer_result *out)
{
	const struct peer_reads *job = plan->job;
	struct peer_result late = { 0 };
	uint64_t start = now_ns();
	uint32_t in_flight = job->lists;
	int error = 0;

	for (uint32_t slot = 0; slot < job->lists; slot++)
		queue_read(ring, plan, slot);
	do {
		error = peer_ring_enter(ring, job->complete_min);
		if (!error)
			error = reap(ring, plan, job->batch, true, &in_flight, out);
	} while (!error && !over(job, out->requests, start, &out->ns));

	/* Nothing may be in flight when the memory is given back. */
	while (in_flight && !peer_ring_enter(ring, 1))
		reap(ring, plan, in_flight, false, &in_flight, &late);
	return error;
}

int peer_uring_reads(const struct peer_reads *job, struct peer_result *out)
{
	struct peer_ring ring;
	struct plan plan;
	int error = plan_make(&plan, job);

	if (error)
		return error;
	error = peer_ring_open(&ring, job->lists);
	if (!error) {
		if (job->fixed_file)
			error = peer_ring_register_file(&ring, job->fd);
		if (!error && job->fixed_buffer)
			error = peer_ring_register_buffer(&ring, job->memory, job->memory_bytes);
		if (!error)
			error = run_ring(&ring, &plan, out);
		peer_ring_close(&ring);
	}
	plan_free(&plan);
	return error;
}

void peer_copies(uint8_t *target, const uint8_t *source, size_t bytes, size_t buffers, uint64_t most_copies,
		 uint64_t most_ns, struct peer_result *out)
{
	uint64_t start = now_ns();
	size_t at = 0;

	do {
		for (int i = 0; i < 16; i++) {
			memcpy(target + at * bytes, source + at * bytes, bytes);
			__asm__ volatile("" ::: "memory"); /* each copy is one that someone will look at */
			at = at + 1 == buffers ? 0 : at + 1;
		}
		out->requests += 16;
		out->ns = now_ns() - start;
	} while (out->ns < most_ns && !(most_copies && out->requests >= most_copies));
	out->bytes = out->requests * bytes;
}

void peer_list_copies(uint8_t *memory, const struct peer_segment *sources, const struct peer_segment *targets,
		      uint32_t per_list, uint32_t lists, uint64_t most_ns, struct peer_result *out)
{
	uint64_t start = now_ns();
	uint32_t list = 0;

	do {
		for (size_t i = (size_t)list * per_list, end = i + per_list; i < end; i++) {
			memcpy(memory + targets[i].offset, memory + sources[i].offset, sources[i].length);
			__asm__ volatile("" ::: "memory"); /* each copy is one that someone will look at */
			out->bytes += sources[i].length;
		}
		list = list + 1 == lists ? 0 : list + 1;
		out->requests++;
		out->ns = now_ns() - start;
	} while (out->ns < most_ns);
}

/* One list.  Everything that a guest says is checked where it is used; the pieces, or 0: it faults. */
static __attribute__((noinline)) size_t walk_list(const struct peer_walks *job, const struct peer_segment *list,
						  struct iovec *out)
{
	const uint64_t reach = job->length - 1;
	const uint32_t wanted = 2u | (job->write ? 4u : 0u);
	size_t n = 0;

	for (uint32_t i = 0; i < job->per_list; i++) {
		uint64_t offset = list[i].offset - job->first, left = list[i].length;

		if (!left || offset > reach || left - 1 > reach - offset)
			return 0;
		do {
			uint64_t in = offset & 4095, size = left < 4096 - in ? left : 4096 - in;
			uint32_t entry;

			memcpy(&entry, job->memory + job->table + (offset >> 12) * 4, 4);
			entry = __builtin_bswap32(entry);
			if ((entry & wanted) != wanted)
				return 0;
			uint64_t target = ((uint64_t)(entry & 0xffffff00u) << 4) + in;
			if (target >= job->memory_bytes || size > job->memory_bytes - target)
				return 0;
			out[n++] = (struct iovec){ job->memory + target, size };
			offset += size;
			left -= size;
		} while (left);
	}
	return n;
}

int peer_table_walks(const struct peer_walks *job, struct peer_result *out)
{
	uint64_t most = 0, start;

	for (size_t i = 0; i < (size_t)job->lists * job->per_list; i++) {
		uint64_t pages = job->segments[i].length / 4096 + 2;

		most = most > pages ? most : pages;
	}
	struct iovec *iov = calloc(most * job->per_list, sizeof *iov);
	if (!iov)
		return -ENOMEM;
	start = now_ns();
	do {
		for (uint32_t list = 0; list < job->lists; list++) {
			size_t n = walk_list(job, job->segments + (size_t)list * job->per_list, iov);

			__asm__ volatile("" : : "r"(iov) : "memory"); /* it is looked at */
			if (!n) {
				free(iov);
				return -EFAULT;
			}
			out->bytes += n;
		}
		out->requests += job->lists;
		out->ns = now_ns() - start;
	} while (out->ns < job->most_ns);
	free(iov);
	return 0;
}
