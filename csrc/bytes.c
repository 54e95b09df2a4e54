/* SPDX-License-Identifier: Apache-2.0
 *
 * bytes: copy, gather, scatter, fill and byte-lane permutation under the SIGBUS guard.
 *
 * Invariants
 *  - Memory that may be shared is touched only by functions run through iod_guarded(); they leave their progress in memory
 *    as they go, so that a fault finds it there.
 *  - A fault inside a piece is followed by the piece's prefix up to the faulting page, so `done` is always a prefix
 *    that is wholly there, whatever order the C library copies in.
 *  - A lane permutation is its own inverse, and works on units that lie whole in the *range* (an iovec, not the part of
 *    it that a call asks for): a transfer cut in two anywhere moves the same bytes as one in a single piece.
 */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>

#include "bytes.h"
#include "lanes.h"

#define PAGE 4096u

/* GCC's own take five words and no call: a request for a virtqueue goes through seven guards.  Clang has them for some
 * processors only, and the sanitizers want to see the library's. */
#if defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
typedef void *guard_env[5];
#define GUARD_SET(env) __builtin_setjmp(env)
#define GUARD_JUMP(env) __builtin_longjmp(env, 1)
#else
typedef sigjmp_buf guard_env;
#define GUARD_SET(env) sigsetjmp(env, 0)
#define GUARD_JUMP(env) siglongjmp(env, 1)
#endif

struct guard {
	guard_env env;
	struct guard *outer;
	volatile uintptr_t fault;
};

/* initial-exec: the handler may not call into the dynamic linker. */
static _Thread_local struct guard *current_guard __attribute__((tls_model("initial-exec")));
static _Thread_local int chaining __attribute__((tls_model("initial-exec")));
static struct sigaction previous;

static void chain(int signo, siginfo_t *info, void *context)
{
	/* Met again while passing it on (two handlers that pass to each other): the default action ends it. */
	bool has_handler = !chaining && ((previous.sa_flags & SA_SIGINFO) ? previous.sa_sigaction != NULL
									  : previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN);
	if (has_handler) {
		chaining++;
		if (previous.sa_flags & SA_SIGINFO)
			previous.sa_sigaction(signo, info, context);
		else
			previous.sa_handler(signo);
		chaining--;
		return;
	}
	if (!chaining && !(previous.sa_flags & SA_SIGINFO) && previous.sa_handler == SIG_IGN && info->si_code <= 0)
		return;
	signal(signo, SIG_DFL);
	if (info->si_code <= 0)
		raise(signo);
	/* else: the instruction runs again and meets the default action */
}

static void on_sigbus(int signo, siginfo_t *info, void *context)
{
	struct guard *g = current_guard;
	/* Sent by somebody (si_code <= 0) or a poisoned page that nobody touched yet (MCEERR_AO): not an access of ours. */
	if (!g || info->si_code <= 0 || info->si_code == BUS_MCEERR_AO) {
		chain(signo, info, context);
		return;
	}
	g->fault = (uintptr_t)info->si_addr;
	GUARD_JUMP(g->env);
}

int iod_guard_install(void)
{
	struct sigaction now;
	if (sigaction(SIGBUS, NULL, &now) < 0)
		return -errno;
	if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == on_sigbus)
		return 0;
	previous = now;
	struct sigaction ours = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK};
	sigemptyset(&ours.sa_mask);
	return sigaction(SIGBUS, &ours, NULL) < 0 ? -errno : 0;
}

__attribute__((noinline)) bool iod_guarded(void (*fn)(void *), void *arg, uintptr_t *fault)
{
	struct guard g;
	g.outer = current_guard;
	if (GUARD_SET(g.env)) {
		current_guard = g.outer;
		*fault = g.fault;
		return false;
	}
	current_guard = &g;
	__asm__ volatile("" ::: "memory");
	fn(arg);
	__asm__ volatile("" ::: "memory");
	current_guard = g.outer;
	return true;
}

