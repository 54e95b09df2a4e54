/* SPDX-License-Identifier: Apache-2.0
 *
 * framed: packets on a stream, each behind its length.  See framed.c. */
#ifndef IOD_FRAMED_H
#define IOD_FRAMED_H

#include "xfer.h"

#define FRAME_HEADER 4
#define FRAME_HEAD 64 /* the most that a peek asks for */
#define FRAME_SINK 16384

enum { FRAME_REFUSED = 1, FRAME_TOLD };

struct iod_framing {
	uint32_t most; /* bytes of the longest frame */

	/* Out: what is in front of the next byte of a payload. */
	uint8_t *rest; /* of a frame whose transfer has ended before it was sent */
	uint32_t rest_at, rest_bytes;
	uint8_t out[FRAME_HEADER];
	uint32_t out_left; /* bytes of the header that are not sent */

	/* In */
	uint8_t in[FRAME_HEADER];
	uint32_t in_got;
	bool open;	/* a header came; `left` bytes of its frame are on the stream, after `head_bytes` that are here */
	bool skips;	/* nobody wants them */
	uint8_t refused; /* a header said what cannot be: FRAME_REFUSED, or FRAME_TOLD when somebody was told */
	uint32_t frame, left, head_bytes;
	uint8_t head[FRAME_HEAD];

	struct iovec vector[IOD_IOV_MAX + 2];
	uint8_t sink[FRAME_SINK];
};

/* most: bytes of the longest frame.  NULL: no memory. */
struct iod_framing *iod_framing_new(uint32_t most);
void iod_framing_free(struct iod_framing *);

/* The next request of a row of such a target; IOD_PLAN_STREAM: that of a stream, for *left bytes. */
enum iod_plan iod_framed_next(struct iod_row *, struct iod_op *, uint64_t *left, int *error);
/* Puts around a planned request what belongs there. */
void iod_framed_dress(struct iod_row *, struct iod_op *);
/* An answer of the backend, 0 or more.  True: all is done; else *result is the payload's share. */
bool iod_framed_took(struct iod_core *, struct iod_row *, uint8_t phase, int32_t *result);
/* Payload was moved: on, or the end. */
void iod_framed_progress(struct iod_core *, struct iod_row *);
void iod_framed_give(struct iod_core *, struct iod_row *); /* what a peek has read, to a receive */
void iod_framed_end(struct iod_core *, struct iod_row *);  /* the row completes, having begun a frame */

#endif
