/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "vhost_blk.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* The protocol's messages, by their names in its document. */
enum {
	GET_FEATURES = 1,
	SET_FEATURES = 2,
	SET_OWNER = 3,
	SET_MEM_TABLE = 5,
	SET_VRING_NUM = 8,
	SET_VRING_ADDR = 9,
	SET_VRING_BASE = 10,
	GET_VRING_BASE = 11,
	SET_VRING_KICK = 12,
	SET_VRING_CALL = 13,
	GET_PROTOCOL_FEATURES = 15,
	SET_PROTOCOL_FEATURES = 16,
	GET_QUEUE_NUM = 17,
	SET_VRING_ENABLE = 18,
	GET_CONFIG = 24,
};
enum { FLAG_VERSION = 1, FLAG_VERSION_MASK = 3, FLAG_REPLY = 4, FLAG_NEED_REPLY = 8 };

struct message {
	uint32_t request, flags, size;
	uint8_t payload[256];
} __attribute__((packed));
#define HEADER_BYTES 12u

struct vring_state {
	uint32_t index, number;
};
struct vring_address {
	uint32_t index, flags;
	uint64_t descriptors, used, available, log;
};
struct memory_table {
	uint32_t count, padding;
	struct {
		uint64_t guest, size, user, offset;
	} regions[2];
};

int vb_fail(struct vb_session *s, int error, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(s->error, sizeof s->error, format, arguments);
	va_end(arguments);
	return error;
}

static int64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* The conversation. */

struct fds {
	int fd[2];
	unsigned count;
};
#define NO_FDS ((struct fds){ .count = 0 })

static int say(struct vb_session *s, uint32_t request, const void *payload, uint32_t size, struct fds fds,
	       bool need_reply)
{
	struct message m = { .request = htole32(request), .size = htole32(size) };
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(2 * sizeof(int))];
	} control = { 0 };
	struct iovec iov = { &m, HEADER_BYTES + size };
	struct msghdr out = { .msg_iov = &iov, .msg_iovlen = 1 };
	ssize_t n;

	m.flags = htole32(FLAG_VERSION | (need_reply ? FLAG_NEED_REPLY : 0));
	if (size)
		memcpy(m.payload, payload, size);
	if (fds.count) {
		out.msg_control = control.bytes;
		out.msg_controllen = CMSG_SPACE(fds.count * sizeof(int));
		control.header.cmsg_level = SOL_SOCKET;
		control.header.cmsg_type = SCM_RIGHTS;
		control.header.cmsg_len = CMSG_LEN(fds.count * sizeof(int));
		memcpy(CMSG_DATA(&control.header), fds.fd, fds.count * sizeof(int));
	}
	do {
		n = sendmsg(s->sock, &out, MSG_NOSIGNAL);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return vb_fail(s, -errno, "message %u could not be sent: %s", request, strerror(errno));
	if ((size_t)n != iov.iov_len)
		return vb_fail(s, -EIO, "message %u was sent in part", request);
	return 0;
}

static int hear_bytes(struct vb_session *s, uint32_t request, void *buffer, size_t bytes, int64_t deadline)
{
	for (size_t done = 0; done < bytes;) {
		struct pollfd p = { .fd = s->sock, .events = POLLIN };
		int64_t left = deadline - now_ms();
		ssize_t n;

		if (left <= 0 || poll(&p, 1, (int)left) == 0)
			return vb_fail(s, -ETIMEDOUT, "no answer to message %u within %d ms", request, VB_REPLY_MS);
		n = recv(s->sock, (uint8_t *)buffer + done, bytes - done, MSG_DONTWAIT);
		if (n == 0)
			return vb_fail(s, -ECONNRESET, "the server closed the connection instead of answering message %u",
				       request);
		if (n < 0 && errno != EINTR && errno != EAGAIN)
			return vb_fail(s, -errno, "no answer to message %u: %s", request, strerror(errno));
		done += n > 0 ? (size_t)n : 0;
	}
	return 0;
}

