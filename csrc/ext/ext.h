/* SPDX-License-Identifier: Apache-2.0
 *
 * ext: the thin layer that shows the core to Python, on the stable ABI.
 *
 * Invariants
 *  - Everything here runs with the interpreter lock, but for the marked stretches in turn.c.
 *  - An engine's objects are used by the thread that made the engine, in the process that made it: ext_check says so.
 *  - The core never calls back into Python but through the hooks of engine.c.
 *  - Whatever a row points to (lists, data, regions, targets, transfers) is referenced until the row is free.
 */
#ifndef EXT_H
#define EXT_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdlib.h>

#include "../xfer.h"

/* The stable ABI's own take only PyObject *, and leave some out. */
#define Py_INCREF(o) Py_INCREF((PyObject *)(o))
#undef Py_DECREF
#define Py_DECREF(o) Py_DECREF((PyObject *)(o))
#define Py_XINCREF(o) Py_XINCREF((PyObject *)(o))
#define Py_XDECREF(o) Py_XDECREF((PyObject *)(o))
#define Py_TYPE(o) Py_TYPE((PyObject *)(o))
#define EXT_SET(where, value)                                                                                          \
	do {                                                                                                           \
		PyObject *old_ = (where);                                                                              \
		(where) = (PyObject *)(value);                                                                         \
		Py_XDECREF(old_);                                                                                      \
	} while (0)

struct Engine;
struct Task;
struct Wait;
struct Queue;

typedef struct Region {
	PyObject_HEAD
	struct iod_region *region;
	struct Region *later, *earlier; /* among all that there are */
} Region;

typedef struct Space {
	PyObject_HEAD
	struct iod_space space;
	PyObject *next;	  /* Space */
	PyObject *hook;	  /* callable or NULL */
	PyObject *told;	  /* the same, for what was refused */
	PyObject *weak;
	struct Space *later, *earlier; /* among those that its engine's transfers have gone through */
} Space;

typedef struct Target {
	PyObject_HEAD
	struct iod_target target;
	struct Engine *engine; /* where its descriptor is registered */
	PyObject *region;      /* BUFFER */
	PyObject *script;      /* SCRIPT: called with (ticket, direction, offset, length, kind) */
	PyObject *script_cancel;
	uint32_t traced; /* the trace that knows its name */
	unsigned fork_generation; /* of the process that made its driver */
	struct Target *next_idle;
	bool on_idle_list, idle; /* idle: the reference that its rows hold is to be dropped */
} Target;

/* What comes again and again: made when it is asked for, by one coroutine at a time. */
struct ext_source {
	bool (*ready)(struct Wait *);
	PyObject *(*take)(struct Wait *);
	const char *taken; /* to a second coroutine */
};

/* What a coroutine can wait for. */
typedef struct Wait {
	PyObject_HEAD
	struct Engine *engine;
	struct Task *waiter; /* the first of those that wait, each referenced */
	uint8_t done; /* 1: value, 2: value is the exception to raise */
	bool is_transfer, is_task;
	const struct ext_source *source; /* NULL: it is done once */
	PyObject *value;
	PyObject *callback; /* called with the wait once it is done */
} Wait;

typedef struct {
	Wait wait; /* it does not hold its port: the port's rows do, and a device may keep a transfer that is over */
	uint64_t ticket;
	uint8_t kind;
	PyObject *convert; /* LOAD: bytes -> result; None: the bytes */
	PyObject *payload; /* LOAD, STORE: the bytes that row->data points into */
} Transfer;

typedef struct Task {
	Wait wait;
	PyObject *coroutine, *name, *owner;
	PyObject *ended;      /* the owner's, free to use */
	Wait *waiting;
	PyObject *throwing; /* to be thrown at the next step */
	struct Task *next;	  /* on the engine's ready list */
	struct Task *next_waiter; /* of what it waits for */
	struct Task *later, *earlier; /* among all that are not over */
	bool queued, started, cancelled, running, stale, notify, closing;
	uint8_t depth;
} Task;

typedef struct {
	PyObject_HEAD
	uint8_t status, access, cause;
	int32_t error;
	uint64_t moved, fault_offset, fault_address;
	PyObject *stage; /* name, or NULL: no fault */
} Completion;

typedef struct {
	PyObject_HEAD
	uint32_t count;
	uint64_t bytes;
	struct iod_segment *list;
} ScatterList;

#define EXT_ARRAYS 16
/* One block of memory, cut into arrays; Python makes the views. */
typedef struct {
	PyObject_HEAD
	PyObject *owner; /* bytearray */
	uint8_t *block;
	Py_ssize_t requests, segments, n, bad; /* bad: completions that are not OK */
	PyObject *arrays; /* tuple of the views, for finding out whether somebody kept one */
	PyObject *array[EXT_ARRAYS]; /* the first of them, borrowed */
	int kept;
} Columns;

