/* SPDX-License-Identifier: Apache-2.0
 *
 * port: where a device submits, one transfer or a batch at a time, and where the completions of batches come out.
 *
 * Invariants
 *  - Every argument is checked before the first row is made: a call that raises has submitted nothing.
 *  - A coroutine of a generation that was reset can submit nothing. */
#include "ext.h"

#include <errno.h>
#include <string.h>

PyTypeObject *PortType;

/* Port(engine, space, name, depth) */
static PyObject *port_new(PyTypeObject *type, PyObject *args, PyObject *kw)
{
	static char *names[] = {"engine", "space", "name", "depth", NULL};
	PyObject *engine_object, *space;
	const char *name;
	unsigned depth = 4096;
	if (!PyArg_ParseTupleAndKeywords(args, kw, "OOs|I", names, &engine_object, &space, &name, &depth))
		return NULL;
	if (!PyObject_TypeCheck(engine_object, EngineType))
		return PyErr_Format(ArgumentTypeErrorType, "%R is not an engine", engine_object);
	if (!PyObject_TypeCheck(space, SpaceType))
		return PyErr_Format(ArgumentTypeErrorType, "%R is not an address space; a Memory or a stage would be", space);
	if (depth == 0 || depth > 1u << 20)
		return PyErr_Format(ArgumentErrorType, "depth is %u; it must be 1 to 2^20", depth);
	Engine *engine = (Engine *)engine_object;
	if (ext_check(engine))
		return NULL;
	for (struct iod_space *at = &((Space *)space)->space; at; at = at->next)
		if (at->core && at->core != &engine->core)
			return PyErr_Format(ErrorType, "%s is in use by another engine", at->name);
	if (engine->ports == engine->port_room) {
		uint32_t room = engine->port_room ? engine->port_room * 2 : 8;
		Port **list = realloc(engine->port, room * sizeof *list);
		if (!list)
			return PyErr_NoMemory();
		engine->port = list;
		engine->port_room = room;
	}
	Port *self = (Port *)PyType_GenericAlloc(type, 0);
	if (!self)
		return NULL;
	for (Space *at = (Space *)space; at; at = (Space *)at->next)
		if (!at->space.core)
			ext_space_join(at, engine);
	Py_INCREF(engine);
	Py_INCREF(space);
	self->engine = engine;
	self->space = space;
	self->name = PyUnicode_FromString(name);
	self->port = (struct iod_port){.core = &engine->core, .space = &((Space *)space)->space, .depth = depth,
				       .owner = self};
	strncpy(self->port.name, name, sizeof self->port.name - 1);
	engine->port[engine->ports++] = self;
	return (PyObject *)self;
}

static int port_traverse(Port *self, visitproc visit, void *arg)
{
	Py_VISIT(Py_TYPE(self));
	Py_VISIT(self->engine);
	Py_VISIT(self->space);
	Py_VISIT(self->reset_wait);
	Py_VISIT(self->name);
	return 0;
}

/* Whoever awaits the reset of a port that is gone: its last row is too, so nothing is in flight any more. */
static void acknowledge(Port *self)
{
	PyObject *type, *value, *trace;
	PyErr_Fetch(&type, &value, &trace);
	Py_INCREF(Py_None);
	ext_wait_done((Wait *)self->reset_wait, Py_None, false);
	PyErr_Restore(type, value, trace);
	if (!self->engine->closed)
		self->engine->backend->ops->wake(self->engine->backend);
}

static void port_dealloc(Port *self)
{
	PyTypeObject *type = Py_TYPE(self);
	PyObject_GC_UnTrack(self);
	Engine *engine = self->engine;
	if (self->reset_wait)
		acknowledge(self);
	if (engine) {
		for (uint32_t i = 0; i < engine->ports; i++)
			if (engine->port[i] == self) {
				engine->port[i] = engine->port[--engine->ports];
				break;
			}
		Py_DECREF(engine);
	}
	Py_XDECREF(self->space);
	Py_XDECREF(self->reset_wait);
	Py_XDECREF(self->name);
	freefunc release = PyType_GetSlot(type, Py_tp_free);
	release(self);
	Py_DECREF(type);
}

/* ---- submitting ---- */

