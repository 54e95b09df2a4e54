/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "vfio_user.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define MOST_TIMES (1u << 20) /* of one run: what comes after them is counted, and not in the percentiles */
#define HEADER sizeof(struct vu_header)

static int fail(struct vu_client *c, int error, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(c->error, sizeof c->error, format, arguments);
	va_end(arguments);
	c->broken |= error != -EINVAL;
	return error;
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

int vu_open(struct vu_client *c, const char *path, uint32_t patience_ms)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	struct timeval patience = { patience_ms / 1000, patience_ms % 1000 * 1000 };

	*c = (struct vu_client){ .sock = -1, .patience_ms = patience_ms };
	if (strlen(path) >= sizeof address.sun_path)
		return fail(c, -EINVAL, "a path of %zu bytes: at most %zu fit", strlen(path), sizeof address.sun_path - 1);
	memcpy(address.sun_path, path, strlen(path));
	c->sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (c->sock < 0 || setsockopt(c->sock, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) ||
	    setsockopt(c->sock, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience) ||
	    connect(c->sock, (struct sockaddr *)&address, sizeof address)) {
		int error = -errno;

		vu_close(c);
		return fail(c, error, "no connection to %s: %s", path, strerror(-error));
	}
	return 0;
}

void vu_close(struct vu_client *c)
{
	if (c->sock >= 0)
		close(c->sock);
	c->sock = -1;
}

/* The conversation. */

static int say(struct vu_client *c, const void *message, size_t bytes, const int *fds, unsigned count)
{
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(VU_MOST_FDS * sizeof(int))];
	} control;
	struct iovec iov = { (void *)message, bytes };
	struct msghdr out = { .msg_iov = &iov, .msg_iovlen = 1 };
	ssize_t n;

	if (count) {
		memset(&control, 0, sizeof control);
		out.msg_control = control.bytes;
		out.msg_controllen = CMSG_SPACE(count * sizeof(int));
		control.header.cmsg_level = SOL_SOCKET;
		control.header.cmsg_type = SCM_RIGHTS;
		control.header.cmsg_len = CMSG_LEN(count * sizeof(int));
		memcpy(CMSG_DATA(&control.header), fds, count * sizeof(int));
	}
	do {
		n = sendmsg(c->sock, &out, MSG_NOSIGNAL);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return fail(c, -errno, "a message could not be sent: %s", strerror(errno));
	if ((size_t)n != bytes)
		return fail(c, -ETIMEDOUT, "the server does not take what it is sent");
	return 0;
}

