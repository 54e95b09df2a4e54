/* SPDX-License-Identifier: Apache-2.0
 *
 * region: host memory and device windows, as Python sees them.
 *
 * Invariants
 *  - A mapping goes when its region's last reference goes: the handle, the maps, the leases and the views each hold one.
 *  - Closing a handle stops new transfers at once and lets those in flight end.
 *  - Every handle is on the list of all of them, from its making to its end. */
#include "../bytes.h"
#include "ext.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

PyTypeObject *RegionType;
static Region *all; /* the newest first */

/* The last reference may go in a move that runs without the interpreter's lock. */
static void log_free(struct iod_dirty *log)
{
	if (log->owner) {
		PyGILState_STATE state = PyGILState_Ensure();
		PyBuffer_Release(log->owner);
		PyGILState_Release(state);
		free(log->owner);
	} else {
		free(log->byte);
	}
	free(log);
}

/* Another log, or none, with no moment in between.  What a move may still look at is freed when no lease is left. */
static void log_set(struct iod_region *region, struct iod_dirty *new)
{
	struct iod_dirty *log = region->dirty;
	__atomic_store_n(&region->dirty, new, __ATOMIC_RELEASE);
	if (log) {
		log->next = region->stale;
		region->stale = log;
	}
	while (region->leases == 0 && (log = region->stale)) {
		region->stale = log->next;
		log_free(log);
	}
}

static void region_free(struct iod_region *region)
{
	if (!iod_region_is_host(region))
		Py_XDECREF((PyObject *)region->owner);
	else if (region->host)
		munmap(region->host, region->size);
	log_set(region, NULL);
	free(region);
}

/* Region(kind, fd, offset, size, target, most) */
static PyObject *region_new(PyTypeObject *type, PyObject *args, PyObject *kw)
{
	static char *names[] = {"kind", "fd", "offset", "size", "target", "most", NULL};
	int kind = 0, fd = -1;
	unsigned most = 0;
	PyObject *offset_object = NULL, *size_object = NULL, *target = NULL;
	uint64_t offset = 0, size = 0;

	if (!PyArg_ParseTupleAndKeywords(args, kw, "iiOO|OI", names, &kind, &fd, &offset_object, &size_object, &target,
					 &most))
		return NULL;
	if (ext_u64(offset_object, "offset", &offset) || ext_u64(size_object, "size", &size))
		return NULL;
	if (size == 0 || size > INT64_MAX)
		return PyErr_Format(ArgumentErrorType, "size is %llu bytes; it must be 1 to 2^63 - 1",
				    (unsigned long long)size);
	uint8_t *host = NULL;
	if (kind <= IOD_ROM) {
		if (offset % 4096)
			return PyErr_Format(ArgumentErrorType,
					    "offset is %p; a mapping's offset must be a multiple of 4096",
					    (void *)(uintptr_t)offset);
		int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
		int protection = kind == IOD_ROM && fd >= 0 ? PROT_READ : PROT_READ | PROT_WRITE;
		void *at = mmap(NULL, size, protection, flags | MAP_NORESERVE, fd, (off_t)offset);
		if (at == MAP_FAILED)
			return PyErr_SetFromErrno(PyExc_OSError);
		madvise(at, size, MADV_DONTFORK);
		host = at;
	} else if (!target) {
		PyErr_SetString(ArgumentErrorType, "a device region needs a target");
		return NULL;
	}
	struct iod_region *region = calloc(1, sizeof *region);
	Region *self = region ? (Region *)PyType_GenericAlloc(type, 0) : NULL;
	if (!self) {
		if (host)
			munmap(host, size);
		free(region);
		return PyErr_NoMemory();
	}
	*region = (struct iod_region){.kind = (uint8_t)kind, .buffer_index = -1, .references = 1, .host = host,
				      .size = size, .most = most, .free = region_free};
	if (kind > IOD_ROM) {
		Py_INCREF(target);
		region->owner = target;
	}
	self->region = region;
	self->later = all;
	if (all)
		all->earlier = self;
	all = self;
	return (PyObject *)self;
}

/* held_regions() -> those with leases or views */
PyObject *ext_held_regions(PyObject *module, PyObject *unused)
{
	(void)module;
	(void)unused;
	PyObject *list = PyList_New(0);
	for (Region *each = all; list && each; each = each->later)
		if ((each->region->leases || each->region->views) && PyList_Append(list, (PyObject *)each))
			Py_CLEAR(list);
	return list;
}

/* What a device window leads to often leads back: a device, its port, the memory that the window is in. */
static int region_traverse(Region *self, visitproc visit, void *arg)
{
	Py_VISIT(Py_TYPE(self));
	if (self->region && !iod_region_is_host(self->region))
		Py_VISIT((PyObject *)self->region->owner);
	return 0;
}

static int region_clear(Region *self)
{
	if (self->region && !iod_region_is_host(self->region) && self->region->owner != Py_None) {
		PyObject *target = self->region->owner;
		Py_INCREF(Py_None);
		self->region->owner = Py_None;
		Py_DECREF(target);
	}
	return 0;
}