/* The answer to `request`: exactly `size` bytes of payload. */
static int hear(struct vb_session *s, uint32_t request, void *payload, uint32_t size)
{
	int64_t deadline = now_ms() + VB_REPLY_MS;
	struct message m;
	int error = hear_bytes(s, request, &m, HEADER_BYTES, deadline);
	uint32_t flags, length;

	if (error)
		return error;
	flags = le32toh(m.flags);
	length = le32toh(m.size);
	if (le32toh(m.request) != request || !(flags & FLAG_REPLY) || (flags & FLAG_VERSION_MASK) != FLAG_VERSION)
		return vb_fail(s, -EPROTO, "message %u was answered by message %u, flags 0x%x", request,
			       le32toh(m.request), flags);
	if (length != size)
		return vb_fail(s, -EPROTO, "the answer to message %u has %u bytes, must have %u", request, length,
			       size);
	return hear_bytes(s, request, payload, size, deadline);
}

/* A message without an answer of its own: acknowledged when the server can. */
static int tell(struct vb_session *s, uint32_t request, const void *payload, uint32_t size, struct fds fds)
{
	bool acknowledged = vb_has(s->protocol, VB_PROTOCOL_REPLY_ACK);
	uint64_t answer;
	int error = say(s, request, payload, size, fds, acknowledged);

	if (error || !acknowledged)
		return error;
	error = hear(s, request, &answer, sizeof answer);
	if (!error && answer)
		return vb_fail(s, -EIO, "the server refused message %u (%llu)", request,
			       (unsigned long long)le64toh(answer));
	return error;
}

static int tell_u64(struct vb_session *s, uint32_t request, uint64_t value)
{
	value = htole64(value);
	return tell(s, request, &value, sizeof value, NO_FDS);
}

static int tell_fd(struct vb_session *s, uint32_t request, uint64_t index, int fd)
{
	index = htole64(index);
	return tell(s, request, &index, sizeof index, (struct fds){ { fd }, 1 });
}

static int tell_ring(struct vb_session *s, uint32_t request, uint32_t index, uint32_t number)
{
	struct vring_state state = { htole32(index), htole32(number) };

	return tell(s, request, &state, sizeof state, NO_FDS);
}

static int ask_u64(struct vb_session *s, uint32_t request, uint64_t *value)
{
	int error = say(s, request, NULL, 0, NO_FDS, false);

	if (!error)
		error = hear(s, request, value, sizeof *value);
	*value = le64toh(*value);
	return error;
}

static int ask_config(struct vb_session *s)
{
	struct {
		uint32_t offset, size, flags;
		uint8_t bytes[VB_CONFIG_BYTES];
	} config = { .size = htole32(VB_CONFIG_BYTES) };
	int error = say(s, GET_CONFIG, &config, sizeof config, NO_FDS, false);
	uint64_t sectors;

	if (!error)
		error = hear(s, GET_CONFIG, &config, sizeof config);
	if (error)
		return error;
	memcpy(s->config, config.bytes, sizeof s->config);
	memcpy(&sectors, s->config, sizeof sectors);
	sectors = le64toh(sectors);
	if (sectors > INT64_MAX / VB_SECTOR)
		return vb_fail(s, -EPROTO, "a disk of %llu sectors", (unsigned long long)sectors);
	s->capacity = sectors * VB_SECTOR;
	return 0;
}

static int connect_to(struct vb_session *s, const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };

	if (strlen(path) >= sizeof address.sun_path)
		return vb_fail(s, -ENAMETOOLONG, "the socket's path is longer than %zu bytes",
			       sizeof address.sun_path - 1);
	strcpy(address.sun_path, path);
	s->sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (s->sock < 0 || connect(s->sock, (struct sockaddr *)&address, sizeof address))
		return vb_fail(s, -errno, "%s: %s", path, strerror(errno));
	return 0;
}

