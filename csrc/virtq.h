/* SPDX-License-Identifier: Apache-2.0
 *
 * virtq: the device's side of a virtqueue (virtio 1.3, section 2.6 to 2.8): chains of buffers in, used buffers out.
 *
 * What depends on how the ring is laid out is in a table of functions (virtq_split.c, virtq_packed.c); chains, headers, trailers and what
 * waits for a translation are the same for all (virtq.c).
 *
 * Invariants
 *  - A ring is the guest's: everything read from it is copied once, checked, and used from the copy.
 *  - The ring's own addresses are translated like any others, and again after any change of a space on the way; no host
 *    address of it survives such a change.
 *  - A chain is consumed when all that has to be known of it was read; one that meets a pending translation stays where it
 *    is, and is read anew.
 *  - A chain that was popped is put into the used ring exactly once, by whatever answers it.
 *  - A chain that makes no sense is answered here, and keeps no other one from being served.  Only a ring that makes no
 *    sense breaks the queue.
 */
#ifndef IOD_VIRTQ_H
#define IOD_VIRTQ_H

#include "backend.h"
#include "space.h"

#define IOD_VIRTQ_LARGEST 32768	     /* entries: section 2.6 */
#define IOD_VIRTQ_DESCRIPTORS 1026   /* of a chain, where the ring is smaller: what the kernel takes, a header, a trailer */
#define IOD_VIRTQ_TRAILER 128	     /* bytes */
#define IOD_VIRTQ_TRAILER_SEGMENTS 4
/* Payload after which a pop takes no further chain: the first ones are to be done while the driver brings the next. */
#define IOD_VIRTQ_POP_BYTES (128u << 10)

enum { IOD_VIRTQ_EVENT_IDX = 1, IOD_VIRTQ_INDIRECT = 2, IOD_VIRTQ_PACKED = 4 };

/* The three parts of a ring.  Split: descriptor table, available ring, used ring.  Packed: descriptor ring, driver's and
 * device's event suppression. */
enum { IOD_VIRTQ_TABLE, IOD_VIRTQ_DRIVER, IOD_VIRTQ_DEVICE, IOD_VIRTQ_PARTS };
struct iod_virtq_part {
	uint64_t address, bytes;
	uint8_t access;
	uint8_t *host; /* NULL: of several pieces, which are in t */
	struct iod_translation t;
};

/* ANSWERED: its trailer waits for a translation; USED: what is left is to show it to the driver. */
enum iod_virtq_slot_state { IOD_VIRTQ_FREE, IOD_VIRTQ_POPPED, IOD_VIRTQ_ANSWERED, IOD_VIRTQ_USED };

/* A chain between pop and used. */
struct iod_virtq_slot {
	uint8_t state; /* enum iod_virtq_slot_state */
	uint8_t direction, trailers;
	uint16_t descriptors; /* packed: entries it takes in the ring */
	uint16_t entry;	      /* packed: its first one in the area of chains in flight */
	uint16_t next;	      /* of those that are answered */
	uint32_t length;      /* for the used ring */
	uint64_t payload;     /* bytes to be moved */
	struct iod_segment trailer[IOD_VIRTQ_TRAILER_SEGMENTS];
	uint8_t few[8], *data; /* the trailer's bytes */
	/* Where the indirect table and the header were when a chain of this number was last read.  Drivers use them again,
	 * and these are only ever prefetched: nothing is read there, and the memory may be gone. */
	const uint8_t *last_table, *last_header;
};

struct iod_virtq_used {
	uint16_t id, descriptors;
	uint32_t length;
};

/* What the ring says of the next chain. */
struct iod_virtq_chain {
	uint16_t id, descriptors;
	uint64_t table; /* of an indirect table */
	uint32_t table_bytes;
	const char *bad; /* why it makes no sense */
	bool known;	 /* only if it was seen to be there already */
};

/* Where pop puts chains: the columns of a batch and what is known of each.  A row's segments: readable, then writable. */
struct iod_chains {
	uint64_t *id, *position, *address, *length, *readable, *writable;
	uint32_t *first, *count, *opcode;
	uint8_t *direction, *header;
	uint32_t requests, segments; /* room */
	uint32_t n, used;
	uint64_t bytes; /* of payload, all together */
	uint64_t to_memory, from_memory, other; /* bit k: a chain with opcode k (63: or above) of that kind is here */
};

