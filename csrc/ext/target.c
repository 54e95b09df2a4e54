/* SPDX-License-Identifier: Apache-2.0
 *
 * target: host endpoints, as Python sees them.
 *
 * Invariants
 *  - A target belongs to the first engine that used it, because its order is kept there and its descriptor is
 *    registered there.
 *  - It owns its descriptors, and closes them when no row needs them any more. */
#include "../framed.h"
#include "../nbd.h"
#include "ext.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

PyTypeObject *TargetType;

static void forget(Target *self)
{
	Engine *engine = self->engine;
	struct iod_target *target = &self->target;

	if (engine && target->file_index >= 0 && !engine->closed && engine->fork_generation == ext_forks) {
		engine->backend->ops->set_file(engine->backend, target->file_index, -1);
		engine->file_taken[target->file_index] = false;
	}
	target->file_index = -1;
	if (target->driver) {
		bool ours = self->fork_generation == ext_forks;
		if (engine && !engine->closed && ours)
			ext_drivers_remove(engine, target);
		target->driver->ops->destroy(target->driver, ours);
		target->driver = NULL;
	}
	if (target->fd >= 0)
		close(target->fd);
	if (target->buffered_fd >= 0)
		close(target->buffered_fd);
	target->fd = target->buffered_fd = -1;
}

/* Its last row is gone.  That may be in a stretch without the interpreter lock, so it is only noted. */
static void target_idle(struct iod_target *target)
{
	Target *self = target->owner;
	self->idle = true;
	if (self->on_idle_list)
		return;
	self->on_idle_list = true;
	self->next_idle = self->engine->idle_targets;
	self->engine->idle_targets = self;
}

/* Packets that were framed as nobody may: the target says so. */
void ext_tell_refused(Engine *engine)
{
	while (engine->core.refused) {
		Target *self = engine->core.refused->owner;
		engine->core.refused = self->target.next_refused;
		PyObject *told = PyObject_CallMethod((PyObject *)self, "_refused", "I", self->target.framing->frame);
		if (!told)
			PyErr_WriteUnraisable((PyObject *)self);
		Py_XDECREF(told);
	}
}

void ext_drop_idle(Engine *engine)
{
	while (engine->idle_targets) {
		Target *self = engine->idle_targets;
		engine->idle_targets = self->next_idle;
		self->on_idle_list = false;
		if (self->idle) {
			self->idle = false;
			if (self->target.closed && self->target.references == 0)
				forget(self); /* closed while it was in use */
			Py_DECREF(self);
		}
	}
}

/* Target(kind, fd, buffered_fd, read_only, write_through, direct, zero_copy, memory_alignment, offset_alignment,
 *        max_segments, max_bytes, region, plain_io, driver, small, framing) */
static PyObject *target_new(PyTypeObject *type, PyObject *args, PyObject *kw)
{
	static char *names[] = {"kind", "fd", "buffered_fd", "read_only", "write_through", "direct", "zero_copy",
				"memory_alignment", "offset_alignment", "max_segments", "max_bytes", "region", "plain_io", "driver",
				"small", "framing", NULL};
	int kind, fd = -1, buffered = -1, read_only = 0, through = 0, direct = 0, zero_copy = 0, plain_io = 0;
	unsigned memory_alignment = 1, offset_alignment = 1, segments = IOD_IOV_MAX;
	unsigned long long bytes = IOD_MAX_IO;
	unsigned small = 0, framing = 0;
	PyObject *region = NULL, *driver = NULL;

	if (!PyArg_ParseTupleAndKeywords(args, kw, "i|iippppIIIKOpOII", names, &kind, &fd, &buffered, &read_only, &through,
					 &direct, &zero_copy, &memory_alignment, &offset_alignment, &segments, &bytes,
					 &region, &plain_io, &driver, &small, &framing))
		return NULL;
	if (region == Py_None)
		region = NULL;
	if (region && !PyObject_TypeCheck(region, RegionType))
		return PyErr_Format(ArgumentTypeErrorType, "%R is not a region", region);
	if (!memory_alignment || !offset_alignment || !segments || segments > IOD_IOV_MAX || !bytes || bytes > IOD_MAX_IO) {
		PyErr_Format(ArgumentErrorType,
			     "constraints out of range: alignments and counts are at least 1, at most %u segments and "
			     "%u bytes a request",
			     IOD_IOV_MAX, IOD_MAX_IO);
		return NULL;
	}
	Target *self = (Target *)PyType_GenericAlloc(type, 0);
	if (!self)
		return NULL;
	self->target = (struct iod_target){
		.kind = (uint8_t)kind, .fd = fd, .buffered_fd = buffered, .file_index = -1, .read_only = read_only,
		.write_through = through, .direct = direct, .zero_copy = zero_copy, .plain_io = plain_io,
		.memory_alignment = memory_alignment, .offset_alignment = offset_alignment, .max_segments = segments,
		.max_bytes = bytes, .small = small, .idle = target_idle, .owner = self};
	self->fork_generation = ext_forks;
	if (framing && !(self->target.framing = iod_framing_new(framing))) {
		self->target.fd = self->target.buffered_fd = -1; /* they stay the caller's */
		Py_DECREF(self);
		return PyErr_NoMemory();
	}
	if (driver && !(self->target.driver = ext_driver_take(driver))) {
		self->target.fd = self->target.buffered_fd = -1; /* they stay the caller's */
		Py_DECREF(self);
		return NULL;
	}
	if (region) {
		Py_INCREF(region);
		self->region = region;
		self->target.region = ((Region *)region)->region;
		iod_region_get(self->target.region);
	}
	return (PyObject *)self;
}