/* A piece: `count` bytes between a linear buffer and the range [range, range+size) from position `start` on. */
struct piece {
	unsigned char *linear;
	unsigned char *range;
	size_t size, start, count;
	unsigned lanes, phase;
	bool to_range;
	bool overlaps;
};

static void piece_run(void *arg)
{
	const struct piece *p = arg;
	if (p->lanes) {
		iod_lanes_run(p->range, p->size, p->start, p->linear, p->count, p->lanes, p->phase, p->to_range);
		return;
	}
	unsigned char *there = p->range + p->start;
	void *dst = p->to_range ? there : p->linear;
	const void *src = p->to_range ? p->linear : there;
	if (p->overlaps)
		memmove(dst, src, p->count);
	else
		memcpy(dst, src, p->count);
}

/* How much of [base, base+n) lies before the page of `fault`; n when the fault is elsewhere. */
static size_t before_fault(const unsigned char *base, size_t n, uintptr_t fault)
{
	uintptr_t at = (uintptr_t)base, page = fault & ~(uintptr_t)(PAGE - 1);
	if (fault < at || fault - at >= n)
		return page >= at && page - at < n ? page - at : n;
	return page > at ? page - at : 0;
}

/* After a fault in `p`: moves what comes before the faulting page and returns how many bytes that is. */
static size_t piece_prefix(struct piece p, uintptr_t fault)
{
	unsigned unit = iod_lanes_unit(p.lanes);
	while (p.count) {
		/* A permuted unit may reach beyond the part of the range that was asked for. */
		size_t low = p.start < unit - 1 ? p.start : unit - 1;
		size_t there = before_fault(p.range + p.start - low, p.count + low + unit - 1, fault);
		size_t here = before_fault(p.linear, p.count, fault);
		there = there > low ? there - low : 0;
		size_t n = there < here ? there : here;
		if (n >= p.count)
			n = p.count - 1;
		if (unit > 1) {
			size_t into = (p.phase + p.start + n) & (unit - 1);
			n = n > into ? n - into : 0;
		}
		p.count = n;
		if (!n || iod_guarded(piece_run, &p, &fault))
			break;
	}
	return p.count;
}

static int finish(int r, size_t moved, size_t *done)
{
	if (done)
		*done = moved;
	return r;
}

static int run_one(struct piece *p, size_t *done)
{
	uintptr_t fault;
	if (!p->count || iod_guarded(piece_run, p, &fault))
		return finish(0, p->count, done);
	return finish(-EFAULT, piece_prefix(*p, fault), done);
}

int iod_copy(void *dst, const void *src, size_t n, size_t *done)
{
	struct piece p = {.linear = (unsigned char *)(uintptr_t)src, .range = dst, .size = n, .count = n, .to_range = true};
	return run_one(&p, done);
}

int iod_copy_lanes(void *dst, const void *src, size_t n, unsigned lanes, unsigned phase, size_t *done)
{
	struct piece p = {
		.linear = (unsigned char *)(uintptr_t)src,
		.range = dst,
		.size = n,
		.count = n,
		.lanes = lanes,
		.phase = phase,
		.to_range = true,
	};
	return run_one(&p, done);
}

/* A list between a linear buffer and iovecs.  `moved` and `piece` are what a fault finds. */
struct list_run {
	unsigned char *linear;
	const struct iovec *iov;
	size_t niov, skip, n;
	const uint8_t *lanes, *phases;
	bool to_range;
	volatile size_t moved;
	volatile size_t index, start; /* plain_run: where it is */
	struct piece piece;
};

/* Up to 128 bytes without a call: both ends in fixed moves that overlap in the middle. */
static inline void copy_small(unsigned char *dst, const unsigned char *src, size_t n)
{
	if (n > 64) {
		__builtin_memcpy(dst, src, 64);
		__builtin_memcpy(dst + n - 64, src + n - 64, 64);
	} else if (n > 32) {
		__builtin_memcpy(dst, src, 32);
		__builtin_memcpy(dst + n - 32, src + n - 32, 32);
	} else if (n >= 16) {
		__builtin_memcpy(dst, src, 16);
		__builtin_memcpy(dst + n - 16, src + n - 16, 16);
	} else {
		memcpy(dst, src, n);
	}
}

