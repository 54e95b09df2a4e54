/* SPDX-License-Identifier: Apache-2.0
 *
 * revoke: taking a range back from the transfers that hold it.
 *
 * Invariants
 *  - The range left its map before iod_revoke is called, so no new row can get at it: the set of holders only shrinks.
 *  - A revocation is done when its last holder gave its leases back, and not a moment before or later.
 *  - One that failed is never done: what it was for stays quarantined. */
#include "xfer.h"

#include <stdlib.h>

static bool list_touches(const struct iod_segment *list, uint32_t count, uint64_t first, uint64_t last)
{
	for (uint32_t i = 0; i < count; i++)
		/* None of them wraps: it was translated. */
		if (list[i].length && list[i].address <= last && first <= list[i].address + (list[i].length - 1))
			return true;
	return false;
}

static const struct iod_space *behind_gates(const struct iod_space *space)
{
	while (space->kind == IOD_GATE)
		space = space->next;
	return space;
}

bool iod_row_touches(const struct iod_row *row, const struct iod_space *space, uint64_t first, uint64_t last)
{
	if (!row->leased)
		return false;
	const struct iod_translation *both[2] = {&row->t, &row->t2};
	for (int k = 0; k < 2; k++) {
		for (uint32_t i = 0; i < both[k]->extents; i++) {
			const struct iod_extent *e = &both[k]->extent[i];
			if (e->space == space && e->first <= last && first <= e->last)
				return true;
		}
		if (both[k]->by_list && behind_gates(row->port->space) == space &&
		    list_touches(k ? row->list2 : row->list, k ? row->count2 : row->count, first, last))
			return true;
	}
	return false;
}

/* Nobody holds the range any more: acknowledged, or, if it failed before, no more of the core's business. */
static void settle(struct iod_core *core, struct iod_revocation *revocation)
{
	for (struct iod_revocation **at = &core->revocations; *at; at = &(*at)->next)
		if (*at == revocation) {
			*at = revocation->next;
			break;
		}
	revocation->done = !revocation->failed;
	core->hooks.revoked(core->hooks.context, revocation);
}

void iod_revoke(struct iod_core *core, struct iod_revocation *revocation, bool haste)
{
	core->count.revocations++;
	revocation->holders = 0;
	revocation->next = core->revocations;
	core->revocations = revocation;
	/* Cancelling may complete rows at once; the revocation counts itself until all were asked. */
	revocation->holders = 1;
	for (uint32_t i = 0; i < core->rows; i++) {
		struct iod_row *row = iod_row_at(core, i);
		if (row->state == IOD_S_FREE ||
		    !iod_row_touches(row, revocation->space, revocation->first, revocation->last))
			continue;
		struct iod_hold *hold = malloc(sizeof *hold);
		if (!hold)
			abort(); /* 16 bytes; going on would acknowledge memory that is still held */
		*hold = (struct iod_hold){revocation, row->holds};
		row->holds = hold;
		revocation->holders++;
		if (haste)
			iod_cancel_row(core, row);
	}
	if (--revocation->holders == 0)
		settle(core, revocation);
}

void iod_revocation_hasten(struct iod_core *core, struct iod_revocation *revocation)
{
	if (revocation->holders == 0)
		return;
	revocation->holders++; /* cancelling may complete rows at once */
	for (uint32_t i = 0; i < core->rows; i++) {
		struct iod_row *row = iod_row_at(core, i);
		for (struct iod_hold *hold = row->holds; hold; hold = hold->next)
			if (hold->revocation == revocation) {
				iod_cancel_row(core, row);
				break;
			}
	}
	if (--revocation->holders == 0)
		settle(core, revocation);
}

void iod_revocation_row_gone(struct iod_core *core, struct iod_row *row)
{
	while (row->holds) {
		struct iod_hold *hold = row->holds;
		struct iod_revocation *revocation = hold->revocation;
		row->holds = hold->next;
		free(hold);
		if (--revocation->holders == 0)
			settle(core, revocation);
	}
}

/* Only what was revoked: a transfer may hold other regions as well, and they are in use. */
static void quarantine(struct iod_core *core, const struct iod_translation *t, const struct iod_region *only)
{
	for (uint32_t k = 0; k < t->count; k++) {
		struct iod_region *region = t->piece[k].region;
		if ((!only || region == only) && !region->quarantined) {
			iod_region_quarantine(region);
			core->count.quarantined++;
		}
	}
}

void iod_revocation_fail(struct iod_core *core, struct iod_revocation *revocation)
{
	revocation->failed = true;
	core->count.revocations_failed++;
	/* Translations above memory are gone from their map, and that is all they were.  Memory that is still leased
	 * must not be given to anybody again. */
	if (revocation->space->kind != IOD_MEMORY)
		return;
	for (uint32_t i = 0; i < core->rows; i++) {
		struct iod_row *row = iod_row_at(core, i);
		bool holds = false;
		for (struct iod_hold *hold = row->holds; hold; hold = hold->next)
			holds |= hold->revocation == revocation;
		if (!holds)
			continue;
		quarantine(core, &row->t, revocation->region);
		quarantine(core, &row->t2, revocation->region);
	}
}

void iod_revocation_forget(struct iod_core *core, struct iod_revocation *revocation)
{
	for (struct iod_revocation **at = &core->revocations; *at; at = &(*at)->next)
		if (*at == revocation) {
			*at = revocation->next;
			break;
		}
	for (uint32_t i = 0; i < core->rows; i++) {
		struct iod_row *row = iod_row_at(core, i);
		for (struct iod_hold **at = &row->holds; *at;) {
			struct iod_hold *hold = *at;
			if (hold->revocation == revocation) {
				*at = hold->next;
				free(hold);
			} else {
				at = &hold->next;
			}
		}
	}
}
