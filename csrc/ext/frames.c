/* SPDX-License-Identifier: Apache-2.0
 *
 * frames: the messages of a stream socket, for Python: whole ones only.
 *
 * Invariant: the socket is its owner's; nothing here keeps, closes or waits for it. */
#include "ext.h"

#include "../frames.h"

#include <errno.h>
#include <unistd.h>

typedef struct {
	PyObject_HEAD
	struct iod_frames frames;
} Frames;

static PyObject *fail(int error)
{
	errno = error;
	return PyErr_SetFromErrno(PyExc_OSError);
}

/* Frames(most): bytes of a message */
static PyObject *frames_new(PyTypeObject *type, PyObject *args, PyObject *kw)
{
	unsigned most;
	(void)kw;
	if (!PyArg_ParseTuple(args, "I", &most))
		return NULL;
	Frames *self = (Frames *)PyType_GenericAlloc(type, 0);
	if (self)
		iod_frames_init(&self->frames, most);
	return (PyObject *)self;
}

static void frames_dealloc(Frames *self)
{
	PyTypeObject *type = Py_TYPE(self);
	iod_frames_close(&self->frames);
	freefunc release = PyType_GetSlot(type, Py_tp_free);
	release(self);
	Py_DECREF(type);
}

static int descriptor(PyObject *arg)
{
	long fd = PyLong_AsLong(arg);
	if (fd == -1 && PyErr_Occurred())
		return -1;
	if (fd < 0 || fd > INT32_MAX) {
		fail(EBADF);
		return -1;
	}
	return (int)fd;
}

static PyObject *numbers(const struct iod_frame *frame)
{
	PyObject *fds = PyTuple_New(frame->fd_count);
	for (unsigned i = 0; fds && i < frame->fd_count; i++) {
		PyObject *fd = PyLong_FromLong(frame->fds[i]);
		if (!fd || PyTuple_SetItem(fds, i, fd))
			Py_CLEAR(fds);
	}
	return fds;
}

/* read(socket) -> (id, command, flags, error, payload, descriptors); None: it is not there yet.  The payload is None
 * where the size in the header cannot be; the descriptors are the caller's. */
static PyObject *frames_read(Frames *self, PyObject *arg)
{
	struct iod_frame frame;
	int fd = descriptor(arg);
	if (fd < 0)
		return NULL;
	int result = iod_frames_read(&self->frames, fd, &frame);
	if (result < 0)
		return fail(-result);
	if (!result)
		Py_RETURN_NONE;
	PyObject *payload, *fds = numbers(&frame);
	if (frame.payload) {
		payload = PyBytes_FromStringAndSize((const char *)frame.payload, frame.length);
	} else {
		payload = Py_None;
		Py_INCREF(payload);
	}
	PyObject *message = NULL;
	if (payload && fds)
		message = Py_BuildValue("(iiIIOO)", frame.id, frame.command, frame.flags, frame.error, payload, fds);
	Py_XDECREF(payload);
	Py_XDECREF(fds);
	if (!message)
		for (unsigned i = 0; i < frame.fd_count; i++)
			close(frame.fds[i]);
	return message;
}

/* close(): drops what has come of a message */
static PyObject *frames_close(Frames *self, PyObject *unused)
{
	(void)unused;
	iod_frames_close(&self->frames);
	Py_RETURN_NONE;
}

/* frame_send(socket, id, command, flags, error, payload) -> bytes that there was room for, the header included */
PyObject *ext_frame_send(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
	unsigned long field[4];
	char *payload;
	Py_ssize_t length;
	(void)module;
	if (count != 6)
		return PyErr_Format(PyExc_TypeError, "frame_send takes 6 arguments, not %zd", count);
	int fd = descriptor(args[0]);
	if (fd < 0)
		return NULL;
	for (int i = 0; i < 4; i++) {
		field[i] = PyLong_AsUnsignedLong(args[i + 1]);
		if (field[i] == (unsigned long)-1 && PyErr_Occurred())
			return NULL;
	}
	if (PyBytes_AsStringAndSize(args[5], &payload, &length))
		return NULL;
	if (length > INT32_MAX)
		return fail(EMSGSIZE);
	ssize_t sent = iod_frame_send(fd, (uint16_t)field[0], (uint16_t)field[1], (uint32_t)field[2], (uint32_t)field[3],
				      payload, (size_t)length);
	return sent < 0 ? fail((int)-sent) : PyLong_FromSsize_t(sent);
}

static PyMethodDef frames_methods[] = {
	{"read", EXT_METHOD(frames_read), METH_O, "The next whole message of a socket, or None."},
	{"close", EXT_METHOD(frames_close), METH_NOARGS, "Drop what has come of a message."},
	{0}};
static PyType_Slot frames_slots[] = {{Py_tp_new, frames_new},
				     {Py_tp_dealloc, frames_dealloc},
				     {Py_tp_methods, frames_methods},
				     {Py_tp_doc, "Messages of a stream socket: a header of 16 bytes, a payload, descriptors."},
				     {0}};
static PyType_Spec frames_spec = {"iodma._core.Frames", sizeof(Frames), 0, Py_TPFLAGS_DEFAULT, frames_slots};

int ext_frames_add(PyObject *module)
{
	PyTypeObject *type = ext_type(module, &frames_spec, NULL);
	Py_XDECREF((PyObject *)type);
	return type ? 0 : -1;
}
