/* SPDX-License-Identifier: Apache-2.0
 *
 * virtq_split: the split ring, virtio 1.3 section 2.7: a table of descriptors, a ring of available chains, a ring of used
 * ones.
 *
 * Invariants
 *  - Shared words are read and written once, with the ordering that section 2.7.13 and 2.7.14 ask for.
 *  - Everything here that touches the ring runs under the SIGBUS guard; a ring whose memory is gone breaks the queue. */
#include "virtq.h"

#include "bytes.h"

#include <errno.h>
#include <string.h>

/* Offsets: struct virtq_avail { flags, idx, ring[size], used_event }, struct virtq_used { flags, idx, {id, len}[size],
 * avail_event }. */
#define FLAGS 0
#define IDX 2
#define RING 4
#define NO_NOTIFY 1

static void layout(struct iod_virtq *q)
{
	q->part[IOD_VIRTQ_TABLE].bytes = (uint64_t)q->size * sizeof(struct iod_descriptor);
	q->part[IOD_VIRTQ_TABLE].access = IOD_READ;
	q->part[IOD_VIRTQ_DRIVER].bytes = RING + 2 * (uint64_t)q->size + (q->flags & IOD_VIRTQ_EVENT_IDX ? 2 : 0);
	q->part[IOD_VIRTQ_DRIVER].access = IOD_READ;
	q->part[IOD_VIRTQ_DEVICE].bytes = RING + 8 * (uint64_t)q->size + (q->flags & IOD_VIRTQ_EVENT_IDX ? 2 : 0);
	q->part[IOD_VIRTQ_DEVICE].access = IOD_WRITE;
	q->seen = q->next;
}

/* ---- available ---- */

static void look(void *arg)
{
	struct iod_virtq_job *job = arg;
	struct iod_virtq *q = job->q;
	uint16_t *idx = iod_virtq_word(q, IOD_VIRTQ_DRIVER, IDX);
	if (!idx)
		return;
	uint16_t there = __atomic_load_n(idx, __ATOMIC_ACQUIRE);
	if ((uint16_t)(there - q->next) > q->size) {
		iod_virtq_break(q, "more chains are available than the ring holds");
		return;
	}
	q->seen = there;
	job->result = there != q->next;
}

static void do_recover(void *arg)
{
	struct iod_virtq *q = ((struct iod_virtq_job *)arg)->q;
	const uint16_t *idx = iod_virtq_word(q, IOD_VIRTQ_DEVICE, IDX);
	if (idx)
		iod_virtq_inflight_recover(q, __atomic_load_n(idx, __ATOMIC_ACQUIRE));
}

static void recover(struct iod_virtq *q)
{
	struct iod_virtq_job job = {0};
	iod_virtq_guard(q, do_recover, &job);
}

static bool available(struct iod_virtq *q)
{
	struct iod_virtq_job job = {0};
	if (q->seen != q->next || q->replayed < q->replays)
		return true;
	return iod_virtq_guard(q, look, &job) && job.result;
}

static void read_chain(void *arg)
{
	struct iod_virtq_job *job = arg;
	struct iod_virtq *q = job->q;
	struct iod_virtq_chain *chain = job->chain;

	uint32_t at;
	if (q->replayed < q->replays) {
		at = q->replay[q->replayed];
	} else {
		const uint16_t *head = iod_virtq_word(q, IOD_VIRTQ_DRIVER, RING + 2 * (uint64_t)(q->next & (q->size - 1)));
		if (!head)
			return;
		at = __atomic_load_n(head, __ATOMIC_RELAXED);
	}
	if (at >= q->size) {
		iod_virtq_break(q, "an available chain begins outside the descriptor table");
		return;
	}
	chain->id = (uint16_t)at;
	iod_virtq_fetch_to_read(q->slot[at].last_table); /* while the descriptor comes, which says whether it is there */
	iod_virtq_fetch_to_read(q->slot[at].last_header);
	for (uint32_t i = 0;; i++) {
		struct iod_descriptor d;
		const void *from = iod_virtq_at(&q->part[IOD_VIRTQ_TABLE], at * sizeof d, sizeof d);
		if (!from) {
			iod_virtq_break(q, "a descriptor is cut in two");
			return;
		}
		memcpy(&d, from, sizeof d);
		__asm__ volatile("" ::: "memory"); /* it is read here, and never again */
		if (i == q->size) {
			chain->bad = "a chain has no end";
			return;
		}
		if (d.flags & IOD_DESCRIPTOR_INDIRECT) {
			if (!(q->flags & IOD_VIRTQ_INDIRECT) || d.flags & IOD_DESCRIPTOR_NEXT || d.length == 0)
				chain->bad = "an indirect descriptor that may not be";
			chain->table = d.address;
			chain->table_bytes = d.length;
			return;
		}
		chain->bad = iod_virtq_add(q, d.address, d.length, d.flags);
		if (chain->bad || !(d.flags & IOD_DESCRIPTOR_NEXT))
			return;
		at = d.next;
		if (at >= q->size) {
			chain->bad = "a chain leads outside the descriptor table";
			return;
		}
	}
}

static void read_next(void *arg)
{
	struct iod_virtq_job *job = arg;
	struct iod_virtq *q = job->q;
	job->result = q->seen != q->next || q->replayed < q->replays;
	if (!job->result)
		look(arg);
	if (job->result)
		read_chain(arg);
}

