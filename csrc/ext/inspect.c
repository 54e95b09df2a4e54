/* SPDX-License-Identifier: Apache-2.0
 *
 * inspect: what an engine shows of itself: transfers in flight, counters, the trace, the edges that were walked.
 *
 * Invariants
 *  - It changes nothing but what is kept for looking at. */
#include "engine.h"

#include <stdio.h>
#include <string.h>

PyObject *ext_engine_rows(Engine *self, PyObject *unused)
{
	(void)unused;
	PyObject *list = PyList_New(0);
	uint64_t now = ext_clock();
	for (uint32_t i = 0; list && !self->closed && i < self->core.rows; i++) {
		struct iod_row *row = iod_row_at(&self->core, i);
		if (row->state == IOD_S_FREE)
			continue;
		PyObject *target = row->target ? (PyObject *)row->target->owner : Py_None;
		PyObject *item = Py_BuildValue("(KsiisKKLiO)", (unsigned long long)row->ticket,
					       iod_state_names[row->state], (int)row->kind, (int)row->direction,
					       row->port->name, (unsigned long long)row->total,
					       (unsigned long long)row->moved, (long long)(now - row->born),
					       (int)row->wait, target);
		if (!item || PyList_Append(list, item))
			Py_CLEAR(list);
		Py_XDECREF(item);
	}
	return list;
}

static int put(PyObject *dict, const char *name, uint64_t value)
{
	PyObject *number = PyLong_FromUnsignedLongLong(value);
	int error = number ? PyDict_SetItemString(dict, name, number) : -1;
	Py_XDECREF(number);
	return error;
}

PyObject *ext_engine_stats(Engine *self, PyObject *unused)
{
	(void)unused;
	static const char *const status[] = {"ok", "fault", "io_error", "cancelled", "peer_gone"};
	static const char *const reason[] = {"lanes", "alignment", "not_ram", "small", "remote", "peeked", "framed"};
	static const char *const wait[] = {"none", "budget", "ring", "order", "range"};
	const struct iod_counters *c = &self->core.count;
	PyObject *d = PyDict_New();
	char name[64];
	int bad = !d;
	if (bad)
		return NULL;
#define PUT(field, value) bad |= put(d, field, value)
	PUT("submitted", c->submitted);
	PUT("delivered", c->delivered);
	for (int i = 0; i < 5; i++) {
		snprintf(name, sizeof name, "completed_%s", status[i]);
		PUT(name, c->completed[i]);
	}
	PUT("bytes_from_memory", c->bytes[IOD_FROM_MEMORY]);
	PUT("bytes_to_memory", c->bytes[IOD_TO_MEMORY]);
	for (int i = 0; i < IOD_REASONS; i++) {
		snprintf(name, sizeof name, "bounced_%s", reason[i]);
		PUT(name, c->bounced[i]);
		snprintf(name, sizeof name, "bounces_%s", reason[i]);
		PUT(name, c->bounces[i]);
	}
	for (int i = 1; i < IOD_WAIT_REASONS; i++) {
		snprintf(name, sizeof name, "waited_%s", wait[i]);
		PUT(name, c->waits[i]);
	}
	PUT("pending", c->pending);
	PUT("requests", c->requests);
	PUT("splits", c->splits);
	PUT("coalesced", c->coalesced);
	PUT("pieces", c->pieces);
	PUT("messages", c->messages);
	PUT("revocations", c->revocations);
	PUT("revocations_failed", c->revocations_failed);
	PUT("copied", c->copied);
	PUT("python_bytes", self->python_bytes);
	PUT("in_use", self->core.in_use);
	PUT("with_backend", self->core.with_backend + self->core.with_drivers);
	PUT("tasks", self->tasks);
	PUT("turns", self->turns);
	PUT("resumed", self->resumed);
	PUT("lock_released", self->gil_released);
	PUT("arena_bytes", (uint64_t)self->core.arena.pages * IOD_ARENA_PAGE);
	PUT("arena_used", (uint64_t)self->core.arena.used * IOD_ARENA_PAGE);
	PUT("arena_peak", (uint64_t)self->core.arena.peak * IOD_ARENA_PAGE);
	if (self->backend) {
		const struct iod_backend_stats *b = &self->backend->stats;
		PUT("enters", b->enters);
		PUT("sleeps", b->sleeps);
		PUT("spins", b->spins);
		PUT("spin_hits", b->spin_hits);
		PUT("cancels", b->cancels);
	}
#undef PUT
	if (bad)
		Py_CLEAR(d);
	return d;
}

