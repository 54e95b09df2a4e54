/* SPDX-License-Identifier: Apache-2.0
 *
 * vfio_user: a vfio-user client and two servers, in C and without a line of the core: what `iodma bench vfio-user`
 * loads a server with, and what it compares that server with.
 *
 * The client says and hears what it is told to, byte by byte; the loops are those of a machine: a processor that reads
 * a register and waits, a driver that rings a doorbell and waits for its interrupt, a driver that keeps a ring of lists
 * full, an IOMMU that maps and unmaps pages.  It sleeps wherever it waits, as the threads of a machine monitor do.
 *
 * Invariants
 *  - Every answer is checked: its number, its command, that it is an answer, its size.
 *  - What is counted was done, and was right: an error, a copy that did not arrive, a wrong status end a loop.
 *  - No wait is longer than the client's patience.
 */
#ifndef PEER_VFIO_USER_H
#define PEER_VFIO_USER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The protocol's commands, by their names in its document. */
enum {
	VU_VERSION = 1,
	VU_DMA_MAP = 2,
	VU_DMA_UNMAP = 3,
	VU_DEVICE_GET_INFO = 4,
	VU_DEVICE_GET_REGION_INFO = 5,
	VU_DEVICE_GET_REGION_IO_FDS = 6,
	VU_DEVICE_GET_IRQ_INFO = 7,
	VU_DEVICE_SET_IRQS = 8,
	VU_REGION_READ = 9,
	VU_REGION_WRITE = 10,
	VU_DEVICE_RESET = 13,
};
enum { VU_REPLY = 1, VU_NO_REPLY = 0x10, VU_ERROR = 0x20 };
enum { VU_MAY_READ = 1, VU_MAY_WRITE = 2 };

#define VU_MOST_FDS 8
#define VU_MOST_MESSAGE 8192 /* none that is sent or expected here is longer */

/* Little-endian, as the hosts that this is built for are. */
struct vu_header {
	uint16_t id, command;
	uint32_t size, flags, error; /* size: with the header */
};
struct vu_access {
	uint64_t offset;
	uint32_t region, count;
};
struct vu_map {
	uint32_t argsz, flags;
	uint64_t offset, address, size;
};
struct vu_unmap {
	uint32_t argsz, flags;
	uint64_t address, size;
};
struct vu_set_irqs {
	uint32_t argsz, flags, index, start, count;
};

struct vu_client {
	int sock;
	uint16_t id;
	uint32_t patience_ms;
	uint32_t next_list; /* in the ring: where the next run goes on, as the device does */
	bool broken;
	char error[160];
};

struct vu_result {
	uint64_t ns, requests;
	uint64_t p50_ns, p99_ns; /* 0 where nothing is timed by itself */
	uint64_t waits; /* interrupts that were waited for */
};

/* All give 0 or -errno, with the reason in `error`.  After any but -EINVAL the client can only be closed. */

int vu_open(struct vu_client *, const char *path, uint32_t patience_ms);
void vu_close(struct vu_client *);

/* One command and its answer.  `error_number` is what the answer says, 0 for none; `got`: bytes behind its header. */
int vu_request(struct vu_client *, uint16_t command, const void *payload, size_t bytes, const int *fds, unsigned count,
	       uint8_t *answer, size_t room, size_t *got, uint32_t *error_number);

/* Reads a register, one read after the other. */
struct vu_reads {
	uint32_t region, width;
	uint64_t offset;
	uint64_t most_ns, most_requests;
};
int vu_run_reads(struct vu_client *, const struct vu_reads *, struct vu_result *);

/* Writes a register, posted, and waits for the interrupt; then `bytes` at `source` have to be at `target`.  Each time
 * other ones: the first and the last eight bytes are new. */
struct vu_doorbells {
	uint32_t region, width;
	uint64_t offset;
	uint8_t *source, *target;
	size_t bytes;
	int interrupt;
	uint64_t most_ns, most_requests;
};
int vu_run_doorbells(struct vu_client *, const struct vu_doorbells *, struct vu_result *);

/* A descriptor of the bench's copy engine: two tables of `count` pairs of 64-bit (address, length). */
struct vu_list {
	uint64_t sources, targets;
	uint32_t count, flags, result, moved;
};
enum { VU_LIST_INTERRUPT = 1 };
#define VU_LIST_DONE 0x80000000u

/* Keeps a ring of lists full: `group` of them to a doorbell and an interrupt.  The doorbell gets the index behind the
 * last list, posted. */
struct vu_lists {
	uint32_t region;
	uint64_t offset;
	struct vu_list *ring;
	uint32_t entries, group; /* group divides entries, and is below it */
	uint32_t bytes; /* of each list */
	int interrupt;
	uint64_t most_ns, most_requests;
};
int vu_run_lists(struct vu_client *, const struct vu_lists *, struct vu_result *);

/* Maps, or unmaps, pages one by one: page i is at `first - i * page` and at page (i * step) % pages of the file. */
struct vu_pages {
	uint64_t first, page, pages, step;
	uint32_t count;
	int fd;
};
int vu_run_maps(struct vu_client *, const struct vu_pages *, struct vu_result *);
int vu_run_unmaps(struct vu_client *, const struct vu_pages *, struct vu_result *);

/* The servers: one connection at a time, until the process ends.  `copies`: it maps what it is given, keeps the
 * eventfds of the first interrupts, and copies when the doorbell rings; else it answers, and closes what it is given.
 * Gives -errno. */
struct vu_device { /* where the registers of what copies are, in region 0 */
	uint64_t source, target, doorbell;
	uint32_t bytes;
};
int vu_serve(int listener, bool copies, const struct vu_device *);

#endif
