/* SPDX-License-Identifier: Apache-2.0
 *
 * known: lines of a text protocol that were done before, and what does them again.
 *
 * Who drives a device says the same few lines over and over: accesses of its registers.  Taking them apart costs more
 * than what they do, so that is done once, by who keeps them here.
 *
 * Invariants
 *  - A line is done only while whoever owns the machine says that it rests; the answer of one that has begun something
 *    is given back, for later.
 *  - It holds at most `most_lines` lines of `most_bytes` bytes, whatever a client says.
 *  - What a call raises is answered by `failed`, or let out. */
#include "ext.h"

#include <stdio.h>
#include <string.h>

typedef struct {
	PyObject_HEAD
	PyObject *busy, *failed; /* callables */
	PyObject *lines;	 /* dict: bytes -> (call, arguments, reads) */
	PyObject *ok;
	Py_ssize_t most_lines, most_bytes;
} KnownLines;

/* KnownLines(busy, failed, most_lines, most_bytes) */
static PyObject *known_new(PyTypeObject *type, PyObject *args, PyObject *kw)
{
	PyObject *busy, *failed;
	Py_ssize_t lines, bytes;
	(void)kw;
	if (!PyArg_ParseTuple(args, "OOnn", &busy, &failed, &lines, &bytes))
		return NULL;
	if (lines < 1 || bytes < 1)
		return PyErr_Format(ArgumentErrorType, "%zd lines of %zd bytes; each must be at least 1", lines, bytes);
	KnownLines *self = (KnownLines *)PyType_GenericAlloc(type, 0);
	if (!self)
		return NULL;
	Py_INCREF(busy);
	Py_INCREF(failed);
	self->busy = busy;
	self->failed = failed;
	self->most_lines = lines;
	self->most_bytes = bytes;
	self->lines = PyDict_New();
	self->ok = PyBytes_FromString("OK\n");
	if (!self->lines || !self->ok) {
		Py_DECREF(self);
		return NULL;
	}
	return (PyObject *)self;
}

static int known_traverse(KnownLines *self, visitproc visit, void *arg)
{
	Py_VISIT(Py_TYPE(self));
	Py_VISIT(self->busy);
	Py_VISIT(self->failed);
	Py_VISIT(self->lines);
	return 0;
}

static int known_clear(KnownLines *self)
{
	Py_CLEAR(self->busy);
	Py_CLEAR(self->failed);
	Py_CLEAR(self->lines);
	return 0;
}

static void known_dealloc(KnownLines *self)
{
	PyTypeObject *type = Py_TYPE(self);
	PyObject_GC_UnTrack(self);
	known_clear(self);
	Py_CLEAR(self->ok);
	PyObject_GC_Del(self);
	Py_DECREF(type);
}

/* keep(line, reads, call, *arguments): a line that is too long is not kept. */
static PyObject *known_keep(KnownLines *self, PyObject *args)
{
	Py_ssize_t n = PyTuple_Size(args);
	PyObject *line = n >= 3 ? PyTuple_GetItem(args, 0) : NULL;
	if (!line || !PyBytes_Check(line) || !PyCallable_Check(PyTuple_GetItem(args, 2)))
		return PyErr_Format(ArgumentTypeErrorType, "%R; (bytes, reads, callable, ...) would be right", args);
	int reads = PyObject_IsTrue(PyTuple_GetItem(args, 1));
	if (reads < 0)
		return NULL;
	if (PyBytes_Size(line) > self->most_bytes || !self->lines)
		Py_RETURN_NONE;
	if (PyDict_Size(self->lines) >= self->most_lines)
		PyDict_Clear(self->lines);
	PyObject *arguments = PyTuple_GetSlice(args, 3, n);
	PyObject *entry = arguments ? PyTuple_Pack(3, PyTuple_GetItem(args, 2), arguments, reads ? Py_True : Py_False) : NULL;
	int bad = !entry || PyDict_SetItem(self->lines, line, entry);
	Py_XDECREF(arguments);
	Py_XDECREF(entry);
	if (bad)
		return NULL;
	Py_RETURN_NONE;
}

/* The answer to what a call has raised; NULL: it is let out. */
static PyObject *failure(KnownLines *self)
{
	PyObject *type, *error, *trace;
	PyErr_Fetch(&type, &error, &trace);
	PyErr_NormalizeException(&type, &error, &trace);
	PyObject *answer = PyObject_CallFunctionObjArgs(self->failed, error, NULL);
	Py_XDECREF(type);
	Py_XDECREF(error);
	Py_XDECREF(trace);
	return answer;
}

