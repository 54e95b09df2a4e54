/* SPDX-License-Identifier: Apache-2.0
 *
 * loops: the peers themselves: what a C programmer who knows his lists would write, without Python and without iodma.
 *
 * Invariants
 *  - A loop runs on the calling thread until its time or its count is over, whichever is first, and touches nothing
 *    of Python's.
 *  - What is reported was done before the clock was read for the last time; what is in flight then is drained and
 *    not counted.
 *  - A read that fails or is short ends the loop with its error: a peer never counts work that was not done.
 */
#ifndef PEER_LOOPS_H
#define PEER_LOOPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A piece of the destination memory. */
struct peer_segment {
	uint64_t offset, length;
};

struct peer_reads {
	int fd;
	uint8_t *memory;
	size_t memory_bytes;
	const struct peer_segment *segments; /* of list 0, then of list 1, ... */
	uint32_t per_list, lists;
	uint64_t file_bytes, unit; /* positions are multiples of unit; a read never passes file_bytes */
	bool random;
	uint64_t seed;
	/* list i belongs to the request slot i, so `lists` is also the depth */
	uint32_t batch, complete_min;
	bool fixed_file, fixed_buffer;
	/* the end */
	uint64_t most_requests, most_ns;
};

struct peer_result {
	uint64_t ns, requests, bytes;
};

/* Through io_uring.  Returns 0 or -errno (-ENODATA: a short read). */
int peer_uring_reads(const struct peer_reads *, struct peer_result *);

/* memcpy of `bytes`, over `buffers` pairs of buffers in turn. */
void peer_copies(uint8_t *target, const uint8_t *source, size_t bytes, size_t buffers, uint64_t most_copies,
		 uint64_t most_ns, struct peer_result *);

/* memcpy of lists: segment i of `sources` to segment i of `targets`, which is as long; `per_list` of them are a request,
 * `lists` of which are done in turn. */
void peer_list_copies(uint8_t *memory, const struct peer_segment *sources, const struct peer_segment *targets,
		      uint32_t per_list, uint32_t lists, uint64_t most_ns, struct peer_result *);

/* Lists of bus addresses, translated by a one-level table of big-endian words as the SBus IOMMU has it: bit 1 valid, bit
 * 2 writable, bits 31:8 the page. */
struct peer_walks {
	uint8_t *memory; /* physical memory, from address 0 */
	size_t memory_bytes;
	uint64_t table, first, length; /* the table, which lies in the memory, and the bus addresses that it is for */
	bool write;
	const struct peer_segment *segments; /* `offset`: a bus address */
	uint32_t per_list, lists;
	uint64_t most_ns;
};

/* Each list in turn, for as long as that; `bytes` counts pieces.  0, -ENOMEM, or -EFAULT: a list is refused. */
int peer_table_walks(const struct peer_walks *, struct peer_result *);

#endif
