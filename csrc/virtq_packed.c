/* SPDX-License-Identifier: Apache-2.0
 *
 * virtq_packed: the packed ring, virtio 1.3 section 2.8: one ring of descriptors, which the device overwrites as it uses
 * them, and a word of event suppression each way.
 *
 * Invariants
 *  - What is available and what is used is told by two flags against a lap that each side counts for itself.
 *  - Of several chains that are used together, the first one's flags are written last: the driver sees all or none.
 *  - A chain that has no end leaves nothing to go on from, and breaks the queue. */
#include "virtq.h"

#include "bytes.h"

#include <errno.h>
#include <string.h>

/* Section 2.8.13: le64 addr, le32 len, le16 id, le16 flags. */
#define ENTRY 16
#define LEN 8
#define FLAGS 14
#define AVAIL (1 << 7)
#define USED (1 << 15)
/* Section 2.8.14: le16 desc (offset and, in bit 15, lap), le16 flags. */
#define EVENT_DESC 0
#define EVENT_FLAGS 2
enum { ENABLE, DISABLE, DESC };
#define LAP (1 << 15)

/* A front-end counts both positions in one number: 15 bits and a lap each, the used one above. */
static void layout(struct iod_virtq *q)
{
	q->part[IOD_VIRTQ_TABLE].bytes = (uint64_t)q->size * ENTRY;
	q->part[IOD_VIRTQ_TABLE].access = IOD_READ | IOD_WRITE;
	q->part[IOD_VIRTQ_DRIVER].bytes = 4;
	q->part[IOD_VIRTQ_DRIVER].access = IOD_READ;
	q->part[IOD_VIRTQ_DEVICE].bytes = 4;
	q->part[IOD_VIRTQ_DEVICE].access = IOD_WRITE;
	q->next_wrap = q->next & LAP;
	q->used_wrap = q->used_next & LAP;
	q->next &= LAP - 1;
	q->used_next &= LAP - 1;
	if (q->next >= q->size || q->used_next >= q->size)
		iod_virtq_break(q, "it begins outside the ring");
}

static void advance(const struct iod_virtq *q, uint16_t *at, bool *lap, uint32_t by)
{
	uint32_t next = *at + by;
	if (next >= q->size) {
		next -= q->size;
		*lap = !*lap;
	}
	*at = (uint16_t)next;
}

static bool is_available(uint16_t flags, bool lap)
{
	return (flags & (AVAIL | USED)) == (lap ? AVAIL : USED);
}

static void look(void *arg)
{
	struct iod_virtq_job *job = arg;
	struct iod_virtq *q = job->q;
	const uint16_t *flags = iod_virtq_word(q, IOD_VIRTQ_TABLE, q->next * (uint64_t)ENTRY + FLAGS);
	job->result = flags && is_available(__atomic_load_n(flags, __ATOMIC_ACQUIRE), q->next_wrap);
}

static bool available(struct iod_virtq *q)
{
	struct iod_virtq_job job = {0};
	if (q->replayed < q->replays)
		return true;
	return iod_virtq_guard(q, look, &job) && job.result;
}

/* A descriptor of the chain, the i-th of them from 1 on. */
static void describe(struct iod_virtq *q, struct iod_virtq_chain *chain, const struct iod_virtq_entry *d, uint32_t i)
{
	chain->id = d->id;
	chain->descriptors = (uint16_t)i;
	if (d->flags & IOD_DESCRIPTOR_INDIRECT) {
		if (!(q->flags & IOD_VIRTQ_INDIRECT) || d->flags & IOD_DESCRIPTOR_NEXT || i > 1 || d->length == 0)
			chain->bad = "an indirect descriptor that may not be";
		chain->table = d->address;
		chain->table_bytes = d->length;
	} else if (!chain->bad) {
		chain->bad = iod_virtq_add(q, d->address, d->length, d->flags);
	}
	if (!(d->flags & IOD_DESCRIPTOR_NEXT) && d->id >= q->size)
		iod_virtq_break(q, "an available chain has a number that the queue does not have");
}

/* A chain that was in flight before: the ring may have something else in its place. */
static void read_again(void *arg)
{
	struct iod_virtq_job *job = arg;
	struct iod_virtq *q = job->q;
	struct iod_virtq_entry d;
	uint16_t at = q->replay[q->replayed];
	for (uint32_t i = 1; i <= q->size; i++) {
		at = iod_packed_inflight_read(q, i == 1, &d, at);
		if (at == UINT16_MAX)
			break;
		describe(q, job->chain, &d, i);
		if (!(d.flags & IOD_DESCRIPTOR_NEXT)) {
			job->result = true;
			return;
		}
	}
	iod_virtq_break(q, "a chain that was in flight has no end");
}

