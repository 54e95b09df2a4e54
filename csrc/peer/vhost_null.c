/* SPDX-License-Identifier: Apache-2.0
 *
 * vhost_null: what the client can do at most: a device that walks every chain, writes the status and is done.
 *
 * Invariants
 *  - It knows the rings only as a device does, and reads no field of the client's side of a queue but what is fixed.
 *  - It ends when it is told to, asleep or not; the session outlives it.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "vhost_blk.h"

#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <unistd.h>

struct device_queue {
	struct vb_queue *q; /* size, rings and eventfds */
	uint16_t available_next, used_next;
};

static void *at_guest(const struct vb_session *s, uint64_t address)
{
	return s->rings.memory + (address - s->rings.guest);
}

/* Writes the status of the chain that `head` starts; gives the bytes written to memory, the status with them. */
static uint32_t answer(const struct vb_session *s, const struct vb_queue *q, uint16_t head)
{
	const struct vring_descriptor *table = q->descriptors, *d = &table[head];
	uint32_t written = 0;

	if (le16toh(d->flags) & VRING_INDIRECT)
		d = table = at_guest(s, le64toh(d->address));
	for (;; d = &table[le16toh(d->next)]) {
		uint16_t flags = le16toh(d->flags);

		if (flags & VRING_WRITE)
			written += le32toh(d->length);
		if (!(flags & VRING_NEXT))
			break;
	}
	*(volatile uint8_t *)at_guest(s, le64toh(d->address)) = 0;
	return written;
}

static bool serve(struct vb_session *s, struct device_queue *d)
{
	struct vb_queue *q = d->q;
	uint16_t available = le16toh(atomic_load_explicit(&q->available[1], memory_order_acquire)), from = d->used_next;
	struct vring_used_element *elements = (struct vring_used_element *)(q->used + 2);
	bool call;

	if (available == d->available_next)
		return false;
	while (d->available_next != available) {
		uint16_t head = le16toh(atomic_load_explicit(&q->available[2 + d->available_next++ % q->size],
							     memory_order_relaxed));

		elements[d->used_next++ % q->size] =
			(struct vring_used_element){ htole32(head), htole32(answer(s, q, head)) };
	}
	atomic_fetch_add_explicit(&s->null.answered, (uint16_t)(d->used_next - from), memory_order_relaxed);
	atomic_store_explicit(&q->used[1], htole16(d->used_next), memory_order_release);
	atomic_thread_fence(memory_order_seq_cst);
	if (vb_has(s->features, VB_F_EVENT_IDX))
		call = vb_needs_event(le16toh(atomic_load_explicit(&q->available[2 + q->size], memory_order_relaxed)),
				      d->used_next, from);
	else
		call = !(le16toh(atomic_load_explicit(&q->available[0], memory_order_relaxed)) & 1);
	if (call) {
		uint64_t one = 1;

		if (write(q->call, &one, sizeof one) < 0)
			return true; /* full: the client knows */
	}
	return true;
}

/* Asks to be told, and sleeps unless there is something by now. */
static void rest(struct vb_session *s, struct device_queue *queues, struct pollfd *fds, uint32_t count)
{
	bool idle = true;
	uint64_t ignored;

	for (uint32_t i = 0; i < count; i++)
		atomic_store_explicit(&queues[i].q->used[2 + queues[i].q->size * 4], htole16(queues[i].available_next),
				      memory_order_relaxed);
	atomic_thread_fence(memory_order_seq_cst);
	for (uint32_t i = 0; i < count; i++)
		idle = idle && le16toh(atomic_load_explicit(&queues[i].q->available[1], memory_order_acquire)) ==
				       queues[i].available_next;
	if (!idle || poll(fds, count, -1) <= 0)
		return;
	for (uint32_t i = 0; i < count; i++) {
		if (fds[i].revents && read(fds[i].fd, &ignored, sizeof ignored) < 0)
			continue; /* somebody else's wake-up */
	}
}

static void *run(void *session)
{
	struct vb_session *s = session;
	uint32_t count = s->options.queues;
	struct device_queue queues[64] = { 0 };
	struct pollfd fds[64] = { 0 };

	for (uint32_t i = 0; i < count; i++) {
		queues[i].q = &s->queues[i];
		fds[i] = (struct pollfd){ .fd = s->queues[i].kick, .events = POLLIN };
	}
	while (!atomic_load_explicit(&s->null.stop, memory_order_acquire)) {
		bool any = false;

		for (uint32_t i = 0; i < count; i++)
			any |= serve(s, &queues[i]);
		if (any)
			continue;
		if (s->options.null_spins)
			vb_pause();
		else
			rest(s, queues, fds, count);
	}
	return NULL;
}

int vb_null_start(struct vb_session *s)
{
	pthread_attr_t attributes;
	cpu_set_t cpus;
	int error;

	if (s->options.queues > 64)
		return vb_fail(s, -EINVAL, "the null server has at most 64 queues");
	pthread_attr_init(&attributes);
	if (s->options.null_cpu >= 0) {
		CPU_ZERO(&cpus);
		CPU_SET((size_t)s->options.null_cpu, &cpus);
		pthread_attr_setaffinity_np(&attributes, sizeof cpus, &cpus);
	}
	error = pthread_create(&s->null.thread, &attributes, run, s);
	pthread_attr_destroy(&attributes);
	if (error)
		return vb_fail(s, -error, "the null server's thread: %s", strerror(error));
	s->null.started = true;
	return 0;
}

void vb_null_stop(struct vb_session *s)
{
	uint64_t one = 1;

	if (!s->null.started)
		return;
	atomic_store_explicit(&s->null.stop, true, memory_order_release);
	while (write(s->queues[0].kick, &one, sizeof one) < 0 && errno == EINTR)
		;
	pthread_join(s->null.thread, NULL);
	s->null.started = false;
}
