/* SPDX-License-Identifier: Apache-2.0
 *
 * lanes: swapping bytes inside units by an XOR mask over the low address bits.
 *
 * Invariants
 *  - Every byte of either side is read or written at most once, by a load or store that lies inside the range.
 *  - Whole units go through the widest permutation the processor has; only the bytes around them go one by one.
 */
#include <stdint.h>
#include <string.h>

#include "lanes.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define WIDE_LANES 8u /* masks below this permute inside 8 bytes */

typedef void swap_fn(unsigned char *dst, const unsigned char *src, size_t n, unsigned lanes);

/* Eight bytes by shifts: each bit of the mask exchanges neighbours of its size. */
static inline uint64_t swap_word(uint64_t v, unsigned lanes)
{
	if (lanes & 1)
		v = (v & 0x00ff00ff00ff00ffu) << 8 | (v >> 8 & 0x00ff00ff00ff00ffu);
	if (lanes & 2)
		v = (v & 0x0000ffff0000ffffu) << 16 | (v >> 16 & 0x0000ffff0000ffffu);
	if (lanes & 4)
		v = v << 32 | v >> 32;
	return v;
}

static void swap_units(unsigned char *dst, const unsigned char *src, size_t n, unsigned lanes)
{
	size_t i = 0;
	if (lanes < WIDE_LANES) {
		for (; i + 8 <= n; i += 8) {
			uint64_t v;
			memcpy(&v, src + i, 8);
			v = swap_word(v, lanes);
			memcpy(dst + i, &v, 8);
		}
	}
	for (; i < n; i++)
		dst[i] = src[i ^ lanes];
}

#if defined(__x86_64__) || defined(__aarch64__)
static void lane_table(unsigned char table[16], unsigned lanes)
{
	for (unsigned i = 0; i < 16; i++)
		table[i] = (unsigned char)(i ^ lanes);
}
#endif

#if defined(__x86_64__)
__attribute__((target("avx2"))) static void swap_avx2(unsigned char *dst, const unsigned char *src, size_t n, unsigned lanes)
{
	unsigned char table[16];
	lane_table(table, lanes);
	__m256i order = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)table));
	size_t i = 0;
	for (; i + 128 <= n; i += 128) {
		const __m256i *s = (const __m256i *)(const void *)(src + i);
		__m256i *d = (__m256i *)(void *)(dst + i);
		__m256i a = _mm256_loadu_si256(s), b = _mm256_loadu_si256(s + 1);
		__m256i c = _mm256_loadu_si256(s + 2), e = _mm256_loadu_si256(s + 3);
		_mm256_storeu_si256(d, _mm256_shuffle_epi8(a, order));
		_mm256_storeu_si256(d + 1, _mm256_shuffle_epi8(b, order));
		_mm256_storeu_si256(d + 2, _mm256_shuffle_epi8(c, order));
		_mm256_storeu_si256(d + 3, _mm256_shuffle_epi8(e, order));
	}
	for (; i + 16 <= n; i += 16) {
		__m128i a = _mm_loadu_si128((const __m128i *)(const void *)(src + i));
		_mm_storeu_si128((__m128i *)(void *)(dst + i), _mm_shuffle_epi8(a, _mm256_castsi256_si128(order)));
	}
	swap_units(dst + i, src + i, n - i, lanes);
}
#elif defined(__aarch64__)
static void swap_neon(unsigned char *dst, const unsigned char *src, size_t n, unsigned lanes)
{
	unsigned char table[16];
	lane_table(table, lanes);
	uint8x16_t order = vld1q_u8(table);
	size_t i = 0;
	for (; i + 16 <= n; i += 16)
		vst1q_u8(dst + i, vqtbl1q_u8(vld1q_u8(src + i), order));
	swap_units(dst + i, src + i, n - i, lanes);
}
#endif

static swap_fn *swap_for(size_t n, unsigned lanes)
{
	if (lanes >= 16 || n < 32)
		return swap_units;
#if defined(__x86_64__)
	return __builtin_cpu_supports("avx2") ? swap_avx2 : swap_units;
#elif defined(__aarch64__)
	return swap_neon;
#else
	return swap_units;
#endif
}

void iod_lanes_run(unsigned char *range, size_t size, size_t start, unsigned char *linear, size_t count, unsigned lanes, unsigned phase, bool to_range)
{
	size_t mask = iod_lanes_unit(lanes) - 1;
	/* The whole units of the range: positions [first, last). */
	size_t first = (size_t)-phase & mask;
	size_t last = first <= size ? first + ((size - first) & ~mask) : first;
	size_t end = start + count, at = start;
	while (at < end) {
		bool whole = at >= first && at < last;
		if (whole && !((at - first) & mask)) {
			size_t n = ((end < last ? end : last) - at) & ~mask;
			if (n) {
				unsigned char *there = range + at, *here = linear + (at - start);
				swap_for(n, lanes)(to_range ? there : here, to_range ? here : there, n, lanes);
				at += n;
				continue;
			}
		}
		unsigned char *there = range + (whole ? first + ((at - first) ^ lanes) : at);
		unsigned char *here = linear + (at - start);
		if (to_range)
			*there = *here;
		else
			*here = *there;
		at++;
	}
}