int ext_port_may_submit(Port *self)
{
	Engine *engine = self->engine;
	if (ext_check(engine))
		return -1;
	if (engine->current && engine->current->stale) {
		PyErr_Format(StaleErrorType, "%S is of a generation that was reset: it can start nothing more",
			     ext_task_name(engine->current));
		return -1;
	}
	if (self->port.closed) {
		PyErr_Format(ClosedErrorType, "port %s is closed", self->port.name);
		return -1;
	}
	if (self->port.resetting) {
		PyErr_Format(StaleErrorType, "port %s is being reset; submit when the reset is done", self->port.name);
		return -1;
	}
	return ext_trace_name(engine, &self->traced, &self->port.trace_id, NULL, self->port.name);
}

/* Before the first row of a call, and after its last: how many rows there were. */
uint32_t ext_port_begin(Port *self)
{
	if (!self->engine->in_turn)
		self->engine->core.now = ext_clock();
	return self->port.rows;
}

void ext_port_end(Port *self, uint32_t before)
{
	if (self->port.rows == before)
		return;
	if (before == 0)
		Py_INCREF(self); /* given back with the last row */
	ext_poke(self->engine);
}

int ext_port_refused(Port *self, int error)
{
	if (error == -EBUSY)
		PyErr_Format(BusyErrorType, "port %s has %u transfers outstanding, and its depth is %u", self->port.name,
			     self->port.rows, self->port.depth);
	else if (error == -ENOMEM)
		PyErr_NoMemory();
	else
		PyErr_Format(ErrorType, "port %s cannot take the transfer: %s", self->port.name, strerror(-error));
	return -1;
}

PyObject *ext_transfer(Port *self, const struct iod_request *given, PyObject *convert, PyObject *payload)
{
	struct iod_request request = *given;
	Transfer *transfer = ext_transfer_new(self->engine);
	if (!transfer)
		return NULL;
	transfer->kind = request.kind;
	Py_XINCREF(convert);
	Py_XINCREF(payload);
	transfer->convert = convert;
	transfer->payload = payload;
	request.port = &self->port;
	request.user = transfer;
	request.depth = self->engine->core.depth;
	uint32_t before = ext_port_begin(self);
	int error = iod_submit(&self->engine->core, &request, &transfer->ticket);
	ext_port_end(self, before);
	if (error) {
		ext_port_refused(self, error);
		/* The target was taken for this row alone. */
		if (request.target)
			ext_target_unused(request.target->owner);
		Py_DECREF(transfer);
		return NULL;
	}
	Py_INCREF(transfer); /* the row's */
	return (PyObject *)transfer;
}

int ext_port_target(Port *self, PyObject *object, Target **out)
{
	static PyTypeObject *known; /* referenced: a type that was found to be a target's */
	if (!object || (Py_TYPE(object) != known && !PyObject_TypeCheck(object, TargetType))) {
		PyErr_Format(ArgumentTypeErrorType, "%R is not an endpoint; a File, Socket, Buffer or Null would be",
			     object ? object : Py_None);
		return -1;
	}
	if (Py_TYPE(object) != known) {
		Py_XDECREF(known);
		known = Py_TYPE(object);
		Py_INCREF(known);
	}
	*out = (Target *)object;
	return ext_target_use(*out, self->engine);
}

static PyObject *transfer(Port *self, PyObject *list_object, PyObject *target_object, PyObject *offset, PyObject *minimum,
			  enum iod_direction direction)
{
	Target *target;
	struct ext_list list;
	struct iod_request request = {.kind = IOD_R_TRANSFER, .direction = (uint8_t)direction};

	if (ext_port_may_submit(self))
		return NULL;
	if (!list_object) {
		PyErr_SetString(PyExc_TypeError, "a scatter list is missing");
		return NULL;
	}
	if (offset && ext_u64(offset, "offset", &request.position))
		return NULL;
	if (minimum && minimum != Py_None && ext_u64(minimum, "minimum", &request.minimum))
		return NULL;
	if (!minimum || minimum == Py_None)
		request.minimum = UINT64_MAX;
	if (ext_list_get(list_object, &list))
		return NULL;
	if (ext_port_target(self, target_object, &target)) {
		ext_list_put(&list);
		return NULL;
	}
	request.target = &target->target;
	request.list = list.list;
	request.count = list.count;
	PyObject *result = ext_transfer(self, &request, NULL, NULL);
	ext_list_put(&list);
	return result;
}

static PyObject *port_from_memory(Port *self, PyObject *const *args, Py_ssize_t n, PyObject *names)
{
	static struct ext_names known = {.text = {"segments", "to", "offset"}};
	PyObject *value[EXT_MOST_NAMES] = {NULL};
	if (ext_keywords(&known, args, n, 1, names, value))
		return NULL;
	return transfer(self, value[0], value[1], value[2], NULL, IOD_FROM_MEMORY);
}

