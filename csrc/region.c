/* SPDX-License-Identifier: Apache-2.0
 *
 * region: what is mapped: who still needs it, whether it may be reached, which of its pages were written.
 *
 * Invariants
 *  - It is freed with its last reference, and not before.
 *  - How many are shut is known at any time: as long as there is none, a walk need not ask. */
#include "space.h"

#include "bytes.h"

void iod_region_get(struct iod_region *region)
{
	region->references++;
}

/* Regions that are closed or quarantined and still there. */
static uint32_t shut_regions;

bool iod_any_region_shut(void)
{
	return shut_regions != 0;
}

void iod_region_put(struct iod_region *region)
{
	if (--region->references)
		return;
	if (region->closed || region->quarantined)
		shut_regions--;
	if (region->free)
		region->free(region);
}

void iod_region_close(struct iod_region *region)
{
	if (!region->closed && !region->quarantined)
		shut_regions++;
	region->closed = true;
}

void iod_region_quarantine(struct iod_region *region)
{
	if (!region->closed && !region->quarantined)
		shut_regions++;
	region->quarantined = true;
}

void iod_region_mark_dirty(struct iod_region *region, uint64_t offset, uint64_t length)
{
	const struct iod_dirty *log = __atomic_load_n(&region->dirty, __ATOMIC_ACQUIRE);

	if (!log || length == 0)
		return;
	uint64_t bit = offset >> log->shift, last = (offset + length - 1) >> log->shift;
	if (last >= log->bits)
		last = log->bits - 1;
	/* A log that is gone (its file was truncated) has nobody who could miss the bits. */
	(void)iod_set_bits(log->byte, bit + log->first, last + log->first);
}
