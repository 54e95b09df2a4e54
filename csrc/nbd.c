/* SPDX-License-Identifier: Apache-2.0
 *
 * nbd: a driver on libnbd.
 *
 * An NBD request has one buffer, so an op becomes one request a piece of host memory, or more where a piece is larger
 * than the server takes; they go out in order, at most `depth` of all ops at a time, and come back in any.  An op is
 * over when its last request is; what it moved is what stands before the first that failed.  libnbd sends from the
 * piece and receives into it, by the kernel: what it could do with a piece by itself is turned off, as a page that is
 * gone must be an error of the kernel's and never a signal in there.  So no read buffer is cleared first, replies are
 * simple ones (it would fill holes of structured replies), and there is no TLS.
 *
 * Invariants
 *  - libnbd's callbacks run inside its calls, under its lock: they note, and call nothing of it.
 *  - Its answers are not believed to be within bounds but where libnbd has checked them: a simple reply carries what
 *    was asked for or an error, else the connection ends.
 *  - A connection ends once.  All requests are over then, by libnbd's word or because its handle is closed. */
#include "nbd.h"

#include "bytes.h"
#include "iod.h"
#include "nbd_library.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define MOST (32u << 20)	/* bytes of a request: what every server takes that does not say otherwise */
#define MOST_PLAIN (1u << 30)	/* of one without payload */
#define MOST_MINIMUM (64u << 10) /* of the smallest block, says the protocol */
#define REPLIES 32		/* that are read before others have their turn */

enum stage { UNUSED, WAITS, BEGUN, DONE }; /* of an op: WAITS: has requests to be made */

struct op {
	struct op *next; /* of the list that its stage says */
	uint64_t user_data;
	const struct iovec *iov;
	uint64_t position, total; /* bytes; total: of what there is room for at the server */
	uint64_t issued, good;	  /* bytes; good: those before the first that failed */
	size_t skip;		  /* into *iov */
	uint32_t outstanding;
	uint8_t code, stage;
	bool zeroes, through, cancelled, flushing;
	int error;
	const struct iovec *whole; /* where iov began, and their number: for the look at what is gone */
	uint32_t niov;
};

struct command {
	struct command *next;
	struct nbd *nbd;
	struct op *op;
	uint64_t at, length; /* bytes into the op */
};

struct list {
	struct op *head, **tail;
};

struct nbd {
	struct iod_driver driver;
	struct nbd_library library;
	struct nbd_handle *handle; /* NULL: the connection is gone */
	struct iod_nbd_info info;
	struct op *op;
	struct command *command, *unused;
	struct list waiting, done;
	uint32_t depth;
	char why[160];
	char version[32];
};

static struct nbd *of(const struct iod_driver *driver)
{
	return (struct nbd *)(uintptr_t)driver;
}

static void append(struct list *list, struct op *op)
{
	op->next = NULL;
	*list->tail = op;
	list->tail = &op->next;
}

static void take_out(struct list *list, const struct op *op)
{
	for (struct op **at = &list->head; *at; at = &(*at)->next)
		if (*at == op) {
			*at = op->next;
			if (!*at)
				list->tail = at;
			return;
		}
}

/* ---- the end of requests and ops ---- */

static void over(struct nbd *nbd, struct op *op)
{
	op->stage = DONE;
	append(&nbd->done, op);
	nbd->driver.done++;
}

static void begin_no_more(struct nbd *nbd, struct op *op)
{
	if (op->stage == WAITS)
		take_out(&nbd->waiting, op);
	op->stage = BEGUN;
}

/* Whether it ends here: nothing of it is at the server, and nothing more is to be sent. */
static void settle(struct nbd *nbd, struct op *op)
{
	if (op->outstanding || op->stage == WAITS)
		return;
	/* Write-through where the server has no FUA: what was written is flushed. */
	if (op->through && !nbd->info.can_fua && nbd->info.can_flush && !op->flushing && op->good && nbd->handle &&
	    (!op->error || op->code == IOD_OP_WRITEV)) {
		op->flushing = true;
		op->stage = WAITS;
		append(&nbd->waiting, op);
		return;
	}
	over(nbd, op);
}

