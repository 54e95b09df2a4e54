/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "vhost_blk.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define EMPTY_PASSES 128	  /* between two looks at the clock while there is nothing to take */
#define LOOK_AT_SOCKET_NS 5000000 /* while polling */

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* How long requests took: 16 steps to each power of two, so within 1/16. */

enum { STEPS_BITS = 4, STEPS = 1 << STEPS_BITS, BUCKETS = 64 * STEPS };

static unsigned bucket_of(uint64_t ns)
{
	unsigned power;

	if (ns < STEPS)
		return (unsigned)ns;
	power = 63u - (unsigned)__builtin_clzll(ns);
	return (power - STEPS_BITS + 1) * STEPS + (unsigned)(ns >> (power - STEPS_BITS)) % STEPS;
}

static uint64_t bucket_ns(unsigned bucket)
{
	unsigned power = bucket / STEPS;

	return power ? (uint64_t)(STEPS + bucket % STEPS) << (power - 1) : bucket;
}

static uint64_t percentile(const uint32_t *buckets, uint64_t total, unsigned percent)
{
	uint64_t rank = total * percent / 100, seen = 0;

	for (unsigned i = 0; i < BUCKETS; i++) {
		seen += buckets[i];
		if (seen > rank)
			return bucket_ns(i);
	}
	return 0;
}

/* Chains. */

static void describe(struct vring_descriptor *d, uint64_t address, uint32_t length, uint16_t flags, uint16_t next)
{
	d->address = htole64(address);
	d->length = htole32(length);
	d->flags = htole16(flags);
	d->next = htole16(next);
}

/* Header, data, status; `base`: the number of the first descriptor in its table. */
static uint32_t describe_all(const struct vb_session *s, struct vb_slot *slot, struct vring_descriptor *table,
			     uint16_t base, bool to_memory)
{
	uint32_t n = 0, left = slot->bytes;

	describe(&table[n], vb_guest(&s->rings, slot->header), sizeof *slot->header, VRING_NEXT, (uint16_t)(base + n + 1));
	for (n = 1; left; n++) {
		uint32_t length = left < s->options.segment_bytes ? left : s->options.segment_bytes;

		describe(&table[n], vb_guest(&s->data, slot->segments[n - 1]), length,
			 VRING_NEXT | (to_memory ? VRING_WRITE : 0), (uint16_t)(base + n + 1));
		left -= length;
	}
	describe(&table[n], vb_guest(&s->rings, slot->status), 1, VRING_WRITE, 0);
	return n + 1;
}

/* Puts the slot's request where the next publish() shows it. */
static void queue_slot(struct vb_session *s, struct vb_queue *q, struct vb_slot *slot, bool to_memory, uint64_t now)
{
	uint16_t head = (uint16_t)((slot - q->slots) * s->descriptors_each);
	bool indirect = s->descriptors_each == 1;
	uint32_t count;

	slot->header->type = htole32(slot->type);
	slot->header->reserved = 0;
	slot->header->sector = htole64(slot->sector);
	*slot->status = VB_STATUS_UNSET;
	count = describe_all(s, slot, indirect ? slot->table : &q->descriptors[head], indirect ? 0 : head, to_memory);
	if (indirect)
		describe(&q->descriptors[head], vb_guest(&s->rings, slot->table), count * (uint32_t)sizeof *slot->table,
			 VRING_INDIRECT, 0);
	atomic_store_explicit(&q->available[2 + q->available_next % q->size], htole16(head), memory_order_relaxed);
	q->available_next++;
	q->in_flight++;
	slot->in_flight = true;
	slot->submitted_ns = now;
}

