/* SPDX-License-Identifier: Apache-2.0
 *
 * tasks: coroutines, what they wait for, and the trampoline that resumes them.
 *
 * Invariants
 *  - A coroutine is resumed only from ext_run_ready: never inside a submit, a cancel, a set or another coroutine's step.
 *  - A wait has one waiter and is done once.  A coroutine that awaits what is done goes on without a turn, but not
 *    more than MOST_IMMEDIATE times in one step, so that no device can keep the engine from the others.
 *  - A task that failed keeps its exception, whose traceback may know the task: so tasks take part in the garbage
 *    collection.  A transfer raises a new exception to each that waits for it, and need not.
 *  - A task that was cancelled is thrown Cancelled once for each time, at the place where it waits or waits next. */
#include "ext.h"

#include <string.h>

#define MOST_IMMEDIATE 256

PyTypeObject *WaitType, *TransferType, *TaskType, *CompletionType;

/* ---- Completion ---- */

PyObject *ext_completion_make(enum iod_status status, uint64_t moved, const struct iod_fault *fault)
{
	Completion *self = (Completion *)PyType_GenericAlloc(CompletionType, 0);
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
	PyTypeObject *type = Py_TYPE(self);
	Py_XDECREF(self->stage);
	freefunc release = PyType_GetSlot(type, Py_tp_free);
	release(self);
	Py_DECREF(type);
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
	if (self->is_stream) { /* made when it is asked for */
		self->done = 0;
		return ext_stream_take((Stream *)self);
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
	if (!self->done && self->is_stream && ext_stream_ready((Stream *)self))
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

static void transfer_dealloc(Transfer *self)
{
	PyTypeObject *type = Py_TYPE(self);
	ext_wait_clear(&self->wait);
	Py_XDECREF(self->port_object);
	Py_XDECREF(self->target);
	Py_XDECREF(self->convert);
	Py_XDECREF(self->payload);
	freefunc release = PyType_GetSlot(type, Py_tp_free);
	release(self);
	Py_DECREF(type);
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

/* ---- Task ---- */

void ext_task_ready(Task *task)
{
	Engine *engine = task->wait.engine;
	if (task->queued || task->wait.done)
		return;
	task->queued = true;
	task->next = NULL;
	Py_INCREF(task);
	if (engine->ready_tail)
		engine->ready_tail->next = task;
	else
		engine->ready_head = task;
	engine->ready_tail = task;
	engine->ready_count++;
	ext_poke(engine);
}

/* Take it off what it waits for. */
static void stop_waiting(Task *task)
{
	Wait *wait = task->waiting;
	if (!wait)
		return;
	task->waiting = NULL;
	for (Task **at = &wait->waiter; *at; at = &(*at)->next_waiter)
		if (*at == task) {
			*at = task->next_waiter;
			task->next_waiter = NULL;
			Py_DECREF(task);
			break;
		}
	if (wait->is_transfer && !wait->done)
		iod_cancel(&wait->engine->core, ((Transfer *)wait)->ticket);
	Py_DECREF(wait);
}

int ext_task_cancel(Task *task)
{
	if (task->wait.done || (task->cancelled && task->throwing))
		return 0;
	PyObject *cancelled = PyObject_CallNoArgs(CancelledType);
	if (!cancelled)
		return -1;
	task->cancelled = true;
	EXT_SET(task->throwing, cancelled);
	Py_INCREF(task);
	stop_waiting(task);
	if (!task->running)
		ext_task_ready(task);
	Py_DECREF(task);
	return 0;
}

PyObject *ext_task_name(Task *task)
{
	if (task->name && task->name != Py_None)
		return task->name;
	PyObject *error_type, *error, *trace;
	PyErr_Fetch(&error_type, &error, &trace);
	PyObject *own = task->coroutine ? PyObject_GetAttrString(task->coroutine, "__name__") : NULL;
	PyObject *owner = task->owner ? PyObject_GetAttrString(task->owner, "name") : NULL;
	PyErr_Clear();
	PyObject *name = owner && own ? PyUnicode_FromFormat("%S.%S", owner, own)
			 : own	      ? PyUnicode_FromFormat("%S", own)
				      : PyUnicode_FromString("task");
	Py_XDECREF(own);
	Py_XDECREF(owner);
	PyErr_Restore(error_type, error, trace);
	EXT_SET(task->name, name);
	return name ? name : Py_None;
}

static PyObject *task_cancel(Task *self, PyObject *unused)
{
	(void)unused;
	if (ext_check(self->wait.engine) || ext_task_cancel(self))
		return NULL;
	Py_RETURN_NONE;
}

/* The coroutine ended: with a value, or with the exception that is set. */
static void task_over(Task *task, PyObject *value)
{
	Engine *engine = task->wait.engine;
	bool failed = value == NULL;
	engine->tasks--;
	if (failed)
		ext_task_name(task); /* while it still has its coroutine */
	if (task->earlier)
		task->earlier->later = task->later;
	else
		engine->all = task->later;
	if (task->later)
		task->later->earlier = task->earlier;
	Py_CLEAR(task->coroutine);
	if (failed) {
		PyObject *type, *trace;
		PyErr_Fetch(&type, &value, &trace);
		PyErr_NormalizeException(&type, &value, &trace);
		if (trace && value)
			PyException_SetTraceback(value, trace);
		Py_XDECREF(type);
		Py_XDECREF(trace);
	}
	Py_XINCREF(value);
	bool awaited = task->wait.waiter != NULL;
	ext_wait_done(&task->wait, value, failed);
	PyObject *owner = task->owner;
	PyObject *result = NULL;
	if (owner && !failed && !task->stale && !task->notify && (!task->ended || task->ended == Py_None)) {
		/* It returned, and its owner has nothing to do then. */
		result = Py_None;
		Py_INCREF(result);
	} else if (owner) {
		result = PyObject_CallMethod(owner, "_task_done", "O", (PyObject *)task);
	} else if (failed && !awaited) { /* nobody's */
		result = PyObject_CallMethod((PyObject *)engine, "_task_failed", "OO", (PyObject *)task, value);
	} else {
		result = Py_None;
		Py_INCREF(result);
	}
	Py_XDECREF(value);
	Py_XDECREF(result); /* an error stays set: run and pump raise it */
	task->owner = NULL; /* an owner may keep its task */
	Py_XDECREF(owner);
	Py_CLEAR(task->ended);
	Py_DECREF(task);    /* the engine's list */
}

static void task_step(Task *task)
{
	Engine *engine = task->wait.engine;
	PyObject *result = NULL;
	PySendResult how;

	engine->current = task;
	engine->immediate = 0;
	engine->core.depth = task->depth;
	task->running = true;
	if (task->throwing) {
		PyObject *thrown = task->throwing;
		task->throwing = NULL;
		result = PyObject_CallMethod(task->coroutine, "throw", "O", thrown);
		Py_DECREF(thrown);
		how = PYGEN_NEXT;
		if (!result) {
			how = PYGEN_ERROR;
			if (PyErr_ExceptionMatches(PyExc_StopIteration)) {
				PyObject *type, *value, *trace;
				PyErr_Fetch(&type, &value, &trace);
				PyErr_NormalizeException(&type, &value, &trace);
				result = PyObject_GetAttrString(value, "value");
				how = result ? PYGEN_RETURN : PYGEN_ERROR;
				Py_XDECREF(type);
				Py_XDECREF(value);
				Py_XDECREF(trace);
			}
		}
	} else {
		how = PyIter_Send(task->coroutine, Py_None, &result);
	}
	task->started = true;
	task->running = false;
	engine->current = NULL;
	engine->core.depth = 0;
	engine->resumed++;
	if (how == PYGEN_RETURN) {
		task_over(task, result);
		return;
	}
	if (how == PYGEN_ERROR) {
		task_over(task, NULL);
		return;
	}
	if (PyObject_TypeCheck(result, WaitType)) {
		Wait *wait = (Wait *)result;
		if (task->throwing || wait->done) { /* cancelled itself, or only had to let others run */
			Py_DECREF(result);
			ext_task_ready(task);
			return;
		}
		if (wait->engine == engine && !(wait->is_stream && wait->waiter) && wait != &task->wait) {
			Py_INCREF(task);
			task->next_waiter = NULL;
			Task **at = &wait->waiter;
			while (*at)
				at = &(*at)->next_waiter;
			*at = task;
			task->waiting = wait; /* keeps the reference */
			return;
		}
		EXT_SET(task->throwing,
			   PyObject_CallFunction(ErrorType, "s",
						 wait->engine != engine ? "it belongs to another engine"
						 : wait->is_stream	? "another coroutine reads this stream"
									: "a task cannot wait for itself"));
	} else {
		PyObject *text = PyUnicode_FromFormat(
			"%R was awaited, which belongs to another loop; await iodma's own, or bridge the loops with "
			"Engine.fileno and Engine.pump",
			result);
		EXT_SET(task->throwing, text ? PyObject_CallFunctionObjArgs(ArgumentTypeErrorType, text, NULL) : NULL);
		Py_XDECREF(text);
	}
	Py_DECREF(result);
	PyErr_Clear();
	ext_task_ready(task);
}

uint32_t ext_run_ready(Engine *engine, uint32_t most)
{
	uint32_t ran = 0;
	uint32_t now = engine->ready_count < most ? engine->ready_count : most;
	/* What becomes ready on the way has its turn in the next. */
	while (ran < now && engine->ready_head) {
		Task *task = engine->ready_head;
		engine->ready_head = task->next;
		if (!engine->ready_head)
			engine->ready_tail = NULL;
		engine->ready_count--;
		task->queued = false;
		if (!task->wait.done)
			task_step(task);
		Py_DECREF(task);
		ran++;
		if (PyErr_Occurred())
			break;
	}
	return ran;
}

static int task_traverse(Task *self, visitproc visit, void *arg)
{
	Py_VISIT(Py_TYPE(self));
	Py_VISIT(self->wait.value);
	Py_VISIT(self->wait.callback);
	Py_VISIT(self->wait.engine);
	for (Task *waiter = self->wait.waiter; waiter; waiter = waiter->next_waiter)
		Py_VISIT(waiter);
	Py_VISIT(self->coroutine);
	Py_VISIT(self->name);
	Py_VISIT(self->owner);
	Py_VISIT(self->ended);
	Py_VISIT(self->throwing);
	Py_VISIT(self->waiting);
	return 0;
}

/* Of a task that is over: the engine holds all others. */
static int task_clear(Task *self)
{
	Py_CLEAR(self->wait.value);
	Py_CLEAR(self->wait.callback);
	Py_CLEAR(self->owner);
	Py_CLEAR(self->ended);
	Py_CLEAR(self->throwing);
	return 0;
}

static void task_dealloc(Task *self)
{
	PyTypeObject *type = Py_TYPE(self);
	PyObject_GC_UnTrack(self);
	ext_wait_clear(&self->wait);
	Py_XDECREF(self->coroutine);
	Py_XDECREF(self->name);
	Py_XDECREF(self->owner);
	Py_XDECREF(self->ended);
	Py_XDECREF(self->throwing);
	Py_XDECREF(self->waiting);
	freefunc release = PyType_GetSlot(type, Py_tp_free);
	release(self);
	Py_DECREF(type);
}

static PyObject *task_get(Task *self, void *what)
{
	PyObject *value;
	switch ((char)(intptr_t)what) {
	case 'n':
		value = ext_task_name(self);
		break;
	case 'o':
		value = self->owner;
		break;
	case 'g':
		value = self->ended;
		break;
	case 'c':
		return PyBool_FromLong(self->cancelled);
	case 'w':
		value = (PyObject *)self->waiting;
		break;
	default:
		value = self->coroutine;
		break;
	}
	if (!value)
		value = Py_None;
	Py_INCREF(value);
	return value;
}

static int task_set_ended(Task *self, PyObject *value, void *unused)
{
	(void)unused;
	Py_XINCREF(value);
	EXT_SET(self->ended, value);
	return 0;
}

static PyObject *task_get_stale(Task *self, void *unused)
{
	(void)unused;
	return PyBool_FromLong(self->stale);
}

static int task_set_stale(Task *self, PyObject *value, void *unused)
{
	(void)unused;
	int stale = value ? PyObject_IsTrue(value) : -1;
	if (stale < 0)
		return -1;
	self->stale = stale;
	return 0;
}

static PyObject *task_repr(Task *self)
{
	return PyUnicode_FromFormat("<Task %S %s>", ext_task_name(self),
				    self->wait.done ? "done" : self->waiting ? "waiting" : "ready");
}

static PyMethodDef task_methods[] = {
	{"cancel", EXT_METHOD(task_cancel), METH_NOARGS, "Throw Cancelled into it, where it waits, at the next turn."},
	{0}};
static PyGetSetDef task_getset[] = {
	{"name", (getter)task_get, NULL, "What it is called.", (void *)'n'},
	{"owner", (getter)task_get, NULL, "The device whose scope it runs in, until it is over; or None.", (void *)'o'},
	{"ended", (getter)task_get, (setter)task_set_ended, "The owner's, to find when the task has ended.", (void *)'g'},
	{"cancelled", (getter)task_get, NULL, "Whether cancel was called.", (void *)'c'},
	{"stale", (getter)task_get_stale, (setter)task_set_stale,
	 "Of a generation that was reset: it may only end.", NULL},
	{"waiting", (getter)task_get, NULL, "What it waits for, or None.", (void *)'w'},
	{"coroutine", (getter)task_get, NULL, "The coroutine, or None when it is over.", (void *)'x'},
	{0}};
static PyType_Slot task_slots[] = {{Py_am_send, ext_wait_send}, {Py_tp_dealloc, task_dealloc},
				   {Py_tp_traverse, task_traverse},
				   {Py_tp_clear, task_clear},
				   {Py_tp_free, PyObject_GC_Del},
				   {Py_tp_methods, task_methods},
				   {Py_tp_getset, task_getset},
				   {Py_tp_repr, task_repr},
				   {Py_tp_doc, "A coroutine that the engine runs: await it for what it returns."},
				   {0}};
static PyType_Spec task_spec = {"iodma._core.Task", sizeof(Task), 0,
				Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_HAVE_GC, task_slots};

int ext_task_add(PyObject *module)
{
	CompletionType = ext_type(module, &completion_spec, NULL);
	WaitType = ext_type(module, &wait_spec, NULL);
	if (!WaitType || !CompletionType)
		return -1;
	TransferType = ext_type(module, &transfer_spec, WaitType);
	TaskType = ext_type(module, &task_spec, WaitType);
	return TransferType && TaskType ? 0 : -1;
}