/* list_run without lanes, which is the usual case and the one where a list of small pieces must be quick: what a fault
 * needs is put together only then. */
static void plain_run(void *arg)
{
	struct list_run *l = arg;
	const struct iovec *iov = l->iov;
	unsigned char *linear = l->linear;
	size_t skip = l->skip, left = l->n, i = 0, niov = l->niov;
	bool to_range = l->to_range;

	while (i < niov && skip >= iov[i].iov_len)
		skip -= iov[i++].iov_len;
	for (; i < niov && left; i++, skip = 0) {
		size_t have = iov[i].iov_len - skip, n = have < left ? have : left;
		unsigned char *there = (unsigned char *)iov[i].iov_base + skip;
		l->index = i;
		l->start = skip;
		l->moved = l->n - left;
		__asm__ volatile("" ::: "memory");
		if (n <= 128)
			copy_small(to_range ? there : linear, to_range ? linear : there, n);
		else
			memcpy(to_range ? there : linear, to_range ? linear : there, n);
		linear += n;
		left -= n;
	}
	l->moved = l->n - left;
}

static struct piece plain_piece(const struct list_run *l)
{
	const struct iovec *iov = &l->iov[l->index];
	size_t left = l->n - l->moved, have = iov->iov_len - l->start;
	return (struct piece){
		.linear = l->linear + l->moved,
		.range = iov->iov_base,
		.size = iov->iov_len,
		.start = l->start,
		.count = have < left ? have : left,
		.to_range = l->to_range,
	};
}

static void list_run(void *arg)
{
	struct list_run *l = arg;
	size_t skip = l->skip, moved = 0, i = 0;
	while (i < l->niov && skip >= l->iov[i].iov_len)
		skip -= l->iov[i++].iov_len;
	for (; i < l->niov && moved < l->n; i++, skip = 0) {
		size_t left = l->n - moved, have = l->iov[i].iov_len - skip;
		l->piece = (struct piece){
			.linear = l->linear + moved,
			.range = l->iov[i].iov_base,
			.size = l->iov[i].iov_len,
			.start = skip,
			.count = have < left ? have : left,
			.lanes = l->lanes ? l->lanes[i] : 0,
			.phase = l->phases ? l->phases[i] : 0,
			.to_range = l->to_range,
		};
		l->moved = moved;
		__asm__ volatile("" ::: "memory");
		if (l->piece.count)
			piece_run(&l->piece);
		moved += l->piece.count;
	}
	l->moved = moved;
}

static int run_list(struct list_run *l, size_t *done)
{
	uintptr_t fault;
	if (!l->lanes) {
		if (iod_guarded(plain_run, l, &fault))
			return finish(0, l->moved, done);
		return finish(-EFAULT, l->moved + piece_prefix(plain_piece(l), fault), done);
	}
	if (iod_guarded(list_run, l, &fault))
		return finish(0, l->moved, done);
	return finish(-EFAULT, l->moved + piece_prefix(l->piece, fault), done);
}

int iod_gather(void *dst, const struct iovec *iov, size_t niov, size_t skip, size_t n, const uint8_t *lanes, const uint8_t *phases, size_t *done)
{
	struct list_run l = {.linear = dst, .iov = iov, .niov = niov, .skip = skip, .n = n, .lanes = lanes, .phases = phases};
	return run_list(&l, done);
}

int iod_scatter(const struct iovec *iov, size_t niov, size_t skip, const void *src, size_t n, const uint8_t *lanes, const uint8_t *phases, size_t *done)
{
	struct list_run l = {
		.linear = (unsigned char *)(uintptr_t)src,
		.iov = iov,
		.niov = niov,
		.skip = skip,
		.n = n,
		.lanes = lanes,
		.phases = phases,
		.to_range = true,
	};
	return run_list(&l, done);
}

struct cursor {
	const struct iovec *iov;
	size_t niov, at;
};

