/* SPDX-License-Identifier: Apache-2.0
 *
 * peer: the extension module iodma._peer: the loops of loops.h as Python functions, and the types of vhost_ext.h and
 * vfio_ext.h, for `iodma bench` and the tests alone.
 *
 * Invariants
 *  - Nothing here uses the core, but for lookup_loop, whose peer is the core's own lookup.
 *  - Every argument is checked before the interpreter lock is given up; the buffers stay exported until it is back.
 *  - A loop returns (elapsed nanoseconds, requests done, bytes moved) or raises; it never returns a partial truth.
 */
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030B0000
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <limits.h>

#include "loops.h"
#include "packets.h"
#include "vfio_ext.h"
#include "vhost_ext.h"

#define MOST_SEGMENTS 1024 /* the kernel's UIO_MAXIOV */
#define MOST_DEPTH 32768
#define MOST_SECONDS 60.0

static PyObject *result_or_error(int error, const struct peer_result *r)
{
	if (error == -ENODATA) {
		PyErr_SetString(PyExc_OSError, "a read came back short: the file is smaller than file_bytes");
		return NULL;
	}
	if (error) {
		errno = -error;
		return PyErr_SetFromErrno(PyExc_OSError);
	}
	return Py_BuildValue("KKK", (unsigned long long)r->ns, (unsigned long long)r->requests,
			     (unsigned long long)r->bytes);
}

static int check_seconds(double seconds, uint64_t *ns)
{
	if (!(seconds > 0.0) || seconds > MOST_SECONDS) {
		PyErr_Format(PyExc_ValueError, "seconds must be above 0 and at most %d", (int)MOST_SECONDS);
		return -1;
	}
	*ns = (uint64_t)(seconds * 1e9);
	return 0;
}

/* The lists as segments, each inside the memory. */
static int check_lists(struct peer_reads *job, const Py_buffer *lists, unsigned per_list)
{
	size_t count = (size_t)lists->len / sizeof(struct peer_segment);
	const struct peer_segment *s = lists->buf;

	if (per_list < 1 || per_list > MOST_SEGMENTS) {
		PyErr_Format(PyExc_ValueError, "segments is %u, must be 1 to %d", per_list, MOST_SEGMENTS);
		return -1;
	}
	if (!count || lists->len % (Py_ssize_t)sizeof *s || count % per_list || count / per_list > MOST_DEPTH) {
		PyErr_Format(PyExc_ValueError,
			     "lists holds %zd bytes, must hold depth x %u pairs of 64-bit (offset, length)", lists->len,
			     per_list);
		return -1;
	}
	for (size_t i = 0; i < count; i++) {
		if (!s[i].length || s[i].length > job->memory_bytes || s[i].length > INT_MAX ||
		    s[i].offset > job->memory_bytes - s[i].length) {
			PyErr_Format(PyExc_ValueError, "segment %zu (offset %llu, length %llu) is not inside %zu bytes",
				     i, (unsigned long long)s[i].offset, (unsigned long long)s[i].length,
				     job->memory_bytes);
			return -1;
		}
	}
	job->segments = s;
	job->per_list = per_list;
	job->lists = (uint32_t)(count / per_list);
	return 0;
}

static int check_file(const struct peer_reads *job)
{
	if (!job->unit || !job->file_bytes || job->file_bytes > INT64_MAX || job->unit > job->file_bytes) {
		PyErr_Format(PyExc_ValueError, "unit %llu and file_bytes %llu: must be positive, unit no larger",
			     (unsigned long long)job->unit, (unsigned long long)job->file_bytes);
		return -1;
	}
	return 0;
}

