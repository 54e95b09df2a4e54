/* SPDX-License-Identifier: Apache-2.0
 *
 * test_bytes: the promises of bytes.h, against a model that moves one byte at a time.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bytes.h"
#include "check.h"

#define PAGE 4096u
#define CANARY 0xa5

const char *check_context = "bytes";
static uint64_t seed = 1;

static uint32_t below(uint32_t n)
{
	return n ? check_random(&seed) % n : 0;
}

static void randomise(unsigned char *p, size_t n)
{
	for (size_t i = 0; i < n; i++)
		p[i] = (unsigned char)check_random(&seed);
}

/* Where the byte at position `at` of a range of `size` bytes ends up. */
static size_t permuted(size_t at, size_t size, unsigned lanes, unsigned phase)
{
	size_t unit = 1;
	while (unit <= lanes)
		unit *= 2;
	size_t address = at + phase % unit, first = address & ~(unit - 1);
	if (first < phase % unit || first + unit > size + phase % unit)
		return at;
	return (address ^ lanes) - phase % unit;
}

static void lanes_against_model(void)
{
	static unsigned char src[4200], dst[4200], want[4200];
	for (int round = 0; round < 20000; round++) {
		size_t n = below(round % 8 ? 100 : 4000), from = below(70), to = below(70), done = 99999;
		unsigned lanes = below(round % 4 ? 8 : 40), phase = below(300);
		randomise(src, sizeof src);
		memset(dst, CANARY, sizeof dst);
		memset(want, CANARY, sizeof want);
		for (size_t i = 0; i < n; i++)
			want[to + permuted(i, n, lanes, phase)] = src[from + i];
		CHECK_EQ(iod_copy_lanes(dst + to, src + from, n, lanes, phase, &done), 0);
		CHECK_EQ(done, n);
		CHECK(!memcmp(dst, want, sizeof dst));
	}
}

/* A list of random iovecs cut out of one buffer, with gaps between them. */
struct list {
	struct iovec iov[16];
	uint8_t lanes[16], phases[16];
	size_t niov, total;
};

static void random_list(struct list *l, unsigned char *buffer, size_t size)
{
	size_t at = 0;
	l->niov = below(16);
	l->total = 0;
	for (size_t i = 0; i < l->niov; i++) {
		size_t length = below(3) ? below(40) : below(200);
		at += below(9);
		l->iov[i] = (struct iovec){buffer + at, length};
		l->lanes[i] = (uint8_t)below(8);
		l->phases[i] = (uint8_t)below(256);
		at += length;
		l->total += length;
	}
	CHECK(at <= size);
}

static unsigned char *list_byte(const struct list *l, size_t at, bool lanes)
{
	for (size_t i = 0; i < l->niov; i++) {
		if (at < l->iov[i].iov_len) {
			size_t there = lanes ? permuted(at, l->iov[i].iov_len, l->lanes[i], l->phases[i]) : at;
			return (unsigned char *)l->iov[i].iov_base + there;
		}
		at -= l->iov[i].iov_len;
	}
	abort();
}

static void gather_and_scatter_against_model(void)
{
	static unsigned char memory[4096], before[4096], linear[4096], want[4096];
	for (int round = 0; round < 20000; round++) {
		struct list l;
		bool lanes = below(2);
		random_list(&l, memory, sizeof memory);
		size_t skip = below((uint32_t)l.total + 10), n = below((uint32_t)l.total + 10), done;
		size_t moved = skip >= l.total ? 0 : n < l.total - skip ? n : l.total - skip;
		const uint8_t *masks = lanes ? l.lanes : NULL, *phases = lanes ? l.phases : NULL;

		randomise(memory, sizeof memory);
		memcpy(before, memory, sizeof memory);
		memset(linear, CANARY, sizeof linear);
		memset(want, CANARY, sizeof want);
		for (size_t i = 0; i < moved; i++)
			want[i] = *list_byte(&l, skip + i, lanes);
		CHECK_EQ(iod_gather(linear, l.iov, l.niov, skip, n, masks, phases, &done), 0);
		CHECK_EQ(done, moved);
		CHECK(!memcmp(linear, want, sizeof linear));
		CHECK(!memcmp(memory, before, sizeof memory));

		/* In two calls, cut anywhere: the same. */
		size_t cut = below((uint32_t)moved + 1);
		memset(linear, CANARY, sizeof linear);
		CHECK_EQ(iod_gather(linear, l.iov, l.niov, skip, cut, masks, phases, &done), 0);
		CHECK_EQ(iod_gather(linear + cut, l.iov, l.niov, skip + cut, moved - cut, masks, phases, &done), 0);
		CHECK(!memcmp(linear, want, sizeof linear));

		randomise(linear, sizeof linear);
		memcpy(want, linear, sizeof linear);
		for (size_t i = 0; i < moved; i++) {
			unsigned char *there = list_byte(&l, skip + i, lanes);
			before[there - memory] = linear[i];
		}
		CHECK_EQ(iod_scatter(l.iov, l.niov, skip, linear, n, masks, phases, &done), 0);
		CHECK_EQ(done, moved);
		CHECK(!memcmp(memory, before, sizeof memory));
		CHECK(!memcmp(linear, want, sizeof linear));
	}
}

