/* SPDX-License-Identifier: Apache-2.0
 *
 * vhost_ext: vhost_blk.h as the type iodma._peer.VhostBlk.
 *
 * Invariants
 *  - The interpreter lock is given up for everything that talks or waits; meanwhile the session is marked busy, and
 *    whoever else calls is refused.
 *  - After close() every method but close() raises.
 */
#include "client_ext.h"
#include "vhost_blk.h"
#include "vhost_ext.h"

typedef struct {
	PyObject_HEAD
	struct vb_session session;
	struct use use;
} Client;

static int check_options(const struct vb_options *o, double patience)
{
	const char *wrong = NULL;

	if (o->queues < 1 || o->queues > 64)
		wrong = "queues must be 1 to 64";
	else if (o->queue_size < 2 || o->queue_size > VB_QUEUE_SIZE_MOST || (o->queue_size & (o->queue_size - 1)))
		wrong = "queue_size must be a power of two, 2 to 32768";
	else if (o->depth < 1 || o->depth > o->queue_size)
		wrong = "depth must be 1 to queue_size";
	else if (o->segments < 1 || o->segments > 1024)
		wrong = "segments must be 1 to 1024";
	else if (!o->segment_bytes || o->segment_bytes % VB_SECTOR || o->segment_bytes > 16 << 20)
		wrong = "segment_bytes must be whole sectors, at most 16 MiB";
	else if ((uint64_t)o->queues * o->depth * o->segments * o->segment_bytes > 4ull << 30)
		wrong = "the segments of all slots must not be above 4 GiB";
	else if (!(patience > 0 && patience <= MOST_SECONDS))
		wrong = "patience must be above 0 and at most 600 s";
	return wrong ? refuse(wrong) : 0;
}

static PyObject *client_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "path",	   "queues",	  "queue_size", "depth",      "segments", "segment_bytes",
				 "indirect_above", "event_index", "indirect",	"data_fd",    "null_bytes", "null_cpu",
				 "null_spins",	   "patience",	  NULL };
	struct vb_options o = { .queues = 1, .queue_size = 128, .depth = 1, .segments = 1, .segment_bytes = 4096,
				.indirect_above = 1, .data_fd = -1, .null_cpu = -1 };
	int event_index = 1, indirect = 1, null_spins = 1, error;
	unsigned long long null_bytes = 256 << 20;
	double patience = 10.0;
	PyObject *path, *bytes = NULL;
	allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
	Client *self;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$IIIIIIppiKipd:VhostBlk", names, &path, &o.queues,
					 &o.queue_size, &o.depth, &o.segments, &o.segment_bytes, &o.indirect_above,
					 &event_index, &indirect, &o.data_fd, &null_bytes, &o.null_cpu, &null_spins, &patience))
		return NULL;
	if (check_options(&o, patience) || (path != Py_None && !PyUnicode_FSConverter(path, &bytes)))
		return NULL;
	o.path = bytes ? PyBytes_AsString(bytes) : NULL;
	o.event_index = event_index;
	o.indirect = indirect;
	o.null_bytes = null_bytes / VB_SECTOR * VB_SECTOR;
	o.null_spins = null_spins;
	o.patience_ms = (uint32_t)(patience * 1000) + 1;
	self = (Client *)allocate(type, 0);
	if (self) {
		Py_BEGIN_ALLOW_THREADS
		error = vb_open(&self->session, &o);
		Py_END_ALLOW_THREADS
		self->use.open = !error;
		if (error) {
			raise_error(error, self->session.error);
			Py_DECREF(self);
			self = NULL;
		}
	}
	Py_XDECREF(bytes);
	return (PyObject *)self;
}

static void client_dealloc(Client *self)
{
	PyTypeObject *type = Py_TYPE((PyObject *)self);
	freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

	if (self->use.open) {
		self->session.broken = true; /* no farewell: this must not wait */
		vb_close(&self->session);
	}
	release(self);
	Py_DECREF(type);
}

static PyObject *client_close(Client *self, PyObject *Py_UNUSED(ignored))
{
	int error;

	if (!self->use.open)
		Py_RETURN_NONE;
	if (enter(&self->use))
		return NULL;
	self->use.open = false;
	Py_BEGIN_ALLOW_THREADS
	error = vb_close(&self->session);
	Py_END_ALLOW_THREADS
	self->use.busy = false;
	if (error)
		return raise_error(error, self->session.error);
	Py_RETURN_NONE;
}

static PyObject *result_dict(const struct vb_result *r)
{
	return Py_BuildValue("{sKsKsKsKsKsKsKsKsKsKsK}", "ns", (unsigned long long)r->ns, "requests",
			     (unsigned long long)r->requests, "bytes", (unsigned long long)r->bytes, "errors",
			     (unsigned long long)r->errors, "mismatches", (unsigned long long)r->mismatches,
			     "wrong_lengths", (unsigned long long)r->wrong_lengths, "kicks",
			     (unsigned long long)r->kicks, "wakes", (unsigned long long)r->wakes, "reaps",
			     (unsigned long long)r->reaps, "p50_ns", (unsigned long long)r->p50_ns, "p99_ns",
			     (unsigned long long)r->p99_ns);
}

