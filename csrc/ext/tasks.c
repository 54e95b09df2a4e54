/* SPDX-License-Identifier: Apache-2.0
 *
 * tasks: coroutines, and the trampoline that resumes them.
 *
 * Invariants
 *  - A coroutine is resumed only from ext_run_ready: never inside a submit, a cancel, a set or another coroutine's step.
 *  - A task that failed keeps its exception, whose traceback may know the task: so tasks take part in the garbage
 *    collection.  A transfer raises a new exception to each that waits for it, and need not.
 *  - A task that was cancelled is thrown Cancelled once for each time, at the place where it waits or waits next. */
#include "spare.h"

PyTypeObject *TaskType;
static struct ext_spares tasks;

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

Task *ext_task_new(Engine *engine)
{
	bool again = tasks.count > 0;
	Task *self = (Task *)ext_spare_take(&tasks, TaskType, sizeof *self);
	if (!self)
		return NULL;
	ext_wait_init(&self->wait, engine);
	self->wait.is_task = true;
	if (again)
		PyObject_GC_Track(self);
	return self;
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
	if (Py_TYPE(result) == TransferType || PyObject_TypeCheck(result, WaitType)) {
		Wait *wait = (Wait *)result;
		if (task->throwing || wait->done) { /* cancelled itself, or only had to let others run */
			Py_DECREF(result);
			ext_task_ready(task);
			return;
		}
		if (wait->engine == engine && !(wait->source && wait->waiter) && wait != &task->wait) {
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
						 : wait->source		? wait->source->taken
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
	PyObject_GC_UnTrack(self);
	ext_wait_clear(&self->wait);
	Py_XDECREF(self->coroutine);
	Py_XDECREF(self->name);
	Py_XDECREF(self->owner);
	Py_XDECREF(self->ended);
	Py_XDECREF(self->throwing);
	Py_XDECREF(self->waiting);
	ext_spare_give(&tasks, (PyObject *)self);
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

static PyObject *task_get_depth(Task *self, void *unused)
{
	(void)unused;
	return PyLong_FromUnsignedLong(self->depth);
}

static int task_set_depth(Task *self, PyObject *value, void *unused)
{
	(void)unused;
	unsigned long depth = value ? PyLong_AsUnsignedLong(value) : 0;
	if (PyErr_Occurred())
		return -1;
	self->depth = (uint8_t)iod_min64(depth, IOD_MESSAGE_DEPTH);
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
	{"depth", (getter)task_get_depth, (setter)task_set_depth,
	 "How many messages of DMA, each caused by the one before, led to it.", NULL},
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
	TaskType = ext_type(module, &task_spec, WaitType);
	return TaskType ? 0 : -1;
}