static void read_chain(void *arg)
{
	struct iod_virtq_job *job = arg;
	struct iod_virtq *q = job->q;
	uint16_t at = q->next;
	bool lap = q->next_wrap;

	look(arg);
	if (!job->result)
		return;
	for (uint32_t i = 1; i <= q->size; i++) {
		struct iod_virtq_entry d;
		const void *from = iod_virtq_at(&q->part[IOD_VIRTQ_TABLE], at * (uint64_t)ENTRY, ENTRY);
		if (!from) {
			iod_virtq_break(q, "a descriptor is cut in two");
			return;
		}
		memcpy(&d, from, sizeof d);
		__asm__ volatile("" ::: "memory"); /* it is read here, and never again */
		advance(q, &at, &lap, 1);
		describe(q, job->chain, &d, i);
		if (q->inflight && !iod_packed_inflight_save(q, i == 1, &d))
			return;
		if (!(d.flags & IOD_DESCRIPTOR_NEXT))
			return;
	}
	iod_virtq_break(q, "a chain has no end");
}

static int fetch(struct iod_virtq *q, struct iod_virtq_chain *chain)
{
	struct iod_virtq_job job = {.chain = chain};
	if (!iod_virtq_guard(q, q->replayed < q->replays ? read_again : read_chain, &job) || q->broken)
		return -EPIPE;
	return job.result;
}

static void do_note(void *arg)
{
	struct iod_virtq_job *job = arg;
	iod_packed_inflight_taken(job->q, job->chain);
}

static void consume(struct iod_virtq *q, const struct iod_virtq_chain *chain)
{
	struct iod_virtq_job job = {.chain = (struct iod_virtq_chain *)(uintptr_t)chain};
	if (q->replayed < q->replays) {
		q->slot[chain->id].entry = q->replay[q->replayed++];
		return;
	}
	if (q->inflight)
		iod_virtq_guard(q, do_note, &job);
	advance(q, &q->next, &q->next_wrap, chain->descriptors);
}

static void do_recover(void *arg)
{
	struct iod_virtq *q = ((struct iod_virtq_job *)arg)->q;
	uint16_t at;
	bool lap, published = false;
	uint32_t used = iod_packed_inflight_interrupted(q, &at, &lap);
	for (uint32_t i = 0; i < used && !published; i++) {
		uint16_t *flags = iod_virtq_word(q, IOD_VIRTQ_TABLE, at * (uint64_t)ENTRY + FLAGS);
		if (!flags)
			return;
		if (i == 0)
			published = !is_available(__atomic_load_n(flags, __ATOMIC_ACQUIRE), lap);
		else /* written before the first one's; it is to be seen later, or as something else */
			__atomic_store_n(flags, lap ? AVAIL : USED, __ATOMIC_RELAXED);
		if (!published)
			iod_virtq_dirty(&q->part[IOD_VIRTQ_TABLE], at * (uint64_t)ENTRY, ENTRY);
		advance(q, &at, &lap, 1);
	}
	int64_t taken = q->broken ? -1 : iod_packed_inflight_recover(q, published);
	if (taken >= 0 && !q->broken) { /* what the front-end says of it is from before */
		q->next = q->used_next;
		q->next_wrap = q->used_wrap;
		advance(q, &q->next, &q->next_wrap, (uint32_t)taken);
	}
}

static void recover(struct iod_virtq *q)
{
	struct iod_virtq_job job = {0};
	iod_virtq_guard(q, do_recover, &job);
}

/* ---- used ---- */

static bool wants_to_know(struct iod_virtq *q)
{
	const uint16_t *desc = iod_virtq_word(q, IOD_VIRTQ_DRIVER, EVENT_DESC);
	const uint16_t *flags = iod_virtq_word(q, IOD_VIRTQ_DRIVER, EVENT_FLAGS);
	if (!desc || !flags)
		return false;
	uint16_t how = __atomic_load_n(flags, __ATOMIC_ACQUIRE) & 3;
	if (how != DESC || !(q->flags & IOD_VIRTQ_EVENT_IDX))
		return how != DISABLE;
	uint16_t event = __atomic_load_n(desc, __ATOMIC_RELAXED);
	/* Both relative to the lap that the device is in now. */
	uint16_t wanted = (uint16_t)((event & (LAP - 1)) - (!(event & LAP) == !q->used_wrap ? 0 : q->size));
	uint16_t old = (uint16_t)(q->told - (q->told_wrap == q->used_wrap ? 0 : q->size));
	return !q->told_valid || (uint16_t)(q->used_next - wanted - 1) < (uint16_t)(q->used_next - old);
}

