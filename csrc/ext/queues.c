/* SPDX-License-Identifier: Apache-2.0
 *
 * queues: the virtqueues of an engine, and how it waits for their drivers.
 *
 * Invariants
 *  - A driver is asked to kick only right before a sleep, and the ring is looked at once more after that.
 *  - All kicks are in one edge-triggered epoll set, whose descriptor the backend polls: one request, however many
 *    queues, and no reading of counters; only what would fill up is read. */
#include "engine.h"
#include "queue.h"

#include <poll.h>
#include <sys/epoll.h>
#include <unistd.h>

static void drain(int fd)
{
	char unread[4096];
	struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
	for (int i = 0; i < 16 && poll(&poll_fd, 1, 0) > 0 && poll_fd.revents & POLLIN; i++)
		if (read(fd, unread, sizeof unread) < (ssize_t)sizeof unread)
			return;
}

void ext_queues_look(Engine *engine)
{
	if (engine->kicked) {
		struct epoll_event events[64];
		engine->kicked = false;
		int n;
		do { /* the edges are taken; what they are about is in the rings */
			n = epoll_wait(engine->kicks_fd, events, 64, 0);
			for (int i = 0; i < n; i++)
				if (events[i].data.fd >= 0)
					drain(events[i].data.fd);
		} while (n == 64);
	}
	engine->routed = false;
	for (uint32_t i = 0; i < engine->queues; i++) {
		Queue *queue = engine->queue[i];
		Py_INCREF(queue); /* who is told of something may let go of it */
		if (queue->route.endpoint)
			engine->routed |= ext_route_pop(queue);
		if (queue->q.answered || queue->q.used_count) {
			iod_virtq_retry(&queue->q);
			ext_queue_settled(queue);
		}
		Batches *reader = queue->reader;
		if (reader && reader->wait.waiter && ext_batches_ready(reader)) {
			Py_INCREF(reader);
			ext_wait_done(&reader->wait, NULL, false);
			Py_DECREF(reader);
		}
		Py_DECREF(queue);
	}
}

static bool waits(const Queue *queue)
{
	if (queue->stopped || queue->q.broken || queue->odd)
		return false;
	return queue->route.endpoint || (queue->reader && queue->reader->wait.waiter);
}

uint32_t ext_queues_watch(Engine *engine)
{
	uint32_t n = 0;
	for (uint32_t i = 0; i < engine->queues; i++) {
		Queue *queue = engine->queue[i];
		if (!waits(queue) || !queue->q.resolved || iod_virtq_waits(&queue->q))
			continue;
		engine->watch[n] = queue->q.format->watch(&queue->q);
		if (engine->watch[n].word)
			n++;
	}
	return n;
}

bool ext_queues_arm(Engine *engine)
{
	bool any = false;
	for (uint32_t i = 0; i < engine->queues; i++) {
		Queue *queue = engine->queue[i];
		if (!waits(queue))
			continue;
		any = true;
		if (!queue->q.armed || queue->q.kick_fd < 0)
			if (iod_virtq_arm(&queue->q) || queue->q.broken)
				return true;
	}
	if (any && !engine->kicks_armed) {
		struct iod_op op = {.code = IOD_OP_POLL, .fd = engine->kicks_fd, .poll_events = 1, .user_data = EXT_KICKS};
		if (engine->backend->ops->queue(engine->backend, &op))
			return true; /* no room: what is there has to be reaped first */
		engine->kicks_armed = true;
	}
	return false;
}

void ext_queues_kicked(Engine *engine)
{
	engine->kicks_armed = false;
	engine->kicked = true;
}

void ext_queues_close(Engine *engine)
{
	while (engine->queues)
		ext_queue_release(engine->queue[engine->queues - 1]);
}
