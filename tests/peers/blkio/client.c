/* SPDX-License-Identifier: Apache-2.0
 *
 * What libblkio does, on request: a line in for each call, a line out with what came of it. Which calls are made,
 * and whether their outcome is right, tests/peers/blkio/client.py knows. blkio(3) of libblkio 1.5.
 *
 *	set NAME VALUE | get NAME | connect | start
 *	memory FD BYTES | alloc BYTES		gives the region's number (alloc: and its descriptor)
 *	map REGION | unmap REGION
 *	remove QUEUE				QUEUE: q0, q1, ... or, of poll queues, p0, p1, ...
 *	read|write QUEUE ID START FLAGS REGION:OFFSET:BYTES...
 *	zeroes|discard QUEUE ID START BYTES FLAGS
 *	flush QUEUE ID
 *	wait QUEUE N				N completions at least (0: those there are): gives ID:RESULT...
 *	sleep QUEUE N				as wait, by the completion descriptor
 *
 * "ok ...", or "error ERRNO". The end of the input is the end of the device. */
#define _GNU_SOURCE
#include <blkio.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define MOST_REGIONS 1024
#define MOST_IDS 1024
#define MOST_PIECES 256
#define SECONDS 20

static struct blkio *device;
static struct blkio_mem_region region[MOST_REGIONS];
static int regions;
static struct iovec pieces[MOST_IDS][MOST_PIECES]; /* libblkio has them until the request is complete */

static void wrong(const char *line)
{
	fprintf(stderr, "client: cannot do this: %s\n", line);
	exit(2);
}

static char *word(const char *line)
{
	char *found = strtok(NULL, " ");
	if (!found)
		wrong(line);
	return found;
}

static unsigned long long number(const char *line, unsigned long long below)
{
	char *end;
	unsigned long long value = strtoull(word(line), &end, 10);
	if (*end || value >= below)
		wrong(line);
	return value;
}

static struct blkioq *queue(const char *line)
{
	const char *name = word(line);
	int index = atoi(name + 1);
	struct blkioq *found = *name == 'p' ? blkio_get_poll_queue(device, index) : blkio_get_queue(device, index);
	if (!found)
		wrong(line);
	return found;
}

static void result(int ret)
{
	if (ret < 0)
		printf("error %d %s\n", -ret, blkio_get_error_msg());
	else
		printf("ok\n");
}

/* A region of memory: what mmap gave, or what libblkio has allocated. */
static void memory(const char *line, bool ours)
{
	struct blkio_mem_region *new = &region[regions];
	if (regions == MOST_REGIONS)
		wrong(line);
	if (ours) {
		int fd = (int)number(line, 1 << 20);
		size_t length = number(line, 1ull << 40);
		void *at = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (at == MAP_FAILED) {
			result(-errno);
			return;
		}
		*new = (struct blkio_mem_region){.addr = at, .len = length, .fd = fd};
	} else {
		int ret = blkio_alloc_mem_region(device, new, number(line, 1ull << 40));
		if (ret < 0) {
			result(ret);
			return;
		}
	}
	printf("ok %d %d\n", regions++, new->fd);
}

static void transfer(const char *line, bool write)
{
	struct blkioq *q = queue(line);
	size_t id = number(line, MOST_IDS);
	uint64_t start = number(line, UINT64_MAX);
	uint32_t flags = (uint32_t)number(line, 1ull << 32);
	int n = 0;
	for (char *piece; (piece = strtok(NULL, " ")); n++) {
		unsigned which;
		size_t offset, length;
		if (n == MOST_PIECES || sscanf(piece, "%u:%zu:%zu", &which, &offset, &length) != 3 ||
		    which >= (unsigned)regions)
			wrong(line);
		pieces[id][n] = (struct iovec){(char *)region[which].addr + offset, length};
	}
	if (n == 1 && write)
		blkioq_write(q, start, pieces[id]->iov_base, pieces[id]->iov_len, (void *)id, flags);
	else if (n == 1)
		blkioq_read(q, start, pieces[id]->iov_base, pieces[id]->iov_len, (void *)id, flags);
	else if (write)
		blkioq_writev(q, start, pieces[id], n, (void *)id, flags);
	else
		blkioq_readv(q, start, pieces[id], n, (void *)id, flags);
	result(0);
}

