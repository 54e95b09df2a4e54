/* SPDX-License-Identifier: Apache-2.0
 *
 * xfer: transfers, from the list that a device describes to the one completion that it gets.
 *
 * Everything that affects the state of a transfer lives in core.c, step.c, result.c, row.c, plan.c and what they call,
 * and every change of state goes through iod_row_to, which knows no other edges than those of IOD_EDGES.
 *
 * Invariants
 *  - A row that is FREE, PENDING or WAITING holds no translation, no lease and no address but its bus addresses.
 *  - A row has at most one request with the backend at a time (and, for zero-copy sends, notifications of earlier ones).
 *  - Leases are taken with the translation and given back once, at the terminal completion or when the row goes
 *    back to wait.
 *  - Nothing is delivered inside iod_submit, iod_cancel or iod_revoke: they only ever put rows on lists.
 *  - A ticket names a row and a generation; one of an older generation finds nothing.
 */
#ifndef IOD_XFER_H
#define IOD_XFER_H

#include "arena.h"
#include "backend.h"
#include "driver.h"
#include "iod.h"
#include "space.h"

/* The state table: from, to, what happened.  The documents' diagram is made from it. */
#define IOD_STATES(S)                                                                                                  \
	S(FREE) S(DESCRIBED) S(PENDING) S(WAITING) S(IN_FLIGHT) S(CANCELLING) S(FAULTED) S(COMPLETE) S(DELIVERED)
#define IOD_EDGES(E)                                                                                                   \
	E(FREE, DESCRIBED, "submitted")                                                                                \
	E(DESCRIBED, IN_FLIGHT, "translated, leased, planned")                                                         \
	E(DESCRIBED, PENDING, "a stage must be asked for a translation")                                               \
	E(DESCRIBED, WAITING, "no room: budget, ring, order or range")                                                 \
	E(DESCRIBED, FAULTED, "a stage refused")                                                                       \
	E(DESCRIBED, COMPLETE, "nothing to move, cancelled, or out of memory")                                         \
	E(PENDING, DESCRIBED, "the stage answered")                                                                    \
	E(PENDING, COMPLETE, "cancelled")                                                                              \
	E(WAITING, DESCRIBED, "there is room")                                                                         \
	E(WAITING, COMPLETE, "cancelled")                                                                              \
	E(IN_FLIGHT, COMPLETE, "all moved, end of file, or an error")                                                  \
	E(IN_FLIGHT, WAITING, "the next piece needs bounce budget")                                                    \
	E(IN_FLIGHT, CANCELLING, "cancel asked for")                                                                   \
	E(IN_FLIGHT, FAULTED, "the memory was gone, or a device window refused")                                       \
	E(CANCELLING, COMPLETE, "the kernel let go")                                                                   \
	E(CANCELLING, FAULTED, "the memory was gone")                                                                  \
	E(FAULTED, COMPLETE, "leases given back")                                                                      \
	E(COMPLETE, DELIVERED, "handed to the device")                                                                 \
	E(DELIVERED, FREE, "the slot may be used again")

enum iod_state {
#define S(name) IOD_S_##name,
	IOD_STATES(S)
#undef S
		IOD_STATE_COUNT
};
extern const char *const iod_state_names[IOD_STATE_COUNT];
struct iod_edge {
	uint8_t from, to;
	const char *why;
};
extern const struct iod_edge iod_edges[];
extern const size_t iod_edge_count;

enum iod_target_kind { IOD_T_FILE, IOD_T_STREAM, IOD_T_PACKET, IOD_T_BUFFER, IOD_T_NULL, IOD_T_SCRIPT };
enum iod_request_kind { IOD_R_TRANSFER, IOD_R_COPY, IOD_R_LOAD, IOD_R_STORE, IOD_R_FLUSH, IOD_R_DISCARD, IOD_R_ZEROES,
			IOD_R_PEEK, IOD_R_DROP };
enum iod_wait_reason { IOD_W_NONE, IOD_W_BUDGET, IOD_W_RING, IOD_W_ORDER, IOD_W_RANGE, IOD_WAIT_REASONS };

