/* SPDX-License-Identifier: Apache-2.0
 *
 * queue: a virtqueue as a device sees it: chains come as batches that a port takes, completions go back as they are.
 *
 * Invariants
 *  - One object is one run of a ring, from its start to its stop; its geometry never changes.
 *  - One batch a turn: what is available beyond that waits until what was taken is under way.
 *  - Nothing a driver puts into the ring raises here; what a program gets wrong does. */
#include "queue.h"
#include "engine.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <unistd.h>

PyTypeObject *QueueType;

/* ---- descriptors ---- */

static int keep_fd(int *where, int fd)
{
	int own = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (fd >= 0 && own < 0) {
		PyErr_SetFromErrno(PyExc_OSError);
		return -1;
	}
	if (*where >= 0)
		close(*where);
	*where = own;
	return 0;
}

static int keep_kick(Queue *self, int fd)
{
	Engine *engine = self->port->engine;
	if (self->q.kick_fd >= 0)
		epoll_ctl(engine->kicks_fd, EPOLL_CTL_DEL, self->q.kick_fd, NULL);
	if (keep_fd(&self->q.kick_fd, fd))
		return -1;
	if (fd < 0)
		return 0;
	struct stat info;
	/* An eventfd counts, and needs no reading; what is written to a pipe or a socket stays there until it is read. */
	bool fills = fstat(self->q.kick_fd, &info) == 0 && (S_ISFIFO(info.st_mode) || S_ISSOCK(info.st_mode));
	struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.fd = fills ? self->q.kick_fd : -1};
	if (engine->kicks_fd < 0)
		engine->kicks_fd = epoll_create1(EPOLL_CLOEXEC);
	if (engine->kicks_fd < 0 || epoll_ctl(engine->kicks_fd, EPOLL_CTL_ADD, self->q.kick_fd, &event)) {
		PyErr_SetFromErrno(PyExc_OSError);
		return -1;
	}
	return 0;
}

/* ---- the object ---- */

static int join(Engine *engine, Queue *self)
{
	if (engine->queues == engine->queue_room) {
		uint32_t room = engine->queue_room ? engine->queue_room * 2 : 8;
		Queue **queues = realloc(engine->queue, room * sizeof *queues);
		if (queues)
			engine->queue = queues;
		struct iod_watch *watch = queues ? realloc(engine->watch, room * sizeof *watch) : NULL;
		if (!watch) {
			PyErr_NoMemory();
			return -1;
		}
		engine->watch = watch;
		engine->queue_room = room;
	}
	engine->queue[engine->queues++] = self;
	return 0;
}