static void range(const char *line, bool zeroes)
{
	struct blkioq *q = queue(line);
	size_t id = number(line, MOST_IDS);
	uint64_t start = number(line, UINT64_MAX), length = number(line, UINT64_MAX);
	uint32_t flags = (uint32_t)number(line, 1ull << 32);
	if (zeroes)
		blkioq_write_zeroes(q, start, length, (void *)id, flags);
	else
		blkioq_discard(q, start, length, (void *)id, flags);
	result(0);
}

static int say(const struct blkio_completion *done, int n)
{
	for (int i = 0; i < n; i++)
		printf(" %zu:%d", (size_t)done[i].user_data, done[i].ret);
	return n;
}

/* Waits for at least so many completions: in libblkio, or for its descriptor. */
static void wait_for(const char *line, bool descriptor)
{
	struct blkioq *q = queue(line);
	int least = (int)number(line, MOST_IDS);
	struct blkio_completion done[MOST_IDS];
	if (!descriptor) {
		struct timespec limit = {.tv_sec = SECONDS};
		int n = blkioq_do_io(q, done, least, MOST_IDS, least ? &limit : NULL);
		if (n < 0) {
			result(n);
			return;
		}
		printf("ok");
		say(done, n);
		printf("\n");
		return;
	}
	struct pollfd at = {.fd = blkioq_get_completion_fd(q), .events = POLLIN};
	printf("ok");
	blkioq_set_completion_fd_enabled(q, true);
	for (int n = 0; n < least;) {
		uint64_t count;
		int found = blkioq_do_io(q, done, 0, MOST_IDS, NULL);
		if (found < 0) {
			printf(" failed:%d", found);
			break;
		}
		n += say(done, found);
		if (n < least && (poll(&at, 1, SECONDS * 1000) != 1 || read(at.fd, &count, sizeof count) != sizeof count)) {
			printf(" failed:%d", -ETIME);
			break;
		}
	}
	blkioq_set_completion_fd_enabled(q, false);
	printf("\n");
}

static void property(const char *line, bool set)
{
	const char *name = word(line);
	char *value = NULL;
	int ret = set ? blkio_set_str(device, name, word(line)) : blkio_get_str(device, name, &value);
	if (set || ret < 0)
		result(ret);
	else
		printf("ok %s\n", value);
	free(value);
}

static void map(const char *line, bool in)
{
	const struct blkio_mem_region *which = &region[number(line, (unsigned)regions)];
	if (in) {
		result(blkio_map_mem_region(device, which));
		return;
	}
	blkio_unmap_mem_region(device, which);
	result(0);
}

static void remove_queue(const char *line)
{
	const char *name = word(line);
	int index = atoi(name + 1);
	result(*name == 'p' ? blkio_remove_poll_queue(device, index) : blkio_remove_queue(device, index));
}

static void do_line(const char *line, const char *what)
{
	if (!strcmp(what, "set") || !strcmp(what, "get"))
		property(line, *what == 's');
	else if (!strcmp(what, "connect"))
		result(blkio_connect(device));
	else if (!strcmp(what, "start"))
		result(blkio_start(device));
	else if (!strcmp(what, "memory") || !strcmp(what, "alloc"))
		memory(line, *what == 'm');
	else if (!strcmp(what, "map") || !strcmp(what, "unmap"))
		map(line, *what == 'm');
	else if (!strcmp(what, "remove"))
		remove_queue(line);
	else if (!strcmp(what, "read") || !strcmp(what, "write"))
		transfer(line, *what == 'w');
	else if (!strcmp(what, "zeroes") || !strcmp(what, "discard"))
		range(line, *what == 'z');
	else if (!strcmp(what, "flush")) {
		struct blkioq *q = queue(line);
		blkioq_flush(q, (void *)(size_t)number(line, MOST_IDS), 0);
		result(0);
	} else if (!strcmp(what, "wait") || !strcmp(what, "sleep"))
		wait_for(line, *what == 's');
	else
		wrong(line);
}

int main(void)
{
	char *line = NULL;
	size_t room = 0;
	int ret = blkio_create("virtio-blk-vhost-user", &device);
	if (ret < 0) {
		fprintf(stderr, "client: %s\n", blkio_get_error_msg());
		return 1;
	}
	while (getline(&line, &room, stdin) > 0) {
		line[strcspn(line, "\n")] = 0;
		char *copy = strdup(line), *what = strtok(line, " ");
		if (!copy || !what)
			wrong("an empty line");
		do_line(copy, what);
		fflush(stdout);
		free(copy);
	}
	free(line);
	blkio_destroy(&device);
	return 0;
}
