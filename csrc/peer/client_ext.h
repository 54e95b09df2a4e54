/* SPDX-License-Identifier: Apache-2.0
 *
 * client_ext: what clients that Python drives have in common: who may call, and what an error becomes.
 *
 * Invariants
 *  - A client is used by one thread at a time: whoever calls meanwhile is refused, as is who calls one that is closed.
 *  - -EINVAL is a ValueError, any other errno the OSError of that number; the text is the client's.
 */
#ifndef CLIENT_EXT_H
#define CLIENT_EXT_H

#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030B0000
#endif
#ifndef PY_SSIZE_T_CLEAN
#define PY_SSIZE_T_CLEAN
#endif
#include <Python.h>

#include <errno.h>
#include <stdbool.h>

#define MOST_SECONDS 600.0

struct use {
	bool open, busy;
};

static inline int refuse(const char *why)
{
	PyErr_SetString(PyExc_ValueError, why);
	return -1;
}

static inline PyObject *raise_error(int error, const char *why)
{
	PyObject *arguments;

	if (error == -EINVAL) {
		refuse(why);
		return NULL;
	}
	arguments = Py_BuildValue("is", -error, why);
	if (arguments) {
		PyErr_SetObject(PyExc_OSError, arguments); /* errno chooses the subclass */
		Py_DECREF(arguments);
	}
	return NULL;
}

/* The caller clears `busy` when it is through. */
static inline int enter(struct use *use)
{
	if (!use->open || use->busy)
		return refuse(use->busy ? "the client is busy in another thread" : "the client is closed");
	use->busy = true;
	return 0;
}

static inline int check_seconds(double seconds, uint64_t *ns)
{
	if (!(seconds > 0 && seconds <= MOST_SECONDS))
		return refuse("seconds must be above 0 and at most 600");
	*ns = (uint64_t)(seconds * 1e9);
	return 0;
}

#endif