static PyObject *queue_new(PyTypeObject *type, PyObject *args, PyObject *kw)
{
	static char *names[] = {"port", "size", "descriptor", "available", "used", "index", "next", "flags", "header",
				"trailer", "position_at", "call", "kick", "error", "used_next", "chains", "inflight",
				"inflight_at", NULL};
	PyObject *port, *factory = NULL, *used_object = NULL, *inflight = NULL;
	unsigned long long descriptor, available, used, inflight_at = 0;
	unsigned size, index = 0, next = 0, flags = 0, header = 0, trailer = 0;
	int position_at = -1, call = -1, kick = -1, error_fd = -1;
	if (!PyArg_ParseTupleAndKeywords(args, kw, "O!IKKK|$IIIIIiiiiOOOK", names, PortType, &port, &size, &descriptor,
					 &available, &used, &index, &next, &flags, &header, &trailer, &position_at, &call,
					 &kick, &error_fd, &used_object, &factory, &inflight, &inflight_at))
		return NULL;
	/* Of a packed ring both positions are one number, as vhost-user has it: the used one in the upper half. */
	uint64_t used_next = flags & IOD_VIRTQ_PACKED ? next >> 16 : next;
	if (used_object && used_object != Py_None && ext_u64(used_object, "used_next", &used_next))
		return NULL;
	Engine *engine = ((Port *)port)->engine;
	if (ext_check(engine))
		return NULL;
	if (!factory || !PyCallable_Check(factory))
		return PyErr_Format(ArgumentTypeErrorType, "chains is %R; a class of batches would be right",
				    factory ? factory : Py_None);
	if (((Port *)port)->queue)
		return PyErr_Format(ErrorType, "port %s has a queue already: its completions are that queue's chains",
				    ((Port *)port)->port.name);
	if (header > 65536)
		return PyErr_Format(ArgumentErrorType, "header is %u bytes; 65536 are the most", header);
	if (inflight == Py_None)
		inflight = NULL;
	if (inflight && !PyObject_TypeCheck(inflight, RegionType))
		return PyErr_Format(ArgumentTypeErrorType, "inflight is %R; a Ram would be right", inflight);
	struct iod_region *area = inflight ? ((Region *)inflight)->region : NULL;
	uint32_t entries = size <= IOD_VIRTQ_LARGEST ? size : 0;
	uint64_t need = flags & IOD_VIRTQ_PACKED ? iod_packed_inflight_bytes(entries) : iod_virtq_inflight_bytes(entries);
	if (area && (area->kind != IOD_RAM || inflight_at % 8 || inflight_at > area->size || need > area->size - inflight_at))
		return PyErr_Format(AddressRangeErrorType,
				    "chains in flight of a queue of %u entries take %llu bytes of RAM, at a multiple of "
				    "8; at %llu of %R there is no such place",
				    size, (unsigned long long)need, inflight_at, inflight);
	Queue *self = (Queue *)PyType_GenericAlloc(type, 0);
	if (!self)
		return NULL;
	self->released = true; /* until it is open */
	if (area)
		iod_region_get(area);
	self->inflight = area;
	self->q = (struct iod_virtq){.space = ((Port *)port)->port.space, .size = size, .flags = flags, .header = header,
				     .trailer = trailer, .position_at = position_at, .next = (uint16_t)next, .used_next = (uint16_t)used_next,
				     .inflight = area ? area->host + inflight_at : NULL,
				     .part = {{.address = descriptor}, {.address = available}, {.address = used}},
				     .call_fd = -1, .kick_fd = -1, .error_fd = -1};
	self->index = index;
	self->popped_turn = UINT64_MAX;
	Py_INCREF(port);
	Py_INCREF(factory);
	self->port = (Port *)port;
	self->factory = factory;
	self->pool = PyList_New(0);
	int error = self->pool ? iod_virtq_open(&self->q) : -ENOMEM;
	if (error == -EINVAL)
		PyErr_Format(ArgumentErrorType,
			     "a queue of %u entries at %#llx, %#llx and %#llx, with a header of %u and a trailer of %u "
			     "bytes: the size must be a power of two up to 32768, the addresses multiples of 16, 2 and 4, "
			     "and a trailer at most 128 bytes",
			     size, descriptor, available, used, header, trailer);
	else if (error)
		PyErr_NoMemory();
	if (!error && !keep_fd(&self->q.call_fd, call) && !keep_fd(&self->q.error_fd, error_fd) &&
	    !keep_kick(self, kick) && !join(engine, self)) {
		self->released = false;
		self->port->queue = self;
		return (PyObject *)self;
	}
	Py_DECREF(self);
	return NULL;
}

static void let_go(Queue *self)
{
	keep_kick(self, -1);
	keep_fd(&self->q.call_fd, -1);
	keep_fd(&self->q.error_fd, -1);
	iod_virtq_close(&self->q);
	if (self->inflight)
		iod_region_put(self->inflight);
	self->inflight = NULL;
	self->q.inflight = NULL;
	self->q.in_flight = self->q.used_count = self->q.answered = 0;
}

/* Its reader, or whoever waits for it to be drained, has waited enough. */
void ext_queue_settled(Queue *self)
{
	if (self->reader && self->reader->wait.waiter && (self->stopped || self->q.broken)) {
		PyObject *reader = (PyObject *)self->reader;
		Py_INCREF(reader);
		ext_wait_done(&self->reader->wait, NULL, false);
		Py_DECREF(reader);
	}
	if (self->drained && (self->q.in_flight == 0 || self->released || self->q.broken)) {
		PyObject *wait = self->drained;
		self->drained = NULL;
		Py_INCREF(Py_None);
		ext_wait_done((Wait *)wait, Py_None, false);
		Py_DECREF(wait);
	}
}

