/* SPDX-License-Identifier: Apache-2.0
 *
 * frames: see frames.h. */
#include "frames.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

struct header {
	uint16_t id, command;
	uint32_t size, flags, error;
};
_Static_assert(sizeof(struct header) == IOD_FRAME_HEAD, "a header has no padding");

void iod_frames_init(struct iod_frames *f, uint32_t most)
{
	memset(f, 0, offsetof(struct iod_frames, head));
	f->most = most;
}

static void drop_payload(struct iod_frames *f)
{
	free(f->large);
	f->large = NULL;
	f->handed_out = false;
}

void iod_frames_close(struct iod_frames *f)
{
	while (f->fd_count)
		close(f->fds[--f->fd_count]);
	drop_payload(f);
	f->begun = 0;
	f->in_payload = false;
}

/* Keeps what came; false: some did not fit, here or in the process. */
static bool take_fds(struct iod_frames *f, struct msghdr *message)
{
	bool all = !(message->msg_flags & MSG_CTRUNC);
	for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS || c->cmsg_len < CMSG_LEN(0))
			continue;
		size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < count; i++) {
			int fd;
			memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
			if (f->fd_count < IOD_FRAME_FDS) {
				f->fds[f->fd_count++] = fd;
			} else {
				close(fd);
				all = false;
			}
		}
	}
	return all;
}

static ssize_t receive(struct iod_frames *f, int sock, void *into, size_t size)
{
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE((IOD_FRAME_FDS + 1) * sizeof(int))]; /* one more, to see that there were too many */
	} control;
	struct iovec iov = {.iov_base = into, .iov_len = size};
	struct msghdr message = {.msg_iov = &iov,
				 .msg_iovlen = 1,
				 .msg_control = control.room,
				 .msg_controllen = sizeof control.room};
	ssize_t count;
	do
		count = recvmsg(sock, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	while (count < 0 && errno == EINTR);
	if (count < 0)
		return errno == EAGAIN || errno == EWOULDBLOCK ? -EAGAIN : -errno;
	if ((message.msg_controllen || message.msg_flags & MSG_CTRUNC) && !take_fds(f, &message))
		return -EMFILE;
	return count ? count : -ECONNRESET;
}

static void hand_out(struct iod_frames *f, const struct header *h, struct iod_frame *out)
{
	out->id = h->id;
	out->command = h->command;
	out->flags = h->flags;
	out->error = h->error;
	out->fd_count = f->fd_count;
	memcpy(out->fds, f->fds, f->fd_count * sizeof *f->fds);
	f->fd_count = 0;
	f->begun = 0;
	f->in_payload = false;
}

int iod_frames_read(struct iod_frames *f, int sock, struct iod_frame *out)
{
	struct header h;
	ssize_t count;
	if (f->handed_out)
		drop_payload(f);
	if (!f->in_payload) {
		while (f->begun < IOD_FRAME_HEAD) {
			count = receive(f, sock, f->head + f->begun, IOD_FRAME_HEAD - f->begun);
			if (count < 0)
				return count == -EAGAIN ? 0 : (int)count;
			f->begun += (uint32_t)count;
		}
		memcpy(&h, f->head, sizeof h);
		if (h.size < IOD_FRAME_HEAD || h.size > f->most) {
			hand_out(f, &h, out);
			out->payload = NULL;
			out->length = 0;
			return 1;
		}
		f->size = h.size - IOD_FRAME_HEAD;
		f->filled = 0;
		if (f->size > IOD_FRAME_SMALL && !(f->large = malloc(f->size)))
			return -ENOMEM;
		f->in_payload = true;
	}
	uint8_t *payload = f->large ? f->large : f->small;
	while (f->filled < f->size) {
		count = receive(f, sock, payload + f->filled, f->size - f->filled);
		if (count < 0)
			return count == -EAGAIN ? 0 : (int)count;
		f->filled += (uint32_t)count;
	}
	memcpy(&h, f->head, sizeof h);
	hand_out(f, &h, out);
	out->payload = payload;
	out->length = f->size;
	f->handed_out = true;
	return 1;
}

ssize_t iod_frame_send(int sock, uint16_t id, uint16_t command, uint32_t flags, uint32_t error, const void *payload,
		       size_t length)
{
	struct header h = {.id = id,
			   .command = command,
			   .size = (uint32_t)(IOD_FRAME_HEAD + length),
			   .flags = flags,
			   .error = error};
	struct iovec iov[2] = {{.iov_base = &h, .iov_len = sizeof h},
			       {.iov_base = (void *)(uintptr_t)payload, .iov_len = length}};
	struct msghdr message = {.msg_iov = iov, .msg_iovlen = length ? 2 : 1};
	ssize_t count;
	do
		count = sendmsg(sock, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
	while (count < 0 && errno == EINTR);
	if (count < 0)
		return errno == EAGAIN || errno == EWOULDBLOCK ? 0 : -errno;
	return count;
}