struct iod_row;
struct iod_queue {
	struct iod_row *head, *tail;
	uint32_t count;
};

/* Of a packet endpoint, in one direction: see batch.c. */
struct iod_batch {
	struct mmsghdr *packet;
	uint32_t count, most; /* in the request; tried together */
	bool wait;	      /* the next one goes alone, by a request that waits */
};

/* A host endpoint, as far as the core must know it. */
struct iod_target {
	uint8_t kind;
	bool closed, read_only, write_through, zero_copy, direct;
	bool plain_io;	    /* PACKET that is no socket but read and written: a tap */
	bool no_zero_range; /* FILE: the file system cannot; found out by asking */
	int fd, buffered_fd; /* buffered_fd: the same file without O_DIRECT, for the last partial block */
	int file_index;	     /* registered with the backend, or -1 */
	uint32_t memory_alignment, offset_alignment, max_segments;
	uint64_t max_bytes;
	struct iod_region *region; /* BUFFER */
	struct iod_row *active[2]; /* STREAM, PACKET: the one in flight a direction */
	struct iod_queue order[2]; /* and those behind it */
	struct iovec *vector;	   /* STREAM: of a request that carries several sends */
	uint64_t took;		   /* STREAM: bytes of the last send that was cut short; 0: it was not */
	struct iod_batch batch[2]; /* PACKET */
	struct iod_framing *framing; /* PACKET on a stream, or NULL */
	struct iod_target *next_refused;
	uint8_t *held;		   /* PACKET that is a tap: what was read for a peek ... */
	uint32_t held_bytes;	   /* ... and not received yet: so many bytes; 0: nothing */
	struct iod_row *writers;   /* direct FILE: writes under way, by their block ranges */
	struct iod_queue range_wait;
	struct iod_driver *driver;	/* FILE: who takes its requests, instead of the backend */
	struct iod_queue driver_wait;	/* for room there */
	struct iod_target *next_driven; /* of its core */
	uint32_t small;			/* bytes a segment below which copying is cheaper, for this target; 0: the core's */
	uint32_t references; /* rows */
	uint32_t trace_id;
	void (*idle)(struct iod_target *); /* the last one is gone */
	void *owner;
};

struct iod_port {
	struct iod_core *core;
	struct iod_space *space;
	uint32_t rows;	/* not yet free */
	uint32_t busy;	/* of those, not yet complete: what a reset waits for */
	uint32_t depth; /* most rows */
	bool resetting, closed;
	uint64_t generation;
	struct iod_queue done; /* complete rows of batches, for the stream of completions */
	uint64_t submitted, completed[5], bytes[2];
	char name[32];
	uint32_t trace_id;
	void *owner;
};

struct iod_revocation {
	struct iod_space *space;
	uint64_t first, last;
	const struct iod_region *region; /* MEMORY: what was there, only to be compared; NULL: not known */
	uint32_t holders;
	bool done, failed;
	struct iod_revocation *next;
	void *owner;
};
struct iod_hold { /* a row that a revocation waits for */
	struct iod_revocation *revocation;
	struct iod_hold *next;
};

enum iod_phase { IOD_P_NONE, IOD_P_DIRECT, IOD_P_BOUNCE, IOD_P_BEFORE, IOD_P_POLL, IOD_P_PLAIN, IOD_P_WORK, IOD_P_SCRIPT,
		 IOD_P_RIDE, IOD_P_ZERO, IOD_P_REMOTE, IOD_P_FRAME };

#define IOD_INLINE_SEGMENTS 2
/* In the order of use: a plain transfer of one or two segments lives and dies in the first six cache lines, and what is
 * behind them is neither cleared nor read unless its kind needs it. */
struct iod_row {
	uint64_t ticket;
	struct iod_row *next, *previous;
	struct iod_queue *queue; /* the list it is on, if any */
	struct iod_port *port;
	struct iod_target *target;
	uint8_t state, kind, direction, phase;
	uint8_t status, wait, access, depth;
	bool cancel_wanted, cancel_sent, with_backend, holds_order;
	int32_t error;

