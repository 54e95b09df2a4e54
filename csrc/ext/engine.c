/* SPDX-License-Identifier: Apache-2.0
 *
 * engine: the object that holds a core, its backend and its tasks.
 *
 * Invariants
 *  - It belongs to the thread that made it, in the process that made it.
 *  - It is destroyed only when the backend has nothing in flight: memory that the kernel may still write is never
 *    let go. */
#include "engine.h"
#include "queue.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

PyTypeObject *EngineType;
unsigned ext_forks;

int ext_check(Engine *self)
{
	if (self->closed) {
		PyErr_SetString(ClosedErrorType, "the engine is closed");
		return -1;
	}
	if (self->thread != PyThread_get_thread_ident() || self->fork_generation != ext_forks) {
		PyErr_SetString(WrongThreadErrorType,
				self->fork_generation != ext_forks
					? "the engine belongs to the process that made it; make another after a fork"
					: "the engine belongs to the thread that made it; use call_threadsafe from others");
		return -1;
	}
	return 0;
}

/* ---- hooks of the core ---- */

/* A window's handler raised: the engine logs it, or lets it out of run at the end of the turn. */
void ext_window_failed(Engine *engine, PyObject *target)
{
	PyObject *type, *value, *trace;
	for (int told = 0; told < 2; told++) {
		PyErr_Fetch(&type, &value, &trace);
		PyErr_NormalizeException(&type, &value, &trace);
		if (trace && value)
			PyException_SetTraceback(value, trace);
		Py_XDECREF(type);
		Py_XDECREF(trace);
		if (told)
			break;
		PyObject *done = PyObject_CallMethod((PyObject *)engine, "_window_failed", "OO", target, value);
		Py_XDECREF(value);
		if (done) {
			Py_DECREF(done);
			return;
		}
	}
	if (engine->raised)
		Py_XDECREF(value); /* one is enough */
	else
		engine->raised = value;
}

static int hook_device(void *context, struct iod_region *region, uint64_t offset, unsigned width, bool write,
		       uint64_t *value)
{
	PyObject *target = region->owner, *result;
	Engine *engine = context;
	if (write)
		result = PyObject_CallMethod(target, "write", "KIK", (unsigned long long)offset, width,
					     (unsigned long long)*value);
	else
		result = PyObject_CallMethod(target, "read", "KI", (unsigned long long)offset, width);
	if (!result) {
		ext_window_failed(engine, target);
		return -EFAULT;
	}
	int error = 0;
	if (result == (write ? Py_False : Py_None)) { /* the window refuses: a bus error */
		error = -EFAULT;
	} else if (!write) {
		*value = PyLong_AsUnsignedLongLongMask(result);
		if (PyErr_Occurred()) {
			ext_window_failed(engine, target);
			error = -EFAULT;
		}
	}
	Py_DECREF(result);
	return error;
}

static void call_script(PyObject *script, struct iod_row *row)
{
	if (!script)
		return;
	PyObject *result = PyObject_CallFunction(script, "KiKKi", (unsigned long long)row->ticket, (int)row->direction,
						 (unsigned long long)(row->position + row->moved),
						 (unsigned long long)row->op_bytes, (int)row->kind);
	if (!result)
		PyErr_WriteUnraisable(script);
	Py_XDECREF(result);
}

static void hook_script(void *context, struct iod_row *row)
{
	(void)context;
	call_script(((Target *)row->target->owner)->script, row);
}

static void hook_script_cancel(void *context, struct iod_row *row)
{
	(void)context;
	call_script(((Target *)row->target->owner)->script_cancel, row);
}

static void hook_revoked(void *context, struct iod_revocation *revocation)
{
	Engine *engine = context;
	Revocation *self = revocation->owner;
	self->next = engine->revoked;
	engine->revoked = self;
}