static PyObject *port_to_memory(Port *self, PyObject *const *args, Py_ssize_t n, PyObject *names)
{
	static struct ext_names known = {.text = {"segments", "source", "offset", "minimum"}};
	PyObject *value[EXT_MOST_NAMES] = {NULL};
	if (ext_keywords(&known, args, n, 1, names, value))
		return NULL;
	return transfer(self, value[0], value[1], value[2], value[3], IOD_TO_MEMORY);
}

static PyObject *port_copy(Port *self, PyObject *const *args, Py_ssize_t n, PyObject *names)
{
	static struct ext_names known = {.text = {"source", "target"}};
	PyObject *value[EXT_MOST_NAMES] = {NULL};
	struct ext_list from, to;
	if (ext_keywords(&known, args, n, 2, names, value) || ext_port_may_submit(self))
		return NULL;
	if (!value[0] || !value[1]) {
		PyErr_SetString(PyExc_TypeError, "copy takes two scatter lists");
		return NULL;
	}
	if (ext_list_get(value[0], &from))
		return NULL;
	if (ext_list_get(value[1], &to)) {
		ext_list_put(&from);
		return NULL;
	}
	struct iod_request request = {.kind = IOD_R_COPY, .list = from.list, .count = from.count, .list2 = to.list,
				      .count2 = to.count};
	PyObject *result = NULL;
	uint64_t a = iod_list_bytes(from.list, from.count), b = iod_list_bytes(to.list, to.count);
	if (a != b)
		PyErr_Format(ArgumentErrorType, "the source holds %llu bytes and the target %llu; they must be equal",
			     (unsigned long long)a, (unsigned long long)b);
	else
		result = ext_transfer(self, &request, NULL, NULL);
	ext_list_put(&from);
	ext_list_put(&to);
	return result;
}

static PyObject *done_at_once(Port *self, PyObject *value, bool failed)
{
	if (!value)
		return NULL;
	Transfer *transfer = ext_transfer_new(self->engine);
	if (!transfer) {
		Py_DECREF(value);
		return NULL;
	}
	transfer->wait.done = failed ? 2 : 1;
	transfer->wait.value = value;
	return (PyObject *)transfer;
}

static PyObject *fault_at_once(Port *self, size_t moved, const struct iod_fault *fault)
{
	iod_space_tell(fault);
	PyObject *completion = ext_completion_make(IOD_FAULT, moved, fault);
	PyObject *error = completion ? PyObject_CallFunctionObjArgs(DmaFaultType, completion, NULL) : NULL;
	Py_XDECREF(completion);
	return done_at_once(self, error, true);
}

/* _load(address, size, convert | None) */
static PyObject *port_load(Port *self, PyObject *const *args, Py_ssize_t n)
{
	uint64_t address, size;
	struct iod_fault fault = {0};
	size_t done;
	if (n != 3)
		return PyErr_Format(PyExc_TypeError, "_load takes 3 arguments, not %zd", n);
	if (ext_port_may_submit(self) || ext_u64(args[0], "address", &address) || ext_u64(args[1], "size", &size))
		return NULL;
	if (size > 1 << 24)
		return PyErr_Format(ArgumentErrorType, "a load of %llu bytes; 2^24 is the most",
				    (unsigned long long)size);
	PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
	if (!bytes)
		return NULL;
	uint8_t *data = (uint8_t *)PyBytes_AsString(bytes);
	PyObject *result = NULL;
	int error = iod_access(&self->engine->core, self->port.space, address, data, size, false, &fault, &done);
	self->engine->python_bytes += done;
	if (error == -EAGAIN) {
		struct iod_segment segment = {address, size};
		struct iod_request request = {.kind = IOD_R_LOAD, .list = &segment, .count = 1, .data = data};
		result = ext_transfer(self, &request, args[2], bytes);
	} else if (error) {
		result = fault_at_once(self, done, &fault);
	} else if (args[2] == Py_None) {
		Py_INCREF(bytes);
		result = done_at_once(self, bytes, false);
	} else {
		result = done_at_once(self, PyObject_CallFunctionObjArgs(args[2], bytes, NULL), false);
	}
	Py_DECREF(bytes);
	return result;
}

