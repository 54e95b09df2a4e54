/* SPDX-License-Identifier: Apache-2.0
 *
 * fuzz_frames: a peer that sends messages in any grouping, whole or in pieces, with descriptors, sizes that cannot be, and
 * bytes that are no messages at all.
 *
 * Promises: a well-formed message comes out whole and in order, with the descriptors that were sent with its first byte
 * and no others; more descriptors than a message may have are an error; nothing else is; no descriptor is left. */
#include "fuzz.h"

#include "frames.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

const char fuzz_name[] = "fuzz_frames";

#define MOST 6000u
#define EXPECTED 64u

struct expected {
	uint16_t id;
	bool bad;
	uint32_t length, fds;
	uint64_t first; /* what the first descriptor's counter holds; the next ones hold one more each */
};

struct world {
	struct fuzz_script script;
	struct iod_frames frames;
	int ours, theirs;
	struct expected expect[EXPECTED];
	unsigned head, tail;
	uint8_t unit[4 * (MOST + 64)];
	uint16_t next_id;
	uint64_t next_counter;
	bool over; /* nothing is promised any more */
};

static unsigned long messages, descriptors, refused, garbage;

static uint8_t pattern(uint16_t id, uint32_t i)
{
	return (uint8_t)(id * 31 + i * 7);
}

/* Sends bytes, the descriptors with the first; false: there is no room for all of them, and none was sent. */
static bool send_bytes(struct world *w, const uint8_t *data, size_t size, const int *fds, unsigned count)
{
	char control[CMSG_SPACE(32 * sizeof(int))] = {0};
	struct iovec iov = {.iov_base = (void *)(uintptr_t)data, .iov_len = size};
	struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
	if (count) {
		message.msg_control = control;
		message.msg_controllen = CMSG_SPACE(count * sizeof(int));
		struct cmsghdr *c = CMSG_FIRSTHDR(&message);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(count * sizeof(int));
		memcpy(CMSG_DATA(c), fds, count * sizeof(int));
	}
	ssize_t sent = sendmsg(w->theirs, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
	return sent == (ssize_t)size;
}

/* Reads what is there, and checks it. */
static void read_all(struct world *w)
{
	struct iod_frame frame;
	int result;
	while ((result = iod_frames_read(&w->frames, w->ours, &frame)) > 0) {
		struct expected *e = &w->expect[w->head % EXPECTED];
		bool known = w->head != w->tail && !w->over;
		messages++;
		MUST(known || w->over);
		MUST(frame.fd_count <= IOD_FRAME_FDS);
		if (known) {
			w->head++;
			MUST(frame.id == e->id && frame.fd_count == e->fds);
			MUST(e->bad ? !frame.payload : frame.payload && frame.length == e->length);
			MUST(frame.command == (uint16_t)(e->id + 1) && frame.flags == e->id * 3u && frame.error == 5);
			for (uint32_t i = 0; !e->bad && i < e->length; i++)
				MUST(frame.payload[i] == pattern(e->id, i));
		}
		for (unsigned i = 0; i < frame.fd_count; i++) {
			eventfd_t value = 0;
			MUST(fcntl(frame.fds[i], F_GETFD) == FD_CLOEXEC);
			MUST(eventfd_read(frame.fds[i], &value) == 0);
			MUST(!known || value == e->first + i);
			close(frame.fds[i]);
			descriptors++;
		}
	}
	MUST(result == 0 || result == -EMFILE || result == -ECONNRESET);
	if (result) {
		MUST(w->over); /* an error only where one was caused */
		refused++;
	}
}

static uint32_t put_header(uint8_t *at, uint16_t id, uint32_t size)
{
	struct {
		uint16_t id, command;
		uint32_t size, flags, error;
	} h = {id, (uint16_t)(id + 1), size, id * 3u, 5};
	memcpy(at, &h, sizeof h);
	return sizeof h;
}

static void send_unit(struct world *w)
{
	static const uint32_t lengths[] = {0, 1, 4, 16, 48, 100, 4095, 4096, 4097, MOST - 16};
	static const uint32_t bad[] = {0, 1, 15, MOST + 1, 0x7fffffff, 0xffffffff};
	unsigned count = 1 + fuzz_below(&w->script, 3), fds = fuzz_below(&w->script, 4) ? 0 : fuzz_below(&w->script, 19);
	size_t size = 0;
	int fd[32];

	if (w->tail - w->head + count > EXPECTED || (count > 1 && fuzz_below(&w->script, 2)))
		count = 1;
	unsigned before = w->tail;
	for (unsigned i = 0; i < count; i++) {
		struct expected *e = &w->expect[w->tail++ % EXPECTED];
		*e = (struct expected){.id = w->next_id++, .bad = !fuzz_below(&w->script, 8)};
		if (e->bad) {
			size += put_header(w->unit + size, e->id, bad[fuzz_below(&w->script, 6)]);
		} else {
			e->length = lengths[fuzz_below(&w->script, 10)];
			size += put_header(w->unit + size, e->id, 16 + e->length);
			for (uint32_t j = 0; j < e->length; j++)
				w->unit[size++] = pattern(e->id, j);
		}
	}
	w->expect[before % EXPECTED].fds = fds;
	w->expect[before % EXPECTED].first = w->next_counter + 1;
	for (unsigned i = 0; i < fds; i++)
		MUST((fd[i] = eventfd((unsigned)++w->next_counter, EFD_NONBLOCK)) >= 0);
	size_t cut = fuzz_below(&w->script, 2) ? 1 + fuzz_byte(&w->script) * 17u % size : size;
	size_t done = 0;
	while (done < size) {
		size_t step = cut < size - done ? cut : size - done;
		if (!send_bytes(w, w->unit + done, step, fd, done ? 0 : fds)) {
			read_all(w); /* it is full */
			if (w->over)
				break;
			continue;
		}
		done += step;
		if (fds > IOD_FRAME_FDS)
			w->over = true;
		if (fuzz_below(&w->script, 2))
			read_all(w);
	}
	for (unsigned i = 0; i < fds; i++)
		close(fd[i]);
}

static void send_garbage(struct world *w)
{
	uint8_t data[64];
	for (size_t i = 0; i < sizeof data; i++)
		data[i] = fuzz_byte(&w->script);
	w->over = true;
	garbage++;
	send_bytes(w, data, 1 + fuzz_below(&w->script, sizeof data), NULL, 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct world w;
	int pair[2], lowest = dup(0);

	close(lowest);
	w.script = (struct fuzz_script){data, data + size};
	w.head = w.tail = w.next_id = 0;
	w.next_counter = 0;
	w.over = false;
	iod_frames_init(&w.frames, MOST);
	MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
	w.ours = pair[0];
	w.theirs = pair[1];
	while (w.script.at < w.script.end && !w.over)
		switch (fuzz_below(&w.script, 16)) {
		case 0:
			if (!fuzz_below(&w.script, 8))
				send_garbage(&w);
			break;
		case 1:
		case 2:
			read_all(&w);
			break;
		default:
			send_unit(&w);
		}
	bool cut_short = fuzz_below(&w.script, 4) == 0;
	if (!cut_short && !w.over) {
		read_all(&w);
		MUST(w.head == w.tail);
	}
	w.over = true;
	close(w.theirs);
	read_all(&w);
	iod_frames_close(&w.frames);
	close(w.ours);
	int again = dup(0);
	MUST(again == lowest);
	close(again);
	return 0;
}

void fuzz_report(void)
{
	printf("%lu messages, %lu descriptors, %lu ends, %lu with garbage\n", messages, descriptors, refused, garbage);
}
