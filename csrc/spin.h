/* SPDX-License-Identifier: Apache-2.0
 *
 * spin: what both backends need to spin before they sleep: a clock and the processor's hint.
 */
#ifndef IOD_SPIN_H
#define IOD_SPIN_H

#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#define IOD_NS_PER_S 1000000000ll
#define IOD_SPINS_PER_CLOCK 8 /* looks at memory between two looks at the clock, or more where nobody wants the processor */
#define IOD_LOOKS 4	      /* of those at watched words, under one guard */
#define IOD_VAIN_MOST 3	      /* 8 times as many */
#define IOD_TAKEN_NS 1500
static inline void iod_pause(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("isb" ::: "memory");
#endif
}

static inline int64_t iod_now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * IOD_NS_PER_S + t.tv_nsec;
}

/* start + ns without passing the end of time. */
static inline int64_t iod_later(int64_t start, uint64_t ns)
{
	return ns > (uint64_t)(INT64_MAX - start) ? INT64_MAX : start + (int64_t)ns;
}

/* Whoever is to end a spin may wait for this very processor: offers it, unless the time is up (false).  *vain: how often
 * in a row the kernel came back at once, so that nobody does.  Then it is offered less and less often, as an offer takes
 * ten times as long as a look, and what the spin waits for may come meanwhile. */
static inline bool iod_offer(uint8_t *vain, int64_t until)
{
	int64_t before = iod_now_ns();
	if (before >= until)
		return false;
	sched_yield();
	if (iod_now_ns() - before > IOD_TAKEN_NS)
		*vain = 0;
	else if (*vain < IOD_VAIN_MOST)
		++*vain;
	return true;
}

#endif
