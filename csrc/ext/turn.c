/* SPDX-License-Identifier: Apache-2.0
 *
 * turn: one turn of the engine - step, move, hand over, reap, deliver, resume.
 *
 * Invariants
 *  - The interpreter lock is given up only to spin, to sleep, and for moves and submissions above `release_bytes`:
 *    giving it up on every turn costs dearly as soon as another thread wants it.
 *  - A turn sleeps only when nothing is ready, and never in pump.
 *  - What becomes ready in a turn is resumed in it or the next, never before all completions of the turn are delivered. */
#include "engine.h"
#include "queue.h"

#include <errno.h>
#include <string.h>
#include <time.h>

uint64_t ext_clock(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* For ages and slow steps, which are seconds and tenths: good to a few milliseconds, at a quarter of the price. */
static uint64_t coarse_clock(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* convert(completion, the bytes that were seen, the packet's length); steals the completion. */
static PyObject *peeked(Transfer *transfer, const struct iod_row *row, PyObject *completion)
{
	PyObject *head = PyBytes_FromStringAndSize((const char *)row->data, (Py_ssize_t)row->moved);
	PyObject *length = PyLong_FromUnsignedLongLong(row->status == IOD_OK ? row->length : 0);
	PyObject *value = head && length ? PyObject_CallFunctionObjArgs(transfer->convert, completion, head, length, NULL)
					 : NULL;
	Py_XDECREF(head);
	Py_XDECREF(length);
	Py_DECREF(completion);
	return value;
}

static PyObject *transfer_value(Transfer *transfer, struct iod_row *row, bool *failed)
{
	bool control = row->kind == IOD_R_LOAD || row->kind == IOD_R_STORE;

	*failed = false;
	if (row->kind == IOD_R_LOAD && row->status == IOD_OK) {
		if (transfer->convert && transfer->convert != Py_None)
			return PyObject_CallFunctionObjArgs(transfer->convert, transfer->payload, NULL);
		Py_INCREF(transfer->payload);
		return transfer->payload;
	}
	PyObject *completion = ext_completion(row);
	if (completion && row->kind == IOD_R_PEEK)
		return peeked(transfer, row, completion);
	if (!completion || !control || row->status == IOD_OK)
		return completion;
	*failed = true;
	PyObject *error = PyObject_CallFunctionObjArgs(DmaFaultType, completion, NULL);
	Py_DECREF(completion);
	return error;
}

void ext_deliver(Engine *engine)
{
	struct iod_row *row;
	if (engine->core.refused)
		ext_tell_refused(engine);
	while ((row = iod_take_done(&engine->core))) {
		Transfer *transfer = row->user;
		bool failed;
		if (row->kind == IOD_R_LOAD || row->kind == IOD_R_STORE || row->kind == IOD_R_PEEK)
			engine->python_bytes += row->moved;
		PyObject *value = transfer_value(transfer, row, &failed);
		if (!value) { /* the conversion raised: the coroutine gets that */
			PyObject *type, *trace;
			PyErr_Fetch(&type, &value, &trace);
			PyErr_NormalizeException(&type, &value, &trace);
			Py_XDECREF(type);
			Py_XDECREF(trace);
			failed = true;
		}
		ext_row_free(engine, row);
		ext_wait_done(&transfer->wait, value, failed);
		Py_DECREF(transfer);
	}
	ext_drop_idle(engine);
	while (engine->revoked) {
		Revocation *revocation = engine->revoked;
		engine->revoked = revocation->next;
		revocation->linked = false;
		Py_INCREF(Py_True);
		ext_wait_done(&revocation->wait, Py_True, false);
		Py_DECREF(revocation);
	}
	for (uint32_t i = 0; i < engine->ports; i++) {
		Port *port = engine->port[i];
		if (!port->port.resetting && !(port->stream && port->stream->wait.waiter) &&
		    !(port->queue && port->port.done.head))
			continue;
		Py_INCREF(port); /* its rows, or a callback, may have been the last to hold it */
		if (port->port.resetting && port->port.busy == 0) {
			while ((row = iod_take_batch(&engine->core, &port->port)))
				ext_row_free(engine, row);
			port->port.resetting = false;
			PyObject *wait = port->reset_wait;
			port->reset_wait = NULL;
			if (wait) {
				Py_INCREF(Py_None);
				ext_wait_done((Wait *)wait, Py_None, false);
				Py_DECREF(wait);
			}
		}
		if (port->queue && port->queue->route.endpoint && port->port.done.head && !port->port.resetting)
			ext_route_answer(port->queue);
		Stream *stream = port->stream;
		if (stream && stream->wait.waiter && ext_stream_ready(stream))
			ext_wait_done(&stream->wait, NULL, false);
		Py_DECREF(port);
	}
}

/* How many completions are worth waking up for: more than one only when a single stream waits for them all. */
static uint32_t least_wanted(const Engine *engine)
{
	const struct iod_core *core = &engine->core;
	if (core->with_drivers) /* one poll tells of any number of them */
		return 1;
	for (uint32_t i = 0; i < engine->ports; i++) {
		const Port *port = engine->port[i];
		if (!port->stream || !port->stream->wait.waiter)
			continue;
		if (port->port.rows != core->in_use || port->stream->least <= port->port.done.count)
			return 1;
		uint32_t least = port->stream->least - port->port.done.count;
		return least < core->with_backend ? least : core->with_backend ? core->with_backend : 1;
	}
	return 1;
}

void ext_poke(Engine *engine)
{
	if (engine->bridged && !engine->in_turn && !engine->poked && !engine->closed) {
		engine->poked = true;
		engine->backend->ops->wake(engine->backend);
	}
}

bool ext_has_work(const Engine *engine)
{
	const struct iod_core *core = &engine->core;
	for (uint32_t i = 0; i < engine->ports; i++) {
		const Port *port = engine->port[i];
		if (port->port.resetting && port->port.busy == 0)
			return true;
		/* What a step after the deliveries has refused: pump's last one. */
		if (port->stream && port->stream->wait.waiter && port->port.done.head && ext_stream_ready(port->stream))
			return true;
	}
	return engine->ready_head || core->done.head || core->ready.head || core->work.head || core->glue.head ||
	       engine->revoked || engine->lost || core->cancel_again || (core->ring.head && !core->with_backend) ||
	       (core->budget_again && core->budget.head) || engine->drivers_ready ||
	       (core->driven && ext_drivers_work(engine));
}

bool ext_idle(const Engine *engine)
{
	return !engine->core.with_backend && !engine->core.with_drivers && !ext_has_work(engine);
}

#define PATIENCE_NS 1000000 /* for more completions than one */

/* Spinning pays where what it waits for comes soon: it halves with each miss, to nothing, and starts again, small, after
 * a sleep that turned out short. */
static void adapt(Engine *engine, uint64_t spin, uint64_t hits)
{
	if (engine->backend->stats.spin_hits != hits)
		engine->spin_now = spin * 2 < engine->spin_most ? spin * 2 : engine->spin_most;
	else
		engine->spin_now = spin / 2 < 1000 ? 0 : spin / 2;
}

/* The beginning of a spin, for which giving the lock up and taking it again would cost more than it gives to others. */
#define HELD_NS 1500
#define LOOKS 16

static int spin_only(Engine *engine, uint64_t spin)
{
	struct iod_backend *backend = engine->backend;
	/* The next request is often there before a wait could have begun. */
	if (!engine->core.with_backend && iod_watch_changed(backend, backend->vain ? 2 * LOOKS : LOOKS)) {
		backend->stats.spins++;
		backend->stats.spin_hits++;
		return 0;
	}
	uint64_t held = spin < HELD_NS ? spin : HELD_NS;
	int error = backend->ops->wait(backend, 1, (int64_t)held, held);
	if (error != -ETIME || spin == held)
		return error;
	engine->gil_released++;
	engine->step_started = 0;
	Py_BEGIN_ALLOW_THREADS
	error = backend->ops->wait(backend, 1, (int64_t)(spin - held), spin - held);
	Py_END_ALLOW_THREADS
	return error;
}

static void sleep_for_completions(Engine *engine, int64_t timeout)
{
	struct iod_backend *backend = engine->backend;
	struct iod_core *core = &engine->core;
	backend->watches = engine->queues ? ext_queues_watch(engine) : 0;
	backend->watch = engine->watch;
	backend->watched = false;
	if ((core->driven || engine->drivers_armed) && ext_drivers_arm(engine))
		return;
	bool worth = core->with_backend || core->with_drivers || backend->watches || engine->watch_armed;
	uint64_t spin = worth ? engine->spin_now : 0;
	uint64_t hits = backend->stats.spin_hits;
	uint32_t least = least_wanted(engine);

	if (engine->queues) {
		/* First without the drivers' help, which costs them a system call each. */
		if (spin && (timeout < 0 || (uint64_t)timeout > spin)) {
			int error = spin_only(engine, spin);
			adapt(engine, spin, hits);
			if (error != -ETIME)
				return;
			if (timeout > 0)
				timeout -= (int64_t)spin;
			spin = 0;
			worth = false; /* it is known that this sleep is longer */
		}
		backend->watches = 0;
		if (ext_queues_arm(engine))
			return;
	}
	uint64_t begin = spin || engine->spin_most == 0 ? 0 : ext_clock();

	engine->gil_released++;
	engine->step_started = 0;
	Py_BEGIN_ALLOW_THREADS
	if (least == 1) {
		backend->ops->wait(backend, 1, timeout, spin);
	} else {
		/* Not for long: a request that is answered in part needs its next one, and the others may wait for that. */
		bool short_enough = timeout >= 0 && timeout <= PATIENCE_NS;
		int error = backend->ops->wait(backend, least, short_enough ? timeout : PATIENCE_NS, spin);
		if (error == -ETIME && !short_enough)
			backend->ops->wait(backend, 1, timeout < 0 ? -1 : timeout - PATIENCE_NS, 0);
	}
	Py_END_ALLOW_THREADS
	if (spin)
		adapt(engine, spin, hits);
	else if (begin && worth && ext_clock() - begin < engine->spin_most)
		engine->spin_now = engine->spin_most / 8;
}

static uint32_t reap(Engine *engine)
{
	uint32_t got = iod_core_reap(&engine->core, 4096);
	if (engine->drivers_ready) {
		ext_drivers_look(engine);
		got += iod_core_reap(&engine->core, 4096);
	}
	return got;
}

/* At the first bounce, so that an engine that never bounces pins nothing.  Where the kernel refuses (RLIMIT_MEMLOCK),
 * bouncing goes on without. */
static void register_arena(Engine *engine)
{
	struct iod_arena *arena = &engine->core.arena;

	engine->arena_tried = true;
	if (arena->buffer_index >= 0 || engine->next_buffer >= IOD_MAX_BUFFERS || strcmp(engine->backend->ops->name, "uring"))
		return;
	if (engine->backend->ops->set_buffer(engine->backend, engine->next_buffer, arena->base,
					     arena->pages * IOD_ARENA_PAGE) >= 0)
		arena->buffer_index = engine->next_buffer++;
}

/* Step, move, hand over, reap, deliver. The number of completions. */
static uint32_t move(Engine *engine)
{
	struct iod_core *core = &engine->core;
	struct iod_backend *backend = engine->backend;

	if (engine->lost)
		ext_remote_lost(engine);
	engine->in_step = true;
	if (core->ready.head || core->ring.head || core->cancel_again || core->budget_again || core->driven)
		iod_core_step(core);
	engine->in_step = false;
	if (core->done_now) { /* whoever waits for it gets it before the rest of the turn */
		core->done_now = false;
		ext_deliver(engine);
	}
	if (core->arena.peak && !engine->arena_tried)
		register_arena(engine);
	if (core->glue.head)
		iod_core_work(core, &core->glue);
	if (core->work.head) {
		if (core->work_bytes > engine->release_bytes) {
			engine->gil_released++;
			/* Other threads let go of views meanwhile: what a region's counts are is changed with the lock. */
			core->unlocked = true;
			Py_BEGIN_ALLOW_THREADS
			iod_core_work(core, &core->work);
			Py_END_ALLOW_THREADS
			core->unlocked = false;
			iod_core_moved(core);
		} else {
			iod_core_work(core, &core->work);
		}
	}
	if (core->queued_bytes > engine->release_bytes) {
		engine->gil_released++;
		Py_BEGIN_ALLOW_THREADS
		backend->ops->flush(backend);
		Py_END_ALLOW_THREADS
	} else {
		backend->ops->flush(backend);
	}
	core->queued_bytes = 0;
	uint32_t got = reap(engine);
	ext_deliver(engine);
	return got;
}

/* Look at the rings; what a queue's route has submitted goes at once. The number of completions. */
static uint32_t look(Engine *engine)
{
	if (!engine->queues)
		return 0;
	ext_queues_look(engine);
	return engine->routed ? move(engine) : 0;
}

#define ROUNDS 64 /* until signals are looked for */
#define SLACK_NS 10000000 /* of the coarse clock, and of rounds that do not read it: less than the longest spin each */

static int turn(Engine *engine, int64_t timeout, uint32_t limit)
{
	struct iod_core *core = &engine->core;

	engine->turns++;
	if (engine->watcher_parked && engine->unpark) {
		engine->watcher_parked = false;
		PyObject *result = PyObject_CallNoArgs(engine->unpark);
		if (!result)
			return -1;
		Py_DECREF(result);
	}
	core->now = coarse_clock();
	engine->step_started = core->now;
	uint32_t got = move(engine);
	got += look(engine);
	bool again = !got && timeout != 0;
	uint64_t begin = core->now;
	int64_t left = timeout;
	/* Whoever is watched for is Python's, and is not watched for again before Python was told. */
	for (int round = 0; again && !ext_has_work(engine) && !engine->stop && !engine->woken && !engine->watch_result;
	     round++) {
		sleep_for_completions(engine, left);
		if (!engine->backend->watched) { /* else there is a chain, and the rest comes after it */
			core->now = coarse_clock();
			reap(engine);
			ext_deliver(engine);
		}
		engine->step_started = core->now;
		look(engine);
		/* What went by a route was nobody's business but the core's: there is nobody to return to. */
		if (timeout >= 0)
			left = timeout - (int64_t)(core->now - begin) - SLACK_NS;
		again = engine->routed && (timeout < 0 || left > 0) && round < ROUNDS && !core->trace;
		engine->turns += again;
	}
	ext_run_ready(engine, limit);
	if (core->trace && core->trace->count > core->trace->room / 2) /* Python takes them before they are lost */
		__atomic_store_n(&engine->woken, 1, __ATOMIC_RELEASE);
	if (engine->raised && !PyErr_Occurred()) {
		PyObject *raised = engine->raised;
		engine->raised = NULL;
		PyErr_SetObject((PyObject *)Py_TYPE(raised), raised);
		Py_DECREF(raised);
	}
	if (!PyErr_Occurred())
		return 0;
	engine->step_started = 0; /* whatever the caller does with the error is no step */
	return -1;
}

int ext_turn(Engine *engine, int64_t timeout, uint32_t limit)
{
	engine->in_turn = true;
	engine->poked = false;
	int result = turn(engine, timeout, limit);
	engine->in_turn = false;
	return result;
}

int ext_refuse_nested(const Engine *engine)
{
	if (!engine->in_turn)
		return 0;
	PyErr_SetString(ErrorType, "the engine runs already: what runs in it can neither run nor close it");
	return -1;
}

/* run(deadline): turns until something is Python's to do.  A set of: 1 woken, 2 watched descriptor, 4 deadline, 8 stop,
 * 16 a turn is over, for who asked for each.
 * A deadline of -1 never comes; one of -2 comes when nothing is left to be done but wait. */
PyObject *ext_engine_run(Engine *self, PyObject *arg)
{
	long long deadline = PyLong_AsLongLong(arg);
	if (deadline == -1 && PyErr_Occurred())
		return NULL;
	if (ext_check(self))
		return NULL;
	if (ext_refuse_nested(self))
		return NULL;
	int why = 0;
	while (!why) {
		int64_t timeout = -1;
		if (deadline >= 0) {
			uint64_t now = ext_clock();
			timeout = now >= (uint64_t)deadline ? 0 : deadline - (int64_t)now;
			if (timeout == 0)
				why |= 4;
		} else if (deadline == -2 && ext_idle(self)) {
			timeout = 0;
			why |= 4;
		} else if (deadline == -2 && ext_has_work(self)) {
			timeout = 0; /* which may leave nothing to be done but wait */
		}
		ext_arm_watch(self);
		if (ext_turn(self, timeout, UINT32_MAX))
			return NULL;
		if (PyErr_CheckSignals()) {
			self->step_started = 0;
			return NULL;
		}
		if (__atomic_exchange_n(&self->woken, 0, __ATOMIC_ACQ_REL))
			why |= 1;
		if (self->watch_result) {
			self->watch_result = 0;
			why |= 2;
		}
		if (self->stop)
			why |= 8;
		if (self->each_turn)
			why |= 16;
	}
	self->step_started = 0;
	return PyLong_FromLong(why);
}

/* pump(limit): one turn without a sleep. A set, as of run. */
PyObject *ext_engine_pump(Engine *self, PyObject *arg)
{
	uint64_t limit;
	if (ext_u64(arg, "limit", &limit) || ext_check(self))
		return NULL;
	if (ext_refuse_nested(self))
		return NULL;
	int why = 0;
	ext_arm_watch(self);
	if (ext_turn(self, 0, limit < UINT32_MAX ? (uint32_t)limit : UINT32_MAX))
		return NULL;
	/* What the coroutines asked for goes to the kernel before the other loop sleeps. */
	self->in_step = true;
	iod_core_step(&self->core);
	self->in_step = false;
	if (self->queues && ext_queues_arm(self))
		self->backend->ops->wake(self->backend);
	if (self->core.driven && ext_drivers_arm(self))
		self->backend->ops->wake(self->backend);
	self->backend->ops->flush(self->backend);
	self->core.queued_bytes = 0;
	if (__atomic_exchange_n(&self->woken, 0, __ATOMIC_ACQ_REL))
		why |= 1;
	if (self->watch_result) {
		self->watch_result = 0;
		why |= 2;
	}
	self->step_started = 0;
	return PyLong_FromLong(why);
}