static void move_against_model(void)
{
	static unsigned char from[4096], to[4096], want[4096];
	for (int round = 0; round < 20000; round++) {
		struct list d, s;
		random_list(&s, from, sizeof from);
		random_list(&d, to, sizeof to);
		randomise(from, sizeof from);
		randomise(to, sizeof to);
		memcpy(want, to, sizeof to);
		size_t dskip = below((uint32_t)d.total + 5), sskip = below((uint32_t)s.total + 5), n = below(600), done;
		size_t moved = n;
		moved = dskip >= d.total ? 0 : d.total - dskip < moved ? d.total - dskip : moved;
		moved = sskip >= s.total ? 0 : s.total - sskip < moved ? s.total - sskip : moved;
		for (size_t i = 0; i < moved; i++)
			want[list_byte(&d, dskip + i, false) - to] = *list_byte(&s, sskip + i, false);
		CHECK_EQ(iod_move(d.iov, d.niov, dskip, s.iov, s.niov, sskip, n, &done), 0);
		CHECK_EQ(done, moved);
		CHECK(!memcmp(to, want, sizeof to));
	}
	/* Overlapping lists: anything goes inside, nothing outside. */
	struct iovec a = {from + 100, 1000}, b = {from + 150, 1000};
	memset(from, CANARY, sizeof from);
	memset(from + 100, 1, 1050);
	CHECK_EQ(iod_move(&a, 1, 0, &b, 1, 0, 1000, NULL), 0);
	CHECK(from[99] == CANARY && from[1150] == CANARY);
}

/* `pages` mapped pages of which the last are gone. */
static unsigned char *truncated(unsigned pages, unsigned present)
{
	int fd = memfd_create("truncated", MFD_CLOEXEC);
	CHECK(fd >= 0 && !ftruncate(fd, pages * PAGE));
	unsigned char *p = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(p != MAP_FAILED);
	randomise(p, pages * PAGE);
	CHECK(!ftruncate(fd, present * PAGE));
	close(fd);
	return p;
}

static void missing_page_is_a_fault(void)
{
	enum { PAGES = 6, PRESENT = 3 };
	static unsigned char mine[PAGES * PAGE], want[PAGES * PAGE];
	unsigned char *shared = truncated(PAGES, PRESENT);
	size_t done;
	for (int round = 0; round < 3000; round++) {
		unsigned lanes = below(8), phase = below(8);
		size_t at = below(PRESENT * PAGE), n = PRESENT * PAGE - at + 1 + below((PAGES - PRESENT) * PAGE);
		size_t there = PRESENT * PAGE - at;
		/* From it ... */
		memset(mine, CANARY, sizeof mine);
		memset(want, CANARY, sizeof want);
		CHECK_EQ(iod_copy_lanes(mine, shared + at, n, lanes, phase, &done), -EFAULT);
		CHECK(done <= there && there - done < (lanes ? 8 : 1));
		for (size_t i = 0; i < done; i++)
			want[permuted(i, n, lanes, phase)] = shared[at + i];
		CHECK(!memcmp(mine, want, done));
		/* ... to it ... */
		randomise(mine, sizeof mine);
		CHECK_EQ(iod_copy_lanes(shared + at, mine, n, lanes, phase, &done), -EFAULT);
		CHECK(done <= there && there - done < (lanes ? 8 : 1));
		for (size_t i = 0; i < done; i++)
			CHECK_EQ(shared[at + permuted(i, n, lanes, phase)], mine[i]);
		/* ... and as a list, the missing part in the middle of it. */
		uint8_t masks[3] = {0, (uint8_t)lanes, 1}, phases[3] = {0, (uint8_t)phase, 0};
		struct iovec iov[3] = {{mine, 100}, {shared + at, n}, {mine, 100}};
		size_t skip = below(200);
		if (skip >= 100 + there)
			skip = 0;
		static unsigned char linear[2 * sizeof mine];
		CHECK_EQ(iod_gather(linear, iov, 3, skip, n + 200, masks, phases, &done), -EFAULT);
		CHECK(done <= 100 + there - skip && 100 + there - skip - done < 8);
		CHECK_EQ(iod_scatter(iov, 3, skip, linear, n + 200, masks, phases, &done), -EFAULT);
		CHECK(done <= 100 + there - skip && 100 + there - skip - done < 8);
		struct iovec plain = {linear, sizeof mine};
		CHECK_EQ(iod_move(&plain, 1, 0, iov, 3, skip, n + 200, &done), -EFAULT);
		CHECK_EQ(done, 100 + there - skip);
		CHECK_EQ(iod_move(iov, 3, skip, &plain, 1, 0, n + 200, &done), -EFAULT);
		CHECK_EQ(done, 100 + there - skip);
	}
	CHECK_EQ(iod_fill(shared, 7, PRESENT * PAGE), 0);
	CHECK_EQ(iod_fill(shared + PAGE, 8, PRESENT * PAGE), -EFAULT);
	CHECK_EQ(shared[0], 7);
	CHECK_EQ(iod_copy(mine, shared + PRESENT * PAGE, 1, &done), -EFAULT);
	CHECK_EQ(done, 0);
	CHECK_EQ(iod_copy(mine, shared + PRESENT * PAGE, 0, &done), 0);
	CHECK_EQ(iod_copy(mine, shared, 16, NULL), 0);
	munmap(shared, PAGES * PAGE);
}

