/* SPDX-License-Identifier: Apache-2.0
 *
 * vfio_ext: vfio_user.h as the type iodma._peer.VfioUser, and its servers as a function.
 *
 * Invariants
 *  - The interpreter lock is given up for everything that talks or waits; meanwhile the client is marked busy, and
 *    whoever else calls is refused.
 *  - Memory that a loop touches is inside the buffer that it was given, which stays exported until it is over.
 */
#include "client_ext.h"
#include "vfio_ext.h"
#include "vfio_user.h"

typedef struct {
	PyObject_HEAD
	struct vu_client client;
	struct use use;
} Client;

static int check_width(unsigned width)
{
	return width == 1 || width == 2 || width == 4 || width == 8 ? 0 : refuse("width must be 1, 2, 4 or 8");
}

static PyObject *client_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "path", "patience", NULL };
	allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
	double patience = 10.0;
	PyObject *path = NULL;
	uint64_t ns;
	Client *self;
	int error;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&|$d:VfioUser", names, PyUnicode_FSConverter, &path, &patience))
		return NULL;
	self = check_seconds(patience, &ns) ? NULL : (Client *)allocate(type, 0);
	if (self) {
		const char *text = PyBytes_AsString(path);

		Py_BEGIN_ALLOW_THREADS
		error = vu_open(&self->client, text, (uint32_t)(ns / 1000000) + 1);
		Py_END_ALLOW_THREADS
		self->use.open = !error;
		if (error) {
			raise_error(error, self->client.error);
			Py_DECREF(self);
			self = NULL;
		}
	}
	Py_DECREF(path);
	return (PyObject *)self;
}

static void client_dealloc(Client *self)
{
	PyTypeObject *type = Py_TYPE((PyObject *)self);
	freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

	if (self->use.open)
		vu_close(&self->client);
	release(self);
	Py_DECREF(type);
}

static PyObject *client_close(Client *self, PyObject *Py_UNUSED(ignored))
{
	if (!self->use.open)
		Py_RETURN_NONE;
	if (enter(&self->use))
		return NULL;
	self->use.open = self->use.busy = false;
	vu_close(&self->client);
	Py_RETURN_NONE;
}

/* A sequence of descriptors. */
static int take_fds(PyObject *sequence, int *fds, unsigned *count)
{
	Py_ssize_t n = sequence ? PySequence_Size(sequence) : 0;

	if (n < 0)
		return -1;
	if (n > VU_MOST_FDS)
		return refuse("at most 8 descriptors go with a message");
	for (Py_ssize_t i = 0; i < n; i++) {
		PyObject *item = PySequence_GetItem(sequence, i);

		fds[i] = item ? PyObject_AsFileDescriptor(item) : -1;
		Py_XDECREF(item);
		if (fds[i] < 0)
			return -1;
	}
	*count = (unsigned)n;
	return 0;
}

static PyObject *client_request(Client *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "command", "payload", "fds", NULL };
	uint8_t answer[VU_MOST_MESSAGE];
	unsigned command, count = 0;
	int fds[VU_MOST_FDS], error = 0;
	PyObject *sequence = NULL, *result = NULL;
	Py_buffer payload = { 0 };
	uint32_t error_number = 0;
	size_t got = 0;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "I|y*O:request", names, &command, &payload, &sequence))
		return NULL;
	if (command > UINT16_MAX) {
		refuse("command must be below 65536");
	} else if (!take_fds(sequence, fds, &count) && !enter(&self->use)) {
		Py_BEGIN_ALLOW_THREADS
		error = vu_request(&self->client, (uint16_t)command, payload.buf, (size_t)payload.len, fds, count, answer,
				   sizeof answer, &got, &error_number);
		Py_END_ALLOW_THREADS
		self->use.busy = false;
		result = error ? raise_error(error, self->client.error) :
				 Py_BuildValue("Iy#", error_number, (char *)answer, (Py_ssize_t)got);
	}
	if (payload.obj)
		PyBuffer_Release(&payload);
	return result;
}