/* Shows what was queued, and tells the server if it wants to be told. */
static void publish(struct vb_session *s, struct vb_queue *q, struct vb_result *out)
{
	bool tell;

	if (q->kicked == q->available_next)
		return;
	atomic_store_explicit(&q->available[1], htole16(q->available_next), memory_order_release);
	atomic_thread_fence(memory_order_seq_cst);
	if (vb_has(s->features, VB_F_EVENT_IDX))
		tell = vb_needs_event(le16toh(atomic_load_explicit(&q->used[2 + q->size * 4], memory_order_relaxed)),
				      q->available_next, q->kicked);
	else
		tell = !(le16toh(atomic_load_explicit(&q->used[0], memory_order_relaxed)) & 1);
	q->kicked = q->available_next;
	if (tell) {
		uint64_t one = 1;

		out->kicks++;
		if (write(q->kick, &one, sizeof one) < 0)
			return; /* full: the server knows */
	}
}

static uint16_t used_index(const struct vb_queue *q)
{
	return le16toh(atomic_load_explicit(&q->used[1], memory_order_acquire));
}

/* The slot of the next used element, or NULL with the session broken. */
static struct vb_slot *take(struct vb_session *s, struct vb_queue *q, uint32_t *written)
{
	const struct vring_used_element *elements = (const struct vring_used_element *)(q->used + 2);
	struct vring_used_element e = *(const volatile struct vring_used_element *)&elements[q->used_next % q->size];
	uint32_t id = le32toh(e.id), number = id / s->descriptors_each;
	struct vb_slot *slot;

	if (id % s->descriptors_each || number >= s->options.depth || !q->slots[number].in_flight) {
		s->broken = true;
		vb_fail(s, -EPROTO, "used element %u names descriptor %u, which heads nothing in flight", q->used_next,
			id);
		return NULL;
	}
	slot = &q->slots[number];
	slot->in_flight = false;
	q->in_flight--;
	q->used_next++;
	*written = le32toh(e.length);
	return slot;
}

/* Says whether we want to be told of the next used element. */
static void want_calls(struct vb_session *s, struct vb_queue *q, bool wanted)
{
	if (vb_has(s->features, VB_F_EVENT_IDX)) {
		/* Just behind: reached again after 65536 elements, and then one call too many is made. */
		uint16_t event = wanted ? q->used_next : (uint16_t)(q->used_next - 1);

		atomic_store_explicit(&q->available[2 + q->size], htole16(event), memory_order_relaxed);
	} else {
		atomic_store_explicit(&q->available[0], htole16(wanted ? 0 : 1), memory_order_relaxed);
	}
}

/* Waits on the call descriptors and on the server's end: 0, or -ETIMEDOUT, -ECONNRESET. */
static int sleep_until_called(struct vb_session *s, uint64_t ns, struct vb_result *out)
{
	struct epoll_event events[8];
	int timeout = ns / 1000000 > 60000 ? 60000 : (int)((ns + 999999) / 1000000);
	int n = epoll_wait(s->epoll, events, 8, timeout);

	if (n < 0 && errno != EINTR)
		return vb_fail(s, -errno, "epoll: %s", strerror(errno));
	for (int i = 0; i < n; i++) {
		if (events[i].data.u32 == UINT32_MAX)
			return vb_fail(s, -ECONNRESET, "the server went away with requests in flight");
	}
	out->wakes += n > 0;
	return n ? 0 : -ETIMEDOUT;
}

static bool server_gone(const struct vb_session *s)
{
	char byte;
	ssize_t n = s->sock < 0 ? 1 : recv(s->sock, &byte, 1, MSG_PEEK | MSG_DONTWAIT);

	return n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR);
}

/* Data that a sector's number tells. */

void vb_pattern(uint64_t seed, uint64_t sector, uint8_t *bytes)
{
	for (unsigned i = 0; i < VB_SECTOR / 8; i++) {
		uint64_t x = seed + (sector * (VB_SECTOR / 8) + i + 1) * 0x9e3779b97f4a7c15u;

		x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
		x = (x ^ x >> 27) * 0x94d049bb133111ebu;
		x = htole64(x ^ x >> 31);
		memcpy(bytes + 8 * (size_t)i, &x, 8);
	}
}

