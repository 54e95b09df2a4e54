/* SPDX-License-Identifier: Apache-2.0
 *
 * route: where a queue's plain requests go, decided once for all of them: the core submits and answers those by itself,
 * and what is anything else comes out as batches.
 *
 * Invariants
 *  - What goes by the route is submitted, checked, counted and traced as if Python had submitted it.
 *  - While chains wait for Python to take them, none is popped: a driver cannot make more than one batch wait.
 *  - A chain is answered by whoever submitted it; what nobody can submit is answered with an error. */
#include "queue.h"

#include <string.h>

/* route(endpoint | None, to_memory, from_memory, unit, end | None, ok, error) */
PyObject *ext_queue_route(Queue *self, PyObject *const *args, Py_ssize_t n)
{
	struct ext_route route = {.bounded = true};
	uint64_t ok, error;
	if (n != 7)
		return PyErr_Format(PyExc_TypeError, "_route takes 7 arguments, not %zd", n);
	if (ext_queue_usable(self))
		return NULL;
	if (args[0] == Py_None) {
		EXT_SET(self->route.endpoint, NULL);
		Py_RETURN_NONE;
	}
	if (!PyObject_TypeCheck(args[0], TargetType))
		return PyErr_Format(ArgumentTypeErrorType, "%R is not an endpoint", args[0]);
	if (ext_u64(args[1], "to_memory", &route.to_memory) || ext_u64(args[2], "from_memory", &route.from_memory) ||
	    ext_u64(args[3], "unit", &route.unit) || (args[4] != Py_None && ext_u64(args[4], "end", &route.end)) ||
	    ext_u64(args[5], "ok", &ok) || ext_u64(args[6], "error", &error))
		return NULL;
	if (route.unit == 0)
		return PyErr_Format(ArgumentErrorType, "unit is 0; 1 or more would be right");
	route.bounded = args[4] != Py_None;
	route.ok = (uint8_t)ok;
	route.error = (uint8_t)error;
	route.endpoint = args[0];
	Py_INCREF(args[0]);
	PyObject *before = self->route.endpoint;
	self->route = route;
	Py_XDECREF(before);
	ext_poke(self->port->engine);
	Py_RETURN_NONE;
}

/* The rows that go by the route are submitted; the others move to the front, and their number is given. */
static uint32_t submit(Queue *self, const struct iod_chains *c)
{
	const struct ext_route *route = &self->route;
	Port *port = self->port;
	struct iod_core *core = &port->engine->core;
	Target *target = (Target *)route->endpoint;
	bool can = !port->port.closed && !port->port.resetting && !ext_target_use(target, port->engine);
	if (!can)
		PyErr_Clear(); /* an endpoint that is closed: the requests end in errors */
	struct iod_request request = {.kind = IOD_R_TRANSFER, .port = &port->port, .target = &target->target,
				      .minimum = UINT64_MAX, .end = route->end, .unit = route->bounded ? route->unit : 0};
	uint32_t before = ext_port_begin(port), odd = 0;

	for (uint32_t i = 0; i < c->n; i++) {
		uint64_t bit = (uint64_t)1 << (c->opcode[i] < 63 ? c->opcode[i] : 63);
		bool plain = !c->readable[i] != !c->writable[i] &&
			     bit & (c->writable[i] ? route->to_memory : route->from_memory);
		if (!plain) {
			c->id[odd] = c->id[i];
			c->position[odd] = c->position[i];
			c->readable[odd] = c->readable[i];
			c->writable[odd] = c->writable[i];
			c->opcode[odd] = c->opcode[i];
			c->direction[odd] = c->direction[i];
			c->first[odd] = c->first[i];
			c->count[odd] = c->count[i];
			memmove(c->header + (size_t)odd * self->q.header, c->header + (size_t)i * self->q.header, self->q.header);
			odd++;
			continue;
		}
		uint64_t ticket;
		request.direction = c->direction[i];
		request.addresses = c->address + c->first[i];
		request.lengths = c->length + c->first[i];
		request.count = c->count[i];
		request.id = c->id[i];
		if (__builtin_mul_overflow(c->position[i], route->unit, &request.position))
			request.position = UINT64_MAX;
		if (!can || iod_submit(core, &request, &ticket))
			iod_virtq_answer(&self->q, c->id[i], 0, &route->error, 1);
	}
	ext_port_end(port, before);
	if (can)
		ext_target_unused(target);
	if (self->q.used_count)
		iod_virtq_publish(&self->q);
	return odd;
}

bool ext_route_pop(Queue *self)
{
	struct iod_chains *out;
	if (self->odd || self->stopped || self->q.broken || self->popped_turn == self->port->engine->turns)
		return false;
	Chains *chains = ext_queue_pop_unseen(self, ROUTE_LIMIT, &out);
	if (!chains) {
		PyErr_WriteUnraisable((PyObject *)self);
		self->stopped = true;
		return false;
	}
	if (!out->n)
		return false;
	uint32_t n = out->n, odd = submit(self, out);
	self->popped_turn = self->port->engine->turns;
	chains->columns.n = odd;
	chains->to_memory &= ~self->route.to_memory;
	chains->from_memory &= ~self->route.from_memory;
	if (odd) {
		self->odd = (PyObject *)chains;
		self->unseen = NULL;
	}
	return odd < n;
}

/* What the port has completed of batches is answered. */
void ext_route_answer(Queue *self)
{
	Engine *engine = self->port->engine;
	struct iod_row *row;
	while ((row = iod_take_batch(&engine->core, &self->port->port))) {
		const struct iod_virtq_slot *slot = row->id < self->q.size ? &self->q.slot[row->id] : NULL;
		bool all = slot && row->status == IOD_OK && row->moved == slot->payload;
		uint8_t byte = all ? self->route.ok : self->route.error;
		iod_virtq_answer(&self->q, row->id, row->direction == IOD_TO_MEMORY ? row->moved : 0, &byte, 1);
		ext_row_free(engine, row);
	}
	iod_virtq_publish(&self->q);
	ext_queue_settled(self);
}