/* What we take of what is offered. */
static uint64_t wanted_features(const struct vb_session *s)
{
	uint64_t wanted = 1ull << VB_F_SEG_MAX | 1ull << VB_F_BLK_SIZE | 1ull << VB_F_FLUSH | 1ull << VB_F_TOPOLOGY |
			  1ull << VB_F_MQ | 1ull << VB_F_DISCARD | 1ull << VB_F_WRITE_ZEROES |
			  1ull << VB_F_PROTOCOL_FEATURES | 1ull << VB_F_VERSION_1;

	if (s->options.indirect)
		wanted |= 1ull << VB_F_INDIRECT_DESC;
	if (s->options.event_index)
		wanted |= 1ull << VB_F_EVENT_IDX;
	return wanted;
}

static int negotiate(struct vb_session *s)
{
	uint64_t protocol = 0, queues = 1;
	int error = ask_u64(s, GET_FEATURES, &s->offered);

	if (error)
		return error;
	s->features = s->offered & wanted_features(s);
	if (!vb_has(s->features, VB_F_VERSION_1) || !vb_has(s->features, VB_F_PROTOCOL_FEATURES))
		return vb_fail(s, -EPROTO, "the server offers 0x%llx, without VERSION_1 or PROTOCOL_FEATURES",
			       (unsigned long long)s->offered);
	error = ask_u64(s, GET_PROTOCOL_FEATURES, &protocol);
	if (error)
		return error;
	protocol &= 1u << VB_PROTOCOL_MQ | 1u << VB_PROTOCOL_REPLY_ACK | 1u << VB_PROTOCOL_CONFIG;
	if (!vb_has(protocol, VB_PROTOCOL_CONFIG))
		return vb_fail(s, -EPROTO, "the server does not offer the CONFIG protocol feature");
	error = tell_u64(s, SET_PROTOCOL_FEATURES, protocol);
	if (error)
		return error;
	s->protocol = protocol;
	if (vb_has(protocol, VB_PROTOCOL_MQ))
		error = ask_u64(s, GET_QUEUE_NUM, &queues);
	if (error)
		return error;
	s->server_queues = queues > UINT32_MAX ? UINT32_MAX : (uint32_t)queues;
	if (s->options.queues > queues)
		return vb_fail(s, -EINVAL, "%u queues are asked for, the server has %llu", s->options.queues,
			       (unsigned long long)queues);
	error = tell(s, SET_OWNER, NULL, 0, NO_FDS);
	if (!error)
		error = ask_config(s);
	if (!error)
		error = tell_u64(s, SET_FEATURES, s->features);
	return error;
}

static int share_memory(struct vb_session *s)
{
	const struct vb_region *regions[2] = { &s->rings, &s->data };
	struct memory_table table = { .count = htole32(2) };

	for (int i = 0; i < 2; i++) {
		table.regions[i].guest = htole64(regions[i]->guest);
		table.regions[i].size = htole64(regions[i]->bytes);
		table.regions[i].user = htole64((uintptr_t)regions[i]->memory);
	}
	return tell(s, SET_MEM_TABLE, &table, sizeof table, (struct fds){ { s->rings.fd, s->data.fd }, 2 });
}

static int start_ring(struct vb_session *s, uint32_t index)
{
	struct vb_queue *q = &s->queues[index];
	struct vring_address address = {
		.index = htole32(index),
		.descriptors = htole64((uintptr_t)q->descriptors),
		.used = htole64((uintptr_t)q->used),
		.available = htole64((uintptr_t)q->available),
	};
	int error = tell_ring(s, SET_VRING_NUM, index, q->size);

	if (!error)
		error = tell_ring(s, SET_VRING_BASE, index, 0);
	if (!error)
		error = tell(s, SET_VRING_ADDR, &address, sizeof address, NO_FDS);
	if (!error)
		error = tell_fd(s, SET_VRING_CALL, index, q->call);
	if (!error)
		error = tell_fd(s, SET_VRING_KICK, index, q->kick);
	if (!error)
		error = tell_ring(s, SET_VRING_ENABLE, index, 1);
	return error;
}

