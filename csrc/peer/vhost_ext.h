/* SPDX-License-Identifier: Apache-2.0 */
#ifndef PEER_VHOST_EXT_H
#define PEER_VHOST_EXT_H

#include <Python.h>

/* Adds the type VhostBlk to the module. */
int vhost_blk_register(PyObject *module);

#endif