	uint64_t total, moved, minimum, position;
	struct iod_segment *list; /* bus addresses */
	uint32_t count, list_room;
	void *user; /* NULL: a row of a batch */
	uint64_t id;

	struct iod_translation t;

	uint32_t cursor;    /* the piece where `moved` is */
	uint32_t op_pieces; /* of the request with the backend */
	uint64_t skip;	    /* bytes into that piece */
	uint64_t op_bytes;
	size_t trimmed; /* bytes cut off the request's last iovec */
	uint64_t born;
	struct iod_hold *holds;
	struct iod_row *riders; /* coalesce.c */
	uint32_t count2;	/* COPY */
	bool leased, was_ranged;
	bool ranged : 1, reads_first : 1; /* a write to a direct file; one that must read blocks first */
	bool cut : 1;	   /* a packet was longer than the list */
	bool alone : 1;	   /* of a stream: nobody rides with it */
	bool batched : 1;  /* its request has several packets */
	bool no_end : 1;   /* a packet that is empty is just that */
	bool began : 1;	   /* a frame of a stream is its own */
	bool linked : 1;   /* it goes only if the memory of those before could be reached */
	bool unlinked : 1; /* ... which it could not */
	bool by_copy : 1;  /* a zero-copy send that the kernel had no room for */
	bool by_cache : 1; /* of a direct file's bounce: exactly the payload, through the page cache */
	bool by_write : 1; /* ZEROES: the file or the range takes none but written ones */

	struct iod_segment inline_list[IOD_INLINE_SEGMENTS];
	struct iovec inline_iov[IOD_INLINE_SEGMENTS];

	struct iod_piece inline_piece[IOD_INLINE_SEGMENTS];
	uint8_t *bounce;
	struct iod_remote *remote; /* remote.c: the move under way, if messages are part of it */
	bool filled;   /* `payload` bytes were gathered into it and are not written yet */
	bool notified; /* a zero-copy send's first completion came; its result is in `sent` */
	uint8_t reason; /* of the bounce */
	bool blocks_read; /* of a write that reads first: `sent` bytes of them are there, and that is all of them */
	int32_t sent;
	uint8_t planned;	/* of a packet that rides: its own phase */
	uint64_t message_bytes; /* of a request with riders: theirs included */

	struct iod_extent inline_extent[2 * IOD_INLINE_SEGMENTS];

	size_t bounce_bytes, bounce_want;
	uint64_t payload; /* of the bounce piece; `before` bytes stand in front of it */
	uint64_t before;
	uint64_t block_first, block_last;
	struct iovec one;
	struct msghdr message;
	struct iod_fault fault;
	struct iod_space *missed;
	uint8_t *data;	 /* LOAD, STORE, PEEK: belongs to `user` */
	uint64_t length; /* DISCARD, ZEROES; PEEK: asked for, then the packet's */
	struct iod_segment *list2; /* COPY: where it goes */
	struct iod_translation t2;
	uint32_t cursor2;
	uint64_t skip2;
	struct iod_row *range_next; /* of the writers of a file, or of a host's riders */
	struct iod_row *host;	    /* of a rider */
} __attribute__((aligned(64)));

struct iod_request {
	uint8_t kind, direction, depth;
	struct iod_port *port;
	struct iod_target *target;
	const struct iod_segment *list, *list2;
	const uint64_t *addresses, *lengths; /* instead of list, where that is two columns */
	uint32_t count, count2;
	uint64_t position, length, minimum, id;
	bool linked;
	uint64_t end, unit; /* unit 0: anywhere; else whole units, none of them past byte `end` of the target */
	uint8_t *data;
	void *user;
};