static void end(Queue *self)
{
	Engine *engine = self->port->engine;
	self->released = self->stopped = true;
	for (uint32_t i = 0; i < engine->queues; i++)
		if (engine->queue[i] == self) {
			engine->queue[i] = engine->queue[--engine->queues];
			break;
		}
	self->port->queue = NULL;
	EXT_SET(self->route.endpoint, NULL);
	EXT_SET(self->odd, NULL);
	let_go(self);
	ext_queue_settled(self);
}

void ext_queue_release(Queue *self)
{
	if (self->released)
		return;
	Py_INCREF(self); /* who is told of it may let go of it */
	end(self);
	Py_DECREF(self);
}

static void queue_dealloc(Queue *self)
{
	PyTypeObject *type = Py_TYPE(self);
	if (self->port) {
		if (self->released)
			let_go(self); /* of what a failed start has opened */
		else
			end(self);
	}
	Py_XDECREF(self->drained);
	Py_XDECREF(self->route.endpoint);
	Py_XDECREF(self->odd);
	Py_XDECREF((PyObject *)self->unseen);
	Py_XDECREF((PyObject *)self->port);
	Py_XDECREF(self->factory);
	Py_XDECREF(self->pool);
	freefunc release = PyType_GetSlot(type, Py_tp_free);
	release(self);
	Py_DECREF(type);
}

int ext_queue_usable(Queue *self)
{
	if (ext_check(self->port->engine))
		return -1;
	if (!self->released)
		return 0;
	PyErr_Format(ClosedErrorType, "queue %u was released", self->index);
	return -1;
}

/* ---- popping ---- */

static PyObject *queue_pop(Queue *self, PyObject *arg)
{
	uint64_t limit;
	if (ext_u64(arg, "limit", &limit) || ext_queue_usable(self))
		return NULL;
	if (self->stopped)
		Py_RETURN_NONE;
	struct iod_chains out;
	Chains *chains = ext_queue_pop(self, limit < UINT32_MAX ? (uint32_t)limit : UINT32_MAX, &out);
	if (chains && chains->columns.n == 0) {
		Py_DECREF((PyObject *)chains);
		Py_RETURN_NONE;
	}
	return (PyObject *)chains;
}

static PyObject *queue_batches(Queue *self, PyObject *const *args, Py_ssize_t n, PyObject *names)
{
	uint64_t limit = 16;
	Py_ssize_t named = names ? PyTuple_Size(names) : 0;
	if (n + named > 1 || (named && PyUnicode_CompareWithASCIIString(PyTuple_GetItem(names, 0), "limit")))
		return PyErr_Format(PyExc_TypeError, "batches takes one argument, limit");
	if ((n + named && ext_u64(args[0], "limit", &limit)) || ext_queue_usable(self))
		return NULL;
	if (limit == 0 || limit > 65536)
		return PyErr_Format(ArgumentErrorType, "limit is %llu; 1 to 65536 would be right", (unsigned long long)limit);
	return ext_batches_new(self, (uint32_t)limit);
}

/* ---- answering ---- */

static PyObject *pushed(Queue *self)
{
	iod_virtq_publish(&self->q);
	if (self->drained || self->q.broken)
		ext_queue_settled(self);
	Py_RETURN_NONE;
}

static PyObject *refuse_id(Queue *self, uint64_t id)
{
	return PyErr_Format(ArgumentErrorType, "queue %u has no chain %llu that waits for an answer", self->index,
			    (unsigned long long)id);
}

/* push(done, ok=0, error=1) */
static PyObject *queue_push(Queue *self, PyObject *const *args, Py_ssize_t n)
{
	uint64_t ok = 0, error = 1;
	if (n < 1 || n > 3)
		return PyErr_Format(PyExc_TypeError, "push takes 1 to 3 arguments, not %zd", n);
	if (!PyObject_TypeCheck(args[0], CompletedType))
		return PyErr_Format(ArgumentTypeErrorType, "%R is not a Completions", args[0]);
	if ((n > 1 && ext_u64(args[1], "ok", &ok)) || (n > 2 && ext_u64(args[2], "error", &error)) || ext_queue_usable(self))
		return NULL;
	struct ext_completed done;
	ext_completed_cut((Columns *)args[0], &done);
	for (Py_ssize_t i = 0; i < ((Columns *)args[0])->n; i++) {
		uint64_t id = done.id[i];
		const struct iod_virtq_slot *slot = id < self->q.size ? &self->q.slot[id] : NULL;
		bool all = slot && done.status[i] == IOD_OK && done.moved[i] == slot->payload;
		uint8_t byte = (uint8_t)(all ? ok : error);
		if (!slot || !iod_virtq_answer(&self->q, id, slot->direction == IOD_TO_MEMORY ? done.moved[i] : 0, &byte, 1)) {
			iod_virtq_publish(&self->q);
			return refuse_id(self, id);
		}
	}
	return pushed(self);
}

