/* SPDX-License-Identifier: Apache-2.0
 *
 * space: address spaces, as Python sees them: memories and stages.
 *
 * Invariants
 *  - A space keeps the one below it.
 *  - Addresses from Python are checked here, once; the core's walk checks those of the guest.
 *  - Once an engine's transfers go through a space, only that engine's thread changes it.  The engine does not keep it:
 *    ports and revocations do. */
#include "ext.h"

#include "../pagetable.h"

#include <errno.h>
#include <string.h>

PyTypeObject *SpaceType;

/* The hook gives a verdict, or -n: only n bytes pass. */
static enum iod_verdict space_hook(struct iod_space *space, uint64_t address, uint64_t *length, uint8_t access)
{
	Space *self = space->owner;
	if (!self->hook)
		return IOD_REFUSE;
	PyObject *hook = self->hook;
	Py_INCREF(hook); /* it may be replaced by itself */
	PyObject *result = PyObject_CallFunction(hook, "KKi", (unsigned long long)address, (unsigned long long)*length,
						 (int)access);
	if (!result)
		PyErr_WriteUnraisable(hook);
	Py_DECREF(hook);
	if (!result)
		return IOD_REFUSE;
	long long verdict = PyLong_AsLongLong(result);
	Py_DECREF(result);
	if (verdict < 0 && !PyErr_Occurred()) {
		*length = iod_min64(*length, (uint64_t)0 - (uint64_t)verdict);
		return IOD_PASS;
	}
	if (verdict < IOD_PASS || verdict > IOD_PENDING) {
		PyErr_Clear();
		return IOD_REFUSE;
	}
	return (enum iod_verdict)verdict;
}

static void space_told(struct iod_space *space, const struct iod_fault *fault)
{
	Space *self = space->owner;
	PyObject *told = self->told;
	if (!told)
		return;
	Py_INCREF(told); /* it may be replaced by itself */
	PyObject *result = PyObject_CallFunction(told, "KiO", (unsigned long long)fault->address, (int)fault->access,
						 fault->cause == IOD_C_UNMAPPED ? Py_True : Py_False);
	if (!result)
		PyErr_WriteUnraisable(told);
	Py_XDECREF(result);
	Py_DECREF(told);
}

/* Space(kind, next, name, lanes=0, offset=0, last=2^64-1); of a TABLE, `lanes` says how many slots its cache has: 2^lanes */
static PyObject *space_new(PyTypeObject *type, PyObject *args, PyObject *kw)
{
	static char *names[] = {"kind", "next", "name", "lanes", "offset", "last", NULL};
	int kind, lanes = 0;
	PyObject *next;
	const char *name;
	unsigned long long offset = 0, last = UINT64_MAX;

	if (!PyArg_ParseTupleAndKeywords(args, kw, "iOs|iKK", names, &kind, &next, &name, &lanes, &offset, &last))
		return NULL;
	if (kind != IOD_MEMORY) {
		if (!PyObject_TypeCheck(next, SpaceType))
			return PyErr_Format(ArgumentTypeErrorType, "%R is not an address space; a Memory or a stage would be",
					    next);
		int depth = 1;
		for (struct iod_space *at = &((Space *)next)->space; at; at = at->next)
			depth++;
		if (depth > IOD_MAX_DEPTH)
			return PyErr_Format(ArgumentErrorType, "a chain of %d stages; %d is the most", depth, IOD_MAX_DEPTH);
	}
	Space *self = (Space *)PyType_GenericAlloc(type, 0);
	if (!self)
		return NULL;
	self->space.kind = (uint8_t)kind;
	if (kind == IOD_TABLE) {
		self->space.table = lanes < 0 || lanes > 20 ? NULL : iod_table_new((unsigned)lanes);
		if (!self->space.table) {
			Py_DECREF(self);
			return PyErr_NoMemory();
		}
	} else {
		self->space.lanes = (uint8_t)lanes;
	}
	self->space.offset = offset;
	self->space.last = last;
	self->space.owner = self;
	self->space.hook = space_hook;
	self->space.told = space_told;
	strncpy(self->space.name, name, sizeof self->space.name - 1);
	if (kind != IOD_MEMORY) {
		Py_INCREF(next);
		self->next = next;
		self->space.next = &((Space *)next)->space;
	}
	return (PyObject *)self;
}