static int fetch(struct iod_virtq *q, struct iod_virtq_chain *chain)
{
	struct iod_virtq_job job = {.chain = chain};
	if (chain->known && q->seen == q->next && q->replayed == q->replays)
		return 0;
	if (!iod_virtq_guard(q, read_next, &job) || q->broken)
		return -EPIPE;
	return job.result;
}

static void do_note(void *arg)
{
	struct iod_virtq_job *job = arg;
	iod_virtq_inflight_taken(job->q, job->chain->id);
}

static void consume(struct iod_virtq *q, const struct iod_virtq_chain *chain)
{
	struct iod_virtq_job job = {.chain = (struct iod_virtq_chain *)(uintptr_t)chain};
	if (q->inflight)
		iod_virtq_guard(q, do_note, &job);
	if (q->replayed < q->replays)
		q->replayed++;
	else
		q->next++;
	/* Where it will be given back, if those in flight are before it. */
	uint16_t at = (uint16_t)(q->used_next + q->in_flight - 1);
	const void *element = iod_virtq_at(&q->part[IOD_VIRTQ_DEVICE], RING + 8 * (uint64_t)(at & (q->size - 1)), 8);
	if (element)
		iod_virtq_fetch_to_write(element);
}

/* ---- used ---- */

static void write_used(void *arg)
{
	struct iod_virtq_job *job = arg;
	struct iod_virtq *q = job->q;
	struct iod_virtq_part *ring = &q->part[IOD_VIRTQ_DEVICE];
	uint16_t *idx = iod_virtq_word(q, IOD_VIRTQ_DEVICE, IDX);
	uint64_t wish = q->flags & IOD_VIRTQ_EVENT_IDX ? RING + 2 * (uint64_t)q->size : FLAGS;
	const uint16_t *wanted = iod_virtq_word(q, IOD_VIRTQ_DRIVER, wish);
	if (!idx || !wanted)
		return;
	for (uint32_t i = 0; i < q->used_count; i++) {
		uint32_t element[2] = {q->used[i].id, q->used[i].length};
		uint64_t offset = RING + 8 * (uint64_t)((uint16_t)(q->used_next + i) & (q->size - 1));
		void *to = iod_virtq_at(ring, offset, sizeof element);
		if (!to) {
			iod_virtq_break(q, "an element of its used ring is cut in two");
			return;
		}
		memcpy(to, element, sizeof element);
		iod_virtq_dirty(ring, offset, sizeof element);
	}
	uint16_t old = q->told, now = (uint16_t)(q->used_next + q->used_count);
	if (q->inflight)
		iod_virtq_inflight_before(q);
	__atomic_store_n(idx, now, __ATOMIC_RELEASE);
	q->used_next = now;
	if (q->inflight)
		iod_virtq_inflight_after(q);
	iod_virtq_dirty(ring, IDX, 2);
	/* Either the driver sees the index, or what it wants is seen here: section 2.7.10. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	uint16_t word_wanted = __atomic_load_n(wanted, __ATOMIC_RELAXED);
	if (!(q->flags & IOD_VIRTQ_EVENT_IDX))
		job->result = !(word_wanted & NO_NOTIFY);
	else
		job->result = !q->told_valid || (uint16_t)(now - word_wanted - 1) < (uint16_t)(now - old);
	q->told = now; /* it knows, or it has said that it need not know before what it wants */
	q->told_valid = true;
}

static bool publish(struct iod_virtq *q)
{
	struct iod_virtq_job job = {0};
	return iod_virtq_guard(q, write_used, &job) && job.result;
}

/* ---- notifications from the driver, section 2.7.10 ---- */

static void write_wish(struct iod_virtq *q, bool tell)
{
	bool by_index = q->flags & IOD_VIRTQ_EVENT_IDX;
	if (by_index && !tell)
		return; /* the index that was asked for lies behind: nobody will cross it soon */
	uint64_t offset = by_index ? RING + 8 * (uint64_t)q->size : FLAGS;
	uint16_t *at = iod_virtq_word(q, IOD_VIRTQ_DEVICE, offset);
	if (!at)
		return;
	__atomic_store_n(at, by_index ? q->next : tell ? 0 : NO_NOTIFY, __ATOMIC_RELAXED);
	iod_virtq_dirty(&q->part[IOD_VIRTQ_DEVICE], offset, 2);
}

static void do_arm(void *arg)
{
	struct iod_virtq_job *job = arg;
	write_wish(job->q, true);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	look(arg);
}

static bool arm(struct iod_virtq *q)
{
	struct iod_virtq_job job = {0};
	if (q->seen != q->next || q->replayed < q->replays)
		return true;
	q->armed = true;
	return iod_virtq_guard(q, do_arm, &job) && job.result;
}

static void disarm(void *arg)
{
	write_wish(((struct iod_virtq_job *)arg)->q, false);
}

static struct iod_watch watch(struct iod_virtq *q)
{
	return (struct iod_watch){.word = iod_virtq_at(&q->part[IOD_VIRTQ_DRIVER], IDX, 2), .seen = q->next, .mask = 0xffff};
}

const struct iod_virtq_format iod_virtq_split = {.layout = layout,
						 .fetch = fetch,
						 .consume = consume,
						 .publish = publish,
						 .arm = arm,
						 .disarm = disarm,
						 .available = available,
						 .recover = recover,
						 .watch = watch};