/* The ring stops, and the server has to be where we are. */
static int stop_ring(struct vb_session *s, uint32_t index)
{
	struct vring_state state = { htole32(index), 0 };
	int error = say(s, GET_VRING_BASE, &state, sizeof state, NO_FDS, false);

	if (!error)
		error = hear(s, GET_VRING_BASE, &state, sizeof state);
	if (!error && (le32toh(state.index) != index || le32toh(state.number) != s->queues[index].available_next))
		return vb_fail(s, -EPROTO, "queue %u stopped at %u, must be at %u", index, le32toh(state.number),
			       s->queues[index].available_next);
	return error;
}

/* The memory and what lies in it. */

static size_t pages(size_t bytes)
{
	return (bytes + VB_PAGE - 1) / VB_PAGE * VB_PAGE;
}

static void shuffle(uint8_t **items, size_t count)
{
	uint64_t state = 0x9e3779b97f4a7c15u;

	for (size_t i = count; i > 1; i--) {
		uint8_t *other;
		size_t j;

		state ^= state << 13;
		state ^= state >> 7;
		state ^= state << 17;
		j = (size_t)(state % i);
		other = items[j];
		items[j] = items[i - 1];
		items[i - 1] = other;
	}
}

static int map_region(struct vb_session *s, struct vb_region *region, int given)
{
	struct stat status;
	void *memory;

	region->fd = given < 0 ? memfd_create("iodma-vhost-load", MFD_CLOEXEC) : fcntl(given, F_DUPFD_CLOEXEC, 0);
	if (region->fd < 0 || (given < 0 && ftruncate(region->fd, (off_t)region->bytes)) || fstat(region->fd, &status))
		return vb_fail(s, -errno, "%zu bytes of memory: %s", region->bytes, strerror(errno));
	if ((uint64_t)status.st_size < region->bytes)
		return vb_fail(s, -EINVAL, "%zu bytes of memory are needed, %lld are given", region->bytes,
			       (long long)status.st_size);
	memory = mmap(NULL, region->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, region->fd, 0);
	if (memory == MAP_FAILED)
		return vb_fail(s, -errno, "%zu bytes of memory: %s", region->bytes, strerror(errno));
	region->memory = memory;
	return 0;
}

static int lay_out(struct vb_session *s)
{
	const struct vb_options *o = &s->options;
	size_t slots = (size_t)o->queues * o->depth;
	size_t each = pages(64 + (o->segments + 2) * sizeof(struct vring_descriptor));
	/* A page of its own between segments: none of them touch, whatever the order. */
	size_t stride = pages(o->segment_bytes) + (o->segments > 1 ? VB_PAGE : 0);
	size_t descriptors = pages((size_t)o->queue_size * sizeof(struct vring_descriptor));
	size_t available = pages(6 + 2 * (size_t)o->queue_size), used = pages(6 + 8 * (size_t)o->queue_size);
	uint8_t *at;

	int error;

	s->rings.guest = VB_GUEST_BASE;
	s->rings.bytes = o->queues * (descriptors + available + used) + slots * each;
	s->data.guest = VB_DATA_BASE;
	s->data.bytes = slots * o->segments * stride;
	error = map_region(s, &s->rings, -1);
	if (!error)
		error = map_region(s, &s->data, o->data_fd);
	if (error)
		return error;
	s->queues = calloc(o->queues, sizeof *s->queues);
	s->slots = calloc(slots, sizeof *s->slots);
	s->segments = calloc(slots * o->segments, sizeof *s->segments);
	for (uint32_t i = 0; s->queues && i < o->queues; i++)
		s->queues[i].kick = s->queues[i].call = -1;
	if (!s->queues || !s->slots || !s->segments)
		return vb_fail(s, -ENOMEM, "no memory for %zu slots", slots);
	at = s->rings.memory;
	for (uint32_t i = 0; i < o->queues; i++) {
		struct vb_queue *q = &s->queues[i];

		q->size = (uint16_t)o->queue_size;
		q->slots = &s->slots[(size_t)i * o->depth];
		q->descriptors = (struct vring_descriptor *)at;
		q->available = (_Atomic uint16_t *)(at + descriptors);
		q->used = (_Atomic uint16_t *)(at + descriptors + available);
		at += descriptors + available + used;
		q->kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		q->call = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		if (q->kick < 0 || q->call < 0)
			return vb_fail(s, -errno, "an eventfd: %s", strerror(errno));
	}
	for (size_t i = 0; i < slots; i++, at += each) {
		s->slots[i].header = (struct vb_header *)at;
		s->slots[i].status = at + sizeof(struct vb_header);
		s->slots[i].table = (struct vring_descriptor *)(at + 64);
		s->slots[i].segments = &s->segments[i * o->segments];
	}
	for (size_t i = 0; i < slots * o->segments; i++)
		s->segments[i] = s->data.memory + i * stride;
	shuffle(s->segments, slots * o->segments);
	return 0;
}