static PyObject *result_or_error(Client *self, int error, const struct vu_result *r)
{
	if (error)
		return raise_error(error, self->client.error);
	return Py_BuildValue("{sKsKsKsKsK}", "ns", (unsigned long long)r->ns, "requests",
			     (unsigned long long)r->requests, "waits", (unsigned long long)r->waits, "p50_ns",
			     (unsigned long long)r->p50_ns, "p99_ns", (unsigned long long)r->p99_ns);
}

static PyObject *client_reads(Client *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "region", "offset", "width", "seconds", "requests", NULL };
	struct vu_reads job = { .width = 4 };
	unsigned long long offset, requests = 0;
	struct vu_result result;
	double seconds = 1.0;
	int error;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "IK|I$dK:reads", names, &job.region, &offset, &job.width, &seconds,
					 &requests))
		return NULL;
	job.offset = offset;
	job.most_requests = requests;
	if (check_width(job.width) || check_seconds(seconds, &job.most_ns) || enter(&self->use))
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	error = vu_run_reads(&self->client, &job, &result);
	Py_END_ALLOW_THREADS
	self->use.busy = false;
	return result_or_error(self, error, &result);
}

static PyObject *client_doorbells(Client *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "region",    "offset",	 "memory",  "source",	"target", "bytes",
				 "interrupt", "seconds", "requests", NULL };
	struct vu_doorbells job = { .width = 4 };
	unsigned long long offset, source, target, bytes, requests = 0;
	PyObject *answer = NULL;
	struct vu_result result;
	double seconds = 1.0;
	Py_buffer memory;
	int error;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "IKw*KKKi|$dK:doorbells", names, &job.region, &offset, &memory,
					 &source, &target, &bytes, &job.interrupt, &seconds, &requests))
		return NULL;
	if (bytes < 8 || bytes > (uint64_t)memory.len || source > (uint64_t)memory.len - bytes ||
	    target > (uint64_t)memory.len - bytes) {
		refuse("source and target must be inside the memory, and 8 bytes or longer");
	} else if (!check_seconds(seconds, &job.most_ns) && !enter(&self->use)) {
		job.offset = offset;
		job.source = (uint8_t *)memory.buf + source;
		job.target = (uint8_t *)memory.buf + target;
		job.bytes = bytes;
		job.most_requests = requests;
		Py_BEGIN_ALLOW_THREADS
		error = vu_run_doorbells(&self->client, &job, &result);
		Py_END_ALLOW_THREADS
		self->use.busy = false;
		answer = result_or_error(self, error, &result);
	}
	PyBuffer_Release(&memory);
	return answer;
}

static PyObject *client_lists(Client *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "region", "offset",	"memory",  "ring",     "entries", "group",
				 "bytes",  "interrupt", "seconds", "requests", NULL };
	struct vu_lists job = { 0 };
	unsigned long long offset, ring, requests = 0;
	PyObject *answer = NULL;
	struct vu_result result;
	double seconds = 1.0;
	Py_buffer memory;
	int error;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "IKw*KIIIi|$dK:lists", names, &job.region, &offset, &memory, &ring,
					 &job.entries, &job.group, &job.bytes, &job.interrupt, &seconds, &requests))
		return NULL;
	uint64_t bytes = (uint64_t)job.entries * sizeof(struct vu_list);
	if (ring % 8 || bytes > (uint64_t)memory.len || ring > (uint64_t)memory.len - bytes) {
		refuse("the ring must be inside the memory, at a multiple of 8");
	} else if (!job.group || job.group >= job.entries || job.entries % job.group) {
		refuse("group must divide entries, and be below it");
	} else if (!check_seconds(seconds, &job.most_ns) && !enter(&self->use)) {
		job.offset = offset;
		job.ring = (struct vu_list *)((uint8_t *)memory.buf + ring);
		job.most_requests = requests;
		Py_BEGIN_ALLOW_THREADS
		error = vu_run_lists(&self->client, &job, &result);
		Py_END_ALLOW_THREADS
		self->use.busy = false;
		answer = result_or_error(self, error, &result);
	}
	PyBuffer_Release(&memory);
	return answer;
}

