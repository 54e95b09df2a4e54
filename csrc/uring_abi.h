/* SPDX-License-Identifier: Apache-2.0
 *
 * uring_abi: the part of the kernel's io_uring interface that this project uses, written out here so that the build
 * needs no kernel headers newer than the kernel it runs on.  Numbers and layouts are the kernel's and never change.
 *
 * Invariants
 *  - Every struct has exactly the size the kernel reads; the assertions below hold at compile time.
 *  - Nothing here says what the running kernel supports: iod_uring_probe asks it.
 */
#ifndef IOD_URING_ABI_H
#define IOD_URING_ABI_H

#include <stdint.h>

/* System calls: the same three numbers on every architecture that this builds for. */
#define IOD_SYS_IO_URING_SETUP 425
#define IOD_SYS_IO_URING_ENTER 426
#define IOD_SYS_IO_URING_REGISTER 427

struct uring_sqe {
	uint8_t opcode;
	uint8_t flags;	 /* SQE_* */
	uint16_t ioprio; /* RECVSEND_* for socket ops */
	int32_t fd;	 /* descriptor, or slot with SQE_FIXED_FILE */
	uint64_t off;
	uint64_t addr;
	uint32_t len;	   /* bytes, number of iovecs, or POLL_ADD_* */
	uint32_t op_flags; /* RWF_*, FSYNC_*, MSG_*, poll events, ASYNC_CANCEL_* */
	uint64_t user_data;
	uint16_t buf_index;
	uint16_t personality;
	int32_t file_index;
	uint64_t addr3;
	uint64_t pad;
};
_Static_assert(sizeof(struct uring_sqe) == 64, "SQE is 64 bytes");

struct uring_cqe {
	uint64_t user_data;
	int32_t res;
	uint32_t flags; /* CQE_F_* */
};
_Static_assert(sizeof(struct uring_cqe) == 16, "CQE is 16 bytes");

struct uring_sq_offsets {
	uint32_t head, tail, ring_mask, ring_entries, flags, dropped, array, resv1;
	uint64_t user_addr;
};

struct uring_cq_offsets {
	uint32_t head, tail, ring_mask, ring_entries, overflow, cqes, flags, resv1;
	uint64_t user_addr;
};

struct uring_params {
	uint32_t sq_entries, cq_entries;
	uint32_t flags; /* SETUP_* */
	uint32_t sq_thread_cpu, sq_thread_idle;
	uint32_t features; /* FEAT_*, filled in by the kernel */
	uint32_t wq_fd;
	uint32_t resv[3];
	struct uring_sq_offsets sq_off;
	struct uring_cq_offsets cq_off;
};
_Static_assert(sizeof(struct uring_params) == 120, "params are 120 bytes");

/* Argument of io_uring_enter with ENTER_EXT_ARG. */
struct uring_getevents_arg {
	uint64_t sigmask;
	uint32_t sigmask_size;
	uint32_t min_wait_us; /* FEAT_MIN_TIMEOUT: after this long one completion is enough */
	uint64_t timeout;     /* struct uring_timespec *, relative */
};
_Static_assert(sizeof(struct uring_getevents_arg) == 24, "getevents argument is 24 bytes");

struct uring_timespec {
	int64_t sec;
	long long nsec;
};
_Static_assert(sizeof(struct uring_timespec) == 16, "timespec is 16 bytes");

/* REGISTER_FILES2 and REGISTER_BUFFERS2. */
struct uring_rsrc_register {
	uint32_t count;
	uint32_t flags; /* RSRC_SPARSE */
	uint64_t resv;
	uint64_t data;
	uint64_t tags;
};
_Static_assert(sizeof(struct uring_rsrc_register) == 32, "resource registration is 32 bytes");

/* REGISTER_FILES_UPDATE2 and REGISTER_BUFFERS_UPDATE. */
struct uring_rsrc_update {
	uint32_t offset;
	uint32_t resv;
	uint64_t data; /* int32_t[] or struct iovec[] */
	uint64_t tags;
	uint32_t count;
	uint32_t resv2;
};
_Static_assert(sizeof(struct uring_rsrc_update) == 32, "resource update is 32 bytes");