static PyObject *uring_read_loop(PyObject *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "fd",	 "memory", "lists",	 "segments", "file_bytes",   "unit",
				 "random", "batch",	 "complete_min", "fixed_file", "fixed_buffer", "seconds",
				 "requests", "seed",	 NULL };
	struct peer_reads job = { .unit = 4096, .batch = 16, .complete_min = 1, .seed = 1 };
	struct peer_result result = { 0 };
	Py_buffer memory, lists;
	unsigned segments = 1;
	unsigned long long file_bytes = 0, unit = 4096, requests = 0, seed = 1;
	int random = 1, fixed_file = 1, fixed_buffer = 1, error = 0;
	double seconds = 0.4;

	(void)self;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iw*y*|$IKKpIIppdKK:uring_read_loop", names, &job.fd, &memory,
					 &lists, &segments, &file_bytes, &unit, &random, &job.batch, &job.complete_min,
					 &fixed_file, &fixed_buffer, &seconds, &requests, &seed))
		return NULL;
	job.memory = memory.buf;
	job.memory_bytes = (size_t)memory.len;
	job.file_bytes = file_bytes;
	job.unit = unit;
	job.random = random;
	job.seed = seed;
	job.fixed_file = fixed_file;
	job.fixed_buffer = fixed_buffer;
	job.most_requests = requests;
	if (check_lists(&job, &lists, segments) || check_file(&job) || check_seconds(seconds, &job.most_ns)) {
		error = 1;
	} else if (!job.batch || job.batch > job.lists || job.complete_min > job.lists) {
		PyErr_Format(PyExc_ValueError, "batch %u and complete_min %u must not be above the depth of %u",
			     job.batch, job.complete_min, job.lists);
		error = 1;
	} else {
		Py_BEGIN_ALLOW_THREADS
		error = peer_uring_reads(&job, &result);
		Py_END_ALLOW_THREADS
	}
	PyBuffer_Release(&memory);
	PyBuffer_Release(&lists);
	return error > 0 ? NULL : result_or_error(error, &result);
}

static PyObject *memcpy_loop(PyObject *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "target", "source", "bytes", "seconds", "copies", NULL };
	struct peer_result result = { 0 };
	Py_buffer target, source;
	Py_ssize_t bytes, shorter;
	unsigned long long copies = 0;
	uint64_t ns;
	double seconds = 0.4;
	int error = 0;

	(void)self;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "w*y*n|$dK:memcpy_loop", names, &target, &source, &bytes,
					 &seconds, &copies))
		return NULL;
	shorter = target.len < source.len ? target.len : source.len;
	if (bytes < 1 || bytes > shorter) {
		PyErr_Format(PyExc_ValueError, "bytes is %zd, must be 1 to %zd, the shorter of the buffers", bytes,
			     shorter);
		error = 1;
	} else if (check_seconds(seconds, &ns)) {
		error = 1;
	} else {
		Py_BEGIN_ALLOW_THREADS
		peer_copies(target.buf, source.buf, (size_t)bytes, (size_t)(shorter / bytes), copies, ns, &result);
		Py_END_ALLOW_THREADS
	}
	PyBuffer_Release(&target);
	PyBuffer_Release(&source);
	return error ? NULL : result_or_error(0, &result);
}

static PyObject *list_copy_loop(PyObject *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "memory", "sources", "targets", "segments", "seconds", NULL };
	struct peer_result result = { 0 };
	struct peer_reads from = { 0 }, to = { 0 };
	Py_buffer memory, sources, targets;
	unsigned segments = 1;
	uint64_t ns;
	double seconds = 0.4;
	bool right;

	(void)self;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "w*y*y*|$Id:list_copy_loop", names, &memory, &sources, &targets,
					 &segments, &seconds))
		return NULL;
	from.memory_bytes = to.memory_bytes = (size_t)memory.len;
	right = !check_lists(&from, &sources, segments) && !check_lists(&to, &targets, segments) &&
		!check_seconds(seconds, &ns);
	if (right) {
		right = from.lists == to.lists;
		for (size_t i = 0; right && i < (size_t)from.lists * segments; i++)
			right = from.segments[i].length == to.segments[i].length;
		if (!right)
			PyErr_SetString(PyExc_ValueError, "sources and targets are not of the same shape");
	}
	if (right) {
		Py_BEGIN_ALLOW_THREADS
		peer_list_copies(memory.buf, from.segments, to.segments, segments, from.lists, ns, &result);
		Py_END_ALLOW_THREADS
	}
	PyBuffer_Release(&memory);
	PyBuffer_Release(&sources);
	PyBuffer_Release(&targets);
	return right ? result_or_error(0, &result) : NULL;
}