/* finish(id, written, trailer) */
static PyObject *queue_finish(Queue *self, PyObject *const *args, Py_ssize_t n)
{
	uint64_t id, written;
	Py_buffer view;
	if (n != 3)
		return PyErr_Format(PyExc_TypeError, "finish takes 3 arguments, not %zd", n);
	if (ext_u64(args[0], "id", &id) || ext_u64(args[1], "written", &written) || ext_queue_usable(self) ||
	    PyObject_GetBuffer(args[2], &view, PyBUF_SIMPLE))
		return NULL;
	if (view.len > (Py_ssize_t)self->q.trailer) {
		PyErr_Format(ArgumentErrorType, "a trailer of %zd bytes; queue %u has %u", view.len, self->index, self->q.trailer);
		PyBuffer_Release(&view);
		return NULL;
	}
	bool found = iod_virtq_answer(&self->q, id, written, view.buf, (uint32_t)view.len);
	PyBuffer_Release(&view);
	return found ? pushed(self) : refuse_id(self, id);
}

/* ---- starting, stopping ---- */

static PyObject *queue_stop(Queue *self, PyObject *unused)
{
	(void)unused;
	if (ext_check(self->port->engine))
		return NULL;
	self->stopped = true;
	ext_queue_settled(self);
	ext_poke(self->port->engine);
	Py_RETURN_NONE;
}

static PyObject *queue_drained(Queue *self, PyObject *unused)
{
	(void)unused;
	if (ext_check(self->port->engine))
		return NULL;
	if (!self->drained) {
		self->drained = PyObject_CallFunctionObjArgs((PyObject *)WaitType, (PyObject *)self->port->engine, NULL);
		if (!self->drained)
			return NULL;
	}
	PyObject *wait = self->drained;
	Py_INCREF(wait);
	ext_queue_settled(self);
	return wait;
}

static PyObject *queue_release(Queue *self, PyObject *unused)
{
	(void)unused;
	Engine *engine = self->port->engine;
	if (!engine->closed && ext_check(engine))
		return NULL;
	ext_queue_release(self);
	Py_RETURN_NONE;
}

static PyObject *set_fd(Queue *self, PyObject *arg, char which)
{
	long fd = PyLong_AsLong(arg);
	if ((fd == -1 && PyErr_Occurred()) || ext_queue_usable(self))
		return NULL;
	int error = which == 'c' ? keep_fd(&self->q.call_fd, (int)fd)
		    : which == 'e' ? keep_fd(&self->q.error_fd, (int)fd)
				   : keep_kick(self, (int)fd);
	if (error)
		return NULL;
	if (which == 'c' && fd >= 0 && self->q.pushed) /* whoever listens now does not know what the old one was told */
		iod_virtq_tell(self->q.call_fd);
	ext_poke(self->port->engine);
	Py_RETURN_NONE;
}
static PyObject *queue_set_call(Queue *self, PyObject *arg)
{
	return set_fd(self, arg, 'c');
}
static PyObject *queue_set_kick(Queue *self, PyObject *arg)
{
	return set_fd(self, arg, 'k');
}
static PyObject *queue_set_error(Queue *self, PyObject *arg)
{
	return set_fd(self, arg, 'e');
}