int ext_trace_name(Engine *self, uint32_t *traced, uint32_t *id, PyObject *object, const char *name)
{
	if (!self->core.trace || *traced == self->trace_number)
		return 0;
	PyObject *text = name ? PyUnicode_FromString(name) : PyObject_Repr(object);
	PyObject *key = text ? PyLong_FromUnsignedLong(*id ? *id : ++self->trace_ids) : NULL;
	int error = key ? PyDict_SetItem(self->trace_names, key, text) : -1;
	if (key && !*id)
		*id = self->trace_ids;
	Py_XDECREF(text);
	Py_XDECREF(key);
	if (!error)
		*traced = self->trace_number;
	return error;
}

/* _trace(room): keep up to `room` events from now on; 0 stops. */
PyObject *ext_engine_trace(Engine *self, PyObject *arg)
{
	uint64_t room;
	if (ext_check(self) || ext_u64(arg, "room", &room))
		return NULL;
	if (self->core.trace) {
		free(self->core.trace->event);
		free(self->core.trace);
		self->core.trace = NULL;
	}
	if (room == 0)
		Py_RETURN_NONE;
	struct iod_trace *trace = calloc(1, sizeof *trace);
	if (trace && room <= PTRDIFF_MAX / sizeof *trace->event)
		trace->event = malloc(room * sizeof *trace->event);
	if (!trace || !trace->event) {
		free(trace);
		return PyErr_NoMemory();
	}
	trace->room = room;
	EXT_SET(self->trace_names, PyDict_New());
	if (!self->trace_names) {
		free(trace->event);
		free(trace);
		return NULL;
	}
	self->trace_number++;
	self->core.trace = trace;
	/* Those that are there already; others get their names as they submit. */
	int error = 0;
	for (uint32_t i = 0; !error && i < self->ports; i++)
		error = ext_trace_name(self, &self->port[i]->traced, &self->port[i]->port.trace_id, NULL,
				       self->port[i]->port.name);
	for (uint32_t i = 0; !error && i < self->core.rows; i++) {
		struct iod_row *row = iod_row_at(&self->core, i);
		Target *target = row->state != IOD_S_FREE && row->target ? row->target->owner : NULL;
		if (target)
			error = ext_trace_name(self, &target->traced, &target->target.trace_id, (PyObject *)target, NULL);
	}
	if (error)
		return NULL;
	Py_RETURN_NONE;
}

/* _take_trace() -> (events as bytes, events lost, {id: name}): <QQQBBBBIII each, see struct iod_trace_event */
PyObject *ext_engine_take_trace(Engine *self, PyObject *unused)
{
	(void)unused;
	struct iod_trace *trace = self->core.trace;
	if (!trace)
		return Py_BuildValue("y#K{}", "", (Py_ssize_t)0, 0ULL);
	PyObject *result = Py_BuildValue("y#KO", (const char *)trace->event,
					 (Py_ssize_t)(trace->count * sizeof *trace->event),
					 (unsigned long long)trace->lost, self->trace_names);
	if (result) {
		trace->count = 0;
		trace->lost = 0;
	}
	return result;
}

/* _edges() -> {(from, to): times}; the first call starts the counting. */
PyObject *ext_engine_edges(Engine *self, PyObject *unused)
{
	(void)unused;
	if (!self->core.edges)
		self->core.edges = calloc(IOD_STATE_COUNT * IOD_STATE_COUNT, sizeof *self->core.edges);
	if (!self->core.edges)
		return PyErr_NoMemory();
	PyObject *dict = PyDict_New();
	for (size_t i = 0; dict && i < iod_edge_count; i++) {
		PyObject *key = Py_BuildValue("ss", iod_state_names[iod_edges[i].from], iod_state_names[iod_edges[i].to]);
		PyObject *value = PyLong_FromUnsignedLongLong(
			self->core.edges[iod_edges[i].from * IOD_STATE_COUNT + iod_edges[i].to]);
		if (!key || !value || PyDict_SetItem(dict, key, value))
			Py_CLEAR(dict);
		Py_XDECREF(key);
		Py_XDECREF(value);
	}
	return dict;
}
