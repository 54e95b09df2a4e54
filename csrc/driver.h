/* SPDX-License-Identifier: Apache-2.0
 *
 * driver: a target whose requests go to a library in this process instead of the kernel.
 *
 * It takes the ops that a backend takes, for one target, and answers them as a backend does, so the core plans, leases,
 * cancels and ends such transfers as it does all others.  It does its I/O on a descriptor that does not block, inside
 * `queue` and `ready`; whoever owns the core watches that descriptor.
 *
 * Invariants
 *  - An op's iovecs and the memory behind them are the driver's until its completion was reaped, and nothing is written
 *    to them afterwards: one that was cancelled completes when the library is done with its memory, not before.
 *  - Nothing is delivered inside `queue`, `cancel`, `ready` or `abort`: completions wait for `reap`.
 *  - After `abort` nothing is under way.
 */
#ifndef IOD_DRIVER_H
#define IOD_DRIVER_H

#include "backend.h"

struct iod_driver;

struct iod_driver_ops {
	/* READV, WRITEV, FSYNC and FALLOCATE; there is room. */
	void (*queue)(struct iod_driver *, const struct iod_op *);
	/* What of it was not begun is not begun any more. */
	void (*cancel)(struct iod_driver *, uint64_t user_data);
	uint32_t (*reap)(struct iod_driver *, struct iod_cqe *, uint32_t max);
	/* What it waits for: POLLIN, POLLOUT; 0: nothing, now or ever again. */
	uint32_t (*events)(const struct iod_driver *);
	/* Some of that came. */
	void (*ready)(struct iod_driver *);
	/* Break the connection; all that is under way ends with ECONNABORTED. */
	void (*abort)(struct iod_driver *);
	/* Nothing may be under way.  Unless `ours`, the connection is that of the process that forked this one. */
	void (*destroy)(struct iod_driver *, bool ours);
};

struct iod_driver {
	const struct iod_driver_ops *ops;
	int fd;		 /* to be watched; its own until it is destroyed */
	uint32_t room;	 /* ops that may be queued now */
	uint32_t done;	 /* completions to be reaped */
	uint32_t watched; /* by the core's owner: the events that it watches for now */
	uint64_t bytes;	 /* under way */
};

#endif
