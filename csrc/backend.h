/* SPDX-License-Identifier: Apache-2.0
 *
 * backend: the last stage.  A backend takes descriptors of kernel requests and gives back results; it is the only
 * part that hands memory to the kernel.  Two exist behind one table of functions: io_uring (uring.c) and worker
 * threads (threads.c).
 *
 * Invariants
 *  - An op is copied when it is queued; what it points to (iovecs, buffers, msghdr, the descriptor) stays valid until
 *    its completion was reaped.
 *  - Every queued op gives exactly one completion, cancelled or not; a zero-copy send gives two, the first of
 *    which carries IOD_CQE_MORE.
 *  - queue, flush and reap never block and never sleep; wait does, and may be called without the interpreter lock.
 *  - All calls but wake come from the thread that made the backend.
 */
#ifndef IOD_BACKEND_H
#define IOD_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/uio.h>

enum iod_opcode {
	IOD_OP_NOP,
	IOD_OP_READV,	  /* preadv(fd, iov, niov, offset) */
	IOD_OP_WRITEV,	  /* pwritev2(fd, iov, niov, offset, DSYNC ? RWF_DSYNC : 0) */
	IOD_OP_SENDMSG,	  /* sendmsg(fd, msg, MSG_NOSIGNAL): may be short */
	IOD_OP_RECVMSG,	  /* recvmsg(fd, msg, 0): may be short */
	IOD_OP_SEND_ZC,	  /* sendmsg zero-copy; -EOPNOTSUPP where it does not exist */
	IOD_OP_FSYNC,	  /* fdatasync(fd) */
	IOD_OP_FALLOCATE, /* fallocate(fd, mode, offset, length) */
	IOD_OP_POLL,	  /* one shot poll(fd, poll_events): result is revents */
	/* packets[0] to packets[niov - 1], those that need not wait: the number that went, or the error of the first.  Done by
	 * whoever flushes.  mode: 0 for a socket; 1 for a descriptor that does not block and is read and written. */
	IOD_OP_SEND_PACKETS,
	IOD_OP_RECEIVE_PACKETS,
};

#define IOD_OP_DSYNC (1u << 0)
#define IOD_OP_FIXED_FILE (1u << 1)   /* file_index names a registered descriptor; fd stays valid as well */
#define IOD_OP_CONSUMES (1u << 3)     /* READV of what is no file: bytes that were read are gone, so it is read once */
#define IOD_OP_CACHED (1u << 5)	      /* READV that the page cache may answer: of a file that is read through it */
#define IOD_OP_FIXED_BUFFER (1u << 2) /* buffer_index names the registered buffer that holds all of iov[0..niov) */
#define IOD_OP_NOWAIT (1u << 4)	      /* SENDMSG, RECVMSG: -EAGAIN rather than wait for the peer */
#define IOD_OP_PEEK (1u << 6)	      /* RECVMSG: what is received stays there */
#define IOD_OP_WHOLE (1u << 7)	      /* RECVMSG of a packet: its length, however little was asked for */

struct iod_op {
	uint8_t code;
	uint8_t flags;
	uint16_t buffer_index;
	int fd;
	int file_index;
	uint32_t niov;
	uint32_t poll_events;
	int mode; /* fallocate */
	const struct iovec *iov;
	struct msghdr *msg;
	struct mmsghdr *packets;
	uint64_t offset;
	uint64_t length; /* fallocate */
	uint64_t user_data; /* below UINT64_MAX << 32, the rest is the backend's own; a poll's: any */
};

static inline uint32_t iod_receive_flags(const struct iod_op *op)
{
	return (op->flags & IOD_OP_PEEK ? MSG_PEEK : 0) | (op->flags & IOD_OP_WHOLE ? MSG_TRUNC : 0);
}

static inline bool iod_is_packets(const struct iod_op *op)
{
	return op->code == IOD_OP_SEND_PACKETS || op->code == IOD_OP_RECEIVE_PACKETS;
}
int32_t iod_packets_run(const struct iod_op *); /* mmsg.c */

#define IOD_CQE_MORE (1u << 0) /* another completion for the same op follows (zero-copy send) */

struct iod_cqe {
	uint64_t user_data;
	int32_t res; /* bytes or -errno */
	uint32_t flags;
};