struct iod_virtq;
struct iod_virtq_format {
	/* Part sizes for q->size, the access that they need, and where the ring stands. */
	void (*layout)(struct iod_virtq *);
	/* The next chain, into q->segment: 1, 0 when there is none, negative when the queue broke. */
	int (*fetch)(struct iod_virtq *, struct iod_virtq_chain *);
	void (*consume)(struct iod_virtq *, const struct iod_virtq_chain *);
	/* Put q->used into the ring. True: the driver wants to be told. */
	bool (*publish)(struct iod_virtq *);
	/* Ask to be told of the next chain, or (as a job, under the guard) that nobody bothers.  arm: true when there is one
	 * already. */
	bool (*arm)(struct iod_virtq *);
	void (*disarm)(void *job);
	bool (*available)(struct iod_virtq *);
	/* The first look at a ring with an area of chains in flight. */
	void (*recover)(struct iod_virtq *);
	/* What changes as a chain comes, for who spins. */
	struct iod_watch (*watch)(struct iod_virtq *);
};
extern const struct iod_virtq_format iod_virtq_split, iod_virtq_packed;

struct iod_virtq {
	struct iod_space *space;
	const struct iod_virtq_format *format;
	uint32_t size, flags, header, trailer;
	int32_t position_at; /* of a 64-bit word in the header, or -1 */
	struct iod_virtq_part part[IOD_VIRTQ_PARTS];
	uint64_t changes; /* of the spaces, when the parts were translated ... */
	bool resolved;
	uint64_t missed_at; /* ... and when something was missing */
	uint8_t found;	    /* bits: which parts of the next chain were all translated once */
	uint16_t next, seen; /* available: the next one, and how many were seen to be there */
	uint16_t used_next;
	uint16_t told; /* used_next when the driver was told */
	uint16_t watched; /* packed: the word that a spinning wait looks at, as it was */
	bool told_valid, armed, missing; /* missing: a translation that it needs is pending */
	bool next_wrap, used_wrap, told_wrap; /* packed: where the three of them stand in their laps */
	uint8_t *inflight; /* the area in which chains in flight are noted, or NULL; the owner's */
	bool recovered;	   /* ... and what was noted there before was looked at */
	uint64_t counter;
	uint16_t saved;	  /* packed: the last entry of the area into which the chain that is read now was copied */
	uint16_t *replay; /* chains that were in flight before: taken first, oldest first */
	uint32_t replays, replayed;
	const char *broken;
	int call_fd, kick_fd, error_fd;

	uint32_t in_flight;
	struct iod_virtq_slot *slot;
	uint16_t answered_first, answered_last;
	uint32_t answered;
	uint64_t held_at; /* of the spaces, when the first of them could not go on */
	struct iod_virtq_used *used;
	uint32_t used_count;

	struct iod_segment *segment; /* of the chain that is read now */
	uint32_t segments, segment_room, readable;
	uint8_t *table; /* an indirect table's copy */
	struct iod_translation t;
	struct iod_fault fault;
	uint64_t popped, pushed, calls, malformed;
};

/* flags, size, addresses, header, trailer, position_at, space, next, used_next and the file descriptors are set. 0, -EINVAL,
 * -ENOMEM. */
int iod_virtq_open(struct iod_virtq *);
void iod_virtq_close(struct iod_virtq *);

/* Chains into `out`, which is empty: their number, 0 when there is none now, -EAGAIN when a translation is pending, -EPIPE
 * when the queue is broken. */
int iod_virtq_pop(struct iod_virtq *, struct iod_chains *out, uint32_t limit);

/* Answer a chain: `written` bytes of its payload are in memory, the trailer begins with data[0..n) and goes on with zeroes.
 * False: there is no such chain. */
bool iod_virtq_answer(struct iod_virtq *, uint64_t id, uint64_t written, const uint8_t *data, uint32_t n);
/* Show the driver what was answered, and tell it if it wants that. */
void iod_virtq_publish(struct iod_virtq *);
/* Go on with what waited for a translation; nothing while no space has changed. */
void iod_virtq_retry(struct iod_virtq *);

/* Signal an eventfd, or whatever stands for one, without waiting for anybody. */
void iod_virtq_tell(int fd);

bool iod_virtq_available(struct iod_virtq *);
bool iod_virtq_arm(struct iod_virtq *);
/* It waits for a translation, and none has come since. */
bool iod_virtq_waits(const struct iod_virtq *);

/* virtq_parts.c, for virtq.c.  How often the maps have changed that lie between a ring and the host, all together: */
static inline uint64_t iod_virtq_changes(const struct iod_space *space)
{
	uint64_t sum = 0;
	for (; space; space = space->next)
		sum += space->change;
	return sum;
}

