/* SPDX-License-Identifier: Apache-2.0
 *
 * queue: virtqueues, as the engine and their Python objects share them. */
#ifndef EXT_QUEUE_H
#define EXT_QUEUE_H

#include "../virtq.h"
#include "ext.h"

#define EXT_KICKS (UINT64_MAX - 2) /* user_data of the poll on all kicks: no ticket is that large */

#define ROUTE_LIMIT 16 /* chains a turn */

/* Where plain requests go by themselves. */
struct ext_route {
	PyObject *endpoint; /* Target, or NULL: there is no route */
	uint64_t to_memory, from_memory; /* bit k: opcode k, with only such payload */
	uint64_t unit, end;
	bool bounded; /* by `end` */
	uint8_t ok, error; /* the trailer's first byte */
};

typedef struct Queue {
	PyObject_HEAD
	struct iod_virtq q;
	Port *port;
	PyObject *factory, *pool; /* Chains class; list */
	struct Batches *reader;	  /* the one that waits, borrowed */
	PyObject *drained;	  /* Wait, or NULL */
	struct iod_region *inflight; /* or NULL */
	struct ext_route route;
	PyObject *odd; /* Chains that the route does not cover, until the reader takes them */
	struct Chains *unseen; /* what the route pops into: Python has never had it since it was free, or NULL */
	struct iod_chains cut; /* ... and its columns */
	uint32_t index;
	uint64_t popped_turn;
	bool stopped, released;
} Queue;

typedef struct Batches {
	Wait wait;
	Queue *queue;
	uint32_t limit;
} Batches;

/* A batch that holds chains: the columns of a Batch, then those that only chains have; see virtio/chains.py. */
typedef struct Chains {
	Columns columns;
	uint64_t to_memory, from_memory, other;
	uint32_t header;
} Chains;

bool ext_batches_ready(Batches *);
PyObject *ext_batches_new(Queue *, uint32_t limit);
int ext_queue_usable(Queue *);
Chains *ext_queue_pop(Queue *, uint32_t limit, struct iod_chains *out); /* its columns are in `out`, too */
/* The same into one that the queue keeps, until self->unseen is taken from it. */
Chains *ext_queue_pop_unseen(Queue *, uint32_t limit, struct iod_chains **out);
void ext_queue_settled(Queue *);
void ext_queue_release(Queue *);

/* route.c */
PyObject *ext_queue_route(Queue *, PyObject *const *args, Py_ssize_t n);
bool ext_route_pop(Queue *); /* it has submitted something */
void ext_route_answer(Queue *);

/* Wake those whose queues have something, and go on with what waited for a translation. */
void ext_queues_look(Engine *);
/* Before a sleep: ask every driver to tell of its next chain. True: one has come meanwhile, or waits for this turn's end. */
bool ext_queues_arm(Engine *);
/* What a wait that spins looks at. The number of words. */
uint32_t ext_queues_watch(Engine *);
/* The poll on the kicks has ended. */
void ext_queues_kicked(Engine *);
void ext_queues_close(Engine *); /* the engine closes: all are released */

#endif