static PyObject *answer_of(KnownLines *self, PyObject *entry)
{
	PyObject *result = PyObject_Call(PyTuple_GetItem(entry, 0), PyTuple_GetItem(entry, 1), NULL);
	if (!result)
		return failure(self);
	if (PyTuple_GetItem(entry, 2) != Py_True) {
		Py_DECREF(result);
		Py_INCREF(self->ok);
		return self->ok;
	}
	unsigned long long value = PyLong_AsUnsignedLongLong(result);
	Py_DECREF(result);
	if (value == (unsigned long long)-1 && PyErr_Occurred())
		return NULL;
	char text[32];
	int length = snprintf(text, sizeof text, "OK 0x%016llx\n", value);
	return PyBytes_FromStringAndSize(text, length);
}

/* Whether something goes on: 0, 1, or -1: it raised. */
static int is_busy(KnownLines *self)
{
	PyObject *busy = PyObject_CallNoArgs(self->busy);
	int is = busy ? PyObject_IsTrue(busy) : -1;
	Py_XDECREF(busy);
	return is;
}

/* run(data, at, most, answers) -> (at, lines, answer | None) */
static PyObject *known_run(KnownLines *self, PyObject *const *args, Py_ssize_t n)
{
	char *data;
	Py_ssize_t size, count = 0;

	if (n != 4 || !PyList_Check(args[3]))
		return PyErr_Format(ArgumentTypeErrorType, "run takes data, at, most and a list");
	if (PyBytes_AsStringAndSize(args[0], &data, &size))
		return NULL;
	Py_ssize_t at = PyLong_AsSsize_t(args[1]), most = PyLong_AsSsize_t(args[2]);
	if (PyErr_Occurred())
		return NULL;
	if (at < 0 || at > size)
		return PyErr_Format(ArgumentErrorType, "at is %zd of %zd bytes", at, size);
	PyObject *held = NULL;
	while (count < most && at < size && self->lines && !held) {
		Py_ssize_t left = size - at;
		const char *end = memchr(data + at, '\n', (size_t)(left < self->most_bytes + 1 ? left : self->most_bytes + 1));
		if (!end)
			break;
		PyObject *line = PyBytes_FromStringAndSize(data + at, end - (data + at));
		if (!line)
			return NULL;
		PyObject *entry = PyDict_GetItemWithError(self->lines, line);
		Py_DECREF(line);
		if (!entry) {
			if (PyErr_Occurred())
				return NULL;
			break;
		}
		Py_INCREF(entry); /* what it calls may forget it */
		PyObject *answer = answer_of(self, entry);
		Py_DECREF(entry);
		int busy = answer ? is_busy(self) : -1;
		if (busy < 0 || (!busy && PyList_Append(args[3], answer))) {
			Py_XDECREF(answer);
			return NULL;
		}
		if (busy)
			held = answer;
		else
			Py_DECREF(answer);
		at = end + 1 - data;
		count++;
	}
	PyObject *result = Py_BuildValue("nnO", at, count, held ? held : Py_None);
	Py_XDECREF(held);
	return result;
}

/* forget(): for good; a run that is under way ends with the line that it is at. */
static PyObject *known_forget(KnownLines *self, PyObject *unused)
{
	(void)unused;
	Py_CLEAR(self->lines);
	Py_RETURN_NONE;
}

static Py_ssize_t known_length(KnownLines *self)
{
	return self->lines ? PyDict_Size(self->lines) : 0;
}

static PyMethodDef known_methods[] = {
	{"keep", EXT_METHOD(known_keep), METH_VARARGS, "keep(line, reads, call, *arguments): what does the line again."},
	{"run", EXT_METHOD(known_run), METH_FASTCALL, "run(data, at, most, answers) -> (at, lines, answer | None)"},
	{"forget", EXT_METHOD(known_forget), METH_NOARGS, "Knows nothing from now on."},
	{0}};
static PyType_Slot known_slots[] = {{Py_tp_new, known_new},
				    {Py_tp_dealloc, known_dealloc},
				    {Py_tp_traverse, known_traverse},
				    {Py_tp_clear, known_clear},
				    {Py_tp_free, PyObject_GC_Del},
				    {Py_tp_methods, known_methods},
				    {Py_sq_length, known_length},
				    {Py_tp_doc, "Lines of a text protocol that were done before."},
				    {0}};
static PyType_Spec known_spec = {"iodma._core.KnownLines", sizeof(KnownLines), 0,
				 Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, known_slots};

int ext_known_add(PyObject *module)
{
	PyObject *type = (PyObject *)ext_type(module, &known_spec, NULL);
	Py_XDECREF(type);
	return type ? 0 : -1;
}
