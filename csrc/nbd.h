/* SPDX-License-Identifier: Apache-2.0
 *
 * nbd: a driver on libnbd, which is loaded when a connection is made and never linked.
 */
#ifndef IOD_NBD_H
#define IOD_NBD_H

#include "driver.h"

#include <stddef.h>

/* What the server says of its export. */
struct iod_nbd_info {
	uint64_t size;			    /* bytes; whole blocks of `minimum` */
	uint32_t minimum, preferred, maximum; /* bytes of a request; `preferred` 0: it does not say */
	bool read_only, can_flush, can_fua, can_trim, can_zero;
};

/* Begin to connect, with at most `depth` requests at the server at a time.  NULL with *error (ENOSYS: there is no such
 * library, or it lacks something) and why. */
struct iod_driver *iod_nbd_create(const char *library, uint32_t depth, int *error, char *why, size_t room);
/* Connect: 0, or -errno and why.  May wait for a name server. */
int iod_nbd_connect(struct iod_driver *, const char *uri, char *why, size_t room);
/* 1: connected; 0: not yet, after at most so many milliseconds; or -errno and why. */
int iod_nbd_wait(struct iod_driver *, int milliseconds, char *why, size_t room);
/* Once it is connected: 0, or -errno (EPROTO: what the server says cannot be) and why. */
int iod_nbd_begin(struct iod_driver *, struct iod_nbd_info *, char *why, size_t room);
const char *iod_nbd_version(const struct iod_driver *);
const char *iod_nbd_why(const struct iod_driver *); /* the connection is gone; NULL: it is not */

#endif