static void command_over(struct command *command, int error)
{
	struct nbd *nbd = command->nbd;
	struct op *op = command->op;

	command->op = NULL;
	command->next = nbd->unused;
	nbd->unused = command;
	nbd->driver.bytes -= command->length;
	op->outstanding--;
	if (error && op->flushing) { /* nothing of it is known to be on the medium */
		op->good = 0;
		op->error = error;
	} else if (error && (!op->error || command->at < op->good)) {
		op->good = command->at;
		op->error = error;
		begin_no_more(nbd, op);
	}
	settle(nbd, op);
}

static int called_back(void *command, int *error)
{
	command_over(command, *error);
	return 1;
}

static void look(void *arg)
{
	volatile const uint8_t *byte = arg;
	(void)*byte;
}

/* Whether memory of the op's is gone. */
static bool is_gone(const struct op *op)
{
	uint64_t left = op->total;
	uintptr_t fault;

	for (uint32_t i = 0; left && i < op->niov; i++) {
		uintptr_t at = (uintptr_t)op->whole[i].iov_base;
		uint64_t length = iod_min64(op->whole[i].iov_len, left);
		left -= length;
		for (uintptr_t end = at + length; at < end; at = (at | 4095) + 1)
			if (!iod_guarded(look, (void *)at, &fault))
				return true;
	}
	return false;
}

/* The connection is gone, or is to go: nothing touches anybody's memory any more. */
static void end(struct nbd *nbd, int error, const char *why)
{
	if (!nbd->handle)
		return;
	snprintf(nbd->why, sizeof nbd->why, "%s", why && *why ? why : "the server ended the connection");
	struct nbd_handle *handle = nbd->handle;
	nbd->handle = NULL;
	if (nbd->driver.fd >= 0)
		shutdown(nbd->driver.fd, SHUT_RDWR);
	nbd->library.close(handle);
	/* libnbd has told of the end of each, or never will. */
	for (uint32_t i = 0; i < nbd->depth; i++)
		if (nbd->command[i].op)
			command_over(&nbd->command[i], error);
	while (nbd->waiting.head) {
		struct op *op = nbd->waiting.head;
		op->good = op->flushing ? 0 : iod_min64(op->good, op->issued);
		op->error = error;
		begin_no_more(nbd, op);
		settle(nbd, op);
	}
	for (struct op *op = nbd->done.head; op; op = op->next) {
		if (op->error == ENOTCONN)
			op->error = error;
		/* The kernel cannot reach a guest's memory, so libnbd gives the connection up: whose was it? */
		if (op->error == error && op->iov && is_gone(op)) {
			op->error = EFAULT;
			op->good = 0;
		}
	}
}

static void look_at_state(struct nbd *nbd)
{
	const struct nbd_library *library = &nbd->library;

	if (nbd->handle && (library->aio_is_dead(nbd->handle) || library->aio_is_closed(nbd->handle)))
		end(nbd, ECONNRESET, library->get_error());
}

/* ---- the beginning ---- */

/* The next request of an op. */
static struct command *next_command(struct nbd *nbd, struct op *op)
{
	struct command *command = nbd->unused;
	bool plain = op->code == IOD_OP_FALLOCATE;
	uint64_t length = op->total - op->issued;

	nbd->unused = command->next;
	if (op->flushing || op->code == IOD_OP_FSYNC) {
		length = 0;
	} else if (plain) {
		length = iod_min64(length, MOST_PLAIN);
	} else {
		for (; op->skip == op->iov->iov_len; op->skip = 0)
			op->iov++;
		length = iod_min64(length, op->iov->iov_len - op->skip);
		length = iod_min64(length, nbd->info.maximum);
	}
	command->op = op;
	command->at = op->issued;
	command->length = length;
	nbd->driver.bytes += length;
	op->outstanding++;
	return command;
}

static int64_t hand_over(struct nbd *nbd, struct command *command, uint8_t *memory)
{
	const struct nbd_library *library = &nbd->library;
	const struct op *op = command->op;
	struct nbd_completion completion = {called_back, command, NULL};
	uint32_t fua = op->through && nbd->info.can_fua ? NBD_FLAG_FUA : 0;
	uint64_t position = op->position + command->at;

	if (op->flushing || op->code == IOD_OP_FSYNC)
		return library->aio_flush(nbd->handle, completion, 0);
	if (op->code == IOD_OP_READV)
		return library->aio_pread(nbd->handle, memory, command->length, position, completion, 0);
	if (op->code == IOD_OP_WRITEV)
		return library->aio_pwrite(nbd->handle, memory, command->length, position, completion, fua);
	if (op->zeroes)
		return library->aio_zero(nbd->handle, command->length, position, completion, fua | NBD_FLAG_NO_HOLE);
	return library->aio_trim(nbd->handle, command->length, position, completion, fua);
}