static int target_traverse(Target *self, visitproc visit, void *arg)
{
	Py_VISIT(Py_TYPE(self));
	Py_VISIT(self->region);
	Py_VISIT(self->script);
	Py_VISIT(self->script_cancel);
	Py_VISIT(self->engine);
	return 0;
}

static int target_clear(Target *self)
{
	Py_CLEAR(self->script);
	Py_CLEAR(self->script_cancel);
	return 0;
}

static void target_dealloc(Target *self)
{
	PyTypeObject *type = Py_TYPE(self);
	PyObject_GC_UnTrack(self);
	forget(self);
	if (self->target.region)
		iod_region_put(self->target.region);
	free(self->target.vector);
	free(self->target.held);
	iod_framing_free(self->target.framing);
	free(self->target.batch[0].packet);
	free(self->target.batch[1].packet);
	Py_XDECREF(self->region);
	Py_XDECREF(self->script);
	Py_XDECREF(self->script_cancel);
	Py_XDECREF((PyObject *)self->engine);
	freefunc release = PyType_GetSlot(type, Py_tp_free);
	release(self);
	Py_DECREF(type);
}

int ext_target_use(Target *self, Engine *engine)
{
	struct iod_target *target = &self->target;

	if (target->closed) {
		PyErr_Format(ClosedErrorType, "%R is closed", (PyObject *)self);
		return -1;
	}
	if (self->engine != engine) {
		if (self->engine && !self->engine->closed) {
			PyErr_Format(ErrorType, "%R is in use by another engine; open it once for each", (PyObject *)self);
			return -1;
		}
		if (target->driver && ext_drivers_add(engine, target))
			return -1;
		Py_INCREF(engine);
		Py_XDECREF(self->engine);
		self->engine = engine;
		self->traced = target->trace_id = 0; /* those are the other engine's */
		target->file_index = -1;
		if (target->fd >= 0 &&
		    (target->kind == IOD_T_FILE || target->kind == IOD_T_STREAM || target->kind == IOD_T_PACKET))
			for (int i = 0; i < IOD_MAX_FILES; i++)
				if (!engine->file_taken[i]) {
					if (engine->backend->ops->set_file(engine->backend, i, target->fd) >= 0) {
						engine->file_taken[i] = true;
						target->file_index = i;
					}
					break;
				}
	}
	if (ext_trace_name(engine, &self->traced, &target->trace_id, (PyObject *)self, NULL))
		return -1;
	if (target->references == 0 && !self->idle) /* dropped by ext_drop_idle */
		Py_INCREF(self);
	self->idle = false;
	return 0;
}

void ext_target_unused(Target *self)
{
	if (self->target.references)
		return;
	if (self->on_idle_list) /* the list drops it: it must not be freed while it is on it */
		self->idle = true;
	else
		Py_DECREF(self);
}

/* _close(): nothing new; the descriptors go with the last reference. True when nothing was in flight. */
static PyObject *target_close(Target *self, PyObject *unused)
{
	(void)unused;
	bool busy = self->target.references != 0;
	self->target.closed = true;
	if (!busy)
		forget(self);
	return PyBool_FromLong(!busy);
}

static PyObject *target_set_script(Target *self, PyObject *args)
{
	PyObject *script, *cancel;
	if (!PyArg_ParseTuple(args, "OO", &script, &cancel))
		return NULL;
	Py_INCREF(script);
	Py_INCREF(cancel);
	EXT_SET(self->script, script);
	EXT_SET(self->script_cancel, cancel);
	Py_RETURN_NONE;
}

