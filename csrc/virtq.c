/* SPDX-License-Identifier: Apache-2.0
 *
 * virtq: chains, headers, trailers and answers, whatever the ring looks like.  See virtq.h for the invariants. */
#include "virtq.h"

#include "bytes.h"
#include "xfer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "rings are little-endian, and so must be the host"
#endif

#define NOBODY 0xffff

/* ---- opening ---- */

int iod_virtq_open(struct iod_virtq *q)
{
	bool packed = q->flags & IOD_VIRTQ_PACKED;
	const uint64_t aligned[] = {16, packed ? 4 : 2, 4}; /* sections 2.7 and 2.8.10.1 */
	if (q->size == 0 || q->size > IOD_VIRTQ_LARGEST || q->trailer > IOD_VIRTQ_TRAILER ||
	    (!packed && q->size & (q->size - 1)) || (q->position_at >= 0 && (uint32_t)q->position_at + 8 > q->header))
		return -EINVAL;
	q->format = packed ? &iod_virtq_packed : &iod_virtq_split;
	q->format->layout(q);
	for (int i = 0; i < IOD_VIRTQ_PARTS; i++)
		if (q->part[i].address % aligned[i] || q->part[i].bytes - 1 > UINT64_MAX - q->part[i].address)
			return -EINVAL;
	q->segment_room = q->size > IOD_VIRTQ_DESCRIPTORS ? q->size : IOD_VIRTQ_DESCRIPTORS;
	q->slot = calloc(q->size, sizeof *q->slot);
	q->used = calloc(q->size, sizeof *q->used);
	q->segment = calloc(q->segment_room, sizeof *q->segment);
	q->table = malloc((size_t)q->segment_room * sizeof(struct iod_descriptor));
	if (!q->slot || !q->used || !q->segment || !q->table) {
		iod_virtq_close(q);
		return -ENOMEM;
	}
	q->answered_first = q->answered_last = NOBODY;
	q->armed = true; /* a new ring asks to be told */
	return 0;
}

void iod_virtq_close(struct iod_virtq *q)
{
	for (uint32_t i = 0; q->slot && i < q->size; i++)
		if (q->slot[i].data != q->slot[i].few)
			free(q->slot[i].data);
	free(q->slot);
	free(q->used);
	free(q->segment);
	free(q->table);
	free(q->replay);
	for (int i = 0; i < IOD_VIRTQ_PARTS; i++)
		iod_translation_free(&q->part[i].t);
	iod_translation_free(&q->t);
	q->slot = NULL;
	q->used = NULL;
	q->segment = NULL;
	q->table = NULL;
	q->replay = NULL;
}

/* ---- chains ---- */

const char *iod_virtq_add(struct iod_virtq *q, uint64_t address, uint32_t length, uint16_t flags)
{
	bool writable = flags & IOD_DESCRIPTOR_WRITE;
	if (q->segments == q->segment_room)
		return "a chain is longer than the queue";
	if (!writable && q->readable != q->segments)
		return "a readable buffer follows a writable one";
	if (length == 0)
		return NULL; /* holds nothing */
	q->segment[q->segments++] = (struct iod_segment){address, length};
	q->readable += !writable;
	return NULL;
}

/* Copy `n` bytes of guest memory that a list holds, in whatever pieces: 0, -EAGAIN, -EFAULT. */
static int load(struct iod_virtq *q, const struct iod_segment *list, uint32_t count, void *to, size_t n,
		const uint8_t **last)
{
	struct iod_region *region;
	size_t done;
	uint8_t *host = count == 1 ? iod_space_host(q->space, list->address, list->length, IOD_READ, &region) : NULL;
	*last = host;
	if (host)
		return iod_copy(to, host, n, &done);
	switch (iod_walk(q->space, list, count, 0, IOD_READ, &q->t, &q->fault)) {
	case IOD_WALK_OK:
		break;
	case IOD_WALK_PENDING:
		return -EAGAIN;
	default:
		return -EFAULT;
	}
	if (!q->t.plain)
		for (uint32_t i = 0; i < q->t.count; i++)
			if (q->t.piece[i].lanes || !iod_region_is_host(q->t.piece[i].region))
				return -EFAULT; /* nobody keeps a request's header in registers */
	return iod_gather(to, q->t.iov, q->t.count, 0, n, NULL, NULL, &done);
}