struct iod_counters {
	uint64_t submitted, delivered, completed[5];
	uint64_t bytes[2];
	uint64_t bounced[IOD_REASONS], bounces[IOD_REASONS];
	uint64_t requests;	/* handed to the backend */
	uint64_t splits;	/* transfers that took more than one request */
	uint64_t coalesced;	/* sends that went with another's request */
	uint64_t waits[IOD_WAIT_REASONS], pending;
	uint64_t pieces, messages, revocations, revocations_failed, quarantined;
	uint64_t copied; /* bytes that the core moved itself: memory endpoints, copies, bounces */
};

/* What is noted of a transfer beside its changes of state. */
enum iod_mark {
	IOD_M_WALK = 0x80, /* its translation begins */
	IOD_M_WALKED,	   /* translated and leased; bytes: pieces of host memory */
	IOD_M_REQUEST,	   /* handed to the backend, or to the core's own moving; bytes: of this request */
	IOD_M_RESULT,	   /* the backend's answer is here, or the core begins to move; bytes: as a signed result */
};
struct iod_trace_event {
	uint64_t when, ticket, bytes;
	uint8_t from, to, status, kind; /* states; from: also the state that a mark (in `to`) was made in */
	uint32_t port, target;		/* their trace_id; target 0: none */
	uint32_t spare;
};
struct iod_trace {
	struct iod_trace_event *event;
	size_t room, count;
	uint64_t lost;
};

/* Bytes asked of who has remote memory. */
struct iod_message {
	uint64_t ticket, offset, length;
	uint64_t at;   /* in the row's move */
	uint8_t lanes; /* of whole units */
};

struct iod_hooks {
	/* One register access. 0, or negative: bus error. */
	int (*device)(void *, struct iod_region *, uint64_t offset, unsigned width, bool write, uint64_t *value);
	/* A message to who has remote memory: `length` bytes at `offset` of the region, to be written there if `data`, or
	 * read.  Its answer is one call of iod_remote_answer with the same `ticket`, `at`, `length` and `lanes`, within
	 * this call or later. */
	void (*remote)(void *, struct iod_region *, const struct iod_message *, const uint8_t *data);
	/* A request for a scripted endpoint; it answers with iod_script_done. */
	void (*script)(void *, struct iod_row *);
	void (*script_cancel)(void *, struct iod_row *);
	/* A revocation's last row is gone: it is done, or it failed before. */
	void (*revoked)(void *, struct iod_revocation *);
	/* A completion of a request that is no row's. */
	void (*other)(struct iod_core *, const struct iod_cqe *);
	void *context;
};

struct iod_core {
	struct iod_backend *backend;
	struct iod_hooks hooks;
	struct iod_arena arena;
	struct iod_row **slab; /* rows in slabs that never move */
	uint32_t slabs, rows, in_use;
	struct iod_queue unused;
	struct iod_queue ready;	  /* DESCRIBED again: to be stepped */
	struct iod_queue packets; /* DESCRIBED, and stepped last: those behind them ride along */
	struct iod_queue work;	  /* IN_FLIGHT, moved by the core itself */
	struct iod_queue done;	  /* COMPLETE, with a user */
	struct iod_queue budget;  /* WAITING */
	struct iod_queue ring;	  /* WAITING */
	struct iod_queue pending; /* PENDING */
	struct iod_queue moved;	  /* by a move without the glue's lock, to be completed with it */
	struct iod_queue glue;	  /* as work, but needs the glue's lock: device windows, remote memory */
	uint32_t with_backend, most_with_backend; /* rows; the backend has places for what the glue polls besides */
	uint32_t with_drivers; /* rows */
	struct iod_target *driven; /* targets with a driver */
	uint32_t number;	  /* no two cores of a process have the same */
	bool unlocked;		  /* the glue's lock is not held */
	bool cancel_again;	  /* a cancel found no room in the ring */
	bool budget_again;	  /* bounce pieces came back */
	struct iod_target *refused; /* whose other end has framed a packet as nobody may; the glue's, to clear */
	bool done_now;		  /* a step has completed what it has read; the glue's, to clear */
	uint64_t queued_bytes, work_bytes; /* since the last flush, and on `work` */
	uint32_t small[2];     /* bytes a segment below which copying is cheaper, by direction */
	uint64_t now;	       /* the time of this turn, ns */
	uint8_t depth;	       /* of messages, in what runs now */
	struct iod_revocation *revocations;
	struct iod_counters count;
	struct iod_trace *trace;
	uint64_t *edges; /* tests: how often each edge was walked, [from][to] */
};