static struct iod_row *scripted(Target *self, unsigned long long ticket)
{
	if (!self->engine || ext_check(self->engine)) {
		if (!PyErr_Occurred())
			PyErr_SetString(ErrorType, "nothing was asked of this endpoint yet");
		return NULL;
	}
	struct iod_row *row = iod_find(&self->engine->core, ticket);
	if (!row || row->phase != IOD_P_SCRIPT || row->target != &self->target) {
		PyErr_Format(StaleErrorType, "no request %p is waiting here", (void *)(uintptr_t)ticket);
		return NULL;
	}
	if (self->engine->in_step) {
		PyErr_SetString(ErrorType, "a request cannot be answered inside the call that makes it");
		return NULL;
	}
	return row;
}

/* Around a move that handlers of device windows may run in: what they cancel is found under way, they cannot answer the
 * same request, and they can neither run nor close the engine. */
static bool begin_move(Engine *engine, struct iod_row *row)
{
	bool in_turn = engine->in_turn;
	engine->in_turn = true;
	row->phase = IOD_P_NONE;
	return in_turn;
}

static void end_move(Engine *engine, struct iod_row *row, bool in_turn)
{
	row->phase = IOD_P_SCRIPT;
	engine->in_turn = in_turn;
	ext_poke(engine);
}

/* _peek(ticket, n) -> the first n bytes that are to be written; fewer when the memory behind them is gone */
static PyObject *target_peek(Target *self, PyObject *args)
{
	unsigned long long ticket;
	Py_ssize_t n;
	if (!PyArg_ParseTuple(args, "Kn", &ticket, &n))
		return NULL;
	struct iod_row *row = scripted(self, ticket);
	if (!row)
		return NULL;
	uint64_t left = row->op_bytes, done = 0;
	if (iod_is_control(row))
		left = 0;
	if (n < 0 || (uint64_t)n > left)
		n = (Py_ssize_t)left;
	PyObject *bytes = PyBytes_FromStringAndSize(NULL, n);
	if (!bytes)
		return NULL;
	if (row->filled) { /* messages have brought it */
		memcpy(PyBytes_AsString(bytes), row->bounce, (size_t)n);
		done = (uint64_t)n;
	} else {
		bool in_turn = begin_move(self->engine, row);
		iod_row_gather(&self->engine->core, row, (uint8_t *)PyBytes_AsString(bytes), (uint64_t)n, &done, NULL);
		end_move(self->engine, row, in_turn);
	}
	self->engine->python_bytes += done;
	if (done == (uint64_t)n)
		return bytes;
	PyObject *fewer = PyBytes_FromStringAndSize(PyBytes_AsString(bytes), (Py_ssize_t)done);
	Py_DECREF(bytes);
	return fewer;
}

static void script_put(struct iod_core *core, struct iod_row *row, int error, uint64_t done)
{
	row->phase = IOD_P_SCRIPT;
	iod_script_done(core, row, error ? -EFAULT : (int32_t)done);
}

/* What a scripted endpoint gives; messages that take it on may have to be waited for. */
static int put_script(Engine *engine, struct iod_row *row, const uint8_t *data, uint64_t n)
{
	uint64_t done = 0;
	uint8_t *own = NULL;

	n = iod_min64(n, row->total - row->moved);
	if (row->t.remote) {
		if (!(own = malloc(n))) {
			PyErr_NoMemory();
			return -1;
		}
		memcpy(own, data, n);
	}
	bool in_turn = begin_move(engine, row);
	int error = iod_row_scatter(&engine->core, row, own ? own : data, n, &done, script_put);
	if (error == -EINPROGRESS) {
		iod_remote_own(row, own);
		own = NULL;
		engine->in_turn = in_turn;
		ext_poke(engine);
	} else {
		end_move(engine, row, in_turn);
		engine->python_bytes += done;
		script_put(&engine->core, row, error, done);
	}
	free(own);
	return 0;
}

/* _finish(ticket, result, data | None): result is bytes or -errno; data is what is read. */
static PyObject *target_finish(Target *self, PyObject *args)
{
	unsigned long long ticket;
	int result;
	Py_buffer data = {0};
	if (!PyArg_ParseTuple(args, "Ki|y*", &ticket, &result, &data))
		return NULL;
	struct iod_row *row = scripted(self, ticket);
	if (row) {
		if (!data.buf || result <= 0 || iod_is_control(row))
			iod_script_done(&self->engine->core, row, result);
		else if (put_script(self->engine, row, data.buf, iod_min64((uint64_t)result, (uint64_t)data.len)))
			row = NULL;
		self->engine->backend->ops->wake(self->engine->backend);
	}
	if (data.buf)
		PyBuffer_Release(&data);
	if (!row)
		return NULL;
	Py_RETURN_NONE;
}

