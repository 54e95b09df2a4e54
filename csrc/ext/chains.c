/* SPDX-License-Identifier: Apache-2.0
 *
 * chains: what was popped from a virtqueue, as the columns of a batch, and the reader that gets it.
 *
 * Invariants
 *  - Columns have room for the longest chain before anything is popped into them.
 *  - A queue has one reader at a time; it gets one batch a turn. */
#include "queue.h"

PyTypeObject *BatchesType, *ChainsType;

static void cut(const Chains *chains, struct iod_chains *out)
{
	struct ext_batch b;
	ext_batch_cut(&chains->columns, &b);
	size_t n = (size_t)chains->columns.requests;
	uint64_t *extra = (uint64_t *)(chains->columns.block + (((size_t)(b.direction + n - chains->columns.block) + 7) & ~(size_t)7));
	*out = (struct iod_chains){.id = b.id, .position = b.position, .address = b.address, .length = b.length,
				   .first = b.first, .count = b.count, .direction = b.direction,
				   .readable = extra, .writable = extra + n, .opcode = (uint32_t *)(extra + 2 * n),
				   .header = (uint8_t *)((uint32_t *)(extra + 2 * n) + n),
				   .requests = (uint32_t)n, .segments = (uint32_t)chains->columns.segments};
}

/* ---- popping ---- */

static Chains *room_for_chains(Queue *self)
{
	Columns *columns = ext_columns_from(self->pool, self->factory, self->q.segment_room);
	if (!columns)
		return NULL;
	Chains *chains = (Chains *)columns;
	if (!PyObject_TypeCheck((PyObject *)columns, ChainsType) || columns->segments < (Py_ssize_t)self->q.segment_room ||
	    chains->header != self->q.header) {
		PyErr_SetString(ErrorType, "the factory must make a Chains with room for the longest chain, and as long a header");
		Py_DECREF(columns);
		return NULL;
	}
	return chains;
}

static void pop(Queue *self, Chains *chains, uint32_t limit, struct iod_chains *out)
{
	int n = iod_virtq_pop(&self->q, out, limit);
	chains->columns.n = n > 0 ? n : 0;
	chains->to_memory = out->to_memory;
	chains->from_memory = out->from_memory;
	chains->other = out->other;
	if (self->q.broken || self->stopped)
		ext_queue_settled(self);
}

Chains *ext_queue_pop(Queue *self, uint32_t limit, struct iod_chains *out)
{
	Chains *chains = room_for_chains(self);
	if (chains) {
		cut(chains, out);
		self->popped_turn = self->port->engine->turns;
		pop(self, chains, limit, out);
	}
	return chains;
}

Chains *ext_queue_pop_unseen(Queue *self, uint32_t limit, struct iod_chains **out)
{
	Chains *chains = self->unseen;
	if (!chains) {
		if (!(chains = room_for_chains(self)))
			return NULL;
		cut(chains, &self->cut);
		self->unseen = chains;
	}
	*out = &self->cut;
	pop(self, chains, limit, &self->cut);
	return chains;
}

/* ---- the reader ---- */

bool ext_batches_ready(Batches *self)
{
	Queue *queue = self->queue;
	if (queue->stopped || queue->q.broken)
		return true;
	if (queue->route.endpoint || queue->odd)
		return queue->odd;
	if (queue->popped_turn == self->wait.engine->turns)
		return false;
	return iod_virtq_available(&queue->q) || queue->q.broken;
}

static PyObject *batches_take(Batches *self)
{
	if (self->queue->stopped || self->queue->q.broken) {
		PyErr_SetNone(PyExc_StopAsyncIteration);
		return NULL;
	}
	struct iod_chains out;
	PyObject *odd = self->queue->odd;
	if (!self->queue->route.endpoint && !odd)
		return (PyObject *)ext_queue_pop(self->queue, self->limit, &out);
	self->queue->odd = NULL;
	ext_poke(self->wait.engine);
	return odd;
}

static bool source_ready(Wait *wait)
{
	return ext_batches_ready((Batches *)wait);
}

static PyObject *source_take(Wait *wait)
{
	return batches_take((Batches *)wait);
}

const struct ext_source ext_batches_source = {.ready = source_ready, .take = source_take,
					      .taken = "another coroutine reads this queue"};

