/* SPDX-License-Identifier: Apache-2.0
 *
 * vfio_serve: the servers that iodma's is compared with: as little as a server of the protocol can do, in C.
 *
 * Invariants
 *  - A message costs one call to receive and one to answer, descriptors included.
 *  - Every descriptor that comes is closed, or kept and closed with the connection.
 *  - What copies touches memory that was mapped for it, and nothing else: all of it is checked.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "vfio_user.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define MOST_REGIONS 16
#define MOST_INTERRUPTS 4
#define DATA_EVENTFD 4 /* a flag of SET_IRQS */

struct region {
	uint64_t address, size;
	uint8_t *host;
};

struct server {
	int sock;
	bool copies;
	const struct vu_device *device;
	struct region regions[MOST_REGIONS];
	unsigned region_count;
	int interrupts[MOST_INTERRUPTS];
	uint64_t source, target;
	uint8_t in[2 * VU_MOST_MESSAGE];
	size_t have;
	int fds[VU_MOST_FDS];
	unsigned fd_count;
};

static const char capabilities[] = "{\"capabilities\":{\"max_msg_fds\":8,\"max_data_xfer_size\":1048576}}";

static void close_fds(struct server *s)
{
	for (unsigned i = 0; i < s->fd_count; i++)
		close(s->fds[i]);
	s->fd_count = 0;
}

static int take_fd(struct server *s)
{
	return s->fd_count ? s->fds[--s->fd_count] : -1;
}

static uint8_t *at(const struct server *s, uint64_t address, uint64_t bytes)
{
	for (unsigned i = 0; i < s->region_count; i++) {
		const struct region *r = &s->regions[i];

		if (address >= r->address && bytes <= r->size && address - r->address <= r->size - bytes)
			return r->host + (address - r->address);
	}
	return NULL;
}

static uint32_t map(struct server *s, const struct vu_map *m)
{
	struct region *r = &s->regions[s->region_count];
	int fd = take_fd(s);
	void *host;

	if (fd < 0 || s->region_count == MOST_REGIONS) {
		if (fd >= 0)
			close(fd);
		return EINVAL;
	}
	host = mmap(NULL, m->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)m->offset);
	close(fd);
	if (host == MAP_FAILED)
		return (uint32_t)errno;
	*r = (struct region){ m->address, m->size, host };
	s->region_count++;
	return 0;
}

static void forget(struct server *s)
{
	for (unsigned i = 0; i < s->region_count; i++)
		munmap(s->regions[i].host, s->regions[i].size);
	for (unsigned i = 0; i < MOST_INTERRUPTS; i++) {
		if (s->interrupts[i] >= 0)
			close(s->interrupts[i]);
	}
	close_fds(s);
}

static void set_irqs(struct server *s, const struct vu_set_irqs *irqs)
{
	if (!(irqs->flags & DATA_EVENTFD))
		return;
	for (uint32_t i = 0; i < irqs->count && i < s->fd_count; i++) {
		uint64_t vector = (uint64_t)irqs->start + i;

		if (vector < MOST_INTERRUPTS) {
			if (s->interrupts[vector] >= 0)
				close(s->interrupts[vector]);
			s->interrupts[vector] = s->fds[i];
			s->fds[i] = -1;
		}
	}
}

static void write_register(struct server *s, uint64_t offset, uint64_t value)
{
	const struct vu_device *d = s->device;

	if (offset == d->source)
		s->source = value;
	else if (offset == d->target)
		s->target = value;
	else if (offset == d->doorbell) {
		const uint8_t *from = at(s, s->source, d->bytes);
		uint8_t *to = at(s, s->target, d->bytes);
		uint64_t one = 1;

		if (from && to) {
			memcpy(to, from, d->bytes);
			if (s->interrupts[0] >= 0 && write(s->interrupts[0], &one, sizeof one) < 0)
				return; /* it is raised already */
		}
	}
}

