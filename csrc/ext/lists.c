/* SPDX-License-Identifier: Apache-2.0
 *
 * lists: scatter lists, and the columns of batches and completions.
 *
 * Invariants
 *  - A ScatterList never changes, so a transfer may be described from one any number of times.
 *  - The numbers in a batch's columns are the caller's (and so a guest's): they are checked when they are submitted,
 *    not when they are written. */
#include "ext.h"

#include <endian.h>
#include <string.h>

PyTypeObject *ScatterListType, *ColumnsType, *CompletedType;

static int segment_of(PyObject *pair, struct iod_segment *out)
{
	PyObject *address = NULL, *length = NULL;

	if (PyTuple_Check(pair) && PyTuple_Size(pair) == 2) {
		address = PyTuple_GetItem(pair, 0);
		length = PyTuple_GetItem(pair, 1);
	} else if (PyList_Check(pair) && PyList_Size(pair) == 2) {
		address = PyList_GetItem(pair, 0);
		length = PyList_GetItem(pair, 1);
	} else {
		PyErr_Format(ArgumentTypeErrorType, "%R is not a segment; (address, length) would be", pair);
		return -1;
	}
	Py_INCREF(length); /* the address's __index__ may change the list that holds it */
	int bad = ext_u64(address, "a segment's address", &out->address) ||
		  ext_u64(length, "a segment's length", &out->length);
	Py_DECREF(length);
	return bad ? -1 : 0;
}

int ext_list_get(PyObject *object, struct ext_list *out)
{
	out->heap = NULL;
	out->hold = NULL;
	if (PyTuple_Check(object) && PyTuple_Size(object) == 2 && PyLong_Check(PyTuple_GetItem(object, 0))) {
		out->list = out->few;
		out->count = 1;
		return segment_of(object, out->few);
	}
	if (Py_TYPE(object) == ScatterListType || PyObject_TypeCheck(object, ScatterListType)) {
		ScatterList *list = (ScatterList *)object;
		out->list = list->list;
		out->count = list->count;
		Py_INCREF(object);
		out->hold = object;
		return 0;
	}
	PyObject *sequence = PySequence_List(object);
	if (!sequence) {
		if (PyErr_ExceptionMatches(PyExc_TypeError)) {
			PyErr_Clear();
			PyErr_Format(ArgumentTypeErrorType,
				     "%R is not a scatter list; a ScatterList, a sequence of (address, length), or one "
				     "(address, length) would be",
				     object);
		}
		return -1;
	}
	Py_ssize_t n = PyList_Size(sequence);
	struct iod_segment *list = out->few;
	if (n > 1 << 24) {
		PyErr_Format(ArgumentErrorType, "a list of %zd segments; 2^24 is the most", n);
		Py_DECREF(sequence);
		return -1;
	}
	if (n > (Py_ssize_t)(sizeof out->few / sizeof *out->few)) {
		list = out->heap = PyMem_Malloc((size_t)n * sizeof *list);
		if (!list) {
			Py_DECREF(sequence);
			PyErr_NoMemory();
			return -1;
		}
	}
	for (Py_ssize_t i = 0; i < n; i++)
		if (segment_of(PyList_GetItem(sequence, i), &list[i])) {
			Py_DECREF(sequence);
			PyMem_Free(out->heap);
			return -1;
		}
	Py_DECREF(sequence);
	out->list = list;
	out->count = (uint32_t)n;
	return 0;
}

void ext_list_put(struct ext_list *list)
{
	if (list->heap)
		PyMem_Free(list->heap);
	Py_XDECREF(list->hold);
}

/* ---- ScatterList ---- */

/* `own` is the list's from now on; NULL: there was no memory for it. */
static PyObject *list_of(PyTypeObject *type, struct iod_segment *own, uint32_t count)
{
	ScatterList *self = own ? (ScatterList *)PyType_GenericAlloc(type, 0) : NULL;
	if (!self) {
		PyMem_Free(own);
		return PyErr_NoMemory();
	}
	self->list = own;
	self->count = count;
	self->bytes = iod_list_bytes(own, count);
	return (PyObject *)self;
}

static PyObject *list_make(PyTypeObject *type, const struct iod_segment *list, uint32_t count)
{
	struct iod_segment *own = PyMem_Malloc((count ? count : 1) * sizeof *own);
	if (own)
		memcpy(own, list, count * sizeof *own);
	return list_of(type, own, count);
}

