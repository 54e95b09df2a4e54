/* SPDX-License-Identifier: Apache-2.0
 *
 * wait: what coroutines wait for: a completion to come, a transfer, anything that is resolved once.
 *
 * Invariants
 *  - A wait is done once.  Whoever waits for it is made ready then, never resumed.
 *  - A coroutine that awaits what is done goes on without a turn, but not more than MOST_IMMEDIATE times in one step, so
 *    that no device can keep the engine from the others. */
#include "spare.h"

#include <string.h>

#define MOST_IMMEDIATE 256

PyTypeObject *WaitType, *TransferType, *CompletionType;
static struct ext_spares transfers, completions;

/* ---- Completion ---- */

PyObject *ext_completion_make(enum iod_status status, uint64_t moved, const struct iod_fault *fault)
{
	Completion *self = (Completion *)ext_spare_take(&completions, CompletionType, sizeof *self);
	if (!self)
		return NULL;
	self->status = (uint8_t)status;
	self->moved = moved;
	if (fault && fault->space) {
		self->fault_offset = fault->offset;
		self->fault_address = fault->address;
		self->access = fault->access;
		self->cause = fault->cause;
		self->stage = PyUnicode_FromString(fault->space->name);
	}
	return (PyObject *)self;
}

PyObject *ext_completion(const struct iod_row *row)
{
	PyObject *self =
		ext_completion_make(row->status, row->moved, row->status == IOD_FAULT ? &row->fault : NULL);
	if (self)
		((Completion *)self)->error = row->error;
	return self;
}

static void completion_dealloc(Completion *self)
{
	Py_XDECREF(self->stage);
	ext_spare_give(&completions, (PyObject *)self);
}

static PyObject *completion_get(Completion *self, void *what)
{
	PyObject *result;
	switch ((char)(intptr_t)what) {
	case 's':
		result = StatusMembers[self->status];
		Py_INCREF(result);
		return result;
	case 'm':
		return PyLong_FromUnsignedLongLong(self->moved);
	case 'e':
		return PyLong_FromLong(self->error);
	case 'o':
		return PyBool_FromLong(self->status == IOD_OK);
	default:
		if (!self->stage)
			Py_RETURN_NONE;
		PyObject *access = PyObject_CallFunction(AccessClass, "i", (int)self->access);
		if (!access)
			return NULL;
		result = PyObject_CallFunction(FaultClass, "KKNOs", (unsigned long long)self->fault_offset,
					       (unsigned long long)self->fault_address, access, self->stage,
					       iod_cause_text(self->cause));
		return result;
	}
}

static PyObject *completion_repr(Completion *self)
{
	PyObject *name = PyObject_GetAttrString(StatusMembers[self->status], "name");
	if (!name)
		return NULL;
	PyObject *out;
	if (self->stage) {
		PyObject *fault = completion_get(self, (void *)'f');
		out = fault ? PyUnicode_FromFormat("<Completion %U moved=%llu: %S>", name,
						   (unsigned long long)self->moved, fault)
			    : NULL;
		Py_XDECREF(fault);
	} else {
		out = PyUnicode_FromFormat("<Completion %U moved=%llu error=%d>", name, (unsigned long long)self->moved,
					   self->error);
	}
	Py_DECREF(name);
	return out;
}

static PyGetSetDef completion_getset[] = {
	{"status", (getter)completion_get, NULL, "How it ended: a Status.", (void *)'s'},
	{"moved", (getter)completion_get, NULL, "Bytes moved: the contiguous prefix.", (void *)'m'},
	{"error", (getter)completion_get, NULL, "The errno of an IO_ERROR, or 0.", (void *)'e'},
	{"ok", (getter)completion_get, NULL, "Whether status is OK.", (void *)'o'},
	{"fault", (getter)completion_get, NULL, "The Fault, or None.", (void *)'f'},
	{0}};
static PyType_Slot completion_slots[] = {{Py_tp_dealloc, completion_dealloc},
					 {Py_tp_getset, completion_getset},
					 {Py_tp_repr, completion_repr},
					 {Py_tp_doc, "The one terminal completion of a transfer."},
					 {0}};
static PyType_Spec completion_spec = {"iodma._core.Completion", sizeof(Completion), 0,
				      Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, completion_slots};

/* ---- Wait ---- */

void ext_wait_init(Wait *wait, Engine *engine)
{
	Py_INCREF(engine);
	wait->engine = engine;
}

void ext_wait_done(Wait *wait, PyObject *value, bool failed)
{
	if (wait->done) {
		Py_XDECREF(value);
		return;
	}
	wait->done = failed ? 2 : 1;
	wait->value = value;
	Task *task = wait->waiter;
	wait->waiter = NULL;
	while (task) {
		Task *next = task->next_waiter;
		task->next_waiter = NULL;
		task->waiting = NULL;
		ext_task_ready(task);
		Py_DECREF(wait); /* the task's: whoever calls this holds one too */
		Py_DECREF(task); /* the wait's */
		task = next;
	}
	PyObject *callback = wait->callback;
	if (callback) {
		wait->callback = NULL;
		PyObject *result = PyObject_CallFunctionObjArgs(callback, (PyObject *)wait, NULL);
		if (!result)
			PyErr_WriteUnraisable(callback);
		Py_XDECREF(result);
		Py_DECREF(callback);
	}
}