typedef struct {
	PyObject_HEAD
	struct iod_port port;
	struct Engine *engine;
	PyObject *space;
	PyObject *reset_wait; /* Wait, or NULL */
	struct Stream *stream; /* the one that waits, borrowed */
	struct Queue *queue;   /* whose chains it moves, borrowed; or NULL */
	PyObject *name;
	uint32_t traced; /* the trace that knows its name */
} Port;

typedef struct Stream {
	Wait wait;
	Port *port;
	PyObject *factory, *pool; /* Completions class; list */
	uint32_t limit, least;
	bool forever;
} Stream;

typedef struct Revocation {
	Wait wait;
	struct iod_revocation revocation;
	PyObject *space;
	bool linked, haste;
	struct Revocation *next;
} Revocation;

typedef struct Engine {
	PyObject_HEAD
	struct iod_core core;
	struct iod_backend *backend;
	unsigned long thread;
	unsigned fork_generation;
	bool closed, opened, stop, each_turn, watch_armed;
	volatile int woken;
	Task *ready_head, *ready_tail;
	Task *all; /* not over, each referenced */
	uint32_t ready_count, tasks;
	Task *current;
	uint32_t immediate; /* awaits that were ready at once, in this step */
	uint64_t spin_most, spin_now;
	uint64_t release_bytes; /* a flush above this gives the lock up */
	uint64_t turns, resumed, python_bytes, gil_released;
	volatile uint64_t step_started;
	uint32_t least;
	int watch_fd;
	uint32_t watch_events, watch_result;
	bool watcher_parked;
	PyObject *raised;  /* by a device window's handler: let out at the end of the turn */
	PyObject *unpark;  /* called when a turn begins while the watcher of slow steps sleeps */
	Port **port; /* open ports, borrowed */
	uint32_t ports, port_room;
	Space *spaces; /* those that know this engine's core, borrowed */
	Revocation *revoked; /* done, to be delivered */
	Target *idle_targets; /* to be let go of when the lock is held */
	struct ext_lost *lost; /* messages to remote memory that were dropped unanswered */
	bool in_step, arena_tried;
	uint32_t trace_number, trace_ids; /* traces begun; ids given to ports and targets */
	PyObject *trace_names;		  /* dict: id -> name, of the ports and targets that the trace has met */
	bool in_turn;
	bool bridged, poked; /* another loop sleeps on fileno(); it was woken since the last turn */
	struct Queue **queue; /* virtqueues that run, borrowed */
	struct iod_watch *watch;
	uint32_t queues, queue_room;
	int kicks_fd; /* epoll: the kicks of all of them */
	bool kicks_armed, kicked;
	bool routed; /* the last look at the rings has submitted something */
	int drivers_fd; /* epoll: the descriptors of the targets that have a driver */
	bool drivers_armed, drivers_ready, settling;
	int next_buffer;
	bool file_taken[IOD_MAX_FILES];
} Engine;

extern PyTypeObject *RegionType, *SpaceType, *TargetType, *WaitType, *TransferType, *TaskType, *CompletionType,
	*ScatterListType, *ColumnsType, *CompletedType, *PortType, *StreamType, *RevocationType, *EngineType;
extern PyObject *ErrorType, *ArgumentErrorType, *ArgumentTypeErrorType, *AddressRangeErrorType, *ClosedErrorType,
	*StaleErrorType, *BusyErrorType, *WrongThreadErrorType, *UnsupportedErrorType, *DmaFaultType, *CancelledType;
extern PyObject *CoroutineType, *StatusMembers[5], *AccessClass, *FaultClass;

/* Raise (with the value named) and return NULL or -1. */
int ext_u64(PyObject *, const char *what, uint64_t *out);
int ext_range(uint64_t address, uint64_t length, const char *what);
int ext_check(Engine *); /* thread, process, open */
PyTypeObject *ext_type(PyObject *module, PyType_Spec *, PyTypeObject *base);

/* lists.c: borrow the segments of whatever may be given as a list. Fills *list from `room` or a ScatterList. */
struct ext_list {
	const struct iod_segment *list;
	uint32_t count;
	struct iod_segment few[16];
	struct iod_segment *heap;
	PyObject *hold;
};
int ext_list_get(PyObject *, struct ext_list *);
void ext_list_put(struct ext_list *);
/* An object of the pool whose arrays nobody kept, or a new one: factory(limit). */
Columns *ext_columns_from(PyObject *pool, PyObject *factory, uint32_t limit);
PyObject *ext_columns_column(Columns *, void *which); /* the first n of one of the kept arrays */
/* Where the columns of a batch and of completions are, in the order in which sg.py cuts the block. */
struct ext_batch {
	uint64_t *id, *position, *ticket, *address, *length;
	uint32_t *first, *count;
	uint8_t *direction;
};
void ext_batch_cut(const Columns *, struct ext_batch *);
struct ext_completed {
	uint64_t *ticket, *id, *moved, *fault_offset, *fault_address;
	int32_t *error;
	uint8_t *status;
};
void ext_completed_cut(const Columns *, struct ext_completed *);