static PyObject *list_new(PyTypeObject *type, PyObject *args, PyObject *kw)
{
	static char *names[] = {"segments", NULL};
	PyObject *segments;
	struct ext_list list;

	if (!PyArg_ParseTupleAndKeywords(args, kw, "O", names, &segments) || ext_list_get(segments, &list))
		return NULL;
	PyObject *self = list_make(type, list.list, list.count);
	ext_list_put(&list);
	return self;
}

/* ScatterList._from_arrays(addresses, lengths): two buffers of 64-bit numbers. */
static PyObject *list_from_arrays(PyObject *type, PyObject *args)
{
	Py_buffer a, l;
	if (!PyArg_ParseTuple(args, "y*y*", &a, &l))
		return NULL;
	PyObject *self = NULL;
	Py_ssize_t n = a.len / 8;
	if (a.len % 8 || l.len != a.len || n > 1 << 24) {
		PyErr_SetString(ArgumentErrorType, "addresses and lengths must be as many 64-bit numbers each");
	} else {
		struct iod_segment *list = PyMem_Malloc((size_t)(n ? n : 1) * sizeof *list);
		if (!list) {
			PyErr_NoMemory();
		} else {
			for (Py_ssize_t i = 0; i < n; i++)
				list[i] = (struct iod_segment){((uint64_t *)a.buf)[i], ((uint64_t *)l.buf)[i]};
			self = list_make((PyTypeObject *)type, list, (uint32_t)n);
			PyMem_Free(list);
		}
	}
	PyBuffer_Release(&a);
	PyBuffer_Release(&l);
	return self;
}

/* ScatterList._from_table(bytes): pairs of little-endian 64-bit numbers, as they lie in memory. */
static PyObject *list_from_table(PyObject *type, PyObject *table)
{
	char *bytes;
	Py_ssize_t size;
	if (PyBytes_AsStringAndSize(table, &bytes, &size))
		return NULL;
	if (size % 16 || size / 16 > 1 << 24) {
		PyErr_Format(ArgumentErrorType, "a table of %zd bytes; 16 an entry would be right", size);
		return NULL;
	}
	struct iod_segment *list = PyMem_Malloc((size_t)size + 1);
	if (list)
		memcpy(list, bytes, (size_t)size);
	for (Py_ssize_t i = 0; list && i < size / 16; i++)
		list[i] = (struct iod_segment){le64toh(list[i].address), le64toh(list[i].length)};
	return list_of((PyTypeObject *)type, list, (uint32_t)(size / 16));
}

static void list_dealloc(ScatterList *self)
{
	PyTypeObject *type = Py_TYPE(self);
	PyMem_Free(self->list);
	freefunc release = PyType_GetSlot(type, Py_tp_free);
	release(self);
	Py_DECREF(type);
}

static Py_ssize_t list_length(ScatterList *self)
{
	return (Py_ssize_t)self->count;
}

static PyObject *list_item(ScatterList *self, Py_ssize_t i)
{
	if (i < 0 || i >= (Py_ssize_t)self->count) {
		PyErr_SetString(PyExc_IndexError, "segment index out of range");
		return NULL;
	}
	return Py_BuildValue("KK", (unsigned long long)self->list[i].address, (unsigned long long)self->list[i].length);
}

static PyObject *list_bytes(ScatterList *self, void *unused)
{
	(void)unused;
	return PyLong_FromUnsignedLongLong(self->bytes);
}

/* slice(offset, length): the same bytes, fewer. */
static PyObject *list_slice(ScatterList *self, PyObject *args)
{
	PyObject *first, *second;
	uint64_t offset, length;
	if (!PyArg_ParseTuple(args, "OO", &first, &second) || ext_u64(first, "offset", &offset) ||
	    ext_u64(second, "length", &length))
		return NULL;
	if (offset > self->bytes || length > self->bytes - offset)
		return PyErr_Format(AddressRangeErrorType, "%llu bytes at %llu of a list of %llu bytes",
				    (unsigned long long)length, (unsigned long long)offset, (unsigned long long)self->bytes);
	struct iod_segment *out = PyMem_Malloc((self->count + 1) * sizeof *out);
	if (!out)
		return PyErr_NoMemory();
	uint32_t n = 0;
	for (uint32_t i = 0; i < self->count && length; i++) {
		struct iod_segment s = self->list[i];
		uint64_t skip = iod_min64(offset, s.length);
		offset -= skip;
		s.address += skip;
		s.length = iod_min64(s.length - skip, length);
		length -= s.length;
		if (s.length)
			out[n++] = s;
	}
	PyObject *result = list_make(Py_TYPE(self), out, n);
	PyMem_Free(out);
	return result;
}

static PyObject *list_repr(ScatterList *self)
{
	return PyUnicode_FromFormat("<ScatterList of %u segments, %llu bytes>", self->count,
				    (unsigned long long)self->bytes);
}