/* The chain's indirect table, section 2.7.5.3. 0 or -EAGAIN; what is wrong with it is in chain->bad. */
static int load_table(struct iod_virtq *q, struct iod_virtq_chain *chain)
{
	uint32_t entries = chain->table_bytes / sizeof(struct iod_descriptor);
	struct iod_segment list = {chain->table, chain->table_bytes};

	if (entries == 0 || chain->table_bytes % sizeof(struct iod_descriptor)) {
		chain->bad = "an indirect table is not made of descriptors";
		return 0;
	}
	if (entries > q->segment_room) {
		chain->bad = "an indirect table is longer than the queue";
		return 0;
	}
	int error = load(q, &list, 1, q->table, chain->table_bytes, &q->slot[chain->id].last_table);
	if (error == -EAGAIN)
		return error;
	if (error) {
		chain->bad = "an indirect table is not in memory";
		return 0;
	}
	bool packed = q->flags & IOD_VIRTQ_PACKED; /* section 2.8.7: in order, the flags say nothing of a next one */
	for (uint32_t i = 0, at = 0; i < entries && !chain->bad; i++) {
		struct iod_descriptor d;
		memcpy(&d, q->table + (size_t)at * sizeof d, sizeof d);
		if (d.flags & IOD_DESCRIPTOR_INDIRECT && !packed)
			chain->bad = "an indirect table within an indirect table";
		else
			chain->bad = iod_virtq_add(q, d.address, d.length, packed ? d.next : d.flags);
		if (packed) {
			at++;
			continue;
		}
		if (!(d.flags & IOD_DESCRIPTOR_NEXT))
			return 0;
		at = d.next;
		if (at >= entries)
			chain->bad = "an indirect table points outside itself";
		else if (i + 1 == entries)
			chain->bad = "the chain in an indirect table has no end";
	}
	return 0;
}

static uint64_t bytes_of(const struct iod_segment *list, uint32_t count)
{
	uint64_t sum = 0; /* of at most 2^15 lengths of 32 bits */
	for (uint32_t i = 0; i < count; i++)
		sum += list[i].length;
	return sum;
}

/* Takes the first n bytes off a list, whose new beginning it gives; they are put into `head`, if there is one. */
static uint32_t take_front(struct iod_segment *list, uint64_t n, struct iod_segment *head, uint32_t *heads)
{
	uint32_t i = 0;
	while (n) {
		uint64_t part = iod_min64(n, list[i].length);
		if (head)
			head[(*heads)++] = (struct iod_segment){list[i].address, part};
		if (part == list[i].length) {
			i++;
		} else {
			list[i].address += part; /* past the end of memory: the walk will say so */
			list[i].length -= part;
		}
		n -= part;
	}
	return i;
}

/* The trailer's place, the last bytes of the writable ones.  False: there is none. */
static bool take_trailer(struct iod_virtq *q, struct iod_virtq_slot *slot, uint64_t writable)
{
	uint64_t n = q->trailer;
	slot->trailers = 0;
	if (n > writable)
		return false;
	while (n) {
		struct iod_segment *last = &q->segment[q->segments - 1];
		uint64_t part = iod_min64(n, last->length);
		if (slot->trailers == IOD_VIRTQ_TRAILER_SEGMENTS) {
			slot->trailers = 0;
			return false;
		}
		memmove(slot->trailer + 1, slot->trailer, slot->trailers * sizeof *slot->trailer);
		slot->trailer[0] = (struct iod_segment){last->address + (last->length - part), part};
		slot->trailers++;
		last->length -= part;
		if (last->length == 0)
			q->segments--;
		n -= part;
	}
	return true;
}

static void answer_bad(struct iod_virtq *q, const struct iod_virtq_chain *chain)
{
	static const uint8_t failed = 1;
	q->malformed++;
	iod_virtq_answer(q, chain->id, 0, &failed, 1);
}

static bool asks(const struct iod_space *space)
{
	for (; space; space = space->next)
		if (space->misses_wait)
			return true;
	return false;
}

/* Whether something of a chain waits for a translation; all that is missing is asked for together.  A chain that was popped
 * and then waits would hold up a stop, and who is asked may be unable to answer before that is over.  What was there once
 * need not be there again: one answer may take the place of another. */
static bool misses(struct iod_virtq *q, const struct iod_virtq_slot *slot)
{
	const struct {
		const struct iod_segment *list;
		size_t count;
		uint8_t access;
	} parts[] = {{q->segment, q->readable, IOD_READ},
		     {q->segment + q->readable, q->segments - q->readable, IOD_WRITE},
		     {slot->trailer, slot->trailers, IOD_WRITE}};
	for (int i = 0; i < 3; i++)
		if (!parts[i].count || iod_walk(q->space, parts[i].list, parts[i].count, 0, parts[i].access, &q->t, &q->fault) !=
					       IOD_WALK_PENDING)
			q->found |= 1u << i;
	return q->found != 7;
}

