/* SPDX-License-Identifier: Apache-2.0
 *
 * keywords: keyword arguments by name, without a dictionary.
 *
 * Invariant: a call that is compiled names them by interned strings, and so is matched by comparing pointers. */
#include "ext.h"

static int intern(struct ext_names *known)
{
	for (int k = 0; known->text[k]; k++)
		if (!known->interned[k] && !(known->interned[k] = PyUnicode_InternFromString(known->text[k])))
			return -1;
	return 0;
}

static int index_of(const struct ext_names *known, PyObject *name)
{
	for (int k = 0; known->text[k]; k++)
		if (known->interned[k] == name)
			return k;
	for (int k = 0; known->text[k]; k++)
		if (!PyUnicode_CompareWithASCIIString(name, known->text[k]))
			return k;
	return -1;
}

int ext_keywords(struct ext_names *known, PyObject *const *args, Py_ssize_t positional, Py_ssize_t most, PyObject *names,
		 PyObject **value)
{
	Py_ssize_t n = names ? PyTuple_Size(names) : 0;
	if (positional > most) {
		PyErr_Format(PyExc_TypeError, "at most %zd positional arguments, not %zd", most, positional);
		return -1;
	}
	if (!known->interned[0] && intern(known))
		return -1;
	for (Py_ssize_t i = 0; i < positional; i++)
		value[i] = args[i];
	for (Py_ssize_t i = 0; i < n; i++) {
		PyObject *name = PyTuple_GetItem(names, i);
		int k = index_of(known, name);
		if (k < 0 || value[k]) {
			PyErr_Format(PyExc_TypeError, k < 0 ? "unexpected argument %R" : "argument %R was given twice", name);
			return -1;
		}
		value[k] = args[positional + i];
	}
	return 0;
}