static PyObject *run_pages(Client *self, PyObject *args, PyObject *kwargs,
			   int (*run)(struct vu_client *, const struct vu_pages *, struct vu_result *))
{
	static char *names[] = { "fd", "first", "count", "pages", "page", "step", NULL };
	unsigned long long first, pages, page = 4096, step = 1;
	struct vu_pages job = { 0 };
	struct vu_result result;
	int error;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iKIK|$KK:pages", names, &job.fd, &first, &job.count, &pages, &page,
					 &step))
		return NULL;
	if (!job.count || !pages || !page || page > UINT64_MAX / pages || first / page < job.count - 1 ||
	    step > UINT64_MAX / job.count) {
		refuse("count, pages, page and step must be above 0, and no address below 0 or above 2^64");
		return NULL;
	}
	job.first = first;
	job.pages = pages;
	job.page = page;
	job.step = step;
	if (enter(&self->use))
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	error = run(&self->client, &job, &result);
	Py_END_ALLOW_THREADS
	self->use.busy = false;
	return result_or_error(self, error, &result);
}

static PyObject *client_map(Client *self, PyObject *args, PyObject *kwargs)
{
	return run_pages(self, args, kwargs, vu_run_maps);
}

static PyObject *client_unmap(Client *self, PyObject *args, PyObject *kwargs)
{
	return run_pages(self, args, kwargs, vu_run_unmaps);
}

static PyObject *client_enter(PyObject *self, PyObject *Py_UNUSED(ignored))
{
	return Py_NewRef(self);
}

static PyObject *client_exit(Client *self, PyObject *args)
{
	(void)args;
	return client_close(self, NULL);
}

#define METHOD(function) ((PyCFunction)(void (*)(void))function)

static PyMethodDef methods[] = {
	{ "request", METHOD(client_request), METH_VARARGS | METH_KEYWORDS, NULL },
	{ "reads", METHOD(client_reads), METH_VARARGS | METH_KEYWORDS, NULL },
	{ "doorbells", METHOD(client_doorbells), METH_VARARGS | METH_KEYWORDS, NULL },
	{ "lists", METHOD(client_lists), METH_VARARGS | METH_KEYWORDS, NULL },
	{ "map", METHOD(client_map), METH_VARARGS | METH_KEYWORDS, NULL },
	{ "unmap", METHOD(client_unmap), METH_VARARGS | METH_KEYWORDS, NULL },
	{ "close", METHOD(client_close), METH_NOARGS, NULL },
	{ "__enter__", client_enter, METH_NOARGS, NULL },
	{ "__exit__", METHOD(client_exit), METH_VARARGS, NULL },
	{ NULL, NULL, 0, NULL },
};

static PyType_Slot type_slots[] = {
	{ Py_tp_new, client_new },
	{ Py_tp_dealloc, client_dealloc },
	{ Py_tp_methods, methods },
	{ Py_tp_doc, "A vfio-user client." },
	{ 0, NULL },
};

static PyType_Spec type_spec = {
	.name = "iodma._peer.VfioUser",
	.basicsize = sizeof(Client),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
	.slots = type_slots,
};

int vfio_user_register(PyObject *module)
{
	PyObject *type = PyType_FromModuleAndSpec(module, &type_spec, NULL);
	int error = type ? PyModule_AddType(module, (PyTypeObject *)type) : -1;

	Py_XDECREF(type);
	return error;
}

PyObject *vfio_serve(PyObject *module, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "listener", "copies", "source", "target", "doorbell", "bytes", NULL };
	unsigned long long source = 0, target = 8, doorbell = 16;
	struct vu_device device = { .bytes = 4096 };
	int listener, copies = 0, error;

	(void)module;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "i|$pKKKI:vfio_serve", names, &listener, &copies, &source, &target,
					 &doorbell, &device.bytes))
		return NULL;
	device.source = source;
	device.target = target;
	device.doorbell = doorbell;
	Py_BEGIN_ALLOW_THREADS
	error = vu_serve(listener, copies, &device);
	Py_END_ALLOW_THREADS
	errno = -error;
	return PyErr_SetFromErrno(PyExc_OSError);
}
