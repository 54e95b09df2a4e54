/* SPDX-License-Identifier: Apache-2.0
 *
 * module: iodma._core.  The types, what they raise, and the numbers that Python must agree with. */
#include "ext.h"
#include "../virtq.h"

#include <pthread.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

PyObject *ErrorType, *ArgumentErrorType, *ArgumentTypeErrorType, *AddressRangeErrorType, *ClosedErrorType, *StaleErrorType,
	*BusyErrorType, *WrongThreadErrorType, *UnsupportedErrorType, *DmaFaultType, *CancelledType;
PyObject *CoroutineType, *StatusMembers[5], *AccessClass, *FaultClass;

int ext_u64(PyObject *object, const char *what, uint64_t *out)
{
	unsigned long long value = PyLong_AsUnsignedLongLong(object);
	if (value == (unsigned long long)-1 && PyErr_Occurred()) {
		bool type = PyErr_ExceptionMatches(PyExc_TypeError);
		PyErr_Clear();
		PyObject *index = type ? PyNumber_Index(object) : NULL;
		if (index) { /* a NumPy integer, say */
			int error = ext_u64(index, what, out);
			Py_DECREF(index);
			return error;
		}
		PyErr_Clear();
		if (type)
			PyErr_Format(ArgumentTypeErrorType, "%s is %R; it must be an integer", what, object);
		else
			PyErr_Format(ArgumentErrorType, "%s is %R; it must be 0 to 2^64 - 1", what, object);
		return -1;
	}
	*out = value;
	return 0;
}

int ext_range(uint64_t address, uint64_t length, const char *what)
{
	if (length == 0) {
		PyErr_SetString(AddressRangeErrorType, "length is 0; it must be at least 1 byte");
		return -1;
	}
	if (length - 1 > UINT64_MAX - address) {
		PyErr_Format(AddressRangeErrorType, "%s %p and length %llu run past 2^64 - 1", what,
			     (void *)(uintptr_t)address, /* %llx is not to be had before Python 3.12 */
			     (unsigned long long)length);
		return -1;
	}
	return 0;
}

PyTypeObject *ext_type(PyObject *module, PyType_Spec *spec, PyTypeObject *base)
{
	PyObject *type = PyType_FromModuleAndSpec(module, spec, (PyObject *)base);
	if (type && PyModule_AddType(module, (PyTypeObject *)type) < 0)
		Py_CLEAR(type);
	return (PyTypeObject *)type;
}

static PyObject *uring_probe(PyObject *self, PyObject *unused)
{
	struct iod_uring_probe probe;
	(void)self;
	(void)unused;
	iod_uring_probe(&probe);
	PyObject *opcodes = PyList_New(0);
	for (int i = 0; opcodes && i < 256; i++)
		if (probe.opcodes[i / 64] >> (i % 64) & 1) {
			PyObject *number = PyLong_FromLong(i);
			if (!number || PyList_Append(opcodes, number))
				Py_CLEAR(opcodes);
			Py_XDECREF(number);
		}
	if (!opcodes)
		return NULL;
	return Py_BuildValue("{s:i,s:I,s:I,s:N}", "error", probe.error, "features", probe.features, "setup_flags",
			     probe.setup_flags, "opcodes", opcodes);
}

/* transitions() -> [(from, to, why)]: the state table of a transfer. */
static PyObject *transitions(PyObject *self, PyObject *unused)
{
	(void)self;
	(void)unused;
	PyObject *list = PyList_New((Py_ssize_t)iod_edge_count);
	for (size_t i = 0; list && i < iod_edge_count; i++) {
		PyObject *edge = Py_BuildValue("sss", iod_state_names[iod_edges[i].from], iod_state_names[iod_edges[i].to],
					       iod_edges[i].why);
		if (!edge || PyList_SetItem(list, (Py_ssize_t)i, edge))
			Py_CLEAR(list);
	}
	return list;
}

static PyObject *clock_ns(PyObject *self, PyObject *unused)
{
	(void)self;
	(void)unused;
	return PyLong_FromUnsignedLongLong(ext_clock());
}

