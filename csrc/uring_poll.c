/* SPDX-License-Identifier: Apache-2.0
 *
 * uring_poll: poll ops, and the descriptor that fileno() gives away.
 *
 * Why it is not the ring: with DEFER_TASKRUN a sleeping poll of the ring is not woken.  Why it is not only the eventfd
 * registered with the ring: a completion that is caused by a write to *another* eventfd (a doorbell) signals it late, by
 * an RCU callback, and from the second time on not at all.  Both seen on 6.18.  So with DEFER_TASKRUN it is an epoll
 * descriptor over that eventfd and over whatever is being polled: the ring still completes the op, the epoll only makes
 * sure that somebody comes and looks.
 *
 * Invariants
 *  - A poll op in flight has a slot; the slot's number travels as its user_data and the caller's comes back at the end.
 *  - A slot's descriptor is in the epoll set exactly while the op is in flight and fileno() was called; several slots
 *    of one descriptor share its one entry.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "uring_internal.h"

/* The entry of `fd` becomes what all slots of it together ask for. */
static void watch_update(const struct iod_uring *u, int fd)
{
	struct epoll_event e = {0};
	for (uint32_t i = 0; i < u->poll_slots; i++)
		if (u->polls[i].used && u->polls[i].fd == fd)
			e.events |= u->polls[i].events;
	if (!e.events)
		epoll_ctl(u->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
	else if (epoll_ctl(u->epoll_fd, EPOLL_CTL_MOD, fd, &e) < 0)
		/* A file that cannot be watched is always ready, and the op with it. */
		epoll_ctl(u->epoll_fd, EPOLL_CTL_ADD, fd, &e);
}

static bool grow(struct iod_uring *u)
{
	uint32_t slots = u->poll_slots ? u->poll_slots * 2 : 8;
	struct uring_poll *polls = realloc(u->polls, slots * sizeof *polls);
	if (!polls)
		return false;
	for (uint32_t i = u->poll_slots; i < slots; i++)
		polls[i] = (struct uring_poll){0};
	u->polls = polls;
	u->poll_slots = slots;
	return true;
}

int iod_uring_poll_begin(struct iod_uring *u, const struct iod_op *op, uint64_t *id)
{
	uint32_t i = 0;
	while (i < u->poll_slots && u->polls[i].used)
		i++;
	if (i == u->poll_slots && !grow(u))
		return -ENOMEM;
	u->polls[i] = (struct uring_poll){.user_data = op->user_data, .fd = op->fd, .events = op->poll_events, .used = true};
	if (u->epoll_fd >= 0)
		watch_update(u, op->fd);
	*id = URING_UD_POLL + i;
	return 0;
}

uint64_t iod_uring_poll_end(struct iod_uring *u, uint64_t id)
{
	struct uring_poll *p = &u->polls[id - URING_UD_POLL];
	p->used = false;
	if (u->epoll_fd >= 0)
		watch_update(u, p->fd);
	return p->user_data;
}

uint64_t iod_uring_poll_id(const struct iod_uring *u, uint64_t user_data)
{
	for (uint32_t i = 0; i < u->poll_slots; i++)
		if (u->polls[i].used && u->polls[i].user_data == user_data)
			return URING_UD_POLL + i;
	return user_data;
}

/* The epoll set over `event_fd` and all that is polled; where it is not needed, event_fd itself. */
int iod_uring_watch(struct iod_uring *u, int event_fd)
{
	if (!(u->setup_flags & URING_SETUP_DEFER_TASKRUN))
		return event_fd;
	int fd = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event e = {.events = EPOLLIN};
	if (fd < 0)
		return -errno;
	if (epoll_ctl(fd, EPOLL_CTL_ADD, event_fd, &e) < 0) {
		int err = -errno;
		close(fd);
		return err;
	}
	u->epoll_fd = fd;
	for (uint32_t i = 0; i < u->poll_slots; i++)
		if (u->polls[i].used)
			watch_update(u, u->polls[i].fd);
	return fd;
}
