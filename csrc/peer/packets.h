/* SPDX-License-Identifier: Apache-2.0
 *
 * packets: loops that send packets, take them in, and swap bytes on the way.  See packets.c. */
#ifndef PEER_PACKETS_H
#define PEER_PACKETS_H

#include "loops.h"

/* One blocking sendmsg a list, in turn.  0 or -errno. */
int peer_packet_sends(int fd, uint8_t *memory, const struct peer_segment *segments, uint32_t per_list, uint32_t lists,
		      uint64_t most_ns, struct peer_result *);
/* Takes packets in until an empty one comes; *count, if there is one, is how many by now.  0 or -errno. */
int peer_packet_drain(int fd, uint64_t *count, struct peer_result *);
/* As peer_packet_sends, of one buffer each, which is copied first and whose bytes are swapped. */
int peer_packet_swap_sends(int fd, uint8_t *memory, const struct peer_segment *, uint32_t lists, uint64_t most_ns,
			   struct peer_result *);
/* memcpy of `bytes`, then the two bytes of each 16-bit word change places. */
void peer_swap_copies(uint8_t *target, const uint8_t *source, size_t bytes, size_t buffers, uint64_t most_ns,
		      struct peer_result *);

#endif