static void region_dealloc(Region *self)
{
	PyTypeObject *type = Py_TYPE(self);
	PyObject_GC_UnTrack(self);
	if (self->region) {
		*(self->earlier ? &self->earlier->later : &all) = self->later;
		if (self->later)
			self->later->earlier = self->earlier;
		iod_region_close(self->region);
		iod_region_put(self->region);
	}
	freefunc release = PyType_GetSlot(type, Py_tp_free);
	release(self);
	Py_DECREF(type);
}

static PyObject *region_close(Region *self, PyObject *unused)
{
	(void)unused;
	iod_region_close(self->region);
	Py_RETURN_NONE;
}

/* Whether these bytes of it can be touched by the program: raises. */
static bool has_bytes(const Region *self, Py_ssize_t offset, Py_ssize_t length)
{
	const struct iod_region *region = self->region;
	if (region->closed) {
		PyErr_SetString(ClosedErrorType, "the region is closed");
		return false;
	}
	iod_guard_install(); /* no engine need have been made yet */
	if (offset >= 0 && length >= 0 && (uint64_t)offset <= region->size &&
	    (uint64_t)length <= region->size - (uint64_t)offset && region->host)
		return true;
	PyErr_Format(AddressRangeErrorType, "%zd bytes at offset %zd do not fit into %llu bytes", length, offset,
		     (unsigned long long)region->size);
	return false;
}

/* _poke(offset, data): the program's own write, before or beside a guest's (ROM included).  False: the memory file is
 * shorter by now, and not all of it was written. */
static PyObject *region_poke(Region *self, PyObject *args)
{
	Py_ssize_t offset;
	Py_buffer data;
	if (!PyArg_ParseTuple(args, "ny*", &offset, &data))
		return NULL;
	PyObject *result = NULL;
	if (has_bytes(self, offset, data.len))
		result = PyBool_FromLong(!iod_copy(self->region->host + offset, data.buf, (size_t)data.len, NULL));
	PyBuffer_Release(&data);
	return result;
}

/* _peek(offset, length) -> bytes, or None: the memory file is shorter by now. */
static PyObject *region_peek(Region *self, PyObject *args)
{
	Py_ssize_t offset, length;
	if (!PyArg_ParseTuple(args, "nn", &offset, &length) || !has_bytes(self, offset, length))
		return NULL;
	PyObject *result = PyBytes_FromStringAndSize(NULL, length);
	if (!result || !iod_copy(PyBytes_AsString(result), self->region->host + offset, (size_t)length, NULL))
		return result;
	Py_DECREF(result);
	Py_RETURN_NONE;
}

static int region_getbuffer(Region *self, Py_buffer *view, int flags)
{
	struct iod_region *region = self->region;
	if (region->closed || !region->host) {
		PyErr_SetString(region->closed ? ClosedErrorType : UnsupportedErrorType,
				region->closed ? "the region is closed" : "there is no host memory to view");
		return -1;
	}
	if (PyBuffer_FillInfo(view, (PyObject *)self, region->host, (Py_ssize_t)region->size, region->kind == IOD_ROM,
			      flags))
		return -1;
	region->views++;
	iod_region_get(region);
	view->internal = region;
	return 0;
}

static void region_releasebuffer(Region *self, Py_buffer *view)
{
	(void)self;
	struct iod_region *region = view->internal;
	region->views--;
	iod_region_put(region);
}

/* _start_dirty(page, buffer | None, first) */
static PyObject *region_start_dirty(Region *self, PyObject *args)
{
	uint64_t page, first;
	struct iod_region *region = self->region;
	PyObject *page_object, *buffer, *first_object;
	if (!PyArg_ParseTuple(args, "OOO", &page_object, &buffer, &first_object))
		return NULL;
	if (ext_u64(page_object, "page", &page) || ext_u64(first_object, "first", &first))
		return NULL;
	if (page < 512 || (page & (page - 1)))
		return PyErr_Format(ArgumentErrorType, "page is %llu bytes; it must be a power of two from 512",
				    (unsigned long long)page);
	uint8_t shift = 0;
	while ((uint64_t)1 << shift < page)
		shift++;
	struct iod_dirty *log = calloc(1, sizeof *log);
	if (!log)
		return PyErr_NoMemory();
	*log = (struct iod_dirty){.bits = (region->size - 1) / page + 1, .shift = shift, .first = first};
	if (buffer == Py_None) {
		log->byte = calloc((log->bits + 63) / 64, 8);
	} else {
		iod_guard_install();
		Py_buffer *view = calloc(1, sizeof *view);
		if (!view || PyObject_GetBuffer(buffer, view, PyBUF_WRITABLE)) {
			free(view);
			free(log);
			return PyErr_Occurred() ? NULL : PyErr_NoMemory();
		}
		log->owner = view;
		log->byte = view->buf;
		uint64_t room = (uint64_t)view->len * 8;
		if (log->bits > room || first > room - log->bits) {
			PyErr_Format(AddressRangeErrorType,
				     "%llu pages from bit %llu on do not fit into a log of %llu bits",
				     (unsigned long long)log->bits, (unsigned long long)first, (unsigned long long)room);
			log_free(log);
			return NULL;
		}
	}
	if (!log->byte) {
		free(log);
		return PyErr_NoMemory();
	}
	log_set(region, log);
	Py_RETURN_NONE;
}