/* One chain whose segments are in q->segment becomes a row: 0, -EAGAIN, or -ENOSPC when `out` has no room for it. */
static int describe(struct iod_virtq *q, struct iod_virtq_chain *chain, struct iod_chains *out)
{
	struct iod_virtq_slot *slot = &q->slot[chain->id];
	uint64_t readable = bytes_of(q->segment, q->readable);
	uint64_t writable = bytes_of(q->segment + q->readable, q->segments - q->readable);
	uint32_t row = out->n, skip = 0;

	if (out->segments - out->used < q->segments)
		return -ENOSPC;
	bool place = !chain->bad && take_trailer(q, slot, writable);
	if (place && asks(q->space) && misses(q, slot))
		return -EAGAIN;
	if (place && readable >= q->header) {
		if (q->header) {
			struct iod_segment head[8];
			uint32_t heads = 0, i = 0;
			uint64_t n = 0;
			while (n < q->header && i < 8)
				n += q->segment[i++].length;
			int error = -EFAULT; /* in crumbs */
			if (n >= q->header) {
				skip = take_front(q->segment, q->header, head, &heads);
				error = load(q, head, heads, out->header + (size_t)row * q->header, q->header,
					     &slot->last_header);
			}
			if (error == -EAGAIN)
				return error;
			if (error)
				chain->bad = "a header is not in memory";
		}
	} else if (!chain->bad) {
		chain->bad = place ? "a chain has no room for a header" : "a chain has no room for a trailer";
	}
	if (!place)
		slot->trailers = 0;
	slot->state = IOD_VIRTQ_POPPED;
	slot->descriptors = chain->descriptors;
	q->in_flight++;
	if (chain->bad) {
		answer_bad(q, chain);
		return 0;
	}
	if (slot->trailers == 1) {
		const struct iod_segment *last = &slot->trailer[0];
		struct iod_region *region;
		const uint8_t *host = iod_space_host(q->space, last->address, last->length, IOD_WRITE, &region);
		if (host)
			iod_virtq_fetch_to_write(host);
	}
	readable -= q->header;
	writable -= q->trailer;
	slot->direction = writable ? IOD_TO_MEMORY : IOD_FROM_MEMORY;
	slot->payload = readable + writable;
	out->id[row] = chain->id;
	out->direction[row] = slot->direction;
	out->readable[row] = readable;
	out->writable[row] = writable;
	out->first[row] = out->used;
	out->count[row] = q->segments - skip;
	uint64_t *address = out->address + out->used, *length = out->length + out->used;
	for (uint32_t i = skip; i < q->segments; i++) {
		*address++ = q->segment[i].address;
		*length++ = q->segment[i].length;
	}
	out->used += q->segments - skip;
	uint32_t opcode = 0;
	if (q->header >= 4)
		memcpy(&opcode, out->header + (size_t)row * q->header, 4);
	out->opcode[row] = opcode;
	out->position[row] = 0;
	if (q->position_at >= 0)
		memcpy(&out->position[row], out->header + (size_t)row * q->header + q->position_at, 8);
	uint64_t bit = (uint64_t)1 << (opcode < 63 ? opcode : 63);
	if (!readable == !writable)
		out->other |= bit;
	else if (writable)
		out->to_memory |= bit;
	else
		out->from_memory |= bit;
	out->n++;
	out->bytes += readable + writable;
	q->popped++;
	return 0;
}

/* While chains are taken anyway, nobody need tell of more. */
static void disarm(struct iod_virtq *q)
{
	struct iod_virtq_job job = {0};
	q->armed = false;
	iod_virtq_guard(q, q->format->disarm, &job);
}

int iod_virtq_pop(struct iod_virtq *q, struct iod_chains *out, uint32_t limit)
{
	out->n = out->used = 0;
	out->bytes = 0;
	out->to_memory = out->from_memory = out->other = 0;
	if (iod_virtq_waits(q))
		return -EAGAIN;
	q->missing = false;
	int error = iod_virtq_refresh(q);
	if (limit > out->requests)
		limit = out->requests;
	while (!error && out->n < limit && out->bytes < IOD_VIRTQ_POP_BYTES) {
		struct iod_virtq_chain chain = {.known = out->n > 0};
		q->segments = q->readable = 0;
		int got = q->format->fetch(q, &chain);
		if (got <= 0) {
			error = got;
			break;
		}
		if (q->armed)
			disarm(q);
		if (q->slot[chain.id].state != IOD_VIRTQ_FREE) {
			iod_virtq_break(q, "a chain was made available again before it was used");
			error = -EPIPE;
			break;
		}
		if (!chain.bad && chain.table_bytes)
			error = load_table(q, &chain);
		if (!error)
			error = describe(q, &chain, out);
		if (!error) {
			q->format->consume(q, &chain);
			q->found = 0;
		}
	}
	if (error == -EAGAIN)
		iod_virtq_miss(q);
	if (q->used_count)
		iod_virtq_publish(q); /* those that made no sense */
	if (out->n)
		return (int)out->n;
	return error == -ENOSPC ? 0 : error;
}