/* How many bytes behind the header the answer has, which are in `out`; an error number in `error`. */
static size_t answer(struct server *s, const struct vu_header *h, const uint8_t *in, size_t bytes, uint8_t *out,
		     uint32_t *error)
{
	const struct vu_access *access = (const struct vu_access *)in;
	uint32_t words[8] = { 0 };
	uint64_t value = 0;

	switch (h->command) {
	case VU_VERSION:
		if (bytes < 4)
			break;
		memset(out, 0, 4); /* version 0.0 */
		memcpy(out + 4, capabilities, sizeof capabilities);
		return 4 + sizeof capabilities;
	case VU_DMA_MAP:
		if (bytes < sizeof(struct vu_map))
			break;
		if (s->copies)
			*error = map(s, (const struct vu_map *)in);
		return 0;
	case VU_DMA_UNMAP:
		if (bytes < sizeof(struct vu_unmap))
			break;
		memcpy(out, in, sizeof(struct vu_unmap));
		return sizeof(struct vu_unmap);
	case VU_DEVICE_GET_INFO: /* a PCI device that can be reset: 9 regions, 5 kinds of interrupt */
		memcpy(out, (uint32_t[]){ 16, 3, 9, 5 }, 16);
		return 16;
	case VU_DEVICE_GET_REGION_INFO:
		if (bytes < 12)
			break;
		memcpy(words, (uint32_t[]){ 32, 3 }, 8);
		memcpy(&words[2], in + 8, 4);
		words[4] = words[2] ? 256 : 4096; /* the lower half of its size */
		memcpy(out, words, 32);
		return 32;
	case VU_DEVICE_GET_IRQ_INFO:
		if (bytes < 12)
			break;
		memcpy(out, (uint32_t[]){ 16, 1, 0, MOST_INTERRUPTS }, 16);
		memcpy(out + 8, in + 8, 4);
		return 16;
	case VU_DEVICE_SET_IRQS:
		if (bytes < sizeof(struct vu_set_irqs))
			break;
		if (s->copies)
			set_irqs(s, (const struct vu_set_irqs *)in);
		return 0;
	case VU_REGION_READ:
		if (bytes < sizeof *access || access->count > VU_MOST_MESSAGE - sizeof *h - sizeof *access)
			break;
		memcpy(out, in, sizeof *access);
		memset(out + sizeof *access, 0, access->count);
		return sizeof *access + access->count;
	case VU_REGION_WRITE:
		if (bytes < sizeof *access || access->count > bytes - sizeof *access)
			break;
		if (s->copies && access->region == 0 && access->count <= sizeof value) {
			memcpy(&value, in + sizeof *access, access->count);
			write_register(s, access->offset, value);
		}
		memcpy(out, in, sizeof *access);
		return sizeof *access;
	case VU_DEVICE_RESET:
		return 0;
	default:
		*error = ENOTSUP;
		return 0;
	}
	*error = EINVAL;
	return 0;
}

static int reply(struct server *s, const struct vu_header *h, const uint8_t *in, size_t bytes)
{
	_Alignas(8) uint8_t out[VU_MOST_MESSAGE];
	struct vu_header *header = (struct vu_header *)out;
	uint32_t error = 0;
	size_t size = answer(s, h, in, bytes, out + sizeof *header, &error);

	if (h->flags & VU_NO_REPLY)
		return 0;
	*header = (struct vu_header){ h->id, h->command, (uint32_t)(sizeof *header + size),
				      VU_REPLY | (error ? VU_ERROR : 0), error };
	return send(s->sock, out, header->size, MSG_NOSIGNAL) == (ssize_t)header->size ? 0 : -EPIPE;
}

/* What is there, with its descriptors: 1, 0 at the end of the connection, or -errno. */
static int receive(struct server *s)
{
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(VU_MOST_FDS * sizeof(int))];
	} control;
	struct iovec iov = { s->in + s->have, sizeof s->in - s->have };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control };
	ssize_t n = recvmsg(s->sock, &m, MSG_CMSG_CLOEXEC);

	if (n <= 0)
		return n < 0 ? -errno : 0;
	s->have += (size_t)n;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c)) {
		size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t i = 0; i < count; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
			if (s->fd_count < VU_MOST_FDS)
				s->fds[s->fd_count++] = fd;
			else
				close(fd);
		}
	}
	return 1;
}

static void serve_connection(struct server *s)
{
	while (receive(s) == 1) {
		size_t done = 0;

		while (s->have - done >= sizeof(struct vu_header)) {
			struct vu_header h;

			memcpy(&h, s->in + done, sizeof h);
			if (h.size < sizeof h || h.size > VU_MOST_MESSAGE)
				return;
			if (h.size > s->have - done)
				break;
			memmove(s->in, s->in + done, s->have - done); /* nothing, but for posted writes */
			s->have -= done;
			if (reply(s, &h, s->in + sizeof h, h.size - sizeof h))
				return;
			close_fds(s);
			done = h.size;
		}
		if (done) {
			memmove(s->in, s->in + done, s->have - done);
			s->have -= done;
		}
	}
}

int vu_serve(int listener, bool copies, const struct vu_device *device)
{
	for (;;) {
		static _Alignas(8) struct server s;

		memset(&s, 0, sizeof s);
		s.copies = copies;
		s.device = device;
		for (unsigned i = 0; i < MOST_INTERRUPTS; i++)
			s.interrupts[i] = -1;
		s.sock = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		if (s.sock < 0) {
			if (errno == EINTR || errno == ECONNABORTED)
				continue;
			return -errno;
		}
		serve_connection(&s);
		close(s.sock);
		forget(&s);
	}
}