static void write_used(void *arg)
{
	struct iod_virtq_job *job = arg;
	struct iod_virtq *q = job->q;
	struct iod_virtq_part *ring = &q->part[IOD_VIRTQ_TABLE];
	uint16_t *first = NULL, first_flags = 0;
	uint64_t first_at = 0;
	uint16_t next = q->used_next;
	bool wrap = q->used_wrap;

	if (q->inflight) {
		for (uint32_t i = 0; i < q->used_count; i++)
			advance(q, &next, &wrap, q->used[i].descriptors);
		iod_packed_inflight_before(q, next, wrap);
		if (q->broken)
			return;
		next = q->used_next;
		wrap = q->used_wrap;
	}
	for (uint32_t i = 0; i < q->used_count; i++) {
		const struct iod_virtq_used *used = &q->used[i];
		uint64_t at = next * (uint64_t)ENTRY;
		uint8_t *to = iod_virtq_at(ring, at, ENTRY);
		uint16_t *to_flags = iod_virtq_word(q, IOD_VIRTQ_TABLE, at + FLAGS);
		if (!to || !to_flags) {
			iod_virtq_break(q, "a descriptor is cut in two");
			return;
		}
		struct iod_virtq_entry entry = {.length = used->length, .id = used->id};
		memcpy(to + LEN, &entry.length, FLAGS - LEN);
		uint16_t flags = (uint16_t)((wrap ? AVAIL | USED : 0) | (used->length ? IOD_DESCRIPTOR_WRITE : 0));
		if (i) {
			__atomic_store_n(to_flags, flags, __ATOMIC_RELEASE);
		} else {
			first = to_flags;
			first_flags = flags;
			first_at = at;
		}
		iod_virtq_dirty(ring, at, ENTRY);
		advance(q, &next, &wrap, used->descriptors);
	}
	__atomic_store_n(first, first_flags, __ATOMIC_RELEASE);
	q->used_next = next;
	q->used_wrap = wrap;
	if (q->inflight)
		iod_packed_inflight_after(q);
	iod_virtq_dirty(ring, first_at, ENTRY);
	/* Either the driver sees the flags, or what it wants is seen here: section 2.8.21.3. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	job->result = wants_to_know(q);
	q->told = q->used_next;
	q->told_wrap = q->used_wrap;
	q->told_valid = true;
}

static bool publish(struct iod_virtq *q)
{
	struct iod_virtq_job job = {0};
	return iod_virtq_guard(q, write_used, &job) && job.result;
}

/* ---- notifications from the driver ---- */

static void write_wish(struct iod_virtq *q, uint16_t how)
{
	uint16_t *desc = iod_virtq_word(q, IOD_VIRTQ_DEVICE, EVENT_DESC);
	uint16_t *flags = iod_virtq_word(q, IOD_VIRTQ_DEVICE, EVENT_FLAGS);
	if (!desc || !flags)
		return;
	if (how == DESC)
		__atomic_store_n(desc, (uint16_t)(q->next | (q->next_wrap ? LAP : 0)), __ATOMIC_RELAXED);
	__atomic_store_n(flags, how, __ATOMIC_RELEASE);
	iod_virtq_dirty(&q->part[IOD_VIRTQ_DEVICE], EVENT_DESC, 4);
}

static void do_arm(void *arg)
{
	struct iod_virtq *q = ((struct iod_virtq_job *)arg)->q;
	write_wish(q, q->flags & IOD_VIRTQ_EVENT_IDX ? DESC : ENABLE);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	look(arg);
}

static bool arm(struct iod_virtq *q)
{
	struct iod_virtq_job job = {0};
	if (q->replayed < q->replays)
		return true;
	q->armed = true;
	return iod_virtq_guard(q, do_arm, &job) && job.result;
}

static void disarm(void *arg)
{
	write_wish(((struct iod_virtq_job *)arg)->q, DISABLE);
}

static void do_watch(void *arg)
{
	struct iod_virtq_job *job = arg;
	struct iod_virtq *q = job->q;
	const uint16_t *flags = iod_virtq_word(q, IOD_VIRTQ_TABLE, q->next * (uint64_t)ENTRY + FLAGS);
	if (!flags)
		return;
	uint16_t now = __atomic_load_n(flags, __ATOMIC_RELAXED);
	/* Whatever stands there now is no chain, or it would have been seen; a chain that came since is a change. */
	q->watched = is_available(now, q->next_wrap) ? (uint16_t)~now : now;
	job->result = true;
}

static struct iod_watch watch(struct iod_virtq *q)
{
	struct iod_virtq_job job = {0};
	if (!iod_virtq_guard(q, do_watch, &job) || !job.result)
		return (struct iod_watch){0};
	return (struct iod_watch){.word = iod_virtq_at(&q->part[IOD_VIRTQ_TABLE], q->next * (uint64_t)ENTRY + FLAGS, 2),
				  .seen = q->watched, .mask = AVAIL | USED};
}

const struct iod_virtq_format iod_virtq_packed = {.layout = layout,
						  .fetch = fetch,
						  .consume = consume,
						  .publish = publish,
						  .arm = arm,
						  .disarm = disarm,
						  .available = available,
						  .recover = recover,
						  .watch = watch};