/* ---- answers ---- */

/* The trailer into memory: false while its translation is pending. */
static bool write_trailer(struct iod_virtq *q, struct iod_virtq_slot *slot)
{
	uint32_t at = 0;
	for (uint32_t i = 0; i < slot->trailers; i++) {
		const struct iod_segment *place = &slot->trailer[i];
		size_t done;
		int error = iod_access(NULL, q->space, place->address, slot->data + at, place->length, true, &q->fault, &done);
		if (error == -EAGAIN)
			return false;
		if (error) { /* no place: the driver gets no byte of it */
			q->malformed++;
			slot->length = 0;
			return true;
		}
		at += (uint32_t)place->length;
	}
	return true;
}

/* The trailer is written: into the used ring with it. */
static void finished(struct iod_virtq *q, uint16_t id)
{
	struct iod_virtq_slot *slot = &q->slot[id];
	q->used[q->used_count++] = (struct iod_virtq_used){id, slot->descriptors, slot->length};
	if (slot->data != slot->few)
		free(slot->data);
	slot->data = NULL;
	slot->state = IOD_VIRTQ_USED;
}

bool iod_virtq_answer(struct iod_virtq *q, uint64_t id, uint64_t written, const uint8_t *data, uint32_t n)
{
	if (id >= q->size || q->slot[id].state != IOD_VIRTQ_POPPED)
		return false;
	struct iod_virtq_slot *slot = &q->slot[id];
	uint32_t trailer = slot->trailers ? q->trailer : 0;
	uint64_t length = written + trailer;
	slot->length = length > UINT32_MAX ? UINT32_MAX : (uint32_t)length;
	slot->data = slot->few;
	if (trailer > sizeof slot->few) {
		slot->data = malloc(trailer);
		if (!slot->data) { /* nothing can be said: the driver learns that from the length */
			slot->trailers = 0;
			slot->length = 0;
			slot->data = slot->few;
			trailer = 0;
		}
	}
	if (trailer) {
		memset(slot->data, 0, trailer);
		memcpy(slot->data, data, n < trailer ? n : trailer);
	}
	/* In the order of the answers: none passes one that waits. */
	if (!q->answered) {
		q->held_at = iod_virtq_changes(q->space);
		if (write_trailer(q, slot)) {
			finished(q, (uint16_t)id);
			return true;
		}
	}
	slot->state = IOD_VIRTQ_ANSWERED;
	slot->next = NOBODY;
	if (q->answered++)
		q->slot[q->answered_last].next = (uint16_t)id;
	else
		q->answered_first = (uint16_t)id;
	q->answered_last = (uint16_t)id;
	return true;
}

void iod_virtq_publish(struct iod_virtq *q)
{
	if (!q->used_count || iod_virtq_refresh(q))
		return; /* pending: with the next change; broken: with nobody */
	bool tell = q->format->publish(q);
	if (q->broken)
		return;
	for (uint32_t i = 0; i < q->used_count; i++)
		q->slot[q->used[i].id].state = IOD_VIRTQ_FREE;
	q->in_flight -= q->used_count;
	q->pushed += q->used_count;
	q->used_count = 0;
	if (tell && q->call_fd >= 0) {
		q->calls++;
		iod_virtq_tell(q->call_fd);
	}
}

void iod_virtq_retry(struct iod_virtq *q)
{
	uint64_t changes = iod_virtq_changes(q->space);
	bool again = q->held_at != changes || iod_virtq_always_changes(q->space);
	q->held_at = changes;
	while (q->answered && again) {
		uint16_t id = q->answered_first;
		struct iod_virtq_slot *slot = &q->slot[id];
		if (!write_trailer(q, slot))
			break;
		q->answered_first = slot->next;
		q->answered--;
		finished(q, id);
	}
	iod_virtq_publish(q);
}

/* ---- who waits ---- */

bool iod_virtq_available(struct iod_virtq *q)
{
	return !iod_virtq_waits(q) && !iod_virtq_refresh(q) && q->format->available(q);
}

bool iod_virtq_arm(struct iod_virtq *q)
{
	if (iod_virtq_waits(q) || iod_virtq_refresh(q))
		return false;
	return q->format->arm(q);
}