static void issue(struct nbd *nbd)
{
	while (nbd->handle && nbd->waiting.head && nbd->unused) {
		struct op *op = nbd->waiting.head;
		struct command *command = next_command(nbd, op);
		uint8_t *memory = NULL;
		if (!op->flushing && op->iov) {
			memory = (uint8_t *)op->iov->iov_base + op->skip;
			op->skip += command->length;
		}
		if (!op->flushing)
			op->issued += command->length;
		if (op->flushing || op->issued == op->total)
			begin_no_more(nbd, op);
		/* It may be over before this returns. */
		if (hand_over(nbd, command, memory) < 0) {
			int error = nbd->library.get_errno();
			command_over(command, error ? error : EIO);
		}
		look_at_state(nbd);
	}
}

/* A request that ends without the server. */
static void at_once(struct nbd *nbd, struct op *op, int error)
{
	op->error = error;
	op->good = 0;
	over(nbd, op);
}

/* Where it ends, and what is not the server's business. 0 and op->total; or an errno. */
static int bound(const struct nbd *nbd, struct op *op, uint64_t length)
{
	const struct iod_nbd_info *info = &nbd->info;
	uint64_t room = op->position < info->size ? info->size - op->position : 0, block = info->minimum;

	op->total = iod_min64(length, room);
	if (op->code == IOD_OP_WRITEV)
		return op->total ? 0 : ENOSPC;
	if (op->code != IOD_OP_FALLOCATE)
		return 0;
	if (op->zeroes) {
		if (!info->can_zero)
			return EOPNOTSUPP;
		if (op->position % block || length % block)
			return EINVAL;
		return op->total < length ? ENOSPC : 0;
	}
	if (!info->can_trim)
		return EOPNOTSUPP;
	/* The whole blocks of it; that a discard changes nothing else is no loss. */
	uint64_t cut = (block - op->position % block) % block;
	op->total = op->total > cut ? op->total - cut : 0;
	op->position += cut;
	op->total -= op->total % block;
	return 0;
}

static void nbd_queue(struct iod_driver *driver, const struct iod_op *request)
{
	struct nbd *nbd = of(driver);
	struct op *op = nbd->op;
	uint64_t length = request->length;

	while (op->stage != UNUSED)
		op++;
	bool payload = request->code == IOD_OP_READV || request->code == IOD_OP_WRITEV;
	if (payload)
		for (uint32_t i = length = 0; i < request->niov; i++)
			length += request->iov[i].iov_len;
	*op = (struct op){.user_data = request->user_data, .iov = payload ? request->iov : NULL, .whole = request->iov,
			  .niov = payload ? request->niov : 0, .position = request->offset, .code = request->code,
			  .zeroes = request->mode & FALLOC_FL_ZERO_RANGE, .through = request->flags & IOD_OP_DSYNC,
			  .stage = BEGUN};
	driver->room--;
	if (!nbd->handle) {
		at_once(nbd, op, ENOTCONN);
		return;
	}
	int error = op->code == IOD_OP_FSYNC ? 0 : bound(nbd, op, length);
	/* A server that offers no flush keeps nothing back that it could be asked for. */
	if (error || (op->code == IOD_OP_FSYNC ? !nbd->info.can_flush : !op->total)) {
		at_once(nbd, op, error);
		return;
	}
	op->good = op->total;
	op->stage = WAITS;
	append(&nbd->waiting, op);
	issue(nbd);
}

static void nbd_cancel(struct iod_driver *driver, uint64_t user_data)
{
	struct nbd *nbd = of(driver);

	for (struct op *op = nbd->waiting.head; op; op = op->next)
		if (op->user_data == user_data && !op->flushing) {
			op->cancelled = true;
			op->good = iod_min64(op->good, op->issued);
			begin_no_more(nbd, op);
			settle(nbd, op);
			issue(nbd);
			return;
		}
}