struct uring_probe_op {
	uint8_t op;
	uint8_t resv;
	uint16_t flags; /* PROBE_SUPPORTED */
	uint32_t resv2;
};

struct uring_probe {
	uint8_t last_op;
	uint8_t ops_len;
	uint16_t resv;
	uint32_t resv2[3];
	struct uring_probe_op ops[256];
};
_Static_assert(sizeof(struct uring_probe) == 16 + 256 * 8, "probe is 16 bytes and 8 for each op");

enum uring_opcode {
	URING_NOP = 0,
	URING_READV = 1,
	URING_WRITEV = 2,
	URING_FSYNC = 3,
	URING_READ_FIXED = 4,
	URING_WRITE_FIXED = 5,
	URING_POLL_ADD = 6,
	URING_POLL_REMOVE = 7,
	URING_SENDMSG = 9,
	URING_RECVMSG = 10,
	URING_TIMEOUT = 11,
	URING_ASYNC_CANCEL = 14,
	URING_FALLOCATE = 17,
	URING_READ = 22,
	URING_WRITE = 23,
	URING_SEND = 26,
	URING_RECV = 27,
	URING_SEND_ZC = 47,
	URING_SENDMSG_ZC = 48,
	URING_READV_FIXED = 60,
	URING_WRITEV_FIXED = 61,
};

/* sqe.flags */
#define URING_SQE_FIXED_FILE (1u << 0)
#define URING_SQE_CQE_SKIP_SUCCESS (1u << 6)

/* sqe.op_flags of FSYNC, sqe.len of POLL_ADD, sqe.ioprio of sends */
#define URING_FSYNC_DATASYNC (1u << 0)
#define URING_POLL_ADD_MULTI (1u << 0)
#define URING_RECVSEND_FIXED_BUF (1u << 2)

/* cqe.flags */
#define URING_CQE_F_MORE (1u << 1)
#define URING_CQE_F_NOTIF (1u << 3)

/* Offsets to map */
#define URING_OFF_SQ_RING 0ull
#define URING_OFF_SQES 0x10000000ull

/* The submission ring's flags word */
#define URING_SQ_NEED_WAKEUP (1u << 0)
#define URING_SQ_CQ_OVERFLOW (1u << 1)
#define URING_SQ_TASKRUN (1u << 2)

#define URING_SETUP_CQSIZE (1u << 3)
#define URING_SETUP_CLAMP (1u << 4)
#define URING_SETUP_SUBMIT_ALL (1u << 7)
#define URING_SETUP_COOP_TASKRUN (1u << 8)
#define URING_SETUP_TASKRUN_FLAG (1u << 9)
#define URING_SETUP_SINGLE_ISSUER (1u << 12)
#define URING_SETUP_DEFER_TASKRUN (1u << 13)

#define URING_FEAT_SINGLE_MMAP (1u << 0)
#define URING_FEAT_NODROP (1u << 1)
#define URING_FEAT_SUBMIT_STABLE (1u << 2)
#define URING_FEAT_FAST_POLL (1u << 5)
#define URING_FEAT_EXT_ARG (1u << 8)
#define URING_FEAT_CQE_SKIP (1u << 11)
#define URING_FEAT_MIN_TIMEOUT (1u << 15)

#define URING_ENTER_GETEVENTS (1u << 0)
#define URING_ENTER_EXT_ARG (1u << 3)

enum uring_register {
	URING_REGISTER_BUFFERS = 0,
	URING_UNREGISTER_BUFFERS = 1,
	URING_REGISTER_FILES = 2,
	URING_UNREGISTER_FILES = 3,
	URING_REGISTER_EVENTFD = 4,
	URING_UNREGISTER_EVENTFD = 5,
	URING_REGISTER_PROBE = 8,
	URING_REGISTER_FILES2 = 13,
	URING_REGISTER_FILES_UPDATE2 = 14,
	URING_REGISTER_BUFFERS2 = 15,
	URING_REGISTER_BUFFERS_UPDATE = 16,
};

#define URING_RSRC_SPARSE (1u << 0)
#define URING_PROBE_SUPPORTED (1u << 0)

#endif
