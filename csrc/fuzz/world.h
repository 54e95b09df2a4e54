/* SPDX-License-Identifier: Apache-2.0
 *
 * world: what the core's fuzz target happens in: a core over a fake backend, memories and stages, ports and targets.
 *
 * What is asserted here, whatever the bytes say:
 *  - The backend gets only vectors in memory that is leased, in the arena or the core's own zeroes, and of a direct file
 *    only what is aligned.
 *  - When a region's revocation is acknowledged, no request with the backend has a byte of it.
 *  - A stream has one request in flight a direction; nothing holds the arena while it waits for a peer.
 *  - When all has ended: no lease, no piece of the arena, no reference, nothing on any list. */
#ifndef IOD_FUZZ_WORLD_H
#define IOD_FUZZ_WORLD_H

#include "fake_backend.h"
#include "fuzz.h"
#include "xfer.h"

enum { REGIONS = 6, MESSAGES = 4096, TARGETS = 9, PORTS = 2, SUBMITS = 512, REVOCATIONS = 64, PAGE = 4096, IOVAS = 24 };
enum target_index { BUFFERED, DIRECT, STREAM, ZERO_COPY, PACKET, FRAMED, BUFFER, NOTHING, SCRIPT };

struct submitted {
	uint64_t ticket, total;
	uint8_t port, completions;
	uint8_t data[64];
};

struct world {
	struct fuzz_script bytes;
	struct fake fake;
	struct iod_core core;
	struct iod_space memory, iommu, table, lanes, hook, window, gate;
	struct iod_space *top;
	struct iod_region *region[REGIONS];
	bool placed[REGIONS];
	struct iod_target target[TARGETS];
	struct iod_port port[PORTS];
	struct submitted submitted[SUBMITS];
	uint32_t submits, delivered;
	struct iod_revocation *revocation[REVOCATIONS];
	uint32_t revocations;
	uint64_t script[SUBMITS]; /* tickets that wait for an answer */
	uint32_t scripts;
	struct {
		struct iod_message message;
		bool write;
	} message[MESSAGES]; /* to the remote region, that wait for an answer */
	uint32_t messages;
	bool ending;
};

extern uint64_t world_edges[IOD_STATE_COUNT * IOD_STATE_COUNT]; /* of the state table, how often each was walked */
extern struct iod_counters world_reached;

static inline uint8_t byte(struct world *w)
{
	return fuzz_byte(&w->bytes);
}

static inline uint32_t below(struct world *w, uint32_t n)
{
	return fuzz_below(&w->bytes, n);
}
uint64_t number(struct world *);

void world_begin(struct world *);
void world_drop(struct world *); /* when nothing is in flight any more */
struct iod_region *world_region(uint8_t kind, uint64_t size);
uint64_t base_of(unsigned i); /* where region i lies */
void place(struct world *, unsigned i); /* if it is not there */
void map_pages(struct world *, unsigned iova, unsigned pages, uint64_t target, uint32_t access);
void set_entry(struct world *, unsigned iova); /* of the page table, if it is in memory */
void describe_table(struct world *);
void answer_message(struct world *);
void submit(struct world *); /* fuzz_core.c: a device window's handler may */

#endif