/* table.c */
struct iod_row *iod_row_new(struct iod_core *);
int iod_row_lists(struct iod_row *, const struct iod_request *);
void iod_row_unused(struct iod_core *, struct iod_row *);
struct iod_row *iod_row_at(struct iod_core *, uint32_t index); /* free ones too; NULL past the end */
struct iod_row *iod_find(struct iod_core *, uint64_t ticket);
void iod_table_destroy(struct iod_core *);

/* core.c */
int iod_core_init(struct iod_core *, struct iod_backend *, size_t bounce_bytes, const struct iod_hooks *);
void iod_core_destroy(struct iod_core *); /* nothing may be in flight */
/* 0 and *ticket, or -ENOMEM, -EBUSY (the port is at its depth), -ESTALE, -EINVAL (list too long). Never delivers. */
int iod_submit(struct iod_core *, const struct iod_request *, uint64_t *ticket);
bool iod_cancel(struct iod_core *, uint64_t ticket); /* false: no such transfer any more */
void iod_cancel_row(struct iod_core *, struct iod_row *);
/* Step what became ready; the glue's lock is held.  Then do the core's own moving: `work` needs no lock, `glue` does. */
void iod_core_step(struct iod_core *);
void iod_core_work(struct iod_core *, struct iod_queue *);
/* Complete what was moved while `unlocked` was set: with the glue's lock again, and with it not set. */
void iod_core_moved(struct iod_core *);
/* Take what the backend has. The number of completions seen. */
uint32_t iod_core_reap(struct iod_core *, uint32_t most);
void iod_script_done(struct iod_core *, struct iod_row *, int32_t result);
void iod_resume_pending(struct iod_core *, struct iod_space *);
struct iod_row *iod_take_done(struct iod_core *);		     /* with a user */
struct iod_row *iod_take_batch(struct iod_core *, struct iod_port *); /* of a batch */
void iod_row_free(struct iod_core *, struct iod_row *);		     /* DELIVERED */
void iod_port_reset(struct iod_core *, struct iod_port *);
/* Copy to or from the list at once, when that needs nobody's help: 0, or -EAGAIN (submit it), -EFAULT with *fault. */
int iod_access(struct iod_core *, struct iod_space *, uint64_t address, void *data, size_t length, bool write,
	       struct iod_fault *fault, size_t *done);

