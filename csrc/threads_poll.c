/* SPDX-License-Identifier: Apache-2.0
 *
 * threads_poll: the one thread that waits for sockets, so that no worker ever does.
 *
 * Invariants
 *  - Jobs in poll_jobs belong to this thread alone; a cancel sets their flag and calls the thread.
 *  - poll(2), not epoll: the same descriptor may be here twice (a send and a receive), and nothing is remembered about
 *    a descriptor after its job ended.
 *  - A job leaves with a result or -ECANCELED; when the pool stops, what is left leaves with -ECANCELED.
 */
#include <errno.h>
#include <poll.h>
#include <unistd.h>

#include "threads_internal.h"

void iod_threads_to_poller(struct iod_threads *t, struct job *j)
{
	pthread_mutex_lock(&t->lock);
	job_set_state(j, JOB_POLLING);
	job_list_append(&t->inbox, j);
	bool call = !t->poller_called;
	t->poller_called = true;
	pthread_mutex_unlock(&t->lock);
	if (call)
		iod_event_signal(t->poll_fd);
}

/* poll_fds[0] is the pool's call, poll_fds[i + 1] belongs to poll_jobs[i]. */
static void drop(struct iod_threads *t, uint32_t i)
{
	t->poll_count--;
	t->poll_jobs[i] = t->poll_jobs[t->poll_count];
	t->poll_fds[i + 1] = t->poll_fds[t->poll_count + 1];
}

/* Takes in what came and lets go of what was cancelled; false when the pool stops. */
static bool take_in(struct iod_threads *t)
{
	iod_event_drain(t->poll_fd);
	pthread_mutex_lock(&t->lock);
	t->poller_called = false;
	bool stopping = t->stopping;
	struct job *j;
	while ((j = job_list_pop(&t->inbox))) {
		t->poll_jobs[t->poll_count] = j;
		t->poll_fds[++t->poll_count] = (struct pollfd){.fd = j->op.fd, .events = iod_job_events(&j->op)};
	}
	pthread_mutex_unlock(&t->lock);
	for (uint32_t i = t->poll_count; i-- > 0;) {
		j = t->poll_jobs[i];
		if (stopping || __atomic_load_n(&j->cancel, __ATOMIC_RELAXED)) {
			drop(t, i);
			iod_threads_done(t, j, -ECANCELED);
		}
	}
	return !stopping;
}

static void serve(struct iod_threads *t)
{
	for (uint32_t i = t->poll_count; i-- > 0;) {
		short revents = t->poll_fds[i + 1].revents;
		struct job *j = t->poll_jobs[i];
		if (!revents)
			continue;
		int32_t res = iod_job_run(&j->op);
		if (res == JOB_WOULD_BLOCK) /* somebody else was quicker */
			continue;
		drop(t, i);
		iod_threads_done(t, j, res);
	}
}

void *iod_threads_poller(void *arg)
{
	struct iod_threads *t = arg;
	do {
		if (poll(t->poll_fds, t->poll_count + 1, -1) < 0)
			continue;
		serve(t);
	} while (!t->poll_fds[0].revents || take_in(t));
	return NULL;
}
