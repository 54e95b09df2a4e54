/* SPDX-License-Identifier: Apache-2.0
 *
 * event: the eventfds by which both backends wake who waits.
 *
 * Invariant: its count says nothing, only whether it is zero. */
#ifndef IOD_EVENT_H
#define IOD_EVENT_H

#include <errno.h>
#include <stdint.h>
#include <unistd.h>

/* From any thread, and in a signal handler. */
static inline void iod_event_signal(int fd)
{
	uint64_t one = 1;
	int saved = errno;
	ssize_t r = write(fd, &one, sizeof one);
	(void)r; /* only a full counter fails, and that polls readable already */
	errno = saved;
}

static inline void iod_event_drain(int fd)
{
	uint64_t count;
	ssize_t r = read(fd, &count, sizeof count);
	(void)r;
}

#endif
