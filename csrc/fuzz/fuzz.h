/* SPDX-License-Identifier: Apache-2.0
 *
 * fuzz: what a fuzz target shows to whoever runs it. */
#ifndef IOD_FUZZ_H
#define IOD_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define MUST(condition)                                                                        \
	do {                                                                                   \
		if (!(condition)) {                                                            \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);        \
			abort();                                                               \
		}                                                                              \
	} while (0)

extern const char fuzz_name[];
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
/* Prints what the runs have reached. */
void fuzz_report(void);

/* The script: bytes that decide what happens next; zeroes when they are used up. */
struct fuzz_script {
	const uint8_t *at, *end;
};
static inline uint8_t fuzz_byte(struct fuzz_script *s)
{
	return s->at < s->end ? *s->at++ : 0;
}
static inline uint32_t fuzz_below(struct fuzz_script *s, uint32_t n)
{
	return fuzz_byte(s) % n;
}

#endif