static PyObject *packet_send_loop(PyObject *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "fd", "memory", "lists", "segments", "swap", "seconds", NULL };
	struct peer_result result = { 0 };
	struct peer_reads from = { 0 };
	int swap = 0;
	Py_buffer memory, lists;
	unsigned segments = 1;
	uint64_t ns;
	double seconds = 0.4;
	int fd, error = 0;
	bool right;

	(void)self;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iw*y*|$Ipd:packet_send_loop", names, &fd, &memory, &lists, &segments,
					 &swap, &seconds))
		return NULL;
	from.memory_bytes = (size_t)memory.len;
	right = !check_lists(&from, &lists, segments) && !check_seconds(seconds, &ns);
	if (right && swap && segments != 1) {
		PyErr_SetString(PyExc_ValueError, "with swap a list is one segment");
		right = false;
	}
	if (right) {
		Py_BEGIN_ALLOW_THREADS
		error = swap ? peer_packet_swap_sends(fd, memory.buf, from.segments, from.lists, ns, &result)
			     : peer_packet_sends(fd, memory.buf, from.segments, segments, from.lists, ns, &result);
		Py_END_ALLOW_THREADS
	}
	PyBuffer_Release(&memory);
	PyBuffer_Release(&lists);
	return right ? result_or_error(error, &result) : NULL;
}

static PyObject *packet_drain(PyObject *self, PyObject *args)
{
	struct peer_result result = { 0 };
	Py_buffer counter = { 0 };
	int fd, error = 0;
	bool right = true;

	(void)self;
	if (!PyArg_ParseTuple(args, "i|w*:packet_drain", &fd, &counter))
		return NULL;
	if (counter.buf && (counter.len != sizeof(uint64_t) || (uintptr_t)counter.buf % sizeof(uint64_t))) {
		PyErr_SetString(PyExc_ValueError, "counter is not one aligned 64-bit integer");
		right = false;
	}
	if (right) {
		Py_BEGIN_ALLOW_THREADS
		error = peer_packet_drain(fd, counter.buf, &result);
		Py_END_ALLOW_THREADS
	}
	if (counter.obj)
		PyBuffer_Release(&counter);
	return right ? result_or_error(error, &result) : NULL;
}

static PyObject *swap_loop(PyObject *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "target", "source", "bytes", "seconds", NULL };
	struct peer_result result = { 0 };
	Py_buffer target, source;
	Py_ssize_t bytes, shorter;
	uint64_t ns;
	double seconds = 0.4;
	bool right;

	(void)self;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "w*y*n|$d:swap_loop", names, &target, &source, &bytes, &seconds))
		return NULL;
	shorter = target.len < source.len ? target.len : source.len;
	right = bytes >= 1 && bytes <= shorter;
	if (!right)
		PyErr_Format(PyExc_ValueError, "bytes is %zd, must be 1 to %zd, the shorter of the buffers", bytes, shorter);
	right = right && !check_seconds(seconds, &ns);
	if (right) {
		Py_BEGIN_ALLOW_THREADS
		peer_swap_copies(target.buf, source.buf, (size_t)bytes, (size_t)(shorter / bytes), ns, &result);
		Py_END_ALLOW_THREADS
	}
	PyBuffer_Release(&target);
	PyBuffer_Release(&source);
	return right ? result_or_error(0, &result) : NULL;
}

