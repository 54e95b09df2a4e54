/* SPDX-License-Identifier: Apache-2.0
 *
 * nbd_library: the functions of libnbd (1.12 or later) that are used, as libnbd(3) describes them.
 *
 * X(return type, name without nbd_, parameters)
 */
#ifndef IOD_NBD_LIBRARY_H
#define IOD_NBD_LIBRARY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct nbd_handle;

struct nbd_completion { /* given by value */
	int (*callback)(void *user_data, int *error); /* 1: the library forgets the command */
	void *user_data;
	void (*free)(void *user_data);
};

enum { NBD_FLAG_FUA = 1, NBD_FLAG_NO_HOLE = 2 };
enum { NBD_WAITS_TO_READ = 1, NBD_WAITS_TO_WRITE = 2 };
enum { NBD_SIZE_MINIMUM, NBD_SIZE_PREFERRED, NBD_SIZE_MAXIMUM };
enum { NBD_TLS_DISABLE = 0 };

#define NBD_FUNCTIONS(X)                                                                                                 \
	X(struct nbd_handle *, create, (void))                                                                         \
	X(void, close, (struct nbd_handle *))                                                                          \
	X(const char *, get_error, (void))                                                                             \
	X(int, get_errno, (void))                                                                                      \
	X(const char *, get_version, (struct nbd_handle *))                                                            \
	X(int, set_pread_initialize, (struct nbd_handle *, bool))                                                      \
	X(int, set_request_structured_replies, (struct nbd_handle *, bool))                                            \
	X(int, set_uri_allow_tls, (struct nbd_handle *, int))                                                          \
	X(int, aio_connect_uri, (struct nbd_handle *, const char *))                                                   \
	X(int, poll, (struct nbd_handle *, int))                                                                       \
	X(int, aio_is_ready, (struct nbd_handle *))                                                                    \
	X(int, aio_is_dead, (struct nbd_handle *))                                                                     \
	X(int, aio_is_closed, (struct nbd_handle *))                                                                   \
	X(int, aio_get_fd, (struct nbd_handle *))                                                                      \
	X(unsigned, aio_get_direction, (struct nbd_handle *))                                                          \
	X(int, aio_notify_read, (struct nbd_handle *))                                                                 \
	X(int, aio_notify_write, (struct nbd_handle *))                                                                \
	X(int64_t, get_size, (struct nbd_handle *))                                                                    \
	X(int64_t, get_block_size, (struct nbd_handle *, int))                                                         \
	X(int, is_read_only, (struct nbd_handle *))                                                                    \
	X(int, can_flush, (struct nbd_handle *))                                                                       \
	X(int, can_fua, (struct nbd_handle *))                                                                         \
	X(int, can_trim, (struct nbd_handle *))                                                                        \
	X(int, can_zero, (struct nbd_handle *))                                                                        \
	X(int64_t, aio_pread, (struct nbd_handle *, void *, size_t, uint64_t, struct nbd_completion, uint32_t))        \
	X(int64_t, aio_pwrite, (struct nbd_handle *, const void *, size_t, uint64_t, struct nbd_completion, uint32_t)) \
	X(int64_t, aio_flush, (struct nbd_handle *, struct nbd_completion, uint32_t))                                  \
	X(int64_t, aio_trim, (struct nbd_handle *, uint64_t, uint64_t, struct nbd_completion, uint32_t))               \
	X(int64_t, aio_zero, (struct nbd_handle *, uint64_t, uint64_t, struct nbd_completion, uint32_t))               \
	X(int, aio_disconnect, (struct nbd_handle *, uint32_t))

struct nbd_library {
#define X(type, name, parameters) type(*name) parameters;
	NBD_FUNCTIONS(X)
#undef X
};

#endif