static PyObject *target_get(Target *self, void *what)
{
	switch ((char)(intptr_t)what) {
	case 'd':
		return PyBool_FromLong(self->target.driver != NULL);
	case 'y': {
		const char *why = self->target.driver ? iod_nbd_why(self->target.driver) : NULL;
		return why ? PyUnicode_DecodeUTF8(why, (Py_ssize_t)strlen(why), "replace") : PyUnicode_FromString("");
	}
	case 'c':
		return PyBool_FromLong(self->target.closed);
	case 'f':
		return PyLong_FromLong(self->target.fd);
	case 'r':
		return PyBool_FromLong(self->target.file_index >= 0);
	case 'z':
		return PyBool_FromLong(self->target.zero_copy);
	case 'w':
		return PyBool_FromLong(self->target.write_through);
	case 'e': {
		PyObject *engine = self->engine ? (PyObject *)self->engine : Py_None;
		Py_INCREF(engine);
		return engine;
	}
	default:
		return PyLong_FromUnsignedLong(self->target.references);
	}
}

/* Of a FILE: for requests handed over from now on. */
static int target_set_write_through(Target *self, PyObject *value, void *unused)
{
	(void)unused;
	int through = value ? PyObject_IsTrue(value) : -1;
	if (through < 0) {
		if (!PyErr_Occurred())
			PyErr_SetString(PyExc_TypeError, "write_through cannot be deleted");
		return -1;
	}
	self->target.write_through = through;
	return 0;
}

/* _abort(): break a connection; what was not acknowledged is dropped, and its pages are free. */
static PyObject *target_abort(Target *self, PyObject *unused)
{
	(void)unused;
	struct sockaddr nowhere = {.sa_family = AF_UNSPEC};
	if (self->target.driver) {
		if (self->engine && !self->engine->closed && ext_check(self->engine))
			return NULL;
		self->target.driver->ops->abort(self->target.driver);
		if (self->engine && !self->engine->closed)
			ext_poke(self->engine);
		Py_RETURN_NONE;
	}
	if (self->target.fd >= 0 && connect(self->target.fd, &nowhere, sizeof nowhere)) {
		if (errno != EOPNOTSUPP && errno != EINVAL && errno != ENOTCONN) /* not a kind that can */
			return PyErr_SetFromErrno(PyExc_OSError);
		shutdown(self->target.fd, SHUT_RDWR);
	}
	Py_RETURN_NONE;
}

static PyMethodDef target_methods[] = {{"_abort", EXT_METHOD(target_abort), METH_NOARGS, NULL},
				       {"_close", EXT_METHOD(target_close), METH_NOARGS, NULL},
				       {"_set_script", EXT_METHOD(target_set_script), METH_VARARGS, NULL},
				       {"_peek", EXT_METHOD(target_peek), METH_VARARGS, NULL},
				       {"_finish", EXT_METHOD(target_finish), METH_VARARGS, NULL},
				       {0}};
static PyGetSetDef target_getset[] = {
	{"closed", (getter)target_get, NULL, "Whether close was called.", (void *)'c'},
	{"in_flight", (getter)target_get, NULL, "Transfers that are not complete.", (void *)'i'},
	{"_fd", (getter)target_get, NULL, NULL, (void *)'f'},
	{"_zero_copy", (getter)target_get, NULL, NULL, (void *)'z'},
	{"_write_through", (getter)target_get, (setter)target_set_write_through, NULL, (void *)'w'},
	{"_driven", (getter)target_get, NULL, NULL, (void *)'d'},
	{"_why_gone", (getter)target_get, NULL, NULL, (void *)'y'},
	{"_registered", (getter)target_get, NULL, NULL, (void *)'r'},
	{"_engine", (getter)target_get, NULL, NULL, (void *)'e'},
	{0}};
static PyType_Slot target_slots[] = {{Py_tp_new, target_new},
				     {Py_tp_traverse, target_traverse},
				     {Py_tp_clear, target_clear},
				     {Py_tp_free, PyObject_GC_Del},
				     {Py_tp_dealloc, target_dealloc},
				     {Py_tp_methods, target_methods},
				     {Py_tp_getset, target_getset},
				     {0}};
static PyType_Spec target_spec = {"iodma._core.Target", sizeof(Target), 0,
				  Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
				  target_slots};

int ext_target_add(PyObject *module)
{
	TargetType = ext_type(module, &target_spec, NULL);
	return TargetType ? 0 : -1;
}