static int space_traverse(Space *self, visitproc visit, void *arg)
{
	Py_VISIT(Py_TYPE(self));
	Py_VISIT(self->next);
	Py_VISIT(self->hook);
	Py_VISIT(self->told);
	return 0;
}

static int space_clear(Space *self)
{
	Py_CLEAR(self->told);
	Py_CLEAR(self->hook); /* `next` stays: a walk follows it */
	return 0;
}

static Engine *engine_of(const Space *self)
{
	return self->space.core ? (Engine *)((char *)self->space.core - offsetof(Engine, core)) : NULL;
}

void ext_space_join(Space *self, Engine *engine)
{
	self->space.core = &engine->core;
	self->later = engine->spaces;
	if (self->later)
		self->later->earlier = self;
	engine->spaces = self;
}

void ext_space_leave(Space *self)
{
	*(self->earlier ? &self->earlier->later : &engine_of(self)->spaces) = self->later;
	if (self->later)
		self->later->earlier = self->earlier;
	self->later = self->earlier = NULL;
	self->space.core = NULL;
}

static void space_dealloc(Space *self)
{
	PyTypeObject *type = Py_TYPE(self);
	PyObject_GC_UnTrack(self);
	if (self->space.core)
		ext_space_leave(self);
	iod_map_clear(&self->space.map);
	free(self->space.table);
	Py_XDECREF(self->next);
	Py_XDECREF(self->hook);
	Py_XDECREF(self->told);
	freefunc release = PyType_GetSlot(type, Py_tp_free);
	release(self);
	Py_DECREF(type);
}

static int check_owner(const Space *self)
{
	Engine *engine = engine_of(self);
	return engine ? ext_check(engine) : 0;
}

static void resume_pending(Space *self)
{
	if (self->space.core) {
		iod_resume_pending(self->space.core, &self->space);
		ext_poke(engine_of(self));
	}
}

/* -1 with an exception: what a walk has found so far must stay as it is until it is leased. */
static int may_change(const Space *self)
{
	if (!iod_space_is_asked(&self->space))
		return 0;
	PyErr_Format(ErrorType,
		     "%s: a stage is being asked for a translation that goes through it: its map may change afterwards, "
		     "in a later turn",
		     self->space.name);
	return -1;
}

/* _map(first, length, base, region | None, access) */
static PyObject *space_map(Space *self, PyObject *const *args, Py_ssize_t n)
{
	uint64_t first, length, base, access;
	if (n != 5)
		return PyErr_Format(PyExc_TypeError, "_map takes 5 arguments, not %zd", n);
	if (check_owner(self))
		return NULL;
	if (ext_u64(args[0], "address", &first) || ext_u64(args[1], "length", &length) ||
	    ext_u64(args[2], "target", &base) || ext_u64(args[4], "access", &access))
		return NULL;
	if (ext_range(first, length, "address") || ext_range(base, length, "target") || may_change(self))
		return NULL;
	struct iod_region *region = NULL;
	if (args[3] != Py_None) {
		if (!PyObject_TypeCheck(args[3], RegionType))
			return PyErr_Format(ArgumentTypeErrorType, "%R is not a region; a Ram, Rom or DeviceWindow would be",
					    args[3]);
		region = ((Region *)args[3])->region;
		if (region->closed || region->quarantined)
			return PyErr_Format(ClosedErrorType, "%R is %s", args[3], region->closed ? "closed" : "quarantined");
		if (base > region->size || length > region->size - base)
			return PyErr_Format(AddressRangeErrorType, "%llu bytes at offset %llu of a region of %llu bytes",
					    (unsigned long long)length, (unsigned long long)base,
					    (unsigned long long)region->size);
	}
	int error = iod_map_insert(&self->space.map, first, first + (length - 1), base, region, (uint32_t)access);
	if (error == -EEXIST)
		return PyErr_Format(AddressRangeErrorType, "%s: %llu bytes at %p overlap what is mapped there",
				    self->space.name, (unsigned long long)length, (void *)(uintptr_t)first);
	if (error)
		return PyErr_NoMemory();
	self->space.change++;
	resume_pending(self);
	Py_RETURN_NONE;
}