struct iod_backend;

struct iod_backend_stats {
	uint64_t queued, completed, cancels;
	uint64_t enters;	   /* system calls made to hand over and to collect */
	uint64_t sleeps;	   /* those of them that were allowed to sleep */
	uint64_t spins, spin_hits; /* waits that spun, and those that spinning ended */
};

struct iod_backend_ops {
	const char *name;
	/* How many ops may be queued now without EAGAIN. */
	uint32_t (*room)(struct iod_backend *);
	/* 0, or -EAGAIN when there is no room (flush or reap, then again). */
	int (*queue)(struct iod_backend *, const struct iod_op *);
	/* Does the op at once, if that is cheaper, nothing is queued, and there is nothing to wait for: its result, or -EAGAIN
	 * (queue it).  NULL: never. */
	int (*now)(struct iod_backend *, const struct iod_op *);
	/* Ask that the op with this user_data ends soon.  Its own completion says how it ended. -EAGAIN: no room, again. */
	int (*cancel)(struct iod_backend *, uint64_t user_data);
	/* Hand over what is queued.  0 or -errno. */
	int (*flush)(struct iod_backend *);
	/* Up to max completions; does not enter the kernel unless completions can only be had that way. */
	uint32_t (*reap)(struct iod_backend *, struct iod_cqe *, uint32_t max);
	/* flush, then return when at least `least` completions can be reaped, wake() was called, or timeout_ns passed
	 * (-1: no limit).  Spins up to spin_ns first, and returns when a watched word has changed then.  Returns 0, -ETIME, -EINTR or another -errno.  -EINTR says that a
	 * signal may have come, not that one did: look, and call again.
	 * Between begin and end nothing of Python's is touched: the caller gives up the interpreter lock around it. */
	int (*wait)(struct iod_backend *, uint32_t least, int64_t timeout_ns, uint64_t spin_ns);
	/* From any thread, async-signal-safe: ends a wait, now or the next one. */
	void (*wake)(struct iod_backend *);
	/* A descriptor that polls readable when reap would give something (or wake was called). */
	int (*fileno)(struct iod_backend *);
	/* Slots for registered descriptors: index >= 0 or -errno; fd -1 empties the slot. */
	int (*set_file)(struct iod_backend *, int index, int fd);
	/* Register [base, base+length) as buffer `index`; base NULL empties.  -errno when the kernel refuses. */
	int (*set_buffer)(struct iod_backend *, int index, void *base, size_t length);
	/* Nothing may be in flight. */
	void (*destroy)(struct iod_backend *);
};

/* A word of shared memory that somebody else changes: a wait that spins looks at it too. */
struct iod_watch {
	const uint16_t *word;
	uint16_t seen, mask; /* there is something when the bits of the mask are others than these */
};

struct iod_backend {
	const struct iod_backend_ops *ops;
	struct iod_backend_stats stats;
	const struct iod_watch *watch; /* the owner's; looked at by `wait` only, under the SIGBUS guard */
	uint32_t watches;
	bool watched; /* that is what ended the last wait */
	uint8_t vain; /* how often, in a row, nobody wanted the processor that a spin offered: iod_offer */
	uint32_t max_inflight; /* ops that may be queued and not yet reaped, all in all (completion room) */
};

/* One of the watched words has changed: looks that often, with a pause after each, unless one has before. */
bool iod_watch_changed(struct iod_backend *, int looks);

#define IOD_MAX_FILES 256
#define IOD_MAX_BUFFERS 256

/* entries: submission slots (power of two); inflight: most ops not yet reaped.  NULL with *err = -errno. */
struct iod_backend *iod_uring_create(uint32_t entries, uint32_t inflight, int *err);
struct iod_backend *iod_threads_create(uint32_t workers, uint32_t inflight, int *err);

/* What this kernel's io_uring can do, found by asking it. */
struct iod_uring_probe {
	int error; /* 0 or the errno with which io_uring_setup refused */
	uint32_t features;
	uint32_t setup_flags; /* those of SINGLE_ISSUER | DEFER_TASKRUN | TASKRUN_FLAG | COOP_TASKRUN that were accepted */
	uint64_t opcodes[4];  /* bit per supported IORING_OP */
};
void iod_uring_probe(struct iod_uring_probe *);

#endif