/* The log as bytes (bit i of byte j: page 8j + i), cleared as it is read. */
static PyObject *region_take_dirty(Region *self, PyObject *unused)
{
	(void)unused;
	const struct iod_dirty *log = self->region->dirty;
	if (!log || log->owner) {
		PyErr_SetString(ErrorType, log ? "the dirty log is in the buffer that it was given: read it there"
					       : "no dirty log was started for this region");
		return NULL;
	}
	size_t words = (log->bits + 63) / 64;
	PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)words * 8);
	if (!bytes)
		return NULL;
	uint8_t *out = (uint8_t *)PyBytes_AsString(bytes);
	for (size_t i = 0; i < words; i++) {
		uint64_t word = __atomic_exchange_n((uint64_t *)(void *)log->byte + i, 0, __ATOMIC_SEQ_CST);
		memcpy(out + i * 8, &word, 8);
	}
	return bytes;
}

static PyObject *region_stop_dirty(Region *self, PyObject *unused)
{
	(void)unused;
	log_set(self->region, NULL);
	Py_RETURN_NONE;
}

/* _mark_dirty(offset, length): the program wrote there through a view. */
static PyObject *region_mark_dirty(Region *self, PyObject *const *args, Py_ssize_t n)
{
	uint64_t offset, length;
	if (n != 2)
		return PyErr_Format(PyExc_TypeError, "_mark_dirty takes 2 arguments, not %zd", n);
	if (ext_u64(args[0], "offset", &offset) || ext_u64(args[1], "length", &length))
		return NULL;
	if (offset > self->region->size || length > self->region->size - offset)
		return PyErr_Format(AddressRangeErrorType, "%llu bytes at offset %llu of a region of %llu bytes",
				    (unsigned long long)length, (unsigned long long)offset,
				    (unsigned long long)self->region->size);
	iod_region_mark_dirty(self->region, offset, length);
	Py_RETURN_NONE;
}

static PyObject *region_get(Region *self, void *what)
{
	struct iod_region *region = self->region;
	switch ((char)(intptr_t)what) {
	case 's':
		return PyLong_FromUnsignedLongLong(region->size);
	case 'l':
		return PyLong_FromUnsignedLong(region->leases);
	case 'v':
		return PyLong_FromUnsignedLong(region->views);
	case 'c':
		return PyBool_FromLong(region->closed);
	case 'q':
		return PyBool_FromLong(region->quarantined);
	case 'b':
		return PyLong_FromLong(region->buffer_index);
	default:
		return PyLong_FromUnsignedLongLong((uintptr_t)region->host);
	}
}

static PyMethodDef region_methods[] = {
	{"_close", EXT_METHOD(region_close), METH_NOARGS, NULL},
	{"_poke", EXT_METHOD(region_poke), METH_VARARGS, NULL},
	{"_peek", EXT_METHOD(region_peek), METH_VARARGS, NULL},
	{"_start_dirty", EXT_METHOD(region_start_dirty), METH_VARARGS, NULL},
	{"_mark_dirty", EXT_METHOD(region_mark_dirty), METH_FASTCALL, NULL},
	{"_take_dirty", EXT_METHOD(region_take_dirty), METH_NOARGS, NULL},
	{"_stop_dirty", EXT_METHOD(region_stop_dirty), METH_NOARGS, NULL},
	{0}};
static PyGetSetDef region_getset[] = {{"size", (getter)region_get, NULL, "Bytes.", (void *)'s'},
				      {"leases", (getter)region_get, NULL, "Pieces of transfers in flight.", (void *)'l'},
				      {"views", (getter)region_get, NULL, "Buffers handed out.", (void *)'v'},
				      {"closed", (getter)region_get, NULL, NULL, (void *)'c'},
				      {"quarantined", (getter)region_get, NULL, NULL, (void *)'q'},
				      {"_buffer_index", (getter)region_get, NULL, NULL, (void *)'b'},
				      {"_host", (getter)region_get, NULL, NULL, (void *)'h'},
				      {0}};
static PyType_Slot region_slots[] = {{Py_tp_new, region_new},
				     {Py_tp_traverse, region_traverse},
				     {Py_tp_clear, region_clear},
				     {Py_tp_free, PyObject_GC_Del},
				     {Py_tp_dealloc, region_dealloc},
				     {Py_tp_methods, region_methods},
				     {Py_tp_getset, region_getset},
				     {Py_bf_getbuffer, region_getbuffer},
				     {Py_bf_releasebuffer, region_releasebuffer},
				     {0}};
static PyType_Spec region_spec = {"iodma._core.Region", sizeof(Region), 0,
				  Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, region_slots};

int ext_region_add(PyObject *module)
{
	RegionType = ext_type(module, &region_spec, NULL);
	return RegionType ? 0 : -1;
}