static PyMethodDef list_methods[] = {
	{"slice", EXT_METHOD(list_slice), METH_VARARGS, "slice(offset, length) -> ScatterList of just those bytes"},
	{"_from_arrays", EXT_METHOD(list_from_arrays), METH_VARARGS | METH_CLASS, NULL},
	{"_from_table", EXT_METHOD(list_from_table), METH_O | METH_CLASS, NULL},
	{0}};
static PyGetSetDef list_getset[] = {{"total_bytes", (getter)list_bytes, NULL, "The sum of the lengths; 2^64 - 1 when it is 2^63 or more.", NULL}, {0}};
static PyType_Slot list_slots[] = {{Py_tp_new, list_new},
				   {Py_tp_dealloc, list_dealloc},
				   {Py_tp_methods, list_methods},
				   {Py_tp_getset, list_getset},
				   {Py_sq_length, list_length},
				   {Py_sq_item, list_item},
				   {Py_tp_repr, list_repr},
				   {Py_tp_doc, "ScatterList(segments): bus addresses and lengths, which never change."},
				   {0}};
static PyType_Spec list_spec = {"iodma._core.ScatterList", sizeof(ScatterList), 0, Py_TPFLAGS_DEFAULT, list_slots};

/* ---- Columns ---- */

/* Columns(bytes, requests, segments): the block is a bytearray of its own, so that the views hold that and not us. */
static PyObject *columns_new(PyTypeObject *type, PyObject *args, PyObject *kw)
{
	Py_ssize_t size, requests, segments;
	(void)kw;
	if (!PyArg_ParseTuple(args, "nnn", &size, &requests, &segments))
		return NULL;
	PyObject *owner = PyByteArray_FromStringAndSize(NULL, size);
	Columns *self = owner ? (Columns *)PyType_GenericAlloc(type, 0) : NULL;
	if (!self) {
		Py_XDECREF(owner);
		return NULL;
	}
	self->owner = owner;
	self->block = (uint8_t *)PyByteArray_AsString(owner);
	memset(self->block, 0, (size_t)size);
	self->requests = requests;
	self->segments = segments;
	return (PyObject *)self;
}

static void columns_dealloc(Columns *self)
{
	PyTypeObject *type = Py_TYPE(self);
	Py_XDECREF(self->arrays);
	Py_XDECREF(self->owner);
	freefunc release = PyType_GetSlot(type, Py_tp_free);
	release(self);
	Py_DECREF(type);
}

static PyObject *columns_block(Columns *self, void *unused)
{
	(void)unused;
	Py_INCREF(self->owner);
	return self->owner;
}

static PyObject *columns_keep(Columns *self, PyObject *arrays)
{
	if (!PyTuple_Check(arrays) || PyTuple_Size(arrays) > EXT_ARRAYS)
		return PyErr_Format(ArgumentTypeErrorType, "%R is no tuple of at most %d arrays", arrays, EXT_ARRAYS);
	Py_INCREF(arrays);
	EXT_SET(self->arrays, arrays);
	self->kept = (int)PyTuple_Size(arrays);
	for (int i = 0; i < self->kept; i++)
		self->array[i] = PyTuple_GetItem(arrays, i);
	Py_RETURN_NONE;
}

static PyObject *columns_arrays(Columns *self, void *unused)
{
	(void)unused;
	PyObject *arrays = self->arrays ? self->arrays : Py_None;
	Py_INCREF(arrays);
	return arrays;
}

/* The first n of one of the kept arrays: itself when it is full. */
PyObject *ext_columns_column(Columns *self, void *which)
{
	intptr_t index = (intptr_t)which;
	PyObject *array = self->array[index];
	if (index >= self->kept) {
		PyErr_SetString(PyExc_AttributeError, "it has no such column");
		return NULL;
	}
	if (self->n == self->requests) {
		Py_INCREF(array);
		return array;
	}
	return PySequence_GetSlice(array, 0, self->n);
}

static PyObject *columns_all_ok(Columns *self, void *unused)
{
	(void)unused;
	return PyBool_FromLong(self->bad == 0);
}

static PyObject *columns_get_n(Columns *self, void *unused)
{
	(void)unused;
	return PyLong_FromSsize_t(self->n);
}

static int columns_set_n(Columns *self, PyObject *value, void *unused)
{
	uint64_t n;
	(void)unused;
	if (!value || ext_u64(value, "n", &n))
		return -1;
	if (n > (uint64_t)self->requests) {
		PyErr_Format(ArgumentErrorType, "n is %llu; this batch holds %zd requests", (unsigned long long)n,
			     self->requests);
		return -1;
	}
	self->n = (Py_ssize_t)n;
	return 0;
}