static void other_completion(struct iod_core *core, const struct iod_cqe *cqe)
{
	Engine *self = (Engine *)((char *)core - offsetof(Engine, core));
	if (cqe->user_data == EXT_KICKS) {
		ext_queues_kicked(self);
	} else if (cqe->user_data == EXT_DRIVERS) {
		self->drivers_armed = false;
		self->drivers_ready = cqe->res > 0;
	} else if (cqe->user_data == EXT_WATCH) {
		self->watch_armed = false;
		self->watch_result = cqe->res > 0 ? (uint32_t)cqe->res : 1;
	}
}

/* ---- the object ---- */

/* Engine(kind, entries, inflight, workers, bounce_bytes, spin_ns) */
static PyObject *engine_new(PyTypeObject *type, PyObject *args, PyObject *kw)
{
	(void)args;
	(void)kw;
	Engine *self = (Engine *)PyType_GenericAlloc(type, 0);
	if (self)
		self->closed = true; /* until _open */
	return (PyObject *)self;
}

static PyObject *engine_open(Engine *self, PyObject *args)
{
	int kind;
	unsigned entries, inflight, workers;
	unsigned long long bounce, spin;
	int error = 0;

	if (!PyArg_ParseTuple(args, "iIIIKK", &kind, &entries, &inflight, &workers, &bounce, &spin))
		return NULL;
	if (self->opened) {
		PyErr_SetString(ErrorType, "the engine was opened already");
		return NULL;
	}
	uint32_t polls = 3; /* of what the engine watches, kicks and drivers: transfers must not have to wait for them */
	struct iod_backend *backend;
	Py_BEGIN_ALLOW_THREADS /* a ring may have to wait until the kernel gave back the memory of another */
	backend = kind == 0 ? iod_uring_create(entries, inflight + polls, &error)
			    : iod_threads_create(workers, inflight + polls, &error);
	Py_END_ALLOW_THREADS
	self->backend = backend;
	if (!self->backend) {
		errno = -error;
		return PyErr_SetFromErrno(PyExc_OSError);
	}
	struct iod_hooks hooks = {.device = hook_device, .remote = ext_remote_ask, .script = hook_script, .script_cancel = hook_script_cancel,
				  .revoked = hook_revoked, .other = other_completion, .context = self};
	error = iod_core_init(&self->core, self->backend, bounce, &hooks);
	if (error) {
		self->backend->ops->destroy(self->backend);
		self->backend = NULL;
		errno = -error;
		return PyErr_SetFromErrno(PyExc_OSError);
	}
	self->core.most_with_backend = inflight;
	self->opened = true;
	self->closed = false;
	self->thread = PyThread_get_thread_ident();
	self->fork_generation = ext_forks;
	self->spin_most = spin;
	self->spin_now = spin;
	self->release_bytes = 256 << 10;
	self->watch_fd = -1;
	self->kicks_fd = self->drivers_fd = -1;
	Py_RETURN_NONE;
}

/* What nobody will end any more (a scripted endpoint's, say): end it, so that what it holds is let go. */
static void end_rows(Engine *self)
{
	for (uint32_t i = 0; i < self->core.rows; i++) {
		struct iod_row *row = iod_row_at(&self->core, i);
		if (row->state != IOD_S_FREE && row->state != IOD_S_COMPLETE)
			iod_row_complete(&self->core, row, IOD_CANCELLED, 0);
	}
	ext_deliver(self);
	for (uint32_t i = 0; i < self->ports; i++) {
		Port *port = self->port[i];
		struct iod_row *row;
		Py_INCREF(port);
		while ((row = iod_take_batch(&self->core, &port->port)))
			ext_row_free(self, row);
		Py_DECREF(port);
	}
}