static PyObject *client_run(Client *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "write", "bytes",	"seconds", "requests",	 "random",     "poll",
				 "seed",  "verify",	"data_seed", "first_byte", "span_bytes", NULL };
	struct vb_load load = { .seed = 1 };
	struct vb_result result;
	unsigned long long requests = 0, seed = 1, data_seed = 0, first = 0, span = 0;
	int write = 0, random = 1, poll = 0, verify = 0, error;
	double seconds = 1.0;

	load.bytes = self->session.options.segments * self->session.options.segment_bytes;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$pIdKppKpKKK:run", names, &write, &load.bytes, &seconds,
					 &requests, &random, &poll, &seed, &verify, &data_seed, &first, &span))
		return NULL;
	if (check_seconds(seconds, &load.most_ns) || enter(&self->use))
		return NULL;
	load.type = write ? VB_OUT : VB_IN;
	load.most_requests = requests;
	load.random = random;
	load.poll = poll;
	load.seed = seed;
	load.verify = verify;
	load.data_seed = data_seed;
	load.first_byte = first;
	load.span_bytes = span || first > self->session.capacity ? span : self->session.capacity - first;
	Py_BEGIN_ALLOW_THREADS
	error = vb_run(&self->session, &load, &result);
	Py_END_ALLOW_THREADS
	self->use.busy = false;
	return error ? raise_error(error, self->session.error) : result_dict(&result);
}

static PyObject *client_request(Client *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "type", "sector", "data", "in_bytes", NULL };
	unsigned type, in_bytes = 0;
	unsigned long long sector = 0;
	Py_buffer data = { 0 };
	PyObject *in = NULL, *result = NULL;
	uint8_t status = 0, *to;
	uint32_t written = 0;
	int error;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "I|K$y*I:request", names, &type, &sector, &data, &in_bytes))
		return NULL;
	if (data.len > INT32_MAX || in_bytes > INT32_MAX)
		PyErr_SetString(PyExc_ValueError, "too many bytes for one request");
	else
		in = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)in_bytes);
	if (in && !enter(&self->use)) {
		to = (uint8_t *)PyBytes_AsString(in);
		Py_BEGIN_ALLOW_THREADS
		error = vb_request(&self->session, type, sector, data.buf, (uint32_t)data.len, to, in_bytes, &status,
				   &written);
		Py_END_ALLOW_THREADS
		self->use.busy = false;
		result = error ? raise_error(error, self->session.error) : Py_BuildValue("iOI", (int)status, in, written);
	}
	Py_XDECREF(in);
	if (data.obj)
		PyBuffer_Release(&data);
	return result;
}

static PyObject *client_enter(PyObject *self, PyObject *Py_UNUSED(ignored))
{
	return Py_NewRef(self);
}

static PyObject *client_exit(Client *self, PyObject *args)
{
	PyObject *type, *value, *traceback;

	if (!PyArg_ParseTuple(args, "OOO", &type, &value, &traceback))
		return NULL;
	/* An error on the way out must not hide the one that led here. */
	if (type != Py_None)
		self->session.broken = true;
	return client_close(self, NULL);
}

static PyObject *get_u64(Client *self, void *field)
{
	return PyLong_FromUnsignedLongLong(*(uint64_t *)((uint8_t *)&self->session + (uintptr_t)field));
}

static PyObject *get_config(Client *self, void *Py_UNUSED(closure))
{
	return PyBytes_FromStringAndSize((const char *)self->session.config, sizeof self->session.config);
}

static PyObject *get_server_queues(Client *self, void *Py_UNUSED(closure))
{
	return PyLong_FromUnsignedLong(self->session.server_queues);
}

#define U64(name, field) { name, (getter)get_u64, NULL, NULL, (void *)offsetof(struct vb_session, field) }

static PyGetSetDef attributes[] = {
	U64("offered", offered),
	U64("features", features),
	U64("protocol_features", protocol),
	U64("capacity", capacity),
	{ "config", (getter)get_config, NULL, NULL, NULL },
	{ "server_queues", (getter)get_server_queues, NULL, NULL, NULL },
	{ NULL, NULL, NULL, NULL, NULL },
};

static PyMethodDef methods[] = {
	{ "run", (PyCFunction)(void (*)(void))client_run, METH_VARARGS | METH_KEYWORDS, NULL },
	{ "request", (PyCFunction)(void (*)(void))client_request, METH_VARARGS | METH_KEYWORDS, NULL },
	{ "close", (PyCFunction)(void (*)(void))client_close, METH_NOARGS, NULL },
	{ "__enter__", client_enter, METH_NOARGS, NULL },
	{ "__exit__", (PyCFunction)(void (*)(void))client_exit, METH_VARARGS, NULL },
	{ NULL, NULL, 0, NULL },
};

static PyType_Slot slots[] = {
	{ Py_tp_doc, "A vhost-user-blk front-end that makes load." },
	{ Py_tp_new, client_new },
	{ Py_tp_dealloc, client_dealloc },
	{ Py_tp_methods, methods },
	{ Py_tp_getset, attributes },
	{ 0, NULL },
};

static PyType_Spec spec = {
	.name = "iodma._peer.VhostBlk",
	.basicsize = sizeof(Client),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
	.slots = slots,
};

int vhost_blk_register(PyObject *module)
{
	PyObject *type = PyType_FromModuleAndSpec(module, &spec, NULL);
	int error = type ? PyModule_AddType(module, (PyTypeObject *)type) : -1;

	Py_XDECREF(type);
	return error;
}
