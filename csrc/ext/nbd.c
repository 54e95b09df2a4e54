/* SPDX-License-Identifier: Apache-2.0
 *
 * nbd: connections of libnbd, as Python makes them: a capsule, until a Target takes the driver out of it. */
#include "ext.h"

#include "../nbd.h"

#include <errno.h>
#include <string.h>

#define SLICE_MS 100 /* between two looks for signals */
#define WHY 300

static const char NAME[] = "iodma driver";

static void drop(PyObject *capsule)
{
	struct iod_driver *driver = PyCapsule_GetPointer(capsule, NAME);
	driver->ops->destroy(driver, true);
}

struct iod_driver *ext_driver_take(PyObject *capsule)
{
	struct iod_driver *driver = PyCapsule_GetPointer(capsule, NAME);
	if (!driver || PyCapsule_SetDestructor(capsule, NULL) || PyCapsule_SetName(capsule, NULL))
		return NULL;
	return driver;
}

static PyObject *refuse(int error, const char *why)
{
	PyObject *args = Py_BuildValue("is", error, why);
	if (args)
		PyErr_SetObject(error == ENOSYS ? UnsupportedErrorType : PyExc_OSError, args);
	Py_XDECREF(args);
	return NULL;
}

static int connect_it(struct iod_driver *driver, const char *uri, uint64_t timeout_ms, char *why)
{
	uint64_t end = ext_clock() + timeout_ms * 1000000u;
	int result;

	Py_BEGIN_ALLOW_THREADS
	result = iod_nbd_connect(driver, uri, why, WHY);
	Py_END_ALLOW_THREADS
	while (!result) {
		if (PyErr_CheckSignals())
			return -EINTR;
		uint64_t now = ext_clock();
		if (now >= end) {
			strcpy(why, "the server does not answer in time");
			return -ETIMEDOUT;
		}
		int slice = (int)iod_min64((end - now) / 1000000u + 1, SLICE_MS);
		Py_BEGIN_ALLOW_THREADS
		result = iod_nbd_wait(driver, slice, why, WHY);
		Py_END_ALLOW_THREADS
	}
	return result < 0 ? result : 0;
}

/* nbd_connect(library, uri, depth, timeout_ms)
 *   -> (driver, size, minimum, preferred, maximum, read_only, can_flush, can_fua, can_trim, can_zero) */
PyObject *ext_nbd_connect(PyObject *module, PyObject *args)
{
	const char *library, *uri;
	unsigned depth;
	unsigned long long timeout_ms;
	char why[WHY] = "";
	int error;
	struct iod_nbd_info info;

	(void)module;
	if (!PyArg_ParseTuple(args, "ssIK", &library, &uri, &depth, &timeout_ms))
		return NULL;
	struct iod_driver *driver = iod_nbd_create(library, depth, &error, why, WHY);
	if (!driver)
		return refuse(error, why);
	PyObject *capsule = PyCapsule_New(driver, NAME, drop);
	if (!capsule) {
		driver->ops->destroy(driver, true);
		return NULL;
	}
	error = connect_it(driver, uri, timeout_ms, why);
	if (!error)
		error = iod_nbd_begin(driver, &info, why, WHY);
	if (error) {
		Py_DECREF(capsule);
		return PyErr_Occurred() ? NULL : refuse(-error, why);
	}
	return Py_BuildValue("NKIIIOOOOO", capsule, (unsigned long long)info.size, info.minimum, info.preferred,
			     info.maximum, info.read_only ? Py_True : Py_False, info.can_flush ? Py_True : Py_False,
			     info.can_fua ? Py_True : Py_False, info.can_trim ? Py_True : Py_False,
			     info.can_zero ? Py_True : Py_False);
}

/* nbd_version(library) -> str */
PyObject *ext_nbd_version(PyObject *module, PyObject *args)
{
	const char *library;
	char why[WHY] = "";
	int error;

	(void)module;
	if (!PyArg_ParseTuple(args, "s", &library))
		return NULL;
	struct iod_driver *driver = iod_nbd_create(library, 1, &error, why, WHY);
	if (!driver)
		return refuse(error, why);
	PyObject *version = PyUnicode_FromString(iod_nbd_version(driver));
	driver->ops->destroy(driver, true);
	return version;
}
