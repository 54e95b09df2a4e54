/* SPDX-License-Identifier: Apache-2.0
 *
 * vhost_blk: a vhost-user-blk front-end that makes load, written from the vhost-user protocol and the virtio 1.2
 * specification, on purpose without a line of the core: what measures and checks the back-end shares nothing with it.
 *
 * Two shared regions, the first at the guest physical address VB_GUEST_BASE:
 *
 *     queue 0: descriptors | available ring | used ring    (each on a page of its own)
 *     queue 1: ...
 *     slots:   request header | status | indirect table    (one page each, or as many as the table takes)
 *
 * the second at VB_DATA_BASE: the segments of all slots, shuffled, so that no two of a request touch.  Its memory may
 * be given, for sessions that take turns with the very same pages.  A slot is a request that may be in flight; its
 * place in the descriptor table is its own.
 *
 * Invariants
 *  - A session belongs to one thread at a time; only the null server runs beside it.
 *  - Nothing waits without a bound: on the conversation VB_REPLY_MS, on requests the session's patience.
 *  - What the server writes (used ring, replies) is checked before it is used: an answer to what was not asked is an
 *    error.
 *  - After an error that leaves requests in flight the session is broken, and stays so.
 */
#ifndef PEER_VHOST_BLK_H
#define PEER_VHOST_BLK_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define VB_GUEST_BASE 0x100000000ull
#define VB_DATA_BASE 0x200000000ull
#define VB_PAGE 4096u
#define VB_SECTOR 512u
#define VB_REPLY_MS 10000
#define VB_QUEUE_SIZE_MOST 32768u
#define VB_CONFIG_BYTES 60u

/* virtio 1.2, 2.7: the split ring. */
struct vring_descriptor {
	uint64_t address;
	uint32_t length;
	uint16_t flags, next;
};
enum { VRING_NEXT = 1, VRING_WRITE = 2, VRING_INDIRECT = 4 };
struct vring_used_element {
	uint32_t id, length;
};

/* virtio 1.2, 5.2.6: the header of a block request. */
struct vb_header {
	uint32_t type, reserved;
	uint64_t sector;
};
enum { VB_IN = 0, VB_OUT = 1, VB_FLUSH = 4, VB_GET_ID = 8, VB_DISCARD = 11, VB_WRITE_ZEROES = 13 };
#define VB_STATUS_UNSET 0xee

/* Feature bits: 5.2.3, 6 of virtio 1.2, and vhost-user's own. */
enum {
	VB_F_SEG_MAX = 2,
	VB_F_BLK_SIZE = 6,
	VB_F_FLUSH = 9,
	VB_F_TOPOLOGY = 10,
	VB_F_MQ = 12,
	VB_F_DISCARD = 13,
	VB_F_WRITE_ZEROES = 14,
	VB_F_INDIRECT_DESC = 28,
	VB_F_EVENT_IDX = 29,
	VB_F_PROTOCOL_FEATURES = 30,
	VB_F_VERSION_1 = 32,
};
enum { VB_PROTOCOL_MQ = 0, VB_PROTOCOL_REPLY_ACK = 3, VB_PROTOCOL_CONFIG = 9 };

struct vb_slot {
	struct vb_header *header;
	uint8_t *status;
	struct vring_descriptor *table; /* indirect */
	uint8_t **segments;
	uint64_t submitted_ns, sector;
	uint32_t type, bytes;
	bool in_flight;
};

struct vb_queue {
	uint16_t size;
	uint16_t available_next, used_next; /* ours: the next to show, the next to take */
	uint16_t kicked;		    /* available_next when the server was last told */
	uint32_t in_flight;
	int kick, call;
	struct vring_descriptor *descriptors;
	_Atomic uint16_t *available; /* flags, index, ring[size], used_event */
	_Atomic uint16_t *used;	     /* flags, index, elements[size], avail_event */
	struct vb_slot *slots;
};

struct vb_options {
	const char *path; /* NULL: the null server */
	uint32_t queues, queue_size, depth, segments, segment_bytes;
	uint32_t indirect_above; /* more descriptors than this go into an indirect table */
	bool event_index, indirect;
	int data_fd;	     /* memory for the data, at least as large as it; -1: our own */
	uint64_t null_bytes; /* the null server's capacity */
	int null_cpu;	     /* where it runs; -1: anywhere */
	bool null_spins;
	uint32_t patience_ms;
};

/* vhost_null.c: a device in a thread of this process that answers every request at once and touches no data. */
struct vb_null {
	pthread_t thread;
	bool started;
	_Atomic bool stop;
	_Atomic uint64_t answered;
};

/* Shared with the server. */
struct vb_region {
	int fd;
	uint8_t *memory;
	size_t bytes;
	uint64_t guest;
};

struct vb_session {
	struct vb_options options;
	int sock, epoll;
	struct vb_region rings, data;
	uint64_t offered, features, protocol;
	uint64_t capacity; /* bytes */
	uint32_t server_queues;
	uint8_t config[VB_CONFIG_BYTES];
	uint32_t descriptors_each; /* ring descriptors of a slot */
	struct vb_queue *queues;
	struct vb_slot *slots;
	uint8_t **segments;
	bool broken;
	struct vb_null null;
	char error[200];
};

struct vb_load {
	uint32_t type;	/* VB_IN or VB_OUT */
	uint32_t bytes; /* of one request; at most segments x segment_bytes */
	uint64_t first_byte, span_bytes; /* positions are multiples of bytes in [first_byte, first_byte + span_bytes) */
	bool random, poll, verify;
	uint64_t seed; /* of the positions */
	uint64_t data_seed;
	uint64_t most_requests, most_ns;
};

struct vb_result {
	uint64_t ns, requests, bytes;
	uint64_t errors;	/* a status that is not OK */
	uint64_t mismatches;	/* verify: a sector that is not what was written */
	uint64_t wrong_lengths; /* a used length that is not what was written to memory */
	uint64_t kicks, wakes;	/* told the server; slept and was woken */
	uint64_t reaps;		/* passes that found anything done */
	uint64_t p50_ns, p99_ns;
};

/* Everything returns 0 or -errno, with the reason in session->error. */
int vb_open(struct vb_session *, const struct vb_options *);
/* Stops the rings (GET_VRING_BASE) and closes; safe after any failure of vb_open and when called again. */
int vb_close(struct vb_session *);
int vb_fail(struct vb_session *, int error, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* vhost_load.c */
int vb_run(struct vb_session *, const struct vb_load *, struct vb_result *);
/* One request on queue 0 with `out` readable or `in` writable bytes.  *written: the used length. */
int vb_request(struct vb_session *, uint32_t type, uint64_t sector, const uint8_t *out, uint32_t out_bytes, uint8_t *in,
	       uint32_t in_bytes, uint8_t *status, uint32_t *written);
/* The bytes that verifying writes put into a sector: 64 little-endian words. */
void vb_pattern(uint64_t seed, uint64_t sector, uint8_t *bytes);

/* vhost_null.c */
int vb_null_start(struct vb_session *);
void vb_null_stop(struct vb_session *);

static inline uint64_t vb_guest(const struct vb_region *region, const void *p)
{
	return region->guest + (uint64_t)((const uint8_t *)p - region->memory);
}

/* virtio 1.2, 2.7.7.2: whether the other side asked to be told when the index went from `from` to `to`. */
static inline bool vb_needs_event(uint16_t event, uint16_t to, uint16_t from)
{
	return (uint16_t)(to - event - 1) < (uint16_t)(to - from);
}

static inline bool vb_has(uint64_t features, int bit)
{
	return features >> bit & 1;
}

static inline void vb_pause(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

#endif