/* The byte `offset` of a slot's data, whose segments are segment_bytes each. */
static void copy_data(const struct vb_session *s, struct vb_slot *slot, uint32_t offset, uint8_t *bytes, uint32_t count,
		      bool into_slot)
{
	while (count) {
		uint32_t at = offset % s->options.segment_bytes, n = s->options.segment_bytes - at;
		uint8_t *data = slot->segments[offset / s->options.segment_bytes] + at;

		n = n < count ? n : count;
		if (into_slot)
			memcpy(data, bytes, n);
		else
			memcpy(bytes, data, n);
		bytes += n;
		offset += n;
		count -= n;
	}
}

static void fill(const struct vb_session *s, struct vb_slot *slot, uint64_t seed)
{
	uint8_t sector[VB_SECTOR];

	for (uint32_t i = 0; i < slot->bytes / VB_SECTOR; i++) {
		vb_pattern(seed, slot->sector + i, sector);
		copy_data(s, slot, i * VB_SECTOR, sector, VB_SECTOR, true);
	}
}

static uint64_t mismatches(const struct vb_session *s, struct vb_slot *slot, uint64_t seed)
{
	uint8_t wanted[VB_SECTOR], found[VB_SECTOR];
	uint64_t count = 0;

	for (uint32_t i = 0; i < slot->bytes / VB_SECTOR; i++) {
		vb_pattern(seed, slot->sector + i, wanted);
		copy_data(s, slot, i * VB_SECTOR, found, VB_SECTOR, false);
		count += memcmp(wanted, found, VB_SECTOR) != 0;
	}
	return count;
}

/* The load. */

struct run {
	struct vb_session *s;
	const struct vb_load *load;
	struct vb_result *out;
	uint64_t state, next, places, submitted;
	uint32_t *buckets;
	bool ending;
};

static void next_request(struct run *r, struct vb_queue *q, struct vb_slot *slot, uint64_t now)
{
	const struct vb_load *load = r->load;
	uint64_t place = r->next;

	if (load->random) {
		r->state ^= r->state << 13;
		r->state ^= r->state >> 7;
		r->state ^= r->state << 17;
		place = (uint64_t)(((unsigned __int128)r->state * r->places) >> 64);
	} else {
		r->next = place + 1 == r->places ? 0 : place + 1;
	}
	slot->type = load->type;
	slot->bytes = load->bytes;
	slot->sector = (load->first_byte + place * load->bytes) / VB_SECTOR;
	if (load->verify) {
		if (load->type == VB_OUT)
			fill(r->s, slot, load->data_seed);
		else /* what the server does not write must not pass */
			for (uint32_t i = 0; i < slot->bytes; i += VB_SECTOR)
				copy_data(r->s, slot, i, (uint8_t[8]){ 0xa5 }, 8, true);
	}
	r->submitted++;
	queue_slot(r->s, q, slot, load->type == VB_IN, now);
}

static void check(struct run *r, struct vb_slot *slot, uint32_t written, uint64_t now)
{
	bool in = slot->type == VB_IN;

	r->out->requests++;
	r->out->bytes += slot->bytes;
	r->buckets[bucket_of(now - slot->submitted_ns)]++;
	if (*slot->status != 0)
		r->out->errors++;
	else if (written != 1 + (in ? slot->bytes : 0))
		r->out->wrong_lengths++;
	if (r->load->verify && in)
		r->out->mismatches += mismatches(r->s, slot, r->load->data_seed);
}