/* _store(address, data) */
static PyObject *port_store(Port *self, PyObject *const *args, Py_ssize_t n)
{
	uint64_t address;
	struct iod_fault fault = {0};
	size_t done;
	if (n != 2)
		return PyErr_Format(PyExc_TypeError, "_store takes 2 arguments, not %zd", n);
	if (ext_port_may_submit(self) || ext_u64(args[0], "address", &address))
		return NULL;
	PyObject *bytes = PyObject_CheckBuffer(args[1]) ? PyBytes_FromObject(args[1]) : NULL;
	if (!bytes) {
		if (!PyErr_Occurred())
			PyErr_Format(ArgumentTypeErrorType, "data is %R; bytes, or what has a buffer, would be right", args[1]);
		return NULL;
	}
	uint8_t *data = (uint8_t *)PyBytes_AsString(bytes);
	size_t size = (size_t)PyBytes_Size(bytes);
	int error = iod_access(&self->engine->core, self->port.space, address, data, size, true, &fault, &done);
	self->engine->python_bytes += done;
	PyObject *result;
	if (error == -EAGAIN) {
		struct iod_segment segment = {address, size};
		struct iod_request request = {.kind = IOD_R_STORE, .list = &segment, .count = 1, .data = data};
		result = ext_transfer(self, &request, NULL, bytes);
	} else if (error) {
		result = fault_at_once(self, done, &fault);
	} else {
		result = done_at_once(self, ext_completion_make(IOD_OK, done, NULL), false);
	}
	Py_DECREF(bytes);
	return result;
}

/* _control(kind, endpoint, offset, length): flush, discard, write zeroes, drop */
static PyObject *port_control(Port *self, PyObject *args)
{
	int kind;
	PyObject *endpoint, *offset_object, *length_object;
	uint64_t offset, length;
	Target *target;
	if (!PyArg_ParseTuple(args, "iOOO", &kind, &endpoint, &offset_object, &length_object))
		return NULL;
	if (ext_port_may_submit(self) || ext_u64(offset_object, "offset", &offset) ||
	    ext_u64(length_object, "length", &length) ||
	    ext_port_target(self, endpoint, &target))
		return NULL;
	struct iod_request request = {.kind = (uint8_t)kind, .target = &target->target, .position = offset,
				      .length = length,
				      .direction = kind == IOD_R_DROP ? IOD_TO_MEMORY : IOD_FROM_MEMORY};
	return ext_transfer(self, &request, NULL, NULL);
}

/* _peek(endpoint, length, convert) */
static PyObject *port_peek(Port *self, PyObject *args)
{
	PyObject *endpoint, *convert;
	Py_ssize_t length;
	Target *target;
	if (!PyArg_ParseTuple(args, "OnO", &endpoint, &length, &convert) || ext_port_may_submit(self))
		return NULL;
	PyObject *bytes = PyBytes_FromStringAndSize(NULL, length);
	if (!bytes)
		return NULL;
	PyObject *result = NULL;
	if (!ext_port_target(self, endpoint, &target)) {
		struct iod_request request = {.kind = IOD_R_PEEK, .target = &target->target, .length = (uint64_t)length,
					      .data = (uint8_t *)PyBytes_AsString(bytes), .direction = IOD_TO_MEMORY};
		result = ext_transfer(self, &request, convert, bytes);
	}
	Py_DECREF(bytes);
	return result;
}

/* ---- ending ---- */

static PyObject *port_cancel(Port *self, PyObject *arg)
{
	uint64_t ticket;
	if (ext_check(self->engine) || ext_u64(arg, "ticket", &ticket))
		return NULL;
	ext_poke(self->engine);
	return PyBool_FromLong(iod_cancel(&self->engine->core, ticket));
}

static PyObject *port_reset(Port *self, PyObject *unused)
{
	(void)unused;
	if (ext_check(self->engine))
		return NULL;
	if (!self->reset_wait) {
		self->reset_wait = PyObject_CallFunctionObjArgs((PyObject *)WaitType, (PyObject *)self->engine, NULL);
		if (!self->reset_wait)
			return NULL;
		iod_port_reset(&self->engine->core, &self->port);
		self->engine->backend->ops->wake(self->engine->backend);
	}
	Py_INCREF(self->reset_wait);
	return self->reset_wait;
}

static PyObject *port_close(Port *self, PyObject *unused)
{
	(void)unused;
	self->port.closed = true;
	ext_poke(self->engine); /* its stream ends */
	Py_RETURN_NONE;
}

