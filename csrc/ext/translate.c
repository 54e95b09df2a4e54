/* SPDX-License-Identifier: Apache-2.0
 *
 * translate: walks that Python asks for: what a list comes to in host memory, or the fault.
 *
 * Invariants
 *  - Nothing is leased: what they tell is good until the interpreter lock is given up. */
#include "ext.h"

static struct iod_translation kept; /* reused: the interpreter lock is held throughout */
static bool kept_in_use;	    /* a hook of the walk may translate, too */

/* translate(list, access) -> list of (host address, length, offset in region, lanes), or the Fault */
static PyObject *translate(Space *self, PyObject *const *args, Py_ssize_t n, bool pieces)
{
	struct ext_list list;
	struct iod_fault fault = {0};
	uint64_t access;

	if (n != 2)
		return PyErr_Format(PyExc_TypeError, "translate takes a list and an access, not %zd arguments", n);
	if (ext_u64(args[1], "access", &access) || ext_list_get(args[0], &list))
		return NULL;
	struct iod_translation own = {0}, *t = kept_in_use ? &own : &kept;
	kept_in_use = true;
	enum iod_walk_result result = iod_walk(&self->space, list.list, list.count, 0, (uint8_t)access, t, &fault);
	if (t == &kept)
		kept_in_use = false;
	PyObject *out = NULL;
	if (result == IOD_WALK_NO_MEMORY) {
		PyErr_NoMemory();
	} else if (result != IOD_WALK_OK) {
		fault.cause = result == IOD_WALK_PENDING ? IOD_C_UNMAPPED : fault.cause;
		out = PyObject_CallFunction(FaultClass, "KKOss", (unsigned long long)fault.offset,
					    (unsigned long long)fault.address, args[1], fault.space->name,
					    iod_cause_text(fault.cause));
	} else if (!pieces) {
		out = PyLong_FromUnsignedLong(t->count);
	} else {
		out = PyList_New(t->count);
		for (uint32_t i = 0; out && i < t->count; i++) {
			struct iod_region *region = t->piece[i].region;
			uintptr_t at = (uintptr_t)t->iov[i].iov_base;
			PyObject *row = Py_BuildValue(
				"KKKi", (unsigned long long)at, (unsigned long long)t->iov[i].iov_len,
				(unsigned long long)(iod_region_is_host(region) ? at - (uintptr_t)region->host : at),
				(int)t->piece[i].lanes);
			if (!row)
				Py_CLEAR(out);
			else
				PyList_SetItem(out, i, row);
		}
	}
	ext_list_put(&list);
	iod_translation_free(&own);
	return out;
}

PyObject *ext_space_translate(Space *self, PyObject *const *args, Py_ssize_t n)
{
	return translate(self, args, n, true);
}

PyObject *ext_space_walk(Space *self, PyObject *const *args, Py_ssize_t n)
{
	/* A ScatterList whose walk succeeds, which is what anybody who is in a hurry has. */
	if (n == 2 && (PyTypeObject *)Py_TYPE(args[0]) == ScatterListType && !kept_in_use) {
		const ScatterList *list = (const ScatterList *)args[0]; /* the caller keeps it */
		struct iod_fault fault;
		unsigned long long access = PyLong_AsUnsignedLongLong(args[1]);
		if (access <= (IOD_READ | IOD_WRITE)) {
			kept_in_use = true;
			enum iod_walk_result result =
				iod_walk(&self->space, list->list, list->count, 0, (uint8_t)access, &kept, &fault);
			kept_in_use = false;
			if (result == IOD_WALK_OK)
				return PyLong_FromUnsignedLong(kept.count);
		} else {
			PyErr_Clear(); /* said again below */
		}
	}
	return translate(self, args, n, false);
}

/* _lookup_loop(list, rounds) -> ns a round.  What a plain C loop does that knows this map and nothing else: find each
 * segment's range, see that the segment lies in it, keep the vector.  Benchmarks compare with it. */
PyObject *ext_space_lookup_loop(Space *self, PyObject *const *args, Py_ssize_t n)
{
	struct ext_list list;
	uint64_t rounds;
	if (n != 2)
		return PyErr_Format(PyExc_TypeError, "_lookup_loop takes a list and a count");
	if (ext_u64(args[1], "rounds", &rounds) || ext_list_get(args[0], &list))
		return NULL;
	struct iod_map *map = &self->space.map;
	struct iovec *vector = malloc((list.count + 1) * sizeof *vector);
	uint64_t found = 0;
	if (!vector) {
		ext_list_put(&list);
		return PyErr_NoMemory();
	}
	uint64_t begin = ext_clock();
	for (uint64_t r = 0; r < rounds; r++)
		for (uint32_t i = 0; i < list.count; i++) {
			const struct iod_segment *segment = &list.list[i];
			ptrdiff_t at = iod_map_find(map, segment->address);
			if (at < 0 || segment->length - 1 > map->range[at].last - segment->address)
				break;
			vector[i].iov_base = map->range[at].host + (segment->address - map->first[at]);
			vector[i].iov_len = segment->length;
			found++;
		}
	uint64_t end = ext_clock();
	__asm__ volatile("" : : "r"(vector) : "memory"); /* it is looked at */
	free(vector);
	uint64_t wanted = rounds * list.count;
	ext_list_put(&list);
	if (found != wanted)
		return PyErr_Format(ErrorType, "%llu of %llu lookups found nothing", (unsigned long long)(wanted - found),
				    (unsigned long long)wanted);
	return PyFloat_FromDouble(rounds ? (double)(end - begin) / (double)rounds : 0);
}