void ext_wait_clear(Wait *wait)
{
	Py_CLEAR(wait->value);
	Py_CLEAR(wait->callback);
	while (wait->waiter) {
		Task *task = wait->waiter;
		wait->waiter = task->next_waiter;
		Py_DECREF(task);
	}
	Py_CLEAR(wait->engine);
}

static PyObject *wait_new(PyTypeObject *type, PyObject *args, PyObject *kw)
{
	PyObject *engine;
	static char *names[] = {"engine", NULL};
	if (!PyArg_ParseTupleAndKeywords(args, kw, "O", names, &engine))
		return NULL;
	if (!PyObject_TypeCheck(engine, EngineType))
		return PyErr_Format(ArgumentTypeErrorType, "%R is not an engine", engine);
	Wait *self = (Wait *)PyType_GenericAlloc(type, 0);
	if (self)
		ext_wait_init(self, (Engine *)engine);
	return (PyObject *)self;
}

static void wait_dealloc(Wait *self)
{
	PyTypeObject *type = Py_TYPE(self);
	ext_wait_clear(self);
	freefunc release = PyType_GetSlot(type, Py_tp_free);
	release(self);
	Py_DECREF(type);
}

/* Value, or NULL with the exception set: of a wait that is done. */
static PyObject *wait_result(Wait *self)
{
	if (self->done == 2) {
		PyObject *completion = NULL, *error = NULL;
		if (self->is_transfer && (PyObject *)Py_TYPE(self->value) == DmaFaultType)
			completion = PyObject_GetAttrString(self->value, "completion");
		if (completion)
			error = PyObject_CallFunctionObjArgs(DmaFaultType, completion, NULL);
		Py_XDECREF(completion);
		if (PyErr_Occurred())
			return NULL;
		PyErr_SetObject((PyObject *)Py_TYPE(self->value), error ? error : self->value);
		Py_XDECREF(error);
		return NULL;
	}
	if (self->source) {
		self->done = 0;
		return self->source->take(self);
	}
	PyObject *value = self->value ? self->value : Py_None;
	Py_INCREF(value);
	return value;
}

PySendResult ext_wait_send(PyObject *object, PyObject *sent, PyObject **result)
{
	Wait *self = (Wait *)object;
	Engine *engine = self->engine;
	(void)sent;

	if (engine && engine->current && engine->current->stale) {
		PyObject *thrown = engine->current->throwing;
		if (thrown) { /* it reset its own device: this is where it ends */
			engine->current->throwing = NULL;
			PyErr_SetObject((PyObject *)Py_TYPE(thrown), thrown);
			Py_DECREF(thrown);
			return PYGEN_ERROR;
		}
		PyErr_Format(StaleErrorType, "%S is of a generation that was reset: it can wait for nothing more",
			     ext_task_name(engine->current));
		return PYGEN_ERROR;
	}
	if (!self->done && self->source && self->source->ready(self))
		self->done = 1;
	if (self->done && (!engine || !engine->current || engine->immediate++ < MOST_IMMEDIATE)) {
		*result = wait_result(self);
		return *result ? PYGEN_RETURN : PYGEN_ERROR;
	}
	if (!engine->current) {
		PyErr_Format(ArgumentTypeErrorType,
			     "this is awaited outside the coroutines of %R, which it belongs to; start the coroutine with "
			     "its Engine.start or Engine.run, or bridge loops with Engine.fileno and Engine.pump",
			     (PyObject *)engine);
		return PYGEN_ERROR;
	}
	Py_INCREF(self);
	*result = object;
	return PYGEN_NEXT;
}

static PyObject *wait_iternext(PyObject *object)
{
	PyObject *result = NULL;
	switch (ext_wait_send(object, Py_None, &result)) {
	case PYGEN_NEXT:
		return result;
	case PYGEN_RETURN: {
		PyObject *stop = PyObject_CallFunctionObjArgs(PyExc_StopIteration, result, NULL);
		Py_DECREF(result);
		if (stop) {
			PyErr_SetObject(PyExc_StopIteration, stop);
			Py_DECREF(stop);
		}
		return NULL;
	}
	default:
		return NULL;
	}
}

static PyObject *wait_self(PyObject *self)
{
	Py_INCREF(self);
	return self;
}

static PyObject *wait_resolve(Wait *self, PyObject *value)
{
	Py_INCREF(value);
	ext_wait_done(self, value, false);
	Py_RETURN_NONE;
}