static PyObject *port_get(Port *self, void *what)
{
	PyObject *value;
	switch ((char)(intptr_t)what) {
	case 'n':
		value = self->name;
		break;
	case 's':
		value = self->space;
		break;
	case 'e':
		value = (PyObject *)self->engine;
		break;
	case 'i':
		return PyLong_FromUnsignedLong(self->port.busy);
	case 'o':
		return PyLong_FromUnsignedLong(self->port.rows);
	case 'd':
		return PyLong_FromUnsignedLong(self->port.depth);
	case 'c':
		return PyBool_FromLong(self->port.closed);
	case 'r':
		return PyBool_FromLong(self->port.resetting);
	default:
		return PyLong_FromUnsignedLongLong(self->port.generation);
	}
	Py_INCREF(value);
	return value;
}

static PyMethodDef port_methods[] = {
	{"from_memory", EXT_METHOD(port_from_memory), METH_FASTCALL | METH_KEYWORDS,
	 "from_memory(segments, *, to, offset=0) -> Transfer: the device reads memory, the endpoint is written."},
	{"to_memory", EXT_METHOD(port_to_memory), METH_FASTCALL | METH_KEYWORDS,
	 "to_memory(segments, *, source, offset=0, minimum=None) -> Transfer: the endpoint is read into memory."},
	{"submit", EXT_METHOD(ext_port_submit), METH_FASTCALL | METH_KEYWORDS,
	 "submit(batch, endpoint, position=None, *, unit=1, rows=None, end=None, linked=False): the requests of a\n"
	 "batch, with one call.\n\n"
	 "position: where in the endpoint, in `unit`s, one for each request (a number, if it is one); None:\n"
	 "batch.position. rows: which requests of the batch, or the Completions whose ids say so; None: the first\n"
	 "batch.n. end: bytes; a request that reaches further, or is not made of\n"
	 "whole units, ends with IO_ERROR and moves nothing. linked: to a packet endpoint or a stream each goes only if\n"
	 "the memory of those before could be reached; it ends CANCELLED otherwise. Gives batch.ticket, written for those requests."},
	{"copy", EXT_METHOD(port_copy), METH_FASTCALL | METH_KEYWORDS,
	 "copy(source, target) -> Transfer: from one list to another of as many bytes."},
	{"cancel", EXT_METHOD(port_cancel), METH_O, "cancel(ticket): ask that it ends soon. False: it was over."},
	{"reset", EXT_METHOD(port_reset), METH_NOARGS,
	 "Cancel everything and wait until memory is left alone: await what it returns."},
	{"_load", EXT_METHOD(port_load), METH_FASTCALL, NULL},
	{"_store", EXT_METHOD(port_store), METH_FASTCALL, NULL},
	{"_control", EXT_METHOD(port_control), METH_VARARGS, NULL},
	{"_peek", EXT_METHOD(port_peek), METH_VARARGS, NULL},
	{"_close", EXT_METHOD(port_close), METH_NOARGS, NULL},
	{0}};
static PyGetSetDef port_getset[] = {
	{"name", (getter)port_get, NULL, "What statistics and traces call it.", (void *)'n'},
	{"space", (getter)port_get, NULL, "The top of its chain.", (void *)'s'},
	{"engine", (getter)port_get, NULL, "The engine it belongs to.", (void *)'e'},
	{"in_flight", (getter)port_get, NULL, "Transfers that are not complete.", (void *)'i'},
	{"outstanding", (getter)port_get, NULL, "Transfers that were not delivered.", (void *)'o'},
	{"depth", (getter)port_get, NULL, "Most transfers outstanding.", (void *)'d'},
	{"closed", (getter)port_get, NULL, "Whether close was called.", (void *)'c'},
	{"resetting", (getter)port_get, NULL, "Whether a reset is under way.", (void *)'r'},
	{"generation", (getter)port_get, NULL, "Counts the resets.", (void *)'g'},
	{0}};
static PyType_Slot port_slots[] = {{Py_tp_new, port_new},
				   {Py_tp_dealloc, port_dealloc},
				   {Py_tp_traverse, port_traverse},
				   {Py_tp_free, PyObject_GC_Del},
				   {Py_tp_methods, port_methods},
				   {Py_tp_getset, port_getset},
				   {0}};
static PyType_Spec port_spec = {"iodma._core.Port", sizeof(Port), 0,
				Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, port_slots};

int ext_port_add(PyObject *module)
{
	PortType = ext_type(module, &port_spec, NULL);
	return PortType ? 0 : -1;
}