/* _close(): True when it is closed; False when the backend still has something in flight. */
static PyObject *engine_close(Engine *self, PyObject *unused)
{
	(void)unused;
	if (self->closed)
		Py_RETURN_TRUE;
	if (ext_refuse_nested(self))
		return NULL;
	if (self->fork_generation == ext_forks && (self->core.with_backend || self->core.with_drivers))
		Py_RETURN_FALSE;
	/* Whoever is told of an end can neither run nor close it again, nor submit. */
	self->in_turn = true;
	ext_queues_close(self);
	for (uint32_t i = 0; i < self->ports; i++)
		self->port[i]->port.closed = true;
	if (self->fork_generation == ext_forks)
		end_rows(self);
	self->in_turn = false;
	while (self->spaces)
		ext_space_leave(self->spaces);
	ext_drop_idle(self);
	while (self->core.revocations)
		iod_revocation_forget(&self->core, self->core.revocations);
	while (self->ready_head) {
		Task *task = self->ready_head;
		self->ready_head = task->next;
		Py_DECREF(task);
	}
	self->ready_tail = NULL;
	self->ready_count = 0;
	if (self->fork_generation == ext_forks) { /* after a fork all of it is the parent's */
		self->backend->ops->destroy(self->backend);
		iod_core_destroy(&self->core);
	}
	for (uint32_t i = 0; i < self->ports; i++)
		self->port[i]->port.closed = true;
	ext_drivers_close(self);
	if (self->kicks_fd >= 0)
		close(self->kicks_fd);
	self->kicks_fd = -1;
	self->backend = NULL;
	self->closed = true;
	Py_RETURN_TRUE;
}

static void engine_dealloc(Engine *self)
{
	PyTypeObject *type = Py_TYPE(self);
	if (self->opened && !self->closed) {
		PyObject *done = engine_close(self, NULL);
		/* The kernel may still write: leak the core rather than let go of the memory. */
		Py_XDECREF(done);
	}
	Py_XDECREF(self->unpark);
	Py_XDECREF(self->raised);
	free(self->port);
	free(self->queue);
	free(self->watch);
	if (self->core.trace) {
		free(self->core.trace->event);
		free(self->core.trace);
	}
	free(self->core.edges);
	Py_XDECREF(self->trace_names);
	freefunc release = PyType_GetSlot(type, Py_tp_free);
	release(self);
	Py_DECREF(type);
}

/* _spawn_task(coro, owner | None, name | None, notify) -> Task.  Unless `notify`, the owner is not told of a task that
 * simply returned. */
static PyObject *engine_spawn(Engine *self, PyObject *const *args, Py_ssize_t n)
{
	if (n != 4)
		return PyErr_Format(PyExc_TypeError, "_spawn_task takes 4 arguments, not %zd", n);
	PyObject *coroutine = args[0];
	if ((PyObject *)Py_TYPE(coroutine) != CoroutineType &&
	    (!PyObject_HasAttrString(coroutine, "send") || !PyObject_HasAttrString(coroutine, "throw")))
		return PyErr_Format(ArgumentTypeErrorType, "%R is not a coroutine; call an `async def` for one", coroutine);
	Task *task = ext_check(self) ? NULL : ext_task_new(self);
	if (!task) { /* it will never run: no warning about that beside the error */
		PyObject *type, *value, *trace;
		PyErr_Fetch(&type, &value, &trace);
		Py_XDECREF(PyObject_CallMethod(coroutine, "close", NULL));
		PyErr_Clear();
		PyErr_Restore(type, value, trace);
		return NULL;
	}
	Py_INCREF(coroutine);
	task->coroutine = coroutine;
	if (args[1] != Py_None) {
		Py_INCREF(args[1]);
		task->owner = args[1];
	}
	if (args[2] != Py_None) {
		Py_INCREF(args[2]);
		task->name = args[2];
	}
	task->notify = args[3] == Py_True;
	task->depth = self->core.depth;
	self->tasks++;
	Py_INCREF(task);
	task->later = self->all;
	if (self->all)
		self->all->earlier = task;
	self->all = task;
	ext_task_ready(task);
	return (PyObject *)task;
}

/* Those that are not over, the oldest first; NULL: whoever owns them. */
static PyObject *tasks_of(Engine *self, PyObject *owner)
{
	PyObject *list = PyList_New(0);
	for (Task *task = self->all; list && task; task = task->later)
		if ((!owner || task->owner == owner) && PyList_Append(list, (PyObject *)task))
			Py_CLEAR(list);
	if (list)
		PyList_Reverse(list);
	return list;
}

