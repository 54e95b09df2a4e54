/* SPDX-License-Identifier: Apache-2.0
 *
 * bounce: what the planner sends through the arena.
 *
 * Invariants
 *  - A bounce covers the shortest run that its reason forces, and whole blocks around it where the file wants those.
 *  - What was gathered into the arena is gathered once, however often it takes to write it: of a device window every
 *    access has an effect.  (Where there was none, and a peer makes it wait, it is gathered again.)
 *  - Nobody holds a piece of the arena while it waits for a peer, but for what a device window gave.
 *  - A write that covers a block only in part reads that block first, under the range that row_step locked, and never
 *    makes the file longer than the payload does. */
#ifndef IOD_BOUNCE_H
#define IOD_BOUNCE_H

#include "xfer.h"

/* A read of a tap cuts a packet without a word: one byte more tells. */
static inline bool iod_tells_cut(const struct iod_row *row)
{
	return row->target->plain_io && row->direction == IOD_TO_MEMORY;
}

static inline uint64_t iod_target_block(const struct iod_row *row)
{
	return row->target->kind == IOD_T_FILE ? row->target->offset_alignment : 1;
}

static inline uint64_t iod_round_up(uint64_t value, uint64_t to)
{
	return (value + to - 1) / to * to;
}

/* plan.c: the code, the flags and the descriptor of a request whose iovecs and offset are there. */
void iod_plan_set_request(struct iod_row *, struct iod_op *, int fd);

/* The next request, for `bytes` from where the row is; or what it waits for. */
enum iod_plan iod_bounce(struct iod_core *, struct iod_row *, struct iod_op *, uint64_t bytes, enum iod_reason, int *error);
/* A piece of the arena of at least `want` bytes in row->bounce.  False: the row has to wait for one. */
bool iod_bounce_take(struct iod_core *, struct iod_row *, size_t want);
/* The payload into the arena, behind the `before` bytes. */
enum iod_plan iod_bounce_fill(struct iod_core *, struct iod_row *, int *error);
/* What is in the arena, or is left of it, to the endpoint. */
enum iod_plan iod_bounce_write(struct iod_core *, struct iod_row *, struct iod_op *, int *error);
/* What is still missing of the blocks around the payload; and once they are there, the payload over them. */
enum iod_plan iod_bounce_read_blocks(struct iod_core *, struct iod_row *, struct iod_op *);
enum iod_plan iod_bounce_write_blocks(struct iod_core *, struct iod_row *, struct iod_op *, int *error);

#endif