/* dio_alignment(fd) -> (memory, offset) that O_DIRECT wants of this file; (0, 0) when the kernel does not say. */
static PyObject *dio_alignment(PyObject *self, PyObject *arg)
{
	long fd = PyLong_AsLong(arg);
	uint8_t statx_result[256] = {0};
	uint32_t memory, offset;
	(void)self;
	if (fd == -1 && PyErr_Occurred())
		return NULL;
	/* statx(2): stx_dio_mem_align and stx_dio_offset_align, newer than the C library here may know. */
	if (syscall(SYS_statx, (int)fd, "", 0x1000 /* AT_EMPTY_PATH */, 0x2000u /* STATX_DIOALIGN */, statx_result))
		return PyErr_SetFromErrno(PyExc_OSError);
	memcpy(&memory, statx_result + 152, 4);
	memcpy(&offset, statx_result + 156, 4);
	return Py_BuildValue("II", memory, offset);
}

/* file_of(fd) -> (device, inode): the file that a descriptor is of, for a fifth of what os.fstat costs. */
static PyObject *file_of(PyObject *self, PyObject *arg)
{
	struct stat held;
	int fd = (int)PyLong_AsLong(arg);
	(void)self;
	if (fd == -1 && PyErr_Occurred())
		return NULL;
	if (fstat(fd, &held))
		return PyErr_SetFromErrno(PyExc_OSError);
	PyObject *device = PyLong_FromUnsignedLongLong(held.st_dev);
	PyObject *inode = PyLong_FromUnsignedLongLong(held.st_ino);
	PyObject *both = device && inode ? PyTuple_Pack(2, device, inode) : NULL;
	Py_XDECREF(device);
	Py_XDECREF(inode);
	return both;
}

/* notify(fd): signals an eventfd, without waiting for anybody */
static PyObject *notify(PyObject *self, PyObject *arg)
{
	(void)self;
	long fd = PyLong_AsLong(arg);
	if (fd == -1 && PyErr_Occurred())
		return NULL;
	iod_virtq_tell((int)fd);
	Py_RETURN_NONE;
}

/* timer() -> a timerfd; timer_set(fd, ns) arms it at an absolute time, 0 disarms. */
static PyObject *timer(PyObject *self, PyObject *unused)
{
	(void)self;
	(void)unused;
	int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
	return fd < 0 ? PyErr_SetFromErrno(PyExc_OSError) : PyLong_FromLong(fd);
}

static PyObject *timer_set(PyObject *self, PyObject *args)
{
	int fd;
	unsigned long long when;
	(void)self;
	if (!PyArg_ParseTuple(args, "iK", &fd, &when))
		return NULL;
	struct itimerspec spec = {.it_value = {(time_t)(when / 1000000000u), (long)(when % 1000000000u)}};
	if (timerfd_settime(fd, TFD_TIMER_ABSTIME, &spec, NULL))
		return PyErr_SetFromErrno(PyExc_OSError);
	Py_RETURN_NONE;
}

/* completion(status, moved, error, fault | None): as the core would make it, for whoever stands in for it. */
static PyObject *completion(PyObject *self, PyObject *args)
{
	int status, error;
	unsigned long long moved;
	const char *stage = NULL;
	unsigned long long offset = 0, address = 0;
	int access = 0, cause = 0;
	(void)self;
	if (!PyArg_ParseTuple(args, "iKi|sKKii", &status, &moved, &error, &stage, &offset, &address, &access, &cause))
		return NULL;
	if (status < 0 || status > IOD_PEER_GONE || cause < 0 || cause > IOD_C_REMOTE)
		return PyErr_Format(ArgumentErrorType, "no status %d or cause %d", status, cause);
	PyObject *object = ext_completion_make((enum iod_status)status, moved, NULL);
	if (!object)
		return NULL;
	Completion *c = (Completion *)object;
	c->error = error;
	if (stage) {
		c->stage = PyUnicode_FromString(stage);
		c->fault_offset = offset;
		c->fault_address = address;
		c->access = (uint8_t)access;
		c->cause = (uint8_t)cause;
	}
	return object;
}

