/* SPDX-License-Identifier: Apache-2.0
 *
 * stream: where the completions of batches come out, as columns.
 *
 * Invariants
 *  - Columns are used again only when nobody holds them or one of their arrays.
 *  - One coroutine reads a port's stream at a time. */
#include "ext.h"

PyTypeObject *StreamType;
static const struct ext_source source;

/* Stream(port, factory, limit, at_least, forever): factory(limit) -> Columns with the arrays kept. */
static PyObject *stream_new(PyTypeObject *type, PyObject *args, PyObject *kw)
{
	PyObject *port, *factory;
	unsigned limit, least;
	int forever;
	(void)kw;
	if (!PyArg_ParseTuple(args, "O!OIIp", PortType, &port, &factory, &limit, &least, &forever))
		return NULL;
	if (limit == 0 || limit > 65536 || least == 0 || least > limit)
		return PyErr_Format(ArgumentErrorType, "limit is %u and at_least %u; 1 <= at_least <= limit <= 65536", limit,
				    least);
	Stream *self = (Stream *)PyType_GenericAlloc(type, 0);
	if (!self)
		return NULL;
	ext_wait_init(&self->wait, ((Port *)port)->engine);
	self->wait.source = &source;
	Py_INCREF(port);
	Py_INCREF(factory);
	self->port = (Port *)port;
	self->factory = factory;
	self->limit = limit;
	self->least = least;
	self->forever = forever;
	self->pool = PyList_New(0);
	if (!self->pool) {
		Py_DECREF(self);
		return NULL;
	}
	return (PyObject *)self;
}

static void stream_dealloc(Stream *self)
{
	PyTypeObject *type = Py_TYPE(self);
	if (self->port && self->port->stream == self)
		self->port->stream = NULL;
	ext_wait_clear(&self->wait);
	Py_XDECREF((PyObject *)self->port);
	Py_XDECREF(self->factory);
	Py_XDECREF(self->pool);
	freefunc release = PyType_GetSlot(type, Py_tp_free);
	release(self);
	Py_DECREF(type);
}

bool ext_stream_ready(Stream *self)
{
	struct iod_port *port = &self->port->port;
	if (port->done.count >= self->least)
		return true;
	/* Fewer than asked for, but no more are coming. */
	if (port->busy == 0 && port->done.count > 0)
		return true;
	return port->rows == 0 && (!self->forever || port->closed);
}

static PyObject *take(Stream *self)
{
	struct iod_port *port = &self->port->port;
	Engine *engine = self->port->engine;
	if (port->done.count == 0) {
		PyErr_SetNone(PyExc_StopAsyncIteration);
		return NULL;
	}
	Columns *columns = ext_columns_from(self->pool, self->factory, self->limit);
	if (!columns)
		return NULL;
	if (!PyObject_TypeCheck((PyObject *)columns, CompletedType) || columns->requests < (Py_ssize_t)self->limit) {
		PyErr_SetString(ErrorType, "the factory must make a Completions of at least `limit` rows");
		Py_DECREF(columns);
		return NULL;
	}
	struct ext_completed c;
	ext_completed_cut(columns, &c);
	Py_ssize_t n = 0, bad = 0;
	PyObject *held = (PyObject *)self->port;
	Py_INCREF(held);
	while (n < (Py_ssize_t)self->limit) {
		struct iod_row *row = iod_take_batch(&engine->core, port);
		if (!row)
			break;
		c.ticket[n] = row->ticket;
		c.id[n] = row->id;
		c.moved[n] = row->moved;
		c.error[n] = row->error;
		c.status[n] = row->status;
		bad += row->status != IOD_OK;
		bool fault = row->status == IOD_FAULT;
		c.fault_offset[n] = fault ? row->fault.offset : 0;
		c.fault_address[n] = fault ? row->fault.address : 0;
		n++;
		ext_row_free(engine, row);
	}
	columns->n = n;
	columns->bad = bad;
	Py_DECREF(held);
	return (PyObject *)columns;
}

static bool ready(Wait *wait)
{
	return ext_stream_ready((Stream *)wait);
}

static PyObject *source_take(Wait *wait)
{
	return take((Stream *)wait);
}

static const struct ext_source source = {.ready = ready, .take = source_take,
					 .taken = "another coroutine reads this stream"};

static PyObject *stream_iter(PyObject *self)
{
	Py_INCREF(self);
	return self;
}

static PyObject *stream_next(Stream *self)
{
	if (self->port->stream && self->port->stream != self && self->port->stream->wait.waiter) {
		PyErr_Format(ErrorType, "port %s has a stream of completions already", self->port->port.name);
		return NULL;
	}
	self->port->stream = self;
	Py_INCREF(self);
	return (PyObject *)self;
}

static PyType_Slot stream_slots[] = {{Py_am_send, ext_wait_send}, {Py_tp_new, stream_new},
				     {Py_tp_dealloc, stream_dealloc},
				     {Py_am_aiter, stream_iter},
				     {Py_am_anext, stream_next},
				     {0}};
static PyType_Spec stream_spec = {"iodma._core.Stream", sizeof(Stream), 0, Py_TPFLAGS_DEFAULT, stream_slots};

int ext_stream_add(PyObject *module)
{
	StreamType = ext_type(module, &stream_spec, WaitType);
	return StreamType ? 0 : -1;
}