/* A hook answers anew each time: what went through one is never known to hold. */
static inline bool iod_virtq_always_changes(const struct iod_space *space)
{
	for (; space; space = space->next)
		if (space->kind == IOD_HOOK)
			return true;
	return false;
}

int iod_virtq_miss(struct iod_virtq *);    /* something is asked for: -EAGAIN */
int iod_virtq_refresh(struct iod_virtq *); /* the parts are in the host: 0, -EAGAIN (pending) or -EPIPE (broken) */

/* For the formats. */
struct iod_descriptor { /* section 2.6.5 */
	uint64_t address;
	uint32_t length;
	uint16_t flags, next;
};
enum { IOD_DESCRIPTOR_NEXT = 1, IOD_DESCRIPTOR_WRITE = 2, IOD_DESCRIPTOR_INDIRECT = 4 };
void *iod_virtq_at(const struct iod_virtq_part *, uint64_t offset, uint64_t bytes); /* NULL: in two pieces */
/* A word of the ring.  They are naturally aligned, so no piece of memory cuts one, unless a stage maps odd bytes: NULL then,
 * and the queue is broken. */
uint16_t *iod_virtq_word(struct iod_virtq *, int part, uint64_t offset);
void iod_virtq_dirty(const struct iod_virtq_part *, uint64_t offset, uint64_t bytes);
/* The driver had it last: it comes while something else is done.  Memory that is gone does no harm here. */
static inline void iod_virtq_fetch_to_read(const void *at)
{
	if (at)
		__builtin_prefetch(at, 0);
}
static inline void iod_virtq_fetch_to_write(const void *at)
{
#if defined(__x86_64__)
	__asm__ volatile("prefetchw %0" : : "m"(*(const uint8_t *)at)); /* GCC's own is for reading, by default */
#else
	__builtin_prefetch(at, 1);
#endif
}
const char *iod_virtq_add(struct iod_virtq *, uint64_t address, uint32_t length, uint16_t flags); /* NULL, or what is wrong */
void iod_virtq_break(struct iod_virtq *, const char *why);
/* What touches the ring runs so: false when the ring's memory is gone, and the queue with it. */
struct iod_virtq_job {
	struct iod_virtq *q;
	struct iod_virtq_chain *chain;
	bool result;
};
bool iod_virtq_guard(struct iod_virtq *, void (*fn)(void *), struct iod_virtq_job *);

/* virtq_inflight.c; all under the SIGBUS guard.  `before` and `after` go around the store of the used index. */
uint64_t iod_virtq_inflight_bytes(uint32_t size);
void iod_virtq_inflight_recover(struct iod_virtq *, uint16_t used_idx);
void iod_virtq_inflight_taken(struct iod_virtq *, uint16_t id);
void iod_virtq_inflight_before(struct iod_virtq *);
void iod_virtq_inflight_after(struct iod_virtq *);

/* virtq_inflight_packed.c, likewise; `before` and `after` go around the stores into the ring. */
struct iod_virtq_entry { /* section 2.8.13 */
	uint64_t address;
	uint32_t length;
	uint16_t id, flags;
};
uint64_t iod_packed_inflight_bytes(uint32_t size);
/* A descriptor of the chain that is read, in its order. False: the queue is broken. */
bool iod_packed_inflight_save(struct iod_virtq *, bool first, const struct iod_virtq_entry *);
/* That chain, all of which was saved, is in flight. */
void iod_packed_inflight_taken(struct iod_virtq *, const struct iod_virtq_chain *);
/* q->used is about to be seen; the ring will stand there. */
void iod_packed_inflight_before(struct iod_virtq *, uint16_t used_next, bool used_wrap);
void iod_packed_inflight_after(struct iod_virtq *);
/* Of how many descriptors the chains were that were about to be seen, and where the ring stood then. */
uint32_t iod_packed_inflight_interrupted(struct iod_virtq *, uint16_t *at, bool *wrap);
/* published: ... and they were.  How many descriptors are in flight, from q->used_next on; -1: the area is new. */
int64_t iod_packed_inflight_recover(struct iod_virtq *, bool published);
/* A descriptor of a chain in flight: the first at entry `at`, or the one after that.  Its entry, or UINT16_MAX. */
uint16_t iod_packed_inflight_read(const struct iod_virtq *, bool first, struct iod_virtq_entry *, uint16_t at);

#endif