static Py_ssize_t columns_length(Columns *self)
{
	return self->n;
}

void ext_batch_cut(const Columns *columns, struct ext_batch *b)
{
	uint64_t *at = (uint64_t *)columns->block;
	Py_ssize_t n = columns->requests;
	b->id = at;
	b->position = at + n;
	b->ticket = at + 2 * n;
	b->address = at + 3 * n;
	b->length = b->address + columns->segments;
	b->first = (uint32_t *)(b->length + columns->segments);
	b->count = b->first + n;
	b->direction = (uint8_t *)(b->count + n);
}

void ext_completed_cut(const Columns *columns, struct ext_completed *c)
{
	Py_ssize_t n = columns->requests;
	c->ticket = (uint64_t *)columns->block;
	c->id = c->ticket + n;
	c->moved = c->id + n;
	c->fault_offset = c->moved + n;
	c->fault_address = c->fault_offset + n;
	c->error = (int32_t *)(c->fault_address + n);
	c->status = (uint8_t *)(c->error + n);
}

Columns *ext_columns_from(PyObject *pool, PyObject *factory, uint32_t limit)
{
	Py_ssize_t n = PyList_Size(pool);
	for (Py_ssize_t i = 0; i < n; i++) {
		PyObject *object = PyList_GetItem(pool, i);
		Columns *columns = (Columns *)object;
		bool kept = Py_REFCNT(object) != 1;
		for (int k = 0; !kept && k < columns->kept; k++)
			kept = Py_REFCNT(columns->array[k]) != 1;
		if (!kept) {
			Py_INCREF(object);
			return columns;
		}
	}
	PyObject *object = PyObject_CallFunction(factory, "I", limit);
	if (!object)
		return NULL;
	if (!PyObject_TypeCheck(object, ColumnsType) || !((Columns *)object)->arrays) {
		PyErr_SetString(ErrorType, "the factory must make columns whose arrays it keeps");
		Py_DECREF(object);
		return NULL;
	}
	if (n < 4 && PyList_Append(pool, object)) {
		Py_DECREF(object);
		return NULL;
	}
	return (Columns *)object;
}

static PyMethodDef columns_methods[] = {{"_keep", EXT_METHOD(columns_keep), METH_O, NULL}, {0}};
static PyGetSetDef columns_getset[] = {
	{"_block", (getter)columns_block, NULL, NULL, NULL},
	{"_arrays", (getter)columns_arrays, NULL, NULL, NULL},
	{"n", (getter)columns_get_n, (setter)columns_set_n, "How many rows are in use.", NULL}, {0}};
static PyType_Slot columns_slots[] = {{Py_tp_new, columns_new},
				      {Py_tp_dealloc, columns_dealloc},
				      {Py_tp_methods, columns_methods},
				      {Py_tp_getset, columns_getset},
				      {Py_sq_length, columns_length},
				      {0}};
static PyType_Spec columns_spec = {"iodma._core.Columns", sizeof(Columns), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
				   columns_slots};

#define COLUMN(name, index, doc) {name, (getter)ext_columns_column, NULL, doc, (void *)(intptr_t)(index)}
static PyGetSetDef completed_getset[] = {
	COLUMN("ticket", 0, "uint64: as `Port.submit` gave them."),
	COLUMN("id", 1, "uint64: as they stood in the batch."),
	COLUMN("moved", 2, "uint64: bytes, the contiguous prefix."),
	COLUMN("fault_offset", 3, "uint64: where in the transfer it faulted; 0 where it did not."),
	COLUMN("fault_address", 4, "uint64: the address that was refused; 0 where none was."),
	COLUMN("error", 5, "int32: the errno of an IO_ERROR, or 0."),
	COLUMN("status", 6, "uint8: a `Status`."),
	{"all_ok", (getter)columns_all_ok, NULL, "Whether every one of them is OK.", NULL},
	{0}};
static PyType_Slot completed_slots[] = {{Py_tp_getset, completed_getset}, {0}};
static PyType_Spec completed_spec = {"iodma._core.Completed", sizeof(Columns), 0,
				     Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, completed_slots};

int ext_lists_add(PyObject *module)
{
	ScatterListType = ext_type(module, &list_spec, NULL);
	ColumnsType = ext_type(module, &columns_spec, NULL);
	CompletedType = ColumnsType ? ext_type(module, &completed_spec, ColumnsType) : NULL;
	return ScatterListType && CompletedType ? 0 : -1;
}