static int32_t result(const struct op *op)
{
	bool payload = op->code == IOD_OP_READV || op->code == IOD_OP_WRITEV;

	if (payload && op->good)
		return (int32_t)op->good;
	if (op->error)
		return -op->error;
	return op->cancelled ? -ECANCELED : 0;
}

static uint32_t nbd_reap(struct iod_driver *driver, struct iod_cqe *cqe, uint32_t max)
{
	struct nbd *nbd = of(driver);
	uint32_t n = 0;

	while (n < max && nbd->done.head) {
		struct op *op = nbd->done.head;
		take_out(&nbd->done, op);
		cqe[n++] = (struct iod_cqe){.user_data = op->user_data, .res = result(op)};
		op->stage = UNUSED;
		driver->room++;
		driver->done--;
	}
	return n;
}

/* ---- the connection ---- */

static uint32_t nbd_events(const struct iod_driver *driver)
{
	const struct nbd *nbd = of(driver);
	unsigned wanted = nbd->handle ? nbd->library.aio_get_direction(nbd->handle) : 0;
	return (wanted & NBD_WAITS_TO_READ ? POLLIN : 0) | (wanted & NBD_WAITS_TO_WRITE ? POLLOUT : 0);
}

static void nbd_ready(struct iod_driver *driver)
{
	struct nbd *nbd = of(driver);

	/* A notification is one reply, or one attempt to send, and must not come unless there is something. */
	for (int i = 0; i < REPLIES && nbd->handle; i++) {
		struct pollfd ready = {.fd = driver->fd, .events = (short)nbd_events(driver)};
		if (poll(&ready, 1, 0) <= 0)
			break;
		if (ready.revents & (POLLIN | POLLHUP | POLLERR) && ready.events & POLLIN)
			nbd->library.aio_notify_read(nbd->handle);
		else
			nbd->library.aio_notify_write(nbd->handle);
		look_at_state(nbd);
		issue(nbd);
	}
}

static void nbd_abort(struct iod_driver *driver)
{
	end(of(driver), ECONNABORTED, "the connection was given up");
}

static void nbd_destroy(struct iod_driver *driver, bool ours)
{
	struct nbd *nbd = of(driver);

	if (nbd->handle) {
		if (ours && nbd->library.aio_is_ready(nbd->handle))
			nbd->library.aio_disconnect(nbd->handle, 0);
		nbd->library.close(nbd->handle);
	}
	if (driver->fd >= 0)
		close(driver->fd);
	free(nbd->op);
	free(nbd->command);
	free(nbd);
}

static const struct iod_driver_ops ops = {.queue = nbd_queue, .cancel = nbd_cancel, .reap = nbd_reap,
					  .events = nbd_events, .ready = nbd_ready, .abort = nbd_abort, .destroy = nbd_destroy};

/* ---- making one ---- */

static int load(struct nbd_library *library, const char *name, char *why, size_t room)
{
	void *handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);

	if (!handle) {
		snprintf(why, room, "%s", dlerror());
		return ENOSYS;
	}
	/* It stays loaded: threads may have their error messages in it. */