static PyObject *wait_fail(Wait *self, PyObject *value)
{
	if (!PyExceptionInstance_Check(value))
		return PyErr_Format(ArgumentTypeErrorType, "%R is not an exception", value);
	Py_INCREF(value);
	ext_wait_done(self, value, true);
	Py_RETURN_NONE;
}

/* when_done(callback): called with the wait, at once if it is done already. */
static PyObject *wait_when_done(Wait *self, PyObject *callback)
{
	if (self->done)
		return PyObject_CallFunctionObjArgs(callback, (PyObject *)self, NULL);
	if (self->callback) {
		PyErr_SetString(ErrorType, "it has a callback already");
		return NULL;
	}
	Py_INCREF(callback);
	self->callback = callback;
	Py_RETURN_NONE;
}

static PyObject *wait_get(Wait *self, void *what)
{
	if ((char)(intptr_t)what == 'd')
		return PyBool_FromLong(self->done != 0);
	if ((char)(intptr_t)what == 'e') {
		PyObject *engine = self->engine ? (PyObject *)self->engine : Py_None;
		Py_INCREF(engine);
		return engine;
	}
	if (!self->done) {
		PyErr_SetString(ErrorType, "it is not done yet");
		return NULL;
	}
	if ((char)(intptr_t)what == 'x') {
		PyObject *value = self->done == 2 ? self->value : Py_None;
		Py_INCREF(value);
		return value;
	}
	return wait_result(self);
}

static PyMethodDef wait_methods[] = {{"_resolve", EXT_METHOD(wait_resolve), METH_O, NULL},
				     {"_fail", EXT_METHOD(wait_fail), METH_O, NULL},
				     {"_when_done", EXT_METHOD(wait_when_done), METH_O, NULL},
				     {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS,
				      "Task[int]: for annotations that are evaluated."},
				     {0}};
static PyGetSetDef wait_getset[] = {
	{"done", (getter)wait_get, NULL, "Whether it is over.", (void *)'d'},
	{"_engine", (getter)wait_get, NULL, NULL, (void *)'e'},
	{"exception", (getter)wait_get, NULL, "How it failed, or None; an error before it is done.", (void *)'x'},
	{"result", (getter)wait_get, NULL, "What awaiting it gives; an error before it is done.", (void *)'r'},
	{0}};
static PyType_Slot wait_slots[] = {{Py_tp_new, wait_new},
				   {Py_tp_dealloc, wait_dealloc},
				   {Py_am_await, wait_self},
				   {Py_am_send, ext_wait_send},
				   {Py_tp_iter, wait_self},
				   {Py_tp_iternext, wait_iternext},
				   {Py_tp_methods, wait_methods},
				   {Py_tp_getset, wait_getset},
				   {0}};
static PyType_Spec wait_spec = {"iodma._core.Wait", sizeof(Wait), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
				wait_slots};

/* ---- Transfer ---- */

Transfer *ext_transfer_new(Engine *engine)
{
	Transfer *self = (Transfer *)ext_spare_take(&transfers, TransferType, sizeof *self);
	if (self) {
		ext_wait_init(&self->wait, engine);
		self->wait.is_transfer = true;
	}
	return self;
}

static void transfer_dealloc(Transfer *self)
{
	ext_wait_clear(&self->wait);
	Py_XDECREF(self->convert);
	Py_XDECREF(self->payload);
	ext_spare_give(&transfers, (PyObject *)self);
}

static PyObject *transfer_cancel(Transfer *self, PyObject *unused)
{
	(void)unused;
	if (ext_check(self->wait.engine))
		return NULL;
	ext_poke(self->wait.engine);
	return PyBool_FromLong(!self->wait.done && iod_cancel(&self->wait.engine->core, self->ticket));
}

static PyObject *transfer_ticket(Transfer *self, void *unused)
{
	(void)unused;
	return PyLong_FromUnsignedLongLong(self->ticket);
}

static PyMethodDef transfer_methods[] = {
	{"cancel", EXT_METHOD(transfer_cancel), METH_NOARGS,
	 "Ask that it ends soon.  Its completion still comes, and says how it ended.  False: it was over."},
	{0}};
static PyGetSetDef transfer_getset[] = {{"ticket", (getter)transfer_ticket, NULL, "Its ticket.", NULL}, {0}};
static PyType_Slot transfer_slots[] = {{Py_am_send, ext_wait_send}, {Py_tp_dealloc, transfer_dealloc},
				       {Py_tp_methods, transfer_methods},
				       {Py_tp_getset, transfer_getset},
				       {Py_tp_doc, "A transfer that was submitted: await it for its completion."},
				       {0}};
static PyType_Spec transfer_spec = {"iodma._core.Transfer", sizeof(Transfer), 0,
				    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, transfer_slots};

int ext_wait_add(PyObject *module)
{
	CompletionType = ext_type(module, &completion_spec, NULL);
	WaitType = ext_type(module, &wait_spec, NULL);
	TransferType = WaitType ? ext_type(module, &transfer_spec, WaitType) : NULL;
	return CompletionType && TransferType ? 0 : -1;
}