static PyMethodDef methods[] = {
	{"dio_alignment", EXT_METHOD(dio_alignment), METH_O, "(memory, offset) alignment that O_DIRECT wants of a file."},
	{"file_of", EXT_METHOD(file_of), METH_O, "file_of(fd) -> (device, inode) of the file that a descriptor is of."},
	{"timer", EXT_METHOD(timer), METH_NOARGS, "A timerfd of CLOCK_MONOTONIC."},
	{"timer_set", EXT_METHOD(timer_set), METH_VARARGS, "timer_set(fd, ns): arm it at an absolute time; 0 disarms."},
	{"notify", EXT_METHOD(notify), METH_O, "Signal an eventfd; never waits."},
	{"frame_send", EXT_METHOD(ext_frame_send), METH_FASTCALL, "Send a message, or as much as there is room for."},
	{"completion", EXT_METHOD(completion), METH_VARARGS, "A Completion, for whoever stands in for the core."},
	{"uring_probe", EXT_METHOD(uring_probe), METH_NOARGS, "What this kernel's io_uring can do."},
	{"held_regions", EXT_METHOD(ext_held_regions), METH_NOARGS, "The regions that have leases or views."},
	{"transitions", EXT_METHOD(transitions), METH_NOARGS, "The state table of a transfer: (from, to, why)."},
	{"nbd_connect", EXT_METHOD(ext_nbd_connect), METH_VARARGS, "A connection to an NBD server, and what that is."},
	{"nbd_version", EXT_METHOD(ext_nbd_version), METH_VARARGS, "The version of libnbd; raises if there is none."},
	{"clock_ns", EXT_METHOD(clock_ns), METH_NOARGS, "The clock of deadlines and traces: CLOCK_MONOTONIC, ns."},
	{0}};

static void forked(void)
{
	ext_forks++;
}

static PyObject *take(PyObject *module, const char *name)
{
	PyObject *value = module ? PyObject_GetAttrString(module, name) : NULL;
	return value;
}

static int execute(PyObject *module)
{
	PyObject *errors = PyImport_ImportModule("iodma.errors"), *types = PyImport_ImportModule("iodma.types");
	static const char *const status[] = {"OK", "FAULT", "IO_ERROR", "CANCELLED", "PEER_GONE"};
	struct {
		PyObject **where;
		PyObject *from;
		const char *name;
	} wanted[] = {
		{&ErrorType, errors, "Error"},
		{&ArgumentErrorType, errors, "ArgumentError"},
		{&ArgumentTypeErrorType, errors, "ArgumentTypeError"},
		{&AddressRangeErrorType, errors, "AddressRangeError"},
		{&ClosedErrorType, errors, "ClosedError"},
		{&StaleErrorType, errors, "StaleError"},
		{&BusyErrorType, errors, "BusyError"},
		{&WrongThreadErrorType, errors, "WrongThreadError"},
		{&UnsupportedErrorType, errors, "UnsupportedError"},
		{&DmaFaultType, errors, "DmaFault"},
		{&CancelledType, errors, "Cancelled"},
		{&AccessClass, types, "Access"},
		{&FaultClass, types, "Fault"},
	};
	if (!errors || !types)
		return -1;
	for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
		if (!(*wanted[i].where = take(wanted[i].from, wanted[i].name)))
			return -1;
	PyObject *members = take(types, "Status");
	for (int i = 0; members && i < 5; i++) {
		StatusMembers[i] = PyObject_GetAttrString(members, status[i]);
		if (!StatusMembers[i] || PyLong_AsLong(StatusMembers[i]) != i) {
			PyErr_SetString(PyExc_ImportError, "iodma.types.Status does not have the core's numbers");
			return -1;
		}
	}
	Py_XDECREF(members);
	Py_DECREF(errors);
	Py_DECREF(types);
	PyObject *python_types = PyImport_ImportModule("types");
	CoroutineType = take(python_types, "CoroutineType");
	Py_XDECREF(python_types);
	if (!CoroutineType)
		return -1;
	static bool once;
	if (!once) {
		pthread_atfork(NULL, NULL, forked);
		once = true;
	}
#ifndef IODMA_VERSION
#define IODMA_VERSION "unknown"
#endif
	if (PyModule_AddStringConstant(module, "version", IODMA_VERSION))
		return -1;
	return ext_engine_add(module) || ext_region_add(module) || ext_space_add(module) || ext_lists_add(module) ||
			       ext_wait_add(module) || ext_task_add(module) || ext_target_add(module) ||
			       ext_revocation_add(module) || ext_port_add(module) || ext_stream_add(module) || ext_queue_add(module) ||
			       ext_chains_add(module) ||
			       ext_frames_add(module) || ext_known_add(module) || ext_remote_add(module)
		       ? -1
		       : 0;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, execute}, {0}};
static struct PyModuleDef definition = {.m_base = PyModuleDef_HEAD_INIT,
					.m_name = "iodma._core",
					.m_doc = "The core of iodma: descriptors are moved here, decisions are not made here.",
					.m_methods = methods,
					.m_slots = slots};

PyMODINIT_FUNC PyInit__core(void)
{
	return PyModuleDef_Init(&definition);
}
