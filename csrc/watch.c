/* SPDX-License-Identifier: Apache-2.0
 *
 * watch: the words of shared memory that a spinning wait looks at beside its own. */
#include "backend.h"
#include "bytes.h"

struct look {
	const struct iod_watch *watch;
	uint32_t count;
	bool changed;
};

static void run(void *arg)
{
	struct look *l = arg;
	for (uint32_t i = 0; i < l->count; i++) {
		uint16_t now = __atomic_load_n(l->watch[i].word, __ATOMIC_RELAXED);
		if ((now ^ l->watch[i].seen) & l->watch[i].mask)
			l->changed = true;
	}
}

bool iod_watch_changed(const struct iod_backend *b)
{
	struct look l = {.watch = b->watch, .count = b->watches};
	uintptr_t fault;
	/* Memory that is gone is a change: whoever owns the word finds out. */
	return l.count && (!iod_guarded(run, &l, &fault) || l.changed);
}