static PyObject *queue_get(Queue *self, void *what)
{
	const struct iod_virtq *q = &self->q;
	switch ((char)(intptr_t)what) {
	case 'i':
		return PyLong_FromUnsignedLong(self->index);
	case 's':
		return PyLong_FromUnsignedLong(q->size);
	case 'n': {
		unsigned long next = q->next, used = q->used_next;
		if (q->flags & IOD_VIRTQ_PACKED)
			next |= (unsigned long)q->next_wrap << 15 | used << 16 | (unsigned long)q->used_wrap << 31;
		return PyLong_FromUnsignedLong(next);
	}
	case 'f':
		return PyLong_FromUnsignedLong(q->in_flight);
	case 'r':
		return PyBool_FromLong(!self->stopped && !q->broken);
	case 'b':
		if (!q->broken)
			Py_RETURN_NONE;
		return PyUnicode_FromString(q->broken);
	case 'p':
		Py_INCREF((PyObject *)self->port);
		return (PyObject *)self->port;
	case '1':
		return PyLong_FromUnsignedLongLong(q->popped);
	case '2':
		return PyLong_FromUnsignedLongLong(q->pushed);
	case '3':
		return PyLong_FromUnsignedLongLong(q->calls);
	default:
		return PyLong_FromUnsignedLongLong(q->malformed);
	}
}

static PyMethodDef queue_methods[] = {
	{"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, "Virtqueue[Chains]: for annotations."},
	{"pop", EXT_METHOD(queue_pop), METH_O, "pop(limit) -> Chains | None: what is available now."},
	{"batches", EXT_METHOD(queue_batches), METH_FASTCALL | METH_KEYWORDS,
	 "batches(limit=16): an async iterator of Chains, one a turn, until the queue is stopped or broken."},
	{"_route", EXT_METHOD(ext_queue_route), METH_FASTCALL, NULL},
	{"push", EXT_METHOD(queue_push), METH_FASTCALL,
	 "push(done, ok=0, error=1): answer chains with the Completions of a port: the trailer's first byte says how it went."},
	{"finish", EXT_METHOD(queue_finish), METH_FASTCALL,
	 "finish(id, written, trailer): answer one chain; `written` bytes of its payload were put into memory."},
	{"stop", EXT_METHOD(queue_stop), METH_NOARGS, "Pop nothing more; what is in flight goes on."},
	{"drained", EXT_METHOD(queue_drained), METH_NOARGS, "Await it: nothing is in flight."},
	{"release", EXT_METHOD(queue_release), METH_NOARGS, "Let go of the ring; what is not answered never will be."},
	{"set_call", EXT_METHOD(queue_set_call), METH_O, "set_call(fd): the eventfd that tells the driver; -1: none."},
	{"set_kick", EXT_METHOD(queue_set_kick), METH_O, "set_kick(fd): the eventfd with which the driver tells; -1: none."},
	{"set_error", EXT_METHOD(queue_set_error), METH_O, "set_error(fd): the eventfd that says that it broke; -1: none."},
	{0}};
static PyGetSetDef queue_getset[] = {
	{"index", (getter)queue_get, NULL, "Its number in the device.", (void *)'i'},
	{"size", (getter)queue_get, NULL, "Entries.", (void *)'s'},
	{"next", (getter)queue_get, NULL,
	 "The next available index; of a packed ring with its lap in bit 15, and the used one above: where a later run\n"
	 "would begin.", (void *)'n'},
	{"in_flight", (getter)queue_get, NULL, "Chains that were popped, and not answered.", (void *)'f'},
	{"running", (getter)queue_get, NULL, "Whether it is neither stopped nor broken.", (void *)'r'},
	{"broken", (getter)queue_get, NULL, "Why the ring makes no sense, or None.", (void *)'b'},
	{"port", (getter)queue_get, NULL, "The port that its addresses are for.", (void *)'p'},
	{"popped", (getter)queue_get, NULL, "Chains given to the device.", (void *)'1'},
	{"pushed", (getter)queue_get, NULL, "Chains put into the used ring.", (void *)'2'},
	{"calls", (getter)queue_get, NULL, "How often the driver was told.", (void *)'3'},
	{"malformed", (getter)queue_get, NULL, "Chains that made no sense.", (void *)'4'},
	{0}};
static PyType_Slot queue_slots[] = {{Py_tp_new, queue_new},
				    {Py_tp_dealloc, queue_dealloc},
				    {Py_tp_methods, queue_methods},
				    {Py_tp_getset, queue_getset},
				    {Py_tp_doc, "The device's side of a virtqueue."},
				    {0}};
static PyType_Spec queue_spec = {"iodma._core.Virtqueue", sizeof(Queue), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
				 queue_slots};

int ext_queue_add(PyObject *module)
{
	QueueType = ext_type(module, &queue_spec, NULL);
	return QueueType ? 0 : -1;
}
