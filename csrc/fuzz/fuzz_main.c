/* SPDX-License-Identifier: Apache-2.0
 *
 * fuzz_main: runs a fuzz target from a seed, for a while, or replays files.
 *
 *     fuzz_NAME                    for a few seconds, from a seed that it prints
 *     fuzz_NAME -s SEED -t SECONDS
 *     fuzz_NAME FILE...            replays
 *
 * Without this file, and with clang -fsanitize=fuzzer, a target is libFuzzer's. */
#include "fuzz.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static uint64_t run_seed;

/* What a sanitizer finds ends in an abort as well, so that the seed is told. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
	return "abort_on_error=1";
}
const char *__ubsan_default_options(void);
const char *__ubsan_default_options(void)
{
	return "abort_on_error=1:print_stacktrace=1";
}

static void aborted(int number)
{
	(void)number;
	fprintf(stderr, "%s: replay with: %s -s %llu -t 0\n", fuzz_name, fuzz_name, (unsigned long long)run_seed);
	_exit(1);
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static uint64_t mixed(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15u;
	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
	z = (z ^ z >> 27) * 0x94d049bb133111ebu;
	return z ^ z >> 31;
}

static void run(uint64_t seed)
{
	static uint8_t data[4096];
	uint64_t state = seed;
	size_t size = 64 + mixed(&state) % (sizeof data - 64);

	run_seed = seed;
	alarm(60); /* a run takes a fraction of a millisecond: this is one that hangs */
	for (size_t i = 0; i < size; i += 8) {
		uint64_t value = mixed(&state);
		memcpy(data + i, &value, size - i < 8 ? size - i : 8);
	}
	LLVMFuzzerTestOneInput(data, size);
}

static int replay(const char *path)
{
	static uint8_t data[1 << 20];
	FILE *file = fopen(path, "rb");
	if (!file) {
		fprintf(stderr, "%s: %s: %s\n", fuzz_name, path, strerror(errno));
		return 1;
	}
	size_t size = fread(data, 1, sizeof data, file);
	fclose(file);
	LLVMFuzzerTestOneInput(data, size);
	return 0;
}

int main(int count, char **argument)
{
	uint64_t seed = (uint64_t)time(NULL) * 1000000u + (uint64_t)getpid();
	double seconds = 3;
	int option, failed = 0;

	while ((option = getopt(count, argument, "s:t:")) != -1)
		switch (option) {
		case 's':
			seed = strtoull(optarg, NULL, 0);
			break;
		case 't':
			seconds = strtod(optarg, NULL);
			break;
		default:
			fprintf(stderr, "usage: %s [-s SEED] [-t SECONDS] [FILE...]\n", fuzz_name);
			return 2;
		}
	signal(SIGABRT, aborted);
	signal(SIGALRM, aborted);
	if (optind < count) {
		for (int i = optind; i < count; i++)
			failed |= replay(argument[i]);
		return failed;
	}
	double begin_at = now();
	uint64_t runs = 0;
	do {
		run(seed + runs++);
	} while (now() - begin_at < seconds);
	fuzz_report();
	printf("%s: %llu runs from seed %llu\n", fuzz_name, (unsigned long long)runs, (unsigned long long)seed);
	return 0;
}
