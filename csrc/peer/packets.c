/* SPDX-License-Identifier: Apache-2.0
 *
 * packets: what a C programmer would write to send packets, to take them in, and to swap bytes on the way.
 *
 * Invariants
 *  - A send waits where the socket is full; one that fails or is short ends the loop with its error. */
#include "packets.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>

#define DRAIN 64
#define DRAIN_BYTES 2048
#define STEP 64 /* packets between two looks at the clock */

static uint64_t now_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* One packet, which counts when all of it was taken. */
static int send_whole(int fd, const struct msghdr *message, size_t bytes, struct peer_result *out)
{
	ssize_t n = sendmsg(fd, message, MSG_NOSIGNAL);

	if (n != (ssize_t)bytes)
		return n < 0 ? -errno : -EIO;
	out->requests++;
	out->bytes += bytes;
	return 0;
}

int peer_packet_sends(int fd, uint8_t *memory, const struct peer_segment *segments, uint32_t per_list, uint32_t lists,
		      uint64_t most_ns, struct peer_result *out)
{
	struct iovec *iov = calloc(per_list, sizeof *iov);
	uint64_t start = now_ns();
	uint32_t list = 0;
	int error = iov ? 0 : -ENOMEM;

	while (!error && out->ns < most_ns) {
		for (int k = 0; k < STEP && !error; k++) {
			const struct peer_segment *segment = segments + (size_t)list * per_list;
			struct msghdr message = { .msg_iov = iov, .msg_iovlen = per_list };
			size_t bytes = 0;
			for (uint32_t i = 0; i < per_list; i++) {
				iov[i] = (struct iovec){ memory + segment[i].offset, segment[i].length };
				bytes += segment[i].length;
			}
			error = send_whole(fd, &message, bytes, out);
			list = list + 1 == lists ? 0 : list + 1;
		}
		out->ns = now_ns() - start;
	}
	free(iov);
	return error;
}

int peer_packet_drain(int fd, uint64_t *count, struct peer_result *out)
{
	struct mmsghdr messages[DRAIN];
	struct iovec iov[DRAIN];
	uint8_t *room = malloc(DRAIN * DRAIN_BYTES);
	uint64_t start = now_ns();
	bool over = false;
	int error = room ? 0 : -ENOMEM;

	for (int i = 0; i < DRAIN && room; i++) {
		iov[i] = (struct iovec){ room + i * DRAIN_BYTES, DRAIN_BYTES };
		messages[i] = (struct mmsghdr){ .msg_hdr = { .msg_iov = &iov[i], .msg_iovlen = 1 } };
	}
	while (!error && !over) {
		int n = recvmmsg(fd, messages, DRAIN, MSG_WAITFORONE, NULL);
		if (n < 0 && errno != EINTR)
			error = -errno;
		for (int i = 0; i < n; i++) {
			over |= messages[i].msg_len == 0;
			out->requests += messages[i].msg_len != 0;
			out->bytes += messages[i].msg_len;
		}
		if (count)
			__atomic_store_n(count, out->requests, __ATOMIC_RELEASE);
	}
	out->ns = now_ns() - start;
	free(room);
	return error;
}

static void swap(uint8_t *to, size_t bytes)
{
	for (size_t k = 0; k + 1 < bytes; k += 2) {
		uint8_t low = to[k];
		to[k] = to[k + 1];
		to[k + 1] = low;
	}
}

int peer_packet_swap_sends(int fd, uint8_t *memory, const struct peer_segment *segments, uint32_t lists, uint64_t most_ns,
			   struct peer_result *out)
{
	static uint8_t copy[65536];
	uint64_t start = now_ns();
	uint32_t list = 0;
	int error = 0;

	while (!error && out->ns < most_ns) {
		for (int k = 0; k < STEP && !error; k++) {
			size_t bytes = segments[list].length < sizeof copy ? segments[list].length : sizeof copy;
			struct iovec iov = { copy, bytes };
			struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1 };
			memcpy(copy, memory + segments[list].offset, bytes);
			swap(copy, bytes);
			error = send_whole(fd, &message, bytes, out);
			list = list + 1 == lists ? 0 : list + 1;
		}
		out->ns = now_ns() - start;
	}
	return error;
}

/* Each its own pass, as a model does that gets its bytes by a DMA function and swaps them then. */
void peer_swap_copies(uint8_t *target, const uint8_t *source, size_t bytes, size_t buffers, uint64_t most_ns,
		      struct peer_result *out)
{
	uint64_t start = now_ns();
	size_t at = 0;

	do {
		for (int i = 0; i < 16; i++) {
			uint8_t *to = target + at * bytes;
			memcpy(to, source + at * bytes, bytes);
			swap(to, bytes);
			__asm__ volatile("" ::: "memory"); /* each copy is one that someone will look at */
			at = at + 1 == buffers ? 0 : at + 1;
		}
		out->requests += 16;
		out->ns = now_ns() - start;
	} while (out->ns < most_ns);
	out->bytes = out->requests * bytes;
}