/* _unmap(first, length) -> bytes that were mapped there */
static PyObject *space_unmap(Space *self, PyObject *const *args, Py_ssize_t n)
{
	uint64_t first, length, removed = 0;
	if (n != 2)
		return PyErr_Format(PyExc_TypeError, "_unmap takes 2 arguments, not %zd", n);
	if (check_owner(self))
		return NULL;
	if (ext_u64(args[0], "address", &first) || ext_u64(args[1], "length", &length) ||
	    (length && ext_range(first, length, "address")) || may_change(self))
		return NULL;
	ptrdiff_t at = iod_map_find(&self->space.map, first);
	self->space.removed = at < 0 ? NULL : self->space.map.range[at].region;
	/* 0: to the end of the address space, whose size is no 64-bit number */
	if (iod_map_remove(&self->space.map, first, length ? first + (length - 1) : UINT64_MAX, &removed))
		return PyErr_NoMemory();
	self->space.change++;
	return PyLong_FromUnsignedLongLong(removed);
}

static PyObject *space_find(Space *self, PyObject *arg)
{
	uint64_t address;
	if (ext_u64(arg, "address", &address))
		return NULL;
	ptrdiff_t at = iod_map_find(&self->space.map, address);
	if (at < 0)
		Py_RETURN_NONE;
	const struct iod_range *range = &self->space.map.range[at];
	return Py_BuildValue("KKKi", (unsigned long long)self->space.map.first[at],
			     (unsigned long long)(range->last - self->space.map.first[at]) + 1,
			     (unsigned long long)range->base, (int)range->access);
}

static PyObject *space_ranges(Space *self, PyObject *unused)
{
	(void)unused;
	struct iod_map *map = &self->space.map;
	PyObject *list = PyList_New(0);
	for (size_t i = 0; list && i < map->count; i++) {
		PyObject *row = Py_BuildValue("KKKi", (unsigned long long)map->first[i],
					      (unsigned long long)(map->range[i].last - map->first[i]) + 1,
					      (unsigned long long)map->range[i].base, (int)map->range[i].access);
		if (!row || PyList_Append(list, row))
			Py_CLEAR(list);
		Py_XDECREF(row);
	}
	return list;
}

/* _set_hook(callable | None, misses_wait) */
static PyObject *space_set_hook(Space *self, PyObject *args)
{
	PyObject *hook;
	int misses_wait;
	if (!PyArg_ParseTuple(args, "Op", &hook, &misses_wait) || check_owner(self))
		return NULL;
	PyObject *old = self->hook;
	self->hook = NULL;
	if (hook != Py_None) {
		Py_INCREF(hook);
		self->hook = hook;
	}
	Py_XDECREF(old);
	self->space.misses_wait = misses_wait;
	if (self->space.table)
		self->space.table->notes = self->hook != NULL;
	Py_RETURN_NONE;
}

static struct iod_table *table_of(const Space *self)
{
	if (!self->space.table)
		PyErr_Format(ErrorType, "%s: no page table", self->space.name);
	return self->space.table;
}

/* _table_set(entry: (valid, write, frame, shift, entry_bytes, page_shift, big_endian), base, first, last, mode, outside):
 * all of it, checked as a whole, with the cache empty afterwards */
