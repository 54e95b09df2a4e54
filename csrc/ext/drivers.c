/* SPDX-License-Identifier: Apache-2.0
 *
 * drivers: the targets of an engine whose requests a library takes, and how the engine waits for those.
 *
 * Invariants
 *  - What their descriptors are watched for is what their libraries wait for, each time before the engine sleeps.
 *  - All descriptors are in one epoll set, whose own the backend polls: one request, however many there are.
 *  - One is taken out of the set before it is closed, and never by a process that was forked: the set is shared. */
#include "engine.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

int ext_drivers_add(Engine *engine, struct iod_target *target)
{
	if (engine->drivers_fd < 0) {
		engine->drivers_fd = epoll_create1(EPOLL_CLOEXEC);
		if (engine->drivers_fd < 0) {
			PyErr_SetFromErrno(PyExc_OSError);
			return -1;
		}
	}
	target->driver->watched = 0;
	target->next_driven = engine->core.driven;
	engine->core.driven = target;
	return 0;
}

static int watch(Engine *engine, struct iod_target *target, uint32_t events)
{
	struct iod_driver *driver = target->driver;
	struct epoll_event event = {.events = events, .data.ptr = target};
	int what = !events ? EPOLL_CTL_DEL : driver->watched ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;

	if (events == driver->watched)
		return 0;
	if (epoll_ctl(engine->drivers_fd, what, driver->fd, &event))
		return -errno;
	driver->watched = events;
	return 0;
}

void ext_drivers_remove(Engine *engine, struct iod_target *target)
{
	for (struct iod_target **at = &engine->core.driven; *at; at = &(*at)->next_driven)
		if (*at == target) {
			*at = target->next_driven;
			watch(engine, target, 0);
			return;
		}
}

bool ext_drivers_arm(Engine *engine)
{
	struct iod_backend *backend = engine->backend;

	if (engine->settling && !engine->core.with_drivers) {
		if (engine->drivers_armed)
			backend->ops->cancel(backend, EXT_DRIVERS);
		return false;
	}
	for (struct iod_target *target = engine->core.driven; target; target = target->next_driven)
		if (watch(engine, target, target->driver->ops->events(target->driver))) {
			target->driver->ops->abort(target->driver); /* nobody would ever hear of its answers */
			return true;
		}
	if (!engine->drivers_armed) {
		struct iod_op op = {.code = IOD_OP_POLL, .fd = engine->drivers_fd, .poll_events = 1,
				    .user_data = EXT_DRIVERS};
		if (backend->ops->queue(backend, &op))
			return true; /* no room: what is there has to be reaped first */
		engine->drivers_armed = true;
	}
	return false;
}

static void look(Engine *engine)
{
	struct epoll_event events[16];
	int n = epoll_wait(engine->drivers_fd, events, 16, 0);

	for (int i = 0; i < n; i++) {
		struct iod_target *target = events[i].data.ptr;
		target->driver->ops->ready(target->driver);
	}
}

void ext_drivers_look(Engine *engine)
{
	uint64_t bytes = 0;

	engine->drivers_ready = false;
	for (const struct iod_target *target = engine->core.driven; target; target = target->next_driven)
		bytes += target->driver->bytes;
	if (bytes > engine->release_bytes) { /* their rows hold them: nobody takes one away meanwhile */
		engine->gil_released++;
		Py_BEGIN_ALLOW_THREADS
		look(engine);
		Py_END_ALLOW_THREADS
	} else {
		look(engine);
	}
}

bool ext_drivers_work(const Engine *engine)
{
	for (const struct iod_target *target = engine->core.driven; target; target = target->next_driven)
		if (target->driver->done || (target->driver_wait.head && target->driver->room))
			return true;
	return false;
}

/* Break the connections that something is under way on: it ends. */
bool ext_drivers_abort(Engine *engine)
{
	bool any = false;
	for (struct iod_target *target = engine->core.driven; target; target = target->next_driven)
		if (target->references) {
			target->driver->ops->abort(target->driver);
			any = true;
		}
	return any;
}

void ext_drivers_close(Engine *engine)
{
	bool ours = engine->fork_generation == ext_forks;

	while (engine->core.driven) {
		struct iod_target *target = engine->core.driven;
		if (ours)
			ext_drivers_remove(engine, target);
		else
			engine->core.driven = target->next_driven;
	}
	if (engine->drivers_fd >= 0)
		close(engine->drivers_fd);
	engine->drivers_fd = -1;
}