/* Takes all that is used; each slot goes on with its next request.  Gives how many, or -errno. */
static int reap(struct run *r, struct vb_queue *q, uint64_t now)
{
	uint16_t ready = (uint16_t)(used_index(q) - q->used_next);

	if (ready > q->in_flight) {
		r->s->broken = true;
		return vb_fail(r->s, -EPROTO, "the used index shows %u elements, %u are in flight", ready, q->in_flight);
	}
	for (uint16_t i = 0; i < ready; i++) {
		uint32_t written;
		struct vb_slot *slot = take(r->s, q, &written);

		if (!slot)
			return -EPROTO;
		check(r, slot, written, now);
		if (!r->ending && !(r->load->most_requests && r->submitted >= r->load->most_requests))
			next_request(r, q, slot, now);
	}
	publish(r->s, q, r->out);
	return ready;
}

static uint32_t in_flight(const struct vb_session *s)
{
	uint32_t sum = 0;

	for (uint32_t i = 0; i < s->options.queues; i++)
		sum += s->queues[i].in_flight;
	return sum;
}

static bool anything_used(const struct vb_session *s)
{
	for (uint32_t i = 0; i < s->options.queues; i++) {
		if (used_index(&s->queues[i]) != s->queues[i].used_next)
			return true;
	}
	return false;
}

/* Nothing was used: sleeps until something is. */
static int wait_for_call(struct run *r, uint64_t most_ns)
{
	struct vb_session *s = r->s;
	int error = 0;

	for (uint32_t i = 0; i < s->options.queues; i++)
		want_calls(s, &s->queues[i], true);
	atomic_thread_fence(memory_order_seq_cst);
	if (!anything_used(s))
		error = sleep_until_called(s, most_ns, r->out);
	for (uint32_t i = 0; i < s->options.queues; i++)
		want_calls(s, &s->queues[i], false);
	return error;
}

/* Until the time or the count is over, then until nothing is in flight; what is drained then is not counted. */
static int run_loop(struct run *r, uint64_t start)
{
	struct vb_session *s = r->s;
	uint64_t end = start + r->load->most_ns, patience = s->options.patience_ms * 1000000ull;
	uint64_t now = start, looked = start, moved = start;
	struct vb_result drained = { 0 };
	unsigned empty = 0;

	while (in_flight(s)) {
		int total = 0;

		if (!r->load->poll || empty % EMPTY_PASSES == 0)
			now = now_ns();
		for (uint32_t i = 0; i < s->options.queues; i++) {
			struct vb_queue *q = &s->queues[i];
			int n;

			if (used_index(q) == q->used_next)
				continue;
			if (r->load->poll)
				now = now_ns();
			n = reap(r, q, now);
			if (n < 0)
				return n;
			total += n;
		}
		if (total) {
			r->out->reaps++;
			moved = now;
			empty = 0;
		}
		if (!r->ending && (now >= end || !in_flight(s))) {
			r->ending = true;
			r->out->ns = now - start;
			drained = *r->out;
		}
		if (total)
			continue;
		if (now - moved > patience)
			return vb_fail(s, -ETIMEDOUT, "%u requests have not come back within %u ms", in_flight(s),
				       s->options.patience_ms);
		if (r->load->poll) {
			vb_pause();
			empty++;
			if (now - looked > LOOK_AT_SOCKET_NS) {
				looked = now;
				if (server_gone(s))
					return vb_fail(s, -ECONNRESET, "the server went away with %u requests in flight",
						       in_flight(s));
			}
		} else {
			uint64_t most = moved + patience - now;
			int error = wait_for_call(r, r->ending || most < end - now ? most : end - now);

			if (error && error != -ETIMEDOUT)
				return error;
		}
	}
	if (!r->ending)
		r->out->ns = now - start;
	else { /* errors of the drained ones count, their number does not */
		r->out->requests = drained.requests;
		r->out->bytes = drained.bytes;
	}
	return 0;
}

