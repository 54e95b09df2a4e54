/* SPDX-License-Identifier: Apache-2.0 */
#ifndef PEER_VFIO_EXT_H
#define PEER_VFIO_EXT_H

#include <Python.h>

/* Adds the type VfioUser to the module. */
int vfio_user_register(PyObject *module);

/* vfio_serve(listener, ...): see _peer.pyi. */
PyObject *vfio_serve(PyObject *module, PyObject *args, PyObject *kwargs);

#endif