PyObject *ext_batches_new(Queue *queue, uint32_t limit)
{
	Batches *self = (Batches *)PyType_GenericAlloc(BatchesType, 0);
	if (!self)
		return NULL;
	ext_wait_init(&self->wait, queue->port->engine);
	self->wait.source = &ext_batches_source;
	Py_INCREF(queue);
	self->queue = queue;
	self->limit = limit;
	return (PyObject *)self;
}

static void batches_dealloc(Batches *self)
{
	PyTypeObject *type = Py_TYPE(self);
	if (self->queue && self->queue->reader == self)
		self->queue->reader = NULL;
	ext_wait_clear(&self->wait);
	Py_XDECREF((PyObject *)self->queue);
	freefunc release = PyType_GetSlot(type, Py_tp_free);
	release(self);
	Py_DECREF(type);
}

static PyObject *batches_iter(PyObject *self)
{
	Py_INCREF(self);
	return self;
}

static PyObject *batches_next(Batches *self)
{
	Batches *other = self->queue->reader;
	if (other && other != self && other->wait.waiter)
		return PyErr_Format(ErrorType, "queue %u has a reader already", self->queue->index);
	self->queue->reader = self;
	Py_INCREF(self);
	return (PyObject *)self;
}

static PyType_Slot batches_slots[] = {{Py_am_send, ext_wait_send}, {Py_tp_dealloc, batches_dealloc},
				      {Py_am_aiter, batches_iter},
				      {Py_am_anext, batches_next},
				      {0}};
static PyType_Spec batches_spec = {"iodma._core.Batches", sizeof(Batches), 0,
				   Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, batches_slots};

/* ---- columns ---- */

static PyObject *chains_get(Chains *self, void *what)
{
	uint64_t mask = (char)(intptr_t)what == 't' ? self->to_memory : (char)(intptr_t)what == 'f' ? self->from_memory
												   : self->other;
	return PyLong_FromUnsignedLongLong(mask);
}

static PyObject *chains_set_header(Chains *self, PyObject *arg)
{
	uint64_t header;
	if (ext_u64(arg, "header", &header))
		return NULL;
	struct iod_chains out;
	cut(self, &out);
	size_t need = (size_t)(out.header - self->columns.block) + out.requests * header;
	if (header > 65536 || need > (size_t)PyByteArray_Size(self->columns.owner))
		return PyErr_Format(ArgumentErrorType, "headers of %llu bytes do not fit the block", (unsigned long long)header);
	self->header = (uint32_t)header;
	Py_RETURN_NONE;
}

static PyMethodDef chains_methods[] = {{"_set_header", EXT_METHOD(chains_set_header), METH_O, NULL}, {0}};
#define COLUMN(name, index, doc) {name, (getter)ext_columns_column, NULL, doc, (void *)(intptr_t)(index)}
static PyGetSetDef chains_getset[] = {
	COLUMN("ticket", 0, "uint64: written by a submit."),
	COLUMN("id", 1, "uint64: which chain; completions come back with it."),
	COLUMN("position", 2, "uint64: the field of the header that the queue was told of, or 0."),
	COLUMN("readable", 3, "uint64: payload bytes that the device may read."),
	COLUMN("writable", 4, "uint64: payload bytes that the device may write."),
	COLUMN("opcode", 5, "uint32: the first word of the header."),
	COLUMN("direction", 6, "uint8: TO_MEMORY when there is writable payload."),
	COLUMN("header", 7, "uint8[n, header]: the first bytes of each chain."),
	COLUMN("first", 8, "uint32: the chain's first segment."),
	COLUMN("count", 9, "uint32: its segments, readable ones first."),
	{"ops_to_memory", (getter)chains_get, NULL,
	 "Bit k: a chain with opcode k (63: or above) has only writable payload.", (void *)'t'},
	{"ops_from_memory", (getter)chains_get, NULL, "Bit k: a chain with opcode k has only readable payload.",
	 (void *)'f'},
	{"ops_other", (getter)chains_get, NULL, "Bit k: a chain with opcode k has no payload, or both kinds.", (void *)'o'},
	{0}};
static PyType_Slot chains_slots[] = {{Py_tp_methods, chains_methods}, {Py_tp_getset, chains_getset}, {0}};
static PyType_Spec chains_spec = {"iodma._core.ChainColumns", sizeof(Chains), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
				  chains_slots};

int ext_chains_add(PyObject *module)
{
	BatchesType = ext_type(module, &batches_spec, WaitType);
	ChainsType = BatchesType ? ext_type(module, &chains_spec, ColumnsType) : NULL;
	return ChainsType ? 0 : -1;
}