static PyObject *space_table_set(Space *self, PyObject *args)
{
	unsigned long long valid, write, frame, base, first, last;
	unsigned char shift, entry_bytes, page_shift, mode, outside;
	int big;
	struct iod_table *table = table_of(self);

	if (!table || check_owner(self) || may_change(self) ||
	    !PyArg_ParseTuple(args, "(KKKbbbp)KKKbb", &valid, &write, &frame, &shift, &entry_bytes, &page_shift, &big, &base,
			      &first, &last, &mode, &outside))
		return NULL;
	struct iod_table now = {.valid = valid, .write = write, .frame = frame, .shift = shift, .entry_bytes = entry_bytes,
				.page_shift = page_shift, .big_endian = big, .base = base, .first = first, .last = last,
				.mode = mode, .outside = outside};
	const char *wrong = iod_table_wrong(&now);
	if (wrong)
		return PyErr_Format(AddressRangeErrorType, "%s: %s", self->space.name, wrong);
	iod_table_set(table, &now);
	self->space.change++;
	Py_RETURN_NONE;
}

/* _table_flush(first, last) */
static PyObject *space_table_flush(Space *self, PyObject *const *args, Py_ssize_t n)
{
	uint64_t first, last;
	struct iod_table *table = table_of(self);

	if (n != 2)
		return PyErr_Format(PyExc_TypeError, "_table_flush takes 2 arguments, not %zd", n);
	if (!table || check_owner(self) || ext_u64(args[0], "first", &first) || ext_u64(args[1], "last", &last) ||
	    may_change(self))
		return NULL;
	iod_table_flush(table, first, last);
	self->space.change++;
	Py_RETURN_NONE;
}

/* _table_entry(address) -> the entry as it is in memory, or None */
static PyObject *space_table_entry(Space *self, PyObject *arg)
{
	uint64_t address, entry;

	if (!table_of(self) || ext_u64(arg, "address", &address))
		return NULL;
	if (!iod_table_entry(&self->space, address, &entry))
		Py_RETURN_NONE;
	return PyLong_FromUnsignedLongLong(entry);
}

/* _table_counts() -> (entries read, answers of the cache, faults, why the last one) */
static PyObject *space_table_counts(Space *self, PyObject *unused)
{
	const struct iod_table *table = table_of(self);
	(void)unused;
	if (!table)
		return NULL;
	return Py_BuildValue("KKKs", (unsigned long long)table->reads, (unsigned long long)table->hits,
			     (unsigned long long)table->faults, iod_cause_text(table->cause));
}

/* _tell_faults(callable | None): who is told of what it has refused, as (address, access, whether nothing is there) */
static PyObject *space_tell_faults(Space *self, PyObject *told)
{
	if (check_owner(self))
		return NULL;
	PyObject *old = self->told;
	if (told != Py_None)
		Py_INCREF(told);
	self->told = told == Py_None ? NULL : told;
	Py_XDECREF(old);
	Py_RETURN_NONE;
}

/* _set_shut(bool): of a gate */
static PyObject *space_set_shut(Space *self, PyObject *arg)
{
	int shut = PyObject_IsTrue(arg);
	if (shut < 0 || check_owner(self) || may_change(self))
		return NULL;
	self->space.shut = shut;
	self->space.change++;
	Py_RETURN_NONE;
}

/* _set_offset(offset): of a window.  What is in flight keeps the host memory that it was translated to. */
static PyObject *space_set_offset(Space *self, PyObject *arg)
{
	uint64_t offset;
	if (check_owner(self) || ext_u64(arg, "offset", &offset) || may_change(self))
		return NULL;
	if (self->space.kind != IOD_WINDOW || offset > UINT64_MAX - self->space.last)
		return PyErr_Format(AddressRangeErrorType, "%s: a window of %llu bytes does not fit at %p", self->space.name,
				    (unsigned long long)self->space.last + 1, (void *)(uintptr_t)offset);
	self->space.offset = offset;
	self->space.change++;
	resume_pending(self);
	Py_RETURN_NONE;
}

/* _check_owner(): raises what is wrong */
static PyObject *space_check_owner(Space *self, PyObject *unused)
{
	(void)unused;
	if (check_owner(self))
		return NULL;
	Py_RETURN_NONE;
}

static PyObject *space_resume(Space *self, PyObject *unused)
{
	(void)unused;
	if (check_owner(self))
		return NULL;
	self->space.change++; /* what was looked for is refused: another answer than before */
	resume_pending(self);
	Py_RETURN_NONE;
}

