/* SPDX-License-Identifier: Apache-2.0
 *
 * uring_register: descriptors and buffers that the kernel looks up and pins once instead of at every request.
 *
 * Invariants
 *  - Both tables are made, empty, when the first slot is set; a kernel that refuses leaves the ring as it was.
 *  - Emptying a slot never disturbs requests in flight: the kernel keeps what they use until they end.
 *  - A registered buffer stays pinned: only memory whose owner never gives its pages back belongs here.
 */
#include <errno.h>
#include <sys/uio.h>

#include "uring_internal.h"

static int make_table(struct iod_uring *u, unsigned opcode, unsigned slots)
{
	struct uring_rsrc_register table = {.count = slots, .flags = URING_RSRC_SPARSE};
	int r = iod_uring_register(u->fd, opcode, &table, sizeof table);
	return r < 0 ? r : 0;
}

static int update(struct iod_uring *u, unsigned opcode, int index, const void *data)
{
	uint64_t tag = 0;
	struct uring_rsrc_update change = {
		.offset = (uint32_t)index,
		.data = (uint64_t)(uintptr_t)data,
		.tags = (uint64_t)(uintptr_t)&tag,
		.count = 1,
	};
	int r = iod_uring_register(u->fd, opcode, &change, sizeof change);
	return r < 0 ? r : 0;
}

int iod_uring_set_file(struct iod_backend *b, int index, int fd)
{
	struct iod_uring *u = (struct iod_uring *)b;
	if (index < 0 || index >= IOD_MAX_FILES || fd < -1)
		return -EINVAL;
	if (!u->files_registered) {
		if (fd < 0)
			return index;
		int r = make_table(u, URING_REGISTER_FILES2, IOD_MAX_FILES);
		if (r < 0)
			return r;
		u->files_registered = true;
	}
	int32_t slot = fd;
	int r = update(u, URING_REGISTER_FILES_UPDATE2, index, &slot);
	return r < 0 ? r : index;
}

int iod_uring_set_buffer(struct iod_backend *b, int index, void *base, size_t length)
{
	struct iod_uring *u = (struct iod_uring *)b;
	if (index < 0 || index >= IOD_MAX_BUFFERS || (base && !length))
		return -EINVAL;
	if (!u->buffers_registered) {
		if (!base)
			return 0;
		int r = make_table(u, URING_REGISTER_BUFFERS2, IOD_MAX_BUFFERS);
		if (r < 0)
			return r;
		u->buffers_registered = true;
	}
	struct iovec slot = {.iov_base = base, .iov_len = base ? length : 0};
	return update(u, URING_REGISTER_BUFFERS_UPDATE, index, &slot);
}

void iod_uring_drop_registrations(struct iod_uring *u)
{
	if (u->files_registered)
		iod_uring_register(u->fd, URING_UNREGISTER_FILES, NULL, 0);
	if (u->buffers_registered)
		iod_uring_register(u->fd, URING_UNREGISTER_BUFFERS, NULL, 0);
	u->files_registered = u->buffers_registered = false;
}