/* tasks.c */
void ext_wait_init(Wait *, Engine *);
Task *ext_task_new(Engine *);
Transfer *ext_transfer_new(Engine *);
void ext_wait_done(Wait *, PyObject *value, bool failed); /* steals value */
void ext_wait_clear(Wait *);
void ext_task_ready(Task *);
uint32_t ext_run_ready(Engine *, uint32_t most);
PyObject *ext_completion(const struct iod_row *);
PyObject *ext_completion_make(enum iod_status, uint64_t moved, const struct iod_fault *);
int ext_task_add(PyObject *module);
int ext_wait_add(PyObject *module);
int ext_task_cancel(Task *);
PyObject *ext_task_name(Task *); /* borrowed; made when it is first asked for */
PyObject *ext_transfer(Port *, const struct iod_request *, PyObject *convert, PyObject *payload);
PySendResult ext_wait_send(PyObject *wait, PyObject *sent, PyObject **result); /* not inherited: in each type */
bool ext_stream_ready(Stream *);
extern const struct ext_source ext_batches_source;

/* engine.c: give the trace a name for an id, once a trace.  Nothing while there is none. */
int ext_trace_name(Engine *, uint32_t *traced, uint32_t *id, PyObject *object, const char *name);

/* space.c: an engine's transfers go through it, until it is freed or the engine closed. */
void ext_space_join(Space *, Engine *);
void ext_space_leave(Space *);

/* translate.c: methods of Space */
PyObject *ext_space_translate(Space *, PyObject *const *args, Py_ssize_t n);
PyObject *ext_space_walk(Space *, PyObject *const *args, Py_ssize_t n);
PyObject *ext_space_lookup_loop(Space *, PyObject *const *args, Py_ssize_t n);

/* turn.c */
void ext_deliver(Engine *);
void ext_poke(Engine *); /* there is something to do, and it may be outside a turn */
uint64_t ext_clock(void);
void ext_drop_idle(Engine *);
void ext_tell_refused(Engine *);

/* A window's handler, or who has remote memory, raised: the engine logs it, or lets it out of run. */
void ext_window_failed(Engine *, PyObject *target);

/* remote.c */
void ext_remote_ask(void *engine, struct iod_region *, const struct iod_message *, const uint8_t *data); /* a hook */
void ext_remote_lost(Engine *);
int ext_remote_add(PyObject *module);

/* drivers.c: what a target with a driver needs of its engine. */
int ext_drivers_add(Engine *, struct iod_target *);
void ext_drivers_remove(Engine *, struct iod_target *);

/* frames.c */
int ext_frames_add(PyObject *module);
PyObject *ext_frame_send(PyObject *module, PyObject *const *args, Py_ssize_t count);

/* known.c */
int ext_known_add(PyObject *module);

/* nbd.c */
PyObject *ext_nbd_connect(PyObject *module, PyObject *args);
PyObject *ext_nbd_version(PyObject *module, PyObject *args);
struct iod_driver *ext_driver_take(PyObject *capsule); /* NULL: raised */

int ext_region_add(PyObject *module);
PyObject *ext_held_regions(PyObject *module, PyObject *unused);
int ext_space_add(PyObject *module);
int ext_lists_add(PyObject *module);
int ext_port_add(PyObject *module);
/* Around rows that are submitted without a Transfer each. */
uint32_t ext_port_begin(Port *);
void ext_port_end(Port *, uint32_t before);
/* Each raises when it gives -1. */
int ext_port_may_submit(Port *);
int ext_port_refused(Port *, int error); /* raises what an error of iod_submit's means; -1 */
int ext_port_target(Port *, PyObject *, Target **out);
/* submit.c: Port.submit */
PyObject *ext_port_submit(Port *, PyObject *const *args, Py_ssize_t n, PyObject *names);

/* keywords.c */
#define EXT_MOST_NAMES 7
struct ext_names {
	const char *text[EXT_MOST_NAMES + 1];
	PyObject *interned[EXT_MOST_NAMES]; /* the same, when it was used once */
};
/* value[k]: what is called known->text[k], of which the first `most` may be positional; NULL: it was not given. */
int ext_keywords(struct ext_names *known, PyObject *const *args, Py_ssize_t positional, Py_ssize_t most, PyObject *names,
		 PyObject **value);

int ext_stream_add(PyObject *module);
int ext_queue_add(PyObject *module);
int ext_chains_add(PyObject *module);
int ext_target_add(PyObject *module);
int ext_target_use(Target *, Engine *); /* bind it to the engine; raises when it is another's, or closed */
void ext_target_unused(Target *);	/* no row came of that */
int ext_revocation_add(PyObject *module);
int ext_engine_add(PyObject *module);
extern unsigned ext_forks;

static inline void ext_row_free(Engine *engine, struct iod_row *row)
{
	struct iod_port *port = row->port;
	iod_row_free(&engine->core, row);
	if (port->rows == 0)
		Py_DECREF((PyObject *)port->owner); /* taken with the first row */
}

#define EXT_METHOD(function) ((PyCFunction)(void (*)(void))(function))
#endif