/* _tasks_of(owner) */
static PyObject *engine_tasks_of(Engine *self, PyObject *owner)
{
	return tasks_of(self, owner);
}

/* _all_tasks() */
static PyObject *engine_all_tasks(Engine *self, PyObject *unused)
{
	(void)unused;
	return tasks_of(self, NULL);
}

/* wake(): from any thread. */
static PyObject *engine_wake(Engine *self, PyObject *unused)
{
	(void)unused;
	if (!self->closed) {
		__atomic_store_n(&self->woken, 1, __ATOMIC_RELEASE);
		self->backend->ops->wake(self->backend);
	}
	Py_RETURN_NONE;
}

static PyObject *engine_fileno(Engine *self, PyObject *unused)
{
	(void)unused;
	if (ext_check(self))
		return NULL;
	self->bridged = true;
	int fd = self->backend->ops->fileno(self->backend);
	if (fd < 0) {
		errno = -fd;
		return PyErr_SetFromErrno(PyExc_OSError);
	}
	return PyLong_FromLong(fd);
}

static PyObject *engine_nudge(Engine *self, PyObject *unused)
{
	(void)unused;
	if (!self->closed)
		self->backend->ops->wake(self->backend);
	Py_RETURN_NONE;
}

/* _watch(fd): polled for reading while the engine runs; -1: nothing. */
static PyObject *engine_watch(Engine *self, PyObject *arg)
{
	long fd = PyLong_AsLong(arg);
	if (fd == -1 && PyErr_Occurred())
		return NULL;
	self->watch_fd = (int)fd;
	Py_RETURN_NONE;
}

void ext_arm_watch(Engine *self)
{
	if (self->watch_fd < 0 || self->watch_armed)
		return;
	struct iod_op op = {.code = IOD_OP_POLL, .fd = self->watch_fd, .poll_events = 1, .user_data = EXT_WATCH};
	if (self->backend->ops->queue(self->backend, &op) == 0)
		self->watch_armed = true;
}

/* Ask everything to end: tasks and transfers. */
static PyObject *engine_cancel_all(Engine *self, PyObject *unused)
{
	(void)unused;
	if (ext_check(self))
		return NULL;
	/* Once: what they do to end, they may do. */
	for (Task *task = self->all; task; task = task->later)
		if (!task->closing) {
			task->closing = true;
			if (ext_task_cancel(task))
				return NULL;
		}
	for (uint32_t i = 0; i < self->core.rows; i++) {
		struct iod_row *row = iod_row_at(&self->core, i);
		if (row->state != IOD_S_FREE)
			iod_cancel_row(&self->core, row);
	}
	/* Nobody will read these any more. */
	for (uint32_t i = 0; i < self->ports; i++) {
		Port *port = self->port[i];
		struct iod_row *row;
		Py_INCREF(port);
		while ((row = iod_take_batch(&self->core, &port->port)))
			ext_row_free(self, row);
		Py_DECREF(port);
	}
	Py_RETURN_NONE;
}

static PyObject *engine_settle(Engine *self, PyObject *unused)
{
	(void)unused;
	self->settling = true;
	self->watch_fd = -1;
	if (self->watch_armed)
		self->backend->ops->cancel(self->backend, EXT_WATCH);
	ext_queues_close(self);
	if (self->kicks_armed)
		self->backend->ops->cancel(self->backend, EXT_KICKS);
	Py_RETURN_NONE;
}

/* _abort_drivers(): break the connections that something is under way on; whether there was one. */
static PyObject *engine_abort_drivers(Engine *self, PyObject *unused)
{
	(void)unused;
	return PyBool_FromLong(ext_drivers_abort(self));
}