static void cursor_skip_empty(struct cursor *c)
{
	while (c->niov && c->at >= c->iov->iov_len) {
		c->at -= c->iov->iov_len;
		c->iov++;
		c->niov--;
	}
}

/* The processor sees where a copy goes only up to the end of a page: what comes first of the next piece is asked for
 * while this one is copied, which for pages in no order is worth an eighth of the time.  (Inline at once: the compiler
 * takes a function that does no more than this for one that does nothing.) */
static inline __attribute__((always_inline)) void expect(const struct cursor *c, size_t count, bool write)
{
	if (c->at + count < c->iov->iov_len || c->niov < 2)
		return;
	const unsigned char *next = c->iov[1].iov_base;
	if (next == (const unsigned char *)c->iov->iov_base + c->iov->iov_len)
		return;
	if (write) {
		__builtin_prefetch(next, 1);
		__builtin_prefetch(next + 64, 1);
	} else {
		__builtin_prefetch(next);
		__builtin_prefetch(next + 64);
	}
}

struct move_run {
	struct cursor dst, src;
	size_t n;
	volatile size_t moved;
	struct piece piece;
};

static void move_run(void *arg)
{
	struct move_run *m = arg;
	size_t moved = 0;
	for (;;) {
		cursor_skip_empty(&m->dst);
		cursor_skip_empty(&m->src);
		size_t count = m->n - moved;
		if (!count || !m->dst.niov || !m->src.niov)
			break;
		if (count > m->dst.iov->iov_len - m->dst.at)
			count = m->dst.iov->iov_len - m->dst.at;
		if (count > m->src.iov->iov_len - m->src.at)
			count = m->src.iov->iov_len - m->src.at;
		m->piece = (struct piece){
			.linear = (unsigned char *)m->src.iov->iov_base + m->src.at,
			.range = m->dst.iov->iov_base,
			.size = m->dst.iov->iov_len,
			.start = m->dst.at,
			.count = count,
			.to_range = true,
			.overlaps = true,
		};
		m->moved = moved;
		expect(&m->src, count, false);
		expect(&m->dst, count, true);
		__asm__ volatile("" ::: "memory");
		piece_run(&m->piece);
		moved += count;
		m->dst.at += count;
		m->src.at += count;
	}
	m->moved = moved;
}

int iod_move(const struct iovec *dst, size_t ndst, size_t dskip, const struct iovec *src, size_t nsrc, size_t sskip, size_t n, size_t *done)
{
	struct move_run m = {.dst = {dst, ndst, dskip}, .src = {src, nsrc, sskip}, .n = n};
	uintptr_t fault;
	if (iod_guarded(move_run, &m, &fault))
		return finish(0, m.moved, done);
	return finish(-EFAULT, m.moved + piece_prefix(m.piece, fault), done);
}

struct fill_run {
	void *dst;
	int value;
	size_t n;
};

static void fill_run(void *arg)
{
	const struct fill_run *f = arg;
	memset(f->dst, f->value, f->n);
}

int iod_fill(void *dst, int value, size_t n)
{
	struct fill_run f = {dst, value, n};
	uintptr_t fault;
	return !n || iod_guarded(fill_run, &f, &fault) ? 0 : -EFAULT;
}

struct bits {
	uint8_t *byte;
	uint64_t first, last;
};

static void bits_run(void *arg)
{
	const struct bits *b = arg;
	for (uint64_t bit = b->first; bit <= b->last;) {
		unsigned from = bit % 8, to = b->last / 8 > bit / 8 ? 7 : b->last % 8;
		/* Always the write, also where the bits are set: it is what orders the data before them. */
		__atomic_fetch_or(&b->byte[bit / 8], (uint8_t)(0xffu << from & 0xffu >> (7 - to)), __ATOMIC_SEQ_CST);
		bit += to - from + 1;
	}
}

int iod_set_bits(uint8_t *byte, uint64_t first, uint64_t last)
{
	struct bits b = {byte, first, last};
	uintptr_t fault;
	return iod_guarded(bits_run, &b, &fault) ? 0 : -EFAULT;
}
