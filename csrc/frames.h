/* SPDX-License-Identifier: Apache-2.0
 *
 * frames: messages on a stream socket, as vfio-user has them: a header of 16 bytes with the size of the whole, a payload,
 * and descriptors beside its first byte.
 *
 * A message is read in two steps, its header and then its payload.  So the descriptors that stand beside its first byte
 * come with that byte and no other, however many messages lie in the socket and however many of them were sent at once:
 * the kernel hands descriptors out with the first of the bytes that they were sent with.
 *
 * Invariants
 *  - No more is read than the message under way has.  Nothing here waits.
 *  - A descriptor that was received is in the frame that is handed out, or kept for it, or closed.
 *  - What a header says of its size is judged before a byte is read or allocated for it. */
#ifndef IOD_FRAMES_H
#define IOD_FRAMES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define IOD_FRAME_HEAD 16u
#define IOD_FRAME_FDS 16u
#define IOD_FRAME_SMALL 4096u

struct iod_frame {
	uint16_t id, command;
	uint32_t flags, error;
	const uint8_t *payload; /* until the next read; NULL: the header's size cannot be */
	uint32_t length;
	unsigned fd_count;
	int fds[IOD_FRAME_FDS]; /* the caller's */
};

struct iod_frames {
	uint32_t most; /* bytes of a message */
	uint32_t begun, size, filled;
	bool in_payload, handed_out;
	unsigned fd_count;
	int fds[IOD_FRAME_FDS];
	uint8_t *large;
	uint8_t head[IOD_FRAME_HEAD];
	uint8_t small[IOD_FRAME_SMALL];
};

void iod_frames_init(struct iod_frames *, uint32_t most);
void iod_frames_close(struct iod_frames *);

/* 1: a whole message; 0: it is not there yet; -ECONNRESET: the other side is gone; -EMFILE: more descriptors than a
 * message may have, or than the process; other errors of the socket, and -ENOMEM. */
int iod_frames_read(struct iod_frames *, int socket, struct iod_frame *);

/* Sends a message, or as much of it as there is room for: bytes, or an error. */
ssize_t iod_frame_send(int socket, uint16_t id, uint16_t command, uint32_t flags, uint32_t error, const void *payload,
		       size_t length);

#endif