static PyObject *engine_register(Engine *self, PyObject *region_object)
{
	if (ext_check(self))
		return NULL;
	struct iod_region *region = NULL;
	uint8_t *base;
	size_t size;
	int *index;
	if (region_object == Py_None) {
		base = self->core.arena.base;
		size = self->core.arena.pages * IOD_ARENA_PAGE;
		index = &self->core.arena.buffer_index;
	} else {
		if (!PyObject_TypeCheck(region_object, RegionType))
			return PyErr_Format(ArgumentTypeErrorType, "%R is not a region", region_object);
		region = ((Region *)region_object)->region;
		base = region->host;
		size = region->size;
		index = &region->buffer_index;
	}
	if (!base || size == 0 || (*index >= 0 && (!region || region->buffer_core == self->core.number)))
		Py_RETURN_FALSE;
	int free_slot = self->next_buffer;
	if (free_slot >= IOD_MAX_BUFFERS)
		Py_RETURN_FALSE;
	int error = self->backend->ops->set_buffer(self->backend, free_slot, base, size);
	if (error < 0) {
		errno = -error;
		return PyErr_SetFromErrno(PyExc_OSError);
	}
	self->next_buffer++;
	*index = free_slot;
	if (region)
		region->buffer_core = self->core.number;
	Py_RETURN_TRUE;
}

static PyObject *engine_set(Engine *self, PyObject *args)
{
	const char *name;
	PyObject *value_object;
	uint64_t value;
	if (!PyArg_ParseTuple(args, "sO", &name, &value_object))
		return NULL;
	if (!strcmp(name, "unpark")) {
		Py_INCREF(value_object);
		EXT_SET(self->unpark, value_object);
		Py_RETURN_NONE;
	}
	if (ext_u64(value_object, name, &value))
		return NULL;
	if (!strcmp(name, "return")) /* from _run, at the end of the turn */
		__atomic_store_n(&self->woken, 1, __ATOMIC_RELEASE);
	else if (!strcmp(name, "watcher_parked"))
		self->watcher_parked = value != 0;
	else if (!strcmp(name, "small_from_memory"))
		self->core.small[IOD_FROM_MEMORY] = (uint32_t)value;
	else if (!strcmp(name, "small_to_memory"))
		self->core.small[IOD_TO_MEMORY] = (uint32_t)value;
	else if (!strcmp(name, "release_bytes"))
		self->release_bytes = value;
	else if (!strcmp(name, "spin_ns"))
		self->spin_most = self->spin_now = value;
	else if (!strcmp(name, "stop"))
		self->stop = value != 0;
	else if (!strcmp(name, "each_turn")) /* return from _run after each turn, which may have slept */
		self->each_turn = value != 0;
	else
		return PyErr_Format(PyExc_AttributeError, "no setting %s", name);
	Py_RETURN_NONE;
}

static uint32_t with_backend(const Engine *self)
{
	const struct iod_core *core = &self->core;
	return core->with_backend + core->with_drivers + self->watch_armed + self->kicks_armed + self->drivers_armed;
}

static PyObject *engine_get(Engine *self, void *what)
{
	switch ((char)(intptr_t)what) {
	case 'k':
		return PyUnicode_FromString(self->backend ? self->backend->ops->name : "closed");
	case 'c':
		return PyBool_FromLong(self->closed);
	case 'b':
		return PyLong_FromUnsignedLong(self->closed ? 0 : with_backend(self));
	case 'u':
		return PyLong_FromUnsignedLong(self->closed ? 0 : self->core.in_use);
	case 's':
		return PyLong_FromUnsignedLongLong(self->step_started);
	case 't':
		return PyLong_FromUnsignedLong(self->tasks);
	case 'n':
		return PyLong_FromUnsignedLongLong(self->turns);
	case 'm':
		return PyBool_FromLong(!self->closed && ext_has_work(self));
	case 'i':
		return PyBool_FromLong(!self->closed && ext_idle(self));
	case 'r':
		return PyBool_FromLong(self->in_turn);
	case 'd':
		return PyLong_FromUnsignedLong(self->core.depth);
	case 'w':
		return PyBool_FromLong(!self->closed && self->fork_generation == ext_forks &&
				       self->thread == PyThread_get_thread_ident());
	default: {
		PyObject *current = self->current ? (PyObject *)self->current : Py_None;
		Py_INCREF(current);
		return current;
	}
	}
}

