/* SPDX-License-Identifier: Apache-2.0
 *
 * spare: objects that a request makes and drops again, kept for the next one.
 *
 * Invariants
 *  - Only objects of one type that nobody can derive from are in a list, and each was emptied before.
 *  - A list is used with the interpreter lock, and holds no more than EXT_SPARES. */
#ifndef EXT_SPARE_H
#define EXT_SPARE_H

#include "ext.h"

#include <string.h>

#define EXT_SPARES 64

struct ext_spares {
	uint32_t count;
	PyObject *object[EXT_SPARES];
};

/* An object of `size` bytes, all zero but its head.  If it is a spare one, of a collected type, it is not tracked
 * yet. */
static inline PyObject *ext_spare_take(struct ext_spares *spares, PyTypeObject *type, size_t size)
{
	if (!spares->count)
		return PyType_GenericAlloc(type, 0);
	PyObject *object = spares->object[--spares->count];
	memset((uint8_t *)object + sizeof(PyObject), 0, size - sizeof(PyObject));
	return PyObject_Init(object, type);
}

/* From tp_dealloc, in the place of tp_free; an object of a collected type is untracked. */
static inline void ext_spare_give(struct ext_spares *spares, PyObject *object)
{
	PyTypeObject *type = Py_TYPE(object);
	if (spares->count < EXT_SPARES) {
		spares->object[spares->count++] = object;
	} else {
		freefunc release = PyType_GetSlot(type, Py_tp_free);
		release(object);
	}
	Py_DECREF(type);
}

#endif
