/* SPDX-License-Identifier: Apache-2.0
 *
 * virtq_parts: where a ring's three parts are in the host, for as long as no map on the way to them changes.
 *
 * Invariants
 *  - A translation that is pending is asked for once, and again when a map has changed.
 *  - What is written into a part is in the dirty log of its region.
 *  - Memory that is not there, or is gone, breaks the queue, and the other end is told. */
#include "virtq.h"

#include "bytes.h"
#include "xfer.h"

#include <errno.h>
#include <poll.h>
#include <unistd.h>

bool iod_virtq_waits(const struct iod_virtq *q)
{
	return q->missing && q->missed_at == iod_virtq_changes(q->space) && !iod_virtq_always_changes(q->space);
}

int iod_virtq_miss(struct iod_virtq *q)
{
	q->missing = true;
	q->missed_at = iod_virtq_changes(q->space);
	return -EAGAIN;
}

/* The other end shares the descriptor, and may have made it a blocking one: what is full has told already. */
void iod_virtq_tell(int fd)
{
	struct pollfd poll_fd = {.fd = fd, .events = POLLOUT};
	uint64_t one = 1;
	if (poll(&poll_fd, 1, 0) > 0 && poll_fd.revents & POLLOUT) {
		ssize_t written = write(fd, &one, sizeof one);
		(void)written;
	}
}

void iod_virtq_break(struct iod_virtq *q, const char *why)
{
	if (q->broken)
		return;
	q->broken = why;
	if (q->error_fd >= 0)
		iod_virtq_tell(q->error_fd);
}

bool iod_virtq_guard(struct iod_virtq *q, void (*fn)(void *), struct iod_virtq_job *job)
{
	uintptr_t fault;
	job->q = q;
	if (iod_guarded(fn, job, &fault))
		return true;
	iod_virtq_break(q, "the memory of its ring is gone");
	return false;
}

/* 0, -EAGAIN (pending) or -EPIPE (broken). */
static int resolve(struct iod_virtq *q)
{
	static const char *const gone[] = {"its descriptors are not in memory", "its driver area is not in memory",
					   "its device area is not in memory that can be written"};
	q->resolved = false;
	for (int i = 0; i < IOD_VIRTQ_PARTS; i++) {
		struct iod_virtq_part *part = &q->part[i];
		struct iod_segment list = {part->address, part->bytes};
		enum iod_walk_result result = iod_walk(q->space, &list, 1, 0, part->access, &part->t, &q->fault);
		if (result == IOD_WALK_PENDING)
			return iod_virtq_miss(q);
		if (result != IOD_WALK_OK || !part->t.plain) {
			iod_virtq_break(q, gone[i]);
			return -EPIPE;
		}
		part->host = part->t.count == 1 ? part->t.iov[0].iov_base : NULL;
	}
	q->changes = iod_virtq_changes(q->space);
	q->resolved = !iod_virtq_always_changes(q->space);
	return 0;
}

int iod_virtq_refresh(struct iod_virtq *q)
{
	if (q->broken)
		return -EPIPE;
	if (q->resolved && iod_virtq_changes(q->space) == q->changes)
		return 0;
	if (iod_virtq_waits(q))
		return -EAGAIN;
	int error = resolve(q);
	if (!error && q->inflight && !q->recovered) {
		q->recovered = true;
		q->format->recover(q);
		error = q->broken ? -EPIPE : 0;
		if (!error && q->call_fd >= 0) /* who died may have shown the driver chains, and not told it */
			iod_virtq_tell(q->call_fd);
	}
	return error;
}

/* The piece that holds the byte at *offset, which becomes the offset in it. */
static uint32_t piece_of(const struct iod_virtq_part *part, uint64_t *offset)
{
	uint32_t i = 0;
	while (i < part->t.count && *offset >= part->t.iov[i].iov_len)
		*offset -= part->t.iov[i++].iov_len;
	return i;
}

void *iod_virtq_at(const struct iod_virtq_part *part, uint64_t offset, uint64_t bytes)
{
	if (part->host)
		return part->host + offset;
	uint32_t i = piece_of(part, &offset);
	if (i == part->t.count || bytes > part->t.iov[i].iov_len - offset)
		return NULL;
	return (uint8_t *)part->t.iov[i].iov_base + offset;
}

uint16_t *iod_virtq_word(struct iod_virtq *q, int part, uint64_t offset)
{
	uint16_t *at = iod_virtq_at(&q->part[part], offset, 2);
	if (at && (uintptr_t)at % 2 == 0)
		return at;
	iod_virtq_break(q, "a word of its ring is cut in two");
	return NULL;
}

void iod_virtq_dirty(const struct iod_virtq_part *part, uint64_t offset, uint64_t bytes)
{
	if (part->t.only && !part->t.only->dirty)
		return;
	for (uint32_t i = piece_of(part, &offset); bytes && i < part->t.count; i++) {
		uint64_t n = iod_min64(bytes, part->t.iov[i].iov_len - offset);
		struct iod_region *region = part->t.piece[i].region;
		if (region->dirty)
			iod_region_mark_dirty(region,
					      (uint64_t)((uint8_t *)part->t.iov[i].iov_base - region->host) + offset, n);
		bytes -= n;
		offset = 0;
	}
}