static int check_load(struct vb_session *s, const struct vb_load *load)
{
	uint64_t most = (uint64_t)s->options.segments * s->options.segment_bytes;

	if (s->broken)
		return vb_fail(s, -EPIPE, "the session is closed or broken");
	if (!load->bytes || load->bytes > most || load->bytes % VB_SECTOR)
		return vb_fail(s, -EINVAL, "requests of %u bytes: must be whole sectors, at most %llu", load->bytes,
			       (unsigned long long)most);
	if (load->first_byte % VB_SECTOR || load->first_byte > s->capacity ||
	    load->span_bytes > s->capacity - load->first_byte || load->span_bytes < load->bytes)
		return vb_fail(s, -EINVAL, "%llu bytes from %llu, in requests of %u: the disk has %llu bytes",
			       (unsigned long long)load->span_bytes, (unsigned long long)load->first_byte, load->bytes,
			       (unsigned long long)s->capacity);
	return 0;
}

int vb_run(struct vb_session *s, const struct vb_load *load, struct vb_result *out)
{
	struct run r = { .s = s, .load = load, .out = out, .state = load->seed ? load->seed : 1 };
	int error = check_load(s, load);
	uint64_t start, measured = 0;

	if (error)
		return error;
	memset(out, 0, sizeof *out);
	r.places = load->span_bytes / load->bytes;
	r.buckets = calloc(BUCKETS, sizeof *r.buckets);
	if (!r.buckets)
		return vb_fail(s, -ENOMEM, "no memory for the histogram");
	start = now_ns();
	for (uint32_t i = 0; i < s->options.queues; i++) {
		struct vb_queue *q = &s->queues[i];

		want_calls(s, q, false);
		for (uint32_t k = 0; k < s->options.depth; k++) {
			if (!load->most_requests || r.submitted < load->most_requests)
				next_request(&r, q, &q->slots[k], start);
		}
		publish(s, q, out);
	}
	error = run_loop(&r, start);
	if (error)
		s->broken = true;
	for (unsigned i = 0; i < BUCKETS; i++)
		measured += r.buckets[i];
	out->p50_ns = percentile(r.buckets, measured, 50);
	out->p99_ns = percentile(r.buckets, measured, 99);
	free(r.buckets);
	return error;
}

int vb_request(struct vb_session *s, uint32_t type, uint64_t sector, const uint8_t *out, uint32_t out_bytes, uint8_t *in,
	       uint32_t in_bytes, uint8_t *status, uint32_t *written)
{
	struct vb_queue *q = &s->queues[0];
	struct vb_slot *slot = &q->slots[0];
	struct vb_result ignored = { 0 };
	struct run r = { .s = s, .out = &ignored };
	uint64_t start = now_ns(), patience = s->options.patience_ms * 1000000ull;

	if (s->broken)
		return vb_fail(s, -EPIPE, "the session is closed or broken");
	if (out_bytes && in_bytes)
		return vb_fail(s, -EINVAL, "a request has bytes to read or bytes to write, not both");
	if ((uint64_t)out_bytes + in_bytes > (uint64_t)s->options.segments * s->options.segment_bytes)
		return vb_fail(s, -EINVAL, "%u bytes do not fit into %u segments of %u", out_bytes + in_bytes,
			       s->options.segments, s->options.segment_bytes);
	slot->type = type;
	slot->sector = sector;
	slot->bytes = out_bytes + in_bytes;
	copy_data(s, slot, 0, (uint8_t *)out, out_bytes, true);
	want_calls(s, q, false);
	queue_slot(s, q, slot, in_bytes > 0, start);
	publish(s, q, &ignored);
	while (used_index(q) == q->used_next) {
		uint64_t passed = now_ns() - start;
		int error = -ETIMEDOUT;

		if (passed < patience)
			error = wait_for_call(&r, patience - passed);
		else
			vb_fail(s, error, "the request has not come back within %u ms", s->options.patience_ms);
		if (error && (error != -ETIMEDOUT || passed >= patience)) {
			s->broken = true;
			return error;
		}
	}
	if (!take(s, q, written))
		return -EPROTO;
	*status = *slot->status;
	copy_data(s, slot, 0, in, in_bytes, false);
	return 0;
}
