/* SPDX-License-Identifier: Apache-2.0
 *
 * remote: messages to who has remote memory, as Python sees them.
 *
 * Invariants
 *  - Each is answered once: by `done`, by `fail`, by the exception of who was asked, or by being dropped unanswered,
 *    which is a refusal.
 *  - An answer only puts bytes where they are waited for, and marks the transfer: the next turn goes on with it.
 *  - Nothing of the core is touched when one is dropped, as that may be in any thread: it is noted, and the engine
 *    woken. */
#include "ext.h"

#include <string.h>

PyTypeObject *RemoteRequestType;

typedef struct {
	PyObject_HEAD
	Engine *engine; /* NULL: it was answered */
	struct iod_message message;
	bool write;
} RemoteRequest;

struct ext_lost {
	struct iod_message message;
	struct ext_lost *next;
};

void ext_remote_lost(Engine *engine)
{
	while (engine->lost) {
		struct ext_lost *lost = engine->lost;
		engine->lost = lost->next;
		if (!engine->closed)
			iod_remote_answer(&engine->core, &lost->message, NULL);
		free(lost);
	}
}

static void answer(RemoteRequest *self, const uint8_t *data)
{
	Engine *engine = self->engine;

	self->engine = NULL;
	if (!engine->closed) {
		iod_remote_answer(&engine->core, &self->message, data);
		ext_poke(engine);
	}
	Py_DECREF(engine);
}

void ext_remote_ask(void *context, struct iod_region *region, const struct iod_message *message, const uint8_t *data)
{
	Engine *engine = context;
	PyObject *target = region->owner, *result = NULL;
	RemoteRequest *request = (RemoteRequest *)PyType_GenericAlloc(RemoteRequestType, 0);
	unsigned long long offset = message->offset;

	if (request) {
		Py_INCREF(engine);
		request->engine = engine;
		request->message = *message;
		request->write = data != NULL;
		if (data) {
			PyObject *bytes = PyBytes_FromStringAndSize((const char *)data, (Py_ssize_t)message->length);
			if (bytes)
				result = PyObject_CallMethod(target, "write", "KOO", offset, bytes, request);
			Py_XDECREF(bytes);
		} else {
			result = PyObject_CallMethod(target, "read", "KKO", offset, (unsigned long long)message->length,
						     request);
		}
	}
	if (!result) {
		ext_window_failed(engine, target);
		if (!request)
			iod_remote_answer(&engine->core, message, NULL);
		else if (request->engine)
			answer(request, NULL);
	}
	Py_XDECREF(result);
	Py_XDECREF(request);
}

/* -1 with an exception: it cannot be answered; 1: nobody waits for that any more. */
static int may_answer(RemoteRequest *self)
{
	if (!self->engine) {
		PyErr_SetString(StaleErrorType, "the request was answered already");
		return -1;
	}
	if (self->engine->closed)
		return 1;
	return ext_check(self->engine);
}

/* done(data=b"") */
static PyObject *request_done(RemoteRequest *self, PyObject *const *args, Py_ssize_t n)
{
	Py_buffer view = {0};
	if (n > 1)
		return PyErr_Format(PyExc_TypeError, "done takes the bytes that were read, not %zd arguments", n);
	int may = may_answer(self);
	if (may < 0)
		return NULL;
	if (n && PyObject_GetBuffer(args[0], &view, PyBUF_SIMPLE))
		return NULL;
	if (!self->write && (uint64_t)view.len != self->message.length) {
		PyErr_Format(ArgumentErrorType, "%zd bytes were given; %llu were asked for", view.len,
			     (unsigned long long)self->message.length);
		if (n)
			PyBuffer_Release(&view);
		return NULL;
	}
	if (!may)
		self->engine->python_bytes += self->message.length;
	answer(self, self->write ? (const uint8_t *)"" : view.buf);
	if (n)
		PyBuffer_Release(&view);
	Py_RETURN_NONE;
}

static PyObject *request_fail(RemoteRequest *self, PyObject *unused)
{
	(void)unused;
	if (may_answer(self) < 0)
		return NULL;
	answer(self, NULL);
	Py_RETURN_NONE;
}

static int request_traverse(RemoteRequest *self, visitproc visit, void *arg)
{
	Py_VISIT(Py_TYPE(self));
	Py_VISIT(self->engine);
	return 0;
}

static void lose(RemoteRequest *self)
{
	Engine *engine = self->engine;

	self->engine = NULL;
	if (!engine)
		return;
	if (!engine->closed && engine->fork_generation == ext_forks) {
		struct ext_lost *lost = malloc(sizeof *lost);
		if (!lost)
			abort(); /* a transfer would wait for ever */
		*lost = (struct ext_lost){self->message, engine->lost};
		engine->lost = lost;
		engine->backend->ops->wake(engine->backend);
	}
	Py_DECREF(engine);
}

static int request_clear(RemoteRequest *self)
{
	lose(self);
	return 0;
}

static void request_dealloc(RemoteRequest *self)
{
	PyTypeObject *type = Py_TYPE(self);
	PyObject_GC_UnTrack(self);
	lose(self);
	freefunc release = PyType_GetSlot(type, Py_tp_free);
	release(self);
	Py_DECREF(type);
}

static PyObject *request_get(RemoteRequest *self, void *what)
{
	if ((char)(intptr_t)what == 'l')
		return PyLong_FromUnsignedLongLong(self->message.length);
	return PyBool_FromLong(!self->engine);
}

static PyMethodDef request_methods[] = {
	{"done", EXT_METHOD(request_done), METH_FASTCALL, "done(data=b\"\"): the bytes that were read; or they are written."},
	{"fail", EXT_METHOD(request_fail), METH_NOARGS, "It cannot be: the transfer faults there."},
	{0}};
static PyGetSetDef request_getset[] = {{"length", (getter)request_get, NULL, "Bytes.", (void *)'l'},
				       {"answered", (getter)request_get, NULL, NULL, (void *)'a'},
				       {0}};
static PyType_Slot request_slots[] = {{Py_tp_traverse, request_traverse},
				      {Py_tp_clear, request_clear},
				      {Py_tp_free, PyObject_GC_Del},
				      {Py_tp_dealloc, request_dealloc},
				      {Py_tp_methods, request_methods},
				      {Py_tp_getset, request_getset},
				      {Py_tp_doc, "Bytes of remote memory that are to be read or written."},
				      {0}};
static PyType_Spec request_spec = {"iodma._core.RemoteRequest", sizeof(RemoteRequest), 0,
				   Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
				   request_slots};

int ext_remote_add(PyObject *module)
{
	RemoteRequestType = ext_type(module, &request_spec, NULL);
	return RemoteRequestType ? 0 : -1;
}