/* The next message, whole: most come with one call. */
static int hear(struct vu_client *c, uint8_t *buffer, size_t room, uint16_t command)
{
	size_t have = 0, wanted = HEADER;

	while (have < wanted) {
		ssize_t n = recv(c->sock, buffer + have, room - have, 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return fail(c, -ETIMEDOUT, "no answer to command %u within %u ms", command, c->patience_ms);
		if (n < 0)
			return fail(c, -errno, "no answer to command %u: %s", command, strerror(errno));
		if (n == 0)
			return fail(c, -ECONNRESET, "the server closed the connection instead of answering command %u",
				    command);
		have += (size_t)n;
		if (have >= HEADER)
			wanted = ((struct vu_header *)buffer)->size;
		if (wanted < HEADER || wanted > room)
			return fail(c, -EPROTO, "an answer of %zu bytes to command %u", wanted, command);
	}
	if (have > wanted)
		return fail(c, -EPROTO, "%zu bytes behind the answer to command %u", have - wanted, command);
	return 0;
}

/* Sends what `header` begins, and hears the answer. */
static int ask(struct vu_client *c, struct vu_header *header, const int *fds, unsigned count, uint8_t *answer,
	       size_t room)
{
	const struct vu_header *got = (const struct vu_header *)answer;
	int error;

	header->id = c->id++;
	error = say(c, header, header->size, fds, count);
	if (!error)
		error = hear(c, answer, room, header->command);
	if (error)
		return error;
	if (got->id != header->id || got->command != header->command || (got->flags & 0xf) != VU_REPLY)
		return fail(c, -EPROTO, "message %u, command %u, flags %#x is no answer to message %u, command %u", got->id,
			    got->command, got->flags, header->id, header->command);
	return 0;
}

/* The same where only success will do; `bytes`: of the whole answer. */
static int ask_for(struct vu_client *c, struct vu_header *header, const int *fds, unsigned count, uint8_t *answer,
		   size_t bytes)
{
	const struct vu_header *got = (const struct vu_header *)answer;
	int error = ask(c, header, fds, count, answer, VU_MOST_MESSAGE);

	if (error)
		return error;
	if (got->flags & VU_ERROR)
		return fail(c, -EIO, "command %u was refused with error %u", header->command, got->error);
	if (got->size != bytes)
		return fail(c, -EPROTO, "the answer to command %u has %u bytes, not %zu", header->command, got->size, bytes);
	return 0;
}

int vu_request(struct vu_client *c, uint16_t command, const void *payload, size_t bytes, const int *fds, unsigned count,
	       uint8_t *answer, size_t room, size_t *got, uint32_t *error_number)
{
	_Alignas(8) uint8_t out[VU_MOST_MESSAGE], in[VU_MOST_MESSAGE];
	struct vu_header *header = (struct vu_header *)out, *reply = (struct vu_header *)in;
	int error;

	if (c->broken)
		return fail(c, -EPIPE, "the connection is broken");
	if (bytes > sizeof out - HEADER || count > VU_MOST_FDS)
		return fail(c, -EINVAL, "%zu bytes and %u descriptors: at most %zu and %u", bytes, count,
			    sizeof out - HEADER, VU_MOST_FDS);
	*header = (struct vu_header){ .command = command, .size = (uint32_t)(HEADER + bytes) };
	if (bytes)
		memcpy(out + HEADER, payload, bytes);
	error = ask(c, header, fds, count, in, sizeof in);
	if (error)
		return error;
	*got = reply->size - HEADER;
	*error_number = reply->flags & VU_ERROR ? reply->error : 0;
	if (*got > room)
		return fail(c, -EPROTO, "an answer of %zu bytes, at most %zu are wanted", *got, room);
	memcpy(answer, in + HEADER, *got);
	return 0;
}

static int wait_for_interrupt(struct vu_client *c, int interrupt)
{
	struct pollfd p = { .fd = interrupt, .events = POLLIN };
	uint64_t count;
	int n;

	do {
		n = poll(&p, 1, (int)c->patience_ms);
	} while (n < 0 && errno == EINTR);
	if (n == 0)
		return fail(c, -ETIMEDOUT, "no interrupt within %u ms", c->patience_ms);
	if (n < 0 || read(interrupt, &count, sizeof count) < 0)
		return fail(c, -errno, "the interrupt's eventfd: %s", strerror(errno));
	return 0;
}

/* Times of single requests. */

struct times {
	uint32_t *ns;
	uint32_t count;
};

static void note(struct times *t, uint64_t ns)
{
	if (t->count < MOST_TIMES)
		t->ns[t->count++] = ns > UINT32_MAX ? UINT32_MAX : (uint32_t)ns;
}

static int by_size(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return x < y ? -1 : x > y;
}

static void conclude(struct times *t, struct vu_result *out)
{
	if (t->count) {
		qsort(t->ns, t->count, sizeof *t->ns, by_size);
		out->p50_ns = t->ns[t->count / 2];
		out->p99_ns = t->ns[(uint64_t)t->count * 99 / 100];
	}
	free(t->ns);
}

static int begin(struct vu_client *c, struct times *t, struct vu_result *out)
{
	memset(out, 0, sizeof *out);
	*t = (struct times){ 0 };
	if (c->broken)
		return fail(c, -EPIPE, "the connection is broken");
	t->ns = malloc(MOST_TIMES * sizeof *t->ns);
	return t->ns ? 0 : fail(c, -ENOMEM, "no memory for the times");
}

/* The loops. */

int vu_run_reads(struct vu_client *c, const struct vu_reads *job, struct vu_result *out)
{
	struct {
		struct vu_header header;
		struct vu_access access;
	} read = { { .command = VU_REGION_READ, .size = sizeof read }, { job->offset, job->region, job->width } };
	_Alignas(8) uint8_t answer[VU_MOST_MESSAGE];
	struct times times;
	int error = begin(c, &times, out);
	uint64_t start = now_ns(), now = start;

	while (!error && now - start < job->most_ns && (!job->most_requests || out->requests < job->most_requests)) {
		uint64_t before = now;

		error = ask_for(c, &read.header, NULL, 0, answer, sizeof read + job->width);
		now = now_ns();
		note(&times, now - before);
		out->requests++;
	}
	out->ns = now - start;
	conclude(&times, out);
	return error;
}

/* A posted write of a register. */
static int post(struct vu_client *c, uint32_t region, uint64_t offset, uint64_t value, uint32_t width)
{
	struct {
		struct vu_header header;
		struct vu_access access;
		uint64_t value;
	} write = { { .id = c->id++,
		      .command = VU_REGION_WRITE,
		      .size = (uint32_t)(HEADER + sizeof(struct vu_access) + width),
		      .flags = VU_NO_REPLY },
		    { offset, region, width },
		    value };

	return say(c, &write, write.header.size, NULL, 0);
}

static void stamp(uint8_t *at, size_t bytes, uint64_t value)
{
	memcpy(at, &value, sizeof value);
	memcpy(at + bytes - sizeof value, &value, sizeof value);
}

static bool stamped(const uint8_t *at, size_t bytes, uint64_t value)
{
	return !memcmp(at, &value, sizeof value) && !memcmp(at + bytes - sizeof value, &value, sizeof value);
}

int vu_run_doorbells(struct vu_client *c, const struct vu_doorbells *job, struct vu_result *out)
{
	struct times times;
	int error = begin(c, &times, out);
	uint64_t start = now_ns(), now = start, value = start; /* the stamps of no two runs are the same */

	while (!error && now - start < job->most_ns && (!job->most_requests || out->requests < job->most_requests)) {
		uint64_t before;

		stamp(job->source, job->bytes, ++value);
		before = now_ns();
		error = post(c, job->region, job->offset, (uint32_t)value, job->width);
		if (!error)
			error = wait_for_interrupt(c, job->interrupt);
		now = now_ns();
		if (!error && !stamped(job->target, job->bytes, value))
			error = fail(c, -EIO, "interrupt %llu came before the bytes that it tells of",
				     (unsigned long long)out->requests + 1);
		note(&times, now - before);
		out->requests++;
		out->waits++;
	}
	out->ns = now - start;
	conclude(&times, out);
	return error;
}

struct ring {
	const struct vu_lists *job;
	uint32_t tail, head, in_flight;
	uint64_t submitted;
};

/* One group, and its doorbell. */
static int ring_group(struct vu_client *c, struct ring *r)
{
	const struct vu_lists *job = r->job;

	for (uint32_t i = 0; i < job->group; i++) {
		struct vu_list *list = &job->ring[r->tail];

		list->flags = i + 1 == job->group ? VU_LIST_INTERRUPT : 0;
		list->result = list->moved = 0;
		r->tail = r->tail + 1 == job->entries ? 0 : r->tail + 1;
	}
	r->in_flight += job->group;
	r->submitted += job->group;
	atomic_thread_fence(memory_order_release);
	return post(c, job->region, job->offset, r->tail, sizeof(uint32_t));
}

/* How many groups have come back; -1: one came back wrong. */
static int ring_reap(struct vu_client *c, struct ring *r, struct vu_result *out)
{
	const struct vu_lists *job = r->job;
	int groups = 0;

	for (; r->in_flight; r->in_flight--) {
		struct vu_list *list = &job->ring[r->head];
		uint32_t result = *(volatile uint32_t *)&list->result;

		if (!(result & VU_LIST_DONE))
			break;
		atomic_thread_fence(memory_order_acquire);
		if (result != VU_LIST_DONE || list->moved != job->bytes) {
			fail(c, -EIO, "list %u came back with result %#x and %u bytes moved, of %u", r->head, result,
			     list->moved, job->bytes);
			return -1;
		}
		r->head = r->head + 1 == job->entries ? 0 : r->head + 1;
		out->requests++;
		groups += out->requests % job->group == 0;
	}
	return groups;
}

int vu_run_lists(struct vu_client *c, const struct vu_lists *job, struct vu_result *out)
{
	struct ring r = { .job = job, .tail = c->next_list % job->entries, .head = c->next_list % job->entries };
	uint64_t start, now;
	int error = 0, groups = (int)(job->entries / job->group) - 1; /* the ring is never all full */

	memset(out, 0, sizeof *out);
	if (c->broken)
		return fail(c, -EPIPE, "the connection is broken");
	start = now = now_ns();
	for (;;) {
		bool over = now - start >= job->most_ns;

		while (groups-- > 0 && !error && !over && (!job->most_requests || r.submitted < job->most_requests))
			error = ring_group(c, &r);
		if (error || !r.in_flight)
			break;
		error = wait_for_interrupt(c, job->interrupt);
		if (error)
			break;
		out->waits++;
		groups = ring_reap(c, &r, out);
		now = now_ns();
		if (groups < 0) {
			error = -EIO;
			break;
		}
	}
	c->next_list = r.tail;
	out->ns = now - start; /* what was begun in time is waited for, and counts */
	return error;
}

static uint64_t page_address(const struct vu_pages *job, uint32_t i)
{
	return job->first - i * job->page;
}

int vu_run_maps(struct vu_client *c, const struct vu_pages *job, struct vu_result *out)
{
	struct {
		struct vu_header header;
		struct vu_map map;
	} m = { { .command = VU_DMA_MAP, .size = sizeof m },
		{ .argsz = sizeof m.map, .flags = VU_MAY_READ | VU_MAY_WRITE, .size = job->page } };
	_Alignas(8) uint8_t answer[VU_MOST_MESSAGE];
	uint64_t start = now_ns();
	int error = 0;

	memset(out, 0, sizeof *out);
	if (c->broken)
		return fail(c, -EPIPE, "the connection is broken");
	for (uint32_t i = 0; i < job->count && !error; i++, out->requests++) {
		m.map.address = page_address(job, i);
		m.map.offset = i * job->step % job->pages * job->page;
		error = ask_for(c, &m.header, &job->fd, 1, answer, HEADER);
	}
	out->ns = now_ns() - start;
	return error;
}

int vu_run_unmaps(struct vu_client *c, const struct vu_pages *job, struct vu_result *out)
{
	struct {
		struct vu_header header;
		struct vu_unmap unmap;
	} m = { { .command = VU_DMA_UNMAP, .size = sizeof m }, { .argsz = sizeof m.unmap, .size = job->page } };
	_Alignas(8) uint8_t answer[VU_MOST_MESSAGE];
	uint64_t start = now_ns();
	int error = 0;

	memset(out, 0, sizeof *out);
	if (c->broken)
		return fail(c, -EPIPE, "the connection is broken");
	for (uint32_t i = 0; i < job->count && !error; i++, out->requests++) {
		m.unmap.address = page_address(job, i);
		error = ask_for(c, &m.header, NULL, 0, answer, sizeof m);
	}
	out->ns = now_ns() - start;
	return error;
}
