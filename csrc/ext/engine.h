/* SPDX-License-Identifier: Apache-2.0
 *
 * engine: what engine.c, turn.c and inspect.c share. */
#ifndef EXT_ENGINE_H
#define EXT_ENGINE_H

#include "ext.h"

#define EXT_WATCH (UINT64_MAX - 1) /* user_data of the poll on the watched descriptor: no ticket is that large */

#define EXT_DRIVERS (UINT64_MAX - 3)

void ext_arm_watch(Engine *);
int ext_refuse_nested(const Engine *);
bool ext_idle(const Engine *); /* nothing is left to be done but wait */
bool ext_has_work(const Engine *);
int ext_turn(Engine *, int64_t timeout, uint32_t limit);
PyObject *ext_engine_run(Engine *, PyObject *deadline);
PyObject *ext_engine_pump(Engine *, PyObject *limit);

/* drivers.c */
bool ext_drivers_arm(Engine *); /* true: the engine must not sleep yet */
void ext_drivers_look(Engine *);
bool ext_drivers_work(const Engine *);
bool ext_drivers_abort(Engine *);
void ext_drivers_close(Engine *);

/* inspect.c */
PyObject *ext_engine_rows(Engine *, PyObject *);
PyObject *ext_engine_stats(Engine *, PyObject *);
PyObject *ext_engine_trace(Engine *, PyObject *room);
PyObject *ext_engine_take_trace(Engine *, PyObject *);
PyObject *ext_engine_edges(Engine *, PyObject *);

#endif