static int watch(struct vb_session *s)
{
	struct epoll_event event = { .events = EPOLLIN | EPOLLRDHUP, .data.u32 = UINT32_MAX };
	int error;

	s->epoll = epoll_create1(EPOLL_CLOEXEC);
	error = s->epoll < 0 || (s->sock >= 0 && epoll_ctl(s->epoll, EPOLL_CTL_ADD, s->sock, &event));
	for (uint32_t i = 0; !error && i < s->options.queues; i++) {
		/* Edges: each call is told once, and need not be read. */
		event = (struct epoll_event){ .events = EPOLLIN | EPOLLET, .data.u32 = i };
		error = epoll_ctl(s->epoll, EPOLL_CTL_ADD, s->queues[i].call, &event);
	}
	return error ? vb_fail(s, -errno, "epoll: %s", strerror(errno)) : 0;
}

static int open_null(struct vb_session *s)
{
	s->offered = wanted_features(s) & ~(1ull << VB_F_PROTOCOL_FEATURES);
	s->features = s->offered;
	s->capacity = s->options.null_bytes;
	s->server_queues = s->options.queues;
	return 0;
}

static int open_all(struct vb_session *s)
{
	const char *path = s->options.path;
	int error = path ? connect_to(s, path) : 0;

	if (!error)
		error = path ? negotiate(s) : open_null(s);
	if (error)
		return error;
	s->descriptors_each = s->options.segments + 2;
	if (vb_has(s->features, VB_F_INDIRECT_DESC) && s->descriptors_each > s->options.indirect_above)
		s->descriptors_each = 1;
	if ((uint64_t)s->descriptors_each * s->options.depth > s->options.queue_size)
		return vb_fail(s, -EINVAL, "%u requests of %u descriptors do not fit into a queue of %u",
			       s->options.depth, s->descriptors_each, s->options.queue_size);
	error = lay_out(s);
	if (!error)
		error = watch(s);
	if (!error && !path)
		return vb_null_start(s);
	if (!error)
		error = share_memory(s);
	for (uint32_t i = 0; !error && i < s->options.queues; i++)
		error = start_ring(s, i);
	return error;
}

int vb_open(struct vb_session *s, const struct vb_options *options)
{
	int error;

	memset(s, 0, sizeof *s);
	s->options = *options;
	s->sock = s->rings.fd = s->data.fd = s->epoll = -1;
	error = open_all(s);
	s->options.path = NULL; /* the caller's */
	if (error) {
		s->broken = true;
		vb_close(s);
	}
	return error;
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static void unmap_region(struct vb_region *region)
{
	if (region->memory)
		munmap(region->memory, region->bytes);
	region->memory = NULL;
	close_fd(&region->fd);
}

int vb_close(struct vb_session *s)
{
	int error = 0;

	vb_null_stop(s);
	for (uint32_t i = 0; s->queues && i < s->options.queues; i++) {
		if (s->sock >= 0 && !s->broken && !error)
			error = stop_ring(s, i);
	}
	for (uint32_t i = 0; s->queues && i < s->options.queues; i++) {
		close_fd(&s->queues[i].kick);
		close_fd(&s->queues[i].call);
	}
	close_fd(&s->sock);
	close_fd(&s->epoll);
	unmap_region(&s->rings);
	unmap_region(&s->data);
	free(s->queues);
	free(s->slots);
	free(s->segments);
	s->queues = NULL;
	s->slots = NULL;
	s->segments = NULL;
	s->broken = true;
	return error;
}
