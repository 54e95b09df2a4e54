/* SPDX-License-Identifier: Apache-2.0
 *
 * lanes: the byte-lane permutation itself, without a guard: bytes.c is the only caller.
 */
#ifndef IOD_LANES_H
#define IOD_LANES_H

#include <stdbool.h>
#include <stddef.h>

/* Bytes in a unit: the smallest power of two above the mask; 1 for no permutation. */
static inline unsigned iod_lanes_unit(unsigned lanes)
{
	return lanes ? 2u << (31 - (unsigned)__builtin_clz(lanes)) : 1;
}

/* Moves `count` bytes between linear[0..count) and the positions start.. of a range of `size` bytes whose first byte has
 * the address bits `phase`.  Byte k of linear belongs to position (start+k) with its lanes permuted, if its unit lies
 * whole in the range, else to position start+k. */
void iod_lanes_run(unsigned char *range, size_t size, size_t start, unsigned char *linear, size_t count, unsigned lanes, unsigned phase, bool to_range);

#endif