static void *fault_often(void *arg)
{
	unsigned char *shared = arg, mine[PAGE * 2];
	size_t done;
	for (int i = 0; i < 2000; i++) {
		if (iod_copy(mine, shared + 1, sizeof mine, &done) != -EFAULT || done != PAGE - 1)
			return arg;
	}
	return NULL;
}

static void threads_fault_independently(void)
{
	unsigned char *shared = truncated(3, 1);
	pthread_t threads[4];
	for (int i = 0; i < 4; i++)
		CHECK_EQ(pthread_create(&threads[i], NULL, fault_often, shared), 0);
	for (int i = 0; i < 4; i++) {
		void *failed;
		pthread_join(threads[i], &failed);
		CHECK(!failed);
	}
	munmap(shared, 3 * PAGE);
}

static void exit_7(int signo)
{
	(void)signo;
	_exit(7);
}

enum foreign { TOUCH, SENT, SENT_IGNORED, TOUCH_WITH_HANDLER, SENT_WITH_HANDLER };

static void foreign_child(enum foreign what)
{
	signal(SIGBUS, what >= TOUCH_WITH_HANDLER ? exit_7 : what == SENT_IGNORED ? SIG_IGN : SIG_DFL);
	CHECK_EQ(iod_guard_install(), 0);
	CHECK_EQ(iod_guard_install(), 0);
	if (what == TOUCH || what == TOUCH_WITH_HANDLER)
		*(volatile unsigned char *)truncated(2, 1) = 1, *((volatile unsigned char *)truncated(2, 1) + PAGE) = 1;
	else
		raise(SIGBUS);
	_exit(0);
}

/* A SIGBUS that is not ours takes the way it would have taken without us. */
static void other_faults_pass(void)
{
	static const struct {
		enum foreign what;
		int exited, signalled;
	} cases[] = {{TOUCH, 0, SIGBUS}, {SENT, 0, SIGBUS}, {SENT_IGNORED, 0, 0}, {TOUCH_WITH_HANDLER, 7, 0}, {SENT_WITH_HANDLER, 7, 0}};
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		pid_t child = fork();
		if (!child)
			foreign_child(cases[i].what);
		int status;
		CHECK_EQ(waitpid(child, &status, 0), child);
		CHECK_EQ(WIFSIGNALED(status) ? WTERMSIG(status) : 0, cases[i].signalled);
		CHECK_EQ(WIFEXITED(status) ? WEXITSTATUS(status) : 0, cases[i].exited);
	}
}

int main(void)
{
	other_faults_pass();
	CHECK_EQ(iod_guard_install(), 0);
	lanes_against_model();
	gather_and_scatter_against_model();
	move_against_model();
	missing_page_is_a_fault();
	threads_fault_independently();
	printf("test_bytes: ok\n");
	return 0;
}