static PyObject *table_walk_loop(PyObject *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "memory", "lists", "segments", "table", "first", "length", "write", "seconds", NULL };
	struct peer_walks job = { .per_list = 1 };
	struct peer_result result = { 0 };
	Py_buffer memory, lists;
	unsigned long long table = 0, first = 0, length = 0;
	int write = 1, error = 1;
	double seconds = 0.4;

	(void)self;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "w*y*|$IKKKpd:table_walk_loop", names, &memory, &lists,
					 &job.per_list, &table, &first, &length, &write, &seconds))
		return NULL;
	size_t count = (size_t)lists.len / sizeof(struct peer_segment), bytes = (size_t)memory.len;
	job.memory = memory.buf;
	job.memory_bytes = bytes;
	job.table = table;
	job.first = first;
	job.length = length;
	job.write = write;
	job.segments = lists.buf;
	if (job.per_list < 1 || job.per_list > MOST_SEGMENTS || !count || lists.len % (Py_ssize_t)sizeof *job.segments ||
	    count % job.per_list || count / job.per_list > MOST_DEPTH) {
		PyErr_Format(PyExc_ValueError, "lists holds %zd bytes, must hold lists x %u pairs of 64-bit (address, length)",
			     lists.len, job.per_list);
	} else if (!length || length % 4096 || table > bytes || length / 4096 > (bytes - table) / 4) {
		PyErr_Format(PyExc_ValueError, "a table at %llu for %llu bytes is not inside %zu bytes", table, length, bytes);
	} else if (!check_seconds(seconds, &job.most_ns)) {
		job.lists = (uint32_t)(count / job.per_list);
		Py_BEGIN_ALLOW_THREADS
		error = peer_table_walks(&job, &result);
		Py_END_ALLOW_THREADS
	}
	PyBuffer_Release(&memory);
	PyBuffer_Release(&lists);
	return error > 0 ? NULL : result_or_error(error, &result);
}

static PyObject *lookup_loop(PyObject *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "map", "addresses", "rounds", NULL };
	PyObject *map, *addresses;
	unsigned long long rounds = 1;

	(void)self;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|$K:lookup_loop", names, &map, &addresses, &rounds))
		return NULL;
	PyErr_SetString(PyExc_NotImplementedError, "lookup_loop is not built into this module yet");
	return NULL;
}

static PyMethodDef methods[] = {
	{ "uring_read_loop", (PyCFunction)(void (*)(void))uring_read_loop, METH_VARARGS | METH_KEYWORDS, NULL },
	{ "memcpy_loop", (PyCFunction)(void (*)(void))memcpy_loop, METH_VARARGS | METH_KEYWORDS, NULL },
	{ "list_copy_loop", (PyCFunction)(void (*)(void))list_copy_loop, METH_VARARGS | METH_KEYWORDS, NULL },
	{ "packet_send_loop", (PyCFunction)(void (*)(void))packet_send_loop, METH_VARARGS | METH_KEYWORDS, NULL },
	{ "packet_drain", packet_drain, METH_VARARGS, NULL },
	{ "swap_loop", (PyCFunction)(void (*)(void))swap_loop, METH_VARARGS | METH_KEYWORDS, NULL },
	{ "table_walk_loop", (PyCFunction)(void (*)(void))table_walk_loop, METH_VARARGS | METH_KEYWORDS, NULL },
	{ "vfio_serve", (PyCFunction)(void (*)(void))vfio_serve, METH_VARARGS | METH_KEYWORDS, NULL },
	{ "lookup_loop", (PyCFunction)(void (*)(void))lookup_loop, METH_VARARGS | METH_KEYWORDS, NULL },
	{ NULL, NULL, 0, NULL },
};

static PyModuleDef_Slot slots[] = {
	{ Py_mod_exec, vhost_blk_register },
	{ Py_mod_exec, vfio_user_register },
	{ 0, NULL },
};

static struct PyModuleDef module = {
	PyModuleDef_HEAD_INIT,
	.m_name = "iodma._peer",
	.m_doc = "C loops that `iodma bench` measures against.  Not a part of the library.",
	.m_size = 0,
	.m_methods = methods,
	.m_slots = slots,
};

PyMODINIT_FUNC PyInit__peer(void)
{
	return PyModuleDef_Init(&module);
}
