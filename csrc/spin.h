/* SPDX-License-Identifier: Apache-2.0
 *
 * spin: what both backends need to spin before they sleep: a clock and the processor's hint.
 */
#ifndef IOD_SPIN_H
#define IOD_SPIN_H

#include <stdint.h>
#include <time.h>

#define IOD_NS_PER_S 1000000000ll
#define IOD_SPINS_PER_CLOCK 8 /* looks at memory between two looks at the clock */

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

#endif