#define X(type, function, parameters)                                                                                  \
	*(void **)&library->function = dlsym(handle, "nbd_" #function);                                                \
	if (!library->function) {                                                                                      \
		snprintf(why, room, "%s is too old: it has no nbd_%s", name, #function);                               \
		return ENOSYS;                                                                                         \
	}
	NBD_FUNCTIONS(X)
#undef X
	return 0;
}

static int failed(const struct nbd *nbd, char *why, size_t room)
{
	const char *text = nbd->library.get_error();
	int error = nbd->library.get_errno();
	snprintf(why, room, "%s", text ? text : "libnbd does not say why");
	return -(error ? error : EPROTO);
}

struct iod_driver *iod_nbd_create(const char *name, uint32_t depth, int *error, char *why, size_t room)
{
	struct nbd_library library;

	*error = load(&library, name, why, room);
	if (*error)
		return NULL;
	struct nbd *nbd = calloc(1, sizeof *nbd);
	struct op *op = calloc(depth, sizeof *op);
	struct command *command = calloc(depth, sizeof *command);
	struct nbd_handle *handle = library.create();
	if (!nbd || !op || !command || !handle || iod_guard_install()) {
		*error = ENOMEM;
		snprintf(why, room, "out of memory");
		if (handle)
			library.close(handle);
		free(nbd);
		free(op);
		free(command);
		return NULL;
	}
	*nbd = (struct nbd){.driver = {.ops = &ops, .fd = -1, .room = depth}, .library = library, .handle = handle,
			    .op = op, .command = command, .depth = depth};
	nbd->waiting.tail = &nbd->waiting.head;
	nbd->done.tail = &nbd->done.head;
	for (uint32_t i = 0; i < depth; i++) {
		command[i] = (struct command){.nbd = nbd, .next = nbd->unused};
		nbd->unused = &command[i];
	}
	snprintf(nbd->version, sizeof nbd->version, "%s", library.get_version(handle));
	return &nbd->driver;
}

int iod_nbd_connect(struct iod_driver *driver, const char *uri, char *why, size_t room)
{
	const struct nbd *nbd = of(driver);
	const struct nbd_library *library = &nbd->library;

	if (library->set_pread_initialize(nbd->handle, false) < 0 ||
	    library->set_request_structured_replies(nbd->handle, false) < 0 ||
	    library->set_uri_allow_tls(nbd->handle, NBD_TLS_DISABLE) < 0 ||
	    library->aio_connect_uri(nbd->handle, uri) < 0)
		return failed(nbd, why, room);
	return 0;
}

int iod_nbd_wait(struct iod_driver *driver, int milliseconds, char *why, size_t room)
{
	const struct nbd *nbd = of(driver);
	const struct nbd_library *library = &nbd->library;

	if (library->aio_is_ready(nbd->handle) == 1)
		return 1;
	if (library->aio_is_dead(nbd->handle) || library->aio_is_closed(nbd->handle) ||
	    library->poll(nbd->handle, milliseconds) < 0)
		return failed(nbd, why, room);
	return library->aio_is_ready(nbd->handle) == 1;
}

int iod_nbd_begin(struct iod_driver *driver, struct iod_nbd_info *info, char *why, size_t room)
{
	struct nbd *nbd = of(driver);
	const struct nbd_library *library = &nbd->library;
	int64_t size = library->get_size(nbd->handle);
	int64_t minimum = library->get_block_size(nbd->handle, NBD_SIZE_MINIMUM);
	int64_t preferred = library->get_block_size(nbd->handle, NBD_SIZE_PREFERRED);
	int64_t maximum = library->get_block_size(nbd->handle, NBD_SIZE_MAXIMUM);

	if (size < 0 || minimum < 0 || preferred < 0 || maximum < 0)
		return failed(nbd, why, room);
	minimum = minimum ? minimum : 1;
	maximum = maximum && maximum < MOST ? maximum / minimum * minimum : MOST;
	if (minimum > MOST_MINIMUM || minimum & (minimum - 1) || !maximum || preferred > UINT32_MAX) {
		snprintf(why, room, "the server's blocks cannot be: at least %lld, at most %lld bytes",
			 (long long)minimum, (long long)maximum);
		return -EPROTO;
	}
	driver->fd = fcntl(library->aio_get_fd(nbd->handle), F_DUPFD_CLOEXEC, 0);
	if (driver->fd < 0) {
		int error = errno;
		snprintf(why, room, "%s", strerror(error));
		return -error;
	}
	nbd->info = *info = (struct iod_nbd_info){
		.size = (uint64_t)(size - size % minimum), .minimum = (uint32_t)minimum, .preferred = (uint32_t)preferred,
		.maximum = (uint32_t)maximum, .read_only = library->is_read_only(nbd->handle) == 1,
		.can_flush = library->can_flush(nbd->handle) == 1, .can_fua = library->can_fua(nbd->handle) == 1,
		.can_trim = library->can_trim(nbd->handle) == 1, .can_zero = library->can_zero(nbd->handle) == 1};
	return 0;
}

const char *iod_nbd_version(const struct iod_driver *driver)
{
	return of(driver)->version;
}

const char *iod_nbd_why(const struct iod_driver *driver)
{
	return of(driver)->handle ? NULL : of(driver)->why;
}