/* For the parts of the core. */
extern uint16_t iod_may_go[IOD_STATE_COUNT]; /* one bit for each state that may follow */
void iod_row_to_watched(struct iod_core *, struct iod_row *, enum iod_state); /* traced, counted, or forbidden */
static inline void iod_row_to(struct iod_core *core, struct iod_row *row, enum iod_state to)
{
	if (__builtin_expect(core->trace || core->edges || !(iod_may_go[row->state] >> to & 1), 0))
		iod_row_to_watched(core, row, to);
	row->state = (uint8_t)to;
}
static inline uint32_t iod_room(const struct iod_core *core) /* how many rows may be handed over */
{
	uint32_t room = core->backend->ops->room(core->backend), left = core->most_with_backend - core->with_backend;
	return room < left ? room : left;
}
/* Whether there is room for one more request of the row's, and where it waits for that. */
static inline bool iod_row_has_room(const struct iod_core *core, const struct iod_row *row)
{
	return row->target->driver ? row->target->driver->room > 0 : iod_room(core) > 0;
}
static inline struct iod_queue *iod_room_queue(struct iod_core *core, const struct iod_row *row)
{
	return row->target && row->target->driver ? &row->target->driver_wait : &core->ring;
}
void iod_trace_note(struct iod_core *, const struct iod_row *, uint8_t to, uint64_t bytes);
static inline void iod_row_mark(struct iod_core *core, const struct iod_row *row, enum iod_mark mark, uint64_t bytes)
{
	if (core->trace)
		iod_trace_note(core, row, (uint8_t)mark, bytes);
}
void iod_queue_add(struct iod_queue *, struct iod_row *);
void iod_queue_add_first(struct iod_queue *, struct iod_row *);
void iod_queue_remove(struct iod_row *);
void iod_row_wait(struct iod_core *, struct iod_row *, enum iod_wait_reason, struct iod_queue *);
void iod_row_complete(struct iod_core *, struct iod_row *, enum iod_status, int error);
void iod_row_fault(struct iod_core *, struct iod_row *);
uint64_t iod_bus_address(const struct iod_segment *, uint32_t count, uint64_t at); /* of byte `at` of a list */
void iod_row_gone(struct iod_core *, struct iod_row *); /* it was mapped, but the memory behind it is not there */
void iod_row_release(struct iod_core *, struct iod_row *); /* translation, leases, bounce */
void iod_row_give_bounce(struct iod_core *, struct iod_row *); /* its piece of the arena, if it has one */
void iod_row_continue(struct iod_core *, struct iod_row *); /* the next request of a row that is leased, or needs no lease */
bool iod_row_hand_over(struct iod_core *, struct iod_row *, struct iod_op *); /* false: no room */
/* FLUSH, DISCARD, ZEROES, PEEK, DROP: no memory takes part. */
static inline bool iod_is_control(const struct iod_row *row)
{
	return row->kind >= IOD_R_FLUSH;
}

/* PEEK, DROP: of a packet endpoint, in the order of its receives. */
static inline bool iod_is_look(const struct iod_row *row)
{
	return row->kind >= IOD_R_PEEK;
}

static inline bool iod_on_wire(const struct iod_target *target)
{
	return target->kind == IOD_T_STREAM || target->kind == IOD_T_PACKET;
}
void iod_row_lease(struct iod_core *, struct iod_row *); /* what was just translated */
void iod_row_advance(struct iod_row *, uint64_t bytes);
void iod_row_ready(struct iod_core *, struct iod_row *); /* WAITING, PENDING -> DESCRIBED, to be stepped */

/* plan.c: the next request of a row that is translated and leased. */
enum iod_plan { IOD_PLAN_REQUEST, IOD_PLAN_WORK, IOD_PLAN_SCRIPT, IOD_PLAN_WAIT_BUDGET, IOD_PLAN_WAIT_RING, IOD_PLAN_FAULT,
		IOD_PLAN_ERROR, IOD_PLAN_DONE, IOD_PLAN_REMOTE /* messages come first */,
		IOD_PLAN_HELD /* a packet that a peek has read */, IOD_PLAN_STREAM /* for framed.c */ };
enum iod_plan iod_plan_next(struct iod_core *, struct iod_row *, struct iod_op *, int *error);
void iod_plan_end(struct iod_row *); /* undo what it did to the iovecs */
bool iod_plan_is_small(const struct iod_core *, const struct iod_row *); /* a copy is cheaper than the vector */

/* bounce.c: a payload that goes through the arena. */
/* More of the blocks around a payload came. False: there may be still more. */
bool iod_bounce_blocks_read(struct iod_row *, uint64_t bytes);
void iod_bounce_took(struct iod_row *, uint64_t bytes); /* of the payload in the arena, which are written */
/* It waits for its peer, who may never come: its piece of the arena goes back, unless it holds what a device window gave,
 * which cannot be had again. */
void iod_bounce_pause(struct iod_core *, struct iod_row *);
bool iod_bounce_must_keep(const struct iod_row *); /* what is in the arena cannot be had again */

/* packet.c: looking at a packet before it is received. */
enum iod_plan iod_packet_look(struct iod_row *, struct iod_op *, int *error); /* PEEK, DROP: the request, if one is needed */
void iod_packet_looked(struct iod_core *, struct iod_row *, int32_t result);
void iod_packet_give(struct iod_core *, struct iod_row *); /* the held one, to a receive */

