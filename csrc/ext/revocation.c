/* SPDX-License-Identifier: Apache-2.0
 *
 * revocation: a range that is being taken back, which Python awaits.
 *
 * Invariants
 *  - It keeps its space; while it is not done, the core keeps it. */
#include "ext.h"

#include <stddef.h>

PyTypeObject *RevocationType;

static Engine *engine_of(struct iod_core *core)
{
	return (Engine *)((char *)core - offsetof(Engine, core));
}

/* Revocation(space, first, length, haste): of a range that just left the space's map. */
static PyObject *revocation_new(PyTypeObject *type, PyObject *args, PyObject *kw)
{
	PyObject *space_object, *first_object, *length_object;
	int haste = 0;
	uint64_t first, length;
	static char *names[] = {"space", "first", "length", "haste", NULL};
	if (!PyArg_ParseTupleAndKeywords(args, kw, "O!OO|p", names, SpaceType, &space_object, &first_object,
					 &length_object, &haste))
		return NULL;
	if (ext_u64(first_object, "address", &first) || ext_u64(length_object, "length", &length) ||
	    (length && ext_range(first, length, "address")))
		return NULL;
	struct iod_core *core = ((Space *)space_object)->space.core;
	if (core && ext_check(engine_of(core)))
		return NULL;
	Revocation *self = (Revocation *)PyType_GenericAlloc(type, 0);
	if (!self)
		return NULL;
	Py_INCREF(space_object);
	self->space = space_object;
	self->revocation.space = &((Space *)space_object)->space;
	self->revocation.first = first;
	self->revocation.last = length ? first + (length - 1) : UINT64_MAX;
	self->revocation.region = self->revocation.space->removed;
	self->revocation.owner = self;
	Py_INCREF(Py_True);
	if (!core) {
		self->wait.done = 1;
		self->wait.value = Py_True;
		self->revocation.done = true;
		return (PyObject *)self;
	}
	ext_wait_init(&self->wait, engine_of(core));
	self->linked = true;
	iod_revoke(core, &self->revocation, haste);
	Py_DECREF(Py_True);
	if (!self->revocation.done)
		Py_INCREF(self); /* the core's */
	else if (self->wait.engine->revoked == self) {
		/* Done at once: nobody can have waited yet. */
		self->wait.engine->revoked = self->next;
		self->linked = false;
		self->wait.done = 1;
		Py_INCREF(Py_True);
		self->wait.value = Py_True;
	}
	return (PyObject *)self;
}

static void revocation_dealloc(Revocation *self)
{
	PyTypeObject *type = Py_TYPE(self);
	ext_wait_clear(&self->wait);
	Py_XDECREF(self->space);
	freefunc release = PyType_GetSlot(type, Py_tp_free);
	release(self);
	Py_DECREF(type);
}

/* _expire(): the deadline passed. False when it was done in time. */
static PyObject *revocation_expire(Revocation *self, PyObject *unused)
{
	(void)unused;
	if (self->revocation.done || self->revocation.failed || !self->wait.engine)
		Py_RETURN_FALSE;
	if (ext_check(self->wait.engine))
		return NULL;
	struct iod_core *core = &self->wait.engine->core;
	iod_revocation_fail(core, &self->revocation);
	Py_INCREF(Py_False);
	ext_wait_done(&self->wait, Py_False, false);
	Py_RETURN_TRUE;
}

/* _hasten(): asks the transfers that still hold the range to end. */
static PyObject *revocation_hasten(Revocation *self, PyObject *unused)
{
	(void)unused;
	if (self->revocation.done || !self->wait.engine)
		Py_RETURN_NONE;
	if (ext_check(self->wait.engine))
		return NULL;
	iod_revocation_hasten(&self->wait.engine->core, &self->revocation);
	ext_poke(self->wait.engine);
	Py_RETURN_NONE;
}

static PyObject *revocation_get(Revocation *self, void *what)
{
	switch ((char)(intptr_t)what) {
	case 'o':
		return PyBool_FromLong(self->revocation.done && !self->revocation.failed);
	case 'f':
		return PyBool_FromLong(self->revocation.failed);
	default: {
		PyObject *list = PyList_New(0);
		Engine *engine = self->wait.engine;
		for (uint32_t i = 0; list && engine && !self->revocation.done && i < engine->core.rows; i++) {
			struct iod_row *row = iod_row_at(&engine->core, i);
			for (struct iod_hold *hold = row->holds; hold; hold = hold->next) {
				if (hold->revocation != &self->revocation)
					continue;
				PyObject *ticket = PyLong_FromUnsignedLongLong(row->ticket);
				if (!ticket || PyList_Append(list, ticket))
					Py_CLEAR(list);
				Py_XDECREF(ticket);
				break;
			}
		}
		return list;
	}
	}
}

static PyMethodDef revocation_methods[] = {{"_hasten", EXT_METHOD(revocation_hasten), METH_NOARGS, NULL},
					   {"_expire", EXT_METHOD(revocation_expire), METH_NOARGS, NULL}, {0}};
static PyGetSetDef revocation_getset[] = {
	{"ok", (getter)revocation_get, NULL, "Whether nothing holds the range any more.", (void *)'o'},
	{"failed", (getter)revocation_get, NULL, "Whether its deadline passed first.", (void *)'f'},
	{"held_by", (getter)revocation_get, NULL, "Tickets of the transfers that hold it.", (void *)'h'},
	{0}};
static PyType_Slot revocation_slots[] = {
	{Py_am_send, ext_wait_send}, {Py_tp_new, revocation_new},
	{Py_tp_dealloc, revocation_dealloc},
	{Py_tp_methods, revocation_methods},
	{Py_tp_getset, revocation_getset},
	{Py_tp_doc, "A range being taken back: await it; True when it is free, False when its deadline passed."},
	{0}};
static PyType_Spec revocation_spec = {"iodma._core.Revocation", sizeof(Revocation), 0,
				      Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, revocation_slots};

int ext_revocation_add(PyObject *module)
{
	RevocationType = ext_type(module, &revocation_spec, WaitType);
	return RevocationType ? 0 : -1;
}
