/* SPDX-License-Identifier: Apache-2.0
 *
 * submit: the requests of a batch go to the core by one call.
 *
 * Invariants
 *  - Every request is checked before the first one is submitted: a call that raises has submitted nothing.
 *  - What a guest has asked for is no exception: it is a request that ends with an error. */
#include "ext.h"

#include <string.h>

/* A buffer of at least `count` 64-bit integers. */
static int words_of(PyObject *object, const char *what, Py_ssize_t count, Py_buffer *view)
{
	if (PyObject_GetBuffer(object, view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)) {
		PyErr_Clear();
		view->obj = NULL;
	} else {
		const char *format = view->format ? view->format : "B";
		if (view->itemsize == 8 && view->len / 8 >= count && strchr("LQlq", format[strlen(format) - 1]))
			return 0;
		PyBuffer_Release(view);
		view->obj = NULL;
	}
	PyErr_Format(ArgumentTypeErrorType, "%s is %R; a contiguous array of %zd 64-bit integers would be right", what,
		     object, count);
	return -1;
}

/* Every request that is asked for names segments that the batch has: 0, or -1 with the exception. */
static int check_batch(const Columns *columns, const struct ext_batch *b, const uint64_t *rows, Py_ssize_t n)
{
	for (Py_ssize_t k = 0; k < n; k++) {
		uint64_t i = rows ? rows[k] : (uint64_t)k;
		if (i >= (uint64_t)columns->requests) {
			PyErr_Format(ArgumentErrorType, "rows[%zd] is %llu; the batch holds %zd requests", k,
				     (unsigned long long)i, columns->requests);
			return -1;
		}
		if (b->first[i] > columns->segments || b->count[i] > columns->segments - b->first[i] ||
		    b->direction[i] > 1) {
			PyErr_Format(ArgumentErrorType,
				     "request %llu: first %u, count %u, direction %u; the batch has %zd segments, and a "
				     "direction is 0 or 1",
				     (unsigned long long)i, b->first[i], b->count[i], b->direction[i], columns->segments);
			return -1;
		}
	}
	return 0;
}

static PyObject *submit_batch(Port *self, Columns *columns, PyObject *endpoint, const uint64_t *positions, uint64_t unit,
			      const uint64_t *end, const uint64_t *rows, Py_ssize_t n, bool linked)
{
	struct ext_batch b;
	Target *target;

	ext_batch_cut(columns, &b);
	if (n > (Py_ssize_t)(self->port.depth - self->port.rows))
		return PyErr_Format(BusyErrorType,
				    "port %s has %u transfers outstanding and cannot take %zd more: its depth is %u",
				    self->port.name, self->port.rows, n, self->port.depth);
	if (check_batch(columns, &b, rows, n))
		return NULL;
	if (n && ext_port_target(self, endpoint, &target))
		return NULL;
	struct iod_core *core = &self->engine->core;
	struct iod_request request = {.kind = IOD_R_TRANSFER, .port = &self->port, .target = n ? &target->target : NULL,
				      .minimum = UINT64_MAX, .depth = core->depth, .end = end ? *end : 0,
				      .unit = end ? unit : 0};
	uint32_t before = ext_port_begin(self);
	int error = 0;
	for (Py_ssize_t k = 0; k < n && !error; k++) {
		uint64_t i = rows ? rows[k] : (uint64_t)k;
		request.direction = b.direction[i];
		request.addresses = b.address + b.first[i];
		request.lengths = b.length + b.first[i];
		request.count = b.count[i];
		request.id = b.id[i];
		request.linked = linked && k;
		/* What a guest asked for cannot be an exception: a position that does not fit is refused as a request. */
		if (__builtin_mul_overflow(positions ? positions[k] : b.position[i], unit, &request.position))
			request.position = UINT64_MAX;
		error = iod_submit(core, &request, &b.ticket[i]);
	}
	ext_port_end(self, before);
	if (error) {
		ext_port_refused(self, error);
		ext_target_unused(target);
		return NULL;
	}
	PyObject *tickets = columns->arrays ? PyTuple_GetItem(columns->arrays, 0) : Py_None;
	Py_INCREF(tickets);
	return tickets;
}

PyObject *ext_port_submit(Port *self, PyObject *const *args, Py_ssize_t n, PyObject *names)
{
	static struct ext_names known = {.text = {"batch", "endpoint", "position", "unit", "rows", "end", "linked"}};
	PyObject *value[EXT_MOST_NAMES] = {NULL};
	Py_buffer rows = {0}, positions = {0};
	PyObject *result = NULL;
	uint64_t unit = 1, end = 0, position;

	if (ext_keywords(&known, args, n, 3, names, value) || ext_port_may_submit(self))
		return NULL;
	if (!value[0] || !PyObject_TypeCheck(value[0], ColumnsType))
		return PyErr_Format(ArgumentTypeErrorType, "%R is not a Batch", value[0] ? value[0] : Py_None);
	if (value[3] && ext_u64(value[3], "unit", &unit))
		return NULL;
	int linked = value[6] ? PyObject_IsTrue(value[6]) : 0;
	if (linked < 0)
		return NULL;
	bool bounded = value[5] && value[5] != Py_None;
	if (bounded && ext_u64(value[5], "end", &end))
		return NULL;
	if (bounded && !unit)
		return PyErr_Format(ArgumentErrorType, "unit is 0; with an end it must be 1 or more");
	Columns *columns = (Columns *)value[0];
	Py_ssize_t count = columns->n;
	uint64_t *which = NULL;
	if (value[4] && PyObject_TypeCheck(value[4], CompletedType)) { /* what finished, again */
		struct ext_completed done;
		ext_completed_cut((Columns *)value[4], &done);
		which = done.id;
		count = ((Columns *)value[4])->n;
	} else if (value[4] && value[4] != Py_None) {
		if (words_of(value[4], "rows", 0, &rows))
			return NULL;
		count = rows.len / 8;
		struct ext_batch b;
		ext_batch_cut(columns, &b);
		if ((uint64_t *)rows.buf < b.address && b.ticket < (uint64_t *)rows.buf + count) {
			PyBuffer_Release(&rows); /* they would change while they are read */
			PyErr_SetString(ArgumentErrorType, "rows lies in the batch's own tickets, which this call writes");
			return NULL;
		}
		which = rows.buf;
	}
	if (value[2] && PyLong_Check(value[2])) {
		if (count != 1)
			PyErr_Format(ArgumentErrorType, "position is one number, and there are %zd requests", count);
		else if (!ext_u64(value[2], "position", &position))
			result = submit_batch(self, columns, value[1], &position, unit, bounded ? &end : NULL, which, 1,
					      linked);
	} else if (!value[2] || value[2] == Py_None || !words_of(value[2], "position", count, &positions)) {
		result = submit_batch(self, columns, value[1], positions.buf, unit, bounded ? &end : NULL, which, count,
				      linked);
	}
	if (positions.obj)
		PyBuffer_Release(&positions);
	if (rows.obj)
		PyBuffer_Release(&rows);
	return result;
}