static PyMethodDef engine_methods[] = {
	{"_open", EXT_METHOD(engine_open), METH_VARARGS, NULL},
	{"_close", EXT_METHOD(engine_close), METH_NOARGS, NULL},
	{"_settle", EXT_METHOD(engine_settle), METH_NOARGS, NULL},
	{"_abort_drivers", EXT_METHOD(engine_abort_drivers), METH_NOARGS, NULL},
	{"_cancel_all", EXT_METHOD(engine_cancel_all), METH_NOARGS, NULL},
	{"_run", EXT_METHOD(ext_engine_run), METH_O, NULL},
	{"_pump", EXT_METHOD(ext_engine_pump), METH_O, NULL},
	{"_spawn_task", EXT_METHOD(engine_spawn), METH_FASTCALL, NULL},
	{"_tasks_of", EXT_METHOD(engine_tasks_of), METH_O, NULL},
	{"_all_tasks", EXT_METHOD(engine_all_tasks), METH_NOARGS, NULL},
	{"_wake", EXT_METHOD(engine_wake), METH_NOARGS, NULL},
	{"_nudge", EXT_METHOD(engine_nudge), METH_NOARGS, NULL},
	{"_fileno", EXT_METHOD(engine_fileno), METH_NOARGS, NULL},
	{"_watch", EXT_METHOD(engine_watch), METH_O, NULL},
	{"_register", EXT_METHOD(engine_register), METH_O, NULL},
	{"_rows", EXT_METHOD(ext_engine_rows), METH_NOARGS, NULL},
	{"_stats", EXT_METHOD(ext_engine_stats), METH_NOARGS, NULL},
	{"_trace", EXT_METHOD(ext_engine_trace), METH_O, NULL},
	{"_take_trace", EXT_METHOD(ext_engine_take_trace), METH_NOARGS, NULL},
	{"_edges", EXT_METHOD(ext_engine_edges), METH_NOARGS, NULL},
	{"_set", EXT_METHOD(engine_set), METH_VARARGS, NULL},
	{0}};
static PyGetSetDef engine_getset[] = {
	{"kind", (getter)engine_get, NULL, "What moves the bytes: \"uring\" or \"threads\".", (void *)'k'},
	{"closed", (getter)engine_get, NULL, "Whether it is closed.", (void *)'c'},
	{"current_task", (getter)engine_get, NULL, "The task that is being stepped, or None.", (void *)'x'},
	{"_with_backend", (getter)engine_get, NULL, NULL, (void *)'b'},
	{"_in_use", (getter)engine_get, NULL, NULL, (void *)'u'},
	{"_step_started", (getter)engine_get, NULL, NULL, (void *)'s'},
	{"_owned", (getter)engine_get, NULL, NULL, (void *)'w'},
	{"_in_turn", (getter)engine_get, NULL, NULL, (void *)'r'},
	{"_turns", (getter)engine_get, NULL, NULL, (void *)'n'},
	{"_depth", (getter)engine_get, NULL, NULL, (void *)'d'},
	{"_idle", (getter)engine_get, NULL, NULL, (void *)'i'},
	{"_has_work", (getter)engine_get, NULL, NULL, (void *)'m'},
	{"_tasks", (getter)engine_get, NULL, NULL, (void *)'t'},
	{0}};
static PyType_Slot engine_slots[] = {{Py_tp_new, engine_new},
				     {Py_tp_dealloc, engine_dealloc},
				     {Py_tp_methods, engine_methods},
				     {Py_tp_getset, engine_getset},
				     {0}};
static PyType_Spec engine_spec = {"iodma._core.Engine", sizeof(Engine), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
				  engine_slots};

int ext_engine_add(PyObject *module)
{
	EngineType = ext_type(module, &engine_spec, NULL);
	return EngineType ? 0 : -1;
}
