/* SPDX-License-Identifier: Apache-2.0
 *
 * threads_internal: the worker pool as its source files share it: threads.c is the owner's side, threads_run.c carries
 * out ops and is the workers' loop, threads_poll.c is the one thread that waits for sockets.
 *
 * A job goes   free -> local -> queued -> running -> done -> free
 *                        |         running -> polling -> done
 *                        +-> polling, or done at once (tried in flush)
 *
 * Invariants
 *  - free, local and done-and-taken jobs belong to the owner; queued and polling ones to the lists under `lock`; a
 *    running one to the thread that runs it.
 *  - The owner alone frees a job, so a job that the owner finds by its user_data cannot turn into another one.
 *  - done_head is a stack that any thread pushes to and that the owner empties whole: no ABA, no lock.
 *  - done_count follows the pushes, so it never promises more than is there; it may be below zero for a moment.
 *  - Sleeping owner and completing thread each write their word before they read the other's (waiting_for,
 *    done_count), sequentially consistent: one of the two sees the other.
 */
#ifndef IOD_THREADS_INTERNAL_H
#define IOD_THREADS_INTERNAL_H

#include <poll.h>
#include <pthread.h>
#include <sys/types.h>

#include "backend.h"
#include "event.h"

enum job_state { JOB_FREE, JOB_LOCAL, JOB_QUEUED, JOB_RUNNING, JOB_POLLING, JOB_DONE };

struct job {
	struct iod_op op;
	struct job *next, *prev;
	int32_t res;
	int state;  /* atomic */
	int cancel; /* atomic: the caller wants it to end */
};

struct job_list {
	struct job *head, *tail;
	uint32_t count;
};

struct iod_threads {
	struct iod_backend base;
	pid_t pid;

	/* The owner's */
	struct job *jobs;
	struct job *free_jobs;
	struct job_list local; /* queued, not flushed */
	struct job_list ready; /* done and taken, not reaped */
	uint32_t inflight;
	bool woken;		/* a wake-up that reap met before a wait did */
	uint32_t miss_run;	/* how many reads in a row the page cache did not have */
	uint32_t skip_tries;	/* so many more reads go to the workers untried */

	/* Everybody's, under lock */
	pthread_mutex_t lock;
	struct job_list work;
	struct job_list inbox; /* for the poller */
	uint32_t idle, waking; /* workers asleep, and those among them that were called */
	bool stopping, poller_called;
	uint32_t work_seq; /* futex of the workers */
	int poll_fd;	   /* eventfd that calls the poller */

	/* Everybody's, atomic */
	struct job *done_head __attribute__((aligned(64)));
	int32_t done_count;
	int32_t waiting_for; /* the owner sleeps until done_count is this; 0: it does not sleep */
	uint32_t owner_seq;  /* futex of the owner */
	int wake_flag;
	int event_fd_used;
	int event_fd;

	/* The poller's */
	struct pollfd *poll_fds;
	struct job **poll_jobs;
	uint32_t poll_count;

	uint32_t workers, threads_started;
	bool poller_started;
	pthread_t poller;
	pthread_t threads[];
};

static inline void job_list_append(struct job_list *l, struct job *j)
{
	j->next = NULL;
	j->prev = l->tail;
	if (l->tail)
		l->tail->next = j;
	else
		l->head = j;
	l->tail = j;
	l->count++;
}

static inline void job_list_remove(struct job_list *l, struct job *j)
{
	if (j->prev)
		j->prev->next = j->next;
	else
		l->head = j->next;
	if (j->next)
		j->next->prev = j->prev;
	else
		l->tail = j->prev;
	l->count--;
}

static inline struct job *job_list_pop(struct job_list *l)
{
	struct job *j = l->head;
	if (j)
		job_list_remove(l, j);
	return j;
}

static inline void job_set_state(struct job *j, enum job_state s)
{
	__atomic_store_n(&j->state, (int)s, __ATOMIC_RELAXED);
}

#define JOB_WOULD_BLOCK INT32_MIN /* not a result: try again when the descriptor is ready */

/* From any thread: the job is over; tells the owner if it waits for this. */
void iod_threads_done(struct iod_threads *, struct job *, int32_t res);
/* From any thread, lock not held: the poller takes it from here. */
void iod_threads_to_poller(struct iod_threads *, struct job *);

/* Carries a job out to its end (files), or as far as it goes without blocking (sockets, poll). */
int32_t iod_job_run(const struct iod_op *);
/* As iod_job_run for what can be had without blocking, else JOB_WOULD_BLOCK. */
int32_t iod_job_try_read(const struct iod_op *);
bool iod_job_is_stream(const struct iod_op *);
short iod_job_events(const struct iod_op *);

void *iod_threads_worker(void *);
void *iod_threads_poller(void *);

int iod_futex_wait(uint32_t *word, uint32_t seen, int64_t timeout_ns);
void iod_futex_wake(uint32_t *word, int count);

#endif