static PyObject *space_get(Space *self, void *what)
{
	switch ((char)(intptr_t)what) {
	case 'n':
		return PyUnicode_FromString(self->space.name);
	case 'k':
		return PyLong_FromLong(self->space.kind);
	case 'c':
		return PyLong_FromUnsignedLongLong(self->space.change);
	case 'o':
		return PyLong_FromUnsignedLongLong(self->space.offset);
	case 'r':
		return PyLong_FromSize_t(self->space.map.count);
	case 's':
		return PyBool_FromLong(self->space.shut);
	case 'e': {
		PyObject *engine = self->space.core ? (PyObject *)engine_of(self) : Py_None;
		Py_INCREF(engine);
		return engine;
	}
	default: {
		PyObject *next = self->next ? self->next : Py_None;
		Py_INCREF(next);
		return next;
	}
	}
}

static PyMethodDef space_methods[] = {
	{"_map", EXT_METHOD(space_map), METH_FASTCALL, NULL},
	{"_unmap", EXT_METHOD(space_unmap), METH_FASTCALL, NULL},
	{"_find", EXT_METHOD(space_find), METH_O, NULL},
	{"_ranges", EXT_METHOD(space_ranges), METH_NOARGS, NULL},
	{"_set_hook", EXT_METHOD(space_set_hook), METH_VARARGS, NULL},
	{"_tell_faults", EXT_METHOD(space_tell_faults), METH_O, NULL},
	{"_set_shut", EXT_METHOD(space_set_shut), METH_O, NULL},
	{"_set_offset", EXT_METHOD(space_set_offset), METH_O, NULL},
	{"_table_set", EXT_METHOD(space_table_set), METH_VARARGS, NULL},
	{"_table_flush", EXT_METHOD(space_table_flush), METH_FASTCALL, NULL},
	{"_table_entry", EXT_METHOD(space_table_entry), METH_O, NULL},
	{"_table_counts", EXT_METHOD(space_table_counts), METH_NOARGS, NULL},
	{"_check_owner", EXT_METHOD(space_check_owner), METH_NOARGS, NULL},
	{"_resume", EXT_METHOD(space_resume), METH_NOARGS, NULL},
	{"translate", EXT_METHOD(ext_space_translate), METH_FASTCALL,
	 "translate(list, access) -> [(host address, length, offset in the region, lanes)] or the Fault"},
	{"walk", EXT_METHOD(ext_space_walk), METH_FASTCALL,
	 "walk(list, access) -> how many pieces of host memory, or the Fault: the translation that a transfer\n"
	 "does, with its result left in the core"},
	{"_lookup_loop", EXT_METHOD(ext_space_lookup_loop), METH_FASTCALL, NULL},
	{0}};
static PyGetSetDef space_getset[] = {{"name", (getter)space_get, NULL, "What faults and statistics call it.", (void *)'n'},
				     {"next", (getter)space_get, NULL, "The space below, or None.", (void *)'x'},
				     {"_kind", (getter)space_get, NULL, NULL, (void *)'k'},
				     {"changes", (getter)space_get, NULL, "How often its map was changed.", (void *)'c'},
				     {"_engine", (getter)space_get, NULL, NULL, (void *)'e'},
				     {"_offset", (getter)space_get, NULL, NULL, (void *)'o'},
				     {"_count", (getter)space_get, NULL, NULL, (void *)'r'},
				     {"_shut", (getter)space_get, NULL, NULL, (void *)'s'},
				     {0}};
static PyType_Slot space_slots[] = {{Py_tp_new, space_new},
				    {Py_tp_traverse, space_traverse},
				    {Py_tp_clear, space_clear},
				    {Py_tp_free, PyObject_GC_Del},
				    {Py_tp_dealloc, space_dealloc},
				    {Py_tp_methods, space_methods},
				    {Py_tp_getset, space_getset},
				    {0}};
static PyType_Spec space_spec = {"iodma._core.Space", sizeof(Space), 0,
				 Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, space_slots};

int ext_space_add(PyObject *module)
{
	SpaceType = ext_type(module, &space_spec, NULL);
	return SpaceType ? 0 : -1;
}
