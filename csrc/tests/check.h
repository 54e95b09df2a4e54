/* SPDX-License-Identifier: Apache-2.0
 *
 * check: a failed promise ends the test program and says where, with what numbers.
 */
#ifndef IOD_TESTS_CHECK_H
#define IOD_TESTS_CHECK_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

extern const char *check_context; /* what runs right now */

#define CHECK(condition)                                                                                \
	do {                                                                                            \
		if (!(condition)) {                                                                     \
			fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, check_context, #condition); \
			exit(1);                                                                        \
		}                                                                                       \
	} while (0)

#define CHECK_EQ(left, right)                                                                                     \
	do {                                                                                                      \
		long long check_l = (long long)(left), check_r = (long long)(right);                              \
		if (check_l != check_r) {                                                                         \
			fprintf(stderr, "%s:%d: %s: %s is %lld, not %lld\n", __FILE__, __LINE__, check_context, #left, \
				check_l, check_r);                                                                \
			exit(1);                                                                                  \
		}                                                                                                 \
	} while (0)

/* Repeatable pseudo-random numbers. */
static inline uint32_t check_random(uint64_t *state)
{
	*state = *state * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)(*state >> 33);
}

#endif