/* coalesce.c */
void iod_riders_board(struct iod_core *, struct iod_row *host, struct iod_op *); /* whoever can comes along */
void iod_riders_leave(struct iod_core *, struct iod_row *host); /* nothing was sent of them: as before */
void iod_riders_send_back(struct iod_core *, struct iod_row *first, struct iod_queue *);
/* The host is done and `bytes` more were sent: completes it and those whose bytes they are.  Gives the row that has the
 * turn now and needs its next request, if there is one. */
struct iod_row *iod_riders_share(struct iod_core *, struct iod_row *host, uint64_t bytes);

/* pieces.c: between a row's pieces, from where it is, and flat memory; messages to device windows included.
 * 0, or -EFAULT: row->fault.space is set when a window refused, else the memory was gone.  *done in either case.
 * -EINPROGRESS: messages to remote memory are not answered; `then` is called with the outcome, in a later turn, unless
 * the row was cancelled.  The flat memory must be there until then. */
typedef void iod_then(struct iod_core *, struct iod_row *, int error, uint64_t done);
int iod_row_gather(struct iod_core *, struct iod_row *, uint8_t *to, uint64_t n, uint64_t *done, iod_then *);
int iod_row_scatter(struct iod_core *, struct iod_row *, const uint8_t *from, uint64_t n, uint64_t *done, iod_then *);
/* The same for the second list of a copy, which is advanced by what was written. */
int iod_row_scatter2(struct iod_core *, struct iod_row *, const uint8_t *from, uint64_t n, uint64_t *done, iod_then *);

/* For remote.c: the pieces that it comes to. */
uint32_t iod_memory_run(struct iod_translation *, uint32_t cursor, uint64_t skip, uint8_t *flat, uint64_t n, bool write,
			uint64_t *done, int *error); /* the pieces that were tried */
int iod_device_piece(struct iod_core *, struct iod_row *, const struct iod_translation *, uint32_t cursor, uint64_t skip,
		     uint8_t *flat, uint64_t n, bool write, uint64_t *done);
void iod_row_refused(struct iod_row *, const struct iod_translation *, uint64_t offset, bool write, enum iod_cause);
void iod_row_advance2(struct iod_row *, uint64_t bytes);

/* remote.c */
int iod_remote_move(struct iod_core *, struct iod_row *, struct iod_translation *, uint8_t *flat, uint64_t n, bool write,
		    uint64_t *done, iod_then *);
/* A message is answered: with what was read (writes: anything but NULL), or NULL: it was refused. */
void iod_remote_answer(struct iod_core *, const struct iod_message *, const uint8_t *data);
void iod_remote_resume(struct iod_core *, struct iod_row *);
void iod_remote_own(struct iod_row *, uint8_t *flat); /* of the move under way: to be freed with it */
void iod_remote_drop(struct iod_row *); /* nobody waits for its answers any more */

/* batch.c */
void iod_batch_board(struct iod_core *, struct iod_row *host, struct iod_op *);
void iod_batch_result(struct iod_core *, struct iod_row *host, int32_t result);

/* result.c */
void iod_row_result(struct iod_core *, struct iod_row *, int32_t result); /* of its own request, or as if it had one */
void iod_row_scattered(struct iod_core *, struct iod_row *, int error, uint64_t done); /* an iod_then: what was in flat memory */
void iod_end_of_packets(struct iod_core *, struct iod_row *);

/* work.c: transfers that the core moves itself. */
void iod_row_work(struct iod_core *, struct iod_row *);

/* revoke.c */
void iod_revoke(struct iod_core *, struct iod_revocation *, bool haste);
void iod_revocation_hasten(struct iod_core *, struct iod_revocation *); /* cancels those that still hold it */
void iod_revocation_row_gone(struct iod_core *, struct iod_row *);
void iod_revocation_fail(struct iod_core *, struct iod_revocation *);
void iod_revocation_forget(struct iod_core *, struct iod_revocation *);
bool iod_row_touches(const struct iod_row *, const struct iod_space *, uint64_t first, uint64_t last);

#endif
